// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real machine behind `hv_core::machine`: memory, TLB, caches, address translation, clock.

use crate::mmu::Range;
use crate::vcpu;
use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use hv_core::console::Speaker;
use hv_core::machine::{
    Cache, CacheOp, Clock, Contended, GuestVa, Meter, PhysMem, StartState, Tlb, Uart, VcpuIf,
    VcpuRegs, cost,
};
use hv_core::p2m::Stage2Root;
use hv_core::rate::Rate;
use hv_core::types::{Errno, Mfn, Pa, VcpuRef};
use hv_core::vgic::ListRegs;

/// Whole pages.
struct Span {
    start: u64,
    len: u64,
}

/// RAM outside the hypervisor, which is all that policy may touch.
pub struct Mach {
    /// All memory between the lowest and highest RAM address.
    pub ram: Range,
    /// The image, its heap and its frame table.
    pub own: Range,
    /// Both again, as [`Mach::word`] has them.
    spans: [Span; 2],
    /// Timer ticks at start.
    pub epoch: u64,
    /// Between ticks of the counter and nanoseconds.
    pub rate: Rate,
    /// See [`Meter`]. Whoever counts holds the lock.
    spent: AtomicU32,
    /// The CPUs have FEAT_LSE.
    lse: bool,
}

impl Meter for Mach {
    #[inline]
    fn spend(&self, cost: u32) {
        // No exclusive access: the lock is held, so nobody else writes.
        let spent = self.spent.load(Ordering::Relaxed);
        self.spent
            .store(spent.wrapping_add(cost), Ordering::Relaxed);
    }
    #[inline]
    fn spent(&self) -> u32 {
        self.spent.load(Ordering::Relaxed)
    }
    #[inline]
    fn restart(&self) {
        self.spent.store(0, Ordering::Relaxed);
    }
}

impl Mach {
    /// The machine. Bytes of a page that is not all RAM are left out, and one that holds any of the hypervisor's is
    /// all its own.
    #[must_use]
    pub fn new(ram: Range, own: Range, epoch: u64, rate: Rate, lse: bool) -> Self {
        let (down, up) = (|at: u64| at & !4095, |at: u64| (at + 4095) & !4095);
        let ram = Range {
            start: up(ram.start),
            end: down(ram.end),
        };
        let own = Range {
            start: down(own.start),
            end: up(own.end),
        };
        let span = |r: &Range| Span {
            start: r.start,
            len: r.end - r.start,
        };
        Self {
            spans: [span(&ram), span(&own)],
            ram,
            own,
            epoch,
            rate,
            spent: AtomicU32::new(0),
            lse,
        }
    }

    /// Debits a copy that is not small.
    #[inline]
    fn spend_copy(&self, len: usize) {
        if len > cost::SMALL {
            self.spend(cost::copy(len));
        }
    }

    /// The place of `len` bytes at `pa`, when they are RAM that is not the hypervisor's own.
    #[inline]
    fn at(&self, pa: Pa, len: usize) -> Option<*mut u8> {
        let end = pa.0.wrapping_add(len as u64);
        let ok = pa.0 >= self.ram.start
            && end <= self.ram.end
            && end >= pa.0
            && (end <= self.own.start || pa.0 >= self.own.end);
        debug_assert!(ok, "access outside guest RAM");
        ok.then_some(pa.0 as *mut u8)
    }

    /// The same of a word that is aligned to its size: as both ranges are of whole pages ([`Mach::new`]),
    /// it lies where its first byte does.
    #[inline]
    fn word<T>(&self, pa: Pa) -> Option<*mut T> {
        let [ram, own] = &self.spans;
        let within = |s: &Span| pa.0.wrapping_sub(s.start) < s.len;
        let ok = within(ram) && !within(own) && pa.0.is_multiple_of(size_of::<T>() as u64);
        debug_assert!(ok, "access outside guest RAM");
        ok.then_some(pa.0 as *mut T)
    }

    /// Ticks of the system counter to nanoseconds since start.
    #[must_use]
    pub fn ns(&self, ticks: u64) -> u64 {
        self.rate.ns(ticks.wrapping_sub(self.epoch))
    }
}

