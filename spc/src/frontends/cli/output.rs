//! Output of commands on stdout, as text and as JSON.

use std::io::{ErrorKind, Write};

use serde::Serialize;
use serde_json::json;

use crate::block::blank;
use crate::doctor::check::Check;
use crate::error::{Error, Result, show};
use crate::helper::program::Linkage;
use crate::helper::tool::STDIN;
use crate::host::{Host, hostname};
use crate::kinds::block::model::{Device, Step};
use crate::kinds::model::MountMethod;
use crate::mount::Plan;
use crate::mount::failover::ServerChoice;
use crate::mount::pipeline::MountOutcome;
use crate::options::secrets::MASK;

/// Writes a text to stdout. A closed pipe is no error.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::system("cannot write to stdout").because(error))
        }
        _ => Ok(()),
    }
}

/// Writes a value to stdout as indented JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::system("cannot write JSON").because(e))?;
    print(&format!("{text}\n"))
}

/// Prints the position in bytes of the first byte on standard input that is not zero, for
/// `spc first-data`. Prints nothing if all bytes are zero.
///
/// # Errors
/// The device cannot be read, or stdout cannot be written.
pub fn first_data() -> Result<()> {
    let fail = |e| Error::system("cannot read the device").because(e);
    let device = std::fs::File::open(STDIN).map_err(fail)?;
    match blank::first_data(&device).map_err(fail)? {
        Some(at) => print(&format!("{at}\n")),
        None => Ok(()),
    }
}

/// Prints the result of `spc mount -v`.
///
/// # Errors
/// Stdout cannot be written.
pub fn mounted(done: &MountOutcome) -> Result<()> {
    let (record, result) = match done {
        MountOutcome::Mounted(record) => (record, "mounted"),
        MountOutcome::AlreadyMounted(record) => (record, "already mounted"),
    };
    let target = show(record.target.as_ref());
    print(&format!(
        "{target}: {result}: {} ({}, {}, mount id {})\n",
        record.source, record.fs_type, record.route, record.mount_id
    ))
}

/// Prints the result of `spc doctor`.
///
/// # Errors
/// Stdout cannot be written.
pub fn checks(checks: &[Check], json: bool) -> Result<()> {
    if json {
        return print_json(&checks);
    }
    let mut text = String::new();
    let names = checks.iter().map(|check| check.name.chars().count());
    let width = names.max().unwrap_or(0).max(13);
    for check in checks {
        let mark = if check.ok { "ok  " } else { "FAIL" };
        text.push_str(&format!("{mark} {:width$} {}\n", check.name, check.found));
        if let Some(hint) = &check.hint {
            text.push_str(&format!("     hint: {hint}\n"));
        }
    }
    print(&text)
}

/// Returns label and text of each line about a device of the plan.
///
/// Of settings only the keys are shown, since a value may be a secret.
fn device_lines(device: &Device, plan: &Plan, host: &Host) -> Result<Vec<(&'static str, String)>> {
    let mut lines = vec![("device", device.name.clone())];
    if let Some(kind) = &device.host_name {
        let option = plan.request.options.value("initiator");
        let (name, from) = hostname::resolve(host, kind, option)?;
        lines.push(("known as", format!("{name} ({from})")));
    }
    for path in &device.paths {
        lines.push(("path", path.name.clone()));
        for step in &path.steps {
            lines.push(match step {
                Step::Run(command) => (
                    "  run",
                    format!("{} {}", command.program, command.args.join(" ")),
                ),
                Step::Set { settings, .. } => {
                    let keys: Vec<_> = settings.iter().map(|(key, _)| *key).collect();
                    ("  set", keys.join(" "))
                }
            });
        }
    }
    Ok(lines)
}

/// Returns lines about the servers, in the order in which they would be probed.
fn server_lines(choice: &ServerChoice) -> Vec<String> {
    let (order, port) = (choice.order.name(), choice.port);
    let mut lines = vec![format!(
        "order      {order}; the first server that answers at port {port} is used\n"
    )];
    for server in &choice.servers {
        let note = match server.failed_ago {
            Some(dead) => format!(", which did not answer {} s ago", dead.as_secs()),
            None if server.peer.is_none() => ", whose address is not known".into(),
            None => String::new(),
        };
        lines.push(format!("server     {}{note}\n", server.display_name()));
    }
    lines
}

