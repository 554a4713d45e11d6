//! Output on a terminal.

use anyhow::{Result, ensure};
use lab::Lab;

use crate::support::{Spc, with_lab};

fn progress(lab: &Lab) -> Result<()> {
    let spc = Spc::minimal(lab)?;
    let helper = "printf '#!/bin/sh\nsleep 100\n' >/usr/local/sbin/mount.slow && chmod +x /usr/local/sbin/mount.slow";
    spc.sh(helper)?.ok()?;
    spc.host.sh("mkdir /mnt/slow")?.ok()?;
    let mount = [
        "spc",
        "mount",
        "--timeout",
        "5",
        "-t",
        "slow",
        "x",
        "/mnt/slow",
    ];
    let on_terminal = [&["docker", "exec", "-t", "spc"], &mount[..]].concat();
    let seen = spc.host.run(&on_terminal)?.code(32)?.text();
    ensure!(
        seen.contains("/usr/local/sbin/mount.slow is running: 2 s of at most 5 s"),
        "{seen}"
    );
    // Without a terminal, spc prints only the error.
    let logged = spc.exec(&mount)?.code(32)?.error_text();
    ensure!(
        !logged.contains("is running") && logged.contains("hint:"),
        "{logged}"
    );
    spc.is_clean()?;

    // Ctrl-C ends a command that waits for a helper, and one that waits for another command.
    let stopped = |seconds: &str| {
        let script = format!(
            "timeout --preserve-status -s INT {seconds} spc mount --timeout 30 -t slow x /mnt/slow"
        );
        spc.host
            .spawn(&["docker", "exec", "spc", "sh", "-c", &script])
    };
    let first = stopped("4")?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let second = stopped("1")?.wait()?.code(8)?;
    ensure!(second.elapsed.as_secs() < 3, "{second}");
    let error = first.wait()?.code(8)?.error_text();
    ensure!(error.contains("stopped by signal 2"), "{error}");
    spc.is_clean()
}

#[test]
fn a_terminal_shows_that_a_helper_is_running() {
    with_lab(progress);
}
