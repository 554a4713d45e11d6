//! A running lab, seen from the test process.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::cgroup::Cgroup;
use crate::exec::Run;
use crate::host::{Host, HostOptions};
use crate::machine::{binary, expect_line};
use crate::mountinfo::{self, Mount};
use crate::supervisor::Address;
use crate::{net, packages, times};

/// A lab: the parent of hosts. A lab ends with the process that started it.
#[derive(Debug)]
pub struct Lab {
    supervisor: Child,
    init: i32,
    pub(crate) cgroup: Cgroup,
    numbers: Mutex<Numbers>,
}

impl Lab {
    /// Starts a separate lab. Most tests want [`shared`].
    pub fn start() -> Result<Self> {
        let mut supervisor = Command::new(binary()?)
            .arg("supervise")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the lab's supervisor")?;
        let output = supervisor.stdout.take().context("no standard output")?;
        let line = expect_line(&mut BufReader::new(output), "the lab's supervisor")?;
        let Address { init, cgroup } =
            serde_json::from_str(&line).context("bad answer from the supervisor")?;
        Ok(Self {
            supervisor,
            init,
            cgroup: Cgroup::at(cgroup),
            numbers: Mutex::default(),
        })
    }

    /// Boots a host.
    pub fn host(&self, options: HostOptions) -> Result<Host<'_>> {
        Host::boot(self, options)
    }

    /// Returns the PID of the process that ends the lab.
    pub fn supervisor(&self) -> u32 {
        self.supervisor.id()
    }

    /// Returns the directory of the lab's cgroup.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// Returns every process of the lab, as the machine numbers them.
    pub fn processes(&self) -> Vec<i32> {
        self.cgroup.processes()
    }

    /// Returns the mount table of every mount namespace in the lab, by the namespace's inode
    /// number.
    pub fn mount_tables(&self) -> BTreeMap<u64, Vec<Mount>> {
        let mut tables: BTreeMap<u64, Vec<Mount>> = BTreeMap::new();
        for pid in self.processes() {
            // A process that has just ended has no table.
            let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/mnt")) else {
                continue;
            };
            let Ok(mounts) = mountinfo::of_process(pid) else {
                continue;
            };
            // Processes in a chroot see only a part of the table.
            let table = tables.entry(namespace.ino()).or_default();
            if mounts.len() > table.len() {
                *table = mounts;
            }
        }
        tables
    }

    /// Makes a command in the lab itself, outside of its hosts.
    pub(crate) fn command(&self, cgroup: Cgroup, argv: &[OsString]) -> Result<Run> {
        Run::new("lab", self.init, cgroup, argv)
    }

    /// Returns the number of a new host: unused, and for as long as possible. The kernel needs time
    /// to remove the network of a host that has ended.
    pub(crate) fn take_number(&self) -> Result<u8> {
        let mut numbers = self.numbers();
        let mut order = (numbers.last + 1..=net::HOSTS).chain(1..=numbers.last);
        let free = order.find(|number| !numbers.taken.contains(number));
        let Some(number) = free else {
            bail!("the lab's network is full: {} hosts", net::HOSTS)
        };
        numbers.taken.insert(number);
        numbers.last = number;
        Ok(number)
    }

    pub(crate) fn give_back_number(&self, number: u8) {
        self.numbers().taken.remove(&number);
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers of hosts.
#[derive(Debug, Default)]
struct Numbers {
    taken: BTreeSet<u8>,
    last: u8,
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// Returns the lab that all tests of this process share.
///
/// Where a lab cannot be, prints the reason and returns `None`, and the test has to end. With
/// `CI=true`, panics instead.
pub fn shared() -> Option<&'static Lab> {
    static LAB: OnceLock<Lab> = OnceLock::new();
    let start = || {
        keep_failures();
        Lab::start().unwrap_or_else(|error| panic!("{error:?}"))
    };
    packages::require().then(|| {
        times::begin_test();
        LAB.get_or_init(start)
    })
}

/// Appends the message of each panic to the file `SPC_TEST_FAILURES`, because the output of
/// concurrent tests is mixed.
fn keep_failures() {
    let Some(path) = std::env::var_os("SPC_TEST_FAILURES") else {
        return;
    };
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        let thread = std::thread::current();
        let message = panic.payload_as_str().unwrap_or("no message");
        // Keeps the error and the end of the logs.
        let lines: Vec<_> = message.lines().collect();
        let (first, last) = lines.split_at(lines.len().min(12));
        let last = &last[last.len().saturating_sub(12)..];
        let message = [first, last].concat().join("\n    ");
        let text = format!("{}:\n    {message}\n", thread.name().unwrap_or("a thread"));
        let file = File::options().create(true).append(true).open(&path);
        let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
    }));
}
