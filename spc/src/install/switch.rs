//! The lock of installations, and the symlink to the current client root file system.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::client::root;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::process::cancel::CancelToken;
use crate::state::Session;

/// Limit for one step on the host. A slow disk writes about 5 MB for each copy of the program.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Takes the lock that `spc install` and `spc uninstall` hold while they run.
///
/// # Errors
/// Another command has held the lock for [`LIMIT`].
pub(crate) fn lock(session: &Session) -> Result<crate::state::lock::Lock> {
    let until = Instant::now() + LIMIT;
    session.ledger.lock_named("install", CancelToken::at(until))
}

/// Points [`root::CURRENT`] to the client root `id`, or removes the link. Returns the id of the
/// previous client root.
///
/// # Errors
/// The link cannot be written.
pub(crate) fn switch(host: &Host, id: Option<&str>) -> Result<Option<String>> {
    let (current, to) = (Path::new(root::CURRENT), id.map(root::path));
    let switched = host.run(
        "switching to the client root file system",
        move || -> std::io::Result<Option<String>> {
            let was = root::linked_id(current);
            match to {
                Some(to) => {
                    let new = current.with_extension("new");
                    crate::install::apply::unlink(&new)?;
                    symlink(&to, &new)?;
                    fs::rename(&new, current)?;
                }
                None => crate::install::apply::unlink(current)?,
            }
            Ok(was)
        },
    )?;
    switched
        .map_err(|e| Error::system(format!("cannot make {} on the host", root::CURRENT)).because(e))
}
