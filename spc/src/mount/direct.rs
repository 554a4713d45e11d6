//! Mounts that the kernel makes without a helper, and the attaching of finished mounts.
//!
//! All of it uses detached mounts: made and configured where nobody sees them, then attached to
//! the pinned target in one step (fsopen(2), open_tree(2), move_mount(2); Linux 5.2).

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
use crate::kinds::ResolvedKind;
use crate::kinds::model::{MountMethod, Source};
use crate::options::Options;
use crate::sys;

/// A mount that is attached nowhere; the kernel removes it when this is dropped.
#[derive(Debug)]
pub struct Detached {
    fd: OwnedFd,
    /// Its ids, which it keeps when it is attached.
    pub mount: MountId,
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Detached {
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Self> {
        let mount = mount_id(&fd, OsStr::new(""))
            .map_err(|e| Error::system("cannot look at a detached mount").because(e))?;
        Ok(Self { fd, mount })
    }

    /// A clone of the mount at a path of the calling thread's namespace.
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

    /// Attaches it to a pinned target; run it on the host's thread.
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

/// Makes the mount, attached nowhere yet; run it on the host's thread, for sources are the host's.
///
/// # Errors
/// The kernel refuses; its own log lines are in the error.
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
            new(fs_type, source, options)
        }
    }
}

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
            .hint("for an image file, attach it with losetup on the host first"))
    }
}

fn bind(source: &str, options: &Options, recursive: bool) -> Result<Detached> {
    let fail = |e| {
        Error::mount(format!("cannot bind {source}"))
            .because(e)
            .hint("the source of a bind is a file or directory of the host, as /DIR or /host/DIR")
    };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if !source.starts_with('/') {
        return Err(fail(
            "the source of a bind must be an absolute path of the host".into(),
        ));
    }
    let (attributes, rest) = attributes(options);
    if let Some((key, _)) = rest
        .iter()
        .find(|(key, _)| *key != "bind" && *key != "rbind")
    {
        return Err(Error::usage(format!("bad option for a bind: {key}")));
    }
    let fd = open_tree(CWD, source, flags).map_err(|e| fail(errno_text(e)))?;
    if !attributes.is_empty() {
        let what = sys::MountAttributes {
            set: u64::from(attributes.bits()),
            recursive,
            ..sys::MountAttributes::default()
        };
        sys::mount_setattr(&fd, what).map_err(|e| fail(errno_text(e)))?;
    }
    Detached::from_fd(fd)
}

fn new(fs_type: &str, source: &str, options: &Options) -> Result<Detached> {
    let fail = || Error::mount(format!("cannot mount {source} as {fs_type}"));
    let fs = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| match e {
        Errno::NODEV => fail().because(format!("the host's kernel has no file system {fs_type}")),
        e => fail().because(e),
    })?;
    let refused = |e: Errno| {
        fail()
            .because(e)
            .log(kernel_log(&fs))
            .hint("check source and options; the host's kernel log may say more: dmesg")
    };
    fsconfig_set_string(&fs, "source", source).map_err(refused)?;
    let (attributes, rest) = attributes(options);
    if options.read_only() {
        fsconfig_set_flag(&fs, "ro").map_err(refused)?;
    }
    for (key, value) in rest {
        match value {
            // fsconfig(2) takes strings of 255 bytes at most.
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

/// Splits what belongs to the mount from what belongs to the file system.
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
            // What the kernel does anyway.
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

/// What the kernel wrote about a file system context: one message a read, `e text` (fsopen(2)).
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
