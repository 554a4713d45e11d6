//! Search for the users of a mount, in procfs and sysfs.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};

use crate::error::show;
use crate::host::mountinfo::{self, Entry};
use crate::process::procfs::{self, look_at_each};
use crate::unmount::holders::finding::{Finding, Use};

/// System calls whose first argument is a path.
#[cfg(target_arch = "x86_64")]
const BY_PATH: &[i64] = &[
    libc::SYS_access,
    libc::SYS_chdir,
    libc::SYS_execve,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_statfs,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const BY_PATH: &[i64] = &[libc::SYS_chdir, libc::SYS_execve, libc::SYS_statfs];
/// System calls whose second argument is a path, after the descriptor of a directory.
const BY_DIRECTORY: &[i64] = &[
    libc::SYS_execveat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_unlinkat,
];

/// Largest part of the maps of a process that is read, in bytes.
const MAX_MAPS: u64 = 8 * 1024 * 1024;

/// Search for the users of `mount`. Runs in the host's mount namespace.
pub(super) struct Search {
    pub(super) mount: Entry,
    pub(super) sender: Sender<Finding>,
    /// Time limit for the files of all processes, and again for their memory.
    pub(super) limit: Duration,
}

impl Search {
    /// Sends all findings, the cheap ones first. Gives each process a limited time.
    pub(super) fn run(self: &Arc<Self>) {
        let own = fs::read_link("/proc/self").ok();
        let own = own.and_then(|own| own.to_str()?.parse().ok());
        let all = numbers("/proc".as_ref()).filter(|pid| Some(*pid) != own);
        let processes: Vec<i32> = all.collect();
        let ids = Arc::new(self.ids(&processes));
        let (search, found) = (Arc::clone(self), Arc::clone(&ids));
        let files = move |pid| {
            search.links(pid, &found);
            search.open(pid, &found);
        };
        let files = look_at_each(&processes, self.limit, files, |_, ()| {});
        self.loops();
        let search = Arc::clone(self);
        let memory = move |pid| {
            search.waits(pid);
            search.mapped(pid, &ids);
        };
        let memory = look_at_each(&processes, self.limit, memory, |_, ()| {});
        if matches!((files, memory), (Ok(true), Ok(true))) {
            self.send(Finding::End);
        }
    }

    fn send(&self, finding: Finding) {
        // The receiver is gone after its time limit.
        let _ = self.sender.send(finding);
    }

    fn send_process(&self, pid: i32, used_as: Use, path: PathBuf) {
        self.send(Finding::Process {
            pid,
            name: name(pid),
            used_as,
            path: show(&path),
        });
    }

    /// Returns the ids of the mount and of its copies in all mount namespaces. Sends the mounts
    /// below them.
    fn ids(&self, processes: &[i32]) -> HashSet<u64> {
        let mut ids = HashSet::from([self.mount.id]);
        let own = mountinfo::read().unwrap_or_default();
        let on = own.iter().find(|entry| entry.id == self.mount.parent);
        let below = |entry: &Entry| Finding::Below(show(&entry.target), entry.fs_type.clone());
        let is_below = |entry: &&Entry| entry.parent == self.mount.id;
        let mut all_below: Vec<Finding> = own.iter().filter(is_below).map(below).collect();
        // The copies repeat the mounts below, so they count only if the host itself has none.
        let has_own = !all_below.is_empty();
        let mut seen = HashSet::new();
        let mut first = Vec::new();
        let namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let looked = look_at_each(processes, self.limit, namespace, |pid, namespace| {
            if namespace.is_some_and(|namespace| seen.insert(namespace)) {
                first.push(pid);
            }
        });
        if looked.is_err() {
            tracing::debug!("cannot look at other mount namespaces");
        }
        for pid in first {
            // Any user can have many namespaces with many mounts: one table at a time is kept.
            let table = mountinfo::read_file(format!("/proc/{pid}/mountinfo"));
            let table = table.unwrap_or_default();
            let by_id: HashMap<u64, &Entry> = table.iter().map(|entry| (entry.id, entry)).collect();
            let copies = table.iter().filter(|copy| {
                let under = by_id.get(&copy.parent);
                on.zip(under)
                    .is_some_and(|(on, under)| is_copy(copy, under, &self.mount, on))
            });
            let copies: HashSet<u64> = copies.map(|copy| copy.id).collect();
            if !has_own {
                let on_copy = |entry: &&Entry| copies.contains(&entry.parent);
                all_below.extend(table.iter().filter(on_copy).map(below));
            }
            ids.extend(copies);
        }
        for finding in all_below {
            self.send(finding);
        }
        ids
    }

    /// Sends the working directory and root of each thread, and the program.
    fn links(&self, pid: i32, ids: &HashSet<u64>) {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let threads = numbers(&process.join("task")).map(|thread| {
            let thread = process.join(format!("task/{thread}"));
            [
                (Use::WorksIn, thread.join("cwd")),
                (Use::HasAsRoot, thread.join("root")),
            ]
        });
        let program = (Use::Runs, process.join("exe"));
        for (used_as, link) in threads.flatten().chain([program]) {
            if mount_of(&link).is_some_and(|id| ids.contains(&id)) {
                self.send_process(pid, used_as, fs::read_link(link).unwrap_or_default());
            }
        }
    }

    /// Sends the open files.
    fn open(&self, pid: i32, ids: &HashSet<u64>) {
        let process = PathBuf::from(format!("/proc/{pid}"));
        for number in numbers(&process.join("fdinfo")) {
            let on = on_mount(&process.join(format!("fdinfo/{number}")));
            if on.is_some_and(|id| ids.contains(&id)) {
                let path = fs::read_link(process.join(format!("fd/{number}")));
                self.send_process(pid, Use::HasOpen, path.unwrap_or_default());
            }
        }
    }

    /// Sends the threads that are blocked in a lookup: they have nothing open yet, but the
    /// arguments of their system call name the path.
    fn waits(&self, pid: i32) {
        for thread in numbers(format!("/proc/{pid}/task").as_ref()) {
            let call = procfs::read_text(format!("/proc/{pid}/task/{thread}/syscall"));
            let path = path_at(&call.unwrap_or_default()).and_then(|at| text(pid, at));
            if let Some(path) = path.filter(|path| path.starts_with(&self.mount.target)) {
                self.send_process(pid, Use::WaitsFor, path);
            }
        }
    }

    /// Sends the mapped files, whether open or not.
    fn mapped(&self, pid: i32, ids: &HashSet<u64>) {
        let mut maps = Vec::new();
        if let Ok(file) = fs::File::open(format!("/proc/{pid}/maps")) {
            // The part that was read before an error counts as well.
            let _ = file.take(MAX_MAPS).read_to_end(&mut maps);
        }
        let maps = String::from_utf8_lossy(&maps);
        let mut seen = HashSet::new();
        for (range, path) in maps
            .lines()
            .filter_map(|line| map(line, &self.mount.device))
        {
            let file = PathBuf::from(format!("/proc/{pid}/map_files/{range}"));
            if seen.insert(path) && mount_of(&file).is_some_and(|id| ids.contains(&id)) {
                self.send_process(pid, Use::HasMapped, PathBuf::from(path));
            }
        }
    }

    /// Sends the loop devices whose backing file is on the mount.
    fn loops(&self) {
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let file = fs::read_to_string(entry.path().join("loop/backing_file"));
            let file = PathBuf::from(file.unwrap_or_default().trim_end());
            if file.starts_with(&self.mount.target) {
                let device = entry.file_name().to_string_lossy().into_owned();
                self.send(Finding::Loop(device, show(&file)));
            }
        }
    }
}

