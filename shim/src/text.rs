//! Byte strings of fixed capacity, always ended by a NUL, for code that cannot allocate.

use core::ffi::CStr;

/// Reference to a string that ends with a NUL. Takes one word; `&CStr` takes two.
#[derive(Clone, Copy)]
pub struct ThinCStr<'a>(&'a u8);

/// Converts a literal.
pub const fn thin(text: &'static CStr) -> ThinCStr<'static> {
    match text.to_bytes_with_nul().first() {
        Some(first) => ThinCStr(first),
        None => ThinCStr(&0),
    }
}

impl ThinCStr<'_> {
    /// Whether the string has no bytes before its NUL.
    pub fn is_empty(self) -> bool {
        self.begins_with(0)
    }

    fn begins_with(self, byte: u8) -> bool {
        *self.0 == byte
    }

    /// Returns the address, as argument of a system call.
    pub fn as_arg(self) -> usize {
        core::ptr::from_ref(self.0) as usize
    }
}

/// Capacity. Sufficient for the longest texts: two paths with every byte escaped, or a value of the
/// settings.
const MAX: usize = 40960;

/// Byte string without NUL bytes. A string that would become too long becomes empty, which no
/// caller takes for a path. All zero bytes are a valid empty text, so new memory needs no
/// initialisation.
#[repr(C)]
pub struct Text {
    bytes: [u8; MAX],
    len: usize,
}

impl Text {
    /// Returns an empty text.
    #[cfg(test)]
    pub const fn new() -> Self {
        Self {
            len: 0,
            bytes: [0; MAX],
        }
    }

    /// Removes all bytes.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Sets the length, at most the capacity.
    #[inline(never)]
    pub fn truncate(&mut self, len: usize) {
        if let Some(end) = self.bytes.get_mut(len) {
            *end = 0;
            self.len = len;
        }
    }

    /// Appends bytes.
    #[inline(never)]
    pub fn push(&mut self, more: &[u8]) {
        for byte in more {
            self.push_byte(*byte);
        }
    }

    /// Appends a byte.
    #[inline(never)]
    pub fn push_byte(&mut self, byte: u8) {
        if let Some([to, end, ..]) = self.bytes.get_mut(self.len..) {
            (*to, *end) = (byte, 0);
            self.len += 1;
        } else {
            self.clear();
        }
    }

    /// Replaces the content.
    #[inline(never)]
    pub fn set(&mut self, value: &[u8]) {
        self.clear();
        self.push(value);
    }

    /// Replaces the content by that of another text.
    #[inline(never)]
    pub fn copy(&mut self, other: &Self) {
        self.clear();
        self.append(other);
    }

    /// Appends another text.
    #[inline(never)]
    pub fn append(&mut self, other: &Self) {
        self.push(other.as_bytes());
    }

    /// Whether the first byte is a slash.
    pub fn begins_with_slash(&self) -> bool {
        self.as_thin().begins_with(b'/')
    }

    /// Whether the last byte is a slash.
    #[inline(never)]
    pub fn ends_with_slash(&self) -> bool {
        self.as_bytes().last() == Some(&b'/')
    }

    /// Appends a decimal number.
    #[inline(never)]
    pub fn push_number(&mut self, value: u64) {
        if value > 9 {
            self.push_number(value / 10);
        }
        self.push_byte(b'0' + (value % 10) as u8);
    }

    /// Returns the bytes without the NUL.
    #[inline(never)]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// Returns a reference that a system call takes.
    pub fn as_thin(&self) -> ThinCStr<'_> {
        ThinCStr(self.bytes.first().unwrap_or(&0))
    }

    /// Whether the text has no bytes.
    pub fn is_empty(&self) -> bool {
        self.as_thin().is_empty()
    }

    /// Clears the text and returns the whole buffer. After writing to the buffer, set the new
    /// length with [`Text::truncate`].
    pub fn buffer(&mut self) -> &mut [u8] {
        self.clear();
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cstr(text: &Text) -> &CStr {
        CStr::from_bytes_until_nul(&text.bytes).unwrap()
    }

    #[test]
    fn a_text_beyond_its_capacity_becomes_empty() {
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
        assert!(text.as_bytes().is_empty() && text.as_thin().is_empty());
    }

    #[test]
    fn numbers_are_decimal() {
        for value in [0, 7, 10, 4095, u64::MAX] {
            let mut text = Text::new();
            text.push_number(value);
            assert_eq!(text.as_bytes(), value.to_string().as_bytes());
        }
    }

    #[test]
    fn truncate_keeps_the_terminator() {
        let mut text = Text::new();
        text.buffer().fill(b'x');
        text.truncate(MAX);
        assert_eq!(text.as_bytes(), b"");
        text.truncate(3);
        assert_eq!(cstr(&text), c"xxx");
    }
}
