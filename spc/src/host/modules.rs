//! Parts of the kernel: whether it has them, and how it gets them from the host's `/lib/modules`.
//!
//! A kernel loads the module of a file system by itself when that is mounted, with the host's
//! modprobe(8). Minimal hosts have none; then the container's does it, on the host's files.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::CapabilitySet;

use crate::error::{Error, errno_text};
use crate::host::{Host, confinement};
use crate::process::marks;
use crate::sys;

/// Where modules are, below a root.
const DIR: &str = "/lib/modules";

/// How long loading a module may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A module that a kind needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, as modprobe(8) knows it.
    pub name: &'static str,
    /// The file system that it brings, by which it is known even where it is built in.
    file_system: Option<&'static str>,
    /// Whether the kernel asks for it by itself when it is needed.
    on_demand: bool,
}

/// Userspace file systems, all of them.
pub const FUSE: Module = Module::new("fuse");

impl Module {
    /// The module of a file system of the same name.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            file_system: Some(name),
            on_demand: true,
        }
    }

    /// A module that another one asks for.
    pub const fn part(name: &'static str) -> Self {
        Self {
            name,
            file_system: None,
            on_demand: true,
        }
    }

    /// A module that nothing asks for, such as a driver of devices that are made by hand.
    pub const fn driver(name: &'static str) -> Self {
        Self {
            name,
            file_system: None,
            on_demand: false,
        }
    }

    /// Whether nothing works without it.
    fn is_needed(&self) -> bool {
        self.file_system.is_some() || !self.on_demand
    }

    /// Whether the kernel shows that it has it.
    pub fn is_there(&self) -> bool {
        match self.file_system {
            Some(file_system) => fs::read_to_string("/proc/filesystems")
                .unwrap_or_default()
                .lines()
                .any(|line| line.rsplit('\t').next() == Some(file_system)),
            None => Path::new("/sys/module").join(plain(self.name)).exists(),
        }
    }
}

/// Why a module cannot be loaded, and what to do.
#[derive(Debug)]
struct Why {
    cause: String,
    hint: String,
}

/// A module that the kernel does not get.
#[derive(Debug)]
pub struct Lack {
    module: Module,
    why: Why,
}

/// Loads those modules that the kernel does not show.
pub fn provide(modules: &[Module], host: &Host) -> Vec<Lack> {
    let lacking = modules.iter().filter(|module| !module.is_there());
    let lacking: Vec<Module> = lacking.copied().collect();
    if lacking.is_empty() {
        return Vec::new();
    }
    let files = files(host).unwrap_or_default();
    lacking
        .into_iter()
        .filter(|module| !lists(&files.built_in, module.name))
        .filter_map(|module| {
            let why = load(module.name, host).err()?;
            tracing::debug!(module = module.name, cause = %why.cause, "not loaded");
            // Whether that is a failure is seen when the kernel is asked for what needs it.
            let left_to_kernel = module.on_demand && files.load_themselves(module.name);
            (!left_to_kernel).then_some(Lack { module, why })
        })
        .collect()
}

/// An error that may come from what the kernel still lacks, with that said.
pub fn explain(error: Error, lacks: &[Lack]) -> Error {
    let lacks: Vec<&Lack> = lacks.iter().filter(|l| !l.module.is_there()).collect();
    // Without the file system, nothing else is to blame.
    let (first, sure) = match lacks.iter().find(|l| l.module.is_needed()) {
        Some(lack) => (*lack, true),
        None => match lacks.first() {
            Some(lack) => (*lack, false),
            None => return error,
        },
    };
    let told = lacks.iter().filter(|lack| lack.module.is_needed() == sure);
    let told = told.map(|Lack { module, why }| {
        let what = match module.file_system {
            Some(file_system) => format!("the host's kernel has no file system {file_system}, and"),
            None => "the host's kernel may need more:".into(),
        };
        format!(
            "{what} module {} for Linux {} cannot be loaded: {}",
            module.name,
            release(),
            why.cause
        )
    });
    let error = error.log(told.collect());
    match sure {
        true => error.hint(first.why.hint.clone()),
        // The mount may not have come to where it needs it.
        false => error.hint_also(&first.why.hint),
    }
}

