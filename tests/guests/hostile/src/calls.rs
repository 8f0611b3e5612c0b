// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercalls: every number and operation, with arguments that are nearly right more often than not, so that they come
//! far, at places that are not.

use crate::scene::{PAGE, evil, layout};
use crate::{Op, Rng, Scene};

/// Double words that a call's structures take at most.
const WORDS: usize = 64;

/// Bytes that are put into memory before a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Guest physical address in the attacker's own memory, a multiple of 8.
    pub at: u64,
    words: [u64; WORDS],
    len: usize,
}

impl Blob {
    const fn new(at: u64) -> Self {
        Self {
            at,
            words: [0; WORDS],
            len: 0,
        }
    }

    /// What is to be there, as double words.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        self.words.get(..self.len).unwrap_or_default()
    }

    /// Puts a field of 1 to 8 bytes, aligned to its size.
    fn put(&mut self, offset: usize, size: usize, value: u64) {
        let mask = if size >= 8 {
            u64::MAX
        } else {
            (1 << (size * 8)) - 1
        };
        let shift = offset % 8 * 8;
        if let Some(word) = self.words.get_mut(offset / 8) {
            *word = *word & !(mask << shift) | (value & mask) << shift;
            self.len = self.len.max(offset / 8 + 1);
        }
    }
}

/// A hypercall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub nr: u64,
    /// x0 to x4.
    pub x: [u64; 5],
    /// Its structures.
    pub blob: Blob,
    /// It may put the vcpu to sleep.
    pub sleeps: bool,
    /// How often it is made.
    pub times: u8,
}

/// Where a structure is put and by which address it is named: in one's own arguments, often at a page's end, and seen
/// through one of the ways of [`evil`], or at no good address at all.
fn place(r: &mut Rng, s: &Scene) -> (u64, u64) {
    let page = r.below(layout::ARGUMENTS);
    let offset = match r.below(8) {
        0..4 => r.below(64) * 8,
        4 => PAGE - 8 * (1 + r.below(16)),
        5 => r.below(PAGE / 8) * 8,
        // Not aligned.
        6 => r.below(PAGE - 512),
        _ => 0,
    };
    let at = s.args(s.vcpu) + page * PAGE + offset;
    let block = |block: u64| {
        let n = block * evil::BLOCK + s.vcpu % layout::VCPUS * layout::ARGUMENTS + page;
        evil::BASE + n * PAGE + offset
    };
    match r.below(32) {
        0..18 => (at, at),
        18 => (at, block(0)),
        19 => (at, block(1)),
        20 => (at, block(2)),
        21 => (at, block(3)),
        22 => (at, block(4)),
        23 => (
            at,
            evil::BASE + (5 * evil::BLOCK) * PAGE + r.below(0x4_0000),
        ),
        24 => (
            at,
            evil::BASE + (6 * evil::BLOCK) * PAGE + r.below(0x4_0000),
        ),
        25 | 26 => (at, block(7)),
        // The last page of all, up to its last byte.
        27 => {
            let last = s.args(layout::VCPUS - 1) + (layout::ARGUMENTS - 1) * PAGE;
            let offset = PAGE - r.pick(&[8, 16, 24, 32, 40, 64, 128, 4096]);
            (last + offset, 0u64.wrapping_sub(PAGE - offset))
        }
        28 => (
            at,
            r.pick(&[
                0xffff_ffff_ffff_fff0,
                0xffff_ffff_ffff_f000,
                0xffff_0000_0000_0000,
                0xffff_8000_0000_1000,
            ]),
        ),
        29 => (at, s.device_address(r, 8)),
        30 => (at, s.value(r)),
        _ => (at, r.border()),
    }
}

fn call(nr: u64, x: [u64; 5], mut blob: Blob) -> Call {
    blob.at &= !7;
    Call {
        nr,
        x,
        blob,
        sleeps: false,
        times: 1,
    }
}

/// `SCHEDOP_shutdown` or one like it.
pub(crate) fn shutdown(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    let op = if r.one_in(4) { 4 } else { 2 };
    if op == 4 {
        b.put(0, 2, 0x7ff0);
        b.put(4, 4, r.below(6));
    } else {
        // Reasons that there are, and those that there are not.
        b.put(0, 4, if r.one_in(4) { r.border() } else { r.below(6) });
    }
    call(29, [op, va, 0, 0, 0], b)
}

