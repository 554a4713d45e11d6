//! Faulty servers: a host of the lab with an address for each.
//!
//! The servers are threads of the test process with sockets in that host's network. Where a server
//! first behaves like a real one, a thread forwards bytes of a real one until it stops.

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::host::{Host, HostOptions};
use crate::net;
use crate::outer::Lab;

/// Time limit for a connection to a real server.
const CONNECT: Duration = Duration::from_secs(5);

/// Behaviour of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// Forwards to the real server.
    Serves(SocketAddrV4),
    /// Closed port: connections are refused at once.
    Refuses,
    /// Drops all packets, as a firewall does.
    Drops,
    /// Unused address.
    Absent,
    /// Accepts connections and never answers.
    Silent,
    /// Forwards to the real server until it has sent this many bytes. Then connections and port are
    /// closed.
    Dies(SocketAddrV4, u32),
    /// Forwards to the real server until it has sent this many bytes. Then connections stay open
    /// without an answer, also new ones.
    Hangs(SocketAddrV4, u32),
}

/// A host with an address for each faulty server.
#[derive(Debug)]
pub struct Faulty<'lab> {
    host: Host<'lab>,
}

/// A faulty server.
#[derive(Debug)]
pub struct FaultyServer<'a> {
    faulty: &'a Faulty<'a>,
    number: u8,
    port: u16,
    now: Mutex<(Conduct, Option<Arc<Service>>)>,
}

impl Lab {
    /// Boots a host for faulty servers.
    pub fn faulty(&self) -> Result<Faulty<'_>> {
        let faulty = Faulty {
            host: self.host(HostOptions::default())?,
        };
        faulty.filter(
            "add table ip faulty
            add set ip faulty dropped { type ipv4_addr; }
            add chain ip faulty input { type filter hook input priority 0; }
            add chain ip faulty last { type filter hook input priority 1; }
            add rule ip faulty last ip daddr @dropped drop",
        )?;
        Ok(faulty)
    }
}

