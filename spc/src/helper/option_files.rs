//! Files that options name, for a helper that runs in a client root: it sees another tree than whoever named them. They
//! are copied beside its claim, in memory, and go with it.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::{Host, caller};
use crate::kinds::FILES;
use crate::options::Options;

/// The biggest that is copied.
const BIGGEST: u64 = 1024 * 1024;

/// The files of one mount, open.
#[derive(Debug, Default)]
pub struct Files {
    directory: PathBuf,
    open: Vec<(File, PathBuf)>,
}

impl Files {
    /// Opens the files that options name, and gives the options as they read when the copies are in this directory. A
    /// name that leads to no file stays as it is: the helper will say what it misses. Copies made earlier will do
    /// where the names lead nowhere any more.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn take(
        options: &Options,
        host: &Host,
        directory: PathBuf,
        copies: Option<&Path>,
    ) -> Result<(Options, Self)> {
        let (mut there, mut taken) = (options.clone(), Vec::new());
        for key in FILES {
            let Some(path) = options.value(key).map(PathBuf::from) else {
                continue;
            };
            let opened = open(&path, host)?;
            let earlier = || File::open(copies?.join(key)).ok();
            let Some(file) = opened.ok().filter(is_plain).or_else(earlier) else {
                continue;
            };
            let copy = directory.join(key);
            there.replace(key, &copy.to_string_lossy());
            taken.push((file, copy));
        }
        let files = Self {
            directory,
            open: taken,
        };
        Ok((there, files))
    }

    /// Makes the copies, which only root may read.
    ///
    /// # Errors
    /// One cannot be read or written, or is too big.
    pub fn copy(&self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let fail =
            |e: std::io::Error| Error::system("cannot copy a file that an option names").because(e);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.directory)
            .map_err(fail)?;
        for (file, copy) in &self.open {
            let (mut file, mut bytes) = (file, Vec::new());
            // An earlier attempt may have read it.
            file.rewind().map_err(fail)?;
            file.take(BIGGEST + 1)
                .read_to_end(&mut bytes)
                .map_err(fail)?;
            if bytes.len() as u64 > BIGGEST {
                return Err(Error::usage("a file that an option names is too big")
                    .because(format!("more than {} KiB", BIGGEST / 1024)));
            }
            let mut new = fs::OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(copy)
                .map_err(fail)?;
            new.write_all(&bytes).map_err(fail)?;
        }
        Ok(())
    }
}

/// Opens a file that an option names: the host's where the path leads there, otherwise as whoever asked sees it.
///
/// # Errors
/// The host does not answer.
pub fn open(path: &Path, host: &Host) -> Result<std::io::Result<File>> {
    let hosts = host.settings().hosts();
    let inside = hosts.iter().find_map(|host| path.strip_prefix(host).ok());
    let Some(inside) = inside else {
        return Ok(caller::open_named(path));
    };
    let path = Path::new("/").join(inside);
    host.run("opening a file that an option names", move || {
        File::open(path)
    })
}

fn is_plain(file: &File) -> bool {
    file.metadata().is_ok_and(|data| data.is_file())
}
