//! Installation on the host, by which mount(8), systemd, kubelet and users find the launcher.
//!
//! `spc install` extracts the client root file system, creates names in the directories where
//! programs are searched, and makes that client root the current one with a single rename.
//!
//! [`install()`] and [`uninstall()`] change the host. All other functions take the root directory to
//! change: `/` on the host, a temporary directory in tests.

mod apply;
mod extension;
pub mod kubelet;
mod layout;
mod location;
mod manifest;
mod names;
pub mod outcome;
mod pages;
pub mod switch;
pub mod sysext_paths;
mod tool;
pub mod tree;
pub(crate) mod uninstall;
mod version;

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};

use crate::client::root;
use crate::error::{Error, Result};
use crate::host::{Host, caller, confinement};
use crate::install::apply::Applied;
use crate::install::layout::Extras;
use crate::install::location::{HostFeatures, HostProbe, InstallLocation, InstallMethod};
use crate::install::manifest::{EntryKind, Manifest};
use crate::install::outcome::{Installed, OWN, Outcome};
use crate::install::switch::{LIMIT, lock, switch};
use crate::install::tree::below;
use crate::state::Session;

pub use layout::MOUNTER;
pub use uninstall::{Uninstalled, uninstall};

/// Options of `spc install`.
#[derive(Clone, Debug, Default)]
pub struct InstallRequest {
    /// Whether to install the FlexVolume driver, and into which plugin directory. `Some(None)`
    /// takes the directory from the running kubelet.
    pub driver: Option<Option<PathBuf>>,
    /// Whether to replace a newer version.
    pub force: bool,
}

/// Installs the programs of this container's image on the host, or upgrades the host to them.
///
/// # Errors
/// A newer version is installed, no directory for the names is writable, or the installed program
/// does not run. In the last case, the previous version stays the current one.
pub fn install(session: &Session, request: &InstallRequest) -> Result<Installed> {
    let _lock = lock(session)?;
    let host = &session.host;
    let id = root::own_id()?;
    let before = host.run("reading the list of installed files", || {
        Manifest::read(Path::new("/"))
    })??;
    if let Some(before) = before.as_ref().filter(|_| !request.force)
        && version::compare(OWN, &before.version) == Ordering::Less
    {
        return Err(Error::usage(format!(
            "spc {} is installed, which is newer than this version: {OWN}",
            before.version
        ))
        .hint("to install the older version, add --force; mounts are not affected"));
    }
    let root_lock = root::extract_if_missing(host, &id)?;
    let program = fs::read("/proc/self/exe").map_err(|e| {
        Error::system("cannot read the program of this process: /proc/self/exe").because(e)
    })?;
    let names = names::all(&programs());
    let mut manifest = before.clone().unwrap_or_default();
    manifest.version = OWN.into();
    manifest.root = id.clone();
    let job = Job {
        request: request.clone(),
        names,
        pages: pages::of_image(Path::new("/")),
        program,
        manifest,
        extensions: true,
    };
    let mut outcome = run_on_host(host, job.clone())?;
    if outcome.location.method == InstallMethod::Extension
        && let Err(error) = extension::merge(host, &mut outcome)
    {
        tracing::warn!(
            "cannot bring the names into /usr with systemd-sysext, trying without: {error}"
        );
        let (extensions, manifest) = (false, outcome.manifest.clone());
        let job = Job {
            extensions,
            manifest,
            ..job
        };
        outcome = run_on_host(host, job)?;
        extension::unmerge(false)?;
    }
    let previous = switch(host, Some(&id))?;
    if let Err(error) = verify_program(&outcome.location) {
        switch(host, previous.as_deref())?;
        if before.is_none() {
            uninstall::remove_installed(host, outcome.manifest)?;
        }
        drop(root_lock);
        root::collect_garbage(session, &[])?;
        return Err(error);
    }
    drop(root_lock);
    caller::release_client_root();
    root::collect_garbage(session, &[])?;
    let lacks_label = || confinement::lacks_label(Path::new(root::CURRENT));
    if host
        .run("looking for SELinux", lacks_label)
        .is_ok_and(|lacks| lacks)
    {
        tracing::warn!(
            "the names do not work in fstab and mount units: {}",
            confinement::LABEL_HINT
        );
    }
    let changed = previous.as_ref() != Some(&id) || !outcome.applied.is_nothing();
    Ok(outcome.into_installed(before.map(|before| before.version), changed))
}

/// Returns the file names of all programs of the image.
fn programs() -> Vec<String> {
    let dirs = confinement::PROGRAM_DIRS
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok());
    let entries = dirs.flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Input of the part that runs in the host's mount namespace.
#[derive(Clone)]
struct Job {
    request: InstallRequest,
    names: std::collections::BTreeSet<String>,
    pages: Vec<PathBuf>,
    program: Vec<u8>,
    manifest: Manifest,
    /// Whether systemd-sysext may be used.
    extensions: bool,
}

