//! What takes long is made once and kept in the user's cache directory, by the content of what makes it.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How many outdated things of a kind stay.
const KEPT: usize = 2;

/// Where the lab keeps what it has made.
pub fn directory() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let cache = base.join("spc/lab");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    cache
        .canonicalize()
        .context("cannot resolve the cache directory")
}

/// A directory that stays empty: every host mounts its own files on it, in its own namespace.
pub fn mount_point() -> Result<PathBuf> {
    let path = directory()?.join("empty");
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// The name of something in the cache: a hash of all that it is made from.
pub struct Key(Sha256);

impl Key {
    /// Begins with the recipe.
    pub fn new(recipe: &str) -> Self {
        let mut key = Self(Sha256::new());
        key.add(recipe.as_bytes());
        key
    }

    /// Adds an ingredient.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn name(self) -> String {
        self.0
            .finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Finds something in the cache or makes it: under a lock, under another name, so that it is there whole or not at all.
pub fn cached(kind: &str, key: Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = directory()?;
    let path = cache.join(format!("{kind}-{}", key.name()));
    if path.exists() {
        return Ok(path);
    }
    let lock = File::create(cache.join(format!("{kind}.lock")))?;
    lock.lock().context("cannot lock the cache")?;
    if path.exists() {
        return Ok(path);
    }
    let started = Instant::now();
    eprintln!("lab: making {}", path.display());
    let unfinished = cache.join(format!("{kind}.unfinished"));
    remove(&unfinished)?;
    make(&unfinished).with_context(|| format!("cannot make {}", path.display()))?;
    fs::rename(&unfinished, &path)?;
    forget_old(&cache, kind, &path)?;
    let (time, size) = (started.elapsed(), size(&path)? / 1_000_000);
    eprintln!("lab: made {} in {time:.1?}: {size} MB", path.display());
    Ok(path)
}

/// The bytes in a file or in all files of a tree.
fn size(path: &Path) -> Result<u64> {
    let data = fs::symlink_metadata(path)?;
    if !data.is_dir() {
        return Ok(data.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

/// Keeps the newest few of a kind: other checkouts, and tests that are running, may be using them.
fn forget_old(cache: &Path, kind: &str, newest: &Path) -> Result<()> {
    let mut old = Vec::new();
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if path != newest
            && name
                .rsplit_once('-')
                .is_some_and(|(start, _)| start == kind)
        {
            old.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    old.sort();
    let surplus = old.len().saturating_sub(KEPT);
    old.iter()
        .take(surplus)
        .try_for_each(|(_, path)| remove(path))
}

/// Removes a file or a tree that may not exist.
pub fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    result.with_context(|| format!("cannot remove {}", path.display()))
}
