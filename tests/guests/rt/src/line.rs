// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines that are typed.

use crate::Console;
use alloc::string::String;

/// Most bytes of a line; further ones are not taken.
const LONGEST: usize = 200;

/// A line that is being typed.
#[derive(Default)]
pub struct Line(String);

impl Line {
    /// Takes and echoes what was typed; the line, without space around it, once it is complete. Does not wait.
    pub fn typed(&mut self, console: &mut Console) -> Option<String> {
        while let Some(byte) = console.byte() {
            match byte {
                b'\r' | b'\n' => {
                    console.write(b"\r\n");
                    return Some(core::mem::take(&mut self.0).trim().into());
                }
                8 | 127 if self.0.pop().is_some() => console.write(b"\x08 \x08"),
                b' '..=b'~' if self.0.len() < LONGEST => {
                    self.0.push(byte as char);
                    console.write(&[byte]);
                }
                _ => {}
            }
        }
        None
    }
}
