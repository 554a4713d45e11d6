//! Several ways to one disk as one device of the kernel's device mapper, for hosts without multipathd(8).
//!
//! One way is used at a time, and the next when it fails. What a host's own multipathd has made is used as it is
//! and never touched.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::helper::tool::Tool;
use crate::host::Host;
use crate::host::disk::{self, Disk};

/// What the identifiers of ours begin with.
const OURS: &str = "mpath-spc-";

/// How long a change of the device mapper may take.
const LIMIT: Duration = Duration::from_secs(20);

/// The device mapper's table: each way is a group of its own, the first of which is used.
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

fn dmsetup(words: &[&str]) -> Result<String> {
    let args: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
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
    Err(Error::mount(format!("dmsetup {} failed", words[0]))
        .because(format!("exit status {}", done.code))
        .log(done.lines())
        .hint("the host's kernel needs dm-multipath: on the host, try: modprobe dm-multipath"))
}

/// Joins disks that are known to be one volume.
///
/// # Errors
/// The device mapper refuses, for example because the kernel has no dm-multipath.
pub fn join(host: &Host, name: &str, disks: &[Disk]) -> Result<()> {
    let names: Vec<String> = disks.iter().map(|disk| disk.name.clone()).collect();
    let look = move || -> io::Result<(String, Vec<String>)> {
        let of = |name: &String, file: &str| {
            let text = std::fs::read_to_string(format!("/sys/class/block/{name}/{file}"))?;
            io::Result::Ok(text.trim().to_owned())
        };
        let sizes = names.iter().map(|name| of(name, "size"));
        let mut sizes = sizes.collect::<io::Result<Vec<_>>>()?;
        sizes.dedup();
        match &sizes[..] {
            [size] => {
                let numbers = names.iter().map(|name| of(name, "dev"));
                Ok((size.clone(), numbers.collect::<io::Result<_>>()?))
            }
            _ => Err(io::Error::other("they have different sizes")),
        }
    };
    let (sectors, numbers) = host
        .run("looking at disks", look)?
        .map_err(|e| Error::mount(format!("cannot join the ways to {name}")).because(e))?;
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    // Names and identifiers have at most 127 bytes.
    let plain = &plain[plain.len().saturating_sub(100)..];
    dmsetup(&[
        "create",
        &format!("spc-{plain}"),
        "--uuid",
        &format!("{OURS}{plain}"),
        "--noudevsync",
        "--table",
        &table(&sectors, &numbers),
    ])
    .map(drop)
}

/// The device mapper's name of a device that was made here, by its kernel name; run it on the host's thread.
fn ours(kernel_name: &str) -> Option<String> {
    let dir = Path::new("/sys/class/block").join(kernel_name).join("dm");
    disk::held(&dir, "uuid")
        .filter(|uuid| uuid.starts_with(OURS))
        .and_then(|_| disk::held(&dir, "name"))
}

/// Takes such a device away, if it was made here.
///
/// # Errors
/// It is in use.
pub fn part(host: &Host, kernel_name: &str) -> Result<()> {
    let kernel_name = kernel_name.to_owned();
    let name = host.run("looking at a device", move || ours(&kernel_name))?;
    match name {
        Some(name) => dmsetup(&["remove", "--noudevsync", &name]).map(drop),
        None => Ok(()),
    }
}

/// Ways that had failed and are up again are made use of, which nobody does by itself.
///
/// # Errors
/// The device mapper does not answer.
pub fn reinstate(host: &Host, kernel_name: &str) -> Result<()> {
    let kernel_name = kernel_name.to_owned();
    let Some(name) = host.run("looking at a device", move || ours(&kernel_name))? else {
        return Ok(());
    };
    for number in failed(&dmsetup(&["status", &name])?) {
        let disk = Path::new("/sys/dev/block").join(&number);
        let state = host.run("looking at a disk", move || {
            disk::held(&disk, "device/state")
        })?;
        if state.as_deref() == Some("running") {
            dmsetup(&["message", &name, "0", &format!("reinstate_path {number}")])?;
            tracing::info!(device = %name, way = %number, "in use again");
        }
    }
    Ok(())
}

/// The disks that have failed, by `MAJOR:MINOR`, in a line of status.
fn failed(status: &str) -> Vec<String> {
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
    fn one_way_is_used_at_a_time() {
        assert_eq!(
            table("2048", &["8:0".into(), "8:16".into()]),
            "0 2048 multipath 0 0 2 1 round-robin 0 1 1 8:0 1000 round-robin 0 1 1 8:16 1000"
        );
    }

    #[test]
    fn what_has_failed() {
        let status =
            "0 655360 multipath 2 0 0 0 3 2 E 0 1 0 8:0 F 1 A 0 1 0 8:16 A 0 E 0 1 0 8:32 F 2";
        assert_eq!(failed(status), ["8:0", "8:32"]);
        assert!(failed("").is_empty());
    }
}
