//! Files that a virtual machine boots from: a kernel, an initial file system, and read-only disks.

use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::{Key, cached};
use crate::image::{Base, unpack};
use crate::roots::{self, Root};
use crate::{image, machine};

/// Debian release of the booted `linux-image-amd64`.
const RELEASE: &str = "bookworm";

/// Modules that the first program needs for its disks, its network and its serial port.
const FIRST_MODULES: [&str; 6] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "squashfs",
    "overlay",
];

/// Directories of modules that hosts may need. The rest (graphics, sound, wireless, …) only costs
/// time.
const MODULE_DIRECTORIES: [&str; 13] = [
    "arch",
    "block",
    "crypto",
    "drivers/block",
    "drivers/char",
    "drivers/md",
    "drivers/net",
    "drivers/scsi",
    "drivers/target",
    "drivers/virtio",
    "fs",
    "lib",
    "net",
];

/// Size in bytes of the disk with the container's image. Most of the file is a hole.
const IMAGE_DISK: u64 = 1 << 30;

/// The files of a kernel.
pub struct Kernel {
    /// Kernel image that QEMU starts.
    pub image: PathBuf,
    /// Disk with the content of `/lib/modules`.
    pub modules: PathBuf,
    /// Initial file system, in memory.
    pub first: PathBuf,
}

impl Kernel {
    /// Returns Debian's kernel, unpacked now if it is missing in the cache.
    pub fn get() -> Result<Self> {
        let recipe = format!("{RELEASE} {MODULE_DIRECTORIES:?}");
        let tree = cached("kernel", Key::new(&recipe), kernel)?;
        let own = machine::binary()?;
        let mut key = Key::new(include_str!("first.sh"));
        key.add(include_str!("image.sh").as_bytes());
        key.add(format!("{} {FIRST_MODULES:?}", tree.display()).as_bytes());
        key.add(&fs::read(&own)?);
        let first = cached("first", key, |path| first(path, &tree, &own))?;
        Ok(Self {
            image: tree.join("vmlinuz"),
            modules: tree.join("modules.squashfs"),
            first,
        })
    }
}

/// Returns a disk with a tree of the lab.
pub fn disk(root: Root) -> Result<PathBuf> {
    let tree = roots::path(root)?;
    let key = Key::new(&tree.to_string_lossy());
    cached(&format!("disk-{root:?}"), key, |path| squash(&tree, path))
}

/// Returns a disk with the files of the container's image.
pub fn image_disk(base: Base) -> Result<PathBuf> {
    let archive = image::image(base)?;
    let mut key = Key::new(&archive.to_string_lossy());
    key.add(&IMAGE_DISK.to_le_bytes());
    cached(&format!("disk-image-{base:?}"), key, |path| {
        let tree = path.with_extension("tree");
        unpack(&archive, &tree)?;
        squash(&tree, path)?;
        // A machine from a saved state keeps the size that the disk had when the state was saved.
        let disk = fs::File::options().write(true).open(path)?;
        anyhow::ensure!(disk.metadata()?.len() <= IMAGE_DISK, "the image is too big");
        disk.set_len(IMAGE_DISK)?;
        crate::cache::remove(&tree)
    })
}

/// Returns an empty disk for machines without the container's image.
pub fn no_image() -> Result<PathBuf> {
    cached("disk-none", Key::new("empty"), |path| {
        Ok(fs::File::create(path)?.set_len(IMAGE_DISK)?)
    })
}

/// Returns a disk of 4 GiB with an empty file system, for a machine that keeps its files. The file
/// system needs no journal, because the machine never loses power.
pub fn blank() -> Result<PathBuf> {
    let options = "-q -F -O ^has_journal -E lazy_itable_init=0";
    cached("disk-blank", Key::new(options), |path| {
        fs::File::create(path)?.set_len(4 << 30)?;
        let words = options.split(' ').map(OsStr::new);
        let words: Vec<&OsStr> = words.chain([path.as_os_str()]).collect();
        machine::run("/usr/sbin/mkfs.ext4", &words)
    })
}

/// Makes a squashfs with lz4, the fastest to unpack on an emulated machine.
fn squash(tree: &Path, disk: &Path) -> Result<()> {
    let words = [tree.as_os_str(), disk.as_os_str()];
    let options = ["-comp", "lz4", "-noappend", "-quiet", "-no-progress"].map(OsStr::new);
    machine::run("mksquashfs", &[&words[..], &options].concat())
}

