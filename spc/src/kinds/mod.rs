//! The table of file system kinds: which program or kernel type mounts them, and how its result
//! shows in a mount table. Nothing in here makes a system call.

pub mod block;
mod ceph;
mod fuse;
mod gluster;
mod infer;
pub mod needs;
pub mod nfs;
pub mod servers;
mod smb;
mod source;
mod table;

use crate::error::{Error, Result};
use crate::host::modules::Module;
use crate::host::service::Service;
use crate::options::{Options, Secrets};
use needs::Need;
use servers::Servers;
use source::Fit;
use table::{ROW, TABLE};

pub use infer::{Inferred, infer};

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

impl Maker {
    /// The secrets that it has a use for.
    pub fn takes(&self) -> &[Pass] {
        match self {
            Self::Helper(helper) => &helper.secrets,
            Self::Kernel | Self::Bind { .. } => &[],
        }
    }
}

/// How to run a helper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Helper {
    /// Program names, the preferred first.
    pub programs: Vec<String>,
    /// Arguments before the options; [`TARGET`] stands for the target.
    pub args: Vec<String>,
    /// Options for `-o`.
    pub options: Options,
    /// Where it logs, inside the container, if it does not log to stderr.
    pub log: Option<String>,
    /// Variables of its environment.
    pub env: Vec<(&'static str, String)>,
    /// It is told that the kernel keeps no keys (add_key(2)), so that it names the key in its mount(2). A key that it
    /// keeps for itself is not known to the shim's child, which mounts.
    pub no_keys: bool,
    /// The secrets that it has a use for; those that are there are handed over.
    pub secrets: Vec<Pass>,
    /// It gives up capabilities before it mounts that the shim needs, so that its mount has to be grafted.
    pub drops_capabilities: bool,
}

/// A secret that a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Its name, as the option is called.
    pub key: &'static str,
    /// The way it is handed over.
    pub how: How,
}

/// How a program is given a secret, which is in a file in memory, never in an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// `-o OPTION=/proc/self/fd/N`.
    File {
        /// The option that names a file with the secret.
        option: &'static str,
    },
    /// An argument of its own, `BEFORE/proc/self/fd/N`.
    Argument {
        /// What stands before the file's name, such as `--keyfile=`.
        before: &'static str,
    },
    /// The number of the descriptor in the environment.
    FdEnv {
        /// The variable.
        variable: &'static str,
    },
    /// On its standard input.
    Stdin {
        /// The option that makes it read that.
        option: Option<&'static str>,
    },
}

/// Options of the programs of all kinds that name a file for them to read.
pub const FILES: [&str; 9] = [
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

/// Stands for the target among a helper's arguments.
pub const TARGET: &str = "\0target";

/// A row of the table.
#[derive(Clone, Copy)]
struct Kind {
    /// Name as `-t` has it; with a `*` at its end, a prefix.
    name: &'static str,
    /// Who makes the mount.
    maker: fn(&Asked<'_>) -> Result<Maker>,
    /// Types that the mount table may show for it; `{}` is the type asked for, a `*` at the end anything.
    shows: &'static [&'static str],
    /// The source must be this on the host.
    source: Source,
    /// How its failures are told.
    telling: Telling,
    /// How well a source that has no type fits.
    fits: fn(&str) -> Fit,
    /// Modules of the kernel without which it cannot be.
    modules: &'static [Module],
    /// Whatever else it needs of container and host.
    needs: &'static [Need],
    /// Other names that people have for it.
    also: &'static [&'static str],
    /// The source that the mount table shows.
    shows_source: Shown,
    /// The type that takes its place where the kernel does not get its modules.
    without_modules: Option<&'static str>,
    /// What it does with several servers.
    servers: Servers,
    /// The kernel alone makes it: no program of ours and no module has to be there.
    clientless: bool,
}

/// How the failures of a helper are told to a person.
#[derive(Clone, Copy, Debug)]
pub struct Telling {
    /// What a line of its output or log says about a failure, if anything.
    pub line: fn(&str) -> Option<&str>,
    /// What to do, by words that it printed or logged; the first that are found count.
    pub hints: &'static [(&'static str, &'static str)],
    /// Words in its own log by which it gives up after it has mounted.
    pub gives_up: Option<&'static str>,
}

/// Every line counts, and nothing is known about any.
const PLAIN: Telling = Telling {
    line: |line| Some(line),
    hints: &[],
    gives_up: None,
};

/// The source that a mount table shows for a kind.
#[derive(Clone, Copy, Debug)]
enum Shown {
    /// The one that was asked for.
    AsAsked,
    /// Always this.
    As(&'static str),
    /// What the helper makes of it.
    Unknown,
}

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
    /// Which secrets are there; a kind does not look at their values.
    pub secrets: &'a Secrets,
    /// A name for log files: the target with dashes for slashes.
    pub log_name: &'a str,
    /// Why the kernel does not get a module, if it does not.
    pub kernel_lacks: &'a dyn Fn(Module) -> Option<String>,
}

