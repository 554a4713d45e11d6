//! The file tree of a sandbox, in a mount namespace of its own.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, mount, open_tree};

use crate::client::namespace_holder::{
    attach, create_all, enter_emptied_namespace, subdirectories,
};
use crate::helper::sandbox::description::{Description, HOME};
use crate::sys::{self, MountAttributes};

/// Device files below `/dev`.
const DEVICES: [&str; 7] = ["full", "fuse", "null", "random", "tty", "urandom", "zero"];

/// Files below `/etc` that helpers and their libraries read. All others are absent, among them
/// those with identities of the node.
const SETTINGS: [&str; 17] = [
    "fuse.conf",
    "gai.conf",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "localtime",
    "mtab",
    "netconfig",
    "nsswitch.conf",
    "os-release",
    "passwd",
    "protocols",
    "resolv.conf",
    "rpc",
    "services",
    "ssl/openssl.cnf",
];

/// Directories below `/etc` that helpers and their libraries read.
const SETTINGS_DIRECTORIES: [&str; 2] = ["alternatives", "ssl/certs"];

/// Parts of the old mount namespace that the sandbox keeps.
struct Kept {
    root: OwnedFd,
    devices: Vec<(PathBuf, OwnedFd)>,
    directories: Vec<(PathBuf, OwnedFd)>,
    log: Option<(PathBuf, OwnedFd)>,
    files: Option<(PathBuf, OwnedFd)>,
    settings: Vec<(PathBuf, Setting)>,
}

/// File below `/etc`.
enum Setting {
    Contents(Vec<u8>),
    Link(PathBuf),
}

/// Moves this process to a mount namespace of its own, and builds the sandbox's tree there.
///
/// # Errors
/// A call fails.
pub fn build(description: &Description) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWIPC)?;
    let kept = keep(description)?;
    enter_emptied_namespace()?;
    attach(&kept.root, "/")?;
    rustix::process::fchdir(&kept.root)?;
    rustix::process::chroot(".")?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    let no_programs = plain | MountFlags::NOEXEC;
    let tmpfs = |path: &Path, flags: MountFlags, options: &CStr| {
        mount("tmpfs", path, "tmpfs", flags, options)
    };
    // Without the files outside of the directories of processes: uid 0 may write many of them.
    let read_only = no_programs | MountFlags::RDONLY;
    mount("proc", "/proc", "proc", read_only, c"subset=pid")?;
    let run = subdirectories(Path::new("/run"))?;
    tmpfs("/run".as_ref(), plain, c"mode=0755,size=16m")?;
    create_all(&run)?;
    // /var/lib holds what services note, such as iscsid the passwords of targets.
    for path in ["/var/lib", "/var/log"].map(Path::new) {
        let directories = subdirectories(path)?;
        tmpfs(path, no_programs, c"mode=0755,size=16m")?;
        create_all(&directories)?;
    }
    tmpfs("/tmp".as_ref(), plain, c"mode=1777")?;
    tmpfs(HOME.as_ref(), plain, c"mode=0700,size=16m")?;
    build_dev(&kept.devices)?;
    build_etc(&kept)?;
    if let Some(redirects) = description.placeholder.parent() {
        fs::create_dir_all(redirects)?;
        tmpfs(redirects, plain, c"mode=0700,size=64k")?;
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&description.placeholder)?;
    if let Some((path, files)) = &kept.files {
        fs::create_dir_all(path)?;
        attach(files, path)?;
    }
    if let Some((path, log)) = &kept.log {
        attach_file(log, path)?;
    }
    std::env::set_current_dir("/")
}

/// Clones what the sandbox keeps, before the old mounts are detached.
fn keep(description: &Description) -> io::Result<Kept> {
    let settings = SETTINGS.iter().filter_map(|name| {
        let path = Path::new("/etc").join(name);
        let setting = match fs::read_link(&path) {
            Ok(link) => Setting::Link(link),
            Err(_) => Setting::Contents(fs::read(&path).ok()?),
        };
        Some((path, setting))
    });
    let clone_all = |directory: &str, names: &[&str]| -> io::Result<Vec<(PathBuf, OwnedFd)>> {
        let paths = names.iter().map(|name| Path::new(directory).join(name));
        let clones = paths.map(|path| Ok(clone_if_exists(&path)?.map(|clone| (path, clone))));
        clones.filter_map(io::Result::transpose).collect()
    };
    let log = description.log.as_deref().map(clone_mount).transpose()?;
    let kept = Kept {
        root: clone_mount(Path::new("/"))?,
        devices: clone_all("/dev", &DEVICES)?,
        directories: clone_all("/etc", &SETTINGS_DIRECTORIES)?,
        log: description.log.clone().zip(log),
        files: clone_if_exists(&description.files)?.map(|files| (description.files.clone(), files)),
        settings: settings.collect(),
    };
    let directories = kept.directories.iter().chain(&kept.files);
    for mount in directories.map(|(_, mount)| mount).chain([&kept.root]) {
        make_read_only(mount, libc::MOUNT_ATTR_NODEV)?;
    }
    // Devices can be written all the same. Their modes and times, which are those of the node's
    // files, cannot be changed.
    for (_, device) in &kept.devices {
        make_read_only(device, libc::MOUNT_ATTR_NOEXEC)?;
    }
    Ok(kept)
}

/// Makes a mount read-only, and sets further attributes.
fn make_read_only(mount: &OwnedFd, more: u64) -> io::Result<()> {
    let attributes = MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | more,
        ..MountAttributes::default()
    };
    sys::mount_setattr(mount, attributes)
}

/// Returns a private clone of a mount, without the mounts below it.
fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, path, flags)?;
    let attributes = MountAttributes {
        propagation: Some(MountPropagationFlags::PRIVATE),
        ..MountAttributes::default()
    };
    sys::mount_setattr(&mount, attributes)?;
    Ok(mount)
}

fn clone_if_exists(path: &Path) -> io::Result<Option<OwnedFd>> {
    match clone_mount(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        mount => mount.map(Some),
    }
}

/// Attaches the clone of a file.
fn attach_file(mount: &OwnedFd, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(path)?;
    attach(mount, path)
}

fn build_dev(devices: &[(PathBuf, OwnedFd)]) -> io::Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("tmpfs", "/dev", "tmpfs", plain, c"mode=0755,size=64k")?;
    for (path, device) in devices {
        attach_file(device, path)?;
    }
    create_all(&["/dev/pts".into(), "/dev/shm".into()])?;
    // A client that gives ssh a password needs a terminal. All pods of the node share 3072.
    let options = c"newinstance,ptmxmode=0666,mode=0620,max=16";
    mount("devpts", "/dev/pts", "devpts", plain, options)?;
    let plain = plain | MountFlags::NODEV;
    mount("tmpfs", "/dev/shm", "tmpfs", plain, c"mode=1777,size=64m")?;
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("ptmx", "pts/ptmx"),
        ("stderr", "/proc/self/fd/2"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
    ] {
        symlink(to, Path::new("/dev").join(link))?;
    }
    Ok(())
}

fn build_etc(kept: &Kept) -> io::Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", "/etc", "tmpfs", plain, c"mode=0755,size=16m")?;
    for (path, directory) in &kept.directories {
        fs::create_dir_all(path)?;
        attach(directory, path)?;
    }
    for (path, setting) in &kept.settings {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match setting {
            Setting::Contents(contents) => fs::write(path, contents)?,
            Setting::Link(link) => symlink(link, path)?,
        }
    }
    Ok(())
}
