//! The log, on standard error, and the id by which all lines about one request are found.

use std::fmt::{self, Write as _};
use std::process::Command;
use std::sync::OnceLock;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::error::Error;

/// The variable that takes a request's id from the front door to the helper and its daemon.
pub const VARIABLE: &str = "SPC_REQUEST";

/// Who reads standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// Whoever runs the command, at once: no time.
    Caller,
    /// Whoever looks later at what a service said: one line for each event, with the time.
    Later,
    /// The journal, which has times and priorities of its own (sd-daemon(3)).
    Journal,
}

/// What this process works for.
static REQUEST: OnceLock<Option<String>> = OnceLock::new();

/// Who logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// A command, which works for the request that its environment names, or for a new one.
    Command,
    /// As well, but what it says goes to the log of the service that started it.
    OfService,
    /// A service, which works for nobody in particular.
    Service,
}

/// Begins to log.
pub fn begin(level: Level, voice: Voice) {
    let request = match voice {
        Voice::Service => REQUEST.get_or_init(|| None).clone(),
        Voice::Command | Voice::OfService => Some(take_id().to_owned()),
    };
    let reader = match (is_journal(), voice) {
        (true, _) => Reader::Journal,
        (false, Voice::Service | Voice::OfService) => Reader::Later,
        (false, Voice::Command) => Reader::Caller,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .event_format(Lines { reader, request })
        .init();
}

/// The request that this process works for is the one that its environment names, or a new one.
pub fn take_id() -> &'static str {
    let id = REQUEST.get_or_init(|| Some(named().unwrap_or_else(new_id)));
    id.as_deref().unwrap_or_default()
}

/// An error that is read far from the log, with the id that leads there.
pub fn with_id(error: Error) -> Error {
    match request() {
        Some(id) => error.log(vec![format!("request={id}")]),
        None => error,
    }
}

/// The id of the request that this process works for.
pub fn request() -> Option<&'static str> {
    REQUEST.get()?.as_deref()
}

/// Hands the request's id on to a program.
pub fn hand_on(command: &mut Command) {
    match REQUEST.get() {
        Some(Some(id)) => command.env(VARIABLE, id),
        Some(None) => command.env_remove(VARIABLE),
        // Nothing has begun here; it goes by unchanged.
        None => command,
    };
}

/// Says an error, as the journal wants it or as everybody else does.
pub fn error(text: &str) {
    let mut lines = String::new();
    for line in text.lines() {
        let prefix = if is_journal() { "<3>" } else { "" };
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{prefix}{line}");
    }
    eprint!("{lines}");
}

/// The id of the request that a process was started for.
pub fn request_of(process: i32) -> Option<String> {
    let environ = std::fs::read(format!("/proc/{process}/environ")).ok()?;
    let name = format!("{VARIABLE}=");
    let mut variables = environ.split(|byte| *byte == 0);
    let value = variables.find_map(|variable| variable.strip_prefix(name.as_bytes()))?;
    usable(str::from_utf8(value).ok()?)
}

/// The request that the environment names.
fn named() -> Option<String> {
    usable(&std::env::var(VARIABLE).ok()?)
}

/// An id as it may stand in a log.
fn usable(id: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let good = (1..=64).contains(&id.len()) && id.chars().all(plain);
    good.then(|| id.to_owned())
}

/// 32 random bits in hex; of the clock, where the kernel gives none.
fn new_id() -> String {
    let mut bytes = [0_u8; 4];
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        bytes = now.unwrap_or_default().subsec_nanos().to_ne_bytes();
    }
    format!("{:08x}", u32::from_ne_bytes(bytes))
}

/// Whether standard error is the stream that systemd connected to its journal (systemd.exec(5), `$JOURNAL_STREAM`).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(rustix::stdio::stderr())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes an event.
struct Lines {
    reader: Reader,
    request: Option<String>,
}

impl Lines {
    /// Text in one line: an error's causes and its hint stand behind each other.
    fn write(
        &self,
        out: &mut impl fmt::Write,
        level: Level,
        time: &str,
        text: &str,
    ) -> fmt::Result {
        let text = match self.reader {
            Reader::Caller => text.trim_end().to_owned(),
            Reader::Later | Reader::Journal => {
                let lines: Vec<&str> = text.lines().map(str::trim).collect();
                lines.join("; ")
            }
        };
        match self.reader {
            Reader::Caller => write!(out, "{level:>5} ")?,
            Reader::Later => write!(out, "{time} {level:>5} ")?,
            Reader::Journal => write!(out, "<{}>", priority(level))?,
        }
        // Before the lines that may follow the first.
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

/// The syslog priority of a level, as sd-daemon(3) has it.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

impl<S, N> FormatEvent<S, N> for Lines
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
        let (mut text, mut time) = (String::new(), String::new());
        context.format_fields(Writer::new(&mut text), event)?;
        if self.reader == Reader::Later {
            SystemTime.format_time(&mut Writer::new(&mut time))?;
        }
        self.write(&mut out, *event.metadata().level(), time.trim_end(), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_its_reader_wants_it() {
        let shown = |reader, request: Option<&str>, text: &str| {
            let mut out = String::new();
            let request = request.map(str::to_owned);
            let lines = Lines { reader, request };
            lines.write(&mut out, Level::WARN, "TIME", text).unwrap();
            out
        };
        let text = "it failed: no\n  said so\nhint: try";
        assert_eq!(
            shown(Reader::Caller, Some("a1"), text),
            " WARN it failed: no request=a1\n  said so\nhint: try\n"
        );
        assert_eq!(
            shown(Reader::Later, None, text),
            "TIME  WARN it failed: no; said so; hint: try\n"
        );
        assert_eq!(
            shown(Reader::Journal, Some("a1"), text),
            "<4>it failed: no; said so; hint: try request=a1\n"
        );
    }

    #[test]
    fn an_id_is_a_word() {
        assert_eq!(usable("pod-1_a.b").as_deref(), Some("pod-1_a.b"));
        let long = "x".repeat(65);
        for bad in ["", "a b", "a\n", "ü", "a=b", &long] {
            assert_eq!(usable(bad), None, "{bad:?}");
        }
        assert_ne!(new_id(), new_id());
        assert_eq!(usable(&new_id()).map(|id| id.len()), Some(8));
    }

    #[test]
    fn the_request_of_a_process_is_in_its_environment() {
        let start = |id: &str| {
            let mut command = Command::new("sleep");
            command.arg("60").env(VARIABLE, id).spawn().unwrap()
        };
        for (given, found) in [("r-1", Some("r-1")), ("two words", None)] {
            let mut child = start(given);
            let pid = i32::try_from(child.id()).unwrap();
            // It may still be in the middle of its execve(2).
            let mut seen = None;
            for _ in 0..200 {
                seen = request_of(pid);
                if seen.as_deref() == found
                    && std::fs::read(format!("/proc/{pid}/cmdline"))
                        .unwrap()
                        .starts_with(b"sleep")
                {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(seen.as_deref(), found);
        }
    }
}
