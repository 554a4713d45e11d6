//! Servers whose file systems have a daemon on the client: GlusterFS, CephFS by ceph-fuse, and SSH.

use anyhow::{Context, Result};
use lab::{AnyHost, Ceph, Cluster, Host, Lab};

use crate::kinds::fuse::sshd;

/// Servers of GlusterFS, CephFS and SSH.
pub struct Servers<'a> {
    cluster: &'a Cluster<'a>,
    ceph: &'a Ceph<'a>,
    ssh: Host<'a>,
}

impl<'a> Servers<'a> {
    /// Starts the servers that are not yet running.
    pub fn start(lab: &'a Lab) -> Result<Self> {
        Ok(Self {
            cluster: lab::gluster().context("no cluster")?,
            ceph: lab::ceph().context("no cluster")?,
            ssh: sshd(lab)?,
        })
    }

    /// Writes their keys to files of the host.
    pub fn keys(&self, host: &impl AnyHost) -> Result<()> {
        host.write("/srv/ssh", &self.ssh.read("/root/key")?)?;
        host.write("/srv/app", self.ceph.secret("app")?.as_bytes())?;
        host.sh("chmod 600 /srv/ssh /srv/app")?.ok().map(drop)
    }

    /// Commands that mount from each server.
    pub fn commands(&self) -> [Vec<String>; 3] {
        let ceph = format!("{}:/app", self.ceph.address());
        let ssh = format!("root@{}:/srv/data", self.ssh.address());
        let options = "IdentityFile=/host/srv/ssh,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,BatchMode=yes";
        [
            self.gluster("/mnt/gluster"),
            command(&[
                "-t",
                "ceph-fuse",
                "-o",
                "name=app",
                "--secret",
                "secret=file:/host/srv/app",
                &ceph,
                "/mnt/ceph",
            ]),
            command(&["-t", "fuse.sshfs", "-o", options, &ssh, "/mnt/ssh"]),
        ]
    }

    /// Command that mounts the GlusterFS volume.
    pub fn gluster(&self, target: &str) -> Vec<String> {
        let source = format!("{}:/vol", self.cluster.nodes()[0].host().address());
        command(&["-t", "glusterfs", &source, target])
    }
}

/// Words of `spc mount -o x-mount.mkdir WORDS`.
fn command(words: &[&str]) -> Vec<String> {
    let all = [&["spc", "mount", "-o", "x-mount.mkdir"], words].concat();
    all.into_iter().map(str::to_owned).collect()
}
