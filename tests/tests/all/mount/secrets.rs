//! A password reaches its helper, and no other process.

use std::fs;

use anyhow::{Result, ensure};
use lab::{HostOptions, Lab, Root};

use crate::support::{Spc, until, with_container, with_lab};

const SECRET: &str = "Correct,Horse 7";

/// Script of a helper. It reads its secret by every means, itself and in a child program. Then it
/// waits to be inspected, and fails with the secret in its error text.
const HELPER: &str = r#"#!/bin/sh
exec 2>&1
echo "$@" >/host/srv/seen/argv
case $0 in
*s3fs) file=$(echo "$4" | tr , '\n' | sed -n 's/^passwd_file=//p') ;;
*mount.cifs) file=/proc/self/fd/$PASSWD_FD ;;
*) file=/proc/self/fd/0 ;;
esac
IFS= read -r secret <"$file"
echo "$secret" >/host/srv/seen/first
setsid sh -c 'cat "$0" >/host/srv/seen/second; stat -Lc %a "$0" >/host/srv/seen/mode' "$file"
# As a C program would; dash knows numbers of one digit only.
if [ "$PASSWD_FD" ]; then bash -c 'cat <&$PASSWD_FD' >/host/srv/seen/inherited; fi
env >/host/srv/seen/environment
touch /host/srv/seen/ready
for _ in $(seq 200); do [ -e /host/srv/seen/done ] && break; sleep 0.1; done
echo "cannot log in to $2 with '$secret'"
exit 32
"#;

/// Checks that no process of the host shows the secret in its command line or environment. `spc`
/// alone may have it in its environment, when an option names that variable.
fn nobody_shows_it(spc: &Spc<'_>, helper: &str) -> Result<()> {
    let mut seen = Vec::new();
    for process in spc.host.processes() {
        let read = |file: &str| fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
        let (name, arguments) = (read("comm"), read("cmdline"));
        let name = String::from_utf8_lossy(&name).trim().to_owned();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        ensure!(!arguments.contains("Horse"), "{name}: {arguments}");
        let environment = read("environ");
        let environment = String::from_utf8_lossy(&environment);
        ensure!(
            name == "spc" || !environment.contains("Horse"),
            "{name}: {environment}"
        );
        if name == "spc" && arguments.contains(" mount ") || arguments.contains(helper) {
            seen.push(arguments);
        }
    }
    ensure!(
        seen.len() >= 2,
        "neither spc nor {helper} is running: {seen:?}"
    );
    Ok(())
}

/// Runs a script in the container that mounts with the secret. Inspects the host while the helper
/// runs, and afterwards.
fn kept(spc: &Spc<'_>, helper: &str, script: &str) -> Result<()> {
    spc.sh("rm -rf /host/srv/seen; mkdir /host/srv/seen")?
        .ok()?;
    spc.put(&format!("/usr/local/bin/{helper}"), HELPER.as_bytes())?;
    spc.put("/run/script", script.as_bytes())?;
    let before = spc.traces()?;
    let running = spc
        .host
        .spawn(&["docker", "exec", "-i", "spc", "sh", "/run/script"])?;
    until("the helper waits", || {
        Ok(spc.sh("test -e /host/srv/seen/ready")?.success())
    })?;
    nobody_shows_it(spc, helper)?;
    let ledger = spc.host.sh("cat /run/spc/mounts/*.json")?.ok()?.text();
    ensure!(
        ledger.contains("/mnt/data") && !ledger.contains("Horse"),
        "{ledger}"
    );
    let read = |file: &str| -> Result<String> {
        Ok(spc.sh(&format!("cat /host/srv/seen/{file}"))?.ok()?.text())
    };
    for way in ["first", "second"] {
        ensure!(read(way)? == SECRET, "{way}: {}", read(way)?);
    }
    ensure!(read("mode")? == "600");
    if helper == "mount.cifs" {
        ensure!(read("inherited")? == SECRET, "{}", read("inherited")?);
    }
    for shown in ["argv", "environment"] {
        ensure!(!read(shown)?.contains("Horse"), "{}", read(shown)?);
    }
    spc.sh("touch /host/srv/seen/done")?.ok()?;
    let output = running.wait()?.code(32)?;
    let error = output.error_text();
    ensure!(!format!("{output}").contains("Horse"), "{output}");
    ensure!(
        error.contains("cannot log in to /mnt/data with '***'"),
        "{output}"
    );
    ensure!(spc.traces()? == before, "{output}");
    eprintln!("{script}\n{error}\n");
    // The container's log, and every file that was written.
    let left = spc.sh(
        "rm -r /host/srv/seen; grep -rls Horse /run /spc /tmp /var/log | grep -v '^/run/secret'",
    )?;
    ensure!(left.text().is_empty(), "{left}");
    let left = spc
        .host
        .sh("grep -rls Horse /run/spc /var/log/spc /var/lib/spc/roots/*/run")?;
    ensure!(left.text().is_empty(), "{left}");
    let log = spc.host.run(&["docker", "logs", "spc"])?;
    ensure!(!format!("{log}").contains("Horse"), "{log}");
    Ok(())
}

