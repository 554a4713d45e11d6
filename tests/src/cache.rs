//! What takes long is made once and kept in the user's cache directory, by the content of what makes it.

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

/// How many things of a kind stay that nobody is using: other checkouts may want them.
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
/// It stays there for as long as this process runs.
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
    ensure!(hold(&path)?, "removed by somebody: {}", path.display());
    let (time, size) = (started.elapsed(), size(&path)? / 1_000_000);
    eprintln!("lab: made {} in {time:.1?}: {size} MB", path.display());
    times::note(format!("cache {kind}"), time, Duration::ZERO);
    forget_old(&cache, kind)?;
    Ok(path)
}

/// Keeps something from being forgotten, if it is there.
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
    // It may have been removed before it was locked.
    let is_there = path.exists();
    if is_there {
        held.insert(path.to_owned(), file);
    }
    Ok(is_there)
}

/// Bytes on disk of a file or of all files of a tree.
fn size(path: &Path) -> Result<u64> {
    let data = fs::symlink_metadata(path)?;
    if !data.is_dir() {
        return Ok(data.blocks() * 512);
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

/// Removes what is outdated, but for the newest few and what other processes hold. Called under the lock of the kind.
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

/// Removes a file or a tree that may not exist.
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
