//! All unsafe code of the launcher: system calls that nix and rustix do not wrap.
#![allow(unsafe_code)]

pub mod cgroup;
pub mod resize;
pub mod seccomp;
pub mod statmount;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::mount::MountPropagationFlags;

/// `MOUNT_ATTR_NOEXEC` of mount_setattr(2).
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;

/// Makes malloc(3) return buffers of 32 KiB and more to the kernel when they are dropped
/// (mallopt(3)). Without this call each thread would keep as much memory as it once used.
pub fn return_large_buffers() {
    // SAFETY: mallopt takes two numbers, and the value is valid for this parameter.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * 1024) };
}

/// Changes to make to a mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttributes {
    /// Attributes to set, `MOUNT_ATTR_*`.
    pub set: u64,
    /// Attributes to clear, `MOUNT_ATTR_*`.
    pub clear: u64,
    /// New propagation type; none to leave it unchanged.
    pub propagation: Option<MountPropagationFlags>,
    /// Whether all mounts below change too.
    pub recursive: bool,
}

/// Changes a detached mount (mount_setattr(2), Linux 5.12).
///
/// # Errors
/// Returns the errno of the call.
pub fn mount_setattr(mount: impl AsFd, changes: MountAttributes) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: changes.set,
        attr_clr: changes.clear,
        propagation: changes.propagation.map_or(0, |flags| flags.bits().into()),
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if changes.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    set_attributes(mount.as_fd(), &attr, flags)
}

/// Gives a detached mount the id mapping of a user namespace (mount_setattr(2), Linux 5.12).
///
/// # Errors
/// Returns the errno of the call.
pub fn map_ids(mount: impl AsFd, namespace: impl AsFd) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(namespace.as_fd().as_raw_fd().cast_unsigned()),
    };
    set_attributes(mount.as_fd(), &attr, libc::AT_EMPTY_PATH)
}

