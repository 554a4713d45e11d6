//! Scratch memory for one call: a stack for the child, below it a guard, and buffers for texts that
//! are too large for the caller's stack.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering::AcqRel};

use crate::sys::{self, Result};
use crate::text::Text;

/// Size of the largest page on the supported architectures.
const GUARD: usize = 64 * 1024;
/// Size of the stack. A library below this one may need more than the shim does.
const STACK: usize = 64 * 1024;
const LEN: usize = GUARD + STACK + size_of::<Buffers>();

/// Texts of one call, all empty at first. All zero bytes are a valid value.
#[repr(C)]
pub struct Buffers {
    /// Path being resolved.
    pub path: Text,
    /// Last component of that path.
    pub name: Text,
    /// Canonical target in the caller's namespace.
    pub target: Text,
    /// Path of the target on the host.
    pub host: Text,
    /// Path of the source on the host, if the source is a path.
    pub source: Text,
    /// Type of the new mount, or of the mount at the target.
    pub fs_type: Text,
    /// Name of a redirect's file: the placeholder's id and a suffix.
    pub redirect_name: Text,
    /// Content of a redirect, a piece of a mount table, and finally the report.
    pub line: Text,
}

/// Memory that one call owns: guard, stack and buffers in one mapping.
pub struct Scratch(*mut u8);

/// Memory of the last call, for the next one. Mapping and touching new memory takes a fifth of the
/// time of a redirected call. No lock: a caller that finds no memory here maps new memory.
static SPARE: AtomicPtr<u8> = AtomicPtr::new(null_mut());

impl Scratch {
    /// Takes the spare memory, with all texts cleared, or maps new memory.
    pub fn new() -> Result<Self> {
        let mut base = SPARE.swap(null_mut(), AcqRel);
        if base.is_null() {
            base = sys::map(LEN)?;
            // SAFETY: the mapping is new, and nothing below the stack is ever used.
            unsafe { sys::guard(base, GUARD) };
            return Ok(Self(base));
        }
        let mut scratch = Self(base);
        scratch.texts().iter_mut().for_each(Text::clear);
        Ok(scratch)
    }

    fn texts(&mut self) -> &mut [Text] {
        const COUNT: usize = size_of::<Buffers>() / size_of::<Text>();
        // SAFETY: `Buffers` has the C layout and consists of texts only; `buffers` is sound.
        unsafe {
            core::slice::from_raw_parts_mut(core::ptr::from_mut(self.buffers()).cast(), COUNT)
        }
    }

    /// Returns the buffers.
    pub fn buffers(&mut self) -> &mut Buffers {
        // SAFETY: mapped, aligned to a page plus the sizes above, zeroed at first, and owned by
        // this value.
        unsafe { &mut *self.0.wrapping_add(GUARD + STACK).cast::<Buffers>() }
    }

    /// Returns the stack.
    pub fn stack(&self) -> Stack {
        Stack(self.0)
    }
}

/// Stack in the memory of a call.
#[derive(Clone, Copy)]
pub struct Stack(*mut u8);

impl Stack {
    /// Returns the end of the stack, at which its use begins.
    pub fn top(self) -> *mut u8 {
        self.0.wrapping_add(GUARD + STACK)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let other = SPARE.swap(self.0, AcqRel);
        if !other.is_null() {
            // SAFETY: `new` mapped this length, and the call that used the memory has returned it.
            unsafe { sys::unmap(other, LEN) };
        }
    }
}
