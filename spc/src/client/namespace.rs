//! The client namespace: a mount namespace whose root is a client root, with kernel file systems of its own, shared by
//! every mount that is made with that root.
//!
//! A small process, the keeper, keeps it while no daemon does; `/run/spc/clients/ID` on the host names it. The namespace
//! is private, and no part of the host's tree but its root directory is in it, so that neither side sees the other's mounts.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{Cause, Error, Result};
use crate::host::namespace::shares;
use crate::host::redirect::REDIRECTS;
use crate::host::{Host, cgroup, file_lock};
use crate::process::marks;
use crate::process::output::Output;
use crate::sys;

/// On the host: a file for each keeper.
const CLIENTS: &str = "/run/spc/clients";

/// How long a keeper may take until its namespace is there.
const START: Duration = Duration::from_secs(20);

/// How long to wait for another command that makes one.
const TURN: Duration = Duration::from_secs(60);

/// What is remembered of a keeper.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Note {
    /// Its process.
    pid: i32,
    /// The inode of its mount namespace: process ids are used again.
    namespace: u64,
}

/// A keeper that lives.
#[derive(Debug)]
pub struct NamespaceHolder {
    /// Its process, held.
    pub pidfd: OwnedFd,
    /// Its process.
    pub pid: i32,
    namespace: u64,
}

fn note(id: &str) -> PathBuf {
    Path::new(CLIENTS).join(id)
}

/// The keeper of a client namespace, if it has one.
///
/// # Errors
/// The host does not answer.
pub fn find(host: &Host, id: &str) -> Result<Option<NamespaceHolder>> {
    let file = note(id);
    let Ok(text) = host.run("looking for the client namespace", move || fs::read(file))? else {
        return Ok(None);
    };
    let Ok(Note { pid, namespace }) = serde_json::from_slice(&text) else {
        return Ok(None);
    };
    let held = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    Ok(held
        .filter(|_| namespace_of(&pid.to_string()) == Some(namespace))
        .map(|pidfd| NamespaceHolder {
            pidfd,
            pid,
            namespace,
        }))
}

/// The mount namespace of a process, by its inode.
fn namespace_of(process: &str) -> Option<u64> {
    let file = fs::metadata(format!("/proc/{process}/ns/mnt")).ok()?;
    Some(file.ino())
}

/// The keeper of a client namespace, which is made if there is none; its root has to be there.
///
/// # Errors
/// The namespace cannot be made.
pub fn ensure(host: &Host, id: &str) -> Result<NamespaceHolder> {
    if shares(host.settings(), "pid") == Some(false) {
        return Err(Error::system("the container has processes of its own, which end with it")
            .hint("start it with --pid=host, or accept that the mount ends with the container: -o x-spc.container"));
    }
    if let Some(keeper) = find(host, id)? {
        return Ok(keeper);
    }
    let _turn = take_turn(host)?;
    if let Some(keeper) = find(host, id)? {
        return Ok(keeper);
    }
    make(host, id)
}

/// The right to make or end keepers, until dropped.
fn take_turn(host: &Host) -> Result<File> {
    let fail = |e: std::io::Error| {
        Error::system(format!("cannot lock {CLIENTS}/lock on the host"))
            .because(e)
            .hint("make room below /run on the host")
    };
    let open = || file_lock::open(Path::new(CLIENTS), 0o700);
    let opened = host.run("locking the client namespaces", open)?;
    let file = opened.map_err(fail)?;
    file_lock::acquire(&file, FlockOperation::NonBlockingLockExclusive, TURN).map_err(fail)?;
    Ok(file)
}

fn make(host: &Host, id: &str) -> Result<NamespaceHolder> {
    let fail = |cause: Cause| {
        Error::system(format!("cannot make the namespace of the client root {id}")).because(cause)
    };
    let system = |e: std::io::Error| fail(e.into());
    let output = Output::new().map_err(system)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["keep", id])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(output.handle().map_err(system)?);
    let mut child = sys::detach(&mut command).spawn().map_err(system)?;
    let made = start(host, id, &mut child).map_err(|error| {
        // Whatever it has said is the better reason.
        let said = output.text();
        match said.lines().find(|line| line.starts_with("spc: ")) {
            Some(line) => fail(line.trim_start_matches("spc: ").to_owned().into()),
            None => error,
        }
    });
    if made.is_err() {
        // Its input is closed, so it ends; this is for one that hangs.
        let _ = child.kill();
        // One that waits in the kernel, where no signal ends it, is left behind.
        for _ in 0..200 {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                _ => break,
            }
        }
    }
    made
}

/// Waits for a keeper's namespace, puts the keeper where the container's end does not reach it, and notes it.
fn start(host: &Host, id: &str, child: &mut Child) -> Result<NamespaceHolder> {
    let fail = || Error::system(format!("cannot make the namespace of the client root {id}"));
    let system = |e: std::io::Error| fail().because(e);
    let pid = Pid::from_child(child);
    let number = pid.as_raw_nonzero().get();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| system(e.into()))?;
    let stdout = child.stdout.take().ok_or_else(fail)?;
    let (done, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let _ = done.send(read.is_ok() && line == "ready\n");
    });
    if answer.recv_timeout(START) != Ok(true) {
        return Err(fail().because("it gave no sign in time"));
    }
    cgroup::adopt(
        &format!("clients-{id}"),
        "spc: keeps the namespace of the client programs",
        number,
    )?;
    let namespace = namespace_of(&number.to_string()).ok_or_else(fail)?;
    let text = serde_json::to_vec(&Note {
        pid: number,
        namespace,
    })
    .map_err(|e| fail().because(e))?;
    let file = note(id);
    let written = host.run("noting the client namespace", move || {
        let new = file.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, &file)
    })?;
    written.map_err(|e| system(e).hint("make room below /run on the host"))?;
    let go = child.stdin.take().ok_or_else(fail)?;
    (&go).write_all(b"kept\n").map_err(system)?;
    Ok(NamespaceHolder {
        pidfd,
        pid: number,
        namespace,
    })
}

/// Ends a client namespace if nothing but its keeper is in it. False if something is.
///
/// # Errors
/// The host does not answer.
pub fn end(host: &Host, id: &str) -> Result<bool> {
    let _turn = take_turn(host)?;
    if let Some(keeper) = find(host, id)? {
        let others = marks::in_namespace(keeper.namespace, keeper.pid);
        if others {
            return Ok(false);
        }
        // It may have ended by itself.
        let _ = pidfd_send_signal(&keeper.pidfd, Signal::KILL);
        if !marks::ended(&keeper.pidfd, Duration::from_secs(2)) {
            return Ok(false);
        }
    }
    cgroup::remove(&format!("clients-{id}"));
    let (file, redirects) = (note(id), Path::new(REDIRECTS).join(id));
    host.run("forgetting the client namespace", move || {
        // What is not there is not missed, and claims that are left keep their directory.
        let _ = fs::remove_file(file);
        let _ = fs::remove_dir(redirects);
    })?;
    Ok(true)
}
