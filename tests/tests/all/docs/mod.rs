//! The README, the guide for contributors, the demo, the man pages and the benchmarks.

mod bench;
mod contributing;
mod demo;
mod man_pages;
mod readme;
