//! mount(8)'s options that do not depend on the file system. Each is given to mount(8) of
//! util-linux 2.41, to `spc mount`, and to mount(8) with the installed name `mount.spc`. The results
//! have to be the same, but for the differences that docs/commands.md lists.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::support::{Spc, with_container};

/// Result of `spc mount`, compared with that of mount(8).
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// Both succeed with the same mount, or both fail.
    Same,
    /// mount(8) ignores the option. spc refuses it, with these words.
    Refused(&'static str),
    /// As `Same`, but not with an installed name: mount(8) passes `ro` for `ro=vfs`, and does itself
    /// what `X-mount.…` says, on the host, while here it runs in the container.
    SameByItself,
}
use Outcome::{Refused, Same, SameByItself};

const NEW: &str = "does not change existing mounts";

const TABLE: &[(&str, Outcome)] = &[
    ("defaults", Same),
    ("auto", Same),
    ("noauto", Same),
    ("nofail", Same),
    ("_netdev", Same),
    ("comment=x", Same),
    ("x-foo=1,X-foo,x-systemd.automount", Same),
    // Users who may mount, and the flags that follow from it.
    ("user", Same),
    ("users", Same),
    ("owner", Same),
    ("group", Same),
    ("nouser,nousers,noowner,nogroup", Same),
    ("user=alice", Same),
    ("user,exec", Same),
    ("exec,user", Same),
    ("users,dev,suid", Same),
    ("owner,suid", Same),
    // Attributes of the mount.
    ("rw", Same),
    ("ro", Same),
    ("ro,rw", Same),
    ("ro=vfs", SameByItself),
    ("ro=fs", SameByItself),
    ("ro=recursive", Same),
    ("suid", Same),
    ("nosuid", Same),
    ("nosuid,suid", Same),
    ("nosuid=recursive", Same),
    ("dev", Same),
    ("nodev", Same),
    ("exec", Same),
    ("noexec", Same),
    ("noexec=vfs", Same),
    ("atime", Same),
    ("noatime", Same),
    ("noatime,atime", Same),
    ("noatime,relatime", Same),
    ("noatime,nostrictatime", Same),
    ("diratime", Same),
    ("nodiratime", Same),
    ("relatime", Same),
    ("norelatime", Same),
    ("strictatime", Same),
    ("nostrictatime", Same),
    ("strictatime,relatime", Same),
    ("symfollow", Same),
    ("nosymfollow", Same),
    ("nosymfollow,symfollow", Same),
    // Flags of the file system.
    ("sync", Same),
    ("async", Same),
    ("dirsync", Same),
    ("lazytime", Same),
    ("nolazytime", Same),
    ("mand", Same),
    ("nomand", Same),
    ("silent", Same),
    ("loud", Same),
    ("iversion", Same),
    ("noiversion", Same),
    // Values.
    ("uid=daemon,gid=daemon", Same),
    ("uid=1,gid=2", Same),
    ("uid=useruid,gid=usergid", Same),
    ("uid=nosuchuser", Same),
    ("gid=nosuchgroup", Same),
    ("size=1m,,ro", Same),
    ("size=\"1m\"", Same),
    // Labels, on a host without SELinux.
    ("context=\"system_u:object_r:x:s0:c1,c2\"", Same),
    ("fscontext=a:b:c,defcontext=a:b:c,rootcontext=a:b:c", Same),
    ("seclabel", Same),
    // mount(8)'s own.
    ("helper=x,uhelper=x", Same),
    ("X-mount.mkdir", Same),
    ("X-mount.mkdir=0700", Same),
    ("X-mount.noloop", Same),
    ("X-mount.owner=daemon", SameByItself),
    ("X-mount.group=daemon", SameByItself),
    ("X-mount.mode=0711", SameByItself),
    ("X-mount.idmap=0:1000:10", SameByItself),
    ("X-mount.bogus=1", Refused("spc knows X-mount.group")),
    ("x-mount.subdri=a", Refused("did you mean X-mount.subdir?")),
    ("X-mount.nocanonicalize", Refused("spc knows")),
    ("X-mount.auto-fstypes=ext4", Refused("spc knows")),
    ("x-spc.repiar=host", Refused("did you mean x-spc.repair?")),
    ("shared", Refused(NEW)),
    ("private", Refused(NEW)),
    ("rslave", Refused(NEW)),
    ("unbindable", Refused(NEW)),
    ("loop", Refused("loop")),
    ("offset=0", Refused("offset")),
    ("verity.roothash=1", Refused("verity.roothash")),
    ("bogus", Same),
    ("move", Same),
];

