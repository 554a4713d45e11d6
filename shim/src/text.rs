//! Byte strings of a fixed size, always ended by a NUL, for code that cannot allocate.

use core::ffi::CStr;

/// At most `N - 1` bytes. All zero bytes are a valid empty text, so mapped memory needs no set-up.
#[repr(C)]
pub struct Text<const N: usize> {
    len: usize,
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    #[cfg(test)]
    pub const fn new() -> Self {
        Self {
            len: 0,
            bytes: [0; N],
        }
    }

    pub fn clear(&mut self) {
        self.truncate(0);
    }

    pub fn truncate(&mut self, len: usize) {
        truncate(&mut self.len, &mut self.bytes, len);
    }

    /// Appends all of `more`, or nothing when it does not fit.
    #[must_use]
    pub fn push(&mut self, more: &[u8]) -> bool {
        push(&mut self.len, &mut self.bytes, more)
    }

    #[must_use]
    pub fn set(&mut self, value: &[u8]) -> bool {
        self.clear();
        self.push(value)
    }

    #[must_use]
    pub fn push_number(&mut self, value: u64) -> bool {
        push_number(&mut self.len, &mut self.bytes, value)
    }

    pub fn as_bytes(&self) -> &[u8] {
        start(self.len, &self.bytes)
    }

    pub fn as_cstr(&self) -> &CStr {
        as_cstr(&self.bytes)
    }

    /// The whole buffer, for somebody who writes into it and calls [`Text::truncate`] with the new length.
    pub fn room(&mut self) -> &mut [u8] {
        self.clear();
        &mut self.bytes
    }
}

// One copy for texts of every size.

#[inline(never)]
fn truncate(len: &mut usize, bytes: &mut [u8], to: usize) {
    let to = to.min(bytes.len().saturating_sub(1));
    if let Some(end) = bytes.get_mut(to) {
        *end = 0;
        *len = to;
    }
}

#[inline(never)]
fn start(len: usize, bytes: &[u8]) -> &[u8] {
    bytes.get(..len).unwrap_or(&[])
}

#[inline(never)]
fn push(len: &mut usize, bytes: &mut [u8], more: &[u8]) -> bool {
    let Some(room) = bytes.get_mut(*len..) else {
        return false;
    };
    if room.len() <= more.len() {
        return false;
    }
    for (to, from) in room.iter_mut().zip(more.iter().chain(&[0])) {
        *to = *from;
    }
    *len += more.len();
    true
}

#[inline(never)]
fn push_number(len: &mut usize, bytes: &mut [u8], mut value: u64) -> bool {
    let mut digits = [0u8; 20];
    let mut first = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
        first = at;
        if value == 0 {
            break;
        }
    }
    push(len, bytes, digits.get(first..).unwrap_or(&[]))
}

#[inline(never)]
fn as_cstr(bytes: &[u8]) -> &CStr {
    CStr::from_bytes_until_nul(bytes).unwrap_or(c"")
}

/// Splits at the first `byte`; the second part is absent when there is none.
#[inline(never)]
pub fn split_once(text: &[u8], byte: u8) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|b| *b == byte) {
        Some(at) => (text.get(..at).unwrap_or(&[]), text.get(at + 1..)),
        None => (text, None),
    }
}

/// A decimal number and nothing else.
#[inline(never)]
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0u64;
    for byte in text {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value
            .checked_mul(10)?
            .checked_add(u64::from(*byte - b'0'))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_takes_all_or_nothing() {
        let mut text = Text::<6>::new();
        assert!(text.push(b"abc"));
        assert!(!text.push(b"def"));
        assert!(text.push(b"de"));
        assert_eq!(text.as_bytes(), b"abcde");
        assert_eq!(text.as_cstr(), c"abcde");
        text.truncate(2);
        assert_eq!(text.as_cstr(), c"ab");
        assert!(!text.set(b"too long"));
        assert_eq!(text.as_bytes(), b"");
    }

    #[test]
    fn numbers_go_out_as_they_came_in() {
        for value in [0, 7, 10, 4095, u64::MAX] {
            let mut text = Text::<32>::new();
            assert!(text.push_number(value));
            assert_eq!(number(text.as_bytes()), Some(value));
        }
        for bad in [&b""[..], b"-1", b"1x", b"18446744073709551616"] {
            assert_eq!(number(bad), None);
        }
    }

    #[test]
    fn the_terminator_stays() {
        let mut text = Text::<4>::new();
        text.room().fill(b'x');
        text.truncate(100);
        assert_eq!(text.as_cstr(), c"xxx");
    }
}
