//! Reading a mount table.

use crate::sys::{self, Result};
use crate::text::{number, split_once};

/// The type of one mount of this process's namespace. Not statmount(2), which says it without reading the whole
/// table, but only from Linux 6.13 on with the part after the dot of a FUSE type.
#[inline(never)]
pub fn kind_of_mount(id: u64, buffer: &mut [u8]) -> Result<Option<&[u8]>> {
    let table = sys::open_read(c"/proc/self/mountinfo")?;
    let mut kept = 0;
    loop {
        let got = sys::read(&table, buffer.get_mut(kept..).unwrap_or(&mut []))?;
        if got == 0 {
            return Ok(None);
        }
        let end = kept + got;
        let mut start = 0;
        while let (line, Some(_)) = split_once(buffer.get(start..end).unwrap_or(&[]), b'\n') {
            let len = line.len();
            if number(split_once(line, b' ').0) == Some(id) {
                return Ok(buffer.get(start..start + len).map(kind_of_line));
            }
            start += len + 1;
        }
        kept = 0;
        for at in start..end {
            if let Some(byte) = buffer.get(at).copied()
                && let Some(to) = buffer.get_mut(kept)
            {
                *to = byte;
                kept += 1;
            }
        }
    }
}

/// The word after the dash that ends the optional fields, which begin with the seventh.
fn kind_of_line(mut line: &[u8]) -> &[u8] {
    let mut count = 0;
    while let (word, Some(rest)) = split_once(line, b' ') {
        line = rest;
        count += 1;
        if word == b"-" && count > 6 {
            return split_once(line, b' ').0;
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mount_is_found_with_its_type() {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut count = 0;
        for line in text.lines() {
            let id: u64 = line.split(' ').next().unwrap().parse().unwrap();
            let kind = line.split(" - ").last().unwrap().split(' ').next().unwrap();
            for size in [512, 4096] {
                let mut buffer = vec![0; size];
                if line.len() < size {
                    let found = kind_of_mount(id, &mut buffer).unwrap();
                    assert_eq!(found, Some(kind.as_bytes()), "{line}");
                }
            }
            count += 1;
        }
        assert!(count > 1);
        assert_eq!(kind_of_mount(u64::MAX, &mut [0; 4096]), Ok(None));
    }

    #[test]
    fn a_dash_in_a_path_is_not_the_end_of_the_fields() {
        let line = b"36 35 98:0 / - rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(kind_of_line(line), b"ext3");
    }
}
