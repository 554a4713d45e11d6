//! The systemd-sysext(8) extension that brings names into a read-only `/usr`.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::install::outcome::Outcome;
use crate::install::sysext_paths::{SERVICE, SYSEXT, TREE};
use crate::install::tool;
use crate::install::tree::below;

/// Returns whether extensions can be used on the host whose root is at `root`.
///
/// The host needs systemd and systemd-sysext. Nothing may be mounted below `/usr`: merging mounts
/// an overlay on `/usr`, which would hide such mounts.
pub fn is_usable(root: &Path) -> bool {
    let table = fs::read_to_string(below(root, "/proc/1/mountinfo")).unwrap_or_default();
    let mut targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    below(root, "/usr/bin").join(SYSEXT).is_file()
        // Same check as sd_booted(3).
        && below(root, "/run/systemd/system").is_dir()
        && !targets.any(|target| target.starts_with("/usr/"))
}

/// Merges the extension now, enables the service that merges it at boot, and checks that the names
/// are visible.
///
/// # Errors
/// A tool of the host fails, or the names are not visible after merging.
pub(super) fn merge(host: &Host, outcome: &mut Outcome) -> Result<()> {
    if !outcome.applied.is_nothing() || !is_merged(host, outcome)? {
        tool::run(SYSEXT, &["refresh"])?.into_output()?;
    }
    if !is_merged(host, outcome)? {
        let dir = outcome.location.visible_dir.display();
        return Err(Error::system(format!(
            "the names are not in {dir} on the host after merging"
        )));
    }
    if !tool::run("systemctl", &["--quiet", "is-enabled", SERVICE])?.success {
        tool::run("systemctl", &["enable", SERVICE])?.into_output()?;
        outcome.manifest.enabled_service = true;
        let manifest = outcome.manifest.clone();
        host.run("writing the list of installed files", move || {
            manifest.write(Path::new("/"))
        })??;
    }
    Ok(())
}

/// Returns whether `mount.spc` is visible and leads to the program.
fn is_merged(host: &Host, outcome: &Outcome) -> Result<bool> {
    let (name, program) = (
        outcome.location.visible_dir.join("mount.spc"),
        outcome.location.program.clone(),
    );
    host.run("looking for the merged names", move || {
        fs::read_link(name).is_ok_and(|to| to == program)
    })
}

/// Merges again after files of the extension were removed. Disables the service if
/// `disable_service`.
///
/// # Errors
/// systemd-sysext or systemctl fails.
pub fn unmerge(disable_service: bool) -> Result<()> {
    tool::run(SYSEXT, &["refresh"])?.into_output()?;
    if disable_service {
        tool::run("systemctl", &["disable", SERVICE])?.into_output()?;
    }
    Ok(())
}

/// Returns whether a path is in the extension.
pub fn contains(path: &Path) -> bool {
    path.starts_with(TREE)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    #[test]
    fn extensions_are_not_used_with_mounts_below_usr_or_without_systemd_sysext() {
        let tree = Tree::new("usable");
        let line = |target: &str| format!("29 1 0:2 / {target} ro shared:1 - tmpfs x rw\n");
        tree.write("usr/bin/systemd-sysext", "");
        tree.write("run/systemd/system/x", "");
        tree.write("proc/1/mountinfo", &(line("/") + &line("/usr")));
        assert!(is_usable(tree.path()));
        tree.write("proc/1/mountinfo", &(line("/usr") + &line("/usr/local")));
        assert!(!is_usable(tree.path()));
        tree.write("proc/1/mountinfo", &line("/usr2"));
        fs::remove_file(tree.path().join("usr/bin/systemd-sysext")).unwrap();
        assert!(!is_usable(tree.path()));
    }
}
