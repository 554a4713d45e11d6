//! `lab prepare`: fills the cache with what most tests need, so that no test waits for it.

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{ScopedJoinHandle, scope};

use crate::disks;
use crate::engine::Engine;
use crate::fuzz::Fuzz;
use crate::host::HostOptions;
use crate::image::{Base, image};
use crate::outer::Lab;
use crate::packages;
use crate::render;
use crate::roots::{self, Root};
use crate::vm::VmOptions;

/// Roots of servers, the slowest to make first.
const ROOTS: [Root; 6] = [
    Root::Ceph,
    Root::Storage,
    Root::Server,
    Root::Shares,
    Root::Systemd,
    Root::Readers,
];

/// Roots of virtual machines with a saved state.
const MACHINES: [Root; 3] = [Root::Vm, Root::Systemd, Root::Storage];

/// Makes images and fuzz targets in one thread, because cargo builds one at a time, and everything
/// else beside it.
pub fn prepare() -> Result<()> {
    if !packages::require() {
        return Ok(());
    }
    let lab = Lab::start()?;
    scope(|scope| {
        let others = scope.spawn(|| {
            render::programs()?;
            trees()?;
            machines(&lab)
        });
        images(&lab)?;
        join(others)
    })
}

fn join(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn images(lab: &Lab) -> Result<()> {
    let archive = image(Base::Trixie)?;
    for engine in [Engine::Docker, Engine::Podman] {
        let host = lab.host(HostOptions::default())?;
        host.start(engine, Some(&archive))?;
    }
    disks::image_disk(Base::Trixie)?;
    image(Base::Bookworm)?;
    // Minutes of a compiler beside other tests would let those run into their limits.
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("no target directory")?;
    Fuzz::build(target).map(drop)
}

/// Makes two trees at a time, since each is mostly the work of one process.
fn trees() -> Result<()> {
    let next = AtomicUsize::new(0);
    let make = || {
        while let Some(root) = ROOTS.get(next.fetch_add(1, Ordering::Relaxed)) {
            roots::path(*root)?;
        }
        Ok(())
    };
    scope(|scope| {
        let other = scope.spawn(make);
        make()?;
        join(other)
    })
}

fn machines(lab: &Lab) -> Result<()> {
    for root in MACHINES {
        let options = VmOptions {
            root,
            ..VmOptions::default()
        };
        lab.vm(options)?;
    }
    Ok(())
}
