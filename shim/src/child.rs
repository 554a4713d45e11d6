//! The crossing: one call, decided and made in a child that shares the caller's memory and nothing else.
//!
//! The child has its own root, current directory and descriptors (a copy), so it can enter the host's namespace
//! whatever threads the caller has, and there is nothing to restore. It decides too, because only it can find
//! out what a path means without disturbing the caller.

use core::ffi::{c_char, c_int, c_void};

use crate::area::{Stack, Work};
use crate::claim;
use crate::host;
use crate::outcome::Step;
use crate::outcome::{Decision, Route};
use crate::policy::{self, Change, Claim, Reason, Verdict};
use crate::redirected_call::RedirectedCall;
use crate::report;
use crate::symbol::Symbol;
use crate::sys::{self, CWD, Errno, Result};
use crate::text::name;
use crate::walk;

/// The name of a child, and of no program: a library below this one may make the real call through a symbol that
/// leads back here.
pub const MARK: u64 = u64::from_le_bytes(*b"\x1bspc-cro");
const MARK_END: u64 = u64::from_le_bytes(*b"ssing\0\0\0");

/// Runs the child and returns when it has ended, however it did. What is not left to the caller is reported while
/// the kernel clears the child away.
pub fn run(stack: Stack, c: &mut RedirectedCall<'_>) {
    // What stays if the child is killed before it can say more.
    c.fail(Step::Call, Errno::IO);
    let share_files = matches!(c.change, Change::Handle | Change::Copy);
    let signals = sys::SignalsBlocked::new();
    let argument = (&raw mut *c).cast::<c_void>();
    // SAFETY: signals are blocked, the stack is ours alone, and the argument is a `RedirectedCall`.
    let child = unsafe { sys::spawn(child, stack.top(), share_files, argument) };
    if let Err(error) = child {
        c.fail(Step::Call, error);
    }
    if c.decision != Decision::Passed {
        report::send(c);
    }
    if let Ok(child) = child {
        sys::wait(child);
    }
    drop(signals);
}

extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `run` passes a `RedirectedCall` and does not touch it until this process has left the memory.
    let c = unsafe { &mut *argument.cast::<RedirectedCall<'_>>() };
    sys::set_mark([MARK, MARK_END]);
    c.result = sys::die_with_parent().and_then(|()| carry_or_pass(c));
    if c.result.is_ok() && c.decision != Decision::Passed {
        c.decision = Decision::Carried;
    }
    sys::close(c.claims);
    0
}

/// The result of the call on the host. When it is the caller's, the decision says so.
fn carry_or_pass(c: &mut RedirectedCall<'_>) -> Result<usize> {
    c.step = Step::Target;
    // Relative sources need the directory that following the target leaves. It ends with this process, which shares
    // no descriptors for these.
    let mut origin = -1;
    if matches!(c.change, Change::Bind | Change::Move) {
        origin = sys::open_dir(CWD, name(c"."))?.into_raw();
    }
    find_route(c)?;
    if c.route == Route::Carry {
        if c.change == Change::Unmount && c.claims >= 0 {
            claim::read_mount(c.claims, c.work)?;
        }
        find_source(c, origin)?;
        c.enter_host()?;
        return host::make(c);
    }
    if c.route != Route::Pass && host::find_ours(c) == Ok(true) {
        c.reason = Reason::Type;
        return host::unmount_here(c);
    }
    c.decision = Decision::Passed;
    Ok(0)
}

#[inline(never)]
fn find_route(c: &mut RedirectedCall<'_>) -> Result<()> {
    c.route = Route::Carry;
    c.reason = Reason::Descriptor;
    if c.on_host && c.call.symbol == Symbol::MountSetattr {
        return Ok(());
    }
    let place = c.call.place();
    let demand = c.demand();
    let Work {
        path,
        name,
        target,
        host,
        claim,
        line,
        ..
    } = &mut *c.work;
    c.reason = Reason::Unresolved;
    match walk::canonical(path, name, place.dir, place.follow, c.pid, target) {
        Err(error) if demand.is_none() && is_the_kernels_answer(error) => {
            c.route = Route::Pass;
            return Ok(());
        }
        result => result?,
    }
    if let Some((dir, id)) = policy::claim_id(c.config, target.as_bytes()) {
        line.set(dir);
        claim.set(id);
        c.reason = Reason::Claim;
        c.claims = claim::read(claim, line)?;
        if c.claims >= 0 {
            match policy::parse_claim(line.as_bytes()) {
                Some(Claim::Stay) => c.route = Route::Pass,
                Some(Claim::Carry { inode, path }) => {
                    host.set(path);
                    c.inode = inode;
                }
                None => return Err(Errno::BADMSG),
            }
            return Ok(());
        }
    }
    let (route, reason, path) = match policy::decide(c.config, c.change, demand, target.as_bytes())
    {
        Verdict::Carry { reason, host } => (Route::Carry, reason, host),
        Verdict::Look { host, mapped: true } => (Route::LookFirst, Reason::Unnamed, host),
        Verdict::Look {
            host,
            mapped: false,
        } => (Route::Look, Reason::Unnamed, host),
        Verdict::Pass => (Route::Pass, Reason::Unnamed, [].as_slice()),
    };
    (c.route, c.reason) = (route, reason);
    host.set(path);
    Ok(())
}

/// Whether the real call would fail in the same way, so that nothing is mounted in the wrong place.
fn is_the_kernels_answer(error: Errno) -> bool {
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

/// Paths among the sources mean paths of the host, as targets do.
fn find_source(c: &mut RedirectedCall<'_>, origin: c_int) -> Result<()> {
    let [a, b, _, _, flags] = c.call.args;
    let (dir, from, follow) = match c.call.symbol {
        Symbol::Mount if a != 0 => (CWD, a, true),
        Symbol::MoveMount if c.change == Change::Move && !c.on_host => (
            a as c_int,
            b,
            flags as u32 & sys::MOVE_MOUNT_F_SYMLINKS != 0,
        ),
        _ => return Ok(()),
    };
    let Work {
        path,
        name,
        source,
        kind,
        ..
    } = &mut *c.work;
    sys::copy_string_or_none(from as *const c_char, path)?;
    if origin >= 0 {
        sys::fchdir(origin)?;
        walk::canonical(path, name, dir, follow, c.pid, source)?;
        path.copy(source);
    } else if policy::is_fuse(kind.as_bytes()) {
        return Ok(());
    }
    if let Some(mapped) = policy::map_host(c.config, path.as_bytes()) {
        source.set(mapped);
    }
    Ok(())
}
