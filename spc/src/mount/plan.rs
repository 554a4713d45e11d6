//! Plan of a mount: everything is decided before anything changes. `spc explain` prints it.

use std::path::{Path, PathBuf};

use crate::block::filesystem::MKFS;
use crate::error::{Error, Result, show};
use crate::helper::option_files::{self, OptionFiles};
use crate::helper::program::{Linkage, Program, find};
use crate::host::redirect::Redirect;
use crate::host::runs_in::{self, RunsIn};
use crate::host::target::{Rules, Walk, host_path, walk};
use crate::host::{Host, accounts, caller, confinement, modules};
use crate::kinds::model::{KindInput, MountMethod, SecretDelivery, SecretParam};
use crate::kinds::resolve::ResolvedKind;
use crate::kinds::servers::ServerSet;
use crate::kinds::{self, server_set};
use crate::liveness::path;
use crate::mount::detached::Adjustments;
use crate::mount::remount::REMOUNT;
use crate::mount::request::RouteChoice;
use crate::mount::{Request, server_file};
use crate::options::Options;
use crate::options::generic::SELINUX;
use crate::state::Route;
use crate::state::record::log_name;

/// Planned mount.
#[derive(Debug)]
pub struct Plan {
    /// Id of the mount: names its redirect and marks its processes.
    pub id: String,
    /// Request, with the servers of a file added to its source.
    pub request: Request,
    /// Fingerprint of the request, equal for requests that mean the same mount.
    pub fingerprint: String,
    /// Source with the chosen server.
    pub source: String,
    /// Servers of the source, where spc chooses one.
    pub server_set: Option<ServerSet>,
    /// Files that options name, for a helper that does not see the caller's files.
    pub option_files: OptionFiles,
    /// Options, with the paths of the copies of these files, the numbers of users and groups, and
    /// without labels where the host has none.
    pub(super) options: Options,
    /// Changes to the mount before it is attached.
    pub adjustments: Adjustments,
    /// File system type, resolved by the table of kinds.
    pub kind: ResolvedKind,
    /// Helper program, where the kind has one.
    pub program: Option<Program>,
    /// Route by which the mount gets to the host.
    pub route: Route,
    /// Canonical path of the target on the host.
    pub target: PathBuf,
    /// Path of the target on the host, as requested.
    pub requested_target: PathBuf,
    /// Part of the target that has to be created.
    pub missing: Option<PathBuf>,
    /// Rules for the walk to the target when the plan is run.
    pub rules: Rules,
    /// Paths at which the host's root directory is visible.
    hosts: Vec<PathBuf>,
}

/// Option for a mount whose daemon runs in the container and ends with it.
pub const IN_CONTAINER: &str = "x-spc.container";

impl Plan {
    /// Plans a mount, without changing anything.
    ///
    /// # Errors
    /// The type is unknown, its helper is missing, or the target is not usable.
    pub fn new(request: Request, host: &Host) -> Result<Self> {
        Self::build(request, host, None)
    }

    /// Plans a mount that replaces a dead one. Option files that no longer exist are taken from
    /// `copies`, the directory of the copies made for the dead mount.
    ///
    /// # Errors
    /// Errors of [`Plan::new`].
    pub fn for_repair(request: Request, host: &Host, copies: &Path) -> Result<Self> {
        Self::build(request, host, Some(copies))
    }

