//! NFS mounts from real servers, by the kernel of a virtual machine.

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Ganesha, Knfsd};

use crate::mount::nfs3_services::{BOTH, ensure_running, until_running};
use crate::support::{VmSpc, until, with_lab};

/// Runs a test's body with the container on a virtual machine, whose kernel is the client. Bodies
/// run one at a time: they inspect the machine's processes.
pub fn with_client(body: impl FnOnce(&VmSpc<'static>) -> Result<()>) {
    static CLIENT: OnceLock<Mutex<VmSpc<'static>>> = OnceLock::new();
    with_lab(|lab| {
        let client = thread::scope(|scope| {
            let server = scope.spawn(knfsd);
            let boot =
                || Mutex::new(VmSpc::privileged(lab).unwrap_or_else(|error| panic!("{error:?}")));
            let client = CLIENT.get_or_init(boot);
            server.join().map(|_| client)
        });
        let client = client.map_err(|_| anyhow::anyhow!("no server"))?;
        let client = client.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = || {
            let complaints = "grep -E 'cannot start|does not exit' /run/container/log";
            let complaints = client.host.sh(complaints)?.text();
            ensure!(complaints.is_empty(), "{complaints}");
            Ok(())
        };
        body(&client).and_then(|()| quiet()).with_context(|| {
            match client.host.sh("cat /run/container/log; dmesg | tail") {
                Ok(log) => log.to_string(),
                Err(error) => format!("{error:?}"),
            }
        })
    });
}

fn knfsd() -> Result<&'static Knfsd<'static>> {
    lab::knfsd().context("no lab")
}

/// Options that the client's mount table shows for a mount.
fn options(spc: &VmSpc<'_>, target: &str) -> Result<String> {
    let table = spc.host.sh("cat /proc/1/mounts")?.ok()?.text();
    let lines: Vec<&str> = table.lines().collect();
    let line = lines
        .iter()
        .find(|line| line.split(' ').nth(1) == Some(target))
        .with_context(|| format!("not mounted: {target}"))?;
    Ok(line.split(' ').nth(3).unwrap_or_default().to_owned())
}

fn has_option(spc: &VmSpc<'_>, target: &str, option: &str) -> Result<()> {
    let options = options(spc, target)?;
    ensure!(options.split(',').any(|o| o == option), "{options}");
    Ok(())
}

#[test]
fn every_version_of_nfs_4_mounts() {
    with_client(|spc| {
        let server = knfsd()?;
        let source = format!("{}:/data", server.vm().address());
        for (options, version) in [
            ("rw", "4.2"),
            ("vers=4.2", "4.2"),
            ("vers=4.1", "4.1"),
            ("nfsvers=4.0", "4.0"),
        ] {
            let mount = ["-t", "nfs", "-o", options, &source];
            spc.life(&mount, "/mnt/nfs", ["nfs4", &source], |record| {
                ensure!(record["route"] == "preload", "{record}");
                has_option(spc, "/mnt/nfs", &format!("vers={version}"))?;
                ensure!(spc.host.read("/mnt/nfs/file")? == b"served\n");
                let new = format!("/from {version}");
                spc.host
                    .write(format!("/mnt/nfs{new}"), version.as_bytes())?;
                let exported = format!("{}/data{new}", Knfsd::EXPORTS);
                ensure!(server.vm().read(exported)? == version.as_bytes());
                // The server knows its client by address and host name.
                let clients = server
                    .vm()
                    .sh("cat /proc/fs/nfsd/clients/*/info")?
                    .ok()?
                    .text();
                let (address, name) = (spc.host.address(), spc.host.name());
                let minor = version.split_once('.').map_or("", |(_, minor)| minor);
                for expected in [
                    format!("address: \"{address}:"),
                    format!("NFSv{version} {name}"),
                    format!("minor version: {minor}"),
                ] {
                    ensure!(clients.contains(&expected), "{expected}: {clients}");
                }
                ensure_running(spc, &[])
            })?;
        }
        // By the name of the host, and without a type.
        let mount = ["-t", "nfs4", &source];
        spc.life(&mount, "/mnt/nfs", ["nfs4", &source], |_| Ok(()))
    });
}

#[test]
fn nfs_mounts_read_only_and_below_an_export() {
    with_client(|spc| {
        let server = knfsd()?.vm().address();
        let (data, ro) = (format!("{server}:/data"), format!("{server}:/ro"));
        for (options, source) in [("ro", &data), ("ro,vers=3,nolock", &data), ("rw", &ro)] {
            let shows = if options.contains("vers=3") {
                "nfs"
            } else {
                "nfs4"
            };
            let mount = ["-t", "nfs", "-o", options, source];
            spc.life(&mount, "/mnt/nfs", [shows, source], |_| {
                let refused = spc.host.sh("echo x > /mnt/nfs/file")?;
                ensure!(refused.error_text().contains("Read-only"), "{refused}");
                has_option(spc, "/mnt/nfs", if options == "rw" { "rw" } else { "ro" })
            })?;
        }
        for (options, shows) in [("vers=4.2", "nfs4"), ("vers=3,nolock", "nfs")] {
            let sub = format!("{server}:/data/sub");
            let mount = ["-t", "nfs", "-o", options, &sub];
            spc.life(&mount, "/mnt/nfs", [shows, &sub], |_| {
                ensure!(spc.host.read("/mnt/nfs/file")? == b"below\n");
                Ok(())
            })?;
        }
        // The mount table shows the source without the slash.
        let sub = format!("{server}:/data/sub");
        let mount = ["-t", "nfs", &format!("{sub}/")];
        spc.life(&mount, "/mnt/nfs", ["nfs4", &sub], |_| Ok(()))?;
        // The kernel mounts nested exports itself when a process enters them. The unmount removes
        // them too.
        let all = format!("{server}:/");
        spc.host.run(&["mkdir", "-p", "/mnt/nfs"])?.ok()?;
        spc.mount(&["-t", "nfs", &all, "/mnt/nfs"])?;
        ensure!(spc.host.read("/mnt/nfs/data/file")? == b"served\n");
        ensure!(
            spc.on("/mnt/nfs/data")?.len() == 1,
            "the nested export is not mounted"
        );
        spc.umount("/mnt/nfs")?;
        ensure!(spc.on("/mnt/nfs/data")?.is_empty() && spc.on("/mnt/nfs")?.is_empty());
        spc.is_clean()
    });
}

#[test]
fn nfs_3_locks_on_the_server_and_has_services_while_mounted() {
    with_client(|spc| {
        let (host, server) = (&spc.host, knfsd()?.vm());
        let source = format!("{}:/data", server.address());
        ensure_running(spc, &[])?;

        let mount = ["-t", "nfs", "-o", "vers=3,nolock", &source];
        spc.life(&mount, "/mnt/nolock", ["nfs", &source], |_| {
            has_option(spc, "/mnt/nolock", "nolock")?;
            has_option(spc, "/mnt/nolock", "local_lock=all")?;
            ensure_running(spc, &[])
        })?;

        // Two mounts at once need one process of each service.
        let targets = ["/mnt/a", "/mnt/b"];
        host.sh("mkdir -p /mnt/a /mnt/b")?.ok()?;
        thread::scope(|scope| {
            let mounts = targets.map(|target| {
                let source = &source;
                scope.spawn(move || {
                    let words = ["-t", "nfs", "-o", "vers=3", source, target];
                    spc.mount(&words)
                })
            });
            mounts.into_iter().try_for_each(|mount| {
                let output = mount.join().map_err(|_| anyhow::anyhow!("a panic"))?;
                output.map(drop)
            })
        })?;
        for target in targets {
            has_option(spc, target, "vers=3")?;
            has_option(spc, target, "local_lock=none")?;
        }
        ensure_running(spc, &BOTH)?;
        ensure!(host.read("/mnt/a/file")? == b"served\n");
        let listed = server.sh("showmount -a --no-headers")?.ok()?.text();
        ensure!(
            listed.contains(&format!("{}:/data", host.address())),
            "{listed}"
        );

        // The server holds the lock of a client's process.
        let inode = server
            .sh(&format!("stat -c %i {}/data/file", Knfsd::EXPORTS))?
            .ok()?
            .text();
        let locked = || -> Result<bool> {
            let locks = server.sh("cat /proc/locks")?.ok()?.text();
            Ok(locks.lines().any(|lock| {
                lock.contains("POSIX")
                    && lock.contains("WRITE")
                    && lock.contains(&format!(":{inode} "))
            }))
        };
        ensure!(
            !locked()?,
            "the server has a lock before the client took one"
        );
        spc.sh("(exec 9<>/proc/1/root/mnt/a/file && flock 9 && exec sleep 600) >/dev/null 2>&1 & echo $! >/tmp/holder")?
            .ok()?;
        until("the lock is on the server", locked)?;
        let monitored = server.sh("ls /var/lib/nfs/sm")?.ok()?.text();
        ensure!(
            monitored.contains(&host.address().to_string()),
            "{monitored}"
        );
        spc.sh("kill $(cat /tmp/holder)")?.ok()?;
        until("the lock is gone", || Ok(!locked()?))?;

        // The services end with the container, and the kernel's mounts stay. The next start of the
        // container starts the services again.
        host.sh(
            "runc kill spc TERM && until runc state spc | grep -q stopped; do sleep 0.2; done",
        )?
        .ok()?;
        spc.remove()?;
        until_running(spc, &[])?;
        host.start_container()?;
        until_running(spc, &BOTH)?;
        ensure!(spc.record("/mnt/a")?["state"] == "ok");
        // The kernel's lock manager still runs, and the new rpcbind knows it.
        let registered = spc.exec(&["rpcinfo", "-p"])?.ok()?.text();
        ensure!(registered.contains("nlockmgr"), "{registered}");

        host.run(&["umount", "/mnt/b"])?.ok()?;
        thread::sleep(Duration::from_secs(2));
        ensure_running(spc, &BOTH)?;
        // A lazily unmounted mount is still in use.
        spc.sh("(exec 9</proc/1/root/mnt/a/file && exec sleep 600) >/dev/null 2>&1 & echo $! >/tmp/holder")?
            .ok()?;
        host.run(&["umount", "-l", "/mnt/a"])?.ok()?;
        thread::sleep(Duration::from_secs(2));
        ensure_running(spc, &BOTH)?;
        spc.sh("kill $(cat /tmp/holder)")?.ok()?;
        until_running(spc, &[])?;
        // The services ran until the kernel had finished with the server.
        let complaints = host.sh("dmesg | grep -E 'lockd:|statd'")?.text();
        ensure!(complaints.is_empty(), "{complaints}");
        spc.is_clean()
    });
}

#[test]
fn an_nfs_3_mount_that_begins_while_the_last_one_ends_has_its_services() {
    with_client(|spc| {
        let source = format!("{}:/data", knfsd()?.vm().address());
        let mount = |target: &str| -> Result<()> {
            let words = ["-t", "nfs", "-o", "vers=3", &source, target];
            spc.mount(&words).map(drop)
        };
        let umount = |target: &str| spc.umount(target).map(drop);
        spc.host.sh("mkdir -p /mnt/a /mnt/b")?.ok()?;
        let (mut last, mut next) = ("/mnt/a", "/mnt/b");
        mount(last)?;
        for round in 0..8 {
            thread::scope(|scope| {
                let ends = scope.spawn(|| {
                    // A random pause, because the helpers need time: all orders occur.
                    thread::sleep(Duration::from_millis(150 * round));
                    umount(last)
                });
                mount(next)?;
                ends.join().map_err(|_| anyhow::anyhow!("a panic"))?
            })?;
            let answers = spc.exec(&["rpcinfo", "-T", "udp", "127.0.0.1", "100024"])?;
            answers.ok().with_context(|| format!("round {round}"))?;
            until_running(spc, &BOTH)?;
            std::mem::swap(&mut last, &mut next);
        }
        umount(last)?;
        until_running(spc, &[])?;
        spc.is_clean()
    });
}

#[test]
fn nfs_3_by_nsenter_has_its_services_too() {
    with_client(|spc| {
        let source = format!("{}:/data", knfsd()?.vm().address());
        let enter = format!("nsenter --mount=/proc/{}/ns/mnt", spc.pid()?);
        let mount = format!("{enter} /usr/bin/mount -t nfs -o vers=3 {source} /mnt");
        spc.host.sh(&mount)?.ok()?;
        has_option(spc, "/mnt", "vers=3")?;
        ensure_running(spc, &BOTH)?;
        spc.host.run(&["umount", "/mnt"])?.ok()?;
        until_running(spc, &[])
    });
}

#[test]
fn nfs_says_why_it_cannot_mount() {
    with_client(|spc| {
        let server = knfsd()?;
        let address = server.vm().address();
        let (data, nowhere) = (format!("{address}:/data"), format!("{address}:/no/such"));
        let private = format!("{address}:/private");
        spc.host.run(&["mkdir", "-p", "/mnt/nfs"])?.ok()?;
        let refused = |options: &str, source: &str, code: i32, expected: &[&str]| -> Result<()> {
            let words = [
                "-t",
                "nfs",
                "--timeout",
                "8",
                "-o",
                options,
                source,
                "/mnt/nfs",
            ];
            let output = spc.refused_mount(&words, code, expected)?;
            ensure!(output.elapsed < Duration::from_secs(20), "{output}");
            Ok(())
        };
        refused(
            "sec=krb5p",
            &data,
            1,
            &["Kerberos", "rpc.gssd", "keytab", "sec=sys"],
        )?;
        refused("bg", &data, 1, &["--timeout"])?;
        refused("rw", "/data", 1, &["SERVER:/PATH"])?;
        let hint = "hint: check whether the server exports this path, and to this host's address";
        refused("rw", &nowhere, 32, &["access denied by server", hint])?;
        refused("vers=3", &private, 32, &["access denied by server", hint])?;
        let hint = "hint: check what the server exports, and to whom";
        refused(
            "vers=4.2",
            &nowhere,
            32,
            &["No such file or directory", hint],
        )?;
        refused(
            "vers=2",
            &data,
            32,
            &["not supported", "hint: leave out vers="],
        )?;
        refused(
            "no_such_option",
            &data,
            32,
            &["incorrect mount option", "nfs(5)"],
        )?;

        let hint = "hint: check that the server runs";
        let nobody = "192.0.2.251:/data";
        refused(
            "vers=4.2",
            nobody,
            32,
            &["killed by spc after 8 s", "No route to host", hint],
        )?;
        server.stop()?;
        let down = || {
            refused(
                "vers=4.2",
                &data,
                32,
                &["killed by spc after 8 s", "Connection refused", hint],
            )?;
            let hint = "hint: rpcbind on the server knows no NFS server of this version";
            refused("vers=3", &data, 32, &["Program not registered", hint])
        };
        let result = down();
        server.start()?;
        result?;
        until_running(spc, &[])
    });
}

#[test]
fn ganesha_serves_nfs_mounts() {
    with_client(|spc| {
        let (server, cluster) = (
            lab::ganesha().context("no lab")?,
            lab::gluster().context("no lab")?,
        );
        let address = server.host().address();
        for export in ["vfs", "gluster"] {
            let source = format!("{address}:/{export}");
            for (options, version, shows) in [
                ("rw", "4.2", "nfs4"),
                ("vers=4.1", "4.1", "nfs4"),
                ("vers=4.0", "4.0", "nfs4"),
                ("vers=3", "3", "nfs"),
            ] {
                let mount = ["-t", "nfs", "-o", options, &source];
                let name = format!("by nfs {version} {}", spc.host.name());
                spc.life(&mount, "/mnt/ganesha", [shows, &source], |_| {
                    has_option(spc, "/mnt/ganesha", &format!("vers={version}"))?;
                    ensure_running(spc, if version == "3" { &BOTH } else { &[] })?;
                    spc.host
                        .write(format!("/mnt/ganesha/{name}"), options.as_bytes())?;
                    if export == "vfs" {
                        let file = Path::new(Ganesha::VFS).join(&name);
                        ensure!(server.host().read(file)? == options.as_bytes());
                        return Ok(());
                    }
                    for node in cluster.nodes() {
                        let file = node.brick("vol").join(&name);
                        ensure!(node.host().read(file)? == options.as_bytes());
                    }
                    Ok(())
                })?;
            }
        }
        until_running(spc, &[])
    });
}
