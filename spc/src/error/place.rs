//! Terms of hints: options of a container engine, or in a pod of Kubernetes fields of its manifest.

use std::borrow::Cow;

/// Variable that kubelet sets in every container.
const IN_POD: &str = "KUBERNETES_SERVICE_HOST";

/// Returns whether this process runs in a container of a pod.
pub fn is_pod() -> bool {
    std::env::var_os(IN_POD).is_some()
}

/// Returns a hint in the terms of this place.
pub fn fit(hint: &str) -> Cow<'_, str> {
    match is_pod() {
        true => for_pod(hint).into(),
        false => hint.into(),
    }
}

/// Returns a hint with fields of a manifest in place of an engine's options.
fn for_pod(hint: &str) -> String {
    let mut text = hint.to_owned();
    for (start, instead) in [
        (
            "start the container also with",
            "give the container in the manifest also",
        ),
        (
            "start the container with",
            "give the container in the manifest",
        ),
        ("start it with", "give it in the manifest"),
    ] {
        text = text.replace(start, instead);
    }
    let mut words = Vec::new();
    for word in text.split(' ') {
        let end = word.trim_end_matches([',', ';', ':', ')']).len();
        let (word, punctuation) = word.split_at(end);
        let field = match word {
            "--pid=host" => "hostPID: true",
            "--net=host" => "hostNetwork: true",
            "--userns=host" => "hostUsers: true",
            "--privileged" => "privileged: true",
            "--device=/dev/fuse" => "a device plugin for /dev/fuse",
            "--tmpfs" => "an emptyDir at",
            "-v" => "a hostPath volume",
            "--security-opt" => continue,
            "apparmor=spc" => "appArmorProfile: {type: Localhost, localhostProfile: spc}",
            "apparmor=unconfined" => "appArmorProfile: {type: Unconfined}",
            "label=disable" => "seLinuxOptions: {type: spc_t}",
            other => other,
        };
        words.push(match field.strip_prefix("--cap-add=") {
            Some(capability) => format!("capability {capability}{punctuation}"),
            None => format!("{field}{punctuation}"),
        });
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_an_engine_become_fields_of_a_manifest() {
        for (hint, in_pod) in [
            (
                "start it with --net=host; otherwise",
                "give it in the manifest hostNetwork: true; otherwise",
            ),
            (
                "start the container with --privileged, or --cap-add=SYS_ADMIN --cap-add=KILL",
                "give the container in the manifest privileged: true, or capability SYS_ADMIN capability KILL",
            ),
            ("add --pid=host;", "add hostPID: true;"),
            ("add --tmpfs /run", "add an emptyDir at /run"),
            (
                "start the container with --security-opt label=disable",
                "give the container in the manifest seLinuxOptions: {type: spc_t}",
            ),
            ("run: mount -t nfs A:/x /mnt", "run: mount -t nfs A:/x /mnt"),
        ] {
            assert_eq!(for_pod(hint), in_pod);
        }
    }
}
