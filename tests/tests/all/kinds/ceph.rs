//! CephFS from a real cluster, by the kernel's client and by ceph-fuse, and that cluster itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Ceph, Lab, Session};

use crate::support::{Container, Spc, VmSpc, until, with_lab};

/// Runs a test's body with the lab and its Ceph cluster. Does nothing where the lab cannot run; the
/// lab prints the reason.
fn with_ceph(body: impl FnOnce(&'static Lab, &'static Ceph<'static>) -> Result<()>) {
    with_lab(|lab| body(lab, lab::ceph().context("no cluster")?));
}

#[test]
fn a_ceph_cluster_keeps_files_and_images() {
    with_ceph(|_, ceph| {
        let host = ceph.host();
        host.write("/mnt/other/file", b"of the administrator")?;
        host.sh("sync -f /mnt/other/file")?.ok()?;
        let inode = ceph.sh("stat -c %i /mnt/other/file")?.parse()?;
        ensure!(ceph.bytes(inode)? == b"of the administrator");
        let sessions = ceph.sessions("admin")?;
        ensure!(
            sessions.len() == 1 && sessions[0].root == "/" && !sessions[0].kernel,
            "{sessions:?}"
        );
        ceph.sh("rbd create --size 16M rbd/cluster")?;
        ensure!(ceph.watchers("cluster")?.is_empty());
        let keyring = ceph.keyring("app")?;
        ensure!(keyring.contains(&ceph.secret("app")?), "{keyring}");
        Ok(())
    });
}

/// Files in the container with the key and the keyring of `client.app`.
const SECRET: &str = "/etc/app.secret";
const KEYRING: &str = "/etc/app.keyring";

/// Options that take the key from the file.
const APP: &str = "name=app,secretfile=/etc/app.secret";

/// Address of a monitor that does not respond.
const NOBODY: &str = "192.0.2.254";

/// The client that mounts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Kernel,
    Fuse,
}

/// A container that mounts from a cluster.
struct User<'a, H> {
    spc: &'a Container<H>,
    ceph: &'a Ceph<'a>,
    client: Client,
}

impl<'a, H: AnyHost> User<'a, H> {
    /// Copies the keys into the container.
    fn new(spc: &'a Container<H>, ceph: &'a Ceph<'a>, client: Client) -> Result<Self> {
        // Editors leave a line break at the end of a key file.
        let line = |text: String| format!("{text}\n").into_bytes();
        spc.put(SECRET, &line(ceph.secret("app")?))?;
        spc.put("/etc/disk.secret", &line(ceph.secret("disk")?))?;
        spc.put(KEYRING, &line(ceph.keyring("app")?))?;
        Ok(Self { spc, ceph, client })
    }

    /// Source that names a directory of the file system.
    fn source(&self, directory: &str) -> String {
        format!("{}:{directory}", self.ceph.address())
    }

    /// Runs a whole life of a mount: `spc mount -t TYPE -o OPTIONS SOURCE TARGET`.
    fn life(
        &self,
        [fs_type, options, source, target]: [&str; 4],
        used: impl FnOnce(&serde_json::Value) -> Result<()>,
    ) -> Result<()> {
        let words = ["-t", fs_type, "-o", options, source];
        self.spc
            .life(&words, target, self.shows(source), used)
            .with_context(|| format!("mount -t {fs_type} -o {options} {source}"))
    }

