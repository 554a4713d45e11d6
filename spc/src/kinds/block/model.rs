//! Types that describe a block device: its paths, the commands that attach and detach it, its place in sysfs.

use crate::host::hostname::HostName;
use crate::host::modules::Module;
use crate::host::service::Service;
use crate::kinds::model::{Pass, Telling};

/// A device that has to be attached: what it is called, how it is reached, how it shows, how it goes.
#[derive(Clone, Debug)]
pub struct Device {
    /// Requests with the same name mean the same device of this host.
    pub name: String,
    /// What devices are reached through, such as a session with a target: it stays for as long as one of them is in use.
    pub through: String,
    /// Kernel modules without which it cannot be, the one that shows first.
    pub modules: &'static [Module],
    /// A daemon that its programs need.
    pub service: Option<&'static Service>,
    /// The name that servers know this host by.
    pub host_name: Option<HostName>,
    /// The ways to it; it is there when one of them came up.
    pub ways: Vec<Way>,
    /// How it shows.
    pub shows: Shows,
    /// Ends a way that is up.
    pub end_way: Command,
    /// What remains to be done when all ways are ended.
    pub end: Vec<Command>,
    /// Options that are meant for this step, and not for the file system.
    pub options: &'static [&'static str],
    /// The secrets that it has a use for.
    pub secrets: &'static [&'static str],
    /// How failures of its programs are told.
    pub telling: Telling,
}

/// One way to a device.
#[derive(Clone, Debug)]
pub struct Way {
    /// For people.
    pub name: String,
    /// What the files [`Shows::known_by`] hold for it.
    pub marks: Vec<String>,
    /// Where a server has to answer for it; none if that is not to be seen beforehand.
    pub at: Option<At>,
    /// What brings it up.
    pub steps: Vec<Step>,
}

/// Where a server is, and what it is told so that it says something.
#[derive(Clone, Debug)]
pub struct At {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The words.
    pub hello: &'static [u8],
}

/// A step on a way.
#[derive(Clone, Debug)]
pub enum Step {
    /// Runs a program.
    Run(Command),
    /// Puts settings into a file that a program made: secrets must not be among anybody's arguments.
    Set {
        /// Where the file may be; `*` stands for any name.
        files: Vec<String>,
        /// Lines `KEY = VALUE`.
        settings: Vec<(&'static str, Value)>,
    },
}

/// What a setting is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// This text.
    Text(String),
    /// The secret with this key.
    Secret(&'static str),
    /// The name that servers know this host by.
    HostName,
}

/// A program to run.
#[derive(Clone, Debug)]
pub struct Command {
    /// Its name.
    pub program: &'static str,
    /// Its arguments; in [`Device::end_way`], [`WAY`] stands for the number of the way.
    pub args: Vec<String>,
    /// Exit codes that are as good as 0.
    pub fine: &'static [i32],
    /// What its output must tell; the error says why it does not.
    pub tells: Option<Tells>,
    /// The secret that it is given, if that is there.
    pub secret: Option<Pass>,
}

/// A look at a program's output for what was asked.
#[derive(Clone, Debug)]
pub struct Tells {
    /// What is looked for.
    pub what: String,
    /// Finds it, or says what is there instead.
    pub find: fn(output: &str, what: &str) -> std::result::Result<(), String>,
}

/// Stands for the number of a way among a command's arguments.
pub const WAY: &str = "\0way";

/// How a device shows in sysfs; `*` in a path stands for any name.
#[derive(Clone, Debug)]
pub struct Shows {
    /// A directory for each way that is up.
    pub ways: &'static str,
    /// Files in it, and what they hold for ways to this device.
    pub holds: Vec<(&'static str, String)>,
    /// Files in it that tell the ways apart, in the order of [`Way::marks`].
    pub known_by: &'static [&'static str],
    /// A file, from there, and what to write to it so that the kernel looks for the disk.
    pub scan: Option<(&'static str, String)>,
    /// Directories, from there, that are called as the disk is.
    pub disk: String,
    /// The same for all disks of that way, of which somebody else may use one.
    pub disks: &'static str,
    /// Where the disk can be taken away by itself: a file in its directory, to which 1 is written.
    pub delete: Option<&'static str>,
    /// What tells which volume it is.
    pub identity: Identity,
    /// How soon a way is given up that was lost.
    pub patience: Option<Patience>,
}

/// How soon a way is given up that was lost. New ones come with little patience, so that one that is lost while the disk is
/// looked for does not hold up the others.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A file of the way.
    pub file: &'static str,
    /// What it holds where there are other ways, and at first.
    pub little: &'static str,
    /// What it holds otherwise.
    pub usual: &'static str,
}

/// What tells which volume is behind a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// What a SCSI disk answers when it is asked (vital product data, page 83h); and what the kernel remembers of it.
    Scsi,
    /// Files in the way's directory.
    Files(&'static [&'static str]),
}
