//! RBD: `rbd:POOL/[NAMESPACE/]IMAGE`, mapped by the kernel's client through rbd(8).

use crate::error::{Error, Result};
use crate::host::modules::Module;
use crate::kinds::block::model::{Command, Device, Identity, Shows, Step, WAY, Way};
use crate::kinds::ceph;
use crate::kinds::model::{Asked, How, Pass, Telling};

/// The kernel's client.
pub const MODULES: [Module; 1] = [Module::driver("rbd")];

/// How many seconds rbd looks for a monitor.
const MOUNT_TIMEOUT: &str = "30";

/// Options that are for the mapping.
const OPTIONS: [&str; 6] = ["id", "mon", "keyring", "keyfile", "cluster", "conf"];

/// The device that `rest`, the source behind `rbd:`, names.
pub fn device(rest: &str, asked: &Asked<'_>) -> Result<Device> {
    let bad = |why: &str| {
        Error::usage(format!("bad source: {}", asked.source))
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
    if !named(pool) || !named(image) || parts.iter().any(|part| !named(part)) {
        return Err(bad(
            "names have letters, digits, dots, dashes and underscores; snapshots cannot be mounted",
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
    // Without udev nobody makes the events that rbd waits for; the kernel makes the node.
    let mut map = vec!["noudev"];
    if asked.options.read_only() {
        map.push("ro");
    }
    args.extend(["-o".into(), map.join(",")]);
    for (option, argument) in [
        ("cluster", "--cluster"),
        ("conf", "--conf"),
        ("id", "--id"),
        ("mon", "-m"),
        ("keyring", "--keyring"),
        ("keyfile", "--keyfile"),
    ] {
        if let Some(value) = asked.options.value(option) {
            // Monitors are separated by semicolons or slashes where a comma ends an option, as for mount.ceph.
            let value = match option {
                "mon" => value.replace([';', '/'], ","),
                _ => value.to_owned(),
            };
            args.extend([argument.to_owned(), value]);
        }
    }
    let name = format!("rbd:{rest}");
    Ok(Device {
        through: name.clone(),
        name,
        modules: &MODULES,
        service: None,
        host_name: None,
        ways: vec![Way {
            // Its program looks for a monitor that answers.
            at: None,
            name: rest.to_owned(),
            marks: Vec::new(),
            steps: vec![Step::Run(Command {
                program: "rbd",
                args,
                fine: &[],
                tells: None,
                secret: Some(Pass {
                    key: "secret",
                    how: How::Argument {
                        before: "--keyfile=",
                    },
                }),
            })],
        }],
        shows: Shows {
            ways: "bus/rbd/devices/*",
            holds: vec![
                ("pool", pool.to_owned()),
                ("pool_ns", namespace.to_owned()),
                ("name", image.to_owned()),
                ("current_snap", "-".into()),
            ],
            known_by: &[],
            scan: None,
            disk: "block/*".into(),
            disks: "block/*",
            delete: None,
            identity: Identity::Files(&["cluster_fsid", "pool_id", "image_id"]),
            patience: None,
        },
        end_way: Command {
            program: "rbd",
            args: ["device", "unmap", "-t", "krbd", "-o", "noudev", WAY]
                .map(|word| word.replace(WAY, &format!("/dev/rbd{WAY}")))
                .into(),
            fine: &[],
            tells: None,
            secret: None,
        },
        end: Vec::new(),
        options: &OPTIONS,
        secrets: &["secret"],
        telling: TELLING,
    })
}

const TELLING: Telling = Telling {
    line: ceph::line,
    gives_up: None,
    hints: &[
        ceph::WRONG_KEY,
        (
            "no keyring found",
            "name the user and the key: -o id=USER --secret secret=file:/host/etc/ceph/USER.secret, or, as the container sees them, keyfile=FILE or keyring=FILE",
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

    fn of(rest: &str, options: &str) -> Result<Device> {
        let (options, secrets) = Options::and_secrets([options])?;
        let asked = Asked {
            fs_type: "xfs",
            source: &format!("rbd:{rest}"),
            options: &options,
            secrets: &secrets,
            kernel_lacks: &|_| None,
            log_name: "mnt",
        };
        device(rest, &asked)
    }

    #[test]
    fn an_image_is_mapped_by_the_kernel_without_udev() {
        let device = of("rbd/disk", "id=me,mon=192.0.2.1;192.0.2.2,ro,noatime").unwrap();
        let [Step::Run(map)] = &device.ways[0].steps[..] else {
            panic!("{device:?}")
        };
        assert_eq!(
            map.args.join(" "),
            "device map -t krbd --client_mount_timeout 30 rbd/disk -o noudev,ro --id me -m 192.0.2.1,192.0.2.2"
        );
        assert_eq!(map.secret.unwrap().key, "secret");
        assert_eq!(device.name, "rbd:rbd/disk");
        assert_eq!(device.end_way.args.last().unwrap(), "/dev/rbd\0way");
    }

    #[test]
    fn a_source_names_a_pool_and_an_image() {
        let held = |rest: &str| of(rest, "").unwrap().shows.holds;
        assert!(held("p/n/i").contains(&("pool_ns", "n".into())));
        assert!(held("p/i").contains(&("pool_ns", String::new())));
        for bad in [
            "", "i", "/i", "p/", "p/i@s", "p//i", "a/b/c/d", "p/-i", "p/*",
        ] {
            assert!(of(bad, "").is_err(), "{bad}");
        }
    }
}
