//! Raw system calls, and the little of the C library that has to be shared with the caller.
//!
//! Raw, because the functions of the C library are what this library replaces, and may be replaced by others.

use core::arch::asm;
use core::ffi::{c_char, c_int, c_long, c_void};
use core::mem::MaybeUninit;
use core::num::NonZero;

use crate::text::{Name, Text, name};

/// An error number of the kernel. A whole word that is never 0, so that a result with one travels in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(NonZero<usize>);

impl Errno {
    /// 0 is no error number; it becomes 1, so that an error stays one.
    pub const fn new(number: usize) -> Self {
        match NonZero::new(number) {
            Some(number) => Self(number),
            None => Self(NonZero::<usize>::MIN),
        }
    }

    pub fn number(self) -> usize {
        self.0.get()
    }

    pub const ACCES: Self = Self::new(libc::EACCES as usize);
    pub const BADF: Self = Self::new(libc::EBADF as usize);
    pub const BADMSG: Self = Self::new(libc::EBADMSG as usize);
    pub const BUSY: Self = Self::new(libc::EBUSY as usize);
    pub const FAULT: Self = Self::new(libc::EFAULT as usize);
    pub const INTR: Self = Self::new(libc::EINTR as usize);
    pub const INVAL: Self = Self::new(libc::EINVAL as usize);
    pub const IO: Self = Self::new(libc::EIO as usize);
    pub const LOOP: Self = Self::new(libc::ELOOP as usize);
    pub const MFILE: Self = Self::new(libc::EMFILE as usize);
    pub const NAMETOOLONG: Self = Self::new(libc::ENAMETOOLONG as usize);
    pub const NOENT: Self = Self::new(libc::ENOENT as usize);
    pub const NOLINK: Self = Self::new(libc::ENOLINK as usize);
    pub const NOSYS: Self = Self::new(libc::ENOSYS as usize);
    pub const NOTDIR: Self = Self::new(libc::ENOTDIR as usize);
    pub const STALE: Self = Self::new(libc::ESTALE as usize);
}

pub type Result<T> = core::result::Result<T, Errno>;

// New mount API and its neighbours: the same numbers on every architecture, and absent from older headers.
pub const SYS_OPEN_TREE: u16 = 428;
pub const SYS_MOVE_MOUNT: u16 = 429;
pub const SYS_FSOPEN: u16 = 430;
pub const SYS_FSMOUNT: u16 = 432;
const SYS_FSCONFIG: c_long = 431;
const SYS_FSPICK: c_long = 433;
const SYS_PIDFD_OPEN: c_long = 434;
const SYS_OPENAT2: c_long = 437;
pub const SYS_MOUNT_SETATTR: u16 = 442;
const SYS_STATMOUNT: c_long = 457;
const STATMOUNT_FS_TYPE: u64 = 0x20;
/// Linux 6.13.
pub const STATMOUNT_FS_SUBTYPE: u64 = 0x100;

pub const OPEN_TREE_CLONE: u32 = 1;
pub const MOVE_MOUNT_F_SYMLINKS: u32 = 0x1;
pub const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
pub const MOVE_MOUNT_T_SYMLINKS: u32 = 0x10;
pub const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
pub const MOVE_MOUNT_BENEATH: u32 = 0x200;
pub const AT_EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;

pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;

pub const CWD: c_int = libc::AT_FDCWD;
const PATH_FD: c_int = libc::O_PATH | libc::O_CLOEXEC;

/// Raw system calls by their number of arguments.
macro_rules! raw_calls {
    ($($name:ident($($argument:ident $x86_64:tt $aarch64:tt),*);)*) => { $(
        /// # Safety
        /// As unsafe as the system call made.
        #[inline(always)]
        pub unsafe fn $name(number: c_long, $($argument: usize),*) -> isize {
            let result;
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the kernel changes rax, rcx and r11 only; the rest is the caller's promise.
            unsafe {
                asm!("syscall", inlateout("rax") number as isize => result, $(in($x86_64) $argument,)*
                    lateout("rcx") _, lateout("r11") _, options(nostack));
            }
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the kernel changes x0 only; the rest is the caller's promise.
            unsafe {
                asm!("svc 0", in("x8") number, $(in($aarch64) $argument,)* lateout("x0") result, options(nostack));
            }
            result
        }
    )* };
}