/// A service that mounts share, and what needs it.
#[derive(Debug)]
pub struct Shared {
    /// The service.
    pub service: Service,
    /// Types, as they are asked for, that may need it while they are being mounted.
    pub kinds: &'static [&'static str],
    /// Helpers that may need it while they run.
    pub helpers: &'static [&'static str],
    /// Whether a mount needs it, by its type and the options of its file system in the mount table.
    pub needed_by: fn(&str, &str) -> bool,
    /// What attached devices that need it are reached through begins like that.
    pub through: Option<&'static str>,
    /// A program of Sun RPC, by number and version, that needs it for as long as it is registered.
    pub client: Option<(u32, u32)>,
}

/// The services of all kinds; one that needs another comes after it.
pub fn shared() -> impl DoubleEndedIterator<Item = &'static Shared> {
    nfs::SERVICES.iter().chain(&block::SERVICES)
}

/// What the table says about a request.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Who makes the mount.
    pub maker: Maker,
    /// Types of which the new mount must show one; with a `*` at its end, a prefix.
    pub shows: Vec<String>,
    /// What the source must be.
    pub source: Source,
    /// How failures of the helper are told.
    pub telling: Telling,
    /// The device to be attached first.
    pub device: Option<block::Device>,
    /// Modules of the kernel without which it cannot be.
    pub modules: Vec<Module>,
    /// The source that the mount table shows, if that can be told.
    pub shows_source: Option<String>,
    /// Why it is not made as the type says.
    pub because: Option<String>,
}

impl Chosen {
    /// Whether the mount can only be a FUSE file system.
    pub fn is_fuse(&self) -> bool {
        !self.shows.is_empty()
            && self
                .shows
                .iter()
                .all(|shown| shown == "fuseblk" || shown == "fuse" || shown.starts_with("fuse."))
    }
}

/// Whether a mount of this type is one of those that a kind may show; nothing said is anything.
pub fn may_show(shows: &[String], fs_type: &str) -> bool {
    let fits = |shown: &String| match shown.strip_suffix('*') {
        Some(prefix) => fs_type.starts_with(prefix),
        None => shown == fs_type,
    };
    shows.is_empty() || shows.iter().any(fits)
}

/// Looks a request up in the table.
///
/// # Errors
/// The kind's own rules refuse source or options.
pub fn choose(asked: &Asked<'_>) -> Result<Chosen> {
    let mut kind = row(asked.fs_type)?;
    let mut because = None;
    if let Some(other) = kind.without_modules {
        because = kind
            .modules
            .iter()
            .find_map(|module| (asked.kernel_lacks)(*module));
        if because.is_some() {
            kind = row(other)?;
        }
    }
    let device = match kind.source {
        Source::BlockDevice => block::device(asked)?,
        Source::Any => None,
    };
    let maker = (kind.maker)(asked)?;
    check_secrets(asked, &maker, device.as_ref())?;
    let mut modules = kind.modules.to_vec();
    modules.extend(device.iter().flat_map(|device| device.modules));
    Ok(Chosen {
        device,
        maker,
        shows: kind
            .shows
            .iter()
            .map(|t| t.replace("{}", asked.fs_type))
            .collect(),
        source: kind.source,
        telling: kind.telling,
        modules,
        shows_source: match kind.shows_source {
            Shown::AsAsked => Some(asked.source.to_owned()),
            Shown::As(source) => Some(source.to_owned()),
            Shown::Unknown => None,
        },
        because,
    })
}

fn row(fs_type: &str) -> Result<&'static Kind> {
    let fits = |kind: &&Kind| match kind.name.strip_suffix('*') {
        Some(prefix) => fs_type
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty()),
        None => kind.name == fs_type,
    };
    let kind = TABLE.iter().find(fits);
    kind.ok_or_else(|| Error::usage(format!("unknown type: {fs_type}")))
}

/// Every secret has a use, and one only.
fn check_secrets(asked: &Asked<'_>, maker: &Maker, device: Option<&block::Device>) -> Result<()> {
    let takes = maker.takes();
    let mut keys: Vec<_> = takes.iter().map(|pass| pass.key).collect();
    keys.extend(device.iter().flat_map(|device| device.secrets));
    if let Some(key) = asked.secrets.keys().find(|key| !keys.contains(key)) {
        let (has, hint) = if keys.is_empty() {
            let hint = "leave it out, or name a file with it by the option that the type has for that, if any";
            ("takes no secrets", hint.to_owned())
        } else {
            let hint = format!("its secrets are called: {}", keys.join(", "));
            ("has no secret of this name", hint)
        };
        let what = format!("bad option {key}: type {} {has}", asked.fs_type);
        return Err(Error::usage(what).hint(hint));
    }
    let given: Vec<&Pass> = takes.iter().filter(|p| asked.secrets.has(p.key)).collect();
    for (at, pass) in given.iter().enumerate() {
        let other = match pass.how {
            How::File { option } if asked.options.value(option).is_some() => Some(option),
            how => given[..at].iter().find(|p| p.how == how).map(|p| p.key),
        };
        if let Some(other) = other {
            return Err(
                Error::usage(format!("bad option {}: {other} is given as well", pass.key))
                    .hint("give one of them"),
            );
        }
    }
    Ok(())
}

