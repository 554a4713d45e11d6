//! File system type of a mount.

use spc_shim_config::words::{same, split_once};

use crate::sys::{self, CWD, Result};
use crate::text::{Text, ThinCStr, number, thin};

/// Reads the type of the mount with this id, on which `file` in the current directory is. The type
/// is empty if the mount has disappeared.
///
/// statmount(2) is called first. The mount table is read only if that fails or, on older kernels,
/// gives a FUSE type without its subtype.
pub fn read_fs_type(file: ThinCStr<'_>, id: u64, buffer: &mut [u8], word: &mut Text) -> Result<()> {
    if sys::statmount_fs_type(sys::unique_id(CWD, file), buffer).is_ok() {
        word.set(string(buffer, FS_TYPE));
        if field(buffer, MASK) & sys::STATMOUNT_FS_SUBTYPE as usize != 0 {
            word.push_byte(b'.');
            word.push(string(buffer, FS_SUBTYPE));
        }
        if !same(word.as_bytes(), b"fuse") {
            return Ok(());
        }
    }
    read_table(id, buffer, word)
}

// Offsets in struct statmount.
const MASK: usize = 8;
const FS_TYPE: usize = 36;
const FS_SUBTYPE: usize = 120;
const STRINGS: usize = 512;

#[inline(never)]
fn field(reply: &[u8], at: usize) -> usize {
    let bytes = reply.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes) as usize)
}

#[inline(never)]
fn string(reply: &[u8], at: usize) -> &[u8] {
    let text = reply.get(STRINGS + field(reply, at)..);
    split_once(text.unwrap_or(&[]), 0).0
}

/// Reads the type of one mount of this process's namespace from mountinfo. The type is empty if
/// there is no such mount.
fn read_table(id: u64, buffer: &mut [u8], word: &mut Text) -> Result<()> {
    let table = sys::open_read(thin(c"/proc/self/mountinfo"))?;
    let mut at = Field::Id;
    word.clear();
    loop {
        let got = sys::read(&table, buffer)?;
        for byte in buffer.get(..got).unwrap_or(&[]) {
            if !matches!(byte, b' ' | b'\n') {
                word.push_byte(*byte);
                continue;
            }
            at = match at {
                Field::Type => return Ok(()),
                _ if *byte == b'\n' => Field::Id,
                Field::Id if number(word.as_bytes()) == Some(id) => Field::Wanted,
                // A dash ends the optional fields; no field before them can be a dash.
                Field::Wanted if same(word.as_bytes(), b"-") => Field::Type,
                Field::Wanted => Field::Wanted,
                _ => Field::Other,
            };
            word.clear();
        }
        if got == 0 {
            return Ok(());
        }
    }
}

/// Field of the mount table that the next word is.
enum Field {
    /// Mount id, at the start of a line.
    Id,
    /// Field of the wanted mount before its type.
    Wanted,
    /// Type of the wanted mount.
    Type,
    /// Field of another mount.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_gives_the_type_of_every_mount() {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut word = Text::new();
        for line in text.lines() {
            let id: u64 = line.split(' ').next().unwrap().parse().unwrap();
            let fs_type = line.split(" - ").last().unwrap().split(' ').next().unwrap();
            for size in [7, 4096] {
                read_table(id, &mut vec![0; size], &mut word).unwrap();
                assert_eq!(word.as_bytes(), fs_type.as_bytes(), "{line}");
            }
        }
        assert!(!text.is_empty());
        read_table(u64::MAX, &mut [0; 64], &mut word).unwrap();
        assert_eq!(word.as_bytes(), b"");
    }

    #[test]
    fn statmount_and_the_table_give_the_same_type() {
        let (mut buffer, mut word) = (vec![0; 4096], Text::new());
        for file in [thin(c"/"), thin(c"/proc"), thin(c"/dev")] {
            let id = sys::mount_id(CWD, file).unwrap();
            read_table(id, &mut buffer, &mut word).unwrap();
            let table = word.as_bytes().to_vec();
            assert!(!table.is_empty());
            read_fs_type(file, id, &mut buffer, &mut word).unwrap();
            assert_eq!(word.as_bytes(), table);
        }
    }

    #[test]
    fn a_statmount_reply_is_read_within_its_bounds() {
        let mut reply = vec![0; STRINGS];
        reply[FS_TYPE..][..4].copy_from_slice(&3u32.to_ne_bytes());
        assert_eq!(string(&reply, FS_TYPE), b"");
        reply.extend(b"no\0fuse\0gluster");
        assert_eq!(string(&reply, FS_TYPE), b"fuse");
        reply[FS_SUBTYPE..][..4].copy_from_slice(&8u32.to_ne_bytes());
        assert_eq!(string(&reply, FS_SUBTYPE), b"gluster");
        reply[FS_SUBTYPE..][..4].fill(0xff);
        assert_eq!(string(&reply, FS_SUBTYPE), b"");
    }
}
