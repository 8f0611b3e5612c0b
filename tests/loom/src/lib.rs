// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory for [`loom`]: the hypervisor's own code on one side ([`PhysMem`]), a guest's on the other
//! ([`SharedMem`]), in every order of their accesses that the memory model allows.
//!
//! The orders are Armv8's. Its `LDAR` and `STLR`, and exchanges that acquire and release, are ordered among one
//! another as they stand in the program (RCsc, Arm ARM, "Load-Acquire, Store-Release"); C11's acquire and
//! release are not, so a fence stands behind each release here. Fences of `core` that the code has beside
//! that are not seen by loom, which makes the models stricter, never weaker.
#![forbid(unsafe_code)]

use guest_abi::mem::SharedMem;
use hv_core::machine::{Cache, CacheOp, Contended, Meter, PhysMem};
use hv_core::types::{Mfn, Pa};
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Words of memory that two threads of a model share. They are named before the threads begin; others read as 0, and
/// what is written to them is dropped.
#[derive(Clone, Debug, Default)]
pub struct Memory(BTreeMap<u64, Arc<AtomicU32>>);

impl Memory {
    /// The words of these ranges (address, bytes), all 0.
    #[must_use]
    pub fn new(ranges: &[(u64, u64)]) -> Self {
        let words = ranges
            .iter()
            .flat_map(|&(at, len)| (at..at + len).step_by(4));
        Self(words.map(|at| (at, Arc::new(AtomicU32::new(0)))).collect())
    }

    fn word(&self, at: u64) -> Option<&AtomicU32> {
        self.0.get(&(at & !3)).map(|word| &**word)
    }

    fn load(&self, at: u64) -> u32 {
        self.word(at).map_or(0, |w| w.load(Ordering::Acquire))
    }

    fn store(&self, at: u64, value: u32) {
        if let Some(word) = self.word(at) {
            word.store(value, Ordering::Release);
            fence(Ordering::SeqCst);
        }
    }

