//! The table of file system kinds: which program or kernel type mounts them, and how its result
//! shows in a mount table. Nothing in here makes a system call.

pub mod block;
mod gluster;

use crate::error::{Error, Result};
use crate::mount::Options;

/// Who makes the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maker {
    /// A program of the container: one of these names, with these arguments.
    Helper(Helper),
    /// The kernel itself, in the host's namespace.
    Kernel,
    /// The kernel, as a bind of a directory of the host.
    Bind {
        /// With all mounts below it.
        recursive: bool,
    },
}

/// How to run a helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Helper {
    /// Program names, the preferred first.
    pub programs: Vec<String>,
    /// Arguments before the options; [`TARGET`] stands for the target.
    pub args: Vec<String>,
    /// Options for `-o`.
    pub options: Options,
    /// Where it logs, inside the container, if it does not log to stderr.
    pub log: Option<String>,
}

/// Stands for the target among a helper's arguments.
pub const TARGET: &str = "\0target";

/// A row of the table.
struct Kind {
    /// Name as `-t` has it; with a `*` at its end, a prefix.
    name: &'static str,
    /// Who makes the mount.
    maker: fn(&Asked<'_>) -> Result<Maker>,
    /// Types that the mount table may show for it; `{}` is the type asked for.
    shows: &'static [&'static str],
    /// The source must be this on the host.
    source: Source,
    /// How its failures are told.
    telling: Telling,
}

/// How the failures of a helper are told to a person.
#[derive(Clone, Copy, Debug)]
pub struct Telling {
    /// What a line of its own log says about a failure, if anything.
    pub line: fn(&str) -> Option<&str>,
    /// What to do, by words that it printed or logged; the first that are found count.
    pub hints: &'static [(&'static str, &'static str)],
}

/// Every line counts, and nothing is known about any.
const PLAIN: Telling = Telling {
    line: |line| Some(line),
    hints: &[],
};

/// What a source must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Whatever the helper or the kernel makes of it.
    Any,
    /// A block device of the host.
    BlockDevice,
}

/// What a kind is told of a request.
pub struct Asked<'a> {
    /// The type.
    pub fs_type: &'a str,
    /// The source.
    pub source: &'a str,
    /// All options.
    pub options: &'a Options,
    /// A name for log files: the target with dashes for slashes.
    pub log_name: &'a str,
}

/// What the table says about a request.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Who makes the mount.
    pub maker: Maker,
    /// Types of which the new mount must show one.
    pub shows: Vec<String>,
    /// What the source must be.
    pub source: Source,
    /// How failures of the helper are told.
    pub telling: Telling,
    /// The device to be attached first.
    pub device: Option<block::Device>,
}

impl Chosen {
    /// Whether the mount can only be a FUSE file system.
    pub fn is_fuse(&self) -> bool {
        !self.shows.is_empty()
            && self
                .shows
                .iter()
                .all(|shown| shown == "fuse" || shown.starts_with("fuse."))
    }
}

const TABLE: [Kind; 9] = [
    Kind {
        name: "glusterfs",
        maker: gluster::helper,
        shows: &["fuse.glusterfs"],
        source: Source::Any,
        telling: gluster::TELLING,
    },
    Kind {
        name: "fuse.sshfs",
        maker: sshfs,
        shows: &["fuse.sshfs"],
        source: Source::Any,
        telling: Telling {
            hints: &SSHFS_HINTS,
            ..PLAIN
        },
    },
    Kind {
        name: "fuse.*",
        maker: fuse,
        shows: &["{}", "fuse"],
        source: Source::Any,
        telling: PLAIN,
    },
    Kind {
        name: "tmpfs",
        maker: kernel,
        shows: &["tmpfs"],
        source: Source::Any,
        telling: PLAIN,
    },
    Kind {
        name: "overlay",
        maker: kernel,
        shows: &["overlay"],
        source: Source::Any,
        telling: PLAIN,
    },
    Kind {
        name: "ext4",
        maker: kernel,
        shows: &["ext4"],
        source: Source::BlockDevice,
        telling: PLAIN,
    },
    Kind {
        name: "xfs",
        maker: kernel,
        shows: &["xfs"],
        source: Source::BlockDevice,
        telling: PLAIN,
    },
    Kind {
        name: "bind",
        maker: bind,
        shows: &[],
        source: Source::Any,
        telling: PLAIN,
    },
    // Any other type is mounted by its `mount.TYPE`, if the image has one, as mount(8) does it.
    Kind {
        name: "*",
        maker: helper_of_type,
        shows: &["{}", "{}4", "fuse.{}", "fuse"],
        source: Source::Any,
        telling: PLAIN,
    },
];