    fn build(request: Request, host: &Host, earlier_copies: Option<&Path>) -> Result<Self> {
        if request.options.has(REMOUNT) {
            return Err(Error::usage(
                "bad option remount: this is a request for a new mount",
            ));
        }
        let fingerprint = request.fingerprint();
        let mut request = server_file::expand(request, host)?;
        for contents in option_files::contents(&request.options, host)? {
            request.secrets.hide_contents(&contents);
        }
        let cwd = caller::cwd()?;
        let hosts = host.settings().hosts();
        let requested_target = host_path(&request.target, &cwd, &hosts);
        let id = new_id()?;
        let (mut options, option_files) = match runs_in::current() {
            RunsIn::ClientRoot(_) => {
                let copies = Redirect::with_id(&host.settings().redirects(), &id).files();
                OptionFiles::collect(&request.options, host, copies, earlier_copies)?
            }
            RunsIn::Container | RunsIn::Host => (request.options.clone(), OptionFiles::default()),
        };
        translate(&mut options, &request.fs_type, host)?;
        let adjustments = Adjustments::from_options(&request.options, host)?;
        let server_set = server_set(&request.fs_type, &request.source, &request.options);
        let source = provisional_source(&request, server_set.as_ref());
        let kind = resolve(&request, &source, &options, &requested_target, host)?;
        check_mkfs(&request, &kind)?;
        let program = find_helper(&request, &kind)?;
        let route = choose_route(&request, &kind, program.as_ref(), &adjustments)?;
        let rules = Rules {
            mkdir: request.mkdir()?,
            system: request.over_system_directory,
            no_symlink_tail: request.no_symlink_tail,
        };
        path::ensure_reachable(host, &requested_target, request.limit())?;
        if let MountMethod::Bind { .. } = kind.method {
            let source = host_path(Path::new(&request.source), &cwd, &hosts);
            path::ensure_reachable(host, &source, request.limit())?;
        }
        let FoundTarget { path, missing } = find_target(&requested_target, rules, host)?;
        let plan = Self {
            id,
            request,
            fingerprint,
            source,
            server_set,
            option_files,
            options,
            adjustments,
            kind,
            program,
            route,
            target: path,
            requested_target,
            missing,
            rules,
            hosts,
        };
        // /dev/fuse cannot be opened before the module is loaded, which the mount does first.
        if plan.kind.is_fuse() && !plan.outlives_container() && modules::FUSE.is_available() {
            confinement::check_fuse()?;
        }
        Ok(plan)
    }

    /// Changes the source to these servers, and adds the options for them.
    ///
    /// # Errors
    /// The rules of the kind refuse the source or the options.
    pub fn use_servers(
        &mut self,
        server_set: &ServerSet,
        servers: &[String],
        extra_options: &[String],
        host: &Host,
    ) -> Result<()> {
        let probe = &server_set.probe;
        let mut options = self.options.without(probe.extra_servers_options);
        for option in extra_options {
            options.push(option.clone())?;
        }
        if let Some((key, value)) = probe.single_attempt
            && options.value(key).is_none()
        {
            options.push(format!("{key}={value}"))?;
        }
        self.source = server_set.source(servers);
        self.kind = resolve(
            &self.request,
            &self.source,
            &options,
            &self.requested_target,
            host,
        )?;
        if servers.len() > 1 {
            // The mount table shows the server that the helper has chosen.
            self.kind.expected_source = None;
        }
        Ok(())
    }

    /// Returns whether the mount needs a daemon that should outlive the container. A directory of
    /// the container as the source, or the option [`IN_CONTAINER`], ties the daemon to the
    /// container. A pod has no directory of the container, whatever its source looks like.
    pub fn outlives_container(&self) -> bool {
        let source = Path::new(&self.request.source);
        let in_container = !self.request.sandboxed
            && source.is_absolute()
            && !self.hosts.iter().any(|host| source.starts_with(host));
        self.kind.is_fuse() && !in_container && !self.request.options.has(IN_CONTAINER)
    }

