//! Files, directories and sockets.

use core::ffi::{c_char, c_int};

use super::constants::{CWD, PATH_FD, SYS_OPENAT2};
use super::errno::{Errno, Result, check};
use super::raw::{Fd, raw1, raw2, raw3, raw4, raw6};
use crate::text::{Name, Text, name};

pub fn open_read(path: Name<'_>) -> Result<Fd> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    openat(CWD, path, flags)
}

/// A descriptor of a directory that only names it.
#[inline(never)]
pub fn open_dir(dir: c_int, path: Name<'_>) -> Result<Fd> {
    openat(dir, path, PATH_FD | libc::O_DIRECTORY)
}

#[inline(never)]
fn openat(dir: c_int, path: Name<'_>, flags: c_int) -> Result<Fd> {
    // SAFETY: the path ends with NUL and outlives the call.
    check(unsafe { raw3(libc::SYS_openat, dir as usize, path.word(), flags as usize) }).map(Fd)
}

/// Names a file with `openat2`, which refuses what `resolve` says (Linux 5.6).
#[inline(never)]
pub fn pin(path: Name<'_>, flags: c_int, resolve: u64) -> Result<Fd> {
    let how = [(PATH_FD | flags) as u64, 0, resolve];
    let (path, size) = (path.word(), size_of_val(&how));
    let how = how.as_ptr() as usize;
    // SAFETY: the path ends with NUL; `how` has the layout of struct open_how and its size is given.
    check(unsafe { raw4(SYS_OPENAT2, CWD as usize, path, how, size) }).map(Fd)
}

#[inline(never)]
pub fn fchdir(dir: c_int) -> Result<()> {
    // SAFETY: takes no memory.
    check(unsafe { raw1(libc::SYS_fchdir, dir as usize) }).map(drop)
}

#[inline(never)]
pub fn chdir(path: Name<'_>) -> Result<()> {
    // SAFETY: the path ends with NUL.
    check(unsafe { raw1(libc::SYS_chdir, path.word()) }).map(drop)
}

/// Makes the current directory the root.
pub fn chroot_here() -> Result<()> {
    // SAFETY: the path ends with NUL.
    check(unsafe { raw1(libc::SYS_chroot, name(c".").word()) }).map(drop)
}

/// The current directory's path.
#[inline(never)]
pub fn getcwd(into: &mut Text) -> Result<()> {
    let room = into.room();
    // SAFETY: the kernel writes at most as many bytes as it is given.
    let len = check(unsafe { raw2(libc::SYS_getcwd, room.as_mut_ptr() as usize, room.len()) })?;
    // Outside the root the kernel answers "(unreachable)/..."; the C library calls that ENOENT.
    if room.first() != Some(&b'/') {
        return Err(Errno::NOENT);
    }
    into.truncate(len.saturating_sub(1));
    Ok(())
}

#[inline(never)]
pub fn readlink(dir: c_int, path: Name<'_>, into: &mut Text) -> Result<()> {
    let room = into.room();
    let (to, len) = (room.as_mut_ptr() as usize, room.len());
    // SAFETY: the path ends with NUL; the kernel writes at most as many bytes as it is given.
    let len = check(unsafe { raw4(libc::SYS_readlinkat, dir as usize, path.word(), to, len) })?;
    into.truncate(len);
    Ok(())
}

pub fn symlink(content: Name<'_>, dir: c_int, path: Name<'_>) -> Result<()> {
    // SAFETY: both strings end with NUL.
    check(unsafe {
        raw3(
            libc::SYS_symlinkat,
            content.word(),
            dir as usize,
            path.word(),
        )
    })
    .map(drop)
}

pub fn unlink(dir: c_int, path: Name<'_>) {
    // SAFETY: the path ends with NUL.
    let _ = check(unsafe { raw3(libc::SYS_unlinkat, dir as usize, path.word(), 0) });
}

pub fn read(fd: &Fd, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most as many bytes as it is given.
    check(unsafe { raw3(libc::SYS_read, fd.0, into.as_mut_ptr() as usize, into.len()) })
}

/// Sends one datagram to a unix socket, if that is possible at once.
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
    // SAFETY: takes no memory.
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
