//! `spc uninstall`: removes the installed files and the client root file systems.

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
use crate::process::candidates;
use crate::recovery::ended_pods::pod_of;
use crate::recovery::records::reconcile_record;
use crate::state::Session;
use crate::state::presence::entries_of;

/// Result of `spc uninstall`, printed as text or JSON.
#[derive(Debug, Serialize)]
pub struct Uninstalled {
    /// Version that was installed, if any.
    pub version: Option<String>,
    /// Paths that were removed.
    pub removed: Vec<PathBuf>,
    /// Files that were left on the host and the reason, as a sentence.
    pub left: Option<String>,
}

/// Removes everything that spc has on the host.
///
/// With `force`, client root file systems that mounts need stay until the last of these mounts
/// ends.
///
/// # Errors
/// Mounts need the client programs and `force` is not given, or a file cannot be removed.
pub fn uninstall(session: &Session, force: bool) -> Result<Uninstalled> {
    let lock = lock(session)?;
    let host = &session.host;
    reconcile_gone_mounts(session)?;
    let (records, _) = session.ledger.all()?;
    let needing = records.iter().filter(|record| record.root.is_some());
    let needing: Vec<String> = needing.map(|r| show(r.target.as_ref())).collect();
    if !needing.is_empty() && !force {
        let what = format!("{} mounts need the installed programs", needing.len());
        let of_pods = records.iter().filter(|record| record.root.is_some());
        let of_pods = of_pods.map(|record| Path::new(&record.target));
        let end = match of_pods.filter_map(pod_of).next() {
            // An unmount would take the volume from a running pod, which then writes to the node.
            Some(_) => {
                "delete the pods that use them, or drain the node: kubectl drain NODE --ignore-daemonsets"
            }
            None => "unmount them with `spc umount --all`",
        };
        return Err(Error::new(Class::Mount, what).log(needing).hint(format!(
            "{end}; or add --force: the mounts stay, and their programs are removed after the last of them"
        )));
    }
    let manifest = host.run("reading the list of installed files", || {
        Manifest::read(Path::new("/"))
    })??;
    let version = manifest.as_ref().map(|manifest| manifest.version.clone());
    let removed = match manifest {
        Some(manifest) => remove_installed(host, manifest)?,
        None => Vec::new(),
    };
    switch(host, None)?;
    caller::release_client_root();
    root::collect_garbage(session, &[])?;
    let left = if root::all(host)?.is_empty() {
        // The lock's file is in a directory that is removed now.
        drop(lock);
        remove_empty_directories(session, records.is_empty())?;
        None
    } else {
        Some(format!(
            "{} is needed by mounts, and is removed after the last of them",
            root::ROOTS
        ))
    };
    Ok(Uninstalled {
        version,
        removed,
        left,
    })
}

/// Reconciles the records of mounts that were unmounted while no `spc serve` was running.
fn reconcile_gone_mounts(session: &Session) -> Result<()> {
    let (records, _) = session.ledger.all()?;
    let entries = entries_of(session, &records)?;
    for (record, entry) in records.iter().zip(entries) {
        if entry.is_none() {
            let (target, until) = (Path::new(&record.target), Instant::now() + LIMIT);
            let _lock = session.ledger.lock(target, CancelToken::at(until))?;
            // The record may have changed before the lock was taken.
            if let Some(record) = session.ledger.get(target)? {
                reconcile_record(session, &record)?;
            }
        }
    }
    Ok(())
}

/// Removes the entries of the manifest, then the manifest. Returns the removed paths.
///
/// # Errors
/// An entry cannot be removed. The manifest is kept then.
pub(super) fn remove_installed(host: &Host, manifest: Manifest) -> Result<Vec<PathBuf>> {
    let root = Path::new("/");
    let (entries, enabled_service) = (manifest.entries, manifest.enabled_service);
    let removed =
        host.run_within("uninstalling", LIMIT, move || apply::remove(root, &entries))??;
    if removed.iter().any(|path| extension::contains(path)) {
        extension::unmerge(enabled_service)?;
    }
    host.run("uninstalling", move || Manifest::remove(root))??;
    Ok(removed)
}

/// Removes the empty directories, the logs and, if nothing uses it, `/run/spc`.
///
/// A running container and every mount with a record use `/run/spc`; `without_records` says that
/// there is no record.
fn remove_empty_directories(session: &Session, without_records: bool) -> Result<()> {
    let run_is_unused =
        without_records && session.runs_in == RunsIn::Host && !candidates::is_running("spc");
    let removed = session.host.run(
        "removing empty directories",
        move || -> std::io::Result<()> {
            apply::unlink(&Path::new(root::ROOTS).join("lock"))?;
            for dir in [root::ROOTS, HOME] {
                ignore_missing_or_busy(fs::remove_dir(dir))?;
            }
            ignore_missing_or_busy(fs::remove_dir_all(namespace_holder::LOGS))?;
            if run_is_unused {
                ignore_missing_or_busy(fs::remove_dir_all("/run/spc"))?;
            }
            Ok(())
        },
    )?;
    removed
        .map_err(|e| Error::system(format!("cannot remove all of {HOME} on the host")).because(e))
}

/// Ignores that a directory does not exist, or that it is a mount point, which the administrator
/// owns.
fn ignore_missing_or_busy(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if ![ErrorKind::NotFound, ErrorKind::ResourceBusy].contains(&error.kind()) => {
            Err(error)
        }
        _ => Ok(()),
    }
}
