//! `spc umount`: unmounts one or several targets, the innermost first.

use std::cmp::Reverse;
use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::error::{Class, Error, Result, show};
use crate::frontends::common::enter_client_to_unmount;
use crate::state::Session;
use crate::state::store::Corrupt;
use crate::unmount::escalate::UnmountMode;
use crate::unmount::{self, umount};

/// Arguments of `spc umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Unmount all mounts made by spc
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// If a mount is busy or does not answer, make its outstanding requests fail
    #[arg(short, long)]
    force: bool,
    /// If a mount cannot be unmounted, detach it now, and clean up once it is no longer busy
    #[arg(short, long)]
    lazy: bool,
    /// Also unmount mounts made by spc below the targets
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Print what spc does
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// Directories on the host
    #[arg(required_unless_present = "all", value_hint = ValueHint::DirPath)]
    targets: Vec<PathBuf>,
}

impl UmountArgs {
    /// Unmounts the targets, and returns the exit code. A failure does not stop the others.
    ///
    /// # Errors
    /// A target is still mounted, or a record is unreadable.
    pub fn run(&self) -> Result<u8> {
        let session = Session::open()?;
        let single = match &self.targets[..] {
            [target] if !self.recursive => Some(target.as_path()),
            _ => None,
        };
        enter_client_to_unmount(&session, single)?;
        let mode = UnmountMode {
            lazy: self.lazy,
            force: self.force,
        };
        // A single target needs no list: its record is found by name.
        let (records, bad) = match self.all || self.recursive {
            true => session.ledger.all()?,
            false => Default::default(),
        };
        let below = |top: &PathBuf| {
            records
                .iter()
                .map(|r| PathBuf::from(&r.target))
                .filter(|t| t != top && t.starts_with(top))
                .collect::<Vec<_>>()
        };
        let mut failed = Vec::new();
        let mut targets = Vec::new();
        if self.all {
            failed.extend(bad.iter().map(Corrupt::error));
            targets.extend(records.iter().map(|r| PathBuf::from(&r.target)));
        }
        for target in &self.targets {
            match unmount::resolve(&session, target) {
                Ok(target) => {
                    if self.recursive {
                        targets.extend(below(&target));
                    }
                    targets.push(target);
                }
                Err(error) => failed.push(error),
            }
        }
        // Innermost first.
        targets.sort_by_key(|target| (Reverse(target.components().count()), target.clone()));
        targets.dedup();
        let (mut succeeded, mut stuck) = (0, Vec::new());
        for target in &targets {
            match umount(&session, target, mode) {
                Ok(()) => {
                    succeeded += 1;
                    if self.verbose {
                        println!("{}: unmounted", show(target));
                    }
                }
                Err(error) => stuck.push((target, error)),
            }
        }
        for (target, error) in stuck {
            // A mount that could not be reached may have gone with the mount below it.
            let still_mounted = error.class() == Class::Mount;
            if still_mounted && succeeded > 0 && unmount::is_gone_with_parent(&session, target)? {
                succeeded += 1;
            } else {
                failed.push(error);
            }
        }
        summary(failed, succeeded)
    }
}

/// Returns exit code 0 without failures, otherwise one error that lists all failures.
fn summary(mut failed: Vec<Error>, succeeded: usize) -> Result<u8> {
    match failed.len() {
        0 => Ok(0),
        1 if succeeded == 0 => Err(failed.remove(0)),
        n => {
            let text = failed.iter().map(ToString::to_string);
            let lines = text
                .flat_map(|error| error.lines().map(str::to_owned).collect::<Vec<_>>())
                .collect();
            let class = if succeeded > 0 {
                Class::Some
            } else {
                Class::Mount
            };
            Err(Error::new(
                class,
                format!("{n} of {} targets could not be unmounted", n + succeeded),
            )
            .log(lines)
            .hint("`spc ls` lists the mounts"))
        }
    }
}
