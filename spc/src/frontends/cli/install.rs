//! `spc install` and `spc uninstall`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::error::Result;
use crate::frontends::cli::output::{print, print_json};
use crate::install::laid::Installed;
use crate::install::uninstall::{Uninstalled, uninstall};
use crate::install::{Wish, install};
use crate::state::Session;

/// Arguments of `spc install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Put the FlexVolume driver spc/spc where kubelet looks for drivers, or in this plugin directory
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    flexvolume: Option<Option<PathBuf>>,
    /// Go back to an older version than the one installed
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `spc uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Although mounts need it: they go on, and their programs stay until the last of them is gone
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl InstallArgs {
    /// Does it.
    ///
    /// # Errors
    /// It failed, or stdout cannot be written.
    pub fn run(self) -> Result<u8> {
        let wish = Wish {
            driver: self.flexvolume,
            force: self.force,
        };
        let done = install(&Session::open()?, &wish)?;
        say(&done, self.json, installed)
    }
}

impl UninstallArgs {
    /// Does it.
    ///
    /// # Errors
    /// It failed, or stdout cannot be written.
    pub fn run(self) -> Result<u8> {
        let done = uninstall(&Session::open()?, self.force)?;
        say(&done, self.json, uninstalled)
    }
}

fn say<T: Serialize>(done: &T, json: bool, text: fn(&T) -> String) -> Result<u8> {
    match json {
        true => print_json(done)?,
        false => print(&text(done))?,
    }
    Ok(0)
}

fn installed(done: &Installed) -> String {
    let was = match &done.before {
        Some(before) if done.changed => format!(", was {before}"),
        Some(_) => ", as it was".into(),
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
        text.push_str(&format!("kept       {}, the host's own", path.display()));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(kind) = name.strip_prefix("mount.") {
            text.push_str(&format!("; mount -t spc.{kind} is this one"));
        }
        text.push('\n');
    }
    if let Some(driver) = &done.driver {
        text.push_str(&format!("driver     {}\n", driver.display()));
    }
    text.push_str(&format!("mounter    {}\n", done.mounter.display()));
    if let Some(add) = &done.add {
        text.push_str(&format!(
            "to do      mount(8) finds the names once this line is in {}:\n           {}\n",
            add.file, add.line
        ));
        if add.file == "/etc/fstab" {
            text.push_str(&format!(
                "           and then: mount {}\n",
                done.directory.display()
            ));
        }
    }
    text
}

fn uninstalled(done: &Uninstalled) -> String {
    let mut text = match &done.version {
        Some(version) => format!(
            "uninstalled  spc {version}, {} things\n",
            done.removed.len()
        ),
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
    use crate::install::laid::Add;

    #[test]
    fn what_is_left_to_do_is_said() {
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
            driver: None,
            mounter: "/var/lib/spc/mounter".into(),
            changed: true,
        };
        let text = installed(&done);
        for line in [
            "installed  spc 1.2.3 (1.2.3-abc), was 1.2.2",
            "names      2 in /usr/sbin: mount.ceph spc",
            "kept       /usr/sbin/mount.nfs, the host's own; mount -t spc.nfs is this one",
            "kept       /usr/sbin/umount.nfs, the host's own",
            "           overlay /usr/sbin",
            "           and then: mount /usr/sbin",
        ] {
            assert!(
                text.lines().any(|said| said == line),
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
