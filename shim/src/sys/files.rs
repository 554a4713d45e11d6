//! Files, directories and sockets.

use core::ffi::{c_char, c_int};

use super::constants::{CWD, PATH_FD, SYS_OPENAT2};
use super::errno::{Errno, Result, check};
use super::raw::{Fd, raw1, raw2, raw3, raw4, raw6};
use crate::text::{Text, ThinCStr, thin};

/// Opens a file for reading, without waiting for the other end of a FIFO.
pub fn open_read(path: ThinCStr<'_>) -> Result<Fd> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    openat(CWD, path, flags)
}

/// Opens a directory with `O_PATH`.
#[inline(never)]
pub fn open_dir(dir: c_int, path: ThinCStr<'_>) -> Result<Fd> {
    openat(dir, path, PATH_FD | libc::O_DIRECTORY)
}

#[inline(never)]
fn openat(dir: c_int, path: ThinCStr<'_>, flags: c_int) -> Result<Fd> {
    // SAFETY: the path ends with a NUL and outlives the call.
    check(unsafe {
        raw3(
            libc::SYS_openat,
            dir as usize,
            path.as_arg(),
            flags as usize,
        )
    })
    .map(Fd)
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

/// Reads once from a descriptor, and returns the number of bytes.
pub fn read(fd: &Fd, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes no more bytes than the buffer has.
    check(unsafe { raw3(libc::SYS_read, fd.0, into.as_mut_ptr() as usize, into.len()) })
}

/// Sends one datagram to a unix socket. Fails if that would block.
pub fn send(socket: &[u8], message: &[u8]) -> Result<()> {
    // SAFETY: all zero bytes are a valid struct sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if socket.len() >= address.sun_path.len() {
        return Err(Errno::NAMETOOLONG);
    }
    for (to, from) in address.sun_path.iter_mut().zip(socket) {
        *to = *from as c_char;
    }
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { raw3(libc::SYS_socket, libc::AF_UNIX as usize, kind as usize, 0) })?;
    let fd = Fd(fd);
    let to = &raw const address as usize;
    let (data, len) = (message.as_ptr() as usize, message.len());
    // SAFETY: the kernel reads `len` bytes of the message and one address.
    check(unsafe {
        raw6(
            libc::SYS_sendto,
            fd.0,
            data,
            len,
            flags as usize,
            to,
            size_of_val(&address),
        )
    })
    .map(drop)
}
