//! `spc install` and `spc uninstall`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::error::Result;
use crate::frontends::cli::output::{print, print_json};
use crate::install::outcome::Installed;
use crate::install::uninstall::{Uninstalled, uninstall};
use crate::install::{InstallRequest, install};
use crate::state::Session;

/// Arguments of `spc install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Also install the FlexVolume drivers spc/spc and spc/no-fsgroup, in kubelet's plugin directory or in DIR
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    flexvolume: Option<Option<PathBuf>>,
    /// Allow replacing the installed version by an older one
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `spc uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Uninstall even if mounts need the programs: the mounts continue, and their programs stay
    /// until the last of them is unmounted
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl InstallArgs {
    /// Installs spc on the host, and prints the result. Returns the exit code.
    ///
    /// # Errors
    /// The installation fails, or stdout cannot be written.
    pub fn run(self) -> Result<u8> {
        let request = InstallRequest {
            driver: self.flexvolume,
            force: self.force,
        };
        let done = install(&Session::open()?, &request)?;
        report(&done, self.json, installed)
    }
}

impl UninstallArgs {
    /// Removes spc from the host, and prints the result. Returns the exit code.
    ///
    /// # Errors
    /// The removal fails, or stdout cannot be written.
    pub fn run(self) -> Result<u8> {
        let done = uninstall(&Session::open()?, self.force)?;
        report(&done, self.json, uninstalled)
    }
}

/// Prints a result as JSON or as text, and returns exit code 0.
fn report<T: Serialize>(done: &T, json: bool, text: fn(&T) -> String) -> Result<u8> {
    match json {
        true => print_json(done)?,
        false => print(&text(done))?,
    }
    Ok(0)
}

fn installed(done: &Installed) -> String {
    let was = match &done.before {
        Some(before) if done.changed => format!(", was {before}"),
        Some(_) => ", unchanged".into(),
        None => String::new(),
    };
    let mut text = format!(
        "installed  spc {} ({}){was}\nnames      {} in {}: {}\n",
        done.version,
        done.root,
        done.names.len(),
        done.directory.display(),
        done.names.join(" ")
    );
    for path in &done.kept {
        text.push_str(&format!("kept       {} of the host", path.display()));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(kind) = name.strip_prefix("mount.") {
            text.push_str(&format!("; mount -t spc.{kind} uses spc"));
        }
        text.push('\n');
    }
    for driver in &done.drivers {
        text.push_str(&format!("driver     {}\n", driver.display()));
    }
    text.push_str(&format!("mounter    {}\n", done.mounter.display()));
    if let Some(add) = &done.add {
        text.push_str(&format!(
            "to do      add this line to {}, so that mount(8) finds the names:\n           {}\n",
            add.file, add.line
        ));
        if add.file == "/etc/fstab" {
            text.push_str(&format!(
                "           then run: mount {}\n",
                done.directory.display()
            ));
        }
    }
    text
}

fn uninstalled(done: &Uninstalled) -> String {
    let mut text = match &done.version {
        Some(version) => format!("uninstalled  spc {version}, {} items\n", done.removed.len()),
        None => "uninstalled  nothing was installed\n".into(),
    };
    if let Some(left) = &done.left {
        text.push_str(&format!("left         {left}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::outcome::Add;

    #[test]
    fn result_names_steps_left_to_the_user() {
        let done = Installed {
            version: "1.2.3".into(),
            before: Some("1.2.2".into()),
            root: "1.2.3-abc".into(),
            directory: "/usr/sbin".into(),
            names: vec!["mount.ceph".into(), "spc".into()],
            kept: vec!["/usr/sbin/mount.nfs".into(), "/usr/sbin/umount.nfs".into()],
            add: Some(Add {
                line: "overlay /usr/sbin".into(),
                file: "/etc/fstab",
            }),
            drivers: Vec::new(),
            mounter: "/var/lib/spc/mounter".into(),
            changed: true,
        };
        let text = installed(&done);
        for line in [
            "installed  spc 1.2.3 (1.2.3-abc), was 1.2.2",
            "names      2 in /usr/sbin: mount.ceph spc",
            "kept       /usr/sbin/mount.nfs of the host; mount -t spc.nfs uses spc",
            "kept       /usr/sbin/umount.nfs of the host",
            "           overlay /usr/sbin",
            "           then run: mount /usr/sbin",
        ] {
            assert!(
                text.lines().any(|printed| printed == line),
                "{line} is not in\n{text}"
            );
        }
        let text = uninstalled(&Uninstalled {
            version: None,
            removed: Vec::new(),
            left: None,
        });
        assert_eq!(text, "uninstalled  nothing was installed\n");
    }
}
