//! Types of the table of file systems: methods to mount, helpers, secrets, rows, requirements.

use crate::error::Result;
use crate::host::modules::Module;
use crate::host::service::Service;
use crate::kinds::servers::Servers;
use crate::kinds::source::Fit;
use crate::options::{Options, Secrets};

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

/// Stands for the target among a helper's arguments.
pub const TARGET: &str = "\0target";

/// A row of the table.
#[derive(Clone, Copy)]
pub(in crate::kinds) struct Kind {
    /// Name as `-t` has it; with a `*` at its end, a prefix.
    pub(in crate::kinds) name: &'static str,
    /// Who makes the mount.
    pub(in crate::kinds) maker: fn(&Asked<'_>) -> Result<Maker>,
    /// Types that the mount table may show for it; `{}` is the type asked for, a `*` at the end anything.
    pub(in crate::kinds) shows: &'static [&'static str],
    /// The source must be this on the host.
    pub(in crate::kinds) source: Source,
    /// How its failures are told.
    pub(in crate::kinds) telling: Telling,
    /// How well a source that has no type fits.
    pub(in crate::kinds) fits: fn(&str) -> Fit,
    /// Modules of the kernel without which it cannot be.
    pub(in crate::kinds) modules: &'static [Module],
    /// Whatever else it needs of container and host.
    pub(in crate::kinds) needs: &'static [Need],
    /// Other names that people have for it.
    pub(in crate::kinds) also: &'static [&'static str],
    /// The source that the mount table shows.
    pub(in crate::kinds) shows_source: Shown,
    /// The type that takes its place where the kernel does not get its modules.
    pub(in crate::kinds) without_modules: Option<&'static str>,
    /// What it does with several servers.
    pub(in crate::kinds) servers: Servers,
    /// The kernel alone makes it: no program of ours and no module has to be there.
    pub(in crate::kinds) clientless: bool,
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
pub(crate) const PLAIN: Telling = Telling {
    line: |line| Some(line),
    hints: &[],
    gives_up: None,
};

/// The source that a mount table shows for a kind.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shown {
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

/// One secret by the names that it may have.
pub(crate) fn passes<const N: usize>(keys: [&'static str; N], how: How) -> Vec<Pass> {
    keys.map(|key| Pass { key, how }).to_vec()
}

/// `mount.TYPE SOURCE TARGET -o OPTIONS`, the contract of mount(8) with its helpers.
pub(crate) fn mount_helper(asked: &Asked<'_>) -> Helper {
    Helper {
        programs: vec![format!("mount.{}", asked.fs_type)],
        args: vec![asked.source.into(), TARGET.into()],
        options: asked.options.for_file_system(),
        ..Helper::default()
    }
}

/// A thing that a kind needs besides modules of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// One of these programs; `{}` is what stands for the `*` in the name of the row.
    Program {
        /// Their names.
        names: &'static [&'static str],
        /// The package that has them.
        package: &'static str,
    },
    /// `/dev/fuse`.
    Fuse,
    /// Capabilities besides those that every mount needs, by their names without `CAP_`.
    Capabilities(&'static [&'static str]),
    /// The network of the host, without which the mount ends with the container.
    HostNetwork,
    /// A writable `/sys`, through which devices are made.
    WritableSys,
    /// `/dev` of the host, where they show.
    HostDevices,
}

impl Need {
    /// A program of a package.
    pub const fn program(names: &'static [&'static str], package: &'static str) -> Self {
        Self::Program { names, package }
    }
}
