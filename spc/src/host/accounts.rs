//! Users and groups of the host, by the files in its `/etc`. Other sources of names, such as LDAP,
//! are not asked.

use crate::error::{Error, Result, errno_text};
use crate::host::Host;

/// Largest `/etc/passwd` or `/etc/group` that is read.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Returns the id of a user of the host, by name or number. `useruid` is the caller, root.
///
/// # Errors
/// The host has no such user.
pub fn uid(host: &Host, name: &str) -> Result<u32> {
    id(host, name, "useruid", "/etc/passwd", "user")
}

/// Returns the id of a group of the host, by name or number. `usergid` is the caller's, root's.
///
/// # Errors
/// The host has no such group.
pub fn gid(host: &Host, name: &str) -> Result<u32> {
    id(host, name, "usergid", "/etc/group", "group")
}

fn id(host: &Host, name: &str, own: &str, file: &'static str, what: &str) -> Result<u32> {
    if name == own {
        return Ok(0);
    }
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let fail = || {
        Error::usage(format!("the host has no {what} {name}")).hint(format!(
            "give the number; only {file} of the host is looked at"
        ))
    };
    let read = move || -> std::io::Result<String> {
        use std::io::Read;
        let mut text = String::new();
        std::fs::File::open(file)?
            .take(MAX_BYTES)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    let text = host.run("reading the host's accounts", read)?;
    let text = text.map_err(|e| fail().because(errno_text(e)))?;
    find(&text, name).ok_or_else(fail)
}

/// Returns the id in the third field of the line that begins with a name (passwd(5), group(5)).
fn find(text: &str, name: &str) -> Option<u32> {
    let mut lines = text.lines().map(|line| line.split(':'));
    let mut fields =
        lines.find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    fields.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_the_whole_first_field() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:2::/:/x\nd:x:y:1\n";
        assert_eq!(find(passwd, "daemon"), Some(1));
        assert_eq!(find(passwd, "root"), Some(0));
        for missing in ["daemo", "", "x", "d"] {
            assert_eq!(find(passwd, missing), None, "{missing}");
        }
    }
}
