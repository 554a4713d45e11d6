//! The one way of every hooked call: what the arguments say, a child if that is not enough, the real call if the
//! decision is to pass, errno, report.

use core::ffi::{c_char, c_int};

use crate::area::{Area, Stack};
use crate::call::Call;
use crate::child;
use crate::namespace::child_would_be_init;
use crate::next::Via;
use crate::outcome::{Decision, Step};
use crate::policy::{Change, Reason, names_type};
use crate::redirected_call::RedirectedCall;
use crate::symbol::Symbol;
use crate::sys::{self, Errno, Result};
use crate::watch::{self, Known};
use crate::{report, settings};

/// The symbol that a call came through. In the C layout it takes one register.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Door {
    pub symbol: Symbol,
    pub via: Via,
}

/// Makes or carries a call. The result is the real call's, errno is untouched on success.
///
/// The arguments stay in the registers where the hooks got them, so that each hook is hardly more than a jump.
#[inline(never)]
pub extern "C" fn dispatch(a: usize, b: usize, c: usize, d: usize, e: usize, door: Door) -> isize {
    let errno = sys::errno();
    let Door { symbol, via } = door;
    let args = [a, b, c, d, e];
    let call = Call { symbol, via, args };
    let result = if sys::has_mark(child::MARK) {
        call.real()
    } else {
        judge_and_call(&call)
    };
    let (errno, result) = match result {
        Ok(result) => (errno, result as isize),
        Err(error) => (error.number() as c_int, -1),
    };
    sys::set_errno(errno);
    result
}

fn judge_and_call(call: &Call) -> Result<usize> {
    let settings = settings::get()?;
    let mut area = Area::new()?;
    let stack = area.stack();
    let c = &mut RedirectedCall::new(&settings.config, call, area.work());
    match call.symbol {
        Symbol::Fsopen => c.result = open_context(c),
        Symbol::Fsmount => c.result = make_mount(call),
        _ => judge_and_report(c, settings.broken, stack),
    }
    c.result
}

#[inline(never)]
fn judge_and_report(c: &mut RedirectedCall<'_>, broken: bool, stack: Stack) {
    judge(c, broken, stack);
    if c.decision == Decision::Passed {
        c.result = c.call.real();
        // A handle changes nothing: only one that is of the host is worth a word.
        if c.call.symbol != Symbol::OpenTree {
            report::send(c);
        }
    }
    remember(c);
}

/// Decides; if that takes a child, the child makes the call as well. What does not pass is reported.
fn judge(c: &mut RedirectedCall<'_>, broken: bool, stack: Stack) {
    let detached = match c.call.change() {
        Ok((change, known)) => {
            c.change = change;
            c.named = known == Some(Known::Named);
            c.on_host = known == Some(Known::Host);
            c.call.symbol == Symbol::MountSetattr && known.is_some() && !c.on_host
        }
        Err(_) => false,
    };
    if read_arguments(c).is_err() {
        c.reason = Reason::Arguments;
    } else if detached {
        c.reason = Reason::Detached;
    } else if broken {
        c.reason = Reason::Settings;
        // Taking something away, or looking at it, is never in the wrong place.
        if !matches!(c.change, Change::Unmount | Change::Handle | Change::Copy) {
            refuse(c, Step::Settings, settings::BROKEN);
        }
    } else {
        c.named |= c.change == Change::New && names_type(c.config, c.work.kind.as_bytes());
        if !child_would_be_init() {
            child::run(stack, c);
        } else if c.demand().is_some() {
            refuse(c, Step::Call, Errno::BUSY);
        } else {
            c.reason = Reason::Unresolved;
        }
    }
}

#[inline(never)]
fn refuse(c: &mut RedirectedCall<'_>, step: Step, error: Errno) {
    c.fail(step, error);
    report::send(c);
}

/// Copies what decides. An error means that the kernel will not take the arguments either.
#[inline(never)]
fn read_arguments(c: &mut RedirectedCall<'_>) -> Result<()> {
    if c.call.symbol == Symbol::Mount {
        sys::copy_string_or_none(c.call.args[2] as *const c_char, &mut c.work.kind)?;
    }
    let place = c.call.place();
    sys::copy_string_or_none(place.path, &mut c.work.path)?;
    if c.work.path.is_empty() && !place.may_be_empty {
        return Err(Errno::NOENT);
    }
    // For the report, until the canonical path is known.
    c.work.target.copy(&c.work.path);
    Ok(())
}

fn remember(c: &RedirectedCall<'_>) {
    let Ok(result) = c.result else {
        return;
    };
    let [from, _, _, _, flags] = c.call.args;
    let on_host = (c.decision == Decision::Carried).then_some(Known::Host);
    match c.change {
        Change::Copy => watch::set_mount(result, Some(Known::Copy)),
        Change::Handle => watch::set_mount(result, on_host),
        _ if c.call.symbol != Symbol::MoveMount => {}
        _ if flags as u32 & sys::MOVE_MOUNT_F_EMPTY_PATH == 0 => {}
        _ => watch::set_mount(from, on_host),
    }
}

/// `fsopen`, whose type decides where the mount will go.
fn open_context(c: &mut RedirectedCall<'_>) -> Result<usize> {
    let name = &mut c.work.kind;
    // With a bad pointer there will be no mount.
    let _ = sys::copy_string_or_none(c.call.args[0] as *const c_char, name);
    let fd = c.call.real()?;
    match watch::set_context(fd, names_type(c.config, name.as_bytes())) {
        Ok(()) => Ok(fd),
        Err(error) => {
            sys::close(fd as c_int);
            Err(error)
        }
    }
}

/// `fsmount`, whose mount has the type of its context.
fn make_mount(call: &Call) -> Result<usize> {
    let fd = call.real()?;
    let known = match watch::context_is_named(call.args[0]) {
        true => Known::Named,
        false => Known::Other,
    };
    watch::set_mount(fd, Some(known));
    Ok(fd)
}
