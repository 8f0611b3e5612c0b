// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table against a model of the hypervisor and of a peer that maps and unmaps.

extern crate std;

use super::*;
use crate::grant_table::GnttabQuerySize;
use crate::memory::{AddToPhysmap, MemoryOp};
use crate::{HypercallNr, Lent, call};
use core::cell::Cell;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::{vec, vec::Vec};
use zerocopy::IntoBytes;

/// A hypervisor whose tables may have `frames` frames, and which has mapped `mapped`.
#[derive(Debug)]
struct Fake {
    frames: u32,
    mapped: Cell<u64>,
}

impl Fake {
    fn new(frames: u32) -> Self {
        Self {
            frames,
            mapped: Cell::new(0),
        }
    }
}

const WINDOW: Gfn = Gfn(0x38000);

impl Hypercall for Fake {
    fn call(&self, nr: HypercallNr, args: [u64; 5], lent: &mut [Lent<'_>]) -> i64 {
        match nr {
            HypercallNr::GrantTableOp => {
                let a = GnttabQuerySize {
                    dom: DomId::SELF,
                    nr_frames: 1,
                    max_nr_frames: self.frames,
                    ..Default::default()
                };
                assert!(call::write(lent, args[1], a.as_bytes()));
            }
            HypercallNr::MemoryOp => {
                assert_eq!(args[0], MemoryOp::AddToPhysmap.number());
                let mut a = AddToPhysmap::default();
                assert!(call::read(lent, args[1], a.as_mut_bytes()));
                assert_eq!(a.space, MapSpace::GrantTable.number());
                assert_eq!(a.idx, self.mapped.get(), "frames come in order");
                assert_eq!(a.gpfn, Gfn(WINDOW.0 + a.idx));
                if a.idx >= u64::from(self.frames) {
                    return Errno::EINVAL.to_ret();
                }
                self.mapped.set(a.idx + 1);
            }
            _ => unreachable!(),
        }
        0
    }
}

fn memory(frames: usize) -> Vec<Cell<u8>> {
    vec![Cell::new(0); frames * 4096]
}

fn entry(mem: &[Cell<u8>], gref: u32) -> (u16, u16, u32) {
    let w = mem.load32(gref as usize * 8);
    (
        w as u16,
        (w >> 16) as u16,
        mem.load32(gref as usize * 8 + 4),
    )
}

#[test]
fn entries_say_what_was_granted() {
    let mem = memory(1);
    let mut t = GrantTable::new(Fake::new(4), &mem[..], WINDOW, [7; 10]).unwrap();
    assert_eq!(t.available(), 2);
    let a = t.grant::<ReadWrite>(DomId(3), Gfn(0x1234)).unwrap();
    let b = t.grant::<ReadOnly>(DomId(0), Gfn(0xffff_ffff)).unwrap();
    assert_eq!(
        (a.gref(), a.to(), a.gfn()),
        (GrantRef(8), DomId(3), Gfn(0x1234))
    );
    assert_eq!(entry(&mem, 8), (1, 3, 0x1234));
    assert_eq!(entry(&mem, 9), (1 | 4, 0, 0xffff_ffff));
    assert_eq!(t.grant::<ReadOnly>(DomId(0), Gfn(1)), Err(Errno::ENOSPC));
    assert_eq!(
        t.grant::<ReadOnly>(DomId(0), Gfn(1 << 32)),
        Err(Errno::EOVERFLOW)
    );
    assert_eq!(t.end(a), Ok(Gfn(0x1234)));
    assert_eq!(entry(&mem, 8).0, 0);
    assert_eq!(t.available(), 1);
    assert_eq!(t.end(b), Ok(Gfn(0xffff_ffff)));
}

#[test]
fn ending_what_is_in_use_fails_and_gives_the_grant_back() {
    let mem = memory(1);
    let mut t = GrantTable::new(Fake::new(1), &mem[..], WINDOW, [0; 9]).unwrap();
    for used in [gtf::READING, gtf::WRITING | gtf::READING] {
        let g = t.grant::<ReadWrite>(DomId(1), Gfn(5)).unwrap();
        assert!(!t.in_use(&g));
        mem[..].fetch_or32(64, used.into());
        assert!(t.in_use(&g));
        let InUse(g) = t.end(g).unwrap_err();
        assert_eq!(entry(&mem, 8), (1 | used, 1, 5));
        mem[..].fetch_and32(64, !u32::from(used));
        assert_eq!(t.end(g), Ok(Gfn(5)));
    }
}

#[test]
fn the_toolstacks_entries_and_those_of_an_earlier_kernel_stay() {
    let mem = memory(1);
    let word = u32::from(gtf::PERMIT_ACCESS) | 5 << 16;
    for gref in 0..8 {
        mem[..].store32(gref * 8, word);
    }
    mem[..].store32(8 * 8, word | u32::from(gtf::READING));
    mem[..].store32(9 * 8, word);
    let mut t = GrantTable::new(Fake::new(1), &mem[..], WINDOW, [0; 11]).unwrap();
    let g = t.grant::<ReadOnly>(DomId(1), Gfn(2)).unwrap();
    assert_eq!(g.gref(), GrantRef(9), "8 is in use");
    assert_eq!(t.available(), 1);
    for gref in 0..8 {
        assert_eq!(mem[..].load32(gref * 8), word);
    }
    let none = GrantTable::new(Fake::new(1), &mem[..], WINDOW, [0; 8]);
    assert_eq!(none.unwrap_err(), Errno::ENOSPC.into());
}

/// Memory in which the other domain maps or unmaps before each exchange.
struct Busy<'a>(&'a [Cell<u8>], Cell<u32>);

