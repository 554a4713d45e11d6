//! Redirection of one call by a child process that shares the caller's memory.
//!
//! The child has its own root, current directory and copy of the descriptor table. It can therefore
//! enter the host's mount namespace even if the caller has threads, and nothing has to be restored
//! afterwards. The child also decides whether to redirect the call: it can resolve a path without
//! changing the caller's current directory.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::call::PathArg;
use crate::descriptors::{self, Origin};
use crate::host;
use crate::outcome::{Decision, Destination, Step};
use crate::policy::{self, Change, Reason, Redirect, Verdict};
use crate::redirect;
use crate::redirected_call::RedirectedCall;
use crate::report;
use crate::scratch::{Buffers, Stack};
use crate::symbol::Symbol;
use crate::sys::{self, CWD, Errno, Result, Stat};
use crate::text::thin;
use crate::walk;

/// The child's thread name, which no program has.
///
/// A library below this one may make the real call through a hooked symbol. The name shows that the
/// caller is the child, whose calls are never redirected again.
const THREAD_NAME: u64 = u64::from_ne_bytes(*b"\x1bspc-to\0");

/// Children that run at this moment. While there is none, no caller can be one.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Whether the caller is the child of a call.
pub fn is_running_here() -> bool {
    RUNNING.load(Relaxed) > 0 && sys::thread_has_name(THREAD_NAME)
}

/// Runs the child and waits for its end.
///
/// A call that is not left to the caller is reported while the kernel cleans up the child.
pub fn run(stack: Stack, call: &mut RedirectedCall<'_>) {
    // The outcome if the child is killed before it records another one.
    call.fail(Step::Call, Errno::IO);
    let share_files = call.intercepted.returns_fd();
    let signals = sys::SignalsBlocked::new();
    let argument = (&raw mut *call).cast::<c_void>();
    RUNNING.fetch_add(1, Relaxed);
    // SAFETY: signals are blocked, nothing else uses the stack, and the argument is a
    // `RedirectedCall`.
    let child = unsafe { sys::spawn(child, stack.top(), share_files, argument) };
    RUNNING.fetch_sub(1, Relaxed);
    if let Err(error) = child {
        if stays_without_child(call) {
            call.decision = Decision::Local;
        } else {
            call.fail(Step::Call, error);
        }
    }
    if call.decision != Decision::Local {
        report::send(call);
    }
    if let Ok(child) = child {
        sys::wait(child);
    }
    drop(signals);
}

/// Whether a call is local although no child could look at its target: nothing but a placeholder
/// could send it to the host, or it is an unmount, which then fails unless it is local.
fn stays_without_child(call: &RedirectedCall<'_>) -> bool {
    !(call.demanded.is_some() || call.config.lists_a_target() || call.has_private_target())
}

extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `run` passes a `RedirectedCall` and does not touch it until the child has released
    // the memory.
    let call = unsafe { &mut *argument.cast::<RedirectedCall<'_>>() };
    sys::set_thread_name(THREAD_NAME);
    sys::die_with_parent();
    call.result = redirect_or_leave(call);
    if call.result.is_ok() && call.decision != Decision::Local {
        call.decision = Decision::Redirected;
    }
    if call.redirects_dir >= 0 {
        sys::close(call.redirects_dir);
    }
    0
}

/// Makes the call on the host, or sets [`Decision::Local`] if the call is the caller's to make.
fn redirect_or_leave(call: &mut RedirectedCall<'_>) -> Result<usize> {
    call.step = Step::Target;
    let is_path = copy_source(call);
    // Resolving the target changes the current directory, and a relative source starts at the old
    // one. The descriptor is closed when the child exits: these calls share no descriptor table.
    let mut origin = -1;
    if is_path && let Ok(dir) = sys::open_dir(CWD, thin(c".")) {
        origin = dir.into_raw();
    }
    find_destination(call)?;
    if call.destination == Destination::Host {
        translate_source(call, is_path, origin)?;
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
    if call.source.origin == Origin::Host
        && matches!(
            call.change,
            Change::Remount | Change::Propagation | Change::Unmount
        )
    {
        return Ok(());
    }
    let arg = call.intercepted.target();
    let demanded = call.demanded;
    let detached = descriptors::source(&arg, &mut call.buffers)
        .origin
        .is_detached();
    let Buffers {
        path,
        name,
        target,
        host,
        redirect_name,
        line,
        ..
    } = &mut call.buffers;
    call.reason = Reason::None;
    // The path of a file on a detached mount, which no mount can be attached to, would be that of
    // another file.
    let found = if detached {
        Err(Errno::NOENT)
    } else {
        walk::canonical(path, name, arg.dir, arg.follow, target)
    };
    match found {
        // The kernel fails for the same reason.
        Err(_) if demanded.is_none() => {
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
                Some(Redirect::ToHost(path)) => host.set(path),
                None => return Err(Errno::BADMSG),
            }
            return Ok(());
        }
    }
    let (destination, reason, path) =
        match policy::decide(call.config, call.change, demanded, target.as_bytes()) {
            Verdict::ToHost { reason, host } => (Destination::Host, reason, host),
            Verdict::HostIfMounted { host, mapped: true } => {
                (Destination::HostThenLocal, Reason::None, host)
            }
            Verdict::HostIfMounted {
                host,
                mapped: false,
            } => (Destination::LocalThenHost, Reason::None, host),
            Verdict::Local => (Destination::Local, Reason::None, [].as_slice()),
        };
    (call.destination, call.reason) = (destination, reason);
    host.set(path);
    Ok(())
}

/// Copies the source if the host may have another path for it. Returns whether it is a path of the
/// caller: of a mount, or of a device relative to the current directory.
fn copy_source(call: &mut RedirectedCall<'_>) -> bool {
    let [a, b, ..] = call.intercepted.args;
    let from = match call.symbol {
        Symbol::Mount => a,
        Symbol::MoveMount
            if call.change == Change::Move && call.source.origin == Origin::Attached =>
        {
            b
        }
        _ => return false,
    };
    let Buffers {
        source, fs_type, ..
    } = &mut call.buffers;
    let is_new = call.change == Change::New;
    // The kernel rejects what cannot be copied. The source of a FUSE mount is a label.
    if sys::copy_string(from, source).is_err() || is_new && policy::is_fuse(fs_type.as_bytes()) {
        source.clear();
    }
    let is_device = |stat: Stat| stat.mode & libc::S_IFMT == libc::S_IFBLK;
    !source.is_empty()
        && (!is_new
            || !source.begins_with_slash()
                && sys::statx_follow(source.as_thin(), 0).is_ok_and(is_device))
}

/// Finds the host path of a source that is a path.
fn translate_source(call: &mut RedirectedCall<'_>, is_path: bool, origin: c_int) -> Result<()> {
    let Buffers {
        path, name, source, ..
    } = &mut call.buffers;
    path.copy(source);
    if is_path {
        let PathArg { dir, follow, .. } = call.intercepted.source();
        if !path.begins_with_slash() {
            sys::fchdir(origin)?;
        }
        walk::canonical(path, name, dir, follow, source)?;
        path.copy(source);
    }
    if let Some(mapped) = policy::to_host_path(call.config, path.as_bytes()) {
        source.set(mapped);
    }
    Ok(())
}
