//! Servers in sources: the servers that a source names, the use that a kind makes of several, and
//! the probe of each kind. Pure text; the room `servers/` sends the probes.

pub(crate) mod form;
mod list;
mod server_probe;

pub use crate::kinds::servers::server_probe::ServerProbe;
pub(super) use crate::kinds::servers::server_probe::{GLUSTERD, NFSD, SMBD, SSHD};
pub(super) use form::{COLON, LOGIN, PORTALS, SLASHES, VOLUME};
pub use form::{host_of, with_host};
pub use list::{parse_file, parse_list};

use crate::kinds::servers::form::{Form, bare};
use crate::options::Options;

/// Option with further servers: a list, or `@FILE` with one. For any kind whose sources have
/// servers.
pub const SERVERS: &str = "x-spc.servers";

/// Use that a kind makes of several servers.
#[derive(Clone, Copy)]
pub(super) enum Servers {
    /// The source lists all servers; the client connects to all of them, or chooses one.
    All(Form),
    /// spc mounts from one server that answers its probe.
    OneOf(Form, ServerProbe),
    /// Sources have no server.
    None,
}

/// Servers and path of a source from which spc mounts one server.
#[derive(Clone, Debug)]
pub struct ServerSet {
    /// Servers as they were written; at least one.
    pub servers: Vec<String>,
    /// Probe of the servers.
    pub probe: ServerProbe,
    pub(super) path: String,
    pub(super) join: fn(&[String], &str) -> String,
}

impl ServerSet {
    /// Writes the source with the given servers.
    pub fn source(&self, servers: &[String]) -> String {
        (self.join)(servers, &self.path)
    }

    /// Port of the servers: from the options, or the usual one. Port 0 counts as not given.
    pub fn port(&self, options: &Options) -> u16 {
        let keys = self.probe.port_options.iter();
        let given = keys.filter_map(|key| options.value(key)?.parse().ok());
        given
            .into_iter()
            .find(|port| *port != 0)
            .unwrap_or(self.probe.port)
    }
}

