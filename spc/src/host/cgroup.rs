//! Cgroups on the host for the daemons of mounts (cgroups(7)). A daemon in such a cgroup survives
//! when the container, the shell or the service that started it is killed.
//!
//! - If the host runs systemd, the cgroup is a scope that the host's systemd-run creates. A process
//!   of spc in the host's namespaces moves the daemon there before its program starts.
//! - Otherwise, or if systemd refuses a scope, it is a cgroup below `spc`. The kernel creates the
//!   process in it; before Linux 5.7, or after a refusal, the process is moved.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

use crate::error::{Cause, Error, Result};
use crate::host::cgroup_v1;
use crate::host::hash::hash;
use crate::process::run;
use crate::sys;
use crate::sys::cgroup::{REPORT_LEN, start_in_cgroup};

/// Path to the host's root, valid for every process in the host's PID namespace.
const HOST: &str = "/proc/1/root";

/// Timeout for the creation of a cgroup on the host.
const LIMIT: Duration = Duration::from_secs(20);

/// Largest number of processes and threads in one of these cgroups, so that a daemon that its server
/// has taken over leaves process ids to the host. GlusterFS has the most threads, about a hundred.
const MAX_TASKS: u32 = 1024;

/// Longest cgroup name that is made from a target, in bytes. systemd limits a unit name to 255.
const MAX_NAME: usize = 180;

/// Returns the cgroup name for the daemons of a mount on this target, escaped like a path by
/// systemd-escape(1). A name of more than 180 bytes is cut at the front, where a hash of the target
/// tells it from others with the same end.
pub fn name_for(target: &Path) -> String {
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
    if name.len() > MAX_NAME {
        // The end identifies a target better than its beginning. The cut is after a hyphen if there
        // is one, and never inside of a character.
        let from = (name.len() - MAX_NAME..).find(|at| name.is_char_boundary(*at));
        name = name.split_off(from.unwrap_or_default());
        let component = name.find('-').map_or(0, |at| at + 1);
        name = format!("{:016x}-{}", hash(target), name.split_off(component));
    }
    name
}

/// Returns a command for a program of the host, which runs in the namespaces of process 1.
///
/// # Errors
/// Fails if process 1 cannot be opened (pidfd_open(2)).
pub fn host_command(program: &str) -> std::io::Result<Command> {
    let first = Pid::from_raw(1).ok_or(ErrorKind::NotFound)?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    sys::enter_namespaces(&mut command, pidfd_open(first, PidfdFlags::empty())?);
    Ok(command)
}

/// Returns whether systemd manages the host's cgroups (sd_booted(3)).
///
/// # Errors
/// Fails if the host's root cannot be read.
fn is_systemd_host() -> std::io::Result<bool> {
    Path::new(HOST).join("run/systemd/system").try_exists()
}

/// Moves a process into a cgroup on the host, and creates the cgroup if it is missing.
///
/// # Errors
/// Fails if systemd refuses a scope and the host has no cgroup2 hierarchy, or does not allow the
/// move.
pub fn adopt(name: &str, description: &str, pid: i32) -> Result<()> {
    let number = pid.to_string();
    let words = ["adopt", &number];
    let below_spc = || run_host(&own_program(), &["adopt", &number, name]);
    let made = match is_systemd_host().map_err(cannot_tell)? {
        false => below_spc(),
        // The name may be taken by a daemon that is still in use after a lazy unmount.
        true => scope(name, description, &words)
            .or_else(|_| scope(&format!("{name}-{number}"), description, &words))
            // A security policy may forbid asking systemd, and allow a cgroup.
            .or_else(|refused| {
                tracing::info!(name, %refused, "systemd refuses a scope");
                below_spc().map_err(|_| refused)
            }),
    };
    made.map_err(|cause| {
        Error::system(format!("cannot create the cgroup spc-{name} on the host"))
            .because(cause)
            .hint("daemons of mounts run there, so that they outlive the container; to let them end with it, add -o x-spc.container")
    })
}

/// Returns where daemons of mounts run on the host, found by making such a cgroup.
///
/// # Errors
/// Fails where [`adopt`] would.
pub fn check() -> Result<String> {
    let name = format!("doctor-{}", std::process::id());
    let refused = match is_systemd_host().map_err(cannot_tell)? {
        true => match scope(&name, "spc: doctor", &["--version"]) {
            Ok(()) => return Ok("scopes of systemd".into()),
            Err(refused) => format!("; systemd refuses scopes: {refused}"),
        },
        false => String::new(),
    };
    let made = open_or_create(&name);
    remove(&name);
    match made {
        Some(_) => Ok(format!("below /sys/fs/cgroup/spc{refused}")),
        None => Err(Error::system(format!("cannot create a cgroup on the host{refused}"))
            .hint("daemons of FUSE mounts need it, to outlive the container; with SELinux, install the policy module /usr/share/spc/selinux/spc.cil of the image (semodule -i), which has: (allow spc_t init_t (system (start stop status)))")),
    }
}

/// Returns a path of the running program that is valid in every mount namespace.
fn own_program() -> String {
    format!("/proc/{}/exe", std::process::id())
}

