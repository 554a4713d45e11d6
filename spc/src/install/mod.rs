//! The host's side: what makes mount(8), systemd, kubelet and people find the launcher, with nothing else installed.
//!
//! `spc install` lays the client root, puts names where they are looked for, and makes that root the current one by one
//! rename. Everything but the two commands works on a tree, which is `/` on the host and a temporary one in tests.

mod apply;
mod extension;
mod kubelet;
pub mod laid;
mod layout;
mod manifest;
mod names;
mod pages;
mod place;
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
use crate::install::laid::{Installed, Laid, OWN};
use crate::install::layout::Extras;
use crate::install::manifest::{Manifest, What};
use crate::install::place::{HostProbe, InstallLocation, InstallMethod};
use crate::install::switch::{LIMIT, lock, switch};
use crate::install::tree::below;
use crate::state::Session;

pub use layout::MOUNTER;
pub use uninstall::{Uninstalled, uninstall};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct InstallRequest {
    /// A driver for kubelet, and the plugin directory for it if kubelet need not be asked.
    pub driver: Option<Option<PathBuf>>,
    /// Even if what is installed is newer.
    pub force: bool,
}

/// Installs our own image on the host, or brings the host to it.
///
/// # Errors
/// What is installed is newer, nothing can be written where it has to be, or the names do not work afterwards.
pub fn install(session: &Session, wish: &InstallRequest) -> Result<Installed> {
    let _lock = lock(session)?;
    let host = &session.host;
    let id = root::own()?;
    let before = host.run("reading what is installed", || {
        Manifest::read(Path::new("/"))
    })??;
    if let Some(before) = before.as_ref().filter(|_| !wish.force)
        && version::compare(OWN, &before.version) == Ordering::Less
    {
        return Err(Error::usage(format!(
            "spc {} is installed, and this is {OWN}",
            before.version
        ))
        .hint("to go back to it all the same, add --force; mounts stay as they are"));
    }
    let in_use = root::extract_if_missing(host, &id)?;
    let program = fs::read("/proc/self/exe")
        .map_err(|e| Error::system("cannot read our own program").because(e))?;
    let names = names::all(&programs());
    let mut manifest = before.clone().unwrap_or_default();
    manifest.version = OWN.into();
    manifest.root = id.clone();
    let job = Job {
        wish: wish.clone(),
        names,
        pages: pages::of_image(Path::new("/")),
        program,
        manifest,
        extensions: true,
    };
    let mut laid = on_host(host, job.clone())?;
    if laid.place.how == InstallMethod::Extension
        && let Err(error) = extension::merge(host, &mut laid)
    {
        tracing::warn!("systemd-sysext does not bring the names into /usr: {error}");
        let (extensions, manifest) = (false, laid.manifest.clone());
        let job = Job {
            extensions,
            manifest,
            ..job
        };
        laid = on_host(host, job)?;
        extension::unmerge(false)?;
    }
    let was = switch(host, Some(&id))?;
    if let Err(error) = prove(&laid.place) {
        // Whoever uses what was there before goes on with it.
        switch(host, was.as_deref())?;
        if before.is_none() {
            uninstall::take_away(host, laid.manifest)?;
        }
        drop(in_use);
        root::collect_garbage(session, &[])?;
        return Err(error);
    }
    drop(in_use);
    caller::settle();
    root::collect_garbage(session, &[])?;
    let changed = was.as_ref() != Some(&id) || !laid.applied.is_nothing();
    Ok(laid.told(before.map(|before| before.version), changed))
}

/// The names of all programs of the image.
fn programs() -> Vec<String> {
    let dirs = confinement::PROGRAM_DIRS
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok());
    let entries = dirs.flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What is done on the host in one go.
#[derive(Clone)]
struct Job {
    wish: InstallRequest,
    names: std::collections::BTreeSet<String>,
    pages: Vec<PathBuf>,
    program: Vec<u8>,
    manifest: Manifest,
    /// Whether systemd-sysext may be used.
    extensions: bool,
}

