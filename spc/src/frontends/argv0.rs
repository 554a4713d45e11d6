//! Which door a name leads to.

use std::ffi::OsStr;
use std::path::Path;

/// A door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// `spc COMMAND`.
    Cli,
    /// `start-statd`.
    Statd,
    /// `mount.TYPE`, with the type.
    Mount(String),
    /// `umount.TYPE`, with the type.
    Umount(String),
    /// kubelet's mounter.
    Mounter,
    /// A FlexVolume driver.
    FlexVolume,
}

impl Door {
    /// The name under which errors are told.
    pub fn name(&self) -> String {
        match self {
            Self::Mount(fs_type) => format!("mount.{fs_type}"),
            Self::Umount(fs_type) => format!("umount.{fs_type}"),
            _ => "spc".into(),
        }
    }

    /// By what the program was called as. A FlexVolume driver has any name, and is called by its whole path: it is the
    /// file `DRIVER` in a directory `VENDOR~DRIVER`.
    pub fn of(called: &OsStr) -> Self {
        let path = Path::new(called);
        let Some(name) = path.file_name().and_then(OsStr::to_str) else {
            return Self::Cli;
        };
        let directory = path.parent().and_then(Path::file_name);
        if let Some((_, driver)) = directory
            .and_then(OsStr::to_str)
            .and_then(|directory| directory.split_once('~'))
            && driver == name
        {
            return Self::FlexVolume;
        }
        match (name, name.split_once('.')) {
            ("start-statd", _) => Self::Statd,
            ("mounter", _) => Self::Mounter,
            (_, Some(("mount", fs_type))) if !fs_type.is_empty() => Self::Mount(fs_type.to_owned()),
            (_, Some(("umount", fs_type))) if !fs_type.is_empty() => {
                Self::Umount(fs_type.to_owned())
            }
            _ => Self::Cli,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_its_door() {
        let of = |called: &str| Door::of(OsStr::new(called));
        for called in ["spc", "/usr/bin/spc", "", "/", "mount.", "umount", "x~spc"] {
            assert_eq!(of(called), Door::Cli, "{called}");
        }
        assert_eq!(of("/sbin/mount.nfs"), Door::Mount("nfs".into()));
        assert_eq!(of("mount.fuse.sshfs"), Door::Mount("fuse.sshfs".into()));
        assert_eq!(of("/sbin/umount.nfs4"), Door::Umount("nfs4".into()));
        assert_eq!(of("/opt/spc/mounter"), Door::Mounter);
        assert_eq!(of("/usr/sbin/start-statd"), Door::Statd);
        let plugins = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";
        for driver in [
            "x~spc/spc",
            "example.org~mounter/mounter",
            "a~mount.nfs/mount.nfs",
        ] {
            assert_eq!(of(&format!("{plugins}/{driver}")), Door::FlexVolume);
        }
        for other in ["x~spc/other", "spc/spc", "x~spc/.spc"] {
            assert_ne!(
                of(&format!("{plugins}/{other}")),
                Door::FlexVolume,
                "{other}"
            );
        }
    }
}
