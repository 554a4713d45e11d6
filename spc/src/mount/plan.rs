//! Everything decided before anything is changed.

use std::path::{Path, PathBuf};

use crate::block::filesystem::MKFS;
use crate::error::{Error, Result, show};
use crate::helper::option_files::Files;
use crate::helper::program::{Linkage, Program, find};
use crate::host::redirect::Redirect;
use crate::host::runs_in::{self, RunsIn};
use crate::host::target::{Rules, Walk, host_path, walk};
use crate::host::{Host, caller, confinement, modules};
use crate::kinds::model::{KindInput, MountMethod, SecretDelivery, SecretParam};
use crate::kinds::servers::ServerSet;
use crate::kinds::{self, ResolvedKind, server_set};
use crate::liveness::path;
use crate::mount::request::RouteChoice;
use crate::mount::{Request, server_file};
use crate::options::Options;
use crate::state::Route;

/// A mount, decided.
#[derive(Debug)]
pub struct Plan {
    /// Name of the claim and mark of the processes.
    pub id: String,
    /// What was asked.
    pub request: Request,
    /// Equal for requests that mean the same mount.
    pub fingerprint: String,
    /// The source, with the server that was chosen for it.
    pub source: String,
    /// The servers of its source, where one is to be chosen.
    pub server_set: Option<ServerSet>,
    /// Files that its options name, where the helper would not find them.
    pub option_files: Files,
    /// The options, with what leads to these files.
    options: Options,
    /// What the table of kinds says.
    pub kind: ResolvedKind,
    /// The helper, where the kind has one.
    pub program: Option<Program>,
    /// How the mount gets to the host.
    pub route: Route,
    /// Canonical path of the target on the host.
    pub target: PathBuf,
    /// Path of the target as it was asked for, on the host.
    pub requested_target: PathBuf,
    /// Part of the target that has to be made.
    pub missing: Option<PathBuf>,
    /// What the walk to the target may do when the plan is run.
    pub rules: Rules,
    /// Where the host's root may be seen.
    hosts: Vec<PathBuf>,
}

/// The option for a mount whose daemon stays in the container, and ends with it.
pub const IN_CONTAINER: &str = "x-spc.container";

impl Plan {
    /// Decides; changes nothing.
    ///
    /// # Errors
    /// The type is unknown, its helper is missing, or the target cannot be one.
    pub fn make(request: Request, host: &Host) -> Result<Self> {
        Self::again(request, host, None)
    }

    /// As [`Plan::make`], for a mount that was made before, with the files that were copied for it then.
    ///
    /// # Errors
    /// As [`Plan::make`].
    pub fn again(request: Request, host: &Host, copies: Option<&Path>) -> Result<Self> {
        let fingerprint = request.fingerprint();
        let request = server_file::named(request, host)?;
        let several = server_set(&request.fs_type, &request.source, &request.options);
        let cwd = caller::cwd()?;
        let asked_target = host_path(&request.target, &cwd, &host.settings().hosts());
        let id = new_id()?;
        let files = Redirect::named(&host.settings().redirects(), &id).files();
        let (options, files) = match runs_in::current() {
            RunsIn::ClientRoot(_) => Files::take(&request.options, host, files, copies)?,
            RunsIn::Container | RunsIn::Host => (request.options.clone(), Files::default()),
        };
        let source = match &several {
            // Whichever it will be.
            Some(several) if several.servers.len() > 1 => several.source(&several.servers[..1]),
            _ => request.source.clone(),
        };
        let kind = resolve(&request, &source, &options, &asked_target, host)?;
        if request.options.has(MKFS) && kind.device.is_none() {
            return Err(Error::usage(format!("bad option {MKFS}"))
                .because("file systems are made on devices that spc attaches, and on nothing else")
                .hint("make it on the host, or name the device as iscsi:… or rbd:…"));
        }
        let (program, route) = match &kind.method {
            MountMethod::Helper(helper) => {
                let program = find(&helper.programs, &request.fs_type)?;
                // Without the module, which will be loaded first, the device cannot be opened.
                if kind.is_fuse() && modules::FUSE.is_there() {
                    confinement::fuse()?;
                }
                let enters = matches!(program.linkage, Linkage::Dynamic(_));
                let route = match request.route {
                    RouteChoice::Preload => Route::Preload,
                    RouteChoice::Auto if enters && !helper.drops_capabilities => Route::Preload,
                    RouteChoice::Auto | RouteChoice::Graft => Route::Graft,
                };
                (Some(program), route)
            }
            MountMethod::Kernel | MountMethod::Bind { .. } => (None, Route::Direct),
        };
        let rules = Rules {
            mkdir: request.mkdir()?,
            system: request.over_system_directory,
            no_symlink_tail: request.no_symlink_tail,
        };
        let look = Rules {
            mkdir: None,
            ..rules
        };
        path::ensure_reachable(host, &asked_target, request.limit())?;
        if let MountMethod::Bind { .. } = kind.method {
            let source = host_path(Path::new(&request.source), &cwd, &host.settings().hosts());
            path::ensure_reachable(host, &source, request.limit())?;
        }
        let found = host.run("looking at the target", {
            let target = asked_target.clone();
            move || walk(&target, look)
        })??;
        let (target, missing) = match found {
            Walk::Pinned(pinned, _) => (pinned.path, None),
            Walk::Missing(there, missing) if rules.mkdir.is_some() => {
                (there.join(&missing), Some(missing))
            }
            Walk::Missing(..) => return Err(crate::host::target::missing(&asked_target)),
        };
        if target.to_str().is_none() {
            return Err(Error::usage(format!(
                "bad target {}: not UTF-8",
                show(&target)
            )));
        }
        Ok(Self {
            id,
            request,
            fingerprint,
            source,
            server_set: several,
            option_files: files,
            options,
            kind,
            program,
            route,
            target,
            requested_target: asked_target,
            missing,
            rules,
            hosts: host.settings().hosts(),
        })
    }