    /// File system type and source that the mount table shows.
    fn shows<'b>(&self, source: &'b str) -> [&'b str; 2] {
        match self.client {
            Client::Kernel => ["ceph", source],
            Client::Fuse => ["fuse.ceph-fuse", "ceph-fuse"],
        }
    }

    /// Sessions of this host on the metadata server.
    fn sessions(&self) -> Result<Vec<Session>> {
        let own = format!("{}:", self.spc.host.address());
        let mut all = self.ceph.sessions("app")?;
        all.retain(|session| session.address.starts_with(&own));
        Ok(all)
    }

    /// Runs a life of a mount and writes a file. The OSD must have its bytes. The metadata server
    /// must have a session as long as the mount lasts.
    fn mount(&self, fs_type: &str, options: &str, source: &str, root: &str) -> Result<()> {
        let host = &self.spc.host;
        ensure!(self.sessions()?.is_empty(), "{:?}", self.sessions()?);
        self.life([fs_type, options, source, "/mnt/ceph"], |_| {
            let text = format!("{fs_type} {options} {source}");
            // Other tests use the same directory.
            let file = format!("/mnt/ceph/{}", host.address());
            host.write(&file, text.as_bytes())?;
            host.run(&["sync", &file])?.ok()?;
            let inode = host.run(&["stat", "-c", "%i", &file])?.ok()?.text();
            ensure!(self.ceph.bytes(inode.parse()?)? == text.as_bytes());
            let seen = self.sessions()?;
            let kernel = self.client == Client::Kernel;
            ensure!(
                seen.len() == 1 && seen[0].root == root && seen[0].kernel == kernel,
                "{seen:?}"
            );
            host.run(&["rm", &file])?.ok()?;
            Ok(())
        })?;
        until("the session has ended", || Ok(self.sessions()?.is_empty()))
    }

    /// Mounts with every syntax for the key, the monitors and the directory.
    fn every_syntax(&self) -> Result<()> {
        let (address, fsid) = (self.ceph.address(), self.ceph.fsid());
        let ring = format!("name=app,keyring={KEYRING}");
        let all = format!("{}:/app", self.ceph.monitors());
        self.mount("ceph", APP, &all, "/app")?;
        self.mount("ceph", &ring, &self.source("/app"), "/app")?;
        let first_is_dead = format!("{NOBODY},{address}:/app/sub");
        self.mount("ceph", APP, &first_is_dead, "/app/sub")?;
        let named = format!("{APP},fs=cephfs");
        self.mount("ceph", &named, &self.source("/app/sub"), "/app/sub")?;
        let secure = format!("{APP},ms_mode=secure");
        let second_protocol = format!("{address}:3300:/app");
        self.mount("ceph", &secure, &second_protocol, "/app")?;
        // Source syntax of Ceph 17 and newer.
        let device = format!("app@{fsid}.cephfs=/app");
        let options = format!("secretfile={SECRET},mon_addr={NOBODY}/{address}");
        self.mount("ceph", &options, &device, "/app")
    }

    /// Checks that a read-only mount stays read-only, even when the client remounts its target.
    /// ceph-fuse does that to empty the kernel's caches.
    fn read_only(&self) -> Result<()> {
        let (host, target) = (&self.spc.host, "/mnt/read only");
        let there = "/mnt/app/sub/read-only";
        self.ceph
            .sh(&format!("echo kept >{there} && sync -f {there}"))?;
        let options = format!("ro,nosuid,noexec,{APP}");
        self.life(["ceph", &options, &self.source("/app/sub"), target], |_| {
            if self.client == Client::Fuse {
                // The exact command that ceph-fuse runs.
                let remount =
                    "LIBMOUNT_FSTAB=/dev/null LIBMOUNT_FORCE_MOUNT2=always mount -i -o remount";
                let all = format!("for dir in /spc/targets/*/; do {remount} $dir; done");
                let holder =
                    host.sh("sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' /run/spc/clients/*-*")?;
                let there = format!("--mount=/proc/{}/ns/mnt", holder.ok()?.text().trim());
                host.run(&["nsenter", &there, "/bin/sh", "-c", &all])?
                    .ok()?;
            }
            ensure!(host.read(&format!("{target}/read-only"))? == b"kept\n");
            let refused = host.sh(&format!("echo x >'{target}/read-only'"))?;
            ensure!(refused.error_text().contains("Read-only"), "{refused}");
            let mounted = &self.spc.on(target)?[0];
            let options: Vec<_> = mounted.options.split(',').collect();
            for option in ["ro", "nosuid", "noexec"] {
                ensure!(options.contains(&option), "{mounted:?}");
            }
            Ok(())
        })
    }

    /// Checks snapshots in `.snap`: those of another client are seen here, and those made here are
    /// seen there.
    fn snapshots(&self) -> Result<()> {
        let (host, target) = (&self.spc.host, "/mnt/snapshots");
        let dir = format!("/app/snapshots-{}", host.address());
        let there = format!("cd /mnt{dir}");
        self.ceph.sh(&format!(
            "mkdir /mnt{dir} && {there} && echo first >file && mkdir .snap/theirs && echo second >file && sync -f file"
        ))?;
        self.life(["ceph", APP, &self.source(&dir), target], |_| {
            let here = |path: &str| host.read(&format!("{target}/{path}"));
            ensure!(here("file")? == b"second\n");
            ensure!(here(".snap/theirs/file")? == b"first\n");
            let change = "mkdir .snap/ours && echo third >file && sync file";
            host.sh(&format!("cd {target} && {change}"))?.ok()?;
            ensure!(here(".snap/ours/file")? == b"second\n");
            let seen = self
                .ceph
                .sh(&format!("{there} && ls .snap && cat .snap/ours/file file"))?;
            ensure!(seen == "ours\ntheirs\nsecond\nthird", "{seen:?}");
            host.sh(&format!("rmdir {target}/.snap/ours"))?.ok()?;
            Ok(())
        })
    }

    /// Checks that a key given without a file reaches the client, and is in no argument,
    /// environment or record.
    fn secrets(&self) -> Result<()> {
        let (host, key, source) = (
            &self.spc.host,
            self.ceph.secret("app")?,
            self.source("/app"),
        );
        let in_option = format!("name=app,secret={key}");
        let in_file = format!("secret=file:{SECRET}");
        for options in [
            vec!["-o", &in_option],
            vec!["-o", "name=app", "--secret", &in_file],
        ] {
            let words = [&["-t", "ceph"], &options[..], &[&source]].concat();
            let shows = self.shows(&source);
            self.spc.life(&words, "/mnt/secret", shows, |record| {
                host.sh("ls /mnt/secret")?.ok()?;
                ensure!(!record.to_string().contains(&key), "{record}");
                let places = "/run/spc /proc/[0-9]*/cmdline /proc/[0-9]*/environ /proc/mounts";
                let search = format!("cat >/tmp/key; grep -rlsF -f /tmp/key {places}; rm /tmp/key");
                let found = host
                    .run_with(&["sh", "-c", &search], key.as_bytes())?
                    .ok()?;
                ensure!(found.stdout.is_empty(), "{found}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Checks that spc finds and removes a mount whose helper was killed before the shim wrote the
    /// mount's id.
    fn half_made(&self) -> Result<()> {
        let (spc, target) = (self.spc, "/mnt/half made");
        spc.host.run(&["mkdir", "-p", target])?.ok()?;
        let source = self.source("/app");
        let mount = ["-t", "ceph", "-o", APP, &source, target];
        spc.mount(&mount)?;
        // Neither redirect nor record knows the mount, as if the helper and spc had been killed.
        let notes = "for note in /run/spc/targets/*/*.mount; do rm -f $note; done";
        spc.host.sh(notes)?.ok()?;
        spc.sh("rm -f /spc/targets/*.mount")?.ok()?;
        let forget = r#"s/"state":"mounted"/"state":"mounting"/; s/"mount_id":[0-9]*/"mount_id":0/; s/"unique_id":[0-9]*/"unique_id":0/"#;
        let file = "/run/spc/mounts/*.json";
        spc.host.sh(&format!("sed -i '{forget}' {file}"))?.ok()?;
        spc.mount(&mount)?;
        let on = spc.on(target)?;
        ensure!(on.len() == 1, "{on:?}");
        spc.umount(target)?;
        spc.is_clean()
    }

    /// Sends requests that must fail, and checks the words of each error.
    fn refused(&self, requests: &[(&str, &str, &str)]) -> Result<()> {
        self.spc.host.sh("mkdir -p /mnt/ceph")?.ok()?;
        for (options, source, expected) in requests {
            let words = ["-t", "ceph", "-o", options, source, "/mnt/ceph"];
            let output = self.spc.refused_mount(&words, 32, &[expected])?;
            ensure!(output.elapsed < Duration::from_secs(20), "{output}");
        }
        let good = self.source("/app");
        // The limit is the one of `--timeout`.
        let dead = format!("{NOBODY}:/app");
        let words = [
            "-t",
            "ceph",
            "--timeout",
            "2",
            "-o",
            APP,
            &dead,
            "/mnt/ceph",
        ];
        let output = self
            .spc
            .refused_mount(&words, 32, &["killed by spc after 2 s"])?;
        ensure!(output.elapsed < Duration::from_secs(20), "{output}");
        self.mount("ceph", APP, &good, "/app")
    }
}

#[test]
fn ceph_fuse_takes_over_where_the_kernel_has_no_ceph() {
    with_ceph(|lab, ceph| {
        let spc = Spc::minimal(lab)?;
        let user = User::new(&spc, ceph, Client::Fuse)?;
        let explain = ["spc", "explain", "-t", "ceph", "192.0.2.1:/", "/mnt"];
        let plan = spc.exec(&explain)?.ok()?.text();
        ensure!(
            plan.contains("because    no module ceph") && plan.contains("/usr/bin/ceph-fuse"),
            "{plan}"
        );
        user.every_syntax()
    });
}

#[test]
fn each_type_name_of_ceph_fuse_mounts() {
    with_ceph(|lab, ceph| {
        let spc = Spc::privileged(lab)?;
        let user = User::new(&spc, ceph, Client::Fuse)?;
        for fs_type in ["ceph-fuse", "fuse.ceph", "fuse.ceph-fuse"] {
            user.mount(fs_type, APP, &user.source("/app/sub"), "/app/sub")?;
        }
        Ok(())
    });
}

#[test]
fn ceph_fuse_keeps_secrets_snapshots_and_read_only() {
    with_ceph(|lab, ceph| {
        let spc = Spc::minimal(lab)?;
        let user = User::new(&spc, ceph, Client::Fuse)?;
        user.secrets()?;
        user.half_made()?;
        user.read_only()?;
        user.snapshots()
    });
}

#[test]
fn ceph_fuse_says_why_it_refuses() {
    with_ceph(|lab, ceph| {
        let spc = Spc::minimal(lab)?;
        let user = User::new(&spc, ceph, Client::Fuse)?;
        let (app, none, other) = (
            &user.source("/app"),
            &user.source("/app/none"),
            &user.source("/other"),
        );
        // A keyring in place of the key: ceph-fuse prints what it cannot read.
        let mistaken = format!("name=app,secretfile={KEYRING}");
        spc.host.run(&["mkdir", "-p", "/mnt/masked"])?.ok()?;
        let mount = [
            "spc",
            "mount",
            "-t",
            "ceph-fuse",
            "-o",
            &mistaken,
            app,
            "/mnt/masked",
        ];
        let failed = spc.exec(&mount)?;
        ensure!(!failed.success() && !failed.error_text().contains(&ceph.secret("app")?));
        let wrong = "name=app,secretfile=/etc/disk.secret";
        user.refused(&[
            (wrong, app, "does not take this key"),
            ("name=app", app, "name the user and a file"),
            ("name=app,secretfile=/none", app, "name the user and a file"),
            (APP, none, "no such directory"),
            (APP, other, "non-allowable root '/other'"),
            (&format!("{APP},fs=none"), app, "`ceph fs ls`"),
            (&format!("{APP},nosuchoption"), app, "nosuchoption"),
            (
                &format!("{APP},mount_timeout=3"),
                &format!("{NOBODY}:/app"),
                "check the addresses of the monitors",
            ),
        ])
    });
}

#[test]
fn the_kernel_mounts_cephfs() {
    with_ceph(|lab, ceph| {
        let spc = VmSpc::privileged(lab)?;
        let user = User::new(&spc, ceph, Client::Kernel)?;
        let explain = ["spc", "explain", "-t", "ceph", "192.0.2.1:/", "/mnt"];
        let plan = spc.exec(&explain)?.ok()?.text();
        ensure!(plan.contains("/mount.ceph"), "{plan}");
        user.every_syntax()?;
        user.secrets()?;
        user.half_made()?;
        user.read_only()?;
        user.snapshots()?;
        // ceph-fuse works beside the kernel's client.
        let user = User {
            client: Client::Fuse,
            ..user
        };
        user.mount("ceph-fuse", APP, &user.source("/app"), "/app")
    });
}

#[test]
fn the_kernels_ceph_says_why_it_refuses() {
    with_ceph(|lab, ceph| {
        let spc = VmSpc::privileged(lab)?;
        let user = User::new(&spc, ceph, Client::Kernel)?;
        let (app, none, other) = (
            &user.source("/app"),
            &user.source("/app/none"),
            &user.source("/other"),
        );
        let wrong = "name=app,secretfile=/etc/disk.secret";
        user.refused(&[
            (wrong, app, "the wrong key"),
            ("name=app", app, "no key"),
            ("name=app,secretfile=/none", app, "in the container"),
            (APP, none, "no such directory"),
            (APP, other, "another directory only"),
            (
                &format!("{APP},fs=none"),
                app,
                "no file system of this name",
            ),
            (
                &format!("{APP},nosuchoption"),
                app,
                "does not know an option",
            ),
            (
                &format!("{APP},mount_timeout=5"),
                &format!("{NOBODY}:/app"),
                "no monitor that answers",
            ),
        ])
    });
}

#[test]
fn mounts_survive_the_loss_of_a_monitor() {
    with_lab(|lab| {
        // A cluster of its own: other tests need the first monitor of the shared one.
        let ceph = lab.ceph()?;
        let (fuse, kernel) = (Spc::minimal(lab)?, VmSpc::privileged(lab)?);
        lose_monitor(
            &ceph,
            &User::new(&fuse, &ceph, Client::Fuse)?,
            &User::new(&kernel, &ceph, Client::Kernel)?,
        )
    });
}

fn lose_monitor(
    ceph: &Ceph<'_>,
    fuse: &User<'_, impl AnyHost>,
    kernel: &User<'_, impl AnyHost>,
) -> Result<()> {
    let source = format!("{}:/app", ceph.monitors());
    let mount =
        |target: &'static str| ["-t", "ceph", "-o", APP, &source, target].map(str::to_owned);
    let mount_both = |target: &'static str| {
        let words = mount(target);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        for host in [&fuse.spc.host as &dyn AnyHost, &kernel.spc.host] {
            host.run(&["mkdir", "-p", target])?.ok()?;
        }
        fuse.spc.mount(&words)?;
        kernel.spc.mount(&words)
    };
    mount_both("/mnt/before")?;
    ceph.stop_monitor("a")?;
    mount_both("/mnt/after")?;
    fuse.spc.host.write("/mnt/before/file", b"by ceph-fuse")?;
    ensure!(kernel.spc.host.read("/mnt/after/file")? == b"by ceph-fuse");
    kernel
        .spc
        .host
        .write("/mnt/before/file", b"by the kernel")?;
    ensure!(fuse.spc.host.read("/mnt/after/file")? == b"by the kernel");
    for spc in ["/mnt/before", "/mnt/after"] {
        fuse.spc.umount(spc)?;
        kernel.spc.umount(spc)?;
    }
    Ok(())
}
