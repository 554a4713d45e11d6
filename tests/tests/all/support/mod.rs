//! Support for tests of the container: a host with an engine, the container started on it, and
//! queries to both.

pub mod images;
pub mod random;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::{
    AnyHost, Base, Cluster, Engine, Host, HostOptions, Lab, Mount, Output, Propagation, Vm,
    VmOptions,
};
use serde_json::Value;

/// The documents' run line: all privileges, and the host's tree bound.
pub const PRIVILEGED: [&str; 5] = ["--privileged", "--net=host", "--pid=host", "-v", "/:/host"];

/// The recommended run line: only what is needed.
pub const MINIMAL: [&str; 7] = [
    "--cap-drop=ALL",
    "--cap-add=SYS_ADMIN",
    "--cap-add=SYS_CHROOT",
    "--cap-add=SYS_PTRACE",
    "--device=/dev/fuse",
    "--pid=host",
    "--net=host",
];

/// A host on which the container runs as `spc`.
pub struct Container<H> {
    /// The host.
    pub host: H,
    runtime: Runtime,
}

/// The program that runs the container.
#[derive(Clone, Copy)]
enum Runtime {
    Engine(Engine),
    Runc,
}

/// The container on a disposable host.
pub type Spc<'lab> = Container<Host<'lab>>;

/// The container on a virtual machine.
pub type VmSpc<'lab> = Container<Vm<'lab>>;

impl<'lab> VmSpc<'lab> {
    /// Boots a virtual machine and starts the container, with all privileges.
    pub fn privileged(lab: &'lab Lab) -> Result<Self> {
        Self::boot(lab, VmOptions::default())
    }

    /// Boots a virtual machine with these options and starts the container, with all privileges.
    pub fn boot(lab: &'lab Lab, options: VmOptions) -> Result<Self> {
        let spc = Self::booted(lab, options)?;
        spc.host.start_container()?;
        Ok(spc)
    }

    /// Boots a virtual machine with these options. The container is left to the test.
    pub fn booted(lab: &'lab Lab, options: VmOptions) -> Result<Self> {
        let host = lab.vm(VmOptions {
            image: Some(Base::Trixie),
            ..options
        })?;
        let runtime = Runtime::Runc;
        Ok(Self { host, runtime })
    }
}

impl<'lab> Spc<'lab> {
    /// Boots a host, and starts the engine and the container with these arguments of `run`.
    pub fn start(
        lab: &'lab Lab,
        propagation: Propagation,
        engine: Engine,
        base: Base,
        arguments: &[&str],
    ) -> Result<Self> {
        let spc = Self::loaded(lab, propagation, engine, base)?;
        spc.run(base, arguments)?.ok()?;
        Ok(spc)
    }

    /// Boots a host, starts the engine and loads the image. The container called `spc` is left to
    /// the test.
    pub fn loaded(
        lab: &'lab Lab,
        propagation: Propagation,
        engine: Engine,
        base: Base,
    ) -> Result<Self> {
        let host = lab.host(HostOptions {
            propagation,
            ..HostOptions::default()
        })?;
        host.start(engine, Some(&lab::image(base)?))?;
        let runtime = Runtime::Engine(engine);
        Ok(Self { host, runtime })
    }

    /// Starts docker on a host with a shared `/`, with all privileges.
    pub fn privileged(lab: &'lab Lab) -> Result<Self> {
        let (shared, docker) = (Propagation::Shared, Engine::Docker);
        Self::start(lab, shared, docker, Base::Trixie, &PRIVILEGED)
    }

    /// Starts docker on a host with a shared `/`, with the recommended run line.
    pub fn minimal(lab: &'lab Lab) -> Result<Self> {
        let (shared, docker) = (Propagation::Shared, Engine::Docker);
        Self::start(lab, shared, docker, Base::Trixie, &MINIMAL)
    }

    /// Runs `docker run -d --name spc ARGUMENTS IMAGE`.
    pub fn run(&self, base: Base, arguments: &[&str]) -> Result<Output> {
        self.run_image(base.image(), arguments)
    }

