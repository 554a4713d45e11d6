//! A cgroup of its own on the host for what a mount leaves running: whoever ends the container, the shell or the service
//! that asked for the mount does not end its daemon.
//!
//! Where systemd runs it is a scope, made by the host's own systemd-run; elsewhere a cgroup below `spc`, in which the kernel
//! makes the process. A scope is entered by a process of ours, run as one of the host's, which moves the daemon there before
//! its program begins (cgroups(7)); so is the other where the kernel does not (before Linux 5.7).

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

use crate::error::{Cause, Error, Result};
use crate::process::output::Output;
use crate::sys;
use crate::sys::cgroup::{TOLD, begin_in};

/// The host's root, as every process of its PID namespace can reach it.
const HOST: &str = "/proc/1/root";

/// How long a host may take to make a cgroup.
const LIMIT: Duration = Duration::from_secs(20);

/// The longest part of a scope's name that is made from a target; unit names end at 255 characters.
const LONGEST: usize = 180;

/// The name for what a mount on this target leaves running, as systemd-escape(1) has it for paths.
pub fn name_of(target: &Path) -> String {
    let mut name = String::new();
    for byte in target.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' if name.is_empty() => {}
            b'/' => name.push('-'),
            b'.' if name.is_empty() => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => {
                name.push(char::from(*byte))
            }
            other => name.push_str(&format!("\\x{other:02x}")),
        }
    }
    if name.len() > LONGEST {
        // The end tells more than the beginning, and has to begin with a whole character.
        let from = (name.len() - LONGEST..).find(|at| name.is_char_boundary(*at));
        name = name.split_off(from.unwrap_or_default());
        let whole = name.find('-').map_or(0, |at| at + 1);
        name = name.split_off(whole);
    }
    name
}

/// A program of the host, run as one of its processes.
///
/// # Errors
/// The host's first process cannot be opened.
pub fn on_host(program: &str) -> std::io::Result<Command> {
    let first = Pid::from_raw(1).ok_or(ErrorKind::NotFound)?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    sys::enter(&mut command, pidfd_open(first, PidfdFlags::empty())?);
    Ok(command)
}

/// Whether the host's cgroups are systemd's, as sd_booted(3) tells it.
///
/// # Errors
/// The host cannot be looked at.
fn is_systemds() -> std::io::Result<bool> {
    Path::new(HOST).join("run/systemd/system").try_exists()
}

/// Moves a process into a cgroup of this name on the host.
///
/// # Errors
/// The host has no cgroups of version 2, or refuses.
pub fn adopt(name: &str, description: &str, pid: i32) -> Result<()> {
    // The very program that runs here, by a path that leads to it from everywhere.
    let own = format!("/proc/{}/exe", std::process::id());
    let number = pid.to_string();
    let systemds = is_systemds().map_err(cannot_tell)?;
    if !systemds {
        return run(on_host(&own), &["adopt", &number, name], name);
    }
    let scope = |name: &str| {
        let unit = format!("--unit=spc-{name}.scope");
        let description = format!("--description={description}");
        // It is unmounted in its turn at shutdown, and ends then.
        let options = [
            "--scope",
            "--quiet",
            "--collect",
            "--property=DefaultDependencies=no",
        ];
        let words = [
            &options[..],
            &[&unit, &description, "--", &own, "adopt", &number],
        ]
        .concat();
        run(on_host("systemd-run"), &words, name)
    };
    // One of this name may be there: a daemon that is still in use after a lazy unmount.
    scope(name).or_else(|_| scope(&format!("{name}-{number}")))
}