/// What `spc doctor` says of a module: how a mount will get it.
///
/// # Errors
/// It will not; the error says why.
pub fn look(module: Module, host: &Host) -> crate::error::Result<String> {
    let name = module.name;
    if module.is_there() {
        return Ok(format!("{name} is loaded"));
    }
    let fail = |Why { cause, hint }| {
        Error::system(format!("no module {name} for Linux {}", release()))
            .because(cause)
            .hint(hint)
    };
    let files = files(host);
    if files
        .as_ref()
        .is_ok_and(|files| lists(&files.built_in, name))
    {
        return Ok(format!("{name} is built in"));
    }
    if let Some(cause) = closed() {
        let (cause, hint) = (cause.into(), format!("use a kernel that has {name}"));
        return Err(fail(Why { cause, hint }));
    }
    let files = files.map_err(|cause| {
        let hint = install(name);
        fail(Why { cause, hint })
    })?;
    if !lists(&files.modules, name) {
        let cause = format!("it is not in {DIR}/{} of the host", release());
        let hint = install(name);
        return Err(fail(Why { cause, hint }));
    }
    if module.on_demand && files.load_themselves(name) {
        return Ok(format!("{name} is loaded by the host when it is needed"));
    }
    let (program, root) = loader(name, host).map_err(fail)?;
    Ok(format!(
        "{name} is loaded when it is needed, by {} from {}{DIR}",
        program.display(),
        root.display()
    ))
}

/// Why the kernel takes no modules at all, if it does not.
fn closed() -> Option<&'static str> {
    if !Path::new("/proc/modules").exists() {
        return Some("this kernel has no modules at all");
    }
    let disabled = fs::read_to_string("/proc/sys/kernel/modules_disabled");
    disabled
        .is_ok_and(|disabled| disabled.trim() == "1")
        .then_some("the loading of modules has been switched off until the next boot (kernel.modules_disabled)")
}

/// What the host has for its kernel.
#[derive(Default)]
struct Files {
    modules: String,
    built_in: String,
    /// Whether the kernel finds its modprobe(8) on the host.
    loader: bool,
}

impl Files {
    /// Whether host and kernel load a module without us.
    fn load_themselves(&self, name: &str) -> bool {
        self.loader && lists(&self.modules, name)
    }
}

fn files(host: &Host) -> Result<Files, String> {
    let dir = Path::new(DIR).join(release());
    let shown = dir.display().to_string();
    let read = host.run("looking for kernel modules", move || {
        let loader = fs::read_to_string("/proc/sys/kernel/modprobe").unwrap_or_default();
        let loader = Path::new("/").join(loader.trim().trim_start_matches('/'));
        Ok(Files {
            modules: fs::read_to_string(dir.join("modules.dep"))?,
            built_in: fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default(),
            loader: loader.is_file(),
        })
    });
    let read: std::io::Result<Files> = read.map_err(|e| e.summary())?;
    read.map_err(|e| format!("{shown}/modules.dep of the host: {}", errno_text(e)))
}

/// Whether a module is in `modules.dep` or `modules.builtin`, as `DIR/NAME.ko[.gz|.xz|.zst]`.
fn lists(table: &str, name: &str) -> bool {
    table.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        let module = file.split(".ko").next().unwrap_or_default();
        plain(module) == plain(name)
    })
}

/// Dashes and underscores are the same in names of modules.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn release() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

fn by_hand(name: &str) -> String {
    format!("on the host, try: modprobe {name}")
}

fn install(name: &str) -> String {
    format!(
        "install the modules of Linux {} on the host, or use a kernel that has {name}",
        release()
    )
}

/// The program that loads a module, and the host's root as it sees it.
fn loader(name: &str, host: &Host) -> Result<(PathBuf, PathBuf), Why> {
    let why = |cause: &str, hint: String| Why {
        cause: cause.into(),
        hint,
    };
    if let Some(cause) = closed() {
        return Err(why(cause, format!("use a kernel that has {name}")));
    }
    let dir = format!("{DIR}/{}", release());
    let seen: Vec<PathBuf> = host
        .proc_file("root")
        .into_iter()
        .chain(host.settings().hosts())
        .collect();
    let root = seen.iter().find(|root| root.join(&dir[1..]).is_dir());
    let Some(root) = root else {
        let cause = format!("there is no {dir} on the host");
        return Err(why(&cause, install(name)));
    };
    let able = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_MODULE));
    if !able {
        let more =
            "or start the container with --cap-add=SYS_MODULE or --privileged, and spc does it";
        let hint = format!("{}; {more}", by_hand(name));
        return Err(why("capability CAP_SYS_MODULE is missing", hint));
    }
    let Some(program) = confinement::program(&["modprobe"]) else {
        let hint = format!("{}; or install kmod in the image", by_hand(name));
        return Err(why("this container has no program modprobe", hint));
    };
    Ok((program, root.clone()))
}

