//! Checks that a path on the host can be reached before a thread walks it that must not block.
//!
//! A cached lookup comes first: openat2(2) with RESOLVE_CACHED never blocks. If a part of the path
//! is not cached and its file system could block, a subprocess walks the path. spc leaves the
//! subprocess behind if it hangs.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::io::Errno;

use crate::error::{Error, Reason, Result, show};
use crate::host::Host;
use crate::host::mount_id::mount_id;
use crate::host::mountinfo::{self, Entry};
use crate::liveness::message::Message;
use crate::liveness::waiter_lock::{WaiterLock, key};
use crate::process::cancel::CancelToken;
use crate::process::subprocess::{Reply, Subprocess};
use crate::state::Session;

/// Time limit for the walk along a path.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Interval at which the lock of another waiter is retried.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Number of cached lookups. A lookup fails when something is mounted at the same time.
const CACHED_LOOKUPS: usize = 3;

/// Returns once a path is known to be reachable: its lookup is cached, involves no file system that
/// could block, or has succeeded in a subprocess.
///
/// # Errors
/// Fails if the walk does not finish within `limit`, 5 s at most.
pub fn ensure_reachable(host: &Host, path: &Path, limit: Duration) -> Result<()> {
    let limit = limit.min(LIMIT);
    let owned = path.to_owned();
    let Some(mount) = host.run("looking up the path", move || blocking_mount(&owned))? else {
        return Ok(());
    };
    let milliseconds = limit.as_millis().to_string();
    let args = [
        OsStr::new("reach"),
        OsStr::new(&milliseconds),
        path.as_os_str(),
    ];
    let mut child = Subprocess::spawn_tied(&args, b"")?;
    match child.line(CancelToken::at(Instant::now() + limit))? {
        Reply::Line(line) if Message::parse(&line) == Some(Message::Held) => {}
        Reply::Timeout => {}
        // The caller meets any other error itself when it walks the path.
        Reply::Line(_) | Reply::Eof => return Ok(()),
    }
    let blocking = show(&mount.target);
    Err(Error::mount(format!("{} cannot be reached", show(path)))
        .because(format!(
            "{blocking} ({}) does not respond within {} s",
            mount.fs_type,
            limit.as_secs()
        ))
        .reason_is(Reason::NoAnswer)
        .hint(format!(
            "bring its server or daemon back, or unmount it: `spc umount -f -l {blocking}`"
        )))
}

/// Returns the mount whose file system has to look up the rest of the path, if that could block.
fn blocking_mount(path: &Path) -> Option<Entry> {
    if cached_lookup_error(path, OFlags::NOFOLLOW) != Some(Errno::AGAIN) {
        return None;
    }
    let is_cached = |path: &&Path| cached_lookup_error(path, OFlags::empty()).is_none();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let last = path.ancestors().skip(1).find(is_cached)?;
    let last = open(last, flags, Mode::empty()).ok()?;
    mount_of(&last).filter(may_hang)
}

/// Returns the errno of a cached lookup. `EAGAIN` means that the path is not cached.
fn cached_lookup_error(path: &Path, more: OFlags) -> Option<Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | more;
    let mut error = None;
    for _ in 0..CACHED_LOOKUPS {
        error = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).err();
        if error != Some(Errno::AGAIN) {
            break;
        }
    }
    match error {
        // An old kernel or seccomp filter that has no cached lookup.
        Some(Errno::NOSYS | Errno::PERM | Errno::INVAL) => Some(Errno::AGAIN),
        error => error,
    }
}

fn mount_of(dir: &OwnedFd) -> Option<Entry> {
    let mount = mount_id(dir, OsStr::new("")).ok()?;
    mountinfo::find(mount.id, mount.unique).ok()?
}

/// Returns whether a lookup on a mount could block. In-memory file systems and the host's root
/// never count. autofs does not either: a pending automount blocks everyone but its daemon.
fn may_hang(mount: &Entry) -> bool {
    const NEVER_BLOCK: [&str; 9] = [
        "autofs", "tmpfs", "ramfs", "devtmpfs", "proc", "sysfs", "cgroup2", "overlay", "squashfs",
    ];
    mount.target != Path::new("/") && !NEVER_BLOCK.contains(&mount.fs_type.as_str())
}

/// Runs the subprocess of [`ensure_reachable`]: walks the path and prints [`Message::Done`] or
/// [`Message::Held`].
///
/// # Errors
/// Fails if the host cannot be entered or the walk does not finish.
pub fn reach(session: &Session, path: &Path, limit: Duration) -> Result<()> {
    let result = match is_held(session, path, limit)? {
        true => Message::Held,
        false => Message::Done,
    };
    result.send()
}

/// Walks a path and takes the waiter lock of each mount on it. Returns true if another process has
/// been blocked on one of the mounts for `limit` or longer.
///
/// # Errors
/// Fails if the walk takes longer than twice `limit`, or a waiter lock fails.
pub fn is_held(session: &Session, path: &Path, limit: Duration) -> Result<bool> {
    let waiter = WaiterLock::open(&session.host)?;
    let owned = path.to_owned();
    let walk = move || walk(&owned, &waiter, limit);
    // The parent process waits for `limit` only; the rest is slack for slow starts.
    let walked = session
        .host
        .run_within("walking the path", 2 * limit, walk)?;
    walked.map_err(|e| Error::system(format!("cannot walk the path {}", show(path))).because(e))
}

/// Walks the path on the host's thread, see [`is_held`].
fn walk(path: &Path, waiter: &WaiterLock, limit: Duration) -> std::io::Result<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut dir = open("/", flags, Mode::empty())?;
    let parts: Vec<PathBuf> = path
        .components()
        .filter(|part| *part != Component::RootDir)
        .map(|part| part.as_os_str().into())
        .collect();
    for (at, part) in parts.iter().enumerate() {
        let could_block = mount_of(&dir).is_some_and(|mount| may_hang(&mount));
        let mount = key(mount_id(&dir, OsStr::new(""))?);
        while could_block && let Some(waited) = waiter.try_acquire(mount)? {
            if waited >= limit {
                return Ok(true);
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
        let last = if at + 1 == parts.len() {
            OFlags::NOFOLLOW
        } else {
            OFlags::empty()
        };
        let next = openat(&dir, part, flags | last, Mode::empty());
        if could_block {
            waiter.release(mount);
        }
        match next {
            Ok(next) => dir = next,
            // An error is a response, too.
            Err(_) => return Ok(false),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_on_local_file_systems_need_no_subprocess() {
        std::fs::metadata("/proc/self").unwrap();
        for path in ["/", "/proc", "/proc/no/such/thing", "/no/such/thing"] {
            assert_eq!(blocking_mount(Path::new(path)), None, "{path}");
        }
    }
}
