//! CephFS, by the kernel's client (mount.ceph(8)) or by `ceph-fuse`(8). Both understand the sources and
//! options of mount.ceph(8): for `ceph-fuse` they are translated.

use super::{Asked, Helper, Maker, TARGET, Telling, mount_helper};
use crate::error::{Error, Result};
use crate::mount::Options;

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
        log: None,
        env: Vec::new(),
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

/// Both clients, which share a library and much of what they print.
pub const TELLING: Telling = Telling {
    line,
    hints: &[(
        "no keyring found",
        "name the user and a file with the key, as the container sees it: -o name=USER,secretfile=/host/etc/ceph/USER.secret, or keyring=FILE",
    )],
};

/// What is said without any meaning, because no configuration is needed.
const NOISE: [&str; 9] = [
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
fn line(line: &str) -> Option<&str> {
    if NOISE.iter().any(|noise| line.contains(noise)) {
        return None;
    }
    let dated = line.starts_with("20") && line.as_bytes().get(10) == Some(&b'T');
    Some(match line.splitn(4, ' ').nth(3) {
        Some(text) if dated => text.trim_start(),
        _ => line,
    })
}
