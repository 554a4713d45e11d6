//! Mounts without a helper, and attaching finished mounts.
//!
//! A detached mount is created and configured while no path leads to it, then attached to the
//! pinned target in one step (fsopen(2), open_tree(2), move_mount(2); Linux 5.2).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::{Error, Result, errno_text, show};
use crate::host::target::{MountId, Pinned, mount_id};
use crate::kinds::model::{MountMethod, Source};
use crate::kinds::resolve::ResolvedKind;
use crate::options::Options;
use crate::sys;

/// Detached mount. The kernel removes the mount if it is dropped without being attached.
#[derive(Debug)]
pub struct Detached {
    fd: OwnedFd,
    /// Mount ids, which stay the same when the mount is attached.
    pub mount: MountId,
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Detached {
    /// Takes over a detached mount by its file descriptor.
    ///
    /// # Errors
    /// The mount ids cannot be read.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Self> {
        let mount = mount_id(&fd, OsStr::new(""))
            .map_err(|e| Error::system("cannot read the id of a detached mount").because(e))?;
        Ok(Self { fd, mount })
    }

    /// Clones the mount at a path in the calling thread's mount namespace.
    ///
    /// # Errors
    /// open_tree(2) fails.
    pub fn clone_of(path: &std::path::Path) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let fd = open_tree(CWD, path, flags).map_err(|e| {
            Error::system(format!("cannot clone the mount at {}", path.display())).because(e)
        })?;
        Self::from_fd(fd)
    }

    /// Attaches the mount to a pinned target. Must run in the host's mount namespace.
    ///
    /// # Errors
    /// move_mount(2) fails.
    pub fn attach(self, target: &Pinned) -> Result<()> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.fd, "", &target.dir, "", flags).map_err(|e| {
            Error::mount(format!("cannot attach the mount to {}", show(&target.path))).because(e)
        })
    }
}

/// Creates a detached mount without a helper. Must run in the host's mount namespace, where the
/// source is looked up.
///
/// # Errors
/// The kernel refuses the mount. The error contains the messages of the file system context.
pub fn make(
    kind: &ResolvedKind,
    fs_type: &str,
    source: &str,
    options: &Options,
) -> Result<Detached> {
    match kind.method {
        MountMethod::Bind { recursive } => bind(source, options, recursive),
        _ => {
            if kind.source == Source::BlockDevice {
                check_device(fs_type, source)?;
            }
            mount_file_system(fs_type, source, options)
        }
    }
}

/// Checks that the source is a block device of the host.
fn check_device(fs_type: &str, source: &str) -> Result<()> {
    let fail = || Error::mount(format!("bad source for {fs_type}: {source}"));
    let meta = std::fs::metadata(source).map_err(|e| {
        fail()
            .because(e)
            .hint("name a block device of the host, such as /dev/sdb1")
    })?;
    if meta.file_type().is_block_device() {
        Ok(())
    } else {
        Err(fail()
            .because("not a block device")
            .hint("attach an image file with losetup on the host first"))
    }
}

/// Clones a directory or file of the host, and applies the options to the clone.
fn bind(source: &str, options: &Options, recursive: bool) -> Result<Detached> {
    let fail = |e| {
        Error::mount(format!("cannot bind {source}"))
            .because(e)
            .hint("the source of a bind mount is a file or directory of the host, as /DIR or /host/DIR")
    };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if !source.starts_with('/') {
        return Err(fail(
            "the source of a bind mount must be an absolute path of the host".into(),
        ));
    }
    let (attributes, rest) = attributes(options);
    if let Some((key, _)) = rest
        .iter()
        .find(|(key, _)| *key != "bind" && *key != "rbind")
    {
        return Err(Error::usage(format!("bad option for a bind mount: {key}")));
    }
    let fd = open_tree(CWD, source, flags).map_err(|e| fail(errno_text(e)))?;
    if !attributes.is_empty() {
        let change = sys::MountAttributes {
            set: u64::from(attributes.bits()),
            recursive,
            ..sys::MountAttributes::default()
        };
        sys::mount_setattr(&fd, change).map_err(|e| fail(errno_text(e)))?;
    }
    Detached::from_fd(fd)
}

/// Mounts a file system with the new mount API (fsopen(2), fsmount(2)).
fn mount_file_system(fs_type: &str, source: &str, options: &Options) -> Result<Detached> {
    let fail = || Error::mount(format!("cannot mount {source} as {fs_type}"));
    let fs = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| match e {
        Errno::NODEV => fail().because(format!("the host's kernel has no file system {fs_type}")),
        e => fail().because(e),
    })?;
    let refused = |e: Errno| {
        fail()
            .because(e)
            .log(kernel_log(&fs))
            .hint("check the source and the options; see the host's kernel log: dmesg")
    };
    fsconfig_set_string(&fs, "source", source).map_err(refused)?;
    let (attributes, rest) = attributes(options);
    if options.read_only() {
        fsconfig_set_flag(&fs, "ro").map_err(refused)?;
    }
    for (key, value) in rest {
        match value {
            // Longest string that fsconfig(2) accepts.
            Some(value) if value.len() > 255 => {
                return Err(Error::usage(format!(
                    "bad option {key}: longer than 255 bytes"
                )));
            }
            Some(value) => fsconfig_set_string(&fs, key, value).map_err(refused)?,
            None => fsconfig_set_flag(&fs, key).map_err(refused)?,
        }
    }
    fsconfig_create(&fs).map_err(refused)?;
    let fd = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(refused)?;
    Detached::from_fd(fd)
}

/// Splits mount options into the attributes of the mount and the options of the file system.
pub(crate) fn attributes(options: &Options) -> (MountAttrFlags, Vec<(&str, Option<&str>)>) {
    let mut flags = MountAttrFlags::empty();
    let mut rest = Vec::new();
    for (key, value) in options.iter() {
        let flag = match key {
            "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
            "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            "strictatime" => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            "nosymfollow" => MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW,
            "ro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
            // Defaults of the kernel.
            "suid" | "dev" | "exec" | "atime" | "diratime" | "relatime" | "async" => {
                MountAttrFlags::empty()
            }
            _ => {
                rest.push((key, value));
                continue;
            }
        };
        flags |= flag;
    }
    (flags, rest)
}

/// Reads the kernel's messages about a file system context. Each read(2) returns a message as
/// `e TEXT` (fsopen(2)).
fn kernel_log(fs: &OwnedFd) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = [0_u8; 1024];
    while let Ok(length) = rustix::io::read(fs, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        let text = text.trim_end();
        lines.push(format!(
            "kernel: {}",
            text.split_once(' ').map_or(text, |(_, message)| message)
        ));
        if length == 0 || lines.len() == 16 {
            break;
        }
    }
    lines
}
