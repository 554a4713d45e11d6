//! What the documents, the demo and the man pages show.

mod bench;
mod demo;
mod man_pages;
