//! The supervisor, which starts a lab and ends it after the test process has ended, and the lab's
//! own PID 1.

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Signal, WaitOptions, set_parent_process_death_signal, setsid, wait};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::machine::expect_line;
use crate::{loops, net};

/// Facts that the test process needs of a lab.
#[derive(Debug, Serialize, Deserialize)]
pub struct Address {
    /// The lab's PID 1, as the machine numbers it.
    pub init: i32,
    /// The cgroup of everything in the lab.
    pub cgroup: PathBuf,
}

/// `lab supervise`: makes a lab, writes its address to standard output, ends it at the end of
/// standard input.
pub fn supervise() -> Result<()> {
    // A separate session keeps Ctrl-C on the terminal from the supervisor, which has to clean up.
    setsid().context("cannot start a session")?;
    let cgroup = Cgroup::create_lab()?;
    let result = run(&cgroup);
    cgroup.remove()?;
    result
}

fn run(cgroup: &Cgroup) -> Result<()> {
    let own = cgroup.child("lab")?;
    cgroup.delegate()?;
    unshare(CloneFlags::CLONE_NEWPID)
        .context("cannot make a PID namespace\nhint: the lab needs root")?;
    let mut init = Command::new("/proc/self/exe")
        .arg("lab-init")
        .arg(own.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the lab's init")?;
    // Later children are in the machine's PID namespace again, like this process.
    let own_namespace = File::open("/proc/self/ns/pid")?;
    move_into_link_name_space(own_namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    let mut output = BufReader::new(init.stdout.take().context("no standard output")?);
    expect_line(&mut output, "the lab's init")?;
    let address = Address {
        init: init.id() as i32,
        cgroup: cgroup.path().to_owned(),
    };
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, &address)?;
    stdout.write_all(b"\n")?;
    stdout.flush()?;
    // End of input comes when the test process ends, however it ends, or closes the pipe.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let loops = loops::of_processes(&cgroup.processes())?;
    init.kill()?;
    init.wait()?;
    cgroup.remove()?;
    loops::detach(&loops)
}

/// `lab lab-init`: PID 1 of the lab, an ancestor of all hosts, which end with it.
pub fn init(cgroup: &Path) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Cgroup::at(cgroup).join()?;
    let kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(kinds).context("cannot make namespaces")?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("cannot make / private")?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None).context("cannot mount /proc")?;
    rustix::system::sethostname(b"lab")?;
    net::create_bridge()?;
    println!("ready");
    loop {
        if wait(WaitOptions::empty()).is_err() {
            sleep(Duration::from_millis(50));
        }
    }
}
