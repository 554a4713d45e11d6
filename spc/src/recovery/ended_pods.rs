//! Volumes of pods that have ended while their server is gone.
//!
//! kubelet looks at a volume before it has the driver unmount it. On a mount that does not respond
//! it waits for ever, and the pod stays in Terminating. Without its daemon the mount fails at once,
//! and kubelet goes on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path};
use std::time::Instant;

use rustix::process::{Signal, pidfd_send_signal};

use crate::client::namespace_holder::LOGS;
use crate::error::{Error, Result};
use crate::liveness::health::Health;
use crate::liveness::probe;
use crate::process::cancel::CancelToken;
use crate::process::{marks, procfs};
use crate::state::Session;
use crate::state::record::{Record, State, log_name, now};

/// Age of a mount in seconds from which its pod counts as ended when it has no process. kubelet
/// mounts the volumes of a pod before it starts the first one.
const MIN_AGE: u64 = 30;

/// Returns the UID of the pod that a target belongs to: `KUBELET/pods/UID/volumes/PLUGIN/NAME`, for
/// CSI with `/mount` at its end.
pub fn pod_of(target: &Path) -> Option<&str> {
    let parts: Vec<_> = target.components().map(Component::as_os_str).collect();
    match parts[..] {
        [.., pods, uid, volumes, _, _] if pods == "pods" && volumes == "volumes" => uid.to_str(),
        [.., pods, uid, volumes, plugin, _, mount]
            if pods == "pods"
                && volumes == "volumes"
                && plugin == "kubernetes.io~csi"
                && mount == "mount" =>
        {
            uid.to_str()
        }
        _ => None,
    }
}

/// Returns whether a mount is the volume of a pod, and has a daemon.
fn is_of_pod(record: &Record) -> bool {
    record.state == State::Mounted
        && record.repair.is_some()
        && pod_of(Path::new(&record.target)).is_some()
}

/// Stops the daemons of volumes that do not respond and whose pods have ended. Their mounts stay
/// until kubelet has them unmounted.
///
/// # Errors
/// Fails if records or processes cannot be read.
pub fn release(session: &Session) -> Result<()> {
    let (mut records, _) = session.ledger.all()?;
    let oldest = now().saturating_sub(MIN_AGE);
    records.retain(|record| is_of_pod(record) && record.since <= oldest);
    retain_ended(&mut records)?;
    let states = probe::probe_all(session, &records)?;
    let mut states = states.into_iter();
    records.retain(|_| states.next() == Some(Health::Hung));
    // A pod may have started meanwhile.
    retain_ended(&mut records)?;
    if records.is_empty() {
        return Ok(());
    }
    let mut daemons = marks::by_mount().map_err(|e| cannot_search(&e))?;
    for record in records {
        let target = Path::new(&record.target);
        let Ok(_lock) = session.ledger.lock(target, CancelToken::at(Instant::now())) else {
            continue;
        };
        if session.ledger.get(target)?.map(|current| current.id) != Some(record.id.clone()) {
            continue;
        }
        tracing::warn!(
            target = %record.target, source = %record.source, request = %record.request_id,
            "its pod has ended and its server does not respond: stopping its daemon, so that kubelet can unmount it"
        );
        // A daemon that handles a signal, or the end of its ssh, would unmount first, and leave a
        // directory of the node in the place of the mount.
        let daemons = daemons.remove(&record.id).unwrap_or_default();
        for signal in [Signal::STOP, Signal::KILL] {
            for daemon in &daemons {
                // The process may have ended.
                let _ = pidfd_send_signal(daemon, signal);
            }
        }
    }
    Ok(())
}