raw_calls! {
    raw0();
    raw1(a "rdi" "x0");
    raw2(a "rdi" "x0", b "rsi" "x1");
    raw3(a "rdi" "x0", b "rsi" "x1", c "rdx" "x2");
    raw4(a "rdi" "x0", b "rsi" "x1", c "rdx" "x2", d "r10" "x3");
    raw5(a "rdi" "x0", b "rsi" "x1", c "rdx" "x2", d "r10" "x3", e "r8" "x4");
    raw6(a "rdi" "x0", b "rsi" "x1", c "rdx" "x2", d "r10" "x3", e "r8" "x4", f "r9" "x5");
}

pub fn check(result: isize) -> Result<usize> {
    if result < 0 {
        Err(Errno::new(result.unsigned_abs()))
    } else {
        Ok(result as usize)
    }
}

/// An open file that is closed when it goes out of use.
pub struct Fd(usize);

impl Fd {
    /// Leaves it open.
    pub fn into_raw(self) -> c_int {
        core::mem::ManuallyDrop::new(self).raw()
    }

    pub fn raw(&self) -> c_int {
        self.0 as c_int
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        close(self.raw());
    }
}

/// Closes a descriptor that nothing uses any more.
#[inline(never)]
pub fn close(fd: c_int) {
    // SAFETY: takes no memory.
    let _ = check(unsafe { raw1(libc::SYS_close, fd as usize) });
}

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

/// What `statx` says about a file, without asking a file system that may be busy or gone.
#[derive(Clone, Copy)]
pub struct Stat {
    pub mask: u32,
    pub is_mount_root: bool,
    pub mount_id: u64,
    pub inode: Inode,
}

/// Device and inode number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inode {
    pub major: u32,
    pub minor: u32,
    pub number: u64,
}

/// With mask 0 the kernel answers alone: the mount id, and whether this is a mount's root. Even a FUSE file
/// system that refuses this user, or whose daemon is the caller, is not asked.
#[inline(never)]
pub fn statx(dir: c_int, path: Name<'_>, mask: u32) -> Result<Stat> {
    let flags = libc::AT_EMPTY_PATH
        | libc::AT_SYMLINK_NOFOLLOW
        | libc::AT_NO_AUTOMOUNT
        | libc::AT_STATX_DONT_SYNC;
    statx_flags(dir, path, mask, flags)
}

/// The id of the mount that a file is on. ENOSYS before Linux 5.8, where nothing could be proved.
#[inline(never)]
pub fn mount_id(dir: c_int, path: Name<'_>) -> Result<u64> {
    let stat = statx(dir, path, 0)?;
    if stat.mask & libc::STATX_MNT_ID != 0 {
        Ok(stat.mount_id)
    } else {
        Err(Errno::NOSYS)
    }
}

/// The unique id of the mount that a file is on; 0 where the kernel has none (before Linux 6.8), or the file
/// system does not let this user look.
#[inline(never)]
pub fn unique_id(dir: c_int, path: Name<'_>) -> u64 {
    match statx(dir, path, libc::STATX_MNT_ID_UNIQUE) {
        Ok(stat) if stat.mask & libc::STATX_MNT_ID_UNIQUE != 0 => stat.mount_id,
        _ => 0,
    }
}

/// [`statx`], following a symlink.
#[inline(never)]
pub fn statx_follow(path: Name<'_>, mask: u32) -> Result<Stat> {
    statx_flags(
        CWD,
        path,
        mask,
        libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC,
    )
}