impl Faulty<'_> {
    /// Adds a server with an address of its own.
    pub fn server(&self, port: u16, conduct: Conduct) -> Result<FaultyServer<'_>> {
        let number = self.host.lab().take_number()?;
        let server = FaultyServer {
            faulty: self,
            number,
            port,
            now: Mutex::new((Conduct::Absent, None)),
        };
        let address = server.address();
        self.filter(&format!(
            "add counter ip faulty n{number}
            add rule ip faulty input ip daddr {address} tcp dport {port} tcp flags & (syn | ack) == syn counter name n{number}",
        ))?;
        server.turn(conduct)?;
        Ok(server)
    }

    /// Runs a program of the machine in the host's network namespace.
    fn run(&self, words: &[&str], input: &str) -> Result<String> {
        within(self.host.pid(), || {
            let mut child = Command::new(words[0])
                .args(&words[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot run {}", words[0]))?;
            let mut stdin = child.stdin.take().context("no standard input")?;
            stdin.write_all(input.as_bytes())?;
            drop(stdin);
            let output = child.wait_with_output()?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{words:?} {input}: {errors}");
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// Changes the packet filter.
    fn filter(&self, lines: &str) -> Result<()> {
        self.run(&["nft", "-f", "-"], lines).map(drop)
    }
}

impl FaultyServer<'_> {
    /// Returns the server's address.
    pub fn address(&self) -> Ipv4Addr {
        net::address(self.number)
    }

    /// Returns the number of connection attempts. A client without an answer tries again, first
    /// after a second.
    pub fn asked(&self) -> Result<u64> {
        let name = format!("n{}", self.number);
        let list = ["nft", "list", "counter", "ip", "faulty", &name];
        let text = self.faulty.run(&list, "")?;
        let mut words = text.split_whitespace();
        let packets = words.find(|word| *word == "packets").and(words.next());
        let packets = packets.with_context(|| format!("no count of packets: {text}"))?;
        packets.parse().context("no count of packets")
    }

    /// Changes the behaviour, and closes existing connections.
    pub fn turn(&self, conduct: Conduct) -> Result<()> {
        let mut now = lock(&self.now);
        let before = now.0;
        if let Some(service) = now.1.take() {
            service.end();
        }
        let address = self.address();
        let place = |verb| {
            let place = format!("{address}/24");
            let words = ["ip", "address", verb, &place, "dev", "eth0"];
            self.faulty.run(&words, "").map(drop)
        };
        let absent = |conduct| conduct == Conduct::Absent;
        match (absent(before), absent(conduct)) {
            (true, false) => place("add")?,
            (false, true) => place("del")?,
            _ => {}
        }
        let drops = |conduct| conduct == Conduct::Drops;
        let element = |verb| {
            let line = format!("{verb} element ip faulty dropped {{ {address} }}");
            self.faulty.filter(&line)
        };
        match (drops(before), drops(conduct)) {
            (false, true) => element("add")?,
            (true, false) => element("delete")?,
            _ => {}
        }
        now.0 = conduct;
        let port = self.port;
        let serves = match conduct {
            Conduct::Refuses | Conduct::Drops | Conduct::Absent => return Ok(()),
            Conduct::Silent => None,
            Conduct::Serves(server) => Some((server, i64::MAX)),
            Conduct::Dies(server, bytes) | Conduct::Hangs(server, bytes) => {
                Some((server, bytes.into()))
            }
        };
        let hangs = matches!(conduct, Conduct::Hangs(..));
        let place = SocketAddrV4::new(address, port);
        let service = Service::start(self.faulty.host.pid(), place, serves, hangs)?;
        now.1 = Some(service);
        Ok(())
    }
}

impl Drop for FaultyServer<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.turn(Conduct::Absent) {
            eprintln!("lab: a faulty server does not end: {error:#}");
        }
        self.faulty.host.lab().give_back_number(self.number);
    }
}

/// Listener at a server's port.
#[derive(Debug)]
struct Service {
    listener: TcpListener,
    /// Bytes of the real server that remain to be forwarded.
    left: AtomicI64,
    /// Whether connections stay open when no bytes remain.
    hangs: bool,
    open: Mutex<Vec<TcpStream>>,
}

impl Service {
    /// Listens in the network namespace of a process, and forwards to the real server.
    fn start(
        pid: i32,
        address: SocketAddrV4,
        real: Option<(SocketAddrV4, i64)>,
        hangs: bool,
    ) -> Result<Arc<Self>> {
        let listener = within(pid, || {
            TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))
        })?;
        let service = Arc::new(Self {
            listener,
            left: AtomicI64::new(real.map_or(0, |(_, bytes)| bytes)),
            hangs,
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&service);
        thread::spawn(move || {
            enter(pid)?;
            while let Ok((client, _)) = accepting.listener.accept() {
                accepting.keep(&client)?;
                let speaks = accepting.left.load(Ordering::Relaxed) > 0;
                if let Some((server, _)) = real.filter(|_| speaks) {
                    // When the real server is gone, the client's connection ends as well.
                    let passed = accepting.pass(&client, server);
                    let _ = passed.or_else(|_| client.shutdown(Shutdown::Both));
                }
            }
            anyhow::Ok(())
        });
        Ok(service)
    }

    fn keep(&self, stream: &TcpStream) -> std::io::Result<()> {
        let stream = stream.try_clone()?;
        lock(&self.open).push(stream);
        Ok(())
    }

    /// Connects a client with the real server.
    fn pass(self: &Arc<Self>, client: &TcpStream, server: SocketAddrV4) -> std::io::Result<()> {
        let server = TcpStream::connect_timeout(&server.into(), CONNECT)?;
        self.keep(&server)?;
        let directions = [
            (client.try_clone()?, server.try_clone()?, false),
            (server, client.try_clone()?, true),
        ];
        for (from, to, counts) in directions {
            let service = Arc::clone(self);
            thread::spawn(move || service.copy(&from, &to, counts));
        }
        Ok(())
    }

    /// Copies until one side has closed, or until no bytes remain.
    fn copy(&self, mut from: &TcpStream, mut to: &TcpStream, counts: bool) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut bytes = &buffer[..length];
            let whole = length.try_into().unwrap_or(i64::MAX);
            let left = match counts {
                true => self.left.fetch_sub(whole, Ordering::Relaxed),
                false => i64::MAX,
            };
            if left < whole {
                bytes = &bytes[..usize::try_from(left).unwrap_or(0)];
            }
            if to.write_all(bytes).is_err() {
                break;
            }
            if left <= whole {
                if !self.hangs {
                    self.end();
                }
                return;
            }
        }
        // The other direction may still be in use.
        let _ = to.shutdown(Shutdown::Write);
    }

    /// Closes the port and the connections.
    fn end(&self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        for stream in lock(&self.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Moves this thread into the network namespace of a process.
fn enter(pid: i32) -> Result<()> {
    let network = File::open(format!("/proc/{pid}/ns/net")).context("the host has ended")?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter the host's network")
}

/// Runs `work` in the network namespace of a process.
fn within<T: Send>(pid: i32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| enter(pid).and_then(|()| work()));
        let panicked = |panic| std::panic::resume_unwind(panic);
        thread.join().unwrap_or_else(panicked)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