/// Returns whether `copy` is the propagated copy of `mount`, so that both are unmounted together.
/// `under` and `on` are their parent mounts.
fn is_copy(copy: &Entry, under: &Entry, mount: &Entry, on: &Entry) -> bool {
    let location = |mount: &Entry, on: &Entry| {
        let below = mount.target.strip_prefix(&on.target).ok()?;
        Some(on.root.join(below))
    };
    on.peers.is_some()
        && (under.peers == on.peers || under.master == on.peers)
        && copy.device == mount.device
        && copy.root == mount.root
        && location(copy, under) == location(mount, on)
}

/// Returns the numeric names in a directory of procfs.
fn numbers(directory: &Path) -> impl Iterator<Item = i32> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Returns the id of the mount that a link of procfs leads to. `O_PATH` follows the link without
/// contacting the file system.
fn mount_of(link: &Path) -> Option<u64> {
    let fd = open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    on_mount(format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd()).as_ref())
}

/// Returns the mount id of an open file (proc_pid_fdinfo(5)).
fn on_mount(fdinfo: &Path) -> Option<u64> {
    let text = procfs::read_text(fdinfo).ok()?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    id.trim().parse().ok()
}

/// Returns the address of the path among the arguments of a system call. `call` is the content of
/// `/proc/PID/syscall`: the number, then the arguments in hexadecimal.
fn path_at(call: &str) -> Option<u64> {
    let mut words = call.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    let word = match number {
        _ if BY_PATH.contains(&number) => words.next()?,
        _ if BY_DIRECTORY.contains(&number) => words.nth(1)?,
        _ => return None,
    };
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

/// Reads the absolute path at an address of a process.
fn text(pid: i32, at: u64) -> Option<PathBuf> {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut bytes = vec![0; 4096];
    let length = memory.read_at(&mut bytes, at).ok()?;
    let end = bytes[..length].iter().position(|byte| *byte == 0)?;
    bytes.truncate(end);
    let path = PathBuf::from(OsString::from_vec(bytes));
    path.is_absolute().then_some(path)
}

/// Returns the address range and file of a line of `/proc/PID/maps`, if the file is on this device.
fn map<'a>(line: &'a str, device: &str) -> Option<(&'a str, &'a str)> {
    let mut fields = line.splitn(6, ' ');
    let range = fields.next()?;
    let on = fields.nth(2)?;
    let path = fields.nth(1)?.trim_start();
    let (major, minor) = on.split_once(':')?;
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    let same = format!("{}:{}", number(major)?, number(minor)?) == device;
    (same && path.starts_with('/')).then_some((range, path))
}

