//! One line for each decision, to whoever listens.

use spc_shim_config::words::{next_word, nth_word};

use crate::area::Work;
use crate::outcome::Decision;
use crate::redirected_call::RedirectedCall;
use crate::symbol::NAMES;
use crate::sys;
use crate::text::Text;

/// The fields in their order.
const FIELDS: &[u8] = b"decision call type target host errno mount step reason pid";
const DECISIONS: &[u8] = b"passed carried failed";
const STEPS: &[u8] = b"- settings target namespace setns pin call proof";
const REASONS: &[u8] = b"- arguments detached unnamed unresolved own settings claim type target \
operation descriptor";

/// Sends the report, if somebody takes it at once. Nothing depends on it.
pub fn send(c: &mut RedirectedCall<'_>) {
    write(c);
    let line = c.work.line.as_bytes();
    let _ = c
        .config
        .reports()
        .any(|socket| sys::send(socket, line).is_ok());
}

fn write(c: &mut RedirectedCall<'_>) {
    let step = match c.decision {
        Decision::Failed => c.step as usize,
        _ => 0,
    };
    let errno = c.result.map_or_else(sys::Errno::number, |_| 0);
    let Work {
        line,
        kind,
        target,
        host,
        ..
    } = &mut *c.work;
    line.clear();
    let mut names = FIELDS;
    let names = &mut names;
    word(line, names, DECISIONS, c.decision as usize);
    word(line, names, NAMES, c.call.symbol as usize);
    text(line, names, kind.as_bytes());
    text(line, names, target.as_bytes());
    text(line, names, host.as_bytes());
    number(line, names, errno as u64);
    number(line, names, c.mount);
    word(line, names, STEPS, step);
    word(line, names, REASONS, c.reason as usize);
    number(line, names, c.pid as u64);
}

/// A word of a list.
#[inline(never)]
fn word(line: &mut Text, names: &mut &[u8], words: &[u8], at: usize) {
    text(line, names, nth_word(words, at));
}

#[inline(never)]
fn number(line: &mut Text, names: &mut &[u8], value: u64) {
    line.push(next_word(names));
    line.push_byte(b'=');
    line.push_number(value);
    line.push_byte(b' ');
}

/// A value as in mountinfo: what would end it, and the backslash, in octal; `-` when there is none.
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
    fn words_stand_where_their_numbers_say() {
        assert_eq!(nth_word(DECISIONS, Decision::Failed as usize), b"failed");
        assert_eq!(nth_word(STEPS, Step::Settings as usize), b"settings");
        assert_eq!(nth_word(STEPS, Step::Proof as usize), b"proof");
        assert_eq!(nth_word(REASONS, Reason::None as usize), b"-");
        assert_eq!(nth_word(REASONS, Reason::Claim as usize), b"claim");
        assert_eq!(
            nth_word(REASONS, Reason::Descriptor as usize),
            b"descriptor"
        );
        let last = crate::symbol::Symbol::MountSetattr as usize;
        assert_eq!(nth_word(NAMES, last), b"mount_setattr");
    }
}
