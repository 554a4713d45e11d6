//! What each kind needs of container and host, for `spc doctor --kind`. Data only: `health/kinds.rs` looks.

use crate::error::{Error, Result};
use crate::host::modules::{FUSE, Module};
use crate::kinds::model::{Kind, Need};
use crate::kinds::{ROW, TABLE, nfs};

/// Everything that one kind needs.
#[derive(Debug)]
pub struct Needs {
    /// Its name, as it was asked for.
    pub kind: String,
    /// What stands for `{}` in names of programs.
    pub word: String,
    /// Modules of the kernel.
    pub modules: &'static [Module],
    /// The rest.
    pub parts: &'static [Need],
}

/// What is no type: a whole family, a version, and what attaches devices with any file system on them.
const OTHERS: [Kind; 4] = [
    Kind {
        name: "nfs3",
        modules: &nfs::MODULES,
        needs: &nfs::NEEDS_OF_3,
        ..ROW
    },
    Kind {
        name: "fuse",
        modules: &[FUSE],
        needs: &[Need::Fuse],
        ..ROW
    },
    Kind {
        name: "rbd",
        modules: &super::block::rbd::MODULES,
        needs: &[
            Need::program(&["rbd"], "ceph-common"),
            Need::HostNetwork,
            Need::WritableSys,
            Need::HostDevices,
        ],
        ..ROW
    },
    Kind {
        name: "iscsi",
        modules: &super::block::iscsi::MODULES,
        needs: &[
            Need::program(&["iscsiadm"], "open-iscsi"),
            Need::program(&["iscsid"], "open-iscsi"),
            Need::HostNetwork,
            Need::WritableSys,
            Need::HostDevices,
        ],
        ..ROW
    },
];

/// What a kind needs, by its name in the table, by another name that it has, or by that of a FUSE program.
///
/// # Errors
/// There is no such kind.
pub fn needs(kind: &str) -> Result<Needs> {
    let fits = |row: &&Kind| match row.name.strip_suffix('*') {
        Some(prefix) => {
            !prefix.is_empty() && kind.strip_prefix(prefix).is_some_and(|r| !r.is_empty())
        }
        None => row.name == kind || row.also.contains(&kind),
    };
    let rows = || TABLE.iter().chain(&OTHERS);
    let Some(row) = rows().find(fits) else {
        let known: Vec<_> = rows()
            .filter(|row| row.name != "*")
            .map(|row| row.name)
            .collect();
        return Err(Error::usage(format!("unknown kind: {kind}"))
            .hint(format!("known: {}", known.join(", "))));
    };
    let prefix = row.name.strip_suffix('*').unwrap_or_default();
    Ok(Needs {
        kind: kind.into(),
        word: kind.strip_prefix(prefix).unwrap_or(kind).into(),
        modules: row.modules,
        parts: row.needs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_all_their_names() {
        for (kind, word) in [
            ("fuse.bindfs", "bindfs"),
            ("smb", "smb"),
            ("fuse", "fuse"),
            ("iscsi", "iscsi"),
        ] {
            assert_eq!(needs(kind).unwrap().word, word);
        }
        assert_eq!(needs("smb").unwrap().parts, needs("cifs").unwrap().parts);
        assert_eq!(
            needs("sshfs").unwrap().parts,
            needs("fuse.sshfs").unwrap().parts
        );
        for kind in ["nosuch", "fuse.", "*", ""] {
            assert!(needs(kind).is_err(), "{kind}");
        }
    }

    #[test]
    fn whoever_is_fuse_needs_it() {
        for row in TABLE {
            let fuse =
                row.shows.iter().all(|shown| shown.starts_with("fuse")) && !row.shows.is_empty();
            let said = row.needs.contains(&Need::Fuse);
            assert!(!fuse || said, "{}", row.name);
            assert!(row.name != "*" || row.needs.is_empty());
        }
    }
}
