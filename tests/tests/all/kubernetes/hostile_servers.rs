//! Servers that pods choose, and that try to reach the node; pods without a secret, which try to
//! use an identity of the node.

use anyhow::{Context, Result, ensure};
use lab::{Host, HostOptions, Lab, Root};

use crate::kubernetes::flexvolume::sshd;
use crate::kubernetes::hostile_clients::take_over;
use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, install};
use crate::support::{Spc, until, with_lab};

/// File of the node, which no pod may see.
const SECRET: &str = "/srv/secret-of-the-node";

/// Boots a GlusterFS server with a volume `evil`, whose clients get this directory of their own in
/// place of the volume.
pub fn gluster<'lab>(lab: &'lab Lab) -> Result<Host<'lab>> {
    let server = lab.host(HostOptions {
        root: Root::Server,
        ..HostOptions::default()
    })?;
    let start = r#"
        mkdir /bricks && mount -t tmpfs bricks /bricks
        glusterd && until gluster pool list >/dev/null 2>&1; do sleep 0.1; done
        gluster --mode=script volume create evil "$1":/bricks/evil force
        gluster --mode=script volume start evil"#;
    let address = server.address().to_string();
    server.run(&["sh", "-c", start, "start", &address])?.ok()?;
    Ok(server)
}

/// Makes the server's clients serve a directory of their own.
pub fn serve_own(server: &Host<'_>, directory: &str) -> Result<()> {
    let volfile = format!(
        "volume evil\n type storage/posix\n option directory {directory}\n option mandate-attribute off\nend-volume\n"
    );
    for name in ["evil.tcp-fuse.vol", "trusted-evil.tcp-fuse.vol"] {
        server.write(
            format!("/var/lib/glusterd/vols/evil/{name}"),
            volfile.as_bytes(),
        )?;
    }
    Ok(())
}

/// Value of a field of `/proc/PID/status`.
fn status(host: &Host<'_>, pid: &str, field: &str) -> Result<String> {
    let line = format!("sed -n 's/^{field}:[[:space:]]*//p' /proc/{pid}/status");
    Ok(host.sh(&line)?.ok()?.text())
}

/// Checks what the daemon of a mount has: it serves the kernel, and could do no more if its server
/// had taken it over.
fn is_confined(host: &Host<'_>, program: &str) -> Result<()> {
    let pids = host.sh(&format!("pidof {program}"))?.ok()?.text();
    ensure!(!pids.is_empty(), "no {program} is running");
    for pid in pids.split_whitespace() {
        // NET_BIND_SERVICE at most, and with `no_new_privs` no program gets more.
        for field in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            let found = u64::from_str_radix(&status(host, pid, field)?, 16)?;
            ensure!(found & !0x400 == 0, "{program} {pid} {field}: {found:x}");
        }
        for (field, value) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
            let found = status(host, pid, field)?;
            ensure!(found == value, "{program} {pid} {field}: {found}");
        }
        let nested = status(host, pid, "NSpid")?;
        ensure!(
            nested.split_whitespace().count() == 2,
            "{program}: {nested}"
        );
        let root = format!("/proc/{pid}/root");
        let script = format!(
            "cd {root} && ls -A host root etc/ceph dev proc/sys etc/passwd-s3fs; touch usr/x"
        );
        let seen = host.sh(&script)?;
        let expected = "dev:\nfd\nfull\nfuse\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n\nhost:\n\nroot:";
        ensure!(seen.text().trim_end() == expected, "{program}: {seen}");
        ensure!(seen.error_text().contains("Read-only"), "{program}: {seen}");
        let others = host.sh(&format!("ls -d {root}/proc/1 {root}/proc/*/root"))?;
        ensure!(others.text().lines().count() < 10, "{program}: {others}");
    }
    Ok(())
}

#[test]
fn a_server_of_a_pod_reaches_nothing_of_the_node() {
    with_lab(|lab| {
        let server = gluster(lab)?;
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        host.write(SECRET, b"secret")?;
        let source = format!("{}:/evil", server.address());
        let pod = |uid: &str| Pod::new(uid, Volume::new("glusterfs", &[("source", &source)]));
        // An honest server first.
        let honest = pod("1-0");
        kubelet.set_up(&honest)?;
        host.write(format!("{}/file", honest.directory()), b"x")?;
        is_confined(host, "glusterfs")?;
        // The repair of a dead mount has the same limits.
        let before = spc.on(honest.directory())?;
        host.sh("kill -9 $(pidof glusterfs)")?.ok()?;
        until("the mount is repaired", || {
            let now = spc.on(honest.directory())?;
            Ok(now.len() == 1 && now[0].id != before[0].id)
        })?;
        ensure!(host.read(format!("{}/file", honest.directory()))? == b"x");
        is_confined(host, "glusterfs")?;
        kubelet.tear_down(&honest)?;
        let directories = ["/host", "/", "/proc", "/dev", "/etc", "/tmp"];
        for (number, directory) in directories.iter().enumerate() {
            serve_own(&server, directory)?;
            let pod = pod(&format!("2-{number}"));
            let error = kubelet.set_up(&pod).err();
            let error = error.context("mounted a directory of the node")?;
            // The client obeys its server, and cannot do what it says.
            let expected = format!("{directory}: failed to set gfid");
            ensure!(error.to_string().contains(&expected), "{error}");
            kubelet.tear_down(&pod)?;
        }
        until("nothing is left", || Ok(spc.is_clean().is_ok()))
    });
}

