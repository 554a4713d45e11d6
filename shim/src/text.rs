//! Byte strings of a fixed size, always ended by a NUL, for code that cannot allocate.

use core::ffi::CStr;

/// A string that ends with NUL: the place of its first byte. One word, where `&CStr` takes two.
#[derive(Clone, Copy)]
pub struct Name<'a>(&'a u8);

/// The name that a literal is.
pub const fn name(text: &'static CStr) -> Name<'static> {
    match text.to_bytes_with_nul().first() {
        Some(first) => Name(first),
        None => Name(&0),
    }
}

impl Name<'_> {
    pub fn is_empty(self) -> bool {
        self.begins_with(0)
    }

    fn begins_with(self, byte: u8) -> bool {
        *self.0 == byte
    }

    /// For a system call.
    pub fn word(self) -> usize {
        core::ptr::from_ref(self.0) as usize
    }
}

/// Longer than anything that is put together here: two paths with every byte escaped, or a value of the settings.
const MAX: usize = 40960;

/// A byte string without NUL. What would not fit leaves it empty, which no caller takes for a path. All zero bytes
/// are a valid empty text, so mapped memory needs no set-up.
#[repr(C)]
pub struct Text {
    len: usize,
    bytes: [u8; MAX],
}

impl Text {
    #[cfg(test)]
    pub const fn new() -> Self {
        Self {
            len: 0,
            bytes: [0; MAX],
        }
    }

    pub fn clear(&mut self) {
        self.truncate(0);
    }

    #[inline(never)]
    pub fn truncate(&mut self, len: usize) {
        if let Some(end) = self.bytes.get_mut(len) {
            *end = 0;
            self.len = len;
        }
    }

    #[inline(never)]
    pub fn push(&mut self, more: &[u8]) {
        for byte in more {
            self.push_byte(*byte);
        }
    }

    #[inline(never)]
    pub fn push_byte(&mut self, byte: u8) {
        if let Some([to, end, ..]) = self.bytes.get_mut(self.len..) {
            (*to, *end) = (byte, 0);
            self.len += 1;
        } else {
            self.clear();
        }
    }

    #[inline(never)]
    pub fn set(&mut self, value: &[u8]) {
        self.clear();
        self.push(value);
    }

    /// Becomes a copy of another text.
    #[inline(never)]
    pub fn copy(&mut self, other: &Self) {
        self.clear();
        self.append(other);
    }

    #[inline(never)]
    pub fn append(&mut self, other: &Self) {
        self.push(other.as_bytes());
    }

    pub fn begins_with_slash(&self) -> bool {
        self.as_name().begins_with(b'/')
    }

    #[inline(never)]
    pub fn ends_with_slash(&self) -> bool {
        self.as_bytes().last() == Some(&b'/')
    }

    #[inline(never)]
    pub fn push_number(&mut self, value: u64) {
        if value > 9 {
            self.push_number(value / 10);
        }
        self.push_byte(b'0' + (value % 10) as u8);
    }

    #[inline(never)]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    pub fn as_name(&self) -> Name<'_> {
        Name(self.bytes.first().unwrap_or(&0))
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The whole buffer, for somebody who writes into it and calls [`Text::truncate`] with the new length.
    pub fn room(&mut self) -> &mut [u8] {
        self.clear();
        &mut self.bytes
    }
}

/// A decimal number and nothing else.
#[inline(never)]
pub fn number(text: &[u8]) -> Option<u64> {
    let mut value = None;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = Some(
            value
                .unwrap_or(0u64)
                .checked_mul(10)?
                .checked_add(u64::from(digit))?,
        );
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cstr(text: &Text) -> &CStr {
        CStr::from_bytes_until_nul(&text.bytes).unwrap()
    }

    #[test]
    fn a_text_takes_all_or_nothing() {
        let mut text = Text::new();
        text.push(b"abc");
        text.push(b"de");
        assert_eq!(text.as_bytes(), b"abcde");
        assert_eq!(cstr(&text), c"abcde");
        text.truncate(2);
        assert_eq!(cstr(&text), c"ab");
        text.set(&[b'x'; MAX - 1]);
        assert_eq!(cstr(&text).to_bytes().len(), MAX - 1);
        text.set(&[b'x'; MAX]);
        assert!(text.as_bytes().is_empty() && text.as_name().is_empty());
    }

    #[test]
    fn numbers_go_out_as_they_came_in() {
        for value in [0, 7, 10, 4095, u64::MAX] {
            let mut text = Text::new();
            text.push_number(value);
            assert_eq!(number(text.as_bytes()), Some(value));
        }
        for bad in [&b""[..], b"-1", b"1x", b":", b"18446744073709551616"] {
            assert_eq!(number(bad), None);
        }
    }

    #[test]
    fn the_terminator_stays() {
        let mut text = Text::new();
        text.room().fill(b'x');
        text.truncate(MAX);
        assert_eq!(text.as_bytes(), b"");
        text.truncate(3);
        assert_eq!(cstr(&text), c"xxx");
    }
}
