//! Servers that do not do what they should: a host of the lab with an address for each of them.
//!
//! They are threads of the test process, whose sockets are in that host's network. What looks like a real server for a
//! while is one: the bytes come from it, through a thread that may stop to pass them on.

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

/// How long a real server may take to be connected to.
const CONNECT: Duration = Duration::from_secs(5);

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// It serves, as the real server behind it.
    Serves(SocketAddrV4),
    /// Its port is closed: who asks is told so at once.
    Refuses,
    /// Whatever is sent to it is lost, as behind a firewall.
    Drops,
    /// Nobody has its address.
    Absent,
    /// It accepts connections and never says a word.
    Silent,
    /// It serves as the real server behind it, until so many bytes have come from there. Then its connections are closed
    /// and its port is.
    Dies(SocketAddrV4, u32),
    /// It serves as the real server behind it, until so many bytes have come from there. Then it accepts connections, and
    /// keeps those that it has, and never says a word.
    Hangs(SocketAddrV4, u32),
}

/// A host whose addresses are faulty servers.
#[derive(Debug)]
pub struct Faulty<'lab> {
    host: Host<'lab>,
}

/// One of them.
#[derive(Debug)]
pub struct FaultyServer<'a> {
    faulty: &'a Faulty<'a>,
    number: u8,
    port: u16,
    now: Mutex<(Conduct, Option<Arc<Service>>)>,
}

impl Lab {
    /// A host for faulty servers.
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
    /// A server with an address of its own.
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

    /// Runs a program of the machine in the host's network.
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

    /// Tells the packet filter.
    fn filter(&self, lines: &str) -> Result<()> {
        self.run(&["nft", "-f", "-"], lines).map(drop)
    }
}

impl FaultyServer<'_> {
    /// Its address, which it has alone.
    pub fn address(&self) -> Ipv4Addr {
        net::address(self.number)
    }

    /// How often somebody began to connect to it; whoever gets no answer begins again, after a second at first.
    pub fn asked(&self) -> Result<u64> {
        let name = format!("n{}", self.number);
        let list = ["nft", "list", "counter", "ip", "faulty", &name];
        let text = self.faulty.run(&list, "")?;
        let mut words = text.split_whitespace();
        let packets = words.find(|word| *word == "packets").and(words.next());
        let packets = packets.with_context(|| format!("no count of packets: {text}"))?;
        packets.parse().context("no count of packets")
    }

    /// Changes what it does from now on; connections that it has are closed.
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

/// What listens at a server's port.
#[derive(Debug)]
struct Service {
    listener: TcpListener,
    /// How many bytes of the real server it still passes on.
    left: AtomicI64,
    /// When nothing is left, it stays as it is.
    hangs: bool,
    open: Mutex<Vec<TcpStream>>,
}

impl Service {
    /// Listens in the network of a process; what is said there comes from the real server.
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
                    // A real server that is gone is gone for the client as well.
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

    /// Joins a client with the real server.
    fn pass(self: &Arc<Self>, client: &TcpStream, server: SocketAddrV4) -> std::io::Result<()> {
        let server = TcpStream::connect_timeout(&server.into(), CONNECT)?;
        self.keep(&server)?;
        let ways = [
            (client.try_clone()?, server.try_clone()?, false),
            (server, client.try_clone()?, true),
        ];
        for (from, to, counts) in ways {
            let service = Arc::clone(self);
            thread::spawn(move || service.copy(&from, &to, counts));
        }
        Ok(())
    }

    /// Copies until one side has closed, or what was to be said is said.
    fn copy(&self, mut from: &TcpStream, mut to: &TcpStream, counts: bool) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut said = &buffer[..length];
            let whole = length.try_into().unwrap_or(i64::MAX);
            let left = match counts {
                true => self.left.fetch_sub(whole, Ordering::Relaxed),
                false => i64::MAX,
            };
            if left < whole {
                said = &said[..usize::try_from(left).unwrap_or(0)];
            }
            if to.write_all(said).is_err() {
                break;
            }
            if left <= whole {
                if !self.hangs {
                    self.end();
                }
                return;
            }
        }
        // The other way may still be used.
        let _ = to.shutdown(Shutdown::Write);
    }

    /// Closes its port and its connections.
    fn end(&self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        for stream in lock(&self.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// From now on, what this thread opens is in the network of a process.
fn enter(pid: i32) -> Result<()> {
    let network = File::open(format!("/proc/{pid}/ns/net")).context("the host has ended")?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter the host's network")
}

/// Runs this in the network of a process.
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
