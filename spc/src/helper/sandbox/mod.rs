//! Sandbox of a helper and its daemon, for mounts that pods ask for. The server is then chosen by
//! the pod, and may be hostile.
//!
//! - A mount namespace with a read-only root, without the host's files and without identities of
//!   the node (keys, keyrings, tickets) (`tree.rs`); a PID namespace; an IPC namespace.
//! - `no_new_privs`, and no capability that could change the system (`inside.rs`). The program is
//!   uid 0 all the same, and so reads its own files as usual.
//! - A seccomp filter. mount(2) is made by the launcher in place of the program, once, on the
//!   placeholder (`mount_call.rs`). Other calls of that kind fail.
//!
//! The processes are launcher → `spc sandbox` → `spc sandbox --status` (the first process of the
//! PID namespace, which stays as long as the daemon) → helper → daemon.

mod description;
pub mod inside;
mod mount_call;
mod tree;

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::error::{Error, Result};
use crate::helper::sandbox::description::{Description, HOME};
use crate::helper::sandbox::mount_call::{MountCalls, Served};
use crate::sys;

/// Sandbox of one helper.
#[derive(Debug)]
pub struct Sandbox {
    description: Description,
    /// Types that the helper may mount.
    types: Vec<String>,
    /// End of the socket for the launcher.
    own: OwnedFd,
    /// End of the socket for the sandbox.
    other: OwnedFd,
}

impl Sandbox {
    /// Prepares a sandbox, in which the helper may mount one of these types on the placeholder.
    /// Creates the log file. `drops_capabilities` is that of the helper.
    ///
    /// # Errors
    /// The log file or a socket cannot be created.
    pub fn new(
        placeholder: &Path,
        files: PathBuf,
        log: Option<&Path>,
        types: &[String],
        drops_capabilities: bool,
    ) -> Result<Self> {
        let fail = |e: std::io::Error| Error::system("cannot prepare the sandbox").because(e);
        if let Some(log) = log {
            let opened = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(log);
            opened.map_err(|e| {
                Error::system(format!("cannot create the log {}", log.display())).because(e)
            })?;
        }
        let (own, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| fail(e.into()))?;
        Ok(Self {
            description: Description {
                placeholder: placeholder.to_owned(),
                files,
                log: log.map(Path::to_owned),
                drops_capabilities,
                socket: other.as_raw_fd(),
            },
            types: types.to_vec(),
            own,
            other,
        })
    }

    /// Returns a command that runs a program in the sandbox, with an empty environment. Add the
    /// arguments of the program to it.
    ///
    /// # Errors
    /// The description cannot be written as JSON.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let json = serde_json::to_string(&self.description)
            .map_err(|e| Error::system("cannot describe the sandbox").because(e))?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("spc")
            .args(["sandbox", &json, "--"])
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", HOME)
            .current_dir("/");
        sys::inherit_fd(&mut command, self.other.as_raw_fd());
        Ok(command)
    }

    /// Starts to serve the mount call of the program. Call it when the command has been started.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn serve(self) -> Result<Served> {
        drop(self.other);
        let calls = MountCalls {
            placeholder: self.description.placeholder,
            types: self.types,
        };
        calls.serve(self.own).map_err(|e| {
            let e = match e.kind() {
                ErrorKind::WouldBlock => ErrorKind::OutOfMemory.into(),
                _ => e,
            };
            Error::system("cannot start a thread").because(e)
        })
    }
}
