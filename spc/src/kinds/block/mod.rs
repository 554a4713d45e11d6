//! Block devices that a kind attaches before their file system is mounted. Everything in here is data and pure
//! functions: `mount/device/` does what they say, for any of them.

pub mod iscsi;
pub mod rbd;

use super::source::Fit;
use super::{Asked, Pass, Shared, Telling};
use crate::error::{Error, Result};
use crate::host::hostname::HostName;
use crate::host::modules::Module;
use crate::host::service::Service;

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

/// Daemons of attached devices.
pub const SERVICES: [Shared; 1] = [Shared {
    service: iscsi::ISCSID,
    kinds: &[],
    helpers: &["iscsiadm"],
    needed_by: |_, _| false,
    through: Some("iscsi:"),
    client: None,
}];

type Make = fn(&str, &Asked<'_>) -> Result<Device>;

/// What makes a device of the rest of a source.
fn device_scheme(source: &str) -> Option<(Make, &str)> {
    match source.split_once(':')? {
        ("iscsi", rest) => Some((iscsi::device, rest)),
        ("rbd", rest) => Some((rbd::device, rest)),
        _ => None,
    }
}

/// The device that a source of a file system on a block device names, if it is none of the host's own.
///
/// # Errors
/// The source begins as one and is not.
pub fn device(asked: &Asked<'_>) -> Result<Option<Device>> {
    match device_scheme(asked.source) {
        Some((make, rest)) => make(rest, asked).map(Some),
        None => Ok(None),
    }
}

/// The type of which it is not said what it is: that is looked for on the device.
pub const AUTO: &str = "auto";

/// A source that is written as that of an attached device is one, which tells itself what is on it.
pub fn fits(source: &str) -> Fit {
    match device_scheme(source) {
        Some(_) => Fit::Certain,
        None => Fit::No,
    }
}

/// The device of a source that was understood before, for taking it away: that needs no options.
///
/// # Errors
/// It is none.
pub fn again(source: &str) -> Result<Device> {
    let (options, secrets) = Default::default();
    let asked = Asked {
        fs_type: "",
        source,
        options: &options,
        secrets: &secrets,
        kernel_lacks: &|_| None,
        log_name: "",
    };
    device(&asked)?.ok_or_else(|| Error::system(format!("not a device: {source}")))
}

/// What a program must say about a device before it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file system of this type.
    FileSystem(String),
    /// Something else, in words.
    Other(String),
    /// Nothing that is known.
    Nothing,
}

/// Reads `blkid --probe --output export`, whose exit code 2 means nothing was found, or nothing could be read, and
/// 8 that there are signatures of several things.
pub fn content(code: i32, output: &str) -> std::result::Result<Content, String> {
    let value = |key: &str| {
        output
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    match code {
        0 => match (value("TYPE"), value("USAGE"), value("PTTYPE")) {
            (Some(fs_type), Some("filesystem"), _) => Ok(Content::FileSystem(fs_type.to_owned())),
            (Some(fs_type), usage, _) => Ok(Content::Other(match usage {
                Some(usage) => format!("{fs_type} ({usage})"),
                None => fs_type.to_owned(),
            })),
            (None, _, Some(table)) => Ok(Content::Other(format!("a partition table ({table})"))),
            _ => Ok(Content::Other("something that blkid does not name".into())),
        },
        2 => Ok(Content::Nothing),
        8 => Ok(Content::Other("signatures of more than one thing".into())),
        code => Err(format!("exit status {code}")),
    }
}

/// Reads `wipefs --no-act --noheadings --output TYPE,OFFSET`: what it found, in words.
pub fn signatures(output: &str) -> Vec<String> {
    output
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some(what), Some(place)) => format!("{what} at {place}"),
                _ => line.trim().to_owned(),
            }
        })
        .collect()
}

