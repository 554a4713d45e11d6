//! iSCSI: `iscsi:PORTAL[,PORTAL…]/IQN/LUN`, attached by Open-iSCSI's iscsiadm(8) and iscsid(8).
//!
//! The target is logged in to at each portal, without discovery unless that is asked for; records are made for the
//! purpose and removed at the end. Only the LUN that was asked for is scanned. Names and passwords go into the
//! records, which only root reads, never into arguments.

mod chap;
mod portal;

use crate::error::{Error, Result};
use crate::host::hostname::HostName;
use crate::host::modules::Module;
use crate::host::service::{Ready, Service};
use crate::kinds::block::iscsi::chap::{DISCOVERY, SECRETS, SESSION, credentials};
use crate::kinds::block::iscsi::portal::{HELLO, Portal};
use crate::kinds::block::model::{
    At, Command, Device, Identity, Patience, Shows, Step, Tells, Value, WAY, Way as BlockWay,
};
use crate::kinds::model::{Asked, Telling};

/// Where Open-iSCSI keeps its records: Debian 13 and later, earlier ones.
const RECORDS: [&str; 2] = ["/var/lib/iscsi", "/etc/iscsi"];

/// After how many seconds without a connection a session fails what waits for it.
const SOON: &str = "5";

/// iscsiadm(8): a session of these very parameters is there; nothing like that is there, and what it says of a discovery
/// that is not there.
const EXISTS: i32 = 15;
const NO_RECORD: i32 = 21;
const NO_DISCOVERY: i32 = 6;

/// Options that are for the attachment.
const OPTIONS: [&str; 6] = [
    "user",
    "user_in",
    "discovery",
    "discovery.user",
    "discovery.user_in",
    "initiator",
];

/// The device that `rest`, the source behind `iscsi:`, names.
pub fn device(rest: &str, asked: &Asked<'_>) -> Result<Device> {
    let bad = |why: &str| {
        Error::usage(format!("bad source: {}", asked.source))
            .because(why)
            .hint("an iSCSI source is iscsi:PORTAL[,PORTAL…]/IQN/LUN, for example iscsi:192.0.2.1,192.0.2.2:3261/iqn.2026-01.example:disks/0")
    };
    let (portals, rest) = rest.split_once('/').ok_or_else(|| bad("no portal"))?;
    let (iqn, lun) = rest.rsplit_once('/').ok_or_else(|| bad("no LUN"))?;
    let named = ["iqn.", "eui.", "naa."].iter().any(|p| iqn.starts_with(p));
    // RFC 3722: letters are lower case after preparation, but targets exist that do otherwise.
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
    if !named || iqn.len() > 223 || !iqn.chars().all(plain) {
        return Err(bad(
            "the target's name begins with iqn., eui. or naa., and has letters, digits, dots, colons and dashes",
        ));
    }
    let lun: u16 = match lun.parse() {
        Ok(lun) if lun <= 16383 => lun,
        _ => return Err(bad("a LUN is a number from 0 to 16383")),
    };
    let mut ways: Vec<BlockWay> = Vec::new();
    for portal in portals.split(',') {
        let portal = Portal::parse(portal).ok_or_else(|| bad("a portal is ADDRESS[:PORT]"))?;
        let way = way(&portal, iqn, asked)?;
        if !ways.iter().any(|known| known.marks == way.marks) {
            ways.push(way);
        }
    }
    let delete = |before: &[&str], portal: &str, fine| Command {
        args: words(&[before, &["-p", portal, "-o", "delete"]].concat()),
        fine,
        ..ADM
    };
    let end = ways.iter().flat_map(|way| {
        [
            // A record that somebody else's session uses stays.
            delete(&["-m", "node", "-T", iqn], &way.name, &[NO_RECORD, EXISTS]),
            // It is gone already, unless the discovery failed or was killed.
            delete(
                &["-m", "discoverydb", "-t", "sendtargets"],
                &way.name,
                &[NO_RECORD, NO_DISCOVERY],
            ),
        ]
    });
    let end = end.collect();
    Ok(Device {
        name: format!("iscsi:{iqn}/{lun}"),
        through: format!("iscsi:{iqn}"),
        modules: &MODULES,
        service: Some(&ISCSID),
        host_name: Some(HostName {
            file: "/etc/iscsi/initiatorname.iscsi",
            key: "InitiatorName=",
            prefix: "iqn.1993-08.org.debian:01:",
        }),
        ways,
        shows: Shows {
            ways: "class/iscsi_session/session*",
            holds: vec![("targetname", iqn.to_owned())],
            known_by: &[
                "device/connection*/iscsi_connection/connection*/persistent_address",
                "device/connection*/iscsi_connection/connection*/persistent_port",
            ],
            // Channel and target are the session's only ones.
            scan: Some(("device/../scsi_host/host*/scan", format!("- - {lun}"))),
            disk: format!("device/target*/*:*:*:{lun}/block/*"),
            disks: "device/target*/*:*:*:*/block/*",
            delete: Some("device/delete"),
            identity: Identity::Scsi,
            patience: Some(Patience {
                file: "recovery_tmo",
                little: SOON,
                usual: "120",
            }),
        },
        // By its number: that needs no record, which may have gone with a container.
        end_way: Command {
            args: words(&["-m", "session", "-r", WAY, "--logout"]),
            ..ADM
        },
        end,
        options: &OPTIONS,
        secrets: &SECRETS,
        telling: TELLING,
    })
}

