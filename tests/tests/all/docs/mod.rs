//! The demo, the man pages and the benchmarks.

mod bench;
mod demo;
mod man_pages;
