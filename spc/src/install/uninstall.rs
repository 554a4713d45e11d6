//! Takes away what was installed, and what was laid for it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::client::namespace_holder;
use crate::client::root::{self, HOME};
use crate::error::{Class, Error, Result, show};
use crate::host::runs_in::RunsIn;
use crate::host::{Host, caller};
use crate::install::manifest::Manifest;
use crate::install::switch::{LIMIT, lock, switch};
use crate::install::{apply, extension};
use crate::process::cancel::CancelToken;
use crate::process::marks;
use crate::recovery::records::reconcile_record;
use crate::state::Session;
use crate::state::presence::entries_of;

/// What was done.
#[derive(Debug, Serialize)]
pub struct Uninstalled {
    /// The version that was installed.
    pub version: Option<String>,
    /// What was taken away.
    pub removed: Vec<PathBuf>,
    /// What is still there, and why.
    pub left: Option<String>,
}

/// Takes everything off the host.
///
/// # Errors
/// Mounts need it and nobody insists (`force`), or something cannot be removed.
pub fn uninstall(session: &Session, force: bool) -> Result<Uninstalled> {
    let turn = lock(session)?;
    let host = &session.host;
    settle_gone(session)?;
    let (records, _) = session.ledger.all()?;
    let needing = records.iter().filter(|record| record.root.is_some());
    let needing: Vec<String> = needing.map(|r| show(r.target.as_ref())).collect();
    if !needing.is_empty() && !force {
        let what = format!("{} mounts need what is installed", needing.len());
        return Err(Error::new(Class::Mount, what)
            .log(needing)
            .hint("spc umount --all; or --force, which leaves them alone, and their programs until the last of them is gone"));
    }
    let manifest = host.run("reading what is installed", || {
        Manifest::read(Path::new("/"))
    })??;
    let version = manifest.as_ref().map(|manifest| manifest.version.clone());
    let removed = match manifest {
        Some(manifest) => take_away(host, manifest)?,
        None => Vec::new(),
    };
    switch(host, None)?;
    caller::settle();
    root::collect_garbage(session, &[])?;
    let left = if root::all(host)?.is_empty() {
        drop(turn);
        sweep(session, records.is_empty())?;
        None
    } else {
        Some(format!(
            "{} is needed by mounts, and goes with the last of them",
            root::ROOTS
        ))
    };
    Ok(Uninstalled {
        version,
        removed,
        left,
    })
}

/// Clears up after mounts that somebody took away where no `spc serve` was to notice.
fn settle_gone(session: &Session) -> Result<()> {
    let (records, _) = session.ledger.all()?;
    let entries = entries_of(session, &records)?;
    for (record, entry) in records.iter().zip(entries) {
        if entry.is_none() {
            let (target, until) = (Path::new(&record.target), Instant::now() + LIMIT);
            let _lock = session.ledger.lock(target, CancelToken::at(until))?;
            // What it is by now counts, not what it was.
            if let Some(record) = session.ledger.get(target)? {
                reconcile_record(session, &record)?;
            }
        }
    }
    Ok(())
}

/// Removes what the manifest lists, and the manifest.
///
/// # Errors
/// Something cannot be removed; the manifest is still there then.
pub(super) fn take_away(host: &Host, manifest: Manifest) -> Result<Vec<PathBuf>> {
    let root = Path::new("/");
    let (entries, switched_on) = (manifest.entries, manifest.switched_on);
    let removed =
        host.run_within("uninstalling", LIMIT, move || apply::remove(root, &entries))??;
    if removed.iter().any(|path| extension::has(path)) {
        extension::unmerge(switched_on)?;
    }
    host.run("uninstalling", move || Manifest::remove(root))??;
    Ok(removed)
}

/// Removes the directories that are empty now, and the logs. `/run/spc` is the ledger, which a container goes on using.
fn sweep(session: &Session, unused: bool) -> Result<()> {
    let run = unused && session.runs_in == RunsIn::Host && !marks::runs("spc");
    let swept = session
        .host
        .run("removing what is empty", move || -> std::io::Result<()> {
            apply::unlink(&Path::new(root::ROOTS).join("lock"))?;
            for dir in [root::ROOTS, HOME] {
                gone(fs::remove_dir(dir))?;
            }
            gone(fs::remove_dir_all(namespace_holder::LOGS))?;
            if run {
                gone(fs::remove_dir_all("/run/spc"))?;
            }
            Ok(())
        })?;
    swept.map_err(|e| Error::system(format!("cannot remove all of {HOME} on the host")).because(e))
}

/// What is not there is gone, and a directory that somebody mounted something on is theirs.
fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if ![ErrorKind::NotFound, ErrorKind::ResourceBusy].contains(&error.kind()) => {
            Err(error)
        }
        _ => Ok(()),
    }
}
