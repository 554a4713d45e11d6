//! The manifests for Kubernetes on a node. docker starts their pods, with the meaning of each
//! field, and the test plays kubelet. Every part of the manifests is needed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::kubernetes::objects;
use lab::render::kustomize;
use lab::{Base, Cluster, Engine, Host, HostOptions, Lab, Output};
use serde_json::{Value, json};

use crate::kubernetes::flexvolume::sshd;
use crate::kubernetes::kubelet::{DRIVER, Kubelet, NO_FSGROUP, Pod, Volume};
use crate::kubernetes::manifests::{directory, manifests, volume};
use crate::repair::container_restart::NEXT;
use crate::support::{until, with_gluster, with_lab};

/// Fields without a meaning on a single node, or without an option of docker.
const WITHOUT_MEANING: [&str; 16] = [
    "automountServiceAccountToken",
    "containers",
    "dnsPolicy",
    "image",
    "initContainers",
    "name",
    "nodeSelector",
    "priorityClassName",
    "resources",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "terminationMessagePolicy",
    "tolerations",
    "topologySpreadConstraints",
    // Directories, which the caller of [`options`] gives.
    "volumeMounts",
    "volumes",
];

/// Pod template of the DaemonSet of a base.
fn pod(base: &str) -> Result<Value> {
    let objects = kustomize(&directory().join(base))?;
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let pod = set.and_then(|set| set.pointer("/spec/template/spec"));
    Ok(pod.context("no DaemonSet")?.clone())
}

/// Options of `docker run` for a container of a pod.
pub fn options(pod: &Value, container: &Value) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut add = |word: &str, value: &str| words.push(format!("--{word}={value}"));
    let fields = |value: &Value| -> Result<Vec<(String, Value)>> {
        let fields = value.as_object().context("no object")?.clone();
        let known = |name: &str| WITHOUT_MEANING.contains(&name);
        Ok(fields
            .into_iter()
            .filter(|(name, _)| !known(name))
            .collect())
    };
    // kubelet sets this variable in every container.
    add("env", "KUBERNETES_SERVICE_HOST=192.0.2.1");
    let mut network = "none";
    for (name, value) in fields(pod)? {
        match (name.as_str(), value) {
            ("hostPID", Value::Bool(true)) => add("pid", "host"),
            ("hostNetwork", Value::Bool(true)) => network = "host",
            (name, value) => bail!("what does {name}: {value} mean?"),
        }
    }
    add("network", network);
    for (name, value) in fields(container)? {
        match name.as_str() {
            "command" | "livenessProbe" | "readinessProbe" | "securityContext" => {}
            // The caller of [`options`] replaces the variable in the command.
            "env" => ensure!(value.to_string().contains("spec.nodeName"), "{value}"),
            name => bail!("what does {name}: {value} mean?"),
        }
    }
    let security = container.get("securityContext").cloned();
    for (name, value) in fields(&security.unwrap_or_else(|| json!({})))? {
        match (name.as_str(), value) {
            ("capabilities", value) => {
                for (action, list) in value.as_object().context("no object")? {
                    for capability in list.as_array().context("no list")? {
                        let name = capability.as_str().context("no name")?;
                        add(&format!("cap-{action}"), name);
                    }
                }
            }
            ("privileged", Value::Bool(true)) => add("privileged", "true"),
            ("readOnlyRootFilesystem", Value::Bool(true)) => add("read-only", "true"),
            ("runAsUser", value) => add("user", &value.to_string()),
            // docker's own seccomp profile is the runtime's default.
            ("seccompProfile", value) => ensure!(value["type"] == "RuntimeDefault", "{value}"),
            ("appArmorProfile", value) => {
                ensure!(value["type"] == "Unconfined", "{value}");
                add("security-opt", "apparmor=unconfined");
            }
            ("seLinuxOptions", value) => {
                let label = value["type"].as_str().context("no type")?;
                add("security-opt", &format!("label=type:{label}"));
            }
            (name, value) => bail!("what does {name}: {value} mean?"),
        }
    }
    Ok(words)
}

/// Waits until the probes of a container succeed, as kubelet does.
pub fn probes(host: &Host<'_>, name: &str, container: &Value) -> Result<()> {
    for probe in ["readinessProbe", "livenessProbe"] {
        let Some(probe) = container.get(probe) else {
            continue;
        };
        let command = probe["exec"]["command"].as_array().context("no command")?;
        let command = command.iter().filter_map(Value::as_str);
        let words: Vec<&str> = ["docker", "exec", name]
            .into_iter()
            .chain(command)
            .collect();
        until("the probe succeeds", || Ok(host.run(&words)?.success()))?;
    }
    Ok(())
}

