//! Joins several paths to one disk with the kernel's device mapper, for hosts without
//! multipathd(8).
//!
//! The kernel uses a single path at a time, and the next one when that path fails. Devices of a
//! host's own multipathd are used unchanged.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::helper::tool::Tool;
use crate::host::Host;
use crate::host::disk::{self, Disk};

/// Prefix of the device mapper UUIDs that spc assigns.
const UUID_PREFIX: &str = "mpath-spc-";

/// Time limit of dmsetup(8).
const LIMIT: Duration = Duration::from_secs(20);

/// Returns the device mapper table. Each path is a group of its own, and the kernel uses the first
/// group.
fn table(sectors: &str, numbers: &[String]) -> String {
    let groups: Vec<String> = numbers
        .iter()
        .map(|number| format!("round-robin 0 1 1 {number} 1000"))
        .collect();
    format!(
        "0 {sectors} multipath 0 0 {} 1 {}",
        groups.len(),
        groups.join(" ")
    )
}

/// Runs dmsetup(8) and returns its output.
fn dmsetup(args: &[&str]) -> Result<String> {
    let command = args[0];
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let tool = Tool {
        program: "dmsetup",
        args: &args,
        stdin: None,
        secret_fds: None,
        id: None,
        deadline: Instant::now() + LIMIT,
    };
    let done = tool.run(None)?;
    if done.code == 0 {
        return Ok(done.text);
    }
    Err(Error::mount(format!("dmsetup {command} failed"))
        .because(format!("exit status {}", done.code))
        .log(done.lines())
        .hint("the host's kernel needs dm-multipath: on the host, try: modprobe dm-multipath"))
}

/// Joins disks of the same volume into one multipath device.
///
/// # Errors
/// Fails if the disks differ in size or the device mapper refuses, for example because the kernel
/// has no dm-multipath.
pub fn join(host: &Host, name: &str, disks: &[Disk]) -> Result<()> {
    let names: Vec<String> = disks.iter().map(|disk| disk.name.clone()).collect();
    let read = move || -> io::Result<(String, Vec<String>)> {
        let attribute = |name: &String, file: &str| {
            let text = std::fs::read_to_string(format!("/sys/class/block/{name}/{file}"))?;
            io::Result::Ok(text.trim().to_owned())
        };
        let sizes = names.iter().map(|name| attribute(name, "size"));
        let mut sizes = sizes.collect::<io::Result<Vec<_>>>()?;
        sizes.dedup();
        match &sizes[..] {
            [size] => {
                let numbers = names.iter().map(|name| attribute(name, "dev"));
                Ok((size.clone(), numbers.collect::<io::Result<_>>()?))
            }
            _ => Err(io::Error::other("they have different sizes")),
        }
    };
    let (sectors, numbers) = host
        .run("looking at disks", read)?
        .map_err(|e| Error::mount(format!("cannot join the paths to {name}")).because(e))?;
    let dm_name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    // The device mapper limits names and UUIDs to 127 bytes.
    let dm_name = &dm_name[dm_name.len().saturating_sub(100)..];
    dmsetup(&[
        "create",
        &format!("spc-{dm_name}"),
        "--uuid",
        &format!("{UUID_PREFIX}{dm_name}"),
        "--noudevsync",
        "--table",
        &table(&sectors, &numbers),
    ])
    .map(drop)
}

/// Returns the device mapper name of a device by its kernel name; none if spc did not make it. Run
/// it on the host's thread.
fn own_name(kernel_name: &str) -> Option<String> {
    let dir = Path::new("/sys/class/block").join(kernel_name).join("dm");
    disk::read_first(&dir, "uuid")
        .filter(|uuid| uuid.starts_with(UUID_PREFIX))
        .and_then(|_| disk::read_first(&dir, "name"))
}

/// Removes a multipath device if spc made it.
///
/// # Errors
/// Fails if the device is in use.
pub fn remove(host: &Host, kernel_name: &str) -> Result<()> {
    let kernel_name = kernel_name.to_owned();
    let name = host.run("looking at a device", move || own_name(&kernel_name))?;
    match name {
        Some(name) => dmsetup(&["remove", "--noudevsync", &name]).map(drop),
        None => Ok(()),
    }
}

/// Reinstates failed paths whose disk runs again. The kernel alone never does so.
///
/// # Errors
/// Fails if dmsetup(8) fails.
pub fn reinstate(host: &Host, kernel_name: &str) -> Result<()> {
    let kernel_name = kernel_name.to_owned();
    let Some(name) = host.run("looking at a device", move || own_name(&kernel_name))? else {
        return Ok(());
    };
    for number in failed_paths(&dmsetup(&["status", &name])?) {
        let disk = Path::new("/sys/dev/block").join(&number);
        let state = host.run("looking at a disk", move || {
            disk::read_first(&disk, "device/state")
        })?;
        if state.as_deref() == Some("running") {
            dmsetup(&["message", &name, "0", &format!("reinstate_path {number}")])?;
            tracing::info!(device = %name, way = %number, "path is in use again");
        }
    }
    Ok(())
}

/// Returns the failed disks as `MAJOR:MINOR` from a line of `dmsetup status`.
fn failed_paths(status: &str) -> Vec<String> {
    let words: Vec<&str> = status.split_whitespace().collect();
    let pairs = words.windows(2);
    pairs
        .filter(|pair| pair[1] == "F" && pair[0].contains(':'))
        .map(|pair| pair[0].to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_one_group_per_path() {
        assert_eq!(
            table("2048", &["8:0".into(), "8:16".into()]),
            "0 2048 multipath 0 0 2 1 round-robin 0 1 1 8:0 1000 round-robin 0 1 1 8:16 1000"
        );
    }

    #[test]
    fn failed_paths_are_read_from_the_status() {
        let status =
            "0 655360 multipath 2 0 0 0 3 2 E 0 1 0 8:0 F 1 A 0 1 0 8:16 A 0 E 0 1 0 8:32 F 2";
        assert_eq!(failed_paths(status), ["8:0", "8:32"]);
        assert!(failed_paths("").is_empty());
    }
}
