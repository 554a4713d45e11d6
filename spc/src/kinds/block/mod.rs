//! Block devices that a kind attaches before their file system is mounted. Everything in here is data and pure
//! functions: `mount/device/` does what they say, for any of them.

pub mod iscsi;
pub mod model;
pub mod rbd;

use crate::error::{Error, Result};
use crate::kinds::model::{Asked, Shared};
use crate::kinds::source::Fit;

pub(crate) use crate::kinds::block::model::Device;

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
