//! SMB: `mount.cifs //SERVER/SHARE[/DIR…] TARGET`, mount.cifs(8).

use crate::error::{Error, Result};
use crate::kinds::model::{
    DEFAULT_DIAGNOSTICS, Diagnostics, Helper, KindInput, MountMethod, SecretDelivery, mount_helper,
    secret_params,
};

/// Builds the command line of mount.cifs. The helper drops most capabilities; the rest is not
/// enough for the shim.
///
/// # Errors
/// Fails if the source is not `//SERVER/SHARE`, for Kerberos, and for a password in `username=`.
pub fn helper(input: &KindInput<'_>) -> Result<MountMethod> {
    let plain = input.source.replace('\\', "/");
    let parts = plain
        .strip_prefix("//")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(server, path)| !server.is_empty() && !path.is_empty() && !path.starts_with('/'));
    let Some((_, path)) = parts else {
        return Err(Error::usage(format!("bad source: {}", input.source))
            .hint("an SMB source is //SERVER/SHARE, or a directory below it: //SERVER/SHARE/DIR"));
    };
    // mount.cifs adds both to the options for the kernel, without escapes.
    if path.contains(',') {
        return Err(Error::usage(format!("bad source: {}", input.source))
            .because("mount.cifs takes the text after a comma for options")
            .hint("rename the share or the directory on the server"));
    }
    let is_kerberos = |sec: &&str| sec.starts_with("krb5");
    if let Some(sec) = input.options.values("sec").find(is_kerberos) {
        return Err(Error::usage(format!("bad option sec={sec}: no Kerberos for SMB here"))
            .hint("use sec=ntlmssp and a password; for Kerberos the kernel runs cifs.upcall on the host, which has no client programs"));
    }
    for key in ["user", "username"] {
        if input
            .options
            .value(key)
            .is_some_and(|user| user.contains('%'))
        {
            return Err(Error::usage(format!(
                "bad option {key}: it contains a password, after a %"
            ))
            .hint(
                "give the password separately: --secret password=file:FILE, or -o credentials=FILE",
            ));
        }
    }
    let variable = "PASSWD_FD";
    Ok(MountMethod::Helper(Helper {
        secrets: secret_params(["password", "pass"], SecretDelivery::FdEnv { variable }),
        drops_capabilities: true,
        ..mount_helper(input)
    }))
}

/// Hint for a server that cannot be reached.
const UNREACHED: &str = "check that the server is up and speaks SMB 2.1 or newer, and that this host can reach its port 445";

/// Diagnostics of mount.cifs, which prints little more than the errno of mount(2).
pub const DIAGNOSTICS: Diagnostics = Diagnostics {
    line: |line| (!line.starts_with("Refer to the mount.cifs(8)")).then_some(line),
    hints: &[
        (
            "capability set",
            "mount.cifs cannot set its capabilities: start the container also with --cap-add=DAC_READ_SEARCH --cap-add=DAC_OVERRIDE, or with --privileged",
        ),
        (
            "opening credential file",
            "give a path of the container, below /host for a file of the host if that is bound; --secret password=file:/host/FILE reads a file of the host without a bind",
        ),
        (
            "Password for ",
            "give the password: -o credentials=FILE, or --secret password=file:FILE; or -o guest for a share without a password",
        ),
        (
            "error(13)",
            "the server refuses the user, the password or the use of the share: check username=, domain= and password, and the share's list of users; a file of -o credentials= needs lines that end with a plain line feed, and no byte order mark",
        ),
        (
            "error(2)",
            "the server has no such share, or the share has no such directory: smbclient -L SERVER lists the shares",
        ),
        (
            "error(95)",
            "server and client have no common dialect: check vers=, and what the server allows (server min protocol)",
        ),
        (
            "error(22)",
            "the kernel refuses one of the options; its log names it (dmesg on the host)",
        ),
        (
            "not supported by the system",
            "the kernel has no cifs; on the host, try: modprobe cifs",
        ),
        (
            "could not resolve address",
            "check the server's name; it is resolved with the container's /etc/resolv.conf",
        ),
        ("could not connect", UNREACHED),
        ("error(110)", UNREACHED),
        ("error(111)", UNREACHED),
        ("error(112)", UNREACHED),
        ("error(113)", UNREACHED),
        ("error(115)", UNREACHED),
    ],
    ..DEFAULT_DIAGNOSTICS
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    fn cifs_helper(source: &str, options: &str) -> Result<Helper> {
        let (options, secrets) = Options::parse_with_secrets([options])?;
        let input = KindInput {
            fs_type: "smb3",
            source,
            options: &options,
            secrets: &secrets,
            kernel_lacks: &|_| None,
            log_name: "mnt-data",
        };
        match helper(&input)? {
            MountMethod::Helper(helper) => Ok(helper),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_source_without_server_or_share_is_refused() {
        for good in [
            "//s/share",
            "//s/share/dir/below",
            r"\\s\share",
            "//2001:db8::1/share",
        ] {
            assert_eq!(
                cifs_helper(good, "").unwrap().programs,
                ["mount.smb3"],
                "{good}"
            );
        }
        for bad in [
            "s:/share",
            "//s",
            "//s/",
            "///share",
            "/s/share",
            "smb://s/share",
        ] {
            let error = cifs_helper(bad, "").unwrap_err().to_string();
            assert!(error.contains("//SERVER/SHARE"), "{error}");
        }
        for bad in [
            "//s/share,sec=krb5",
            "//s/share/dir,cruid=1000",
            r"\\s\share\a,b",
        ] {
            let error = cifs_helper(bad, "").unwrap_err().to_string();
            assert!(error.contains("after a comma"), "{error}");
        }
    }

    #[test]
    fn kerberos_and_passwords_in_names_are_refused() {
        for (options, message) in [
            ("sec=krb5", "no Kerberos"),
            ("sec=krb5i", "sec=krb5i"),
            ("username=me%hunter2", "password"),
        ] {
            let error = cifs_helper("//s/share", options).unwrap_err().to_string();
            assert!(
                error.contains(message) && !error.contains("hunter2"),
                "{error}"
            );
        }
        let helper = cifs_helper("//s/share", "sec=ntlmssp,vers=3.1.1,uid=5,username=me").unwrap();
        assert!(helper.drops_capabilities);
    }
}
