//! Worker process of a FlexVolume call, whose end the supervisor awaits.

use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result, one_line};
use crate::frontends::kubelet::flexvolume::expand;
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::frontends::kubelet::flexvolume::volume;
use crate::install::kubelet::NO_FSGROUP;
use crate::log;
use crate::mount::pipeline::mount;
use crate::process::interrupts::Interrupts;
use crate::state::Session;
use crate::unmount::escalate::UnmountMode;
use crate::volume::allowlist::Allowed;
use crate::volume::{paths, unmount};

/// Size in bytes up to which the JSON object is read.
const MAX_SIZE: u64 = 4 * 1024 * 1024;

/// Runs a call, and returns the reply.
pub fn run(words: &[String]) -> Reply {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["mount", dir] => mount_volume(dir),
        ["unmount", dir] => unmount_volume(dir),
        ["expandfs", dir, size] => expand::run(dir, size),
        ["grow", dir, size] => expand::child(dir, size),
        _ => Err(Error::usage("no such call")),
    };
    // The error appears in an event. The id leads from there to the log.
    done.unwrap_or_else(|error| log::with_request(error).into())
}

/// Reads kubelet's JSON object of the volume from standard input, and rewinds it.
///
/// The `spc` of a client root file system may replace this process, and reads the object again.
fn read_object() -> std::io::Result<String> {
    let mut json = String::new();
    std::io::stdin().take(MAX_SIZE).read_to_string(&mut json)?;
    rustix::fs::seek(std::io::stdin(), rustix::fs::SeekFrom::Start(0))?;
    Ok(json)
}

/// Mounts the volume that standard input describes.
fn mount_volume(dir: &str) -> Result<Reply> {
    let json =
        read_object().map_err(|e| Error::system("cannot read the volume's options").because(e))?;
    let interrupts = Interrupts::block()?;
    let session = Session::open()?;
    let volume = volume::read(&json, &Allowed::read(&session.host)?)?;
    if paths::driver(Path::new(dir)) != Some(NO_FSGROUP) {
        volume.check_fs_group()?;
    }
    Ok(match mount(&session, volume.request(dir)?, &interrupts) {
        Ok(_) => Reply::success(),
        Err(error) => {
            // A list of events shows the first line only.
            let first = format!("cannot mount {}: {}", volume.source, one_line(&error));
            let text = log::with_request(error).to_string();
            let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
            Reply::failure(volume.secrets.mask(&format!("{first}\n{rest}")))
        }
    })
}

/// Unmounts the mount on `dir`, whoever made it.
fn unmount_volume(dir: &str) -> Result<Reply> {
    unmount::unmount(&Session::open()?, Path::new(dir), UnmountMode::default())?;
    Ok(Reply::success())
}