/// Runs this program in a scope of its own, with these arguments. An error is the reason.
fn scope(name: &str, description: &str, words: &[&str]) -> std::result::Result<(), Cause> {
    let (unit, own) = (format!("--unit=spc-{name}.scope"), own_program());
    let description = format!("--description={description}");
    let tasks = format!("--property=TasksMax={MAX_TASKS}");
    // At shutdown systemd must not kill the daemon before its mount is unmounted.
    let options = [
        "--scope",
        "--quiet",
        "--collect",
        "--property=DefaultDependencies=no",
    ];
    let own = [&*unit, &description, &tasks, "--", &own];
    let words = [&options[..], &own, words].concat();
    run_host("systemd-run", &words)
}

/// Runs a program in the host's namespaces. An error is the reason.
fn run_host(program: &str, words: &[&str]) -> std::result::Result<(), Cause> {
    let finished = run::run(host_command(program)?.args(words), LIMIT)?;
    match finished.status.success() {
        true => Ok(()),
        false => Err(finished.last_line().into()),
    }
}

/// Starts a program in a cgroup of its own on the host, and returns its process id. Its children
/// are in the same cgroup, and it is a child of this process. `last` changes the command after
/// everything else, such as to tie it to this process.
///
/// # Errors
/// Fails if the cgroup cannot be created or the program cannot be started.
pub fn start(
    name: &str,
    description: &str,
    command: &mut Command,
    last: fn(&mut Command) -> &mut Command,
) -> Result<Pid> {
    let fail = |e: std::io::Error| Error::mount("cannot start a program").because(e);
    // systemd-run creates a scope only for an existing process, which is then moved into it. The
    // kernel creates a process in a cgroup of version 2 only.
    let is_moved = || Ok(is_systemd_host()? || cgroup_v1::differs_from_first()?);
    let cgroup = match is_moved().map_err(cannot_tell)? {
        true => None,
        false => open_or_create(name),
    };
    let (reports, report) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
    let (go, go_writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
    start_in_cgroup(command, cgroup, report, go, go_writer.as_raw_fd());
    last(command);
    let spawn_returned = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let mover = threads.spawn(|| {
            let Some((pid, in_cgroup)) = read_report(&reports, &spawn_returned) else {
                return Ok(None);
            };
            if !in_cgroup {
                adopt(name, description, pid.as_raw_nonzero().get())?;
                // If the child has died, spawn or a later wait reports that.
                let _ = rustix::io::write(&go_writer, b"1");
            }
            drop(go_writer);
            Ok(Some(pid))
        });
        let child = command.spawn();
        spawn_returned.store(true, Ordering::Relaxed);
        let pid = mover.join().unwrap_or(Ok(None))?;
        let (pid, first) = match (pid, child) {
            (Some(pid), Ok(child)) => (pid, Pid::from_child(&child)),
            (None, Ok(_)) => return Err(fail(ErrorKind::BrokenPipe.into())),
            (pid, Err(error)) => {
                // The failed spawn has reaped its own child, but not the copy in the cgroup.
                let _ = pid.map(|pid| waitpid(Some(pid), WaitOptions::empty()));
                return Err(fail(error));
            }
        };
        if pid != first {
            // The first child exited after it had created the process in the cgroup.
            let _ = waitpid(Some(first), WaitOptions::empty());
        }
        Ok(pid)
    })
}

/// Reads the child's report: the process that runs the program, and whether it is in its cgroup.
/// Returns none if the spawn returned without a report.
fn read_report(reports: &OwnedFd, spawn_returned: &AtomicBool) -> Option<(Pid, bool)> {
    let tick = Timespec::try_from(Duration::from_millis(20)).unwrap_or_default();
    loop {
        let is_over = spawn_returned.load(Ordering::Relaxed);
        let mut fds = [PollFd::new(reports, PollFlags::IN)];
        match poll(&mut fds, Some(&tick)) {
            Ok(0) if is_over => return None,
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => {
                let mut report = [0_u8; REPORT_LEN];
                if rustix::io::read(reports, &mut report).ok()? != REPORT_LEN {
                    return None;
                }
                let [a, b, c, d, in_cgroup] = report;
                let pid = Pid::from_raw(i32::from_ne_bytes([a, b, c, d]))?;
                return Some((pid, in_cgroup != 0));
            }
            Err(_) => return None,
        }
    }
}

/// Opens the cgroup directory of this name, and creates it if it is missing. None if the host does
/// not allow it.
fn open_or_create(name: &str) -> Option<OwnedFd> {
    let cgroup = create(&hierarchy(Path::new(HOST)).ok()??, name).ok()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(cgroup, flags, Mode::empty()).ok()
}

/// Creates a cgroup below `spc` in a hierarchy if it is missing, and returns its path. The number of
/// processes is limited if the host has enabled the controller `pids`.
fn create(base: &Path, name: &str) -> std::io::Result<PathBuf> {
    let parent = base.join("spc");
    let cgroup = parent.join(name);
    fs::create_dir_all(&cgroup)?;
    if let Err(error) = limit_tasks(&parent, &cgroup) {
        tracing::debug!(name, %error, "the number of processes is not limited");
    }
    Ok(cgroup)
}