fn set_attributes(mount: BorrowedFd<'_>, attr: &libc::mount_attr, flags: i32) -> io::Result<()> {
    // SAFETY: the path is a NUL-terminated constant, and `attr` lives, with its size, until the
    // call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes a user namespace with these mappings, in the form of `uid_map` and `gid_map`
/// (user_namespaces(7)).
///
/// # Errors
/// Returns the errno of the first call that fails.
pub fn user_namespace(uids: &str, gids: &str) -> io::Result<OwnedFd> {
    let (wait, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (wait_fd, end_fd) = (wait.as_raw_fd(), end.as_raw_fd());
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and without a stack the call is fork(2). The child makes only
    // async-signal-safe calls, on its copies of two descriptors and a byte of its own stack.
    let child = unsafe {
        let child = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
        if child == 0 {
            let mut byte = 0_u8;
            libc::close(end_fd);
            libc::read(wait_fd, (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
        child
    };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let mapped = || {
        std::fs::write(format!("/proc/{child}/uid_map"), uids)?;
        std::fs::write(format!("/proc/{child}/gid_map"), gids)?;
        std::fs::File::open(format!("/proc/{child}/ns/user"))
    };
    let namespace = mapped();
    // The child exits when the pipe has no writer.
    drop(end);
    // SAFETY: the call writes no status and waits for a child of this process.
    unsafe { libc::waitpid(child as libc::pid_t, std::ptr::null_mut(), 0) };
    namespace.map(OwnedFd::from)
}

/// `struct pidfd_info` of `<linux/pidfd.h>`, first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// Returns the wait status of a process, as wait(2) has it, by its pidfd. None before Linux 6.15,
/// or as long as the parent has not waited for the process.
pub fn wait_status(pidfd: impl AsFd) -> Option<i32> {
    const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the structure has the kernel's layout and the size that is in the request, and lives
    // until the call returns.
    let done = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (done == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// Lets the program of a command inherit a file descriptor, which stays close-on-exec in this
/// process. The command fails to start if the descriptor is closed by then.
pub fn inherit_fd(command: &mut Command, fd: RawFd) -> &mut Command {
    // SAFETY: between fork and exec the closure makes one async-signal-safe system call on a
    // number. If no descriptor has that number, the call fails.
    unsafe {
        command.pre_exec(move || {
            let fd = BorrowedFd::borrow_raw(fd);
            Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?)
        })
    }
}

/// Makes the program of a command run in the namespaces of another process, with no signal blocked
/// (setns(2) with a pidfd, Linux 5.8). The namespaces are mount, network, IPC, UTS and cgroup; the
/// root and the working directory change with the mount namespace.
pub fn enter_namespaces(command: &mut Command, process: std::os::fd::OwnedFd) -> &mut Command {
    const KINDS: libc::c_int = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    // SAFETY: between fork and exec the closure makes only async-signal-safe system calls, on a
    // descriptor that it owns.
    unsafe {
        command.pre_exec(move || {
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            match libc::setns(process.as_raw_fd(), KINDS) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }
}

/// Takes ownership of a file descriptor that this process inherited, and marks it close-on-exec.
/// The number must not be in use elsewhere in this process.
///
/// # Errors
/// Returns EBADF if there is no such descriptor.
pub fn take_inherited_fd(number: RawFd) -> io::Result<std::os::fd::OwnedFd> {
    // SAFETY: the borrow ends with the next line, and fcntl fails if the number is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: the descriptor is open, and the parent process opened it for the caller of this
    // function alone.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(number) })
}

/// Starts the child in a session of its own, with no signal blocked. The kernel kills it when the
/// thread that started it exits (PR_SET_PDEATHSIG, prctl(2)).
pub fn tie_to_parent(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec the closure makes only async-signal-safe system calls and
    // allocates nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            // The child inherits the signal mask, and this process blocks termination signals.
            Ok(nix::sys::signal::SigSet::empty().thread_set_mask()?)
        });
    }
    tie_in_group(command)
}

/// Starts the child in the process group of this process, with the same signals blocked. The kernel
/// kills it when the thread that started it exits.
///
/// While an automount expires, it lets only the process group of systemd pass, to which umount(8)
/// and `umount.TYPE` of a mount unit belong (systemd.automount(5)).
pub fn tie_in_group(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec the closure makes only async-signal-safe system calls and
    // allocates nothing.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the signal was set.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// `struct sg_io_hdr` of `<scsi/sg.h>`, which libc lacks.
#[repr(C)]
struct SgIo {
    interface_id: libc::c_int,
    dxfer_direction: libc::c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut u8,
    cmdp: *mut u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: libc::c_int,
    usr_ptr: *mut libc::c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: libc::c_int,
    duration: u32,
    info: u32,
}

const SG_IO: libc::Ioctl = 0x2285;
const SG_DXFER_FROM_DEV: libc::c_int = -3;

/// Reads a page of vital product data from a SCSI disk (INQUIRY with EVPD), at most 1024 bytes. The
/// command goes to the disk, not to the data that the kernel cached. It waits at most for `limit`.
///
/// # Errors
/// Returns the errno of the ioctl, or EIO if the disk reports a failure.
pub fn inquiry(disk: impl AsFd, page: u8, limit: std::time::Duration) -> io::Result<Vec<u8>> {
    let mut data = vec![0_u8; 1024];
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
    let [high, low] = length.to_be_bytes();
    let mut command = [0x12, 1, page, high, low, 0];
    let mut sense = [0_u8; 32];
    let mut header = SgIo {
        interface_id: libc::c_int::from(b'S'),
        dxfer_direction: SG_DXFER_FROM_DEV,
        cmd_len: 6,
        mx_sb_len: 32,
        iovec_count: 0,
        dxfer_len: u32::from(length),
        dxferp: data.as_mut_ptr(),
        cmdp: command.as_mut_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
        flags: 0,
        pack_id: 0,
        usr_ptr: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: the header has the kernel's layout. The three buffers that it points to live, with
    // the lengths that it states, until the call returns; the kernel does not use them later.
    let done = unsafe { libc::ioctl(disk.as_fd().as_raw_fd(), SG_IO, &raw mut header) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    if header.status != 0 || header.host_status != 0 || header.driver_status != 0 {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    let got = data.len() - usize::try_from(header.resid).unwrap_or(0).min(data.len());
    data.truncate(got);
    Ok(data)
}

/// Opens the user namespace that owns a namespace (ioctl_ns(2)).
///
/// # Errors
/// The kernel does not show it: it is not the user namespace of this process or one below.
pub fn owner_of_namespace(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // _IO(0xb7, 0x1) of `<linux/nsfs.h>`.
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the request takes no argument.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Marks all file descriptors but the standard ones close-on-exec (close_range(2)). The process may
/// have been started with descriptors that are not marked so.
fn close_others_on_exec() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: one async-signal-safe system call on numbers; it closes nothing before exec.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts the child in a session of its own, so that it outlives this process. The child has no
/// signal blocked and inherits only the standard file descriptors.
pub fn detach(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec the closure makes only async-signal-safe system calls and
    // allocates nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            close_others_on_exec()
        })
    }
}

/// Lets the program of a command inherit only the standard file descriptors.
pub fn keep_standard_fds(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec the closure makes one async-signal-safe system call on numbers.
    unsafe { command.pre_exec(close_others_on_exec) }
}

/// Lets the program of a command start with no signal blocked.
pub fn unblock_signals(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec the closure makes one async-signal-safe system call.
    unsafe {
        command.pre_exec(|| {
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            Ok(())
        })
    }
}

/// Gives this thread a table of file descriptors of its own, with only the standard ones in it
/// (close_range(2) with CLOSE_RANGE_UNSHARE).
///
/// # Errors
/// Returns the errno of close_range(2).
pub fn unshare_fds() -> io::Result<()> {
    // SAFETY: the descriptors stay open in the table of the other threads, and this thread uses none
    // of them afterwards.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE as i32) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes all file descriptors but the standard ones and `kept` (close_range(2)).
///
/// Call it only where nothing else in this process uses another descriptor afterwards.
pub fn close_all_but(kept: &std::os::fd::OwnedFd) {
    let kept = kept.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept + 1, libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: one system call on numbers, whose owners do not use them again. It fails only
            // for wrong arguments.
            unsafe { libc::close_range(first, last, 0) };
        }
    }
}
