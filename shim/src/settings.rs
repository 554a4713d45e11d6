//! The settings of this process: read when the library is loaded, understood when first needed, by whoever comes
//! first. Most programs never need them.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use spc_shim_config::words::nth_word;
use spc_shim_config::{Config, FILE, TEXT_MAX, VARIABLE_COUNT, VARIABLES};

use crate::sys::{self, Errno};
use crate::text::name;

/// Settings that cannot be used: nothing may be mounted, because nobody knows where.
pub const BROKEN: Errno = Errno::BADMSG;

/// Settings as they were found.
#[repr(C)]
pub struct Loaded {
    pub config: Config,
    /// The file or the environment cannot be read or understood.
    pub broken: bool,
    file: File,
}

static LOADED: AtomicPtr<Loaded> = AtomicPtr::new(core::ptr::null_mut());

/// The settings. No lock, so that a signal handler or a forked child never waits for somebody else's turn: two
/// threads that come first both read, and one of them wins.
pub fn get() -> Result<&'static Loaded, Errno> {
    let mut loaded = LOADED.load(Ordering::Acquire);
    if loaded.is_null() {
        loaded = sys::map(size_of::<Loaded>())?.cast();
        // SAFETY: new, zeroed and aligned to a page; all zero bytes are a valid `Loaded`.
        let fresh = unsafe { &mut *loaded };
        fresh.broken = load(fresh).is_none();
        let order = (Ordering::AcqRel, Ordering::Acquire);
        if let Err(winner) =
            LOADED.compare_exchange(core::ptr::null_mut(), loaded, order.0, order.1)
        {
            // SAFETY: nobody else has seen this mapping.
            unsafe { sys::unmap(loaded.cast(), size_of::<Loaded>()) };
            loaded = winner;
        }
    }
    // SAFETY: published once, never written or unmapped afterwards.
    Ok(unsafe { &*loaded })
}

/// Nothing when there is a file that cannot be read or understood.
fn load(loaded: &mut Loaded) -> Option<()> {
    let kept = KEPT.size.load(Ordering::Acquire);
    let text = if kept > 0 {
        // SAFETY: published once, never written afterwards.
        unsafe { &*KEPT.text.get() }.get(..kept - 1)?
    } else {
        let len = read(&mut loaded.file)?;
        loaded.file.get(..len)?
    };
    // A file that fills all of the buffer may go on.
    if text.len() > TEXT_MAX {
        return None;
    }
    let (_, fault) = loaded.config.load(text);
    let mut good = fault.is_none();
    if kept == 0 {
        for number in 0..VARIABLE_COUNT {
            if let Some(value) = variable(number) {
                good &= loaded.config.add_variable(number, value).is_none();
            }
        }
    }
    good.then_some(())
}

type File = [u8; TEXT_MAX + 1];

#[inline(never)]
fn read(into: &mut File) -> Option<usize> {
    match sys::open_read(name(FILE)) {
        // One read: it is a file, or no settings.
        Ok(file) => sys::read(&file, into).ok(),
        Err(Errno::NOENT) => Some(0),
        Err(_) => None,
    }
}

#[inline(never)]
fn variable(number: u8) -> Option<&'static [u8]> {
    // SAFETY: each word of the list is followed by a NUL.
    unsafe { sys::environment(nth_word(VARIABLES, number.into())) }
}

/// The file as it was when this library was loaded, of a program whose environment adds nothing to it.
struct Kept {
    /// One more than the length; 0 as long as there is no text.
    size: AtomicUsize,
    text: UnsafeCell<File>,
}

// SAFETY: the text is written by `keep` before it says the size, and read afterwards.
unsafe impl Sync for Kept {}

static KEPT: Kept = Kept {
    size: AtomicUsize::new(0),
    text: UnsafeCell::new([0; TEXT_MAX + 1]),
};

/// Before the program can change its root or its environment.
///
/// # Safety
/// Called once.
pub unsafe fn keep() {
    if (0..VARIABLE_COUNT).any(|number| variable(number).is_some()) {
        let _ = get();
        return;
    }
    // SAFETY: nobody else writes, and nobody reads before the size is there.
    if let Some(len) = read(unsafe { &mut *KEPT.text.get() }) {
        KEPT.size.store(len + 1, Ordering::Release);
    }
}
