//! The one mount(2) of a helper in a sandbox, made by the launcher.
//!
//! The helper has no capability to mount. Its call waits in the kernel while a thread of the
//! launcher reads the arguments from the helper's memory, and mounts on the placeholder, whatever
//! target the call names. Type, flags and, for FUSE, options are those that any mount may have. The
//! arguments are copied before they are checked, so the helper cannot change them meanwhile.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, mount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::kinds::is_expected_type;
use crate::sys::seccomp::{self, PendingCall};

/// Longest text among the arguments of mount(2), in bytes. The kernel reads as much.
const MAX_TEXT: usize = 4096;

/// Time for the thread to end after the helper. It may be in a mount(2) that waits for a server.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Major and minor device number of `/dev/fuse`.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// Flags that a helper may give. Others would change existing mounts.
const FLAGS: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC)
    .union(MountFlags::NOATIME)
    .union(MountFlags::NODIRATIME)
    .union(MountFlags::RELATIME)
    .union(MountFlags::STRICTATIME)
    .union(MountFlags::LAZYTIME)
    .union(MountFlags::SYNCHRONOUS)
    .union(MountFlags::DIRSYNC)
    .union(MountFlags::SILENT);

/// Old mark of the flags of mount(2), `MS_MGC_VAL`, and the bits that it occupies.
const MAGIC: u32 = 0xc0ed_0000;
const MAGIC_BITS: u32 = 0xffff_0000;

/// Options of a FUSE mount that are handed on. spc itself adds the device and the owner.
const FUSE_FLAGS: [&str; 2] = ["allow_other", "default_permissions"];
const FUSE_NUMBERS: [&str; 1] = ["max_read"];

/// Mount that the helper may make.
pub struct MountCalls {
    pub placeholder: PathBuf,
    pub types: Vec<String>,
}

/// Running thread that serves the call.
pub struct Served {
    /// The thread ends when this is closed.
    _stop: OwnedFd,
    ended: Receiver<()>,
}

impl Served {
    /// Stops serving. A thread that is in mount(2) is left behind, and ends with this process.
    pub fn end(self) {
        let Self { _stop: stop, ended } = self;
        drop(stop);
        if ended.recv_timeout(END_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the mount of a helper that was stopped is still being made");
        }
    }
}

impl MountCalls {
    /// Receives the listener from the socket, and serves it until it ends.
    pub fn serve(self, socket: OwnedFd) -> io::Result<Served> {
        let (stop_reader, stop) = pipe_with(PipeFlags::CLOEXEC)?;
        let (end, ended) = sync_channel(1);
        std::thread::Builder::new()
            .name("mounts".into())
            .spawn(move || {
                if let Err(error) = self.serve_all(&socket, &stop_reader) {
                    tracing::debug!(%error, "the mount call of a helper cannot be served");
                }
                // The receiver may have given up.
                let _ = end.send(());
            })?;
        Ok(Served { _stop: stop, ended })
    }

    fn serve_all(&self, socket: &OwnedFd, stop: &OwnedFd) -> io::Result<()> {
        if !wait(socket, stop)? {
            return Ok(());
        }
        let listener = receive_fd(socket)?;
        let mut is_mounted = false;
        while wait(&listener, stop)? {
            let call = match seccomp::receive(&listener) {
                Ok(call) => call,
                // The caller was killed before its call was read.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let result = match is_mounted {
                true => Err(ErrorKind::PermissionDenied.into()),
                false => self.mount(&listener, &call),
            };
            tracing::debug!(result = ?result.as_ref().err(), "mount(2) of the helper");
            is_mounted |= result.is_ok();
            // The caller may have been killed meanwhile.
            let _ = seccomp::reply(&listener, &call, result);
        }
        Ok(())
    }

