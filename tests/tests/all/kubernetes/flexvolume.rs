//! The FlexVolume driver: each kind as kubelet mounts it for a pod.

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Host, HostOptions, Lab, Root, Samba};

use crate::kubernetes::kubelet::{Kubelet, NO_FSGROUP, Pod, Volume, install, install_there};
use crate::support::{Container, Spc, VmSpc, until, with_gluster, with_lab};

/// An unused address of the lab.
pub const NOBODY: &str = "192.0.2.254";

/// Runs a pod's whole life; `used` gets the directory.
pub fn life<H: AnyHost>(
    spc: &Container<H>,
    kubelet: &Kubelet<'_, H>,
    pod: &Pod,
    fs_type: &str,
    used: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    let directory = pod.directory();
    let what = || format!("{:?}", pod.volume);
    kubelet.set_up(pod).with_context(what)?;
    let on = spc.on(&directory)?;
    ensure!(on.len() == 1 && on[0].fstype == fs_type, "{on:?}");
    // kubelet repeats the call to the driver after a restart.
    kubelet.call(&["mount", &directory, &kubelet.options(pod)])?;
    ensure!(spc.on(&directory)?.len() == 1);
    used(&directory).with_context(what)?;
    kubelet.tear_down(pod)?;
    ensure!(spc.on(&directory)?.is_empty());
    // kubelet repeats the unmount as well.
    kubelet.call(&["unmount", &directory])?;
    let gone = spc.host.run(&["test", "!", "-e", &directory])?;
    ensure!(gone.success(), "the directory is left");
    until("nothing is left", || Ok(spc.is_clean().is_ok()))
}

/// Reads `file`, which has these bytes, and writes `new`.
fn read_and_write<H: AnyHost>(host: &H, directory: &str, bytes: &[u8]) -> Result<()> {
    ensure!(host.read(&format!("{directory}/file"))? == bytes);
    host.write(&format!("{directory}/new"), b"by a pod")
}

#[test]
fn pods_use_glusterfs_from_several_servers() {
    with_gluster(|lab, cluster| {
        let spc = Spc::privileged(lab)?;
        install(&spc)?;
        let kubelet = Kubelet::start(&spc.host)?;
        let node = cluster.nodes()[0].host();
        let servers = format!("{NOBODY}, {}", node.address());
        let options = [("servers", servers.as_str()), ("path", "vol")];
        // The pods start with different servers, so both orders occur.
        for uid in ["1-1", "1-2", "1-3", "1-4"] {
            let pod = Pod::new(uid, Volume::new("glusterfs", &options));
            life(&spc, &kubelet, &pod, "fuse.glusterfs", |directory| {
                spc.host
                    .write(format!("{directory}/{uid}"), uid.as_bytes())?;
                let brick = cluster.nodes()[0].brick("vol").join(uid);
                ensure!(node.read(brick)? == uid.as_bytes());
                Ok(())
            })?;
        }
        // kubelet applies the pod's group, which works on this mount.
        node.sh("true")?.ok()?;
        let mut pod = Pod::new("2-1", Volume::new("glusterfs", &options));
        pod.fs_group = Some(2000);
        life(&spc, &kubelet, &pod, "fuse.glusterfs", |directory| {
            let seen = spc
                .host
                .sh(&format!("stat -c %g:%A {directory} {directory}/1-1"))?;
            let seen = seen.ok()?.text();
            ensure!(seen == "2000:drwxrwsr-x\n2000:-rw-rw-r--", "{seen}");
            spc.host
                .sh(&format!("chgrp -R 0 {directory}; chmod g-s {directory}"))?
                .ok()?;
            Ok(())
        })?;
        pod.volume.read_only = true;
        life(&spc, &kubelet, &pod, "fuse.glusterfs", |directory| {
            let refused = spc.host.sh(&format!("echo x >{directory}/ro"))?;
            ensure!(refused.error_text().contains("Read-only"), "{refused}");
            let seen = spc
                .host
                .sh(&format!("stat -c %g {directory}"))?
                .ok()?
                .text();
            ensure!(seen == "0", "{seen}");
            Ok(())
        })?;
        // No server has this volume.
        let volume = Volume::new(
            "glusterfs",
            &[("source", &format!("{}:/nosuch", node.address()))],
        );
        let failed = kubelet.set_up(&Pod::new("3-1", volume));
        let reason = failed
            .err()
            .context("the driver mounted the volume")?
            .to_string();
        ensure!(
            reason.contains("failed to fetch volume file") && reason.contains("hint: "),
            "{reason}"
        );
        spc.is_clean()
    });
}

/// Boots a server of `/srv/data` that accepts `root` with the password.
pub fn sshd<'lab>(lab: &'lab Lab, password: &str) -> Result<Host<'lab>> {
    let server = lab.host(HostOptions {
        root: Root::Server,
        ..HostOptions::default()
    })?;
    let start = r#"
        mkdir -p /run/sshd /srv/data && ssh-keygen -q -A
        echo "root:$(openssl passwd -6 "$1"):1:0:99999:7:::" >/etc/shadow
        /usr/sbin/sshd -o UsePAM=no -o PermitRootLogin=yes"#;
    server.run(&["sh", "-c", start, "sshd", password])?.ok()?;
    server.write("/srv/data/file", b"on the server")?;
    Ok(server)
}

