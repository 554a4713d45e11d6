//! `lab measure`: what a preload library and a crossing cost, for docs/preload.md, and what the programs that
//! `spc install` puts on a host cost, for docs/install.md. Ratios within one run, sides interleaved.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::machine::run;
use crate::programs::{Libc, library, program};
use crate::{Base, Engine, Host, HostOptions, Lab, image};

/// Runs of each side.
const RUNS: usize = 400;

/// Mounts of each way.
const CROSSINGS: usize = 400;

/// Mounts of each way by programs.
const MOUNTS: usize = 40;

/// Something that is preloaded into a small program.
struct Side {
    name: &'static str,
    library: Option<PathBuf>,
    times: Vec<Duration>,
}

/// Measures and prints a table in Markdown.
pub fn measure() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("spc-measure-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = table(&dir);
    std::fs::remove_dir_all(&dir)?;
    result?;
    crossings()
}

/// The shim in its container, beside a bare child and the call in place, in callers of different sizes.
fn crossings() -> Result<()> {
    let lab = Lab::start()?;
    let host = lab.host(HostOptions::default())?;
    host.start(Engine::Docker, Some(&image(Base::Trixie)?))?;
    let start = "docker run -d --name spc --privileged --net=host --pid=host localhost/spc:latest";
    host.sh(&format!("mkdir /mnt/cost && {start}"))?.ok()?;
    host.copy_in(
        program("crossing", Libc::Gnu, &["-pthread"])?,
        "/tmp/crossing",
    )?;
    host.sh("docker cp /tmp/crossing spc:/crossing && docker exec spc mkdir /mnt/cost")?
        .ok()?;
    println!(
        "\n| one mount(2) of a tmpfs, {CROSSINGS} times | in place | bare child | shim | shim / bare | quartiles of the shim |"
    );
    println!("|---|---|---|---|---|---|");
    for (mib, threads) in [(0, 1), (1024, 1), (2048, 1), (0, 8)] {
        let script = format!(
            "docker exec -e SPC_TYPES=tmpfs spc /crossing /proc/1/ns/mnt /mnt/cost {CROSSINGS} {mib} {threads}"
        );
        let text = host.sh(&script)?.ok()?.text();
        let mut rows = Vec::new();
        for line in text.lines() {
            let numbers: Vec<f64> = line
                .split(' ')
                .skip(1)
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            ensure!(numbers.len() == 3, "{line}");
            rows.push(numbers);
        }
        let [place, bare, shim] = &rows[..] else {
            anyhow::bail!("{text}")
        };
        println!(
            "| caller of {mib} MiB, threads: {threads} | {:.0} µs | {:.0} µs | {:.0} µs | {:.2} | {:.0} to {:.0} µs |",
            place[0],
            bare[0],
            shim[0],
            shim[0] / bare[0],
            shim[1],
            shim[2]
        );
    }
    installed(&host)
}

/// One mount(8) of a tmpfs by the installed program, beside other ways to the same mount.
fn installed(host: &Host<'_>) -> Result<()> {
    host.sh("ln -sf ../libexec/util-linux/mount ../libexec/util-linux/umount /usr/bin/ && docker exec spc spc install && docker exec spc mkdir /mnt/way && mkdir /mnt/way && docker exec spc sh -c 'echo target /mnt/way >>/etc/spc/shim.conf'")?
        .ok()?;
    let pid = host
        .sh("docker inspect --format '{{.State.Pid}}' spc")?
        .ok()?
        .text()
        .trim()
        .to_owned();
    let enter =
        format!("/usr/bin/nsenter --mount=/proc/{pid}/ns/mnt /usr/bin/mount -t tmpfs way /mnt/way");
    let ways = [
        "/usr/bin/mount -t tmpfs way /mnt/way",
        &enter,
        "/usr/bin/mount -t spc.tmpfs way /mnt/way",
        "docker exec spc spc mount -t tmpfs way /mnt/way",
    ];
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..MOUNTS {
        for (way, times) in ways.iter().zip(&mut times) {
            times.push(host.sh(way)?.ok()?.elapsed);
            let off = host.sh("/usr/bin/umount /mnt/way")?;
            off.ok().with_context(|| way.to_string())?;
        }
    }
    println!("\n| {MOUNTS} mounts of a tmpfs on a host | median | quartiles |\n|---|---|---|");
    for (way, times) in ways.iter().zip(&mut times) {
        times.sort_unstable();
        let at = |part: usize| times[MOUNTS * part / 4].as_secs_f64() * 1e3;
        let way = way.replace(&pid, "PID");
        println!(
            "| `{way}` | {:.1} ms | {:.1} to {:.1} ms |",
            at(2),
            at(1),
            at(3)
        );
    }
    Ok(())
}

