//! The host's side: what makes mount(8), systemd, kubelet and people find the launcher, with nothing else installed.
//!
//! `spc install` lays the client root, puts names where they are looked for, and makes that root the current one by one
//! rename. Everything but the two commands works on a tree, which is `/` on the host and a temporary one in tests.

mod apply;
mod extension;
mod kubelet;
mod layout;
mod manifest;
mod names;
mod pages;
mod place;
mod tool;
mod uninstall;
mod version;

use std::cmp::Ordering;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};
use serde::Serialize;

use crate::client::root;
use crate::error::{Error, Result, errno_text};
use crate::host::{Host, caller, container};
use crate::state::Session;
use apply::Applied;
use layout::Extras;
use manifest::{Manifest, What};
use place::{How, Look, Place};

pub use layout::MOUNTER;
pub use uninstall::{Uninstalled, uninstall};

/// How long one step on the host may take; a slow disk gets 5 MB for each copy of the program.
const LIMIT: Duration = Duration::from_secs(60);

/// The version of this program.
const OWN: &str = env!("CARGO_PKG_VERSION");

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// A driver for kubelet, and the plugin directory for it if kubelet need not be asked.
    pub driver: Option<Option<PathBuf>>,
    /// Even if what is installed is newer.
    pub force: bool,
}

/// What is installed then.
#[derive(Debug, Serialize)]
pub struct Installed {
    /// The version.
    pub version: String,
    /// The version that was installed before.
    pub before: Option<String>,
    /// The client root that the names lead to.
    pub root: String,
    /// Where the names are found, or will be.
    pub directory: PathBuf,
    /// The names there.
    pub names: Vec<String>,
    /// Names that the host has itself; they stay what they are.
    pub kept: Vec<PathBuf>,
    /// What somebody has to add before mount(8) finds the names.
    pub add: Option<Add>,
    /// The driver for kubelet.
    pub driver: Option<PathBuf>,
    /// What kubelet's flag for a mounter can name.
    pub mounter: PathBuf,
    /// Whether anything was changed.
    pub changed: bool,
}

/// A line that somebody has to add to a file.
#[derive(Debug, Serialize)]
pub struct Add {
    /// The line.
    pub line: String,
    /// The file.
    pub file: &'static str,
}

/// Installs our own image on the host, or brings the host to it.
///
/// # Errors
/// What is installed is newer, nothing can be written where it has to be, or the names do not work afterwards.
pub fn install(session: &Session, wish: &Wish) -> Result<Installed> {
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
    let in_use = root::lay(host, &session.settings, &id)?;
    let program = fs::read("/proc/self/exe")
        .map_err(|e| Error::system("cannot read our own program").because(errno_text(e)))?;
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
    if laid.place.how == How::Extension
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
        root::tidy(session, &[])?;
        return Err(error);
    }
    drop(in_use);
    caller::settle();
    root::tidy(session, &[])?;
    let changed = was.as_ref() != Some(&id) || !laid.applied.is_nothing();
    Ok(laid.told(before.map(|before| before.version), changed))
}

/// Commands that install and uninstall take turns.
fn lock(session: &Session) -> Result<crate::state::ledger::Lock> {
    let until = Instant::now() + LIMIT;
    session.ledger.lock_named("install", until, || Ok(()))
}

/// The names of all programs of the image.
fn programs() -> Vec<String> {
    let dirs = container::PROGRAM_DIRS
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
    wish: Wish,
    names: std::collections::BTreeSet<String>,
    pages: Vec<PathBuf>,
    program: Vec<u8>,
    manifest: Manifest,
    /// Whether systemd-sysext may be used.
    extensions: bool,
}

/// What was done.
struct Laid {
    place: Place,
    applied: Applied,
    manifest: Manifest,
    driver: Option<PathBuf>,
    kept: Vec<PathBuf>,
}

fn on_host(host: &Host, job: Job) -> Result<Laid> {
    host.run_within("installing", LIMIT, move || job.run(Path::new("/"), &Real))?
}

impl Job {
    fn run(mut self, root: &Path, look: &impl Look) -> Result<Laid> {
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
    fn driver(&self, root: &Path, look: &impl Look) -> Result<Option<PathBuf>> {
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

impl Laid {
    fn told(self, before: Option<String>, changed: bool) -> Installed {
        let names = self.manifest.entries.iter().filter_map(|entry| {
            let inside = [&self.place.names, &self.place.command]
                .contains(&&entry.path.parent()?.to_owned());
            let name = entry.path.file_name()?.to_string_lossy().into_owned();
            (inside && entry.what != What::Directory).then_some(name)
        });
        Installed {
            names: names.collect(),
            version: OWN.into(),
            before,
            root: self.manifest.root.clone(),
            directory: self.place.shown.clone(),
            kept: self.kept,
            add: match self.place.how {
                How::Line { line, file } => Some(Add { line, file }),
                How::Direct | How::Extension => None,
            },
            driver: self.driver,
            mounter: MOUNTER.into(),
            changed,
        }
    }
}

impl Applied {
    fn is_nothing(&self) -> bool {
        self.made.is_empty() && self.removed.is_empty()
    }
}

/// The host itself.
struct Real;

impl Look for Real {
    fn is_writable(&self, dir: &Path) -> bool {
        access(dir, Access::WRITE_OK).is_ok()
    }

    fn runs(&self, dir: &Path) -> bool {
        statvfs(dir).is_ok_and(|data| !data.f_flag.contains(StatVfsMountFlags::NOEXEC))
    }
}

/// Makes a client root the current one, or none. Gives back the one that was.
fn switch(host: &Host, id: Option<&str>) -> Result<Option<String>> {
    let (current, to) = (Path::new(root::CURRENT), id.map(root::path));
    let switched = host.run(
        "switching to the client root",
        move || -> std::io::Result<Option<String>> {
            let was = root::installed(current);
            match to {
                Some(to) => {
                    let new = current.with_extension("new");
                    apply::unlink(&new)?;
                    symlink(&to, &new)?;
                    fs::rename(&new, current)?;
                }
                None => apply::unlink(current)?,
            }
            Ok(was)
        },
    )?;
    switched.map_err(|e| {
        Error::system(format!("cannot make {} on the host", root::CURRENT)).because(errno_text(e))
    })
}

/// Runs the program on the host as anybody there would.
fn prove(place: &Place) -> Result<()> {
    let name = place.program.to_string_lossy();
    let said = tool::run(&name, &["--version"])?.done()?;
    let wanted = format!("spc {OWN}");
    if said == wanted {
        return Ok(());
    }
    Err(Error::system(format!("{name} on the host is not {wanted}")).because(said))
}

/// A path of the host whose root is at `root`.
fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
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
