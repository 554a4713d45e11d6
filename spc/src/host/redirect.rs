//! Redirects: files by which the launcher describes one mount to the shim.
//!
//! A redirect is in the directory of redirects, which is in the container's own root:
//! - `ID/`: the placeholder, an empty directory that the helper gets as its target;
//! - `ID.claim`: a symbolic link with the text `MODE MAJOR:MINOR INO PATH`, which names the pinned
//!   target. MODE is `carry` or `stay`;
//! - `ID.mount`: a symbolic link with the text `MNTID UNIQUEID`, which the shim creates after the
//!   mount.
//!
//! A symbolic link is created and read in one system call each. Environment variables would not do,
//! because helpers may clear them.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::target::Pinned;

/// Directory on the host with a directory of redirects for each client root file system.
pub const REDIRECTS: &str = "/run/spc/targets";

/// Treatment of mount calls on the placeholder by the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Redirect to the host. The word in the file is `carry`.
    ToHost,
    /// Local in the container; the launcher grafts the finished mount. The word in the file is
    /// `stay`.
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

/// Redirect of one mount, as the paths of its files.
#[derive(Clone, Debug)]
pub struct Redirect {
    placeholder: PathBuf,
}

impl Redirect {
    /// Returns the redirect with this id. Its files need not exist.
    pub fn with_id(redirects: &Path, id: &str) -> Self {
        Self {
            placeholder: redirects.join(id),
        }
    }

    /// Creates the files of a redirect to a pinned target.
    ///
    /// # Errors
    /// Fails if the directory of redirects is missing or cannot be written.
    pub fn create(redirects: &Path, id: &str, mode: Mode, target: &Pinned) -> Result<Self> {
        let redirect = Self::with_id(redirects, id);
        let (major, minor) = target.dev;
        let mut text = OsString::from(format!("{mode} {major}:{minor} {} ", target.ino));
        text.push(&target.path);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&redirect.placeholder)
            .and_then(|()| symlink(text, redirect.file("claim")))
            .map_err(|e| {
                redirect.remove_or_warn();
                Error::system(format!("cannot create a placeholder in {}", redirects.display()))
                    .because(e)
                    .hint("the directory must be writable: with a read-only container, add --tmpfs /spc/targets")
            })?;
        Ok(redirect)
    }

    /// Returns the placeholder directory, which the helper gets as its target.
    pub fn placeholder(&self) -> &Path {
        &self.placeholder
    }

    /// Returns the path of the socket on which the launcher receives the shim's reports on this
    /// mount.
    pub fn report(&self) -> PathBuf {
        self.file("report")
    }

    /// Returns the path of a temporary bind mount. A repair uses it to put a new mount beneath
    /// those on top of a dead one.
    pub fn peer(&self) -> PathBuf {
        self.file("peer")
    }

    /// Returns the directory with copies of the files that the helper reads.
    pub fn files(&self) -> PathBuf {
        self.file("files")
    }

    /// Returns id and unique id of the mount that the shim made, if it did.
    pub fn mount_ids(&self) -> Option<(u64, u64)> {
        let link = fs::read_link(self.file("mount"))
            .ok()?
            .into_os_string()
            .into_vec();
        let text = String::from_utf8(link).ok()?;
        let (id, unique) = text.split_once(' ')?;
        Some((id.parse().ok()?, unique.parse().ok()?))
    }

    /// Changes the mode to [`Mode::ToHost`] after the launcher has moved the finished mount to the
    /// host. From then on the shim redirects calls of the daemon on the placeholder to that mount,
    /// such as a remount, or the unmount when the daemon exits.
    ///
    /// # Errors
    /// Fails if the redirect is missing or cannot be written.
    pub fn redirect_to_host(&self, id: u64, unique: u64) -> std::io::Result<()> {
        let (target_link, new) = (self.file("claim"), self.file("new"));
        let text = fs::read_link(&target_link)?.into_os_string().into_vec();
        let mode_end = text.iter().position(|&b| b == b' ').unwrap_or_default();
        let mut redirected = Mode::ToHost.to_string().into_bytes();
        redirected.extend(&text[mode_end..]);
        let replace = |text: OsString, file: PathBuf| {
            // A process that was killed here may have left the temporary link.
            let _ = fs::remove_file(&new);
            let linked = symlink(text, &new).and_then(|()| fs::rename(&new, file));
            linked.inspect_err(|_| {
                // A link that stays is removed with the redirect.
                let _ = fs::remove_file(&new);
            })
        };
        replace(format!("{id} {unique}").into(), self.file("mount"))?;
        replace(OsString::from_vec(redirected), target_link)
    }

    /// Removes temporary files that a killed launcher left, and keeps the redirect. No other
    /// process may be using the redirect.
    ///
    /// # Errors
    /// Returns the first file that cannot be removed, and why.
    pub fn remove_temporary(&self) -> std::result::Result<(), (PathBuf, std::io::Error)> {
        ["new", "report"].into_iter().try_for_each(|suffix| {
            let file = self.file(suffix);
            allow_missing(fs::remove_file(&file), file)
        })
    }

    /// Removes all files of the redirect. A failure does not stop the removal of the others.
    ///
    /// # Errors
    /// Returns the first file that cannot be removed, and why.
    pub fn remove(&self) -> std::result::Result<(), (PathBuf, std::io::Error)> {
        let mut removed = Ok(());
        for suffix in ["claim", "new", "mount", "report"] {
            let file = self.file(suffix);
            removed = removed.and(allow_missing(fs::remove_file(&file), file));
        }
        let files = self.files();
        removed = removed.and(allow_missing(fs::remove_dir_all(&files), files));
        let placeholder = self.placeholder.clone();
        removed.and(allow_missing(fs::remove_dir(&placeholder), placeholder))
    }

    /// Removes all files of the redirect like [`Redirect::remove`], and logs a failure.
    pub fn remove_or_warn(&self) {
        if let Err((path, error)) = self.remove() {
            tracing::warn!(path = %path.display(), %error, "cannot remove a redirect");
        }
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.placeholder.with_extension(suffix)
    }
}

