//! Words and other parts of byte strings. Every result is a slice of the argument.

/// Removes the first word from the line and returns it. A blank or a NUL ends a word. The word is
/// empty at the end of the line and at the start of a comment.
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
    // The line keeps its comment, so the next word is empty again.
    *line = rest;
    word
}

/// Returns the word with this index.
#[inline(never)]
pub fn nth_word(mut words: &[u8], at: usize) -> &[u8] {
    for _ in 0..at {
        next_word(&mut words);
    }
    next_word(&mut words)
}

/// Returns the index of a word in a list of words.
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

/// Splits at the first `byte`. Without one, the second part is `None`.
#[inline(never)]
pub fn split_once(text: &[u8], byte: u8) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|b| *b == byte) {
        Some(at) => (text.get(..at).unwrap_or(&[]), text.get(at + 1..)),
        None => (text, None),
    }
}

/// Returns the text after this prefix, or `None` if the text does not begin with the prefix.
#[inline(never)]
pub fn strip<'a>(mut text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    for byte in prefix {
        text = text.split_first().filter(|(first, _)| *first == byte)?.1;
    }
    Some(text)
}

/// Whether two texts are equal. Unlike `==`, needs no import of memcmp(3).
pub fn same(one: &[u8], other: &[u8]) -> bool {
    strip(one, other).is_some_and(<[u8]>::is_empty)
}

/// Whether the name is empty, `.` or `..`: not the name of an entry of a directory.
pub fn is_dots(name: &[u8]) -> bool {
    strip(b"..", name).is_some()
}
