//! The name of what the programs of a container's image are: two images with the same ones have one client root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::host::confinement::PROGRAM_DIRS;

/// In the container: what [`name`] found.
const KNOWN: &str = "/spc/root-id";

/// Names what the programs of this image are, and remembers it: programs that are added or removed change the time of
/// their directory.
///
/// # Errors
/// A directory cannot be read.
pub fn name() -> std::io::Result<String> {
    let mut times = String::new();
    for directory in PROGRAM_DIRS {
        if let Ok(data) = fs::metadata(directory) {
            times.push_str(&format!("{}.{} ", data.mtime(), data.mtime_nsec()));
        }
    }
    let known = fs::read_to_string(KNOWN).unwrap_or_default();
    if let Some((before, id)) = known.split_once('\n')
        && before == times
        && !id.is_empty()
    {
        return Ok(id.to_owned());
    }
    let id = name_image()?;
    // Where nothing can be written it is worked out each time.
    let new = format!("{KNOWN}.{}", std::process::id());
    let _ = fs::write(&new, format!("{times}\n{id}")).and_then(|()| fs::rename(&new, KNOWN));
    Ok(id)
}

/// The version, and a hash over names, sizes and times below `/usr`.
fn name_image() -> std::io::Result<String> {
    let mut hash = Hash::default();
    hash.tree(Path::new("/usr"))?;
    Ok(format!("{}-{:016x}", env!("CARGO_PKG_VERSION"), hash.0))
}

/// FNV-1a: no more is needed to tell versions of one image apart.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn tree(&mut self, directory: &Path) -> std::io::Result<()> {
        let mut entries = fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let data = entry.metadata()?;
            self.add(entry.file_name().as_encoded_bytes());
            self.add(&data.mode().to_le_bytes());
            if data.is_dir() {
                self.tree(&entry.path())?;
            } else {
                self.add(&data.len().to_le_bytes());
                self.add(&data.mtime().to_le_bytes());
            }
        }
        Ok(())
    }
}
