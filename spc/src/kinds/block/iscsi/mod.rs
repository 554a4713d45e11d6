//! iSCSI: `iscsi:PORTAL[,PORTAL…]/IQN/LUN`, attached by Open-iSCSI's iscsiadm(8) and iscsid(8).
//!
//! spc logs in to the target at each portal, without discovery unless the option `discovery` is
//! given. It makes Open-iSCSI's node records for that, and deletes them after the last logout. Only
//! the requested LUN is scanned. Names and passwords go into the records, which only root can read,
//! never into arguments.

mod chap;
mod portal;

use crate::error::{Error, Result};
use crate::host::hostname::HostName;
use crate::host::modules::Module;
use crate::host::service::{Ready, Service};
use crate::kinds::block::iscsi::chap::{DISCOVERY, SECRETS, SESSION, credentials};
use crate::kinds::block::iscsi::portal::{PROBE_REQUEST, Portal};
use crate::kinds::block::model::{
    Command, Device, DevicePath, Endpoint, Identity, OutputCheck, PATH_NUMBER, RecoveryTimeout,
    Step, SysfsLayout, Value,
};
use crate::kinds::model::{Diagnostics, KindInput};

/// Directories of Open-iSCSI's records: since Debian 13, and before.
const RECORD_DIRS: [&str; 2] = ["/var/lib/iscsi", "/etc/iscsi"];

/// Seconds without a connection after which a session fails its I/O. For new sessions, and where
/// multipath has another path.
const SHORT_RECOVERY_TIMEOUT: &str = "5";

/// Exit code of iscsiadm(8): a session with the same parameters exists (`ISCSI_ERR_SESS_EXISTS`).
const EXISTS: i32 = 15;

/// Exit code of iscsiadm(8): no such record or session (`ISCSI_ERR_NO_OBJS_FOUND`).
const NO_RECORD: i32 = 21;

/// Exit code of iscsiadm(8) for a discovery record that does not exist (`ISCSI_ERR_IDBM`).
const NO_DISCOVERY: i32 = 6;

/// Options for the attachment.
const OPTIONS: [&str; 6] = [
    "user",
    "user_in",
    "discovery",
    "discovery.user",
    "discovery.user_in",
    "initiator",
];

