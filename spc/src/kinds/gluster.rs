//! GlusterFS: `mount.glusterfs SERVER[,SERVER…]:/VOLUME[/SUBDIR] TARGET`, mount.glusterfs(8).

use super::{Asked, Helper, Maker, mount_helper};
use crate::error::{Error, Result};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::Options;

    fn log_of(source: &str, options: &str) -> Result<Option<String>> {
        let options = Options::parse([options])?;
        let asked = Asked {
            fs_type: "glusterfs",
            source,
            options: &options,
            log_name: "mnt-data",
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
    fn a_source_names_a_server_and_a_volume() {
        for bad in ["vol", ":/vol", "server:", "server:/"] {
            assert!(log_of(bad, "").is_err(), "{bad}");
        }
        assert!(log_of("[2001:db8::1]:/vol", "").is_ok());
    }
}