/// One in a network namespace: it keeps the sessions alive when a connection is lost.
pub const ISCSID: Service = Service {
    name: "iscsid",
    program: "iscsid",
    args: &["--foreground"],
    ready: Ready::Abstract("ISCSIADM_ABSTRACT_NAMESPACE"),
    hint: "iSCSI needs the container to be started with --privileged and --net=host, and the kernel module iscsi_tcp",
};

/// The last one joins several ways to a disk, and only where there are several.
pub const MODULES: [Module; 3] = [
    Module::driver("iscsi_tcp"),
    Module::driver("sd_mod"),
    Module::part("dm_multipath"),
];

const ADM: Command = Command {
    program: "iscsiadm",
    args: Vec::new(),
    fine: &[NO_RECORD],
    tells: None,
    secret: None,
};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What logs in at a portal.
fn way(portal: &Portal, iqn: &str, asked: &Asked<'_>) -> Result<BlockWay> {
    let text = portal.text();
    let file = format!("{},{}", portal.address, portal.port);
    let mut steps = Vec::new();
    let discovery = credentials(asked, "discovery.", &DISCOVERY)?;
    if asked.options.has("discovery") || !discovery.is_empty() {
        let database = ["-m", "discoverydb", "-t", "sendtargets", "-p", &text];
        let adm = |more: &[&str], fine| Command {
            args: words(&[&database[..], more].concat()),
            fine,
            ..ADM
        };
        steps.push(Step::Run(adm(&["-o", "new"], &[])));
        let mut settings = vec![
            ("discovery.sendtargets.reopen_max", Value::Text("1".into())),
            (
                "discovery.sendtargets.timeo.login_timeout",
                Value::Text("10".into()),
            ),
        ];
        settings.extend(discovery);
        steps.push(Step::Set {
            files: RECORDS
                .iter()
                .flat_map(|dir| {
                    [
                        format!("{dir}/send_targets/{file}/st_config"),
                        format!("{dir}/send_targets/{file}"),
                    ]
                })
                .collect(),
            settings,
        });
        // Of what it finds no record is made: those of other targets are not wanted.
        let mut discover = adm(&["--discover", "-o", "nonpersistent"], &[]);
        discover.tells = Some(Tells {
            what: iqn.to_owned(),
            find: offered,
        });
        steps.push(Step::Run(discover));
        steps.push(Step::Run(adm(&["-o", "delete"], &[NO_RECORD])));
    }
    let node = ["-m", "node", "-T", iqn, "-p", &text];
    let adm = |more: &[&str], fine| Command {
        args: words(&[&node[..], more].concat()),
        fine,
        ..ADM
    };
    steps.push(Step::Run(adm(&["-o", "new"], &[])));
    let mut settings = vec![
        // Nobody logs in but us, and nothing is scanned but what we ask for.
        ("node.startup", Value::Text("manual".into())),
        ("node.session.scan", Value::Text("manual".into())),
        // A dead portal must not hold up the others for minutes.
        (
            "node.session.initial_login_retry_max",
            Value::Text("2".into()),
        ),
        ("node.conn[0].timeo.login_timeout", Value::Text("10".into())),
        (
            "node.session.timeo.replacement_timeout",
            Value::Text(SOON.into()),
        ),
        ("iface.initiatorname", Value::HostName),
    ];
    settings.extend(credentials(asked, "", &SESSION)?);
    steps.push(Step::Set {
        files: RECORDS
            .iter()
            .flat_map(|dir| {
                [
                    format!("{dir}/nodes/{iqn}/{file}"),
                    format!("{dir}/nodes/{iqn}/{file},*/default"),
                ]
            })
            .collect(),
        settings,
    });
    steps.push(Step::Run(adm(&["--login"], &[EXISTS])));
    Ok(BlockWay {
        name: text,
        marks: vec![portal.address.clone(), portal.port.to_string()],
        at: Some(At {
            host: portal.address.clone(),
            port: portal.port,
            hello: &HELLO,
        }),
        steps,
    })
}