macro_rules! cell {
    ($self:ident, $pa:ident, $atomic:ty, $prim:ty, $c:ident => $e:expr, $else:expr) => {
        match $self.word::<$prim>($pa) {
            Some(p) => {
                // SAFETY: `word` proved the address to be aligned, mapped RAM that the hypervisor's own
                // Rust objects never occupy; other parties may write it, hence only atomics.
                let $c = unsafe { <$atomic>::from_ptr(p) };
                $e
            }
            None => $else,
        }
    };
}

macro_rules! updates {
    ($($(#[$inline:meta])? $name:ident $t:ty;)*) => {
        $(
            $(#[$inline])?
            fn $name(&self, pa: Pa, v: $t) -> Result<$t, Contended> {
                self.word(pa).map_or(Ok(0), |p| update::$name(self, p, v))
            }
        )*
    };
}

impl PhysMem for Mach {
    updates! {
        #[inline] swap8 u8;
        #[inline] or32 u32;
        #[inline] and32 u32;
        // As often as an event is sent.
        #[inline(always)] or64 u64;
        #[inline] and64 u64;
    }
    #[inline]
    fn load8(&self, pa: Pa) -> u8 {
        cell!(self, pa, AtomicU8, u8, c => c.load(Ordering::Relaxed), 0)
    }
    #[inline]
    fn store8(&self, pa: Pa, v: u8) {
        cell!(self, pa, AtomicU8, u8, c => c.store(v, Ordering::Relaxed), ());
    }
    #[inline]
    fn load16(&self, pa: Pa) -> u16 {
        cell!(self, pa, AtomicU16, u16, c => c.load(Ordering::Acquire), 0)
    }
    #[inline]
    fn store16(&self, pa: Pa, v: u16) {
        cell!(self, pa, AtomicU16, u16, c => c.store(v, Ordering::Release), ());
    }
    #[inline]
    fn load32(&self, pa: Pa) -> u32 {
        cell!(self, pa, AtomicU32, u32, c => c.load(Ordering::Acquire), 0)
    }
    #[inline]
    fn store32(&self, pa: Pa, v: u32) {
        cell!(self, pa, AtomicU32, u32, c => c.store(v, Ordering::Release), ());
    }
    #[inline]
    fn cmpxchg32(&self, pa: Pa, old: u32, new: u32) -> Result<u32, Contended> {
        match self.word(pa) {
            Some(p) => update::cmpxchg32(self, p, old, new),
            None => Ok(0),
        }
    }
    #[inline]
    fn load64(&self, pa: Pa) -> u64 {
        cell!(self, pa, AtomicU64, u64, c => c.load(Ordering::Acquire), 0)
    }
    #[inline]
    fn store64(&self, pa: Pa, v: u64) {
        cell!(self, pa, AtomicU64, u64, c => c.store(v, Ordering::Release), ());
    }
    fn read(&self, pa: Pa, buf: &mut [u8]) {
        self.spend_copy(buf.len());
        if let Some(p) = self.at(pa, buf.len()) {
            // SAFETY: `at` proved the source to be mapped RAM apart from every Rust object; the
            // copy is made by `copy_bytes`, opaque assembly, so racing writers are no data race.
            unsafe { copy_bytes(buf.as_mut_ptr(), p, buf.len()) }
        }
    }
    fn write(&self, pa: Pa, buf: &[u8]) {
        self.spend_copy(buf.len());
        if let Some(p) = self.at(pa, buf.len()) {
            // SAFETY: as in `read`, with the guest's memory as destination.
            unsafe { copy_bytes(p, buf.as_ptr(), buf.len()) }
        }
    }
    fn copy(&self, dst: Pa, src: Pa, len: usize) {
        self.spend_copy(len);
        if let (Some(d), Some(s)) = (self.at(dst, len), self.at(src, len)) {
            // SAFETY: both ends are guest RAM, apart from every Rust object.
            unsafe { copy_bytes(d, s, len) }
        }
    }
    fn zero_page(&self, mfn: Mfn) {
        self.spend(cost::ZERO_PAGE);
        if let Some(p) = self.at(Pa(mfn.addr()), 4096) {
            // SAFETY: a whole page of guest RAM or of a table that no CPU walks yet; DC ZVA clears
            // the aligned block that DCZID_EL0 tells (it is permitted at EL2).
            unsafe {
                asm!(
                    "mrs {n}, dczid_el0", "and {n}, {n}, #15", "mov {s}, #4", "lsl {s}, {s}, {n}",
                    "2: dc zva, {p}", "add {p}, {p}, {s}", "cmp {p}, {e}", "b.lo 2b",
                    p = inout(reg) p => _, n = out(reg) _, s = out(reg) _,
                    e = in(reg) mfn.addr() + 4096, options(nostack)
                );
            }
        }
    }
}

/// Updates of single words, to which guests store at the same time. An exclusive store fails when they do, and a loop of
/// exclusives, which a compiler makes of an atomic, goes on for as long as they like. So the first try stands alone,
/// at the cost of such a loop's first round, and what comes after a failed one is out of the way: where the CPUs have
/// FEAT_LSE the one instruction that does it, else a bounded number of tries.
///
/// `p` is aligned, mapped RAM that the hypervisor's own Rust objects never occupy, as [`Mach::word`] proves.
mod update {
    use super::{Contended, Mach, Meter, asm, cost};

    impl Mach {
        /// The end of a loop of tries of which `left` were not needed.
        fn tried(&self, left: u32) -> Result<(), Contended> {
            self.spend((cost::TRIES - left) * cost::TRY);
            if left == 0 { Err(Contended) } else { Ok(()) }
        }
    }

    macro_rules! updates {
        ($($name:ident $t:ty: $load:literal, $change:literal, $store:literal, $lse:literal;)*) => {
            $(
                #[inline]
                pub(super) fn $name(m: &Mach, p: *mut $t, v: $t) -> Result<$t, Contended> {
                    #[cold]
                    #[inline(never)]
                    fn again(m: &Mach, p: *mut $t, v: $t) -> Result<$t, Contended> {
                        let old: $t;
                        let mut left = cost::TRIES;
                        // SAFETY: see the module; the instruction of FEAT_LSE where the CPUs have it.
                        unsafe {
                            if m.lse {
                                asm!(".arch_extension lse", $lse, p = in(reg) p, v = in(reg) v,
                                    old = out(reg) old, new = out(reg) _, options(nostack));
                                return Ok(old);
                            }
                            asm!(concat!("2: ", $load), $change, $store, "cbz {fail:w}, 3f",
                                "subs {left:w}, {left:w}, #1", "b.ne 2b", "3:",
                                p = in(reg) p, v = in(reg) v, old = out(reg) old, new = out(reg) _,
                                fail = out(reg) _, left = inout(reg) left, options(nostack));
                        }
                        m.tried(left)?;
                        Ok(old)
                    }
                    let (old, fail): ($t, u32);
                    // SAFETY: see the module.
                    unsafe {
                        asm!($load, $change, $store, p = in(reg) p, v = in(reg) v, old = out(reg) old,
                            new = out(reg) _, fail = out(reg) fail, options(nostack, preserves_flags));
                    }
                    if fail == 0 { Ok(old) } else { again(m, p, v) }
                }
            )*
        };
    }
    updates! {
        swap8 u8: "ldaxrb {old:w}, [{p}]", "/* {new} */", "stlxrb {fail:w}, {v:w}, [{p}]",
            "swpalb {v:w}, {old:w}, [{p}] /* {new} */";
        or32 u32: "ldaxr {old:w}, [{p}]", "orr {new:w}, {old:w}, {v:w}", "stlxr {fail:w}, {new:w}, [{p}]",
            "ldsetal {v:w}, {old:w}, [{p}] /* {new} */";
        or64 u64: "ldaxr {old}, [{p}]", "orr {new}, {old}, {v}", "stlxr {fail:w}, {new}, [{p}]",
            "ldsetal {v}, {old}, [{p}] /* {new} */";
        and32 u32: "ldaxr {old:w}, [{p}]", "and {new:w}, {old:w}, {v:w}", "stlxr {fail:w}, {new:w}, [{p}]",
            "mvn {new:w}, {v:w}\nldclral {new:w}, {old:w}, [{p}]";
        and64 u64: "ldaxr {old}, [{p}]", "and {new}, {old}, {v}", "stlxr {fail:w}, {new}, [{p}]",
            "mvn {new}, {v}\nldclral {new}, {old}, [{p}]";
    }

    #[inline]
    pub(super) fn cmpxchg32(m: &Mach, p: *mut u32, old: u32, new: u32) -> Result<u32, Contended> {
        #[cold]
        #[inline(never)]
        fn again(m: &Mach, p: *mut u32, old: u32, new: u32) -> Result<u32, Contended> {
            let found: u32;
            let mut left = cost::TRIES;
            // SAFETY: see the module; the instruction of FEAT_LSE where the CPUs have it.
            unsafe {
                if m.lse {
                    asm!(".arch_extension lse", "casal {found:w}, {new:w}, [{p}]",
                        p = in(reg) p, new = in(reg) new, found = inout(reg) old => found, options(nostack));
                    return Ok(found);
                }
                asm!("2: ldaxr {found:w}, [{p}]", "cmp {found:w}, {old:w}", "b.ne 3f",
                    "stlxr {fail:w}, {new:w}, [{p}]", "cbz {fail:w}, 3f",
                    "subs {left:w}, {left:w}, #1", "b.ne 2b", "3:",
                    p = in(reg) p, old = in(reg) old, new = in(reg) new, found = out(reg) found,
                    fail = out(reg) _, left = inout(reg) left, options(nostack));
            }
            m.tried(left)?;
            Ok(found)
        }
        let (found, fail): (u32, u32);
        // SAFETY: see the module.
        unsafe {
            asm!("ldaxr {found:w}, [{p}]", "sub {fail:w}, {found:w}, {old:w}", "cbnz {fail:w}, 2f",
                "stlxr {fail:w}, {new:w}, [{p}]", "2:",
                p = in(reg) p, old = in(reg) old, new = in(reg) new, found = out(reg) found,
                fail = out(reg) fail, options(nostack, preserves_flags));
        }
        if fail == 0 {
            Ok(found)
        } else {
            again(m, p, old, new)
        }
    }
}

/// Copies bytes by plain loads and stores that the compiler cannot see.
///
/// # Safety
/// Both ranges are mapped; they do not overlap unless equal; no Rust reference to the destination
/// lives meanwhile, except the caller's own exclusive one.
#[inline]
unsafe fn copy_bytes(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the contract above is the routine's, and what it changes is listed.
    unsafe {
        asm!(
            "bl {copy}", copy = sym copy_routine,
            inout("x0") dst => _, inout("x1") src => _, inout("x2") len => _,
            out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("lr") _, options(nostack)
        );
    }
}

/// Copies x2 bytes from x1 to x0. Changes x0 to x6 and the flags, and nothing else, for which it is no
/// ordinary function: the places that copy, which are many, keep their other registers.
#[unsafe(naked)]
unsafe extern "C" fn copy_routine() {
    core::arch::naked_asm!(
        "subs x2, x2, #64",
        "b.lo 3f",
        "2: ldp x3, x4, [x1]",
        "ldp x5, x6, [x1, #16]",
        "stp x3, x4, [x0]",
        "stp x5, x6, [x0, #16]",
        "ldp x3, x4, [x1, #32]",
        "ldp x5, x6, [x1, #48]",
        "stp x3, x4, [x0, #32]",
        "stp x5, x6, [x0, #48]",
        "add x1, x1, #64",
        "add x0, x0, #64",
        "subs x2, x2, #64",
        "b.hs 2b",
        // The low six bits of x2 are what is left.
        "3: tbz x2, #5, 4f",
        "ldp x3, x4, [x1], #16",
        "ldp x5, x6, [x1], #16",
        "stp x3, x4, [x0], #16",
        "stp x5, x6, [x0], #16",
        "4: tbz x2, #4, 5f",
        "ldp x3, x4, [x1], #16",
        "stp x3, x4, [x0], #16",
        "5: tbz x2, #3, 6f",
        "ldr x3, [x1], #8",
        "str x3, [x0], #8",
        "6: tbz x2, #2, 7f",
        "ldr w3, [x1], #4",
        "str w3, [x0], #4",
        "7: tbz x2, #1, 8f",
        "ldrh w3, [x1], #2",
        "strh w3, [x0], #2",
        "8: tbz x2, #0, 9f",
        "ldrb w3, [x1]",
        "strb w3, [x0]",
        "9: ret",
    );
}

impl Tlb for Mach {
    fn flush_ipa(&self, root: Stage2Root, ipa: u64) {
        self.spend(cost::FLUSH);
        // Each invalidation twice, with a DSB between: the first may not be complete on CPUs of errata 1286807 and
        // 2441007 and their like (XSA-493).
        // SAFETY: TLB maintenance under the VMID in question, over tables that translate nothing, as the EL1
        // registers are another domain's; VTTBR is put back before return and no guest runs on this CPU meanwhile.
        unsafe {
            asm!(
                "mrs {old}, vttbr_el2", "msr vttbr_el2, {new}", "dsb ishst", "isb",
                "tlbi ipas2e1is, {ipa}", "dsb ish", "tlbi ipas2e1is, {ipa}", "dsb ish",
                "tlbi vmalle1is", "dsb ish", "tlbi vmalle1is", "dsb ish",
                "msr vttbr_el2, {old}", "isb",
                old = out(reg) _, new = in(reg) root.over(vcpu::empty_root()), ipa = in(reg) ipa >> 12,
                options(nostack)
            );
        }
    }
    fn flush_vmid(&self, root: Stage2Root) {
        self.spend(cost::FLUSH);
        // SAFETY: as in `flush_ipa`.
        unsafe {
            asm!(
                "mrs {old}, vttbr_el2", "msr vttbr_el2, {new}", "dsb ishst", "isb",
                "tlbi vmalls12e1is", "dsb ish", "tlbi vmalls12e1is", "dsb ish",
                "msr vttbr_el2, {old}", "isb",
                old = out(reg) _, new = in(reg) root.over(vcpu::empty_root()), options(nostack)
            );
        }
    }
}

impl GuestVa for Mach {
    #[inline]
    fn readable(&self, va: u64) -> Option<Pa> {
        self.spend(cost::TRANSLATE);
        let par: u64;
        // SAFETY: address translation as EL1 would do it; the guest's PAR_EL1 is put back.
        unsafe {
            asm!(
                "mrs {o}, par_el1", "at s12e1r, {va}", "isb", "mrs {p}, par_el1", "msr par_el1, {o}",
                o = out(reg) _, p = out(reg) par, va = in(reg) va, options(nostack)
            );
        }
        place(par, va).map(Pa)
    }
    #[inline]
    fn stage1_writable(&self, va: u64) -> Option<(u64, Pa)> {
        self.spend(cost::TRANSLATE);
        let (stage1, both): (u64, u64);
        // SAFETY: as in `readable`.
        unsafe {
            asm!(
                "mrs {o}, par_el1", "at s1e1w, {va}", "isb", "mrs {s}, par_el1",
                "at s12e1r, {va}", "isb", "mrs {p}, par_el1", "msr par_el1, {o}",
                o = out(reg) _, s = out(reg) stage1, p = out(reg) both, va = in(reg) va, options(nostack)
            );
        }
        // Bit 0 of either: a fault.
        let pa = place(both | stage1 & 1, va)?;
        Some(((stage1 & OUTPUT) | (va & 0xfff), Pa(pa)))
    }
}

impl Mach {
    /// Translates by stage 1 of the vcpu on this CPU, for reading.
    #[must_use]
    pub fn stage1_readable(&self, va: u64) -> Option<u64> {
        let par: u64;
        // SAFETY: as in `readable`.
        unsafe {
            asm!(
                "mrs {o}, par_el1", "at s1e1r, {va}", "isb", "mrs {p}, par_el1", "msr par_el1, {o}",
                o = out(reg) _, p = out(reg) par, va = in(reg) va, options(nostack)
            );
        }
        place(par, va)
    }
}

/// The address that PAR_EL1 gives for `va`, if the translation did not fail.
#[inline]
fn place(par: u64, va: u64) -> Option<u64> {
    (par & 1 == 0).then_some((par & OUTPUT) | (va & 0xfff))
}

/// PAR_EL1.PA.
const OUTPUT: u64 = 0x000f_ffff_ffff_f000;

impl Mach {
    /// Cleans and invalidates the data cache over `len` bytes from `pa` on. It needs no lock, and is not
    /// on the meter.
    pub fn clean(&self, pa: Pa, len: u64) {
        if self.at(pa, len as usize).is_none() {
            return;
        }
        let ctr: u64;
        // SAFETY: reads an identification register.
        unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack)) };
        let line = 4u64 << ((ctr >> 16) & 0xf);
        let mut at = pa.0 & !(line - 1);
        while at < pa.0 + len {
            // SAFETY: clean-and-invalidate changes no memory content.
            unsafe { asm!("dc civac, {}", in(reg) at, options(nostack)) };
            at += line;
        }
        // SAFETY: a barrier.
        unsafe { asm!("dsb sy", options(nostack)) };
    }
}

