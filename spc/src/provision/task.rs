//! Tasks of the controller service on a mounted backend. A process may be killed after any step;
//! the same task then continues.

use std::time::Instant;

use rustix::fs::renameat;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::provision::backends::Quota;
use crate::provision::class::OnDelete;
use crate::provision::notes::{self, Note};
use crate::provision::remove::remove;
use crate::provision::share::{self, ARCHIVE, NEW, Share, TRASH};
use crate::provision::{Directory, Failure, FailureKind};

/// Largest number of archived volumes with the same directory.
const MAX_ARCHIVED: usize = 1000;

/// Task on a backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// Creates a volume.
    Create(Note),
    /// Removes, keeps or archives a volume.
    Delete,
    /// Checks that a volume exists.
    Find,
    /// Expands a volume to a number of bytes.
    Expand(u64),
}

/// Runs a task on the volume in a directory. Returns the size of the volume in bytes; 0 if it has
/// no limit.
///
/// # Errors
/// The volume does not exist or is another one, the server refuses a step, or the deadline has
/// passed.
pub fn run(
    share: &Share,
    directory: &Directory,
    quota: Option<Quota>,
    task: &Task,
    deadline: Instant,
) -> Result<u64, Failure> {
    match task {
        Task::Create(note) => create(share, directory, quota, note),
        Task::Delete => delete(share, directory, deadline).map(|()| 0),
        Task::Find => find(share, directory).map(|()| 0),
        Task::Expand(bytes) => expand(share, directory, quota, *bytes),
    }
}

/// Creates a volume, unless it exists. The note is written first and reserves the directory.
fn create(
    share: &Share,
    directory: &Directory,
    quota: Option<Quota>,
    note: &Note,
) -> Result<u64, Failure> {
    let path = directory.path();
    let exists = share.exists(path)?;
    match notes::read(share, directory)? {
        Some(found) if found == *note => {}
        Some(found) => return Err(other_volume(directory, &found, note)),
        None if exists => {
            let error = Error::mount(format!("the directory {path} exists and is not a volume"));
            let error = error.hint(
                "it was created by others, or kept from an earlier volume (onDelete: retain): \
                 move it away, or use it as a PersistentVolume",
            );
            return Err(Failure::new(FailureKind::Exists, error));
        }
        None => {
            if !notes::write(share, directory, note)? {
                let error = Error::mount(format!("another call is creating the volume {path}"));
                return Err(error.into());
            }
        }
    }
    if !exists {
        // The note is written, so a concurrent call for a nested directory finds it.
        if let Some(other) = notes::nested(share, directory)? {
            notes::remove(share, directory)?;
            let error = Error::usage(format!(
                "the directory {path} and that of the volume {other} would be nested"
            ));
            return Err(Failure::new(
                FailureKind::Invalid,
                error.hint("change the parameter `directory` of the StorageClass"),
            ));
        }
        create_directory(share, directory, quota, note)
            .map_err(|failure| roll_back(share, directory, failure))?;
    }
    Ok(quota.map_or(0, |Quota::Ceph| note.bytes))
}

/// Returns the failure for a directory that belongs to another volume.
fn other_volume(directory: &Directory, found: &Note, wanted: &Note) -> Failure {
    let path = directory.path();
    let error = Error::mount(format!("the volume {path} exists"));
    let error = if found.name == wanted.name {
        error
            .because("it was requested with another size or other parameters")
            .hint("delete it first, or request it as before")
    } else {
        error
            .because(format!("it belongs to {}", found.name.escape_default()))
            .hint(
                "wait until that one is removed, or change the parameter `directory` of the \
                 StorageClass so that claims do not share a directory",
            )
    };
    Failure::new(FailureKind::Exists, error)
}

