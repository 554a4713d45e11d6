//! The settings of this process: read once, when first needed, by whoever comes first.

use core::sync::atomic::{AtomicPtr, Ordering};

use crate::config::{Config, FILE, TEXT_MAX, VARIABLE_COUNT, VARIABLES, nth_word};
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
    file: [u8; TEXT_MAX + 1],
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
    let len = match sys::open_read(name(FILE)) {
        // One read: it is a file, or no settings.
        Ok(file) => sys::read(&file, &mut loaded.file).ok()?,
        Err(Errno::NOENT) => 0,
        Err(_) => return None,
    };
    // A file that fills all of the buffer may go on.
    if len > TEXT_MAX {
        return None;
    }
    let (_, fault) = loaded.config.load(loaded.file.get(..len)?);
    let mut good = fault.is_none();
    for variable in 0..VARIABLE_COUNT {
        let name = nth_word(VARIABLES, variable.into());
        let add = |value: &[u8]| good &= loaded.config.add_variable(variable, value).is_none();
        // SAFETY: each word of the list is followed by a NUL.
        unsafe { sys::environment(name, add) };
    }
    good.then_some(())
}
