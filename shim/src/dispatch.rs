//! Handling of every hooked call: decide, redirect or make the real call, set errno, report.

use core::ffi::c_int;

use crate::call::{Call, Via};
use crate::child;
use crate::descriptors::{self, Origin, Source};
use crate::namespace::child_would_be_init;
use crate::next;
use crate::outcome::{Decision, Step};
use crate::policy::{self, Change, Reason};
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
    let result = if child::is_running_here() {
        next::call(&intercepted)
    } else {
        handle(&intercepted)
    };
    match result {
        Ok(result) => {
            sys::set_errno(errno);
            result as isize
        }
        Err(error) => {
            sys::set_errno(error.number() as c_int);
            -1
        }
    }
}

fn handle(intercepted: &Call) -> Result<usize> {
    let settings = settings::get()?;
    let mut scratch = Scratch::new()?;
    let stack = scratch.stack();
    let call = &mut RedirectedCall::new(&settings.config, *intercepted, scratch.buffers());
    handle_call(call, settings.unusable, stack)
}

#[inline(never)]
fn handle_call(call: &mut RedirectedCall<'_>, unusable: bool, stack: Stack) -> Result<usize> {
    let [first, flags, ..] = call.intercepted.args;
    let expires = flags as c_int & libc::MNT_EXPIRE != 0;
    match call.symbol {
        Symbol::Fsopen => {
            let redirected = names_redirected_type(call, first);
            let fd = next::call(&call.intercepted)?;
            if call.config.names_a_type() {
                descriptors::tag_context(fd, redirected);
            }
            return Ok(fd);
        }
        Symbol::Fsmount => {
            let fd = next::call(&call.intercepted)?;
            if let Some(origin) = descriptors::context_origin(first) {
                Source::of(fd, &mut call.buffers).note(Some(origin));
            }
            return Ok(fd);
        }
        // A look at the target would clear the kernel's mark of a mount that may expire.
        Symbol::Umount2 if expires => {
            let result = next::call(&call.intercepted);
            if result != Err(Errno::INVAL) {
                return result;
            }
        }
        _ => {}
    }
    // An error means that the kernel will reject the arguments, too.
    if examine(call).is_ok() && (unusable || !passes(call)) {
        decide(call, unusable, stack);
    }
    if call.decision == Decision::Local {
        call.result = next::call(&call.intercepted);
    }
    if !call.config.redirects_nothing() {
        note(call);
    }
    call.result
}

/// Finds the effect of the call, the mount that its source names, and why the call would go to the
/// host whatever its target.
#[inline(never)]
fn examine(call: &mut RedirectedCall<'_>) -> Result<()> {
    let [_, _, c, d, _] = call.intercepted.args;
    call.change = match call.symbol {
        Symbol::Mount => Change::from_mount_flags(d as u64),
        Symbol::MoveMount => Change::Move,
        Symbol::Umount | Symbol::Umount2 => Change::Unmount,
        _ if call.symbol != Symbol::MountSetattr && c as u32 & sys::OPEN_TREE_CLONE != 0 => {
            Change::Copy
        }
        Symbol::OpenTree => Change::Handle,
        _ => match sys::copy_word(d, 2)? {
            0 => Change::Remount,
            _ => Change::Propagation,
        },
    };
    if call.config.redirects_nothing() {
        return Ok(());
    }
    let mut redirected_type = false;
    if call.symbol != Symbol::Mount || matches!(call.change, Change::Bind | Change::Move) {
        call.source = descriptors::source(&call.intercepted.source(), &mut call.buffers);
        redirected_type = call.source.origin == Origin::RedirectedType;
        if call.symbol == Symbol::MoveMount && call.source.origin.is_detached() {
            call.change = match call.source.origin {
                Origin::Copy => Change::Bind,
                _ => Change::New,
            };
        }
    } else if call.change == Change::New {
        redirected_type = names_redirected_type(call, c);
    }
    call.demanded = policy::reason_for_any_target(call.config, call.change, redirected_type);
    Ok(())
}

/// Whether the call is made in the container, as far as that can be known without a child and
/// without a descriptor. So a call that passes behaves as without this library even at the limit of
/// a resource.
#[inline(never)]
fn passes(call: &RedirectedCall<'_>) -> bool {
    let origin = call.source.origin;
    if origin.is_detached() && !call.change.attaches() {
        return true;
    }
    let named = match call.change {
        Change::Unmount => call.config.names_a_type(),
        _ => origin != Origin::Attached && origin != Origin::OtherType && origin != Origin::Copy,
    };
    !(named || call.demanded.is_some() || call.config.lists_a_target() || call.has_private_target())
}

/// Whether a string of the caller is a type that the settings redirect.
#[inline(never)]
fn names_redirected_type(call: &mut RedirectedCall<'_>, fs_type: usize) -> bool {
    // The kernel rejects what cannot be copied.
    call.config.names_a_type()
        && sys::copy_string(fs_type, call.buffers.fs_type).is_ok()
        && policy::is_redirected_type(call.config, call.buffers.fs_type.as_bytes())
}

/// Decides where the call goes. A call that is not local has been made and reported afterwards.
#[inline(never)]
fn decide(call: &mut RedirectedCall<'_>, unusable: bool, stack: Stack) {
    let target = call.intercepted.target();
    let path = &mut *call.buffers.path;
    if sys::copy_string(target.path, path).is_err() || path.is_empty() && !target.empty_allowed {
        return;
    }
    // For the report, until the canonical path is known.
    call.buffers.target.copy(path);
    if unusable {
        // An unmount or a new descriptor puts no mount in the wrong namespace.
        if matches!(call.change, Change::Unmount | Change::Handle | Change::Copy) {
            return;
        }
        call.reason = Reason::Settings;
        call.fail(Step::Settings, settings::UNUSABLE);
    } else if sys::uid() != 0 {
        return;
    } else if is_not_attributable(call) {
        call.reason = Reason::Origin;
        let found = target.statx(0).map(|_| Errno::INVAL);
        call.fail(Step::Target, found.unwrap_or_else(|error| error));
    } else if !child_would_be_init() {
        return child::run(stack, call);
    } else if call.demanded.is_some() {
        call.fail(Step::Call, Errno::BUSY);
    } else {
        return;
    }
    report::send(call);
}

/// Whether the call attaches a detached mount that the settings may redirect, and that cannot be
/// redirected: its type is unknown, or mount(2) names it by a path.
fn is_not_attributable(call: &RedirectedCall<'_>) -> bool {
    match call.source.origin {
        Origin::Unknown => true,
        Origin::RedirectedType => call.symbol == Symbol::Mount,
        _ => false,
    }
}

/// Notes the origin of the mount behind the descriptor that a successful call returned or attached.
#[inline(never)]
fn note(call: &mut RedirectedCall<'_>) {
    let Ok(result) = call.result else {
        return;
    };
    let on_host = (call.decision == Decision::Redirected).then_some(Origin::Host);
    if call.change == Change::Copy {
        let origin = call.source.origin;
        Source::of(result, &mut call.buffers).note(match origin {
            Origin::Attached | Origin::Host => Some(Origin::Copy),
            Origin::Unknown => None,
            _ => Some(origin),
        });
    } else if call.symbol == Symbol::MoveMount {
        call.source.note(on_host);
    } else if call.intercepted.returns_fd() && on_host.is_some() {
        Source::of(result, &mut call.buffers).note(on_host);
    }
}