fn on_host(host: &Host, job: Job) -> Result<Laid> {
    host.run_within("installing", LIMIT, move || {
        job.run(Path::new("/"), &RealHost)
    })?
}

impl Job {
    fn run(mut self, root: &Path, look: &impl HostProbe) -> Result<Laid> {
        let has = place::Has {
            extensions: self.extensions && extension::are_usable(root),
        };
        let place = place::find(root, has, look)?;
        let driver = self.driver(root, look)?;
        let extras = Extras {
            program: &self.program,
            driver: driver.as_deref(),
        };
        let mut layout = layout::layout(root, &place, &self.names, &extras, &self.manifest);
        let pages = pages::links(root, &place, &self.pages, look);
        layout.wanted.extend(pages);
        let applied = apply::apply(root, &layout.wanted, &mut self.manifest)?;
        let kept = [&layout.foreign[..], &applied.foreign].concat();
        Ok(Laid {
            place,
            applied,
            manifest: self.manifest,
            driver,
            kept,
        })
    }

    /// Where the driver goes, if one is asked for or one is there.
    fn driver(&self, root: &Path, look: &impl HostProbe) -> Result<Option<PathBuf>> {
        let plugins = match &self.wish.driver {
            None => {
                let entries = self.manifest.entries.iter();
                let mut files = entries.filter(|entry| matches!(entry.what, What::File(_)));
                let was = files.find(|entry| kubelet::is_driver(&entry.path));
                return Ok(was.map(|entry| entry.path.clone()));
            }
            Some(Some(dir)) => dir.clone(),
            Some(None) => kubelet::plugins(root).unwrap_or_else(|| kubelet::DEFAULT.into()),
        };
        let there = plugins.ancestors().find(|dir| below(root, dir).is_dir());
        let there = below(root, there.unwrap_or(Path::new("/")));
        let hint = "give kubelet --volume-plugin-dir=DIR with a directory that can be written, such as /var/lib/kubelet/volumeplugins, and add --flexvolume DIR here";
        let fail = |cause: &str| {
            Error::system(format!("no driver can be put in {}", plugins.display()))
                .because(cause)
                .hint(hint)
        };
        if !look.is_writable(&there) {
            return Err(fail("it cannot be written"));
        }
        if !look.runs(&there) {
            return Err(fail("it is mounted noexec"));
        }
        Ok(Some(kubelet::driver(&plugins)))
    }
}

impl Applied {
    fn is_nothing(&self) -> bool {
        self.made.is_empty() && self.removed.is_empty()
    }
}

/// The host itself.
struct RealHost;

impl HostProbe for RealHost {
    fn is_writable(&self, dir: &Path) -> bool {
        access(dir, Access::WRITE_OK).is_ok()
    }

    fn runs(&self, dir: &Path) -> bool {
        statvfs(dir).is_ok_and(|data| !data.f_flag.contains(StatVfsMountFlags::NOEXEC))
    }
}

/// Runs the program on the host as anybody there would.
fn prove(place: &InstallLocation) -> Result<()> {
    let name = place.program.to_string_lossy();
    let said = tool::run(&name, &["--version"])?.done()?;
    let wanted = format!("spc {OWN}");
    if said == wanted {
        return Ok(());
    }
    Err(Error::system(format!("{name} on the host is not {wanted}")).because(said))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// A host's tree, empty at first.
    pub struct Tree(PathBuf);

    impl Tree {
        pub fn new(name: &str) -> Self {
            let name = format!("spc-install-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            // A run that was killed may have left it.
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

        /// Every path of it, with what links lead to.
        pub fn listing(&self) -> Vec<String> {
            let mut all = Vec::new();
            let mut todo = vec![self.0.clone()];
            while let Some(dir) = todo.pop() {
                for entry in fs::read_dir(dir).unwrap() {
                    let path = entry.unwrap().path();
                    all.push(format!("{path:?} {:?}", fs::read_link(&path).ok()));
                    if path.symlink_metadata().unwrap().is_dir() {
                        todo.push(path);
                    }
                }
            }
            all.sort();
            all
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            // What is left is in the system's directory for temporary files.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
