//! The inner side of a sandbox: builds it, and runs the helper as a child of the first process of
//! the PID namespace.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal as NixSignal};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, set_dumpable_behavior,
    set_parent_process_death_signal,
};
use rustix::thread::CapabilitySet;

use crate::error::{Error, Result};
use crate::helper::sandbox::description::Description;
use crate::helper::sandbox::tree;
use crate::sys;
use crate::sys::seccomp::Filter;

/// Capabilities that helpers keep, if they have them. Some servers accept only clients on ports
/// below 1024.
const CAPABILITIES: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// Capabilities that mount.cifs switches on and off. It talks to no server.
const MOUNT_CIFS: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// `CLONE_NEWUSER` of clone(2), which would give capabilities.
const CLONE_NEWUSER: u32 = libc::CLONE_NEWUSER.cast_unsigned();

/// fchmodat2(2), Linux 6.6, and open_tree_attr(2), Linux 6.15, which libc lacks, the first on some
/// architectures only.
const SYS_FCHMODAT2: libc::c_long = 452;
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

/// Calls that change the mode of a file, and the number of the argument with the mode.
const CHANGES_MODE: [(libc::c_long, u32); 3] = [
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
    (SYS_FCHMODAT2, 2),
];

/// `F_SETLEASE` and `F_SETDELEG` (Linux 6.19) of fcntl(2).
const SET_LEASE: [u32; 2] = [libc::F_SETLEASE.cast_unsigned(), 1040];

/// Families of sockets that helpers use: the network. Its settings are looked up by netlink(7).
const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// Bit that the types `SOCK_DGRAM` and `SOCK_RAW` have, and those with connections have not.
const WITHOUT_CONNECTION: u32 = 2;

/// Calls that fail with EPERM. Helpers are clients: no service of the node is at their ports. Each
/// user has few watches of files and few message queues, and the node has few contexts of
/// asynchronous I/O: they would be missing elsewhere.
const REFUSED: [libc::c_long; 20] = [
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_fanotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_io_setup,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_listen,
    libc::SYS_mq_open,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_setns,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Calls that fail with ENOSYS. Programs then call mount(2) and clone(2), or do without keyrings,
/// which hold keys of the node.
const ABSENT: [libc::c_long; 12] = [
    SYS_OPEN_TREE_ATTR,
    libc::SYS_add_key,
    libc::SYS_clone3,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_keyctl,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_request_key,
];

fn fail(e: impl Into<io::Error>) -> Error {
    Error::system("cannot create the sandbox for a volume of a pod").because(e.into())
}

/// Starts the first process of a new PID namespace (`spc sandbox`), waits until the helper has
/// ended, and returns its exit code, or 128 and the number of the signal that killed it. The first
/// process stays as long as the helper has children.
///
/// # Errors
/// The namespace cannot be created, or the first process fails.
pub fn start(description: &str, words: &[String]) -> Result<u8> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(fail)?;
    let (status, status_writer) = pipe_with(PipeFlags::CLOEXEC).map_err(fail)?;
    let mut first = Command::new("/proc/self/exe");
    first
        .arg0("spc")
        .args(["sandbox", "--status"])
        .arg(status_writer.as_raw_fd().to_string())
        .args([description, "--"])
        .args(words);
    sys::inherit_fd(&mut first, status_writer.as_raw_fd());
    let mut first = first.spawn().map_err(fail)?;
    drop(status_writer);
    let mut code = [0_u8];
    match File::from(status).read_exact(&mut code) {
        Ok(()) => Ok(code[0]),
        // The first process has printed the reason.
        Err(_) => {
            first.wait().map_err(fail)?;
            Ok(1)
        }
    }
}