    /// Returns the helper's arguments with this target. `fd_number` returns the descriptor number
    /// of a secret by its key.
    pub fn argv(&self, target: &str, fd_number: impl Fn(&str) -> String) -> Vec<String> {
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
        for SecretParam { key, delivery } in &helper.secrets {
            let file = || format!("/proc/self/fd/{}", fd_number(key));
            match delivery {
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

/// Resolves the kind of a request, for this source and these options.
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
        kernel_lacks: &|module| modules::check(module, host).err().map(|e| e.summary()),
    })
}

/// Returns the source with its first server, where spc chooses one later.
fn provisional_source(request: &Request, server_set: Option<&ServerSet>) -> String {
    match server_set {
        Some(set) if set.servers.len() > 1 => set.source(&set.servers[..1]),
        _ => request.source.clone(),
    }
}

/// Checks that a file system is only to be made on a device that spc attaches.
fn check_mkfs(request: &Request, kind: &ResolvedKind) -> Result<()> {
    if request.options.has(MKFS) && kind.device.is_none() {
        return Err(Error::usage(format!("bad option {MKFS}"))
            .because("spc makes file systems only on devices that it attaches")
            .hint("make it on the host, or name the device as iscsi:… or rbd:…"));
    }
    Ok(())
}

/// Finds the helper program of a kind, if it has one.
fn find_helper(request: &Request, kind: &ResolvedKind) -> Result<Option<Program>> {
    let MountMethod::Helper(helper) = &kind.method else {
        return Ok(None);
    };
    let program = find(&helper.programs, &request.fs_type)?;
    Ok(Some(program))
}

/// Translates options as mount(8) does: names of users and groups become numbers, and SELinux
/// labels are left out where the host has no SELinux.
fn translate(options: &mut Options, fs_type: &str, host: &Host) -> Result<()> {
    for (key, id) in [
        ("uid", accounts::uid as fn(&Host, &str) -> Result<u32>),
        ("gid", accounts::gid),
    ] {
        if let Some(name) = options.value(key).map(str::to_owned) {
            options.replace(key, &id(host, &name)?.to_string());
        }
    }
    let has_label = options.iter().any(|(key, _)| SELINUX.contains(&key));
    if has_label {
        let selinux = || Path::new("/sys/fs/selinux/enforce").exists();
        if !host.run("looking for SELinux", selinux)? {
            *options = options.without(&SELINUX);
        } else if fs_type.starts_with("nfs") && !selinux() {
            // Other helpers pass them on.
            return Err(Error::usage("mount.nfs leaves out SELinux labels (context=), because it cannot see SELinux")
                .hint("use spc in a container that shows it: -v /sys/fs/selinux:/sys/fs/selinux -v /etc/selinux:/etc/selinux:ro"));
        }
    }
    Ok(())
}

/// Returns the route of a mount: as requested, else preload where the shim works in the helper, and
/// where the mount needs no change before it is attached.
///
/// # Errors
/// A change is impossible by the requested route.
fn choose_route(
    request: &Request,
    kind: &ResolvedKind,
    program: Option<&Program>,
    adjustments: &Adjustments,
) -> Result<Route> {
    let (MountMethod::Helper(helper), Some(program)) = (&kind.method, program) else {
        return Ok(Route::Direct);
    };
    let is_dynamic = matches!(program.linkage, Linkage::Dynamic(_));
    match request.route {
        // The launcher makes the mount of a sandboxed helper.
        _ if request.sandboxed => Ok(Route::Graft),
        RouteChoice::Preload if !adjustments.is_empty() => Err(Error::usage(
            "bad --route preload: the helper's mount cannot be changed as X-mount.… asks",
        )
        .hint("leave out --route preload")),
        RouteChoice::Preload => Ok(Route::Preload),
        RouteChoice::Auto if is_dynamic && !helper.drops_capabilities && adjustments.is_empty() => {
            Ok(Route::Preload)
        }
        RouteChoice::Auto | RouteChoice::Graft => Ok(Route::Graft),
    }
}

/// Target as it is before the mount.
struct FoundTarget {
    /// Canonical path.
    path: PathBuf,
    /// Part of the path that does not exist.
    missing: Option<PathBuf>,
}

/// Finds the target on the host, without creating directories.
fn find_target(requested: &Path, rules: Rules, host: &Host) -> Result<FoundTarget> {
    let read_only = Rules {
        mkdir: None,
        ..rules
    };
    let found = host.run("looking at the target", {
        let target = requested.to_owned();
        move || walk(&target, read_only)
    })??;
    let found = match found {
        Walk::Pinned(pinned, _) => FoundTarget {
            path: pinned.path,
            missing: None,
        },
        Walk::Missing(existing, missing) if rules.mkdir.is_some() => FoundTarget {
            path: existing.join(&missing),
            missing: Some(missing),
        },
        Walk::Missing(..) => return Err(crate::host::target::missing(requested)),
    };
    if found.path.to_str().is_none() {
        let shown = show(&found.path);
        return Err(Error::usage(format!("bad target {shown}: not UTF-8")));
    }
    Ok(found)
}

/// Returns 64 random bits in hex.
fn new_id() -> Result<String> {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::system("cannot get random bytes").because(e))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}
