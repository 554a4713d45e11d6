//! Memory for one crossing: a stack for the child behind a guard, and the texts that are too big for the
//! caller's stack.

use crate::sys::{self, Result};
use crate::text::Text;

/// As large as the largest page of the supported architectures.
const GUARD: usize = 64 * 1024;
/// Enough for a library below this one that is not frugal.
const STACK: usize = 64 * 1024;
const LEN: usize = GUARD + STACK + size_of::<Work>();

/// Texts of one crossing. All zero bytes are a valid value.
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

impl Area {
    pub fn new() -> Result<Self> {
        let base = sys::map(LEN)?;
        // SAFETY: new, and nothing below the stack is ever used.
        unsafe { sys::guard(base, GUARD) };
        Ok(Self(base))
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
        // SAFETY: mapped by `new` with this length; stack and texts are borrowed no longer.
        unsafe { sys::unmap(self.0, LEN) };
    }
}
