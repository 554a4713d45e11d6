//! The lab's faulty servers: each behaves exactly as configured.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use lab::{Conduct, Host, HostOptions};

use crate::support::with_lab;

/// Sends a line to a port, with a limit of 2 s. Returns the reply, or how the connection failed.
fn ask(host: &Host<'_>, address: &str, port: u16) -> Result<String> {
    let ask =
        format!("echo hello | busybox timeout 2 busybox nc {address} {port} 2>&1; echo \" $?\"");
    let text = host.sh(&ask)?.text();
    let words: Vec<_> = text.split_whitespace().collect();
    Ok(words.join(" "))
}

#[test]
fn a_faulty_server_behaves_as_configured() {
    with_lab(|lab| {
        let (real, client) = (
            lab.host(HostOptions::default())?,
            lab.host(HostOptions::default())?,
        );
        // `Says` sends ten bytes to each client that writes.
        let says = "read line; echo 123456789";
        let _service = real.spawn(&["busybox", "nc", "-ll", "-p", "7", "-e", "sh", "-c", says])?;
        real.sh("until busybox netstat -lnt | busybox grep -q ':7 '; do sleep 0.1; done")?
            .ok()?;
        let behind = SocketAddrV4::new(real.address(), 7);
        let faulty = lab.faulty()?;
        let server = faulty.server(7, Conduct::Serves(behind))?;
        let beside = faulty.server(7, Conduct::Serves(behind))?;
        for (conduct, says) in [
            (Conduct::Serves(behind), "123456789 0"),
            (Conduct::Refuses, "refused 1"),
            (Conduct::Drops, "143"),
            (Conduct::Silent, "143"),
            (Conduct::Absent, "143"),
            (Conduct::Serves(behind), "123456789 0"),
        ] {
            let before = server.asked()?;
            server.turn(conduct)?;
            let reply = ask(&client, &server.address().to_string(), 7)?;
            ensure!(reply.ends_with(says), "{conduct:?}: {reply}");
            let connections = server.asked()? - before;
            let expected = match conduct {
                // TCP retransmits, after a second at first.
                Conduct::Drops => 1..=3,
                Conduct::Absent => 0..=0,
                _ => 1..=1,
            };
            ensure!(
                expected.contains(&connections),
                "{conduct:?}: {connections} connections"
            );
            let other = ask(&client, &beside.address().to_string(), 7)?;
            ensure!(other == "123456789 0", "{conduct:?}: {other}");
        }
        // Several clients may get the bytes before the server dies.
        server.turn(Conduct::Dies(behind, 14))?;
        for says in ["123456789 0", "1234 0", "refused 1"] {
            let reply = ask(&client, &server.address().to_string(), 7)?;
            ensure!(reply.ends_with(says), "{reply}");
        }
        server.turn(Conduct::Hangs(behind, 14))?;
        for says in ["123456789 0", "1234 143", "143"] {
            let reply = ask(&client, &server.address().to_string(), 7)?;
            ensure!(reply.ends_with(says), "{reply}");
        }
        Ok(())
    });
}
