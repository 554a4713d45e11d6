//! Files, directories and sockets.

use core::ffi::c_int;

use super::constants::{CWD, F_GETSIG, F_SETSIG, PATH_FD, SYS_OPENAT2};
use super::errno::{Errno, Result, check};
use super::raw::{Fd, close, raw1, raw2, raw3, raw4, raw6};
use crate::text::{Text, ThinCStr, thin};

/// Opens a file for reading, without waiting for the other end of a FIFO.
pub fn open_read(path: ThinCStr<'_>) -> Result<Fd> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    openat(CWD, path.as_arg(), flags)
}

/// Opens a directory with `O_PATH`.
#[inline(never)]
pub fn open_dir(dir: c_int, path: ThinCStr<'_>) -> Result<Fd> {
    openat(dir, path.as_arg(), PATH_FD | libc::O_DIRECTORY)
}

/// Opens a file. The address of the path may be invalid.
#[inline(never)]
pub fn openat(dir: c_int, path: usize, flags: c_int) -> Result<Fd> {
    // SAFETY: the kernel checks the path.
    check(unsafe { raw3(libc::SYS_openat, dir as usize, path, flags as usize) }).map(Fd)
}

/// Opens a file with `O_PATH` by openat2(2) (Linux 5.6), with these limits on resolving the path.
#[inline(never)]
pub fn pin(path: ThinCStr<'_>, flags: c_int, resolve: u64) -> Result<Fd> {
    let how = [(PATH_FD | flags) as u64, 0, resolve];
    let (path, size) = (path.as_arg(), size_of_val(&how));
    let how = how.as_ptr() as usize;
    // SAFETY: the path ends with a NUL; `how` has the layout of struct open_how and its size is
    // given.
    check(unsafe { raw4(SYS_OPENAT2, CWD as usize, path, how, size) }).map(Fd)
}

/// Changes the current directory to this descriptor.
#[inline(never)]
pub fn fchdir(dir: c_int) -> Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { raw1(libc::SYS_fchdir, dir as usize) }).map(drop)
}

/// Changes the current directory.
#[inline(never)]
pub fn chdir(path: ThinCStr<'_>) -> Result<()> {
    // SAFETY: the path ends with a NUL.
    check(unsafe { raw1(libc::SYS_chdir, path.as_arg()) }).map(drop)
}

/// Makes the current directory the root directory.
pub fn chroot_here() -> Result<()> {
    // SAFETY: the path ends with a NUL.
    check(unsafe { raw1(libc::SYS_chroot, thin(c".").as_arg()) }).map(drop)
}

/// Reads the path of the current directory. Fails with ENOENT if it is outside the root directory.
#[inline(never)]
pub fn getcwd(into: &mut Text) -> Result<()> {
    let buffer = into.buffer();
    // SAFETY: the kernel writes no more bytes than the buffer has.
    let len = check(unsafe { raw2(libc::SYS_getcwd, buffer.as_mut_ptr() as usize, buffer.len()) })?;
    // Outside the root directory, the kernel returns "(unreachable)/..." and the C library fails
    // with ENOENT.
    if buffer.first() != Some(&b'/') {
        return Err(Errno::NOENT);
    }
    into.truncate(len.saturating_sub(1));
    Ok(())
}

/// Reads the content of a symlink.
#[inline(never)]
pub fn readlink(dir: c_int, path: ThinCStr<'_>, into: &mut Text) -> Result<()> {
    let buffer = into.buffer();
    let (to, len) = (buffer.as_mut_ptr() as usize, buffer.len());
    // SAFETY: the path ends with a NUL; the kernel writes no more bytes than the buffer has.
    let len = check(unsafe { raw4(libc::SYS_readlinkat, dir as usize, path.as_arg(), to, len) })?;
    into.truncate(len);
    Ok(())
}

/// Makes a symlink.
pub fn symlink(content: ThinCStr<'_>, dir: c_int, path: ThinCStr<'_>) -> Result<()> {
    // SAFETY: both strings end with a NUL.
    check(unsafe {
        raw3(
            libc::SYS_symlinkat,
            content.as_arg(),
            dir as usize,
            path.as_arg(),
        )
    })
    .map(drop)
}

/// Removes a file. An error is ignored.
pub fn unlink(dir: c_int, path: ThinCStr<'_>) {
    // SAFETY: the path ends with a NUL.
    let _ = check(unsafe { raw3(libc::SYS_unlinkat, dir as usize, path.as_arg(), 0) });
}

/// Gives a descriptor the lowest free number. The descriptor is closed on exec if these flags of
/// open(2) have `O_CLOEXEC`.
pub fn lowest(fd: usize, flags: usize) -> Result<usize> {
    let command = match flags as c_int & libc::O_CLOEXEC {
        0 => libc::F_DUPFD,
        _ => libc::F_DUPFD_CLOEXEC,
    };
    // SAFETY: the call takes no pointers.
    let result = check(unsafe { raw3(libc::SYS_fcntl, fd, command as usize, 0) });
    close(fd as c_int);
    result
}

/// Sets the signal that an open file description sends for input and output. An error is ignored.
pub fn set_signal(fd: usize, signal: usize) {
    // SAFETY: the call takes no pointers.
    let _ = check(unsafe { raw3(libc::SYS_fcntl, fd, F_SETSIG, signal) });
}

/// Returns the signal that an open file description sends for input and output. An error gives no
/// valid number.
pub fn signal(fd: usize) -> usize {
    // SAFETY: the call takes no pointers.
    unsafe { raw2(libc::SYS_fcntl, fd, F_GETSIG) as usize }
}

/// Reads once from a descriptor, and returns the number of bytes.
pub fn read(fd: &Fd, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes no more bytes than the buffer has.
    check(unsafe { raw3(libc::SYS_read, fd.0, into.as_mut_ptr() as usize, into.len()) })
}

/// Sends one datagram to a unix socket. Fails if that would block. Overwrites `address`.
pub fn send(socket: &[u8], address: &mut Text, message: &[u8]) -> Result<()> {
    address.clear();
    for byte in (libc::AF_UNIX as u16).to_ne_bytes() {
        address.push_byte(byte);
    }
    address.push(socket);
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { raw3(libc::SYS_socket, libc::AF_UNIX as usize, kind as usize, 0) })?;
    let fd = Fd(fd);
    let (data, len) = (message.as_ptr() as usize, message.len());
    // SAFETY: the kernel reads the message and the address, and needs no NUL after a path.
    check(unsafe {
        raw6(
            libc::SYS_sendto,
            fd.0,
            data,
            len,
            flags as usize,
            address.as_thin().as_arg(),
            socket.len() + size_of::<libc::sa_family_t>(),
        )
    })
    .map(drop)
}