/// Builds the device of a source; `rest` is the text after `iscsi:`.
///
/// # Errors
/// Fails if the source is not valid, or if a CHAP name has no password or a password no name.
pub fn device(rest: &str, input: &KindInput<'_>) -> Result<Device> {
    let bad = |why: &str| {
        Error::usage(format!("bad source: {}", input.source))
            .because(why)
            .hint("an iSCSI source is iscsi:PORTAL[,PORTAL…]/IQN/LUN, for example iscsi:192.0.2.1,192.0.2.2:3261/iqn.2026-01.example:disks/0")
    };
    let (portals, rest) = rest.split_once('/').ok_or_else(|| bad("no portal"))?;
    let (iqn, lun) = rest.rsplit_once('/').ok_or_else(|| bad("no LUN"))?;
    let named = ["iqn.", "eui.", "naa."].iter().any(|p| iqn.starts_with(p));
    // RFC 3722 maps letters to lower case, but some targets have upper case in their names.
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
    if !named || iqn.len() > 223 || !iqn.chars().all(plain) {
        return Err(bad(
            "the name of a target begins with iqn., eui. or naa., and has only letters, digits, dots, colons, dashes and underscores",
        ));
    }
    // As sysfs writes it: from 16384 on, the number has the bits of flat space addressing (SAM-5).
    let digits = lun.chars().all(|c| c.is_ascii_digit()) && (lun == "0" || !lun.starts_with('0'));
    let lun: u16 = match lun.parse() {
        Ok(lun) if digits && lun <= 32767 => lun,
        _ => {
            return Err(bad(
                "a LUN is a number from 0 to 32767, without a sign and leading zeros",
            ));
        }
    };
    let mut paths: Vec<DevicePath> = Vec::new();
    for portal in portals.split(',') {
        let portal = Portal::parse(portal).ok_or_else(|| bad("a portal is ADDRESS[:PORT]"))?;
        let path = path(&portal, iqn, input)?;
        if !paths.iter().any(|known| known.key == path.key) {
            paths.push(path);
        }
    }
    let delete = |record: &[&str], portal: &str, accepted_codes| Command {
        args: words(&[record, &["-p", portal, "-o", "delete"]].concat()),
        accepted_codes,
        ..ISCSIADM
    };
    let cleanup = paths.iter().flat_map(|path| {
        [
            // iscsiadm keeps a record that a session of another program uses.
            delete(&["-m", "node", "-T", iqn], &path.name, &[NO_RECORD, EXISTS]),
            // Left only by a discovery that failed or was killed.
            delete(
                &["-m", "discoverydb", "-t", "sendtargets"],
                &path.name,
                &[NO_RECORD, NO_DISCOVERY],
            ),
        ]
    });
    let cleanup = cleanup.collect();
    Ok(Device {
        name: format!("iscsi:{iqn}/{lun}"),
        session_key: format!("iscsi:{iqn}"),
        modules: &MODULES,
        service: Some(&ISCSID),
        host_name: Some(HostName {
            file: "/etc/iscsi/initiatorname.iscsi",
            key: "InitiatorName=",
            prefix: "iqn.1993-08.org.debian:01:",
        }),
        paths,
        sysfs: SysfsLayout {
            path_dirs: "class/iscsi_session/session*",
            attributes: vec![("targetname", iqn.to_owned())],
            key_attributes: &[
                "device/connection*/iscsi_connection/connection*/persistent_address",
                "device/connection*/iscsi_connection/connection*/persistent_port",
            ],
            // Wildcards for channel and target: a session has one of each.
            scan: Some(("device/../scsi_host/host*/scan", format!("- - {lun}"))),
            disk: format!("device/target*/*:*:*:{lun}/block/*"),
            all_disks: "device/target*/*:*:*:*/block/*",
            delete: Some("device/delete"),
            identity: Identity::Scsi,
            recovery_timeout: Some(RecoveryTimeout {
                file: "recovery_tmo",
                short: SHORT_RECOVERY_TIMEOUT,
                normal: "120",
            }),
        },
        // A logout by the session's number needs no record. Records may be lost with a container.
        detach_path: Command {
            args: words(&["-m", "session", "-r", PATH_NUMBER, "--logout"]),
            ..ISCSIADM
        },
        cleanup,
        options: &OPTIONS,
        secrets: &SECRETS,
        diagnostics: DIAGNOSTICS,
    })
}

/// Daemon that reconnects sessions after the loss of a connection. One in each network namespace.
pub const ISCSID: Service = Service {
    name: "iscsid",
    program: "iscsid",
    args: &["--foreground"],
    ready: Ready::Abstract("ISCSIADM_ABSTRACT_NAMESPACE"),
    hint: "start the container with --privileged and --net=host; the host's kernel needs the module iscsi_tcp",
};

/// Kernel modules. dm_multipath is needed only for several paths.
pub const MODULES: [Module; 3] = [
    Module::driver("iscsi_tcp"),
    Module::driver("sd_mod"),
    Module::auxiliary("dm_multipath"),
];

