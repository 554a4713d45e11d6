//! Id of the container's image. Images with the same programs have the same id, and so share a
//! client root file system.

use std::fs;
use std::hash::Hasher;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fnv::FnvHasher;

use crate::host::confinement::PROGRAM_DIRS;

/// File in the container that caches the id, after the modification times of the program directories.
const CACHE: &str = "/spc/root-id";

/// Returns the id of this container's image, `VERSION-HASH`, from the cache or newly computed.
///
/// The cache is trusted while the program directories keep their modification times, which change
/// when programs are added or removed. A file overwritten in place is not noticed.
///
/// # Errors
/// A directory below `/usr` cannot be read.
pub fn id() -> std::io::Result<String> {
    let mut times = String::new();
    for directory in PROGRAM_DIRS {
        if let Ok(data) = fs::metadata(directory) {
            times.push_str(&format!("{}.{} ", data.mtime(), data.mtime_nsec()));
        }
    }
    let cached = fs::read_to_string(CACHE).unwrap_or_default();
    if let Some((cached_times, id)) = cached.split_once('\n')
        && cached_times == times
        && !id.is_empty()
    {
        return Ok(id.to_owned());
    }
    let id = compute_id()?;
    // An error is ignored: without a cache the id is computed each time.
    let new = format!("{CACHE}.{}", std::process::id());
    let _ = fs::write(&new, format!("{times}\n{id}")).and_then(|()| fs::rename(&new, CACHE));
    Ok(id)
}

/// Computes the id from spc's version and a hash of names, modes, sizes and times below `/usr`.
fn compute_id() -> std::io::Result<String> {
    let mut hasher = FnvHasher::default();
    add_tree(&mut hasher, Path::new("/usr"))?;
    Ok(format!(
        "{}-{:016x}",
        env!("CARGO_PKG_VERSION"),
        hasher.finish()
    ))
}

/// Adds names, modes, sizes and times below a directory to a hash.
fn add_tree(hasher: &mut FnvHasher, directory: &Path) -> std::io::Result<()> {
    let mut entries = fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let data = entry.metadata()?;
        hasher.write(entry.file_name().as_encoded_bytes());
        hasher.write(&data.mode().to_le_bytes());
        if data.is_dir() {
            add_tree(hasher, &entry.path())?;
        } else {
            hasher.write(&data.len().to_le_bytes());
            hasher.write(&data.mtime().to_le_bytes());
        }
    }
    Ok(())
}
