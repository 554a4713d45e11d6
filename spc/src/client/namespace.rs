//! The client namespace: a mount namespace whose root is a client root, with kernel file systems of its own, shared by
//! every mount that is made with that root.
//!
//! A small process, the keeper, keeps it while no daemon does; `/run/spc/clients/ID` on the host names it. The namespace
//! is private, and no part of the host's tree but its root directory is in it, so that neither side sees the other's mounts.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::{root, scope};
use crate::error::{Error, Result, errno_text};
use crate::host::output::Output;
use crate::host::{Host, Settings, container, process};
use crate::sys::{self, MountAttributes};

/// On the host: a file for each keeper.
const CLIENTS: &str = "/run/spc/clients";

/// On the host: a directory of claims for each client root.
const CLAIMS: &str = "/run/spc/targets";

/// On the host: what client programs log.
const LOGS: &str = "/var/log/spc";

/// How long a keeper may take until its namespace is there.
const START: Duration = Duration::from_secs(20);

/// How long to wait for another command that makes one.
const TURN: Duration = Duration::from_secs(60);

/// The devices that client programs open.
const DEVICES: [&str; 7] = ["full", "fuse", "null", "random", "tty", "urandom", "zero"];

/// Directories of the host where client programs look for keys and settings that nobody names.
const CONFIGURED: [&str; 2] = ["/etc/ceph", "/root/.ssh"];

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
pub struct Keeper {
    /// Its process, held.
    pub pidfd: OwnedFd,
    /// Its process.
    pub pid: i32,
    namespace: u64,
}

/// The claims of a client root, as every process of the host's PID namespace can reach them.
pub fn claims(host: &Host, id: &str) -> PathBuf {
    let root = host
        .proc_file("root")
        .unwrap_or_else(|| "/proc/1/root".into());
    root.join(CLAIMS.trim_start_matches('/')).join(id)
}

fn note(id: &str) -> PathBuf {
    Path::new(CLIENTS).join(id)
}

/// The keeper of a client namespace, if it has one.
///
/// # Errors
/// The host does not answer.
pub fn find(host: &Host, id: &str) -> Result<Option<Keeper>> {
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
        .map(|pidfd| Keeper {
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
pub fn ensure(host: &Host, settings: &Settings, id: &str) -> Result<Keeper> {
    if container::shares(settings, "pid") == Some(false) {
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
            .because(errno_text(e))
            .hint("make room below /run on the host")
    };
    let opened = host.run("locking the client namespaces", || {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(CLIENTS)?;
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(format!("{CLIENTS}/lock"))
    })?;
    let file = opened.map_err(fail)?;
    let until = Instant::now() + TURN;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(fail(error.into())),
        }
    }
}

fn make(host: &Host, id: &str) -> Result<Keeper> {
    let fail = |cause: String| {
        Error::system(format!("cannot make the namespace of the client root {id}")).because(cause)
    };
    let system = |e: std::io::Error| fail(errno_text(e));
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
            Some(line) => fail(line.trim_start_matches("spc: ").to_owned()),
            None => error,
        }
    });
    if made.is_err() {
        // Its input is closed, so it ends; this is for one that hangs.
        let _ = child.kill();
        let _ = child.wait();
    }
    made
}

/// Waits for a keeper's namespace, puts the keeper where the container's end does not reach it, and notes it.
fn start(host: &Host, id: &str, child: &mut Child) -> Result<Keeper> {
    let fail = || Error::system(format!("cannot make the namespace of the client root {id}"));
    let system = |e: std::io::Error| fail().because(errno_text(e));
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
    scope::adopt(
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
    Ok(Keeper {
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
        let others = process::in_namespace(keeper.namespace, keeper.pid);
        if others {
            return Ok(false);
        }
        // It may have ended by itself.
        let _ = pidfd_send_signal(&keeper.pidfd, Signal::KILL);
        if !process::ended(&keeper.pidfd, Duration::from_secs(2)) {
            return Ok(false);
        }
    }
    scope::remove(&format!("clients-{id}"));
    let (file, claims) = (note(id), Path::new(CLAIMS).join(id));
    host.run("forgetting the client namespace", move || {
        // What is not there is not missed, and claims that are left keep their directory.
        let _ = fs::remove_file(file);
        let _ = fs::remove_dir(claims);
    })?;
    Ok(true)
}

/// The mounts of the host's that a client namespace is made of, each detached.
struct Parts {
    tree: OwnedFd,
    host: OwnedFd,
    claims: OwnedFd,
    logs: OwnedFd,
    devices: Vec<(&'static str, OwnedFd)>,
    configured: Vec<(&'static str, OwnedFd)>,
}

fn parts(id: &str) -> std::io::Result<Parts> {
    let clone = |path: &Path, clear: u64| -> std::io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, path, flags)?;
        let what = MountAttributes {
            clear,
            propagation: Some(MountPropagationFlags::PRIVATE),
            ..MountAttributes::default()
        };
        sys::mount_setattr(&mount, what)?;
        Ok(mount)
    };
    let claims = Path::new(CLAIMS).join(id);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&claims)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(LOGS)?;
    // What is not there is missed by those kinds that need it, and they say so.
    let there = |path: &Path| match clone(path, 0) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        mount => mount.map(Some),
    };
    let mut devices = Vec::new();
    for name in DEVICES {
        devices.extend(there(&Path::new("/dev").join(name))?.map(|mount| (name, mount)));
    }
    let mut configured = Vec::new();
    for path in CONFIGURED {
        configured.extend(there(Path::new(path))?.map(|mount| (path, mount)));
    }
    Ok(Parts {
        // `/var` of some hosts is mounted with noexec.
        tree: clone(&root::path(id), sys::MOUNT_ATTR_NOEXEC)?,
        host: clone(Path::new("/"), 0)?,
        claims: clone(&claims, 0)?,
        logs: clone(Path::new(LOGS), 0)?,
        devices,
        configured,
    })
}

