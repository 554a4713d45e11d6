//! Kernel modules: whether the kernel has them, and how they are loaded from the host's
//! `/lib/modules`.
//!
//! The kernel loads the module of a file system at the mount, with the host's modprobe(8). Minimal
//! hosts have no modprobe; then spc runs the container's on the host's files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::thread::CapabilitySet;

use crate::error::{Error, errno_text};
use crate::host::{Host, confinement};
use crate::process::run;
use crate::sys;

/// Directory of the modules, below a root.
const DIR: &str = "/lib/modules";

/// Timeout for loading a module.
const LIMIT: Duration = Duration::from_secs(20);

/// Kernel module that a kind needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Name for modprobe(8).
    pub name: &'static str,
    /// File system that the module provides. Its presence shows the module even if it is built in.
    file_system: Option<&'static str>,
    /// Whether the kernel itself requests the module when it needs it.
    on_demand: bool,
}

/// Module of all FUSE file systems.
pub const FUSE: Module = Module::new("fuse");

impl Module {
    /// Returns the module of a file system with the same name.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            file_system: Some(name),
            on_demand: true,
        }
    }

    /// Returns a module that another module requests.
    pub const fn auxiliary(name: &'static str) -> Self {
        Self {
            name,
            file_system: None,
            on_demand: true,
        }
    }

    /// Returns a module that the kernel never requests, such as a driver whose devices programs
    /// create.
    pub const fn driver(name: &'static str) -> Self {
        Self {
            name,
            file_system: None,
            on_demand: false,
        }
    }

    /// Returns whether a mount cannot work without the module.
    fn is_needed(&self) -> bool {
        self.file_system.is_some() || !self.on_demand
    }

    /// Returns whether procfs or sysfs shows that the kernel has the module.
    pub fn is_available(&self) -> bool {
        match self.file_system {
            Some(file_system) => fs::read_to_string("/proc/filesystems")
                .unwrap_or_default()
                .lines()
                .any(|line| line.rsplit('\t').next() == Some(file_system)),
            None => Path::new("/sys/module")
                .join(normalized(self.name))
                .exists(),
        }
    }
}

/// Reason why a module cannot be loaded, and a hint.
#[derive(Debug)]
struct LoadError {
    cause: String,
    hint: String,
}

/// Module that the kernel lacks and that could not be loaded.
#[derive(Debug)]
pub struct MissingModule {
    module: Module,
    error: LoadError,
}

/// Loads the modules that the kernel lacks, and returns those that could not be loaded. A module
/// that the kernel will load by itself is not in the result.
pub fn load_missing(modules: &[Module], host: &Host) -> Vec<MissingModule> {
    let missing = modules.iter().filter(|module| !module.is_available());
    let missing: Vec<Module> = missing.copied().collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let files = files(host).unwrap_or_default();
    missing
        .into_iter()
        .filter(|module| !contains(&files.built_in, module.name))
        .filter_map(|module| {
            let error = load(module.name, host).err()?;
            tracing::debug!(module = module.name, cause = %error.cause, "cannot load a kernel module");
            // The kernel may still load the module itself. If not, the mount shows the failure.
            let left_to_kernel = module.on_demand && files.kernel_can_load(module.name);
            (!left_to_kernel).then_some(MissingModule { module, error })
        })
        .collect()
}

/// Adds to the error of a mount which modules are missing, and the hint for the first one.
pub fn explain(error: Error, missing: &[MissingModule]) -> Error {
    let missing: Vec<&MissingModule> = missing
        .iter()
        .filter(|missing| !missing.module.is_available())
        .collect();
    // A needed module is the cause for certain, so that the error names no others.
    let (first, is_certain) = match missing.iter().find(|missing| missing.module.is_needed()) {
        Some(first) => (*first, true),
        None => match missing.first() {
            Some(first) => (*first, false),
            None => return error,
        },
    };
    let lines = missing
        .iter()
        .filter(|missing| missing.module.is_needed() == is_certain)
        .map(|missing| missing.to_line());
    let error = error.log(lines.collect());
    match is_certain {
        true => error.hint(first.error.hint.clone()),
        // The mount may have failed before it needed the module.
        false => error.hint_also(&first.error.hint),
    }
}

impl MissingModule {
    /// Returns the log line of an error about this module.
    fn to_line(&self) -> String {
        let effect = match self.module.file_system {
            Some(file_system) => format!("the host's kernel has no file system {file_system}, and"),
            None => "the host's kernel may need more:".into(),
        };
        format!(
            "{effect} module {} for Linux {} cannot be loaded: {}",
            self.module.name,
            release(),
            self.error.cause
        )
    }
}