impl SharedMem for Busy<'_> {
    fn load32(&self, offset: usize) -> u32 {
        self.0.load32(offset)
    }
    fn store32(&self, offset: usize, value: u32) {
        self.0.store32(offset, value);
    }
    fn fetch_and32(&self, _: usize, _: u32) -> u32 {
        unreachable!()
    }
    fn fetch_or32(&self, _: usize, _: u32) -> u32 {
        unreachable!()
    }
    fn compare_exchange32(&self, offset: usize, old: u32, _: u32) -> Result<u32, u32> {
        if (64..64 + 8).contains(&offset) && old != 0 {
            self.1.set(self.1.get() + 1);
            return Err(old ^ 1 << 5);
        }
        Ok(old)
    }
    fn read(&self, _: usize, _: &mut [u8]) {
        unreachable!()
    }
    fn write(&self, _: usize, _: &[u8]) {
        unreachable!()
    }
}

#[test]
fn an_entry_that_keeps_changing_is_given_up() {
    let mem = memory(1);
    let busy = Busy(&mem, Cell::new(0));
    let mut t = GrantTable::new(Fake::new(1), &busy, WINDOW, [0; 9]).unwrap();
    let g = t.grant::<ReadWrite>(DomId(1), Gfn(5)).unwrap();
    let InUse(g) = t.end(g).unwrap_err();
    assert_eq!(busy.1.get(), TRIES);
    assert_eq!(t.end_later(g), None);
    t.sweep(|_| panic!("it is in use"));
    assert_eq!((t.waiting(), busy.1.get()), (1, 3 * TRIES));
}

#[derive(Clone, Debug)]
enum Step {
    Grant(u16, u32, bool),
    End(usize),
    EndLater(usize),
    Map(usize, bool),
    Unmap(usize),
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u16..4, any::<u32>(), any::<bool>()).prop_map(|(d, f, w)| Step::Grant(d, f, w)),
        3 => any::<usize>().prop_map(Step::End),
        2 => any::<usize>().prop_map(Step::EndLater),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(n, w)| Step::Map(n, w)),
        3 => any::<usize>().prop_map(Step::Unmap),
        1 => Just(Step::Sweep),
    ]
}

enum Any {
    Ro(Grant<ReadOnly>),
    Rw(Grant<ReadWrite>),
}

impl Any {
    fn gref(&self) -> u32 {
        match self {
            Any::Ro(g) => g.gref().0,
            Any::Rw(g) => g.gref().0,
        }
    }
}

