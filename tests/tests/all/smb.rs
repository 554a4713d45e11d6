//! SMB 3: shares of a Samba server, mounted by the kernel's client. The server's side is looked at too.

use anyhow::{Result, ensure};
use lab::Samba;

use crate::support::{VmSpc, until, with_lab};

const TARGET: &str = "/mnt/smb";

/// Mounts a share, uses it, and has the server confirm who uses it, and that nobody does any more.
fn life(
    spc: &VmSpc<'_>,
    samba: &Samba<'_>,
    arguments: &[&str],
    shown: [&str; 2],
    used: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    let share = shown[1].split('/').nth(3).unwrap_or_default().to_owned();
    spc.life(arguments, TARGET, shown, |record| {
        ensure!(record["route"] == "graft", "{record}");
        let session = (share, "alice".to_owned());
        ensure!(samba.sessions()? == [session], "{:?}", samba.sessions()?);
        let table = spc.host.sh("grep ' /mnt/smb ' /proc/mounts")?.ok()?.text();
        eprintln!("{table}");
        used(&table)
    })?;
    until("the server has no session", || {
        Ok(samba.sessions()?.is_empty())
    })
}

#[test]
fn a_share_of_an_smb_server() {
    with_lab(|lab| {
        let samba = lab.samba()?;
        let spc = VmSpc::usual(lab)?;
        let (host, server) = (&spc.host, samba.host());
        let source = format!("//{}/data", samba.address());
        let credentials = format!("username=alice\npassword={}\n", Samba::PASSWORD);
        spc.put("/run/credentials", credentials.as_bytes())?;

        // Every dialect that the server speaks, and the one they agree on.
        for (vers, seen) in [
            ("vers=3.0,", "vers=3.0,"),
            ("vers=3.1.1,", "vers=3.1.1,"),
            ("", "vers=3.1.1,"),
        ] {
            let options =
                format!("{vers}sec=ntlmssp,uid=1234,gid=1235,credentials=/run/credentials");
            let mount = ["-t", "cifs", "-o", &options, &source];
            life(&spc, &samba, &mount, ["cifs", &source], |table| {
                ensure!(table.contains(seen) && table.contains("username=alice"));
                host.write("/mnt/smb/file", vers.as_bytes())?;
                ensure!(host.sh("stat -c %u:%g /mnt/smb/file")?.ok()?.text() == "1234:1235");
                ensure!(server.read("/srv/data/file")? == vers.as_bytes());
                ensure!(server.sh("stat -c %U /srv/data/file")?.ok()?.text() == "alice");
                server.write("/srv/data/from the server", vers.as_bytes())?;
                ensure!(host.read("/mnt/smb/from the server")? == vers.as_bytes());
                Ok(())
            })?;
        }

        // A directory of the share, by the other name that the kernel's client has; the type is told by the source.
        server
            .sh("mkdir -p /srv/data/dir/below && chown -R alice: /srv/data/dir")?
            .ok()?;
        let below = format!("{source}/dir/below");
        let options = "credentials=/run/credentials";
        for (arguments, fs_type) in [
            (&["-t", "smb3", "-o", options, &below][..], "smb3"),
            (&["-o", options, &below][..], "cifs"),
        ] {
            life(&spc, &samba, arguments, [fs_type, &below], |_| {
                host.write("/mnt/smb/file", fs_type.as_bytes())?;
                ensure!(server.read("/srv/data/dir/below/file")? == fs_type.as_bytes());
                Ok(())
            })?;
        }

        // Read-only at the server's end, and at ours.
        let docs = format!("//{}/docs", samba.address());
        let mount = ["-t", "cifs", "-o", options, &docs];
        life(&spc, &samba, &mount, ["cifs", &docs], |_| {
            ensure!(host.read("/mnt/smb/file")? == b"kept\n");
            let refused = host.sh("echo x >/mnt/smb/file")?;
            ensure!(refused.error_text().contains("denied"), "{refused}");
            Ok(())
        })?;
        let mount = ["-r", "-t", "cifs", "-o", options, &source];
        life(&spc, &samba, &mount, ["cifs", &source], |_| {
            let refused = host.sh("echo x >/mnt/smb/file")?;
            ensure!(refused.error_text().contains("Read-only"), "{refused}");
            Ok(())
        })?;
        spc.is_clean()
    });
}
