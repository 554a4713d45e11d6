//! Claims: how the launcher tells the shim about one mount.
//!
//! In the claims directory, which lies in the container's own root, a claim is
//! - `ID/`, the stand-in: an empty directory that the helper is given as its target;
//! - `ID.claim`, a symbolic link that reads `MODE MAJOR:MINOR INO PATH` and names the pinned target;
//! - `ID.mount`, a symbolic link that reads `MNTID UNIQUEID`, made by the shim after the mount.
//!
//! Links are read and made in one step each and need no environment, which helpers may clear.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::target::Pinned;

/// On the host: a directory of claims for each client root.
pub const REDIRECTS: &str = "/run/spc/targets";

/// What the shim does with calls on the stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Carry them to the host.
    ToHost,
    /// Let them pass: the launcher grafts the finished mount itself.
    Local,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToHost => "carry",
            Self::Local => "stay",
        })
    }
}

/// One claim, by its paths.
#[derive(Clone, Debug)]
pub struct Redirect {
    placeholder: PathBuf,
}

impl Redirect {
    /// The claim with this id, which need not exist.
    pub fn named(redirects: &Path, id: &str) -> Self {
        Self {
            placeholder: redirects.join(id),
        }
    }

    /// Makes a claim for a pinned target.
    ///
    /// # Errors
    /// The claims directory is missing or cannot be written.
    pub fn make(redirects: &Path, id: &str, mode: Mode, target: &Pinned) -> Result<Self> {
        let redirect = Self::named(redirects, id);
        let (major, minor) = target.dev;
        let mut text = OsString::from(format!("{mode} {major}:{minor} {} ", target.ino));
        text.push(&target.path);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&redirect.placeholder)
            .and_then(|()| symlink(text, redirect.file("claim")))
            .map_err(|e| {
                redirect.clear();
                Error::system(format!("cannot make a stand-in below {}", redirects.display()))
                    .because(e)
                    .hint("the directory must be writable: with a read-only container, add --tmpfs /spc/targets")
            })?;
        Ok(redirect)
    }

    /// The directory that the helper is given as its target.
    pub fn placeholder(&self) -> &Path {
        &self.placeholder
    }

    /// Where the launcher listens for the shim's reports on this mount.
    pub fn report(&self) -> PathBuf {
        self.file("report")
    }

    /// Where a mount of the host is copied to for a moment, so that another gets beneath one that is on it.
    pub fn peer(&self) -> PathBuf {
        self.file("peer")
    }

    /// Where copies of files are that the helper reads.
    pub fn files(&self) -> PathBuf {
        self.file("files")
    }

    /// Id and unique id of the mount that the shim made for it, if it did.
    pub fn mounted(&self) -> Option<(u64, u64)> {
        let link = fs::read_link(self.file("mount"))
            .ok()?
            .into_os_string()
            .into_vec();
        let text = String::from_utf8(link).ok()?;
        let (id, unique) = text.split_once(' ')?;
        Some((id.parse().ok()?, unique.parse().ok()?))
    }

    /// The launcher has moved the finished mount to the host: what its daemon does to the stand-in from now on, as a
    /// remount or the unmount at its end, is carried to that mount.
    ///
    /// # Errors
    /// The claim is not there, or cannot be written.
    pub fn carry(&self, id: u64, unique: u64) -> std::io::Result<()> {
        let (redirect, new) = (self.file("claim"), self.file("new"));
        let text = fs::read_link(&redirect)?.into_os_string().into_vec();
        let rest = text.iter().position(|&b| b == b' ').unwrap_or_default();
        let mut carried = Mode::ToHost.to_string().into_bytes();
        carried.extend(&text[rest..]);
        // Somebody may have been killed in the middle of this.
        let link = |text: OsString, file: PathBuf| {
            let _ = fs::remove_file(&new);
            let linked = symlink(text, &new).and_then(|()| fs::rename(&new, file));
            linked.inspect_err(|_| {
                // It goes with the claim at the latest.
                let _ = fs::remove_file(&new);
            })
        };
        link(format!("{id} {unique}").into(), self.file("mount"))?;
        link(OsString::from_vec(carried), redirect)
    }

    /// Removes what whoever ran the helper would have removed, had they not been killed. The claim stays. Nobody may be
    /// at work on it.
    ///
    /// # Errors
    /// The first that cannot be removed, and why.
    pub fn tidy(&self) -> std::result::Result<(), (PathBuf, std::io::Error)> {
        ["new", "report"].into_iter().try_for_each(|suffix| {
            let file = self.file(suffix);
            missing_is_fine(fs::remove_file(&file), file)
        })
    }

    /// Takes the claim away, as far as that goes. What is not there is not missed.
    ///
    /// # Errors
    /// The first that cannot be removed, and why.
    pub fn remove(&self) -> std::result::Result<(), (PathBuf, std::io::Error)> {
        let mut done = Ok(());
        for suffix in ["claim", "new", "mount", "report"] {
            let file = self.file(suffix);
            done = done.and(missing_is_fine(fs::remove_file(&file), file));
        }
        let files = self.files();
        done = done.and(missing_is_fine(fs::remove_dir_all(&files), files));
        let placeholder = self.placeholder.clone();
        done.and(missing_is_fine(fs::remove_dir(&placeholder), placeholder))
    }

    /// As [`Claim::remove`]; what is left is only told of.
    pub fn clear(&self) {
        if let Err((path, error)) = self.remove() {
            tracing::warn!(path = %path.display(), %error, "a claim could not be removed");
        }
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.placeholder.with_extension(suffix)
    }
}