/// Looks for a target in what a discovery found: lines `PORTAL,GROUP IQN`.
fn offered(output: &str, iqn: &str) -> std::result::Result<(), String> {
    let mut names: Vec<&str> = output
        .lines()
        .filter_map(|line| Some(line.trim().split_once(' ')?.1.trim()))
        .filter(|name| ["iqn.", "eui.", "naa."].iter().any(|p| name.starts_with(p)))
        .collect();
    names.sort_unstable();
    names.dedup();
    match names[..] {
        _ if names.contains(&iqn) => Ok(()),
        [] => Err("the portal offers no target to this host".into()),
        _ => Err(format!(
            "the portal offers other targets: {}",
            names.join(", ")
        )),
    }
}

const TELLING: Telling = Telling {
    // That it is so is known, and the reason is in the line before.
    line: |line| (!line.contains("Could not log into all portals")).then_some(line),
    gives_up: None,
    hints: &[
        (
            "authorization failure",
            "check name and password (-o user=NAME --secret password=file:PATH), and that the target admits this host's initiator name: `spc explain` shows it",
        ),
        (
            "authentication failed",
            "check name and password: -o user=NAME --secret password=file:PATH, or the ones that begin with discovery.",
        ),
        (
            "offers no target",
            "look whether the target admits this host's initiator name: `spc explain` shows it",
        ),
        (
            "offers other targets",
            "check the target's name in the source",
        ),
        (
            "could not connect to iscsid",
            "iscsid did not start; the container must run with --net=host and --privileged",
        ),
        ("not loaded", "on the host, try: modprobe iscsi_tcp"),
    ],
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    fn of(source: &str, options: &str) -> Result<Device> {
        let (options, secrets) = Options::and_secrets([options])?;
        let asked = Asked {
            fs_type: "ext4",
            source,
            options: &options,
            secrets: &secrets,
            kernel_lacks: &|_| None,
            log_name: "mnt",
        };
        device(source.strip_prefix("iscsi:").unwrap(), &asked)
    }

    const IQN: &str = "iqn.2026-01.example:disks";

    #[test]
    fn a_source_names_portals_a_target_and_a_lun() {
        let device = of(
            &format!("iscsi:192.0.2.1,192.0.2.2:3261,[2001:db8::1],192.0.2.1:3260/{IQN}/3"),
            "",
        )
        .unwrap();
        assert_eq!(device.name, format!("iscsi:{IQN}/3"));
        assert_eq!(device.through, format!("iscsi:{IQN}"));
        let names: Vec<_> = device.ways.iter().map(|way| way.name.as_str()).collect();
        assert_eq!(
            names,
            ["192.0.2.1:3260", "192.0.2.2:3261", "[2001:db8::1]:3260"]
        );
        assert_eq!(device.ways[2].marks, ["2001:db8::1", "3260"]);
        assert_eq!(device.end.len(), 6);
        assert!(device.shows.disk.contains("*:*:*:3/"));
        for bad in [
            "iscsi:",
            "iscsi:/iqn.x/0",
            "iscsi:a/iqn.x",
            "iscsi:a/iqn.x/",
            "iscsi:a/iqn.x/y",
            "iscsi:a/iqn.x/16384",
            "iscsi:a/disk/0",
            "iscsi:a/iqn.x y/0",
            "iscsi:a/iqn.*/0",
            "iscsi:a/iqn.../../x/0",
            "iscsi:a:b/iqn.x/0",
            "iscsi:a:0/iqn.x/0",
            "iscsi:-o/iqn.x/0",
            "iscsi:a,/iqn.x/0",
        ] {
            assert!(of(bad, "").is_err(), "{bad}");
        }
    }

    /// Everything that any program is told, and every setting.
    fn told(device: &Device) -> (Vec<String>, Vec<(&'static str, Value)>) {
        let (mut arguments, mut settings) = (Vec::new(), Vec::new());
        for step in device.ways.iter().flat_map(|way| &way.steps) {
            match step {
                Step::Run(command) => arguments.push(command.args.join(" ")),
                Step::Set { settings: set, .. } => settings.extend(set.clone()),
            }
        }
        (arguments, settings)
    }

    #[test]
    fn without_credentials_it_is_a_plain_login_of_one_lun() {
        let (arguments, settings) =
            told(&of(&format!("iscsi:192.0.2.1/{IQN}/0"), "noatime").unwrap());
        let node = format!("-m node -T {IQN} -p 192.0.2.1:3260");
        assert_eq!(
            arguments,
            [format!("{node} -o new"), format!("{node} --login")]
        );
        let value = |key: &str| settings.iter().find(|(k, _)| *k == key).map(|(_, v)| v);
        let manual = Value::Text("manual".into());
        assert_eq!(value("node.startup"), Some(&manual));
        assert_eq!(value("node.session.scan"), Some(&manual));
        assert_eq!(value("node.session.auth.authmethod"), None);
    }

    #[test]
    fn names_and_passwords_are_settings() {
        let options = "user=me,password=a,user_in=they,password_in=b,discovery.user=asker,discovery.password=c";
        let (arguments, settings) =
            told(&of(&format!("iscsi:192.0.2.1/{IQN}/0"), options).unwrap());
        assert_eq!(arguments.len(), 5);
        assert!(arguments[1].ends_with("--discover -o nonpersistent"));
        let value = |key: &str| settings.iter().find(|(k, _)| *k == key).map(|(_, v)| v);
        for (key, secret) in [
            ("node.session.auth.password", "password"),
            ("node.session.auth.password_in", "password_in"),
            ("discovery.sendtargets.auth.password", "discovery.password"),
        ] {
            assert_eq!(value(key), Some(&Value::Secret(secret)), "{key}");
        }
        assert_eq!(
            value("node.session.auth.username_in"),
            Some(&Value::Text("they".into()))
        );
        assert_eq!(value("discovery.sendtargets.auth.username_in"), None);
        for bad in [
            "user=a",
            "password=hunter2",
            "user_in=x,password_in=hunter2",
            "discovery.user=x",
        ] {
            let error = of(&format!("iscsi:192.0.2.1/{IQN}/0"), bad).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_target_that_is_not_offered_is_told() {
        let output =
            format!("192.0.2.1:3260,1 {IQN}\n192.0.2.1:3260,1 iqn.2026-01.example:other\n");
        assert_eq!(offered(&output, IQN), Ok(()));
        let error = offered(&output, "iqn.2026-01.example:disk").unwrap_err();
        assert!(error.contains("example:other"), "{error}");
        assert!(offered("", IQN).unwrap_err().contains("no target"));
    }
}
