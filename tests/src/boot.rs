//! Boot of a host inside the lab. `lab host-up` makes the PID namespace and the network cable of
//! the host. `lab host-init` is PID 1 of the host: it mounts the file systems and becomes busybox's
//! init.

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, symlink};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::{fchdir, pivot_root};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cgroup::Cgroup;
use crate::machine::{expect_line, is_plain};
use crate::net;
use crate::runtime::DIRECTORY;

/// Propagation of the mounts below `/`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Shared, as systemd sets it.
    #[default]
    Shared,
    /// Private, the kernel's default.
    Private,
}

/// Parameters of a host's boot.
#[derive(Debug, Serialize, Deserialize)]
pub struct Boot {
    /// Number of the host in the lab.
    pub number: u8,
    /// Propagation of `/` and all mounts below.
    pub propagation: Propagation,
    /// Cgroup of the host, with a child `init`.
    pub cgroup: PathBuf,
    /// Read-only tree of installed files.
    pub lower: PathBuf,
    /// Empty directory. The host mounts its writable files on it in its own mount namespace.
    pub data: PathBuf,
}

/// `lab host-up`: boots a host and ends when the host is up.
pub fn up(argument: &str) -> Result<()> {
    let boot: Boot = serde_json::from_str(argument).context("bad argument")?;
    unshare(CloneFlags::CLONE_NEWPID).context("cannot make a PID namespace")?;
    let mut init = Command::new("/proc/self/exe")
        .arg("host-init")
        .arg(argument)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the host's init")?;
    let mut output = BufReader::new(init.stdout.take().context("no standard output")?);
    let mut input = init.stdin.take().context("no standard input")?;
    expect_line(&mut output, "the host's init")?;
    net::attach(boot.number, init.id())?;
    input.write_all(b"attached\n")?;
    expect_line(&mut output, "the host's init")?;
    Ok(())
}

/// `lab host-init`: PID 1 of the host.
pub fn init(argument: &str) -> Result<()> {
    let boot: Boot = serde_json::from_str(argument).context("bad argument")?;
    let cgroup = Cgroup::at(&boot.cgroup);
    // The root of the cgroup namespace is the cgroup of the process that unshares it. The child
    // `init` leaves room for other cgroups.
    cgroup.join()?;
    let kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(kinds).context("cannot make namespaces")?;
    Cgroup::at(boot.cgroup.join("init")).join()?;
    cgroup.delegate()?;
    println!("namespaces made");
    expect_line(&mut std::io::stdin().lock(), "the cable")?;
    net::configure(boot.number)?;
    rustix::system::sethostname(net::name(boot.number).as_bytes())?;
    let root = lay_out(&boot).context("cannot lay out the host's files")?;
    enter_root(&root, boot.propagation).context("cannot enter the host's root")?;
    println!("ready");
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let error = Command::new("/bin/busybox").arg0("init").env_clear().exec();
    Err(error).context("cannot become init")
}

/// Mounts the host's root and everything below, and returns the root.
fn lay_out(boot: &Boot) -> Result<PathBuf> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let data = &boot.data;
    attach(data, "tmpfs", "mode=0755")?;
    let (upper, work, root) = (data.join("upper"), data.join("work"), data.join("root"));
    for directory in [&upper, &work, &root] {
        fs::create_dir(directory)?;
    }
    for path in [&boot.lower, data] {
        ensure!(
            is_plain(path),
            "an overlay cannot be made here: {}\nhint: set XDG_CACHE_HOME",
            path.display()
        );
    }
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        boot.lower.display(),
        upper.display(),
        work.display()
    );
    attach(&root, "overlay", &layers)?;
    attach(&root.join("proc"), "proc", "")?;
    attach(&root.join("sys"), "sysfs", "")?;
    attach(&root.join("sys/fs/cgroup"), "cgroup2", "")?;
    attach(&root.join("run"), "tmpfs", "mode=0755")?;
    attach(&root.join("tmp"), "tmpfs", "mode=1777")?;
    devices(&root.join("dev"))?;
    // Container engines need overlays here, and the kernel refuses an overlay on an overlay.
    for directory in ["var/lib/docker", "var/lib/containerd", "var/lib/containers"] {
        let directory = root.join(directory);
        fs::create_dir_all(&directory)?;
        attach(&directory, "tmpfs", "mode=0711")?;
    }
    // Installs the lab's own program as a wrapper of the container runtimes, on roots with
    // container engines.
    let own = root.join(DIRECTORY.trim_start_matches('/'));
    if own.exists() {
        fs::copy("/proc/self/exe", own.join("lab"))
            .context("cannot install the lab's own program")?;
    }
    let name = net::name(boot.number);
    fs::write(root.join("etc/hostname"), format!("{name}\n"))?;
    fs::write(
        root.join("etc/hosts"),
        format!(
            "127.0.0.1 localhost\n{} {name}\n",
            net::address(boot.number)
        ),
    )?;
    fs::write(
        root.join("etc/inittab"),
        "# nothing to start: init is here to reap\n",
    )?;
    Ok(root)
}

/// Makes the devices of a small host. The machine's own `/dev` would give access to its disks.
fn devices(dev: &Path) -> Result<()> {
    attach(dev, "tmpfs", "mode=0755")?;
    let nodes = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
        ("fuse", 10, 229),
        ("loop-control", 10, 237),
    ];
    for (name, major, minor) in nodes {
        node(&dev.join(name), FileType::CharacterDevice, major, minor)?;
    }
    for number in 0..64 {
        node(
            &dev.join(format!("loop{number}")),
            FileType::BlockDevice,
            7,
            number,
        )?;
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(to, dev.join(link))?;
    }
    for (directory, fstype, options) in [
        ("pts", "devpts", "newinstance,ptmxmode=0666,mode=0620"),
        ("shm", "tmpfs", "mode=1777"),
        ("mqueue", "mqueue", ""),
    ] {
        fs::create_dir(dev.join(directory))?;
        attach(&dev.join(directory), fstype, options)?;
    }
    Ok(())
}

fn node(path: &Path, kind: FileType, major: u32, minor: u32) -> Result<()> {
    mknodat(
        CWD,
        path,
        kind,
        Mode::from_raw_mode(0o666),
        makedev(major, minor),
    )
    .with_context(|| format!("cannot make {}", path.display()))
}

fn attach(target: &Path, fstype: &str, options: &str) -> Result<()> {
    let options = CString::new(options)?;
    mount(
        fstype,
        target,
        fstype,
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .with_context(|| format!("cannot mount {fstype} on {}", target.display()))
}

/// Makes the root the only tree of the mount namespace.
fn enter_root(root: &Path, propagation: Propagation) -> Result<()> {
    fchdir(File::open(root)?)?;
    // pivot_root(2) stacks the old root on the new one.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    let flags = match propagation {
        Propagation::Shared => MountPropagationFlags::SHARED,
        Propagation::Private => MountPropagationFlags::PRIVATE,
    };
    mount_change("/", flags | MountPropagationFlags::REC)?;
    Ok(())
}