#[test]
fn pods_use_fuse_programs_with_their_secrets() {
    with_lab(|lab| {
        let spc = Spc::privileged(lab)?;
        install(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);

        let password = "Correct,Horse 7";
        let server = sshd(lab, password)?;
        let volume = Volume::new(
            "fuse.sshfs",
            &[
                ("source", &format!("root@{}:/srv/data", server.address())),
                ("options", "StrictHostKeyChecking=no"),
            ],
        )
        .secret("password", password);
        let mut pod = Pod::new("1-1", volume);
        pod.fs_group = Some(2000);
        let refused = kubelet.set_up(&pod);
        let named = |error: anyhow::Error| error.to_string().contains("driver: spc/no-fsgroup");
        ensure!(
            refused.is_err_and(named),
            "kubelet would change the group of files"
        );
        pod.driver = NO_FSGROUP;
        let owners = || -> Result<String> {
            let files = "stat -c %n:%u:%g:%a:%Z /srv/data /srv/data/file";
            Ok(server.sh(files)?.ok()?.text())
        };
        let before = owners()?;
        life(&spc, &kubelet, &pod, "fuse.sshfs", |directory| {
            let seen = host.sh(&format!("stat -c %g {directory} {directory}/file"))?;
            ensure!(seen.ok()?.text() == "2000\n2000");
            let after = owners()?;
            ensure!(after == before, "on the server:\n{before}\nbecame\n{after}");
            read_and_write(host, directory, b"on the server")?;
            ensure!(server.read("/srv/data/new")? == b"by a pod");
            Ok(())
        })?;

        let store = lab.s3()?;
        let volume = Volume::new(
            "fuse.s3fs",
            &[
                ("source", "bucket"),
                (
                    "options",
                    &format!("url={},use_path_request_style", store.guarded()),
                ),
            ],
        )
        .secret("passwd", &format!("{}\n", store.key()));
        let mut pod = Pod::new("1-2", volume);
        pod.fs_group = Some(2000);
        pod.driver = NO_FSGROUP;
        life(&spc, &kubelet, &pod, "fuse.s3fs", |directory| {
            host.write(format!("{directory}/new"), b"by a pod")?;
            ensure!(host.read(format!("{directory}/new"))? == b"by a pod");
            Ok(())
        })?;

        let ceph = lab::ceph().context("no cluster")?;
        for fs_type in ["ceph", "fuse.ceph-fuse"] {
            let volume = Volume::new(
                fs_type,
                &[
                    ("servers", &format!("{NOBODY} {}", ceph.address())),
                    ("path", "/app"),
                    ("options", "name=app"),
                ],
            )
            .secret("secret", &ceph.secret("app")?);
            let pod = Pod::new("1-3", volume);
            life(&spc, &kubelet, &pod, "fuse.ceph-fuse", |directory| {
                host.write(format!("{directory}/flex"), b"by a pod")?;
                ensure!(host.read(format!("{directory}/flex"))? == b"by a pod");
                host.run(&["rm", &format!("{directory}/flex")])?
                    .ok()
                    .map(drop)
            })?;
        }
        Ok(())
    });
}

/// Size of the file system in bytes.
pub fn size<H: AnyHost>(host: &H, directory: &str) -> Result<u64> {
    let seen = host.sh(&format!(
        "set -- $(stat -f -c '%b %S' {directory}); echo $(($1 * $2))"
    ))?;
    Ok(seen.ok()?.text().parse()?)
}

/// Checks that a file system grows after its server has grown the disk, and not before.
pub fn grows<H: AnyHost>(
    kubelet: &Kubelet<'_, H>,
    host: &H,
    directory: &str,
    round: u64,
    make_larger: impl Fn(u64) -> Result<()>,
) -> Result<()> {
    let (was, larger) = (size(host, directory)?, 128 + 64 * round);
    let wanted = (larger * 1024 * 1024).to_string();
    let expand = ["expandfs", "{}", "", directory, &wanted, "1"];
    let early = kubelet.call(&expand);
    ensure!(early.is_err_and(|error| error.to_string().contains(&format!("bytes, not {wanted}"))));
    ensure!(size(host, directory)? == was);
    // The controller calls first, and assumes that the node does the work.
    let controller = kubelet.call(&["expandvolume", "{}", directory, &wanted, "1"]);
    ensure!(controller.is_err_and(|error| error.to_string() == "Not supported"));
    make_larger(larger)?;
    kubelet.call(&expand)?;
    let is = size(host, directory)?;
    ensure!(is > was + 32 * 1024 * 1024, "{was} bytes became {is}");
    // kubelet repeats the call when it lost the reply.
    kubelet.call(&expand)?;
    ensure!(size(host, directory)? == is);
    Ok(())
}

