//! `spc umount`: one or several targets, innermost first.

use std::cmp::Reverse;
use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::error::{Class, Error, Result, show};
use crate::frontends::common::leave_to_client;
use crate::state::Session;
use crate::state::store::Corrupt;
use crate::unmount::escalate::How;
use crate::unmount::{self, umount};

/// `spc umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Unmount everything that spc mounted
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// If it is busy or does not answer, give up on outstanding requests
    #[arg(short, long)]
    force: bool,
    /// If it stays all the same, detach it now, and clean up when it is no longer busy
    #[arg(short, long)]
    lazy: bool,
    /// Unmount what spc mounted below the targets as well
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Say what is done
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// Directories on the host
    #[arg(required_unless_present = "all", value_hint = ValueHint::DirPath)]
    targets: Vec<PathBuf>,
}

impl UmountArgs {
    /// Unmounts them; what goes wrong with one keeps nobody from the others.
    ///
    /// # Errors
    /// One of them is still there.
    pub fn run(&self) -> Result<u8> {
        let session = Session::open()?;
        let one = match &self.targets[..] {
            [one] if !self.recursive => Some(one.as_path()),
            _ => None,
        };
        leave_to_client(&session, one)?;
        let how = How {
            lazy: self.lazy,
            force: self.force,
        };
        // One target is looked for by its name.
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
        for written in &self.targets {
            match unmount::resolve(&session, written) {
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
            match umount(&session, target, how) {
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
            // What could not be reached goes with what it is on.
            let stayed = error.class() == Class::Mount;
            if stayed && succeeded > 0 && unmount::went_along(&session, target)? {
                succeeded += 1;
            } else {
                failed.push(error);
            }
        }
        summary(failed, succeeded)
    }
}

/// One error for all.
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
                format!("{n} of {} targets stay mounted", n + succeeded),
            )
            .log(lines)
            .hint("`spc ls` shows what is mounted"))
        }
    }
}