/// Prints the plan of a mount, for `spc explain`.
///
/// `choice` has the servers, if the source names several.
///
/// # Errors
/// The host's name for a device cannot be read, or stdout cannot be written.
pub fn plan(plan: &Plan, choice: Option<&ServerChoice>, host: &Host, json: bool) -> Result<()> {
    let program = plan.program.as_ref().map(|p| p.path.display().to_string());
    let linkage = plan.program.as_ref().map(|p| match &p.linkage {
        Linkage::Dynamic(interpreter) => format!("dynamic, {}", interpreter.display()),
        Linkage::Static => "static".into(),
    });
    let argv = plan.argv("PLACEHOLDER", |_| "N".into());
    let secrets: Vec<_> = plan.request.secrets.origins().collect();
    let method = match plan.kind.method {
        MountMethod::Helper(_) => "helper",
        MountMethod::Kernel => "kernel",
        MountMethod::Bind { .. } => "bind",
    };
    let missing = plan.missing.as_deref().map(show);
    if json {
        return print_json(&json!({
            "type": plan.request.fs_type, "source": plan.request.source, "target": show(&plan.target),
            "to_be_made": missing, "made_by": method, "program": program, "linkage": linkage, "argv": argv,
            "options": plan.request.options.to_string(),
            "secrets": secrets.iter().map(|(key, from)| json!({"key": key, "value": MASK, "from": from})).collect::<Vec<_>>(),
            "servers": choice.iter().flat_map(|choice| &choice.servers).map(|server| json!({
                "name": server.name, "address": server.address, "asked_at": server.peer,
                "dead_for_seconds": server.failed_ago.map(|dead| dead.as_secs()),
            })).collect::<Vec<_>>(),
            "order": choice.map(|choice| choice.order.name()),
            "device": plan.kind.device.as_ref().map(|device| &device.name),
            "route": plan.route, "shows_as": plan.kind.expected_types,
            "because": plan.kind.fallback_reason, "namespace": host.namespace(), "timeout_seconds": plan.request.limit().as_secs(),
        }));
    }
    let by = match (&plan.request.inferred, plan.request.type_hint()) {
        (_, Some(doubt)) => format!(" ({doubt})"),
        (Some(_), None) => " (by the form of the source)".into(),
        (None, None) => String::new(),
    };
    let mut text = format!(
        "type       {}{by}\nsource     {}\ntarget     {} on the host\n",
        plan.request.fs_type,
        plan.request.source,
        show(&plan.target)
    );
    if let Some(missing) = missing {
        text.push_str(&format!("to create  {missing}\n"));
    }
    if let Some(because) = &plan.kind.fallback_reason {
        text.push_str(&format!("because    {because}\n"));
    }
    for line in choice.into_iter().flat_map(server_lines) {
        text.push_str(&line);
    }
    match (&program, &linkage) {
        (Some(program), Some(linkage)) => text.push_str(&format!(
            "helper     {program} ({linkage})\nargv       {}\n",
            argv.join(" ")
        )),
        _ => text.push_str(&format!(
            "made by    the {method}, in the host's namespace\n"
        )),
    }
    let device = match &plan.kind.device {
        Some(device) => Some(device_lines(device, plan, host)?),
        None => None,
    };
    for (label, line) in device.iter().flatten() {
        text.push_str(&format!("{label:10} {line}\n"));
    }
    for (key, from) in &secrets {
        text.push_str(&format!("secret     {key}={MASK} (from {from})\n"));
    }
    text.push_str(&format!(
        "route      {}\nproof      a new mount of {} on the target\nnamespace  {}\nlimit      {} s\n",
        plan.route,
        if plan.kind.expected_types.is_empty() {
            "any type".into()
        } else {
            format!("type {}", plan.kind.expected_types.join(" or "))
        },
        host.namespace().display(),
        plan.request.limit().as_secs(),
    ));
    print(&text)
}
