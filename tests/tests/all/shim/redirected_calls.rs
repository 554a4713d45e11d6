//! The shim in a real container, call by call: where the mount ends up, what the caller gets, and
//! that the caller is unchanged afterwards. `tests/programs/call.c` makes the calls and compares.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::{Base, Engine, Lab, Libc, Propagation};

use crate::support::{MINIMAL, Spc, with_lab};

/// musl's dynamic loader, which is also its C library.
const MUSL: &str = "/lib/ld-musl-x86_64.so.1";

/// Where the case's target must be mounted afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Host,
    Container,
    Nowhere,
}

use Place::{Container, Host, Nowhere};

/// A case: arguments of `call`, where `@` is the case's directory; expected output; where `@/data`
/// must be mounted.
type Case = (&'static str, &'static str, Place);

/// Cases with `SPC_TYPES=tmpfs`.
const BY_TYPE: &[Case] = &[
    ("mount src @/data tmpfs 0 NULL", "mount 0 0", Host),
    ("-s mount src @/data tmpfs 0 NULL", "mount 0 0", Host),
    ("-c @ mount src data tmpfs 0 NULL", "mount 0 0", Host),
    ("-c @/data mount src . tmpfs 0 NULL", "mount 0 0", Host),
    (
        "-c @/data mount src ../x/../data/ tmpfs 0 NULL",
        "mount 0 0",
        Host,
    ),
    (
        "open @/data , mount src /proc/self/fd/3 tmpfs 0 NULL",
        "open 3 0;mount 0 0",
        Host,
    ),
    (
        "open @ , mount src /dev/fd/3/data tmpfs 0 NULL",
        "open 3 0;mount 0 0",
        Host,
    ),
    ("mount src @/link tmpfs 0 NULL", "mount 0 0", Host),
    (
        "-e mount src @/data fuse.none 0 NULL",
        "mount -1 22",
        Nowhere,
    ),
    ("-t 8 mount src @/data tmpfs 0 NULL", "mount 0 0", Host),
    (
        "-t 8 -m 2048 mount src @/data tmpfs 0 NULL",
        "mount 0 0",
        Host,
    ),
    (
        "mount src @/data tmpfs 0 NULL , umount @/data",
        "mount 0 0;umount 0 0",
        Nowhere,
    ),
    (
        "mount src @/data tmpfs 0 NULL , umount2 @/data 2",
        "mount 0 0;umount2 0 0",
        Nowhere,
    ),
    (
        "-s mount src @/data tmpfs 0 NULL , umount2 @/data 0",
        "mount 0 0;umount2 0 0",
        Nowhere,
    ),
    ("umount @/data", "umount -1 22", Nowhere),
    ("umount @/missing", "umount -1 2", Nowhere),
    ("mount src @/data ramfs 0 NULL", "mount 0 0", Container),
    (
        "mount src @/data ramfs 0 NULL , umount @/data",
        "mount 0 0;umount 0 0",
        Nowhere,
    ),
    (
        "mount src @/data ramfs 0 NULL , mount NULL @/data NULL 0x40000 NULL",
        "mount 0 0;mount 0 0",
        Container,
    ),
    ("mount NULL @/data tmpfs 0 NULL", "mount 0 0", Host),
    ("mount src NULL tmpfs 0 NULL", "mount -1 14", Nowhere),
    ("mount NULL NULL NULL 0 NULL", "mount -1 14", Nowhere),
    ("mount src @/data BAD 0 NULL", "mount -1 14", Nowhere),
    (
        "mount src BAD tmpfs 0 NULL , umount BAD",
        "mount -1 14;umount -1 14",
        Nowhere,
    ),
    ("mount src @/data tmpfs 0 bogus=1", "mount -1 22", Nowhere),
    ("mount src @/missing tmpfs 0 NULL", "mount -1 2", Nowhere),
    ("mount src @/data nosuchfs 0 NULL", "mount -1 19", Nowhere),
    ("new tmpfs src @/data", "new 0 0", Host),
    ("-s new tmpfs src @/data", "new 0 0", Host),
    ("new ramfs src @/data", "new 0 0", Container),
    (
        "new tmpfs src @/data , attr ~ 1 0 0",
        "new 0 0;attr 0 0",
        Host,
    ),
    ("mount @/src @/data NULL 4096 NULL", "mount 0 0", Container),
    ("bind @/src @/data", "bind 0 0", Container),
];

/// Cases with `SPC_TARGETS` naming `@/data`, and `@/x` as `@/data`.
const BY_TARGET: &[Case] = &[
    ("mount src @/data ramfs 0 NULL", "mount 0 0", Host),
    ("mount src @/x ramfs 0 NULL", "mount 0 0", Host),
    (
        "mount src @/x ramfs 0 NULL , umount @/x",
        "mount 0 0;umount 0 0",
        Nowhere,
    ),
    ("mount @/src @/data NULL 4096 NULL", "mount 0 0", Host),
    ("bind @/src @/data", "bind 0 0", Host),
    (
        "mount src @/data ramfs 0 NULL , mount NULL @/data NULL 0x21 NULL",
        "mount 0 0;mount 0 0",
        Host,
    ),
    (
        "mount src @/data ramfs 0 NULL , tree @/data 0 , attr ~ 1 0 0",
        "mount 0 0;tree 0 0;attr 0 0",
        Host,
    ),
];