fn load(name: &str, host: &Host) -> Result<(), Why> {
    let (program, root) = loader(name, host)?;
    let mut command = Command::new(&program);
    command.arg("-d").arg(&root);
    // What the host's administrator forbids stays forbidden, modprobe.d(5).
    for dir in ["etc", "run", "usr/lib", "lib"] {
        command.arg("-C").arg(root.join(dir).join("modprobe.d"));
    }
    command.arg(name);
    let shown = format!("{} -d {} {name}", program.display(), root.display());
    tracing::debug!(command = %shown, "loading a module");
    run(&mut command).map_err(|cause| Why {
        cause: format!("{shown}: {cause}"),
        hint: match files(host) {
            Ok(files) if lists(&files.modules, name) => format!(
                "see the host's kernel log, dmesg, and its modprobe.d; {}",
                by_hand(name)
            ),
            _ => install(name),
        },
    })
}

/// Runs a command that is expected to end soon; on failure, what it said.
fn run(command: &mut Command) -> Result<(), String> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = sys::tie_to_parent(command).spawn().map_err(errno_text)?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(errno_text)?;
    if !marks::ended(&pidfd, LIMIT) {
        // A process inside the kernel may not end even so; then it is left behind.
        let _ = child.kill();
        return Err(format!(
            "no end after {:.0} s",
            started.elapsed().as_secs_f32()
        ));
    }
    let status = child.wait().map_err(errno_text)?;
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What cannot be read is not said.
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    let said = said.lines().next_back().unwrap_or_default();
    Err(format!("{status}: {said}").replace("exit status: ", "exit status "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_in_the_tables_of_depmod() {
        let table = "kernel/fs/nfs/nfs.ko: kernel/net/sunrpc/sunrpc.ko\n\
                     kernel/fs/nfs/nfsv4.ko.xz:\nkernel/drivers/scsi/iscsi-tcp.ko.zst:\n";
        for there in ["nfs", "nfsv4", "iscsi_tcp"] {
            assert!(lists(table, there), "{there}");
        }
        for not in ["nf", "nfsv3", "sunrpc", ""] {
            assert!(!lists(table, not), "{not}");
        }
    }

    #[test]
    fn what_every_kernel_has() {
        assert!(Module::new("tmpfs").is_there());
        assert!(!Module::new("tmp").is_there());
        assert!(!Module::driver("no-such-module").is_there());
    }

    #[test]
    fn what_is_missing_is_told_and_what_it_brings_with_it_is_not() {
        let lack = |module: Module| {
            let (cause, hint) = (
                format!("no {}", module.name),
                format!("get {}", module.name),
            );
            let why = Why { cause, hint };
            Lack { module, why }
        };
        let error = || Error::mount("cannot mount").hint("first");
        let (part, driver) = (Module::part("no-part"), Module::driver("no-driver"));
        let said = explain(error(), &[lack(part), lack(Module::new("none"))]).to_string();
        assert!(
            said.contains("no file system none, and module none for Linux"),
            "{said}"
        );
        assert!(said.ends_with("no none\nhint: get none"), "{said}");
        let said = explain(error(), &[lack(driver), lack(part)]).to_string();
        assert!(
            said.ends_with("no no-driver\nhint: get no-driver"),
            "{said}"
        );
        let said = explain(error(), &[lack(part)]).to_string();
        assert!(
            said.ends_with("no no-part\nhint: first; get no-part"),
            "{said}"
        );
        let said = explain(error(), &[lack(Module::new("tmpfs"))]).to_string();
        assert_eq!(said, "cannot mount\nhint: first");
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let failed = run(Command::new("sh").args(["-c", "echo first >&2; echo why >&2; exit 3"]));
        assert_eq!(failed.unwrap_err(), "exit status 3: why");
        assert!(run(&mut Command::new("true")).is_ok());
    }
}
