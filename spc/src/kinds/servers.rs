//! Servers in sources: which a source names, what a kind does with several, and how it is seen whether one answers.
//! Pure text; the looking is done by `mount/servers/`.

use super::row;
use crate::error::{Error, Result};
use crate::mount::Options;

/// An option of any kind that has servers: more of them, or `@FILE` with them.
pub const SERVERS: &str = "x-spc.servers";

/// What a kind does with several servers.
#[derive(Clone, Copy)]
pub(super) enum Servers {
    /// One source names them all, and whoever mounts it uses them all, or chooses.
    All(Form),
    /// One is chosen that answers.
    Chosen(Form, Answering),
    /// Its sources have none.
    None,
}

/// Servers and a path.
type Parts = (Vec<String>, String);

/// What leads to an address of a name, at a port.
type Reach = fn(name: &str, address: &str, port: u16) -> Vec<String>;

/// How servers and a path make a source.
#[derive(Clone, Copy)]
pub(super) struct Form {
    split: fn(&str) -> Option<Parts>,
    join: fn(&[String], &str) -> String,
}

/// `A,B:/PATH`.
pub(super) const COLON: Form = Form {
    split: split_colon,
    join: |servers, path| format!("{}:{}", list(servers, bracketed), absolute(path)),
};

/// `A,B:/VOLUME` or `A:VOLUME`. mount.glusterfs(8) knows no brackets.
pub(super) const VOLUME: Form = Form {
    split: |source| split_colon(source).or_else(|| split(source.rsplit_once(':')?)),
    join: |servers, path| {
        let servers = list(servers, |server| bare(server).to_owned());
        format!("{servers}:{}", absolute(path))
    },
};

/// `//A,B/PATH`.
pub(super) const SLASHES: Form = Form {
    split: |source| {
        let plain = source.replace('\\', "/");
        split(plain.strip_prefix("//")?.split_once('/')?)
    },
    join: |servers, path| format!("//{}/{}", servers.join(","), path.trim_start_matches('/')),
};

/// `USER@A,B:PATH`, where a path without a slash is below the user's directory.
pub(super) const LOGIN: Form = Form {
    split: split_login,
    join: |servers, path| format!("{}:{path}", list(servers, bracketed)),
};

/// `iscsi:A,B/IQN/LUN`.
pub(super) const PORTALS: Form = Form {
    split: |source| split(source.strip_prefix("iscsi:")?.split_once('/')?),
    join: |servers, path| {
        let path = path.trim_start_matches('/');
        format!("iscsi:{}/{path}", servers.join(","))
    },
};

/// How it is seen whether a server answers, and how a helper is led to it.
#[derive(Clone, Copy, Debug)]
pub struct Answering {
    /// Its port.
    pub port: u16,
    /// Options that name another port; the first that is there counts.
    pub port_options: &'static [&'static str],
    /// What is said to it, so that it says anything; nothing where it speaks first.
    pub hello: &'static [u8],
    /// The helper takes the others as well, for when the first fails it.
    pub backups: bool,
    /// Options that name more servers, between colons.
    pub more: &'static [&'static str],
    /// The key of an option by which the helper tries for long, and its value for one try.
    pub once: Option<(&'static str, &'static str)>,
    /// Options that lead it to one of the addresses of a name; without it, the address takes the name's place.
    pub reach: Option<Reach>,
}

/// glusterd, which speaks Sun RPC.
pub(super) const GLUSTERD: Answering = Answering {
    port: 24007,
    port_options: &["server-port"],
    hello: &null_call(14_398_633, 2),
    backups: true,
    more: &["backup-volfile-servers", "backupvolfile-server"],
    once: None,
    reach: None,
};

/// A server of NFS.
pub(super) const NFSD: Answering = Answering {
    port: 2049,
    port_options: &["port"],
    hello: &null_call(100_003, 4),
    backups: false,
    more: &[],
    once: Some(("retry", "0")),
    reach: None,
};

/// A server of SMB.
pub(super) const SMBD: Answering = Answering {
    port: 445,
    port_options: &["port"],
    hello: &NEGOTIATE,
    backups: false,
    more: &[],
    once: None,
    // Its name may tell it which of several servers it is meant to be.
    reach: Some(|_, address, _| vec![format!("ip={address}")]),
};

