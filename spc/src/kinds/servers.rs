//! Sources made of a list of servers and a path, for doors that are given these apart.

use super::row;
use crate::error::{Error, Result};

/// What a kind does with several servers.
#[derive(Clone, Copy)]
pub(super) enum Servers {
    /// One source names them all, and its helper tries them.
    All(fn(servers: &[String], path: &str) -> String),
    /// A source has one server: the others are for when that one fails.
    One(fn(server: &str, path: &str) -> String),
    /// Its sources have none.
    None,
}

/// The sources to try, one after the other. The servers stay in their order.
///
/// # Errors
/// The kind's sources have no servers, one is empty, or the path is.
pub fn sources(fs_type: &str, servers: &[String], path: &str) -> Result<Vec<String>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_%@[]".contains(c);
    let bad = |server: &&String| {
        server.is_empty() || server.starts_with(['-', '.']) || !server.chars().all(plain)
    };
    if let Some(server) = servers.iter().find(bad) {
        return Err(
            Error::usage(format!("bad server: {}", server.escape_default()))
                .hint("a server is a name or an address, with :PORT where its protocol has one"),
        );
    }
    if servers.is_empty() || path.is_empty() {
        return Err(Error::usage("no servers, or no path on them"));
    }
    match row(fs_type)?.servers {
        Servers::All(source) => Ok(vec![source(servers, path)]),
        Servers::One(source) => Ok(servers.iter().map(|server| source(server, path)).collect()),
        Servers::None => Err(
            Error::usage(format!("sources of type {fs_type} have no servers"))
                .hint("name the whole source"),
        ),
    }
}

/// The name by which a source has its server, the first of several; none if it is a path or has no name.
pub fn named(source: &str) -> Option<&str> {
    let source = match source.strip_prefix("//") {
        Some(share) => share,
        None if source.starts_with('/') => return None,
        None => source,
    };
    let end = match source.find('[') {
        Some(open) => source[open..].find(']').map(|end| open + end + 1),
        None => source.find([':', '/', ',']),
    };
    let name = &source[..end.unwrap_or(source.len())];
    (!name.is_empty()).then_some(name)
}

/// `A,B:/PATH`.
pub(super) fn listed(servers: &[String], path: &str) -> String {
    let servers: Vec<_> = servers.iter().map(|server| bracketed(server)).collect();
    format!("{}:{}", servers.join(","), absolute(path))
}

/// `SERVER:/PATH`.
pub(super) fn colon(server: &str, path: &str) -> String {
    format!("{}:{}", bracketed(server), absolute(path))
}

/// `//SERVER/PATH`.
pub(super) fn slashes(server: &str, path: &str) -> String {
    format!("//{server}/{}", path.trim_start_matches('/'))
}

/// `USER@SERVER:PATH`, where a path without a slash is below the user's directory.
pub(super) fn login(server: &str, path: &str) -> String {
    format!("{server}:{path}")
}

/// `iscsi:A,B/IQN/LUN`.
pub(super) fn portals(servers: &[String], path: &str) -> String {
    format!(
        "iscsi:{}/{}",
        servers.join(","),
        path.trim_start_matches('/')
    )
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

/// An address with colons of its own is written in brackets.
fn bracketed(server: &str) -> String {
    match server.matches(':').count() {
        0 | 1 => server.to_owned(),
        _ if server.starts_with('[') => server.to_owned(),
        _ => format!("[{server}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_names_its_server() {
        for (source, server) in [
            ("192.0.2.1:/vol", Some("192.0.2.1")),
            ("[2001:db8::1]:/vol", Some("[2001:db8::1]")),
            ("//nas/share/below", Some("nas")),
            ("me@host:dir", Some("me@host")),
            ("a:6789,b:6789:/", Some("a")),
            ("bucket", Some("bucket")),
            ("/srv/data", None),
            (":/", None),
        ] {
            assert_eq!(named(source), server, "{source}");
        }
    }

    fn made(fs_type: &str, servers: &str, path: &str) -> Result<Vec<String>> {
        let servers: Vec<_> = servers.split(' ').map(str::to_owned).collect();
        sources(fs_type, &servers, path)
    }

    #[test]
    fn each_kind_has_its_way_with_several_servers() {
        for (fs_type, path, expected) in [
            ("glusterfs", "vol/dir", &["a,b:/vol/dir"][..]),
            ("ceph", "/", &["a,b:/"]),
            ("fuse.ceph", "/", &["a,b:/"]),
            ("nfs", "/export", &["a:/export", "b:/export"]),
            ("nfs4", "export", &["a:/export", "b:/export"]),
            ("cifs", "share/dir", &["//a/share/dir", "//b/share/dir"]),
            ("fuse.sshfs", "dir", &["a:dir", "b:dir"]),
            ("ext4", "iqn.x:y/0", &["iscsi:a,b/iqn.x:y/0"]),
        ] {
            assert_eq!(made(fs_type, "a b", path).unwrap(), expected, "{fs_type}");
        }
        let six = made("nfs", "2001:db8::1 [2001:db8::2]", "/x").unwrap();
        assert_eq!(six, ["[2001:db8::1]:/x", "[2001:db8::2]:/x"]);
        let ports = made("ceph", "a:6789 2001:db8::1", "/").unwrap();
        assert_eq!(ports, ["a:6789,[2001:db8::1]:/"]);
    }

    #[test]
    fn what_is_no_server_is_refused() {
        for (fs_type, servers, path) in [
            ("nfs", "a -o", "/x"),
            ("nfs", "", "/x"),
            ("nfs", "a/b", "/x"),
            ("nfs", "a,b", "/x"),
            ("nfs", "a", ""),
            ("tmpfs", "a", "/x"),
            ("fuse.s3fs", "a", "/x"),
        ] {
            assert!(made(fs_type, servers, path).is_err(), "{fs_type} {servers}");
        }
    }
}
