//! Raw system calls, and the little of the C library that has to be shared with the caller.
//!
//! Raw, because the functions of the C library are what this library replaces, and may be replaced by others.

use core::arch::asm;
use core::ffi::{CStr, c_char, c_int, c_long, c_void};

/// An error number of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub c_int);

pub type Result<T> = core::result::Result<T, Errno>;

// New mount API and its neighbours: the same numbers on every architecture, and absent from older headers.
pub const SYS_OPEN_TREE: c_long = 428;
pub const SYS_MOVE_MOUNT: c_long = 429;
pub const SYS_FSOPEN: c_long = 430;
pub const SYS_FSMOUNT: c_long = 432;
const SYS_PIDFD_OPEN: c_long = 434;
const SYS_OPENAT2: c_long = 437;
pub const SYS_MOUNT_SETATTR: c_long = 442;
const SYS_STATMOUNT: c_long = 457;

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

/// # Safety
/// As unsafe as the system call made.
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn raw(number: c_long, a: [usize; 6]) -> isize {
    let [a1, a2, a3, a4, a5, a6] = a;
    let result;
    // SAFETY: the kernel's convention: it changes rax, rcx and r11 only; the rest is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a1, in("rsi") a2, in("rdx") a3,
            in("r10") a4, in("r8") a5, in("r9") a6, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// # Safety
/// As unsafe as the system call made.
#[cfg(target_arch = "aarch64")]
#[inline]
pub unsafe fn raw(number: c_long, a: [usize; 6]) -> isize {
    let [a1, a2, a3, a4, a5, a6] = a;
    let result;
    // SAFETY: the kernel's convention: it changes x0 only; the rest is the caller's promise.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a1 => result, in("x1") a2, in("x2") a3, in("x3") a4,
            in("x4") a5, in("x5") a6, options(nostack));
    }
    result
}

fn check(result: isize) -> Result<usize> {
    if (-4095..0).contains(&result) {
        Err(Errno(-result as c_int))
    } else {
        Ok(result as usize)
    }
}

/// # Safety
/// As unsafe as the system call made.
unsafe fn call(number: c_long, a: [usize; 6]) -> Result<usize> {
    // SAFETY: the caller's promise.
    check(unsafe { raw(number, a) })
}

/// An open file that is closed when it goes out of use.
pub struct Fd(c_int);

