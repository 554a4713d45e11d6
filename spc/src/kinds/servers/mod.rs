//! Servers in sources: which a source names, what a kind does with several, and how it is seen whether one answers.
//! Pure text; the looking is done by `mount/servers/`.

pub(crate) mod form;
mod list;
mod server_probe;

pub use crate::kinds::servers::server_probe::ServerProbe;
pub(super) use crate::kinds::servers::server_probe::{GLUSTERD, NFSD, SMBD, SSHD};
pub(super) use form::{COLON, LOGIN, PORTALS, SLASHES, VOLUME};
pub use form::{at_host, host_of};
pub use list::{in_file, list_of};

use crate::kinds::servers::form::{Form, bare};
use crate::options::Options;

/// An option of any kind that has servers: more of them, or `@FILE` with them.
pub const SERVERS: &str = "x-spc.servers";

/// What a kind does with several servers.
#[derive(Clone, Copy)]
pub(super) enum Servers {
    /// One source names them all, and whoever mounts it uses them all, or chooses.
    All(Form),
    /// One is chosen that answers.
    Chosen(Form, ServerProbe),
    /// Its sources have none.
    None,
}

/// A source of a kind of which one server is chosen.
#[derive(Clone, Debug)]
pub struct ServerSet {
    /// The servers, as they were named; at least one.
    pub servers: Vec<String>,
    /// How it is seen whether they answer.
    pub answering: ServerProbe,
    pub(super) path: String,
    pub(super) join: fn(&[String], &str) -> String,
}

impl ServerSet {
    /// The source with these servers.
    pub fn source(&self, servers: &[String]) -> String {
        (self.join)(servers, &self.path)
    }

    /// The port, by the options.
    pub fn port(&self, options: &Options) -> u16 {
        let keys = self.answering.port_options.iter();
        let asked = keys.filter_map(|key| options.value(key)?.parse().ok());
        asked
            .into_iter()
            .find(|port| *port != 0)
            .unwrap_or(self.answering.port)
    }
}

/// The name by which a source has its server, the first of several; none if it is a path or has no name.
pub fn first_of(source: &str) -> Option<&str> {
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
            assert_eq!(first_of(source), server, "{source}");
        }
    }

    fn made(fs_type: &str, servers: &str, path: &str) -> Result<String> {
        with_servers(fs_type, path, &list_of(servers)?)
    }

    #[test]
    fn each_kind_writes_servers_in_its_way() {
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
        ] {
            assert_eq!(made(fs_type, "a b", path).unwrap(), expected, "{fs_type}");
        }
        let six = "2001:db8::1,[2001:db8::2]";
        assert_eq!(
            made("nfs", six, "/x").unwrap(),
            "[2001:db8::1],[2001:db8::2]:/x"
        );
        assert_eq!(
            made("glusterfs", six, "x").unwrap(),
            "2001:db8::1,2001:db8::2:/x"
        );
        let ports = made("ceph", "a:6789/2001:db8::1", "/").unwrap();
        assert_eq!(ports, "a:6789,[2001:db8::1]:/");
        // Once each.
        assert_eq!(made("nfs", "a,b,a", "b:/x").unwrap(), "b,a:/x");
    }

    #[test]
    fn what_is_no_server_is_refused() {
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
            assert!(made(fs_type, servers, path).is_err(), "{fs_type} {servers}");
        }
    }

    #[test]
    fn servers_are_found_in_sources() {
        let of = |fs_type: &str, source: &str, options: &str| {
            let options = Options::parse([options]).unwrap();
            let several = server_set(fs_type, source, &options)?;
            Some((
                several.servers.join(" "),
                several.source(&several.servers),
                several.port(&options),
            ))
        };
        for (fs_type, source, options, servers, again, port) in [
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
            let expected = (servers.to_owned(), again.to_owned(), port);
            assert_eq!(of(fs_type, source, options), Some(expected), "{source}");
        }
        for (fs_type, source) in [
            ("ceph", "a,b:/"),
            ("ext4", "iscsi:a,b/iqn.x/0"),
            ("nfs", "x"),
            ("tmpfs", "a:/x"),
        ] {
            assert!(of(fs_type, source, "").is_none(), "{source}");
        }
        assert_eq!(host_of("me@[2001:db8::1]"), "2001:db8::1");
        assert_eq!(at_host("me@nas", "192.0.2.1"), "me@192.0.2.1");
    }
}
