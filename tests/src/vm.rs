//! A virtual machine in the lab: a real kernel of its own, emulated by QEMU, with its cable in the
//! lab's bridge.
//!
//! QEMU's standard input and output are the serial port for commands, its standard error is the
//! machine's console. Nothing is written to disks. Dropping the machine, or the end of the test
//! process, ends QEMU.
//!
//! A boot under emulation takes 7 to 10 s of CPU time, with systemd 20 to 40 s until all is
//! started. A machine therefore continues from a state that was saved after a first boot
//! (`saved.rs`): 1 s, with systemd 2 to 3 s, and 240 MB of memory instead of 320. Machines that
//! keep their files boot each time, because a saved state lacks the content of their disk.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::disks::{self, Kernel};
use crate::exec::{LIMIT, PATH};
use crate::guest::{self, End, Order, PORT, Report};
use crate::image::Base;
use crate::mountinfo::{self, Mount};
use crate::outer::Lab;
use crate::output::{Output, Status};
use crate::roots::Root;
use crate::{net, saved, times};

/// Properties of a virtual machine.
#[derive(Debug, Clone, Copy)]
pub struct VmOptions {
    /// Installed files.
    pub root: Root,
    /// Image of the container, mounted writable on `/run/container/rootfs`.
    pub image: Option<Base>,
    /// Memory in MiB.
    pub memory: u32,
    /// Whether files on its root survive [`Vm::reboot`].
    pub keeps: bool,
}

impl Default for VmOptions {
    fn default() -> Self {
        Self {
            root: Root::Vm,
            image: None,
            memory: 1024,
            keeps: false,
        }
    }
}

/// Time limit of a boot on a busy machine. On an idle one, a boot takes a few seconds.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// The emulator.
pub(crate) const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// Files that a machine starts from.
pub(crate) struct Parts {
    kernel: Kernel,
    disks: [PathBuf; 3],
}

impl Parts {
    fn get(options: VmOptions) -> Result<Self> {
        let kernel = Kernel::get()?;
        // Always three disks, so that a saved state fits machines with an image and without.
        let third = match options.image {
            Some(base) => disks::image_disk(base)?,
            None => disks::no_image()?,
        };
        let disks = [disks::disk(options.root)?, kernel.modules.clone(), third];
        Ok(Self { kernel, disks })
    }

    /// Files that a saved state depends on.
    pub(crate) fn saved(&self) -> [&Path; 4] {
        let [tree, modules, _] = &self.disks;
        [&self.kernel.image, &self.kernel.first, tree, modules]
    }
}

/// Start of a machine.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<'a> {
    /// Boot.
    Boot,
    /// Boot without a name and an address. The state can be saved to the file `state` through the
    /// socket `monitor`.
    ToSave { monitor: &'a Path, state: &'a Path },
    /// Continuation of the state in this file.
    Saved(&'a Path),
}

type Reports = Mutex<BTreeMap<u64, Sender<(Report, Vec<Vec<u8>>)>>>;

/// A running machine.
#[derive(Debug)]
pub struct Vm<'lab> {
    lab: &'lab Lab,
    number: u8,
    qemu: Child,
    cgroup: Cgroup,
    port: Mutex<ChildStdin>,
    reports: Arc<Reports>,
    orders: AtomicU64,
    console: Arc<Mutex<Vec<u8>>>,
}

impl Lab {
    /// Boots a virtual machine.
    pub fn vm(&self, options: VmOptions) -> Result<Vm<'_>> {
        Vm::boot(self, options)
    }
}

impl<'lab> Vm<'lab> {
    fn boot(lab: &'lab Lab, options: VmOptions) -> Result<Self> {
        let parts = Parts::get(options)?;
        let state = match options.keeps {
            // A saved state lacks the content of the disk.
            true => None,
            false => Some(saved::state(lab, options, &parts)?),
        };
        let started = Instant::now();
        let vm = match &state {
            Some(state) => {
                let vm = Self::start(lab, options, &parts, Start::Saved(state))?;
                saved::wake(&vm, options)?;
                vm
            }
            None => {
                let vm = Self::start(lab, options, &parts, Start::Boot)?;
                vm.is_up(vm.command(&["true"]))?;
                vm
            }
        };
        let what = format!(
            "virtual machine ({:?}, {} MiB)",
            options.root, options.memory
        );
        vm.say_cost(&what, started);
        Ok(vm)
    }

