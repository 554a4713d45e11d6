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
/// Words for [`Decision`].
const DECISIONS: &[u8] = b"passed carried failed";
/// Words for [`crate::outcome::Step`].
const STEPS: &[u8] = b"- settings target namespace setns pin call proof";
/// Words for [`crate::policy::Reason`].
const REASONS: &[u8] = b"- arguments detached unnamed unresolved own settings claim type target \
operation descriptor";

/// Sends the report to the first socket that accepts it at once. A report that no socket accepts is
/// dropped.
pub fn send(call: &mut RedirectedCall<'_>) {
    write(call);
    let line = call.buffers.line.as_bytes();
    let _ = call
        .config
        .report_sockets()
        .any(|socket| sys::send(socket, line).is_ok());
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
    } = &mut *call.buffers;
    line.clear();
    let mut names = FIELDS;
    let names = &mut names;
    word(line, names, DECISIONS, call.decision as usize);
    word(line, names, NAMES, call.intercepted.symbol as usize);
    text(line, names, fs_type.as_bytes());
    text(line, names, target.as_bytes());
    text(line, names, host.as_bytes());
    number(line, names, errno as u64);
    number(line, names, call.mount_id);
    word(line, names, STEPS, step);
    word(line, names, REASONS, call.reason as usize);
    number(line, names, call.pid as u64);
}

/// Appends a field whose value is one word of a list.
#[inline(never)]
fn word(line: &mut Text, names: &mut &[u8], words: &[u8], at: usize) {
    text(line, names, nth_word(words, at));
}

/// Appends a field whose value is a number.
#[inline(never)]
fn number(line: &mut Text, names: &mut &[u8], value: u64) {
    line.push(next_word(names));
    line.push_byte(b'=');
    line.push_number(value);
    line.push_byte(b' ');
}

/// Appends a field whose value is text. As in proc_pid_mountinfo(5), blanks and backslashes are
/// octal escapes. An empty value is `-`.
#[inline(never)]
fn text(line: &mut Text, names: &mut &[u8], value: &[u8]) {
    line.push(next_word(names));
    line.push_byte(b'=');
    for byte in if value.is_empty() { b"-" } else { value } {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\\') {
            line.push_byte(b'\\');
            line.push_byte(b'0' + (byte >> 6));
            line.push_byte(b'0' + (byte >> 3 & 7));
            line.push_byte(b'0' + (byte & 7));
        } else {
            line.push_byte(*byte);
        }
    }
    line.push_byte(b' ');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Step;
    use crate::policy::Reason;

    #[test]
    fn values_are_escaped_like_mountinfo() {
        let mut line = Text::new();
        let names = &mut b"a b".as_slice();
        text(&mut line, names, b"x \t\n\\y");
        text(&mut line, names, b"");
        assert_eq!(line.as_bytes(), b"a=x\\040\\011\\012\\134y b=- ");
    }

    #[test]
    fn each_number_gives_its_word() {
        assert_eq!(nth_word(DECISIONS, Decision::Failed as usize), b"failed");
        assert_eq!(nth_word(STEPS, Step::Settings as usize), b"settings");
        assert_eq!(nth_word(STEPS, Step::Proof as usize), b"proof");
        assert_eq!(nth_word(REASONS, Reason::None as usize), b"-");
        assert_eq!(nth_word(REASONS, Reason::Redirect as usize), b"claim");
        assert_eq!(
            nth_word(REASONS, Reason::Descriptor as usize),
            b"descriptor"
        );
        let last = crate::symbol::Symbol::MountSetattr as usize;
        assert_eq!(nth_word(NAMES, last), b"mount_setattr");
    }
}
