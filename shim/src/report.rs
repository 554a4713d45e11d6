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
    if !write(call, work, outcome) {
        return;
    }
    let line = work.line.as_bytes();
    let mut sockets = config.into_iter().flat_map(Config::reports);
    let sent = sockets.any(|socket| sys::send(socket, line).is_ok());
    if !sent && config.is_none() {
        let _ = sys::send(FALLBACK, line);
    }
}

fn write(call: &Call, work: &mut Work, outcome: &Outcome) -> bool {
    let decision = match outcome.decision {
        Decision::Passed => b"passed".as_slice(),
        Decision::Carried => b"carried",
        Decision::Failed => b"failed",
    };
    let errno = match outcome.result {
        Ok(_) => 0,
        Err(Errno(error)) => error as u64,
    };
    let Work {
        line,
        kind,
        target,
        host,
        ..
    } = work;
    line.clear();
    line.push(b"decision=")
        && line.push(decision)
        && word(line, b" call=", call.name())
        && word(line, b" type=", kind.as_bytes())
        && word(line, b" target=", target.as_bytes())
        && word(line, b" host=", host.as_bytes())
        && line.push(b" errno=")
        && line.push_number(errno)
        && line.push(b" mount=")
        && line.push_number(outcome.mount)
        && word(line, b" step=", step(outcome))
        && word(line, b" reason=", reason(outcome.reason))
        && line.push(b" pid=")
        && line.push_number(sys::pid() as u64)
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
fn word<const N: usize>(line: &mut Text<N>, name: &[u8], value: &[u8]) -> bool {
    let value = if value.is_empty() { b"-" } else { value };
    line.push(name)
        && value.iter().all(|byte| match byte {
            b' ' | b'\t' | b'\n' | b'\\' => {
                let digit = |shift: u32| b'0' + ((*byte >> shift) & 7);
                line.push(&[b'\\', digit(6), digit(3), digit(0)])
            }
            _ => line.push(&[*byte]),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_like_mountinfo() {
        let mut line = Text::<64>::new();
        assert!(word(&mut line, b"a=", b"x \t\n\\y"));
        assert!(word(&mut line, b" b=", b""));
        assert_eq!(line.as_bytes(), b"a=x\\040\\011\\012\\134y b=-");
    }
}
