//! Every use of `unsafe` in the launcher: what the safe wrappers of nix and rustix leave out.
#![allow(unsafe_code)]

pub mod cgroup;
pub mod resize;
pub mod statmount;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::mount::MountPropagationFlags;

/// `MOUNT_ATTR_NOEXEC` of mount_setattr(2).
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;

/// From now on memory for large buffers is the kernel's again as soon as they are dropped: mallopt(3). Otherwise the
/// library would keep as much of it as it once took, in each thread.
pub fn keep_no_buffers() {
    // SAFETY: a number of a setting, and a value that it may have.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * 1024) };
}

/// What to change of a mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttributes {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// What it shows of mounts on others and they of mounts on it; as before if there is none.
    pub propagation: Option<MountPropagationFlags>,
    /// With all mounts below it.
    pub recursive: bool,
}

/// Changes a detached mount, mount_setattr(2); Linux 5.12.
///
/// # Errors
/// The errno of the call.
pub fn mount_setattr(mount: impl AsFd, what: MountAttributes) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: what.set,
        attr_clr: what.clear,
        propagation: what.propagation.map_or(0, |flags| flags.bits().into()),
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if what.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a NUL-terminated constant and `attr` lives, with its size, across the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct pidfd_info` of `<linux/pidfd.h>`, as its first version has it.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// How the process behind a pidfd ended, as wait(2) tells its parent; none where the kernel does not say (before
/// Linux 6.15), or it has not been waited for yet.
pub fn wait_status(pidfd: impl AsFd) -> Option<i32> {
    const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the structure is laid out as the kernel has it, with the size that is in the request, and lives across
    // the call.
    let done = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (done == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// Lets a command's program inherit this descriptor, which nothing else of ours passes on. If it is
/// closed by then, the command is not started.
pub fn inherit(command: &mut Command, fd: RawFd) -> &mut Command {
    // SAFETY: between fork and exec one async-signal-safe system call is made, on a number: a descriptor
    // that is not open is an error of the call.
    unsafe {
        command.pre_exec(move || {
            let fd = BorrowedFd::borrow_raw(fd);
            Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?)
        })
    }
}

/// Makes the kernel tell a command's program, and all that this runs, that it has no such system call.
pub fn without_call(command: &mut Command, number: libc::c_long) -> &mut Command {
    #[cfg(target_arch = "x86_64")]
    const ARCH: u32 = 0xc000_003e;
    #[cfg(target_arch = "aarch64")]
    const ARCH: u32 = 0xc000_00b7;
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // struct seccomp_data begins with the number, then comes the architecture that numbers it.
    let filter = [
        step(LOAD, 0, 0, 4),
        step(EQUAL, 0, 3, ARCH),
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 1, number as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: between fork and exec one async-signal-safe system call is made; the filter lives, with its length,
    // across the call.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_ptr().cast_mut(),
            };
            let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, 0);
            match libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }
}

/// Makes a command's program run in the namespaces of another process: mounts and with them root and working directory,
/// network, IPC, UTS and cgroups (setns(2) with a pidfd, Linux 5.8); with no signal blocked.
pub fn enter(command: &mut Command, process: std::os::fd::OwnedFd) -> &mut Command {
    const KINDS: libc::c_int = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    // SAFETY: between fork and exec only async-signal-safe system calls are made, on a descriptor that the closure owns.
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

/// Takes a descriptor that this process was started with, and that is named to nobody else in it.
///
/// # Errors
/// There is no such descriptor.
pub fn take_descriptor(number: RawFd) -> io::Result<std::os::fd::OwnedFd> {
    // SAFETY: the number is only looked at; the call fails if it is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and the process that started us opened it for the caller alone.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(number) })
}

/// Makes a child a session of its own, with no signal blocked, that the kernel kills when the thread
/// that starts it ends.
pub fn tie_to_parent(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only async-signal-safe system calls are made; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            // The mask is inherited, and ours holds termination signals back.
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the line above.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// `struct sg_io_hdr` of `<scsi/sg.h>`, which libc does not have.
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

/// Asks a SCSI disk itself for a page of vital product data (INQUIRY with EVPD), past everything that the
/// kernel remembers of it. Waits at most as long as the limit.
///
/// # Errors
/// The errno of the ioctl, or EIO if the disk refuses.
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
    // SAFETY: the header is laid out as the kernel has it, and the three buffers that it points to live, with the
    // lengths that it gives, across the call, which is over when it returns.
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

/// Makes a child a session of its own, with no signal blocked and no descriptor of ours but its standard ones, that
/// outlives the process that starts it.
pub fn detach(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only async-signal-safe system calls are made; nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            // We may have been started with descriptors that are not marked so.
            let cloexec = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
            if libc::close_range(3, libc::c_uint::MAX, cloexec) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        })
    }
}

/// Lets a command's program inherit its standard descriptors and no other.
pub fn keep_standard(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec one async-signal-safe system call is made, on numbers.
    unsafe {
        command.pre_exec(|| {
            // We may have been started with descriptors that are not marked so.
            let cloexec = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
            if libc::close_range(3, libc::c_uint::MAX, cloexec) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_taken_away_is_unknown_and_others_are_not() {
        // Without CAP_SYS_ADMIN there are no filters.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let without = |number: libc::c_long| {
            let mut command = Command::new("nice");
            command.args(["-n", "1", "true"]);
            let output = without_call(&mut command, number).output().unwrap();
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        assert_eq!(without(libc::SYS_add_key), "");
        let unknown = without(libc::SYS_setpriority);
        assert!(unknown.contains("Function not implemented"), "{unknown}");
    }
}
