//! Loop devices. No namespace holds them, so they are detached when a host ends.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// A loop device and its file.
#[derive(Debug, PartialEq, Eq)]
pub struct Loop {
    name: String,
    inode: u64,
    file: String,
    /// Device number: major, minor.
    device: (u32, u32),
}

impl Loop {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        let (name, device, inode) = (words.next()?, words.next()?, words.next()?);
        // losetup pads this column, and then escapes the padding.
        let (major, minor) = device
            .trim_start_matches("\\x20")
            .trim_end_matches("\\x20")
            .split_once(':')?;
        Some(Self {
            name: name.to_owned(),
            inode: inode.parse().ok()?,
            file: words.next()?.to_owned(),
            device: (major.parse().ok()?, minor.parse().ok()?),
        })
    }

    /// Returns whether a process finds this same file under its name.
    fn is_seen_by(&self, pid: i32) -> bool {
        let path = Path::new("/proc").join(pid.to_string()).join("root");
        let Ok(data) = fs::metadata(path.join(self.file.trim_start_matches('/'))) else {
            return false;
        };
        let device = (rustix::fs::major(data.dev()), rustix::fs::minor(data.dev()));
        (device, data.ino()) == (self.device, self.inode)
    }
}

/// Returns the loop devices whose files belong to these processes. Must be called before the
/// processes end.
pub fn of_processes(processes: &[i32]) -> Result<Vec<Loop>> {
    let mut loops = list()?;
    loops.retain(|device| processes.iter().any(|pid| device.is_seen_by(*pid)));
    Ok(loops)
}

/// Detaches the devices that still have the same file.
pub fn detach(loops: &[Loop]) -> Result<()> {
    if loops.is_empty() {
        return Ok(());
    }
    let now = list()?;
    let same = |old: &&Loop| {
        now.iter()
            .any(|new| (&new.name, new.device, new.inode) == (&old.name, old.device, old.inode))
    };
    for device in loops.iter().filter(same) {
        let status = Command::new("losetup")
            .args(["--detach", &device.name])
            .status()?;
        ensure!(status.success(), "cannot detach {}: {status}", device.name);
    }
    Ok(())
}

fn list() -> Result<Vec<Loop>> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    if !devices
        .map(|device| device.path().join("loop"))
        .any(|path| path.exists())
    {
        return Ok(Vec::new());
    }
    let columns = [
        "--list",
        "--noheadings",
        "--raw",
        "--output",
        "NAME,BACK-MAJ:MIN,BACK-INO,BACK-FILE",
    ];
    let output = Command::new("losetup")
        .args(columns)
        .output()
        .context("cannot run losetup")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(Loop::parse)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_losetup_is_parsed() {
        let device = Loop::parse(r"/dev/loop0 \x20\x20\x200:44\x20 23 /srv/disk").unwrap();
        assert_eq!(
            (device.name.as_str(), device.inode, device.device),
            ("/dev/loop0", 23, (0, 44))
        );
        assert_eq!(device.file, "/srv/disk");
        assert_eq!(Loop::parse("/dev/loop0"), None);
    }
}
