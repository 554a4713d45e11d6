//! The FlexVolume driver replies to every call, whatever happens.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, Signal};
use rustix::process::{Pid, kill_process};

use crate::kubernetes::flexvolume::NOBODY;
use crate::kubernetes::kubelet::{driver, install};
use crate::support::{Spc, until, with_container};

/// Output of a driver that a script calls.
fn answer(host: &Host<'_>, script: &str) -> Result<String> {
    let output = host.run(&["sh", "-c", script, "kubelet", &driver()])?;
    let text = output.text();
    let reply: serde_json::Value =
        serde_json::from_str(&text).with_context(|| output.to_string())?;
    ensure!(
        output.stderr.is_empty() && text.lines().count() == 1,
        "{output}"
    );
    Ok(format!(
        "{} {}",
        reply["status"].as_str().unwrap_or_default(),
        reply["message"].as_str().unwrap_or_default()
    ))
}

/// Directory of the volume.
const DIR: &str = "/var/lib/kubelet/pods/1-2/volumes/spc~spc/data";

/// Password of the volume's secret, as kubelet encodes it.
const SECRET: &str = "aHVudGVyMi1pbi1iYXNlNjQ=";

/// Script that mounts a volume of a server which does not exist, with these further options.
fn mount(more: &str) -> String {
    let json = format!(
        r#"{{"kubernetes.io/fsType":"fuse.sshfs","source":"a@{NOBODY}:","kubernetes.io/secret/password":"{SECRET}"{more}}}"#
    );
    format!("$1 mount {DIR} '{json}'")
}

/// Runs a test's body with a container on a host that has the driver and the volume's directory.
fn with_driver(body: impl FnOnce(&Spc<'static>) -> Result<()>) {
    with_container(|spc| {
        install(spc)?;
        spc.host.run(&["mkdir", "-p", DIR])?.ok()?;
        body(spc)
    });
}

#[test]
fn the_driver_replies_when_its_helper_hangs_or_spc_is_missing() {
    with_driver(|spc| {
        let host = &spc.host;
        let started = Instant::now();
        let reply = answer(host, &mount(r#","timeout":"2""#))?;
        ensure!(
            reply.starts_with("Failure ") && reply.contains("killed by spc after 2 s"),
            "{reply}"
        );
        ensure!(started.elapsed() < Duration::from_secs(15));
        spc.is_clean()?;
        // The driver's file is still there, and the installation is not.
        host.sh("rm /var/lib/spc/current")?.ok()?;
        let reply = answer(host, &mount(""))?;
        ensure!(
            reply.contains("not installed on this host") && reply.starts_with("Failure"),
            "{reply}"
        );
        spc.is_clean()
    });
}

#[test]
fn the_driver_replies_when_its_work_is_killed() {
    with_driver(|spc| {
        let host = &spc.host;
        // The working process is killed, or kubelet kills the driver.
        for (who, signal, expected) in [
            ("--work", Signal::KILL, "killed by signal 9"),
            ("mount", Signal::TERM, "stopped by"),
        ] {
            let script = mount("");
            let answered = std::thread::scope(|scope| {
                let call = scope.spawn(|| answer(host, &script));
                let mut seen = None;
                until("the helper is running", || {
                    let find = |word: &str| {
                        host.processes().into_iter().find(|pid| {
                            let cmdline =
                                std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                            let words: Vec<_> = cmdline.split(|byte| *byte == 0).collect();
                            words.contains(&word.as_bytes())
                                && !words[0].ends_with(b"sh")
                                && words[0].ends_with(b"spc")
                        })
                    };
                    seen = find(who).filter(|_| has_helper(host));
                    Ok(seen.is_some())
                })?;
                // No secret is in the arguments that other processes can see, nor in the helper's.
                for pid in host.processes() {
                    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    let text = String::from_utf8_lossy(&cmdline);
                    ensure!(
                        text.contains("sh\0-c")
                            || !(text.contains(SECRET) || text.contains("hunter2")),
                        "{text}"
                    );
                }
                let pid = seen.and_then(Pid::from_raw).context("no such process")?;
                kill_process(pid, signal)?;
                call.join().map_err(|_| anyhow::anyhow!("a panic"))?
            })?;
            ensure!(
                answered.starts_with("Failure ") && answered.contains(expected),
                "{answered}"
            );
            // Nothing is left once the pod has gone.
            ensure!(answer(host, &format!("$1 unmount {DIR}"))? == "Success ");
            until("nothing is left", || Ok(spc.is_clean().is_ok()))?;
        }
        Ok(())
    });
}

#[test]
fn the_driver_replies_to_malformed_calls() {
    with_driver(|spc| {
        let host = &spc.host;
        for (script, expected) in [
            ("$1", "Failure no call is given"),
            ("$1 mount", "Failure bad arguments of mount"),
            (
                "$1 mount /mnt '{'",
                "Failure bad options of the volume: not JSON",
            ),
            ("$1 --help", "Not supported no such call"),
            (
                "$1 mount /mnt '{\"source\":\"h:/x\",\"kubernetes.io/fsType\":\"bind\"}'",
                "Failure volumes of type bind are not for pods",
            ),
            ("$1 unmount relative", "Failure bad target relative"),
            ("env -i $1 unmount /mnt", "Success"),
            (
                "cd /proc && $1 unmount /var/lib/kubelet/pods/9/volumes/spc~spc/never </dev/null",
                "Success",
            ),
            ("ulimit -v 1000000; ulimit -n 20; $1 init", "Success"),
            // A controller has the driver's file and nothing else.
            (
                "unshare -m sh -c 'umount -l /proc /sys; \"$0\" init' $1",
                "Success",
            ),
        ] {
            let reply = answer(host, script)?;
            ensure!(reply.starts_with(expected), "{script}: {reply}");
        }
        spc.is_clean()
    });
}

/// Returns whether a helper is running.
fn has_helper(host: &Host<'_>) -> bool {
    host.processes().into_iter().any(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| comm.trim() == "sshfs")
    })
}