const ISCSIADM: Command = Command {
    program: "iscsiadm",
    args: Vec::new(),
    accepted_codes: &[NO_RECORD],
    output_check: None,
    secret: None,
};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Builds the path through a portal: discovery if requested, node record, login.
fn path(portal: &Portal, iqn: &str, input: &KindInput<'_>) -> Result<DevicePath> {
    let text = portal.text();
    let file = format!("{},{}", portal.address, portal.port);
    let mut steps = Vec::new();
    let discovery = credentials(input, "discovery.", &DISCOVERY)?;
    if input.options.has("discovery") || !discovery.is_empty() {
        let database = ["-m", "discoverydb", "-t", "sendtargets", "-p", &text];
        let iscsiadm = |more: &[&str], accepted_codes| Command {
            args: words(&[&database[..], more].concat()),
            accepted_codes,
            ..ISCSIADM
        };
        steps.push(Step::Run(iscsiadm(&["-o", "new"], &[])));
        let mut settings = vec![
            ("discovery.sendtargets.reopen_max", Value::Text("1".into())),
            (
                "discovery.sendtargets.timeo.login_timeout",
                Value::Text("10".into()),
            ),
        ];
        settings.extend(discovery);
        steps.push(Step::Set {
            files: RECORD_DIRS
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
        // `nonpersistent`: no node records of the targets that it finds.
        let mut discover = iscsiadm(&["--discover", "-o", "nonpersistent"], &[]);
        discover.output_check = Some(OutputCheck {
            wanted: iqn.to_owned(),
            verify: check_offered,
        });
        steps.push(Step::Run(discover));
        steps.push(Step::Run(iscsiadm(&["-o", "delete"], &[NO_RECORD])));
    }
    let node = ["-m", "node", "-T", iqn, "-p", &text];
    let iscsiadm = |more: &[&str], accepted_codes| Command {
        args: words(&[&node[..], more].concat()),
        accepted_codes,
        ..ISCSIADM
    };
    steps.push(Step::Run(iscsiadm(&["-o", "new"], &[])));
    let mut settings = vec![
        // Neither iscsid nor iscsiadm logs in or scans by itself.
        ("node.startup", Value::Text("manual".into())),
        ("node.session.scan", Value::Text("manual".into())),
        // Keeps a dead portal from delaying the others for minutes.
        (
            "node.session.initial_login_retry_max",
            Value::Text("2".into()),
        ),
        ("node.conn[0].timeo.login_timeout", Value::Text("10".into())),
        (
            "node.session.timeo.replacement_timeout",
            Value::Text(SHORT_RECOVERY_TIMEOUT.into()),
        ),
        ("iface.initiatorname", Value::HostName),
    ];
    settings.extend(credentials(input, "", &SESSION)?);
    steps.push(Step::Set {
        files: RECORD_DIRS
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
    steps.push(Step::Run(iscsiadm(&["--login"], &[EXISTS])));
    Ok(DevicePath {
        name: text,
        key: vec![portal.address.clone(), portal.port.to_string()],
        endpoint: Some(Endpoint {
            host: portal.address.clone(),
            port: portal.port,
            probe_request: &PROBE_REQUEST,
        }),
        steps,
    })
}

/// Checks that the output of a discovery, lines `PORTAL,GROUP IQN`, has the target.
fn check_offered(output: &str, iqn: &str) -> std::result::Result<(), String> {
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

const DIAGNOSTICS: Diagnostics = Diagnostics {
    // Drops the summary; the line before it has the reason.
    line: |line| (!line.contains("Could not log into all portals")).then_some(line),
    gives_up: None,
    transient: None,
    hints: &[
        (
            "authorization failure",
            "check name and password (-o user=NAME --secret password=file:PATH), and that the target allows this host's initiator name: `spc explain` shows it",
        ),
        (
            "authentication failed",
            "check name and password: -o user=NAME --secret password=file:PATH, or discovery.user and discovery.password",
        ),
        (
            "offers no target",
            "check that the target allows this host's initiator name: `spc explain` shows it",
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

    fn parsed(source: &str, options: &str) -> Result<Device> {
        let (options, secrets) = Options::parse_with_secrets([options])?;
        let input = KindInput {
            fs_type: "ext4",
            source,
            options: &options,
            secrets: &secrets,
            kernel_lacks: &|_| None,
            log_name: "mnt",
        };
        device(source.strip_prefix("iscsi:").unwrap(), &input)
    }

    const IQN: &str = "iqn.2026-01.example:disks";

    #[test]
    fn sources_are_parsed_into_portals_target_and_lun() {
        let device = parsed(
            &format!("iscsi:192.0.2.1,192.0.2.2:3261,[2001:db8::1],192.0.2.1:3260/{IQN}/3"),
            "",
        )
        .unwrap();
        assert_eq!(device.name, format!("iscsi:{IQN}/3"));
        assert_eq!(device.session_key, format!("iscsi:{IQN}"));
        let names: Vec<_> = device.paths.iter().map(|path| path.name.as_str()).collect();
        assert_eq!(
            names,
            ["192.0.2.1:3260", "192.0.2.2:3261", "[2001:db8::1]:3260"]
        );
        assert_eq!(device.paths[2].key, ["2001:db8::1", "3260"]);
        assert_eq!(device.cleanup.len(), 6);
        assert!(device.sysfs.disk.contains("*:*:*:3/"));
        let long = format!("iqn.{}", "x".repeat(219));
        assert!(parsed(&format!("iscsi:a/{long}/0"), "").is_ok());
        assert!(parsed(&format!("iscsi:a/{long}x/0"), "").is_err());
        let flat = parsed("iscsi:a/iqn.x/16640", "").unwrap();
        assert!(flat.sysfs.disk.contains("*:*:*:16640/"));
        for bad in [
            "iscsi:",
            "iscsi:/iqn.x/0",
            "iscsi:a/iqn.x",
            "iscsi:a/iqn.x/",
            "iscsi:a/iqn.x/y",
            "iscsi:a/iqn.x/32768",
            "iscsi:a/iqn.x/+5",
            "iscsi:a/iqn.x/00005",
            "iscsi:a/disk/0",
            "iscsi:a/iqn.x y/0",
            "iscsi:a/iqn.*/0",
            "iscsi:a/iqn.../../x/0",
            "iscsi:a:b/iqn.x/0",
            "iscsi:a:0/iqn.x/0",
            "iscsi:-o/iqn.x/0",
            "iscsi:a,/iqn.x/0",
        ] {
            assert!(parsed(bad, "").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_detached_disk_leaves_no_session_and_no_record() {
        let device = parsed(&format!("iscsi:a/{IQN}/0"), "").unwrap();
        let commands = device.cleanup.iter().chain([&device.detach_path]);
        let commands: Vec<_> = commands
            .map(|command| (command.args.join(" "), command.accepted_codes))
            .collect();
        let expected: [(String, &[i32]); 3] = [
            (
                format!("-m node -T {IQN} -p a:3260 -o delete"),
                &[NO_RECORD, EXISTS],
            ),
            (
                "-m discoverydb -t sendtargets -p a:3260 -o delete".into(),
                &[NO_RECORD, NO_DISCOVERY],
            ),
            (
                format!("-m session -r {PATH_NUMBER} --logout"),
                &[NO_RECORD],
            ),
        ];
        assert_eq!(commands, expected);
    }

    #[test]
    fn the_summary_of_a_failed_login_is_dropped() {
        let line = "iscsiadm: initiator reported error (24 - iSCSI login failed due to authorization failure)";
        assert_eq!((DIAGNOSTICS.line)(line), Some(line));
        let summary = "iscsiadm: Could not log into all portals";
        assert_eq!((DIAGNOSTICS.line)(summary), None);
    }

    /// Arguments of all programs, and all settings.
    fn steps(device: &Device) -> (Vec<String>, Vec<(&'static str, Value)>) {
        let (mut arguments, mut settings) = (Vec::new(), Vec::new());
        for step in device.paths.iter().flat_map(|path| &path.steps) {
            match step {
                Step::Run(command) => arguments.push(command.args.join(" ")),
                Step::Set { settings: set, .. } => settings.extend(set.clone()),
            }
        }
        (arguments, settings)
    }

    #[test]
    fn without_credentials_there_is_no_discovery_and_no_chap() {
        let (arguments, settings) =
            steps(&parsed(&format!("iscsi:192.0.2.1/{IQN}/0"), "noatime").unwrap());
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
    fn names_and_passwords_become_settings_not_arguments() {
        let options = "user=me,password=a,user_in=they,password_in=b,discovery.user=asker,discovery.password=c";
        let (arguments, settings) =
            steps(&parsed(&format!("iscsi:192.0.2.1/{IQN}/0"), options).unwrap());
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
            let error = parsed(&format!("iscsi:192.0.2.1/{IQN}/0"), bad).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_target_that_is_not_offered_is_an_error_with_the_other_targets() {
        let output =
            format!("192.0.2.1:3260,1 {IQN}\n192.0.2.1:3260,1 iqn.2026-01.example:other\n");
        assert_eq!(check_offered(&output, IQN), Ok(()));
        let error = check_offered(&output, "iqn.2026-01.example:disk").unwrap_err();
        assert!(error.contains("example:other"), "{error}");
        assert!(check_offered("", IQN).unwrap_err().contains("no target"));
    }
}
