//! The type of a mount.

use spc_shim_config::words::{same, split_once};

use crate::sys::{self, CWD, Result};
use crate::text::{Name, Text, name, number};

/// The type of the mount that `file` of the current directory is on, whose id is known; empty when there is no such
/// mount any more. The kernel is asked for this one mount, and the whole table is read only where it does not answer,
/// or may not know what follows the dot of a FUSE type.
pub fn kind_of(file: Name<'_>, id: u64, buffer: &mut [u8], word: &mut Text) -> Result<()> {
    if sys::statmount_kind(sys::unique_id(CWD, file), buffer).is_ok() {
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

// Where struct statmount has them.
const MASK: usize = 8;
const FS_TYPE: usize = 36;
const FS_SUBTYPE: usize = 120;
const STRINGS: usize = 512;

#[inline(never)]
fn field(answer: &[u8], at: usize) -> usize {
    let bytes = answer.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes) as usize)
}

#[inline(never)]
fn string(answer: &[u8], at: usize) -> &[u8] {
    let text = answer.get(STRINGS + field(answer, at)..);
    split_once(text.unwrap_or(&[]), 0).0
}

/// The type of one mount of this process's namespace; empty when there is no such mount.
fn read_table(id: u64, buffer: &mut [u8], word: &mut Text) -> Result<()> {
    let table = sys::open_read(name(c"/proc/self/mountinfo"))?;
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
                Field::Id if number(word.as_bytes()) == Some(id) => Field::Ours,
                // Only the optional fields end with a dash; none of those before them can be one.
                Field::Ours if same(word.as_bytes(), b"-") => Field::Type,
                Field::Ours => Field::Ours,
                _ => Field::Others,
            };
            word.clear();
        }
        if got == 0 {
            return Ok(());
        }
    }
}

/// What the next word of the table is.
enum Field {
    Id,
    /// Of the mount that is looked for, before its type.
    Ours,
    Type,
    /// Of another mount.
    Others,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mount_is_found_with_its_type() {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut word = Text::new();
        for line in text.lines() {
            let id: u64 = line.split(' ').next().unwrap().parse().unwrap();
            let kind = line.split(" - ").last().unwrap().split(' ').next().unwrap();
            for size in [7, 4096] {
                read_table(id, &mut vec![0; size], &mut word).unwrap();
                assert_eq!(word.as_bytes(), kind.as_bytes(), "{line}");
            }
        }
        assert!(!text.is_empty());
        read_table(u64::MAX, &mut [0; 64], &mut word).unwrap();
        assert_eq!(word.as_bytes(), b"");
    }

    #[test]
    fn the_kernel_says_what_the_table_says() {
        let (mut buffer, mut word) = (vec![0; 4096], Text::new());
        for file in [name(c"/"), name(c"/proc"), name(c"/dev")] {
            let id = sys::mount_id(CWD, file).unwrap();
            read_table(id, &mut buffer, &mut word).unwrap();
            let table = word.as_bytes().to_vec();
            assert!(!table.is_empty());
            kind_of(file, id, &mut buffer, &mut word).unwrap();
            assert_eq!(word.as_bytes(), table);
        }
    }

    #[test]
    fn an_answer_of_the_kernel_is_read_within_its_bounds() {
        let mut answer = vec![0; STRINGS];
        answer[FS_TYPE..][..4].copy_from_slice(&3u32.to_ne_bytes());
        assert_eq!(string(&answer, FS_TYPE), b"");
        answer.extend(b"no\0fuse\0gluster");
        assert_eq!(string(&answer, FS_TYPE), b"fuse");
        answer[FS_SUBTYPE..][..4].copy_from_slice(&8u32.to_ne_bytes());
        assert_eq!(string(&answer, FS_SUBTYPE), b"gluster");
        answer[FS_SUBTYPE..][..4].fill(0xff);
        assert_eq!(string(&answer, FS_SUBTYPE), b"");
    }
}
