// SPDX-License-Identifier: MIT OR Apache-2.0
//! What takes bytes that nobody vouches for, on arbitrary ones: each target's bytes are acts of somebody hostile, one
//! after the other until none is left. Nothing panics, and what a target says beside that holds.
//!
//! `cargo xtask fuzz` runs them under libFuzzer (`libfuzzer/`), guided by coverage; `cargo test -p fuzz` gives each
//! a bounded number of random inputs.
#![forbid(unsafe_code)]

mod blk;
mod hypercalls;
mod net;
mod text;
mod traps;

use core::sync::atomic::AtomicU32;
use guest_abi::mem::SharedMem;

/// A target's name, and what is done with the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("hypercalls", hypercalls::hypercalls),
    ("traps", traps::traps),
    ("device-tree", text::device_tree),
    ("image-header", text::image_header),
    ("xl-config", text::xl_config),
    ("xenstore", text::xenstore),
    ("console", text::console),
    ("netback", net::netback),
    ("blkback", blk::blkback),
];

/// Runs one target.
///
/// # Panics
/// If there is none of that name, and where the target finds something.
pub fn run(target: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let Some((_, body)) = found else {
        panic!("no target {target}");
    };
    body(data);
}

/// A ring's page.
struct Page(Box<[AtomicU32]>);

impl Page {
    /// Whose indices are all at `start`.
    fn new(start: u32) -> Self {
        use guest_abi::io::ring::head;
        let page: Self = Self((0..1024).map(|_| AtomicU32::new(0)).collect());
        page.mem().store32(head::REQ_PROD, start);
        page.mem().store32(head::RSP_PROD, start);
        page
    }

    fn mem(&self) -> &[AtomicU32] {
        &self.0
    }

    /// Writes within the page.
    fn write(&self, at: usize, bytes: &[u8]) {
        let n = bytes.len().min(4096_usize.saturating_sub(at));
        self.mem().write(at, &bytes[..n]);
    }
}

/// The bytes that are left. When there are none, all are zero.
struct Input<'d>(&'d [u8]);

impl<'d> Input<'d> {
    fn take(&mut self, n: usize) -> &'d [u8] {
        let (now, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        now
    }

    fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    /// The next act, until nothing is left.
    fn act(&mut self) -> Option<u8> {
        (!self.0.is_empty()).then(|| self.u8())
    }

    /// What a front end wrote to a key of the store: often a number.
    fn value(&mut self) -> Option<String> {
        match self.u8() {
            0..128 => None,
            128..192 => Some((self.u8() % 3).to_string()),
            192..240 => Some(self.u32().to_string()),
            n => Some(String::from_utf8_lossy(self.take(usize::from(n % 16))).into_owned()),
        }
    }

    fn state(&mut self) -> guest_abi::io::xenbus::State {
        use guest_abi::io::xenbus::State;
        State::from_number(u32::from(self.u8() % 9)).unwrap_or(State::Unknown)
    }
}
