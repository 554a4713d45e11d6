//! CephFS, by the kernel's client (mount.ceph(8)) or by `ceph-fuse`(8). Both understand the sources and
//! options of mount.ceph(8): for `ceph-fuse` they are translated.

use crate::error::{Error, Result};
use crate::kinds::model::{
    Asked, Helper, How, Maker, PLAIN, TARGET, Telling, mount_helper, passes,
};
use crate::options::Options;

/// The option that names a keyring; mount.ceph(8) knows only the usual places and a configuration.
const KEYRING: &str = "keyring";

/// How long a client looks for monitors, unless `mount_timeout=` says otherwise: as the kernel does.
const MOUNT_TIMEOUT: &str = "60";

/// Options of the kernel's client that say how it works, not what it does, and that `ceph-fuse` has
/// nothing like.
const KERNEL_TUNING: [&str; 26] = [
    "asyncreaddir",
    "caps_max",
    "caps_wanted_delay_max",
    "caps_wanted_delay_min",
    "copyfrom",
    "crc",
    "dcache",
    "ino32",
    "noasyncreaddir",
    "nocopyfrom",
    "nocrc",
    "nodcache",
    "nopagecache",
    "nopoolperm",
    "noshare",
    "notcp_nodelay",
    "nowsync",
    "osd_idle_ttl",
    "osdkeepalive",
    "rasize",
    "readdir_max_bytes",
    "readdir_max_entries",
    "rsize",
    "tcp_nodelay",
    "wsize",
    "wsync",
];

/// A source, read.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    /// The monitors, where the source names them.
    monitors: Option<&'a str>,
    /// The user, the cluster and the file system, where the source names them.
    user: Option<&'a str>,
    fsid: Option<&'a str>,
    fs: Option<&'a str>,
    /// The directory, which begins with a slash.
    path: &'a str,
}

/// `MON[:PORT],…:/PATH`, or `USER@[FSID].FS=/PATH` with the monitors as `mon_addr=MON/…`.
fn place(source: &str) -> Result<Place<'_>> {
    let named = |text: &'_ str| (!text.is_empty()).then_some(text.len());
    if let Some((device, path)) = source.split_once("=/")
        && let Some((user, cluster)) = device.split_once('@')
        && let Some((fsid, fs)) = cluster.split_once('.')
        && !user.is_empty()
        && !fs.is_empty()
    {
        return Ok(Place {
            monitors: None,
            user: Some(user),
            fsid: named(fsid).map(|_| fsid),
            fs: Some(fs),
            path: &source[source.len() - path.len() - 1..],
        });
    }
    match source.find(":/") {
        Some(at) => Ok(Place {
            monitors: named(&source[..at]).map(|end| &source[..end]),
            user: None,
            fsid: None,
            fs: None,
            path: &source[at + 1..],
        }),
        None => Err(Error::usage(format!("bad source: {source}"))
            .hint("a CephFS source is MONITOR,MONITOR:/DIRECTORY, or USER@FSID.NAME=/DIRECTORY with -o mon_addr=MONITOR/MONITOR")),
    }
}

/// The kernel's client.
pub fn kernel(asked: &Asked<'_>) -> Result<Maker> {
    place(asked.source)?;
    let mut helper = mount_helper(asked);
    let option = "secretfile";
    helper.secrets = passes(["secret"], How::File { option });
    helper.no_keys = true;
    if let Some(file) = asked.options.value(KEYRING) {
        // Every program of Ceph looks there for it, in front of its configuration.
        helper.env.push(("CEPH_KEYRING", file.to_owned()));
        helper.options = without(&helper.options, |key| key == KEYRING)?;
    }
    Ok(Maker::Helper(helper))
}