impl Cache for Mach {
    fn dcache(&self, pa: Pa, len: u64, _op: CacheOp) {
        self.spend(cost::cache(len));
        self.clean(pa, len);
    }
    fn scrub_page(&self, mfn: Mfn) {
        let p = self.at(Pa(mfn.addr()), 4096);
        let (dczid, ctr): (u64, u64);
        // SAFETY: reads identification registers.
        unsafe {
            asm!("mrs {}, dczid_el0", "mrs {}, ctr_el0", out(reg) dczid, out(reg) ctr, options(nomem, nostack));
        }
        let line = 4u64 << ((ctr >> 16) & 0xf);
        let Some(p) = p.filter(|_| line == 4 << (dczid & 0xf) && line <= 1024) else {
            self.zero_page(mfn);
            return self.dcache(Pa(mfn.addr()), 4096, CacheOp::Clean);
        };
        self.spend(cost::SCRUB_PAGE);
        // A line is cleared and cleaned at once, four of them in a round.
        // SAFETY: a whole page of guest RAM, as in `zero_page`; cleaning changes no memory content.
        unsafe {
            asm!(
                "2:",
                "dc zva, {p}", "dc civac, {p}", "add {p}, {p}, {s}",
                "dc zva, {p}", "dc civac, {p}", "add {p}, {p}, {s}",
                "dc zva, {p}", "dc civac, {p}", "add {p}, {p}, {s}",
                "dc zva, {p}", "dc civac, {p}", "add {p}, {p}, {s}",
                "cmp {p}, {e}", "b.lo 2b", "dsb sy",
                p = inout(reg) p => _, s = in(reg) line, e = in(reg) mfn.addr() + 4096, options(nostack)
            );
        }
    }
    fn drop_instructions(&self) {
        // SAFETY: instructions are fetched again from memory.
        unsafe { asm!("ic ialluis", "dsb ish", "isb", options(nostack)) };
    }
}

