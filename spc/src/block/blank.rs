//! Is a device really blank? Only then may a file system be made on it.
//!
//! Signatures alone do not tell: a device whose first blocks were overwritten has none, and holds data. So the device
//! itself is read: its beginning, its end, places all over it, and those at which ext4 keeps copies of what is at its
//! beginning. Blank is what is zero in all of them; a small device is read whole.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

const MIB: u64 = 1024 * 1024;

/// How much of the beginning and of the end is read.
const ENDS: u64 = 8 * MIB;

/// Up to this size everything is read.
const WHOLE: u64 = 64 * MIB;

/// How many places between are read, and how much of each.
const PLACES: u64 = 1024;
const PLACE: u64 = 4096;

/// How many readers are at work: a disk on the network answers many as fast as one.
const READERS: usize = 16;

/// Looks for anything that is not zero; gives back where the first such byte is.
///
/// # Errors
/// The device cannot be read, or has no size: then nothing is known, and it is not blank.
pub fn first_data(device: &File) -> io::Result<Option<u64>> {
    // The size of a device is where its end is.
    let size = (&*device).seek(SeekFrom::End(0))?;
    if size == 0 {
        return Err(io::Error::other("its size is 0"));
    }
    let places = if size <= WHOLE {
        let parts = (0..size).step_by(MIB as usize);
        parts.map(|at| (at, (at + MIB).min(size))).collect()
    } else {
        places(size)
    };
    let found = std::thread::scope(|scope| {
        let share = places.len().div_ceil(READERS);
        let readers: Vec<_> = places
            .chunks(share)
            .map(|places| scope.spawn(move || look(device, places)))
            .collect();
        let ended = readers.into_iter().map(|reader| {
            let died = |_| Err(io::Error::other("a reader died"));
            reader.join().unwrap_or_else(died)
        });
        ended.collect::<io::Result<Vec<_>>>()
    })?;
    Ok(found.into_iter().flatten().min())
}

fn look(device: &File, places: &[(u64, u64)]) -> io::Result<Option<u64>> {
    let mut buffer = vec![0_u8; MIB as usize];
    for (from, to) in places {
        let mut at = *from;
        while at < *to {
            let length = usize::try_from((to - at).min(MIB)).unwrap_or(buffer.len());
            let part = &mut buffer[..length];
            device.read_exact_at(part, at)?;
            if let Some(found) = part.iter().position(|byte| *byte != 0) {
                return Ok(Some(at + found as u64));
            }
            at += length as u64;
        }
    }
    Ok(None)
}

/// The parts of a large device that are read.
fn places(size: u64) -> Vec<(u64, u64)> {
    let mut places = vec![(0, ENDS), (size - ENDS, size)];
    // The superblock's copies are in the groups 1 and the powers of 3, 5 and 7; a group has eight times as many blocks
    // as a block has bytes.
    for block in [1024_u64, 2048, 4096] {
        for group in [1, 3, 5, 7, 9, 25, 27, 49] {
            let first = if block == 1024 { block } else { 0 };
            let at = group * 8 * block * block + first;
            if at + PLACE <= size {
                places.push((at, at + PLACE));
            }
        }
    }
    let step = (size / PLACES) / PLACE * PLACE;
    let spread = (1..PLACES).map(|n| n * step.max(PLACE));
    places.extend(
        spread
            .filter(|at| at + PLACE <= size)
            .map(|at| (at, at + PLACE)),
    );
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;

    /// A sparse file as a device.
    struct Device(PathBuf, File);

    impl Device {
        fn new(name: &str, size: u64) -> Self {
            let path =
                std::env::temp_dir().join(format!("spc-blank-{}-{name}", std::process::id()));
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)
                .unwrap();
            file.set_len(size).unwrap();
            Self(path, file)
        }

        fn found(&self) -> Option<u64> {
            first_data(&self.1).unwrap()
        }
    }

    impl Drop for Device {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    const GIB: u64 = 1024 * MIB;

    #[test]
    fn only_zeros_are_blank() {
        for size in [512, MIB, WHOLE, WHOLE + 512, 3 * GIB + 4096] {
            assert_eq!(Device::new("zeros", size).found(), None, "{size}");
        }
        let empty = Device::new("empty", 0);
        assert!(first_data(&empty.1).is_err());
    }

    #[test]
    fn one_byte_at_either_end_is_data() {
        for size in [MIB, 3 * GIB] {
            for at in [0, 510, ENDS.min(size) - 1, size - 512, size - 1] {
                let device = Device::new("byte", size);
                device.1.write_all_at(&[1], at).unwrap();
                assert_eq!(device.found(), Some(at), "{at} of {size}");
            }
        }
    }

    #[test]
    fn a_file_system_with_its_beginning_gone_is_data() {
        for (name, make) in [
            ("ext4", &["mkfs.ext4", "-q", "-F"][..]),
            ("ext4-1k", &["mkfs.ext4", "-q", "-F", "-b", "1024"][..]),
            ("xfs", &["mkfs.xfs", "-q"][..]),
        ] {
            let device = Device::new(name, GIB);
            let Ok(made) = Command::new(make[0])
                .args(&make[1..])
                .arg(&device.0)
                .status()
            else {
                let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
                assert!(!ci, "a skip is a failure in CI: no {}", make[0]);
                eprintln!("SKIPPED: no {}", make[0]);
                continue;
            };
            assert!(made.success());
            assert!(device.found().is_some());
            // What people do to be rid of a file system, and what does not do that.
            let zeros = vec![0; usize::try_from(64 * MIB).unwrap()];
            device.1.write_all_at(&zeros, 0).unwrap();
            assert!(device.found().is_some(), "{name}");
        }
    }

    #[test]
    fn data_that_covers_a_thousandth_of_a_large_device_is_found_wherever_it_is() {
        let device = Device::new("later", 3 * GIB);
        let noise = vec![7; usize::try_from(4 * MIB).unwrap()];
        for at in [100 * MIB, 1500 * MIB + 12345, 2990 * MIB] {
            device.1.write_all_at(&noise, at).unwrap();
            let found = device.found().unwrap();
            assert!((at..at + 4 * MIB).contains(&found), "{at} {found}");
            let zeros = vec![0; noise.len()];
            device.1.write_all_at(&zeros, at).unwrap();
            assert_eq!(device.found(), None);
        }
    }
}
