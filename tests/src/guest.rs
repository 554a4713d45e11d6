//! Commands in a virtual machine: the messages on its serial port, and `lab guest`, the program in
//! the machine that runs them.

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{NoArg, Setter, ioctl, opcode};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::container;

/// Name of the virtio serial port.
pub const PORT: &str = "lab";

/// Command that lists the mount tables of all processes.
pub const TABLES: &str = "lab-tables";

/// A command. Its standard input follows the message.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Number that the report repeats.
    pub number: u64,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Complete environment.
    pub environment: Vec<(String, String)>,
    /// Time limit, after which the command is killed.
    pub limit: Duration,
}

/// Result of a command. Standard output and standard error follow the message, in that order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Number of the order.
    pub number: u64,
    /// End of the command.
    pub end: End,
}

/// End of a command.
#[derive(Debug, Serialize, Deserialize)]
pub enum End {
    /// Exited with this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// Killed at its time limit.
    TimedOut,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    message: T,
    lengths: Vec<usize>,
}

/// Writes a message as a line of JSON, and then its parts.
pub fn send<T: Serialize>(port: &mut impl Write, message: T, parts: &[&[u8]]) -> Result<()> {
    let lengths = parts.iter().map(|part| part.len()).collect();
    let mut bytes = serde_json::to_vec(&Envelope { message, lengths })?;
    bytes.push(b'\n');
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    port.write_all(&bytes)?;
    Ok(port.flush()?)
}

/// Reads a message and its parts, or `None` at the end of input.
pub fn receive<T: DeserializeOwned>(port: &mut impl BufRead) -> Result<Option<(T, Vec<Vec<u8>>)>> {
    let mut line = String::new();
    if port.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let Envelope { message, lengths } =
        serde_json::from_str(&line).with_context(|| format!("bad message: {line}"))?;
    let mut parts = Vec::new();
    for length in lengths {
        let mut part = vec![0; length];
        port.read_exact(&mut part)?;
        parts.push(part);
    }
    Ok(Some((message, parts)))
}

/// `lab guest`: runs commands for as long as the machine runs.
pub fn guest() -> Result<()> {
    let port = port()?;
    let reader = File::options()
        .read(true)
        .write(true)
        .open(&port)
        .with_context(|| format!("cannot open {port}"))?;
    let writer: &'static Mutex<File> = Box::leak(Box::new(Mutex::new(reader.try_clone()?)));
    let mut reader = BufReader::new(reader);
    loop {
        let Some((order, parts)) = receive::<Order>(&mut reader)? else {
            // No process has the other end open yet.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        std::thread::spawn(move || {
            let number = order.number;
            let input = parts.first().map(Vec::as_slice).unwrap_or_default();
            let (end, stdout, stderr) = run(&order, input).unwrap_or_else(|error| {
                let text = format!("lab: cannot run {:?}: {error:#}", order.argv);
                (End::Code(127), Vec::new(), text.into_bytes())
            });
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = send(&mut *writer, Report { number, end }, &[&stdout, &stderr]) {
                eprintln!("lab: cannot report: {error:#}");
            }
        });
    }
}

/// Argument of the RNDADDENTROPY ioctl (linux/random.h).
#[repr(C)]
struct Entropy {
    bits: i32,
    bytes: i32,
    seed: [u8; 32],
}

/// `lab reseed`: seeds the kernel's random numbers from standard input. Machines from one saved
/// state would all have the same numbers.
pub fn reseed() -> Result<()> {
    let mut seed = [0; 32];
    std::io::stdin().read_exact(&mut seed)?;
    let entropy = Entropy {
        bits: 256,
        bytes: 32,
        seed,
    };
    type Add = Setter<{ opcode::write::<[i32; 2]>(b'R', 3) }, Entropy>;
    type Reseed = NoArg<{ opcode::none(b'R', 7) }>;
    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: RNDADDENTROPY reads two integers and as many bytes as the second one says: all of
    // `Entropy`.
    unsafe { ioctl(&device, Add::new(entropy)) }.context("cannot add random bytes")?;
    // SAFETY: RNDRESEEDCRNG has no argument.
    unsafe { ioctl(&device, Reseed::new()) }.context("cannot seed random numbers")
}

/// Returns the device of the port.
fn port() -> Result<String> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports").context("no ports")? {
        let entry = entry?;
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT {
            return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    anyhow::bail!("no port named {PORT}")
}

/// Runs a command until its process ends. Daemons may keep its output open for longer.
///
/// Programs start slowly where every instruction is emulated, so files and mount tables are read
/// without one, and the container is entered without runc.
fn run(order: &Order, input: &[u8]) -> Result<(End, Vec<u8>, Vec<u8>)> {
    let words: Vec<&str> = order.argv.iter().map(String::as_str).collect();
    match words[..] {
        ["cat", "--", path] => {
            return Ok(match std::fs::read(path) {
                Ok(bytes) => (End::Code(0), bytes, Vec::new()),
                Err(error) => {
                    let text = format!("cat: {path}: {error}");
                    (End::Code(1), Vec::new(), text.into_bytes())
                }
            });
        }
        [TABLES] => return Ok((End::Code(0), tables()?.into_bytes(), Vec::new())),
        _ => {}
    }
    let (mut stdin, stdout, stderr) = (memory()?, memory()?, memory()?);
    stdin.write_all(input)?;
    stdin.rewind()?;
    let mut command = match container::enter(&words)? {
        Some(command) => command,
        None => {
            let (program, arguments) = order.argv.split_first().context("no command")?;
            let mut command = Command::new(program);
            command
                .args(arguments)
                .env_clear()
                .envs(order.environment.iter().cloned())
                .current_dir("/");
            command
        }
    };
    let mut child = command
        .process_group(0)
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout.try_clone()?))
        .stderr(Stdio::from(stderr.try_clone()?))
        .spawn()?;
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let limit = Timespec::try_from(order.limit)?;
    let in_time = poll(&mut fds, Some(&limit))? == 1;
    if !in_time {
        kill_process_group(pid, Signal::KILL)?;
    }
    let status = child.wait()?;
    let end = match (in_time, status.code()) {
        (false, _) => End::TimedOut,
        (true, Some(code)) => End::Code(code),
        (true, None) => End::Signal(status.signal().unwrap_or_default()),
    };
    Ok((end, contents(stdout)?, contents(stderr)?))
}

/// Returns a line for each mount namespace: its name, and the number of entries of its table.
fn tables() -> Result<String> {
    let mut tables = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let process = entry?.path();
        // Not a process, or one that has ended.
        if let Ok(namespace) = std::fs::read_link(process.join("ns/mnt"))
            && !tables.contains_key(&namespace)
            && let Ok(table) = std::fs::read_to_string(process.join("mountinfo"))
        {
            tables.insert(namespace, table.lines().count());
        }
    }
    let line =
        |(namespace, entries): (PathBuf, usize)| format!("{} {entries}", namespace.display());
    Ok(tables.into_iter().map(line).collect::<Vec<_>>().join("\n"))
}

fn memory() -> Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(rustix::fs::memfd_create("stream", flags)?.into())
}

fn contents(mut file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
