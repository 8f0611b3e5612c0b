// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small helpers on text.

use alloc::vec::Vec;

/// The candidate that a misspelt word most likely meant, if one is close.
#[must_use]
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let allowed = match word.chars().count() {
        0..=2 => 0,
        3..=5 => 1,
        _ => 2,
    };
    candidates
        .into_iter()
        .map(|c| (distance(word, c), c))
        .filter(|(d, _)| *d <= allowed)
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// The number of letters to add, drop, change or swap with a neighbour to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut last = None;
    for (i, ca) in a.chars().enumerate() {
        let mut next = alloc::vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let at = |r: &[usize], j: usize| r.get(j).copied().unwrap_or(usize::MAX / 2);
            let mut d = (at(&row, j) + usize::from(ca != *cb))
                .min(at(&row, j + 1) + 1)
                .min(at(&next, j) + 1);
            let previous = j.checked_sub(1).and_then(|k| b.get(k));
            if last == Some(*cb) && previous == Some(&ca) {
                d = d.min(at(&before, j.saturating_sub(1)) + 1);
            }
            next.push(d);
        }
        before = row;
        row = next;
        last = Some(ca);
    }
    row.last().copied().unwrap_or(0)
}

/// Whether a name is like a pattern, where `*` stands for any letters and `?` for one.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // Which beginnings of the name the pattern's beginning stands for.
    let mut upto = alloc::vec![false; name.len() + 1];
    if let Some(first) = upto.first_mut() {
        *first = true;
    }
    for p in pattern.chars() {
        let mut next = alloc::vec![p == '*' && upto.first() == Some(&true)];
        for (c, pair) in name.iter().zip(upto.windows(2)) {
            let (before, here) = (pair.first() == Some(&true), pair.last() == Some(&true));
            let grown = next.last() == Some(&true);
            next.push(match p {
                '*' => here || grown,
                '?' => before,
                p => before && p == *c,
            });
        }
        upto = next;
    }
    upto.last() == Some(&true)
}

/// A whole number in decimal, hexadecimal (`0x`) or octal (`0`), as C's `strtoul` with base 0.
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (text.get(2..)?, 16),
        [b'0', _, ..] => (text.get(1..)?, 8),
        _ => (text, 10),
    };
    // `from_str_radix` would take a sign.
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// The key and value of `key=value` where the key is an identifier.
#[must_use]
pub fn key_value(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split_once('=')?;
    let key = key.trim();
    let first = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (first
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'))
    .then_some((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings() {
        let keys = ["memory", "maxmem", "name", "disk", "vcpus"];
        assert_eq!(closest("memroy", keys), Some("memory"));
        assert_eq!(closest("vpcus", keys), Some("vcpus"));
        assert_eq!(closest("nam", keys), Some("name"));
        assert_eq!(closest("kernel", keys), None);
        assert_eq!(closest("di", keys), None);
        assert_eq!(closest("", keys), None);
    }

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("*", "linux", true),
            ("li*", "linux", true),
            ("*x", "linux", true),
            ("l*n*x", "linux", true),
            ("l?nux", "linux", true),
            ("linux?", "linux", false),
            ("?", "", false),
            ("lin", "linux", false),
            ("*y", "linux", false),
            ("**a**", "banana", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(number("12"), Some(12));
        assert_eq!(number("0x1F"), Some(31));
        assert_eq!(number("017"), Some(15));
        assert_eq!(number("0"), Some(0));
        for bad in [
            "",
            "-1",
            "+1",
            "1a",
            "0x",
            "08",
            "0x+1",
            " 1",
            "99999999999999999999",
        ] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
