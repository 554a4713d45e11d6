//! SMB 3: shares of a Samba server, mounted by the kernel's client. Each test also checks the
//! server's side.

use anyhow::{Result, ensure};
use lab::Samba;

use crate::kubernetes::flexvolume::NOBODY;
use crate::support::{VmSpc, until, with_lab};

const TARGET: &str = "/mnt/smb";

/// Mounts a share and uses it. The server must list the user until the unmount, and no user after
/// it.
fn life(
    spc: &VmSpc<'_>,
    samba: &Samba<'_>,
    arguments: &[&str],
    shown: [&str; 2],
    used: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    let share = shown[1].split('/').nth(3).unwrap_or_default().to_owned();
    spc.life(arguments, TARGET, shown, |record| {
        ensure!(record["route"] == "graft", "{record}");
        let session = (share, "alice".to_owned());
        ensure!(samba.sessions()? == [session], "{:?}", samba.sessions()?);
        let table = spc.host.sh("grep ' /mnt/smb ' /proc/mounts")?.ok()?.text();
        eprintln!("{table}");
        used(&table)
    })?;
    until("the server has no session", || {
        Ok(samba.sessions()?.is_empty())
    })
}

#[test]
fn an_smb_share_mounts_in_every_dialect() {
    with_lab(|lab| {
        let samba = lab.samba()?;
        let spc = VmSpc::privileged(lab)?;
        let (host, server) = (&spc.host, samba.host());
        let source = format!("//{}/data", samba.address());
        let credentials = format!("username=alice\npassword={}\n", Samba::PASSWORD);
        spc.put("/run/credentials", credentials.as_bytes())?;

        // Each dialect that the server speaks, and the negotiated one.
        for (vers, seen) in [
            ("vers=3.0,", "vers=3.0,"),
            ("vers=3.1.1,", "vers=3.1.1,"),
            ("", "vers=3.1.1,"),
        ] {
            let options =
                format!("{vers}sec=ntlmssp,uid=1234,gid=1235,credentials=/run/credentials");
            let mount = ["-t", "cifs", "-o", &options, &source];
            life(&spc, &samba, &mount, ["cifs", &source], |table| {
                ensure!(table.contains(seen) && table.contains("username=alice"));
                host.write("/mnt/smb/file", vers.as_bytes())?;
                ensure!(host.sh("stat -c %u:%g /mnt/smb/file")?.ok()?.text() == "1234:1235");
                ensure!(server.read("/srv/data/file")? == vers.as_bytes());
                ensure!(server.sh("stat -c %U /srv/data/file")?.ok()?.text() == "alice");
                server.write("/srv/data/from the server", vers.as_bytes())?;
                ensure!(host.read("/mnt/smb/from the server")? == vers.as_bytes());
                Ok(())
            })?;
        }

        // The first server does not exist, nor does one address of the second. The source keeps the
        // second server's name.
        let names = format!("{NOBODY} nas\n{} nas\n", samba.address());
        spc.sh(&format!("printf '{names}' >>/etc/hosts"))?.ok()?;
        for order in ["given", "1", "2"] {
            let options = format!("x-spc.order={order},credentials=/run/credentials");
            let mount = ["-t", "cifs", "-o", &options, "//192.0.2.253,nas/data"];
            life(&spc, &samba, &mount, ["cifs", "//nas/data"], |table| {
                ensure!(table.contains(&format!("addr={}", samba.address())));
                Ok(())
            })?;
        }

        // A directory of the share, by `smb3`, the other type name of the kernel's client; then
        // with the type taken from the source.
        server
            .sh("mkdir -p /srv/data/dir/below && chown -R alice: /srv/data/dir")?
            .ok()?;
        let below = format!("{source}/dir/below");
        let options = "credentials=/run/credentials";
        for (arguments, fs_type) in [
            (&["-t", "smb3", "-o", options, &below][..], "smb3"),
            (&["-o", options, &below][..], "cifs"),
        ] {
            life(&spc, &samba, arguments, [fs_type, &below], |_| {
                host.write("/mnt/smb/file", fs_type.as_bytes())?;
                ensure!(server.read("/srv/data/dir/below/file")? == fs_type.as_bytes());
                Ok(())
            })?;
        }

        // Read-only by the server's configuration, then by the mount's option.
        let docs = format!("//{}/docs", samba.address());
        let mount = ["-t", "cifs", "-o", options, &docs];
        life(&spc, &samba, &mount, ["cifs", &docs], |_| {
            ensure!(host.read("/mnt/smb/file")? == b"kept\n");
            let refused = host.sh("echo x >/mnt/smb/file")?;
            ensure!(refused.error_text().contains("denied"), "{refused}");
            Ok(())
        })?;
        let mount = ["-r", "-t", "cifs", "-o", options, &source];
        life(&spc, &samba, &mount, ["cifs", &source], |_| {
            let refused = host.sh("echo x >/mnt/smb/file")?;
            ensure!(refused.error_text().contains("Read-only"), "{refused}");
            Ok(())
        })?;
        spc.is_clean()
    });
}