/// First server of a source, as it is written there; none if the source is a path or names no
/// server. Works without a type, so a source without a server can give its own text.
pub fn first_server(source: &str) -> Option<&str> {
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

/// Removes duplicates, and keeps the first of each. Brackets around an address do not count.
pub(crate) fn dedup(servers: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    servers.retain(|server| seen.insert(bare(server).to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::kinds::{server_set, with_servers};

    #[test]
    fn the_first_server_of_a_source_is_found() {
        for (source, server) in [
            ("192.0.2.1:/vol", Some("192.0.2.1")),
            ("[2001:db8::1]:/vol", Some("[2001:db8::1]")),
            ("//nas/share/below", Some("nas")),
            ("me@host:dir", Some("me@host")),
            ("a:6789,b:6789:/", Some("a")),
            ("bucket", Some("bucket")),
            ("/srv/data", None),
            ("/srv/a[1]", None),
            (":/", None),
        ] {
            assert_eq!(first_server(source), server, "{source}");
        }
    }

    fn joined(fs_type: &str, servers: &str, path: &str) -> Result<String> {
        with_servers(fs_type, path, &parse_list(servers)?)
    }

    #[test]
    fn each_kind_joins_servers_in_its_own_form() {
        for (fs_type, path, expected) in [
            ("glusterfs", "vol/dir", "a,b:/vol/dir"),
            ("glusterfs", "/vol/x:y", "a,b:/vol/x:y"),
            ("nfs", "/x:/y", "a,b:/x:/y"),
            ("ceph", "/", "a,b:/"),
            ("fuse.ceph", "/", "a,b:/"),
            ("nfs", "/export", "a,b:/export"),
            ("nfs4", "c:/export", "c,a,b:/export"),
            ("cifs", "share/dir", "//a,b/share/dir"),
            ("cifs", r"\\c\share", "//c,a,b/share"),
            ("fuse.sshfs", "dir", "a,b:dir"),
            ("ext4", "iqn.x:y/0", "iscsi:a,b/iqn.x:y/0"),
            ("ext4", "iscsi:c/iqn.x:y/0", "iscsi:c,a,b/iqn.x:y/0"),
            ("xfs", "iqn.x:y/0", "iscsi:a,b/iqn.x:y/0"),
            ("auto", "iqn.x:y/0", "iscsi:a,b/iqn.x:y/0"),
        ] {
            assert_eq!(joined(fs_type, "a b", path).unwrap(), expected, "{fs_type}");
        }
        let ipv6 = "2001:db8::1,[2001:db8::2]";
        assert_eq!(
            joined("nfs", ipv6, "/x").unwrap(),
            "[2001:db8::1],[2001:db8::2]:/x"
        );
        assert_eq!(
            joined("glusterfs", ipv6, "x").unwrap(),
            "2001:db8::1,2001:db8::2:/x"
        );
        let ports = joined("ceph", "a:6789/2001:db8::1/[2001:db8::2]:6789", "/").unwrap();
        assert_eq!(ports, "a:6789,[2001:db8::1],[2001:db8::2]:6789:/");
        // Duplicates are dropped.
        assert_eq!(joined("nfs", "a,b,a", "b:/x").unwrap(), "b,a:/x");
    }

    #[test]
    fn servers_that_do_not_fit_the_kind_are_refused() {
        for (fs_type, servers, path) in [
            ("nfs", "a -o", "/x"),
            ("fuse.sshfs", "a:22", "dir"),
            ("nfs", "", "/x"),
            ("nfs", "@/etc/passwd", "/x"),
            ("nfs", "a;b", "/x"),
            ("nfs", "a", ""),
            ("tmpfs", "a", "/x"),
            ("fuse.s3fs", "a", "/x"),
        ] {
            assert!(
                joined(fs_type, servers, path).is_err(),
                "{fs_type} {servers}"
            );
        }
    }

    #[test]
    fn servers_and_port_are_read_from_source_and_options() {
        let read = |fs_type: &str, source: &str, options: &str| {
            let options = Options::parse([options]).unwrap();
            let set = server_set(fs_type, source, &options)?;
            Some((
                set.servers.join(" "),
                set.source(&set.servers),
                set.port(&options),
            ))
        };
        for (fs_type, source, options, servers, rewritten, port) in [
            ("nfs", "a,b:/x:/y", "", "a b", "a,b:/x:/y", 2049),
            (
                "nfs",
                "[2001:db8::1],b:/x",
                "port=7",
                "[2001:db8::1] b",
                "[2001:db8::1],b:/x",
                7,
            ),
            ("glusterfs", "a:vol", "", "a", "a:/vol", 24007),
            (
                "glusterfs",
                "a:/v",
                "backup-volfile-servers=b:c:a,server-port=8",
                "a b c",
                "a,b,c:/v",
                8,
            ),
            ("cifs", "//a,b/s/d", "port=0", "a b", "//a,b/s/d", 445),
            (
                "fuse.sshfs",
                "me@a,you@b,c:d:e",
                "",
                "me@a you@b me@c",
                "me@a,you@b,me@c:d:e",
                22,
            ),
            (
                "fuse.sshfs",
                "me@[2001:db8::1],b:",
                "",
                "me@[2001:db8::1] me@b",
                "me@[2001:db8::1],me@b:",
                22,
            ),
        ] {
            let expected = (servers.to_owned(), rewritten.to_owned(), port);
            assert_eq!(read(fs_type, source, options), Some(expected), "{source}");
        }
        for (fs_type, source) in [
            ("ceph", "a,b:/"),
            ("ext4", "iscsi:a,b/iqn.x/0"),
            ("nfs", "x"),
            ("tmpfs", "a:/x"),
        ] {
            assert!(read(fs_type, source, "").is_none(), "{source}");
        }
        assert_eq!(host_of("me@[2001:db8::1]"), "2001:db8::1");
        assert_eq!(with_host("me@nas", "192.0.2.1"), "me@192.0.2.1");
    }
}
