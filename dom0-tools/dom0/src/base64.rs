// SPDX-License-Identifier: MIT OR Apache-2.0
//! base64url (RFC 4648, section 5), by which commands travel on the command line.

use alloc::vec::Vec;

/// Decodes; padding is optional. `None` if `text` is not base64url.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut n) = (0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let v = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(v);
        n += 6;
        if n >= 8 {
            n -= 8;
            out.push((bits >> n) as u8);
        }
    }
    // What is left must be no whole character, and zero.
    (n < 6 && bits & ((1 << n) - 1) == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_examples() {
        for (text, want) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zg", "f"),
            ("Zm8", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg", "foob"),
            ("Zm9vYmE", "fooba"),
            ("Zm9vYmFy", "foobar"),
            ("bGlzdApkbWVzZw", "list\ndmesg"),
        ] {
            assert_eq!(decode(text).unwrap(), want.as_bytes());
        }
        assert_eq!(decode("_-8").unwrap(), [0xff, 0xef]);
        for bad in ["Z", "Zh", "Zg=x", "a b", "+/8"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
