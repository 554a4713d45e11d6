//! The Helm chart, rendered by Helm: the same objects as the bases of kustomize, and valid ones for
//! other values.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use lab::kubernetes::{parse, validate};
use lab::render::{helm, helm_for, helm_lint, helm_notes, image_directory, kustomize};
use serde_json::{Value, json};

use crate::kubernetes::manifests::directory;
use crate::support::with_lab;

/// Labels that Helm's charts put on every object.
const HELM_LABELS: [&str; 4] = [
    "helm.sh/chart",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
];

/// Every value that adds an object or a field.
const EVERYTHING: &str = "
image: {repository: 192.0.2.1/spc, tag: 9.9.9, pullPolicy: Always}
imagePullSecrets: [{name: registry}]
kubeletDir: /var/lib/k0s/kubelet
node:
  extraCapabilities: [SYS_RESOURCE]
  maxUnavailable: 1
  tolerations: [{key: a, operator: Exists}]
  nodeSelector: {disk: ssd}
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
    {matchExpressions: [{key: a, operator: Exists}]}]}}}
  podAnnotations: {a: b}
  resources: {limits: {cpu: 1}}
controller:
  enabled: true
  replicas: 1
  backends: [{name: a, type: ceph, source: 'h:/x', quota: ceph, secrets: {secret: /etc/controller/secrets/a}}]
  priorityClassName: system-cluster-critical
  tolerations: [{operator: Exists}]
  affinity: {podAntiAffinity: {}}
  podAnnotations: {a: b}
flexvolume: {enabled: true, pluginDir: /var/lib/kubelet/volumeplugins}
metrics:
  enabled: true
  podMonitor: {enabled: true, labels: {release: prometheus}, authorization: {credentials: {name: a, key: token}}}
networkPolicy: {enabled: true}
";

fn chart(values: &str) -> Result<Vec<Value>> {
    helm(&image_directory("chart"), "spc", values)
}

/// Objects by kind and name, without Helm's labels, namespaces, and the text of JSON.
fn by_name(objects: Vec<Value>) -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for mut object in objects {
        if object["kind"] == "Namespace" {
            continue;
        }
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        let metadata = object["metadata"].as_object_mut().context("no metadata")?;
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.retain(|label, _| !HELM_LABELS.contains(&label.as_str()));
            if labels.is_empty() {
                metadata.remove("labels");
            }
        }
        if let Some(text) = object.pointer_mut("/data/backends.json") {
            *text = serde_json::from_str(text.as_str().context("no text")?)?;
        }
        let twice = all.insert(name.clone(), object);
        ensure!(twice.is_none(), "twice: {name}");
    }
    Ok(all)
}

/// Checks that a base and the chart with some values are the same.
fn is_base(base: &str, namespace: &str, values: &Value) -> Result<()> {
    let base = by_name(kustomize(&directory().join(base))?)?;
    let rendered = helm(&image_directory("chart"), namespace, &values.to_string())?;
    let rendered = by_name(rendered)?;
    let names: Vec<_> = base.keys().collect();
    ensure!(
        rendered.keys().collect::<Vec<_>>() == names,
        "{names:?}: {rendered:#?}"
    );
    for (name, object) in &base {
        let other = &rendered[name];
        ensure!(
            object == other,
            "{name}: {object:#}\nin the chart: {other:#}"
        );
    }
    Ok(())
}

#[test]
fn the_chart_is_the_bases() {
    with_lab(|_| {
        is_base("node", "spc", &json!({}))?;
        let node = json!({"enabled": false});
        let flexvolume = json!({"node": node, "flexvolume": {"enabled": true}});
        is_base("flexvolume", "spc-flexvolume", &flexvolume)?;
        let base = by_name(kustomize(&directory().join("controller"))?)?;
        let backends = &base["\"ConfigMap\" \"spc-backends\""]["data"]["backends.json"];
        let controller = json!({"enabled": true, "backends": backends});
        is_base(
            "controller",
            "spc",
            &json!({"node": node, "controller": controller}),
        )
    });
}

