//! The one way of every hooked call: what the arguments say, a child if that is not enough, the real call if the
//! decision is to pass, errno, report.

use crate::area::{self, Area, Stack, Work};
use crate::call::Call;
use crate::config::Config;
use crate::cross::{self, Crossing, Decision, Outcome, Step};
use crate::namespace::child_would_be_init;
use crate::next::{self, Via};
use crate::policy::{Change, Reason, names_type};
use crate::sys::{self, Errno, Result};
use crate::watch::{self, Known};
use crate::{report, settings};

/// Makes or carries a call. The result is the real call's, errno is untouched on success.
#[inline(never)]
pub fn dispatch(via: Via, call: &Call) -> isize {
    let errno = sys::errno();
    let result = if area::inside() {
        call.real(via)
    } else {
        judge_and_call(via, call)
    };
    finish(errno, result)
}

#[inline(never)]
fn finish(errno: i32, result: Result<usize>) -> isize {
    match result {
        Ok(result) => {
            sys::set_errno(errno);
            result as isize
        }
        Err(error) => {
            sys::set_errno(error.number() as i32);
            -1
        }
    }
}

#[inline(never)]
fn judge_and_call(via: Via, call: &Call) -> Result<usize> {
    let mut area = Area::take()?;
    let stack = area.stack();
    let work = area.work();
    let config = settings::get();
    let mut outcome = match &config {
        Ok(config) => judge(config, via, call, stack, work),
        // Taking something away, or looking at it, is never in the wrong place.
        Err(_) if matches!(call, Call::Unmount { .. } | Call::OpenTree { .. }) => {
            Outcome::passed(Reason::Settings)
        }
        Err(error) => Outcome::failed(Step::Settings, *error),
    };
    if outcome.decision == Decision::Passed {
        outcome.result = call.real(via);
    }
    remember(call, &outcome);
    // A handle changes nothing: only one that is of the host is worth a word.
    if !matches!(call, Call::OpenTree { .. }) || outcome.decision != Decision::Passed {
        report::send(config.ok(), call, work, &outcome);
    }
    outcome.result
}

#[inline(never)]
fn judge(config: &Config, via: Via, call: &Call, stack: Stack, work: &mut Work) -> Outcome {
    let Ok(nature) = call
        .nature()
        .and_then(|nature| read_arguments(call, work).map(|()| nature))
    else {
        return Outcome::passed(Reason::Arguments);
    };
    if nature.detached {
        return Outcome::passed(Reason::Detached);
    }
    let named =
        nature.named || (nature.change == Change::New && names_type(config, work.kind.as_bytes()));
    let mut crossing = Crossing {
        config,
        call,
        via,
        change: nature.change,
        named,
        on_host: nature.on_host,
        from_host: nature.from_host,
        pid: sys::pid(),
        work,
        outcome: Outcome::passed(Reason::Unnamed),
    };
    let must_cross = nature.on_host || crossing.must_cross();
    if child_would_be_init() {
        if must_cross {
            return Outcome::failed(Step::Call, Errno::BUSY);
        }
        return Outcome::passed(Reason::Unresolved);
    }
    cross::run(stack, &mut crossing);
    crossing.outcome
}

/// Copies what decides. An error means that the kernel will not take the arguments either.
#[inline(never)]
fn read_arguments(call: &Call, work: &mut Work) -> Result<()> {
    if let Call::Mount { kind, .. } = *call {
        sys::copy_string_or_none(kind, &mut work.kind)?;
    }
    let place = call.place();
    sys::copy_string_or_none(place.path, &mut work.path)?;
    if work.path.is_empty() && !place.may_be_empty {
        return Err(Errno::NOENT);
    }
    // For the report, until the canonical path is known.
    work.target.set(work.path.as_bytes());
    Ok(())
}

#[inline(never)]
fn remember(call: &Call, outcome: &Outcome) {
    let Ok(result) = outcome.result else {
        return;
    };
    let carried = outcome.decision == Decision::Carried;
    match *call {
        Call::OpenTree { flags, .. } => {
            let known = match flags & sys::OPEN_TREE_CLONE {
                0 => carried.then_some(Known::Host),
                _ => Some(Known::Copy),
            };
            watch::set_mount(result as i32, known);
        }
        Call::MoveMount { from_fd, flags, .. } if flags & sys::MOVE_MOUNT_F_EMPTY_PATH != 0 => {
            watch::set_mount(from_fd, carried.then_some(Known::Host));
        }
        _ => {}
    }
}

/// `fsopen`, whose type decides where the mount will go.
pub fn fsopen(via: Via, kind: *const core::ffi::c_char, flags: core::ffi::c_uint) -> isize {
    let errno = sys::errno();
    finish(errno, open_context(via, kind, flags))
}

#[inline(never)]
fn open_context(
    via: Via,
    kind: *const core::ffi::c_char,
    flags: core::ffi::c_uint,
) -> Result<usize> {
    let mut area = Area::take()?;
    let name = &mut area.work().kind;
    // With a bad pointer or without settings there will be no mount.
    let named = sys::copy_string_or_none(kind, name).is_ok()
        && settings::get().is_ok_and(|config| names_type(config, name.as_bytes()));
    let fd = next::fsopen(via, kind, flags)?;
    if let Err(error) = watch::set_context(fd as i32, named) {
        sys::close(fd as i32);
        return Err(error);
    }
    Ok(fd)
}

/// `fsmount`, whose mount has the type of its context.
#[inline(never)]
pub fn fsmount(
    via: Via,
    context: i32,
    flags: core::ffi::c_uint,
    attributes: core::ffi::c_uint,
) -> isize {
    let errno = sys::errno();
    let result = next::fsmount(via, context, flags, attributes).inspect(|fd| {
        let known = match watch::context_is_named(context) {
            true => Known::Named,
            false => Known::Other,
        };
        watch::set_mount(*fd as i32, Some(known));
    });
    finish(errno, result)
}