/// Limits the number of processes in a cgroup below `parent`.
fn limit_tasks(parent: &Path, cgroup: &Path) -> std::io::Result<()> {
    // A container runtime may have put a container called `spc` there. A cgroup with processes of
    // its own must not enable controllers.
    if !fs::read(parent.join("cgroup.procs"))?.is_empty() {
        return Err(ErrorKind::ResourceBusy.into());
    }
    fs::write(parent.join("cgroup.subtree_control"), "+pids")?;
    fs::write(cgroup.join("pids.max"), MAX_TASKS.to_string())
}

/// Removes a cgroup below `spc`, and waits up to 0.1 s until it is empty. systemd removes scopes.
pub fn remove(name: &str) {
    let remove = || -> std::io::Result<()> {
        let Some(base) = hierarchy(Path::new(HOST))? else {
            return Ok(());
        };
        match fs::remove_dir(base.join("spc").join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Fails while the parent directory has other cgroups.
        let _ = fs::remove_dir(base.join("spc"));
        Ok(())
    };
    // A process that has exited may still be in the cgroup for a moment. A cgroup that stays is
    // empty, and the next mount reuses it.
    for _ in 0..50 {
        match remove() {
            Ok(()) => return,
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    tracing::debug!(name, "cannot remove the cgroup");
}

/// Returns the mount point of the cgroup2 hierarchy below a root, if it is mounted.
///
/// # Errors
/// Fails if a candidate cannot be read.
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
    Error::system("cannot find out whether the host runs systemd").because(error)
}

/// Returns the directory of the cgroup that a process is in.
pub fn path_of(process: Pid) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    Some(hierarchy(Path::new(HOST)).ok()??.join(cgroup2_path(&text)?))
}

/// Returns the path in the cgroup2 hierarchy from the text of `/proc/PID/cgroup` (cgroups(7)).
fn cgroup2_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// Moves a process into the cgroup of this name, or without a name into the cgroup of this process,
/// and out of the container's cgroups of version 1. Implements `spc adopt PID [NAME]`.
///
/// # Errors
/// Fails if no hierarchy is mounted, or the kernel does not allow the move.
pub fn move_process(pid: i32, name: Option<&str>) -> Result<()> {
    let fail = |e: std::io::Error| Error::system(format!("cannot move process {pid}")).because(e);
    let has_v1 = cgroup_v1::leave(pid, name.is_none())?;
    let base = match hierarchy(Path::new("/")).map_err(fail)? {
        Some(base) => base,
        None if has_v1 => return Ok(()),
        None => return Err(Error::system("no cgroup2 is mounted on /sys/fs/cgroup")),
    };
    let current = fs::read_to_string("/proc/self/cgroup").map_err(fail)?;
    let move_once = || -> std::io::Result<()> {
        let cgroup = match (name, cgroup2_path(&current)) {
            (Some(name), _) => create(&base, name)?,
            (None, Some(current)) => base.join(current),
            (None, None) => return Err(std::io::Error::other("this process is in no cgroup2")),
        };
        let procs = cgroup.join("cgroup.procs");
        let mut file = fs::OpenOptions::new().write(true).open(procs)?;
        file.write_all(pid.to_string().as_bytes())
    };
    let mut moved = move_once();
    for _ in 0..20 {
        match &moved {
            // Another process has just removed the last cgroup, and the directory above with it.
            Err(error) if error.kind() == ErrorKind::NotFound => moved = move_once(),
            _ => break,
        }
    }
    moved.map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_escaped_like_a_systemd_path_and_cut_to_its_limit() {
        assert_eq!(name_for(Path::new("/mnt/data")), "mnt-data");
        assert_eq!(name_for(Path::new("/mnt/a b-c/.x")), "mnt-a\\x20b\\x2dc-.x");
        assert_eq!(name_for(Path::new("/.x")), "\\x2ex");
        let long = format!("/var/{}/volume", "x".repeat(300));
        let name = name_for(Path::new(&long));
        assert!(name.ends_with("-volume") && name.len() == 16 + 7, "{name}");
        let long = format!("/var/{}", "x".repeat(300));
        assert_eq!(name_for(Path::new(&long)).len(), MAX_NAME + 17);
        assert_ne!(
            name_for(Path::new(&long)),
            name_for(Path::new(&format!("/srv/{}", "x".repeat(300))))
        );
    }

    #[test]
    fn program_does_not_start_if_its_process_is_not_moved() {
        let file = std::env::temp_dir().join(format!("spc-scope-{}", std::process::id()));
        let mut command = Command::new("touch");
        command.arg(&file);
        let (reports, report) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (go, go_writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        start_in_cgroup(&mut command, None, report, go, go_writer.as_raw_fd());
        let closer = std::thread::spawn(move || {
            let report = read_report(&reports, &AtomicBool::new(false));
            drop(go_writer);
            report
        });
        let error = command.status().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
        let (_, in_cgroup) = closer.join().unwrap().unwrap();
        assert!(!in_cgroup && !file.exists());
    }
}
