//! Lists of servers, as options and files have them.

use crate::error::{Error, Result};

/// Reads a list of servers: between commas, slashes or white space.
///
/// # Errors
/// One cannot be a server, or there is none.
pub fn list_of(text: &str) -> Result<Vec<String>> {
    let separated = text.split(|c: char| ",/".contains(c) || c.is_whitespace());
    let servers: Vec<String> = separated
        .filter(|server| !server.is_empty())
        .map(str::to_owned)
        .collect();
    if let Some(server) = servers.iter().find(|server| !is_server(server)) {
        return Err(
            Error::usage(format!("bad server: {}", server.escape_default()))
                .hint("a server is a name or an address, with :PORT where its protocol has one"),
        );
    }
    if servers.is_empty() {
        return Err(Error::usage("bad list of servers: there is none in it"));
    }
    Ok(servers)
}

/// Whether it is `[USER@]HOST[:PORT]`, where an address may be in brackets.
fn is_server(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_%".contains(c);
    let are = |text: &str| !text.starts_with(['-', '.']) && text.chars().all(plain);
    let (user, host) = text.rsplit_once('@').unwrap_or(("user", text));
    let (inside, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => (host, ""),
    };
    let port = port.is_empty() || (port.starts_with(':') && are(port));
    are(user) && are(inside) && port && !user.is_empty() && !inside.is_empty()
}

/// Reads a file with servers, in which `#` begins a comment. What it holds is not repeated: it may be any file.
///
/// # Errors
/// A line has what cannot be a server, or there is none.
pub fn in_file(text: &str) -> Result<Vec<String>> {
    let mut servers = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        if line.trim().is_empty() {
            continue;
        }
        let fail = |_| {
            Error::usage(format!("bad server in line {}", at + 1))
                .hint("a server is a name or an address, with :PORT where its protocol has one")
        };
        servers.extend(list_of(line).map_err(fail)?);
    }
    if servers.is_empty() {
        return Err(Error::usage("there is no server in it"));
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_are_around_addresses_and_nothing_else() {
        for good in ["nas", "me@[2001:db8::1]", "[fe80::1%eth0]:22", "a_b.c:3260"] {
            assert!(is_server(good), "{good}");
        }
        for bad in [
            "", "-o", "@a", "a@", "m[A@8::0", "a[1]", "[a", "[]", "a]", "[a]b]", "[a]b", "a@b@c",
            ".a",
        ] {
            assert!(!is_server(bad), "{bad}");
        }
    }

    #[test]
    fn a_file_has_servers_and_comments_and_is_not_repeated() {
        let servers = in_file("# ours\na\n\n b, c # and d\n").unwrap();
        assert_eq!(servers, ["a", "b", "c"]);
        let error = in_file("a\nroot:$6$hunter2:1").unwrap_err().to_string();
        assert!(
            error.contains("line 2") && !error.contains("hunter2"),
            "{error}"
        );
        assert!(in_file("# nobody\n").is_err());
    }
}
