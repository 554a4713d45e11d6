//! What the manifests for Kubernetes do on a node: their pods are started by docker, with what their fields mean, and
//! kubelet's part is played. Nothing of them can be left out.

use anyhow::{Context, Result, bail, ensure};
use lab::kubernetes::objects;
use lab::{Base, Cluster, Engine, Host, HostOptions, Lab, Output};
use serde_json::{Value, json};

use crate::manifests::{directory, volume};
use crate::support::{until, with_gluster};

/// Where kubelet looks for the driver, and calls it with a directory of a pod.
const DRIVER: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/spc~spc/spc";
const TARGET: &str = "/var/lib/kubelet/pods/7c5d/volumes/spc~spc/data";

/// Fields that mean nothing to a single node, or that docker has no word for.
const WITHOUT_MEANING: [&str; 12] = [
    "automountServiceAccountToken",
    "containers",
    "image",
    "initContainers",
    "name",
    "nodeSelector",
    "priorityClassName",
    "resources",
    "terminationGracePeriodSeconds",
    "terminationMessagePolicy",
    "tolerations",
    "volumes",
];

/// The pod of a DaemonSet.
fn pod(manifest: &str) -> Result<Value> {
    let objects = objects(&directory().join(manifest))?;
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let pod = set.and_then(|set| set.pointer("/spec/template/spec"));
    Ok(pod.context("no DaemonSet")?.clone())
}

