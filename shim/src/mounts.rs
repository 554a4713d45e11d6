//! Reading a mount table.

use crate::sys::{self, Result};
use crate::text::{Text, name, number};

/// The type of one mount of this process's namespace; empty when there is no such mount. Not statmount(2), which
/// says it without reading the whole table, but only from Linux 6.13 on with the part after the dot of a FUSE type.
#[inline(never)]
pub fn kind_of_mount(id: u64, buffer: &mut [u8], word: &mut Text) -> Result<()> {
    let table = sys::open_read(name(c"/proc/self/mountinfo"))?;
    let (mut field, mut is_it) = (0, false);
    word.clear();
    loop {
        let got = sys::read(&table, buffer)?;
        for byte in buffer.get(..got).unwrap_or(&[]) {
            if !matches!(byte, b' ' | b'\n') {
                word.push_byte(*byte);
                continue;
            }
            if field == 0 {
                is_it = number(word.as_bytes()) == Some(id);
            } else if field > AFTER_DASH && is_it {
                return Ok(());
            }
            // A dash ends the optional fields, which begin with the seventh.
            if field > 5 && word.as_bytes() == b"-" {
                field = AFTER_DASH;
            }
            word.clear();
            field += 1;
            if *byte == b'\n' {
                field = 0;
            }
        }
        if got == 0 {
            return Ok(());
        }
    }
}

/// More fields than a line has.
const AFTER_DASH: u32 = 1 << 20;

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
