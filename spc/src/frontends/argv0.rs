//! Selects the frontend by the name under which the program was called (`argv[0]`).

use std::ffi::OsStr;
use std::path::Path;

/// Interface through which spc was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// `spc COMMAND`.
    Cli,
    /// `start-statd`.
    Statd,
    /// `mount.TYPE`, with the type in the name.
    Mount(String),
    /// `umount.TYPE`, with the type in the name.
    Umount(String),
    /// `mounter`, the program for kubelet's `--experimental-mounter-path`.
    Mounter,
    /// A FlexVolume driver, `VENDOR~DRIVER/DRIVER`.
    FlexVolume,
}

impl Frontend {
    /// Returns the program name that precedes error messages.
    pub fn name(&self) -> String {
        match self {
            Self::Mount(fs_type) => format!("mount.{fs_type}"),
            Self::Umount(fs_type) => format!("umount.{fs_type}"),
            _ => "spc".into(),
        }
    }

    /// Whether the frontend needs the client programs before it has parsed its arguments.
    ///
    /// The other frontends decide later: some commands and types need no client, and the
    /// FlexVolume driver has its worker process decide.
    pub fn needs_client(&self) -> bool {
        match self {
            Self::Statd | Self::Mounter => true,
            Self::Cli | Self::Mount(_) | Self::Umount(_) | Self::FlexVolume => false,
        }
    }

    /// Selects the frontend by `argv[0]`.
    ///
    /// A FlexVolume driver may have any name. kubelet calls it by its full path, the file `DRIVER`
    /// in a directory `VENDOR~DRIVER`.
    pub fn from_argv0(argv0: &OsStr) -> Self {
        let path = Path::new(argv0);
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
    fn program_names_select_their_frontends() {
        let frontend = |argv0: &str| Frontend::from_argv0(OsStr::new(argv0));
        for argv0 in ["spc", "/usr/bin/spc", "", "/", "mount.", "umount", "x~spc"] {
            assert_eq!(frontend(argv0), Frontend::Cli, "{argv0}");
        }
        assert_eq!(frontend("/sbin/mount.nfs"), Frontend::Mount("nfs".into()));
        assert_eq!(
            frontend("mount.fuse.sshfs"),
            Frontend::Mount("fuse.sshfs".into())
        );
        assert_eq!(
            frontend("/sbin/umount.nfs4"),
            Frontend::Umount("nfs4".into())
        );
        assert_eq!(frontend("/opt/spc/mounter"), Frontend::Mounter);
        assert_eq!(frontend("/usr/sbin/start-statd"), Frontend::Statd);
        let plugins = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";
        for driver in [
            "x~spc/spc",
            "example.org~mounter/mounter",
            "a~mount.nfs/mount.nfs",
        ] {
            assert_eq!(
                frontend(&format!("{plugins}/{driver}")),
                Frontend::FlexVolume
            );
        }
        for other in ["x~spc/other", "spc/spc", "x~spc/.spc"] {
            assert_ne!(
                frontend(&format!("{plugins}/{other}")),
                Frontend::FlexVolume,
                "{other}"
            );
        }
    }
}