fn table(dir: &Path) -> Result<()> {
    let empty = dir.join("empty.so");
    std::fs::write(dir.join("empty.c"), "int spc_empty;\n")?;
    let source = dir.join("empty.c");
    run(
        "gcc",
        &[
            "-shared".as_ref(),
            "-fPIC".as_ref(),
            "-s".as_ref(),
            "-o".as_ref(),
            empty.as_os_str(),
            source.as_os_str(),
        ],
    )?;
    let mut sides = [
        Side {
            name: "nothing",
            library: None,
            times: Vec::new(),
        },
        Side {
            name: "an empty C library",
            library: Some(empty),
            times: Vec::new(),
        },
        Side {
            name: "the shim",
            library: Some(library("spc-shim", "libspc_shim.so")?),
            times: Vec::new(),
        },
        Side {
            name: "a library on redhook and std",
            library: Some(library("spc-fault", "libspc_fault.so")?),
            times: Vec::new(),
        },
    ];
    for _ in 0..RUNS {
        for side in &mut sides {
            side.times.push(exec(side.library.as_deref())?);
        }
    }
    let median = |side: &mut Side| {
        side.times.sort_unstable();
        side.times[RUNS / 2].as_secs_f64() * 1e6
    };
    let cores = std::thread::available_parallelism()?;
    let kernel = rustix::system::uname();
    println!(
        "{RUNS} runs of each, taken in turn; Linux {}, {cores} cores\n",
        kernel.release().to_string_lossy()
    );
    let base = median(&mut sides[0]);
    println!(
        "| preloaded | size in bytes | needs | exec of /bin/true, median | against nothing | quartiles |"
    );
    println!("|---|---|---|---|---|---|");
    for side in &mut sides {
        let time = median(side);
        let (size, needs) = match &side.library {
            Some(library) => (
                std::fs::metadata(library)?.len().to_string(),
                needed(library)?,
            ),
            None => ("-".into(), "-".into()),
        };
        let quartile = |part: usize| side.times[RUNS * part / 4].as_secs_f64() * 1e6;
        println!(
            "| {} | {size} | {needs} | {time:.0} µs | {:.2} | {:.0} to {:.0} µs |",
            side.name,
            time / base,
            quartile(1),
            quartile(3)
        );
    }
    Ok(())
}

fn exec(library: Option<&Path>) -> Result<Duration> {
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::null());
    if let Some(library) = library {
        command.env("LD_PRELOAD", library);
    }
    let started = Instant::now();
    let status = command.status().context("cannot run /bin/true")?;
    let time = started.elapsed();
    ensure!(status.success(), "/bin/true: {status}");
    Ok(time)
}

fn needed(library: &Path) -> Result<String> {
    let output = Command::new("readelf")
        .arg("-d")
        .arg(library)
        .output()
        .context("readelf is missing: apt-get install binutils")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split_once('[')?.1.strip_suffix(']'))
        .collect();
    Ok(if names.is_empty() {
        "nothing".into()
    } else {
        names.join(", ")
    })
}
