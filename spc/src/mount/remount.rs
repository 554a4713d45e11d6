//! Changes the options of an existing mount (`-o remount`), whoever made it.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{
    FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fspick,
};

use crate::error::{Error, Result, show};
use crate::host::caller;
use crate::host::target::{self, Rules, host_path};
use crate::mount::direct::kernel_log;
use crate::options::Options;
use crate::options::generic::Attributes;
use crate::process::cancel::CancelToken;
use crate::process::interrupts::Interrupts;
use crate::state::Session;
use crate::sys::{self, MountAttributes};

/// Option that changes a mount instead of making one.
pub const REMOUNT: &str = "remount";

/// Limit for the file system: before it becomes read-only, the kernel writes what is unwritten.
const LIMIT: Duration = Duration::from_secs(120);

/// Changes the mount on a target. mount(8) passes the options that the mount has already together
/// with the new ones; the former are left out.
///
/// # Errors
/// Nothing is mounted there, or the file system refuses a change.
pub fn remount(session: &Session, requested: &Path, options: &Options) -> Result<()> {
    let settings = session.host.settings();
    let target = host_path(requested, &caller::cwd()?, &settings.hosts());
    let interrupts = Interrupts::block()?;
    let cancel: CancelToken<'_> = interrupts.until(Instant::now() + LIMIT);
    let _lock = session.ledger.lock(&target, cancel)?;
    let record = session.ledger.get(&target)?;
    let recorded = Options::parse(record.iter().map(|record| record.options.as_str()))?;
    let options = options.without(&[REMOUNT]);
    let change = {
        let (target, options) = (target.clone(), options.clone());
        move || change(&target, &options, &recorded)
    };
    session.host.run_within("remounting", LIMIT, change)??;
    // A repair mounts with the options of the record.
    if let Some(mut record) = record {
        for (key, value) in options.iter() {
            if value.is_none() && (key == "ro" || key == "rw") {
                record.options = match record.options.as_str() {
                    "" => key.to_owned(),
                    earlier => format!("{earlier},{key}"),
                };
            }
        }
        session.ledger.put(&record)?;
    }
    Ok(())
}

/// Changes the file system, then the mount, as far as the options differ from those of `recorded`
/// and of the mount table. Runs in the host's mount namespace.
fn change(target: &Path, options: &Options, recorded: &Options) -> Result<()> {
    let fail = || Error::mount(format!("cannot remount {}", show(target)));
    let rules = Rules {
        system: true,
        ..Rules::default()
    };
    let (pinned, _) = target::pin(target, rules)?;
    let entry = match pinned.mount.is_root {
        true => pinned.entry()?,
        false => None,
    };
    let entry = entry.ok_or_else(|| {
        fail()
            .because("not mounted")
            .hint("`spc ls` shows what is mounted")
    })?;
    let current = Options::parse([entry.options.as_str()])?;
    let is_current = |key: &str, value: Option<&str>| {
        let mut known = current.iter().chain(recorded.iter());
        known.any(|(name, known)| name == key && known == value)
    };
    let fs = fspick(
        &pinned.dir,
        "",
        FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH,
    )
    .map_err(|e| fail().because(e))?;
    let refused = |what: &str, e: Errno| {
        fail()
            .because(format!("{what}: {}", crate::error::errno_text(e)))
            .log(kernel_log(&fs))
            .hint("most file systems change only ro and rw while they are mounted; for the rest unmount and mount again")
    };
    let mut changed = false;
    let names_ro =
        |(key, value): (&str, Option<&str>)| (key == "ro" || key == "rw") && value != Some("vfs");
    if options.iter().any(names_ro) {
        let flag = if options.read_only() { "ro" } else { "rw" };
        if !current.has(flag) {
            fsconfig_set_flag(&fs, flag).map_err(|e| refused(flag, e))?;
            changed = true;
        }
    }
    for (key, value) in options.for_superblock() {
        if is_current(key, value) {
            continue;
        }
        match value {
            Some(value) => fsconfig_set_string(&fs, key, value),
            None => fsconfig_set_flag(&fs, key),
        }
        .map_err(|e| refused(key, e))?;
        changed = true;
    }
    if changed {
        fsconfig_reconfigure(&fs).map_err(|e| refused("the file system", e))?;
    }
    let Attributes { set, clear } = options.attributes();
    if clear != 0 {
        let attributes = MountAttributes {
            set,
            clear,
            ..MountAttributes::default()
        };
        sys::mount_setattr(&pinned.dir, attributes).map_err(|e| fail().because(e))?;
    }
    Ok(())
}
