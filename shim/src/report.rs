//! One line for each decision, to whoever listens.

use crate::area::Work;
use crate::call::NAMES;
use crate::config::nth_word;
use crate::cross::{Crossing, Decision};
use crate::sys;
use crate::text::Text;

/// Where to report when the settings do not say it, because they are broken.
const FALLBACK: &[u8] = b"/spc/report.sock";

const DECISIONS: &[u8] = b"passed carried failed";
const STEPS: &[u8] = b"settings target namespace setns pin call proof";
const REASONS: &[u8] = b"- arguments detached unnamed unresolved own settings claim type target \
operation descriptor";

/// Sends the report, if somebody takes it at once. Nothing depends on it.
pub fn send(c: &mut Crossing<'_>) {
    write(c);
    let line = c.work.line.as_bytes();
    let mut sockets = c.config.reports();
    let mut socket = sockets.next().unwrap_or(FALLBACK);
    while sys::send(socket, line).is_err() {
        match sockets.next() {
            Some(other) => socket = other,
            None => return,
        }
    }
}

fn write(c: &mut Crossing<'_>) {
    let mut step = nth_word(STEPS, c.step as usize);
    if c.decision != Decision::Failed {
        step = &[];
    }
    let errno = c.result.map_or_else(sys::Errno::number, |_| 0);
    let Work {
        line,
        kind,
        target,
        host,
        ..
    } = &mut *c.work;
    line.clear();
    text(line, b"decision=", nth_word(DECISIONS, c.decision as usize));
    text(line, b" call=", nth_word(NAMES, c.call.symbol as usize));
    text(line, b" type=", kind.as_bytes());
    text(line, b" target=", target.as_bytes());
    text(line, b" host=", host.as_bytes());
    number(line, b" errno=", errno as u64);
    number(line, b" mount=", c.mount);
    text(line, b" step=", step);
    text(line, b" reason=", nth_word(REASONS, c.reason as usize));
    number(line, b" pid=", sys::pid() as u64);
}

#[inline(never)]
fn number(line: &mut Text, name: &[u8], value: u64) {
    line.push(name);
    line.push_number(value);
}

/// A value as in mountinfo: what would end it, and the backslash, in octal; `-` when there is none.
#[inline(never)]
fn text(line: &mut Text, name: &[u8], value: &[u8]) {
    line.push(name);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cross::Step;
    use crate::policy::Reason;

    #[test]
    fn values_are_escaped_like_mountinfo() {
        let mut line = Text::new();
        text(&mut line, b"a=", b"x \t\n\\y");
        text(&mut line, b" b=", b"");
        assert_eq!(line.as_bytes(), b"a=x\\040\\011\\012\\134y b=-");
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
        let last = crate::call::Symbol::MountSetattr as usize;
        assert_eq!(nth_word(NAMES, last), b"mount_setattr");
    }
}
