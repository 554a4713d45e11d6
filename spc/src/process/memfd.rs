//! Files in memory, for data that must not appear in arguments or on disk.

use std::fs::{File, Permissions};
use std::io::{Result, Seek, Write};
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{MemfdFlags, memfd_create};

/// Creates a sealable file in memory with these contents, positioned at its start
/// (memfd_create(2)). Only its owner may open it through `/proc/PID/fd`.
///
/// # Errors
/// No memory or no file descriptor is left.
pub fn create(name: &str, contents: &[u8]) -> Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create(name, flags)?);
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(contents)?;
    file.rewind()?;
    Ok(file)
}
