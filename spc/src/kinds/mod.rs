//! The table of file system kinds: which program or kernel type mounts them, and how its result
//! shows in a mount table. Nothing in here makes a system call.

pub mod block;
mod ceph;
mod fuse;
mod gluster;
mod infer;
pub mod model;
pub mod needs;
pub mod nfs;
pub mod servers;
mod smb;
mod source;
mod table;

use crate::error::{Error, Result};
use crate::host::modules::Module;
use crate::kinds::model::{
    Diagnostics, Kind, KindInput, MountMethod, Need, SecretDelivery, SecretParam, SharedService,
    ShownSource, Source,
};
use crate::kinds::servers::form::host_of;
use crate::kinds::servers::{ServerSet, Servers, dedup};
use crate::kinds::table::{ROW, TABLE};
use crate::options::Options;

pub use infer::{Inferred, infer};

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

/// The services of all kinds; one that needs another comes after it.
pub fn shared_services() -> impl DoubleEndedIterator<Item = &'static SharedService> {
    nfs::SERVICES.iter().chain(&block::SERVICES)
}

/// What the table says about a request.
#[derive(Clone, Debug)]
pub struct ResolvedKind {
    /// Who makes the mount.
    pub method: MountMethod,
    /// Types of which the new mount must show one; with a `*` at its end, a prefix.
    pub expected_types: Vec<String>,
    /// What the source must be.
    pub source: Source,
    /// How failures of the helper are told.
    pub diagnostics: Diagnostics,
    /// The device to be attached first.
    pub device: Option<block::Device>,
    /// Modules of the kernel without which it cannot be.
    pub modules: Vec<Module>,
    /// The source that the mount table shows, if that can be told.
    pub expected_source: Option<String>,
    /// Why it is not made as the type says.
    pub because: Option<String>,
}

