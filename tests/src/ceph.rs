//! A real Ceph cluster on one host of the lab: three monitors on three ports, a manager, an OSD
//! with its data in memory, and a metadata server. Clients and daemons authenticate (cephx).

use anyhow::{Context, Result};
use serde_json::Value;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::host::{Host, HostOptions};
use crate::outer::{Lab, shared};
use crate::roots::Root;

/// Names of the monitors, and their ports for protocol 2 and 1. The first monitor has the default
/// ports.
const MONITORS: [(&str, u16, u16); 3] = [("a", 3300, 6789), ("b", 3301, 6790), ("c", 3302, 6791)];

/// A cluster with a CephFS `cephfs` and a pool `rbd`.
///
/// The user `client.app` may use the directory `/app` of the file system, and `client.disk` the
/// images of the pool. The root of the file system is mounted on `/mnt` of the cluster's host.
#[derive(Debug)]
pub struct Ceph<'lab> {
    host: Host<'lab>,
    fsid: String,
}

impl Lab {
    /// Starts a cluster. Most tests want [`ceph`].
    pub fn ceph(&self) -> Result<Ceph<'_>> {
        let started = Instant::now();
        let host = self.host(HostOptions {
            root: Root::Ceph,
            ..HostOptions::default()
        })?;
        let mut ceph = Ceph {
            host,
            fsid: String::new(),
        };
        ceph.host
            .write("/etc/ceph/ceph.conf", ceph.settings().as_bytes())?;
        ceph.long(&ceph.first_monitors())
            .context("the monitors do not come up")?;
        ceph.long(CLUSTER).context("the cluster does not come up")?;
        ceph.fsid = ceph.sh("ceph fsid")?.trim().to_owned();
        ceph.host.say_cost("a Ceph cluster", started);
        Ok(ceph)
    }
}

impl<'lab> Ceph<'lab> {
    /// Returns the host of the cluster.
    pub fn host(&self) -> &Host<'lab> {
        &self.host
    }

    /// Returns the address of the cluster. The first monitor has the default ports there.
    pub fn address(&self) -> Ipv4Addr {
        self.host.address()
    }

    /// Returns addresses and ports of all monitors, separated by commas. The ports are those of
    /// protocol 1, as clients expect in a plain list.
    pub fn monitors(&self) -> String {
        let address = self.address();
        MONITORS
            .map(|(_, _, port)| format!("{address}:{port}"))
            .join(",")
    }

    /// Returns the id of the cluster.
    pub fn fsid(&self) -> &str {
        &self.fsid
    }

    /// Returns the key of a user: `app` or `disk`.
    pub fn secret(&self, user: &str) -> Result<String> {
        self.sh(&format!("ceph auth print-key client.{user}"))
    }

    /// Returns the keyring file of a user.
    pub fn keyring(&self, user: &str) -> Result<String> {
        self.sh(&format!("ceph auth get client.{user} 2>/dev/null"))
    }

    /// Runs a script on the cluster's host as administrator, and returns its output.
    pub fn sh(&self, script: &str) -> Result<String> {
        Ok(self.host.sh(script)?.ok()?.text())
    }

    /// Returns the sessions of a user on the metadata server.
    pub fn sessions(&self, user: &str) -> Result<Vec<Session>> {
        let list: Vec<Value> =
            serde_json::from_str(&self.sh("ceph tell mds.a session ls 2>/dev/null")?)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(list
            .iter()
            .filter(|session| session["client_metadata"]["entity_id"] == user)
            .map(|session| Session {
                address: text(&session["entity"]["addr"]["addr"]),
                root: text(&session["client_metadata"]["root"]),
                kernel: session["client_metadata"]["kernel_version"].is_string(),
            })
            .collect())
    }

    /// Returns the content of a file of the CephFS by inode number, read from the OSD. The file has
    /// at most 4 MiB, the size of an object.
    pub fn bytes(&self, inode: u64) -> Result<Vec<u8>> {
        let object = format!("{inode:x}.00000000");
        let get = ["rados", "-p", "cephfs_data", "get", &object, "-"];
        Ok(self.host.run(&get)?.ok()?.stdout)
    }

    /// Makes an image of this size in the pool `rbd`. `fill` writes its content into a file of that
    /// size.
    pub fn image(
        &self,
        name: &str,
        size: u64,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let file = std::env::temp_dir().join(format!("image-{}-{name}", std::process::id()));
        let made = File::create(&file).and_then(|new| new.set_len(size));
        let there = format!("/tmp/{name}");
        let imported = made
            .context("cannot make a file")
            .and_then(|()| fill(&file))
            .and_then(|()| self.host.copy_in(&file, &there));
        fs::remove_file(&file)?;
        imported?;
        self.sh(&format!(
            "rbd import --no-progress {there} rbd/{name} && rm {there}"
        ))?;
        Ok(())
    }

    /// Returns the content of an image of the pool `rbd`.
    pub fn content(&self, image: &str) -> Result<Vec<u8>> {
        let export = [
            "rbd",
            "export",
            "--no-progress",
            &format!("rbd/{image}"),
            "-",
        ];
        Ok(self.host.run(&export)?.ok()?.stdout)
    }

    /// Returns the addresses of the clients that have an image of the pool `rbd` open.
    pub fn watchers(&self, image: &str) -> Result<Vec<String>> {
        let status: Value =
            serde_json::from_str(&self.sh(&format!("rbd status --format json rbd/{image}"))?)?;
        let watchers = status["watchers"].as_array();
        let watchers = watchers.with_context(|| format!("no watchers: {status}"))?;
        let address = |watcher: &Value| watcher["address"].as_str().unwrap_or_default().to_owned();
        Ok(watchers.iter().map(address).collect())
    }

    /// Kills a monitor.
    pub fn stop_monitor(&self, name: &str) -> Result<()> {
        let script = format!(
            "pid=$(cat /run/ceph/mon.{name}.pid) && kill -9 $pid && while kill -0 $pid 2>/dev/null; do sleep 0.1; done"
        );
        self.sh(&script)?;
        Ok(())
    }

    /// Starts a monitor again.
    pub fn start_monitor(&self, name: &str) -> Result<()> {
        self.sh(&start_monitor(name))?;
        Ok(())
    }

    fn long(&self, script: &str) -> Result<()> {
        // `-e` ends the script at the first command that fails.
        let words = ["sh", "-ec", script];
        let limit = Duration::from_secs(300);
        self.host.command(&words)?.limit(limit).run()?.ok()?;
        Ok(())
    }

    fn settings(&self) -> String {
        let address = self.address();
        let monitors = MONITORS
            .map(|(_, two, one)| format!("[v2:{address}:{two},v1:{address}:{one}]"))
            .join(" ");
        format!("[global]\nmon host = {monitors}\n{SETTINGS}")
    }

    /// Returns the script that makes the keys of monitors and administrator and starts the
    /// monitors.
    fn first_monitors(&self) -> String {
        let address = self.address();
        let mut script = String::from(KEYS);
        script += "monmaptool --create";
        for (name, two, one) in MONITORS {
            script += &format!(" --addv {name} '[v2:{address}:{two},v1:{address}:{one}]'");
        }
        script += " /tmp/monmap >/dev/null\nexport CEPH_ARGS=\"--fsid $(monmaptool --print /tmp/monmap | sed -n 's/^fsid //p')\"\n";
        for (name, ..) in MONITORS {
            script += &format!(
                "ceph-mon --mkfs -i {name} --monmap /tmp/monmap --keyring /tmp/mon.keyring\n{}\n",
                start_monitor(name)
            );
        }
        script
    }
}