#[inline(never)]
fn statx_flags(dir: c_int, path: Name<'_>, mask: u32, flags: c_int) -> Result<Stat> {
    let mut stat = MaybeUninit::<libc::statx>::uninit();
    let (flags, mask, into) = (flags as usize, mask as usize, stat.as_mut_ptr() as usize);
    // SAFETY: the path ends with NUL; the kernel fills in one struct statx.
    check(unsafe {
        raw5(
            libc::SYS_statx,
            dir as usize,
            path.word(),
            flags,
            mask,
            into,
        )
    })?;
    // SAFETY: filled in, without an error.
    let stat = unsafe { stat.assume_init() };
    Ok(Stat {
        mask: stat.stx_mask,
        is_mount_root: stat.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0,
        mount_id: stat.stx_mnt_id,
        inode: Inode {
            major: stat.stx_dev_major,
            minor: stat.stx_dev_minor,
            number: stat.stx_ino,
        },
    })
}

/// Asks statmount(2) for the type of a mount, by its unique id (Linux 6.8). The answer is a struct statmount.
pub fn statmount_kind(unique: u64, into: &mut [u8]) -> Result<usize> {
    let request = [24, unique, STATMOUNT_FS_TYPE | STATMOUNT_FS_SUBTYPE];
    let (request, to) = (request.as_ptr() as usize, into.as_mut_ptr() as usize);
    // SAFETY: the request has the layout of struct mnt_id_req and says its size; the kernel writes at most as many
    // bytes as it is given.
    check(unsafe { raw4(SYS_STATMOUNT, request, to, into.len(), 0) })
}

/// Also with a pidfd (Linux 5.8).
#[inline(never)]
pub fn enter_mount_namespace(namespace: Fd) -> Result<()> {
    // SAFETY: takes no memory.
    check(unsafe { raw2(libc::SYS_setns, namespace.0, libc::CLONE_NEWNS as usize) }).map(drop)
}

/// Reconfigures the file system behind a descriptor without changing any setting of it or of its mount. What is opened
/// for it stays open.
pub fn reconfigure(fd: c_int) -> Result<usize> {
    const FSPICK_EMPTY_PATH: usize = 8;
    const FSCONFIG_CMD_RECONFIGURE: usize = 7;
    let empty = name(c"").word();
    // SAFETY: the path is a string, and the other arguments are numbers.
    unsafe {
        let context = check(raw3(SYS_FSPICK, fd as usize, empty, FSPICK_EMPTY_PATH))?;
        check(raw5(
            SYS_FSCONFIG,
            context,
            FSCONFIG_CMD_RECONFIGURE,
            0,
            0,
            0,
        ))
    }
}

/// A handle of this process that needs no /proc (Linux 5.3).
pub fn pidfd_of_self() -> Result<Fd> {
    // SAFETY: takes no memory.
    check(unsafe { raw2(SYS_PIDFD_OPEN, pid() as usize, 0) }).map(Fd)
}

pub fn pid() -> c_int {
    // SAFETY: takes no memory.
    unsafe { raw0(libc::SYS_getpid) as c_int }
}

/// Names this thread, as ps(1) shows it.
pub fn set_mark(mark: [u64; 2]) {
    // SAFETY: the kernel reads a string of at most 16 bytes.
    let _ = unsafe {
        raw2(
            libc::SYS_prctl,
            libc::PR_SET_NAME as usize,
            mark.as_ptr() as usize,
        )
    };
}

/// Whether this thread's name begins like that.
pub fn has_mark(mark: u64) -> bool {
    let mut found = [0u64; 2];
    // SAFETY: the kernel writes 16 bytes.
    let _ = unsafe {
        raw2(
            libc::SYS_prctl,
            libc::PR_GET_NAME as usize,
            found.as_mut_ptr() as usize,
        )
    };
    found.first() == Some(&mark)
}

/// The kernel kills this process when the thread that made it ends.
pub fn die_with_parent() -> Result<()> {
    // SAFETY: takes no memory.
    check(unsafe {
        raw2(
            libc::SYS_prctl,
            libc::PR_SET_PDEATHSIG as usize,
            libc::SIGKILL as usize,
        )
    })
    .map(drop)
}

