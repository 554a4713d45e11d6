//! FUSE programs: `PROGRAM SOURCE TARGET -o OPTIONS`. A program that daemonizes after mounting
//! needs no row of its own. Rows add the delivery of secrets, and diagnostics.

use crate::error::Result;
use crate::kinds::model::{
    DEFAULT_DIAGNOSTICS, Diagnostics, Helper, KindInput, MountMethod, SecretDelivery, TARGET,
    secret_params,
};

/// Builds the command line of any FUSE program. The program runs directly, not through
/// mount.fuse(8), which would start a shell.
#[allow(
    clippy::unnecessary_wraps,
    reason = "all mount methods have one signature"
)]
pub fn program(input: &KindInput<'_>) -> Result<MountMethod> {
    Ok(MountMethod::Helper(helper(input)))
}

fn helper(input: &KindInput<'_>) -> Helper {
    let program = input.fs_type.strip_prefix("fuse.").unwrap_or(input.fs_type);
    Helper {
        programs: vec![program.into()],
        args: vec![input.source.into(), TARGET.into()],
        options: input.options.for_file_system(),
        ..Helper::default()
    }
}

/// Builds `sshfs [USER@]HOST:[DIR] TARGET -v`. Without `-v`, sshfs discards the messages of ssh.
#[allow(
    clippy::unnecessary_wraps,
    reason = "all mount methods have one signature"
)]
pub fn sshfs(input: &KindInput<'_>) -> Result<MountMethod> {
    let mut helper = helper(input);
    helper.args.push("-v".into());
    // No file of the node configures ssh or has a key for it.
    helper.sandbox_args = &[
        "-F",
        "none",
        "-o",
        "IdentityFile=none",
        "-o",
        "IdentitiesOnly=yes",
    ];
    let option = Some("password_stdin");
    helper.secrets = secret_params(["password"], SecretDelivery::Stdin { option });
    Ok(MountMethod::Helper(helper))
}

/// Diagnostics of sshfs: messages of ssh.
pub const SSHFS_DIAGNOSTICS: Diagnostics = Diagnostics {
    hints: &[
        (
            "Permission denied",
            "check user and password, or name the file with the key, with a path of the container: -o IdentityFile=/host/root/.ssh/id_ed25519",
        ),
        (
            "Host key verification failed",
            "name the file with the known host keys: -o UserKnownHostsFile=/host/root/.ssh/known_hosts, or accept a new key: -o StrictHostKeyChecking=accept-new",
        ),
        (
            "ssh: ",
            "check the server's name, and that this host can reach its sshd",
        ),
    ],
    ..DEFAULT_DIAGNOSTICS
};

/// Builds `s3fs BUCKET[:/DIR] TARGET`. s3fs contacts its server only in the background, and
/// reports failures only in its log. Without `fsname=`, the mount table would show `s3fs` as the
/// source of every bucket.
///
/// # Errors
/// Fails if an added option would hold a NUL byte.
pub fn s3fs(input: &KindInput<'_>) -> Result<MountMethod> {
    let mut helper = helper(input);
    if input.options.value("fsname").is_none() {
        helper
            .options
            .push(format!("fsname={}", escaped(input.source)))?;
        helper.options.push("subtype=s3fs".into())?;
    }
    let log = match input.options.value("logfile") {
        Some(log) => log.to_owned(),
        None => {
            let log = format!("/var/log/s3fs.{}.log", input.log_name);
            helper.options.push(format!("logfile={log}"))?;
            log
        }
    };
    helper.log = Some(log);
    let option = "passwd_file";
    helper.secrets = secret_params(["passwd"], SecretDelivery::File { option });
    Ok(MountMethod::Helper(helper))
}

/// Escapes a value for the list of options of a FUSE program, which would split it at a comma.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

/// Diagnostics of s3fs: errors in its log.
pub const S3FS_DIAGNOSTICS: Diagnostics = Diagnostics {
    gives_up: Some("Failed to check bucket"),
    transient: None,
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
            "check the key, which is ID:SECRET in the file of -o passwd_file=FILE or --secret passwd=file:FILE",
        ),
        (
            "security credentials",
            "name the key, which is ID:SECRET: --secret passwd=file:FILE, or -o passwd_file=FILE with a path of the container",
        ),
        (
            "others permissions",
            "only its owner may have access to the file with the key: chmod 600 FILE",
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

    fn s3fs_helper(options: &str) -> Helper {
        let (options, secrets) = Options::parse_with_secrets([options]).unwrap();
        let input = KindInput {
            fs_type: "fuse.s3fs",
            source: "bucket:/dir",
            options: &options,
            secrets: &secrets,
            kernel_lacks: &|_| None,
            log_name: "mnt-data",
        };
        match s3fs(&input).unwrap() {
            MountMethod::Helper(helper) => helper,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn s3fs_gets_fsname_and_logfile_unless_the_user_gave_them() {
        let helper = s3fs_helper("url=http://h");
        assert_eq!(
            helper.options.to_string(),
            "url=http://h,fsname=bucket:/dir,subtype=s3fs,logfile=/var/log/s3fs.mnt-data.log"
        );
        let helper = s3fs_helper("fsname=x,logfile=/y");
        assert_eq!(helper.options.to_string(), "fsname=x,logfile=/y");
        assert_eq!(helper.log.as_deref(), Some("/y"));
    }

    #[test]
    fn a_comma_in_a_source_is_no_end_of_an_option() {
        assert_eq!(escaped(r"bucket:/a,b\c"), r"bucket:/a\,b\\c");
    }

    #[test]
    fn only_errors_are_taken_from_the_log_of_s3fs() {
        let date = "2026-11-24T07:51:12.463Z";
        let error = "Failed to check bucket and directory for mount point : Invalid Credentials(host=http://h, message=Access Denied)";
        for (rest, text) in [
            (
                format!("[CRT] s3fs.cpp:s3fs_check_service(4495): {error}"),
                Some(error),
            ),
            (
                "[INF] s3fs.cpp:s3fs_init(4209): init v1.95".to_owned(),
                None,
            ),
        ] {
            assert_eq!((S3FS_DIAGNOSTICS.line)(&format!("{date} {rest}")), text);
        }
        assert_eq!(
            (S3FS_DIAGNOSTICS.line)("s3fs: of no known form"),
            Some("s3fs: of no known form")
        );
    }
}