#[test]
fn an_smb_password_reaches_only_the_server() {
    with_lab(|lab| {
        let samba = lab.samba()?;
        let spc = VmSpc::privileged(lab)?;
        spc.host.sh(&format!("mkdir -p {TARGET} /etc/keys"))?.ok()?;
        let line = format!("{}\n", Samba::PASSWORD);
        spc.put("/run/password", line.as_bytes())?;
        spc.host.write("/etc/keys/smb", line.as_bytes())?;
        let source = format!("//{}/data", samba.address());
        let mount = format!("exec spc mount -v -t cifs {source} {TARGET}");
        for (option, input) in [
            ("-o username=alice --secret password=stdin", &*line),
            ("-o username=alice --secret password=file:/run/password", ""),
            // A file of the host, although the host's tree is not bound.
            (
                "-o username=alice --secret password=file:/host/etc/keys/smb",
                "",
            ),
            ("-o username=alice --secret password=env:P", ""),
            (
                r#"-o "username=alice,password=\"$(cat /run/password)\",ro""#,
                "",
            ),
        ] {
            let script = match option.contains("env:") {
                true => format!("P=$(cat /run/password) {mount} {option}"),
                false => format!("{mount} {option}"),
            };
            let output = spc
                .exec_with(&["sh", "-c", &script], input.as_bytes())?
                .ok()?;
            ensure!(
                samba.sessions()?.len() == 1,
                "{option}: {:?}",
                samba.sessions()?
            );
            let shown = format!("{output}{:?}", spc.record(TARGET)?);
            let left = "cat /run/spc/mounts/*.json /proc/mounts; dmesg; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ";
            let left = spc.host.sh(left)?;
            ensure!(left.text().contains(TARGET), "{left}");
            ensure!(
                !shown.contains("s3cret") && !left.text().contains("s3cret"),
                "{option}: {shown}\n{left}"
            );
            spc.umount(TARGET)?;
        }
        spc.is_clean()
    });
}

#[test]
fn smb_says_why_it_cannot_mount() {
    with_lab(|lab| {
        let samba = lab.samba()?;
        let spc = VmSpc::privileged(lab)?;
        spc.host.sh(&format!("mkdir -p {TARGET}"))?.ok()?;
        let at = |share: &str| format!("//{}/{share}", samba.address());
        let credentials = |password: &str| {
            let text = format!("username=alice\npassword={password}\n");
            spc.put("/run/credentials", text.as_bytes())
        };
        let refused = |options: &str, source: &str, code, expected: &[&str]| {
            let words = ["-t", "cifs", "-o", options, source, TARGET];
            spc.refused_mount(&words, code, expected).map(drop)
        };
        let good = "credentials=/run/credentials";
        credentials("not hers")?;
        refused(
            good,
            &at("data"),
            32,
            &["Permission denied", "refuses the user"],
        )?;
        credentials(Samba::PASSWORD)?;
        refused(good, &at("nosuch"), 32, &["No such file", "no such share"])?;
        refused(
            good,
            &at("data/nosuch"),
            32,
            &["No such file", "no such directory"],
        )?;
        let old = format!("{good},vers=2.1");
        refused(
            &old,
            &at("data"),
            32,
            &["Operation not supported", "check vers="],
        )?;
        let odd = format!("{good},nosuchoption");
        refused(&odd, &at("data"), 32, &["Invalid argument", "dmesg"])?;
        refused(
            "credentials=/run/nosuch",
            &at("data"),
            32,
            &["opening credential file", "below /host"],
        )?;
        refused(
            "username=alice",
            &at("data"),
            32,
            &["assword", "--secret password"],
        )?;
        let tickets = format!("{good},sec=krb5");
        refused(&tickets, &at("data"), 1, &["no Kerberos", "sec=ntlmssp"])?;

        // A server that accepts connections and never replies.
        samba.host().sh("busybox killall -STOP smbd")?.ok()?;
        let words = [
            "--timeout",
            "10",
            "-t",
            "cifs",
            "-o",
            good,
            &at("data"),
            TARGET,
        ];
        spc.refused_mount(&words, 32, &["10 s", "--timeout"])?;
        samba.host().sh("busybox killall -CONT smbd")?.ok()?;
        samba.stop()?;
        refused(good, &at("data"), 32, &["can reach its port 445"])?;
        let nobody = "//192.0.2.254/data";
        refused(good, nobody, 32, &["can reach its port 445"])?;
        spc.is_clean()
    });
}

