//! Common interface of hosts and virtual machines for tests.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::guest;
use crate::host::Host;
use crate::mountinfo::Mount;
use crate::output::Output;
use crate::vm::Vm;

/// A host or a virtual machine.
pub trait AnyHost {
    /// Returns the address on the lab's network.
    fn address(&self) -> Ipv4Addr;

    /// Runs a command with these bytes as standard input.
    fn run_with(&self, argv: &[&str], input: &[u8]) -> Result<Output>;

    /// Returns the mount table.
    fn mountinfo(&self) -> Result<Vec<Mount>>;

    /// Returns the number of entries of each mount table, containers included, by mount namespace.
    fn tables(&self) -> Result<BTreeMap<PathBuf, usize>>;

    /// Runs a command.
    fn run(&self, argv: &[&str]) -> Result<Output> {
        self.run_with(argv, b"")
    }

    /// Runs a shell script.
    fn sh(&self, script: &str) -> Result<Output> {
        self.run(&["sh", "-c", script])
    }

    /// Reads a file.
    fn read(&self, path: &str) -> Result<Vec<u8>> {
        Ok(self.run(&["cat", "--", path])?.ok()?.stdout)
    }

    /// Writes a file, and makes missing directories.
    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let script = r#"mkdir -p -- "$(dirname -- "$1")" && cat > "$1""#;
        let write = ["sh", "-c", script, "write", path];
        self.run_with(&write, bytes)?.ok().map(drop)
    }
}

impl AnyHost for Host<'_> {
    fn address(&self) -> Ipv4Addr {
        self.address()
    }

    fn run_with(&self, argv: &[&str], input: &[u8]) -> Result<Output> {
        self.command(argv)?.input(input)?.run()
    }

    fn mountinfo(&self) -> Result<Vec<Mount>> {
        self.mountinfo()
    }

    fn tables(&self) -> Result<BTreeMap<PathBuf, usize>> {
        let table = |pid: i32| {
            let namespace = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
            let table = std::fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
            let lines = table.iter().filter(|byte| **byte == b'\n').count();
            Some((namespace, lines))
        };
        Ok(self.processes().into_iter().filter_map(table).collect())
    }
}

impl AnyHost for Vm<'_> {
    fn address(&self) -> Ipv4Addr {
        self.address()
    }

    fn run_with(&self, argv: &[&str], input: &[u8]) -> Result<Output> {
        self.command(argv).input(input).run()
    }

    fn mountinfo(&self) -> Result<Vec<Mount>> {
        self.mountinfo()
    }

    fn tables(&self) -> Result<BTreeMap<PathBuf, usize>> {
        let text = self.run(&[guest::TABLES])?.ok()?.text();
        let table = |line: &str| {
            let (namespace, lines) = line.split_once(' ')?;
            Some((namespace.into(), lines.parse().ok()?))
        };
        let tables = text
            .lines()
            .map(|line| table(line).context("a table without lines"));
        tables.collect()
    }
}
