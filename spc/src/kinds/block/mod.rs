//! Block devices that are attached before their file system is mounted. Data and pure functions
//! only: the room `block/` runs them.

pub mod iscsi;
pub mod model;
pub mod rbd;

use crate::error::{Error, Result};
use crate::kinds::model::{KindInput, SharedService};
use crate::kinds::source::Fit;

pub(crate) use crate::kinds::block::model::Device;

/// Services of attached devices.
pub const SERVICES: [SharedService; 1] = [SharedService {
    service: iscsi::ISCSID,
    kinds: &[],
    helpers: &["iscsiadm"],
    needed_by: |_, _| false,
    session_prefix: Some("iscsi:"),
    rpc_client: None,
}];

/// Builds a device from the text after the scheme.
type Constructor = fn(&str, &KindInput<'_>) -> Result<Device>;

/// Splits a source into the constructor of its scheme and the text after the scheme.
fn device_scheme(source: &str) -> Option<(Constructor, &str)> {
    match source.split_once(':')? {
        ("iscsi", rest) => Some((iscsi::device, rest)),
        ("rbd", rest) => Some((rbd::device, rest)),
        _ => None,
    }
}

/// Device to attach for a source; none for a source without a scheme, which is a device of the
/// host.
///
/// # Errors
/// Fails if the text after the scheme is not valid.
pub fn device(input: &KindInput<'_>) -> Result<Option<Device>> {
    match device_scheme(input.source) {
        Some((constructor, rest)) => constructor(rest, input).map(Some),
        None => Ok(None),
    }
}

/// Type that stands for the file system found on the device.
pub const AUTO: &str = "auto";

/// Fits sources with the scheme of an attached device.
pub fn fits(source: &str) -> Fit {
    match device_scheme(source) {
        Some(_) => Fit::Certain,
        None => Fit::No,
    }
}

/// Builds the device of a recorded source, to detach it. Detaching needs no options and no
/// secrets.
///
/// # Errors
/// Fails if the source has no scheme of an attached device, or is not valid.
pub fn device_from_source(source: &str) -> Result<Device> {
    let (options, secrets) = Default::default();
    let input = KindInput {
        fs_type: "",
        source,
        options: &options,
        secrets: &secrets,
        kernel_lacks: &|_| None,
        log_name: "",
    };
    device(&input)?.ok_or_else(|| Error::system(format!("not a device: {source}")))
}

/// Content of a device, as blkid(8) reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// File system of this type.
    FileSystem(String),
    /// Other content, described for an error message.
    Other(String),
    /// No known signature, or nothing could be read.
    Nothing,
}

/// Parses the output of `blkid --probe --output export`. Exit code 2 means that nothing was found
/// or nothing could be read, 8 that there are conflicting signatures (blkid(8), EXIT STATUS).
///
/// # Errors
/// Fails with the exit code if it has no meaning for the content.
pub fn parse_blkid(code: i32, output: &str) -> std::result::Result<Content, String> {
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
            _ => Ok(Content::Other("data that blkid does not name".into())),
        },
        2 => Ok(Content::Nothing),
        8 => Ok(Content::Other("conflicting signatures".into())),
        code => Err(format!("exit status {code}")),
    }
}

/// Parses the output of `wipefs --no-act --noheadings --output TYPE,OFFSET` into descriptions such
/// as `gpt at 0x200`.
pub fn parse_wipefs(output: &str) -> Vec<String> {
    output
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some(signature), Some(offset)) => format!("{signature} at {offset}"),
                _ => line.trim().to_owned(),
            }
        })
        .collect()
}

