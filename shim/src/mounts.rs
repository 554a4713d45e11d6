//! File system type of a mount.

use spc_shim_config::words::same;

use crate::sys::{self, Result};
use crate::text::{Text, thin};

/// Reads the type of one mount of this process's namespace from mountinfo. The type is empty if
/// there is no such mount.
pub fn read_fs_type(id: u64, buffer: &mut [u8], word: &mut Text) -> Result<()> {
    let table = sys::open_read(thin(c"/proc/self/mountinfo"))?;
    let mut at = Field::Id;
    word.clear();
    loop {
        let got = sys::read(&table, buffer)?;
        for byte in buffer.get(..got).unwrap_or(&[]) {
            // Blanks in a field are escaped.
            if *byte > b' ' {
                word.push_byte(*byte);
                continue;
            }
            let text = word.as_bytes();
            at = match at {
                Field::Type => return Ok(()),
                _ if *byte == b'\n' => Field::Id,
                Field::Other => Field::Other,
                Field::Id if number(text) != id => Field::Other,
                // A dash ends the optional fields; no field before them can be a dash.
                _ if same(text, b"-") => Field::Type,
                _ => Field::Wanted,
            };
            word.clear();
        }
        if got == 0 {
            return Ok(());
        }
    }
}

/// Parses a decimal number.
fn number(text: &[u8]) -> u64 {
    let digit = |byte: &u8| u64::from(byte.wrapping_sub(b'0'));
    text.iter().fold(0, |value: u64, byte| {
        value.wrapping_mul(10).wrapping_add(digit(byte))
    })
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
                read_fs_type(id, &mut vec![0; size], &mut word).unwrap();
                assert_eq!(word.as_bytes(), fs_type.as_bytes(), "{line}");
            }
        }
        assert!(!text.is_empty());
        read_fs_type(u64::MAX, &mut [0; 64], &mut word).unwrap();
        assert_eq!(word.as_bytes(), b"");
    }
}
