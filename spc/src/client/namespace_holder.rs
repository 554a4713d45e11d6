//! What becomes a keeper: a process that makes a client namespace around itself, and then waits for ever.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use crate::client::root;
use crate::error::{Error, Result};
use crate::host::redirect::REDIRECTS;
use crate::host::{Host, Settings, mountinfo};
use crate::sys::{self, MountAttributes};

/// On the host: what client programs log.
pub const LOGS: &str = "/var/log/spc";

/// Directories of the host where client programs look for keys and settings that nobody names.
const CONFIGURED: [&str; 2] = ["/etc/ceph", "/root/.ssh"];

/// The mounts of the host's that a client namespace is made of, each detached.
struct Parts {
    tree: OwnedFd,
    host: OwnedFd,
    redirects: OwnedFd,
    logs: OwnedFd,
    devices: OwnedFd,
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
    let redirects = Path::new(REDIRECTS).join(id);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&redirects)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(LOGS)?;
    // What is not there is missed by those kinds that need it, and they say so.
    let there = |path: &Path| match clone(path, 0) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        mount => mount.map(Some),
    };
    let mut configured = Vec::new();
    for path in CONFIGURED {
        configured.extend(there(Path::new(path))?.map(|mount| (path, mount)));
    }
    Ok(Parts {
        // `/var` of some hosts is mounted with noexec.
        tree: clone(&root::path(id), sys::MOUNT_ATTR_NOEXEC)?,
        host: clone(Path::new("/"), 0)?,
        redirects: clone(&redirects, 0)?,
        logs: clone(Path::new(LOGS), 0)?,
        // Of the host, for disks that are attached later show there as well; nothing that is mounted below it comes along.
        devices: clone(Path::new("/dev"), 0)?,
        configured,
    })
}

/// `spc keep`: makes a client namespace, and becomes its keeper.
///
/// # Errors
/// A part of it cannot be made.
pub fn hold(id: &str) -> Result<()> {
    let host = Host::open(Settings::read()?)?;
    let fail = |e: std::io::Error| {
        Error::system(format!("cannot make the namespace of the client root {id}")).because(e)
    };
    let id_there = id.to_owned();
    let parts = host
        .run("cloning the client root", move || parts(&id_there))?
        .map_err(fail)?;
    let namespaces =
        ["net", "ipc", "uts", "cgroup"].map(|kind| host.proc_file(&format!("ns/{kind}")));
    for file in namespaces.into_iter().flatten() {
        let file = File::open(file).map_err(fail)?;
        move_into_link_name_space(file.as_fd(), None).map_err(|e| fail(e.into()))?;
    }
    empty(&host).map_err(fail)?;
    build(parts, &host.settings().redirects()).map_err(fail)?;
    // Nothing of the container is held any more but this very program.
    let error = Command::new("/usr/bin/spc")
        .args(["keeper", id])
        .env_clear()
        .exec();
    Err(fail(error))
}

/// The mount namespace of the kernel thread that keeps devtmpfs, which has nothing but that in it.
fn kernels_own(host: &Host) -> Option<File> {
    let processes = fs::read_dir(host.proc_file("..")?).ok()?;
    let own = |process: &Path| -> Option<File> {
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        let (begin, rest) = stat.rsplit_once(')')?;
        // A child of kthreadd, which starts nothing but threads of the kernel.
        if !begin.ends_with("(kdevtmpfs") || rest.split_ascii_whitespace().nth(1) != Some("2") {
            return None;
        }
        let bare = mountinfo::read_file(process.join("mountinfo")).ok()?.len() == 1;
        bare.then(|| File::open(process.join("ns/mnt")).ok())?
    };
    let mut found = processes.filter_map(|process| own(&process.ok()?.path()));
    found.next()
}

/// Moves this thread into a new mount namespace that has nothing but a root.
///
/// A new namespace is a copy of another one: of the kernel's own, which has nothing else, or, where that cannot be seen, of
/// the container's, which is emptied.
fn empty(host: &Host) -> std::io::Result<()> {
    unshare(CloneFlags::CLONE_FS)?;
    if let Some(bare) = kernels_own(host) {
        move_into_link_name_space(bare.as_fd(), Some(LinkNameSpaceType::Mount))?;
        return copy();
    }
    copy()?;
    // Its root goes as well, with all that is on it; what that was mounted on stays, of which nobody has seen anything.
    unmount("/", UnmountFlags::DETACH)?;
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(move_into_thread_name_spaces(
        this.as_fd(),
        ThreadNameSpaceType::MOUNT,
    )?)
}

/// Moves this thread into a copy of the mount namespace that it is in, which has nothing to do with that one.
fn copy() -> std::io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", alone)?)
}

/// Makes a namespace that has nothing but a root of these parts.
///
/// docker's seccomp profile has no pivot_root(2). So the client root is put on that root, where nobody sees it: whoever
/// enters the namespace comes out on top.
fn build(parts: Parts, redirects: &Path) -> std::io::Result<()> {
    attach(&parts.tree, "/")?;
    rustix::process::fchdir(&parts.tree)?;
    rustix::process::chroot(".")?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    let none = None::<&std::ffi::CStr>;
    mount("proc", "/proc", "proc", plain | MountFlags::NOEXEC, none)?;
    mount("sysfs", "/sys", "sysfs", plain | MountFlags::NOEXEC, none)?;
    attach(&parts.devices, "/dev")?;
    mount(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID,
        c"newinstance,ptmxmode=0666,mode=0620",
    )?;
    mount("tmpfs", "/dev/shm", "tmpfs", plain, c"mode=1777")?;
    let run = directories(Path::new("/run"))?;
    mount("tmpfs", "/run", "tmpfs", plain, c"mode=0755")?;
    make_all(&run)?;
    // iscsiadm makes a directory of its own there, and nothing above it.
    make_all(&["/run/lock".into()])?;
    mount("tmpfs", "/tmp", "tmpfs", plain, c"mode=1777")?;
    fs::create_dir_all(redirects)?;
    attach(&parts.redirects, redirects)?;
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
    let fail = |e: std::io::Error| Error::system("cannot keep a namespace").because(e);
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
