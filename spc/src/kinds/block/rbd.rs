//! RBD: `rbd:POOL/[NAMESPACE/]IMAGE`, mapped by the kernel's client through rbd(8).

use crate::error::{Error, Result};
use crate::host::modules::Module;
use crate::kinds::block::model::{
    Command, Device, DevicePath, Identity, PATH_NUMBER, Step, SysfsLayout,
};
use crate::kinds::ceph;
use crate::kinds::model::{Diagnostics, KindInput, SecretDelivery, SecretParam};

/// Kernel modules.
pub const MODULES: [Module; 1] = [Module::driver("rbd")];

/// Limit of rbd in seconds to find a monitor.
const MOUNT_TIMEOUT: &str = "30";

/// Options for the map.
const OPTIONS: [&str; 6] = ["id", "mon", "keyring", "keyfile", "cluster", "conf"];

/// Builds the device of a source; `rest` is the text after `rbd:`.
///
/// # Errors
/// Fails if the text is not `POOL/IMAGE` or `POOL/NAMESPACE/IMAGE`.
pub fn device(rest: &str, input: &KindInput<'_>) -> Result<Device> {
    let bad = |why: &str| {
        Error::usage(format!("bad source: {}", input.source))
            .because(why)
            .hint("an RBD source is rbd:POOL/IMAGE or rbd:POOL/NAMESPACE/IMAGE")
    };
    let parts: Vec<&str> = rest.split('/').collect();
    let (pool, namespace, image) = match parts[..] {
        [pool, image] => (pool, "", image),
        [pool, namespace, image] => (pool, namespace, image),
        _ => return Err(bad("it has no pool or no image")),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+:".contains(c);
    let named =
        |name: &str| !name.is_empty() && !name.starts_with(['-', '.']) && name.chars().all(plain);
    if !parts.iter().all(|part| named(part)) {
        return Err(bad(
            "names have only letters, digits, dots, dashes, underscores, plus signs and colons; snapshots cannot be mounted",
        ));
    }
    let map = [
        "device",
        "map",
        "-t",
        "krbd",
        "--client_mount_timeout",
        MOUNT_TIMEOUT,
    ];
    let mut args: Vec<String> = map.map(str::to_owned).into();
    args.push(rest.to_owned());
    // `noudev`: rbd would wait for an event of udev, which may not run. The kernel makes the node.
    let mut map_options = vec!["noudev"];
    if input.options.read_only() {
        map_options.push("ro");
    }
    args.extend(["-o".into(), map_options.join(",")]);
    for (option, argument) in [
        ("cluster", "--cluster"),
        ("conf", "--conf"),
        ("id", "--id"),
        ("mon", "-m"),
        ("keyring", "--keyring"),
        ("keyfile", "--keyfile"),
    ] {
        if let Some(value) = input.options.value(option) {
            // Semicolons or slashes separate monitors, since a comma ends an option.
            let value = match option {
                "mon" => value.replace([';', '/'], ","),
                _ => value.to_owned(),
            };
            args.extend([argument.to_owned(), value]);
        }
    }
    // With an empty key, rbd would look for a keyring where it is configured.
    if input.secrets.has("secret") && input.options.value("keyring").is_none() {
        args.extend(["--keyring".to_owned(), "/dev/null".to_owned()]);
    }
    let name = format!("rbd:{rest}");
    Ok(Device {
        session_key: name.clone(),
        name,
        modules: &MODULES,
        service: None,
        host_name: None,
        paths: vec![DevicePath {
            // rbd itself finds a monitor that answers.
            endpoint: None,
            name: rest.to_owned(),
            key: Vec::new(),
            steps: vec![Step::Run(Command {
                program: "rbd",
                args,
                accepted_codes: &[],
                output_check: None,
                secret: Some(SecretParam {
                    key: "secret",
                    delivery: SecretDelivery::Argument {
                        before: "--keyfile=",
                    },
                }),
            })],
        }],
        sysfs: SysfsLayout {
            path_dirs: "bus/rbd/devices/*",
            attributes: vec![
                ("pool", pool.to_owned()),
                ("pool_ns", namespace.to_owned()),
                ("name", image.to_owned()),
                ("current_snap", "-".into()),
            ],
            key_attributes: &[],
            scan: None,
            disk: "block/*".into(),
            all_disks: "block/*",
            delete: None,
            identity: Identity::Files(&["cluster_fsid", "pool_id", "image_id"]),
            recovery_timeout: None,
        },
        detach_path: Command {
            program: "rbd",
            args: ["device", "unmap", "-t", "krbd", "-o", "noudev", PATH_NUMBER]
                .map(|word| word.replace(PATH_NUMBER, &format!("/dev/rbd{PATH_NUMBER}")))
                .into(),
            accepted_codes: &[],
            output_check: None,
            secret: None,
        },
        cleanup: Vec::new(),
        options: &OPTIONS,
        secrets: &["secret"],
        diagnostics: DIAGNOSTICS,
    })
}

const DIAGNOSTICS: Diagnostics = Diagnostics {
    line: ceph::line,
    gives_up: None,
    transient: None,
    hints: &[
        ceph::WRONG_KEY,
        (
            "no keyring found",
            "name the user and the key: -o id=USER --secret secret=file:/host/etc/ceph/USER.secret, or keyfile=FILE or keyring=FILE with a path of the container",
        ),
        (
            "error opening pool",
            "check the pool: `rbd ls POOL`, on a node of the cluster",
        ),
        (
            "error opening image",
            "check the image: `rbd ls POOL`, on a node of the cluster, and whether this user may use it",
        ),
        (
            "image uses unsupported features",
            "the host's kernel lacks a feature of the image: rbd feature disable POOL/IMAGE FEATURE",
        ),
        (
            "couldn't connect to the cluster",
            "check the monitors: -o mon=ADDRESS[;ADDRESS…], and that this host reaches their ports 3300 and 6789",
        ),
    ],
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    fn parsed(rest: &str, options: &str) -> Result<Device> {
        let (options, secrets) = Options::parse_with_secrets([options])?;
        let input = KindInput {
            fs_type: "xfs",
            source: &format!("rbd:{rest}"),
            options: &options,
            secrets: &secrets,
            kernel_lacks: &|_| None,
            log_name: "mnt",
        };
        device(rest, &input)
    }

    #[test]
    fn a_key_that_is_given_excludes_keyrings_that_are_not() {
        for (options, excluded) in [
            ("id=me,secret=AQA", true),
            ("id=me,secret=", true),
            ("id=me,keyring=/k", false),
            ("id=me", false),
        ] {
            let device = parsed("rbd/disk", options).unwrap();
            let [Step::Run(map)] = &device.paths[0].steps[..] else {
                panic!("{device:?}")
            };
            let args = map.args.join(" ");
            assert_eq!(args.ends_with(" --keyring /dev/null"), excluded, "{args}");
        }
    }

    #[test]
    fn the_map_command_has_noudev_and_the_users_options() {
        let device = parsed("rbd/disk", "id=me,mon=192.0.2.1;192.0.2.2,ro,noatime").unwrap();
        let [Step::Run(map)] = &device.paths[0].steps[..] else {
            panic!("{device:?}")
        };
        assert_eq!(
            map.args.join(" "),
            "device map -t krbd --client_mount_timeout 30 rbd/disk -o noudev,ro --id me -m 192.0.2.1,192.0.2.2"
        );
        assert_eq!(map.secret.unwrap().key, "secret");
        assert_eq!(device.name, "rbd:rbd/disk");
        assert_eq!(device.detach_path.args.last().unwrap(), "/dev/rbd\0path");
    }

    #[test]
    fn sources_with_pool_namespace_and_image_are_parsed_and_others_refused() {
        let attributes = |rest: &str| parsed(rest, "").unwrap().sysfs.attributes;
        assert!(attributes("p/n/i").contains(&("pool_ns", "n".into())));
        assert!(attributes("p/i").contains(&("pool_ns", String::new())));
        for bad in [
            "", "i", "/i", "p/", "p/i@s", "p//i", "a/b/c/d", "p/-i", "p/*",
        ] {
            assert!(parsed(bad, "").is_err(), "{bad}");
        }
    }
}
