//! `spc ls --watch`: each change is reported, until the reader has gone.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::support::{until, with_container};

const MOUNT: [&str; 6] = ["spc", "mount", "-t", "tmpfs", "scratch", "/mnt/data"];

#[test]
fn each_change_is_one_json_document() {
    with_container(|spc| {
        spc.host.sh("mkdir /mnt/data")?.ok()?;
        let mut watch = spc
            .host
            .spawn(&["docker", "exec", "spc", "spc", "ls", "--watch", "--json"])?;
        let mut printed = || -> Result<Vec<Value>> {
            let output = String::from_utf8(watch.so_far()?.0)?;
            let whole = output.lines().take(output.matches('\n').count());
            let documents = whole.map(|line| Ok(serde_json::from_str(line)?));
            documents.collect()
        };
        let nothing = Value::Array(Vec::new());
        until("an empty list is printed", || {
            Ok(printed()? == [nothing.clone()])
        })?;
        spc.exec(&MOUNT)?.ok()?;
        // The first report may come while the command is still running.
        until("the mount is printed", || {
            let all = printed()?;
            let last = &all[all.len() - 1][0];
            Ok(last["target"] == "/mnt/data" && last["state"] == "ok")
        })?;
        // Without a change there is no report.
        let before = printed()?;
        std::thread::sleep(std::time::Duration::from_secs(5));
        ensure!(printed()? == before, "{:?} after {before:?}", printed()?);
        spc.host.run(&["umount", "/mnt/data"])?.ok()?;
        until("the unmount is printed", || {
            Ok(printed()?.last() == Some(&nothing))
        })?;
        // The command ends when its reader has gone.
        let piped = spc.sh("spc ls --watch | head -n 1")?.ok()?;
        ensure!(piped.text().starts_with("TARGET "), "{piped}");
        ensure!(piped.elapsed.as_secs() < 10, "{piped}");
        Ok(())
    });
}

#[test]
fn a_terminal_is_redrawn_on_each_change() {
    with_container(|spc| {
        spc.host.sh("mkdir /mnt/data")?.ok()?;
        spc.exec(&MOUNT)?.ok()?;
        let watch = "timeout -s INT 5 spc ls --watch";
        let seen = spc
            .host
            .run(&["docker", "exec", "-t", "spc", "sh", "-c", watch])?;
        let frames: Vec<String> = seen
            .text()
            .split("\x1b[H")
            .skip(1)
            .map(str::to_owned)
            .collect();
        ensure!(frames.len() >= 2, "{seen}");
        for frame in frames {
            let whole = frame.contains("TARGET ") && frame.contains("/mnt/data ");
            ensure!(whole && frame.trim_end().ends_with("\x1b[J"), "{seen}");
        }
        Ok(())
    });
}