/// Mounts once with each line of standard input as the options, and prints a line for each: exit
/// code, attributes and file system options in this mount table, mode and owner of the root, errors.
const RUN: &str = r#"
table=$1 target=$2 see=$3 unmount=$4; shift 4
while IFS= read -r options; do
    "$@" -o "$options" "$target" >/tmp/errors 2>&1
    code=$?
    found=$(sed -n "s|^[^ ]* [^ ]* [^ ]* [^ ]* $target \([^ ]*\) .*- tmpfs [^ ]* |\1 |p" "$table")
    echo "$code|$found|$(stat -c '%a %u %g' "$see")|$(tr '\n' ' ' </tmp/errors)"
    if [ -n "$found" ]; then $unmount "$target" >/dev/null; fi
done"#;

/// Result of one mount.
#[derive(Debug, PartialEq)]
struct Found {
    success: bool,
    /// Mount as in the mount table, and its root.
    mount: String,
    errors: String,
}

/// Runs a command with each of the table's options.
fn run(spc: &Spc<'_>, on: [&str; 4], words: &[&str]) -> Result<Vec<Found>> {
    let input: String = TABLE
        .iter()
        .map(|(options, _)| format!("{options}\n"))
        .collect();
    let words = [&["sh", "-c", RUN, "run"], &on[..], words].concat();
    let text = spc.exec_with(&words, input.as_bytes())?.ok()?.text();
    let line = |line: &str| {
        let mut fields = line.splitn(4, '|').map(str::to_owned);
        let code = fields.next().context("no exit code")?;
        let (mount, root) = (fields.next(), fields.next());
        let mount = mount.filter(|mount| !mount.is_empty());
        Ok(Found {
            success: code == "0",
            mount: mount.map_or(String::new(), |mount| {
                format!("{mount} {}", root.unwrap_or_default())
            }),
            errors: fields.next().unwrap_or_default(),
        })
    };
    let found = text.lines().map(line).collect::<Result<Vec<_>>>()?;
    ensure!(found.len() == TABLE.len(), "{text}");
    Ok(found)
}

