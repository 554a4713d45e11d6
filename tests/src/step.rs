//! `lab step`: runs a command of a host from one change to the next, and kills it at a given one.
//!
//! The command is traced (ptrace(2)). It stops at the entry of every system call that changes a
//! file, a mount or a process. A command killed there has made all changes before, and not that
//! one. System calls can also fail or be delayed (`faults.rs`).

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, openat};
use std::collections::BTreeMap;
use std::fs::File;
use std::process::{Command, ExitCode};
use std::thread::sleep;

use crate::enter::{Enter, end_as, go};
use crate::exec::Run;
use crate::faults::{self, Act, Fault};
use crate::host::Host;
use crate::output::Output;

/// System calls at which the command stops.
const STEPS: &[(libc::c_long, &str)] = &[
    (libc::SYS_bind, "bind"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_execve, "execve"),
    (libc::SYS_exit_group, "exit_group"),
    (libc::SYS_fsmount, "fsmount"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_kill, "kill"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_move_mount, "move_mount"),
    (libc::SYS_open_tree, "open_tree"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_pidfd_send_signal, "pidfd_send_signal"),
    (libc::SYS_ppoll, "ppoll"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_setns, "setns"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_wait4, "wait4"),
    (libc::SYS_waitid, "waitid"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_fork, "fork"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, "poll"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_symlink, "symlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, "vfork"),
];

/// System calls at which descendants stop. Shells and daemons make too many of the others.
pub(crate) const FAMILY_STEPS: [&str; 7] = [
    "execve",
    "mount",
    "move_mount",
    "setns",
    "symlinkat",
    "umount2",
    "unlinkat",
];

/// Process that is killed at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Victim {
    /// The command.
    Command,
    /// The process that is about to make the step.
    Caller,
}

/// Arguments of `lab step`.
#[derive(Debug, clap::Args)]
pub struct Step {
    /// Step at which the command is killed, from 1
    #[arg(long)]
    at: Option<usize>,
    /// Process that is killed
    #[arg(long, value_enum, default_value = "command")]
    victim: Victim,
    /// Fault of a system call: CALL:NUMBER:fail:ERRNO, CALL:NUMBER:delay:MS or CALL:NUMBER:kill;
    /// can be repeated
    #[arg(long, conflicts_with_all = ["at", "victim", "only"])]
    fault: Vec<Fault>,
    /// Stop at every system call that can fail, not only at changes
    #[arg(long)]
    wide: bool,
    /// Stop the command's descendants as well
    #[arg(long)]
    family: bool,
    /// Stop at this system call only
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    enter: Enter,
}

/// Result of a command that was run in steps.
#[derive(Debug)]
pub struct Stepped {
    /// Steps that the command reached: `PROGRAM SYSTEM_CALL`.
    pub steps: Vec<String>,
    /// Whether the command reached the step at which it was to be killed, or all of its faults have
    /// happened.
    pub killed: bool,
    /// Number of steps before each of its faults.
    pub faults: Vec<usize>,
    /// Output and status.
    pub output: Output,
}

/// Step at which a command is killed.
#[derive(Debug, Clone, Copy)]
pub struct Kill {
    /// Number of the step, from 1.
    pub at: usize,
    /// Process that is killed.
    pub victim: Victim,
    /// Whether steps of descendants count as well.
    pub family: bool,
    /// The only system call that counts, by default all.
    pub only: Option<&'static str>,
}

impl Host<'_> {
    /// Runs a command in the namespaces of a process, given by its number on the machine, and kills
    /// it at a step.
    pub fn step(&self, pid: i32, argv: &[&str], order: Kill) -> Result<Stepped> {
        let at = order.at.to_string();
        let mut task = vec!["step", "--at", &at];
        if order.victim == Victim::Caller {
            task.extend(["--victim", "caller"]);
        }
        if order.family {
            task.push("--family");
        }
        if let Some(call) = order.only {
            task.extend(["--only", call]);
        }
        self.in_steps(&task, pid, argv, Some(order.at))
    }

    /// Runs a command with `lab step` and these arguments.
    pub(crate) fn in_steps(
        &self,
        task: &[&str],
        pid: i32,
        argv: &[&str],
        at: Option<usize>,
    ) -> Result<Stepped> {
        let run = Run::task(task, &self.name(), pid, self.next_cgroup()?, argv)?;
        let output = run.run()?;
        let text = output.text();
        let (mut steps, mut faults) = (Vec::new(), Vec::new());
        for line in text.lines() {
            if let Some(step) = line.strip_prefix("step ") {
                steps.push(step.to_owned());
            } else if line.starts_with("fault ") {
                faults.push(steps.len());
            }
        }
        Ok(Stepped {
            killed: Some(steps.len()) == at,
            steps,
            faults,
            output,
        })
    }
}

