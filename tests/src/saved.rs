//! States of virtual machines, saved after a first boot and kept in the cache, one for each kind of
//! machine.
//!
//! QEMU writes a state as a migration to a file, and a machine starts from the file with
//! `-incoming`. A state has no name, no address and no image of the container. `WAKE` sets them in
//! each machine, with the time and new random numbers.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::cache::{Key, cached};
use crate::net;
use crate::outer::Lab;
use crate::roots::Root;
use crate::vm::{Parts, QEMU, Start, Vm, VmOptions};

/// Variable with the path of the file with a state, for the shell that QEMU starts.
pub(crate) const VARIABLE: &str = "LAB_STATE";

/// Limit for writing a state, which alone takes a second.
const LIMIT: Duration = Duration::from_secs(60);

/// Arguments: name, address, MAC address, seconds since 1970, and `image` if the container's image
/// is wanted. Standard input: random bytes.
const WAKE: &str = r#"
set -e
bb=/run/lab/busybox
/run/lab/lab reseed
$bb date -s "@$4" >/dev/null
$bb hostname "$1"
echo "$1" >/etc/hostname
printf '127.0.0.1 localhost\n%s %s\n' "$2" "$1" >/etc/hosts
$bb ip link set eth0 address "$3"
$bb ip address add "$2/24" dev eth0
$bb ip link set eth0 up
if [ "$5" = image ]; then bb=$bb $bb sh /run/lab/image; fi
"#;

/// systemd answers commands before it has started everything.
const SYSTEMD_IS_UP: &str =
    r#"until [ "$(systemctl is-system-running)" = running ]; do sleep 0.2; done"#;

/// Debian's policy refuses some of systemd's own services what they ask for.
const SELINUX_IS_UP: &str = "systemctl is-system-running --wait || [ $? = 1 ]";

/// Returns the saved state of such a machine, made now if the cache lacks it.
pub(crate) fn state(lab: &Lab, options: VmOptions, parts: &Parts) -> Result<PathBuf> {
    let mut key = Key::new(include_str!("saved.rs"));
    key.add(include_str!("vm.rs").as_bytes());
    let qemu = fs::metadata(QEMU).context("cannot find QEMU")?;
    key.add(format!("{} {}", qemu.size(), qemu.mtime()).as_bytes());
    for path in parts.saved() {
        key.add(path.as_os_str().as_bytes());
    }
    let kind = format!("saved-{:?}-{}", options.root, options.memory);
    cached(&kind, key, |path| save(lab, options, parts, path))
}

/// Boots a machine and saves it.
fn save(lab: &Lab, options: VmOptions, parts: &Parts, path: &Path) -> Result<()> {
    let options = VmOptions {
        image: None,
        ..options
    };
    let (process, root, memory) = (std::process::id(), options.root, options.memory);
    let name = format!("lab-monitor-{process}-{root:?}-{memory}");
    let monitor = std::env::temp_dir().join(name);
    let start = Start::ToSave {
        monitor: &monitor,
        state: path,
    };
    let mut vm = Vm::start(lab, options, parts, start)?;
    let up = match options.root {
        Root::Systemd => SYSTEMD_IS_UP,
        Root::Selinux => SELINUX_IS_UP,
        _ => "true",
    };
    vm.is_up(vm.command(&["sh", "-c", up]))?;
    let saved = migrate(&monitor);
    // QEMU removes its socket itself when it exits.
    let removed = fs::remove_file(&monitor);
    saved.context("cannot save a virtual machine")?;
    removed.or_else(|error| match error.kind() {
        ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    // The shell that QEMU started may still be writing.
    vm.wait(LIMIT)
}

/// Has QEMU write the state, and ends QEMU.
fn migrate(monitor: &Path) -> Result<()> {
    let stream = UnixStream::connect(monitor).context("QEMU has no monitor")?;
    let mut monitor = BufReader::new(stream);
    ask(&mut monitor, json!({"execute": "qmp_capabilities"}))?;
    let uri = format!("exec:cat >\"${VARIABLE}\"");
    let migrate = json!({"execute": "migrate", "arguments": {"uri": uri}});
    ask(&mut monitor, migrate)?;
    let end = Instant::now() + LIMIT;
    loop {
        let answer = ask(&mut monitor, json!({"execute": "query-migrate"}))?;
        match answer["status"].as_str() {
            Some("completed") => break,
            Some("failed" | "cancelled") => anyhow::bail!("QEMU cannot save: {answer}"),
            _ => ensure!(Instant::now() < end, "not saved in time: {answer}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ask(&mut monitor, json!({"execute": "quit"})).map(drop)
}

/// Sends a command of the QEMU Machine Protocol, and returns what comes back.
fn ask(monitor: &mut BufReader<UnixStream>, command: Value) -> Result<Value> {
    let stream = monitor.get_mut();
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    loop {
        let mut line = String::new();
        ensure!(monitor.read_line(&mut line)? > 0, "QEMU has ended");
        let mut answer: Value = serde_json::from_str(&line)?;
        ensure!(
            answer.get("error").is_none(),
            "QEMU refuses {command}: {answer}"
        );
        // A greeting and events come in between.
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
    }
}

/// Gives a machine that was started from a saved state its own seed, time, name and address.
pub(crate) fn wake(vm: &Vm<'_>, options: VmOptions) -> Result<()> {
    let mut seed = [0; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    // Rounded, because the script on the machine takes whole seconds.
    let now = (now + Duration::from_millis(500)).as_secs().to_string();
    let (name, address) = (vm.name(), vm.address().to_string());
    let (mac, image) = (net::mac(vm.number()), options.image.map_or("", |_| "image"));
    let words = ["/run/lab/busybox", "sh", "-c", WAKE, "wake"];
    let arguments = [&name, &address, &mac, &now, image];
    let words = [&words[..], &arguments].concat();
    vm.is_up(vm.command(&words).input(&seed))
}