#[test]
fn options_of_mount_do_what_they_do_with_mount() {
    with_container(|spc| {
        spc.sh("mkdir -p /tmp/t /mnt/t && ln -s /usr/bin/spc /usr/sbin/mount.spc; mount --version | grep 2.41")?
            .ok()?;
        spc.host
            .sh("mkdir -p /mnt/t; echo daemon:x:1:1:::>/etc/passwd; echo daemon:x:1:>/etc/group")?;
        let here = ["/proc/self/mountinfo", "/tmp/t", "/tmp/t", "umount"];
        let host = [
            "/proc/1/mountinfo",
            "/mnt/t",
            "/proc/1/root/mnt/t",
            "spc umount",
        ];
        let theirs = run(spc, here, &["mount", "-t", "tmpfs", "src"])?;
        let ours = run(spc, host, &["spc", "mount", "-t", "tmpfs", "src"])?;
        let installed = run(spc, host, &["mount", "-t", "spc.tmpfs", "src"])?;
        let mut wrong = Vec::new();
        for (index, (options, expected)) in TABLE.iter().enumerate() {
            let (theirs, ours, installed) = (&theirs[index], &ours[index], &installed[index]);
            let same = |other: &Found| {
                (other.success, &other.mount) == (theirs.success, &theirs.mount)
                    && (other.success || other.errors.contains("hint: ") || theirs.success)
            };
            let fits = match expected {
                Same => same(ours) && (same(installed) || !theirs.success && !installed.success),
                SameByItself => same(ours),
                Refused(words) => {
                    theirs.success
                        && !ours.success
                        && ours.errors.contains(words)
                        && ours.errors.contains("hint: ")
                }
            };
            if !fits {
                wrong.push(format!(
                    "{options}\n  mount(8): {theirs:?}\n  spc mount: {ours:?}\n  mount.spc: {installed:?}\n"
                ));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.concat());
        spc.is_clean()?;
        helpers_get_the_same(spc).context("what helpers get")?;
        binds_are_the_same(spc).context("bind mounts")
    });
}

/// Options that mount(8) passes to helpers and spc does not, since they tell nothing about the mount
/// or name the kernel's default.
const LEFT_OUT: &[&str] = &[
    "_netdev",
    "helper",
    "iversion",
    "loud",
    "nofail",
    "norelatime",
    "nostrictatime",
    "rw",
    "silent",
    "symfollow",
    "uhelper",
    "user",
    "users",
];

/// Final state of each option of a list.
fn settled(list: &str) -> BTreeMap<String, String> {
    let mut settled = BTreeMap::new();
    let mut quoted = false;
    let parts = list.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    for option in parts {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let layer = ["vfs", "fs", "recursive"].contains(&value);
        let is_left_out = LEFT_OUT.contains(&key) && (value.is_empty() || key.ends_with("helper"));
        if !option.is_empty()
            && !is_left_out
            && !key.starts_with("nouse")
            && !key.starts_with("noowner")
            && !key.starts_with("nogroup")
            && key != "noiversion"
        {
            let (name, state) = match key.strip_prefix("no") {
                Some(name) => (name, "no"),
                None => (key, if layer { "" } else { value }),
            };
            settled.insert(name.to_owned(), state.to_owned());
        }
    }
    settled
}

/// Compares the options that a helper gets from mount(8) with those that it gets from spc.
fn helpers_get_the_same(spc: &Spc<'_>) -> Result<()> {
    let helper = "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = -o ] && echo \"$2\" >/tmp/options; shift; done; exit 1\n";
    spc.put("/usr/sbin/mount.rec", helper.as_bytes())?;
    let script = r#"target=$1; shift; while IFS= read -r options; do
        rm -f /tmp/options; "$@" -o "$options" "$target" >/dev/null 2>&1; cat /tmp/options 2>/dev/null || echo none
        done"#;
    let input: String = TABLE
        .iter()
        .map(|(options, _)| format!("{options}\n"))
        .collect();
    let run = |words: &[&str]| -> Result<Vec<String>> {
        let words = [&["sh", "-c", script, "run", "/mnt/t"][..], words].concat();
        let text = spc.exec_with(&words, input.as_bytes())?.text();
        Ok(text.lines().map(str::to_owned).collect())
    };
    let theirs = run(&["mount", "-t", "rec", "src"])?;
    let ours = run(&["spc", "mount", "-t", "rec", "src"])?;
    ensure!(theirs.len() == TABLE.len() && ours.len() == TABLE.len());
    for (index, (options, expected)) in TABLE.iter().enumerate() {
        let theirs = &theirs[index];
        // Refused before a helper is run, or mount(8) itself would set up a device.
        if matches!(expected, Refused(_)) || theirs == "none" {
            continue;
        }
        let ours = match ours[index].as_str() {
            "none" => "",
            ours => ours,
        };
        ensure!(
            settled(theirs) == settled(ours),
            "{options}: {theirs} is not {ours}"
        );
    }
    spc.is_clean()
}

/// Compares bind mounts of a read-only, nosuid mount.
fn binds_are_the_same(spc: &Spc<'_>) -> Result<()> {
    let make = "mkdir -p /tmp/s && mount -t tmpfs -o ro,nosuid s /tmp/s";
    spc.sh(make)?.ok()?;
    spc.host.sh(make)?.ok()?;
    for options in [
        "bind",
        "bind,ro",
        "bind,rw",
        "bind,suid",
        "bind,noexec",
        "bind,noatime",
        "bind,atime",
        "bind,nodiratime",
        "bind,strictatime",
        "bind,relatime",
        "bind,nosymfollow",
        "bind,user",
        "bind,user,exec",
    ] {
        let show = |table: &str| format!("sed -n 's|.* /mnt/t \\([^ ]*\\) .*|\\1|p' {table}");
        let theirs = spc.sh(&format!(
            "mount -o {options} /tmp/s /mnt/t && {} && umount /mnt/t",
            show("/proc/self/mountinfo")
        ))?;
        spc.mount(&["-o", options, "/tmp/s", "/mnt/t"])?;
        let ours = spc.sh(&show("/proc/1/mountinfo"))?.ok()?.text();
        spc.umount("/mnt/t")?;
        ensure!(theirs.text() == ours, "{options}: {ours}\n{theirs}");
    }
    Ok(())
}
