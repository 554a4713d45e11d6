//! Name by which servers know this host, such as an iSCSI initiator name. The name stays the same
//! when the container is created anew.

use std::fs::{self, OpenOptions};
use std::hash::Hasher;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fnv::FnvHasher;

use crate::error::{Error, Result};
use crate::host::Host;

/// Files with an id of the machine, best first. A generated name is a hash of the id.
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/sys/class/dmi/id/product_uuid"];

/// File with a random id for a host without a machine id. It lasts until the next boot.
const STORED_ID: &str = "/run/spc/host-name";

/// Kind of a name that servers know this host by, and where programs look for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    /// Path of the file with the name, the same on the host and in the container.
    pub file: &'static str,
    /// Text before the name in the file.
    pub key: &'static str,
    /// Prefix of a generated name.
    pub prefix: &'static str,
}

/// Returns the name of this host, and a phrase that says where it comes from. The sources, in this
/// order: `requested`, the container's file, the host's file, a name generated from the machine id.
///
/// # Errors
/// Fails if the requested name is not valid, or no name can be generated.
pub fn resolve(
    host: &Host,
    kind: &HostName,
    requested: Option<&str>,
) -> Result<(String, &'static str)> {
    if let Some(name) = requested {
        // An iSCSI name has at most 223 bytes (RFC 7143).
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
        if name.is_empty() || name.len() > 223 || !name.chars().all(is_allowed) {
            return Err(Error::usage(format!("bad name for this host: {name}")));
        }
        return Ok((name.to_owned(), "as requested"));
    }
    if let Some(name) = in_file(kind) {
        return Ok((name, "of the container"));
    }
    let files = kind.clone();
    let of_host = host.run("looking for the host's name", move || {
        in_file(&files).map_or_else(
            || generate(files.prefix).map(|name| (name, "generated from the host's machine id")),
            |name| Ok((name, "of the host")),
        )
    })?;
    of_host.map_err(|e| Error::system("cannot generate a name for this host").because(e))
}

/// Returns the name of this host, as [`resolve`] does. If the container's file is missing, writes
/// the host's own name into it for the programs of the container.
///
/// # Errors
/// Fails like [`resolve`], or if the file cannot be written.
pub fn provide(host: &Host, kind: &HostName, requested: Option<&str>) -> Result<String> {
    let (name, _) = resolve(host, kind, requested)?;
    if in_file(kind).is_none() {
        let write = || {
            if let Some(dir) = Path::new(kind.file).parent() {
                fs::create_dir_all(dir)?;
            }
            // A requested name is for one mount only; other mounts use the host's own name.
            let (own, _) = resolve(host, kind, None).unwrap_or((name.clone(), ""));
            fs::write(kind.file, format!("{}{own}\n", kind.key))
        };
        write().map_err(|e| {
            Error::system(format!("cannot write {}", kind.file))
                .because(e)
                .hint("with a read-only container, add --tmpfs for its directory")
        })?;
    }
    Ok(name)
}

/// Reads the name from its file.
fn in_file(kind: &HostName) -> Option<String> {
    let text = fs::read_to_string(kind.file).ok()?;
    let mut lines = text.lines();
    let name = lines.find_map(|line| line.trim().strip_prefix(kind.key))?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Generates a name from the machine id. Run it on the host's thread.
fn generate(prefix: &str) -> std::io::Result<String> {
    let machine_id = MACHINE_IDS
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
        .find(|text| text.len() >= 32);
    let seed = match machine_id {
        Some(id) => id,
        None => stored_id()?,
    };
    Ok(format!("{prefix}{}", digest(prefix, &seed)))
}

/// Reads the stored id, or stores a random one.
fn stored_id() -> std::io::Result<String> {
    if let Ok(stored) = fs::read_to_string(STORED_ID)
        && !stored.trim().is_empty()
    {
        return Ok(stored.trim().to_owned());
    }
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let seed: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(dir) = Path::new(STORED_ID).parent() {
        fs::create_dir_all(dir)?;
    }
    let new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(STORED_ID);
    match new {
        Ok(mut file) => file
            .write_all(format!("{seed}\n").as_bytes())
            .map(|()| seed),
        // Another process created the file first.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Ok(fs::read_to_string(STORED_ID)?.trim().to_owned())
        }
        Err(error) => Err(error),
    }
}

/// Returns 48 bits of the FNV-1a hash in hex, so that the name does not reveal the machine id.
fn digest(prefix: &str, seed: &str) -> String {
    let mut hasher = FnvHasher::default();
    hasher.write(prefix.as_bytes());
    hasher.write(seed.as_bytes());
    format!("{:012x}", hasher.finish() >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_name_is_the_same_for_the_same_machine() {
        let one = digest("iqn.x:", "0123456789abcdef0123456789abcdef");
        assert_eq!(one, digest("iqn.x:", "0123456789abcdef0123456789abcdef"));
        assert_ne!(one, digest("iqn.x:", "0123456789abcdef0123456789abcdee"));
        assert_eq!(one.len(), 12);
    }
}