/// Words of `docker run` for a container of a pod.
fn options(pod: &Value, container: &Value) -> Result<Vec<String>> {
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
            "command" | "securityContext" => {}
            "volumeMounts" => {
                for mount in value.as_array().context("no list")? {
                    let volumes = pod["volumes"].as_array().context("no volumes")?;
                    let volume = volumes
                        .iter()
                        .find(|volume| volume["name"] == mount["name"]);
                    let volume = volume.with_context(|| format!("no such volume: {mount}"))?;
                    ensure!(
                        volume["emptyDir"] == json!({"medium": "Memory"}),
                        "{volume}"
                    );
                    let path = mount["mountPath"].as_str().context("no path")?;
                    add("tmpfs", &format!("{path}:exec,mode=0777"));
                }
            }
            name => bail!("what does {name}: {value} mean?"),
        }
    }
    for (name, value) in fields(&container["securityContext"])? {
        match (name.as_str(), value) {
            ("capabilities", value) => {
                for (way, list) in value.as_object().context("no object")? {
                    for capability in list.as_array().context("no list")? {
                        let name = capability.as_str().context("no name")?;
                        add(&format!("cap-{way}"), name);
                    }
                }
            }
            ("privileged", Value::Bool(true)) => add("privileged", "true"),
            ("readOnlyRootFilesystem", Value::Bool(true)) => add("read-only", "true"),
            ("runAsUser", value) => add("user", &value.to_string()),
            // docker's own profile is the runtime's default.
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

/// A node of a cluster.
struct Node<'a> {
    host: Host<'a>,
}

impl<'a> Node<'a> {
    fn boot(lab: &'a Lab) -> Result<Self> {
        let host = lab.host(HostOptions::default())?;
        host.start(Engine::Docker, Some(&lab::image(Base::Trixie)?))?;
        host.run(&["mkdir", "-p", TARGET])?.ok()?;
        Ok(Self { host })
    }

    /// Starts the pod: each first container to its end, then the one that stays.
    fn start(&self, pod: &Value, image: &str) -> Result<()> {
        let containers = |name: &str| pod[name].as_array().context("no containers");
        for container in containers("initContainers")? {
            self.container(pod, container, &["--rm"], image)?;
        }
        for container in containers("containers")? {
            let name = container["name"].as_str().context("no name")?;
            self.container(pod, container, &["-d", "--name", name], image)?;
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

    /// The pod that stays is replaced.
    fn stop(&self) -> Result<()> {
        self.host
            .run(&["docker", "rm", "-f", "serve"])?
            .ok()
            .map(drop)
    }

    /// Calls the driver as kubelet does: one JSON object comes, and nothing else.
    fn driver(&self, words: &[&str]) -> Result<Value> {
        let output = self.host.run(&[&[DRIVER], words].concat())?;
        let reply: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("not JSON: {output}"))?;
        ensure!(reply["status"] == "Success" && output.success(), "{output}");
        Ok(reply)
    }

    /// What is mounted for the pod.
    fn mounts(&self) -> Result<Vec<lab::Mount>> {
        let all = self.host.mountinfo()?.into_iter();
        Ok(all
            .filter(|mount| mount.target.to_str() == Some(TARGET))
            .collect())
    }

    fn ls(&self) -> Result<Output> {
        self.host
            .run(&["docker", "exec", "serve", "spc", "ls", "--json"])
    }
}

/// What kubelet tells a driver of the volume of a pod in `pods/`, whose server is this.
fn told(manifest: &str, servers: &str) -> Result<String> {
    let objects = objects(&directory().join("pods").join(manifest))?;
    let volume = objects.iter().find_map(volume).context("no volume")?;
    let mut told = volume["options"].clone();
    told["servers"] = json!(servers);
    for (key, value) in [
        ("fsType", &volume["fsType"]),
        ("readwrite", &json!("rw")),
        ("pvOrVolumeName", &json!("data")),
        ("pod.name", &json!("web")),
        ("pod.namespace", &json!("default")),
        ("pod.uid", &json!("7c5d")),
        ("serviceAccount.name", &json!("default")),
    ] {
        told[format!("kubernetes.io/{key}")] = value.clone();
    }
    Ok(told.to_string())
}

/// A pod of the cluster uses a volume, through an upgrade, and nothing is left of it.
fn works(lab: &Lab, cluster: &Cluster<'_>, pod: &Value) -> Result<()> {
    let node = Node::boot(lab)?;
    let host = &node.host;
    node.start(pod, Base::Trixie.image())?;
    node.driver(&["init"])?;
    let servers = cluster
        .nodes()
        .iter()
        .map(|node| node.host().address().to_string());
    let told = told("glusterfs.yaml", &servers.collect::<Vec<_>>().join(","))?;
    node.driver(&["mount", TARGET, &told])?;
    let mounted = node.mounts()?;
    ensure!(
        mounted.len() == 1 && mounted[0].fstype == "fuse.glusterfs",
        "{mounted:?}"
    );
    let file = format!("{TARGET}/{}", host.name());
    host.write(&file, b"by a pod")?;
    let list = node.ls()?.ok()?;
    ensure!(list.text().contains(TARGET), "{list}");

    host.sh(crate::outlive::NEXT)?.ok()?;
    node.stop()?;
    node.start(pod, "localhost/spc:next")?;
    ensure!(node.mounts()? == mounted, "{:?}", node.mounts()?);
    ensure!(host.read(&file)? == b"by a pod");
    let version = "/var/lib/spc/current/usr/share/spc/version";
    host.run(&["test", "-e", version])?.ok()?;

    // kubelet may unmount by itself, which `spc serve` has to see.
    host.run(&["umount", TARGET])?.ok()?;
    until("it is forgotten", || Ok(node.ls()?.ok()?.text() == "[]"))?;
    until("only the new version is there", || {
        Ok(host.sh("ls /var/lib/spc/roots")?.text().lines().count() == 1)
    })?;
    node.driver(&["mount", TARGET, &told])?;
    node.driver(&["unmount", TARGET])?;
    ensure!(node.mounts()?.is_empty(), "{:?}", node.mounts()?);

    // The other manifest takes all of it away.
    node.stop()?;
    let before = host.sh("find / -xdev | grep -v ^/proc | sort")?.text();
    ensure!(before.contains(DRIVER), "{before}");
    node.start(&self::pod("uninstall.yaml")?, "localhost/spc:next")?;
    let left = "find / -xdev -name '*spc*' ! -path '/proc/*' ! -path '/sys/*' ! -path '/var/lib/docker/*'; ls -A /run/spc";
    let left = host.sh(left)?.text();
    ensure!(left.is_empty(), "left:\n{left}");
    Ok(())
}

#[test]
fn a_node_with_the_daemonset() {
    with_gluster(|lab, cluster| works(lab, cluster, &pod("spc.yaml")?));
}

/// Without each part something does not work.
#[test]
fn nothing_in_the_daemonset_is_needless() {
    with_gluster(|lab, cluster| {
        let whole = pod("spc.yaml")?;
        let mut less = Vec::new();
        let mut without = whole.clone();
        without.as_object_mut().context("no pod")?.remove("hostPID");
        less.push(("hostPID".to_owned(), without));
        let pointer = "/securityContext/capabilities/add";
        let add = whole["containers"][0].pointer(pointer).context("no list")?;
        for capability in add.as_array().context("no list")? {
            let mut without = whole.clone();
            for list in ["initContainers", "containers"] {
                let list = without[list][0].pointer_mut(pointer);
                let list = list.and_then(Value::as_array_mut).context("no list")?;
                list.retain(|other| other != capability);
            }
            less.push((capability.to_string(), without));
        }
        for mount in whole["containers"][0]["volumeMounts"]
            .as_array()
            .context("no list")?
        {
            let mut without = whole.clone();
            for list in ["initContainers", "containers"] {
                let list = without[list][0]["volumeMounts"].as_array_mut();
                list.context("no list")?.retain(|other| other != mount);
            }
            less.push((mount.to_string(), without));
        }
        for (part, pod) in less {
            let error = works(lab, cluster, &pod).err();
            let error = error.with_context(|| format!("it works without {part}"))?;
            eprintln!("without {part}: {error:#}");
        }
        Ok(())
    });
}
