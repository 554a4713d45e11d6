//! FUSE programs: `PROGRAM SOURCE TARGET -o OPTIONS`. Any that daemonizes when its mount is there needs
//! no row; those that have one are told how to say why they fail, and how they get a secret.

use crate::error::Result;
use crate::kinds::model::{Asked, Helper, How, Maker, PLAIN, TARGET, Telling, passes};

/// Any of them, run without mount.fuse(8) and its shell.
#[allow(clippy::unnecessary_wraps)]
pub fn program(asked: &Asked<'_>) -> Result<Maker> {
    Ok(Maker::Helper(helper(asked)))
}

fn helper(asked: &Asked<'_>) -> Helper {
    let program = asked.fs_type.strip_prefix("fuse.").unwrap_or(asked.fs_type);
    Helper {
        programs: vec![program.into()],
        args: vec![asked.source.into(), TARGET.into()],
        options: asked.options.for_file_system(),
        ..Helper::default()
    }
}

/// `sshfs [USER@]HOST:[DIR] TARGET`. Unless it is verbose, it throws away what ssh says about a failure.
#[allow(clippy::unnecessary_wraps)]
pub fn sshfs(asked: &Asked<'_>) -> Result<Maker> {
    let mut helper = helper(asked);
    helper.args.push("-v".into());
    let option = Some("password_stdin");
    helper.secrets = passes(["password"], How::Stdin { option });
    Ok(Maker::Helper(helper))
}

/// What ssh says.
pub const SSHFS: Telling = Telling {
    hints: &[
        (
            "Permission denied",
            "name the key, as the container sees it: -o IdentityFile=/host/root/.ssh/id_ed25519",
        ),
        (
            "Host key verification failed",
            "name the known servers: -o UserKnownHostsFile=/host/root/.ssh/known_hosts, or -o StrictHostKeyChecking=accept-new",
        ),
        (
            "ssh: ",
            "check the server's name, and that this host can reach its sshd",
        ),
    ],
    ..PLAIN
};

/// `s3fs BUCKET[:/DIR] TARGET`. It asks the server only when it is in the background, and says in its log
/// alone what came back; in a mount table it would show as `s3fs` whatever the bucket.
pub fn s3fs(asked: &Asked<'_>) -> Result<Maker> {
    let mut helper = helper(asked);
    if asked.options.value("fsname").is_none() {
        helper.options.push(format!("fsname={}", asked.source))?;
        helper.options.push("subtype=s3fs".into())?;
    }
    let log = match asked.options.value("logfile") {
        Some(log) => log.to_owned(),
        None => {
            let log = format!("/var/log/s3fs.{}.log", asked.log_name);
            helper.options.push(format!("logfile={log}"))?;
            log
        }
    };
    helper.log = Some(log);
    let option = "passwd_file";
    helper.secrets = passes(["passwd"], How::File { option });
    Ok(Maker::Helper(helper))
}

/// What s3fs says of its server.
pub const S3FS: Telling = Telling {
    gives_up: Some("Failed to check bucket"),
    line: |line| match line.split_once("Z [") {
        // `DATE [LEVEL] FILE:FUNCTION(LINE): TEXT`
        Some((_, rest)) if rest.starts_with("CRT] ") || rest.starts_with("ERR] ") => {
            rest.split_once("): ").map(|(_, text)| text)
        }
        Some(_) => None,
        None => Some(line),
    },
    hints: &[
        (
            "Invalid Credentials",
            "check the key, which is ID:SECRET in the file of -o passwd_file, or in --secret passwd=file:FILE",
        ),
        (
            "security credentials",
            "name the key, which is ID:SECRET: -o passwd_file=FILE as the container sees it, or --secret passwd=file:FILE",
        ),
        (
            "others permissions",
            "a file with a key belongs to its owner alone: chmod 600 FILE",
        ),
        (
            "not found",
            "check the bucket and its directory, and -o url=; servers other than Amazon's often need -o use_path_request_style",
        ),
        (
            "connect",
            "check -o url=http://SERVER:PORT, and that this host can reach the server",
        ),
    ],
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    fn s3fs_of(options: &str) -> Helper {
        let (options, secrets) = Options::and_secrets([options]).unwrap();
        let asked = Asked {
            fs_type: "fuse.s3fs",
            source: "bucket:/dir",
            options: &options,
            secrets: &secrets,
            kernel_lacks: &|_| None,
            log_name: "mnt-data",
        };
        match s3fs(&asked).unwrap() {
            Maker::Helper(helper) => helper,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn s3fs_shows_its_bucket_and_logs_where_we_look_unless_the_user_chose() {
        let helper = s3fs_of("url=http://h");
        assert_eq!(
            helper.options.to_string(),
            "url=http://h,fsname=bucket:/dir,subtype=s3fs,logfile=/var/log/s3fs.mnt-data.log"
        );
        let helper = s3fs_of("fsname=x,logfile=/y");
        assert_eq!(helper.options.to_string(), "fsname=x,logfile=/y");
        assert_eq!(helper.log.as_deref(), Some("/y"));
    }

    #[test]
    fn what_the_log_of_s3fs_says_about_a_failure() {
        let date = "2026-11-24T07:51:12.463Z";
        let said = "Failed to check bucket and directory for mount point : Invalid Credentials(host=http://h, message=Access Denied)";
        for (rest, text) in [
            (
                format!("[CRT] s3fs.cpp:s3fs_check_service(4495): {said}"),
                Some(said),
            ),
            (
                "[INF] s3fs.cpp:s3fs_init(4209): init v1.95".to_owned(),
                None,
            ),
        ] {
            assert_eq!((S3FS.line)(&format!("{date} {rest}")), text);
        }
        assert_eq!(
            (S3FS.line)("s3fs: of no known form"),
            Some("s3fs: of no known form")
        );
    }
}