/// Builds the sandbox, and runs the helper in it (`spc sandbox --status`). Writes the exit code to
/// the descriptor `status`, and returns when the helper and its daemon have ended.
///
/// # Errors
/// The sandbox cannot be built, or the helper cannot be started.
pub fn run(status: i32, description: &str, words: &[String]) -> Result<Infallible> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(fail)?;
    // Nobody in the sandbox gets to `/proc/1/exe`, which is in the client root file system as it
    // was mounted before, and can be written there.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fail)?;
    let status = sys::take_inherited_fd(status).map_err(fail)?;
    let description: Description = serde_json::from_str(description).map_err(fail)?;
    let socket = sys::take_inherited_fd(description.socket).map_err(fail)?;
    tree::build(&description).map_err(fail)?;
    let kept = match description.drops_capabilities {
        true => CAPABILITIES | MOUNT_CIFS,
        false => CAPABILITIES,
    };
    drop_privileges(kept).map_err(fail)?;
    let listener = filter().install_with_listener().map_err(fail)?;
    send_fd(&socket, &listener).map_err(fail)?;
    drop((socket, listener));
    let mut signals = SigSet::empty();
    signals.add(NixSignal::SIGCHLD);
    signals.add(NixSignal::SIGTERM);
    signals.thread_block().map_err(fail)?;
    let (program, arguments) = words
        .split_first()
        .ok_or(ErrorKind::NotFound)
        .map_err(fail)?;
    let child = sys::unblock_signals(Command::new(program).args(arguments)).spawn();
    let child = child.map_err(|e| Error::system(format!("cannot run {program}")).because(e))?;
    let helper = Pid::from_child(&child);
    drop(child);
    // Secrets of the helper among them.
    sys::close_all_but(&status);
    close_standard_fds().map_err(fail)?;
    let mut status = Some(status);
    loop {
        let signal = signals.wait().map_err(fail)?;
        if signal == NixSignal::SIGTERM {
            // All processes of this PID namespace but this one.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), NixSignal::SIGTERM);
            continue;
        }
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, ended))) if pid == helper => {
                    let code = match (ended.exit_status(), ended.terminating_signal()) {
                        (Some(code), _) => code,
                        (None, signal) => 128 + signal.unwrap_or_default(),
                    };
                    let Some(status) = status.take() else {
                        continue;
                    };
                    set_parent_process_death_signal(None).map_err(fail)?;
                    let code = u8::try_from(code).unwrap_or(1);
                    // The reader may have been killed.
                    let _ = File::from(status).write_all(&[code]);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                // No process is left.
                Err(_) => std::process::exit(0),
            }
        }
    }
}

/// Sends a file descriptor.
fn send_fd(socket: &OwnedFd, fd: &OwnedFd) -> io::Result<()> {
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        socket,
        &[IoSlice::new(b"1")],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Opens `/dev/null` as the standard file descriptors.
fn close_standard_fds() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}

/// Gives up all capabilities but `kept`. With `no_new_privs`, no program gets them back.
fn drop_privileges(kept: CapabilitySet) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    for capability in CapabilitySet::all().difference(kept).iter() {
        // A container without CAP_SETPCAP cannot change this set, and need not.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let mut sets = rustix::thread::capabilities(None)?;
    sets.permitted &= kept;
    sets.effective &= kept;
    sets.inheritable = CapabilitySet::empty();
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Returns the filter for the system calls of the helper.
fn filter() -> Filter {
    let mut filter = Filter::new(Filter::errno(libc::ENOSYS));
    filter.rule(libc::SYS_mount, Filter::NOTIFY);
    for number in REFUSED {
        filter.rule(number, Filter::errno(libc::EPERM));
    }
    for number in ABSENT {
        filter.rule(number, Filter::errno(libc::ENOSYS));
    }
    let refused = Filter::errno(libc::EPERM);
    filter.rule_for_flags(libc::SYS_clone, 0, CLONE_NEWUSER, refused);
    // The log is a file of the host. As a set-user-ID program, it would make any user root.
    let special = libc::S_ISUID | libc::S_ISGID;
    for (number, argument) in CHANGES_MODE {
        filter.rule_for_flags(number, argument, special, refused);
    }
    #[cfg(target_arch = "x86_64")]
    filter.rule_for_flags(libc::SYS_chmod, 1, special, refused);
    #[cfg(target_arch = "x86_64")]
    filter.rule(libc::SYS_inotify_init, refused);
    // Who opens a file with a lease, such as a program of the client root, waits for its holder.
    for command in SET_LEASE {
        filter.rule_for_values(libc::SYS_fcntl, &[(1, command)], refused);
    }
    // A port that a service of the node has, also of user ID 0, would be shared with it.
    for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
        let of_socket = [libc::SOL_SOCKET, option].map(i32::cast_unsigned);
        let values = [(1, of_socket[0]), (2, of_socket[1])];
        filter.rule_for_values(libc::SYS_setsockopt, &values, refused);
    }
    // The network namespace is the host's, and so are the abstract UNIX sockets. Services take a
    // peer with the user ID 0 for the administrator. No socket without a connection is created,
    // since it could send anywhere.
    let families = FAMILIES.map(i32::cast_unsigned);
    let absent = Filter::errno(libc::EAFNOSUPPORT);
    // Programs and subsystems of the node listen at the other protocols of netlink.
    let route = [(0, libc::AF_NETLINK), (2, libc::NETLINK_ROUTE)];
    let route = route.map(|(argument, value)| (argument, value.cast_unsigned()));
    filter.rule_for_values(libc::SYS_socket, &route, Filter::ALLOW);
    filter.rule_unless(libc::SYS_socket, &families, absent);
    filter.rule_for_flags(libc::SYS_socketpair, 1, WITHOUT_CONNECTION, absent);
    filter
}
