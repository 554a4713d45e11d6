//! Redirection of one call by a child process that shares the caller's memory.
//!
//! The child has its own root, current directory and copy of the descriptor table. It can therefore
//! enter the host's mount namespace even if the caller has threads, and nothing has to be restored
//! afterwards. The child also decides whether to redirect the call: it can resolve a path without
//! changing the caller's current directory.

use core::ffi::{c_char, c_int, c_void};

use crate::host;
use crate::outcome::{Decision, Destination, Step};
use crate::policy::{self, Change, Reason, Redirect, Verdict};
use crate::redirect;
use crate::redirected_call::RedirectedCall;
use crate::report;
use crate::scratch::{Buffers, Stack};
use crate::symbol::Symbol;
use crate::sys::{self, CWD, Errno, Result};
use crate::text::thin;
use crate::walk;

/// Start of the child's thread name, which no program has.
///
/// A library below this one may make the real call through a hooked symbol. The name shows that the
/// caller is the child, whose calls are never redirected again.
pub const THREAD_NAME: u64 = u64::from_le_bytes(*b"\x1bspc-cro");
const THREAD_NAME_END: u64 = u64::from_le_bytes(*b"ssing\0\0\0");

/// Runs the child and waits for its end.
///
/// A call that is not left to the caller is reported while the kernel cleans up the child.
pub fn run(stack: Stack, call: &mut RedirectedCall<'_>) {
    // The outcome if the child is killed before it records another one.
    call.fail(Step::Call, Errno::IO);
    let share_files = matches!(call.change, Change::Handle | Change::Copy);
    let signals = sys::SignalsBlocked::new();
    let argument = (&raw mut *call).cast::<c_void>();
    // SAFETY: signals are blocked, nothing else uses the stack, and the argument is a
    // `RedirectedCall`.
    let child = unsafe { sys::spawn(child, stack.top(), share_files, argument) };
    if let Err(error) = child {
        call.fail(Step::Call, error);
    }
    if call.decision != Decision::Local {
        report::send(call);
    }
    if let Ok(child) = child {
        sys::wait(child);
    }
    drop(signals);
}

extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `run` passes a `RedirectedCall` and does not touch it until the child has released
    // the memory.
    let call = unsafe { &mut *argument.cast::<RedirectedCall<'_>>() };
    sys::set_thread_name([THREAD_NAME, THREAD_NAME_END]);
    call.result = sys::die_with_parent().and_then(|()| redirect_or_leave(call));
    if call.result.is_ok() && call.decision != Decision::Local {
        call.decision = Decision::Redirected;
    }
    sys::close(call.redirects_dir);
    0
}

/// Makes the call on the host, or sets [`Decision::Local`] if the call is the caller's to make.
fn redirect_or_leave(call: &mut RedirectedCall<'_>) -> Result<usize> {
    call.step = Step::Target;
    // Resolving the target changes the current directory, and a relative source starts at the old
    // one. The descriptor is closed when the child exits: these calls share no descriptor table.
    let mut origin = -1;
    if matches!(call.change, Change::Bind | Change::Move) {
        origin = sys::open_dir(CWD, thin(c"."))?.into_raw();
    }
    find_destination(call)?;
    if call.destination == Destination::Host {
        if call.change == Change::Unmount && call.redirects_dir >= 0 {
            redirect::read_mount_ids(call.redirects_dir, call.buffers)?;
        }
        translate_source(call, origin)?;
        call.enter_host()?;
        return host::make(call);
    }
    if call.destination != Destination::Local && host::has_redirected_mount(call) == Ok(true) {
        call.reason = Reason::Type;
        return host::unmount_here(call);
    }
    call.decision = Decision::Local;
    Ok(0)
}

/// Resolves the target and sets destination and reason of the call.
#[inline(never)]
fn find_destination(call: &mut RedirectedCall<'_>) -> Result<()> {
    call.destination = Destination::Host;
    call.reason = Reason::Descriptor;
    if call.fd_on_host && call.intercepted.symbol == Symbol::MountSetattr {
        return Ok(());
    }
    let arg = call.intercepted.path_arg();
    let demanded = call.reason_for_any_target();
    let Buffers {
        path,
        name,
        target,
        host,
        redirect_name,
        line,
        ..
    } = &mut *call.buffers;
    call.reason = Reason::Unresolved;
    match walk::canonical(path, name, arg.dir, arg.follow, call.pid, target) {
        Err(error) if demanded.is_none() && kernel_fails_too(error) => {
            call.destination = Destination::Local;
            return Ok(());
        }
        result => result?,
    }
    if let Some((dir, id)) = policy::placeholder_id(call.config, target.as_bytes()) {
        line.set(dir);
        redirect_name.set(id);
        call.reason = Reason::Redirect;
        call.redirects_dir = redirect::read(redirect_name, line)?;
        if call.redirects_dir >= 0 {
            match policy::parse_redirect(line.as_bytes()) {
                Some(Redirect::Local) => call.destination = Destination::Local,
                Some(Redirect::ToHost { inode, path }) => {
                    host.set(path);
                    call.inode = inode;
                }
                None => return Err(Errno::BADMSG),
            }
            return Ok(());
        }
    }
    let (destination, reason, path) =
        match policy::decide(call.config, call.change, demanded, target.as_bytes()) {
            Verdict::ToHost { reason, host } => (Destination::Host, reason, host),
            Verdict::HostIfMounted { host, mapped: true } => {
                (Destination::HostThenLocal, Reason::NotSelected, host)
            }
            Verdict::HostIfMounted {
                host,
                mapped: false,
            } => (Destination::LocalThenHost, Reason::NotSelected, host),
            Verdict::Local => (Destination::Local, Reason::NotSelected, [].as_slice()),
        };
    (call.destination, call.reason) = (destination, reason);
    host.set(path);
    Ok(())
}

/// Whether the real call would fail with the same error, so that no mount can end up in the
/// container by mistake.
fn kernel_fails_too(error: Errno) -> bool {
    matches!(
        error,
        Errno::ACCES
            | Errno::BADF
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::NOENT
            | Errno::NOTDIR
    )
}

/// Finds the host path of a source that is a path.
fn translate_source(call: &mut RedirectedCall<'_>, origin: c_int) -> Result<()> {
    let [a, b, _, _, flags] = call.intercepted.args;
    let (dir, from, follow) = match call.intercepted.symbol {
        Symbol::Mount if a != 0 => (CWD, a, true),
        Symbol::MoveMount if call.change == Change::Move && !call.fd_on_host => (
            a as c_int,
            b,
            flags as u32 & sys::MOVE_MOUNT_F_SYMLINKS != 0,
        ),
        _ => return Ok(()),
    };
    let Buffers {
        path,
        name,
        source,
        fs_type,
        ..
    } = &mut *call.buffers;
    sys::copy_string(from as *const c_char, path)?;
    if origin >= 0 {
        sys::fchdir(origin)?;
        walk::canonical(path, name, dir, follow, call.pid, source)?;
        path.copy(source);
    } else if policy::is_fuse(fs_type.as_bytes()) {
        return Ok(());
    }
    if let Some(mapped) = policy::to_host_path(call.config, path.as_bytes()) {
        source.set(mapped);
    }
    Ok(())
}
