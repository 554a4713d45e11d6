//! Checks whether a device is blank. spc makes a file system on blank devices only.
//!
//! A missing signature is not enough: a device whose first blocks were overwritten has none and
//! still holds data. spc therefore reads samples of the device: its beginning, its end, spread
//! samples, and the positions of ext4's backup superblocks. A device is blank if all samples are
//! zero. A small device is read whole.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

const MIB: u64 = 1024 * 1024;

/// Bytes that are read at the beginning and at the end.
const ENDS: u64 = 8 * MIB;

/// Size in bytes up to which a device is read whole.
const WHOLE: u64 = 64 * MIB;

/// Number of samples between the ends.
const SAMPLES: u64 = 1024;

/// Bytes per sample.
const SAMPLE: u64 = 4096;

/// Number of concurrent readers, because a network disk serves many requests as fast as one.
const READERS: usize = 16;

/// Returns the offset of the first byte that is not zero; none if the device is blank.
///
/// # Errors
/// Fails if the device cannot be read or its size is 0. The caller must not treat it as blank.
pub fn first_data(device: &File) -> io::Result<Option<u64>> {
    // stat(2) reports 0 as the size of a block device.
    let size = (&*device).seek(SeekFrom::End(0))?;
    if size == 0 {
        return Err(io::Error::other("its size is 0"));
    }
    let samples = if size <= WHOLE {
        let parts = (0..size).step_by(MIB as usize);
        parts.map(|at| (at, (at + MIB).min(size))).collect()
    } else {
        sample_ranges(size)
    };
    let found = std::thread::scope(|scope| {
        let chunk = samples.len().div_ceil(READERS);
        let readers: Vec<_> = samples
            .chunks(chunk)
            .map(|samples| scope.spawn(move || read_samples(device, samples)))
            .collect();
        let results = readers.into_iter().map(|reader| {
            let panicked = |_| Err(io::Error::other("a reader thread panicked"));
            reader.join().unwrap_or_else(panicked)
        });
        results.collect::<io::Result<Vec<_>>>()
    })?;
    Ok(found.into_iter().flatten().min())
}

/// Returns the offset of the first byte that is not zero within the samples.
fn read_samples(device: &File, samples: &[(u64, u64)]) -> io::Result<Option<u64>> {
    let mut buffer = vec![0_u8; MIB as usize];
    for (from, to) in samples {
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

/// Returns the samples of a large device, as ranges of bytes.
fn sample_ranges(size: u64) -> Vec<(u64, u64)> {
    let mut samples = vec![(0, ENDS), (size - ENDS, size)];
    // ext4 keeps backup superblocks in the block groups 1 and the powers of 3, 5 and 7. A group has
    // eight times as many blocks as a block has bytes.
    for block in [1024_u64, 2048, 4096] {
        for group in [1, 3, 5, 7, 9, 25, 27, 49] {
            let first = if block == 1024 { block } else { 0 };
            let at = group * 8 * block * block + first;
            if at + SAMPLE <= size {
                samples.push((at, at + SAMPLE));
            }
        }
    }
    let step = (size / SAMPLES) / SAMPLE * SAMPLE;
    let spread = (1..SAMPLES).map(|n| n * step.max(SAMPLE));
    samples.extend(
        spread
            .filter(|at| at + SAMPLE <= size)
            .map(|at| (at, at + SAMPLE)),
    );
    samples
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;

    /// Sparse file in place of a device.
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
    fn a_file_system_without_its_beginning_is_data() {
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
            // Users overwrite the beginning to erase a file system, which leaves most of its data.
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