/// sshd, which speaks first.
pub(super) const SSHD: Answering = Answering {
    port: 22,
    port_options: &["port", "Port"],
    hello: &[],
    backups: false,
    more: &[],
    once: None,
    // The key is known by the name.
    reach: Some(|name, address, port| {
        let alias = match port {
            22 => name.to_owned(),
            port => format!("[{name}]:{port}"),
        };
        vec![
            format!("HostName={address}"),
            format!("HostKeyAlias={alias}"),
        ]
    }),
};

/// A call of procedure 0, which does nothing, of a program of Sun RPC over TCP (RFC 5531).
const fn null_call(program: u32, version: u32) -> [u8; 44] {
    // A last fragment of 40 bytes: id, call, version 2 of RPC, no credentials, no verifier.
    let words = [
        0x8000_0028,
        0x7370_6300,
        0,
        2,
        program,
        version,
        0,
        0,
        0,
        0,
        0,
    ];
    let mut bytes = [0; 44];
    let mut at = 0;
    while at < bytes.len() {
        let word: u32 = words[at / 4];
        bytes[at] = word.to_be_bytes()[at % 4];
        at += 1;
    }
    bytes
}

/// Negotiate of SMB 2 (MS-SMB2 2.2.3), for the dialects 2.0.2 to 3.0.2.
const NEGOTIATE: [u8; 4 + 64 + 36 + 10] = {
    let mut bytes = [0; 4 + 64 + 36 + 10];
    // Places and bytes that are not zero; the length comes first, in network order, all others are little-endian.
    let set: [(usize, u8); 19] = [
        (3, 110),
        (4, 0xfe),
        (5, b'S'),
        (6, b'M'),
        (7, b'B'),
        (8, 64),
        // One credit.
        (18, 1),
        (68, 36),
        (70, 5),
        // Signing is possible.
        (72, 1),
        // Something for the client's id.
        (80, 1),
        (104, 0x02),
        (105, 0x02),
        (106, 0x10),
        (107, 0x02),
        (109, 0x03),
        (110, 0x02),
        (111, 0x03),
        // Filled up with one that was named already.
        (113, 0x03),
    ];
    let mut at = 0;
    while at < set.len() {
        bytes[set[at].0] = set[at].1;
        at += 1;
    }
    bytes
};

/// A source of a kind of which one server is chosen.
#[derive(Clone, Debug)]
pub struct Several {
    /// The servers, as they were named; at least one.
    pub servers: Vec<String>,
    /// How it is seen whether they answer.
    pub answering: Answering,
    path: String,
    join: fn(&[String], &str) -> String,
}

