//! Client namespaces. A client namespace is a mount namespace whose root is a client root file
//! system, with kernel file systems of its own. All mounts made from that client root share it.
//!
//! A small process, the namespace holder, keeps it alive while it has no daemon. The file
//! `/run/spc/clients/ID` on the host names the holder. All mounts of the namespace are private, and
//! only the host's root directory is in it without the mounts below, so that neither side sees
//! mounts of the other.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{Cause, Error, Result};
use crate::host::file_lock::{self, LockMode};
use crate::host::namespace::shares_namespace;
use crate::host::redirect::REDIRECTS;
use crate::host::{Host, cgroup};
use crate::process::output::Output;
use crate::process::{candidates, marks};
use crate::sys;

/// Directory on the host with a file for each namespace holder.
const CLIENTS: &str = "/run/spc/clients";

/// Limit for a namespace holder to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Limit for waiting while another command creates or ends a namespace.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// Contents of the file in [`CLIENTS`] that names a namespace holder.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct HolderFile {
    /// PID of the holder.
    pid: i32,
    /// Inode number of its mount namespace, which tells it from a later process with the same PID.
    namespace: u64,
}

/// Running namespace holder.
#[derive(Debug)]
pub struct NamespaceHolder {
    /// pidfd of the holder.
    pub pidfd: OwnedFd,
    /// PID of the holder.
    pub pid: i32,
    /// Inode number of its mount namespace.
    namespace: u64,
}

/// Returns the path of the file that names the holder of client root `id`.
fn holder_file(id: &str) -> PathBuf {
    Path::new(CLIENTS).join(id)
}

/// Returns the holder of the client namespace of client root `id`, if it is running.
///
/// # Errors
/// The host's mount namespace does not respond.
pub fn find(host: &Host, id: &str) -> Result<Option<NamespaceHolder>> {
    let file = holder_file(id);
    let Ok(text) = host.run("looking for the client namespace", move || fs::read(file))? else {
        return Ok(None);
    };
    let Ok(HolderFile { pid, namespace }) = serde_json::from_slice(&text) else {
        return Ok(None);
    };
    // The id may meanwhile be that of another user's process, which may delay the reads.
    if !candidates::in_cgroup_of_spc(pid) {
        return Ok(None);
    }
    let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    Ok(pidfd
        .filter(|_| namespace_of(&pid.to_string()) == Some(namespace))
        .map(|pidfd| NamespaceHolder {
            pidfd,
            pid,
            namespace,
        }))
}

/// Returns the inode number of a process's mount namespace.
fn namespace_of(process: &str) -> Option<u64> {
    let file = fs::metadata(format!("/proc/{process}/ns/mnt")).ok()?;
    Some(file.ino())
}

/// Returns the holder of the client namespace of client root `id`, and creates the namespace if it
/// does not exist. The client root file system has to exist.
///
/// # Errors
/// The container has a PID namespace of its own, or the client namespace cannot be created.
pub fn ensure(host: &Host, id: &str) -> Result<NamespaceHolder> {
    if shares_namespace(host.settings(), "pid") == Some(false) {
        return Err(Error::system("the container has a PID namespace of its own: its processes end with it")
            .hint("start it with --pid=host, or accept that the mount ends with the container: -o x-spc.container"));
    }
    if let Some(holder) = find(host, id)? {
        return Ok(holder);
    }
    let _lock = lock_clients(host)?;
    if let Some(holder) = find(host, id)? {
        return Ok(holder);
    }
    start_holder(host, id)
}

/// Takes the lock under which namespace holders are started and ended.
fn lock_clients(host: &Host) -> Result<File> {
    let fail = |e: std::io::Error| {
        Error::system(format!("cannot lock {CLIENTS}/lock on the host"))
            .hint(file_lock::hint(&e, "make room below /run on the host"))
            .because(e)
    };
    let open = || file_lock::open(Path::new(CLIENTS), 0o700);
    let opened = host.run("locking the client namespaces", open)?;
    let file = opened.map_err(fail)?;
    file_lock::acquire(&file, LockMode::Exclusive, LOCK_TIMEOUT).map_err(fail)?;
    Ok(file)
}

