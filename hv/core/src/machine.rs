// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine as policy sees it: small traits with one real implementation (`hv-aarch64`) and
//! one strict fake for host tests.

use crate::console::Speaker;
use crate::p2m::Stage2Root;
use crate::types::{Errno, Mfn, Pa, VcpuRef};
use crate::vgic::ListRegs;

/// What an entry into the hypervisor may cost, in instructions: how long the lock is held for it, and
/// interrupts are masked.
pub mod limit {
    /// Any entry.
    pub const HOLD: u32 = 100_000;
    /// Any that a guest causes.
    pub const HOLD_GUEST: u32 = 25_000;
    /// Where an operation that works in slices ends its slice: what it does last, and the rest of the
    /// entry, have room up to [`HOLD`].
    pub const SLICE: u32 = 60_000;
    /// As [`SLICE`], up to [`HOLD_GUEST`].
    pub const SLICE_GUEST: u32 = 18_000;
    /// Up to here a multicall begins another entry of its list: one that does a slice has room.
    pub const BEGIN: u32 = 4_000;
}

/// What things cost, in instructions, somewhat more rather than less: estimated from the code and from
/// the rows of docs/BENCH.md. What waits for other CPUs is weighed by how long that takes.
pub mod cost {
    /// A guest's address translated, its page checked and a small structure copied.
    pub const TRANSLATE: u32 = 96;
    /// Bytes that such a copy moves at most.
    pub const SMALL: usize = 128;
    /// A copy of `len` bytes.
    #[inline]
    #[must_use]
    pub const fn copy(len: usize) -> u32 {
        (len as u32 >> 3).saturating_add(16)
    }
    /// A page cleared.
    pub const ZERO_PAGE: u32 = 320;
    /// A page cleared, and that cleaned: 225 instructions, but 64 lines that go to memory take longer.
    pub const SCRUB_PAGE: u32 = ZERO_PAGE + cache(4096);
    /// Data-cache maintenance over `len` bytes.
    #[inline]
    #[must_use]
    pub const fn cache(len: u64) -> u32 {
        (len as u32 >> 6).saturating_mul(5).saturating_add(24)
    }
    /// An entry of a translation table changed, and all CPUs told.
    pub const FLUSH: u32 = 200;
    /// A stage-2 table walk.
    pub const WALK: u32 = 48;
    /// A block of stage 2 broken into its 512 parts.
    pub const BREAK: u32 = 2_600;
    /// A grant table larger by a frame.
    pub const GROW: u32 = 2_000;
    /// An entry of a multicall, but for what it does.
    pub const CALL: u32 = 120;
    /// A grant mapped, unmapped or copied by, but for what the machine counts.
    pub const GRANT: u32 = 400;
    /// A port closed.
    pub const CLOSE: u32 = 160;
    /// A saved event raised.
    pub const RAISE: u32 = 120;
    /// An entry of a table looked at.
    pub const ENTRY: u32 = 8;
    /// A domain described to a toolstack, and each of its vcpus.
    pub const INFO: u32 = 300;
    /// How often a single update of a word that a guest shares is tried. Of eight CPUs that change the same word with
    /// the same right and all the time, one fails so often once in 10^7 updates.
    pub const TRIES: u32 = 128;
    /// Such a try; one that succeeds at once is part of the operation that makes it.
    pub const TRY: u32 = 6;
    /// A byte to the UART's ring and to the log.
    pub const UART_BYTE: u32 = 16;
}

/// The meter of what an entry into the hypervisor has cost so far ([`cost`]). The primitives of the
/// machine debit themselves, and loops over tables what an entry of theirs costs. An operation that
/// may be long looks at it, leaves its progress and is made again ([`limit`]).
pub trait Meter {
    /// `cost` instructions more.
    fn spend(&self, cost: u32);
    /// What was spent since the last [`Meter::restart`].
    fn spent(&self) -> u32;
    /// A new entry begins.
    fn restart(&self);
    /// How many things of `cost` there is room for up to `limit`: one at least, so that whoever asks
    /// gets on.
    fn room(&self, limit: u32, cost: u32) -> u32 {
        limit
            .saturating_sub(self.spent())
            .checked_div(cost)
            .map_or(1, |n| n.max(1))
    }
}

/// A word was not updated: whoever shares it kept storing to it, or near it, for [`cost::TRIES`] tries (XSA-295). An
/// exclusive store fails if anybody has written to the granule that was read exclusively (Arm ARM, "Exclusive
/// access instructions"), and nothing bounds how often. The granule, 2 KiB at most, is of one page, so of one owner:
/// that domain is to be ended. What was to be done with the word is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contended;

