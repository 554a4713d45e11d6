//! Running a program of a client root in its namespace.
//!
//! Whoever runs there sees another root than the one who asked. It is given a descriptor of the asker's root, by which
//! it reads the files that were named, and the asker's working directory.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, OFlags, open};

use crate::client::{namespace, root};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::caller::{self, CALLER_CWD, CALLER_ROOT, IN_USE};
use crate::host::runs_in::{RunsIn, current};
use crate::host::settings::FILE as SETTINGS;
use crate::{log, sys};

/// A command of a client root, and what has to live until it has been started.
pub struct Entering {
    /// The command, whose program runs in the client namespace.
    pub command: Command,
    _held: (root::InUse, OwnedFd),
}

/// `spc` of a client root, in its namespace, called as the first of these arguments with the others. The root is laid
/// and the namespace made if they are not there.
///
/// # Errors
/// They cannot be made.
pub fn command(host: &Host, id: &str, argv: &[OsString]) -> Result<Entering> {
    let in_use = root::extract_if_missing(host, id)?;
    let keeper = namespace::ensure(host, id)?;
    refresh(host, id)?;
    if current() == RunsIn::Container {
        hand_on_settings(host, id)?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = match caller::root() {
        Some(root) => rustix::io::dup(root),
        None => open("/", flags, Mode::empty()),
    };
    let own = own.map_err(|e| Error::system("cannot open our own root").because(e))?;
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
        .env(CALLER_ROOT, own.as_raw_fd().to_string())
        .env(CALLER_CWD, caller::cwd()?)
        .env(IN_USE, in_use.number().to_string());
    log::hand_on(&mut command);
    sys::inherit(&mut command, own.as_raw_fd());
    sys::inherit(&mut command, in_use.number());
    sys::enter(&mut command, keeper.pidfd);
    Ok(Entering {
        command,
        _held: (in_use, own),
    })
}

/// Becomes the `spc` of a client root, with our own arguments; returns only if that fails.
///
/// # Errors
/// As [`command`], or the program cannot be run.
pub fn same_again(host: &Host, id: &str) -> Result<Infallible> {
    let argv = caller::arguments();
    let mut entering = command(host, id, argv)?;
    let error = entering.command.exec();
    Err(Error::system(format!("cannot run spc of the client root {id}")).because(error))
}

/// The settings of this container hold for its mounts.
fn hand_on_settings(host: &Host, id: &str) -> Result<()> {
    let file = Path::new(SETTINGS);
    let copy = root::path(id).join(file.strip_prefix("/").unwrap_or(file));
    let now = std::fs::read(file).ok();
    let write = move || match now {
        Some(now) => replace(&copy, &now),
        None => match std::fs::remove_file(&copy) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    };
    host.run("copying the settings", write)?
        .map_err(|e| Error::system(format!("cannot copy {SETTINGS} to the client root")).because(e))
}

/// Replaces a file if it is another, in one step. Of many that do so at once, one does it.
fn replace(file: &Path, with: &[u8]) -> std::io::Result<()> {
    let is_there = || std::fs::read(file).is_ok_and(|then| then == with);
    if is_there() {
        return Ok(());
    }
    let directory = File::open(file.parent().ok_or(ErrorKind::NotFound)?)?;
    directory.lock()?;
    if is_there() {
        return Ok(());
    }
    let new = file.with_extension("new");
    std::fs::write(&new, with)?;
    std::fs::rename(&new, file)
}

/// Names of servers are resolved as the host does it now.
fn refresh(host: &Host, id: &str) -> Result<()> {
    let etc = root::path(id).join("etc");
    let copy = move || -> std::io::Result<()> {
        for name in ["hosts", "resolv.conf"] {
            let Ok(now) = std::fs::read(Path::new("/etc").join(name)) else {
                continue;
            };
            replace(&etc.join(name), &now)?;
        }
        Ok(())
    };
    host.run("copying the host's names", copy)?.map_err(|e| {
        Error::system("cannot copy the host's /etc/hosts and /etc/resolv.conf").because(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_replace_a_file_at_once() {
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
