//! Files that options name, such as keys and configuration, for a helper in a client root file
//! system.
//!
//! Such a helper does not see the files of the caller. spc copies them beside the redirect of the
//! mount, below `/run`, and removes them together with the redirect.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::{Host, caller};
use crate::kinds::FILE_OPTIONS;
use crate::options::Options;

/// Largest file that spc copies, in bytes.
const MAX_SIZE: u64 = 1024 * 1024;

/// Option whose file holds no secret.
const KNOWN_HOSTS: &str = "UserKnownHostsFile";

/// Part of a file whose words are masked, in bytes.
const MAX_SHOWN: u64 = 64 * 1024;

/// Step that an error names.
const READING: &str = "reading a file that an option names";

/// Limit for reading a file.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Open files that the options of one mount name.
#[derive(Debug, Default)]
pub struct OptionFiles {
    /// Directory for the copies.
    directory: PathBuf,
    files: Vec<OptionFile>,
}

/// Open file that an option names.
#[derive(Debug)]
struct OptionFile {
    file: File,
    /// Path of the copy.
    copy: PathBuf,
}

impl OptionFiles {
    /// Opens the files that options name. Returns the options with the paths of the copies in
    /// `directory`, and the open files.
    ///
    /// A path without a regular file stays in the options; the helper reports it. Where a file no
    /// longer exists, its copy in `earlier_copies` is used.
    ///
    /// # Errors
    /// The host's namespace does not respond.
    pub fn collect(
        options: &Options,
        host: &Host,
        directory: PathBuf,
        earlier_copies: Option<&Path>,
    ) -> Result<(Options, Self)> {
        let (mut rewritten, mut files) = (options.clone(), Vec::new());
        for key in FILE_OPTIONS {
            let Some(path) = options.value(key).map(PathBuf::from) else {
                continue;
            };
            let opened = open(&path, host)?;
            let earlier = || File::open(earlier_copies?.join(key)).ok();
            let Some(file) = opened.ok().filter(is_regular).or_else(earlier) else {
                continue;
            };
            let copy = directory.join(key);
            rewritten.replace(key, &copy.to_string_lossy());
            files.push(OptionFile { file, copy });
        }
        Ok((rewritten, Self { directory, files }))
    }

    /// Writes the copies, with mode 0600 in a directory of mode 0700.
    ///
    /// # Errors
    /// A file cannot be read or written, or is larger than 1 MiB.
    pub fn copy(&self) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let fail =
            |e: std::io::Error| Error::system("cannot copy a file that an option names").because(e);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.directory)
            .map_err(fail)?;
        for OptionFile { file, copy } in &self.files {
            let (mut file, mut bytes) = (file, Vec::new());
            // An earlier attempt may have read the file.
            file.rewind().map_err(fail)?;
            file.take(MAX_SIZE + 1)
                .read_to_end(&mut bytes)
                .map_err(fail)?;
            if bytes.len() as u64 > MAX_SIZE {
                return Err(Error::usage("a file that an option names is too large")
                    .because(format!("larger than {} KiB", MAX_SIZE / 1024)));
            }
            let mut written = fs::OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(copy)
                .map_err(fail)?;
            written.write_all(&bytes).map_err(fail)?;
        }
        Ok(())
    }
}

/// Returns the contents of the files that options name and that may hold secrets, up to 64 KiB of
/// each. A file that cannot be opened is left to the program that needs it.
///
/// # Errors
/// A file does not respond.
pub fn contents(options: &Options, host: &Host) -> Result<Vec<Vec<u8>>> {
    let read = |file: std::io::Result<File>| {
        let file = file.ok().filter(is_regular)?;
        let mut bytes = Vec::new();
        file.take(MAX_SHOWN).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    };
    let mut all = Vec::new();
    for key in FILE_OPTIONS.iter().filter(|key| **key != KNOWN_HOSTS) {
        let Some(path) = options.value(key).map(PathBuf::from) else {
            continue;
        };
        let contents = match on_host(&path, host) {
            Some(path) => host.run(READING, move || read(File::open(path)))?,
            None => {
                let (sender, receiver) = channel();
                // In a thread of its own, because the file may be a pipe, or on a dead mount. The
                // receiver may have given up.
                std::thread::spawn(move || drop(sender.send(read(caller::open_named(&path)))));
                receiver.recv_timeout(READ_LIMIT).map_err(|_| {
                    Error::system(format!("cannot read the file that {key}= names"))
                        .because("timed out")
                        .hint("name a regular file on a file system that responds")
                })?
            }
        };
        all.extend(contents);
    }
    Ok(all)
}

/// Returns the path on the host of a path below `/host`.
fn on_host(path: &Path, host: &Host) -> Option<PathBuf> {
    let hosts = host.settings().hosts();
    let below = hosts.iter().find_map(|host| path.strip_prefix(host).ok())?;
    Some(Path::new("/").join(below))
}

/// Opens a file that an option names: on the host for a path below `/host`, otherwise in the root
/// directory of the caller.
///
/// # Errors
/// The host's namespace does not respond.
pub fn open(path: &Path, host: &Host) -> Result<std::io::Result<File>> {
    match on_host(path, host) {
        Some(path) => host.run(READING, move || File::open(path)),
        None => Ok(caller::open_named(path)),
    }
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|data| data.is_file())
}
