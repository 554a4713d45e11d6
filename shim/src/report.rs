//! Reports: one line per decision, sent to a unix socket. `spc serve` logs them.

use spc_shim_config::words::{next_word, nth_word};

use crate::outcome::Decision;
use crate::redirected_call::RedirectedCall;
use crate::scratch::Buffers;
use crate::symbol::NAMES;
use crate::sys;
use crate::text::Text;

/// Names of the fields, in their order.
const FIELDS: &[u8] = b"decision call type target host errno mount step reason pid";
/// Words for [`Decision`], [`crate::outcome::Step`] and [`crate::policy::Reason`].
const WORDS: &[u8] = b"- carried failed \
- settings target namespace setns pin call proof \
- settings claim type target operation descriptor origin";
/// Index of the first word for a step.
const STEPS: usize = 3;
/// Index of the first word for a reason.
const REASONS: usize = STEPS + 8;

/// Sends the report to the first socket that accepts it at once. A report that no socket accepts is
/// dropped.
pub fn send(call: &mut RedirectedCall<'_>) {
    write(call);
    let Buffers { line, name, .. } = &mut call.buffers;
    let line = line.as_bytes();
    let _ = call
        .config
        .report_sockets()
        .any(|socket| sys::send(socket, name, line).is_ok());
}

fn write(call: &mut RedirectedCall<'_>) {
    let step = match call.decision {
        Decision::Failed => call.step as usize,
        _ => 0,
    };
    let errno = call.result.map_or_else(sys::Errno::number, |_| 0);
    let Buffers {
        line,
        fs_type,
        target,
        host,
        ..
    } = &mut call.buffers;
    line.clear();
    let to = &mut Line {
        line,
        names: FIELDS,
    };
    to.word(call.decision as usize);
    to.text(nth_word(NAMES, call.symbol as usize));
    to.text(fs_type.as_bytes());
    to.text(target.as_bytes());
    to.text(host.as_bytes());
    to.number(errno);
    to.number(call.mount_id as usize);
    to.word(STEPS + step);
    to.word(REASONS + call.reason as usize);
    to.number(sys::pid());
}

/// A report as far as it is written.
struct Line<'a> {
    line: &'a mut Text,
    /// Names of the fields that are missing.
    names: &'a [u8],
}

impl Line<'_> {
    /// Appends a field whose value is one of [`WORDS`].
    #[inline(never)]
    fn word(&mut self, at: usize) {
        self.text(nth_word(WORDS, at));
    }

    /// Appends a field whose value is a number.
    #[inline(never)]
    fn number(&mut self, value: usize) {
        self.begin();
        self.line.push_number(value as u64);
        self.line.push_byte(b' ');
    }

    #[inline(never)]
    fn begin(&mut self) {
        self.line.push(next_word(&mut self.names));
        self.line.push_byte(b'=');
    }

    /// Appends a field whose value is text. As in proc_pid_mountinfo(5), blanks and backslashes are
    /// octal escapes. An empty value is `-`.
    #[inline(never)]
    fn text(&mut self, value: &[u8]) {
        self.begin();
        for byte in if value.is_empty() { b"-" } else { value } {
            if matches!(byte, b' ' | b'\t' | b'\n' | b'\\') {
                self.line.push_byte(b'\\');
                for shift in [6, 3, 0] {
                    self.line.push_byte(b'0' + (byte >> shift & 7));
                }
            } else {
                self.line.push_byte(*byte);
            }
        }
        self.line.push_byte(b' ');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Step;
    use crate::policy::Reason;

    #[test]
    fn values_are_escaped_like_mountinfo() {
        let mut line = Text::new();
        let mut to = Line {
            line: &mut line,
            names: b"a b",
        };
        to.text(b"x \t\n\\y");
        to.text(b"");
        assert_eq!(line.as_bytes(), b"a=x\\040\\011\\012\\134y b=- ");
    }

    #[test]
    fn each_number_gives_its_word() {
        let word = |at| nth_word(WORDS, at);
        assert_eq!(word(Decision::Failed as usize), b"failed");
        assert_eq!(word(STEPS), b"-");
        assert_eq!(word(STEPS + Step::Settings as usize), b"settings");
        assert_eq!(word(STEPS + Step::Proof as usize), b"proof");
        assert_eq!(word(REASONS + Reason::None as usize), b"-");
        assert_eq!(word(REASONS + Reason::Redirect as usize), b"claim");
        assert_eq!(word(REASONS + Reason::Origin as usize), b"origin");
        let last = crate::symbol::Symbol::MountSetattr as usize;
        assert_eq!(nth_word(NAMES, last), b"mount_setattr");
    }
}
