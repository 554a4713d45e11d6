//! Settings of this process. The file is read when the library is loaded, and parsed at the first
//! call that needs it: most programs make none.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use spc_shim_config::words::nth_word;
use spc_shim_config::{Config, FILE, TEXT_MAX, VARIABLE_COUNT, VARIABLES};

use crate::sys::{self, Errno};
use crate::text::thin;

/// Error of a mount whose destination is unknown because the settings are unusable.
pub const UNUSABLE: Errno = Errno::BADMSG;

/// Settings after parsing.
#[repr(C)]
pub struct Loaded {
    /// The settings, complete up to the first error.
    pub config: Config,
    /// Whether the file or the environment could not be read or parsed.
    pub unusable: bool,
    file: File,
}

static LOADED: AtomicPtr<Loaded> = AtomicPtr::new(core::ptr::null_mut());

/// Memory for the settings, and whether a thread has taken it.
struct Memory(UnsafeCell<MaybeUninit<Loaded>>, AtomicBool);

// SAFETY: only the thread that takes the memory writes it, and others read it once it is published.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(
    UnsafeCell::new(MaybeUninit::zeroed()),
    AtomicBool::new(false),
);

/// Returns the settings, which the first call parses.
///
/// No lock: a signal handler or a forked child must not wait for a lock holder that cannot run. Two
/// threads may both parse the settings; the result of one is kept. Only the second needs new
/// memory.
pub fn get() -> Result<&'static Loaded, Errno> {
    let mut loaded = LOADED.load(Ordering::Acquire);
    if loaded.is_null() {
        loaded = MEMORY.0.get().cast();
        if MEMORY.1.swap(true, Ordering::AcqRel) {
            loaded = sys::map(size_of::<Loaded>())?.cast();
        }
        // SAFETY: the memory is this thread's own, zeroed and aligned; all zero bytes are a valid
        // `Loaded`.
        let fresh = unsafe { &mut *loaded };
        fresh.unusable = load(fresh).is_none();
        let order = (Ordering::AcqRel, Ordering::Acquire);
        if let Err(winner) =
            LOADED.compare_exchange(core::ptr::null_mut(), loaded, order.0, order.1)
        {
            loaded = winner;
        }
    }
    // SAFETY: published once, never written or unmapped afterwards.
    Ok(unsafe { &*loaded })
}

/// Parses the snapshot, or the file and the environment. Returns `None` if that fails.
fn load(loaded: &mut Loaded) -> Option<()> {
    let snapshot = SNAPSHOT.size.load(Ordering::Acquire);
    let text = if snapshot > 0 {
        // SAFETY: published once, never written afterwards.
        unsafe { &*SNAPSHOT.text.get() }.get(..snapshot - 1)?
    } else {
        let len = read(&mut loaded.file)?;
        loaded.file.get(..len)?
    };
    // A file that fills the buffer may be longer.
    if text.len() > TEXT_MAX {
        return None;
    }
    let (_, error) = loaded.config.parse_in_place(text);
    let mut good = error.is_none();
    if snapshot == 0 {
        for number in 0..VARIABLE_COUNT {
            if let Some(value) = variable(number) {
                good &= loaded.config.add_variable(number, value).is_none();
            }
        }
    }
    good.then_some(())
}

/// Buffer with room for the longest file and one byte more.
type File = [u8; TEXT_MAX + 1];

/// Reads the file, and returns its length: 0 if there is no file.
#[inline(never)]
fn read(into: &mut File) -> Option<usize> {
    match sys::open_read(thin(FILE)) {
        // One read(2) gives a regular file whole.
        Ok(file) => sys::read(&file, into).ok(),
        Err(Errno::NOENT) => Some(0),
        Err(_) => None,
    }
}

/// Returns the value of the variable with this index in [`VARIABLES`].
#[inline(never)]
fn variable(number: u8) -> Option<&'static [u8]> {
    // SAFETY: a NUL ends each name in the list.
    unsafe { sys::environment(nth_word(VARIABLES, number.into())) }
}

/// The file as it was when the library was loaded. Empty if the environment has settings too.
struct Snapshot {
    /// Length of the text plus one, or 0 while there is no text.
    size: AtomicUsize,
    text: UnsafeCell<File>,
}

// SAFETY: `take_snapshot` writes the text before it sets the size; readers check the size first.
unsafe impl Sync for Snapshot {}

static SNAPSHOT: Snapshot = Snapshot {
    size: AtomicUsize::new(0),
    text: UnsafeCell::new([0; TEXT_MAX + 1]),
};

/// Reads the file before the program can change its root directory. If the environment has
/// settings, also parses them, before the program can change the environment.
///
/// # Safety
/// Must be called at most once.
pub unsafe fn take_snapshot() {
    if (0..VARIABLE_COUNT).any(|number| variable(number).is_some()) {
        let _ = get();
        return;
    }
    // SAFETY: no other code writes the text, and none reads it before the size is set.
    if let Some(len) = read(unsafe { &mut *SNAPSHOT.text.get() }) {
        SNAPSHOT.size.store(len + 1, Ordering::Release);
    }
}