/// The same call many times.
pub(crate) fn storm(r: &mut Rng, s: &Scene) -> Call {
    let mut call = any(r, s);
    if !call.sleeps {
        call.times = 2 + r.below(40) as u8;
    }
    call
}

/// Any hypercall.
pub(crate) fn any(r: &mut Rng, s: &Scene) -> Call {
    match r.below(64) {
        0..14 => memory(r, s),
        14..28 => events(r, s),
        28..44 => grants(r, s),
        44..48 => sched(r, s),
        48..52 => vcpu(r, s),
        52..55 => hvm(r, s),
        55..60 => multicall(r, s),
        60 if r.one_in(16) => console(r, s),
        60 | 61 => version(r, s),
        _ => other(r, s),
    }
}

/// Fills what a structure leaves open, sometimes.
fn junk(r: &mut Rng, s: &Scene, b: &mut Blob) {
    if r.one_in(6) {
        for i in 0..12 {
            b.put(i * 8, 8, s.value(r));
        }
    }
}

fn memory(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    junk(r, s, &mut b);
    let reservation = |r: &mut Rng, b: &mut Blob, o: usize, list: u64, n: u64| {
        b.put(o, 8, list);
        b.put(o + 8, 8, n);
        b.put(o + 16, 4, s.order(r));
        b.put(o + 20, 4, if r.one_in(8) { r.border() } else { 0 });
        b.put(o + 24, 2, s.domid(r));
    };
    let count = |r: &mut Rng| match r.below(8) {
        0..6 => 1 + r.below(16),
        6 => r.below(512),
        _ => r.border(),
    };
    let mut op = match r.below(32) {
        0..7 => 1,
        7..14 => 6,
        14 => 0,
        15 => 11,
        16..21 => 7,
        21..23 => 23,
        23..25 => 15,
        25 => 28,
        26 => 9,
        27 => r.pick(&[2, 3, 4, 14]),
        _ => r.below(32),
    };
    // A list of frames behind the structure.
    let list = va.wrapping_add(128);
    match op {
        0 | 1 | 6 => {
            let n = count(r);
            let list = if r.one_in(8) { s.value(r) } else { list };
            reservation(r, &mut b, 0, list, n);
            let base = s.gfn(r);
            for i in 0..16 {
                let gfn = match r.below(4) {
                    0 => s.gfn(r),
                    _ => base.wrapping_add(i as u64),
                };
                b.put(128 + i * 8, 8, gfn);
            }
            // Where a sliced call goes on is the guest's to say.
            if r.one_in(8) {
                op |= r.below(600) << 6;
            }
        }
        11 => {
            let n = count(r);
            reservation(r, &mut b, 0, list, n);
            reservation(r, &mut b, 32, list.wrapping_add(64), n);
            b.put(64, 8, r.below(2) * r.below(16));
            for i in 0..16 {
                b.put(128 + i * 8, 8, s.gfn(r));
            }
        }
        7 => {
            b.put(0, 2, s.domid(r));
            b.put(2, 2, r.below(4) * r.below(200));
            b.put(
                4,
                4,
                if r.one_in(8) {
                    r.below(8)
                } else {
                    r.below(3) % 2
                },
            );
            b.put(
                8,
                8,
                match r.below(8) {
                    0..6 => r.below(8),
                    6 => 0x8000_0000 | r.below(8),
                    _ => r.border(),
                },
            );
            let gfn = if r.one_in(3) {
                s.window / PAGE + r.below(8)
            } else {
                s.gfn(r)
            };
            b.put(16, 8, gfn);
        }
        23 => {
            b.put(0, 2, s.domid(r));
            b.put(2, 2, r.below(6));
            b.put(4, 2, if r.one_in(6) { r.border() } else { r.below(16) });
            b.put(6, 2, s.domid(r));
            for (i, field) in [8, 16, 24].into_iter().enumerate() {
                b.put(field, 8, list.wrapping_add(i as u64 * 64));
            }
            for i in 0..16 {
                b.put(128 + i * 8, 8, s.gfn(r));
            }
        }
        15 => {
            b.put(0, 2, s.domid(r));
            b.put(8, 8, s.gfn(r));
        }
        28 => {
            b.put(0, 2, s.domid(r));
            b.put(2, 2, r.below(3));
            b.put(4, 4, r.below(3));
            b.put(8, 4, r.below(8));
            b.put(16, 8, r.below(4));
            b.put(24, 8, list);
        }
        9 | 10 => {
            b.put(0, 4, r.below(8));
            b.put(8, 8, list);
        }
        _ => b.put(0, 2, s.domid(r)),
    }
    call(12, [op, va, s.value(r), s.value(r), s.value(r)], b)
}