#[test]
fn the_values_of_the_chart_change_what_they_name() {
    with_lab(|_| {
        let objects = by_name(chart(EVERYTHING)?)?;
        let mut known = Vec::new();
        for object in objects.values() {
            // The schema of this kind is not Kubernetes' own.
            if object["kind"] == "PodMonitor" {
                continue;
            }
            let mut object = object.clone();
            if let Some(text) = object.pointer_mut("/data/backends.json") {
                *text = text.to_string().into();
            }
            known.push(object);
        }
        validate(&known)?;
        ensure!(
            objects.len() == 17 && known.len() == 16,
            "{:?}",
            objects.keys()
        );
        let node = &objects["\"DaemonSet\" \"spc-csi\""]["spec"];
        let pod = &node["template"]["spec"];
        for (pointer, value) in [
            ("/containers/0/image", json!("192.0.2.1/spc:9.9.9")),
            ("/containers/0/imagePullPolicy", json!("Always")),
            (
                "/containers/0/command/4",
                json!("--kubelet-dir=/var/lib/k0s/kubelet"),
            ),
            ("/containers/0/command/6", json!("--metrics=127.0.0.1:9750")),
            ("/containers/0/resources/limits/cpu", json!(1)),
            (
                "/containers/0/securityContext/capabilities/add/3",
                json!("SYS_RESOURCE"),
            ),
            (
                "/containers/1/args/1",
                json!("--upstream=http://127.0.0.1:9750/"),
            ),
            ("/imagePullSecrets/0/name", json!("registry")),
            ("/tolerations", json!([{"key": "a", "operator": "Exists"}])),
            ("/nodeSelector/disk", json!("ssd")),
        ] {
            ensure!(pod.pointer(pointer) == Some(&value), "{pointer}: {pod:#}");
        }
        ensure!(node["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 1);
        ensure!(node["template"]["metadata"]["annotations"] == json!({"a": "b"}));
        let flexvolume = &objects["\"DaemonSet\" \"spc-flexvolume\""]["spec"]["template"]["spec"];
        let install = &flexvolume["initContainers"][0]["command"];
        ensure!(install[3] == "/var/lib/kubelet/volumeplugins", "{install}");
        let monitor = &objects["\"PodMonitor\" \"spc-csi\""];
        ensure!(monitor["metadata"]["labels"] == json!({"release": "prometheus"}));
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        let ports = pod["containers"][1]["ports"]
            .as_array()
            .context("no ports")?;
        ensure!(
            ports.iter().any(|port| port["name"] == endpoint["port"]),
            "{endpoint}"
        );
        // Nothing is left of what is switched off.
        let nothing = "node: {enabled: false}";
        ensure!(chart(nothing)?.is_empty(), "{:#?}", chart(nothing)?);
        helm_lint(&image_directory("chart"), EVERYTHING)
    });
}

/// Checks that nothing has a field that Kubernetes before 1.30 does not know.
#[test]
fn older_versions_of_kubernetes_get_annotations_for_apparmor() {
    with_lab(|_| {
        let chart = image_directory("chart");
        for (version, has_field) in [("1.20.2", false), ("1.29.9", false), ("1.30.0", true)] {
            let rendered = Value::from(helm_for(version, &chart, EVERYTHING)?).to_string();
            let field = rendered.matches("appArmorProfile").count();
            let annotations = rendered.matches("container.apparmor.security").count();
            let expected = if has_field { (4, 0) } else { (0, 4) };
            ensure!(
                (field, annotations) == expected,
                "{version}: {field} {annotations}"
            );
        }
        Ok(())
    });
}

#[test]
fn the_chart_refuses_values_that_it_does_not_know() {
    with_lab(|_| {
        for (values, words) in [
            ("nodes: {enabled: true}", "nodes"),
            ("node: {toleration: []}", "toleration"),
            ("image: {tag: 1}", "tag"),
            ("kubeletDir: var/lib/kubelet", "kubeletDir"),
            ("node: {resources: {memory: 1Gi}}", "memory"),
            ("metrics: {port: 99999}", "port"),
            ("metrics: {podMonitor: {enable: true}}", "enable"),
            ("metrics: {podMonitor: {enabled: true}}", "metrics/enabled"),
            ("controller: {enabled: true}", "backends"),
            (
                "controller: {backends: [{name: a, type: cifs, source: '//h/s'}]}",
                "type",
            ),
        ] {
            let refused = chart(values).err().context(values)?;
            let error = format!("{refused:?}");
            ensure!(
                error.contains("schema") && error.contains(words),
                "{values}: {error}"
            );
        }
        Ok(())
    });
}

#[test]
fn the_notes_say_what_is_left_to_do() {
    with_lab(|_| {
        let chart = image_directory("chart");
        let notes = helm_notes(&chart, "{}")?;
        ensure!(
            notes.contains("image.repository") && !notes.contains("controller"),
            "{notes}"
        );
        let notes = helm_notes(&chart, EVERYTHING)?;
        for words in [
            "pod-security",
            "spc-csi",
            "spc-controller",
            "spc-flexvolume",
        ] {
            ensure!(
                notes.contains(words) && !notes.contains("image.repository"),
                "{notes}"
            );
        }
        Ok(())
    });
}

/// Checks that README.md of the chart describes each value, and no other.
#[test]
fn each_value_of_the_chart_is_described() {
    with_lab(|_| {
        let chart = image_directory("chart");
        let values = parse(&fs::read_to_string(chart.join("values.yaml"))?)?;
        let mut names = Vec::new();
        leaves("", &values[0], &mut names);
        let text = fs::read_to_string(chart.join("README.md"))?;
        let rows = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let mut described: Vec<_> = rows.map(str::to_owned).collect();
        names.sort();
        described.sort();
        ensure!(names == described, "{names:#?}\n{described:#?}");
        Ok(())
    });
}

/// Names of values that are no maps, or maps of the user's.
fn leaves(prefix: &str, value: &Value, names: &mut Vec<String>) {
    const WHOLE: [&str; 3] = ["resources", "sidecarResources", "nodeSelector"];
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{prefix}{name}");
        match value {
            Value::Object(map) if !map.is_empty() && !WHOLE.contains(&name.as_str()) => {
                leaves(&format!("{path}."), value, names);
            }
            _ => names.push(path),
        }
    }
}
