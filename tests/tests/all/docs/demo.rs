//! `scripts/demo`, step by step.

use anyhow::ensure;

use crate::support::with_gluster;

#[test]
fn the_demo_shows_what_it_says() {
    with_gluster(|lab, cluster| {
        let mut shown = Vec::new();
        lab::demo(lab, cluster, &mut shown)?;
        let shown = String::from_utf8(shown)?;
        for line in [
            "host# docker run -d --name spc --privileged ",
            "host# docker exec spc spc mount -t glusterfs ",
            " /mnt/data fuse.glusterfs ",
            "server 3# cat /bricks/vol/file\nhello from the host\n",
            "host# docker exec spc spc umount /mnt/data\n",
        ] {
            ensure!(shown.contains(line), "not shown: {line}\n{shown}");
        }
        Ok(())
    });
}