fn events(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    junk(r, s, &mut b);
    let op = match r.below(64) {
        0..8 => 0,
        8..14 => 1,
        14..16 => 2,
        16..24 => 3,
        24..34 => 4,
        34..38 => 5,
        38..44 => 6,
        44..48 => 7,
        48..52 => 8,
        52..55 => 9,
        55 if r.one_in(12) => 10,
        55 => 4,
        56..58 if s.own.is_multiple_of(2) || r.one_in(40) => 11,
        58 | 59 => 12,
        60..62 => 13,
        _ => r.below(16),
    };
    match op {
        0 => {
            b.put(0, 2, s.domid(r));
            b.put(4, 4, s.port(r));
        }
        1 => {
            b.put(0, 4, r.below(16) * (1 + r.below(2)));
            b.put(4, 4, s.vcpu(r));
        }
        5 => {
            b.put(0, 2, s.domid(r));
            b.put(4, 4, s.port(r));
        }
        6 => {
            b.put(0, 2, s.domid(r));
            b.put(2, 2, s.domid(r));
        }
        7 => b.put(0, 4, s.vcpu(r)),
        8 => {
            b.put(0, 4, s.port(r));
            b.put(4, 4, s.vcpu(r));
        }
        10 => b.put(0, 2, s.domid(r)),
        11 => {
            b.put(0, 8, s.arena / PAGE + layout::SHARED + 1 + r.below(4));
            b.put(8, 4, r.pick(&[0, 72, 144, 512, 4024, 4096, 0xffff_ffff]));
            b.put(12, 4, s.vcpu(r));
        }
        12 => {
            let gfn = if r.one_in(4) {
                s.gfn(r)
            } else {
                s.arena / PAGE + layout::SHARED + 5 + r.below(3)
            };
            b.put(0, 8, gfn);
        }
        13 => {
            b.put(0, 4, s.port(r));
            b.put(4, 4, r.below(18));
        }
        _ => b.put(0, 4, s.port(r)),
    }
    call(32, [op, va, s.value(r), s.value(r), s.value(r)], b)
}