fn run(command: std::io::Result<Command>, words: &[&str], name: &str) -> Result<()> {
    let fail = |cause: Cause| {
        Error::system(format!("cannot make the cgroup spc-{name} on the host"))
            .because(cause)
            .hint("daemons of mounts are put there, to outlive the container; to have them end with it, add -o x-spc.container")
    };
    let system = |e: std::io::Error| fail(e.into());
    let output = Output::new().map_err(system)?;
    let mut command = command.map_err(system)?;
    command.args(words).stderr(output.handle().map_err(system)?);
    let mut child = command.spawn().map_err(system)?;
    let until = Instant::now() + LIMIT;
    loop {
        match child.try_wait().map_err(system)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                let said = output.text();
                let last = said.lines().next_back().map(str::to_owned);
                return Err(fail(last.unwrap_or_else(|| status.to_string()).into()));
            }
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            None => {
                let _ = child.kill();
                return Err(fail(format!("no answer in {} s", LIMIT.as_secs()).into()));
            }
        }
    }
}

/// Starts a program in a cgroup of its own on the host, in which all that it starts is as well. It is one of our children.
/// `last` is said to the command last of all, as how it is tied to us.
///
/// # Errors
/// The cgroup cannot be made, or the program not started.
pub fn start(
    name: &str,
    description: &str,
    command: &mut Command,
    last: fn(&mut Command) -> &mut Command,
) -> Result<Pid> {
    let fail = |e: std::io::Error| Error::mount("cannot start a program").because(e);
    // A scope is for systemd to make.
    let systemds = is_systemds().map_err(cannot_tell)?;
    let cgroup = if systemds { None } else { open(name) };
    let (here, told) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
    begin_in(command, cgroup, told, wait, go.as_raw_fd());
    last(command);
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let mover = threads.spawn(|| {
            let Some((pid, there)) = which(&here, &over) else {
                return Ok(None);
            };
            if !there {
                adopt(name, description, pid.as_raw_nonzero().get())?;
                // If it has died meanwhile, whoever starts it learns that.
                let _ = rustix::io::write(&go, b"1");
            }
            drop(go);
            Ok(Some(pid))
        });
        let child = command.spawn();
        over.store(true, Ordering::Relaxed);
        let pid = mover.join().unwrap_or(Ok(None))?;
        let (pid, first) = match (pid, child) {
            (Some(pid), Ok(child)) => (pid, Pid::from_child(&child)),
            (None, Ok(_)) => return Err(fail(ErrorKind::BrokenPipe.into())),
            (pid, Err(error)) => {
                // The one that it knew of has been waited for.
                let _ = pid.map(|pid| waitpid(Some(pid), WaitOptions::empty()));
                return Err(fail(error));
            }
        };
        if pid != first {
            // It has ended when the other was made.
            let _ = waitpid(Some(first), WaitOptions::empty());
        }
        Ok(pid)
    })
}

/// The process that the program is in, and whether that is in its cgroup; none if starting it is over before.
fn which(here: &OwnedFd, over: &AtomicBool) -> Option<(Pid, bool)> {
    let tick = Timespec::try_from(Duration::from_millis(20)).unwrap_or_default();
    loop {
        let over = over.load(Ordering::Relaxed);
        let mut fds = [PollFd::new(here, PollFlags::IN)];
        match poll(&mut fds, Some(&tick)) {
            Ok(0) if over => return None,
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => {
                let mut told = [0_u8; TOLD];
                if rustix::io::read(here, &mut told).ok()? != TOLD {
                    return None;
                }
                let [a, b, c, d, there] = told;
                let pid = Pid::from_raw(i32::from_ne_bytes([a, b, c, d]))?;
                return Some((pid, there != 0));
            }
            Err(_) => return None,
        }
    }
}

/// The directory of a cgroup of this name, which is made; none where that is refused.
fn open(name: &str) -> Option<OwnedFd> {
    let cgroup = hierarchy(Path::new(HOST)).ok()??.join("spc").join(name);
    fs::create_dir_all(&cgroup).ok()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(cgroup, flags, Mode::empty()).ok()
}

