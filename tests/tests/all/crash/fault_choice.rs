//! Choice of the faults to try in a command whose system calls are known.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::{Act, Fault, errnos};

use crate::support::random::Random;

/// Errnos to try in each system call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The likeliest errno, and only in system calls that change something.
    Short,
    /// Each errno, in each system call.
    All,
    /// No errno: system calls that change something are delayed, or kill their process.
    SlowOrDead,
}

/// System calls without side effects, whose failure the short run leaves out.
const READ_ONLY: [&str; 14] = [
    "fstat",
    "fcntl",
    "getdents64",
    "mmap",
    "newfstatat",
    "openat",
    "pread64",
    "prctl",
    "ppoll",
    "poll",
    "read",
    "readlink",
    "readlinkat",
    "statx",
];

/// System calls of a traced command, with the number of times that each was made.
pub fn calls(steps: &[String]) -> Vec<(&str, usize)> {
    let mut numbers = BTreeMap::new();
    let names = steps.iter().filter_map(|step| step.split(' ').next_back());
    names
        .map(|name| {
            let number: &mut usize = numbers.entry(name).or_default();
            *number += 1;
            (name, *number)
        })
        .collect()
}

pub fn acts(call: &str, extent: Extent) -> Vec<Act> {
    let all = errnos(call).iter().map(|errno| Act::Fail(*errno));
    match extent {
        Extent::All => all.collect(),
        _ if READ_ONLY.contains(&call) => Vec::new(),
        Extent::Short => all.take(1).collect(),
        Extent::SlowOrDead => vec![Act::Delay(Duration::from_millis(500)), Act::Kill],
    }
}

/// Returns a random fault in one of these system calls. Draws the system call first, then the
/// occurrence: otherwise nearly every fault would hit a read.
pub fn fault(calls: &[(&str, usize)], random: &mut Random, may_kill: bool) -> Option<Fault> {
    let mut names: Vec<&str> = calls.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    let name = *random.one(&names)?;
    let numbers: Vec<usize> = calls
        .iter()
        .filter(|(call, _)| *call == name)
        .map(|(_, number)| *number)
        .collect();
    let act = match may_kill && random.below(5) == 0 {
        true => Act::Kill,
        false => Act::Fail(*random.one(errnos(name))?),
    };
    Some(Fault {
        call: name.to_owned(),
        at: *random.one(&numbers)?,
        act,
    })
}
