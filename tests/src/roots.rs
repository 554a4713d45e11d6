//! Installed files of hosts: read-only trees, made once and kept in the cache by a hash of their
//! inputs.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Key, cached};
use crate::cluster::programs;
use crate::machine;
use crate::runtime::{DIRECTORY, RUNTIMES};

/// Set of installed files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// busybox, nsenter, docker and podman with their runtimes: a container host without any
    /// storage client.
    #[default]
    Minimal,
    /// The same without docker and podman, and with a whole Kubernetes.
    Kubernetes,
    /// Debian trixie with the servers of GlusterFS and SSH, and the native client of GlusterFS.
    Server,
    /// Debian trixie with the servers of SMB and S3, and fuse2fs.
    Shares,
    /// Debian trixie with readers of man pages, shell completions and metrics.
    Readers,
    /// Debian trixie with the servers and administration programs of Ceph.
    Ceph,
    /// busybox and runc: a container host for virtual machines, without any storage client.
    Vm,
    /// Debian trixie with systemd as init, udev, and runc.
    Systemd,
    /// The same, with SELinux enforcing Debian's policy.
    Selinux,
    /// Debian trixie with servers of NFS (the kernel's, NFS-Ganesha) and iSCSI (the kernel's).
    Storage,
}

/// Programs of a container host. Their libraries are installed with them.
const PROGRAMS: &[&str] = &[
    "/usr/bin/busybox",
    "/usr/bin/conmon",
    "/usr/bin/containerd",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/bin/docker",
    "/usr/bin/nsenter",
    "/usr/bin/podman",
    "/usr/sbin/dockerd",
];

/// Programs of a container host that a Kubernetes node does without.
const ENGINES: [&str; 4] = [
    "/usr/bin/conmon",
    "/usr/bin/docker",
    "/usr/bin/podman",
    "/usr/sbin/dockerd",
];

/// mount(8) of util-linux. A test has to replace busybox's with it.
const UTIL_LINUX: [&str; 2] = ["/usr/bin/mount", "/usr/bin/umount"];

/// Directory of util-linux's programs on a minimal host.
const UTIL_LINUX_DIRECTORY: &str = "/usr/libexec/util-linux";

/// Programs of virtual machines, where busybox provides nsenter.
const VM_PROGRAMS: &[&str] = &["/usr/bin/busybox", "/usr/sbin/runc"];

/// Returns the tree of a root, made now if the cache lacks it.
pub fn path(root: Root) -> Result<PathBuf> {
    match root {
        Root::Minimal => {
            let files = minimal_files()?;
            cached("minimal", key_of(&files)?, |path| {
                minimal(path, &files)?;
                engines(path)
            })
        }
        Root::Kubernetes => {
            let files = kubernetes_files()?;
            cached("kubernetes-root", key_of(&files)?, |path| {
                minimal(path, &files)?;
                engines(path)
            })
        }
        Root::Vm => {
            let programs: Vec<PathBuf> = VM_PROGRAMS.iter().map(PathBuf::from).collect();
            // Each boot brings the lab's own program; only its libraries belong to the root.
            let own = machine::binary()?;
            let mut files = libraries(programs.iter().chain([&own]))?;
            files.extend(programs.into_iter().map(|path| (path.clone(), path)));
            cached("vm", key_of(&files)?, |path| minimal(path, &files))
        }
        Root::Server => trixie("server", SERVER, &[]),
        Root::Storage => trixie("storage", STORAGE, &[]),
        Root::Shares => trixie("shares", SHARES, &[]),
        Root::Readers => trixie("readers", READERS, &[]),
        Root::Ceph => trixie("ceph", CEPH, &[]),
        Root::Systemd => trixie("systemd", SYSTEMD, &[NO_PROFILES, FAST_BOOT]),
        Root::Selinux => trixie("selinux", SELINUX, &[KEPT, LABELS]),
    }
}

/// Returns a Debian trixie with these packages, made with these options of mmdebstrap.
fn trixie(name: &str, packages: &str, options: &[&str]) -> Result<PathBuf> {
    let include = format!("--include={packages}");
    let arguments = [&["--variant=essential", &include], options, &["trixie"]].concat();
    cached(name, Key::new(&arguments.join(" ")), |path| {
        debian(path, &arguments)
    })
}

fn key_of(files: &BTreeMap<PathBuf, PathBuf>) -> Result<Key> {
    let mut key = Key::new(include_str!("roots.rs"));
    for (file, place) in files {
        let data = fs::metadata(file).with_context(|| format!("cannot find {}", file.display()))?;
        key.add(place.as_os_str().as_bytes());
        key.add(format!("{} {}.{}", data.size(), data.mtime(), data.mtime_nsec()).as_bytes());
    }
    Ok(key)
}

