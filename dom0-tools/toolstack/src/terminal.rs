// SPDX-License-Identifier: MIT OR Apache-2.0
//! The size of the person's terminal, which nobody tells over a serial line: the cursor is sent to the farthest corner and the
//! terminal is asked where it is (ECMA-48's device status report, `ESC [ 6 n`; `ESC [ row ; column R` is the answer).

use alloc::vec::Vec;

/// What asks; the cursor is where it was afterwards.
pub const ASK: &str = "\x1b7\x1b[999;999H\x1b[6n\x1b8";
/// The longest answer.
const MAX_ANSWER: usize = 16;

/// A terminal's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Takes the terminal's answer out of what is typed, wherever it is: it may come while a command runs or a guest has the
/// terminal, and must not be taken for keys. Where nothing was asked, everything passes.
#[derive(Debug, Default)]
pub struct Answers {
    waiting: bool,
    held: Vec<u8>,
}

impl Answers {
    /// [`ASK`] was written.
    pub fn asked(&mut self) {
        self.waiting = true;
    }

    /// Whether the answer is still to come.
    #[must_use]
    pub fn waiting(&self) -> bool {
        self.waiting
    }

    /// The terminal does not answer. What is held is typed then.
    pub fn give_up(&mut self) -> Vec<u8> {
        self.waiting = false;
        core::mem::take(&mut self.held)
    }

    /// Takes a byte: hands on what is typed for certain, and returns the answer if this ended it.
    pub fn input(&mut self, byte: u8, mut typed: impl FnMut(u8)) -> Option<Size> {
        if byte == 0x1b && self.waiting {
            // Whatever was held was something else.
            self.held.drain(..).for_each(&mut typed);
        } else if self.held.is_empty() {
            typed(byte);
            return None;
        }
        self.held.push(byte);
        let possible = match self.held.as_slice() {
            [_] | [_, b'['] => true,
            [_, b'[', middle @ .., last] => {
                let digits = |b: &u8| b.is_ascii_digit() || *b == b';';
                if *last == b'R'
                    && let Some(size) = size(middle)
                {
                    self.give_up();
                    return Some(size);
                }
                middle.iter().chain([last]).all(digits) && self.held.len() < MAX_ANSWER
            }
            _ => false,
        };
        if !possible {
            self.held.drain(..).for_each(typed);
        }
        None
    }
}

/// `row;column` of the corner.
fn size(text: &[u8]) -> Option<Size> {
    let (rows, columns) = core::str::from_utf8(text).ok()?.split_once(';')?;
    Some(Size {
        rows: rows.parse().ok().filter(|n| *n > 0)?,
        columns: columns.parse().ok().filter(|n| *n > 0)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(answers: &mut Answers, bytes: &[u8]) -> (Vec<u8>, Option<Size>) {
        let (mut typed, mut found) = (Vec::new(), None);
        for b in bytes {
            found = answers.input(*b, |b| typed.push(b)).or(found);
        }
        (typed, found)
    }

    #[test]
    fn the_answer_is_taken_from_between_keys() {
        let mut a = Answers::default();
        let plain = b"\x1b[24;80R";
        assert_eq!(feed(&mut a, plain), (plain.to_vec(), None));
        a.asked();
        let size = Size {
            rows: 50,
            columns: 132,
        };
        assert_eq!(
            feed(&mut a, b"li\x1b[A\x1b\x1b[50;132Rst"),
            (b"li\x1b[A\x1bst".to_vec(), Some(size))
        );
        assert!(!a.waiting());
        // One is asked for, one is taken.
        assert_eq!(feed(&mut a, plain), (plain.to_vec(), None));
    }

    #[test]
    fn what_is_no_answer_is_typed() {
        for keys in [
            &b"\x1b[1;5D"[..],
            b"\x1bOP",
            b"\x1b[3~",
            b"\x1b[0;0R",
            b"\x1b[R",
            b"\x1b[1;2;3R",
            b"\x1b[99999;1R",
            b"\x1b[1111111111111111111",
        ] {
            let mut a = Answers::default();
            a.asked();
            assert_eq!(feed(&mut a, keys), (keys.to_vec(), None), "{keys:?}");
        }
        let mut a = Answers::default();
        a.asked();
        assert_eq!(feed(&mut a, b"x\x1b[12"), (b"x".to_vec(), None));
        assert_eq!(a.give_up(), b"\x1b[12");
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_added(keys in "[a\x1b\\[;R0-9]{0,40}") {
            let mut a = Answers::default();
            a.asked();
            let (mut typed, found) = feed(&mut a, keys.as_bytes());
            typed.extend(a.give_up());
            match found {
                None => proptest::prop_assert_eq!(typed, keys.into_bytes()),
                Some(_) => proptest::prop_assert!(typed.len() + 6 <= keys.len()),
            }
        }
    }
}