/// A number below `n`, if there is one.
fn pick(of: usize, n: usize) -> Option<usize> {
    of.checked_rem(n)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..Default::default() })]
    /// No reference is in two hands, entries say what their owner granted until it ended, pages come
    /// back when nobody uses them, and in the end everything is there again.
    #[test]
    fn a_model_holds(extra in 0u32..1100, steps in prop::collection::vec(step(), 0..200)) {
        let refs = 9 + extra % 900;
        let frames = refs.div_ceil(512);
        let mem = memory(frames as usize);
        let shared: &[Cell<u8>] = &mem;
        let mut t = GrantTable::new(Fake::new(frames), shared, WINDOW, vec![0; refs as usize]).unwrap();
        let total = t.available();
        prop_assert_eq!(total, refs - 8);
        let mut held: Vec<Any> = Vec::new();
        // What an entry must say, and how often the peer has it mapped for reading and for writing.
        let mut model: BTreeMap<u32, (u16, u16, u32)> = BTreeMap::new();
        let mut waiting: BTreeMap<u32, u32> = BTreeMap::new();
        for s in steps {
            match s {
                Step::Grant(d, f, w) => {
                    let g = if w {
                        t.grant(DomId(d), Gfn(f.into())).map(Any::Rw)
                    } else {
                        t.grant(DomId(d), Gfn(f.into())).map(Any::Ro)
                    };
                    match g {
                        Ok(g) => {
                            let flags = if w { 1 } else { 5 };
                            prop_assert!(model.insert(g.gref(), (flags, d, f)).is_none());
                            prop_assert!((8..refs).contains(&g.gref()));
                            held.push(g);
                        }
                        Err(e) => {
                            prop_assert_eq!(e, Errno::ENOSPC);
                            prop_assert_eq!(model.len() as u32, total);
                        }
                    }
                }
                Step::End(n) => if let Some(n) = pick(n, held.len()) {
                    let g = held.swap_remove(n);
                    let gref = g.gref();
                    let (flags, _, frame) = model[&gref];
                    let used = flags & (gtf::READING | gtf::WRITING) != 0;
                    let back = match g {
                        Any::Ro(g) => t.end(g).map_err(|e| Any::Ro(e.0)),
                        Any::Rw(g) => t.end(g).map_err(|e| Any::Rw(e.0)),
                    };
                    match back {
                        Ok(gfn) => {
                            prop_assert!(!used);
                            prop_assert_eq!(gfn, Gfn(frame.into()));
                            model.remove(&gref);
                        }
                        Err(g) => {
                            prop_assert!(used);
                            held.push(g);
                        }
                    }
                }
                Step::EndLater(n) => if let Some(n) = pick(n, held.len()) {
                    let g = held.swap_remove(n);
                    let gref = g.gref();
                    let ended = match g {
                        Any::Ro(g) => t.end_later(g),
                        Any::Rw(g) => t.end_later(g),
                    };
                    let (flags, _, frame) = model[&gref];
                    if flags & (gtf::READING | gtf::WRITING) != 0 {
                        prop_assert_eq!(ended, None);
                        waiting.insert(gref, frame);
                    } else {
                        prop_assert_eq!(ended, Some(Gfn(frame.into())));
                        model.remove(&gref);
                    }
                }
                Step::Map(n, w) => if let Some(n) = pick(n, model.len()) {
                    let (&gref, e) = model.iter_mut().nth(n).unwrap();
                    let w = w && e.0 & gtf::READONLY == 0;
                    let bits = gtf::READING | if w { gtf::WRITING } else { 0 };
                    e.0 |= bits;
                    shared.fetch_or32(gref as usize * 8, bits.into());
                }
                Step::Unmap(n) => if let Some(n) = pick(n, model.len()) {
                    let (&gref, e) = model.iter_mut().nth(n).unwrap();
                    e.0 &= !(gtf::READING | gtf::WRITING);
                    shared.fetch_and32(gref as usize * 8, !u32::from(gtf::READING | gtf::WRITING));
                }
                Step::Sweep => {
                    let mut back = Vec::new();
                    t.sweep(|gfn| back.push(gfn.0));
                    let mut expected = Vec::new();
                    waiting.retain(|gref, frame| {
                        let used = model[gref].0 & (gtf::READING | gtf::WRITING) != 0;
                        if !used {
                            expected.push(u64::from(*frame));
                            model.remove(gref);
                        }
                        used
                    });
                    back.sort_unstable();
                    expected.sort_unstable();
                    prop_assert_eq!(back, expected);
                }
            }
            prop_assert_eq!(t.waiting() as usize, waiting.len());
            prop_assert_eq!(t.available() + model.len() as u32, total);
            for (&gref, &e) in &model {
                prop_assert_eq!(entry(&mem, gref), e);
            }
        }
        for &gref in model.keys() {
            shared.fetch_and32(gref as usize * 8, !u32::from(gtf::READING | gtf::WRITING));
        }
        for g in held {
            match g {
                Any::Ro(g) => prop_assert!(t.end(g).is_ok()),
                Any::Rw(g) => prop_assert!(t.end(g).is_ok()),
            }
        }
        t.sweep(|_| {});
        prop_assert_eq!((t.available(), t.waiting()), (total, 0));
        for gref in 8..refs {
            prop_assert_eq!(entry(&mem, gref).0, 0);
        }
    }
}

#[test]
fn a_domain_that_was_restored() {
    let mem = memory(2);
    let mut t = GrantTable::new(Fake::new(2), &mem[..], WINDOW, [0; 1024]).unwrap();
    let grants: Vec<_> = (0..600)
        .map(|n| t.grant::<ReadWrite>(DomId(1), Gfn(n)).unwrap())
        .collect();
    let left = t.available();
    // Its table is a new one, with nothing in it, and is not mapped.
    t.h.mapped.set(0);
    mem.iter().for_each(|b| b.set(0));
    t.resume().unwrap();
    assert_eq!(t.h.mapped.get(), 2);
    for (grant, n) in grants.into_iter().zip(0..) {
        assert_eq!(t.end(grant), Ok(Gfn(n)));
    }
    assert_eq!(t.available(), left + 600);
}