/// Looks a request up in the table.
///
/// # Errors
/// The kind's own rules refuse source or options.
pub fn choose(asked: &Asked<'_>) -> Result<Chosen> {
    let fits = |kind: &&Kind| match kind.name.strip_suffix('*') {
        Some(prefix) => asked
            .fs_type
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty()),
        None => kind.name == asked.fs_type,
    };
    let Some(kind) = TABLE.iter().find(fits) else {
        return Err(Error::usage(format!("unknown type: {}", asked.fs_type)));
    };
    let device = match kind.source {
        Source::BlockDevice => block::device(asked)?,
        Source::Any => None,
    };
    Ok(Chosen {
        device,
        maker: (kind.maker)(asked)?,
        shows: kind
            .shows
            .iter()
            .map(|t| t.replace("{}", asked.fs_type))
            .collect(),
        source: kind.source,
        telling: kind.telling,
    })
}

/// The names in the table that a user can write as they stand.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE
        .iter()
        .map(|kind| kind.name)
        .filter(|name| *name != "*")
}

// Every maker has the table's signature.
#[allow(clippy::unnecessary_wraps)]
fn kernel(_: &Asked<'_>) -> Result<Maker> {
    Ok(Maker::Kernel)
}

#[allow(clippy::unnecessary_wraps)]
fn bind(asked: &Asked<'_>) -> Result<Maker> {
    Ok(Maker::Bind {
        recursive: asked.options.has("rbind"),
    })
}

/// A FUSE program, `PROGRAM SOURCE TARGET -o OPTIONS`, run without mount.fuse(8) and its shell.
fn fuse(asked: &Asked<'_>) -> Result<Maker> {
    let program = asked.fs_type.strip_prefix("fuse.").unwrap_or(asked.fs_type);
    Ok(Maker::Helper(Helper {
        programs: vec![program.into()],
        args: vec![asked.source.into(), TARGET.into()],
        options: asked.options.for_file_system(),
        log: None,
    }))
}

const SSHFS_HINTS: [(&str, &str); 3] = [
    (
        "Permission denied",
        "name the key, as the container sees it: -o IdentityFile=/host/root/.ssh/id_ed25519",
    ),
    (
        "Host key verification failed",
        "name the known servers: -o UserKnownHostsFile=/host/root/.ssh/known_hosts, or -o StrictHostKeyChecking=accept-new",
    ),
    (
        "ssh: ",
        "check the server's name, and that this host can reach its sshd",
    ),
];

/// Unless it is verbose, sshfs throws away what ssh says about a failure.
fn sshfs(asked: &Asked<'_>) -> Result<Maker> {
    let maker = fuse(asked)?;
    Ok(match maker {
        Maker::Helper(mut helper) => {
            helper.args.push("-v".into());
            Maker::Helper(helper)
        }
        other => other,
    })
}

#[allow(clippy::unnecessary_wraps)]
fn helper_of_type(asked: &Asked<'_>) -> Result<Maker> {
    Ok(Maker::Helper(mount_helper(asked)))
}

/// `mount.TYPE SOURCE TARGET -o OPTIONS`, the contract of mount(8) with its helpers.
fn mount_helper(asked: &Asked<'_>) -> Helper {
    Helper {
        programs: vec![format!("mount.{}", asked.fs_type)],
        args: vec![asked.source.into(), TARGET.into()],
        options: asked.options.for_file_system(),
        log: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(fs_type: &'a str, source: &'a str, options: &'a Options) -> Asked<'a> {
        Asked {
            fs_type,
            source,
            options,
            log_name: "mnt-data",
        }
    }

    #[test]
    fn a_fuse_program_needs_no_row_of_its_own() {
        let options = Options::parse(["rw,allow_other"]).unwrap();
        let chosen = choose(&asked("fuse.bindfs", "/d", &options)).unwrap();
        let Maker::Helper(helper) = &chosen.maker else {
            panic!("{chosen:?}")
        };
        assert_eq!(helper.programs, ["bindfs"]);
        assert_eq!(helper.args, ["/d", TARGET]);
        assert_eq!(helper.options.to_string(), "allow_other");
        assert!(chosen.is_fuse());
        assert_eq!(chosen.shows, ["fuse.bindfs", "fuse"]);
    }

    #[test]
    fn other_types_have_their_helper() {
        let options = Options::default();
        let chosen = choose(&asked("nfs", "h:/x", &options)).unwrap();
        let Maker::Helper(helper) = &chosen.maker else {
            panic!("{chosen:?}")
        };
        assert_eq!(helper.programs, ["mount.nfs"]);
        assert!(chosen.shows.contains(&"nfs4".to_owned()) && !chosen.is_fuse());
    }
}
