//! Types of the table of file systems: methods to mount, helpers, secrets, rows, requirements.

use crate::error::Result;
use crate::host::modules::Module;
use crate::host::service::Service;
use crate::kinds::servers::Servers;
use crate::kinds::source::Fit;
use crate::options::{Options, Secrets};

/// Maker of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountMethod {
    /// A program of the container.
    Helper(Helper),
    /// spc itself, with mount(2) in the host's namespace.
    Kernel,
    /// spc itself, with a bind mount of a directory of the host.
    Bind {
        /// Whether mounts below the directory are bound as well.
        recursive: bool,
    },
}

impl MountMethod {
    /// Secrets that the helper takes; none for the other methods.
    pub fn secret_params(&self) -> &[SecretParam] {
        match self {
            Self::Helper(helper) => &helper.secrets,
            Self::Kernel | Self::Bind { .. } => &[],
        }
    }
}

/// Command line and environment of a helper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Helper {
    /// Names of the program, the preferred one first.
    pub programs: Vec<String>,
    /// Arguments before the options; [`TARGET`] stands for the target.
    pub args: Vec<String>,
    /// Options for `-o`.
    pub options: Options,
    /// Path of the log file in the container; none if the helper logs to stderr.
    pub log: Option<String>,
    /// Environment variables.
    pub env: Vec<(&'static str, String)>,
    /// Whether add_key(2) fails for the helper, so that it passes the key as an option of
    /// mount(2). The shim's child makes the mount, and does not find a key in the helper's
    /// keyring.
    pub no_keys: bool,
    /// Secrets that the helper takes. The request may have some, all or none of them.
    pub secrets: Vec<SecretParam>,
    /// Whether the helper drops capabilities that the shim needs. The route is then graft.
    pub drops_capabilities: bool,
    /// Arguments that are added in a sandbox.
    pub sandbox_args: &'static [&'static str],
    /// Whether the helper starts services of the host, and so cannot run in a sandbox.
    pub starts_services: bool,
}

/// Secret that a program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretParam {
    /// Name of the secret, which is also the name of its option.
    pub key: &'static str,
    /// Delivery to the program.
    pub delivery: SecretDelivery,
}

/// Delivery of a secret to a program: by the descriptor of a file in memory, never in an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretDelivery {
    /// `-o OPTION=/proc/self/fd/N`.
    File {
        /// Option whose value is the file with the secret.
        option: &'static str,
    },
    /// Argument `BEFORE/proc/self/fd/N`.
    Argument {
        /// Text before the file name, such as `--keyfile=`.
        before: &'static str,
    },
    /// Environment variable with the number of the descriptor.
    FdEnv {
        /// Name of the variable.
        variable: &'static str,
    },
    /// Standard input.
    Stdin {
        /// Option that makes the program read its standard input.
        option: Option<&'static str>,
    },
}

/// Placeholder for the target among a helper's arguments.
pub const TARGET: &str = "\0target";

/// Row of the table.
#[derive(Clone, Copy)]
pub(in crate::kinds) struct Kind {
    /// Type as `-t` takes it. A `*` at the end stands for any text.
    pub(in crate::kinds) name: &'static str,
    /// Builds the mount method from a request.
    pub(in crate::kinds) method: fn(&KindInput<'_>) -> Result<MountMethod>,
    /// Types that the mount table may show. `{}` stands for the requested type, a `*` at the end
    /// for any text; an empty list allows any type.
    pub(in crate::kinds) expected_types: &'static [&'static str],
    /// Requirement on the source.
    pub(in crate::kinds) source: Source,
    /// Rules to read the helper's output and to find a hint in it.
    pub(in crate::kinds) diagnostics: Diagnostics,
    /// Rates how well a source fits, for requests without a type.
    pub(in crate::kinds) source_fit: fn(&str) -> Fit,
    /// Kernel modules that the mount needs.
    pub(in crate::kinds) modules: &'static [Module],
    /// Other requirements on the container and the host.
    pub(in crate::kinds) needs: &'static [Need],
    /// Other names for `spc doctor --kind`.
    pub(in crate::kinds) aliases: &'static [&'static str],
    /// Source that the mount table shows.
    pub(in crate::kinds) shows_source: ShownSource,
    /// Type of the row that is used instead where the kernel lacks one of `modules`.
    pub(in crate::kinds) fallback: Option<&'static str>,
    /// Use of several servers.
    pub(in crate::kinds) servers: Servers,
    /// Whether the kernel alone makes the mount, without a client program and without a module.
    pub(in crate::kinds) clientless: bool,
}