/// Removes the client's logs about a volume of Kubernetes. No later mount has the same target, so
/// nothing else would remove them.
pub fn remove_logs(session: &Session, record: &Record) {
    let target = Path::new(&record.target);
    if pod_of(target).is_none() && record.csi.is_none() {
        return;
    }
    let name = format!("{}.log", log_name(target));
    let remove = move || -> io::Result<()> {
        let mut directories = vec![Path::new(LOGS).to_owned()];
        for entry in fs::read_dir(LOGS)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
        for entry in directories.iter().flat_map(fs::read_dir).flatten() {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default();
            // s3fs has its own name in front.
            if file.to_string_lossy().ends_with(&name) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    };
    match session.host.run("removing the logs of a volume", remove) {
        Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(target = %record.target, "cannot remove its logs: {error}");
        }
        _ => {}
    }
}

fn cannot_search(error: &io::Error) -> Error {
    Error::system("cannot search the processes of pods").because(error.to_string())
}

/// Keeps the mounts whose pods have no process, not even that of their sandbox.
fn retain_ended(records: &mut Vec<Record>) -> Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    let running = running_pods().map_err(|e| cannot_search(&e))?;
    // Without any, kubelet does not show pods by their cgroups.
    records.retain(|record| {
        let pod = pod_of(Path::new(&record.target)).map(plain);
        !running.is_empty() && pod.is_some_and(|pod| !running.contains(&pod))
    });
    Ok(())
}

/// Returns the UIDs of all pods that have a process.
fn running_pods() -> io::Result<BTreeSet<String>> {
    let mut pods = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        // The process may have ended.
        if let Ok(text) = procfs::read_text(entry?.path().join("cgroup")) {
            pods.extend(text.lines().filter_map(pod_of_cgroup));
        }
    }
    Ok(pods)
}

/// Returns the UID of the pod that a line of `/proc/PID/cgroup` names: as `kubepods/…/podUID`, or
/// with systemd as `kubepods….slice/kubepods-…-podUID.slice`. A user can make cgroups of any name,
/// but only below the user's own, so the path must begin with that of kubelet.
fn pod_of_cgroup(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    // A cgroup namespace shows the others with `/..` in front.
    let mut parts = path.split('/').skip(1).skip_while(|part| *part == "..");
    parts.clone().next()?.strip_prefix("kubepods")?;
    parts.find_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let (before, uid) = part.rsplit_once("pod")?;
        let is_start = before.is_empty() || before.ends_with('-');
        (is_start && !uid.is_empty()).then(|| plain(uid))
    })
}

/// Returns a UID without hyphens, for which systemd's names have underscores.
fn plain(uid: &str) -> String {
    uid.replace(['-', '_'], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_targets_and_cgroups() {
        let target = "/var/lib/kubelet/pods/1a-2b/volumes/spc~spc/data";
        assert_eq!(pod_of(Path::new(target)), Some("1a-2b"));
        let csi = "/var/lib/kubelet/pods/1a-2b/volumes/kubernetes.io~csi/pv/mount";
        assert_eq!(pod_of(Path::new(csi)), Some("1a-2b"));
        assert_eq!(pod_of(Path::new("/mnt/pods/1a-2b/data")), None);
        for (line, pod) in [
            ("0::/kubepods/burstable/pod1a-2b/c0ffee", Some("1a2b")),
            ("4:memory:/kubepods/pod1a-2b", Some("1a2b")),
            (
                "0::/../../kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1a_2b.slice/cri-c0ffee.scope",
                Some("1a2b"),
            ),
            ("0::/kubepods.slice/kubepods-pod1a_2b.slice", Some("1a2b")),
            ("0::/kubelet.slice/kubepods.slice", None),
            ("0::/system.slice/pod1a-2b", None),
            ("0::/user.slice/podman-1.scope", None),
            ("0::/user.slice/user-1000.slice/kubepods/pod1a-2b", None),
            (
                "0::/../kubepods-pod1a_2b.slice/cri-c0ffee.scope",
                Some("1a2b"),
            ),
        ] {
            assert_eq!(pod_of_cgroup(line).as_deref(), pod, "{line}");
        }
    }
}