fn grants(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    junk(r, s, &mut b);
    let op = match r.below(32) {
        0..9 => 0,
        9..17 => 1,
        17 => 2,
        18..25 => 5,
        25 => 6,
        26 => 7,
        27 => 12,
        28 => 11,
        _ => r.below(14),
    };
    let window = |r: &mut Rng| match r.below(16) {
        0..13 => s.window + (8 + r.below(40)) * PAGE,
        13 => s.gfn(r).wrapping_mul(PAGE),
        _ => s.value(r),
    };
    let mut n = 1 + r.below(6);
    let own_offset = |r: &mut Rng| match r.below(4) {
        0 => 0,
        1 => r.below(PAGE),
        2 => PAGE - r.below(4),
        _ => r.below(0x1_0000),
    };
    match op {
        0 => {
            for i in 0..8 {
                let o = i * 32;
                b.put(o, 8, window(r));
                b.put(
                    o + 8,
                    4,
                    match r.below(8) {
                        0..4 => 2,
                        4..7 => 6,
                        _ => r.below(64),
                    },
                );
                b.put(o + 12, 4, s.gref(r));
                let dom = if r.one_in(2) { s.own } else { s.domid(r) };
                b.put(o + 16, 2, dom);
                // The witness's grants for this domain.
                if r.one_in(6) {
                    b.put(o + 12, 4, 8 + s.own);
                    b.put(o + 16, 2, s.peer);
                }
            }
        }
        1 | 7 => {
            for i in 0..8 {
                let o = i * 24;
                let at = window(r);
                b.put(o, 8, at);
                b.put(o + 8, 8, if op == 7 { window(r) } else { 0 });
                let handle = if r.one_in(16) {
                    r.border()
                } else {
                    r.below(64)
                };
                b.put(o + 16, 4, handle);
            }
        }
        2 => {
            b.put(0, 2, s.domid(r));
            b.put(4, 4, r.below(10));
            b.put(16, 8, va.wrapping_add(64));
        }
        4 => {
            b.put(0, 8, s.gfn(r));
            b.put(8, 2, s.domid(r));
            b.put(12, 4, s.gref(r));
        }
        5 => {
            for i in 0..8 {
                let o = i * 40;
                let flags = r.below(4) | if r.one_in(16) { r.border() } else { 0 };
                for (side, bit) in [(0, 1), (16, 2)] {
                    let gref = flags & bit != 0;
                    let what = if gref { s.gref(r) } else { s.gfn(r) };
                    b.put(o + side, 8, what);
                    let dom = match (gref, r.below(4)) {
                        (true, 0) => s.peer,
                        (true, _) => s.domid(r),
                        (false, 0) => s.domid(r),
                        (false, _) => 0x7ff0,
                    };
                    b.put(o + side + 8, 2, dom);
                    b.put(o + side + 10, 2, own_offset(r));
                }
                b.put(o + 32, 2, own_offset(r));
                b.put(o + 34, 2, flags);
            }
        }
        12 => {
            for i in 0..8 {
                let o = i * 16;
                let gref = r.one_in(2);
                let what = if gref {
                    s.gref(r)
                } else {
                    s.gfn(r).wrapping_mul(PAGE)
                };
                b.put(o, 8, what);
                b.put(o + 8, 2, own_offset(r));
                b.put(o + 10, 2, own_offset(r));
                b.put(o + 12, 4, r.below(4) | u64::from(gref) << 31);
            }
        }
        _ => {
            b.put(0, 4, s.domid(r));
            b.put(4, 4, s.gref(r));
        }
    }
    if r.one_in(16) {
        n = match r.below(3) {
            0 => r.below(200),
            1 => r.border(),
            _ => 0,
        };
    }
    call(20, [op, va, n, s.value(r), s.value(r)], b)
}

fn sched(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    junk(r, s, &mut b);
    let op = match r.below(16) {
        0..5 => 0,
        5..7 => 1,
        7..10 => 3,
        10 => 4,
        11 => 6,
        12 => 7,
        13 => 5,
        _ => r.below(10),
    };
    // What ends the domain comes seldom, and not here.
    let op = if op == 2 { 9 } else { op };
    match op {
        5 => b.put(0, 4, 0),
        3 => {
            b.put(0, 8, va.wrapping_add(64));
            b.put(
                8,
                4,
                if r.one_in(8) {
                    r.border()
                } else {
                    r.below(130)
                },
            );
            b.put(
                16,
                8,
                match r.below(4) {
                    0 => 1,
                    1 => r.below(1 << 30),
                    2 => r.below(1 << 40),
                    _ => 0,
                },
            );
            for i in 0..8 {
                b.put(64 + i * 4, 4, s.port(r));
            }
        }
        4 => {
            // Not itself: that is an end.
            let dom = s.domid(r);
            let own = dom == 0x7ff0 || dom == s.own;
            b.put(0, 2, if own { s.peer } else { dom });
            b.put(4, 4, r.below(6));
        }
        6 => {
            b.put(0, 4, r.below(4));
            b.put(
                4,
                4,
                if r.one_in(8) {
                    r.border()
                } else {
                    5 + r.below(100)
                },
            );
        }
        _ => {}
    }
    let mut call = call(29, [op, va, s.value(r), s.value(r), s.value(r)], b);
    call.sleeps = matches!(op, 1 | 3);
    call
}

