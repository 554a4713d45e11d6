//! CephFS, by the kernel's client with mount.ceph(8), or by ceph-fuse(8). Both take the sources
//! and options of mount.ceph(8). For ceph-fuse they are translated.

use crate::error::{Error, Result};
use crate::kinds::model::{
    DEFAULT_DIAGNOSTICS, Diagnostics, Helper, KindInput, MountMethod, SecretDelivery, TARGET,
    mount_helper, secret_params,
};
use crate::options::Options;

/// Option that names a keyring. mount.ceph(8) itself finds a keyring only in the default
/// directories or through `ceph.conf`.
const KEYRING: &str = "keyring";

/// Limit in seconds to find a monitor, unless `mount_timeout=` sets another. Same as the kernel's
/// default.
const MOUNT_TIMEOUT: &str = "60";

/// Options of the kernel's client that ceph-fuse does not have, or has as its default. They are
/// left out for ceph-fuse.
const KERNEL_ONLY: [&str; 34] = [
    "asyncreaddir",
    "caps_max",
    "caps_wanted_delay_max",
    "caps_wanted_delay_min",
    "copyfrom",
    "crc",
    "dcache",
    "dirstat",
    "fsc",
    "ino32",
    "noacl",
    "noasyncreaddir",
    "nocopyfrom",
    "nocrc",
    "nodcache",
    "nodirstat",
    "nofsc",
    "nopagecache",
    "nopoolperm",
    "noshare",
    "noquotadf",
    "notcp_nodelay",
    "nowsync",
    "osd_idle_ttl",
    "osdkeepalive",
    "quotadf",
    "rasize",
    "read_from_replica",
    "readdir_max_bytes",
    "readdir_max_entries",
    "rsize",
    "tcp_nodelay",
    "wsize",
    "wsync",
];

/// Parts of a source; those that it does not name are none.
#[derive(Debug, PartialEq, Eq)]
struct ParsedSource<'a> {
    monitors: Option<&'a str>,
    user: Option<&'a str>,
    fsid: Option<&'a str>,
    fs: Option<&'a str>,
    /// Directory; begins with a slash.
    path: &'a str,
}

/// Parses `MON[:PORT],…:/PATH`, or `USER@[FSID].FS=/PATH`, whose monitors are in `mon_addr=MON/…`.
fn parse_source(source: &str) -> Result<ParsedSource<'_>> {
    let nonempty = |text: &'_ str| (!text.is_empty()).then_some(text.len());
    if let Some((device, path)) = source.split_once("=/")
        && let Some((user, cluster)) = device.split_once('@')
        && let Some((fsid, fs)) = cluster.split_once('.')
        && !user.is_empty()
        && !fs.is_empty()
    {
        return Ok(ParsedSource {
            monitors: None,
            user: Some(user),
            fsid: nonempty(fsid).map(|_| fsid),
            fs: Some(fs),
            path: &source[source.len() - path.len() - 1..],
        });
    }
    match source.find(":/") {
        Some(at) => Ok(ParsedSource {
            monitors: nonempty(&source[..at]).map(|end| &source[..end]),
            user: None,
            fsid: None,
            fs: None,
            path: &source[at + 1..],
        }),
        None => Err(Error::usage(format!("bad source: {source}"))
            .hint("a CephFS source is MONITOR,MONITOR:/DIRECTORY, or USER@FSID.NAME=/DIRECTORY with -o mon_addr=MONITOR/MONITOR")),
    }
}

/// Builds the command line of mount.ceph, for the kernel's client.
///
/// # Errors
/// Fails if the source is not one of CephFS.
pub fn kernel(input: &KindInput<'_>) -> Result<MountMethod> {
    parse_source(input.source)?;
    let mut helper = mount_helper(input);
    let option = "secretfile";
    helper.secrets = secret_params(["secret"], SecretDelivery::File { option });
    helper.no_keys = true;
    if let Some(file) = input.options.value(KEYRING) {
        // Programs of Ceph read this variable, and prefer it to ceph.conf.
        helper.env.push(("CEPH_KEYRING", file.to_owned()));
        helper.options = without(&helper.options, |key| key == KEYRING)?;
    }
    Ok(MountMethod::Helper(helper))
}

