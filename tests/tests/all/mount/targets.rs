//! Targets by any name and any spelling. One spelling mounts, another unmounts, and the host shows
//! the mount at the right directory.

use anyhow::{Context, Result, ensure};
use lab::{Base, Cluster, Engine, Output, Propagation};

use crate::support::{MINIMAL, PRIVILEGED, Spc, with_gluster};

/// A working directory in the container, and a target as written there.
type Spelling<'a> = (&'a str, &'a str);

/// The program that mounts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    Kernel,
    Gluster,
    Graft,
}

struct Targets<'a> {
    spc: Spc<'a>,
    cluster: &'a Cluster<'a>,
}

impl Targets<'_> {
    fn mount(&self, maker: Maker, (cwd, target): Spelling<'_>) -> Result<Output> {
        let volume = format!("{}:/vol", self.cluster.nodes()[0].host().address());
        let what: &[&str] = match maker {
            Maker::Kernel => &["-t", "tmpfs", "--", "none"],
            Maker::Gluster => &["-t", "glusterfs", "--", &volume],
            Maker::Graft => &["-t", "glusterfs", "--route", "graft", "--", &volume],
        };
        let words = [&["spc", "mount"], what, &[target]].concat();
        self.spc.exec_in(cwd, &words)?.ok()
    }

    fn umount(&self, (cwd, target): Spelling<'_>) -> Result<()> {
        self.spc
            .exec_in(cwd, &["spc", "umount", "--", target])?
            .ok()?;
        Ok(())
    }

    /// Checks for one mount on the host at this directory, and writes a file through it.
    fn is_mounted(&self, maker: Maker, place: &str) -> Result<()> {
        let fstype = match maker {
            Maker::Kernel => "tmpfs",
            Maker::Gluster | Maker::Graft => "fuse.glusterfs",
        };
        let on = self.spc.on(place)?;
        ensure!(on.len() == 1 && on[0].fstype == fstype, "{on:?}");
        let file = format!("{place}/on-{}", self.spc.host.name());
        self.spc.host.write(&file, place.as_bytes())?;
        if maker != Maker::Kernel {
            for node in self.cluster.nodes() {
                let brick = node
                    .brick("vol")
                    .join(format!("on-{}", self.spc.host.name()));
                ensure!(
                    node.host().read(brick)? == place.as_bytes(),
                    "not on a brick"
                );
            }
        }
        Ok(())
    }

    /// Checks that `spc ls` has one line, with this directory and this other name, if any.
    fn is_listed(&self, place: &str, written: &str) -> Result<()> {
        let list = self.spc.exec(&["spc", "ls", "--json"])?.ok()?.text();
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let one = &list[0];
        ensure!(
            list[1].is_null()
                && one["target"] == place
                && one["written"] == written
                && one["state"] == "ok",
            "{list}"
        );
        let text = self.spc.exec(&["spc", "ls"])?.ok()?.text();
        ensure!(text.lines().count() == 2, "more than a line: {text}");
        let other = text.contains(&format!("{place} (as {written})"));
        ensure!(other == (place != written), "other names: {text}");
        Ok(())
    }

    /// Mounts by one spelling and unmounts by the other, in both orders.
    fn check(
        &self,
        maker: Maker,
        place: &str,
        one: Spelling<'_>,
        other: Spelling<'_>,
    ) -> Result<()> {
        let steps = || {
            self.spc.host.run(&["mkdir", "-p", place])?.ok()?;
            for (first, second) in [(one, other), (other, one)] {
                self.mount(maker, first)?;
                self.is_mounted(maker, place)?;
                self.umount(second)?;
                ensure!(self.spc.on(place)?.is_empty(), "still mounted");
            }
            self.spc.is_clean()
        };
        steps().with_context(|| format!("{place:?} as {one:?} and {other:?}"))
    }
}

