//! Hash of a path, for names of files and cgroups.

use std::hash::Hasher;
use std::path::Path;

use fnv::FnvHasher;

/// Returns the 64-bit FNV-1a hash of a target. Unlike the standard library's hasher, the result is
/// the same in every version.
pub fn hash(target: &Path) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(target.as_os_str().as_encoded_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(Path::new("")), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(Path::new("a")), 0xaf63_dc4c_8601_ec8c);
    }
}
