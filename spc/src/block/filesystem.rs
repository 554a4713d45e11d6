//! Prepares an attached device for a mount: identifies its file system, checks it, or makes one.
//!
//! spc makes a file system only on request, with an explicit type, for a writable mount, on a blank
//! device. In any doubt it refuses.

use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::error::{Cause, Error, Result};
use crate::helper::tool::{STDIN, Tool, ToolOutput, earlier_deadline};
use crate::host::Host;
use crate::host::disk::Disk;
use crate::kinds::block::{self, Content, FileSystem};
use crate::process::interrupts::Interrupts;

/// Option that requests a file system on a blank device.
pub const MKFS: &str = "x-spc.mkfs";

/// Time limit in seconds of a program that reads signatures.
const INSPECT_SECONDS: u64 = 60;

/// Request to prepare the file system on a device.
pub struct FileSystemRequest<'a> {
    /// Host with the device.
    pub host: &'a Host,
    /// Name of the device, for errors.
    pub name: &'a str,
    /// Disk of the device.
    pub disk: &'a Disk,
    /// Requested type, if any.
    pub fs_type: Option<&'a str>,
    /// Whether the mount is read-only.
    pub read_only: bool,
    /// Whether to make a file system on a blank device.
    pub mkfs: bool,
    /// Id of the mount, which marks the processes of the tools.
    pub id: &'a str,
    /// Deadline of the preparation.
    pub deadline: Instant,
    /// Signals that end the wait.
    pub interrupts: &'a Interrupts,
}

