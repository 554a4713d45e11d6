//! Runs the `spc` of a client root file system in its client namespace.
//!
//! The process has another root directory than its caller. spc passes it a file descriptor of the
//! caller's root, through which it reads files that options name, and the caller's working
//! directory.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags, open};

use crate::client::{namespace, root};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::caller::{self, CALLER_CWD, CALLER_ROOT, CLIENT_ROOT_LOCK};
use crate::host::runs_in::{RunsIn, current};
use crate::host::settings::FILE as SETTINGS;
use crate::{log, sys};

/// Command that runs in a client namespace, with the file descriptors that it inherits.
///
/// Keep the value until the command has been started.
pub struct ClientCommand {
    /// Command to start.
    pub command: Command,
    _inherited: (root::RootLock, OwnedFd),
}

/// Returns a command that runs the `spc` of client root `id` in its namespace. `argv[0]` is the
/// name under which it is called.
///
/// Extracts the client root file system and creates the namespace if they are missing. Updates
/// `/etc/hosts` and `/etc/resolv.conf` in the client root, and from a container also the settings.
///
/// # Errors
/// The client root file system or its namespace cannot be created, or a file cannot be copied.
pub fn command(host: &Host, id: &str, argv: &[OsString]) -> Result<ClientCommand> {
    let root_lock = root::extract_if_missing(host, id)?;
    let holder = namespace::ensure(host, id)?;
    update_resolver_files(host, id)?;
    if current() == RunsIn::Container {
        copy_settings(host, id)?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own_root = match caller::root() {
        Some(root) => rustix::io::dup(root),
        None => open("/", flags, Mode::empty()),
    };
    let own_root = own_root
        .map_err(|e| Error::system("cannot open the root directory of this process").because(e))?;
    let mut command = Command::new("/usr/bin/spc");
    if let Some((name, rest)) = argv.split_first() {
        command.arg0(name).args(rest);
    }
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"LD_") {
            command.env_remove(name);
        }
    }
    command
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env(CALLER_ROOT, own_root.as_raw_fd().to_string())
        .env(CALLER_CWD, caller::cwd()?)
        .env(CLIENT_ROOT_LOCK, root_lock.as_raw_fd().to_string());
    log::pass_request(&mut command);
    sys::inherit_fd(&mut command, own_root.as_raw_fd());
    sys::inherit_fd(&mut command, root_lock.as_raw_fd());
    sys::enter_namespaces(&mut command, holder.pidfd);
    Ok(ClientCommand {
        command,
        _inherited: (root_lock, own_root),
    })
}

/// Replaces this process by the `spc` of client root `id`, with the same arguments. Returns only on
/// error.
///
/// # Errors
/// See [`command`]; or the program cannot be run.
pub fn exec_in_client_root(host: &Host, id: &str) -> Result<Infallible> {
    let argv = caller::arguments();
    let mut client = command(host, id, argv)?;
    let error = client.command.exec();
    Err(Error::system(format!(
        "cannot run spc of the client root file system {id}"
    ))
    .because(error))
}

/// Copies this container's settings to the client root: they apply to the container's mounts.
fn copy_settings(host: &Host, id: &str) -> Result<()> {
    let file = Path::new(SETTINGS);
    let copy = root::path(id).join(file.strip_prefix("/").unwrap_or(file));
    let settings = std::fs::read(file).ok();
    let write = move || match settings {
        Some(settings) => replace(&copy, &settings),
        None => match std::fs::remove_file(&copy) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    };
    host.run("copying the settings", write)?.map_err(|e| {
        Error::system(format!(
            "cannot copy {SETTINGS} to the client root file system"
        ))
        .because(e)
    })
}

/// Replaces a file atomically, unless it has these contents already.
///
/// Each writer has a file of its own until then. A lock on the directory would let any user who may
/// read it make every command wait (flock(2)).
fn replace(file: &Path, contents: &[u8]) -> std::io::Result<()> {
    static WRITERS: AtomicU32 = AtomicU32::new(0);
    if std::fs::read(file).is_ok_and(|current| current == contents) {
        return Ok(());
    }
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    let new = file.with_extension(format!("{}-{writer}.new", std::process::id()));
    let replaced = std::fs::write(&new, contents).and_then(|()| std::fs::rename(&new, file));
    if replaced.is_err() {
        // The first error counts.
        let _ = std::fs::remove_file(&new);
    }
    replaced
}

/// Copies the host's current `/etc/hosts` and `/etc/resolv.conf` to the client root, so that
/// programs there resolve names of servers as the host does.
fn update_resolver_files(host: &Host, id: &str) -> Result<()> {
    let etc = root::path(id).join("etc");
    let copy = move || -> std::io::Result<()> {
        for name in ["hosts", "resolv.conf"] {
            let Ok(contents) = std::fs::read(Path::new("/etc").join(name)) else {
                continue;
            };
            replace(&etc.join(name), &contents)?;
        }
        Ok(())
    };
    host.run("copying /etc/hosts and /etc/resolv.conf", copy)?.map_err(|e| {
        Error::system("cannot copy /etc/hosts and /etc/resolv.conf of the host to the client root file system").because(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_replacements_leave_one_complete_file() {
        let directory = std::env::temp_dir().join(format!("spc-enter-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let file = directory.join("hosts");
        for round in 0..50 {
            let text = round.to_string().repeat(10_000);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| replace(&file, text.as_bytes()).unwrap());
                }
            });
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