/// Runs the command.
pub fn step(arguments: &Step) -> Result<ExitCode> {
    // In the namespaces, /proc has other numbers, or is missing.
    let proc = File::open("/proc").context("cannot open /proc")?;
    let (program, rest) = go(&arguments.enter)?;
    // The child stops before exec, so that the tracer sees it from its first instruction on.
    let mut command = Command::new("sh");
    command.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
    let child = command
        .arg(program)
        .args(rest)
        .spawn()
        .context("cannot start a shell")?;
    let leader = Pid::from_raw(child.id().cast_signed());
    match waitpid(leader, Some(WaitPidFlag::WUNTRACED))? {
        WaitStatus::Stopped(..) => {}
        other => bail!("the shell did not stop: {other:?}"),
    }
    let mut options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACECLONE;
    if arguments.family {
        options |= Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
    }
    ptrace::seize(leader, options).context("cannot trace the command")?;
    kill(leader, Signal::SIGCONT)?;
    let mut tracer = Tracer {
        arguments,
        proc,
        leader,
        begun: false,
        steps: 0,
        made: BTreeMap::new(),
        faults: 0,
        failing: BTreeMap::new(),
    };
    loop {
        let signal = match waitpid(None, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Exited(pid, code) if pid == leader => return end_as(Some(code), None),
            WaitStatus::Signaled(pid, signal, _) if pid == leader => {
                return end_as(None, Some(signal as i32));
            }
            WaitStatus::PtraceSyscall(pid) => tracer.stopped(pid).map(|()| (pid, None))?,
            WaitStatus::PtraceEvent(pid, _, event) => {
                tracer.begun |= pid == leader && event == libc::PTRACE_EVENT_EXEC;
                (pid, None)
            }
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            _ => continue,
        };
        let resumed = if tracer.is_over() {
            ptrace::cont(signal.0, signal.1)
        } else {
            ptrace::syscall(signal.0, signal.1)
        };
        match resumed {
            // The process was killed meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context("cannot resume the command"),
        }
    }
}

struct Tracer<'a> {
    arguments: &'a Step,
    proc: File,
    leader: Pid,
    begun: bool,
    steps: usize,
    /// Number of calls, by system call.
    made: BTreeMap<&'static str, usize>,
    /// Number of faults that have happened.
    faults: usize,
    /// Threads in a system call that is made to fail, and its errno.
    failing: BTreeMap<Pid, i32>,
}

impl Tracer<'_> {
    /// Returns whether the kill or all faults have happened, so that the command can run on
    /// untraced.
    fn is_over(&self) -> bool {
        let Step {
            at, fault, wide, ..
        } = self.arguments;
        let faults_are = !wide && !fault.is_empty() && self.faults >= fault.len();
        self.failing.is_empty() && (faults_are || at.is_some_and(|at| self.steps >= at))
    }

    /// Handles a thread at the entry or the exit of a system call.
    fn stopped(&mut self, thread: Pid) -> Result<()> {
        let info = match ptrace::syscall_info(thread) {
            Err(Errno::ESRCH) => return Ok(()),
            info => info.context("cannot look at a system call")?,
        };
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT
            && let Some(errno) = self.failing.remove(&thread)
        {
            return faults::end(thread, errno);
        }
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY || !self.begun || self.is_over() {
            return Ok(());
        }
        let arguments = self.arguments;
        let only = |call: &&str| {
            let faulty = || arguments.fault.iter().any(|fault| fault.call == **call);
            arguments.only.as_ref().is_none_or(|only| only == call)
                && (arguments.wide || arguments.fault.is_empty() || faulty())
        };
        let Some(call) = self.call_of(thread).filter(only) else {
            return Ok(());
        };
        let Some(process) = self.process_of(thread) else {
            return Ok(());
        };
        let name = self.read(process, "comm").unwrap_or_default();
        let name = name.trim_matches(char::is_control);
        let counts = if self.all_that_may_fail() {
            faults::counts(name, call)
        } else {
            FAMILY_STEPS.contains(&call)
        };
        if process != self.leader && !counts {
            return Ok(());
        }
        self.steps += 1;
        println!("step {name} {call}");
        let made = self.made.entry(call).or_default();
        *made += 1;
        let here = |fault: &&Fault| fault.call == call && fault.at == *made;
        if let Some(fault) = arguments.fault.iter().find(here) {
            self.faults += 1;
            println!("fault {fault}");
            match fault.act {
                Act::Fail(errno) => {
                    self.failing.insert(thread, errno);
                    return faults::begin(thread);
                }
                Act::Delay(time) => sleep(time),
                Act::Kill => kill(process, Signal::SIGKILL).context("cannot kill")?,
            }
        }
        if arguments.at != Some(self.steps) {
            return Ok(());
        }
        let victim = match arguments.victim {
            Victim::Command => self.leader,
            Victim::Caller => process,
        };
        kill(victim, Signal::SIGKILL).context("cannot kill")
    }

    /// Returns whether every system call that can fail is a step.
    fn all_that_may_fail(&self) -> bool {
        self.arguments.wide || !self.arguments.fault.is_empty()
    }

    /// Returns the step that a thread is about to make, if its system call is a step.
    fn call_of(&self, thread: Pid) -> Option<&'static str> {
        let text = self.read(thread, "syscall")?;
        let mut words = text.split_whitespace();
        let number: libc::c_long = words.next()?.parse().ok()?;
        if self.all_that_may_fail() {
            return faults::name(number);
        }
        let (_, name) = STEPS.iter().find(|(step, _)| *step == number)?;
        if *name == "openat" {
            let flags = words.nth(2)?.strip_prefix("0x")?;
            let flags = i64::from_str_radix(flags, 16).ok()?;
            return (flags & i64::from(libc::O_CREAT) != 0).then_some(name);
        }
        Some(name)
    }

    /// Returns the process of a thread.
    fn process_of(&self, thread: Pid) -> Option<Pid> {
        let status = self.read(thread, "status")?;
        let id = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
        id.trim().parse().ok().map(Pid::from_raw)
    }

    /// Reads a file of a process in procfs, unless the process has ended.
    fn read(&self, process: Pid, name: &str) -> Option<String> {
        let path = format!("{process}/{name}");
        let file = openat(
            &self.proc,
            path,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ok()?;
        std::io::read_to_string(File::from(file)).ok()
    }
}