fn vcpu(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    junk(r, s, &mut b);
    let op = match r.below(8) {
        0 => 10,
        1 => 5,
        2 => 8,
        3 => 9,
        4 => r.pick(&[3, 4]),
        5 => r.pick(&[6, 7]),
        _ => r.below(16),
    };
    match op {
        10 => {
            b.put(0, 8, s.arena / PAGE + layout::SHARED + r.below(16));
            b.put(
                8,
                4,
                r.pick(&[0, 64, 128, 4048, 4032, 4095, 1, 0xffff_ffff]),
            );
        }
        5 | 13 => b.put(0, 8, place(r, s).1),
        6 | 8 => {
            b.put(
                0,
                8,
                if r.one_in(2) {
                    r.border()
                } else {
                    r.below(1 << 36)
                },
            );
            b.put(8, 4, r.below(3));
        }
        _ => {}
    }
    call(24, [op, s.vcpu(r), va, s.value(r), s.value(r)], b)
}

fn hvm(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    junk(r, s, &mut b);
    let op = if r.one_in(4) { r.below(28) } else { r.below(2) };
    b.put(0, 2, s.domid(r));
    b.put(4, 4, r.below(40));
    b.put(8, 8, s.value(r));
    call(34, [op, va, s.value(r), s.value(r), s.value(r)], b)
}

fn console(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    b.put(0, 8, u64::from_le_bytes(*b"hostile\n"));
    let count = match r.below(4) {
        0 => r.below(64),
        1 => r.border(),
        2 => r.below(4096),
        _ => 8,
    };
    let va = if r.one_in(2) { at } else { va };
    let op = if r.one_in(4) { r.below(4) } else { 0 };
    // What is printed is limited, and has no place where people look.
    let count = if op == 0 && va == at { 8 } else { count };
    call(18, [op, count, va, s.value(r), s.value(r)], b)
}

fn version(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    junk(r, s, &mut b);
    b.put(0, 4, r.below(4));
    call(17, [r.below(13), va, s.value(r), s.value(r), s.value(r)], b)
}

/// What is the control domain's, what is gone, and what never was.
fn other(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    let nr = match r.below(4) {
        0 => r.pick(&[35, 36, 7]),
        1 => r.below(64),
        2 => r.pick(&[48, 49, 50, 55, 33, 40, 41, 26]),
        _ => r.border(),
    };
    // By chance a number that a careful hand deals with.
    let nr = if matches!(nr, 18 | 29) { 17 } else { nr };
    b.put(0, 4, r.below(90));
    b.put(4, 4, r.pick(&[0x15, 0x14, 0x16, 0x0300_0000]));
    b.put(8, 2, s.domid(r));
    for i in 2..14 {
        b.put(i * 8, 8, s.value(r));
    }
    let first = if matches!(nr, 35 | 36 | 7) {
        va
    } else {
        r.below(32)
    };
    call(nr, [first, va, s.value(r), s.value(r), s.value(r)], b)
}

/// Several calls in one, that share the arguments of the first pages.
fn multicall(r: &mut Rng, s: &Scene) -> Call {
    let (at, va) = place(r, s);
    let mut b = Blob::new(at);
    let n = 1 + r.below(6);
    for i in 0..n as usize {
        let inner = match r.below(6) {
            0 => memory(r, s),
            1 => events(r, s),
            2 | 3 => grants(r, s),
            4 => vcpu(r, s),
            _ if r.one_in(4) => call(13, [va, r.below(8), 0, 0, 0], Blob::new(at)),
            _ => sched(r, s),
        };
        // Not asleep in the midst of it without somebody who wakes it.
        let nr = if inner.sleeps { 17 } else { inner.nr };
        b.put(i * 64, 8, nr);
        for (k, x) in inner.x.iter().enumerate() {
            b.put(i * 64 + 16 + k * 8, 8, *x);
        }
        // The last ones' structures take the place of entries.
        if n < 4 {
            for (k, word) in inner.blob.words().iter().take(24).enumerate() {
                b.put(256 + k * 8, 8, *word);
            }
            let away = inner.x.iter().position(|x| *x == inner.blob.at);
            if let Some(k) = away {
                b.put(i * 64 + 16 + k * 8, 8, va.wrapping_add(256));
            }
        }
    }
    let count = match r.below(16) {
        0 => r.below(64),
        1 => r.border(),
        _ => n,
    };
    call(13, [va, count, s.value(r), s.value(r), s.value(r)], b)
}

/// A call as an operation.
impl From<Call> for Op {
    fn from(call: Call) -> Self {
        Self::Call(call)
    }
}