/// Turns the failed removal of a missing file into a success.
fn allow_missing(
    result: std::io::Result<()>,
    path: PathBuf,
) -> std::result::Result<(), (PathBuf, std::io::Error)> {
    let is_missing = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
    match result {
        Err(error) if is_missing(&error) => Ok(()),
        // A read-only file system returns EROFS even if the file is missing. A file that cannot be
        // checked may exist.
        Err(error) => match path.symlink_metadata() {
            Err(missing) if is_missing(&missing) => Ok(()),
            _ => Err((path, error)),
        },
        Ok(()) => Ok(()),
    }
}

/// Returns the directory of redirects of a client root file system, by a path that every process in
/// the host's PID namespace can use.
pub fn client_dir(host: &Host, id: &str) -> PathBuf {
    let root = host
        .proc_file("root")
        .unwrap_or_else(|| "/proc/1/root".into());
    root.join(REDIRECTS.trim_start_matches('/')).join(id)
}

/// Returns the ids of all redirects in a directory, incomplete ones included, sorted.
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
    fn local_redirect_becomes_one_to_the_host() {
        let redirects = std::env::temp_dir().join(format!("spc-claim-{}", std::process::id()));
        let redirect = Redirect::with_id(&redirects, "1a");
        fs::create_dir_all(redirect.placeholder()).unwrap();
        symlink("stay 0:7 1 /mnt/a b", redirect.file("claim")).unwrap();
        assert_eq!(redirect.mount_ids(), None);
        redirect.redirect_to_host(7, 8).unwrap();
        assert_eq!(redirect.mount_ids(), Some((7, 8)));
        let text = fs::read_link(redirect.file("claim")).unwrap();
        assert_eq!(text, Path::new("carry 0:7 1 /mnt/a b"));
        assert_eq!(ids(&redirects), ["1a"]);
        redirect.remove().unwrap();
        assert_eq!(fs::read_dir(&redirects).unwrap().count(), 0);
        fs::remove_dir(&redirects).unwrap();
    }

    #[test]
    fn failed_removal_counts_as_done_only_if_the_file_is_missing() {
        let fails = |path: &str| {
            let error = std::io::Error::from_raw_os_error(libc::EROFS);
            allow_missing(Err(error), path.into()).is_err()
        };
        assert!(fails("/proc/self/status"));
        assert!(!fails("/proc/self/no-such-file"));
        // The parent is not a directory, so that the file cannot be checked.
        assert!(fails("/proc/self/status/file"));
    }
}