impl FileSystemRequest<'_> {
    /// Provides a mountable file system and returns the type for its mount.
    ///
    /// # Errors
    /// Fails if the device has no file system and none may be made, if its type is not the
    /// requested one, or if it is damaged.
    pub fn run(&self) -> Result<String> {
        let node = self.disk.node.clone();
        let (name, fd) = (self.disk.name.clone(), self.handle()?);
        let check = move || {
            let disk = Disk {
                name,
                node,
                fd: fd.into(),
            };
            disk.in_use()
        };
        let in_use = self.host.run("looking at a disk", check)?;
        let in_use = in_use.map_err(|e| self.fail("inspect", e.into()))?;
        let found = match self.content()? {
            Content::FileSystem(found) => found,
            other => {
                if !self.mkfs {
                    return Err(self.no_file_system(&other));
                }
                let fs_type = self.fs_type.unwrap_or_default();
                self.make(block::file_system(fs_type)?, &other, in_use)?;
                fs_type.to_owned()
            }
        };
        let fs = block::file_system(&found)?;
        let fs_type = match self.fs_type {
            Some(requested)
                if !block::file_system(requested)?
                    .types
                    .contains(&found.as_str()) =>
            {
                return Err(
                    Error::mount(format!("cannot mount {} as {requested}", self.name))
                        .because(format!("it holds {found}"))
                        .hint(format!("omit -t, or use -t {found}")),
                );
            }
            Some(requested) => requested.to_owned(),
            None => found,
        };
        // A mounted file system was checked before its mount, and a read-only mount must not be
        // repaired.
        if let Some(check) = fs.check
            && !in_use
            && !self.read_only
        {
            self.check(check)?;
        }
        Ok(fs_type)
    }

    fn fail(&self, what: &str, cause: Cause) -> Error {
        Error::mount(format!("cannot {what} {}", self.name))
            .because(cause)
            .hint("check its server; see the host's kernel log: dmesg")
    }

    fn handle(&self) -> Result<OwnedFd> {
        self.disk.handle().map_err(|e| self.fail("open", e.into()))
    }

    /// Runs a program with the device as its standard input.
    fn run_tool(&self, program: &str, args: &[&str], deadline: Instant) -> Result<ToolOutput> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let tool = Tool {
            program,
            args: &args,
            stdin: Some(self.handle()?),
            secret_fds: None,
            id: Some(self.id),
            deadline,
        };
        let mut done = tool.run(Some(self.interrupts))?;
        // The output names standard input; users know the device node of the host.
        done.text = done.text.replace(STDIN, &self.disk.node.to_string_lossy());
        Ok(done)
    }

    fn content(&self) -> Result<Content> {
        let args = ["--probe", "--output", "export", STDIN];
        let done = self.run_tool(
            "blkid",
            &args,
            earlier_deadline(INSPECT_SECONDS, self.deadline),
        )?;
        block::parse_blkid(done.code, &done.text).map_err(|cause| {
            self.fail("inspect", format!("blkid: {cause}").into())
                .log(done.lines())
        })
    }

    /// Returns the error for a device without a mountable file system.
    fn no_file_system(&self, found: &Content) -> Error {
        let error = Error::mount(format!("no file system is on {}", self.name));
        match found {
            Content::Other(what) => error
                .because(format!("it holds {what}"))
                .hint("spc mounts whole devices only; check that it is the right one"),
            _ => error
                .because("it holds nothing that blkid knows")
                .hint(format!(
                    "if it is new and really blank, make one: -t ext4 -o {MKFS}, or -t xfs"
                )),
        }
    }

    /// Makes a file system after all checks that the device is blank and unused.
    fn make(&self, fs: FileSystem, found: &Content, in_use: bool) -> Result<()> {
        let refuse = |cause: Cause| {
            Error::mount(format!("cannot make {} on {}", fs.name, self.name))
                .because(cause)
                .hint("if nothing on it is needed, erase it on a host that has the tools: wipefs -a and blkdiscard -z, or write zeros")
        };
        if let Some(reason) = reason_against_mkfs(found, in_use) {
            return Err(refuse(reason.into()));
        }
        let args = ["--no-act", "--noheadings", "--output", "TYPE,OFFSET", STDIN];
        let done = self.run_tool(
            "wipefs",
            &args,
            earlier_deadline(INSPECT_SECONDS, self.deadline),
        )?;
        if done.code != 0 {
            return Err(self
                .fail(
                    "inspect",
                    format!("wipefs: exit status {}", done.code).into(),
                )
                .log(done.lines()));
        }
        let signatures = block::parse_wipefs(&done.text);
        if !signatures.is_empty() {
            return Err(refuse(format!("it holds {}", signatures.join(", ")).into()));
        }
        // A subprocess can be left behind if the server does not respond.
        let done = self.run_tool(
            crate::helper::tool::OWN_PROGRAM,
            &["first-data"],
            self.deadline,
        )?;
        match (done.code, done.text.trim()) {
            (0, "") => {}
            (0, at) => {
                return Err(refuse(
                    format!("it is not blank: no known signature, but data at byte {at}").into(),
                ));
            }
            _ => return Err(self.fail("read", done.lines().join("; ").into())),
        }
        let (program, args) = fs.mkfs;
        let done = self.run_tool(program, &[args, &[STDIN][..]].concat(), self.deadline)?;
        if done.code != 0 {
            return Err(self
                .fail(
                    &format!("make {} on", fs.name),
                    format!("{program}: exit status {}", done.code).into(),
                )
                .log(done.lines())
                .hint(format!(
                    "{program} says why; if it is silent, see the host's kernel log: dmesg"
                )));
        }
        Ok(())
    }

    /// Checks the file system and lets the program repair what is safe to repair.
    fn check(&self, (program, args): (&str, &[&str])) -> Result<()> {
        let done = self.run_tool(program, &[args, &[STDIN][..]].concat(), self.deadline)?;
        if done.code == 1 {
            tracing::warn!(
                "repaired the file system on {}: {}",
                self.name,
                done.lines().join("; ")
            );
        }
        if block::is_sound(done.code) {
            return Ok(());
        }
        if done.code & 4 == 0 {
            let what = format!("{program}: exit status {}", done.code);
            return Err(self.fail("check", what.into()).log(done.lines()));
        }
        let hint = "repair it by hand on a host where it is attached and not mounted; a read-only mount (-r) skips the check";
        Err(Error::mount(format!("{} is damaged", self.name))
            .because(format!("{program}: exit status {}", done.code))
            .log(done.lines())
            .hint(hint))
    }
}

/// Returns why no file system may be made on a device, by what blkid found and whether the kernel
/// uses the device.
fn reason_against_mkfs(found: &Content, in_use: bool) -> Option<String> {
    match found {
        Content::FileSystem(what) | Content::Other(what) => Some(format!("it holds {what}")),
        // A volume manager may use a device whose first blocks are zero.
        Content::Nothing if in_use => Some("something on the host uses it".into()),
        Content::Nothing => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unused_device_without_content_may_get_a_file_system() {
        let other = Content::Other("a partition table".into());
        let ext4 = Content::FileSystem("ext4".into());
        for (found, in_use, allowed) in [
            (&Content::Nothing, false, true),
            (&Content::Nothing, true, false),
            (&other, false, false),
            (&ext4, false, false),
        ] {
            let reason = reason_against_mkfs(found, in_use);
            assert_eq!(reason.is_none(), allowed, "{found:?} {in_use}");
        }
    }
}