/// Removes a cgroup that is not a scope, once it is empty.
pub fn remove(name: &str) {
    let remove = || -> std::io::Result<()> {
        let Some(base) = hierarchy(Path::new(HOST))? else {
            return Ok(());
        };
        match fs::remove_dir(base.join("spc").join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The last one out takes the directory of all along.
        let _ = fs::remove_dir(base.join("spc"));
        Ok(())
    };
    // A process that has ended may not have left it yet; a cgroup that stays is empty, and used again.
    for _ in 0..50 {
        match remove() {
            Ok(()) => return,
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    tracing::debug!(name, "its cgroup stays");
}

/// Where the hierarchy of version 2 is mounted, if it is.
///
/// # Errors
/// It cannot be looked for.
fn hierarchy(root: &Path) -> std::io::Result<Option<PathBuf>> {
    for base in ["sys/fs/cgroup", "sys/fs/cgroup/unified"] {
        let base = root.join(base);
        if base.join("cgroup.procs").try_exists()? {
            return Ok(Some(base));
        }
    }
    Ok(None)
}

fn cannot_tell(error: std::io::Error) -> Error {
    Error::system("cannot tell whose the host's cgroups are").because(error)
}

/// The directory of the cgroup that a process is in.
pub fn path_of(process: Pid) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    Some(hierarchy(Path::new(HOST)).ok()??.join(own(&text)?))
}

/// What `/proc/PID/cgroup` says of the hierarchy of version 2.
fn own(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// `spc adopt PID [NAME]`: moves a process into the cgroup of this name, or into the one that this process is in.
///
/// # Errors
/// There is no hierarchy of version 2, or it refuses.
pub fn move_here(pid: i32, name: Option<&str>) -> Result<()> {
    let fail = |e: std::io::Error| Error::system(format!("cannot move process {pid}")).because(e);
    let base = hierarchy(Path::new("/"))
        .map_err(fail)?
        .ok_or_else(|| Error::system("no cgroup2 is mounted on /sys/fs/cgroup"))?;
    let cgroup = match name {
        Some(name) => base.join("spc").join(name),
        None => {
            let text = fs::read_to_string("/proc/self/cgroup").map_err(fail)?;
            base.join(
                own(&text)
                    .ok_or_else(|| Error::system("this process is in no cgroup of version 2"))?,
            )
        }
    };
    let put = || -> std::io::Result<()> {
        fs::create_dir_all(&cgroup)?;
        let procs = cgroup.join("cgroup.procs");
        let mut file = fs::OpenOptions::new().write(true).open(procs)?;
        file.write_all(pid.to_string().as_bytes())
    };
    let mut done = put();
    for _ in 0..20 {
        match &done {
            // Whoever took the last mount away has taken the directory of all along just now.
            Err(error) if error.kind() == ErrorKind::NotFound => done = put(),
            _ => break,
        }
    }
    done.map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_systemd_and_not_too_long() {
        assert_eq!(name_of(Path::new("/mnt/data")), "mnt-data");
        assert_eq!(name_of(Path::new("/mnt/a b-c/.x")), "mnt-a\\x20b\\x2dc-.x");
        assert_eq!(name_of(Path::new("/.x")), "\\x2ex");
        let long = format!("/var/{}/volume", "x".repeat(300));
        assert_eq!(name_of(Path::new(&long)), "volume");
        let long = format!("/var/{}", "x".repeat(300));
        assert_eq!(name_of(Path::new(&long)).len(), LONGEST);
    }

    #[test]
    fn a_program_that_is_not_let_go_is_not_started() {
        let file = std::env::temp_dir().join(format!("spc-scope-{}", std::process::id()));
        let mut command = Command::new("touch");
        command.arg(&file);
        let (here, told) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (wait, go) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        begin_in(&mut command, None, told, wait, go.as_raw_fd());
        let closer = std::thread::spawn(move || {
            let told = which(&here, &AtomicBool::new(false));
            drop(go);
            told
        });
        let error = command.status().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
        let (_, there) = closer.join().unwrap().unwrap();
        assert!(!there && !file.exists());
    }
}