    /// Starts QEMU. The machine may not be up yet.
    pub(crate) fn start(
        lab: &'lab Lab,
        options: VmOptions,
        parts: &Parts,
        start: Start<'_>,
    ) -> Result<Self> {
        let number = lab.take_number()?;
        let vm = Self::start_as(lab, number, options, parts, start);
        if vm.is_err() {
            lab.give_back_number(number);
        }
        vm.context("cannot start a virtual machine")
    }

    fn start_as(
        lab: &'lab Lab,
        number: u8,
        options: VmOptions,
        parts: &Parts,
        start: Start<'_>,
    ) -> Result<Self> {
        let cable = format!("vm{number}");
        let cgroup = lab.cgroup.child(&net::name(number))?;
        let plug = ["tap", &cable].map(OsString::from);
        let lab_itself = [crate::machine::binary()?.into_os_string()];
        lab.command(cgroup.child("cable")?, &[&lab_itself[..], &plug].concat())?
            .run()?
            .ok()?;
        let mut argv: Vec<OsString> = [
            QEMU,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            "q35",
            "-accel",
            "tcg,tb-size=256",
            "-serial",
            "file:/dev/stderr",
            "-device",
            "virtio-serial-pci",
            "-chardev",
            "stdio,id=port,signal=off",
            "-device",
        ]
        .map(OsString::from)
        .to_vec();
        let mut add = |words: &[&str]| argv.extend(words.iter().map(OsString::from));
        add(&[&format!("virtserialport,chardev=port,name={PORT}")]);
        add(&["-m", &options.memory.to_string()]);
        let net = format!("tap,id=net,ifname={cable},script=no,downscript=no");
        let mac = net::mac(number);
        let card = format!("virtio-net-pci,netdev=net,romfile=,mac={mac}");
        add(&["-netdev", &net, "-device", &card]);
        for (index, disk) in parts.disks.iter().enumerate() {
            let disk = disk.to_str().filter(|path| !path.contains(','));
            let disk =
                disk.context("a path with a comma, which QEMU refuses\nhint: set XDG_CACHE_HOME")?;
            let drive = format!("if=none,id=disk{index},file={disk},format=raw,readonly=on");
            let device = format!("virtio-blk-pci,drive=disk{index}");
            add(&["-drive", &drive, "-device", &device]);
        }
        // The kernel checks its timer against the processor's clock, which stands still while this
        // machine is busy. Mitigations of faults of real processors take time in an emulated one.
        let mut line =
            "console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on net.ifnames=0 mitigations=off"
                .to_owned();
        match start {
            Start::Boot | Start::Saved(_) => {
                let (name, address) = (net::name(number), net::address(number));
                line.push_str(&format!(" lab.name={name} lab.address={address}"));
            }
            Start::ToSave { monitor, .. } => {
                let monitor = monitor.to_str().context("a path that is not UTF-8")?;
                add(&["-qmp", &format!("unix:{monitor},server=on,wait=off")]);
            }
        }
        if options.root == Root::Systemd {
            // Whenever /usr is newer than /etc and /var, systemd brings them up to date: at the
            // first boot, and after tests that change /usr.
            line.push_str(" systemd.condition_needs_update=no");
        }
        if options.root == Root::Selinux {
            line.push_str(" security=selinux");
        }
        if options.image.is_some() {
            line.push_str(" lab.image=yes");
        }
        if options.keeps {
            let blank = disks::blank()?;
            // QEMU writes to an unlinked file, which ends with QEMU.
            let drive = format!(
                "if=none,id=kept,file={},format=raw,snapshot=on",
                blank.display()
            );
            let device = "virtio-blk-pci,drive=kept,serial=kept";
            add(&["-drive", &drive, "-device", device]);
            line.push_str(" lab.keeps=yes");
        } else {
            add(&["-no-reboot"]);
        }
        add(&["-append", &line, "-kernel"]);
        argv.push(parts.kernel.image.clone().into());
        argv.push("-initrd".into());
        argv.push(parts.kernel.first.clone().into());
        if let Start::Saved(_) = start {
            argv.push("-incoming".into());
            argv.push(format!("exec:cat \"${}\"", saved::VARIABLE).into());
        }

        let mut run = lab.command(cgroup.child("qemu")?, &argv)?;
        if let Start::Saved(state) | Start::ToSave { state, .. } = start {
            run = run.env(saved::VARIABLE, state);
        }
        let mut qemu = run.with_pipes()?;
        let port = Mutex::new(qemu.stdin.take().context("no standard input")?);
        let (mut output, mut errors) = (
            BufReader::new(qemu.stdout.take().context("no standard output")?),
            qemu.stderr.take().context("no standard error")?,
        );
        let reports: Arc<Reports> = Arc::default();
        let console: Arc<Mutex<Vec<u8>>> = Arc::default();
        std::thread::spawn({
            let console = Arc::clone(&console);
            move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = errors.read(&mut buffer) {
                    lock(&console).extend_from_slice(&buffer[..length]);
                }
            }
        });
        std::thread::spawn({
            let reports = Arc::clone(&reports);
            move || {
                while let Ok(Some((report, parts))) = guest::receive::<Report>(&mut output) {
                    if let Some(waiting) = lock(&reports).remove(&report.number) {
                        // The receiver may have timed out.
                        let _ = waiting.send((report, parts));
                    }
                }
                // The machine has ended, so pending commands fail.
                lock(&reports).clear();
            }
        });
        Ok(Self {
            lab,
            number,
            qemu,
            cgroup,
            port,
            reports,
            orders: AtomicU64::default(),
            console,
        })
    }

    /// Returns the machine's name.
    pub fn name(&self) -> String {
        net::name(self.number)
    }

    /// Returns the address on the lab's network.
    pub fn address(&self) -> Ipv4Addr {
        net::address(self.number)
    }

    /// Returns the machine's number in the lab.
    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// Runs the first command in a machine, which may still be booting.
    pub(crate) fn is_up(&self, first: VmRun<'_, '_>) -> Result<()> {
        let up = first.limit(BOOT_LIMIT).run();
        up.and_then(Output::ok).map(drop).with_context(|| {
            format!(
                "the machine does not come up; its console:\n{}",
                self.console()
            )
        })
    }

    /// Waits until QEMU and all its children have ended.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while self.qemu.try_wait()?.is_none() || !self.cgroup.processes().is_empty() {
            ensure!(Instant::now() < end, "QEMU does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Returns the machine's lab.
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// Returns the console's output so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&lock(&self.console)).into_owned()
    }

    /// Makes a command in the machine.
    pub fn command<S: AsRef<str>>(&self, argv: &[S]) -> VmRun<'_, 'lab> {
        let environment = [("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")];
        VmRun {
            vm: self,
            order: Order {
                number: self.orders.fetch_add(1, Ordering::Relaxed),
                argv: argv.iter().map(|word| word.as_ref().to_owned()).collect(),
                environment: environment
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .to_vec(),
                limit: LIMIT,
            },
            input: Vec::new(),
        }
    }

    /// Runs a command in the machine, with a limit of a minute.
    pub fn run<S: AsRef<str>>(&self, argv: &[S]) -> Result<Output> {
        self.command(argv).run()
    }

    /// Runs a shell script in the machine, with a limit of a minute.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.run(&["sh", "-c", script])
    }

    /// Reboots a machine that keeps its files, and waits until it is up.
    pub fn reboot(&self) -> Result<()> {
        let boot = |wait: Duration| {
            let order = self.command(&["cat", "--", "/proc/sys/kernel/random/boot_id"]);
            order.answer_within(wait).map(|output| output.text())
        };
        let before = boot(LIMIT)?;
        // The machine may be down before it can report.
        let reboot = self
            .command(&["reboot"])
            .answer_within(Duration::from_secs(5));
        reboot.and_then(Output::ok).map(drop).or_else(|error| {
            ensure!(error.to_string().contains("no report"), error);
            Ok(())
        })?;
        let until = Instant::now() + BOOT_LIMIT;
        // A command sent while the machine goes down is lost.
        while boot(Duration::from_secs(5)).map_or(true, |now| now == before) {
            ensure!(
                Instant::now() < until,
                "the machine does not come up again; its console:\n{}",
                tail(&self.console())
            );
        }
        Ok(())
    }

    /// Returns the mount table of the machine.
    pub fn mountinfo(&self) -> Result<Vec<Mount>> {
        mountinfo::parse(&self.run(&["cat", "--", "/proc/1/mountinfo"])?.ok()?.stdout)
    }

    /// Reads a file of the machine.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = path.as_ref().to_string_lossy();
        Ok(self.run(&["cat", "--", &path])?.ok()?.stdout)
    }

    /// Writes a file of the machine, and makes missing directories.
    pub fn write(&self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let script = r#"mkdir -p -- "$(dirname -- "$1")" && cat > "$1""#;
        let path = path.as_ref().to_string_lossy();
        let write = ["sh", "-c", script, "write", &path];
        self.command(&write).input(bytes).run()?.ok()?;
        Ok(())
    }

    /// Prints the cost of a start on the machine. The machine's processes are those of QEMU.
    pub(crate) fn say_cost(&self, what: &str, started: Instant) {
        self.cgroup.say_cost(what, started);
    }
}