    fn exchange(&self, at: u64, old: u32, new: u32) -> Result<u32, u32> {
        let Some(word) = self.word(at) else {
            return if old == 0 { Ok(0) } else { Err(0) };
        };
        let r = word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire);
        fence(Ordering::SeqCst);
        r
    }

    fn update(&self, at: u64, f: impl Fn(u32) -> u32) -> u32 {
        let mut old = self.load(at);
        loop {
            match self.exchange(at, old, f(old)) {
                Ok(_) => return old,
                Err(now) => old = now,
            }
        }
    }

    fn or(&self, at: u64, bits: u32) -> u32 {
        let Some(word) = self.word(at) else { return 0 };
        let old = word.fetch_or(bits, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        old
    }

    fn and(&self, at: u64, bits: u32) -> u32 {
        let Some(word) = self.word(at) else { return 0 };
        let old = word.fetch_and(bits, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        old
    }
}

fn shift(pa: Pa) -> u32 {
    (pa.0 as u32 & 3) * 8
}

/// The part of a word that a smaller access means, and the word with that part replaced.
fn part(word: u32, pa: Pa, mask: u32) -> u32 {
    word >> shift(pa) & mask
}

fn with_part(word: u32, pa: Pa, mask: u32, value: u32) -> u32 {
    word & !(mask << shift(pa)) | (value & mask) << shift(pa)
}

/// An access of 64 bits is two of 32 here: nothing relies on more.
impl PhysMem for Memory {
    fn load8(&self, pa: Pa) -> u8 {
        part(self.load(pa.0), pa, 0xff) as u8
    }
    fn store8(&self, pa: Pa, v: u8) {
        self.update(pa.0, |w| with_part(w, pa, 0xff, v.into()));
    }
    fn swap8(&self, pa: Pa, v: u8) -> Result<u8, Contended> {
        let old = self.update(pa.0, |w| with_part(w, pa, 0xff, v.into()));
        Ok(part(old, pa, 0xff) as u8)
    }
    fn load16(&self, pa: Pa) -> u16 {
        part(self.load(pa.0), pa, 0xffff) as u16
    }
    fn store16(&self, pa: Pa, v: u16) {
        self.update(pa.0, |w| with_part(w, pa, 0xffff, v.into()));
    }
    fn load32(&self, pa: Pa) -> u32 {
        self.load(pa.0)
    }
    fn store32(&self, pa: Pa, v: u32) {
        self.store(pa.0, v);
    }
    fn cmpxchg32(&self, pa: Pa, old: u32, new: u32) -> Result<u32, Contended> {
        let (Ok(found) | Err(found)) = self.exchange(pa.0, old, new);
        Ok(found)
    }
    fn or32(&self, pa: Pa, bits: u32) -> Result<u32, Contended> {
        Ok(self.or(pa.0, bits))
    }
    fn and32(&self, pa: Pa, bits: u32) -> Result<u32, Contended> {
        Ok(self.and(pa.0, bits))
    }
    fn load64(&self, pa: Pa) -> u64 {
        u64::from(self.load(pa.0)) | u64::from(self.load(pa.0 + 4)) << 32
    }
    fn store64(&self, pa: Pa, v: u64) {
        self.store(pa.0, v as u32);
        self.store(pa.0 + 4, (v >> 32) as u32);
    }
    fn or64(&self, pa: Pa, bits: u64) -> Result<u64, Contended> {
        let low = self.or(pa.0, bits as u32);
        let high = self.or(pa.0 + 4, (bits >> 32) as u32);
        Ok(u64::from(low) | u64::from(high) << 32)
    }
    fn and64(&self, pa: Pa, bits: u64) -> Result<u64, Contended> {
        let low = self.and(pa.0, bits as u32);
        let high = self.and(pa.0 + 4, (bits >> 32) as u32);
        Ok(u64::from(low) | u64::from(high) << 32)
    }
    fn read(&self, pa: Pa, buf: &mut [u8]) {
        for (i, to) in buf.iter_mut().enumerate() {
            *to = self.load8(pa.add(i as u64));
        }
    }
    fn write(&self, pa: Pa, buf: &[u8]) {
        for (i, from) in buf.iter().enumerate() {
            self.store8(pa.add(i as u64), *from);
        }
    }
    fn copy(&self, dst: Pa, src: Pa, len: usize) {
        for i in 0..len as u64 {
            self.store8(dst.add(i), self.load8(src.add(i)));
        }
    }
    fn zero_page(&self, mfn: Mfn) {
        let page = self.0.range(mfn.addr()..mfn.addr() + 4096);
        page.for_each(|(at, _)| self.store(*at, 0));
    }
}

/// No model is so long that it matters.
impl Meter for Memory {
    fn spend(&self, _: u32) {}
    fn spent(&self) -> u32 {
        0
    }
    fn restart(&self) {}
}

/// No model has caches.
impl Cache for Memory {
    fn dcache(&self, _: Pa, _: u64, _: CacheOp) {}
    fn drop_instructions(&self) {}
}

/// A guest's view of memory from an address on.
#[derive(Clone, Debug)]
pub struct View {
    /// The memory.
    pub memory: Memory,
    /// Where offset 0 is.
    pub base: u64,
}

impl View {
    fn at(&self, offset: usize) -> u64 {
        self.base + offset as u64
    }
}

impl SharedMem for View {
    fn load32(&self, offset: usize) -> u32 {
        self.memory.load(self.at(offset))
    }
    fn store32(&self, offset: usize, value: u32) {
        self.memory.store(self.at(offset), value);
    }
    fn fetch_and32(&self, offset: usize, bits: u32) -> u32 {
        self.memory.and(self.at(offset), bits)
    }
    fn fetch_or32(&self, offset: usize, bits: u32) -> u32 {
        self.memory.or(self.at(offset), bits)
    }
    fn compare_exchange32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        self.memory.exchange(self.at(offset), old, new)
    }
    fn read(&self, offset: usize, to: &mut [u8]) {
        self.memory.read(Pa(self.at(offset)), to);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        // What a guest clears when it sets itself up is 0 in a model already.
        if from.iter().any(|b| *b != 0) {
            self.memory.write(Pa(self.at(offset)), from);
        }
    }
}

/// Runs `f` in every order of its threads' accesses, or in those with at most so many `switches` from a thread that
/// could go on. Says how many there were.
///
/// # Panics
/// If `f` does in one of them; if there are so few that the threads cannot have met.
pub fn model(switches: Option<usize>, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = switches;
    builder.max_branches = 20_000;
    let orders = Arc::new(AtomicUsize::new(0));
    let count = orders.clone();
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        f();
    });
    let orders = orders.load(Relaxed);
    println!("{orders} orders");
    assert!(orders > 5, "the threads do not meet");
}