#[test]
fn pods_use_volumes_that_the_kernel_mounts() {
    with_lab(|lab| {
        let spc = VmSpc::privileged(lab)?;
        install_there(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);

        let server = lab::knfsd().context("no server")?.vm();
        let servers = format!("{NOBODY},{}", server.address());
        for (uid, fs_type) in [("1-1", "nfs"), ("1-2", "nfs4")] {
            let options = [
                ("servers", servers.as_str()),
                ("path", "data"),
                ("options", "vers=4.2,retry=0,timeo=20,retrans=1"),
                ("timeout", "60"),
            ];
            let pod = Pod::new(uid, Volume::new(fs_type, &options));
            life(&spc, &kubelet, &pod, "nfs4", |directory| {
                read_and_write(host, directory, b"served\n")
            })?;
        }

        let samba = lab.samba()?;
        for fs_type in ["cifs", "smb3"] {
            let volume = Volume::new(
                fs_type,
                &[("source", &format!("//{}/data", samba.address()))],
            )
            .secret("username", "alice")
            .secret("password", Samba::PASSWORD);
            let mut pod = Pod::new("2-1", volume);
            pod.fs_group = Some(2000);
            pod.driver = NO_FSGROUP;
            life(&spc, &kubelet, &pod, fs_type, |directory| {
                host.write(format!("{directory}/file"), fs_type.as_bytes())?;
                ensure!(samba.host().read("/srv/data/file")? == fs_type.as_bytes());
                let seen = host
                    .sh(&format!("stat -c %g:%a {directory} {directory}/file"))?
                    .ok()?
                    .text();
                ensure!(seen == "2000:775\n2000:664", "{seen}");
                Ok(())
            })?;
        }

        let ceph = lab::ceph().context("no cluster")?;
        let volume = Volume::new(
            "ceph",
            &[
                ("source", &format!("{}:/app", ceph.address())),
                ("options", "name=app"),
            ],
        )
        .secret("secret", &ceph.secret("app")?);
        life(
            &spc,
            &kubelet,
            &Pod::new("3-1", volume),
            "ceph",
            |directory| {
                host.write(format!("{directory}/flex"), b"by a pod")?;
                host.run(&["rm", &format!("{directory}/flex")])?
                    .ok()
                    .map(drop)
            },
        )?;

        ceph.sh("rbd create --size 64M rbd/flex")?;
        let secret = ceph.secret("disk")?;
        for (round, fs_type, more) in [(0, "ext4", ",x-spc.mkfs"), (1, "auto", "")] {
            let source = [("source", "rbd:rbd/flex")];
            let volume = Volume::new(fs_type, &source).secret("secret", &secret);
            let refused = kubelet.set_up(&Pod::new("4-9", volume.clone())).err();
            let refused = refused.context("a disk of a pod's choice")?.to_string();
            ensure!(refused.contains("are not for pods"), "{refused}");
            let monitor = ceph.address();
            let line = format!("allow {fs_type} rbd:rbd/flex id=disk,mon={monitor}{more}\n");
            host.sh("mkdir -p /etc/spc")?.ok()?;
            host.write("/etc/spc/flexvolume.conf", line.as_bytes())?;
            let mut pod = Pod::new(&format!("4-{round}"), volume);
            pod.fs_group = Some(2000);
            life(&spc, &kubelet, &pod, "ext4", |directory| {
                let script = format!(
                    "echo {round} >>{directory}/file; cat {directory}/file; stat -c %g {directory}"
                );
                let seen = host.sh(&script)?.ok()?.text();
                ensure!(
                    seen == if round == 0 { "0\n2000" } else { "0\n1\n2000" },
                    "{seen}"
                );
                grows(&kubelet, host, directory, round, |size| {
                    ceph.sh(&format!("rbd resize --size {size}M rbd/flex"))
                        .map(drop)
                })
            })?;
        }
        ensure!(ceph.watchers("flex")?.is_empty());
        host.run(&["rm", "/etc/spc/flexvolume.conf"])?.ok()?;

        let lio = lab::lio().context("no server")?;
        let iqn = "iqn.2026-01.org.example:flex";
        lio.disk("flex.img", 64 * 1024 * 1024, |_| Ok(()))?;
        // The target server reads a device's size once, and a file's size never again.
        let device = "modprobe loop && ln -s $(losetup -f --show /srv/flex.img) /srv/flex";
        lio.vm().sh(device)?.ok()?;
        lio.target(iqn, &["flex"])?;
        let address = lio.vm().address().to_string();
        let path = format!("{iqn}/0");
        let options = [("servers", address.as_str()), ("path", path.as_str())];
        let line = format!("allow ext4 iscsi:{address}/{iqn}/0 x-spc.mkfs\n");
        host.write("/etc/spc/flexvolume.conf", line.as_bytes())?;
        let pod = Pod::new("5-1", Volume::new("ext4", &options));
        life(&spc, &kubelet, &pod, "ext4", |directory| {
            host.write(format!("{directory}/file"), b"by a pod")?;
            grows(&kubelet, host, directory, 0, |size| {
                let larger = format!("truncate -s {size}M /srv/flex.img && losetup -c /srv/flex");
                lio.vm().sh(&larger)?.ok().map(drop)
            })
        })
    });
}