/// Machine memory (RAM). Guests write the same bytes at the same time, so every access is a
/// volatile or atomic access of its size; no reference to that memory is ever formed. Addresses
/// must be naturally aligned and in RAM that is not the hypervisor's own: the implementation
/// checks, reads outside give 0 and writes outside are dropped (and are a hypervisor bug: the
/// fake panics on them).
pub trait PhysMem: Meter {
    /// Relaxed atomic load of a byte.
    fn load8(&self, pa: Pa) -> u8;
    /// Relaxed atomic store of a byte.
    fn store8(&self, pa: Pa, v: u8);
    /// Atomic exchange of a byte, acquire-release; gives the old value.
    fn swap8(&self, pa: Pa, v: u8) -> Result<u8, Contended>;
    /// Relaxed atomic load of 16 bits.
    fn load16(&self, pa: Pa) -> u16;
    /// Relaxed atomic store of 16 bits.
    fn store16(&self, pa: Pa, v: u16);
    /// Acquire load of 32 bits.
    fn load32(&self, pa: Pa) -> u32;
    /// Release store of 32 bits.
    fn store32(&self, pa: Pa, v: u32);
    /// Compare and exchange of 32 bits, acquire-release; gives what was found: if that is `old`, `new` is
    /// there now.
    fn cmpxchg32(&self, pa: Pa, old: u32, new: u32) -> Result<u32, Contended>;
    /// Atomic OR of 32 bits, acquire-release; gives the old value.
    fn or32(&self, pa: Pa, bits: u32) -> Result<u32, Contended>;
    /// Atomic AND of 32 bits, acquire-release; gives the old value.
    fn and32(&self, pa: Pa, bits: u32) -> Result<u32, Contended>;
    /// Acquire load of 64 bits.
    fn load64(&self, pa: Pa) -> u64;
    /// Release store of 64 bits.
    fn store64(&self, pa: Pa, v: u64);
    /// Atomic OR of 64 bits, acquire-release; gives the old value.
    fn or64(&self, pa: Pa, bits: u64) -> Result<u64, Contended>;
    /// Atomic AND of 64 bits, acquire-release; gives the old value.
    fn and64(&self, pa: Pa, bits: u64) -> Result<u64, Contended>;
    /// Copies bytes out of memory. Any alignment; must not leave RAM.
    fn read(&self, pa: Pa, buf: &mut [u8]);
    /// Copies bytes into memory. Any alignment; must not leave RAM.
    fn write(&self, pa: Pa, buf: &[u8]);
    /// Copies `len` bytes within memory (ranges of two different pages, or not overlapping).
    fn copy(&self, dst: Pa, src: Pa, len: usize);
    /// Fills a page with zeroes, in the caches: [`Frames::scrub`](crate::frame::Frames::scrub) has them
    /// reach memory.
    fn zero_page(&self, mfn: Mfn);
}

/// Translation look-aside buffers for stage 2.
pub trait Tlb {
    /// Drops what any CPU holds of the entry for guest physical address `ipa` of the domain whose
    /// VTTBR is given, stage 1 combinations included; complete on return.
    fn flush_ipa(&self, root: Stage2Root, ipa: u64);
    /// Drops all that any CPU holds for that VMID; complete on return.
    fn flush_vmid(&self, root: Stage2Root);
}

/// Translation of virtual addresses of the vcpu that is on this CPU, as its EL1 would see them (PSTATE.PAN
/// and user-mode rights left aside). There is no translation through both stages for writing: QEMU 10.0
/// ends with an assertion where stage 2 is read-only (`AT S12E1W`), so stage 2's right to write is looked
/// up in the p2m.
pub trait GuestVa {
    /// Through both stages, for reading (`AT S12E1R`); `None` where the access would fault.
    fn readable(&self, va: u64) -> Option<Pa>;
    /// Through stage 1 for writing (`AT S1E1W`): the guest physical address; and through both for reading: where
    /// that is. `None` where either would fault.
    fn stage1_writable(&self, va: u64) -> Option<(u64, Pa)>;
}

/// What data-cache maintenance is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOp {
    /// Write dirty lines back (to the point of coherency).
    Clean,
    /// Drop lines; the implementation also writes dirty ones back, so that no party can drop
    /// another's data.
    Invalidate,
}