/// Builds the command line of ceph-fuse, with the options of mount.ceph(8) translated.
///
/// # Errors
/// Fails if the source is not one of CephFS, or if two options give the key.
pub fn fuse(input: &KindInput<'_>) -> Result<MountMethod> {
    let parsed = parse_source(input.source)?;
    let given = |key: &str| input.options.value(key);
    if input.secrets.has("secret") && given("secretfile").is_some() {
        return Err(
            Error::usage("bad option secret: secretfile is given as well")
                .hint("give only one of them"),
        );
    }
    let mut args: Vec<String> = Vec::new();
    let mut add = |option: &str, value: &str| args.push(format!("{option}={value}"));
    let monitors = parsed.monitors.map(str::to_owned);
    if let Some(monitors) =
        monitors.or_else(|| given("mon_addr").map(|list| list.replace('/', ",")))
    {
        add("--mon-host", &monitors);
    }
    // Same default as mount.ceph. The default of ceph-fuse is `admin`.
    let user = given("name").or(parsed.user).unwrap_or("guest");
    add("--id", user);
    if let Some(fsid) = given("fsid").or(parsed.fsid) {
        add("--fsid", fsid);
    }
    if let Some(fs) = given("fs").or(given("mds_namespace")).or(parsed.fs) {
        add("--client_fs", fs);
    }
    for (option, argument) in [
        ("conf", "--conf"),
        ("secretfile", "--keyfile"),
        (KEYRING, "--keyring"),
        ("snapdirname", "--client_snapdir"),
    ] {
        if let Some(value) = given(option) {
            add(argument, value);
        }
    }
    let seconds = given("mount_timeout").unwrap_or(MOUNT_TIMEOUT);
    add("--client_mount_timeout", seconds);
    if let Some(mode) = given("ms_mode").filter(|mode| *mode != "legacy") {
        // ceph-fuse takes a list of modes in the order of preference.
        let mode = match mode {
            "prefer-secure" => "secure crc",
            "prefer-crc" => "crc secure",
            other => other,
        };
        add("--ms_client_mode", mode);
        add("--ms_mon_client_mode", mode);
    }
    let has = |key: &str| input.options.has(key);
    if has("acl") {
        // The kernel would check permissions without the lists.
        add("--client_acl_type", "posix_acl");
        add("--fuse_default_permissions", "false");
    }
    if has("rbytes") || has("norbytes") {
        let sizes = if has("norbytes") { "false" } else { "true" };
        add("--client_dirsize_rbytes", sizes);
    }
    if let Some(mode) = given("recover_session") {
        let reconnects = if mode == "clean" { "true" } else { "false" };
        add("--client_reconnect_stale", reconnects);
    }
    add("--client_mountpoint", parsed.path);
    args.push(TARGET.into());
    let translated = [
        "acl",
        "conf",
        "fs",
        "fsid",
        KEYRING,
        "mds_namespace",
        "mon_addr",
        "mount_timeout",
        "ms_mode",
        "name",
        "norbytes",
        "rbytes",
        "recover_session",
        "secretfile",
        "snapdirname",
    ];
    let options = without(&input.options.for_file_system(), |key| {
        translated.contains(&key) || KERNEL_ONLY.contains(&key)
    })?;
    Ok(MountMethod::Helper(Helper {
        programs: vec!["ceph-fuse".into()],
        args,
        options,
        secrets: secret_params(
            ["secret"],
            SecretDelivery::Argument {
                before: "--keyfile=",
            },
        ),
        // ceph-fuse would otherwise trim the kernel's cache by a remount, and abort when that fails.
        // A sandbox has no UNIX sockets for administration.
        sandbox_args: &["--client_try_dentry_invalidate=true", "--admin_socket="],
        ..Helper::default()
    }))
}

