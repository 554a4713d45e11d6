//! The type of a file system, by the way its source is written.

use crate::error::{Error, Result};
use crate::kinds::names;
use crate::kinds::source::Fit;
use crate::kinds::table::TABLE;

/// The type of a source for which none was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inferred {
    /// The type.
    pub fs_type: &'static str,
    /// Types whose sources may be written like this as well.
    pub others: Vec<&'static str>,
}

/// The type of a source, by the way it is written.
///
/// # Errors
/// It is written as no type's is, or as those of several types.
pub fn infer(source: &str) -> Result<Inferred> {
    let fitting = |wanted: Fit| {
        let rows = TABLE
            .iter()
            .filter(move |kind| (kind.fits)(source) == wanted);
        rows.map(|kind| kind.name).collect::<Vec<_>>()
    };
    let could = fitting(Fit::Could);
    match (&fitting(Fit::Certain)[..], &fitting(Fit::Usual)[..]) {
        ([certain], _) => Ok(Inferred {
            fs_type: certain,
            others: Vec::new(),
        }),
        ([], [usual]) => Ok(Inferred {
            fs_type: usual,
            others: could,
        }),
        _ => {
            let hint = if could.is_empty() {
                let known: Vec<_> = names().collect();
                format!("add -t TYPE; known: {}", known.join(", "))
            } else {
                format!(
                    "{source} may be of type {}: add -t TYPE",
                    could.join(" or ")
                )
            };
            Err(Error::usage("which type of file system is not said").hint(hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_by_their_sources() {
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
        ] {
            let inferred = infer(source).unwrap_or_else(|e| panic!("{source}: {e}"));
            assert_eq!(inferred.fs_type, fs_type, "{source}");
            let others: &[_] = match fs_type {
                "nfs" if source.ends_with(":/") => &["ceph"],
                "nfs" => &["glusterfs", "ceph"],
                _ => &[],
            };
            assert_eq!(inferred.others, others, "{source}");
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
            ("https://host/x", "known"),
            ("nfs://host/x", "known"),
            ("me@host/x", "known"),
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