/// Caches.
pub trait Cache {
    /// Maintains the data cache over `len` bytes from `pa` on.
    fn dcache(&self, pa: Pa, len: u64, op: CacheOp);
    /// Fills a page with zeroes, and those reach memory: [`PhysMem::zero_page`], cleaned.
    fn scrub_page(&self, mfn: Mfn)
    where
        Self: PhysMem,
    {
        self.zero_page(mfn);
        self.dcache(Pa(mfn.addr()), crate::types::PAGE_SIZE, CacheOp::Clean);
    }
    /// Drops all instructions that any CPU holds in a cache: those of a page's former owner must not
    /// be executed by its next one.
    fn drop_instructions(&self);
}

/// Clocks.
pub trait Clock {
    /// Nanoseconds since the hypervisor started.
    fn now(&self) -> u64;
    /// Ticks of the physical counter at such a time.
    fn ticks(&self, ns: u64) -> u64;
}

/// The processor state in which a virtual CPU starts (`struct vcpu_guest_context` of
/// `arch-arm.h`, reduced to what AArch64 uses).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartState {
    /// x0..x30.
    pub x: [u64; 31],
    /// Program counter.
    pub pc: u64,
    /// SPSR_EL2 for the entry.
    pub cpsr: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
    /// SP_EL0, SP_EL1, ELR_EL1, SPSR_EL1.
    pub sp_el0: u64,
    /// SP_EL1.
    pub sp_el1: u64,
    /// ELR_EL1.
    pub elr_el1: u64,
    /// SPSR_EL1.
    pub spsr_el1: u64,
}

/// Register files of virtual CPUs, which only the machine layer keeps.
pub trait VcpuRegs {
    /// Makes the register file of a new vcpu.
    ///
    /// # Errors
    /// `ENOMEM`.
    fn create_vcpu(&self, v: VcpuRef) -> Result<(), Errno>;
    /// Frees it. The vcpu is on no CPU.
    fn destroy_vcpu(&self, v: VcpuRef);
    /// Sets all registers for a start. The vcpu is on no CPU.
    fn set_state(&self, v: VcpuRef, s: &StartState);
    /// Reads the registers. The vcpu is on no CPU.
    fn get_state(&self, v: VcpuRef) -> StartState;
}

/// How the vcpu that trapped on this CPU is interrupted.
pub trait VcpuIf {
    /// This CPU's list registers.
    fn lrs(&self) -> impl ListRegs;
    /// Whether it has IRQs masked (PSTATE.I, in SPSR_EL2).
    fn irqs_masked(&self) -> bool;
    /// It goes on with IRQs unmasked.
    fn unmask_irqs(&self);
    /// Interrupts of a lower priority value than this are signalled to it: by its priority mask, its group enable,
    /// and what it is about to handle.
    fn threshold(&self) -> u8;
}

/// The hypervisor's own console, an [`Output`](crate::console::Output) that is sent when the UART can take it.
pub trait Uart {
    /// As [`Output::write`](crate::console::Output::write); does not wait.
    fn put(&self, from: Speaker, bytes: &[u8]) -> usize;
    /// As [`Output::read_log`](crate::console::Output::read_log).
    fn read_log(&self, from: u64, buf: &mut [u8]) -> (usize, u64);
    /// Forgets the log.
    fn clear_log(&self);
}

/// Everything of the machine that hypercalls need.
pub trait Machine: PhysMem + Tlb + GuestVa + Cache + Clock + VcpuRegs + VcpuIf + Uart {}
impl<T: PhysMem + Tlb + GuestVa + Cache + Clock + VcpuRegs + VcpuIf + Uart> Machine for T {}

#[cfg(test)]
pub mod fake {
    //! A strict fake of machine memory for host tests.
    use super::*;
    use core::cell::RefCell;

    /// `pages` pages of RAM from machine address `base` on, poisoned with 0xA5.
    pub struct FakeMem {
        base: u64,
        spent: core::cell::Cell<u32>,
        bytes: RefCell<std::vec::Vec<u8>>,
        dropped: core::cell::Cell<u32>,
    }

    impl Cache for FakeMem {
        fn dcache(&self, pa: Pa, len: u64, _: CacheOp) {
            self.at(pa, len as usize, 1);
        }
        fn drop_instructions(&self) {
            self.dropped.set(self.dropped.get() + 1);
        }
    }