    fn mount(&self, listener: &OwnedFd, call: &PendingCall) -> io::Result<()> {
        let [source, _target, fs_type, flags, data, _] = call.args;
        let memory = File::open(format!("/proc/{}/mem", call.thread))?;
        if !seccomp::is_pending(listener, call) {
            return Err(ErrorKind::NotFound.into());
        }
        let text = |address: u64| read_text(&memory, address);
        let (source, fs_type, data) = (text(source)?, text(fs_type)?, text(data)?);
        let refused = || io::Error::from_raw_os_error(libc::EPERM);
        let name = fs_type.to_str().map_err(|_| refused())?;
        // A fuseblk mount opens the block device that its source names.
        if !is_expected_type(&self.types, name) || ["", "fuseblk"].contains(&name) {
            return Err(refused());
        }
        let mut flags = u32::try_from(flags).map_err(|_| refused())?;
        if flags & MAGIC_BITS == MAGIC {
            flags &= !MAGIC_BITS;
        }
        let flags = MountFlags::from_bits_retain(flags);
        if !FLAGS.contains(flags) {
            return Err(refused());
        }
        let is_fuse = name == "fuse" || name.starts_with("fuse.");
        let placeholder = self.placeholder.as_path();
        if !is_fuse {
            return Ok(mount(
                source.as_c_str(),
                placeholder,
                name,
                flags,
                data.as_c_str(),
            )?);
        }
        let options = data.to_str().map_err(|_| refused())?;
        let (fd, options) = fuse_options(options).ok_or_else(refused)?;
        let process = Pid::from_raw(call.thread).ok_or_else(refused)?;
        let process = pidfd_open(process, PidfdFlags::empty())?;
        let device = File::from(pidfd_getfd(&process, fd, PidfdGetfdFlags::empty())?);
        // Otherwise the process may be another one, to which the kernel gave the same id.
        if !seccomp::is_pending(listener, call) {
            return Err(ErrorKind::NotFound.into());
        }
        let found = device.metadata()?;
        if !found.file_type().is_char_device() || device_number(found.rdev()) != FUSE_DEVICE {
            return Err(refused());
        }
        let options = CString::new(format!("fd={},{options}", device.as_raw_fd()))?;
        Ok(mount(
            source.as_c_str(),
            placeholder,
            name,
            flags,
            options.as_c_str(),
        )?)
    }
}

fn device_number(device: u64) -> (u32, u32) {
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// Returns the number of the device's descriptor, and the options that are handed on. None if there
/// is an option that a FUSE program does not need.
fn fuse_options(options: &str) -> Option<(RawFd, String)> {
    let (mut fd, mut kept) = (None, vec!["rootmode=40000,user_id=0,group_id=0".to_owned()]);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let number = |value: &str| value.parse::<u32>().ok();
        match option.split_once('=') {
            Some(("fd", value)) => fd = value.parse().ok(),
            Some(("rootmode" | "user_id" | "group_id", _)) => {}
            Some((key, value)) if FUSE_NUMBERS.contains(&key) => {
                kept.push(format!("{key}={}", number(value)?));
            }
            None if FUSE_FLAGS.contains(&option) => kept.push(option.to_owned()),
            _ => return None,
        }
    }
    Some((fd?, kept.join(",")))
}

/// Waits until a descriptor is readable. Returns false if it ended, or if `stop` did.
fn wait(fd: &OwnedFd, stop: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut fds = [
            PollFd::new(fd, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
            Ok(_) => return Ok(fds[0].revents().contains(PollFlags::IN)),
        }
    }
}

/// Receives one file descriptor.
fn receive_fd(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let fds = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fds.ok_or_else(|| ErrorKind::UnexpectedEof.into())
}

/// Reads a text that ends with a NUL byte. A null pointer is an empty text.
fn read_text(memory: &File, address: u64) -> io::Result<CString> {
    let mut bytes = Vec::new();
    while address != 0 && bytes.len() < MAX_TEXT {
        let at = address + bytes.len() as u64;
        // The next page may not be readable.
        let mut part = vec![0; 4096 - (at % 4096) as usize];
        let length = memory.read_at(&mut part, at)?;
        if length == 0 {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let end = part[..length].iter().position(|byte| *byte == 0);
        bytes.extend_from_slice(&part[..end.unwrap_or(length)]);
        if end.is_some() {
            break;
        }
    }
    if bytes.len() >= MAX_TEXT {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(CString::new(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_options_that_fuse_programs_need_are_handed_on() {
        let base = "rootmode=40000,user_id=0,group_id=0";
        let own = "fd=7,rootmode=40000,user_id=0,group_id=0,allow_other,max_read=131072";
        assert_eq!(
            fuse_options(own),
            Some((7, format!("{base},allow_other,max_read=131072")))
        );
        for bad in [
            "",
            "rootmode=40000",
            "fd=7,allow_sys_admin_access",
            "fd=7,max_read=1\\,x",
            "fd=x",
            "fd=7,subtype=x",
        ] {
            assert_eq!(fuse_options(bad), None, "{bad}");
        }
    }

    #[test]
    fn text_is_read_across_pages_and_has_a_limit() {
        let memory = File::open("/proc/self/mem").unwrap();
        let text = CString::new(vec![b'x'; 4000]).unwrap();
        let address = text.as_ptr().addr() as u64;
        assert_eq!(read_text(&memory, address).unwrap(), text);
        assert_eq!(read_text(&memory, 0).unwrap(), CString::default());
        let long = CString::new(vec![b'x'; 9000]).unwrap();
        assert!(read_text(&memory, long.as_ptr().addr() as u64).is_err());
        assert!(read_text(&memory, 1).is_err());
    }
}