/// Starts a namespace holder and waits until it is ready.
fn start_holder(host: &Host, id: &str) -> Result<NamespaceHolder> {
    let fail = |cause: Cause| {
        Error::system(format!(
            "cannot create the namespace of the client root file system {id}"
        ))
        .because(cause)
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
    let result = register(host, id, &mut child).map_err(|error| {
        // An error of the holder itself explains more.
        let stderr = output.text();
        match stderr.lines().find(|line| line.starts_with("spc: ")) {
            Some(line) => fail(line.trim_start_matches("spc: ").to_owned().into()),
            None => error,
        }
    });
    if result.is_err() {
        // The holder ends when its stdin is closed, unless it hangs. An error here means that it
        // has ended.
        let _ = child.kill();
        // A process in uninterruptible sleep ignores SIGKILL and is left behind.
        for _ in 0..200 {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                _ => break,
            }
        }
    }
    result
}

/// Waits until a holder's namespace is ready, moves the holder to a cgroup of its own, so that it
/// survives the container, and writes the file that names it.
fn register(host: &Host, id: &str, child: &mut Child) -> Result<NamespaceHolder> {
    let fail = || {
        Error::system(format!(
            "cannot create the namespace of the client root file system {id}"
        ))
    };
    let system = |e: std::io::Error| fail().because(e);
    let pid = Pid::from_child(child);
    let raw_pid = pid.as_raw_nonzero().get();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| system(e.into()))?;
    let stdout = child.stdout.take().ok_or_else(fail)?;
    let (sender, ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        // The receiver is gone after the timeout.
        let _ = sender.send(read.is_ok() && line == "ready\n");
    });
    if ready.recv_timeout(START_TIMEOUT) != Ok(true) {
        return Err(fail().because(format!(
            "it did not become ready within {} s",
            START_TIMEOUT.as_secs()
        )));
    }
    cgroup::adopt(
        &format!("clients-{id}"),
        "spc: namespace holder of the client programs",
        raw_pid,
    )?;
    let namespace = namespace_of(&raw_pid.to_string()).ok_or_else(fail)?;
    let text = serde_json::to_vec(&HolderFile {
        pid: raw_pid,
        namespace,
    })
    .map_err(|e| fail().because(e))?;
    let file = holder_file(id);
    let written = host.run("writing the file of the client namespace", move || {
        let new = file.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, &file)
    })?;
    written.map_err(|e| system(e).hint("make room below /run on the host"))?;
    let stdin = child.stdin.take().ok_or_else(fail)?;
    (&stdin).write_all(b"kept\n").map_err(system)?;
    Ok(NamespaceHolder {
        pidfd,
        pid: raw_pid,
        namespace,
    })
}

/// Ends the client namespace of client root `id` if its holder is the only process in it. Returns
/// whether it ended.
///
/// # Errors
/// The host's mount namespace does not respond.
pub fn end_if_unused(host: &Host, id: &str) -> Result<bool> {
    let _lock = lock_clients(host)?;
    if let Some(holder) = find(host, id)? {
        let others = candidates::any_in_namespace(holder.namespace, holder.pid);
        if others {
            return Ok(false);
        }
        // An error means that the holder has ended.
        let _ = pidfd_send_signal(&holder.pidfd, Signal::KILL);
        if !marks::exited(&holder.pidfd, Duration::from_secs(2)) {
            return Ok(false);
        }
    }
    cgroup::remove(&format!("clients-{id}"));
    let (file, redirects) = (holder_file(id), Path::new(REDIRECTS).join(id));
    host.run("removing the file of the client namespace", move || {
        // Errors are ignored: the file may be missing, and a directory with redirects stays.
        let _ = fs::remove_file(file);
        let _ = fs::remove_dir(redirects);
    })?;
    Ok(true)
}