impl Several {
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

/// The servers of a source and of the options, where one of them is to be chosen.
pub fn several(fs_type: &str, source: &str, options: &Options) -> Option<Several> {
    let Servers::Chosen(form, answering) = row(fs_type).ok()?.servers else {
        return None;
    };
    let (mut servers, path) = (form.split)(source)?;
    for key in answering.more {
        let more = options.value(key).unwrap_or_default();
        servers.extend(more.split(':').map(str::to_owned));
    }
    servers.retain(|server| !server.is_empty());
    dedup(&mut servers);
    (!servers.is_empty()).then_some(Several {
        servers,
        answering,
        path,
        join: form.join,
    })
}

/// A source with these servers beside its own. It may be the path alone.
///
/// # Errors
/// The kind's sources have no servers, one is bad, or there is no path.
pub fn with(fs_type: &str, source: &str, more: &[String]) -> Result<String> {
    let form = match row(fs_type)?.servers {
        Servers::All(form) | Servers::Chosen(form, _) => form,
        Servers::None => {
            return Err(
                Error::usage(format!("sources of type {fs_type} have no servers"))
                    .hint("name the whole source"),
            );
        }
    };
    let (mut servers, path) =
        (form.split)(source).unwrap_or_else(|| (Vec::new(), source.to_owned()));
    servers.extend(more.iter().cloned());
    servers.retain(|server| !server.is_empty());
    dedup(&mut servers);
    if servers.is_empty() || path.is_empty() {
        return Err(Error::usage("no servers, or no path on them"));
    }
    let source = (form.join)(&servers, &path);
    // Sources of some types have no room for a port, and would be read as something else.
    let hosts = |servers: &[String]| -> Vec<String> {
        let hosts = servers.iter().map(|server| host_of(server).to_owned());
        hosts.collect()
    };
    match (form.split)(&source) {
        Some((again, _)) if hosts(&again) == hosts(&servers) => Ok(source),
        _ => Err(
            Error::usage(format!("bad servers for {fs_type}: {}", servers.join(",")))
                .hint("name each as it stands in a source of this type; a port may be an option"),
        ),
    }
}

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
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_%@[]".contains(c);
    let bad = |server: &&String| server.starts_with(['-', '.', '@']) || !server.chars().all(plain);
    if let Some(server) = servers.iter().find(bad) {
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

/// The name or address in a server: without a user before it, and brackets around it.
pub fn host_of(server: &str) -> &str {
    let host = server.rsplit_once('@').map_or(server, |(_, host)| host);
    bare(host)
}

/// A server with another host in the place of its own.
pub fn at_host(server: &str, host: &str) -> String {
    match server.rsplit_once('@') {
        Some((user, _)) => format!("{user}@{host}"),
        None => host.to_owned(),
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

fn dedup(servers: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    servers.retain(|server| seen.insert(bare(server).to_owned()));
}

fn split((servers, path): (&str, &str)) -> Option<Parts> {
    let servers: Vec<String> = servers.split(',').map(str::to_owned).collect();
    // What has a slash is a path, with a colon in it.
    let are = servers.iter().any(|server| !server.is_empty())
        && servers.iter().all(|server| !server.contains('/'));
    are.then(|| (servers, path.to_owned()))
}

fn split_colon(source: &str) -> Option<Parts> {
    let at = source.find(":/")?;
    split((&source[..at], &source[at + 1..]))
}

/// A user before the first server is the user at the others, unless they have their own.
fn split_login(source: &str) -> Option<Parts> {
    let mut inside = false;
    let end = source.find(|c| {
        inside = c == '[' || (inside && c != ']');
        c == ':' && !inside
    })?;
    let (mut servers, path) = split((&source[..end], &source[end + 1..]))?;
    if let Some((user, _)) = servers[0].rsplit_once('@') {
        let user = user.to_owned();
        for server in servers.iter_mut().filter(|server| !server.contains('@')) {
            *server = format!("{user}@{server}");
        }
    }
    Some((servers, path))
}

fn list(servers: &[String], write: fn(&str) -> String) -> String {
    let servers: Vec<_> = servers.iter().map(|server| write(server)).collect();
    servers.join(",")
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

/// An address with colons of its own is written in brackets.
fn bracketed(server: &str) -> String {
    let host = host_of(server);
    match host.matches(':').count() {
        0 | 1 => server.to_owned(),
        _ if server.contains(']') => server.to_owned(),
        _ => at_host(server, &format!("[{host}]")),
    }
}

/// Without the brackets around an address and nothing else.
fn bare(server: &str) -> &str {
    let inside = server.strip_prefix('[').and_then(|s| s.strip_suffix(']'));
    inside.unwrap_or(server)
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
            assert_eq!(first_of(source), server, "{source}");
        }
    }

    fn made(fs_type: &str, servers: &str, path: &str) -> Result<String> {
        with(fs_type, path, &list_of(servers)?)
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

    #[test]
    fn servers_are_found_in_sources() {
        let of = |fs_type: &str, source: &str, options: &str| {
            let options = Options::parse([options]).unwrap();
            let several = several(fs_type, source, &options)?;
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

    #[test]
    fn hellos_are_whole() {
        let call = null_call(100_003, 4);
        assert_eq!(call[..4], [0x80, 0, 0, 40]);
        assert_eq!(call[16..20], 100_003_u32.to_be_bytes());
        assert_eq!(NEGOTIATE[4..8], *b"\xfeSMB");
        assert_eq!(NEGOTIATE[3] as usize, NEGOTIATE.len() - 4);
        // The dialects, in ascending order but for the last.
        assert_eq!(NEGOTIATE[104..], [2, 2, 0x10, 2, 0, 3, 2, 3, 0, 3]);
    }
}