/// Creates the directory of a volume: sets mode, owner and quota in [`NEW`], then renames it.
fn create_directory(
    share: &Share,
    directory: &Directory,
    quota: Option<Quota>,
    note: &Note,
) -> Result<(), Failure> {
    let prepared = share.open_own(NEW)?;
    let key = directory.key();
    let new = share.open_or_create(&format!("{NEW}/{key}"), 0o700)?;
    share::set_access(&new, note.mode, note.owner)?;
    if let Some(Quota::Ceph) = quota
        && note.bytes > 0
    {
        share::set_ceph_quota(&new, note.bytes)?;
    }
    for above in directory.ancestors() {
        share.open_or_create(above.path(), 0o755)?;
    }
    let path = directory.path();
    let fail =
        |error: Errno| Failure::on_share(format!("cannot create the directory {path}"), error);
    let parent = share
        .open(directory.parent().unwrap_or("."))
        .map_err(fail)?;
    renameat(&prepared, &key, &parent, directory.name()).map_err(fail)
}

/// Removes the prepared directory and the note of a failed call. The failure is final if nothing is
/// left.
fn roll_back(share: &Share, directory: &Directory, failure: Failure) -> Failure {
    if !matches!(share.exists(directory.path()), Ok(false)) {
        return failure;
    }
    let removed = share
        .remove_empty(NEW, &directory.key())
        .and_then(|()| notes::remove(share, directory));
    let kind = match removed {
        Ok(()) => FailureKind::Final,
        Err(_) => failure.kind,
    };
    Failure { kind, ..failure }
}

/// Removes, keeps or archives a volume. The note is removed last, because the next call needs it to
/// continue.
fn delete(share: &Share, directory: &Directory, deadline: Instant) -> Result<(), Failure> {
    // A directory without a note was not created by the controller, or is no longer a volume.
    let Some(note) = notes::read(share, directory)? else {
        return Ok(());
    };
    let key = directory.key();
    share.remove_empty(NEW, &key)?;
    match note.on_delete {
        OnDelete::Retain => {}
        OnDelete::Archive => archive(share, directory)?,
        OnDelete::Delete => {
            let trash = share.open_own(TRASH)?;
            // An interrupted call may have left a part of the volume.
            remove(&trash, &key, deadline)?;
            if move_to(share, directory, TRASH, &key)? == Moved::NameTaken {
                let error = Error::mount(format!("cannot move {} away", directory.path()));
                return Err(error.because("another call works on it").into());
            }
            remove(&trash, &key, deadline)?;
        }
    }
    notes::remove(share, directory)
}

/// Outcome of a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// The directory has the new name, or did not exist.
    Done,
    /// Another file has the new name.
    NameTaken,
}

/// Renames the directory of a volume into one of the controller's own directories.
fn move_to(share: &Share, directory: &Directory, to: &str, name: &str) -> Result<Moved, Failure> {
    let fail =
        |error: Errno| Failure::on_share(format!("cannot move {} away", directory.path()), error);
    let to = share.open_own(to)?;
    let parent = match share.open(directory.parent().unwrap_or(".")) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(Moved::Done),
        Err(error) => return Err(fail(error)),
    };
    match renameat(&parent, directory.name(), &to, name) {
        Ok(()) | Err(Errno::NOENT) => Ok(Moved::Done),
        Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => Ok(Moved::NameTaken),
        Err(error) => Err(fail(error)),
    }
}

/// Renames the directory of a volume into the archive, with a number if the name is taken.
fn archive(share: &Share, directory: &Directory) -> Result<(), Failure> {
    let key = directory.key();
    for number in 0..MAX_ARCHIVED {
        let name = match number {
            0 => key.clone(),
            number => format!("{key}.{number}"),
        };
        // rename(2) would replace an empty directory of this name.
        if !share.exists(&format!("{ARCHIVE}/{name}"))?
            && move_to(share, directory, ARCHIVE, &name)? == Moved::Done
        {
            return Ok(());
        }
    }
    let error = Error::mount(format!("cannot archive {}", directory.path()));
    Err(error
        .because(format!("{MAX_ARCHIVED} volumes of this name are archived"))
        .hint(format!("remove old ones from {ARCHIVE} on the backend"))
        .into())
}

/// Checks that a volume exists.
fn find(share: &Share, directory: &Directory) -> Result<(), Failure> {
    if notes::read(share, directory)?.is_some() && share.exists(directory.path())? {
        return Ok(());
    }
    Err(not_found(directory))
}

