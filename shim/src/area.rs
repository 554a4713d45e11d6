//! Memory for one crossing: a stack for the child behind a guard, and the texts that are too big for the
//! caller's stack.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering::AcqRel};

use crate::sys::{self, Result};
use crate::text::Text;

/// As large as the largest page of the supported architectures.
const GUARD: usize = 64 * 1024;
/// Enough for a library below this one that is not frugal.
const STACK: usize = 64 * 1024;
const LEN: usize = GUARD + STACK + size_of::<Work>();

/// Texts of one crossing, all empty at first. All zero bytes are a valid value.
#[repr(C)]
pub struct Work {
    /// A path on its way through the file system.
    pub path: Text,
    /// The last name of that path.
    pub name: Text,
    /// The canonical target in the caller's view.
    pub target: Text,
    /// The target's path on the host.
    pub host: Text,
    /// The source's path on the host, for calls whose source is a path.
    pub source: Text,
    /// The type of a new mount.
    pub kind: Text,
    /// The id of the claim, with a suffix.
    pub claim: Text,
    /// Content of a claim, a piece of a mount table, at the end the report.
    pub line: Text,
}

/// One crossing's memory.
pub struct Area(*mut u8);

/// What the last crossing used, for the next: to map and to touch new memory is a fifth of the price of a crossing.
/// Taken and put back without a lock, so whoever finds nothing here maps his own.
static SPARE: AtomicPtr<u8> = AtomicPtr::new(null_mut());

impl Area {
    pub fn new() -> Result<Self> {
        let mut base = SPARE.swap(null_mut(), AcqRel);
        if base.is_null() {
            base = sys::map(LEN)?;
            // SAFETY: new, and nothing below the stack is ever used.
            unsafe { sys::guard(base, GUARD) };
            return Ok(Self(base));
        }
        let mut area = Self(base);
        area.texts().iter_mut().for_each(Text::clear);
        Ok(area)
    }

    fn texts(&mut self) -> &mut [Text] {
        const COUNT: usize = size_of::<Work>() / size_of::<Text>();
        // SAFETY: `Work` is texts and nothing else, in the C layout; the rest is that of `work`.
        unsafe { core::slice::from_raw_parts_mut(core::ptr::from_mut(self.work()).cast(), COUNT) }
    }

    pub fn work(&mut self) -> &mut Work {
        // SAFETY: mapped, aligned to a page plus the sizes above, zeroed at first, and ours alone.
        unsafe { &mut *self.0.wrapping_add(GUARD + STACK).cast::<Work>() }
    }

    pub fn stack(&self) -> Stack {
        Stack(self.0)
    }
}

/// The stack in an area.
#[derive(Clone, Copy)]
pub struct Stack(*mut u8);

impl Stack {
    pub fn top(self) -> *mut u8 {
        self.0.wrapping_add(GUARD + STACK)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let other = SPARE.swap(self.0, AcqRel);
        if !other.is_null() {
            // SAFETY: mapped by `new` with this length, and given back by its crossing.
            unsafe { sys::unmap(other, LEN) };
        }
    }
}
