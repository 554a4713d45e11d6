//! One line for each decision, to whoever listens.

use crate::area::Work;
use crate::call::Call;
use crate::config::Config;
use crate::cross::{Decision, Outcome, Step};
use crate::policy::Reason;
use crate::sys::{self, Errno};
use crate::text::Text;

/// Where to report when the settings cannot be read.
const FALLBACK: &[u8] = b"/spc/report.sock";

/// Sends the report, if somebody takes it at once. Nothing depends on it.
pub fn send(config: Option<&Config>, call: &Call, work: &mut Work, outcome: &Outcome) {
    write(call, work, outcome);
    let line = work.line.as_bytes();
    let sent = match config {
        Some(config) => config
            .reports()
            .any(|socket| sys::send(socket, line).is_ok()),
        None => sys::send(FALLBACK, line).is_ok(),
    };
    // Nobody listens: then nobody needs it.
    let _ = sent;
}

#[inline(never)]
fn write(call: &Call, work: &mut Work, outcome: &Outcome) {
    let decision = match outcome.decision {
        Decision::Passed => b"passed".as_slice(),
        Decision::Carried => b"carried",
        Decision::Failed => b"failed",
    };
    let errno = outcome.result.map_or_else(Errno::number, |_| 0);
    let Work {
        line,
        kind,
        target,
        host,
        ..
    } = work;
    line.clear();
    word(line, b"decision=", decision);
    word(line, b" call=", call.name());
    word(line, b" type=", kind.as_bytes());
    word(line, b" target=", target.as_bytes());
    word(line, b" host=", host.as_bytes());
    number(line, b" errno=", errno as u64);
    number(line, b" mount=", outcome.mount);
    word(line, b" step=", step(outcome));
    word(line, b" reason=", reason(outcome.reason));
    number(line, b" pid=", sys::pid() as u64);
}

fn number(line: &mut Text, name: &[u8], value: u64) {
    line.push(name);
    line.push_number(value);
}

fn step(outcome: &Outcome) -> &'static [u8] {
    match outcome.step {
        _ if outcome.decision != Decision::Failed => b"-",
        Step::Settings => b"settings",
        Step::Target => b"target",
        Step::Namespace => b"namespace",
        Step::Setns => b"setns",
        Step::Pin => b"pin",
        Step::Call => b"call",
        Step::Proof => b"proof",
    }
}

fn reason(reason: Reason) -> &'static [u8] {
    match reason {
        Reason::None => b"-",
        Reason::Arguments => b"arguments",
        Reason::Detached => b"detached",
        Reason::Unnamed => b"unnamed",
        Reason::Unresolved => b"unresolved",
        Reason::Own => b"own",
        Reason::Settings => b"settings",
        Reason::Claim => b"claim",
        Reason::Type => b"type",
        Reason::Target => b"target",
        Reason::Operation => b"operation",
        Reason::Descriptor => b"descriptor",
    }
}

/// A value as in mountinfo: what would end it, and the backslash, in octal; `-` when there is none.
#[inline(never)]
fn word(line: &mut Text, name: &[u8], value: &[u8]) {
    line.push(name);
    for byte in if value.is_empty() { b"-" } else { value } {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\\') {
            line.push_byte(b'\\');
            for shift in [6, 3, 0] {
                line.push_byte(b'0' + (byte >> shift & 7));
            }
        } else {
            line.push_byte(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_like_mountinfo() {
        let mut line = Text::new();
        word(&mut line, b"a=", b"x \t\n\\y");
        word(&mut line, b" b=", b"");
        assert_eq!(line.as_bytes(), b"a=x\\040\\011\\012\\134y b=-");
    }
}
