//! Scratch memory for one call: a stack for the child, below it a guard, and buffers for texts that
//! are too large for the caller's stack.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering::AcqRel};

use crate::sys::{self, Result};
use crate::text::Text;

/// Size of the largest page on the supported architectures.
const GUARD: usize = 64 * 1024;
/// Size of the stack. A library below this one may need more than the shim does.
const STACK: usize = 64 * 1024;
const LEN: usize = GUARD + STACK + COUNT * size_of::<Text>();
/// Number of texts in [`Buffers`].
const COUNT: usize = size_of::<Buffers<'_>>() / size_of::<&mut Text>();

/// Texts of one call, all empty at first.
#[repr(C)]
pub struct Buffers<'a> {
    /// Path being resolved.
    pub path: &'a mut Text,
    /// Last component of the target's path on the host.
    pub name: &'a mut Text,
    /// Canonical target in the caller's namespace.
    pub target: &'a mut Text,
    /// Path of the target on the host.
    pub host: &'a mut Text,
    /// Path of the source on the host, if the source is a path.
    pub source: &'a mut Text,
    /// Type of the new mount, or of the mount at the target.
    pub fs_type: &'a mut Text,
    /// Name of a redirect's file: the placeholder's id and a suffix.
    pub redirect_name: &'a mut Text,
    /// Content of a redirect, a piece of a mount table, and finally the report.
    pub line: &'a mut Text,
}

/// Memory that one call owns: guard, stack and buffers in one mapping.
pub struct Scratch(*mut u8);

/// Memory for the first call. It has all of its pages to itself: [`Scratch`] may unmap it.
#[repr(align(4096))]
struct Memory(UnsafeCell<MaybeUninit<[u8; LEN]>>);

// SAFETY: only the call that takes the memory uses it, until it becomes the spare memory.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new(MaybeUninit::zeroed()));

/// Whether a call has taken [`MEMORY`].
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Memory of the last call, for the next one. Mapping and touching new memory takes a fifth of the
/// time of a redirected call. No lock: a caller that finds no memory here maps new memory.
static SPARE: AtomicPtr<u8> = AtomicPtr::new(null_mut());

impl Scratch {
    /// Takes the spare memory, or maps new memory.
    pub fn new() -> Result<Self> {
        let mut base = SPARE.swap(null_mut(), AcqRel);
        if base.is_null() {
            base = MEMORY.0.get().cast();
            if TAKEN.swap(true, AcqRel) {
                base = sys::map(LEN)?;
            }
            // SAFETY: the mapping is new, and nothing below the stack is ever used.
            unsafe { sys::guard(base, GUARD) };
        }
        Ok(Self(base))
    }

    /// Returns the buffers, with all texts cleared.
    pub fn buffers(&mut self) -> Buffers<'_> {
        let mut text = self.0.wrapping_add(GUARD + STACK).cast::<Text>();
        let mut texts = [const { MaybeUninit::<*mut Text>::uninit() }; COUNT];
        for slot in &mut texts {
            // SAFETY: mapped, aligned to a page plus the sizes above, zeroed at first, and owned by
            // this value. All zero bytes are a valid text.
            unsafe { &mut *text }.clear();
            slot.write(text);
            text = text.wrapping_add(1);
        }
        // SAFETY: `Buffers` has the C layout and consists of references to texts only. Each of the
        // pointers is to another one.
        unsafe { core::mem::transmute::<[MaybeUninit<*mut Text>; COUNT], Buffers<'_>>(texts) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_at_the_same_time_unmap_only_their_own_memory() {
        for _ in 0..3 {
            // One becomes the spare memory; the others are unmapped, the static memory as well.
            let together = [(); 3].map(|()| Scratch::new().unwrap());
            drop(together);
        }
    }
}
