//! The namespace holder: a process that creates a client namespace, moves into it, and then waits
//! forever.

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
use crate::process::candidates::Status;
use crate::process::procfs;
use crate::sys::{self, MountAttributes};

/// Directory on the host for the log files of client programs.
pub const LOGS: &str = "/var/log/spc";

/// Directories of the host in which client programs look for keys and settings that no option
/// names.
const CONFIGURED: [&str; 2] = ["/etc/ceph", "/root/.ssh"];

/// Detached copies of mounts of the host, from which a client namespace is built.
struct DetachedMounts {
    /// Client root file system, without noexec.
    root: OwnedFd,
    /// Root directory of the host, for `/host`.
    host: OwnedFd,
    redirects: OwnedFd,
    logs: OwnedFd,
    /// `/dev` of the host.
    devices: OwnedFd,
    /// Existing directories of [`CONFIGURED`].
    configured: Vec<(&'static str, OwnedFd)>,
}

/// Clones the mounts for the namespace of client root `id`. Runs in the host's mount namespace.
fn clone_mounts(id: &str) -> std::io::Result<DetachedMounts> {
    let clone = |path: &Path, clear: u64| -> std::io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, path, flags)?;
        let attributes = MountAttributes {
            clear,
            propagation: Some(MountPropagationFlags::PRIVATE),
            ..MountAttributes::default()
        };
        sys::mount_setattr(&mount, attributes)?;
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
    // A program that needs a missing directory reports that itself.
    let clone_if_exists = |path: &Path| match clone(path, 0) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        mount => mount.map(Some),
    };
    let mut configured = Vec::new();
    for path in CONFIGURED {
        configured.extend(clone_if_exists(Path::new(path))?.map(|mount| (path, mount)));
    }
    Ok(DetachedMounts {
        // Some hosts mount `/var` with noexec.
        root: clone(&root::path(id), sys::MOUNT_ATTR_NOEXEC)?,
        host: clone(Path::new("/"), 0)?,
        redirects: clone(&redirects, 0)?,
        logs: clone(Path::new(LOGS), 0)?,
        // A clone of the host's mount also shows disks that are attached later. Mounts below `/dev`
        // are not cloned.
        devices: clone(Path::new("/dev"), 0)?,
        configured,
    })
}

/// Creates the client namespace of client root `id` and executes `spc keeper` in it (`spc keep`).
/// Returns only on error.
///
/// # Errors
/// A mount cannot be cloned, a namespace cannot be entered, or the program cannot be run.
pub fn create_namespace(id: &str) -> Result<()> {
    let host = Host::open(Settings::read()?)?;
    let fail = |e: std::io::Error| {
        Error::system(format!(
            "cannot create the namespace of the client root file system {id}"
        ))
        .because(e)
    };
    let host_id = id.to_owned();
    let mounts = host
        .run("cloning the client root file system", move || {
            clone_mounts(&host_id)
        })?
        .map_err(fail)?;
    let namespaces =
        ["net", "ipc", "uts", "cgroup"].map(|kind| host.proc_file(&format!("ns/{kind}")));
    for file in namespaces.into_iter().flatten() {
        let file = File::open(file).map_err(fail)?;
        move_into_link_name_space(file.as_fd(), None).map_err(|e| fail(e.into()))?;
    }
    enter_empty_namespace(&host).map_err(fail)?;
    build(mounts, &host.settings().redirects()).map_err(fail)?;
    // The executed program is that of the client root: the process then holds no file of the
    // container.
    let error = Command::new("/usr/bin/spc")
        .args(["keeper", id])
        .env_clear()
        .exec();
    Err(fail(error))
}

/// Opens the mount namespace of the kernel thread kdevtmpfs, if it can be seen and has only one
/// mount.
fn open_kdevtmpfs_namespace(host: &Host) -> Option<File> {
    let processes = fs::read_dir(host.proc_file("..")?).ok()?;
    let namespace_of = |process: &Path| -> Option<File> {
        // Another user's process may delay reads of its other files.
        let name = procfs::read_text(process.join("comm")).ok()?;
        // PID 2 is kthreadd, whose children are all kernel threads.
        if name.trim_end() != "kdevtmpfs" || Status::read(process).ok()??.parent != Some(2) {
            return None;
        }
        let has_one_mount = mountinfo::read_file(process.join("mountinfo")).ok()?.len() == 1;
        has_one_mount.then(|| File::open(process.join("ns/mnt")).ok())?
    };
    let mut found = processes.filter_map(|process| namespace_of(&process.ok()?.path()));
    found.next()
}

