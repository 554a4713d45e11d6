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

/// How long one step on the host may take; a slow disk gets 5 MB for each copy of the program.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Commands that install and uninstall take turns.
pub(crate) fn lock(session: &Session) -> Result<crate::state::lock::Lock> {
    let until = Instant::now() + LIMIT;
    session.ledger.lock_named("install", CancelToken::at(until))
}

/// Makes a client root the current one, or none. Gives back the one that was.
pub(crate) fn switch(host: &Host, id: Option<&str>) -> Result<Option<String>> {
    let (current, to) = (Path::new(root::CURRENT), id.map(root::path));
    let switched = host.run(
        "switching to the client root",
        move || -> std::io::Result<Option<String>> {
            let was = root::installed(current);
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
