//! LIO, the kernel's iSCSI server, in a virtual machine, configured with targetcli.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::outer::{Lab, shared};
use crate::roots::Root;
use crate::vm::{Vm, VmOptions};

/// An iSCSI server.
#[derive(Debug)]
pub struct Lio<'lab> {
    vm: Vm<'lab>,
    /// Lock for targetcli, which does not lock its files.
    targetcli: Mutex<()>,
}

impl Lab {
    /// Boots a server without targets.
    pub fn lio(&self) -> Result<Lio<'_>> {
        let started = Instant::now();
        let vm = self.vm(VmOptions {
            root: Root::Storage,
            ..VmOptions::default()
        })?;
        vm.sh(START)?.ok()?;
        vm.say_cost("LIO", started);
        Ok(Lio {
            vm,
            targetcli: Mutex::default(),
        })
    }
}

/// Script that starts the server. targetcli needs a system bus, on which it searches for user-space
/// back stores.
const START: &str = "set -e
for module in configfs target_core_mod target_core_file iscsi_target_mod; do modprobe $module; done
mountpoint -q /sys/kernel/config || mount -t configfs config /sys/kernel/config
mkdir -p /etc/target/pr /etc/target/alua /var/target/pr /var/target/alua /run/dbus /srv
cat >/tmp/bus.conf <<EOF
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy>
</busconfig>
EOF
dbus-daemon --config-file=/tmp/bus.conf --fork
";

/// Directory of the targets in configfs.
const TARGETS: &str = "/sys/kernel/config/target/iscsi";

impl<'lab> Lio<'lab> {
    /// Returns the server's virtual machine.
    pub fn vm(&self) -> &Vm<'lab> {
        &self.vm
    }

    /// Copies files to `/srv` on the server, without the holes in them.
    pub fn put(&self, directory: &Path, names: &[&str]) -> Result<()> {
        let archive = std::process::Command::new("tar")
            .args(["--create", "--sparse", "--gzip", "--directory"])
            .arg(directory)
            .args(names)
            .output()
            .context("cannot run tar")?;
        ensure!(archive.status.success(), "tar: {archive:?}");
        let unpack = ["tar", "-C", "/srv", "--extract", "--gzip", "--sparse"];
        self.vm
            .command(&unpack)
            .input(&archive.stdout)
            .limit(Duration::from_secs(120))
            .run()?
            .ok()?;
        Ok(())
    }

    /// Makes a file of a size, calls `make` to fill it, and copies it to the server.
    pub fn disk(
        &self,
        name: &str,
        size: u64,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let directory = std::env::temp_dir().join(format!("lab-lio-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let path = directory.join(name);
        fs::File::create(&path)?.set_len(size)?;
        let put = make(&path).and_then(|()| self.put(&directory, &[name]));
        fs::remove_file(&path)?;
        put
    }

    /// Runs lines of targetcli.
    pub fn tell(&self, lines: &str) -> Result<()> {
        let _one = self
            .targetcli
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let output = self
            .vm
            .command(&["targetcli"])
            .input(lines.as_bytes())
            .limit(Duration::from_secs(120))
            .run()?
            .ok()?;
        let text = format!("{}{}", output.text(), output.error_text());
        let bad = [
            "Wrong",
            "rror",
            "annot",
            "No such path",
            "not valid",
            "not found",
        ];
        ensure!(!bad.iter().any(|word| text.contains(word)), "{output}");
        Ok(())
    }

    /// Makes a target without access control, with these files below `/srv` as its LUNs from 0 on.
    pub fn target(&self, iqn: &str, disks: &[&str]) -> Result<()> {
        let mut lines = String::new();
        for disk in disks {
            lines += &format!("/backstores/fileio create {disk} /srv/{disk} write_back=false\n");
        }
        lines += &format!("/iscsi create {iqn}\n");
        for (lun, disk) in disks.iter().enumerate() {
            lines += &format!("/iscsi/{iqn}/tpg1/luns create /backstores/fileio/{disk} {lun}\n");
        }
        lines += &format!(
            "/iscsi/{iqn}/tpg1 set attribute generate_node_acls=1 cache_dynamic_acls=1 demo_mode_write_protect=0 authentication=0\n"
        );
        self.tell(&lines)?;
        let luns = self
            .vm
            .sh(&format!("ls {TARGETS}/{iqn}/tpgt_1/lun"))?
            .ok()?;
        ensure!(luns.text().lines().count() == disks.len(), "{luns}");
        Ok(())
    }

    /// Returns a line for each session of a target.
    pub fn sessions(&self, iqn: &str) -> Result<Vec<String>> {
        let group = format!("{TARGETS}/{iqn}/tpgt_1");
        let listed = self
            .vm
            .sh(&format!("tr '\\0' '\\n' <{group}/dynamic_sessions"))?
            .ok()?;
        let names = listed.text();
        let names = names.lines().filter(|line| !line.is_empty());
        Ok(names.map(str::to_owned).collect())
    }

    /// Returns whether a file below `/srv` contains this text.
    pub fn holds(&self, disk: &str, text: &str) -> Result<bool> {
        let grep = ["grep", "-q", "-a", "-F", text, &format!("/srv/{disk}")];
        Ok(self.vm.run(&grep)?.status == crate::output::Status::Code(0))
    }
}

/// Returns the server that all tests of this process share, or `None` where there is no lab.
pub fn lio() -> Option<&'static Lio<'static>> {
    static LIO: OnceLock<Lio<'static>> = OnceLock::new();
    let lab = shared()?;
    let start = || lab.lio().unwrap_or_else(|error| panic!("{error:?}"));
    Some(LIO.get_or_init(start))
}
