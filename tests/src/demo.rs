//! `lab demo`: mounts a volume on a disposable host with real servers, and shows each command as a
//! user would type it.

use anyhow::{Context, Result, ensure};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use crate::engine::Engine;
use crate::gluster::Cluster;
use crate::host::{Host, HostOptions};
use crate::image::{Base, image};
use crate::outer::Lab;

const TARGET: &str = "/mnt/data";
const TEXT: &str = "hello from the host";

/// Makes a lab with three servers and shows the demo on the terminal.
pub fn run() -> Result<()> {
    let begun = Instant::now();
    let mut out = io::stdout();
    writeln!(
        out,
        "A GlusterFS volume on a host that has no GlusterFS client, by one container and one command.\n\n\
         All of it is real, in namespaces of this machine, and ends with this command. What is built for it is\n\
         kept, so the next time takes seconds. First come three servers, and the container's image."
    )?;
    let lab = Lab::start()?;
    let cluster = lab.gluster()?;
    cluster.create_volume("vol")?;
    demo(&lab, &cluster, &mut out)?;
    writeln!(
        out,
        "\nThat was all, in {:.0} s.",
        begun.elapsed().as_secs_f32()
    )?;
    Ok(())
}

/// Shows a mount of the cluster's volume `vol` on a new host, and proves each step.
///
/// # Errors
/// Fails if a command fails or has an unexpected result.
pub fn demo(lab: &Lab, cluster: &Cluster<'_>, out: &mut dyn Write) -> Result<()> {
    let image = image(Base::Trixie)?;
    let host = lab.host(HostOptions::default())?;
    host.start(Engine::Docker, Some(&image))?;
    host.run(&["mkdir", TARGET])?.ok()?;
    let server = cluster.nodes().first().context("no servers")?;
    let source = format!("{}:/vol", server.host().address());
    let mut show = Show { out };

    show.step("The host has busybox and docker, and cannot mount the volume.")?;
    let mount = format!("mount -t glusterfs {source} {TARGET}");
    let output = show.typed("host", &host, &mount)?;
    ensure!(!output.success(), "it could: {output}");

    show.step("It starts the container.")?;
    let start = "docker run -d --name spc --privileged --net=host --pid=host -v /:/host localhost/spc:latest";
    show.works("host", &host, start)?;
    show.works("host", &host, "docker exec spc spc doctor")?;

    show.step("One command, and the volume is mounted: on the host, not in the container.")?;
    let begun = Instant::now();
    show.works("host", &host, &format!("docker exec spc spc {mount}"))?;
    writeln!(show.out, "(in {:.2} s)", begun.elapsed().as_secs_f32())?;
    let line = show.works("host", &host, &format!("grep {TARGET} /proc/self/mounts"))?;
    ensure!(line.contains("fuse.glusterfs"), "not on the host: {line}");
    let count = "docker exec spc grep -c fuse.glusterfs /proc/self/mounts";
    let output = show.typed("host", &host, count)?;
    ensure!(output.text() == "0", "in the container: {output}");

    show.step("The host writes a file, and each server has a copy of it on its brick.")?;
    let write = format!("echo {TEXT} >{TARGET}/file");
    show.works("host", &host, &write)?;
    for (number, node) in cluster.nodes().iter().enumerate() {
        let name = format!("server {}", number + 1);
        let read = format!("cat {}/file", node.brick("vol").display());
        let copy = show.works(&name, node.host(), &read)?;
        ensure!(copy == TEXT, "the copy of {name} is another: {copy}");
    }

    show.step("The container knows what it mounted, and how it is.")?;
    let list = show.works("host", &host, "docker exec spc spc ls")?;
    ensure!(list.contains(TARGET), "the mount is not listed");

    show.step("It takes the mount away, and nothing is left of it.")?;
    let umount = format!("docker exec spc spc umount {TARGET}");
    show.works("host", &host, &umount)?;
    show.works("host", &host, &format!("ls -A {TARGET}"))?;
    let table = host.mountinfo()?;
    let left = table.iter().find(|mount| mount.target == Path::new(TARGET));
    ensure!(left.is_none(), "the mount is still there: {left:?}");
    let list = show.works("host", &host, "docker exec spc spc ls")?;
    ensure!(!list.contains(TARGET), "the mount is still listed");
    Ok(())
}

struct Show<'a> {
    out: &'a mut dyn Write,
}

impl Show<'_> {
    fn step(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "\n{text}")?;
        Ok(self.out.flush()?)
    }

    /// Runs a command line on a host, and shows command and output as a terminal would.
    fn typed(&mut self, name: &str, host: &Host<'_>, line: &str) -> Result<crate::Output> {
        let (bold, plain) = if io::stdout().is_terminal() {
            ("\x1b[1m", "\x1b[0m")
        } else {
            ("", "")
        };
        writeln!(self.out, "{bold}{name}# {line}{plain}")?;
        self.out.flush()?;
        let output = host.sh(line)?;
        for text in [output.text(), output.error_text()] {
            if !text.is_empty() {
                writeln!(self.out, "{text}")?;
            }
        }
        Ok(output)
    }

    fn works(&mut self, name: &str, host: &Host<'_>, line: &str) -> Result<String> {
        Ok(self.typed(name, host, line)?.ok()?.text())
    }
}
