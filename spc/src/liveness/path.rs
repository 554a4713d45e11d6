//! Whether the way to a place on the host answers, before anybody walks it who cannot be left behind.
//!
//! The kernel is asked for the way as it remembers it, which waits for nobody (RESOLVE_CACHED, openat2(2)). Only where it does
//! not remember, and would have to ask a file system that may not answer, a process of its own goes ahead.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::io::Errno;

use crate::error::{Error, Reason, Result, show};
use crate::host::Host;
use crate::host::mountinfo::{self, Entry};
use crate::host::target::mount_id;
use crate::liveness::waiter_lock::{WaiterLock, key};
use crate::process::cancel::CancelToken;
use crate::process::subprocess::{Reply, Subprocess};
use crate::state::Session;

/// How long the walk to a place may take.
pub const LIMIT: Duration = Duration::from_secs(5);

/// How often to see whether another who walks there has come to its end.
const AGAIN: Duration = Duration::from_millis(20);

/// How often the kernel is asked for what it remembers: it gives up when something is mounted meanwhile.
const TRIES: usize = 3;

/// Comes back when the way to a place answers, or leads through nothing that may not.
///
/// # Errors
/// It does not answer within this time, or 5 s.
pub fn ensure_reachable(host: &Host, place: &Path, limit: Duration) -> Result<()> {
    let limit = limit.min(LIMIT);
    let path = place.to_owned();
    let Some(asked) = host.run("looking at the way", move || asked(&path))? else {
        return Ok(());
    };
    let milliseconds = limit.as_millis().to_string();
    let words = [
        OsStr::new("reach"),
        OsStr::new(&milliseconds),
        place.as_os_str(),
    ];
    let mut child = Subprocess::spawn_tied(&words, b"")?;
    match child.line(CancelToken::at(Instant::now() + limit))? {
        Reply::Line(line) if line == HELD => {}
        Reply::Timeout => {}
        // Whoever walks there tells of anything else that is wrong.
        Reply::Line(_) | Reply::Eof => return Ok(()),
    }
    let through = show(&asked.target);
    Err(
        Error::mount(format!("the way to {} does not answer", show(place)))
            .because(format!(
                "nothing from {through} ({}) in {} s",
                asked.fs_type,
                limit.as_secs()
            ))
            .reason_is(Reason::NoAnswer)
            .hint(format!(
                "bring its server or daemon back, or take it away: `spc umount -f -l {through}`"
            )),
    )
}

/// What is said of a way on which another has been waiting for too long.
pub const HELD: &str = "held";

/// The mount that the kernel has to ask for the way, if that may not answer.
fn asked(path: &Path) -> Option<Entry> {
    if remembered(path, OFlags::NOFOLLOW) != Some(Errno::AGAIN) {
        return None;
    }
    let known = |path: &&Path| remembered(path, OFlags::empty()).is_none();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let last = path.ancestors().skip(1).find(known)?;
    let last = open(last, flags, Mode::empty()).ok()?;
    mount_of(&last).filter(may_hang)
}

/// What keeps the kernel from knowing the way.
fn remembered(path: &Path, more: OFlags) -> Option<Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | more;
    let mut error = None;
    for _ in 0..TRIES {
        error = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).err();
        if error != Some(Errno::AGAIN) {
            break;
        }
    }
    match error {
        // A filter of system calls that does not know it.
        Some(Errno::NOSYS | Errno::PERM | Errno::INVAL) => Some(Errno::AGAIN),
        error => error,
    }
}

fn mount_of(place: &OwnedFd) -> Option<Entry> {
    let mount = mount_id(place, OsStr::new("")).ok()?;
    mountinfo::find(mount.id, mount.unique).ok()?
}

/// What is in the memory of this machine answers, and without the host's own root nothing works anyway. An automount that is
/// waited for lets only those past who are to mount it.
fn may_hang(mount: &Entry) -> bool {
    const HERE: [&str; 9] = [
        "autofs", "tmpfs", "ramfs", "devtmpfs", "proc", "sysfs", "cgroup2", "overlay", "squashfs",
    ];
    mount.target != Path::new("/") && !HERE.contains(&mount.fs_type.as_str())
}

/// The other side: walks, and says when it has come to the end, or that another waits on the way.
///
/// # Errors
/// The host cannot be entered.
pub fn reach(session: &Session, place: &Path, limit: Duration) -> Result<()> {
    let held = is_held(session, place, limit)?;
    println!("{}", if held { HELD } else { "done" });
    Ok(())
}

/// Walks to a place step by step, and at each mount is the only one that waits. Whether another has waited on the way for
/// longer than that.
///
/// # Errors
/// It does not come to the end in twice this time, or the host cannot be looked at.
pub fn is_held(session: &Session, place: &Path, limit: Duration) -> Result<bool> {
    let waiter = WaiterLock::open(&session.host)?;
    let path = place.to_owned();
    let walk = move || walk(&path, &waiter, limit);
    // Whoever sent us does not wait longer than that.
    let walked = session
        .host
        .run_within("looking at the way", 2 * limit, walk)?;
    walked.map_err(|e| Error::system("cannot walk").because(e))
}

/// Whether another has waited on the way for too long.
fn walk(path: &Path, waiter: &WaiterLock, limit: Duration) -> std::io::Result<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut here = open("/", flags, Mode::empty())?;
    let parts: Vec<PathBuf> = path
        .components()
        .filter(|part| *part != Component::RootDir)
        .map(|part| part.as_os_str().into())
        .collect();
    for (at, part) in parts.iter().enumerate() {
        let asks = mount_of(&here).is_some_and(|mount| may_hang(&mount));
        let mount = key(mount_id(&here, OsStr::new(""))?);
        while asks && let Some(since) = waiter.take(mount)? {
            if since >= limit {
                return Ok(true);
            }
            std::thread::sleep(AGAIN);
        }
        let last = if at + 1 == parts.len() {
            OFlags::NOFOLLOW
        } else {
            OFlags::empty()
        };
        let next = openat(&here, part, flags | last, Mode::empty());
        if asks {
            waiter.leave(mount);
        }
        match next {
            Ok(next) => here = next,
            // It is an answer.
            Err(_) => return Ok(false),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_through_the_machines_own_is_not_walked() {
        std::fs::metadata("/proc/self").unwrap();
        for path in ["/", "/proc", "/proc/no/such/thing", "/no/such/thing"] {
            assert_eq!(asked(Path::new(path)), None, "{path}");
        }
    }
}
