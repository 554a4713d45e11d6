//! Words and parts of byte strings, as slices of them.

/// Takes the first word off; empty at the end of the line, or where a comment begins. A NUL ends a word as well.
#[inline(never)]
pub fn next_word<'a>(line: &mut &'a [u8]) -> &'a [u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | 0);
    while let Some((byte, rest)) = line.split_first() {
        if !is_blank(byte) {
            break;
        }
        *line = rest;
    }
    let mut len = 0;
    if line.first() != Some(&b'#') {
        len = line.iter().position(is_blank).unwrap_or(line.len());
    }
    let (word, rest) = line.split_at_checked(len).unwrap_or_default();
    // Nothing is left after a comment's beginning: its first word is empty again.
    *line = rest;
    word
}

/// The word at this place.
#[inline(never)]
pub fn nth_word(mut words: &[u8], at: usize) -> &[u8] {
    for _ in 0..at {
        next_word(&mut words);
    }
    next_word(&mut words)
}

/// Where a word stands in a list of words.
#[inline(never)]
pub fn index(mut words: &[u8], wanted: &[u8]) -> Option<u8> {
    for at in 0.. {
        let word = next_word(&mut words);
        if word.is_empty() {
            break;
        }
        if same(word, wanted) {
            return Some(at);
        }
    }
    None
}

/// Splits at the first `byte`; the second part is absent when there is none.
#[inline(never)]
pub fn split_once(text: &[u8], byte: u8) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|b| *b == byte) {
        Some(at) => (text.get(..at).unwrap_or(&[]), text.get(at + 1..)),
        None => (text, None),
    }
}

/// What follows this prefix.
#[inline(never)]
pub fn strip<'a>(mut text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    for byte in prefix {
        text = text.split_first().filter(|(first, _)| *first == byte)?.1;
    }
    Some(text)
}

/// Whether two texts are the same. Not `==`, which would be one more import.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    strip(one, other).is_some_and(<[u8]>::is_empty)
}

/// Whether this name leads nowhere, or not down: empty, `.` or `..`.
pub fn is_dots(name: &[u8]) -> bool {
    strip(b"..", name).is_some()
}