    /// Runs `docker run -d --name spc ARGUMENTS IMAGE` with an image of another name.
    pub fn run_image(&self, image: &str, arguments: &[&str]) -> Result<Output> {
        let start = [self.runtime.command(), "run", "-d", "--name", "spc"];
        self.host.run(&[&start, arguments, &[image]].concat())
    }
}

impl Runtime {
    fn command(self) -> &'static str {
        match self {
            Self::Engine(engine) => engine.command(),
            Self::Runc => "runc",
        }
    }

    /// Words of `docker exec OPTIONS spc`.
    fn exec(self, cwd: Option<&str>) -> Vec<&str> {
        let (interactive, directory) = match self {
            Self::Engine(_) => (&["-i"][..], "-w"),
            Self::Runc => (&[][..], "--cwd"),
        };
        let mut words = [&[self.command(), "exec"], interactive].concat();
        words.extend(cwd.iter().flat_map(|cwd| [directory, cwd]));
        words.push("spc");
        words
    }
}

impl<H: AnyHost> Container<H> {
    /// Runs `docker exec spc WORDS`.
    pub fn exec(&self, words: &[&str]) -> Result<Output> {
        self.host.run(&[&self.runtime.exec(None), words].concat())
    }

    /// Runs `docker exec -w CWD spc WORDS`.
    pub fn exec_in(&self, cwd: &str, words: &[&str]) -> Result<Output> {
        self.host
            .run(&[&self.runtime.exec(Some(cwd)), words].concat())
    }

    /// Runs `docker exec -i spc WORDS` with these bytes as standard input.
    pub fn exec_with(&self, words: &[&str], input: &[u8]) -> Result<Output> {
        self.host
            .run_with(&[&self.runtime.exec(None), words].concat(), input)
    }

    /// Runs `spc mount ARGUMENTS`. Fails with its command line and output unless it exits with 0.
    #[track_caller]
    pub fn mount(&self, arguments: &[&str]) -> Result<Output> {
        self.spc("mount", arguments)
    }

    /// Runs `spc umount TARGET` (or `--all`). Fails with its command line and output unless it
    /// exits with 0.
    #[track_caller]
    pub fn umount(&self, target: &str) -> Result<Output> {
        self.spc("umount", &[target])
    }

    #[track_caller]
    fn spc(&self, command: &str, arguments: &[&str]) -> Result<Output> {
        self.exec(&[&["spc", command], arguments].concat())?.ok()
    }

    /// Removes the container.
    pub fn remove(&self) -> Result<()> {
        let remove = match self.runtime {
            Runtime::Engine(_) => "rm",
            Runtime::Runc => "delete",
        };
        self.host
            .run(&[self.runtime.command(), remove, "-f", "spc"])?
            .ok()?;
        Ok(())
    }

    /// Log of the container's first process.
    pub fn log(&self) -> Result<String> {
        let read = match self.runtime {
            Runtime::Engine(engine) => format!("{} logs spc 2>&1", engine.command()),
            Runtime::Runc => "cat /run/container/log".to_owned(),
        };
        Ok(self.host.sh(&read)?.ok()?.text())
    }

