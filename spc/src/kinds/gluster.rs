//! GlusterFS: `mount.glusterfs SERVER[,SERVER…]:/VOLUME[/SUBDIR] TARGET`, mount.glusterfs(8).

use crate::error::{Error, Result};
use crate::kinds::model::{Diagnostics, Helper, KindInput, MountMethod, mount_helper};

/// Builds the command line of mount.glusterfs. The daemon logs to a file named after the target,
/// where spc finds the reason of a failure, unless the user gave another log file.
///
/// # Errors
/// Fails if the source is not `SERVER:/VOLUME`.
pub fn helper(input: &KindInput<'_>) -> Result<MountMethod> {
    let volume = input
        .source
        .split_once(":/")
        .or_else(|| input.source.rsplit_once(':'));
    match volume {
        Some((servers, volume)) if !servers.is_empty() && !volume.is_empty() => {}
        _ => {
            return Err(Error::usage(format!("bad source: {}", input.source))
                .hint("a GlusterFS source is SERVER:/VOLUME"));
        }
    }
    let mut helper: Helper = mount_helper(input);
    let log = match input.options.value("log-file") {
        Some(log) => log.to_owned(),
        None => {
            let log = format!("/var/log/glusterfs/{}.log", input.log_name);
            helper.options.push(format!("log-file={log}"))?;
            log
        }
    };
    helper.log = Some(log);
    Ok(MountMethod::Helper(helper))
}

/// Diagnostics of the daemon's log. A failed mount is explained by an error, or by the loss of the
/// server, which has the level I (info).
pub const DIAGNOSTICS: Diagnostics = Diagnostics {
    gives_up: Some("Server authentication failed"),
    // The client connects to several bricks at once, and one thread may read the volume's id while
    // another still writes it.
    transient: Some("volume-id changed, can't connect to server"),
    line,
    hints: &[
        (
            "failed to fetch volume file",
            "check on the server that the volume exists and is started: gluster volume info",
        ),
        (
            "subdirectory for mount",
            "make the directory in the volume first, or mount the whole volume",
        ),
        (
            "Server authentication failed",
            "the server refuses the address of this client; on the server, check: gluster volume get VOLUME auth.allow",
        ),
        (
            "DNS resolution failed",
            "check the server's name; it is resolved with the container's /etc/resolv.conf",
        ),
        (
            "disconnected from remote-host",
            "check that glusterd runs on the server, and that this host can reach its port 24007",
        ),
    ],
};

/// Returns TEXT of a log line `[DATE] LEVEL [MSGID: N] [FILE:LINE:FUNCTION] N-PART: TEXT` if the
/// line is an error. Lines of another form are returned whole, except the volume's graph.
fn line(line: &str) -> Option<&str> {
    let Some(rest) = line.strip_prefix('[') else {
        // The graph is logged in a frame of `+--`, each line as `NUMBER: TEXT`.
        let number = |c: char| c.is_ascii_digit() || c == ' ';
        let graph = line.trim_start_matches(number).starts_with(':') || line.starts_with("+--");
        // mount.glusterfs looks for the target there. A sandbox has no such file.
        let no_table = line.starts_with("grep: /proc/mounts: ");
        return (!graph && !no_table && line != "Final graph:").then_some(line);
    };
    let (_, rest) = rest.split_once("] ")?;
    let (level, mut text) = rest.split_once(' ')?;
    while let Some(rest) = text.strip_prefix('[') {
        (_, text) = rest.split_once("] ")?;
    }
    let (_, text) = text.split_once(": ")?;
    let lost = text.starts_with("disconnected from remote-host");
    // The daemon logs this while it ends, whatever the reason.
    let at_exit = text.starts_with("Either ctx is NULL");
    (!at_exit && (lost || matches!(level, "M" | "A" | "C" | "E"))).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;
    use crate::options::Secrets;

    fn log_of(source: &str, options: &str) -> Result<Option<String>> {
        let options = Options::parse([options])?;
        let input = KindInput {
            fs_type: "glusterfs",
            source,
            options: &options,
            secrets: &Secrets::default(),
            log_name: "mnt-data",
            kernel_lacks: &|_| None,
        };
        match helper(&input)? {
            MountMethod::Helper(helper) => Ok(helper.log),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_log_is_named_after_the_target_unless_the_user_gave_one() {
        assert_eq!(
            log_of("a:/v", "").unwrap().unwrap(),
            "/var/log/glusterfs/mnt-data.log"
        );
        assert_eq!(log_of("a:v", "log-file=/x").unwrap().unwrap(), "/x");
    }

    #[test]
    fn only_errors_and_lost_servers_are_taken_from_the_log() {
        let date = "[2026-01-02 10:31:30.632024 +0000]";
        for (rest, text) in [
            (
                "E [glusterfsd-mgmt.c:2514:mgmt_getspec_cbk] 0-mgmt: failed to fetch volume file (key:/v)",
                Some("failed to fetch volume file (key:/v)"),
            ),
            (
                "E [MSGID: 101073] [name.c:254:gf_resolve_ip6] 0-resolver: error in getaddrinfo [{family=2}]",
                Some("error in getaddrinfo [{family=2}]"),
            ),
            (
                "I [glusterfsd-mgmt.c:2783:mgmt_rpc_notify] 0-glusterfsd-mgmt: disconnected from remote-host: 192.0.2.1",
                Some("disconnected from remote-host: 192.0.2.1"),
            ),
            (
                "I [fuse-bridge.c:7051:fini] 0-fuse: Unmounting '/mnt'.",
                None,
            ),
            ("E cut off", None),
        ] {
            assert_eq!(line(&format!("{date} {rest}")), text, "{rest}");
        }
        assert_eq!(line("of no known form"), Some("of no known form"));
        for graph in [
            "Final graph:",
            "grep: /proc/mounts: No such file or directory",
            "+-----+",
            "107:",
            "  1: volume vol-client-0",
        ] {
            assert_eq!(line(graph), None, "{graph}");
        }
    }

    #[test]
    fn a_source_without_server_or_volume_is_refused() {
        for bad in ["vol", ":/vol", "server:", "server:/"] {
            assert!(log_of(bad, "").is_err(), "{bad}");
        }
        assert!(log_of("[2001:db8::1]:/vol", "").is_ok());
    }
}
