// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of functions, for the trace that a panic prints.
//!
//! `cargo xtask build` puts a table into the image: for each function, in the order of their places,
//! its offset in the image (4 bytes, little endian), the length of its name (1 byte, not 0) and the
//! name. The table ends with a length of 0.

/// The function that holds offset `at`, and how far into it that is; `None` without a table that
/// tells.
#[must_use]
pub fn find(table: &[u8], at: u32) -> Option<(&str, u32)> {
    let mut rest = table;
    let mut best = None;
    while let Some((start, name, next)) = entry(rest) {
        let Some(within) = at.checked_sub(start) else {
            break;
        };
        best = Some((name, within));
        rest = next;
    }
    let (name, within) = best?;
    Some((core::str::from_utf8(name).ok()?, within))
}

fn entry(table: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let (start, rest) = table.split_first_chunk::<4>()?;
    let (&len, rest) = rest.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(len))?;
    (len != 0).then_some((u32::from_le_bytes(*start), name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_around_an_address_is_found() {
        let mut t = std::vec![];
        for (at, name) in [(0x40u32, "a"), (0x100, "b::c"), (0x180, "d")] {
            t.extend(at.to_le_bytes());
            t.push(name.len() as u8);
            t.extend(name.as_bytes());
        }
        t.extend([0; 16]);
        assert_eq!(find(&t, 0x3f), None);
        assert_eq!(find(&t, 0x40), Some(("a", 0)));
        assert_eq!(find(&t, 0xff), Some(("a", 0xbf)));
        assert_eq!(find(&t, 0x104), Some(("b::c", 4)));
        assert_eq!(find(&t, 0x4000), Some(("d", 0x3e80)));
    }

    #[test]
    fn a_damaged_table_tells_nothing_and_harms_nothing() {
        assert_eq!(find(&[], 5), None);
        assert_eq!(find(&[0; 64], 5), None);
        assert_eq!(find(&[0, 0, 0, 0, 200, b'x'], 5), None, "cut off");
        assert_eq!(find(&[0, 0, 0, 0, 2, 0xff, 0xfe], 5), None, "no text");
    }
}