fn missing_is_fine(
    result: std::io::Result<()>,
    path: PathBuf,
) -> std::result::Result<(), (PathBuf, std::io::Error)> {
    let is_missing = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
    match result {
        Err(error) if is_missing(&error) => Ok(()),
        // A read-only file system says so before it looks. What cannot be looked at may be there.
        Err(error) => match path.symlink_metadata() {
            Err(missing) if is_missing(&missing) => Ok(()),
            _ => Err((path, error)),
        },
        Ok(()) => Ok(()),
    }
}

/// The claims of a client root, as every process of the host's PID namespace can reach them.
pub fn of_client(host: &Host, id: &str) -> PathBuf {
    let root = host
        .proc_file("root")
        .unwrap_or_else(|| "/proc/1/root".into());
    root.join(REDIRECTS.trim_start_matches('/')).join(id)
}

/// Ids of all claims in the directory, whole or half made.
pub fn ids(redirects: &Path) -> Vec<String> {
    let mut ids: Vec<String> = fs::read_dir(redirects)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let stem = Path::new(&name).file_stem()?.as_bytes();
            let hex = !stem.is_empty() && stem.iter().all(u8::is_ascii_hexdigit);
            hex.then(|| String::from_utf8_lossy(stem).into_owned())
        })
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_stayed_is_carried_when_the_mount_was_moved() {
        let redirects = std::env::temp_dir().join(format!("spc-claim-{}", std::process::id()));
        let redirect = Redirect::named(&redirects, "1a");
        fs::create_dir_all(redirect.placeholder()).unwrap();
        symlink("stay 0:7 1 /mnt/a b", redirect.file("claim")).unwrap();
        assert_eq!(redirect.mounted(), None);
        redirect.carry(7, 8).unwrap();
        assert_eq!(redirect.mounted(), Some((7, 8)));
        let text = fs::read_link(redirect.file("claim")).unwrap();
        assert_eq!(text, Path::new("carry 0:7 1 /mnt/a b"));
        assert_eq!(ids(&redirects), ["1a"]);
        redirect.remove().unwrap();
        assert_eq!(fs::read_dir(&redirects).unwrap().count(), 0);
        fs::remove_dir(&redirects).unwrap();
    }

    #[test]
    fn what_may_still_be_there_is_not_taken_for_removed() {
        let refused = |path: &str| {
            let error = std::io::Error::from_raw_os_error(libc::EROFS);
            missing_is_fine(Err(error), path.into()).is_err()
        };
        assert!(refused("/proc/self/status"));
        assert!(!refused("/proc/self/no-such-file"));
        // It is no directory, so nobody can look.
        assert!(refused("/proc/self/status/file"));
    }
}