/// `spc keep`: makes a client namespace, and becomes its keeper.
///
/// # Errors
/// A part of it cannot be made.
pub fn keep(id: &str) -> Result<()> {
    let settings = Settings::read()?;
    let host = Host::open(&settings)?;
    let fail = |e: std::io::Error| {
        Error::system(format!("cannot make the namespace of the client root {id}"))
            .because(errno_text(e))
    };
    let id_there = id.to_owned();
    let parts = host
        .run("cloning the client root", move || parts(&id_there))?
        .map_err(fail)?;
    let namespaces =
        ["net", "ipc", "uts", "cgroup"].map(|kind| host.proc_file(&format!("ns/{kind}")));
    for file in namespaces.into_iter().flatten() {
        let file = File::open(file).map_err(fail)?;
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), None)
            .map_err(|e| fail(e.into()))?;
    }
    build(parts, &settings.claims()).map_err(fail)?;
    // Nothing of the container is held any more but this very program.
    let error = Command::new("/usr/bin/spc")
        .args(["keeper", id])
        .env_clear()
        .exec();
    Err(fail(error))
}

/// Moves this thread into a new mount namespace that is made of these parts.
fn build(parts: Parts, claims: &Path) -> std::io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    // Any directory that is there will do until it is the root.
    attach(&parts.tree, "/proc")?;
    let tree = open("/proc", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::fchdir(&tree)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    let none = None::<&std::ffi::CStr>;
    mount("proc", "/proc", "proc", plain | MountFlags::NOEXEC, none)?;
    mount("sysfs", "/sys", "sysfs", plain | MountFlags::NOEXEC, none)?;
    mount(
        "tmpfs",
        "/dev",
        "tmpfs",
        MountFlags::NOSUID,
        c"mode=0755,size=64k",
    )?;
    for (name, device) in &parts.devices {
        let path = Path::new("/dev").join(name);
        File::create(&path)?;
        attach(device, &path)?;
    }
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ] {
        symlink(to, link)?;
    }
    for directory in ["/dev/pts", "/dev/shm"] {
        fs::create_dir(directory)?;
    }
    mount(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID,
        c"newinstance,ptmxmode=0666,mode=0620",
    )?;
    let run = directories(Path::new("/run"))?;
    mount("tmpfs", "/run", "tmpfs", plain, c"mode=0755")?;
    make_all(&run)?;
    mount("tmpfs", "/tmp", "tmpfs", plain, c"mode=1777")?;
    fs::create_dir_all(claims)?;
    attach(&parts.claims, claims)?;
    attach(&parts.host, "/host")?;
    for (path, mount) in &parts.configured {
        fs::create_dir_all(path)?;
        attach(mount, *path)?;
    }
    let logs = directories(Path::new("/var/log"))?;
    attach(&parts.logs, "/var/log")?;
    make_all(&logs)
}

fn attach(mount: &OwnedFd, target: impl rustix::path::Arg) -> std::io::Result<()> {
    Ok(move_mount(
        mount,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// The directories right below one.
fn directories(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn make_all(directories: &[PathBuf]) -> std::io::Result<()> {
    for directory in directories {
        match fs::create_dir(directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// `spc keeper`: waits for ever, once whoever started it has noted it.
///
/// # Errors
/// It was not noted.
pub fn keeper() -> Result<()> {
    let fail = |e: std::io::Error| Error::system("cannot keep a namespace").because(errno_text(e));
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(fail)?;
    if line != "kept\n" {
        return Err(Error::system("cannot keep a namespace").because("nobody wants it"));
    }
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(fail)?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| fail(e.into()))?;
    rustix::stdio::dup2_stdout(&null).map_err(|e| fail(e.into()))?;
    rustix::stdio::dup2_stderr(&null).map_err(|e| fail(e.into()))?;
    drop(null);
    loop {
        nix::unistd::pause();
    }
}