/// `ceph-fuse`.
pub fn fuse(asked: &Asked<'_>) -> Result<Maker> {
    let place = place(asked.source)?;
    let given = |key: &str| asked.options.value(key);
    if asked.secrets.has("secret") && given("secretfile").is_some() {
        return Err(
            Error::usage("bad option secret: secretfile is given as well").hint("give one of them"),
        );
    }
    let mut args: Vec<String> = Vec::new();
    let mut say = |option: &str, value: &str| args.push(format!("{option}={value}"));
    let monitors = place.monitors.map(str::to_owned);
    if let Some(monitors) =
        monitors.or_else(|| given("mon_addr").map(|list| list.replace('/', ",")))
    {
        say("--mon-host", &monitors);
    }
    // Nobody in particular is `guest` to mount.ceph, and the administrator to ceph-fuse.
    let user = given("name").or(place.user).unwrap_or("guest");
    say("--id", user);
    if let Some(fsid) = given("fsid").or(place.fsid) {
        say("--fsid", fsid);
    }
    if let Some(fs) = given("fs").or(given("mds_namespace")).or(place.fs) {
        say("--client_fs", fs);
    }
    for (option, argument) in [
        ("conf", "--conf"),
        ("secretfile", "--keyfile"),
        (KEYRING, "--keyring"),
        ("snapdirname", "--client_snapdir"),
    ] {
        if let Some(value) = given(option) {
            say(argument, value);
        }
    }
    let seconds = given("mount_timeout").unwrap_or(MOUNT_TIMEOUT);
    say("--client_mount_timeout", seconds);
    if let Some(mode) = given("ms_mode").filter(|mode| *mode != "legacy") {
        // `prefer-secure` is `secure crc` here.
        let mode = match mode {
            "prefer-secure" => "secure crc",
            "prefer-crc" => "crc secure",
            other => other,
        };
        say("--ms_client_mode", mode);
        say("--ms_mon_client_mode", mode);
    }
    // The source is a bare directory for it.
    say("--client_mountpoint", place.path);
    args.push(TARGET.into());
    let translated = [
        "conf",
        "fs",
        "fsid",
        KEYRING,
        "mds_namespace",
        "mon_addr",
        "mount_timeout",
        "ms_mode",
        "name",
        "secretfile",
        "snapdirname",
    ];
    let options = without(&asked.options.for_file_system(), |key| {
        translated.contains(&key) || KERNEL_TUNING.contains(&key)
    })?;
    Ok(Maker::Helper(Helper {
        programs: vec!["ceph-fuse".into()],
        args,
        options,
        secrets: passes(
            ["secret"],
            How::Argument {
                before: "--keyfile=",
            },
        ),
        ..Helper::default()
    }))
}

fn without(options: &Options, dropped: impl Fn(&str) -> bool) -> Result<Options> {
    let kept = options.iter().filter(|(key, _)| !dropped(key));
    let mut left = Options::default();
    for (key, value) in kept {
        left.push(match value {
            Some(value) if value.contains(',') => format!("{key}=\"{value}\""),
            Some(value) => format!("{key}={value}"),
            None => key.to_owned(),
        })?;
    }
    Ok(left)
}

/// What every program of Ceph says, with the hint.
pub const WRONG_KEY: (&str, &str) = (
    "handle_auth_bad_method server allowed_methods [2] but i only support [2",
    "the cluster does not take this key for this user; on a node of the cluster, `ceph auth get client.USER` shows the right one",
);

/// Both clients, which share a library and much of what they print.
pub const TELLING: Telling = Telling {
    line,
    hints: &[
        WRONG_KEY,
        (
            "no keyring found",
            "name the user and a file with the key: -o name=USER --secret secret=file:/host/etc/ceph/USER.secret, or, as the container sees them, secretfile=FILE or keyring=FILE",
        ),
        (
            "rejected us (non-allowable root",
            "this user may mount another directory only; on a node of the cluster, `ceph auth get client.USER` shows its path=",
        ),
        (
            "ceph mount failed with (2)",
            "the file system has no such directory, or the cluster no file system of this name; on a node of the cluster, `ceph fs ls` shows the names",
        ),
        (
            "ceph mount failed with (110)",
            "no metadata server answers; on a node of the cluster, look at `ceph fs status`",
        ),
        (
            "failed to fetch mon config",
            "check the addresses of the monitors, and that this host reaches their ports 3300 and 6789",
        ),
        (
            "unable to read secretfile",
            "the file is read in the container; one of the host can be named as --secret secret=file:/host/etc/ceph/USER.secret",
        ),
        (
            "mount error: no mds",
            "the kernel's log tells which it is (dmesg): no key for name=USER (a keyring is read with CAP_DAC_READ_SEARCH only), the wrong key, no monitor that answers on ports 3300 and 6789, no file system of this name, no metadata server",
        ),
        (
            "mount error 13",
            "this user may mount another directory only; on a node of the cluster, `ceph auth get client.USER` shows its path=",
        ),
        ("mount error 2 ", "the file system has no such directory"),
        (
            "mount error 22",
            "the kernel does not know an option or its value; its log tells which (dmesg)",
        ),
    ],
    ..PLAIN
};

/// What programs of Ceph say without any meaning: no configuration is needed, and the kernel loads its module itself.
const NOISE: [&str; 14] = [
    "modprobe: FATAL: Module ceph not found in directory",
    "failed to load ceph kernel module",
    "auth: unable to find a keyring on",
    "AuthRegistry(",
    "Unable to apply new capability set",
    "did not load config file",
    "Errors while parsing config file",
    "can't open ceph.conf",
    "unable to get monitor info from DNS SRV",
    "failed for service _ceph-mon",
    "init, newargv",
    "init, args.argv",
    "starting ceph client",
    "starting fuse",
];