/// File system that spc makes on attached devices and mounts from them.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem {
    /// Type.
    pub name: &'static str,
    /// Types on a device that `-t NAME` can mount.
    pub types: &'static [&'static str],
    /// Program and arguments of a check that repairs without questions; none if mounting repairs.
    pub check: Option<(&'static str, &'static [&'static str])>,
    /// Program and arguments that make the file system, and fail if the device has another one.
    pub mkfs: (&'static str, &'static [&'static str]),
}

/// File systems that spc mounts from attached devices.
pub const FILE_SYSTEMS: [FileSystem; 2] = [
    FileSystem {
        name: "ext4",
        types: &["ext4", "ext3", "ext2"],
        check: Some(("e2fsck", &["-p"])),
        mkfs: ("mkfs.ext4", &["-q"]),
    },
    // Mounting replays the log. fsck.xfs(8) does nothing, and xfs_repair(8) needs a decision.
    FileSystem {
        name: "xfs",
        types: &["xfs"],
        check: None,
        mkfs: ("mkfs.xfs", &["-q"]),
    },
];

/// Finds the file system for a type that was requested or found on a device.
///
/// # Errors
/// Fails if spc does not mount this type from attached devices.
pub fn file_system(name: &str) -> Result<FileSystem> {
    let found = FILE_SYSTEMS.iter().find(|fs| fs.name == name);
    let found = found.or_else(|| FILE_SYSTEMS.iter().find(|fs| fs.types.contains(&name)));
    found.copied().ok_or_else(|| {
        let names: Vec<_> = FILE_SYSTEMS.iter().map(|fs| fs.name).collect();
        Error::mount(format!("cannot mount {name} from an attached device"))
            .hint(format!("supported: {}", names.join(", ")))
    })
}

/// Returns whether an exit code of e2fsck(8) means a sound file system: 0, or 1 after repairs.
pub fn is_sound(code: i32) -> bool {
    matches!(code, 0 | 1)
}

/// Identifiers of a logical unit from its vital product data, page 83h (SPC-4, 7.8.6), as
/// `TYPE.VALUE`, sorted. Identifiers of ports and of the target device are left out. Empty if the
/// disk gives none.
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
        // Association 0: the identifier belongs to the logical unit.
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
    fn content_is_read_from_the_output_of_blkid() {
        let fs = "DEVNAME=/dev/stdin\nUUID=1\nVERSION=1.0\nBLOCK_SIZE=4096\nUSAGE=filesystem\nTYPE=ext4\n";
        assert_eq!(parse_blkid(0, fs), Ok(Content::FileSystem("ext4".into())));
        let luks = "VERSION=2\nTYPE=crypto_LUKS\nUSAGE=crypto\n";
        assert_eq!(
            parse_blkid(0, luks),
            Ok(Content::Other("crypto_LUKS (crypto)".into()))
        );
        let table = "PTUUID=1\nPTTYPE=gpt\n";
        assert_eq!(
            parse_blkid(0, table),
            Ok(Content::Other("a partition table (gpt)".into()))
        );
        assert_eq!(parse_blkid(2, ""), Ok(Content::Nothing));
        assert!(matches!(parse_blkid(8, ""), Ok(Content::Other(_))));
        assert!(parse_blkid(1, "").is_err() && parse_blkid(127, "").is_err());
    }

    #[test]
    fn the_scheme_of_a_source_tells_the_kind_of_its_device() {
        for (source, name) in [
            ("rbd:pool/image", Some("rbd:pool/image")),
            ("iscsi:a,b/iqn.x:y/0", Some("iscsi:iqn.x:y/0")),
            ("/dev/sdb", None),
            ("nbd:a/b", None),
        ] {
            let device = device_from_source(source).ok();
            assert_eq!(device.map(|device| device.name).as_deref(), name);
            let fit = name.map_or(Fit::No, |_| Fit::Certain);
            assert_eq!(fits(source), fit, "{source}");
        }
    }

    #[test]
    fn only_fsck_codes_0_and_1_are_sound() {
        let sound: Vec<i32> = (0..256).filter(|code| is_sound(*code)).collect();
        assert_eq!(sound, [0, 1]);
    }

    #[test]
    fn volume_ids_are_those_of_the_unit_not_of_its_ports() {
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
    fn unsupported_file_systems_on_devices_are_refused() {
        assert_eq!(file_system("ext3").unwrap().name, "ext4");
        assert_eq!(file_system("xfs").unwrap().name, "xfs");
        assert!(file_system("btrfs").is_err());
    }

    #[test]
    fn signatures_of_wipefs_are_named_with_their_offset() {
        assert_eq!(
            parse_wipefs("gpt   0x200\ngpt 0x7ffe00\n"),
            ["gpt at 0x200", "gpt at 0x7ffe00"]
        );
        assert!(parse_wipefs("\n").is_empty());
    }
}
