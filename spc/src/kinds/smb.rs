//! SMB: `mount.cifs //SERVER/SHARE[/DIR…] TARGET`, mount.cifs(8).

use crate::error::{Error, Result};
use crate::kinds::model::{Asked, Helper, How, Maker, PLAIN, Telling, mount_helper, passes};

/// The helper's arguments. It gives up all capabilities but a few, and those that it keeps are not enough
/// for the shim.
pub fn helper(asked: &Asked<'_>) -> Result<Maker> {
    let plain = asked.source.replace('\\', "/");
    let mut parts = plain.strip_prefix("//").unwrap_or_default().split('/');
    if !matches!((parts.next(), parts.next()), (Some(server), Some(share)) if !server.is_empty() && !share.is_empty())
    {
        return Err(Error::usage(format!("bad source: {}", asked.source))
            .hint("an SMB source is //SERVER/SHARE, or a directory below it: //SERVER/SHARE/DIR"));
    }
    if let Some(sec) = asked.options.value("sec")
        && sec.starts_with("krb5")
    {
        return Err(Error::usage(format!("bad option sec={sec}: no Kerberos for SMB here"))
            .hint("the kernel would ask the host's cifs.upcall for a ticket, which a host without client programs has not; use sec=ntlmssp and a password"));
    }
    for key in ["user", "username"] {
        if asked
            .options
            .value(key)
            .is_some_and(|user| user.contains('%'))
        {
            return Err(Error::usage(format!("bad option {key}: it holds a password, after a %"))
                .hint("give it apart from the name: --secret password=file:FILE, or -o credentials=FILE"));
        }
    }
    let variable = "PASSWD_FD";
    Ok(Maker::Helper(Helper {
        secrets: passes(["password", "pass"], How::FdEnv { variable }),
        drops_capabilities: true,
        ..mount_helper(asked)
    }))
}

const UNREACHED: &str = "check that the server is up and speaks SMB 2.1 or newer, and that this host can reach its port 445";

/// Its errors are those of the kernel, which has few words for what a server says.
pub const TELLING: Telling = Telling {
    line: |line| (!line.starts_with("Refer to the mount.cifs(8)")).then_some(line),
    hints: &[
        (
            "capability set",
            "mount.cifs gives up capabilities, for which it needs some: start the container with --cap-add=DAC_READ_SEARCH --cap-add=DAC_OVERRIDE as well, or with --privileged",
        ),
        (
            "opening credential file",
            "name the file as the container sees it; of the host, below /host where that is bound; without a bind, --secret password=file:/host/FILE reads the host's",
        ),
        (
            "Password for ",
            "give the password: -o credentials=FILE, or --secret password=file:FILE; or -o guest for a share that wants none",
        ),
        (
            "error(13)",
            "the server refuses the user, the password or the use of the share: check username=, domain= and password, and the share's list of users",
        ),
        (
            "error(2)",
            "the server has no such share, or the share no such directory: smbclient -L SERVER lists shares",
        ),
        (
            "error(95)",
            "server and client share no dialect: check vers=, and what the server allows (server min protocol)",
        ),
        (
            "error(22)",
            "the kernel does not take one of the options: its log says which (dmesg on the host)",
        ),
        (
            "not supported by the system",
            "the kernel has no cifs: on the host, try: modprobe cifs",
        ),
        (
            "could not resolve address",
            "check the server's name; the container asks the servers of its own /etc/resolv.conf",
        ),
        ("could not connect", UNREACHED),
        ("error(110)", UNREACHED),
        ("error(111)", UNREACHED),
        ("error(112)", UNREACHED),
        ("error(113)", UNREACHED),
        ("error(115)", UNREACHED),
    ],
    ..PLAIN
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    fn made(source: &str, options: &str) -> Result<Helper> {
        let (options, secrets) = Options::and_secrets([options])?;
        let asked = Asked {
            fs_type: "smb3",
            source,
            options: &options,
            secrets: &secrets,
            kernel_lacks: &|_| None,
            log_name: "mnt-data",
        };
        match helper(&asked)? {
            Maker::Helper(helper) => Ok(helper),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_source_names_a_server_and_a_share() {
        for good in [
            "//s/share",
            "//s/share/dir/below",
            r"\\s\share",
            "//2001:db8::1/share",
        ] {
            assert_eq!(made(good, "").unwrap().programs, ["mount.smb3"], "{good}");
        }
        for bad in [
            "s:/share",
            "//s",
            "//s/",
            "///share",
            "/s/share",
            "smb://s/share",
        ] {
            let error = made(bad, "").unwrap_err().to_string();
            assert!(error.contains("//SERVER/SHARE"), "{error}");
        }
    }

    #[test]
    fn what_could_not_work_or_would_be_seen_is_refused() {
        for (options, says) in [
            ("sec=krb5", "no Kerberos"),
            ("sec=krb5i", "sec=krb5i"),
            ("username=me%hunter2", "password"),
        ] {
            let error = made("//s/share", options).unwrap_err().to_string();
            assert!(
                error.contains(says) && !error.contains("hunter2"),
                "{error}"
            );
        }
        let helper = made("//s/share", "sec=ntlmssp,vers=3.1.1,uid=5,username=me").unwrap();
        assert!(helper.drops_capabilities);
    }
}