impl ResolvedKind {
    /// Whether the mount can only be a FUSE file system.
    pub fn is_fuse(&self) -> bool {
        !self.expected_types.is_empty()
            && self
                .expected_types
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
pub fn resolve(asked: &KindInput<'_>) -> Result<ResolvedKind> {
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
    let maker = (kind.method)(asked)?;
    check_secrets(asked, &maker, device.as_ref())?;
    let mut modules = kind.modules.to_vec();
    modules.extend(device.iter().flat_map(|device| device.modules));
    Ok(ResolvedKind {
        device,
        method: maker,
        expected_types: kind
            .expected_types
            .iter()
            .map(|t| t.replace("{}", asked.fs_type))
            .collect(),
        source: kind.source,
        diagnostics: kind.diagnostics,
        modules,
        expected_source: match kind.shows_source {
            ShownSource::AsAsked => Some(asked.source.to_owned()),
            ShownSource::As(source) => Some(source.to_owned()),
            ShownSource::Unknown => None,
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
fn check_secrets(
    asked: &KindInput<'_>,
    maker: &MountMethod,
    device: Option<&block::Device>,
) -> Result<()> {
    let takes = maker.secret_params();
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
    let given: Vec<&SecretParam> = takes.iter().filter(|p| asked.secrets.has(p.key)).collect();
    for (at, pass) in given.iter().enumerate() {
        let other = match pass.delivery {
            SecretDelivery::File { option } if asked.options.value(option).is_some() => {
                Some(option)
            }
            how => given[..at]
                .iter()
                .find(|p| p.delivery == how)
                .map(|p| p.key),
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

/// The types that a program of the image makes: as they are asked for, a family by its prefix alone, and as the mount
/// table shows them.
pub fn with_programs() -> (Vec<&'static str>, Vec<&'static str>) {
    let has_program = |row: &&Kind| {
        let mut needs = row.needs.iter();
        needs.any(|need| matches!(need, Need::Program { .. }))
    };
    let rows = || TABLE.iter().filter(has_program);
    let asked = rows().map(|row| row.name.strip_suffix(".*").unwrap_or(row.name));
    let shown = rows().flat_map(|row| row.expected_types);
    let shown = shown.filter(|shown| !shown.contains(['*', '{']));
    (asked.collect(), shown.copied().collect())
}

/// The servers of a source and of the options, where one of them is to be chosen.
pub fn server_set(fs_type: &str, source: &str, options: &Options) -> Option<ServerSet> {
    let Servers::Chosen(form, answering) = row(fs_type).ok()?.servers else {
        return None;
    };
    let (mut servers, path) = (form.split)(source)?;
    for key in answering.extra_servers_options {
        let more = options.value(key).unwrap_or_default();
        servers.extend(more.split(':').map(str::to_owned));
    }
    servers.retain(|server| !server.is_empty());
    dedup(&mut servers);
    (!servers.is_empty()).then_some(ServerSet {
        servers,
        answering,
        path,
        join: form.join,
    })
}

/// A source with these servers beside its own. It may be the path alone.
///
/// # Errors
/// The kind's sources have no servers, one is bad, or there is no path.
pub fn with_servers(fs_type: &str, source: &str, more: &[String]) -> Result<String> {
    let form = match row(fs_type)?.servers {
        Servers::All(form) | Servers::Chosen(form, _) => form,
        Servers::None => {
            return Err(
                Error::usage(format!("sources of type {fs_type} have no servers"))
                    .hint("name the whole source"),
            );
        }
    };
    let (mut servers, path) =
        (form.split)(source).unwrap_or_else(|| (Vec::new(), source.to_owned()));
    servers.extend(more.iter().cloned());
    servers.retain(|server| !server.is_empty());
    dedup(&mut servers);
    if servers.is_empty() || path.is_empty() {
        return Err(Error::usage("no servers, or no path on them"));
    }
    let source = (form.join)(&servers, &path);
    // Sources of some types have no room for a port, and would be read as something else.
    let hosts = |servers: &[String]| -> Vec<String> {
        let hosts = servers.iter().map(|server| host_of(server).to_owned());
        hosts.collect()
    };
    match (form.split)(&source) {
        Some((again, _)) if hosts(&again) == hosts(&servers) => Ok(source),
        _ => Err(
            Error::usage(format!("bad servers for {fs_type}: {}", servers.join(",")))
                .hint("name each as it stands in a source of this type; a port may be an option"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::model::{Helper, TARGET};

    fn kind(fs_type: &str, source: &str, options: &str) -> Result<ResolvedKind> {
        let (options, secrets) = Options::and_secrets([options])?;
        resolve(&KindInput {
            fs_type,
            source,
            options: &options,
            secrets: &secrets,
            log_name: "mnt-data",
            kernel_lacks: &|_| None,
        })
    }

    fn helper(kind: &ResolvedKind) -> &Helper {
        match &kind.method {
            MountMethod::Helper(helper) => helper,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fuse_program_needs_no_row_of_its_own() {
        let kind = kind("fuse.bindfs", "/d", "rw,allow_other").unwrap();
        let helper = helper(&kind);
        assert_eq!(helper.programs, ["bindfs"]);
        assert_eq!(helper.args, ["/d", TARGET]);
        assert_eq!(helper.options.to_string(), "allow_other");
        assert!(kind.is_fuse());
        for (shown, may) in [
            ("fuse.bindfs", true),
            ("fuse.other", true),
            ("fuse", true),
            ("fusectl", false),
            ("nfs", false),
        ] {
            assert_eq!(may_show(&kind.expected_types, shown), may, "{shown}");
        }
    }

    #[test]
    fn other_types_have_their_helper() {
        let kind = kind("nosuch", "h:/x", "").unwrap();
        assert_eq!(helper(&kind).programs, ["mount.nosuch"]);
        assert!(kind.expected_types.contains(&"fuse.nosuch".to_owned()) && !kind.is_fuse());
    }

    #[test]
    fn a_secret_has_one_use() {
        let password = kind("cifs", "//h/s", "password=hunter2").unwrap();
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
            let error = kind(fs_type, source, options).unwrap_err().to_string();
            assert!(
                error.contains(says) && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
