//! GlusterFS: `mount.glusterfs SERVER[,SERVER…]:/VOLUME[/SUBDIR] TARGET`, mount.glusterfs(8).

use crate::error::{Error, Result};
use crate::kinds::model::{Asked, Helper, Maker, Telling, mount_helper};

/// The helper's arguments. Its daemon is told to log to a file that is named after the target, so
/// that the reason of a failure is found; a log file of the user's own choice is left alone.
pub fn helper(asked: &Asked<'_>) -> Result<Maker> {
    let volume = asked
        .source
        .split_once(":/")
        .or_else(|| asked.source.rsplit_once(':'));
    match volume {
        Some((servers, volume)) if !servers.is_empty() && !volume.is_empty() => {}
        _ => {
            return Err(Error::usage(format!("bad source: {}", asked.source))
                .hint("a GlusterFS source is SERVER:/VOLUME"));
        }
    }
    let mut helper: Helper = mount_helper(asked);
    let log = match asked.options.value("log-file") {
        Some(log) => log.to_owned(),
        None => {
            let log = format!("/var/log/glusterfs/{}.log", asked.log_name);
            helper.options.push(format!("log-file={log}"))?;
            log
        }
    };
    helper.log = Some(log);
    Ok(Maker::Helper(helper))
}

/// Its log is for its developers. A failed mount is explained by an error, or by the loss of the
/// server, which is logged as news.
pub const TELLING: Telling = Telling {
    gives_up: Some("Server authentication failed"),
    line,
    hints: &[
        (
            "failed to fetch volume file",
            "look at the volumes of the server, and whether this one is started: gluster volume info",
        ),
        (
            "subdirectory for mount",
            "make the directory in the volume first, or mount the whole volume",
        ),
        (
            "Server authentication failed",
            "the server refuses this client: gluster volume get VOLUME auth.allow",
        ),
        (
            "DNS resolution failed",
            "check the server's name; the container asks the servers of its own /etc/resolv.conf",
        ),
        (
            "disconnected from remote-host",
            "check that glusterd runs on the server, and that its port 24007 can be reached from this host",
        ),
    ],
};

/// `[DATE] LEVEL [MSGID: N] [FILE:LINE:FUNCTION] N-PART: TEXT`, of which the text counts.
fn line(line: &str) -> Option<&str> {
    let Some(rest) = line.strip_prefix('[') else {
        // The graph of the volume, line by line with its numbers, in a frame.
        let graph = |c: char| c.is_ascii_digit() || c == ' ';
        let graph = line.trim_start_matches(graph).starts_with(':') || line.starts_with("+--");
        return (!graph && line != "Final graph:").then_some(line);
    };
    let (_, rest) = rest.split_once("] ")?;
    let (level, mut text) = rest.split_once(' ')?;
    while let Some(rest) = text.strip_prefix('[') {
        (_, text) = rest.split_once("] ")?;
    }
    let (_, text) = text.split_once(": ")?;
    let lost = text.starts_with("disconnected from remote-host");
    // What its own end stirs up says nothing about the reason.
    let stir = text.starts_with("Either ctx is NULL");
    (!stir && (lost || matches!(level, "M" | "A" | "C" | "E"))).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;
    use crate::options::Secrets;

    fn log_of(source: &str, options: &str) -> Result<Option<String>> {
        let options = Options::parse([options])?;
        let asked = Asked {
            fs_type: "glusterfs",
            source,
            options: &options,
            secrets: &Secrets::default(),
            log_name: "mnt-data",
            kernel_lacks: &|_| None,
        };
        match helper(&asked)? {
            Maker::Helper(helper) => Ok(helper.log),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_log_is_named_after_the_target_unless_the_user_chose() {
        assert_eq!(
            log_of("a:/v", "").unwrap().unwrap(),
            "/var/log/glusterfs/mnt-data.log"
        );
        assert_eq!(log_of("a:v", "log-file=/x").unwrap().unwrap(), "/x");
    }

    #[test]
    fn what_the_log_says_about_a_failure() {
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
            "+-----+",
            "107:",
            "  1: volume vol-client-0",
        ] {
            assert_eq!(line(graph), None, "{graph}");
        }
    }

    #[test]
    fn a_source_names_a_server_and_a_volume() {
        for bad in ["vol", ":/vol", "server:", "server:/"] {
            assert!(log_of(bad, "").is_err(), "{bad}");
        }
        assert!(log_of("[2001:db8::1]:/vol", "").is_ok());
    }
}
