//! Mounts without a helper, made with the new mount API (fsopen(2), open_tree(2); Linux 5.2).

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, open_tree,
};

use crate::error::{Error, Result, errno_text};
use crate::host::mount_id::mount_id;
use crate::kinds::model::{MountMethod, Source};
use crate::kinds::resolve::ResolvedKind;
use crate::mount::detached::{Detached, PRIVATE_TARGET, in_private_namespace};
use crate::options::Options;
use crate::options::generic::Attributes;
use crate::sys;

/// Creates a detached mount without a helper. Must run in the host's mount namespace, where the
/// source is looked up. `source_mount` has the ids of the mount whose root the source of a bind must
/// be.
///
/// # Errors
/// The kernel refuses the mount. The error contains the messages of the file system context.
pub fn make(
    kind: &ResolvedKind,
    fs_type: &str,
    source: &str,
    source_mount: Option<(u64, u64)>,
    options: &Options,
) -> Result<Detached> {
    match kind.method {
        MountMethod::Bind { recursive } => bind(source, source_mount, options, recursive),
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
fn bind(
    source: &str,
    source_mount: Option<(u64, u64)>,
    options: &Options,
    recursive: bool,
) -> Result<Detached> {
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
    let rest = options.for_superblock();
    if let Some((key, _)) = rest
        .iter()
        .find(|(key, _)| *key != "bind" && *key != "rbind")
    {
        return Err(Error::usage(format!("bad option for a bind mount: {key}")));
    }
    let fd = match source_mount {
        None => open_tree(CWD, source, flags),
        Some((id, unique)) => {
            let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let pinned = openat2(CWD, source, path, Mode::empty(), ResolveFlags::NO_SYMLINKS)
                .map_err(|e| fail(errno_text(e)))?;
            let found = mount_id(&pinned, OsStr::new("")).map_err(|e| fail(errno_text(e)))?;
            if !found.is_root || !found.matches(id, unique) {
                return Err(fail("another mount is there".into()));
            }
            open_tree(&pinned, "", flags | OpenTreeFlags::AT_EMPTY_PATH)
        }
    };
    let fd = fd.map_err(|e| fail(errno_text(e)))?;
    let Attributes { set, clear } = options.attributes();
    if clear != 0 {
        let change = sys::MountAttributes {
            set,
            clear,
            recursive,
            ..sys::MountAttributes::default()
        };
        sys::mount_setattr(&fd, change).map_err(|e| fail(errno_text(e)))?;
    }
    Detached::from_fd(fd)
}

/// Longest string that fsconfig(2) accepts.
const LONGEST_STRING: usize = 255;

/// Longest list of options that mount(2) accepts: a page, with the NUL byte.
const LONGEST_DATA: usize = 4095;

/// Mounts a file system.
fn mount_file_system(fs_type: &str, source: &str, options: &Options) -> Result<Detached> {
    let fail = || Error::mount(format!("cannot mount {source} as {fs_type}"));
    let is_long =
        |(_, value): &(&str, Option<&str>)| value.is_some_and(|value| value.len() > LONGEST_STRING);
    if options.for_superblock().iter().any(is_long) {
        return mount_with_long_options(fs_type, source, options);
    }
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
    if options.read_only() {
        fsconfig_set_flag(&fs, "ro").map_err(refused)?;
    }
    for (key, value) in options.for_superblock() {
        match value {
            Some(value) => fsconfig_set_string(&fs, key, value).map_err(refused)?,
            None => fsconfig_set_flag(&fs, key).map_err(refused)?,
        }
    }
    fsconfig_create(&fs).map_err(refused)?;
    let attributes = mount_attributes(options);
    let fd = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(refused)?;
    Detached::from_fd(fd)
}

/// Mounts a file system with mount(2), which takes longer options than fsconfig(2), in a private
/// namespace, and clones the mount.
fn mount_with_long_options(fs_type: &str, source: &str, options: &Options) -> Result<Detached> {
    let fail = || Error::mount(format!("cannot mount {source} as {fs_type}"));
    let mut data: Vec<String> = Vec::new();
    let mut flags = MountFlags::empty();
    for (key, value) in options.for_superblock() {
        match (key, value) {
            ("sync", None) => flags |= MountFlags::SYNCHRONOUS,
            ("dirsync", None) => flags |= MountFlags::DIRSYNC,
            ("lazytime", None) => flags |= MountFlags::LAZYTIME,
            ("async" | "nolazytime" | "mand" | "nomand", None) => {}
            (key, Some(value)) => data.push(format!("{key}={value}")),
            (key, None) => data.push(key.to_owned()),
        }
    }
    if options.read_only() {
        flags |= MountFlags::RDONLY;
    }
    let data = data.join(",");
    if data.len() > LONGEST_DATA {
        return Err(fail()
            .because(format!("its options are longer than {LONGEST_DATA} bytes"))
            .hint("use shorter paths, such as those of links or bind mounts"));
    }
    let data = std::ffi::CString::new(data).map_err(|e| fail().because(e.to_string()))?;
    let in_private = || -> std::result::Result<OwnedFd, Errno> {
        mount(
            source,
            PRIVATE_TARGET,
            fs_type,
            flags,
            Some(data.as_c_str()),
        )?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, Path::new(PRIVATE_TARGET), flags)
    };
    let mounted = in_private_namespace(in_private).and_then(|mounted| mounted);
    let fd = mounted.map_err(|e| {
        fail()
            .because(e)
            .hint("check the source and the options; see the host's kernel log: dmesg")
    })?;
    let Attributes { set, clear } = options.attributes();
    let change = sys::MountAttributes {
        set,
        // mount(2) has made a read-only file system a read-only mount.
        clear: clear | libc::MOUNT_ATTR_RDONLY,
        ..sys::MountAttributes::default()
    };
    sys::mount_setattr(&fd, change).map_err(|e| fail().because(e))?;
    Detached::from_fd(fd)
}

/// Returns the attributes of a new mount.
fn mount_attributes(options: &Options) -> MountAttrFlags {
    let set = options.attributes().set;
    MountAttrFlags::from_bits_retain(set as u32)
}

/// Reads the kernel's messages about a file system context. Each read(2) returns a message as
/// `e TEXT` (fsopen(2)).
pub(super) fn kernel_log(fs: &OwnedFd) -> Vec<String> {
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
