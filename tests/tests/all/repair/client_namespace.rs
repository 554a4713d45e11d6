//! The mount namespace of the client programs: the mounts that it starts with.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::{Host, Libc, program};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::support::{Spc, with_gluster};

/// Number of foreign mounts on the host. None may be in the client namespace.
const OTHERS: usize = 3_000;

/// `STATX_MNT_ID_UNIQUE`: unique mount ids, which grow with each mount on the machine (Linux 6.8).
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

fn unique(path: &str) -> Result<u64> {
    let seen = statx(CWD, path, AtFlags::empty(), UNIQUE)?;
    ensure!(seen.stx_mask & UNIQUE.bits() != 0, "the kernel is too old");
    Ok(seen.stx_mnt_id)
}

/// PID of the namespace holder, as the machine numbers it.
fn namespace_holder(host: &Host<'_>) -> Result<i32> {
    let mut processes = host.processes().into_iter();
    let is_holder = |pid: &i32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').nth(1) == Some("keeper")
    };
    processes.find(is_holder).context("no namespace holder")
}

#[test]
fn a_client_namespace_does_not_begin_with_the_hosts_mounts() {
    with_gluster(|lab, cluster| {
        let spc = Spc::minimal(lab)?;
        let host = &spc.host;
        host.copy_in(program("many", Libc::Gnu, &["-static"])?, "/opt/many")?;
        host.run(&["/opt/many", &OTHERS.to_string(), "/mnt/many"])?
            .ok()?;
        host.sh("mkdir /mnt/data")?.ok()?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        let mut least = u64::MAX;
        // Other tests may mount on the machine at the same time, but not in each attempt.
        for _ in 0..3 {
            spc.mount(&["-t", "glusterfs", &source, "/mnt/data"])?;
            let holder = namespace_holder(host)?;
            // The root was cloned before the namespace existed, and /proc was mounted when the
            // namespace was empty.
            let root = unique(&format!("/proc/{holder}/root"))?;
            let proc = unique(&format!("/proc/{holder}/root/proc"))?;
            least = least.min(
                proc.checked_sub(root)
                    .context("the kernel does not fill the table as expected")?,
            );
            spc.umount("/mnt/data")?;
            // The next mount creates a new namespace.
            host.sh(r#"kill -9 $(sed -n 's/.*"pid":\([0-9]*\).*/\1/p' /run/spc/clients/*)"#)?
                .ok()?;
        }
        eprintln!("{least} mounts were made for a client namespace, the host has {OTHERS}");
        ensure!(least < OTHERS as u64 / 2, "{least} mounts were made");
        spc.is_clean()
    });
}