/// `DATE THREAD LEVEL TEXT`, of which the text counts.
pub fn line(line: &str) -> Option<&str> {
    if NOISE.iter().any(|noise| line.contains(noise)) {
        return None;
    }
    let dated = line.starts_with("20") && line.as_bytes().get(10) == Some(&b'T');
    Some(match line.splitn(4, ' ').nth(3) {
        Some(text) if dated => text.trim_start(),
        _ => line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{Chosen, choose};

    fn chosen(fs_type: &str, source: &str, options: &str, has: bool) -> Result<Chosen> {
        let (options, secrets) = Options::and_secrets([options])?;
        choose(&Asked {
            fs_type,
            source,
            options: &options,
            secrets: &secrets,
            log_name: "mnt-data",
            kernel_lacks: &|_| (!has).then(|| "no module".into()),
        })
    }

    fn argv(chosen: &Chosen) -> (String, String) {
        match &chosen.maker {
            Maker::Helper(helper) => (helper.args.join(" "), helper.options.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_source_names() {
        let place = |source| super::place(source).unwrap();
        let plain = place("192.0.2.1:6790,[2001:db8::1]:/a/b");
        assert_eq!(plain.monitors, Some("192.0.2.1:6790,[2001:db8::1]"));
        assert_eq!((plain.path, plain.user), ("/a/b", None));
        assert_eq!(place(":/").monitors, None);
        let named = place("app@0-1.cephfs=/a");
        assert_eq!((named.user, named.fsid), (Some("app"), Some("0-1")));
        assert_eq!((named.fs, named.path), (Some("cephfs"), "/a"));
        assert_eq!(place("app@.cephfs=/").fsid, None);
        for bad in [
            "192.0.2.1",
            "app@cephfs=/",
            "/dir",
            "@.x=/",
            "192.0.2.1:dir",
        ] {
            assert!(super::place(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_kernel_is_preferred_and_ceph_fuse_can_be_had() {
        let kernel = chosen("ceph", "a:/", "name=app", true).unwrap();
        assert_eq!(kernel.shows, ["ceph"]);
        assert_eq!(kernel.because, None);
        let without = chosen("ceph", "a:/", "name=app", false).unwrap();
        assert!(without.is_fuse() && without.because.is_some());
        assert_eq!(without.shows_source.as_deref(), Some("ceph-fuse"));
        for fs_type in ["ceph-fuse", "fuse.ceph", "fuse.ceph-fuse"] {
            let asked = chosen(fs_type, "a:/", "name=app", true).unwrap();
            assert!(asked.is_fuse() && asked.because.is_none(), "{fs_type}");
        }
    }

    #[test]
    fn ceph_fuse_gets_the_options_in_its_own_words() {
        let options =
            "ro,name=app,secretfile=/s,mds_namespace=fs,rasize=4096,noatime,mount_timeout=5";
        let (args, rest) = argv(&chosen("ceph-fuse", "a:6790,b:/x", options, true).unwrap());
        let words = "--mon-host=a:6790,b --id=app --client_fs=fs --keyfile=/s --client_mount_timeout=5 --client_mountpoint=/x";
        assert_eq!(args, format!("{words} {TARGET}"));
        assert_eq!(rest, "ro,noatime");
        let options = "mon_addr=a/b,keyring=/k,ms_mode=prefer-secure,secret=hunter2";
        let named = chosen("ceph-fuse", "app@1-2.fs=/", options, true).unwrap();
        let (args, rest) = argv(&named);
        let words = "--mon-host=a,b --id=app --fsid=1-2 --client_fs=fs --keyring=/k";
        assert!(args.starts_with(words) && rest.is_empty(), "{args} {rest}");
        assert!(args.contains("--ms_client_mode=secure crc"), "{args}");
    }

    #[test]
    fn a_keyring_is_for_mount_ceph_a_variable() {
        let chosen = chosen("ceph", "a:/", "name=app,keyring=/k,rbytes", true).unwrap();
        let Maker::Helper(helper) = &chosen.maker else {
            panic!("{chosen:?}")
        };
        assert_eq!(helper.env, [("CEPH_KEYRING", "/k".to_owned())]);
        assert_eq!(helper.options.to_string(), "name=app,rbytes");
    }

    #[test]
    fn a_key_is_given_once() {
        for has in [true, false] {
            let twice = chosen("ceph", "a:/", "secret=hunter2,secretfile=/s", has);
            let error = twice.unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_is_printed_about_a_failure() {
        let date = "2026-01-02T10:31:30.632+0000 7f58202eb500 -1";
        for (said, text) in [
            ("Errors while parsing config file!", None),
            (
                "client.4270 mds.0 rejected us (non-allowable root '/')",
                Some("client.4270 mds.0 rejected us (non-allowable root '/')"),
            ),
        ] {
            assert_eq!(line(&format!("{date} {said}")), text, "{said}");
        }
        assert_eq!(
            line("mount error 13 = Permission denied"),
            Some("mount error 13 = Permission denied")
        );
        assert_eq!(
            line("did not load config file, using default settings."),
            None
        );
    }
}