fn run_on_host(host: &Host, job: Job) -> Result<Outcome> {
    host.run_within("installing", LIMIT, move || {
        job.run(Path::new("/"), &RealHost)
    })?
}

impl Job {
    /// Chooses the location, creates all entries and writes the manifest.
    fn run(mut self, root: &Path, probe: &impl HostProbe) -> Result<Outcome> {
        let features = HostFeatures {
            extensions: self.extensions && extension::is_usable(root),
        };
        let location = location::choose(root, features, probe)?;
        let drivers = self.driver_paths(root, probe)?;
        let extras = Extras {
            program: &self.program,
            drivers: &drivers,
        };
        let mut layout = layout::layout(root, &location, &self.names, &extras, &self.manifest);
        let pages = pages::links(root, &location, &self.pages, probe);
        layout.wanted.extend(pages);
        let applied = apply::apply(root, &layout.wanted, &mut self.manifest)?;
        let kept = [&layout.foreign[..], &applied.foreign].concat();
        Ok(Outcome {
            location,
            applied,
            manifest: self.manifest,
            drivers,
            kept,
        })
    }

    /// Returns the paths of the FlexVolume drivers, if they are requested or were installed before.
    fn driver_paths(&self, root: &Path, probe: &impl HostProbe) -> Result<Vec<PathBuf>> {
        let plugin_dir = match &self.request.driver {
            None => {
                let entries = self.manifest.entries.iter();
                let mut files = entries.filter(|entry| matches!(entry.kind, EntryKind::File(_)));
                let old = files.find_map(|entry| kubelet::plugin_dir_of(&entry.path));
                return Ok(old.map(kubelet::driver_paths).unwrap_or_default());
            }
            Some(Some(dir)) => dir.clone(),
            Some(None) => kubelet::plugin_dir(root)?.unwrap_or_else(|| kubelet::DEFAULT_DIR.into()),
        };
        let existing = plugin_dir.ancestors().find(|dir| below(root, dir).is_dir());
        let existing = below(root, existing.unwrap_or(Path::new("/")));
        let hint = "start kubelet with --volume-plugin-dir=DIR, a writable directory such as /var/lib/kubelet/volumeplugins, and add --flexvolume DIR to this command";
        let fail = |cause: &str| {
            Error::system(format!(
                "cannot install the FlexVolume driver in {}",
                plugin_dir.display()
            ))
            .because(cause)
            .hint(hint)
        };
        if !probe.is_writable(&existing) {
            return Err(fail("it is not writable"));
        }
        if !probe.allows_exec(&existing) {
            return Err(fail("it is mounted noexec"));
        }
        Ok(kubelet::driver_paths(&plugin_dir))
    }
}

impl Applied {
    fn is_nothing(&self) -> bool {
        self.made.is_empty() && self.removed.is_empty()
    }
}

/// [`HostProbe`] of the running host.
struct RealHost;

impl HostProbe for RealHost {
    fn is_writable(&self, dir: &Path) -> bool {
        access(dir, Access::WRITE_OK).is_ok()
    }

    fn allows_exec(&self, dir: &Path) -> bool {
        statvfs(dir).is_ok_and(|data| !data.f_flag.contains(StatVfsMountFlags::NOEXEC))
    }
}

/// Runs the installed program on the host and checks that it reports this version.
fn verify_program(location: &InstallLocation) -> Result<()> {
    let name = location.program.to_string_lossy();
    let version = tool::run(&name, &["--version"])?.into_output()?;
    let expected = format!("spc {OWN}");
    if version == expected {
        return Ok(());
    }
    Err(
        Error::system(format!("{name} on the host is not {expected}"))
            .because(format!("it reports {version}")),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// Temporary directory that takes the place of the host's root, removed when dropped.
    pub struct Tree(PathBuf);

    impl Tree {
        pub fn new(name: &str) -> Self {
            let name = format!("spc-install-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            // A killed test may have left the directory.
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path.canonicalize().unwrap())
        }

        pub fn path(&self) -> &Path {
            &self.0
        }

        pub fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        pub fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).unwrap()
        }

        /// Returns every path in the directory, and the targets of links, sorted.
        pub fn listing(&self) -> Vec<String> {
            let mut all = Vec::new();
            let mut directories = vec![self.0.clone()];
            while let Some(dir) = directories.pop() {
                for entry in fs::read_dir(dir).unwrap() {
                    let path = entry.unwrap().path();
                    all.push(format!("{path:?} {:?}", fs::read_link(&path).ok()));
                    if path.symlink_metadata().unwrap().is_dir() {
                        directories.push(path);
                    }
                }
            }
            all.sort();
            all
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            // An error leaves files in the directory for temporary files, which does no harm.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
