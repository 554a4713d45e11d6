//! Reading a mount table.

use crate::config::same;
use crate::sys::{self, Result};
use crate::text::{Text, name, number};

/// The type of one mount of this process's namespace; empty when there is no such mount. Not statmount(2), which
/// says it without reading the whole table, but only from Linux 6.13 on with the part after the dot of a FUSE type.
#[inline(never)]
pub fn kind_of_mount(id: u64, buffer: &mut [u8], word: &mut Text) -> Result<()> {
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
                kind_of_mount(id, &mut vec![0; size], &mut word).unwrap();
                assert_eq!(word.as_bytes(), kind.as_bytes(), "{line}");
            }
        }
        assert!(!text.is_empty());
        kind_of_mount(u64::MAX, &mut [0; 64], &mut word).unwrap();
        assert_eq!(word.as_bytes(), b"");
    }
}
