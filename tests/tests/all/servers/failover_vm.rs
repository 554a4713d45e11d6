//! Several servers of NFS and several portals of iSCSI, some of which fail, and a kernel that
//! mounts from them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Conduct, Faulty, FaultyServer, Output};

use crate::kinds::nfs::with_client;
use crate::support::VmSpc;
use crate::support::images::ext4;

/// Longest time, on a slow machine, until a server that died or hangs after its reply is abandoned
/// for another. spc kills a helper after twenty seconds in any case.
const LOST: Duration = Duration::from_secs(10);

fn servers<'a>(
    faulty: &'a Faulty<'_>,
    port: u16,
    conducts: &[Conduct],
) -> Result<Vec<FaultyServer<'a>>> {
    let servers = conducts.iter();
    servers
        .map(|conduct| faulty.server(port, *conduct))
        .collect()
}

/// Addresses of these servers, followed by the real one.
fn addresses(servers: &[FaultyServer<'_>], real: Option<Ipv4Addr>) -> Vec<String> {
    let all = servers.iter().map(FaultyServer::address).chain(real);
    all.map(|address| address.to_string()).collect()
}

/// Runs `spc mount` on `/mnt/failover`. Returns its output and duration.
fn mount(spc: &VmSpc<'_>, words: &[&str]) -> Result<(Output, Duration)> {
    let begun = Instant::now();
    let all = [&["spc", "mount"], words, &["/mnt/failover"]].concat();
    let mounted = spc.exec(&all)?;
    Ok((mounted, begun.elapsed()))
}

/// Checks that a mount with dead servers takes little longer than one without.
fn is_soon(what: &[Conduct], took: Duration, healthy: Duration) -> Result<()> {
    eprintln!("{what:?}: {took:.2?}, {healthy:.2?} with healthy servers only");
    let lost = what
        .iter()
        .any(|conduct| matches!(conduct, Conduct::Dies(..) | Conduct::Hangs(..)));
    let limit = 3 * healthy + Duration::from_secs(8) + if lost { LOST } else { Duration::ZERO };
    ensure!(took < limit, "{what:?}: {took:?} instead of {healthy:?}");
    Ok(())
}

/// Checks that the error has one line per server.
fn has_lines(output: &Output, servers: &[String], expected: &[&str]) -> Result<()> {
    let text = output.error_text();
    for (server, expected) in servers.iter().zip(expected) {
        let start = format!("{server}:");
        let mut lines = text.lines().map(str::trim);
        let line = lines.find(|line| line.starts_with(&start));
        let line = line.with_context(|| format!("no line for {server}: {output}"))?;
        ensure!(
            line.contains(expected) && !line.contains("shim: "),
            "{server}, {expected}: {output}"
        );
    }
    Ok(())
}

#[test]
fn dead_nfs_servers_hardly_delay_a_mount() {
    with_client(|spc| {
        let knfsd = lab::knfsd().context("no lab")?.vm();
        let real = SocketAddrV4::new(knfsd.address(), 2049);
        let faulty = knfsd.lab().faulty()?;
        spc.host.sh("mkdir -p /mnt/failover")?.ok()?;
        let try_all = |conducts: &[Conduct]| {
            let dead = servers(&faulty, real.port(), conducts)?;
            let source = format!("{}:/data", addresses(&dead, Some(*real.ip())).join(","));
            let words = ["-t", "nfs", "-o", "x-spc.order=given", &source];
            let (mounted, took) = mount(spc, &words)?;
            let mounted = mounted.ok()?;
            let on = spc.on("/mnt/failover")?;
            ensure!(
                on.len() == 1 && on[0].source == *format!("{}:/data", real.ip()),
                "{on:?}, {mounted}"
            );
            ensure!(spc.host.read("/mnt/failover/file")? == b"served\n");
            spc.umount("/mnt/failover")?;
            anyhow::Ok(took)
        };
        // The first mount also loads kernel modules.
        try_all(&[])?;
        let healthy = try_all(&[])?.max(try_all(&[])?);
        for conducts in [
            [Conduct::Refuses, Conduct::Drops],
            [Conduct::Absent, Conduct::Silent],
            [Conduct::Dies(real, 100), Conduct::Refuses],
            [Conduct::Hangs(real, 100), Conduct::Drops],
        ] {
            is_soon(&conducts, try_all(&conducts)?, healthy)?;
        }

        let dead = servers(
            &faulty,
            real.port(),
            &[
                Conduct::Refuses,
                Conduct::Drops,
                Conduct::Silent,
                Conduct::Dies(real, 100),
            ],
        )?;
        let places = addresses(&dead, None);
        let source = format!("{}:/data", places.join(","));
        let words = ["-t", "nfs", "--timeout", "20", &source, "/mnt/failover"];
        let output = spc.refused_mount(&words, 32, &["all 4 servers failed"])?;
        has_lines(
            &output,
            &places,
            &[
                "port 2049: Connection refused",
                "no answer at port 2049",
                "accepts connections at port 2049, but does not reply",
                "answers at port 2049",
            ],
        )?;
        spc.is_clean()
    });
}

#[test]
fn dead_iscsi_portals_hardly_delay_a_mount() {
    with_client(|spc| {
        let lio = lab::lio().context("no lab")?;
        let iqn = "iqn.2026-01.org.example:failover";
        lio.disk("failover-0", 64 << 20, ext4)?;
        lio.target(iqn, &["failover-0"])?;
        let real = SocketAddrV4::new(lio.vm().address(), 3260);
        let faulty = lio.vm().lab().faulty()?;
        spc.host.sh("mkdir -p /mnt/failover")?.ok()?;
        let sessions = || {
            let count = "ls /sys/class/iscsi_session 2>/dev/null | wc -l";
            anyhow::Ok(spc.host.sh(count)?.text().trim().to_owned())
        };
        let try_all = |conducts: &[Conduct], paths: &str| {
            let dead = servers(&faulty, real.port(), conducts)?;
            let places = addresses(&dead, Some(*real.ip())).join(",");
            let source = format!("iscsi:{places}/{iqn}/0");
            let (mounted, took) = mount(spc, &["-t", "ext4", &source])?;
            let mounted = mounted.ok()?;
            ensure!(
                sessions()? == paths,
                "{conducts:?}: {} sessions, {mounted}",
                sessions()?
            );
            for server in &dead {
                let place = server.address().to_string();
                let lost = mounted.error_text().contains(&place);
                ensure!(lost == (paths == "1"), "{conducts:?}, {place}: {mounted}");
            }
            ensure!(spc.host.read("/mnt/failover/greeting")? == b"from the server");
            spc.umount("/mnt/failover")?;
            ensure!(sessions()? == "0", "{} sessions are left", sessions()?);
            ensure!(lio.sessions(iqn)?.is_empty(), "{:?}", lio.sessions(iqn)?);
            anyhow::Ok(took)
        };
        let serves = Conduct::Serves(real);
        // The first mount also loads kernel modules, and starts iscsid.
        try_all(&[serves], "2")?;
        let healthy = try_all(&[serves, serves], "3")?;
        for conducts in [
            [Conduct::Refuses, Conduct::Drops],
            [Conduct::Absent, Conduct::Silent],
        ] {
            is_soon(&conducts, try_all(&conducts, "1")?, healthy)?;
        }
        // The portal accepts the login and dies when the client asks for the disk: the session
        // exists, and waits.
        let dies = [Conduct::Dies(real, 1000)];
        is_soon(&dies, try_all(&dies, "2")?, healthy)?;

        let dead = servers(
            &faulty,
            real.port(),
            &[Conduct::Refuses, Conduct::Drops, Conduct::Silent],
        )?;
        let places = addresses(&dead, None);
        let source = format!("iscsi:{}/{iqn}/0", places.join(","));
        let words = ["-t", "ext4", "--timeout", "50", &source, "/mnt/failover"];
        let output = spc.refused_mount(&words, 32, &["cannot attach", "no path to it came up"])?;
        has_lines(
            &output,
            &places,
            &[
                "port 3260: Connection refused; ",
                "no answer at port 3260",
                "accepts connections at port 3260, but does not reply; ",
            ],
        )?;
        ensure!(sessions()? == "0", "{} sessions are left", sessions()?);
        spc.is_clean()
    });
}