    /// Runs a script in the container.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.exec(&["sh", "-c", script])
    }

    /// PID of the container's first process on the host.
    pub fn pid(&self) -> Result<String> {
        match self.runtime {
            Runtime::Engine(engine) => {
                let inspect = ["inspect", "--format", "{{.State.Pid}}", "spc"];
                let words = [&[engine.command()], &inspect[..]].concat();
                Ok(self.host.run(&words)?.ok()?.text().trim().to_owned())
            }
            Runtime::Runc => {
                let state: Value = serde_json::from_slice(&self.host.read(lab::RUNC_STATE)?)?;
                Ok(state["init_process_pid"].to_string())
            }
        }
    }

    /// Stops `spc serve`, the container's first process, at a moment when it holds no lock that a
    /// command would wait for.
    pub fn stop_serve(&self) -> Result<()> {
        let pid = self.pid()?;
        until("`spc serve` stops without a lock", || {
            let script = format!(
                "kill -STOP {pid} && sleep 0.05 && if grep -q ' FLOCK .* {pid} ' /proc/locks; then kill -CONT {pid}; echo held; fi"
            );
            Ok(self.host.sh(&script)?.ok()?.text().is_empty())
        })
    }

    /// Lines of the container's mount table.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let table = self
            .host
            .run(&["cat", &format!("/proc/{}/mountinfo", self.pid()?)])?
            .ok()?;
        Ok(table.text().lines().map(str::to_owned).collect())
    }

    /// The host's mounts on a target, the topmost last.
    pub fn on(&self, target: impl AsRef<Path>) -> Result<Vec<Mount>> {
        let all = self.host.mountinfo()?;
        Ok(all
            .into_iter()
            .filter(|mount| mount.target == target.as_ref())
            .collect())
    }

    /// Writes a file into the container that all users may read and execute.
    pub fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let script = r#"cat >"$1" && chmod 755 "$1""#;
        self.exec_with(&["sh", "-c", script, "put", path], bytes)?
            .ok()?;
        Ok(())
    }

    /// Record of a target in `spc ls`.
    pub fn record(&self, target: &str) -> Result<Value> {
        let list: Vec<Value> =
            serde_json::from_str(&self.exec(&["spc", "ls", "--json"])?.ok()?.text())?;
        list.into_iter()
            .find(|record| record["target"] == target)
            .with_context(|| format!("no record of {target}"))
    }

    /// Everything that a mount could leave: mount table entries, records, redirects, helper
    /// processes.
    pub fn traces(&self) -> Result<(Vec<Mount>, String)> {
        let records = self
            .host
            .sh("ls -A /run/spc/mounts 2>/dev/null | grep -v '^lock$'")?;
        let script = "cat /proc/self/mountinfo; ls -A /spc/targets; grep -lzs ^SPC_MOUNT= /proc/[0-9]*/environ";
        let container = self.sh(script)?.text();
        let redirects = self.host.sh(CLIENT_REDIRECTS)?.text();
        Ok((
            self.host.mountinfo()?,
            format!("{}\n{container}{redirects}", records.text()),
        ))
    }

    /// Runs a mount's whole life by `spc mount ARGUMENTS TARGET`. One mount table gains one entry,
    /// of this type and source, and `spc ls` lists it. Then `used` runs, and `spc umount` must
    /// leave nothing.
    pub fn life(
        &self,
        arguments: &[&str],
        target: &str,
        [fstype, source]: [&str; 2],
        used: impl FnOnce(&Value) -> Result<()>,
    ) -> Result<()> {
        self.host.run(&["mkdir", "-p", target])?.ok()?;
        let (before, tables) = (self.traces()?, tables(&self.host)?);
        self.mount(&[arguments, &[target]].concat())?;
        let on = self.on(target)?;
        ensure!(
            on.len() == 1 && on[0].fstype == fstype && on[0].source == *source,
            "{on:?}"
        );
        let grown = until("all mount tables together have one more entry", || {
            Ok(self.grown(&tables)? == 1)
        });
        grown.with_context(|| format!("{tables:?} became {:?}", self.host.tables()))?;
        let record = self.record(target)?;
        ensure!(
            record["state"] == "ok" && record["mount_id"] == on[0].id,
            "{record}"
        );
        used(&record)?;
        self.umount(target)?;
        let after = self.traces()?;
        ensure!(after == before, "left: {after:#?}\nwas: {before:#?}");
        Ok(())
    }

    /// Number of entries that the tables gained. Vanished tables do not count: processes of
    /// `docker run` and `docker exec` briefly have a table of their own.
    fn grown(&self, before: &BTreeMap<PathBuf, usize>) -> Result<isize> {
        let grown = |(namespace, now): (PathBuf, usize)| {
            let before = before.get(&namespace).copied().unwrap_or_default();
            now.cast_signed() - before.cast_signed()
        };
        Ok(tables(&self.host)?.into_iter().map(grown).sum())
    }

    /// Runs a command that must fail: with this exit code, with one error that has these words and
    /// a hint, and with nothing left behind.
    pub fn refused(&self, words: &[&str], code: i32, expected: &[&str]) -> Result<Output> {
        let before = self.traces()?;
        let output = self.exec(words)?.code(code)?;
        let error = output.error_text();
        let lines = |start: &str| error.lines().filter(|line| line.starts_with(start)).count();
        ensure!(
            lines("spc: ") == 1
                && lines("hint: ") == 1
                && error.starts_with("spc: ")
                && output.stdout.is_empty(),
            "{output}"
        );
        for what in expected {
            ensure!(error.contains(what), "no {what:?} in the error: {output}");
        }
        let after = self.traces()?;
        ensure!(
            after == before,
            "left: {after:#?}\nwas: {before:#?}\n{output}"
        );
        eprintln!("{} ({:.1?})\n{error}\n", words.join(" "), output.elapsed);
        Ok(output)
    }

    /// Runs `spc mount ARGUMENTS` as [`refused`](Self::refused) does.
    pub fn refused_mount(
        &self,
        arguments: &[&str],
        code: i32,
        expected: &[&str],
    ) -> Result<Output> {
        self.refused(&[&["spc", "mount"], arguments].concat(), code, expected)
    }

    /// Checks that no mount has left a record, a redirect or a process.
    pub fn is_clean(&self) -> Result<()> {
        let records = self
            .host
            .sh("ls -A /run/spc/mounts 2>/dev/null | grep -v '^lock$'")?
            .text();
        ensure!(records.is_empty(), "left records: {records}");
        let redirects = self
            .sh("ls -A /spc/targets | grep -v '^report.sock$'")?
            .text();
        ensure!(redirects.is_empty(), "left redirects: {redirects}");
        let redirects = self.host.sh(CLIENT_REDIRECTS)?.text();
        ensure!(
            redirects.is_empty(),
            "left redirects of client root file systems: {redirects}"
        );
        let marked = self
            .sh("grep -lzs ^SPC_MOUNT= /proc/[0-9]*/environ")?
            .text();
        ensure!(marked.is_empty(), "left processes: {marked}");
        Ok(())
    }
}