/// A command to run in a virtual machine.
#[derive(Debug)]
pub struct VmRun<'vm, 'lab> {
    vm: &'vm Vm<'lab>,
    order: Order,
    input: Vec<u8>,
}

impl VmRun<'_, '_> {
    /// Sets an environment variable. PATH, HOME and LANG are set already.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.order.environment.push((name.into(), value.into()));
        self
    }

    /// Sets these bytes as standard input.
    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = bytes.to_vec();
        self
    }

    /// Sets the time limit, by default a minute.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.order.limit = limit;
        self
    }

    /// Runs the command and waits for its end.
    pub fn run(self) -> Result<Output> {
        // `lab guest` enforces the limit. The longer wait is for a machine that does not answer.
        let wait = self.order.limit + Duration::from_secs(30);
        self.answer_within(wait)
    }

    fn answer_within(self, patience: Duration) -> Result<Output> {
        let started = Instant::now();
        let (number, limit) = (self.order.number, self.order.limit);
        let title = format!("{}: {}", self.vm.name(), self.order.argv.join(" "));
        let (waiting, answer) = channel();
        lock(&self.vm.reports).insert(number, waiting);
        guest::send(&mut *lock(&self.vm.port), self.order, &[&self.input])
            .with_context(|| format!("cannot order {title}"))?;
        let (report, mut parts) = wait(&answer, patience)
            .with_context(|| format!("no report: {title}\n{}", tail(&self.vm.console())))?;
        ensure!(parts.len() == 2, "a bad report: {title}");
        let (stderr, stdout) = (
            parts.pop().unwrap_or_default(),
            parts.pop().unwrap_or_default(),
        );
        let status = match report.end {
            End::Code(code) => Status::Code(code),
            End::Signal(signal) => Status::Signal(signal),
            End::TimedOut => Status::TimedOut(limit),
        };
        Ok(Output {
            status,
            stdout,
            stderr,
            elapsed: started.elapsed(),
            title,
        })
    }
}

fn wait<T>(answer: &Receiver<T>, limit: Duration) -> Result<T> {
    answer.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => anyhow::anyhow!("the machine does not answer"),
        RecvTimeoutError::Disconnected => anyhow::anyhow!("the machine has ended"),
    })
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        let _ = lock(&self.port).flush();
        times::add_cpu(self.cgroup.cpu());
        if let Err(error) = self.cgroup.remove() {
            eprintln!("lab: {} does not end: {error:#}", self.name());
        }
        let _ = self.qemu.wait();
        if let Err(error) = self.unplug() {
            eprintln!("lab: the cable of {} stays: {error:#}", self.name());
        }
        self.lab.give_back_number(self.number);
    }
}

impl Vm<'_> {
    fn unplug(&self) -> Result<()> {
        let cgroup = self.lab.cgroup.child(&format!("unplug-{}", self.number))?;
        let words = ["ip", "link", "del", &format!("vm{}", self.number)].map(OsString::from);
        self.lab.command(cgroup, &words)?.run()?.ok()?;
        Ok(())
    }
}