pub fn wait(pid: c_int) {
    // SAFETY: asks for no status, so nothing is written.
    while check(unsafe { raw4(libc::SYS_wait4, pid as usize, 0, libc::__WALL as usize, 0) })
        == Err(Errno::INTR)
    {}
}

/// All signals blocked in this thread until dropped.
pub struct SignalsBlocked(u64);

impl SignalsBlocked {
    pub fn new() -> Self {
        let all = u64::MAX;
        let mut old = 0u64;
        let how = libc::SIG_SETMASK as usize;
        let (all, into) = (&raw const all as usize, &raw mut old as usize);
        // SAFETY: the kernel's signal set is eight bytes on these architectures.
        let _ = check(unsafe { raw4(libc::SYS_rt_sigprocmask, how, all, into, 8) });
        Self(old)
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = check(unsafe {
            raw4(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK as usize,
                &raw const self.0 as usize,
                0,
                8,
            )
        });
    }
}

/// Maps `len` zero bytes.
#[inline(never)]
pub fn map(len: usize) -> Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    let open = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    check(unsafe { raw6(libc::SYS_mmap, 0, len, open, flags as usize, usize::MAX, 0) })
        .map(|base| base as *mut u8)
}

/// Takes all access to the first `len` bytes of a mapping away, if the kernel has room to note it.
///
/// # Safety
/// `base` is of [`map`], and nothing refers to these bytes.
pub unsafe fn guard(base: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    let _ = check(unsafe {
        raw3(
            libc::SYS_mprotect,
            base as usize,
            len,
            libc::PROT_NONE as usize,
        )
    });
}

/// # Safety
/// `base` and `len` are those of [`map`], and nothing refers to the memory any more.
pub unsafe fn unmap(base: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    let _ = check(unsafe { raw2(libc::SYS_munmap, base as usize, len) });
}

/// Copies the caller's string; a null pointer is an empty one. A bad pointer is an error here and not a crash, as
/// it would be in the kernel, and so is a string that the kernel would not take for its length.
#[inline(never)]
pub fn copy_string_or_none(from: *const c_char, into: &mut Text) -> Result<()> {
    const PAGE: usize = 4096;
    into.clear();
    let mut at = from.cast::<u8>();
    while !from.is_null() {
        if at == from.cast() || (at as usize).is_multiple_of(PAGE) {
            is_readable(at)?;
        }
        // SAFETY: the page was readable a moment ago; a caller that unmaps it meanwhile breaks its own promise.
        let byte = unsafe { at.read() };
        if byte == 0 {
            break;
        }
        if at as usize - from as usize >= libc::PATH_MAX as usize - 1 {
            return Err(Errno::NAMETOOLONG);
        }
        into.push_byte(byte);
        at = at.wrapping_add(1);
    }
    Ok(())
}

/// Whether the caller's string is empty, or there is none.
pub fn is_empty(from: *const c_char) -> Result<bool> {
    if from.is_null() {
        return Ok(true);
    }
    is_readable(from.cast())?;
    // SAFETY: readable a moment ago.
    Ok(unsafe { from.read() } == 0)
}

/// Reads the 64-bit word number `index` of the caller's structure.
pub fn copy_word(from: usize, index: usize) -> Result<u64> {
    let at = from.wrapping_add(8 * index) as *const u8;
    is_readable(at)?;
    // SAFETY: the word was readable a moment ago; the kernel's structures are aligned to it.
    Ok(unsafe { at.cast::<u64>().read_unaligned() })
}

/// The kernel reads a signal set before it looks at `how`: EFAULT or EINVAL, and nothing is changed.
#[inline(never)]
fn is_readable(at: *const u8) -> Result<()> {
    let word = at as usize & !7;
    // No set at all is not read, and no error.
    if word == 0 {
        return Err(Errno::FAULT);
    }
    // SAFETY: `how` is invalid, so the call has no effect.
    match check(unsafe { raw4(libc::SYS_rt_sigprocmask, usize::MAX, word, 0, 8) }) {
        Err(Errno::FAULT) => Err(Errno::FAULT),
        _ => Ok(()),
    }
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

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// This thread's errno.
#[inline(never)]
pub fn errno() -> c_int {
    // SAFETY: the C library's pointer is valid for this thread.
    unsafe { *__errno_location() }
}

#[inline(never)]
pub fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *__errno_location() = value }
}

