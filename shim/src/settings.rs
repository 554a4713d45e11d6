//! The settings of this process: read once, when first needed, by whoever comes first.

use core::sync::atomic::{AtomicPtr, Ordering};

use crate::config::{Broken, Config, FILE, TEXT_MAX};
use crate::sys::{self, Errno};

/// Settings that cannot be used: nothing may be mounted, because nobody knows where.
pub const BROKEN: Errno = Errno::BADMSG;

#[repr(C)]
struct Loaded {
    config: Config,
    broken: bool,
    file: [u8; TEXT_MAX + 1],
}

static LOADED: AtomicPtr<Loaded> = AtomicPtr::new(core::ptr::null_mut());

/// The settings. No lock, so that a signal handler or a forked child never waits for somebody else's turn: two
/// threads that come first both read, and one of them wins.
pub fn get() -> Result<&'static Config, Errno> {
    let mut loaded = LOADED.load(Ordering::Acquire);
    if loaded.is_null() {
        loaded = sys::map(size_of::<Loaded>(), 0)?.cast();
        // SAFETY: new, zeroed and aligned to a page; all zero bytes are a valid `Loaded`.
        let fresh = unsafe { &mut *loaded };
        fresh.broken = load(fresh).is_err();
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
    let loaded = unsafe { &*loaded };
    if loaded.broken {
        return Err(BROKEN);
    }
    Ok(&loaded.config)
}

fn load(loaded: &mut Loaded) -> Result<(), Broken> {
    const UNREADABLE: Broken = Broken {
        line: 0,
        reason: "unreadable",
    };
    let text = match sys::open_read(FILE) {
        Ok(file) => {
            let mut len = 0;
            while let Some(room) = loaded.file.get_mut(len..).filter(|room| !room.is_empty()) {
                match sys::read(&file, room).map_err(|_| UNREADABLE)? {
                    0 => break,
                    more => len += more,
                }
            }
            // A file that fills all of the buffer may go on.
            loaded
                .file
                .get(..len)
                .filter(|text| text.len() <= TEXT_MAX)
                .ok_or(UNREADABLE)?
        }
        Err(Errno::NOENT) => &[],
        Err(_) => return Err(UNREADABLE),
    };
    loaded.config.load(text)?;
    let mut result = Ok(());
    if !sys::is_privileged_program() {
        sys::environment(|name, value| {
            let added = loaded.config.add_env(name, value);
            result = result.and(added);
        });
    }
    result
}