/// Returns for `spc doctor` how a mount gets a module.
///
/// # Errors
/// Fails if the module cannot be loaded; the error says why.
pub fn check(module: Module, host: &Host) -> crate::error::Result<String> {
    let name = module.name;
    if module.is_available() {
        return Ok(format!("{name} is loaded"));
    }
    let fail = |LoadError { cause, hint }| {
        Error::system(format!("no module {name} for Linux {}", release()))
            .because(cause)
            .hint(hint)
    };
    let files = files(host);
    if files
        .as_ref()
        .is_ok_and(|files| contains(&files.built_in, name))
    {
        return Ok(format!("{name} is built in"));
    }
    if let Some(cause) = loading_disabled() {
        let (cause, hint) = (cause.into(), format!("use a kernel that has {name}"));
        return Err(fail(LoadError { cause, hint }));
    }
    let files = files.map_err(|cause| {
        let hint = install_hint(name);
        fail(LoadError { cause, hint })
    })?;
    if !contains(&files.modules, name) {
        let cause = format!("it is not in {DIR}/{} of the host", release());
        let hint = install_hint(name);
        return Err(fail(LoadError { cause, hint }));
    }
    if module.on_demand && files.kernel_can_load(name) {
        return Ok(format!("{name} is loaded by the host when it is needed"));
    }
    let (program, root) = loader(name, host).map_err(fail)?;
    Ok(format!(
        "{name} is loaded when it is needed, by {} from {}{DIR}",
        program.display(),
        root.display()
    ))
}

/// Returns why the kernel loads no module at all; none if it does.
fn loading_disabled() -> Option<&'static str> {
    if !Path::new("/proc/modules").exists() {
        return Some("this kernel has no modules at all");
    }
    let disabled = fs::read_to_string("/proc/sys/kernel/modules_disabled");
    disabled
        .is_ok_and(|disabled| disabled.trim() == "1")
        .then_some("module loading is disabled until the next boot (kernel.modules_disabled)")
}

/// Module files that the host has for its kernel.
#[derive(Default)]
struct Files {
    /// Text of `modules.dep`.
    modules: String,
    /// Text of `modules.builtin`.
    built_in: String,
    /// Whether the host has the modprobe(8) that the kernel runs.
    has_modprobe: bool,
}

impl Files {
    /// Returns whether the kernel can load a module without spc.
    fn kernel_can_load(&self, name: &str) -> bool {
        self.has_modprobe && contains(&self.modules, name)
    }
}

/// Reads the module files of the host.
fn files(host: &Host) -> Result<Files, String> {
    let dir = Path::new(DIR).join(release());
    let dir_text = dir.display().to_string();
    let read = host.run("looking for kernel modules", move || {
        let modprobe = fs::read_to_string("/proc/sys/kernel/modprobe").unwrap_or_default();
        let modprobe = Path::new("/").join(modprobe.trim().trim_start_matches('/'));
        Ok(Files {
            modules: fs::read_to_string(dir.join("modules.dep"))?,
            built_in: fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default(),
            has_modprobe: modprobe.is_file(),
        })
    });
    let read: std::io::Result<Files> = read.map_err(|e| e.summary())?;
    read.map_err(|e| format!("{dir_text}/modules.dep of the host: {}", errno_text(e)))
}

/// Returns whether `modules.dep` or `modules.builtin` contains a module, as
/// `DIR/NAME.ko[.gz|.xz|.zst]`.
fn contains(table: &str, name: &str) -> bool {
    table.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        let module = file.split(".ko").next().unwrap_or_default();
        normalized(module) == normalized(name)
    })
}

/// Returns a module name with underscores. Hyphens mean the same in module names.
fn normalized(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns the release of the kernel, as uname(2) has it.
fn release() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

fn modprobe_hint(name: &str) -> String {
    format!("on the host, try: modprobe {name}")
}

fn install_hint(name: &str) -> String {
    format!(
        "install the modules of Linux {} on the host, or use a kernel that has {name}",
        release()
    )
}

/// Returns the container's modprobe(8), and a path at which the container sees the host's root.
fn loader(name: &str, host: &Host) -> Result<(PathBuf, PathBuf), LoadError> {
    let fail = |cause: &str, hint: String| LoadError {
        cause: cause.into(),
        hint,
    };
    if let Some(cause) = loading_disabled() {
        return Err(fail(cause, format!("use a kernel that has {name}")));
    }
    let dir = format!("{DIR}/{}", release());
    let host_roots: Vec<PathBuf> = host
        .proc_file("root")
        .into_iter()
        .chain(host.settings().hosts())
        .collect();
    let root = host_roots.iter().find(|root| root.join(&dir[1..]).is_dir());
    let Some(root) = root else {
        let cause = format!("there is no {dir} on the host");
        return Err(fail(&cause, install_hint(name)));
    };
    let is_permitted = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_MODULE));
    if !is_permitted {
        let or = "or start the container with --cap-add=SYS_MODULE or --privileged, so that spc can load it";
        let hint = format!("{}; {or}", modprobe_hint(name));
        return Err(fail("capability CAP_SYS_MODULE is missing", hint));
    }
    let Some(program) = confinement::find_program(&["modprobe"]) else {
        let hint = format!("{}; or install kmod in the image", modprobe_hint(name));
        return Err(fail("this container has no program modprobe", hint));
    };
    Ok((program, root.clone()))
}