    /// Leads to these of several servers, with options for that.
    ///
    /// # Errors
    /// The kind's own rules refuse them.
    pub fn toward(
        &mut self,
        several: &ServerSet,
        servers: &[String],
        more: &[String],
        host: &Host,
    ) -> Result<()> {
        let answering = &several.answering;
        let mut options = self.options.without(answering.extra_servers_options);
        for option in more {
            options.push(option.clone())?;
        }
        if let Some((key, once)) = answering.once
            && options.value(key).is_none()
        {
            options.push(format!("{key}={once}"))?;
        }
        self.source = several.source(servers);
        self.kind = resolve(
            &self.request,
            &self.source,
            &options,
            &self.requested_target,
            host,
        )?;
        if servers.len() > 1 {
            // The one that gave the mount.
            self.kind.expected_source = None;
        }
        Ok(())
    }

    /// Whether it leaves a daemon that would end with the container, and need not: it is not a directory of the
    /// container itself that is mounted, and nobody wants it so.
    pub fn outlives_the_container(&self) -> bool {
        let source = Path::new(&self.request.source);
        let in_container =
            source.is_absolute() && !self.hosts.iter().any(|host| source.starts_with(host));
        self.kind.is_fuse() && !in_container && !self.request.options.has(IN_CONTAINER)
    }

    /// The helper's arguments, with this in the target's place, and for each secret that it is given the
    /// number of a descriptor.
    pub fn argv(&self, target: &str, number: impl Fn(&str) -> String) -> Vec<String> {
        let MountMethod::Helper(helper) = &self.kind.method else {
            return Vec::new();
        };
        let mut argv: Vec<String> = helper
            .args
            .iter()
            .map(|arg| {
                if arg == kinds::model::TARGET {
                    target.to_owned()
                } else {
                    arg.clone()
                }
            })
            .collect();
        let mut options: Vec<String> = vec![helper.options.to_string()];
        for SecretParam { key, delivery: how } in &helper.secrets {
            let file = || format!("/proc/self/fd/{}", number(key));
            match how {
                _ if !self.request.secrets.has(key) => {}
                SecretDelivery::File { option } => options.push(format!("{option}={}", file())),
                SecretDelivery::Argument { before } => argv.push(format!("{before}{}", file())),
                SecretDelivery::Stdin { option } => options.extend(option.map(str::to_owned)),
                SecretDelivery::FdEnv { .. } => {}
            }
        }
        options.retain(|option| !option.is_empty());
        if !options.is_empty() {
            argv.push("-o".into());
            argv.push(options.join(","));
        }
        argv
    }
}

fn resolve(
    request: &Request,
    source: &str,
    options: &Options,
    target: &Path,
    host: &Host,
) -> Result<ResolvedKind> {
    kinds::resolve(&KindInput {
        fs_type: &request.fs_type,
        source,
        options,
        secrets: &request.secrets,
        log_name: &log_name(target),
        kernel_lacks: &|module| modules::look(module, host).err().map(|e| e.summary()),
    })
}

/// 64 random bits in hex.
fn new_id() -> Result<String> {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::system("cannot get random bytes").because(e))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

/// A file name for a target: dashes for what is no plain character, and not too long.
fn log_name(target: &Path) -> String {
    let text = target.to_string_lossy();
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._".contains(c) {
            c
        } else {
            '-'
        }
    };
    text.trim_matches('/')
        .chars()
        .map(plain)
        .take(100)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_names_are_plain_and_short() {
        assert_eq!(log_name(Path::new("/mnt/a b\n,c")), "mnt-a-b--c");
        assert_eq!(
            log_name(Path::new(&format!("/{}", "x".repeat(500)))).len(),
            100
        );
    }
}
