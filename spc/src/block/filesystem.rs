//! From an attached device to one that can be mounted: what is on it, is it sound, and may something be made on it.
//!
//! A file system is made only where that was asked for, with its type, for a mount that may write, on a device that is
//! really blank. In every doubt it is not.

use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::error::{Cause, Error, Result};
use crate::helper::tool::{Done, STDIN, Tool, within};
use crate::host::Host;
use crate::host::disk::Disk;
use crate::kinds::block::{self, Content, FileSystem};
use crate::process::interrupts::Interrupts;

/// The option that asks for a file system where there is none.
pub const MKFS: &str = "x-spc.mkfs";

/// How long looking at a device may take.
const LOOK: u64 = 60;

/// What preparing needs to know.
pub struct FileSystemRequest<'a> {
    /// The host.
    pub host: &'a Host,
    /// The device's name, for errors.
    pub name: &'a str,
    /// The disk.
    pub disk: &'a Disk,
    /// The type that was asked for, if one was.
    pub fs_type: Option<&'a str>,
    /// The mount is to be read-only.
    pub read_only: bool,
    /// A file system is to be made if there is none.
    pub mkfs: bool,
    /// Mark for the tools.
    pub id: &'a str,
    /// When it has to be done.
    pub deadline: Instant,
    /// Signals.
    pub interrupts: &'a Interrupts,
}

impl FileSystemRequest<'_> {
    /// Makes sure that there is a file system that can be mounted; gives back its type.
    ///
    /// # Errors
    /// There is none and none may be made, it is another one than was asked for, or it is damaged.
    pub fn run(&self) -> Result<String> {
        let node = self.disk.node.clone();
        let (name, fd) = (self.disk.name.clone(), self.handle()?);
        let look = move || {
            let disk = Disk {
                name,
                node,
                fd: fd.into(),
            };
            disk.in_use()
        };
        let used = self.host.run("looking at a disk", look)?;
        let used = used.map_err(|e| self.fail("look at", e.into()))?;
        let found = match self.content()? {
            Content::FileSystem(found) => found,
            other => {
                if !self.mkfs {
                    return Err(self.no_file_system(&other));
                }
                let fs_type = self.fs_type.unwrap_or_default();
                self.make(block::file_system(fs_type)?, &other, used)?;
                fs_type.to_owned()
            }
        };
        let fs = block::file_system(&found)?;
        let fs_type = match self.fs_type {
            Some(asked) if !block::file_system(asked)?.reads.contains(&found.as_str()) => {
                return Err(
                    Error::mount(format!("cannot mount {} as {asked}", self.name))
                        .because(format!("it holds {found}"))
                        .hint(format!("leave out -t, or say -t {found}")),
                );
            }
            Some(asked) => asked.to_owned(),
            None => found,
        };
        // What is mounted was checked by whoever mounted it; and a read-only mount repairs nothing.
        if let Some(check) = fs.check
            && !used
            && !self.read_only
        {
            self.check(check)?;
        }
        Ok(fs_type)
    }

    fn fail(&self, what: &str, cause: Cause) -> Error {
        Error::mount(format!("cannot {what} {}", self.name))
            .because(cause)
            .hint("look whether its server answers, and at the host's kernel log: dmesg")
    }

    fn handle(&self) -> Result<OwnedFd> {
        self.disk.handle().map_err(|e| self.fail("open", e.into()))
    }

    fn tool(&self, program: &str, args: &[&str], deadline: Instant) -> Result<Done> {
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
        // By the name that the host knows it by.
        done.text = done.text.replace(STDIN, &self.disk.node.to_string_lossy());
        Ok(done)
    }

    fn content(&self) -> Result<Content> {
        let args = ["--probe", "--output", "export", STDIN];
        let done = self.tool("blkid", &args, within(LOOK, self.deadline))?;
        block::content(done.code, &done.text).map_err(|cause| {
            self.fail("look at", format!("blkid: {cause}").into())
                .log(done.lines())
        })
    }

    fn no_file_system(&self, found: &Content) -> Error {
        let error = Error::mount(format!("no file system is on {}", self.name));
        match found {
            Content::Other(what) => error
                .because(format!("it holds {what}"))
                .hint("a device is mounted whole; check whether it is the right one"),
            _ => error
                .because("it holds nothing that blkid knows")
                .hint(format!(
                    "if it is new and really blank, make one: -t ext4 -o {MKFS}, or -t xfs"
                )),
        }
    }

    fn make(&self, fs: FileSystem, found: &Content, used: bool) -> Result<()> {
        let refuse = |cause: Cause| {
            Error::mount(format!("no {} is made on {}", fs.name, self.name))
                .because(cause)
                .hint("if nothing on it is needed, erase it on a host that has the tools: wipefs -a and blkdiscard -z, or write zeros")
        };
        if let Content::Other(what) = found {
            return Err(refuse(format!("it holds {what}").into()));
        }
        if used {
            return Err(refuse("something on the host uses it".into()));
        }
        let args = ["--no-act", "--noheadings", "--output", "TYPE,OFFSET", STDIN];
        let done = self.tool("wipefs", &args, within(LOOK, self.deadline))?;
        if done.code != 0 {
            return Err(self
                .fail(
                    "look at",
                    format!("wipefs: exit status {}", done.code).into(),
                )
                .log(done.lines()));
        }
        let signatures = block::signatures(&done.text);
        if !signatures.is_empty() {
            return Err(refuse(format!("it holds {}", signatures.join(", ")).into()));
        }
        // In a process of its own, which can be left behind if the server does not answer.
        let done = self.tool(
            crate::helper::tool::OURSELVES,
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
        let (program, args) = fs.make;
        let done = self.tool(program, &[args, &[STDIN][..]].concat(), self.deadline)?;
        if done.code != 0 {
            return Err(self
                .fail(
                    &format!("make {} on", fs.name),
                    format!("{program}: exit status {}", done.code).into(),
                )
                .log(done.lines()));
        }
        Ok(())
    }

    fn check(&self, (program, args): (&str, &[&str])) -> Result<()> {
        let done = self.tool(program, &[args, &[STDIN][..]].concat(), self.deadline)?;
        if done.code == 1 {
            tracing::warn!("{} was repaired: {}", self.name, done.lines().join("; "));
        }
        if block::is_sound(done.code) {
            return Ok(());
        }
        if done.code & 4 == 0 {
            let what = format!("{program}: exit status {}", done.code);
            return Err(self.fail("check", what.into()).log(done.lines()));
        }
        let by_hand = "it needs a person: repair it on a host where it is attached and not mounted; a read-only mount (-r) does without the check";
        Err(Error::mount(format!("{} is damaged", self.name))
            .because(format!("{program}: exit status {}", done.code))
            .log(done.lines())
            .hint(by_hand))
    }
}