fn every_way(lab: &Lab) -> Result<()> {
    let spc = Spc::privileged(lab)?;
    spc.host
        .run(&["mkdir", "-p", "/mnt/data", "/etc/keys"])?
        .ok()?;
    let line = format!("{SECRET}\n");
    spc.put("/run/secret", line.as_bytes())?;
    spc.host.write("/etc/keys/ceph", line.as_bytes())?;
    // In options, quoted because of the comma. The shell reads the file, so that only spc has the
    // secret in its arguments.
    kept(
        &spc,
        "mount.cifs",
        r#"password=$(cat /run/secret)
exec spc mount -v -t cifs -o user=me,password=\""$password"\",ro //h/s /mnt/data"#,
    )?;
    kept(
        &spc,
        "s3fs",
        r#"secret=$(cat /run/secret)
exec spc mount -v -t fuse.s3fs "-oname=me,passwd=\"$secret\"" mon:/ /mnt/data"#,
    )?;
    // By means that no argument shows.
    kept(
        &spc,
        "s3fs",
        "exec spc mount -t fuse.s3fs -o name=me --secret passwd=file:/run/secret mon:/ /mnt/data",
    )?;
    kept(
        &spc,
        "s3fs",
        "exec spc mount -t fuse.s3fs --secret=passwd=file:/host/etc/keys/ceph mon:/ /mnt/data",
    )?;
    kept(
        &spc,
        "mount.cifs",
        "P=$(cat /run/secret) exec spc mount -v -t cifs --secret password=env:P //h/s /mnt/data",
    )?;
    // spc reads one line of stdin. The rest stays unread, and the other end may stay open.
    kept(
        &spc,
        "sshfs",
        "(cat /run/secret; sleep 15) | spc mount -t fuse.sshfs --secret password=stdin me@h:/d /mnt/data",
    )?;

    // `explain` shows no secret, and needs none given by --secret.
    let explain = r#"spc explain --json -t cifs -o "password=\"$(cat /run/secret)\"" //h/s /mnt/data && spc explain -t fuse.s3fs -o "passwd=\"$(cat /run/secret)\"" mon:/ /mnt/data && spc explain -t cifs --secret password=stdin //h/s /mnt/data"#;
    let explained = spc.sh(explain)?.ok()?;
    let text = explained.text();
    ensure!(!format!("{explained}").contains("Horse"), "{explained}");
    for expected in [
        "\"key\": \"password\"",
        "\"value\": \"***\"",
        ",passwd_file=/proc/self/fd/N",
        "secret     passwd=*** (from an option)",
        "secret     password=*** (from stdin)",
    ] {
        ensure!(
            text.contains(expected),
            "no {expected} in the plan: {explained}"
        );
    }
    Ok(())
}

#[test]
fn a_secret_is_seen_by_its_helper_only() {
    with_lab(every_way);
}