/// Loads a module with the container's modprobe(8) from the host's files.
fn load(name: &str, host: &Host) -> Result<(), LoadError> {
    let (program, root) = loader(name, host)?;
    let mut command = Command::new(&program);
    command.arg("-d").arg(&root);
    // The host's modprobe.d(5) applies, so that a module which its administrator forbids stays out.
    for dir in ["etc", "run", "usr/lib", "lib"] {
        command.arg("-C").arg(root.join(dir).join("modprobe.d"));
    }
    command.arg(name);
    let shown = format!("{} -d {} {name}", program.display(), root.display());
    tracing::debug!(command = %shown, "loading a module");
    run(&mut command).map_err(|cause| LoadError {
        cause: format!("{shown}: {cause}"),
        hint: match files(host) {
            Ok(files) if contains(&files.modules, name) => format!(
                "see the host's kernel log (dmesg) and its modprobe.d; {}",
                modprobe_hint(name)
            ),
            _ => install_hint(name),
        },
    })
}

/// Runs a command with a timeout. On failure returns its exit status and its last line.
fn run(command: &mut Command) -> Result<(), String> {
    let command = sys::tie_to_parent(command.stdin(Stdio::null()));
    let finished = run::run(command, LIMIT).map_err(errno_text)?;
    match finished.status.success() {
        true => Ok(()),
        false => {
            let status = finished.status.to_string().replace(": ", " ");
            let line = finished.output.trim_end().lines().next_back();
            Err(format!("{status}: {}", line.unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_finds_modules_in_depmod_tables() {
        let table = "kernel/fs/nfs/nfs.ko: kernel/net/sunrpc/sunrpc.ko\n\
                     kernel/fs/nfs/nfsv4.ko.xz:\nkernel/drivers/scsi/iscsi-tcp.ko.zst:\n";
        for present in ["nfs", "nfsv4", "iscsi_tcp"] {
            assert!(contains(table, present), "{present}");
        }
        for absent in ["nf", "nfsv3", "sunrpc", ""] {
            assert!(!contains(table, absent), "{absent}");
        }
    }

    #[test]
    fn only_modules_of_this_kernel_are_available() {
        assert!(Module::new("tmpfs").is_available());
        assert!(!Module::new("tmp").is_available());
        assert!(!Module::driver("no-such-module").is_available());
    }

    #[test]
    fn error_names_needed_modules_before_auxiliary_ones() {
        let missing = |module: Module| {
            let (cause, hint) = (
                format!("no {}", module.name),
                format!("get {}", module.name),
            );
            let error = LoadError { cause, hint };
            MissingModule { module, error }
        };
        let error = || Error::mount("cannot mount").hint("first");
        let (auxiliary, driver) = (Module::auxiliary("no-aux"), Module::driver("no-driver"));
        let text =
            explain(error(), &[missing(auxiliary), missing(Module::new("none"))]).to_string();
        assert!(
            text.contains("no file system none, and module none for Linux"),
            "{text}"
        );
        assert!(text.ends_with("no none\nhint: get none"), "{text}");
        let text = explain(error(), &[missing(driver), missing(auxiliary)]).to_string();
        assert!(
            text.ends_with("no no-driver\nhint: get no-driver"),
            "{text}"
        );
        let text = explain(error(), &[missing(auxiliary)]).to_string();
        assert!(
            text.ends_with("no no-aux\nhint: first; get no-aux"),
            "{text}"
        );
        let text = explain(error(), &[missing(Module::new("tmpfs"))]).to_string();
        assert_eq!(text, "cannot mount\nhint: first");
    }

    #[test]
    fn failed_command_returns_its_status_and_last_line() {
        let failed = run(Command::new("sh").args(["-c", "echo first >&2; echo why >&2; exit 3"]));
        assert_eq!(failed.unwrap_err(), "exit status 3: why");
        assert!(run(&mut Command::new("true")).is_ok());
    }
}
