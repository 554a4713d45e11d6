//! Sockets of the drivers. They are bound in the host's mount namespace, so the container needs no
//! directory of the host.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::umask;

use crate::error::{Error, Result};
use crate::frontends::csi::driver::Driver;
use crate::host::{Host, Settings};

/// Sockets of all drivers. Dropping them removes their files.
pub struct Sockets {
    host: Host,
    bound: Vec<Bound>,
}

/// Bound socket.
struct Bound {
    path: PathBuf,
    /// Device and inode number, which tell the socket from that of a later process.
    id: (u64, u64),
}

/// Listening sockets of one driver.
pub struct Listeners {
    /// Driver that is called.
    pub driver: Driver,
    /// Path of the driver's socket on the host.
    pub endpoint: String,
    /// Socket for the identity and node services.
    pub service: UnixListener,
    /// Socket for the registration service.
    pub registration: UnixListener,
}

impl Sockets {
    /// Binds the sockets of every driver below kubelet's directory.
    ///
    /// # Errors
    /// The host cannot be reached, or a path is taken by something other than a socket.
    pub fn bind(kubelet: &Path) -> Result<(Self, Vec<Listeners>)> {
        let mut sockets = Self {
            host: Host::open(Settings::read()?)?,
            bound: Vec::new(),
        };
        let mut all = Vec::new();
        for driver in Driver::ALL {
            let name = driver.name();
            let endpoint = kubelet.join(format!("plugins/{name}/csi.sock"));
            // kubelet calls the driver as soon as it sees the registration socket.
            let service = sockets.add(&endpoint)?;
            let registration = kubelet.join(format!("plugins_registry/{name}-reg.sock"));
            all.push(Listeners {
                driver,
                endpoint: endpoint.to_string_lossy().into_owned(),
                service,
                registration: sockets.add(&registration)?,
            });
        }
        Ok((sockets, all))
    }

    /// Binds a socket on the host. Creates its directory if it is missing.
    fn add(&mut self, path: &Path) -> Result<UnixListener> {
        let target = path.to_owned();
        let bind = move || {
            if let Some(directory) = target.parent() {
                let mut builder = fs::DirBuilder::new();
                builder.recursive(true).mode(0o750).create(directory)?;
            }
            let listener = listen(&target)?;
            let file = fs::symlink_metadata(&target)?;
            Ok((listener, (file.dev(), file.ino())))
        };
        let bound = self.host.run("binding a socket", bind)?;
        let (listener, id) = bound.map_err(|e: std::io::Error| {
            Error::system(format!("cannot listen on {} on the host", path.display())).because(e)
        })?;
        self.bound.push(Bound {
            path: path.to_owned(),
            id,
        });
        Ok(listener)
    }
}

/// Binds a non-blocking socket that only root can connect to. Replaces a socket that an earlier
/// process left, but no other file.
///
/// # Errors
/// The path is taken by something other than a socket, or its directory is missing.
pub fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Threads that share the mask create files for root alone meanwhile, which does no harm.
    let before = umask(Mode::from_raw_mode(0o077));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // kubelet deregisters a driver when its registration socket disappears: that one goes
        // first.
        for Bound { path, id } in self.bound.drain(..).rev() {
            let remove = move || {
                let file = fs::symlink_metadata(&path)?;
                if (file.dev(), file.ino()) == id {
                    fs::remove_file(&path)
                } else {
                    Ok(())
                }
            };
            match self.host.run("removing a socket", remove) {
                Ok(Err(error)) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!("cannot remove a socket of CSI: {error}");
                }
                _ => {}
            }
        }
    }
}