/// Moves this thread into a new mount namespace that has only a root mount.
///
/// A new mount namespace is always a copy. kdevtmpfs has a namespace with a single mount. Where
/// that cannot be seen, the container's namespace is copied and then emptied.
fn enter_empty_namespace(host: &Host) -> std::io::Result<()> {
    unshare(CloneFlags::CLONE_FS)?;
    if let Some(namespace) = open_kdevtmpfs_namespace(host) {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        return unshare_mounts();
    }
    enter_emptied_namespace()
}

/// Moves this process, which must have no other thread, into a private copy of its mount namespace
/// without the root and the mounts below it.
///
/// # Errors
/// A call fails.
pub fn enter_emptied_namespace() -> std::io::Result<()> {
    unshare_mounts()?;
    // Detaches the root with all mounts below. The initial root of the kernel, on which it was
    // mounted, remains.
    unmount("/", UnmountFlags::DETACH)?;
    // Entering its own namespace again sets the thread's root to the mount that remains.
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(move_into_thread_name_spaces(
        this.as_fd(),
        ThreadNameSpaceType::MOUNT,
    )?)
}

/// Moves this thread into a private copy of its mount namespace, to which no mount propagates.
fn unshare_mounts() -> std::io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", flags)?)
}

/// Builds the client namespace from the detached mounts, in a namespace that has only a root mount.
///
/// docker's seccomp profile forbids pivot_root(2). So the client root is mounted on top of the root
/// mount. A process that enters the namespace with setns(2) gets the topmost mount as its root.
fn build(mounts: DetachedMounts, redirects: &Path) -> std::io::Result<()> {
    attach(&mounts.root, "/")?;
    rustix::process::fchdir(&mounts.root)?;
    rustix::process::chroot(".")?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    let none = None::<&std::ffi::CStr>;
    mount("proc", "/proc", "proc", plain | MountFlags::NOEXEC, none)?;
    mount("sysfs", "/sys", "sysfs", plain | MountFlags::NOEXEC, none)?;
    attach(&mounts.devices, "/dev")?;
    mount(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID,
        c"newinstance,ptmxmode=0666,mode=0620",
    )?;
    mount("tmpfs", "/dev/shm", "tmpfs", plain, c"mode=1777")?;
    let run = subdirectories(Path::new("/run"))?;
    mount("tmpfs", "/run", "tmpfs", plain, c"mode=0755")?;
    create_all(&run)?;
    // iscsiadm creates its own directory there, but not its parents.
    create_all(&["/run/lock".into()])?;
    mount("tmpfs", "/tmp", "tmpfs", plain, c"mode=1777")?;
    fs::create_dir_all(redirects)?;
    attach(&mounts.redirects, redirects)?;
    attach(&mounts.host, "/host")?;
    for (path, mount) in &mounts.configured {
        fs::create_dir_all(path)?;
        attach(mount, *path)?;
    }
    let logs = subdirectories(Path::new("/var/log"))?;
    attach(&mounts.logs, "/var/log")?;
    create_all(&logs)
}

/// Attaches a detached mount.
///
/// # Errors
/// Returns the errno of move_mount(2).
pub fn attach(mount: &OwnedFd, target: impl rustix::path::Arg) -> std::io::Result<()> {
    Ok(move_mount(
        mount,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Returns the directories directly below a directory.
///
/// # Errors
/// The directory cannot be read.
pub fn subdirectories(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Creates directories that do not exist.
///
/// # Errors
/// A directory cannot be created.
pub fn create_all(directories: &[PathBuf]) -> std::io::Result<()> {
    for directory in directories {
        match fs::create_dir(directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Runs as the namespace holder (`spc keeper`): prints `ready`, reads `kept` from stdin, then waits
/// forever.
///
/// # Errors
/// The parent process closes the pipe without writing `kept`: it did not register the holder.
pub fn run_holder() -> Result<()> {
    let fail = |e: std::io::Error| Error::system("cannot hold a client namespace").because(e);
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(fail)?;
    if line != "kept\n" {
        return Err(Error::system("cannot hold a client namespace")
            .because("the parent process went away before it was registered"));
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