/// Absolute path of 1,000 characters.
fn long(start: &str) -> String {
    let mut path = start.to_owned();
    while path.len() < 1000 {
        path.push('/');
        let rest = 1000 - path.len();
        // No component may be empty or longer than a file system allows.
        let name = if rest > 200 { 199.min(rest - 2) } else { rest };
        path.push_str(&"x".repeat(name));
    }
    path
}

fn any_name(targets: &Targets<'_>, helper: Maker) -> Result<()> {
    let long = long("/srv");
    ensure!(long.len() == 1000);
    for (maker, place) in [
        (Maker::Kernel, "/mnt/with space"),
        (Maker::Kernel, "/mnt/a,b=c,ro"),
        (helper, "/mnt/line\nbreak, and a comma"),
        (Maker::Kernel, "/mnt/Größe 日本 🚀"),
        (Maker::Kernel, "/mnt/a\\040b\ttab \"quotes' $HOME `id`"),
        (helper, &long),
    ] {
        let below = format!("/host{place}");
        targets.check(maker, place, ("/", place), ("/", &below))?;
    }
    Ok(())
}

fn any_spelling(targets: &Targets<'_>) -> Result<()> {
    let kernel = Maker::Kernel;
    targets.check(kernel, "/mnt/a/b", ("/mnt", "a/b"), ("/mnt", "../mnt/a/b"))?;
    targets.check(kernel, "/mnt/-rf", ("/mnt", "-rf"), ("/", "mnt/./-rf"))?;
    targets.check(
        kernel,
        "/mnt/up",
        ("/mnt", "/mnt/a/../up"),
        ("/", "/../mnt/up"),
    )?;
    targets.check(
        kernel,
        "/mnt/slash",
        ("/", "/mnt/slash///"),
        ("/", "//mnt//slash"),
    )?;
    targets.check(
        kernel,
        "/mnt/dots",
        ("/", "/mnt/./dots/."),
        ("/mnt", "dots/"),
    )?;
    // The container has this directory as well, as its working directory.
    targets.check(Maker::Gluster, "/mnt", ("/mnt", "."), ("/", "mnt"))
}

#[test]
fn any_spelling_of_a_target_works_on_a_shared_root() {
    with_gluster(|lab, cluster| {
        let shared = Propagation::Shared;
        let spc = Spc::start(lab, shared, Engine::Docker, Base::Trixie, &PRIVILEGED)?;
        let targets = Targets { spc, cluster };
        any_name(&targets, Maker::Gluster)?;
        any_spelling(&targets)?;
        // Where the host's tree is bound, a process of the container can be in the directory
        // itself.
        let dot = ("/host/srv/dot", ".");
        targets.spc.host.run(&["mkdir", "/srv/dot"])?.ok()?;
        targets.check(Maker::Kernel, "/srv/dot", dot, ("/", "/srv/dot"))
    });
}

#[test]
fn any_spelling_of_a_target_works_on_a_private_root() {
    with_gluster(|lab, cluster| {
        let private = Propagation::Private;
        let spc = Spc::start(lab, private, Engine::Docker, Base::Trixie, &MINIMAL)?;
        let targets = Targets { spc, cluster };
        any_name(&targets, Maker::Graft)?;
        any_spelling(&targets)?;
        // Links of an ostree host.
        let link = "mv /mnt /var/mnt && ln -s var/mnt /mnt && ln -s /mnt/data /srv/link";
        targets.spc.host.sh(link)?.ok()?;
        let place = "/var/mnt/data";
        for (maker, written) in [
            (Maker::Gluster, "/mnt/data"),
            (Maker::Graft, "/srv/link"),
            (Maker::Kernel, "/host/mnt/data"),
        ] {
            targets.check(maker, place, ("/", written), ("/", place))?;
            targets.mount(maker, ("/", written))?;
            targets.is_listed(place, written.trim_start_matches("/host"))?;
            targets.umount(("/", place))?;
        }
        let newline = "/var/mnt/line\nbreak, and a comma";
        targets.mount(Maker::Kernel, ("/", newline))?;
        targets.is_listed(newline, newline)?;
        targets.umount(("/", newline))
    });
}