/// Drops the options whose key is `dropped`. Values with a comma are quoted again.
fn without(options: &Options, dropped: impl Fn(&str) -> bool) -> Result<Options> {
    let mut kept = Options::default();
    for (key, value) in options.iter().filter(|(key, _)| !dropped(key)) {
        kept.push(match value {
            Some(value) if value.contains(',') => format!("{key}=\"{value}\""),
            Some(value) => format!("{key}={value}"),
            None => key.to_owned(),
        })?;
    }
    Ok(kept)
}

/// Message of all programs of Ceph for a wrong key, and its hint.
pub const WRONG_KEY: (&str, &str) = (
    "handle_auth_bad_method server allowed_methods [2] but i only support [2",
    "the cluster does not take this key for this user; on a node of the cluster, `ceph auth get client.USER` shows the right one",
);

/// Diagnostics of both clients, which share a library and many messages.
pub const DIAGNOSTICS: Diagnostics = Diagnostics {
    line,
    hints: &[
        WRONG_KEY,
        (
            "no keyring found",
            "name the user and a file with the key: -o name=USER --secret secret=file:/host/etc/ceph/USER.secret, or secretfile=FILE or keyring=FILE with a path of the container",
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
            "no metadata server answers; on a node of the cluster, `ceph fs status` shows their state",
        ),
        (
            "failed to fetch mon config",
            "check the addresses of the monitors, and that this host reaches their ports 3300 and 6789",
        ),
        (
            "unable to read secretfile",
            "the file is read in the container; for a file of the host: --secret secret=file:/host/etc/ceph/USER.secret",
        ),
        (
            "mount error: no mds",
            "the kernel's log has the cause (dmesg): no key for name=USER (to read a keyring, the container needs --cap-add=DAC_READ_SEARCH), the wrong key, no monitor that answers on ports 3300 and 6789, no file system of this name, or no metadata server",
        ),
        (
            "mount error 13",
            "this user may mount another directory only; on a node of the cluster, `ceph auth get client.USER` shows its path=",
        ),
        ("mount error 2 ", "the file system has no such directory"),
        (
            "mount error 22",
            "the kernel does not know an option or its value; its log names it (dmesg)",
        ),
    ],
    ..DEFAULT_DIAGNOSTICS
};

/// Messages of Ceph programs that explain no failure: `ceph.conf` is not needed, and the module is
/// loaded without modprobe in the container.
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