/// A file system that is made on devices and mounted from them.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem {
    /// Its name.
    pub name: &'static str,
    /// Types that `-t NAME` mounts as well.
    pub reads: &'static [&'static str],
    /// Repairs what can be repaired without asking; none where mounting does that.
    pub check: Option<(&'static str, &'static [&'static str])>,
    /// Makes one, and refuses where it finds another.
    pub make: (&'static str, &'static [&'static str]),
}

/// The file systems that are mounted from attached devices.
pub const FILE_SYSTEMS: [FileSystem; 2] = [
    FileSystem {
        name: "ext4",
        reads: &["ext4", "ext3", "ext2"],
        check: Some(("e2fsck", &["-p"])),
        make: ("mkfs.ext4", &["-q"]),
    },
    // Mounting replays the log, and fsck.xfs does nothing; xfs_repair is for people.
    FileSystem {
        name: "xfs",
        reads: &["xfs"],
        check: None,
        make: ("mkfs.xfs", &["-q"]),
    },
];

/// What is known of the file system on a device, by the type that was found there or asked for.
///
/// # Errors
/// It is none of ours.
pub fn file_system(name: &str) -> Result<FileSystem> {
    let found = FILE_SYSTEMS.iter().find(|fs| fs.name == name);
    let found = found.or_else(|| FILE_SYSTEMS.iter().find(|fs| fs.reads.contains(&name)));
    found.copied().ok_or_else(|| {
        let names: Vec<_> = FILE_SYSTEMS.iter().map(|fs| fs.name).collect();
        Error::mount(format!("cannot mount {name} from an attached device"))
            .hint(format!("spc does that for {}", names.join(", ")))
    })
}

/// How e2fsck ends when all is well: 0, or 1 when it has repaired something (fsck(8)).
pub fn is_sound(code: i32) -> bool {
    matches!(code, 0 | 1)
}

/// What a volume is called by the disk itself: the identifiers of the logical unit, without those of its ports, from
/// page 83h (SPC-4, 7.8.6). Empty if it gives none.
pub fn volume_ids(page: &[u8]) -> Vec<String> {
    let mut ids = Vec::new();
    let mut rest = page.get(4..).unwrap_or_default();
    if let Some(length) = page.get(2..4) {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        rest = rest.get(..length).unwrap_or(rest);
    }
    while let [code_set, kind, _, length, tail @ ..] = rest {
        let Some(id) = tail.get(..usize::from(*length)) else {
            break;
        };
        // Association 0 is the logical unit.
        if kind & 0x30 == 0 && !id.is_empty() {
            let text: String = match code_set & 0x0f {
                1 => id.iter().map(|byte| format!("{byte:02x}")).collect(),
                _ => String::from_utf8_lossy(id).trim_matches(['\0', ' ']).into(),
            };
            ids.push(format!("{}.{text}", kind & 0x0f));
        }
        rest = &tail[usize::from(*length)..];
    }
    ids.sort();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blkid_says() {
        let fs = "DEVNAME=/dev/stdin\nUUID=1\nVERSION=1.0\nBLOCK_SIZE=4096\nUSAGE=filesystem\nTYPE=ext4\n";
        assert_eq!(content(0, fs), Ok(Content::FileSystem("ext4".into())));
        let luks = "VERSION=2\nTYPE=crypto_LUKS\nUSAGE=crypto\n";
        assert_eq!(
            content(0, luks),
            Ok(Content::Other("crypto_LUKS (crypto)".into()))
        );
        let table = "PTUUID=1\nPTTYPE=gpt\n";
        assert_eq!(
            content(0, table),
            Ok(Content::Other("a partition table (gpt)".into()))
        );
        assert_eq!(content(2, ""), Ok(Content::Nothing));
        assert!(matches!(content(8, ""), Ok(Content::Other(_))));
        assert!(content(1, "").is_err() && content(127, "").is_err());
    }

    #[test]
    fn fsck_may_have_repaired_something_but_not_left_anything() {
        let sound: Vec<i32> = (0..256).filter(|code| is_sound(*code)).collect();
        assert_eq!(sound, [0, 1]);
    }

    #[test]
    fn a_volume_is_known_by_its_own_identifiers_and_not_by_its_ports() {
        let mut page = vec![0, 0x83, 0, 0];
        // NAA of the unit, T10 vendor text of the unit, relative port.
        page.extend([1, 0x03, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7]);
        page.extend([2, 0x01, 0, 4, b'L', b'I', b'O', 0]);
        page.extend([1, 0x14, 0, 4, 0, 0, 0, 1]);
        page[3] = u8::try_from(page.len() - 4).unwrap();
        let ids = volume_ids(&page);
        assert_eq!(ids, ["1.LIO", "3.6001020304050607"]);
        let mut other_port = page.clone();
        *other_port.last_mut().unwrap() = 2;
        assert_eq!(volume_ids(&other_port), ids);
        page[11] = 9;
        assert_ne!(volume_ids(&page), ids);
        for cut in 0..page.len() {
            volume_ids(&page[..cut]);
        }
        assert!(volume_ids(&[]).is_empty());
    }

    #[test]
    fn only_file_systems_that_were_tested_are_mounted_from_devices() {
        assert_eq!(file_system("ext3").unwrap().name, "ext4");
        assert_eq!(file_system("xfs").unwrap().name, "xfs");
        assert!(file_system("btrfs").is_err());
    }

    #[test]
    fn signatures_are_named_with_their_place() {
        assert_eq!(
            signatures("gpt   0x200\ngpt 0x7ffe00\n"),
            ["gpt at 0x200", "gpt at 0x7ffe00"]
        );
        assert!(signatures("\n").is_empty());
    }
}