/// A node of a cluster.
struct Node<'a> {
    host: Host<'a>,
}

impl<'a> Node<'a> {
    fn boot(lab: &'a Lab) -> Result<Self> {
        let host = lab.host(HostOptions::default())?;
        host.start(Engine::Docker, Some(&lab::image(Base::Trixie)?))?;
        Ok(Self { host })
    }

    /// Starts the pod: each init container to its end, then the container that stays.
    fn start(&self, pod: &Value, image: &str) -> Result<()> {
        let containers = |name: &str| pod[name].as_array().context("no containers");
        for container in containers("initContainers")? {
            self.container(pod, container, &["--rm"], image)?;
        }
        for container in containers("containers")? {
            let name = container["name"].as_str().context("no name")?;
            self.container(pod, container, &["-d", "--name", name], image)?;
            probes(&self.host, name, container)?;
        }
        Ok(())
    }

    fn container(&self, pod: &Value, container: &Value, more: &[&str], image: &str) -> Result<()> {
        let options = options(pod, container)?;
        let options = options.iter().map(String::as_str);
        let command = container["command"].as_array().context("no command")?;
        let command = command.iter().filter_map(Value::as_str);
        let run = ["docker", "run"].iter().chain(more).copied();
        let words: Vec<&str> = run.chain(options).chain([image]).chain(command).collect();
        self.host.run(&words)?.ok().map(drop)
    }

    /// Stops the container that stays, so that another pod can replace it.
    fn stop(&self) -> Result<()> {
        self.host
            .run(&["docker", "rm", "-f", "serve"])?
            .ok()
            .map(drop)
    }

    /// Kills the daemon of a volume, and waits until `spc serve` has mounted it again.
    fn repairs(&self, target: &str) -> Result<()> {
        let record = || self.record(target);
        let daemons = |record: &Value| -> Vec<String> {
            let daemons = record["daemon"].as_array().into_iter().flatten();
            daemons.map(Value::to_string).collect()
        };
        let before = daemons(&record()?);
        ensure!(!before.is_empty(), "no daemon");
        self.host
            .sh(&format!("kill -9 {}", before.join(" ")))?
            .ok()?;
        until("the volume is repaired", || {
            let record = record()?;
            Ok(record["state"] == "ok" && daemons(&record) != before)
        })
        .with_context(|| self.log())
    }

    fn record(&self, target: &str) -> Result<Value> {
        let list: Vec<Value> = serde_json::from_str(&self.ls()?.ok()?.text())?;
        let mut list = list.into_iter();
        let record = list.find(|record| record["target"] == target);
        record.with_context(|| format!("no record of {target}"))
    }

    fn log(&self) -> String {
        let output = self.host.sh("docker logs serve 2>&1");
        output.map(|output| output.text()).unwrap_or_default()
    }

    fn ls(&self) -> Result<Output> {
        self.host
            .run(&["docker", "exec", "serve", "spc", "ls", "--json"])
    }
}

/// Pods of a manifest that have a volume of the driver.
fn examples(manifest: &Path) -> Result<Vec<Pod>> {
    let objects = objects(manifest)?;
    let strings = |value: Option<&Value>| -> Vec<(String, String)> {
        let fields = value.and_then(Value::as_object).into_iter().flatten();
        let text =
            |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        fields.filter_map(text).collect()
    };
    let secret = objects.iter().find(|object| object["kind"] == "Secret");
    let secret = strings(secret.map(|secret| &secret["stringData"]));
    let pod = |object: &Value| {
        let volume = volume(object)?;
        let group = object.pointer("/spec/securityContext/fsGroup");
        let volume = Volume {
            fs_type: volume["fsType"].as_str()?.to_owned(),
            options: strings(volume.get("options")),
            secret: secret.clone(),
            read_only: volume["readOnly"] == true,
        };
        let fs_group = group.and_then(|group| u32::try_from(group.as_u64()?).ok());
        let no_fsgroup = object
            .pointer("/spec/volumes/0/flexVolume/driver")
            .is_some_and(|driver| driver == "spc/no-fsgroup");
        Some(Pod {
            fs_group,
            driver: if no_fsgroup { NO_FSGROUP } else { DRIVER },
            ..Pod::new("7c5d", volume)
        })
    };
    Ok(objects.iter().filter_map(pod).collect())
}