/// Returns the name of a process, with its container if any.
fn name(pid: i32) -> String {
    let read = |file: &str| procfs::read_text(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let command = show(Path::new(read("comm").trim_end()));
    match container(&read("cgroup")) {
        Some(id) => format!("{command}, in container {id}"),
        None => command,
    }
}

/// Returns the short container id from a cgroup path. Container engines name the cgroup after the
/// id of 64 hexadecimal digits.
fn container(cgroup: &str) -> Option<&str> {
    let words = cgroup.split(|c: char| !c.is_ascii_alphanumeric());
    let mut ids =
        words.filter(|word| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()));
    ids.next().map(|id| &id[..12])
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn entry(line: &str) -> Entry {
        Entry::parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn copies_follow_the_propagation_of_the_parent() {
        let on = entry("2 1 0:1 / / rw shared:1 - tmpfs root rw");
        let mount = entry("5 2 0:2 / /mnt/a rw shared:7 - fuse.glusterfs n:/v rw");
        let host = entry("10 1 0:1 / /host rw master:1 - tmpfs root rw");
        let copy = entry("11 10 0:2 / /host/mnt/a rw master:7 - fuse.glusterfs n:/v rw");
        assert!(is_copy(&copy, &host, &mount, &on));
        let bind = entry("12 10 0:2 / /host/mnt/b rw master:7 - fuse.glusterfs n:/v rw");
        assert!(!is_copy(&bind, &host, &mount, &on));
        let private = entry("2 1 0:1 / / rw - tmpfs root rw");
        assert!(!is_copy(&copy, &host, &mount, &private));
    }

    #[test]
    fn mapped_files_are_recognised_by_their_device() {
        let line = "7f00-7f01 r-xp 00001000 00:2a 77                         /mnt/a b/lib.so";
        assert_eq!(map(line, "0:42"), Some(("7f00-7f01", "/mnt/a b/lib.so")));
        assert_eq!(map(line, "0:43"), None);
        assert_eq!(map("7f00-7f01 rw-p 00000000 00:00 0 ", "0:0"), None);
        assert_eq!(
            map("7f00-7f01 rw-p 00000000 00:00 0      [heap]", "0:0"),
            None
        );
    }

    #[test]
    fn container_ids_are_read_from_cgroup_paths() {
        let id = "0123456789ab".to_owned() + &"c".repeat(52);
        for path in [
            format!("12:pids:/docker/{id}\n0::/\n"),
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("0::/kubepods/burstable/pod7/crio-{id}.scope/x\n"),
        ] {
            assert_eq!(container(&path), Some("0123456789ab"), "{path}");
        }
        assert_eq!(container("0::/user.slice/session-1.scope\n"), None);
    }

    #[test]
    fn this_process_is_found_by_its_directory() {
        let here = std::env::current_dir().unwrap();
        let id = mount_of(&here).unwrap();
        let (sender, findings) = channel();
        let mut mount = entry("1 0 0:1 / / rw - tmpfs none rw");
        mount.id = id;
        let search = Search {
            mount,
            sender,
            limit: Duration::from_secs(1),
        };
        let own = i32::try_from(std::process::id()).unwrap();
        search.links(own, &HashSet::from([id]));
        let found = findings.try_iter().any(|finding| {
            matches!(finding, Finding::Process { pid, used_as: Use::WorksIn, path, .. } if pid == own && path == show(&here))
        });
        assert!(found);
    }

    #[test]
    fn paths_are_read_from_system_call_arguments() {
        let path = c"/mnt/data/file";
        let at = path.as_ptr() as u64;
        let own = i32::try_from(std::process::id()).unwrap();
        let openat = format!("{} 0xffffff9c {at:#x} 0x0 0x0", libc::SYS_openat);
        let chdir = format!("{} {at:#x} 0x0", libc::SYS_chdir);
        for call in [openat, chdir] {
            let found = path_at(&call).and_then(|at| text(own, at));
            assert_eq!(found, Some("/mnt/data/file".into()), "{call}");
        }
        let read = format!("{} 0x0 {at:#x} 0x1000", libc::SYS_read);
        assert_eq!(path_at(&read), None);
        assert_eq!(path_at("running"), None);
        assert_eq!(text(own, 0), None);
    }
}
