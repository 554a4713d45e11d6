//! The table of file system kinds: the program or kernel type that mounts each kind, and the
//! types and sources that the mount table shows afterwards. Nothing in here makes a system call.

pub mod block;
mod ceph;
mod fuse;
mod gluster;
mod infer;
pub mod model;
pub mod needs;
pub mod nfs;
pub(crate) mod resolve;
pub mod servers;
mod smb;
mod source;
mod table;

use crate::error::{Error, Result};
use crate::kinds::model::{Kind, Need, SharedService};
use crate::kinds::servers::form::host_of;
use crate::kinds::servers::{ServerSet, Servers, dedup};
use crate::kinds::table::{TABLE, row};
use crate::options::Options;

pub use infer::{Inferred, infer};
pub use resolve::{ResolvedKind, is_expected_type, resolve};

/// Options of all kinds whose value names a file that the helper reads.
pub const FILE_OPTIONS: [&str; 9] = [
    "IdentityFile",
    "UserKnownHostsFile",
    "conf",
    "cred",
    "credentials",
    "keyfile",
    "keyring",
    "passwd_file",
    "secretfile",
];

/// Services of all kinds, in the order of their start: rpcbind before rpc.statd, which needs it.
pub fn shared_services() -> impl DoubleEndedIterator<Item = &'static SharedService> {
    nfs::SERVICES.iter().chain(&block::SERVICES)
}

/// Names of the rows that can be given to `-t` as they are, and families such as `fuse.*`.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE
        .iter()
        .map(|kind| kind.name)
        .filter(|name| !["*", block::AUTO].contains(name))
}

/// Returns whether the kernel alone mounts this type, without a client program and without a
/// module.
pub fn is_clientless(fs_type: &str) -> bool {
    row(fs_type).is_ok_and(|kind| kind.clientless)
}

/// Returns type and source in the form of the table, for the other forms that the manuals of FUSE
/// programs have: type `fuse` with the source `PROGRAM#SOURCE` (mount.fuse3(8)), and types such as
/// `sshfs`.
///
/// # Errors
/// Fails if the type is `fuse` and the source names no program.
pub fn canonical(fs_type: String, source: String) -> Result<(String, String)> {
    if fs_type == "fuse" || fs_type == "fuse3" {
        return match source.split_once('#') {
            Some((program, source)) if !program.is_empty() => {
                Ok((format!("fuse.{program}"), source.to_owned()))
            }
            _ => Err(Error::usage(format!("no FUSE program is named for {source}"))
                .hint("name it in the type, as in -t fuse.sshfs, or before the source, as in sshfs#USER@HOST:")),
        };
    }
    let full = format!("fuse.{fs_type}");
    let has_row = |name: &str| TABLE.iter().any(|kind| kind.name == name);
    match has_row(&full) && !has_row(&fs_type) {
        true => Ok((full, source)),
        false => Ok((fs_type, source)),
    }
}

/// Label of a type in metrics: the name of its row, or `other`. The table limits the number of
/// labels, whatever types users request.
pub fn label(fs_type: &str) -> &'static str {
    match row(fs_type).map_or("*", |kind| kind.name) {
        "*" => "other",
        name => name.trim_end_matches(".*"),
    }
}

/// Types that need a client program: first as `-t` takes them (a family by its prefix, `fuse`),
/// then as the mount table shows them.
pub fn types_with_programs() -> (Vec<&'static str>, Vec<&'static str>) {
    let has_program = |row: &&Kind| {
        let mut needs = row.needs.iter();
        needs.any(|need| matches!(need, Need::Program { .. }))
    };
    let rows = || TABLE.iter().filter(has_program);
    let requested = rows().map(|row| row.name.strip_suffix(".*").unwrap_or(row.name));
    let shown = rows().flat_map(|row| row.expected_types);
    let shown = shown.filter(|shown| !shown.contains(['*', '{']));
    (requested.collect(), shown.copied().collect())
}

