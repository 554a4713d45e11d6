//! The work of a call, in a process that may end however it likes.

use std::io::Read;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::frontends::kubelet::flexvolume::allowlist::Allowed;
use crate::frontends::kubelet::flexvolume::expand;
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::frontends::kubelet::flexvolume::volume::Volume;
use crate::frontends::kubelet::paths;
use crate::host::target::{self, Rules, Walk};
use crate::log;
use crate::mount::pipeline::mount;
use crate::process::interrupts::Interrupts;
use crate::state::Session;
use crate::unmount::escalate::UnmountMode;
use crate::unmount::foreign::unmount_foreign;

/// The most of an object that is read.
const LONGEST: u64 = 4 * 1024 * 1024;

/// Does it, and answers.
pub fn run(words: &[String]) -> Reply {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["mount", dir] => make(dir),
        ["unmount", dir] => unmake(dir),
        ["expandfs", dir, size] => expand::run(dir, size),
        ["grow", dir, size] => expand::work(dir, size),
        _ => Err(Error::usage("no work of this name")),
    };
    // In an event, far from the log, the id leads there.
    done.unwrap_or_else(|error| log::with_id(error).into())
}

/// What kubelet says of the volume. It may be read again, by the `spc` of a client root that takes this one's place.
fn object() -> std::io::Result<String> {
    let mut json = String::new();
    std::io::stdin().take(LONGEST).read_to_string(&mut json)?;
    rustix::fs::seek(std::io::stdin(), rustix::fs::SeekFrom::Start(0))?;
    Ok(json)
}

/// Mounts the volume.
fn make(dir: &str) -> Result<Reply> {
    let json =
        object().map_err(|e| Error::system("cannot read the volume's options").because(e))?;
    let interrupts = Interrupts::hold()?;
    let session = Session::open()?;
    let volume = Volume::read(&json, &Allowed::read(&session.host)?)?;
    Ok(match mount(&session, volume.request(dir)?, &interrupts) {
        Ok(_) => Reply::success(),
        Err(error) => {
            let told = log::with_id(error).to_string();
            Reply::failure(volume.secrets.mask(&told))
        }
    })
}

/// Unmounts what is there, be it ours or not: the directory is the driver's.
fn unmake(dir: &str) -> Result<Reply> {
    let path = PathBuf::from(dir);
    paths::check(&path)?;
    let session = Session::open()?;
    let rules = Rules {
        mkdir: None,
        system: true,
        no_symlink_tail: paths::depth(&path),
    };
    let there = {
        let path = path.clone();
        session
            .host
            .run("looking at the target", move || target::walk(&path, rules))??
    };
    let (target, mounted) = match there {
        Walk::Missing(there, missing) => (there.join(missing), false),
        Walk::Pinned(pinned, _) => (pinned.path, pinned.mount.is_root),
    };
    if mounted || session.ledger.get(&target)?.is_some() {
        unmount_foreign(&session, &target, UnmountMode::default())?;
    }
    Ok(Reply::success())
}