#[test]
fn an_smb_mount_survives_a_restart_of_its_server() {
    with_lab(|lab| {
        let samba = lab.samba()?;
        let spc = VmSpc::privileged(lab)?;
        let source = format!("//{}/data", samba.address());
        let password = Samba::PASSWORD.as_bytes();
        let script = format!(
            "exec spc mount -o username=alice,x-mount.mkdir --secret password=stdin {source} {TARGET}"
        );
        spc.exec_with(&["sh", "-c", &script], password)?.ok()?;
        spc.host.write("/mnt/smb/file", b"before")?;
        samba.stop()?;
        let state = || anyhow::Ok(spc.record(TARGET)?["state"].clone());
        let gone = state()?;
        ensure!(gone == "stale" || gone == "hung", "{gone}");
        samba.start()?;
        until("the client has found its server", || Ok(state()? == "ok"))?;
        ensure!(spc.host.read("/mnt/smb/file")? == b"before");
        samba.stop()?;
        let unmounted = spc.exec(&["spc", "umount", "-l", TARGET])?.ok()?;
        eprintln!("unmounted without its server: {:.1?}", unmounted.elapsed);
        ensure!(spc.on(TARGET)?.is_empty());
        spc.is_clean()
    });
}

/// mount.cifs drops all capabilities but a few. Dropping needs capabilities that the recommended
/// run line lacks.
#[test]
fn mount_cifs_works_with_the_documented_capabilities() {
    with_lab(|lab| {
        let samba = lab.samba()?;
        let spc = VmSpc::privileged(lab)?;
        spc.put("/run/password", Samba::PASSWORD.as_bytes())?;
        spc.host.sh(&format!("mkdir -p {TARGET}"))?.ok()?;
        let source = format!("//{}/data", samba.address());
        let with = |more: &[&str]| {
            let words = [
                "spc",
                "mount",
                "-o",
                "username=alice",
                "--secret",
                "password=file:/run/password",
                &source,
                TARGET,
            ];
            let all = [&["SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"], more].concat();
            let all: Vec<String> = all.iter().map(|name| format!("CAP_{name}")).collect();
            let process = serde_json::json!({
                "args": words, "cwd": "/", "env": ["PATH=/usr/sbin:/usr/bin"], "user": {"uid": 0, "gid": 0},
                "capabilities": {"bounding": all, "effective": all, "permitted": all},
            });
            spc.host
                .write("/run/process.json", process.to_string().as_bytes())?;
            spc.host
                .run(&["runc", "exec", "--process", "/run/process.json", "spc"])
        };
        let needed = ["DAC_READ_SEARCH", "DAC_OVERRIDE"];
        for (at, _) in needed.iter().enumerate() {
            let less: Vec<&str> = [&needed[..at], &needed[at + 1..]].concat();
            let refused = with(&less)?.code(32)?;
            let error = refused.error_text();
            for option in needed {
                ensure!(error.contains(&format!("--cap-add={option}")), "{refused}");
            }
        }
        with(&needed)?.ok()?;
        ensure!(spc.on(TARGET)?.len() == 1);
        spc.umount(TARGET)?;
        spc.is_clean()
    });
}