#[test]
fn bad_secrets_are_refused() {
    with_container(|spc| {
        spc.host.run(&["mkdir", "-p", "/mnt/data"])?.ok()?;
        spc.put("/run/empty", b"\n")?;
        spc.put("/run/two", b"Horse\nHorse\n")?;
        spc.sh("mkfifo /run/nobody")?.ok()?;
        let cifs = |more: &[&'static str]| {
            let words = [&["spc", "mount", "--timeout", "2", "-t", "cifs"], more];
            [&words.concat()[..], &["//h/s", "/mnt/data"]].concat()
        };
        for (more, expected) in [
            (
                &["-o", "secret=Horse"][..],
                &[
                    "bad option secret: type cifs has no secret of this name",
                    "password",
                ][..],
            ),
            (&["-o", "password=Horse,pass=Horse"], &["given as well"]),
            (
                &["-o", "password=Horse", "--secret", "password=env:P"],
                &["the secret password is given twice"],
            ),
            (
                &["--secret", "password=Horse"],
                &[
                    "bad --secret password: it does not say where",
                    "password=file:PATH",
                ],
            ),
            (&["--secret", "Horse"], &["not KEY=FROM"]),
            (
                &["--secret", "password=file:/run/none"],
                &[
                    "cannot read the secret password from file:/run/none",
                    "No such file",
                    "hint: name a file",
                ],
            ),
            (&["--secret", "password=file:/run/empty"], &["it is empty"]),
            (
                &["--secret", "password=file:/run/two"],
                &["bad secret password", "line break"],
            ),
            (&["--secret", "password=file:/run/nobody"], &["timed out"]),
            (
                &["--secret", "password=env:P"],
                &["env:P: it is not set", "hint: docker exec passes"],
            ),
            (
                &["--secret", "password=stdin", "--secret", "pass=stdin"],
                &["read from stdin"],
            ),
            (&["--optoins=password=Horse"], &["--optoins"]),
        ] {
            // Errors of the command line parser have another form.
            if more[0].starts_with("--optoins") {
                let output = spc.exec(&cifs(more))?.code(1)?;
                ensure!(output.error_text().contains(expected[0]), "{output}");
                ensure!(!output.error_text().contains("Horse"), "{output}");
                continue;
            }
            let output = spc.refused(&cifs(more), 1, expected)?;
            ensure!(!output.error_text().contains("Horse"), "{output}");
        }
        // A terminal would show the secret.
        let typed = cifs(&["--secret", "password=stdin"]);
        let on_terminal = [&["docker", "exec", "-t", "spc"], &typed[..]].concat();
        let seen = spc.host.run(&on_terminal)?.code(1)?.text();
        ensure!(seen.contains("it is a terminal"), "{seen}");
        for fs_type in ["tmpfs", "fuse.bindfs", "glusterfs", "nosuch"] {
            let mount = ["-t", fs_type, "-o", "password=Horse", "h:/x", "/mnt/data"];
            let expected = format!("type {fs_type} takes no secrets");
            let output = spc.refused_mount(&mount, 1, &[&expected])?;
            ensure!(!output.error_text().contains("Horse"), "{output}");
        }
        Ok(())
    });
}

#[test]
fn sshfs_mounts_by_password() {
    with_lab(|lab| {
        let server = lab.host(HostOptions {
            root: Root::Server,
            ..HostOptions::default()
        })?;
        let start = "mkdir -p /run/sshd /srv/data && ssh-keygen -q -A && chpasswd && /usr/sbin/sshd -o UsePAM=no -o PermitRootLogin=yes";
        let users = format!("root:{SECRET}\n");
        server
            .command(&["sh", "-c", start])?
            .input(users.as_bytes())?
            .run()?
            .ok()?;
        server.write("/srv/data/file", b"on the server")?;
        let spc = Spc::privileged(lab)?;
        let source = format!("root@{}:/srv/data", server.address());
        spc.put("/run/secret", SECRET.as_bytes())?;
        spc.put("/run/wrong", b"Wrong Horse")?;
        let options =
            "StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,NumberOfPasswordPrompts=1";
        let secret = "password=file:/run/secret";
        let mount = [
            "-t",
            "fuse.sshfs",
            "-o",
            options,
            "--secret",
            secret,
            &source,
        ];
        spc.life(&mount, "/mnt/ssh", ["fuse.sshfs", &source], |record| {
            ensure!(record["options"] == options, "{record}");
            spc.host.write("/mnt/ssh/new", b"written on the host")?;
            ensure!(server.read("/srv/data/new")? == b"written on the host");
            // A mount that differs in its secret alone is the same mount.
            let traces = spc.traces()?;
            for more in [&["--secret", "password=file:/run/wrong"][..], &[]] {
                let again = [
                    "spc",
                    "mount",
                    "-t",
                    "fuse.sshfs",
                    "-o",
                    options,
                    &source,
                    "/mnt/ssh",
                ];
                spc.exec(&[&again[..6], more, &again[6..]].concat())?.ok()?;
            }
            ensure!(spc.traces()? == traces);
            Ok(())
        })?;
        let wrong = "password=file:/run/wrong";
        let mount = [
            "-t",
            "fuse.sshfs",
            "-o",
            options,
            "--secret",
            wrong,
            &source,
            "/mnt/ssh",
        ];
        let output = spc.refused_mount(&mount, 32, &["Permission denied"])?;
        let log = server.sh("cat /var/log/auth.log 2>/dev/null; true")?;
        ensure!(!format!("{output}{log}").contains("Horse"), "{output}");
        Ok(())
    });
}