/// Makes `vmlinuz`, the disk with modules, and the files of the first modules.
fn kernel(path: &Path) -> Result<()> {
    fs::create_dir(path)?;
    let unpacked = path.join("unpacked");
    let arguments = ["--variant=extract", "--include=linux-image-amd64", RELEASE];
    roots::debian(&unpacked, &arguments)?;
    let boot = unpacked.join("boot");
    let release = only(&unpacked.join("lib/modules"))?;
    fs::rename(
        boot.join(format!("vmlinuz-{release}")),
        path.join("vmlinuz"),
    )?;
    let (all, kept) = (
        unpacked.join("lib/modules").join(&release),
        path.join("modules").join(&release),
    );
    for directory in MODULE_DIRECTORIES {
        let (from, to) = (
            all.join("kernel").join(directory),
            kept.join("kernel").join(directory),
        );
        fs::create_dir_all(to.parent().context("no parent")?)?;
        fs::rename(from, to).with_context(|| format!("no modules in {directory}"))?;
    }
    for file in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        fs::rename(all.join(file), kept.join(file))?;
    }
    // depmod wants DIRECTORY/lib/modules.
    let place = path.join("for-depmod/lib");
    fs::create_dir_all(&place)?;
    fs::rename(path.join("modules"), place.join("modules"))?;
    let base = path.join("for-depmod");
    let words = ["-b".as_ref(), base.as_os_str(), release.as_ref()];
    machine::run("/usr/sbin/depmod", &words)?;
    fs::rename(place.join("modules"), path.join("modules"))?;
    squash(&path.join("modules"), &path.join("modules.squashfs"))?;
    crate::cache::remove(&base)?;
    crate::cache::remove(&unpacked)
}

/// Returns the name of the only entry of a directory.
fn only(directory: &Path) -> Result<String> {
    let entry = fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .next()
        .with_context(|| format!("empty: {}", directory.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// Makes an archive of busybox, the first modules, the first scripts, and the lab's own program.
fn first(path: &Path, kernel: &Path, own: &Path) -> Result<()> {
    let tree = path.with_extension("tree");
    crate::cache::remove(&tree)?;
    for directory in ["bin", "dev", "proc", "sys", "modules", "new"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::copy("/usr/bin/busybox", tree.join("bin/busybox"))?;
    let release = only(&kernel.join("modules"))?;
    // The file lists the modules in the order of loading.
    let mut order = String::new();
    for module in FIRST_MODULES {
        for file in with_dependencies(&kernel.join("modules").join(&release), module)? {
            let name = file.file_name().context("no name")?.to_string_lossy();
            if !order.lines().any(|line| line == name) {
                fs::copy(&file, tree.join("modules").join(&*name))?;
                order.push_str(&format!("{name}\n"));
            }
        }
    }
    fs::write(tree.join("modules/order"), order)?;
    fs::write(tree.join("init"), include_str!("first.sh"))?;
    fs::write(tree.join("bin/image"), include_str!("image.sh"))?;
    let lab = tree.join("bin/lab");
    let words = [
        "-S".as_ref(),
        "-o".as_ref(),
        lab.as_os_str(),
        own.as_os_str(),
    ];
    machine::run("/usr/bin/strip", &words)?;
    machine::run(
        "/usr/bin/chmod",
        &["755".as_ref(), tree.join("init").as_os_str()],
    )?;
    let list = Command::new("find").arg(".").current_dir(&tree).output()?;
    let mut cpio = Command::new("/usr/bin/cpio")
        .args(["--quiet", "-o", "-H", "newc", "-F"])
        .arg(path)
        .current_dir(&tree)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run cpio")?;
    cpio.stdin
        .take()
        .context("no standard input")?
        .write_all(&list.stdout)?;
    anyhow::ensure!(cpio.wait()?.success(), "cpio failed");
    crate::cache::remove(&tree)
}

/// Returns the file of a module, after the files of the modules it needs (modules.dep).
fn with_dependencies(modules: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let dependencies = fs::read_to_string(modules.join("modules.dep"))?;
    let wanted = format!("/{name}.ko:");
    let line = dependencies
        .lines()
        .find(|line| line.contains(&wanted))
        .with_context(|| format!("no module {name}"))?;
    let files = line.split([':', ' ']).filter(|word| !word.is_empty());
    let mut files: Vec<PathBuf> = files.map(|file| modules.join(file)).collect();
    files.reverse();
    Ok(files)
}