/// Knowledge about a helper's output, for error messages.
#[derive(Clone, Copy, Debug)]
pub struct Diagnostics {
    /// Returns the part of a line of output or log that explains a failure, if any.
    pub line: fn(&str) -> Option<&str>,
    /// Pairs of a text in the output or log and its hint. The first pair whose text is found is
    /// used.
    pub hints: &'static [(&'static str, &'static str)],
    /// Text in the helper's own log that means: the mount, which has been made, will end.
    pub gives_up: Option<&'static str>,
    /// Text in the output or log of a fault that a second attempt does not meet.
    pub transient: Option<&'static str>,
}

/// Diagnostics that keep every line and have no hint.
pub(crate) const DEFAULT_DIAGNOSTICS: Diagnostics = Diagnostics {
    line: |line| Some(line),
    hints: &[],
    gives_up: None,
    transient: None,
};

/// Source that the mount table shows for a kind.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ShownSource {
    /// Source of the request.
    Requested,
    /// Always this text.
    Always(&'static str),
    /// Text that the helper chooses, not known beforehand.
    Unknown,
}

/// Requirement on the source of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Any text that the helper or the kernel understands.
    Any,
    /// Block device of the host, or source of a device that spc attaches.
    BlockDevice,
}

/// Request as the rules of a kind see it.
pub struct KindInput<'a> {
    /// Requested type.
    pub fs_type: &'a str,
    /// Source.
    pub source: &'a str,
    /// All options.
    pub options: &'a Options,
    /// Secrets of the request. The rules look at their names only, never at their values.
    pub secrets: &'a Secrets,
    /// Name for log files: the target with dashes for slashes.
    pub log_name: &'a str,
    /// Returns why a module is missing in the kernel, if it is missing.
    pub kernel_lacks: &'a dyn Fn(Module) -> Option<String>,
}

/// Service that mounts share, and the conditions under which it is needed.
#[derive(Debug)]
pub struct SharedService {
    /// Service to start and stop.
    pub service: Service,
    /// Requested types that may need the service while they are being mounted.
    pub kinds: &'static [&'static str],
    /// Helpers that may need the service while they run.
    pub helpers: &'static [&'static str],
    /// Whether a mount needs the service, by its type and its superblock options in the mount
    /// table.
    pub needed_by: fn(&str, &str) -> bool,
    /// Prefix of `Device::session_key` for block devices that need this service, such as `iscsi:`.
    pub session_prefix: Option<&'static str>,
    /// Number and version of a Sun RPC program that needs the service while it is registered.
    pub rpc_client: Option<(u32, u32)>,
}

/// Builds one parameter for each name of a secret, all with the same delivery.
pub(crate) fn secret_params<const N: usize>(
    keys: [&'static str; N],
    delivery: SecretDelivery,
) -> Vec<SecretParam> {
    keys.map(|key| SecretParam { key, delivery }).to_vec()
}

/// Builds `mount.TYPE SOURCE TARGET -o OPTIONS`, the command line of mount(8)'s helpers.
pub(crate) fn mount_helper(input: &KindInput<'_>) -> Helper {
    Helper {
        programs: vec![format!("mount.{}", input.fs_type)],
        args: vec![input.source.into(), TARGET.into()],
        options: input.options.for_file_system(),
        ..Helper::default()
    }
}

/// Requirement of a kind besides kernel modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Program in the container. `{}` stands for the text that the `*` in the row's name matches.
    Program {
        /// Names of the program; one of them is enough.
        names: &'static [&'static str],
        /// Debian package that has the program.
        package: &'static str,
    },
    /// `/dev/fuse` in the container.
    Fuse,
    /// Capabilities besides those that every mount needs, without the prefix `CAP_`.
    Capabilities(&'static [&'static str]),
    /// Network namespace of the host. In another one, the mount ends with the container.
    HostNetwork,
    /// Writable `/sys`, to attach block devices.
    WritableSys,
    /// `/dev` of the host with the nodes of attached block devices.
    HostDevices,
}

impl Need {
    /// Builds the requirement of a program and its package.
    pub const fn program(names: &'static [&'static str], package: &'static str) -> Self {
        Self::Program { names, package }
    }
}