/// The package of GlusterFS's server depends on the client.
const SERVER: &str = "busybox-static,glusterfs-server,mount,openssh-server,tgt,tgt-glusterfs";

/// Samba with its client, for the test of readiness; moto with flask-cors for its server; and
/// fuse2fs, a FUSE program that the image lacks.
const SHARES: &str = "busybox-static,fuse2fs,mount,python3-flask-cors,python3-moto,samba,smbclient";

const READERS: &str = "busybox-static,curl,fish,man-db,mandoc,mount,prometheus,zsh";

/// With the loader of AppArmor profiles. The kernel has the module enabled.
const SYSTEMD: &str = "apparmor,kmod,runc,systemd-sysv,udev";

/// Leaves out the unit that loads Debian's own profiles, which would make each boot longer.
const NO_PROFILES: &str = "--dpkgopt=path-exclude=/usr/lib/systemd/system/apparmor.service";

/// Leaves out units that no test needs. In an emulated machine they are half of a boot.
const FAST_BOOT: &str = r#"--customize-hook=for unit in getty.target modprobe@.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount \
    systemd-random-seed.service systemd-udev-load-credentials.service; do
    ln -s /dev/null "$1/etc/systemd/system/$unit"
done"#;

const SELINUX: &str =
    "kmod,mount,policycoreutils,runc,selinux-policy-default,selinux-utils,systemd-sysv,udev";

/// Keeps mmdebstrap from making files after the labels.
const KEPT: &str = "--skip=cleanup/reproducible";