/// Metadata that a client of the CephFS sends to the metadata server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Address of the client, with an arbitrary port.
    pub address: String,
    /// Directory that the client has mounted.
    pub root: String,
    /// Whether the client is the kernel.
    pub kernel: bool,
}

fn start_monitor(name: &str) -> String {
    format!("ceph-mon -i {name} --pid-file /run/ceph/mon.{name}.pid")
}

/// Single copies of all data; long timeouts, because tests keep the machine busy; no delay to batch
/// updates.
const SETTINGS: &str = "
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
ms bind ipv6 = false
mon initial members = a b c
mon allow pool size one = true
paxos propose interval = 0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 1G
osd heartbeat grace = 120
mds beacon grace = 120
";

const KEYS: &str = "
mkdir -p /run/ceph
admin=/etc/ceph/ceph.client.admin.keyring
ceph-authtool --create-keyring $admin --gen-key -n client.admin --cap mon 'allow *' --cap mgr 'allow *' --cap osd 'allow *' --cap mds 'allow *'
ceph-authtool --create-keyring /tmp/mon.keyring --gen-key -n mon. --cap mon 'allow *'
ceph-authtool /tmp/mon.keyring --import-keyring $admin
";

const CLUSTER: &str = "
home=/var/lib/ceph
mkdir -p $home/mgr/ceph-x $home/osd/ceph-0 $home/mds/ceph-a
ceph auth get-or-create mgr.x mon 'allow profile mgr' osd 'allow *' mds 'allow *' >$home/mgr/ceph-x/keyring
ceph-mgr -i x &
uuid=$(cat /proc/sys/kernel/random/uuid)
ceph osd new $uuid
ceph auth get-or-create osd.0 mon 'allow profile osd' mgr 'allow profile osd' osd 'allow *' >$home/osd/ceph-0/keyring
ceph-osd -i 0 --mkfs --osd-uuid $uuid
ceph-osd -i 0
for pool in cephfs_metadata cephfs_data rbd; do ceph osd pool create $pool 8 8; done
ceph fs new cephfs cephfs_metadata cephfs_data
ceph fs set cephfs allow_new_snaps true
ceph auth get-or-create mds.a mon 'profile mds' mgr 'profile mds' osd 'allow *' mds 'allow *' >$home/mds/ceph-a/keyring
ceph-mds -i a
ceph osd pool application enable rbd rbd
ceph fs authorize cephfs client.app /app rws
ceph auth get-or-create client.disk mon 'profile rbd' osd 'profile rbd pool=rbd'
until ceph mds stat | grep -q up:active; do sleep 0.2; done
ceph-fuse -n client.admin /mnt
mkdir /mnt/app /mnt/app/sub /mnt/other
";

/// Returns the cluster that all tests of this process share, or `None` where there is no lab.
pub fn ceph() -> Option<&'static Ceph<'static>> {
    static CEPH: OnceLock<Ceph<'static>> = OnceLock::new();
    let lab = shared()?;
    Some(CEPH.get_or_init(|| lab.ceph().unwrap_or_else(|error| panic!("{error:?}"))))
}
