//! Files that options name, such as keys and configuration, for a helper in a client root file
//! system.
//!
//! Such a helper does not see the files of the caller. spc copies them beside the redirect of the
//! mount, below `/run`, and removes them together with the redirect.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::{Host, caller};
use crate::kinds::FILE_OPTIONS;
use crate::options::Options;

/// Largest file that spc copies, in bytes.
const MAX_SIZE: u64 = 1024 * 1024;

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

/// Opens a file that an option names: on the host for a path below `/host`, otherwise in the root
/// directory of the caller.
///
/// # Errors
/// The host's namespace does not respond.
pub fn open(path: &Path, host: &Host) -> Result<std::io::Result<File>> {
    let hosts = host.settings().hosts();
    let on_host = hosts.iter().find_map(|host| path.strip_prefix(host).ok());
    let Some(on_host) = on_host else {
        return Ok(caller::open_named(path));
    };
    let path = Path::new("/").join(on_host);
    host.run("opening a file that an option names", move || {
        File::open(path)
    })
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|data| data.is_file())
}
