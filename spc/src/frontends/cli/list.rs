//! `spc ls`: lists recorded mounts, once or continuously.

use std::fs::File;
use std::io::{IsTerminal, stdout};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitOptions, wait};
use serde_json::{Value, json};

use crate::error::{Class, Error, Result, show};
use crate::frontends::cli::output::{print, print_json};
use crate::liveness::health::Health;
use crate::liveness::probe;
use crate::log;
use crate::state::store::Corrupt;
use crate::state::{Record, Session};

/// Longest time between two probes of `spc ls --watch`; a change of the mount table ends it early.
const INTERVAL: Duration = Duration::from_secs(2);

/// Prints the mounts. Returns exit code 2 if a record is unreadable, otherwise 0.
///
/// # Errors
/// The host cannot be reached, or stdout cannot be written.
pub fn list(session: &Session, json: bool) -> Result<u8> {
    let list = List::new(session)?;
    if json {
        print_json(&list.json())?;
    } else {
        print(&list.table())?;
    }
    list.log_unreadable();
    Ok(if list.bad.is_empty() {
        0
    } else {
        Class::System.exit_code()
    })
}

/// Prints the mounts continuously, until the reader of stdout closes it.
///
/// A terminal is redrawn. Any other reader gets the list after each change, with `json` on one line.
///
/// # Errors
/// The host cannot be reached, or stdout cannot be written.
pub fn watch(session: &Session, json: bool) -> Result<()> {
    let table = session.host.mount_table();
    let mounts = File::open(&table)
        .map_err(|e| Error::system(format!("cannot watch {}", table.display())).because(e))?;
    let redraw = stdout().is_terminal() && !json;
    let (mut before, mut logged) = (None, 0);
    loop {
        let list = List::new(session)?;
        let now = Some(list.without_age());
        if redraw {
            print(&redrawn(&list.table()))?;
        } else if now != before {
            let text = match json {
                true => list.json().to_string(),
                false => list.table(),
            };
            print(&format!("{text}\n"))?;
        }
        before = now;
        if list.bad.len() != logged {
            list.log_unreadable();
            logged = list.bad.len();
        }
        // Reap processes of probes that hung and have ended since.
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        if !wait_for_change(&mounts)? {
            return Ok(());
        }
    }
}

/// Waits for a change of the mount table, at most [`INTERVAL`]. Returns false if stdout was closed.
fn wait_for_change(mounts: &File) -> Result<bool> {
    let stdout = stdout();
    // poll(2) reports POLLERR for a pipe without a reader, whatever was requested, and POLLPRI after
    // a change of the mount table.
    let mut fds = [
        PollFd::new(&stdout, PollFlags::empty()),
        PollFd::new(mounts, PollFlags::PRI),
    ];
    let timeout = Timespec::try_from(INTERVAL).unwrap_or_default();
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => {
            return Err(Error::system("cannot wait for changes of the mount table").because(error));
        }
    }
    Ok(!fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP))
}

/// Returns a text with escape sequences that replace the contents of a terminal by it.
fn redrawn(text: &str) -> String {
    let lines = text.replace('\n', "\x1b[K\n");
    format!("\x1b[H{lines}\x1b[J")
}

/// Mounts, and their states in the same order.
struct List {
    records: Vec<Record>,
    states: Vec<Health>,
    /// Records that cannot be read.
    bad: Vec<Corrupt>,
}

impl List {
    fn new(session: &Session) -> Result<Self> {
        let (records, bad) = session.ledger.all()?;
        Ok(Self {
            states: probe::probe_all(session, &records)?,
            records,
            bad,
        })
    }

    /// Prints an error for each unreadable record.
    fn log_unreadable(&self) {
        for corrupt in &self.bad {
            log::error(&format!("spc: {}", corrupt.error()));
        }
    }

    fn rows(&self) -> impl Iterator<Item = (&Record, Health)> {
        self.records.iter().zip(self.states.iter().copied())
    }

    fn json(&self) -> Value {
        let list = self.rows().map(|(r, state)| {
            json!({
                "target": r.target, "written": r.requested_target, "source": r.source, "type": r.fs_type, "state": state,
                "daemon": r.daemon, "age_seconds": r.age(), "route": r.route,
                "mount_id": r.mount_id, "options": r.options, "request": r.request_id, "root": r.root,
            })
        });
        list.collect()
    }

    /// Returns the list as JSON without ages, to find out whether it has changed.
    fn without_age(&self) -> Value {
        let mut list = self.json();
        for row in list.as_array_mut().into_iter().flatten() {
            row["age_seconds"].take();
        }
        list
    }

    fn table(&self) -> String {
        let header = ["TARGET", "SOURCE", "TYPE", "STATE", "DAEMON", "AGE"];
        let mut rows = vec![header.map(str::to_owned)];
        for (record, state) in self.rows() {
            let daemon: Vec<String> = record.daemon.iter().map(ToString::to_string).collect();
            rows.push([
                names(record),
                record.source.clone(),
                record.fs_type.clone(),
                state.word().to_owned(),
                if daemon.is_empty() {
                    "-".into()
                } else {
                    daemon.join(",")
                },
                age(record.age()),
            ]);
        }
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths = [0, 1, 2, 3, 4, 5].map(width);
        let mut text = String::new();
        for row in &rows {
            let cells: Vec<String> = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Returns the target, and the requested path if that one leads to it through a symbolic link.
fn names(record: &Record) -> String {
    let target = show(record.target.as_ref());
    if Path::new(&record.requested_target) == Path::new(&record.target) {
        target
    } else {
        format!("{target} (as {})", show(record.requested_target.as_ref()))
    }
}

/// Formats an age, such as `42s`, `3m`, `5h`, `12d`.
fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}
