use super::*;

fn strings<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    values
        .map(|value| String::from_utf8_lossy(value).into_owned())
        .collect()
}

fn broken(text: &str) -> (u32, &'static str) {
    let Err(broken) = Config::parse_file(text.as_bytes()) else {
        panic!("accepted: {text:.80}");
    };
    (broken.line, broken.reason)
}

#[test]
fn without_a_file_the_built_in_values_apply() {
    let config = Config::parse_file(b"").unwrap();
    assert_eq!(
        strings(config.namespaces()),
        ["/host/proc/1/ns/mnt", "/proc/1/ns/mnt"]
    );
    assert_eq!(strings(config.host_roots()), ["/host"]);
    assert_eq!(
        strings(config.types()).join(" "),
        "fuse fuse.* fuseblk nfs nfs4 ceph cifs smb3 9p"
    );
    assert_eq!(config.host_target(b"/data", b"/data"), None);
    assert_eq!(config.redirects(), Some(&b"/spc/targets"[..]));
    assert_eq!(strings(config.report_sockets()), ["/spc/report.sock"]);
    assert!(!config.redirects_operation(Operation::Bind));
}

#[test]
fn a_key_replaces_the_built_in_values_and_may_repeat() {
    let config = Config::parse_file(
        b"# all of it\n\n type\tfuse.glusterfs # only this\ntype nfs\noperation move bind\n\
          target /data /srv/x=/mnt/x\n",
    )
    .unwrap();
    assert_eq!(strings(config.types()), ["fuse.glusterfs", "nfs"]);
    assert_eq!(strings(config.host_roots()), ["/host"]);
    assert_eq!(config.host_target(b"/data", b"/"), Some(&b"/data"[..]));
    assert_eq!(config.host_target(b"/", b"/data"), Some(&b"/data"[..]));
    assert_eq!(
        config.host_target(b"/srv/x", b"/srv/x"),
        Some(&b"/mnt/x"[..])
    );
    assert_eq!(config.host_target(b"/mnt/x", b"/mnt/x"), None);
    assert!(
        config.redirects_operation(Operation::Move) && config.redirects_operation(Operation::Bind)
    );
    assert!(
        !config.redirects_operation(Operation::Remount)
            && !config.redirects_operation(Operation::Propagation)
    );
}

#[test]
fn an_invalid_line_is_an_error_with_its_number() {
    assert_eq!(broken("host /host\ntpye fuse\n"), (2, "unknown key"));
    assert_eq!(broken("type\n"), (1, "no value"));
    assert_eq!(broken("type # none\n"), (1, "no value"));
    assert_eq!(broken("type f*se"), (1, "bad value"));
    assert_eq!(broken("operation umount"), (1, "bad value"));
    assert_eq!(broken("host relative"), (1, "bad value"));
    assert_eq!(broken("host /"), (1, "bad value"));
    assert_eq!(broken("target /a/../b"), (1, "bad value"));
    assert_eq!(broken("target /a="), (1, "bad value"));
    assert_eq!(broken("target /a/"), (1, "bad value"));
    assert_eq!(
        broken(&format!("target /{}", "x".repeat(TEXT_MAX))),
        (1, "too long")
    );
    assert_eq!(
        broken(&"type fuse\n".repeat(TEXT_MAX / 10 + 1)),
        (TEXT_MAX as u32 / 10 + 1, "too long")
    );
}

#[test]
fn values_of_the_environment_come_first() {
    let mut config = Config::parse_file(b"").unwrap();
    config.add_env(b"SPC_NAMESPACE", b"/a /b").unwrap();
    config.add_env(b"sysimage", b"/image/").unwrap();
    config.add_env(b"SPC_TYPES", b"tmpfs ext*").unwrap();
    config.add_env(b"SPC_TARGETS", b"/data=/mnt").unwrap();
    config.add_env(b"SPC_OPERATIONS", b" propagation ").unwrap();
    config.add_env(b"SPC_REPORT", b"/r").unwrap();
    config.add_env(b"PATH", b"\\").unwrap();
    assert_eq!(
        strings(config.namespaces()),
        [
            "/a",
            "/b",
            "/image/proc/1/ns/mnt",
            "/host/proc/1/ns/mnt",
            "/proc/1/ns/mnt"
        ]
    );
    assert_eq!(strings(config.host_roots()), ["/image", "/host"]);
    assert_eq!(strings(config.report_sockets()), ["/r", "/spc/report.sock"]);
    assert_eq!(strings(config.types().take(2)), ["tmpfs", "ext*"]);
    assert_eq!(config.host_target(b"/data", b"/data"), Some(&b"/mnt"[..]));
    assert!(config.redirects_operation(Operation::Propagation));
    let bad = config.add_env(b"SPC_TARGETS", b"relative").unwrap_err();
    assert_eq!((bad.line, bad.reason), (0, "bad value"));
    config.add_env(b"SPC_HOST", b"/").unwrap();
}

#[test]
fn the_variables_are_counted() {
    let last = VARIABLE_COUNT - 1;
    assert_eq!(index(VARIABLES, b"sysimage"), Some(last));
    assert_eq!(words::nth_word(VARIABLES, last.into()), b"sysimage");
    assert_eq!(words::nth_word(VARIABLES, VARIABLE_COUNT.into()), b"");
}

#[test]
fn the_built_in_values_have_space_beside_the_longest_file() {
    assert_eq!(TEXT_MAX, 16_384);
    for word in ["/targets", "/"] {
        let mut text = "target".to_owned();
        while text.len() + word.len() < TEXT_MAX {
            text = text + " " + word;
        }
        let mut config = Config::parse_file(text.as_bytes()).unwrap();
        assert_eq!(config.types().count(), 9);
        assert_eq!(strings(config.report_sockets()), ["/spc/report.sock"]);
        // The environment has a limit as well.
        let values = "/targets ".repeat(VALUES_MAX / 10);
        let error = config.add_env(b"SPC_TARGETS", values.as_bytes());
        assert_eq!(error.unwrap_err().reason, "too long");
    }
}

#[test]
fn zero_bytes_are_an_empty_config() {
    let empty = Config::empty();
    assert_eq!(empty.namespaces().count() + empty.types().count(), 0);
    assert_eq!(empty.used, 0);
    assert_eq!(empty.keys_present, 0);
}

#[test]
fn the_type_none_names_no_type() {
    let parse = |text: &str| Config::parse_file(text.as_bytes()).unwrap();
    assert!(parse("").names_a_type() && !parse("").lists_a_target());
    assert_eq!(parse("target /").host_target(b"/", b"/"), Some(&b"/"[..]));
    assert!(!parse("").redirects_nothing() && parse("target /mnt").lists_a_target());
    assert!(parse("type none").redirects_nothing() && !parse("type none").names_a_type());
    assert!(!parse("type none\noperation bind").redirects_nothing());
    assert!(!parse("type none\ntarget /mnt").redirects_nothing());
    assert!(parse("type none nfs").names_a_type());
}
