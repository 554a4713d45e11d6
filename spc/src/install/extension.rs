//! Names on a host whose `/usr` cannot be written: a tree that systemd-sysext(8) merges into it.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::install::laid::Laid;
use crate::install::sysext_paths::{SERVICE, SYSEXT, TREE};
use crate::install::tool;
use crate::install::tree::below;

/// Whether a host, whose root is at `root`, has systemd-sysext and nothing that merging would hide: what is mounted
/// below `/usr` is not seen any more once `/usr` has another mount on it.
pub fn are_usable(root: &Path) -> bool {
    let table = fs::read_to_string(below(root, "/proc/1/mountinfo")).unwrap_or_default();
    let mut targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    below(root, "/usr/bin").join(SYSEXT).is_file()
        // As sd_booted(3) tells it.
        && below(root, "/run/systemd/system").is_dir()
        && !targets.any(|target| target.starts_with("/usr/"))
}

/// Has the tree merged now and at every boot, and looks whether the names are there.
///
/// # Errors
/// They are not.
pub(super) fn merge(host: &Host, laid: &mut Laid) -> Result<()> {
    if !laid.applied.is_nothing() || !is_merged(host, laid)? {
        tool::run(SYSEXT, &["refresh"])?.done()?;
    }
    if !is_merged(host, laid)? {
        let shown = laid.place.shown.display();
        return Err(Error::system(format!(
            "the names are not in {shown} of the host"
        )));
    }
    if !tool::run("systemctl", &["--quiet", "is-enabled", SERVICE])?.ok {
        tool::run("systemctl", &["enable", SERVICE])?.done()?;
        laid.manifest.switched_on = true;
        let manifest = laid.manifest.clone();
        host.run("noting what is installed", move || {
            manifest.write(Path::new("/"))
        })??;
    }
    Ok(())
}

fn is_merged(host: &Host, laid: &Laid) -> Result<bool> {
    let (name, program) = (
        laid.place.shown.join("mount.spc"),
        laid.place.program.clone(),
    );
    host.run("looking for the names", move || {
        fs::read_link(name).is_ok_and(|to| to == program)
    })
}

/// Has the merged tree follow what is in it after some of it is gone.
///
/// # Errors
/// systemd-sysext fails.
pub fn unmerge(switched_on: bool) -> Result<()> {
    tool::run(SYSEXT, &["refresh"])?.done()?;
    if switched_on {
        tool::run("systemctl", &["disable", SERVICE])?.done()?;
    }
    Ok(())
}

/// Whether something is in the tree.
pub fn has(path: &Path) -> bool {
    path.starts_with(TREE)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    #[test]
    fn what_is_mounted_below_usr_would_be_hidden() {
        let tree = Tree::new("usable");
        let line = |target: &str| format!("29 1 0:2 / {target} ro shared:1 - tmpfs x rw\n");
        tree.write("usr/bin/systemd-sysext", "");
        tree.write("run/systemd/system/x", "");
        tree.write("proc/1/mountinfo", &(line("/") + &line("/usr")));
        assert!(are_usable(tree.path()));
        tree.write("proc/1/mountinfo", &(line("/usr") + &line("/usr/local")));
        assert!(!are_usable(tree.path()));
        tree.write("proc/1/mountinfo", &line("/usr2"));
        fs::remove_file(tree.path().join("usr/bin/systemd-sysext")).unwrap();
        assert!(!are_usable(tree.path()));
    }
}