/// Lets a pod of the cluster use a volume, through an upgrade, and checks that nothing is left of
/// it.
fn works(lab: &Lab, cluster: &Cluster<'_>, daemonset: &Value) -> Result<()> {
    let node = Node::boot(lab)?;
    let host = &node.host;
    node.start(daemonset, Base::Trixie.image())?;
    let kubelet = Kubelet::start(host)?;
    let mut pods = examples(&directory().join("flexvolume/pods/glusterfs.yaml"))?;
    let pod = pods.first_mut().context("no pod")?;
    let servers = cluster.nodes().iter().map(|node| node.host().address());
    let servers: Vec<String> = servers.map(|address| address.to_string()).collect();
    for (key, value) in &mut pod.volume.options {
        if key == "servers" {
            *value = servers.join(",");
        }
    }
    kubelet.set_up(pod)?;
    let target = pod.directory();
    let on = || -> Result<Vec<lab::Mount>> {
        let all = host.mountinfo()?.into_iter();
        Ok(all
            .filter(|mount| mount.target.to_str() == Some(&target))
            .collect())
    };
    let mounted = on()?;
    ensure!(
        mounted.len() == 1 && mounted[0].fstype == "fuse.glusterfs",
        "{mounted:?}"
    );
    let file = format!("{target}/{}", host.name());
    host.write(&file, b"by a pod")?;
    let doctor = ["docker", "exec", "serve", "spc", "doctor"];
    host.run(&[&doctor[..], &["--kind", "glusterfs"]].concat())?
        .ok()?;
    node.repairs(&target)?;
    let mounted = on()?;
    ensure!(mounted.len() == 1, "{mounted:?}");
    ensure!(host.read(&file)? == b"by a pod");

    host.sh(NEXT)?.ok()?;
    node.stop()?;
    node.start(daemonset, "localhost/spc:next")?;
    ensure!(on()? == mounted, "{:?}", on()?);
    ensure!(host.read(&file)? == b"by a pod");
    let version = "/var/lib/spc/current/usr/share/spc/version";
    host.run(&["test", "-e", version])?.ok()?;

    // kubelet may unmount by itself, which `spc serve` has to notice.
    host.run(&["umount", &target])?.ok()?;
    until("the record is removed", || {
        Ok(node.ls()?.ok()?.text() == "[]")
    })?;
    until("only the new version is there", || {
        let roots = host.sh("ls -d /var/lib/spc/roots/*/")?.text();
        Ok(roots.lines().count() == 1)
    })?;
    kubelet.set_up(pod)?;
    let logs = || -> Result<String> {
        let find = format!("find /var/log/spc -type f -name '*{}*'", pod.uid);
        Ok(host.sh(&find)?.ok()?.text())
    };
    ensure!(!logs()?.is_empty(), "no log of the volume");
    // A volume in use is not taken from its pod.
    let refused = node.start(&self::pod("uninstall")?, "localhost/spc:next");
    let error = format!("{:?}", refused.err().context("uninstalled")?);
    ensure!(
        error.contains("kubectl drain") && !error.contains("umount --all"),
        "{error}"
    );
    kubelet.tear_down(pod)?;
    ensure!(on()?.is_empty(), "{:?}", on()?);
    ensure!(logs()?.is_empty(), "left: {}", logs()?);

    // The uninstall manifest removes everything.
    node.stop()?;
    node.start(&self::pod("uninstall")?, "localhost/spc:next")?;
    let left = host.sh("find / -xdev -path /var/lib/kubelet -prune -o -name '*spc*' -print")?;
    ensure!(left.text().is_empty(), "left:\n{left}");
    Ok(())
}

/// Checks that the driver accepts the volume of each example, and that the allow list permits it.
#[test]
fn the_driver_accepts_each_example() {
    with_lab(|lab| {
        let node = Node::boot(lab)?;
        node.start(&pod("flexvolume")?, Base::Trixie.image())?;
        let kubelet = Kubelet::start(&node.host)?;
        let mut count = 0;
        for manifest in manifests("flexvolume/pods")? {
            for pod in examples(&manifest)? {
                let reply = kubelet.call(&["getvolumename", &kubelet.options(&pod)]);
                let name = reply.with_context(|| manifest.display().to_string())?;
                ensure!(name["volumeName"].is_string(), "{name}");
                count += 1;
            }
        }
        ensure!(count > 8, "only {count}");
        Ok(())
    });
}