    impl FakeMem {
        /// New RAM of `pages` pages at `base` (page-aligned).
        #[must_use]
        pub fn new(base: u64, pages: usize) -> Self {
            Self {
                base,
                spent: core::cell::Cell::new(0),
                bytes: RefCell::new(std::vec![0xA5; pages * 4096]),
                dropped: core::cell::Cell::new(0),
            }
        }
        /// How often instruction caches were emptied.
        #[must_use]
        pub fn dropped(&self) -> u32 {
            self.dropped.get()
        }
        fn at(&self, pa: Pa, len: usize, align: u64) -> usize {
            assert_eq!(pa.0 % align, 0, "misaligned access at {:#x}", pa.0);
            let off = pa.0.checked_sub(self.base).expect("below RAM") as usize;
            assert!(
                off + len <= self.bytes.borrow().len(),
                "beyond RAM: {:#x}",
                pa.0
            );
            off
        }
        fn get<const N: usize>(&self, pa: Pa) -> [u8; N] {
            let o = self.at(pa, N, N as u64);
            self.bytes.borrow()[o..o + N].try_into().unwrap()
        }
        fn set<const N: usize>(&self, pa: Pa, v: [u8; N]) {
            let o = self.at(pa, N, N as u64);
            self.bytes.borrow_mut()[o..o + N].copy_from_slice(&v);
        }
    }

    impl Meter for FakeMem {
        fn spend(&self, cost: u32) {
            self.spent.set(self.spent.get() + cost);
        }
        fn spent(&self) -> u32 {
            self.spent.get()
        }
        fn restart(&self) {
            self.spent.set(0);
        }
    }

    impl PhysMem for FakeMem {
        fn load8(&self, pa: Pa) -> u8 {
            self.get::<1>(pa)[0]
        }
        fn store8(&self, pa: Pa, v: u8) {
            self.set(pa, [v]);
        }
        fn swap8(&self, pa: Pa, v: u8) -> Result<u8, Contended> {
            let old = self.load8(pa);
            self.store8(pa, v);
            Ok(old)
        }
        fn load16(&self, pa: Pa) -> u16 {
            u16::from_le_bytes(self.get(pa))
        }
        fn store16(&self, pa: Pa, v: u16) {
            self.set(pa, v.to_le_bytes());
        }
        fn load32(&self, pa: Pa) -> u32 {
            u32::from_le_bytes(self.get(pa))
        }
        fn store32(&self, pa: Pa, v: u32) {
            self.set(pa, v.to_le_bytes());
        }
        fn cmpxchg32(&self, pa: Pa, old: u32, new: u32) -> Result<u32, Contended> {
            let found = self.load32(pa);
            if found == old {
                self.store32(pa, new);
            }
            Ok(found)
        }
        fn or32(&self, pa: Pa, bits: u32) -> Result<u32, Contended> {
            let old = self.load32(pa);
            self.store32(pa, old | bits);
            Ok(old)
        }
        fn and32(&self, pa: Pa, bits: u32) -> Result<u32, Contended> {
            let old = self.load32(pa);
            self.store32(pa, old & bits);
            Ok(old)
        }
        fn load64(&self, pa: Pa) -> u64 {
            u64::from_le_bytes(self.get(pa))
        }
        fn store64(&self, pa: Pa, v: u64) {
            self.set(pa, v.to_le_bytes());
        }
        fn or64(&self, pa: Pa, bits: u64) -> Result<u64, Contended> {
            let old = self.load64(pa);
            self.store64(pa, old | bits);
            Ok(old)
        }
        fn and64(&self, pa: Pa, bits: u64) -> Result<u64, Contended> {
            let old = self.load64(pa);
            self.store64(pa, old & bits);
            Ok(old)
        }
        fn read(&self, pa: Pa, buf: &mut [u8]) {
            let o = self.at(pa, buf.len(), 1);
            buf.copy_from_slice(&self.bytes.borrow()[o..o + buf.len()]);
        }
        fn write(&self, pa: Pa, buf: &[u8]) {
            let o = self.at(pa, buf.len(), 1);
            self.bytes.borrow_mut()[o..o + buf.len()].copy_from_slice(buf);
        }
        fn copy(&self, dst: Pa, src: Pa, len: usize) {
            let (d, s) = (self.at(dst, len, 1), self.at(src, len, 1));
            self.bytes.borrow_mut().copy_within(s..s + len, d);
        }
        fn zero_page(&self, mfn: Mfn) {
            self.spend(cost::ZERO_PAGE);
            let o = self.at(Pa(mfn.addr()), 4096, 4096);
            self.bytes.borrow_mut()[o..o + 4096].fill(0);
        }
    }
}
