//! Handling of every hooked call: decide, redirect or make the real call, set errno, report.

use core::ffi::{c_char, c_int};

use crate::call::Call;
use crate::child;
use crate::descriptors::{self, FdKind};
use crate::namespace::child_would_be_init;
use crate::next::Via;
use crate::outcome::{Decision, Step};
use crate::policy::{Change, Reason, is_redirected_type};
use crate::redirected_call::RedirectedCall;
use crate::scratch::{Scratch, Stack};
use crate::symbol::Symbol;
use crate::sys::{self, Errno, Result};
use crate::{report, settings};

/// Symbol and wrapper through which a call arrived. The C layout fits in one register.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct EntryPoint {
    /// Symbol of the call.
    pub symbol: Symbol,
    /// Definition that the caller used.
    pub via: Via,
}

/// Redirects the call or makes the real call, and returns its result. Keeps errno on success.
///
/// The arguments stay in the registers in which the hooks received them, so each hook is little
/// more than a jump.
#[inline(never)]
pub extern "C" fn dispatch(
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    entry: EntryPoint,
) -> isize {
    let errno = sys::errno();
    let EntryPoint { symbol, via } = entry;
    let args = [a, b, c, d, e];
    let intercepted = Call { symbol, via, args };
    let result = if sys::thread_name_begins_with(child::THREAD_NAME) {
        intercepted.call_next()
    } else {
        handle(&intercepted)
    };
    let (errno, result) = match result {
        Ok(result) => (errno, result as isize),
        Err(error) => (error.number() as c_int, -1),
    };
    sys::set_errno(errno);
    result
}

fn handle(intercepted: &Call) -> Result<usize> {
    let settings = settings::get()?;
    let mut scratch = Scratch::new()?;
    let stack = scratch.stack();
    let call = &mut RedirectedCall::new(&settings.config, intercepted, scratch.buffers());
    match intercepted.symbol {
        Symbol::Fsopen => call.result = open_context(call),
        Symbol::Fsmount => call.result = create_mount(intercepted),
        _ => handle_change(call, settings.unusable, stack),
    }
    call.result
}

/// Handles a call that changes a mount table or gives a descriptor of a mount.
#[inline(never)]
fn handle_change(call: &mut RedirectedCall<'_>, unusable: bool, stack: Stack) {
    decide(call, unusable, stack);
    if call.decision == Decision::Local {
        call.result = call.intercepted.call_next();
        // open_tree(2) changes nothing; only a descriptor of a mount on the host is reported.
        if call.intercepted.symbol != Symbol::OpenTree {
            report::send(call);
        }
    }
    update_descriptors(call);
}

/// Decides where the call goes. A call that is not local has been made and reported afterwards.
fn decide(call: &mut RedirectedCall<'_>, unusable: bool, stack: Stack) {
    let detached = match call.intercepted.change() {
        Ok((change, kind)) => {
            call.change = change;
            call.redirected_type = kind == Some(FdKind::RedirectedType);
            call.fd_on_host = kind == Some(FdKind::Host);
            call.intercepted.symbol == Symbol::MountSetattr && kind.is_some() && !call.fd_on_host
        }
        Err(_) => false,
    };
    if read_arguments(call).is_err() {
        call.reason = Reason::Arguments;
    } else if detached {
        call.reason = Reason::Detached;
    } else if unusable {
        call.reason = Reason::Settings;
        // An unmount or a new descriptor puts no mount in the wrong namespace.
        if !matches!(call.change, Change::Unmount | Change::Handle | Change::Copy) {
            refuse(call, Step::Settings, settings::UNUSABLE);
        }
    } else {
        call.redirected_type |= call.change == Change::New
            && is_redirected_type(call.config, call.buffers.fs_type.as_bytes());
        if !child_would_be_init() {
            child::run(stack, call);
        } else if call.reason_for_any_target().is_some() {
            refuse(call, Step::Call, Errno::BUSY);
        } else {
            call.reason = Reason::Unresolved;
        }
    }
}

#[inline(never)]
fn refuse(call: &mut RedirectedCall<'_>, step: Step, error: Errno) {
    call.fail(step, error);
    report::send(call);
}

/// Copies the arguments on which the decision depends. An error means that the kernel will reject
/// the arguments too.
#[inline(never)]
fn read_arguments(call: &mut RedirectedCall<'_>) -> Result<()> {
    if call.intercepted.symbol == Symbol::Mount {
        sys::copy_string(
            call.intercepted.args[2] as *const c_char,
            &mut call.buffers.fs_type,
        )?;
    }
    let arg = call.intercepted.path_arg();
    sys::copy_string(arg.path, &mut call.buffers.path)?;
    if call.buffers.path.is_empty() && !arg.empty_allowed {
        return Err(Errno::NOENT);
    }
    // For the report, until the canonical path is known.
    call.buffers.target.copy(&call.buffers.path);
    Ok(())
}

/// Notes the kind of the descriptor that a successful call returned or attached.
fn update_descriptors(call: &RedirectedCall<'_>) {
    let Ok(result) = call.result else {
        return;
    };
    let [from, _, _, _, flags] = call.intercepted.args;
    let on_host = (call.decision == Decision::Redirected).then_some(FdKind::Host);
    match call.change {
        Change::Copy => descriptors::set_kind(result, Some(FdKind::Copy)),
        Change::Handle => descriptors::set_kind(result, on_host),
        _ if call.intercepted.symbol != Symbol::MoveMount => {}
        _ if flags as u32 & sys::MOVE_MOUNT_F_EMPTY_PATH == 0 => {}
        _ => descriptors::set_kind(from, on_host),
    }
}

/// Makes a call of fsopen(2), whose type decides where the mount will go.
fn open_context(call: &mut RedirectedCall<'_>) -> Result<usize> {
    let fs_type = &mut call.buffers.fs_type;
    // The kernel rejects an invalid pointer, so an empty type does no harm.
    let _ = sys::copy_string(call.intercepted.args[0] as *const c_char, fs_type);
    let fd = call.intercepted.call_next()?;
    match descriptors::set_context(fd, is_redirected_type(call.config, fs_type.as_bytes())) {
        Ok(()) => Ok(fd),
        Err(error) => {
            sys::close(fd as c_int);
            Err(error)
        }
    }
}

/// Makes a call of fsmount(2), whose mount has the type of its context.
fn create_mount(intercepted: &Call) -> Result<usize> {
    let fd = intercepted.call_next()?;
    let kind = match descriptors::context_is_redirected(intercepted.args[0]) {
        true => FdKind::RedirectedType,
        false => FdKind::OtherType,
    };
    descriptors::set_kind(fd, Some(kind));
    Ok(fd)
}
