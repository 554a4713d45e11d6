//! Lists of servers in options and files.

use crate::error::{Error, Result};

/// Parses a list of servers, separated by commas, slashes or white space.
///
/// # Errors
/// Fails if an item has not the form of a server, or if the list is empty.
pub fn parse_list(text: &str) -> Result<Vec<String>> {
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
        return Err(Error::usage("bad list of servers: it is empty"));
    }
    Ok(servers)
}

/// Returns whether a text has the form `[USER@]HOST[:PORT]`, where HOST may be in brackets.
fn is_server(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_%".contains(c);
    let valid = |text: &str| !text.starts_with(['-', '.']) && text.chars().all(plain);
    let (user, host) = text.rsplit_once('@').unwrap_or(("user", text));
    let (inside, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => (host, ""),
    };
    let port = port.is_empty() || (port.starts_with(':') && valid(port));
    valid(user) && valid(inside) && port && !user.is_empty() && !inside.is_empty()
}

/// Parses a file with lists of servers, in which `#` begins a comment. Errors do not quote the
/// file: a wrong path may name one with secrets.
///
/// # Errors
/// Fails if a line has an item that has not the form of a server, or if the file has no server.
pub fn parse_file(text: &str) -> Result<Vec<String>> {
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
        servers.extend(parse_list(line).map_err(fail)?);
    }
    if servers.is_empty() {
        return Err(Error::usage("the file has no server"));
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_user_host_and_port_make_a_server() {
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
    fn errors_in_a_server_file_do_not_quote_it() {
        let servers = parse_file("# ours\na\n\n b, c # and d\n").unwrap();
        assert_eq!(servers, ["a", "b", "c"]);
        let error = parse_file("a\nroot:$6$hunter2:1").unwrap_err().to_string();
        assert!(
            error.contains("line 2") && !error.contains("hunter2"),
            "{error}"
        );
        assert!(parse_file("# nobody\n").is_err());
    }
}
