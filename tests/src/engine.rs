//! Container engines on a host: docker, whose daemon is started on request, and podman, which has
//! none.

use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cache::{Key, cached};
use crate::host::{Host, HostOptions};
use crate::{machine, times};

/// A container engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// dockerd with its own containerd and runc.
    Docker,
    /// podman with crun.
    Podman,
}

impl Engine {
    /// Returns the engine's command.
    pub fn command(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// Returns the engine's image store on a host.
    fn store(self) -> &'static str {
        match self {
            Self::Docker => "var/lib/docker",
            Self::Podman => "var/lib/containers",
        }
    }
}

/// No bridge and no firewall rules: the containers of these tests are on the host's network.
const DOCKERD: &str = r#"
dockerd --bridge=none --iptables=false --ip6tables=false >/var/log/dockerd.log 2>&1 &
until docker version >/dev/null 2>&1; do
    kill -0 $! 2>/dev/null || { tail -n 20 /var/log/dockerd.log >&2; exit 1; }
    sleep 0.05
done
"#;

impl Host<'_> {
    /// Starts an engine. Its store has the image of `archive`, if one is given.
    ///
    /// An archive loads at 80 MB per second, so the lab loads it once and copies the store to each
    /// host, at 1 GB per second. docker's log is `/var/log/dockerd.log`.
    pub fn start(&self, engine: Engine, archive: Option<&Path>) -> Result<()> {
        if let Some(archive) = archive {
            copy(&self.store(engine, archive)?, &self.outside(engine))?;
        }
        if engine == Engine::Docker {
            let started = Instant::now();
            self.sh(DOCKERD)?.ok().context("dockerd does not start")?;
            times::note("dockerd", started.elapsed(), Duration::ZERO);
        }
        Ok(())
    }

    /// Loads an archive on the machine as users do.
    pub fn load_image(&self, engine: Engine, archive: &Path) -> Result<()> {
        let file =
            File::open(archive).with_context(|| format!("cannot open {}", archive.display()))?;
        let load = self.command(&[engine.command(), "load"])?.stdin(file);
        load.limit(Duration::from_secs(300)).run()?.ok()?;
        Ok(())
    }

    /// Returns a store of the engine with this image, from the cache.
    fn store(&self, engine: Engine, archive: &Path) -> Result<PathBuf> {
        let data =
            fs::metadata(archive).with_context(|| format!("cannot find {}", archive.display()))?;
        let mut key = Key::new(include_str!("engine.rs"));
        key.add(archive.as_os_str().as_bytes());
        key.add(format!("{} {}.{}", data.size(), data.mtime(), data.mtime_nsec()).as_bytes());
        cached(engine.command(), key, |path| {
            let host = self.lab().host(HostOptions::default())?;
            host.start(engine, None)?;
            host.load_image(engine, archive)?;
            if engine == Engine::Docker {
                host.sh("pid=$(pidof dockerd); kill $pid; while kill -0 $pid; do sleep 0.1; done")?;
            }
            copy(&host.outside(engine), path)
        })
    }

    /// Returns the path of the engine's store on this host, as the machine sees it.
    fn outside(&self, engine: Engine) -> PathBuf {
        Path::new("/proc")
            .join(self.pid().to_string())
            .join("root")
            .join(engine.store())
    }
}

/// Copies a tree with owners, modes, links, devices and extended attributes. The target may exist.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let arguments = [OsStr::new("-aT"), from.as_os_str(), to.as_os_str()];
    machine::run("/usr/bin/cp", &arguments)
}