/// The names in the table that a user can write as they stand.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE
        .iter()
        .map(|kind| kind.name)
        .filter(|name| !["*", block::AUTO].contains(name))
}

/// Whether the kernel alone makes mounts of this type: no program and no module has to be there.
pub fn is_clientless(fs_type: &str) -> bool {
    row(fs_type).is_ok_and(|kind| kind.clientless)
}

/// What a type is counted as: its row, so that there are few, whatever people ask for.
pub fn label(fs_type: &str) -> &'static str {
    match row(fs_type).map_or("*", |kind| kind.name) {
        "*" => "other",
        name => name.trim_end_matches(".*"),
    }
}

/// One secret by the names that it may have.
fn passes<const N: usize>(keys: [&'static str; N], how: How) -> Vec<Pass> {
    keys.map(|key| Pass { key, how }).to_vec()
}

/// `mount.TYPE SOURCE TARGET -o OPTIONS`, the contract of mount(8) with its helpers.
fn mount_helper(asked: &Asked<'_>) -> Helper {
    Helper {
        programs: vec![format!("mount.{}", asked.fs_type)],
        args: vec![asked.source.into(), TARGET.into()],
        options: asked.options.for_file_system(),
        ..Helper::default()
    }
}

/// The types that a program of the image makes: as they are asked for, a family by its prefix alone, and as the mount
/// table shows them.
pub fn with_programs() -> (Vec<&'static str>, Vec<&'static str>) {
    let has_program = |row: &&Kind| {
        let mut needs = row.needs.iter();
        needs.any(|need| matches!(need, Need::Program { .. }))
    };
    let rows = || TABLE.iter().filter(has_program);
    let asked = rows().map(|row| row.name.strip_suffix(".*").unwrap_or(row.name));
    let shown = rows().flat_map(|row| row.shows);
    let shown = shown.filter(|shown| !shown.contains(['*', '{']));
    (asked.collect(), shown.copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(fs_type: &str, source: &str, options: &str) -> Result<Chosen> {
        let (options, secrets) = Options::and_secrets([options])?;
        choose(&Asked {
            fs_type,
            source,
            options: &options,
            secrets: &secrets,
            log_name: "mnt-data",
            kernel_lacks: &|_| None,
        })
    }

    fn helper(chosen: &Chosen) -> &Helper {
        match &chosen.maker {
            Maker::Helper(helper) => helper,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fuse_program_needs_no_row_of_its_own() {
        let chosen = chosen("fuse.bindfs", "/d", "rw,allow_other").unwrap();
        let helper = helper(&chosen);
        assert_eq!(helper.programs, ["bindfs"]);
        assert_eq!(helper.args, ["/d", TARGET]);
        assert_eq!(helper.options.to_string(), "allow_other");
        assert!(chosen.is_fuse());
        for (shown, may) in [
            ("fuse.bindfs", true),
            ("fuse.other", true),
            ("fuse", true),
            ("fusectl", false),
            ("nfs", false),
        ] {
            assert_eq!(may_show(&chosen.shows, shown), may, "{shown}");
        }
    }

    #[test]
    fn other_types_have_their_helper() {
        let chosen = chosen("nosuch", "h:/x", "").unwrap();
        assert_eq!(helper(&chosen).programs, ["mount.nosuch"]);
        assert!(chosen.shows.contains(&"fuse.nosuch".to_owned()) && !chosen.is_fuse());
    }

    #[test]
    fn a_secret_has_one_use() {
        let password = chosen("cifs", "//h/s", "password=hunter2").unwrap();
        let helper = helper(&password);
        assert_eq!(helper.options.to_string(), "");
        assert_eq!(helper.secrets[0].key, "password");
        for (fs_type, options, says) in [
            ("tmpfs", "password=hunter2", "type tmpfs takes no secrets"),
            (
                "fuse.bindfs",
                "key=hunter2",
                "type fuse.bindfs takes no secrets",
            ),
            ("ceph", "password=hunter2", "its secrets are called: secret"),
            (
                "ceph",
                "secret=hunter2,secretfile=/f",
                "secretfile is given as well",
            ),
            ("cifs", "pass=hunter2,password=hunter2", "given as well"),
        ] {
            let source = if fs_type == "cifs" { "//x/y" } else { "x:/y" };
            let error = chosen(fs_type, source, options).unwrap_err().to_string();
            assert!(
                error.contains(says) && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