/// Lists the redirects of mounts whose programs run in a client root file system.
const CLIENT_REDIRECTS: &str = "cd /run/spc/targets 2>/dev/null && find . -mindepth 2";

/// Number of entries in the mount tables of all processes of a host, containers included.
pub fn entries(host: &impl AnyHost) -> Result<usize> {
    Ok(tables(host)?.values().sum())
}

/// Number of mounts that a client namespace starts with.
const CLIENT_ENTRIES: usize = 11;

/// Returns [`AnyHost::tables`] without the mounts that client namespaces start with.
fn tables(host: &impl AnyHost) -> Result<BTreeMap<PathBuf, usize>> {
    let notes = host.sh("cat /run/spc/clients/* 2>/dev/null")?.text();
    let mut tables = host.tables()?;
    for (namespace, entries) in &mut tables {
        let name = namespace.to_string_lossy();
        let inode = name.trim_start_matches("mnt:[").trim_end_matches(']');
        if notes.contains(&format!("\"namespace\":{inode}}}")) {
            let own = entries.checked_sub(CLIENT_ENTRIES);
            *entries = own.context("a client namespace has fewer mounts than it starts with")?;
        }
    }
    Ok(tables)
}

/// Runs a test's body with the lab and its GlusterFS cluster. Does nothing where the lab cannot
/// run; the lab prints the reason.
pub fn with_gluster(body: impl FnOnce(&'static Lab, &'static Cluster<'static>) -> Result<()>) {
    let (Some(lab), Some(cluster)) = (lab::shared(), lab::gluster()) else {
        return;
    };
    body(lab, cluster).unwrap_or_else(|error| panic!("{error:?}"));
}

/// Runs a test's body with the lab. Does nothing where the lab cannot run; the lab prints the
/// reason.
pub fn with_lab(body: impl FnOnce(&'static Lab) -> Result<()>) {
    if let Some(lab) = lab::shared() {
        body(lab).unwrap_or_else(|error| panic!("{error:?}"));
    }
}

/// Runs a test's body with a privileged container on a disposable host.
pub fn with_container(body: impl FnOnce(&Spc<'static>) -> Result<()>) {
    with_lab(|lab| body(&Spc::privileged(lab)?));
}

/// Runs a test's body with a container that has the recommended run line, on a disposable host.
pub fn with_minimal_container(body: impl FnOnce(&Spc<'static>) -> Result<()>) {
    with_lab(|lab| body(&Spc::minimal(lab)?));
}

/// Runs a test's body with a privileged container on a virtual machine.
pub fn with_vm(body: impl FnOnce(&VmSpc<'static>) -> Result<()>) {
    with_lab(|lab| body(&VmSpc::privileged(lab)?));
}

/// Waits until a condition holds, for at most 20 seconds.
pub fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..200 {
        if holds()? {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    None.with_context(|| format!("timed out after 20 s, waiting until {what}"))
}

/// Records, redirects and processes of a host and its container, read from outside: no process is
/// started for it.
#[derive(Debug, Default)]
pub struct Census {
    /// Records of the host.
    pub records: Vec<serde_json::Value>,
    /// Other files beside the records, except the lock.
    pub strays: Vec<String>,
    /// Files of the redirects, by mount id.
    pub redirects: BTreeMap<String, Vec<String>>,
    /// Helpers and daemons, by mount id.
    pub marked: BTreeMap<String, Vec<i32>>,
}

impl Spc<'_> {
    /// PID of the container's first process on the machine.
    pub fn first(&self) -> Result<i32> {
        let pid = self.pid()?;
        // PIDs of a process in each PID namespace, the machine's first.
        let ids = |process: i32| -> Option<Vec<String>> {
            let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
            let numbers = status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))?;
            Some(numbers.split_whitespace().map(str::to_owned).collect())
        };
        let level = ids(self.host.pid()).context("the host has ended")?.len();
        let inner = |process: i32| ids(process)?.get(level - 1).cloned();
        let mut processes = self.host.processes().into_iter();
        processes
            .find(|process| inner(*process).as_ref() == Some(&pid))
            .context("the container has no first process")
    }

    /// Reads everything; `first` is the container's first process.
    pub fn census(&self, first: i32) -> Result<Census> {
        let mut census = Census::default();
        let ledger = format!("/proc/{}/root/run/spc/mounts", self.host.pid());
        for name in names(&ledger)? {
            match name.as_str() {
                "lock" => {}
                name if name.ends_with(".json") => {
                    let text = fs::read(format!("{ledger}/{name}"))?;
                    census.records.push(serde_json::from_slice(&text)?);
                }
                name => census.strays.push(name.to_owned()),
            }
        }
        let clients = format!("/proc/{}/root/run/spc/targets", self.host.pid());
        let mut places = vec![format!("/proc/{first}/root/spc/targets")];
        places.extend(
            names(&clients)?
                .iter()
                .map(|client| format!("{clients}/{client}")),
        );
        for place in places {
            for name in names(&place)? {
                let id = name.split('.').next().unwrap_or_default().to_owned();
                census.redirects.entry(id).or_default().push(name);
            }
        }
        for process in self.host.processes() {
            let environ = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
            let mark = environ.split(|byte| *byte == 0).find_map(|variable| {
                let id = variable.strip_prefix(b"SPC_MOUNT=")?;
                Some(String::from_utf8_lossy(id).into_owned())
            });
            if let Some(id) = mark {
                census.marked.entry(id).or_default().push(process);
            }
        }
        Ok(census)
    }
}

impl Census {
    /// Returns whether no mount has left anything.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.strays.is_empty()
            && self.redirects.is_empty()
            && self.marked.is_empty()
    }
}

/// Sorted names in a directory, which may be missing.
fn names(directory: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}