/// Servers named by the source and the options, for a kind that mounts from one of them. Returns
/// none for a kind that takes all servers at once, and for a source without a server.
pub fn server_set(fs_type: &str, source: &str, options: &Options) -> Option<ServerSet> {
    let Servers::OneOf(form, probe) = row(fs_type).ok()?.servers else {
        return None;
    };
    let (mut servers, path) = (form.split)(source)?;
    for key in probe.extra_servers_options {
        let more = options.value(key).unwrap_or_default();
        servers.extend(more.split(':').map(str::to_owned));
    }
    servers.retain(|server| !server.is_empty());
    dedup(&mut servers);
    (!servers.is_empty()).then_some(ServerSet {
        servers,
        probe,
        path,
        join: form.join,
    })
}

/// Adds servers to those of a source. The source may be the path alone.
///
/// # Errors
/// Fails if sources of this type have no servers, if a server does not fit into a source of this
/// type, or if there is no server or no path.
pub fn with_servers(fs_type: &str, source: &str, more: &[String]) -> Result<String> {
    let form = match row(fs_type)?.servers {
        Servers::All(form) | Servers::OneOf(form, _) => form,
        Servers::None => {
            return Err(
                Error::usage(format!("sources of type {fs_type} have no servers"))
                    .hint("give the whole source"),
            );
        }
    };
    let (mut servers, path) =
        (form.split)(source).unwrap_or_else(|| (Vec::new(), source.to_owned()));
    servers.extend(more.iter().cloned());
    servers.retain(|server| !server.is_empty());
    dedup(&mut servers);
    if servers.is_empty() || path.is_empty() {
        return Err(Error::usage("the source has no server or no path"));
    }
    let source = (form.join)(&servers, &path);
    // Some types cannot have a port in their source. Reading the source again detects that.
    let hosts = |servers: &[String]| -> Vec<String> {
        let hosts = servers.iter().map(|server| host_of(server).to_owned());
        hosts.collect()
    };
    match (form.split)(&source) {
        Some((parsed, _)) if hosts(&parsed) == hosts(&servers) => Ok(source),
        _ => Err(
            Error::usage(format!("bad servers for {fs_type}: {}", servers.join(",")))
                .hint("write each server as in a source of this type; the port may be an option"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_spellings_of_fuse_types_become_those_of_the_table() {
        for (fs_type, source, expected) in [
            ("fuse", "sshfs#me@h:", Some(("fuse.sshfs", "me@h:"))),
            ("fuse3", "a#b#c", Some(("fuse.a", "b#c"))),
            ("sshfs", "me@h:", Some(("fuse.sshfs", "me@h:"))),
            ("fuse.sshfs", "a#b", Some(("fuse.sshfs", "a#b"))),
            // Both `ceph` and `fuse.ceph` have a row.
            ("ceph", "h:/", Some(("ceph", "h:/"))),
            ("nosuch", "x", Some(("nosuch", "x"))),
            ("fuse", "#x", None),
            ("fuse", "x", None),
        ] {
            let found = canonical(fs_type.into(), source.into()).ok();
            let expected = expected.map(|(fs_type, source)| (fs_type.into(), source.into()));
            assert_eq!(found, expected, "{fs_type} {source}");
        }
    }

    #[test]
    fn types_with_a_client_program_are_those_whose_rows_need_one() {
        let (requested, shown) = types_with_programs();
        let none = ["tmpfs", "overlay", "ext4", "xfs", "bind", "auto", "*"];
        for kind in TABLE {
            let name = kind.name.trim_end_matches(".*");
            assert_ne!(requested.contains(&name), none.contains(&name), "{name}");
        }
        assert!(requested.contains(&"fuse") && !requested.contains(&"fuse.*"));
        assert_eq!(shown.first(), Some(&"fuse.glusterfs"));
        assert!(shown.contains(&"nfs4") && !shown.contains(&"fuse.*") && !shown.contains(&"{}"));
        for (fs_type, label_of, clientless) in [
            ("nfs", "nfs", false),
            ("fuse.sshfs", "fuse.sshfs", false),
            ("fuse.bindfs", "fuse", false),
            ("nosuch", "other", false),
            ("overlay", "overlay", false),
            ("tmpfs", "tmpfs", true),
            ("bind", "bind", true),
        ] {
            assert_eq!(label(fs_type), label_of);
            assert_eq!(is_clientless(fs_type), clientless, "{fs_type}");
        }
    }
}
