//! Records that outlive their subject: from an earlier boot, or from a damaged disk.

use anyhow::{Result, ensure};

use crate::support::{Spc, until, with_container};

const MOUNT: [&str; 6] = ["spc", "mount", "-t", "tmpfs", "scratch", "/mnt/data"];

/// Makes `spc serve` check the host's mounts.
fn stir(spc: &Spc<'_>) -> Result<()> {
    let script = "mkdir -p /mnt/stir && mount -t tmpfs stir /mnt/stir && umount /mnt/stir";
    spc.host.sh(script)?.ok()?;
    Ok(())
}

/// Puts the host in the state after a reboot, where the records are on a persistent disk.
fn age(spc: &Spc<'_>) -> Result<()> {
    let before = r#"cd /run/spc/mounts && sed -i 's/"boot":"[0-9a-f-]*"/"boot":"before"/' *.json && grep -l '"before"' *.json"#;
    spc.host.sh(before)?.ok()?;
    Ok(())
}

#[test]
fn records_of_an_earlier_boot_touch_no_mount() {
    with_container(|spc| {
        let host = &spc.host;
        host.sh("mkdir /mnt/data")?.ok()?;
        let stays = || -> Result<()> {
            ensure!(
                spc.on("/mnt/data")?.len() == 1,
                "a mount of this boot was unmounted"
            );
            Ok(())
        };
        // `spc serve` does not interfere. By chance, a mount of this boot has the same ids and
        // target.
        spc.stop_serve()?;
        spc.exec(&MOUNT)?.ok()?;
        age(spc)?;
        let list = spc.exec(&["spc", "ls"])?.ok()?.text();
        ensure!(list.contains(" gone "), "{list}");
        spc.umount("/mnt/data")?;
        stays()?;
        spc.is_clean()?;
        host.sh("umount /mnt/data")?.ok()?;

        // Another mount replaces it.
        spc.exec(&MOUNT)?.ok()?;
        age(spc)?;
        host.sh("umount /mnt/data")?.ok()?;
        spc.exec(&MOUNT)?.ok()?;
        ensure!(spc.record("/mnt/data")?["state"] == "ok");

        // `spc serve` removes the other record, and one of an unfinished mount.
        age(spc)?;
        let half = r#"sed -i 's/"state":"mounted"/"state":"mounting"/' /run/spc/mounts/*.json"#;
        host.sh(half)?.ok()?;
        host.sh(&format!("kill -CONT {}", spc.pid()?))?.ok()?;
        stir(spc)?;
        until("the record is removed", || Ok(spc.is_clean().is_ok()))?;
        stays()
    });
}

#[test]
fn a_damaged_record_without_a_mount_is_removed() {
    with_container(|spc| {
        let host = &spc.host;
        host.sh("mkdir /mnt/data /mnt/other")?.ok()?;
        for (damage, served) in [
            ("head -c 20", false),
            ("head -c 0", true),
            ("tr a-z A-Z", true),
        ] {
            if served {
                host.sh(&format!("kill -CONT {}", spc.pid()?))?.ok()?;
            } else {
                spc.stop_serve()?;
            }
            spc.exec(&MOUNT)?.ok()?;
            let script = format!(
                "cd /run/spc/mounts && kept=$(ls *.json) && {damage} <$kept >/tmp/damaged && mv /tmp/damaged $kept && echo $kept"
            );
            let file = host.sh(&script)?.ok()?.text();
            // While the mount is there, its damaged record may be needed.
            stir(spc)?;
            spc.exec(&MOUNT)?.code(2)?;
            ensure!(host.sh(&format!("ls /run/spc/mounts/{file}"))?.success());
            host.sh("umount /mnt/data")?.ok()?;
            if served {
                until("the damaged record is removed", || {
                    Ok(spc.is_clean().is_ok())
                })?;
            }
            spc.exec(&MOUNT)?.ok()?;
            ensure!(spc.record("/mnt/data")?["state"] == "ok");
            spc.umount("/mnt/data")?;
            spc.is_clean()?;
        }
        Ok(())
    });
}