fn not_found(directory: &Directory) -> Failure {
    let error = Error::mount(format!("there is no volume {}", directory.path()));
    Failure::new(FailureKind::NotFound, error)
}

/// Raises the quota of a volume to a number of bytes, unless it is larger, and returns the quota.
fn expand(
    share: &Share,
    directory: &Directory,
    quota: Option<Quota>,
    bytes: u64,
) -> Result<u64, Failure> {
    find(share, directory)?;
    let Some(Quota::Ceph) = quota else {
        let error = Error::mount("the size of this volume is not limited");
        return Err(Failure::new(
            FailureKind::Unsupported,
            error.hint("give the backend a quota; older volumes get one when they grow"),
        ));
    };
    let dir = share
        .open(directory.path())
        .map_err(|error| Failure::on_share(format!("cannot open {}", directory.path()), error))?;
    let now = share::ceph_quota(&dir)?;
    if now >= bytes {
        return Ok(now);
    }
    share::set_ceph_quota(&dir, bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    use crate::provision::scratch::Scratch;

    /// Backend on a local file system.
    struct Backend {
        scratch: Scratch,
        share: Share,
    }

    impl Backend {
        fn new() -> Self {
            let scratch = Scratch::new();
            let share = Share::new(scratch.fd());
            Self { scratch, share }
        }

        fn run(&self, path: &str, task: &Task) -> Result<u64, FailureKind> {
            let directory = Directory::new(path).unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            let done = super::run(&self.share, &directory, None, task, deadline);
            done.map_err(|failure| failure.kind)
        }

        fn create(&self, path: &str, note: &Note) -> Result<(), FailureKind> {
            self.run(path, &Task::Create(note.clone())).map(drop)
        }

        fn delete(&self, path: &str) -> Result<(), FailureKind> {
            self.run(path, &Task::Delete).map(drop)
        }

        /// Returns the sorted names in a directory of the backend.
        fn list(&self, path: &str) -> Vec<String> {
            let Ok(entries) = fs::read_dir(self.scratch.0.join(path)) else {
                return Vec::new();
            };
            let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
            let names = entries.map(|entry| name(entry).to_string_lossy().into_owned());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        }

        /// Checks that the controller has left nothing in its own directories.
        fn assert_clean(&self) {
            for path in [share::NOTES, NEW, TRASH] {
                assert!(self.list(path).is_empty(), "{path}: {:?}", self.list(path));
            }
        }
    }

    fn note(name: &str, on_delete: OnDelete) -> Note {
        Note {
            name: name.to_owned(),
            bytes: 1 << 20,
            on_delete,
            mode: 0o2770,
            owner: None,
        }
    }

    #[test]
    fn a_volume_is_made_once_and_removed_once() {
        let backend = Backend::new();
        let wanted = note("pvc-1", OnDelete::Delete);
        for _ in 0..3 {
            backend.create("team/web", &wanted).unwrap();
        }
        let made = backend.scratch.0.join("team/web");
        assert_eq!(
            fs::metadata(&made).unwrap().permissions().mode() & 0o7777,
            0o2770
        );
        fs::write(made.join("file"), "x").unwrap();
        backend.create("team/web", &wanted).unwrap();
        assert_eq!(fs::read(made.join("file")).unwrap(), b"x");
        backend.run("team/web", &Task::Find).unwrap();
        for other in [
            note("pvc-2", OnDelete::Delete),
            note("pvc-1", OnDelete::Retain),
            Note {
                bytes: 2,
                ..wanted.clone()
            },
            Note {
                mode: 0o700,
                ..wanted.clone()
            },
        ] {
            assert_eq!(backend.create("team/web", &other), Err(FailureKind::Exists));
        }
        assert_eq!(
            backend.run("team/web", &Task::Expand(1)),
            Err(FailureKind::Unsupported)
        );
        for _ in 0..3 {
            backend.delete("team/web").unwrap();
        }
        assert_eq!(backend.list("team"), [""; 0]);
        assert_eq!(
            backend.run("team/web", &Task::Find),
            Err(FailureKind::NotFound)
        );
        assert_eq!(
            backend.run("team/web", &Task::Expand(1)),
            Err(FailureKind::NotFound)
        );
        backend.assert_clean();
    }

    #[test]
    fn a_deleted_volume_is_kept_or_archived_if_its_class_says_so() {
        let backend = Backend::new();
        for round in 0..3 {
            let name = format!("pvc-{round}");
            backend
                .create("a/b", &note(&name, OnDelete::Archive))
                .unwrap();
            fs::write(backend.scratch.0.join("a/b/of"), &name).unwrap();
            backend.delete("a/b").unwrap();
        }
        assert_eq!(backend.list(ARCHIVE), ["a%b", "a%b.1", "a%b.2"]);
        let kept = backend.scratch.0.join(ARCHIVE).join("a%b.1/of");
        assert_eq!(fs::read(kept).unwrap(), b"pvc-1");
        backend
            .create("kept", &note("pvc-4", OnDelete::Retain))
            .unwrap();
        backend.delete("kept").unwrap();
        backend.delete("kept").unwrap();
        assert!(backend.scratch.0.join("kept").is_dir());
        // Another claim does not get the data of the first.
        let other = note("pvc-5", OnDelete::Delete);
        assert_eq!(backend.create("kept", &other), Err(FailureKind::Exists));
        backend.delete("kept").unwrap();
        assert!(backend.scratch.0.join("kept").is_dir());
        backend.assert_clean();
    }

    #[test]
    fn no_volume_is_inside_another() {
        let backend = Backend::new();
        let wanted = |name: &str| note(name, OnDelete::Delete);
        backend.create("a", &wanted("1")).unwrap();
        assert_eq!(
            backend.create("a/b", &wanted("2")),
            Err(FailureKind::Invalid)
        );
        backend.create("c/d/e", &wanted("3")).unwrap();
        assert_eq!(backend.create("c", &wanted("4")), Err(FailureKind::Exists));
        assert_eq!(
            backend.create("c/d", &wanted("5")),
            Err(FailureKind::Exists)
        );
        backend.create("c/d/f", &wanted("6")).unwrap();
        // The directories of the other volumes do not exist yet.
        fs::remove_dir_all(backend.scratch.0.join("c")).unwrap();
        assert_eq!(backend.create("c", &wanted("4")), Err(FailureKind::Invalid));
        assert_eq!(
            backend.list(share::NOTES),
            ["a.json", "c%d%e.json", "c%d%f.json"]
        );
    }

    #[test]
    fn links_in_the_place_of_directories_lead_nowhere() {
        let backend = Backend::new();
        let root = &backend.scratch.0;
        let outside = Scratch::new();
        fs::create_dir(outside.0.join("web")).unwrap();
        fs::write(outside.0.join("web/kept"), "x").unwrap();
        let wanted = note("pvc-1", OnDelete::Delete);

        // Link above the volume.
        symlink(&outside.0, root.join("team")).unwrap();
        assert!(backend.create("team/web", &wanted).is_err());
        assert!(backend.create("team/new", &wanted).is_err());
        fs::remove_file(root.join("team")).unwrap();
        backend.create("team/web", &wanted).unwrap();
        fs::rename(root.join("team"), root.join("moved")).unwrap();
        symlink(&outside.0, root.join("team")).unwrap();
        assert_eq!(backend.delete("team/web"), Err(FailureKind::Unavailable));
        assert!(outside.0.join("web/kept").exists());
        fs::remove_file(root.join("team")).unwrap();
        fs::rename(root.join("moved"), root.join("team")).unwrap();

        // Further above the volume, to another directory of the share.
        let deep = note("pvc-2", OnDelete::Delete);
        backend.create("a/b/web", &deep).unwrap();
        fs::rename(root.join("a"), root.join("moved")).unwrap();
        fs::create_dir_all(root.join("other/b/web")).unwrap();
        symlink("other", root.join("a")).unwrap();
        assert_eq!(backend.delete("a/b/web"), Err(FailureKind::Unavailable));
        assert!(root.join("other/b/web").is_dir());
        fs::remove_file(root.join("a")).unwrap();
        fs::rename(root.join("moved"), root.join("a")).unwrap();
        backend.delete("a/b/web").unwrap();

        // Link in the place of the volume.
        fs::remove_dir(root.join("team/web")).unwrap();
        symlink(outside.0.join("web"), root.join("team/web")).unwrap();
        assert!(backend.create("team/web", &wanted).is_err());
        backend.delete("team/web").unwrap();
        assert!(outside.0.join("web/kept").exists());
        assert!(fs::symlink_metadata(root.join("team/web")).is_err());
        backend.assert_clean();

        // Link in the place of the controller's own directories.
        fs::remove_dir_all(root.join(share::OWN)).unwrap();
        symlink(&outside.0, root.join(share::OWN)).unwrap();
        assert_eq!(backend.create("x", &wanted), Err(FailureKind::Unavailable));
        assert_eq!(fs::read_dir(&outside.0).unwrap().count(), 1);
    }

    #[test]
    fn the_next_call_continues_after_any_step() {
        let wanted = note("pvc-1", OnDelete::Delete);
        let directory = Directory::new("a/b").unwrap();
        let root = |backend: &Backend, path: &str| backend.scratch.0.join(path);
        // States in which calls that were killed leave the backend.
        let states: [fn(&Backend, &Note, &Directory); 6] = [
            |backend, _, _| {
                backend.share.open_own(share::NOTES).unwrap();
                fs::write(backend.scratch.0.join(".spc/volumes/a%b.json.new"), "{").unwrap();
            },
            |backend, note, directory| {
                notes::write(&backend.share, directory, note).unwrap();
            },
            |backend, note, directory| {
                notes::write(&backend.share, directory, note).unwrap();
                backend.share.open_own(NEW).unwrap();
                backend.share.open_or_create(".spc/new/a%b", 0o700).unwrap();
            },
            |backend, note, directory| {
                notes::write(&backend.share, directory, note).unwrap();
                backend.share.open_own(NEW).unwrap();
                backend
                    .share
                    .open_or_create(".spc/new/a%b", 0o2770)
                    .unwrap();
                backend.share.open_or_create("a", 0o755).unwrap();
            },
            |backend, note, directory| {
                create(&backend.share, directory, None, note).unwrap();
            },
            // Interrupted removal.
            |backend, note, directory| {
                create(&backend.share, directory, None, note).unwrap();
                fs::write(backend.scratch.0.join("a/b/file"), "x").unwrap();
                move_to(&backend.share, directory, TRASH, "a%b").unwrap();
            },
        ];
        for (number, state) in states.iter().enumerate() {
            let backend = Backend::new();
            state(&backend, &wanted, &directory);
            backend.create("a/b", &wanted).unwrap();
            let mode = fs::metadata(root(&backend, "a/b"))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o7777, 0o2770, "{number}");
            backend.delete("a/b").unwrap();
            backend.assert_clean();
            assert!(backend.list("a").is_empty(), "{number}");

            let backend = Backend::new();
            state(&backend, &wanted, &directory);
            // The claim was deleted meanwhile.
            backend.delete("a/b").unwrap();
            assert!(backend.list("a").is_empty(), "{number}");
            assert!(
                backend.list(NEW).is_empty() && backend.list(TRASH).is_empty(),
                "{number}"
            );
            backend
                .create("a/b", &note("pvc-2", OnDelete::Delete))
                .unwrap();
        }
    }

    #[test]
    fn a_volume_that_cannot_be_made_leaves_nothing() {
        let backend = Backend::new();
        let directory = Directory::new("a/b").unwrap();
        fs::write(backend.scratch.0.join("a"), "a file").unwrap();
        let wanted = note("pvc-1", OnDelete::Delete);
        let failed = create(&backend.share, &directory, None, &wanted).unwrap_err();
        assert_ne!(failed.kind, FailureKind::Exists, "{}", failed.error);
        backend.assert_clean();
        // The local file system has no CephFS quota.
        let directory = Directory::new("c").unwrap();
        let failed = create(&backend.share, &directory, Some(Quota::Ceph), &wanted).unwrap_err();
        assert_eq!(failed.kind, FailureKind::Final, "{}", failed.error);
        backend.assert_clean();
        assert_eq!(backend.list(""), [".spc", "a"]);
    }
}
