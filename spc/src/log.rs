//! Log on standard error. Each line carries the id of its request, so that all lines about one
//! request can be found.

use std::fmt::{self, Write as _};
use std::process::Command;
use std::sync::OnceLock;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::error::Error;

/// Environment variable that passes the request id from the frontend to the helper and its daemon.
pub const VARIABLE: &str = "SPC_REQUEST";

/// Format of a log line, by the reader of standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Lines for the caller of a command: no time, several lines per event.
    Terminal,
    /// Lines of a log file: the time and one line per event.
    LogFile,
    /// Lines for the journal, which adds the time: a priority and one line per event
    /// (sd-daemon(3)).
    Journal,
}

/// Request id of this process. Empty if the process works for no single request.
static REQUEST: OnceLock<Option<String>> = OnceLock::new();

/// Kind of the process that logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    /// Command for one request: the one that the environment names, or a new one.
    Command,
    /// Command for one request, whose output goes to the log of the service that started it.
    ServiceChild,
    /// Service, which works for no single request.
    Service,
}

/// Starts the log.
pub fn init(level: Level, mode: LogMode) {
    let request = match mode {
        LogMode::Service => REQUEST.get_or_init(|| None).clone(),
        LogMode::Command | LogMode::ServiceChild => Some(init_request().to_owned()),
    };
    let format = match (is_journal(), mode) {
        (true, _) => Format::Journal,
        (false, LogMode::Service | LogMode::ServiceChild) => Format::LogFile,
        (false, LogMode::Command) => Format::Terminal,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .event_format(EventWriter { format, request })
        .init();
}

/// Sets the request id of this process to the one in the environment, or to a new one, and returns
/// it.
pub fn init_request() -> &'static str {
    let id = REQUEST.get_or_init(|| Some(id_from_env().unwrap_or_else(new_id)));
    id.as_deref().unwrap_or_default()
}

/// Adds the request id to an error that is shown in another place than the log.
pub fn with_request(error: Error) -> Error {
    match request() {
        Some(id) => error.log(vec![format!("request={id}")]),
        None => error,
    }
}

/// Returns the request id of this process.
pub fn request() -> Option<&'static str> {
    REQUEST.get()?.as_deref()
}

/// Passes the request id to a program in its environment.
pub fn pass_request(command: &mut Command) {
    match REQUEST.get() {
        Some(Some(id)) => command.env(VARIABLE, id),
        Some(None) => command.env_remove(VARIABLE),
        // No id was set here, so the program inherits the variable unchanged.
        None => command,
    };
}

/// Prints an error on standard error. For the journal each line begins with its priority.
pub fn error(text: &str) {
    let mut lines = String::new();
    for line in text.lines() {
        let prefix = if is_journal() { "<3>" } else { "" };
        // A write to a string does not fail.
        let _ = writeln!(lines, "{prefix}{line}");
    }
    eprint!("{lines}");
}

/// Returns the request id in the environment of this process.
fn id_from_env() -> Option<String> {
    valid_id(&std::env::var(VARIABLE).ok()?)
}

/// Returns the id if it is safe in a log line: 1 to 64 letters, digits, dots, underscores or
/// hyphens.
pub fn valid_id(id: &str) -> Option<String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let valid = (1..=64).contains(&id.len()) && id.chars().all(is_allowed);
    valid.then(|| id.to_owned())
}

/// Returns 32 random bits in hex, or bits of the clock if getrandom(2) fails.
fn new_id() -> String {
    let mut bytes = [0_u8; 4];
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        bytes = now.unwrap_or_default().subsec_nanos().to_ne_bytes();
    }
    format!("{:08x}", u32::from_ne_bytes(bytes))
}

/// Returns whether standard error is the stream that systemd connected to its journal
/// (`$JOURNAL_STREAM`, systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(rustix::stdio::stderr())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writer of events.
struct EventWriter {
    format: Format,
    request: Option<String>,
}

/// Returns whether an event is logged: all of spc's own, and failures of the libraries. Those
/// report every frame of a connection.
fn is_logged(target: &str, level: Level) -> bool {
    target.starts_with("spc") || level <= Level::WARN
}

impl EventWriter {
    /// Writes an event. In a log file or the journal, `; ` joins the lines of an error to one.
    fn write(
        &self,
        out: &mut impl fmt::Write,
        level: Level,
        time: &str,
        text: &str,
    ) -> fmt::Result {
        let text = match self.format {
            Format::Terminal => text.trim_end().to_owned(),
            Format::LogFile | Format::Journal => {
                let lines: Vec<&str> = text.lines().map(str::trim).collect();
                lines.join("; ")
            }
        };
        match self.format {
            Format::Terminal => write!(out, "{level:>5} ")?,
            Format::LogFile => write!(out, "{time} {level:>5} ")?,
            Format::Journal => write!(out, "<{}>", priority(level))?,
        }
        // The request id ends the first line, also if more lines follow.
        let (first, rest) = match text.split_once('\n') {
            Some((first, rest)) => (first, Some(rest)),
            None => (&*text, None),
        };
        write!(out, "{first}")?;
        if let Some(id) = &self.request {
            write!(out, " request={id}")?;
        }
        match rest {
            Some(rest) => writeln!(out, "\n{rest}"),
            None => writeln!(out),
        }
    }
}

/// Returns the syslog priority of a level (sd-daemon(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

impl<S, N> FormatEvent<S, N> for EventWriter
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !is_logged(event.metadata().target(), *event.metadata().level()) {
            return Ok(());
        }
        let (mut text, mut time) = (String::new(), String::new());
        context.format_fields(Writer::new(&mut text), event)?;
        if self.format == Format::LogFile {
            SystemTime.format_time(&mut Writer::new(&mut time))?;
        }
        self.write(&mut out, *event.metadata().level(), time.trim_end(), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_has_the_format_of_its_reader() {
        let written = |format, request: Option<&str>, text: &str| {
            let mut out = String::new();
            let request = request.map(str::to_owned);
            let writer = EventWriter { format, request };
            writer.write(&mut out, Level::WARN, "TIME", text).unwrap();
            out
        };
        let text = "it failed: no\n  said so\nhint: try";
        assert_eq!(
            written(Format::Terminal, Some("a1"), text),
            " WARN it failed: no request=a1\n  said so\nhint: try\n"
        );
        assert_eq!(
            written(Format::LogFile, None, text),
            "TIME  WARN it failed: no; said so; hint: try\n"
        );
        assert_eq!(
            written(Format::Journal, Some("a1"), text),
            "<4>it failed: no; said so; hint: try request=a1\n"
        );
    }

    #[test]
    fn request_id_has_safe_characters_only() {
        assert_eq!(valid_id("pod-1_a.b").as_deref(), Some("pod-1_a.b"));
        let long = "x".repeat(65);
        for bad in ["", "a b", "a\n", "ü", "a=b", &long] {
            assert_eq!(valid_id(bad), None, "{bad:?}");
        }
        assert_ne!(new_id(), new_id());
        assert_eq!(valid_id(&new_id()).map(|id| id.len()), Some(8));
    }

    #[test]
    fn a_request_id_is_one_short_word() {
        assert_eq!(valid_id("r-1").as_deref(), Some("r-1"));
        for id in ["two words", "", "a\n", &"x".repeat(65)] {
            assert_eq!(valid_id(id), None);
        }
    }
}
