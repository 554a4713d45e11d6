//! The image of the super-privileged container, as an archive.

use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cache::{Key, cached};
use crate::machine;

/// The Debian that an image is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Base {
    /// Its mount(8) is 2.41. The image is `localhost/spc:latest`.
    #[default]
    Trixie,
    /// Its mount(8) is 2.38. The image is `localhost/spc:bookworm`.
    Bookworm,
}

impl Base {
    /// The name of the image that is made of it.
    pub fn image(self) -> &'static str {
        match self {
            Self::Trixie => "localhost/spc:latest",
            Self::Bookworm => "localhost/spc:bookworm",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        }
    }
}

/// What an image is made from, in the checkout.
const SOURCES: [&str; 6] = [
    "Cargo.lock",
    "Cargo.toml",
    "image",
    "scripts/build-image",
    "shim",
    "spc",
];

/// The archive of the image, built now if it never was from these sources.
pub fn image(base: Base) -> Result<PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("no checkout")?;
    let mut key = Key::new("image");
    for source in SOURCES {
        add(&mut key, &checkout.join(source))?;
    }
    let script = checkout.join("scripts/build-image");
    cached(&format!("image-{}", base.suite()), key, |path| {
        let words = ["--base", base.suite(), "--output"].map(OsStr::new);
        machine::run(script, &[words.as_slice(), &[path.as_os_str()]].concat())
    })
}

/// Adds names, modes and contents of a tree.
fn add(key: &mut Key, path: &Path) -> Result<()> {
    let data =
        fs::symlink_metadata(path).with_context(|| format!("cannot find {}", path.display()))?;
    key.add(path.file_name().unwrap_or_default().as_bytes());
    key.add(&data.permissions().mode().to_le_bytes());
    if data.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        key.add(&entries.len().to_le_bytes());
        entries.iter().try_for_each(|entry| add(key, &entry.path()))
    } else if data.is_symlink() {
        key.add(fs::read_link(path)?.as_os_str().as_bytes());
        Ok(())
    } else {
        key.add(&fs::read(path)?);
        Ok(())
    }
}
