//! Contents of disk images that servers export.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::Host;

pub const MIB: u64 = 1024 * 1024;

/// Runs a program of the machine on an image.
pub fn on(path: &Path, words: &[&str]) -> Result<()> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .arg(path)
        .output()
        .with_context(|| format!("cannot run {}", words[0]))?;
    ensure!(output.status.success(), "{words:?}: {output:?}");
    Ok(())
}

/// A loop device of a host, and the host's file behind it.
pub struct Attached {
    pub device: String,
    pub file: String,
}

/// Makes an image of this size with this program, and attaches it on a host.
pub fn attach(host: &Host<'_>, megabytes: u64, mkfs: &[&str]) -> Result<Attached> {
    // Loop devices belong to the machine, so the file name is unique to the host.
    let name = format!("{}-{}-{}", mkfs[0], process::id(), host.name());
    let image = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
    File::create(&image)?.set_len(megabytes * MIB)?;
    on(&image, mkfs)?;
    let file = format!("/srv/{name}");
    host.copy_in(&image, &file)?;
    fs::remove_file(&image)?;
    let attach = format!("losetup -f {file} && losetup -a | grep -F {file} | cut -d: -f1");
    let device = host.sh(&attach)?.ok()?.text();
    Ok(Attached { device, file })
}

/// Makes an ext4 with a file `greeting`.
pub fn ext4(path: &Path) -> Result<()> {
    ext4_with(path, "from the server")
}

pub fn ext4_with(path: &Path, greeting: &str) -> Result<()> {
    let tree = path.with_extension("tree");
    fs::create_dir_all(&tree)?;
    fs::write(tree.join("greeting"), greeting)?;
    let made = on(
        path,
        &["mkfs.ext4", "-q", "-F", "-d", &tree.to_string_lossy()],
    );
    fs::remove_dir_all(&tree)?;
    made
}

/// Makes an empty xfs.
pub fn xfs(path: &Path) -> Result<()> {
    on(path, &["mkfs.xfs", "-q"])
}

/// A name, a function that writes the contents, and words of the refusal to make a file system
/// there.
pub type Content = (&'static str, fn(&Path) -> Result<()>, &'static str);

/// All images that are not blank.
pub const NOT_BLANK: [Content; 8] = [
    ("an-ext4", ext4, "it holds ext4"),
    (
        "an-xfs",
        |path| on(path, &["mkfs.xfs", "-q", "--unsupported"]),
        "it holds xfs",
    ),
    ("half-a-gpt", half_a_gpt, "gpt"),
    ("only-a-mark", |path| write(path, 510, &[0x55, 0xaa]), "it "),
    ("a-luks", luks, "crypto_LUKS"),
    ("an-lvm", lvm, "LVM2_member"),
    (
        "noise",
        |path| write(path, 30 * MIB, b"noise"),
        "data at byte 31457280",
    ),
    ("no-beginning", no_beginning, "data at byte"),
];

fn write(path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    let file = fs::File::options().write(true).open(path)?;
    file.write_all_at(bytes, at).context("cannot write")
}

/// Writes a partition table whose beginning was overwritten: its copy is in the last sectors.
fn half_a_gpt(path: &Path) -> Result<()> {
    let mut child = Command::new("sfdisk")
        .args(["--quiet", "--label", "gpt"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run sfdisk")?;
    child
        .stdin
        .take()
        .context("no input")?
        .write_all(b"size=8M\n")?;
    ensure!(child.wait()?.success(), "sfdisk");
    write(path, 0, &vec![0; 34 * 512])
}

/// Writes the header of a LUKS volume.
fn luks(path: &Path) -> Result<()> {
    let mut head = b"LUKS\xba\xbe\x00\x01aes".to_vec();
    head.resize(592, 0);
    head[168..204].copy_from_slice(b"01234567-89ab-cdef-0123-456789abcdef");
    write(path, 0, &head)
}

/// Writes the label of an LVM physical volume, in the second sector.
fn lvm(path: &Path) -> Result<()> {
    let mut label = vec![0_u8; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    label[20] = 32;
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(b"0123456789abcdefghijklmnopqrstuv");
    let crc = label[20..].iter().fold(0xf597_a6cf_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1))
        })
    });
    label[16..20].copy_from_slice(&crc.to_le_bytes());
    write(path, 512, &label)
}

/// Makes a file system whose first 32 MiB were overwritten.
fn no_beginning(path: &Path) -> Result<()> {
    on(path, &["mkfs.xfs", "-q", "--unsupported"])?;
    write(path, 0, &vec![0; usize::try_from(32 * MIB)?])
}
