//! Infers the type of a file system from the form of its source.

use crate::error::{Error, Result};
use crate::kinds::names;
use crate::kinds::source::Fit;
use crate::kinds::table::TABLE;

/// Type inferred from a source, for a request without `-t`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inferred {
    /// Inferred type.
    pub fs_type: &'static str,
    /// Other types whose sources can have this form.
    pub alternatives: Vec<&'static str>,
}

/// Infers the type from the form of a source.
///
/// # Errors
/// Fails if the form belongs to no type, or to several types of which none is preferred.
pub fn infer(source: &str) -> Result<Inferred> {
    let types_with = |fit: Fit| {
        let rows = TABLE
            .iter()
            .filter(move |kind| (kind.source_fit)(source) == fit);
        rows.map(|kind| kind.name).collect::<Vec<_>>()
    };
    let possible = types_with(Fit::Possible);
    match (
        &types_with(Fit::Certain)[..],
        &types_with(Fit::Preferred)[..],
    ) {
        ([certain], _) => Ok(Inferred {
            fs_type: certain,
            alternatives: Vec::new(),
        }),
        ([], [preferred]) => Ok(Inferred {
            fs_type: preferred,
            alternatives: possible,
        }),
        _ => {
            let hint = if possible.is_empty() {
                let known: Vec<_> = names().collect();
                format!("add -t TYPE; known: {}", known.join(", "))
            } else {
                format!(
                    "{source} may be of type {}: add -t TYPE",
                    possible.join(" or ")
                )
            };
            Err(Error::usage("cannot infer the type of the file system from the source").hint(hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_source_gives_its_type_or_a_hint() {
        for (source, fs_type) in [
            ("server:/export", "nfs"),
            ("192.0.2.1:/", "nfs"),
            ("[2001:db8::1]:/x", "nfs"),
            ("[fe80::1%eth0]:/x y", "nfs"),
            ("server:/a:b", "nfs"),
            ("server.example.org:/a,b", "nfs"),
            ("server:/user@host:/dir", "nfs"),
            ("//server/share", "cifs"),
            ("//server/share/dir", "cifs"),
            (r"\\server\share", "cifs"),
            ("//2001:db8::1/share", "cifs"),
            ("me@server:/dir", "fuse.sshfs"),
            ("me@server:", "fuse.sshfs"),
            ("me@server:dir/x@y", "fuse.sshfs"),
            ("me@corp.example@server:/dir", "fuse.sshfs"),
            ("me@[2001:db8::1]:/dir", "fuse.sshfs"),
            ("rbd:pool/image", "auto"),
            (
                "iscsi:192.0.2.1:3260/iqn.2026-01.org.example:disk/0",
                "auto",
            ),
            ("admin@.cephfs=/", "ceph"),
            ("me@b3acfc0d-575f-41d3-9c91-0e7ed3dbb3fa.data=/dir", "ceph"),
            ("mon:6789:/", "ceph"),
            ("192.0.2.1:6789,192.0.2.2:6789:/dir", "ceph"),
            ("a:3300,b,c:/", "ceph"),
            ("[2001:db8::1]:6789:/x", "ceph"),
            ("[v2:192.0.2.1:3300,v1:192.0.2.1:6789]:/", "ceph"),
            ("[v1:192.0.2.1:6789]:/dir", "ceph"),
        ] {
            let inferred = infer(source).unwrap_or_else(|e| panic!("{source}: {e}"));
            assert_eq!(inferred.fs_type, fs_type, "{source}");
            let alternatives: &[_] = match fs_type {
                "nfs" if source.ends_with(":/") => &["ceph"],
                "nfs" => &["glusterfs", "ceph"],
                _ => &[],
            };
            assert_eq!(inferred.alternatives, alternatives, "{source}");
        }
        for (source, hint) in [
            ("a,b:/vol", "may be of type glusterfs or ceph"),
            ("[2001:db8::1],b:/vol", "may be of type glusterfs or ceph"),
            ("tmpfs", "known: glusterfs, nfs, "),
            ("none", "known"),
            ("/dev/sdb1", "known"),
            ("/srv/a:/b", "known"),
            ("./a:/b", "known"),
            ("host:path", "known"),
            ("host:", "known"),
            (":/x", "known"),
            ("2001:db8::1:/x", "known"),
            ("[not an address]:/x", "known"),
            ("[1234]:/x", "known"),
            ("[a:z]:/x", "known"),
            ("https://host/x", "known"),
            ("nfs://host/x", "known"),
            ("me@host", "known"),
            ("me@host/x", "known"),
            ("me@host://x", "known"),
            ("@host:/x", "known"),
            ("me@:/x", "known"),
            ("me@/x:/y", "known"),
            ("//server", "known"),
            ("//server/", "known"),
            ("///share", "known"),
            ("admin@cephfs=/", "known"),
            ("admin@.cephfs=x", "known"),
            ("UUID=0a3b", "known"),
            ("ä:/x", "known"),
            ("", "known"),
        ] {
            let error = infer(source).unwrap_err().to_string();
            assert!(
                error.contains(hint) && error.contains("add -t TYPE"),
                "{source}: {error}"
            );
        }
    }
}
