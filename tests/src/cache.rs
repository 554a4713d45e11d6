//! Cache of things that take long to make, in the user's cache directory, by a hash of their
//! inputs.

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::times;

/// Number of unused entries of a kind that stay, because other checkouts may use them.
const KEPT: usize = 2;

/// Returns the cache directory, and makes it if it is missing.
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

/// Returns an empty directory. Every host mounts its own files on it, in its own mount namespace.
pub fn mount_point() -> Result<PathBuf> {
    let path = directory()?.join("empty");
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Name of a cache entry: a hash of its inputs.
pub struct Key(Sha256);

impl Key {
    /// Starts a key with the recipe.
    pub fn new(recipe: &str) -> Self {
        let mut key = Self(Sha256::new());
        key.add(recipe.as_bytes());
        key
    }

    /// Adds an input.
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

/// Returns an entry of the cache, made now if it is missing.
///
/// An entry is made under a lock and renamed when it is complete. No process removes it while this
/// process runs.
pub fn cached(kind: &str, key: Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = directory()?;
    let path = cache.join(format!("{kind}-{}", key.name()));
    if hold(&path)? {
        return Ok(path);
    }
    let started = Instant::now();
    let lock = File::create(cache.join(format!("{kind}.lock")))?;
    lock.lock().context("cannot lock the cache")?;
    if hold(&path)? {
        let waited = format!("wait for cache {kind}");
        times::note(waited, started.elapsed(), Duration::ZERO);
        return Ok(path);
    }
    let started = Instant::now();
    eprintln!("lab: making {}", path.display());
    let unfinished = cache.join(format!("{kind}.unfinished"));
    remove(&unfinished)?;
    make(&unfinished).with_context(|| format!("cannot make {}", path.display()))?;
    fs::rename(&unfinished, &path)?;
    ensure!(
        hold(&path)?,
        "removed by another process: {}",
        path.display()
    );
    let (time, size) = (started.elapsed(), size(&path)? / 1_000_000);
    eprintln!("lab: made {} in {time:.1?}: {size} MB", path.display());
    times::note(format!("cache {kind}"), time, Duration::ZERO);
    forget_old(&cache, kind)?;
    Ok(path)
}

/// Locks an entry against removal, and returns whether it exists.
fn hold(path: &Path) -> Result<bool> {
    static HELD: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if held.contains_key(path) {
        return Ok(true);
    }
    let Ok(file) = File::open(path) else {
        return Ok(false);
    };
    file.lock_shared().context("cannot lock the cache")?;
    // Another process may have removed the entry before the lock was taken.
    let is_there = path.exists();
    if is_there {
        held.insert(path.to_owned(), file);
    }
    Ok(is_there)
}

/// Returns the bytes on disk of a file or of all files of a tree.
fn size(path: &Path) -> Result<u64> {
    let data = fs::symlink_metadata(path)?;
    if !data.is_dir() {
        return Ok(data.blocks() * 512);
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

/// Removes old entries of a kind, except the newest [`KEPT`] and entries that processes hold. The
/// caller holds the lock of the kind.
fn forget_old(cache: &Path, kind: &str) -> Result<()> {
    let mut free = Vec::new();
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let start = name.and_then(|name| Some(name.rsplit_once('-')?.0));
        if start == Some(kind) {
            let file = File::open(&path)?;
            if file.try_lock().is_ok() {
                free.push((file.metadata()?.modified()?, path, file));
            }
        }
    }
    free.sort_by_key(|(modified, ..)| Reverse(*modified));
    free.iter()
        .skip(KEPT)
        .try_for_each(|(_, path, _)| remove(path))
}

/// Removes a file or a tree, if it exists.
pub fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    result.with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outdated_goes_and_what_is_in_use_stays() {
        let cache = std::env::temp_dir().join(format!("lab-cache-{}", std::process::id()));
        fs::create_dir(&cache).unwrap();
        let paths: Vec<PathBuf> = (0..5)
            .map(|number| cache.join(format!("a-{number}")))
            .collect();
        for path in &paths {
            fs::write(path, "").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        fs::write(cache.join("a-b-0"), "").unwrap();
        assert!(hold(&paths[0]).unwrap());
        assert!(!hold(&cache.join("a-none")).unwrap());
        forget_old(&cache, "a").unwrap();
        let left: Vec<bool> = paths.iter().map(|path| path.exists()).collect();
        assert_eq!(left, [true, false, false, true, true]);
        assert!(cache.join("a-b-0").exists(), "another kind");
        fs::remove_dir_all(&cache).unwrap();
    }
}