/// Returns TEXT of a log line `DATE THREAD LEVEL TEXT`, and any other line whole; none for noise.
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
    use crate::kinds::resolve;
    use crate::kinds::resolve::ResolvedKind;

    fn kind(fs_type: &str, source: &str, options: &str, has_module: bool) -> Result<ResolvedKind> {
        let (options, secrets) = Options::parse_with_secrets([options])?;
        resolve(&KindInput {
            fs_type,
            source,
            options: &options,
            secrets: &secrets,
            log_name: "mnt-data",
            kernel_lacks: &|_| (!has_module).then(|| "no module".into()),
        })
    }

    fn argv(kind: &ResolvedKind) -> (String, String) {
        match &kind.method {
            MountMethod::Helper(helper) => (helper.args.join(" "), helper.options.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sources_of_both_forms_are_parsed_and_others_refused() {
        let parsed = |source| parse_source(source).unwrap();
        let plain = parsed("192.0.2.1:6790,[2001:db8::1]:/a/b");
        assert_eq!(plain.monitors, Some("192.0.2.1:6790,[2001:db8::1]"));
        assert_eq!((plain.path, plain.user), ("/a/b", None));
        assert_eq!(parsed(":/").monitors, None);
        let named = parsed("app@0-1.cephfs=/a");
        assert_eq!((named.user, named.fsid), (Some("app"), Some("0-1")));
        assert_eq!((named.fs, named.path), (Some("cephfs"), "/a"));
        assert_eq!(parsed("app@.cephfs=/").fsid, None);
        for bad in [
            "192.0.2.1",
            "app@cephfs=/",
            "/dir",
            "@.x=/",
            "192.0.2.1:dir",
        ] {
            assert!(parse_source(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ceph_fuse_replaces_a_missing_module_or_is_requested_by_type() {
        let kernel = kind("ceph", "a:/", "name=app", true).unwrap();
        assert_eq!(kernel.expected_types, ["ceph"]);
        assert_eq!(kernel.fallback_reason, None);
        let fallback = kind("ceph", "a:/", "name=app", false).unwrap();
        assert!(fallback.is_fuse() && fallback.fallback_reason.is_some());
        assert_eq!(fallback.expected_source.as_deref(), Some("ceph-fuse"));
        for fs_type in ["ceph-fuse", "fuse.ceph", "fuse.ceph-fuse"] {
            let requested = kind(fs_type, "a:/", "name=app", true).unwrap();
            assert!(
                requested.is_fuse() && requested.fallback_reason.is_none(),
                "{fs_type}"
            );
        }
    }

    #[test]
    fn options_are_translated_for_ceph_fuse() {
        let options =
            "ro,name=app,secretfile=/s,mds_namespace=fs,rasize=4096,noatime,mount_timeout=5";
        let (args, rest) = argv(&kind("ceph-fuse", "a:6790,b:/x", options, true).unwrap());
        let words = "--mon-host=a:6790,b --id=app --client_fs=fs --keyfile=/s --client_mount_timeout=5 --client_mountpoint=/x";
        assert_eq!(args, format!("{words} {TARGET}"));
        assert_eq!(rest, "ro,noatime");
        let options =
            "name=app,recover_session=clean,read_from_replica=balance,dirstat,norbytes,acl,fsc";
        let (args, rest) = argv(&kind("ceph-fuse", "a:/x", options, true).unwrap());
        assert_eq!(rest, "");
        for argument in [
            "--client_reconnect_stale=true",
            "--client_dirsize_rbytes=false",
            "--client_acl_type=posix_acl",
            "--fuse_default_permissions=false",
        ] {
            assert!(args.contains(argument), "{args}");
        }
        let options = "mon_addr=a/b,keyring=/k,ms_mode=prefer-secure,secret=hunter2";
        let named = kind("ceph-fuse", "app@1-2.fs=/", options, true).unwrap();
        let (args, rest) = argv(&named);
        let words = "--mon-host=a,b --id=app --fsid=1-2 --client_fs=fs --keyring=/k";
        assert!(args.starts_with(words) && rest.is_empty(), "{args} {rest}");
        assert!(args.contains("--ms_client_mode=secure crc"), "{args}");
        let quoted = kind("ceph-fuse", "a:/", r#"debug="a,b",big_writes"#, true).unwrap();
        assert_eq!(argv(&quoted).1, r#"debug="a,b",big_writes"#);
        let MountMethod::Helper(helper) = &quoted.method else {
            panic!("{quoted:?}")
        };
        assert_eq!(helper.sandbox_args.len(), 2);
    }

    #[test]
    fn mount_ceph_gets_a_keyring_by_its_environment() {
        let kind = kind("ceph", "a:/", "name=app,keyring=/k,rbytes", true).unwrap();
        let MountMethod::Helper(helper) = &kind.method else {
            panic!("{kind:?}")
        };
        assert_eq!(helper.env, [("CEPH_KEYRING", "/k".to_owned())]);
        assert_eq!(helper.options.to_string(), "name=app,rbytes");
    }

    #[test]
    fn two_options_for_the_key_are_refused() {
        for has_module in [true, false] {
            let twice = kind("ceph", "a:/", "secret=hunter2,secretfile=/s", has_module);
            let error = twice.unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn dates_and_noise_are_removed_from_the_output() {
        let date = "2026-01-02T10:31:30.632+0000 7f58202eb500 -1";
        for (logged, text) in [
            ("Errors while parsing config file!", None),
            (
                "client.4270 mds.0 rejected us (non-allowable root '/')",
                Some("client.4270 mds.0 rejected us (non-allowable root '/')"),
            ),
        ] {
            assert_eq!(line(&format!("{date} {logged}")), text, "{logged}");
        }
        for whole in [
            "mount error 13 = Permission denied",
            "2000 monitors did not answer",
            "monitors: The first did not answer",
        ] {
            assert_eq!(line(whole), Some(whole));
        }
        assert_eq!(
            line("did not load config file, using default settings."),
            None
        );
    }
}