impl Clock for Mach {
    #[inline]
    fn now(&self) -> u64 {
        self.ns(counter())
    }
    fn ticks(&self, ns: u64) -> u64 {
        self.epoch.saturating_add(self.rate.ticks(ns))
    }
}

/// The system counter.
#[inline]
#[must_use]
pub fn counter() -> u64 {
    let t: u64;
    // SAFETY: reads the counter.
    unsafe { asm!("isb", "mrs {}, cntpct_el0", out(reg) t, options(nostack)) };
    t
}

impl VcpuIf for Mach {
    #[inline]
    fn lrs(&self) -> impl ListRegs {
        crate::run::Lrs
    }
    fn irqs_masked(&self) -> bool {
        let spsr: u64;
        // SAFETY: reads the state of the guest that trapped.
        unsafe { asm!("mrs {}, spsr_el2", out(reg) spsr, options(nomem, nostack)) };
        spsr & PSR_I != 0
    }
    fn threshold(&self) -> u8 {
        crate::run::gic().threshold()
    }
    fn unmask_irqs(&self) {
        // SAFETY: the state that the guest goes on with, in a hypercall (which reads it from here afterwards): a bit that
        // is its own to change.
        unsafe {
            asm!("mrs {t}, spsr_el2", "bic {t}, {t}, {i}", "msr spsr_el2, {t}", t = out(reg) _, i = in(reg) PSR_I,
                options(nomem, nostack));
        }
    }
}

/// PSTATE.I.
const PSR_I: u64 = 1 << 7;

impl Uart for Mach {
    fn put(&self, from: Speaker, bytes: &[u8]) -> usize {
        self.spend(cost::UART_BYTE * bytes.len() as u32);
        crate::console::put(from, bytes)
    }
    fn read_log(&self, from: u64, buf: &mut [u8]) -> (usize, u64) {
        crate::console::read_log(from, buf)
    }
    fn clear_log(&self) {
        crate::console::clear_log();
    }
}

impl VcpuRegs for Mach {
    fn create_vcpu(&self, v: VcpuRef) -> Result<(), Errno> {
        vcpu::create(v)
    }
    fn destroy_vcpu(&self, v: VcpuRef) {
        vcpu::destroy(v);
    }
    fn set_state(&self, v: VcpuRef, s: &StartState) {
        vcpu::set_state(v, s);
    }
    fn get_state(&self, v: VcpuRef) -> StartState {
        vcpu::get_state(v)
    }
}
