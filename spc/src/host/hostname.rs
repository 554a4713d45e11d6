//! A name by which servers know this host, such as an iSCSI initiator's: the same whenever the container is made anew.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::Host;

/// What tells a machine from others, the best first. A name is made from it, but does not tell it.
const MACHINE: [&str; 2] = ["/etc/machine-id", "/sys/class/dmi/id/product_uuid"];

/// Where a name is kept, until the host is booted again, that nothing of the machine decides.
const KEPT: &str = "/run/spc/host-name";

/// A name of this host that its servers grant rights to: as asked for, or the host's own, or made from its machine id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    /// File, on the host and in the container.
    pub file: &'static str,
    /// What comes before the name there.
    pub key: &'static str,
    /// What a made name begins with.
    pub prefix: &'static str,
}

/// The name that is in force, and by what: what was asked for, the container's file, the host's file, the machine.
///
/// # Errors
/// The name that was asked for cannot be one, or there is nothing to make one of.
pub fn known(host: &Host, kind: &HostName, asked: Option<&str>) -> Result<(String, &'static str)> {
    if let Some(asked) = asked {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
        if asked.is_empty() || asked.len() > 223 || !asked.chars().all(plain) {
            return Err(Error::usage(format!("bad name for this host: {asked}")));
        }
        return Ok((asked.to_owned(), "asked for"));
    }
    if let Some(name) = in_file(kind) {
        return Ok((name, "of the container"));
    }
    let files = kind.clone();
    let of_host = host.run("looking for the host's name", move || {
        in_file(&files).map_or_else(
            || made(files.prefix).map(|name| (name, "made from the host's machine id")),
            |name| Ok((name, "of the host")),
        )
    })?;
    of_host.map_err(|e| Error::system("cannot make a name for this host").because(e))
}

/// Like [`known`]; and the programs of the container find it in their file.
///
/// # Errors
/// As [`known`], or the file cannot be written.
pub fn place(host: &Host, kind: &HostName, asked: Option<&str>) -> Result<String> {
    let (name, _) = known(host, kind, asked)?;
    if in_file(kind).is_none() {
        let write = || {
            if let Some(dir) = Path::new(kind.file).parent() {
                fs::create_dir_all(dir)?;
            }
            // Whoever was asked for one name goes on using the host's own for others.
            let (own, _) = known(host, kind, None).unwrap_or((name.clone(), ""));
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

fn in_file(kind: &HostName) -> Option<String> {
    let text = fs::read_to_string(kind.file).ok()?;
    let mut lines = text.lines();
    let name = lines.find_map(|line| line.trim().strip_prefix(kind.key))?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// On the host's thread.
fn made(prefix: &str) -> std::io::Result<String> {
    let machine = MACHINE
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
        .find(|text| text.len() >= 32);
    let seed = match machine {
        Some(machine) => machine,
        None => kept()?,
    };
    Ok(format!("{prefix}{}", digest(prefix, &seed)))
}

fn kept() -> std::io::Result<String> {
    if let Ok(kept) = fs::read_to_string(KEPT)
        && !kept.trim().is_empty()
    {
        return Ok(kept.trim().to_owned());
    }
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let seed: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(dir) = Path::new(KEPT).parent() {
        fs::create_dir_all(dir)?;
    }
    let new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(KEPT);
    match new {
        Ok(mut file) => file
            .write_all(format!("{seed}\n").as_bytes())
            .map(|()| seed),
        // Another command was first.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Ok(fs::read_to_string(KEPT)?.trim().to_owned())
        }
        Err(error) => Err(error),
    }
}

/// 48 bits of FNV-1a, which do not lead back to what they were made from.
fn digest(prefix: &str, seed: &str) -> String {
    let bytes = prefix.bytes().chain(seed.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:012x}", hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_name_is_the_same_for_the_same_machine() {
        let one = digest("iqn.x:", "0123456789abcdef0123456789abcdef");
        assert_eq!(one, digest("iqn.x:", "0123456789abcdef0123456789abcdef"));
        assert_ne!(one, digest("iqn.x:", "0123456789abcdef0123456789abcdee"));
        assert_eq!(one.len(), 12);
    }
}
