//! The image of the super-privileged container, as an archive.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cache::{Key, cached};
use crate::machine;

/// Debian release that an image is based on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Base {
    /// trixie, with mount(8) 2.41. The image is `localhost/spc:latest`.
    #[default]
    Trixie,
    /// bookworm, with mount(8) 2.38. The image is `localhost/spc:bookworm`.
    Bookworm,
}

impl Base {
    /// Returns the name of the image.
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

/// Files and directories of the checkout that an image is made from.
const SOURCES: [&str; 12] = [
    "Cargo.lock",
    "Cargo.toml",
    "image/Containerfile",
    "image/absent",
    "image/apparmor",
    "image/dpkg.cfg.d",
    "image/ld.so.preload",
    "image/selinux",
    "image/shim.conf",
    "scripts/build-image",
    "shim",
    "spc",
];

/// Returns the archive of the image, built now unless the cache has it for these sources.
pub fn image(base: Base) -> Result<PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("no checkout")?;
    let mut key = Key::new("image");
    for source in SOURCES {
        add(&mut key, &checkout.join(source))?;
    }
    // Cargo also reads profile settings from the environment.
    let mut settings: Vec<_> = std::env::vars()
        .filter(|(name, _)| name.starts_with("CARGO_PROFILE_"))
        .collect();
    settings.sort();
    settings
        .iter()
        .for_each(|(name, value)| key.add(format!("{name}={value}").as_bytes()));
    let profile = profile();
    key.add(profile.as_bytes());
    let script = checkout.join("scripts/build-image");
    cached(&format!("image-{}", base.suite()), key, |path| {
        let words = ["--base", base.suite(), "--profile", &profile, "--output"];
        let words = words.map(OsStr::new);
        machine::run(script, &[words.as_slice(), &[path.as_os_str()]].concat())
    })
}

/// Returns the cargo profile of the image's launcher: `SPC_IMAGE_PROFILE`, by default the shipped
/// one.
pub(crate) fn profile() -> String {
    std::env::var("SPC_IMAGE_PROFILE").unwrap_or_else(|_| "release".to_owned())
}

/// Adds names, modes and contents of a tree to a key.
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

/// Unpacks all layers of an image archive in order, with their whiteouts.
pub(crate) fn unpack(archive: &Path, tree: &Path) -> Result<()> {
    let parts = tree.with_extension("parts");
    for directory in [tree, &parts] {
        crate::cache::remove(directory)?;
        fs::create_dir(directory)?;
    }
    tar(archive, &parts)?;
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(parts.join("manifest.json"))?).context("bad manifest")?;
    let layers = manifest[0]["Layers"].as_array().context("no layers")?;
    for layer in layers {
        let layer = layer.as_str().context("a layer without a name")?;
        tar(&parts.join(layer), tree)?;
        apply_whiteouts(tree)?;
    }
    crate::cache::remove(&parts)
}

fn tar(archive: &Path, tree: &Path) -> Result<()> {
    let words = ["--numeric-owner", "--xattrs", "-xpf"].map(OsStr::new);
    let into = [archive.as_os_str(), "-C".as_ref(), tree.as_os_str()];
    machine::run("tar", &[&words[..], &into].concat())
}

/// Applies whiteouts: `.wh.NAME` in a layer removes NAME (OCI image specification).
fn apply_whiteouts(directory: &Path) -> Result<()> {
    let names: Vec<_> = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    for name in &names {
        if let Some(gone) = name.as_bytes().strip_prefix(b".wh.") {
            ensure!(!gone.starts_with(b".wh."), "an opaque directory in a layer");
            fs::remove_file(directory.join(name))?;
            crate::cache::remove(&directory.join(OsStr::from_bytes(gone)))?;
        }
    }
    for name in &names {
        let path = directory.join(name);
        if path.symlink_metadata().is_ok_and(|data| data.is_dir()) {
            apply_whiteouts(&path)?;
        }
    }
    Ok(())
}
