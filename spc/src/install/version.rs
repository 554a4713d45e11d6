//! Comparison of version numbers.

use std::cmp::Ordering;

/// Compares versions number by number: `0.10.0` is newer than `0.9.1`.
///
/// Text after a `-` or `+` is ignored, and so are zeros at the end: `1.0` equals `1.0.0`.
pub fn compare(a: &str, b: &str) -> Ordering {
    numbers(a).cmp(&numbers(b))
}

/// Splits a version into its numbers, without zeros at the end.
fn numbers(version: &str) -> Vec<u64> {
    let end = version.find(['-', '+']).unwrap_or(version.len());
    let mut numbers: Vec<u64> = version[..end]
        .split('.')
        .map(|part| part.parse().unwrap_or_default())
        .collect();
    while numbers.last() == Some(&0) {
        numbers.pop();
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_numbers_without_suffix() {
        for (older, newer) in [("0.9.1", "0.10.0"), ("1.0.0", "1.0.1"), ("1", "1.1")] {
            assert_eq!(compare(older, newer), Ordering::Less);
            assert_eq!(compare(newer, older), Ordering::Greater);
        }
        for (a, b) in [("1.0", "1.0.0"), ("1.2.3", "1.2.3+build"), ("2", "2-rc1")] {
            assert_eq!(compare(a, b), Ordering::Equal);
        }
    }
}