#[test]
fn a_helper_that_was_taken_over_reaches_nothing_of_the_node() {
    with_lab(|lab| {
        let spc = Spc::minimal(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        let pod = |uid: &str| Pod::new(uid, Volume::new("fuse.s3fs", &[("source", "bucket")]));
        // The kernel refuses all calls on such a root, and the pod ends all the same.
        take_over(host, "bad_root", &[])?;
        let bad = pod("1-1");
        kubelet.set_up(&bad)?;
        let look = ["stat", &bad.directory()];
        until("the root is bad", || Ok(!host.run(&look)?.success()))?;
        kubelet.call(&["unmount", &bad.directory()])?;
        ensure!(spc.on(bad.directory())?.is_empty());

        take_over(host, "taken_over", &[])?;
        let pod = pod("1-0");
        let error = kubelet.set_up(&pod).err();
        let error = error.context("mounted by a program that mounts nothing")?;
        ensure!(error.to_string().contains("reached: nothing"), "{error}");
        kubelet.tear_down(&pod)?;
        let special = "find /var/log/spc /var/lib/spc -xdev -perm /6000";
        let special = host.sh(special)?.ok()?.text();
        ensure!(special.is_empty(), "{special}");
        until("nothing is left", || Ok(spc.is_clean().is_ok()))
    });
}

#[test]
fn a_pod_without_a_secret_gets_no_identity_of_the_node() {
    with_lab(|lab| {
        let spc = Spc::privileged(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        let server = sshd(lab, "unused")?;
        let key = server.sh("ssh-keygen -q -t ed25519 -N '' -f /tmp/id && mkdir -p -m 0700 /root/.ssh && cp /tmp/id.pub /root/.ssh/authorized_keys && cat /tmp/id")?;
        let key = format!("{}\n", key.ok()?.text().trim_end());
        let ceph = lab::ceph().context("no cluster")?;
        let store = lab.s3()?;
        host.sh("mkdir -p /root/.ssh /etc/ceph")?.ok()?;
        host.write("/root/.ssh/id_ed25519", key.as_bytes())?;
        let keyring = format!("{}\n", ceph.keyring("app")?);
        host.write("/etc/ceph/ceph.client.app.keyring", keyring.as_bytes())?;
        // The administrator's own file among the client programs.
        let script = r#"
            for root in /var/lib/spc/roots/*/; do
                echo "$1" >"$root/etc/passwd-s3fs"; chmod 600 "$root/etc/passwd-s3fs"
            done
            chmod 700 /root/.ssh; chmod 600 /root/.ssh/* /etc/ceph/*"#;
        host.run(&["sh", "-c", script, "files", store.key()])?
            .ok()?;
        let ssh = format!("root@{}:/srv/data", server.address());
        let ceph = format!("{}:/app", ceph.address());
        let s3 = format!("url={},use_path_request_style", store.guarded());
        for (fs_type, source, options, refusal) in [
            (
                "fuse.sshfs",
                ssh.as_str(),
                "StrictHostKeyChecking=no",
                "Permission denied",
            ),
            ("fuse.ceph-fuse", &ceph, "name=app", "keyring"),
            ("fuse.s3fs", "bucket", &s3, "security credentials"),
        ] {
            // With these identities, the administrator mounts it.
            host.run(&["mkdir", "-p", "/mnt/data"])?.ok()?;
            spc.mount(&["-t", fs_type, "-o", options, source, "/mnt/data"])?;
            spc.umount("/mnt/data")?;
            let volume = Volume::new(fs_type, &[("source", source), ("options", options)]);
            let error = kubelet.set_up(&Pod::new("1-1", volume)).err();
            let error = error
                .context("mounted with an identity of the node")?
                .to_string();
            ensure!(error.contains(refusal), "{error}");
        }
        until("nothing is left", || Ok(spc.is_clean().is_ok()))
    });
}
