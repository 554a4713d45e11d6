//! A real SMB server: Samba on a host of the lab, with two shares and two users.

use anyhow::{Context, Result};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use crate::host::{Host, HostOptions};
use crate::outer::Lab;
use crate::roots::Root;

/// A host with smbd, which speaks SMB 3 only. The share `data` is writable, `docs` is read-only;
/// both are in `/srv`.
#[derive(Debug)]
pub struct Samba<'lab> {
    host: Host<'lab>,
}

/// Users: name, user and group id, password.
const USERS: [(&str, u32, &str); 2] =
    [("alice", 1001, Samba::PASSWORD), ("bob", 1002, "bob's own")];

const CONFIG: &str = "
[global]
server role = standalone server
server min protocol = SMB3_00
map to guest = never
smb ports = 445
disable netbios = yes
disable spoolss = yes
load printers = no
printcap name = /dev/null
log file = /var/log/samba/smbd.log
[data]
path = /srv/data
read only = no
[docs]
path = /srv/docs
";

impl Lab {
    /// Starts an SMB server.
    pub fn samba(&self) -> Result<Samba<'_>> {
        let started = Instant::now();
        let host = self.host(HostOptions {
            root: Root::Shares,
            ..HostOptions::default()
        })?;
        host.write("/etc/samba/smb.conf", CONFIG.as_bytes())?;
        host.sh("mkdir -p /srv/data /srv/docs && echo kept >/srv/docs/file")?
            .ok()?;
        for (name, id, password) in USERS {
            let add = format!(
                "echo {name}:x:{id}: >>/etc/group && echo {name}:x:{id}:{id}::/:/bin/false >>/etc/passwd && exec smbpasswd -s -a {name}"
            );
            let input = format!("{password}\n{password}\n");
            let command = host.command(&["sh", "-c", &add])?;
            command.input(input.as_bytes())?.run()?.ok()?;
        }
        host.sh("chown alice:alice /srv/data")?.ok()?;
        let samba = Samba { host };
        samba.start()?;
        samba.host.say_cost("an SMB server", started);
        Ok(samba)
    }
}

impl<'lab> Samba<'lab> {
    /// Password of `alice`, who owns the share `data`.
    pub const PASSWORD: &'static str = "s3cret, of alice";

    /// Returns the server's host.
    pub fn host(&self) -> &Host<'lab> {
        &self.host
    }

    /// Returns the address on the lab's network.
    pub fn address(&self) -> Ipv4Addr {
        self.host.address()
    }

    /// Starts smbd, and waits until it serves a share.
    pub fn start(&self) -> Result<()> {
        let script = format!(
            "smbd -D && until smbclient -U 'alice%{}' //127.0.0.1/data -c ls >/dev/null 2>&1; do sleep 0.1; done",
            Self::PASSWORD
        );
        let started = self.host.sh(&script)?;
        started.ok().context("smbd does not serve")?;
        Ok(())
    }

    /// Kills smbd with SIGKILL, as in a power cut.
    pub fn stop(&self) -> Result<()> {
        self.host.sh("busybox killall -9 smbd; true")?.ok()?;
        Ok(())
    }

    /// Returns the shares in use, each with its user's name (smbstatus(1)).
    pub fn sessions(&self) -> Result<Vec<(String, String)>> {
        let status = self.host.run(&["smbstatus", "--json"])?.ok()?.text();
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let users = &status["sessions"];
        let shares = status["tcons"].as_object().into_iter().flatten();
        Ok(shares
            .map(|(_, tcon)| {
                let session = text(&tcon["session_id"]);
                (text(&tcon["service"]), text(&users[session]["username"]))
            })
            .filter(|(share, _)| share != "IPC$")
            .collect())
    }

    /// Returns the directory of a share on the host.
    pub fn path(share: &str) -> std::path::PathBuf {
        Path::new("/srv").join(share)
    }
}