impl Fd {
    pub fn raw(&self) -> c_int {
        self.0
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// Closes a descriptor that nothing uses any more.
pub fn close(fd: c_int) {
    // SAFETY: takes no memory.
    let _ = unsafe { call(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

fn path_arg(path: &CStr) -> usize {
    path.as_ptr() as usize
}

pub fn open_read(path: &CStr) -> Result<Fd> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    openat(CWD, path, flags)
}

/// A descriptor of a directory that only names it.
pub fn open_dir(dir: c_int, path: &CStr) -> Result<Fd> {
    openat(dir, path, PATH_FD | libc::O_DIRECTORY)
}

fn openat(dir: c_int, path: &CStr, flags: c_int) -> Result<Fd> {
    let args = [dir as usize, path_arg(path), flags as usize, 0, 0, 0];
    // SAFETY: the path ends with NUL and outlives the call.
    unsafe { call(libc::SYS_openat, args) }.map(|fd| Fd(fd as c_int))
}

/// Names a file with `openat2`, which refuses what `resolve` says (Linux 5.6).
pub fn pin(path: &CStr, directory: bool, resolve: u64) -> Result<Fd> {
    let flags = PATH_FD | if directory { libc::O_DIRECTORY } else { 0 };
    let how = [flags as u64, 0, resolve];
    let args = [
        CWD as usize,
        path_arg(path),
        how.as_ptr() as usize,
        size_of_val(&how),
        0,
        0,
    ];
    // SAFETY: the path ends with NUL; `how` has the layout of struct open_how and its size is given.
    unsafe { call(SYS_OPENAT2, args) }.map(|fd| Fd(fd as c_int))
}

pub fn fchdir(dir: c_int) -> Result<()> {
    // SAFETY: takes no memory.
    unsafe { call(libc::SYS_fchdir, [dir as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Makes the current directory the root.
pub fn chroot_here() -> Result<()> {
    // SAFETY: the path ends with NUL.
    unsafe { call(libc::SYS_chroot, [path_arg(c"."), 0, 0, 0, 0, 0]) }.map(drop)
}

/// Length of the current directory's path, without NUL.
pub fn getcwd(into: &mut [u8]) -> Result<usize> {
    let args = [into.as_mut_ptr() as usize, into.len(), 0, 0, 0, 0];
    // SAFETY: the kernel writes at most as many bytes as it is given.
    let len = unsafe { call(libc::SYS_getcwd, args) }?;
    // Outside the root the kernel answers "(unreachable)/..."; the C library calls that ENOENT.
    match into.first() {
        Some(b'/') => Ok(len.saturating_sub(1)),
        _ => Err(Errno(libc::ENOENT)),
    }
}

pub fn readlink(dir: c_int, path: &CStr, into: &mut [u8]) -> Result<usize> {
    let args = [
        dir as usize,
        path_arg(path),
        into.as_mut_ptr() as usize,
        into.len(),
        0,
        0,
    ];
    // SAFETY: the path ends with NUL; the kernel writes at most as many bytes as it is given.
    unsafe { call(libc::SYS_readlinkat, args) }
}

pub fn symlink(content: &CStr, dir: c_int, path: &CStr) -> Result<()> {
    let args = [path_arg(content), dir as usize, path_arg(path), 0, 0, 0];
    // SAFETY: both strings end with NUL.
    unsafe { call(libc::SYS_symlinkat, args) }.map(drop)
}

pub fn unlink(dir: c_int, path: &CStr) -> Result<()> {
    // SAFETY: the path ends with NUL.
    unsafe {
        call(
            libc::SYS_unlinkat,
            [dir as usize, path_arg(path), 0, 0, 0, 0],
        )
    }
    .map(drop)
}

pub fn read(fd: &Fd, into: &mut [u8]) -> Result<usize> {
    let args = [
        fd.0 as usize,
        into.as_mut_ptr() as usize,
        into.len(),
        0,
        0,
        0,
    ];
    // SAFETY: the kernel writes at most as many bytes as it is given.
    unsafe { call(libc::SYS_read, args) }
}

/// What `statx` says about a file, without asking a file system that may be busy or gone.
pub struct Stat(libc::statx);

impl Stat {
    pub fn mount_id(&self) -> u64 {
        self.0.stx_mnt_id
    }

    pub fn has(&self, mask: u32) -> bool {
        self.0.stx_mask & mask == mask
    }

    pub fn is_mount_root(&self) -> bool {
        self.0.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0
    }

    pub fn inode(&self) -> (u32, u32, u64) {
        (self.0.stx_dev_major, self.0.stx_dev_minor, self.0.stx_ino)
    }
}

/// With mask 0 the kernel answers alone: the mount id, and whether this is a mount's root. Even a FUSE file
/// system that refuses this user, or whose daemon is the caller, is not asked.
pub fn statx(dir: c_int, path: &CStr, mask: u32) -> Result<Stat> {
    let flags = libc::AT_EMPTY_PATH
        | libc::AT_SYMLINK_NOFOLLOW
        | libc::AT_NO_AUTOMOUNT
        | libc::AT_STATX_DONT_SYNC;
    statx_flags(dir, path, mask, flags)
}

/// [`statx`], following a symlink.
pub fn statx_follow(path: &CStr, mask: u32) -> Result<Stat> {
    statx_flags(
        CWD,
        path,
        mask,
        libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC,
    )
}

fn statx_flags(dir: c_int, path: &CStr, mask: u32, flags: c_int) -> Result<Stat> {
    // SAFETY: all zero bytes are a valid struct statx.
    let mut stat = Stat(unsafe { core::mem::zeroed() });
    let into = &raw mut stat.0;
    let args = [
        dir as usize,
        path_arg(path),
        flags as usize,
        mask as usize,
        into as usize,
        0,
    ];
    // SAFETY: the path ends with NUL; the kernel fills in one struct statx.
    unsafe { call(libc::SYS_statx, args) }?;
    Ok(stat)
}

/// The statmount answer's fixed part: 64 words, then strings.
pub type StatmountBuffer = [u64; 128];
pub const STATMOUNT_FS_TYPE: u64 = 0x20;
pub const STATMOUNT_FS_SUBTYPE: u64 = 0x100;

/// Asks the kernel about one mount of this namespace by its unique id (Linux 6.8).
pub fn statmount(unique_id: u64, mask: u64, into: &mut StatmountBuffer) -> Result<()> {
    let request = [24u64, unique_id, mask];
    let size = size_of_val(into);
    let args = [
        request.as_ptr() as usize,
        into.as_mut_ptr() as usize,
        size,
        0,
        0,
        0,
    ];
    // SAFETY: the request has the layout of struct mnt_id_req and begins with its size (24, spare 0); the
    // kernel writes at most `size` bytes.
    unsafe { call(SYS_STATMOUNT, args) }.map(drop)
}

/// Type and subtype in a statmount answer; empty where the kernel did not say.
pub fn statmount_types(answer: &StatmountBuffer) -> (&[u8], &[u8]) {
    const STRINGS: usize = 512;
    // SAFETY: any memory may be read as bytes.
    let bytes =
        unsafe { core::slice::from_raw_parts(answer.as_ptr().cast::<u8>(), size_of_val(answer)) };
    let [_, mask, ..] = *answer;
    let string = |flag, at: usize| {
        let offset = match bytes.get(at..at + 4) {
            Some(&[a, b, c, d]) if mask & flag != 0 => u32::from_ne_bytes([a, b, c, d]) as usize,
            _ => return [].as_slice(),
        };
        let text = bytes.get(STRINGS + offset..).unwrap_or(&[]);
        crate::text::split_once(text, 0).0
    };
    (
        string(STATMOUNT_FS_TYPE, 36),
        string(STATMOUNT_FS_SUBTYPE, 120),
    )
}

pub fn enter_mount_namespace(namespace: &Fd) -> Result<()> {
    let args = [namespace.0 as usize, libc::CLONE_NEWNS as usize, 0, 0, 0, 0];
    // SAFETY: takes no memory.
    unsafe { call(libc::SYS_setns, args) }.map(drop)
}

/// A namespace of this process by its ioctl number on a pidfd (Linux 6.11), for when /proc is somebody else's.
pub fn own_namespace(ioctl: u32) -> Result<Fd> {
    // SAFETY: take no memory.
    unsafe {
        let pidfd = Fd(call(SYS_PIDFD_OPEN, [pid() as usize, 0, 0, 0, 0, 0])? as c_int);
        let fd = call(
            libc::SYS_ioctl,
            [pidfd.0 as usize, ioctl as usize, 0, 0, 0, 0],
        )?;
        Ok(Fd(fd as c_int))
    }
}

pub const PIDFD_GET_MNT_NAMESPACE: u32 = 0xff03;
pub const PIDFD_GET_PID_NAMESPACE: u32 = 0xff05;
pub const PIDFD_GET_PID_FOR_CHILDREN_NAMESPACE: u32 = 0xff06;

pub fn pid() -> c_int {
    // SAFETY: takes no memory.
    unsafe { raw(libc::SYS_getpid, [0; 6]) as c_int }
}

pub fn parent_pid() -> c_int {
    // SAFETY: takes no memory.
    unsafe { raw(libc::SYS_getppid, [0; 6]) as c_int }
}

/// The kernel kills this process when the thread that made it ends.
pub fn die_with_parent() -> Result<()> {
    let args = [
        libc::PR_SET_PDEATHSIG as usize,
        libc::SIGKILL as usize,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: takes no memory.
    unsafe { call(libc::SYS_prctl, args) }.map(drop)
}

pub fn wait(pid: c_int) {
    let args = [pid as usize, 0, libc::__WALL as usize, 0, 0, 0];
    // SAFETY: asks for no status, so nothing is written.
    while unsafe { call(libc::SYS_wait4, args) } == Err(Errno(libc::EINTR)) {}
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
        let _ = unsafe { call(libc::SYS_rt_sigprocmask, [how, all, into, 8, 0, 0]) };
        Self(old)
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        let args = [
            libc::SIG_SETMASK as usize,
            &raw const self.0 as usize,
            0,
            8,
            0,
            0,
        ];
        // SAFETY: as above.
        let _ = unsafe { call(libc::SYS_rt_sigprocmask, args) };
    }
}

/// Maps `len` zero bytes, the first `guard` of them without access.
pub fn map(len: usize, guard: usize) -> Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    let none = libc::PROT_NONE as usize;
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let base = unsafe {
        call(
            libc::SYS_mmap,
            [0, len, none, flags as usize, usize::MAX, 0],
        )
    }?;
    let open = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    // SAFETY: within the mapping made above.
    if let Err(error) = unsafe {
        call(
            libc::SYS_mprotect,
            [base + guard, len - guard, open, 0, 0, 0],
        )
    } {
        // SAFETY: as above.
        unsafe { unmap(base as *mut u8, len) };
        return Err(error);
    }
    Ok(base as *mut u8)
}

/// # Safety
/// `base` and `len` are those of [`map`], and nothing refers to the memory any more.
pub unsafe fn unmap(base: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    let _ = unsafe { call(libc::SYS_munmap, [base as usize, len, 0, 0, 0, 0]) };
}

/// Copies the caller's string. A bad pointer is an error here and not a crash, as it would be in the kernel.
/// What does not fit into `into` is left out.
pub fn copy_string(from: *const c_char, into: &mut [u8]) -> Result<usize> {
    const PAGE: usize = 4096;
    let mut at = from.cast::<u8>();
    for (len, to) in into.iter_mut().enumerate() {
        if len == 0 || (at as usize).is_multiple_of(PAGE) {
            is_readable(at)?;
        }
        // SAFETY: the page was readable a moment ago; a caller that unmaps it meanwhile breaks its own promise.
        *to = unsafe { at.read() };
        if *to == 0 {
            return Ok(len);
        }
        at = at.wrapping_add(1);
    }
    Ok(into.len())
}

/// Reads the 64-bit word number `index` of the caller's structure.
pub fn copy_word(from: *const c_void, index: usize) -> Result<u64> {
    let at = from.cast::<u8>().wrapping_add(8 * index);
    is_readable(at)?;
    is_readable(at.wrapping_add(7))?;
    // SAFETY: all eight bytes were readable a moment ago.
    Ok(unsafe { at.cast::<u64>().read_unaligned() })
}

/// The kernel reads a signal set before it looks at `how`: EFAULT or EINVAL, and nothing is changed.
fn is_readable(at: *const u8) -> Result<()> {
    let word = at as usize & !7;
    // SAFETY: `how` is invalid, so the call has no effect.
    match unsafe { call(libc::SYS_rt_sigprocmask, [usize::MAX, word, 0, 8, 0, 0]) } {
        Err(Errno(libc::EFAULT)) => Err(Errno(libc::EFAULT)),
        _ => Ok(()),
    }
}

/// Sends one datagram to a unix socket, if that is possible at once.
pub fn send(socket: &[u8], message: &[u8]) -> Result<()> {
    // SAFETY: all zero bytes are a valid struct sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if socket.len() >= address.sun_path.len() {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(socket) {
        *to = *from as c_char;
    }
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: takes no memory.
    let fd = unsafe {
        call(
            libc::SYS_socket,
            [libc::AF_UNIX as usize, kind as usize, 0, 0, 0, 0],
        )
    }?;
    let fd = Fd(fd as c_int);
    let to = &raw const address as usize;
    let (data, len) = (message.as_ptr() as usize, message.len());
    let args = [
        fd.0 as usize,
        data,
        len,
        flags as usize,
        to,
        size_of_val(&address),
    ];
    // SAFETY: the kernel reads `len` bytes of the message and one address.
    unsafe { call(libc::SYS_sendto, args) }.map(drop)
}

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
    static environ: *const *const c_char;
}

/// This thread's errno.
pub fn errno() -> c_int {
    // SAFETY: the C library's pointer is valid for this thread.
    unsafe { *__errno_location() }
}

pub fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *__errno_location() = value }
}

/// Whether the C library has set up the environment; constructors of other libraries can run earlier.
pub fn has_environment() -> bool {
    // SAFETY: a word that the C library owns; read once.
    !unsafe { environ }.is_null()
}

/// Calls `each` with the name and the value of every variable that matters here.
pub fn environment(mut each: impl FnMut(&[u8], &[u8])) {
    // SAFETY: as above.
    let mut at = unsafe { environ };
    if at.is_null() {
        return;
    }
    loop {
        // SAFETY: the list ends with a null pointer, and has not ended yet.
        let entry = unsafe { *at };
        if entry.is_null() {
            return;
        }
        // SAFETY: every entry is a string.
        let entry = unsafe { CStr::from_ptr(entry) }.to_bytes();
        if entry.starts_with(b"SPC_") || entry.starts_with(b"sysimage=") {
            let (name, value) = crate::text::split_once(entry, b'=');
            each(name, value.unwrap_or(&[]));
        }
        at = at.wrapping_add(1);
    }
}

/// Whether the program runs with more rights than who started it.
pub fn is_privileged_program() -> bool {
    // SAFETY: reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// `dlsym`, or 0. A weak reference: before glibc 2.34 it is in a library of its own, which not every program
/// has. The oldest version, so that the library loads into old ones.
pub fn dlsym_address() -> usize {
    let address: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads one entry of the offset table.
    unsafe {
        asm!(".weak dlsym", "mov {}, qword ptr [rip + dlsym@GOTPCREL]", out(reg) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads one entry of the offset table.
    unsafe {
        asm!(".weak dlsym", "adrp {0}, :got:dlsym", "ldr {0}, [{0}, :got_lo12:dlsym]", out(reg) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    address
}

/// Starts `child` as a process that shares this one's memory and has everything else of its own, on the stack
/// that ends at `stack_top`, and waits until it has ended.
///
/// # Safety
/// All signals are blocked; the stack is big enough and of nobody else; `argument` is what `child` expects.
pub unsafe fn spawn_and_wait(
    child: extern "C" fn(*mut c_void) -> c_int,
    stack_top: *mut u8,
    share_files: bool,
    argument: *mut c_void,
) -> Result<()> {
    let files = if share_files { libc::CLONE_FILES } else { 0 };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | files;
    // SAFETY: the caller's promise.
    let pid = unsafe { libc::clone(child, stack_top.cast(), flags, argument) };
    if pid < 0 {
        return Err(Errno(errno()));
    }
    wait(pid);
    Ok(())
}