#[test]
fn the_daemonset_serves_pods_through_an_upgrade() {
    with_gluster(|lab, cluster| works(lab, cluster, &pod("flexvolume")?));
}

/// Sends a signal to all SSH servers of a host.
fn signal_sshd(server: &Host<'_>, signal: &str) -> Result<()> {
    let script = r#"for process in /proc/[0-9]*; do
        case $(cat "$process/comm" 2>/dev/null) in sshd*) kill "-$1" "${process#/proc/}" ;; esac
    done"#;
    let words = ["sh", "-c", script, "signal", signal];
    server.run(&words)?.ok().map(drop)
}

/// Checks that a server that is gone keeps no pod in Terminating, and that the volume of a pod that
/// has not ended stays.
#[test]
fn a_pod_ends_whose_server_does_not_respond() {
    with_lab(|lab| {
        let server = sshd(lab, "password")?;
        let node = Node::boot(lab)?;
        let host = &node.host;
        node.start(&pod("flexvolume")?, Base::Trixie.image())?;
        let kubelet = Kubelet::start(host)?;
        let source = format!("root@{}:/srv/data", server.address());
        let options = [
            ("source", source.as_str()),
            ("options", "StrictHostKeyChecking=no"),
        ];
        let volume = Volume::new("fuse.sshfs", &options).secret("password", "password");
        let [ended, running] = ["e-1", "f-2"].map(|uid| Pod::new(uid, volume.clone()));
        // kubelet has a cgroup for each pod, and its sandbox a process there.
        let sandbox = "mkdir -p /sys/fs/cgroup/kubepods/podf-2 && { sleep 1000 >/dev/null 2>&1 & } \
            && echo $! >/sys/fs/cgroup/kubepods/podf-2/cgroup.procs";
        host.sh(sandbox)?.ok()?;
        for pod in [&ended, &running] {
            kubelet.set_up(pod)?;
        }
        let daemon = node.record(&running.directory())?["daemon"].clone();
        signal_sshd(&server, "STOP")?;
        let deadline = Instant::now() + Duration::from_secs(150);
        // A change of the mount table makes `spc serve` look at once.
        while node.record(&ended.directory())?["state"] != "stale" {
            ensure!(Instant::now() < deadline, "still there:\n{}", node.log());
            host.sh("mount -t tmpfs none /mnt && sleep 2 && umount /mnt")?
                .ok()?;
        }
        kubelet.tear_down(&ended)?;
        ensure!(!node.ls()?.ok()?.text().contains(&ended.directory()));
        let record = node.record(&running.directory())?;
        ensure!(
            record["daemon"] == daemon && record["state"] == "hung",
            "{record}"
        );
        signal_sshd(&server, "CONT")?;
        let file = format!("{}/file", running.directory());
        ensure!(host.read(file)? == b"on the server");
        kubelet.tear_down(&running)
    });
}

/// Removes one part at a time, and checks that something fails.
#[test]
fn every_part_of_the_daemonset_is_needed() {
    with_gluster(|lab, cluster| {
        let whole = pod("flexvolume")?;
        let mut less = Vec::new();
        let mut without = whole.clone();
        without.as_object_mut().context("no pod")?.remove("hostPID");
        less.push(("hostPID: true".to_owned(), without));
        let pointer = "/securityContext/capabilities/add";
        let add = whole["containers"][0].pointer(pointer).context("no list")?;
        for capability in add.as_array().context("no list")? {
            let mut without = whole.clone();
            for list in ["initContainers", "containers"] {
                let list = without[list][0].pointer_mut(pointer);
                let list = list.and_then(Value::as_array_mut).context("no list")?;
                list.retain(|other| other != capability);
            }
            let capability = capability.as_str().context("no name")?;
            less.push((format!("capability {capability}"), without));
        }
        for (part, pod) in less {
            let error = works(lab, cluster, &pod).err();
            let error = error.with_context(|| format!("works without {part}"))?;
            // An init container names the missing part, and kubelet shows its message.
            let error = format!("{error:?}");
            ensure!(error.contains(&part), "{error}");
        }
        Ok(())
    });
}