/// The value of this variable, if there is one, and if the program does not run with more rights than who started it.
///
/// # Safety
/// The name is followed by a NUL, and the value is not used after the program may have changed it.
pub unsafe fn environment<'a>(name: &[u8]) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    let value = unsafe { secure_getenv(name.as_ptr().cast()) };
    if value.is_null() {
        return None;
    }
    let mut len = 0;
    // Not `CStr`, which would be one more import: hence also not a loop that the compiler knows by that name.
    // SAFETY: a string of the C library, up to its NUL.
    unsafe {
        while value.add(len).read_volatile() != 0 {
            len += 1;
        }
        Some(core::slice::from_raw_parts(value.cast(), len))
    }
}

/// `dlsym`, or 0. A weak reference: before glibc 2.34 it is in a library of its own, which not every program
/// has. The oldest version, so that the library loads into old ones.
pub fn dlsym_address() -> usize {
    let address: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads one entry of the offset table.
    unsafe {
        asm!(".symver dlsym, dlsym@GLIBC_2.2.5", ".weak dlsym", "mov {}, qword ptr [rip + dlsym@GOTPCREL]", out(reg) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads one entry of the offset table.
    unsafe {
        asm!(".symver dlsym, dlsym@GLIBC_2.17", ".weak dlsym", "adrp {0}, :got:dlsym", "ldr {0}, [{0}, :got_lo12:dlsym]", out(reg) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    address
}

/// Starts `child` as a process that shares this one's memory and has everything else of its own, on the stack
/// that ends at `stack_top`, a multiple of 16. Goes on when the child has done with the memory; it is to be waited for.
///
/// # Safety
/// All signals are blocked; the stack is big enough and of nobody else; `argument` is what `child` expects.
pub unsafe fn spawn(
    child: extern "C" fn(*mut c_void) -> c_int,
    stack_top: *mut u8,
    share_files: bool,
    argument: *mut c_void,
) -> Result<c_int> {
    let files = if share_files { libc::CLONE_FILES } else { 0 };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | files;
    let pid: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: only the child has the new stack, and it never comes back from there. The rest is the caller's promise.
    unsafe {
        asm!("syscall", "test rax, rax", "jne 2f",
            "xor ebp, ebp", "mov rdi, r9", "call r8", "mov edi, eax", "mov eax, {exit}", "syscall",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") libc::SYS_clone as isize => pid,
            in("rdi") flags as usize, in("rsi") stack_top, in("rdx") 0, in("r10") 0, in("r8") child, in("r9") argument,
            lateout("rcx") _, lateout("r11") _);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!("svc 0", "cbnz x0, 2f",
            "mov x29, 0", "mov x0, x6", "blr x5", "mov x8, {exit}", "svc 0",
            "2:",
            exit = const libc::SYS_exit,
            in("x8") libc::SYS_clone, inlateout("x0") flags as isize => pid,
            in("x1") stack_top, in("x2") 0, in("x3") 0, in("x4") 0, in("x5") child, in("x6") argument);
    }
    check(pid).map(|pid| pid as c_int)
}

#[cfg(test)]
mod tests {
    use super::*;

    // mount(8) asks for mount_setattr(2) without any attributes, to see whether there is such a call.
    #[test]
    fn what_cannot_be_read_is_an_error() {
        let words = [1_u64, 2];
        assert_eq!(copy_word(words.as_ptr() as usize, 1), Ok(2));
        for nowhere in [0_usize, 1, 4096] {
            assert_eq!(copy_word(nowhere, 0), Err(Errno::FAULT));
        }
    }
}
