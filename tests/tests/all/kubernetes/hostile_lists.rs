//! Volumes of pods that name thousands of servers.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, install};
use crate::support::{Spc, with_lab};

/// Number of servers; kubelet passes a volume as an argument, which may have 128 KiB.
const SERVERS: usize = 8000;

#[test]
fn many_servers_of_a_pod_leave_few_files() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        let addresses =
            (1..=SERVERS).map(|number| format!("127.1.{}.{}", number / 250, number % 250));
        let source = format!("a@{}:/", addresses.collect::<Vec<_>>().join(","));
        let given = [
            ("source", &*source),
            ("options", "port=9"),
            ("timeout", "20"),
        ];
        let pod = Pod::new("1-0", Volume::new("fuse.sshfs", &given));
        let refused = kubelet.set_up(&pod).err().context("mounted")?.to_string();
        let files = host.sh("ls /run/spc/dead | wc -l")?.text();
        let files: usize = files.trim().parse()?;
        ensure!(
            files < 1000,
            "{files} files; {} bytes of an error",
            refused.len()
        );
        Ok(())
    });
}

#[test]
fn many_servers_of_a_pod_start_few_programs() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        // A name server that does not answer.
        host.sh("echo nameserver 192.0.2.250 >/etc/resolv.conf")?
            .ok()?;
        let names = (1..=1000).map(|number| format!("h{number}.example"));
        let source = format!("a@{}:/", names.collect::<Vec<_>>().join(","));
        let given = [("source", &*source), ("timeout", "20")];
        let pod = Pod::new("1-0", Volume::new("fuse.sshfs", &given));
        let most = std::thread::scope(|scope| {
            let call = scope.spawn(|| kubelet.set_up(&pod).err());
            let mut most = 0;
            while !call.is_finished() {
                let now = host.sh("pidof getent | wc -w")?.text();
                most = most.max(now.trim().parse().unwrap_or(0));
                std::thread::sleep(Duration::from_millis(500));
            }
            anyhow::Ok(most)
        })?;
        ensure!(most < 100, "{most} programs at once");
        Ok(())
    });
}
