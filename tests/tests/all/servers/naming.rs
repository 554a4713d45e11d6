//! Ways to name several servers: in the source, as an option, in a file, by a name with several
//! addresses.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::{Host, Lab};
use serde_json::Value;

use crate::kubernetes::flexvolume::{NOBODY, sshd};
use crate::support::{Spc, until, with_lab};

const PASSWORD: &str = "Correct,Horse 7";
const TARGET: &str = "/mnt/data";

/// Two servers with the same directory, and a container whose host knows their keys by the name
/// `nas`.
struct Scene<'lab> {
    spc: Spc<'lab>,
    servers: [Host<'lab>; 2],
}

impl<'lab> Scene<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        let spc = Spc::privileged(lab)?;
        let servers = [sshd(lab, PASSWORD)?, sshd(lab, PASSWORD)?];
        let host = &spc.host;
        host.write("/srv/password", PASSWORD.as_bytes())?;
        let (mut names, mut keys) = (format!("{NOBODY} nas\n"), String::new());
        for server in &servers {
            names.push_str(&format!("{} nas\n", server.address()));
            let key = server.sh("cat /etc/ssh/ssh_host_ed25519_key.pub")?.ok()?;
            keys.push_str(&format!("nas {}\n", key.text()));
        }
        let more = format!("printf '{names}' >>/etc/hosts && mkdir -p {TARGET} /mnt/other");
        host.sh(&more)?.ok()?;
        host.write("/srv/known", keys.as_bytes())?;
        Ok(Self { spc, servers })
    }

    fn addresses(&self) -> [String; 2] {
        self.servers.each_ref().map(|s| s.address().to_string())
    }

    /// Runs `spc mount` by sshfs, with these options and these words before the target.
    fn mount(&self, options: &str, words: &[&str]) -> Result<lab::Output> {
        let options = format!("UserKnownHostsFile=/host/srv/known,{options}");
        let secret = "password=file:/host/srv/password";
        let start = ["spc", "mount", "-t", "fuse.sshfs", "--secret", secret, "-o"];
        self.spc
            .exec(&[&start[..], &[options.as_str()], words, &[TARGET]].concat())
    }

    /// Source of the mount in the host's table.
    fn source(&self) -> Result<String> {
        let on = self.spc.on(TARGET)?;
        let mounted = on.first().context("nothing is mounted")?;
        ensure!(self.spc.host.read("/mnt/data/file")? == b"on the server");
        Ok(mounted.source.to_string_lossy().into_owned())
    }

    fn umount(&self) -> Result<()> {
        self.spc.umount(TARGET).map(drop)
    }
}

#[test]
fn every_way_to_name_servers_gives_the_same_mount() {
    with_lab(|lab| {
        let scene = Scene::new(lab)?;
        let [one, two] = scene.addresses();
        let no_keys = "StrictHostKeyChecking=no";

        // Outside of the source. The same request in another spelling is the same mount.
        let list = format!("{NOBODY},root@{one}");
        let apart = ["--servers", list.as_str(), "root@192.0.2.253:/srv/data"];
        scene.mount(no_keys, &apart)?.ok()?;
        ensure!(scene.source()? == format!("root@{one}:/srv/data"));
        let whole = format!("root@192.0.2.253,{NOBODY},root@{one}:/srv/data");
        scene.mount(no_keys, &[&whole])?.ok()?;
        ensure!(scene.spc.on(TARGET)?.len() == 1);
        let other = format!("root@{one},{NOBODY}:/srv/data");
        let refused = scene.mount(no_keys, &[&other])?;
        ensure!(
            refused.error_text().contains("already mounted"),
            "{refused}"
        );
        scene.umount()?;

        // In a file of the host, with its content at that moment.
        for server in [&one, &two] {
            let text = format!("# the only one\nroot@{server}\n\nroot@{NOBODY} # down\n");
            scene.spc.host.write("/srv/servers", text.as_bytes())?;
            let file = ["--servers", "@/host/srv/servers", "/srv/data"];
            scene.mount(no_keys, &file)?.ok()?;
            ensure!(scene.source()? == format!("root@{server}:/srv/data"));
            scene.mount(no_keys, &file)?.ok()?;
            scene.umount()?;
        }
        let secret = b"root@nas\nroot:$6$hunter2:1\n";
        scene.spc.host.write("/srv/shadow", secret)?;
        let wrong = ["--servers", "@/host/srv/shadow", "/srv/data"];
        let refused = scene.mount(no_keys, &wrong)?.code(1)?;
        let error = refused.error_text();
        ensure!(
            error.contains("bad server in line 2") && !error.contains("hunter2"),
            "{refused}"
        );

        // By a name with several addresses, whose servers have their keys under that name.
        let mut seen = BTreeSet::new();
        for seed in 0..6 {
            let order = format!("StrictHostKeyChecking=yes,x-spc.order={seed}");
            scene.mount(&order, &["root@nas:/srv/data"])?.ok()?;
            ensure!(scene.source()? == "root@nas:/srv/data");
            let peer = scene
                .spc
                .host
                .sh("busybox netstat -nt | grep ESTABLISHED | grep -o '192.0.2.[0-9]*:22 '")?;
            seen.insert(peer.text().lines().next().unwrap_or_default().to_owned());
            scene.umount()?;
        }
        ensure!(seen.len() == 2, "{seen:?}");

        // `explain` shows the plan, and contacts no server.
        let order = ["-o", "x-spc.order=given", "-t", "nfs"];
        let source = format!("{two},{NOBODY}:/x");
        let explain = [
            &["spc", "explain", "--json"][..],
            &order,
            &[&source, TARGET],
        ]
        .concat();
        let plan: Value = serde_json::from_str(&scene.spc.exec(&explain)?.ok()?.text())?;
        let names = plan["servers"].as_array().context("no servers")?;
        let names: Vec<_> = names.iter().map(|server| &server["name"]).collect();
        ensure!(
            names == [&two, NOBODY] && plan["order"] == "given",
            "{plan}"
        );
        scene.spc.is_clean()
    });
}

#[test]
fn a_mount_whose_server_dies_moves_to_another() {
    with_lab(|lab| {
        let scene = Scene::new(lab)?;
        let [one, two] = scene.addresses();
        let source = format!("root@{one},root@{two}:/srv/data");
        let options = "StrictHostKeyChecking=no,x-spc.order=given";
        scene.mount(options, &[&source])?.ok()?;
        ensure!(scene.source()? == format!("root@{one}:/srv/data"));
        // The server's port is closed, and the daemon has no time to unmount.
        let listener =
            r#"for p in /proc/[0-9]*; do [ "$(cat $p/comm)" != sshd ] || kill ${p#/proc/}; done"#;
        scene.servers[0].sh(listener)?;
        scene.spc.host.sh("kill -9 $(busybox pidof sshfs)")?.ok()?;
        let at_two = format!("root@{two}:/srv/data");
        until("the mount is from the other server", || {
            Ok(scene.source().is_ok_and(|source| source == at_two))
        })?;
        // The new mount is the one that was requested.
        scene.mount(options, &[&source])?.ok()?;
        scene.umount()?;
        scene.spc.is_clean()
    });
}