/// Has the policy enforced, adds the lab's own rules, and labels all files.
const LABELS: &str = r#"--customize-hook=set -eu
touch "$1/etc/hosts" "$1/etc/hostname"
# The policy refuses a login prompt what it asks for, and systemd would start it again and again.
ln -s /dev/null "$1/etc/systemd/system/getty.target"
cd "$1/etc/selinux"
sed -i s/^SELINUX=.*/SELINUX=enforcing/ config
echo '/run/lab(/.*)? system_u:object_r:bin_t:s0' >default/contexts/files/file_contexts.local
# The newest version that the booted kernel knows.
echo policy-version=33 >>semanage.conf
rm default/policy/*
cat >"$1/tmp/lab.cil" <<'RULES'
; Programs of an overlay are mapped with the descriptor of its mounter.
(allow domain kernel_t (fd (use)))
; Every command that the lab runs has its streams in memory.
(allow domain initrc_t (fd (use)))
(allow domain tmpfs_t (file (append getattr ioctl read write)))
; Engines bind files of their own there.
(allow container_engine_domain net_conf_t (file (mounton)))
; Those that show the host's SELinux to a container bind these directories.
(allow container_engine_domain security_t (dir (getattr mounton open read search)))
(allow container_engine_domain security_t (filesystem (getattr remount)))
(allow container_engine_domain selinux_config_t (dir (getattr mounton open read search)))
(allow container_engine_domain sysfs_t (dir (mounton)))
RULES
chroot "$1" semodule --noreload --install /tmp/lab.cil
mkdir "$1/usr/lib/modules"
chroot "$1" setfiles -F /etc/selinux/default/contexts/files/file_contexts /
"#;

const STORAGE: &str = "busybox-static,dbus-daemon,e2fsprogs,glusterfs-common,iproute2,kmod,mount,netbase,nfs-ganesha-gluster,nfs-ganesha-vfs,nfs-kernel-server,procps,rpcbind,targetcli-fb";

/// Servers and administration programs, and ceph-fuse, which mounts the file system on the
/// cluster's host.
const CEPH: &str = "busybox-static,ceph-common,ceph-fuse,ceph-mds,ceph-mgr,ceph-mon,ceph-osd,mount";

/// Returns the files of a Kubernetes node, with their paths there.
fn kubernetes_files() -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut files = minimal_files()?;
    files.retain(|_, place| !ENGINES.iter().any(|engine| place == Path::new(engine)));
    let built = programs::programs()?;
    let others = [PathBuf::from("/usr/bin/ctr")];
    let programs: Vec<_> = programs::NAMES
        .iter()
        .map(|name| built.join(name))
        .collect();
    files.extend(libraries(programs.iter().chain(&others))?);
    for program in programs.into_iter().chain(others) {
        let name = program.file_name().context("no name")?;
        let place = Path::new("/usr/bin").join(name);
        files.insert(program, place);
    }
    Ok(files)
}

/// Returns the files of a minimal host, with their paths there.
fn minimal_files() -> Result<BTreeMap<PathBuf, PathBuf>> {
    let runtimes = RUNTIMES.map(PathBuf::from);
    let util_linux = UTIL_LINUX.map(PathBuf::from);
    // The lab's own program replaces the runtimes, so its libraries are needed as well.
    let own = machine::binary()?;
    let programs: Vec<PathBuf> = PROGRAMS.iter().map(PathBuf::from).collect();
    let elsewhere = runtimes.iter().chain(&util_linux);
    let mut files = libraries(programs.iter().chain(elsewhere).chain([&own]))?;
    files.extend(programs.into_iter().map(|path| (path.clone(), path)));
    let mut put = |file: PathBuf, directory: &str| {
        let name = file.file_name().context("no name")?;
        let place = Path::new(directory).join(name);
        files.insert(file, place);
        anyhow::Ok(())
    };
    for runtime in runtimes {
        put(runtime, DIRECTORY)?;
    }
    for program in util_linux {
        put(program, UTIL_LINUX_DIRECTORY)?;
    }
    Ok(files)
}

/// Returns the libraries of programs, each with its own path.
fn libraries<'a>(
    programs: impl Iterator<Item = &'a PathBuf>,
) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let output = Command::new("ldd")
        .args(programs)
        .output()
        .context("cannot run ldd")?;
    let mut files = BTreeMap::new();
    // ldd exits with 1 for a static program. A missing program fails when it is copied.
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        ensure!(
            !line.contains("not found"),
            "a library is missing: {}",
            line.trim()
        );
        let paths = line
            .split_whitespace()
            .filter(|word| word.starts_with('/') && !word.ends_with(':'));
        files.extend(paths.map(|path| (PathBuf::from(path), PathBuf::from(path))));
    }
    Ok(files)
}

/// On a hybrid machine, cgroup2 has no controllers, and podman fails where it has to set a limit.
const CONTAINERS: &str =
    "[containers]\npids_limit = 0\ncgroups = \"no-conmon\"\n[engine]\nruntime = \"crun\"\n";

/// Makes a tree with busybox's applets and these files at their paths.
fn minimal(root: &Path, files: &BTreeMap<PathBuf, PathBuf>) -> Result<()> {
    for directory in [
        "dev",
        "etc/containers",
        "home",
        "media",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "srv",
        "sys",
        "tmp",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    for directory in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "usr/libexec",
        "var/lib",
        "var/log",
        "var/tmp",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    symlink("../run", root.join("var/run"))?;
    for name in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o1777))?;
    }
    for (file, place) in files {
        let path = root.join(place.strip_prefix("/")?);
        let parent = path.parent().context("no parent")?;
        fs::create_dir_all(parent)?;
        fs::copy(file, &path).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    let applets = Command::new("/usr/bin/busybox")
        .arg("--list")
        .output()
        .context("cannot run busybox")?;
    for applet in String::from_utf8(applets.stdout)?.lines() {
        // An existing file is the real program.
        let link = root.join("usr/bin").join(applet);
        if link.symlink_metadata().is_err() && !root.join("usr/sbin").join(applet).exists() {
            symlink("busybox", link)?;
        }
    }
    for (path, text) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        (
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files\n",
        ),
        (
            "etc/os-release",
            "ID=lab\nNAME=\"A minimal container host\"\n",
        ),
        ("etc/resolv.conf", ""),
    ] {
        fs::write(root.join(path), text)?;
    }
    // The kernel runs /sbin/modprobe to load modules.
    let modprobe = root.join("usr/sbin/modprobe");
    symlink("../bin/busybox", &modprobe).context("cannot link modprobe")
}

/// Adds configuration and runtimes of docker and podman.
fn engines(root: &Path) -> Result<()> {
    for runtime in RUNTIMES {
        symlink(
            Path::new(DIRECTORY).join("lab"),
            root.join(runtime.trim_start_matches('/')),
        )?;
    }
    for (path, text) in [
        ("etc/containers/containers.conf", CONTAINERS),
        (
            "etc/containers/policy.json",
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        ),
    ] {
        fs::write(root.join(path), text)?;
    }
    Ok(())
}

/// Makes a Debian tree without recommended packages. mmdebstrap runs in namespaces of its own, so
/// its mounts and processes end with the calling thread.
pub(crate) fn debian(root: &Path, arguments: &[&str]) -> Result<()> {
    let contained = [
        "--pdeathsig=KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ];
    let words = contained.iter().chain(&["mmdebstrap"]).chain(arguments);
    let mut words: Vec<&OsStr> = words.map(OsStr::new).collect();
    words.push(root.as_os_str());
    machine::run("setpriv", &words)
}