/// Cases with all of `SPC_OPERATIONS`, and `SPC_TYPES=tmpfs`.
const BY_OPERATION: &[Case] = &[
    ("mount @/src @/data NULL 4096 NULL", "mount 0 0", Host),
    ("-c @ mount src data NULL 4096 NULL", "mount 0 0", Host),
    ("bind @/src @/data", "bind 0 0", Host),
    (
        "mount src @/x tmpfs 0 NULL , mount @/x @/data NULL 8192 NULL",
        "mount 0 0;mount 0 0",
        Host,
    ),
    (
        "mount src @/x tmpfs 0 NULL , move @/x @/data",
        "mount 0 0;move 0 0",
        Host,
    ),
    (
        "mount src @/data tmpfs 0 NULL , mount NULL @/data NULL 0x21 NULL",
        "mount 0 0;mount 0 0",
        Host,
    ),
    (
        "mount src @/data tmpfs 0 NULL , attr @/data 1 0 0",
        "mount 0 0;attr 0 0",
        Host,
    ),
];

/// A container whose programs make the calls.
pub struct Stage<'lab> {
    /// The host and its container.
    pub spc: Spc<'lab>,
    first: i32,
}

impl<'lab> Stage<'lab> {
    /// Starts a container with these arguments, and copies a file of the machine to its `/call`.
    pub fn set(lab: &'lab Lab, arguments: &[&str], program: &Path) -> Result<Self> {
        let spc = Spc::start(
            lab,
            // A mount on a shared parent cannot be moved.
            Propagation::Private,
            Engine::Docker,
            Base::Trixie,
            arguments,
        )?;
        let stage = Self {
            first: spc.first()?,
            spc,
        };
        stage.put(program, "/call")?;
        Ok(stage)
    }

    /// Copies a file of the machine into the container.
    pub fn put(&self, file: &Path, path: &str) -> Result<()> {
        self.spc.host.copy_in(file, "/tmp/put")?;
        self.spc
            .host
            .run(&["docker", "cp", "/tmp/put", &format!("spc:{path}")])?
            .ok()?;
        Ok(())
    }

    /// Creates the directories of a case in the container and on the host.
    pub fn directories(&self, top: &str) -> Result<()> {
        let make = format!("mkdir -p {top}/data {top}/src {top}/x && ln -sn data {top}/link");
        self.spc.host.sh(&make)?.ok()?;
        self.spc.sh(&make)?.ok()?;
        Ok(())
    }

    /// Number of mounts on a path, on the host and in the container.
    pub fn count(&self, path: &str) -> Result<(usize, usize)> {
        let field = format!(" {path} ");
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.first))?;
        let on_host = self.spc.on(path)?.len();
        Ok((
            on_host,
            table.lines().filter(|line| line.contains(&field)).count(),
        ))
    }

    /// Runs cases in a container, with these variables, where `@` is the case's directory.
    fn play(&self, group: &str, variables: &[&str], cases: &[Case]) -> Result<()> {
        for (number, (words, prints, place)) in cases.iter().enumerate() {
            let top = format!("/mnt/{group}{number}");
            self.directories(&top)?;
            let mut argv = vec!["docker".to_owned(), "exec".into()];
            for variable in variables {
                argv.extend(["-e".into(), variable.replace('@', &top)]);
            }
            argv.extend(["spc".into(), "/call".into()]);
            argv.extend(words.split(' ').map(|word| match word {
                "~" => String::new(),
                word => word.replace('@', &top),
            }));
            let output = self.spc.host.run(&argv)?;
            let printed = output.text().trim_end().replace('\n', ";");
            let case = format!("{group}{number}: {variables:?} call {words}");
            ensure!(
                printed == format!("{prints};state same"),
                "{case}\n  printed {printed}\n  {}",
                output.error_text()
            );
            let expected = match place {
                Host => (1, 0),
                Container => (0, 1),
                Nowhere => (0, 0),
            };
            let count = self.count(&format!("{top}/data"))?;
            ensure!(
                count == expected,
                "{case}\n  on the host and in the container {count:?}, not {expected:?}"
            );
        }
        Ok(())
    }
}

fn all_cases(libc: Libc) {
    with_lab(|lab| {
        let program = lab::program("call", libc, &["-pthread"]).context("cannot compile")?;
        let stage = Stage::set(lab, &MINIMAL, &program)?;
        if libc == Libc::Musl {
            let loader = Path::new(MUSL);
            stage.put(loader, MUSL)?;
        }
        // musl reads no ld.so.preload.
        let preload = "LD_PRELOAD=/usr/lib/spc/libspc_shim.so";
        stage.play("type", &[preload, "SPC_TYPES=tmpfs"], BY_TYPE)?;
        stage.play(
            "target",
            &[preload, "SPC_TARGETS=@/data @/x=@/data"],
            BY_TARGET,
        )?;
        stage.play(
            "operation",
            &[
                preload,
                "SPC_TYPES=tmpfs",
                "SPC_OPERATIONS=bind move remount propagation",
            ],
            BY_OPERATION,
        )
    });
}

#[test]
fn every_call_of_a_glibc_program_goes_where_policy_says() {
    all_cases(Libc::Gnu);
}

#[test]
fn every_call_of_a_musl_program_goes_where_policy_says() {
    all_cases(Libc::Musl);
}
