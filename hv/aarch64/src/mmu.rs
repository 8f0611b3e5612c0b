// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own stage 1: an identity map, built before any lock or atomic is used.
//! RAM is Normal write-back, everything else Device; the image's text is read-execute, its
//! constants read-only, and nothing else is executable.

use core::arch::asm;
use core::cell::UnsafeCell;

const TABLES: usize = 16;
const VALID: u64 = 1;
const TABLE: u64 = 0b11;
const PAGE: u64 = 0b11;
const AF: u64 = 1 << 10;
const SH_INNER: u64 = 0b11 << 8;
const RO: u64 = 1 << 7;
const AP_RES1: u64 = 1 << 6;
const XN: u64 = 1 << 54;
const NORMAL: u64 = AF | SH_INNER | AP_RES1 | XN;
const DEVICE: u64 = AF | AP_RES1 | XN | (1 << 2);
const ADDR: u64 = 0x0000_ffff_ffff_f000;

/// MAIR_EL2: index 0 Normal write-back, index 1 Device-nGnRE.
pub const MAIR: u64 = 0x04ff;
/// TCR_EL2: 39 bits of address, 4 KiB granule, inner-shareable write-back walks, 40-bit output.
pub const TCR: u64 = 25 | (1 << 8) | (1 << 10) | (3 << 12) | (2 << 16) | (1 << 23) | (1 << 31);
/// SCTLR_EL2: MMU, caches, SP alignment check, write-implies-XN, and the RES1 bits.
pub const SCTLR: u64 = 0x30c5_0830 | 1 | (1 << 2) | (1 << 3) | (1 << 12) | (1 << 19);

#[repr(C, align(4096))]
struct Pool(UnsafeCell<[[[u64; 512]; TABLES]; 2]>);
// SAFETY: only `Builder` touches the pool, on the boot CPU before any other CPU runs; afterwards
// the tables are read by the MMU alone.
unsafe impl Sync for Pool {}
static POOL: Pool = Pool(UnsafeCell::new([[[0; 512]; TABLES]; 2]));

/// A half-open range of addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Range {
    /// Whether `len` bytes from `at` on lie inside.
    #[inline]
    pub fn contains(&self, at: u64, len: u64) -> bool {
        at >= self.start && at.checked_add(len).is_some_and(|e| e <= self.end)
    }
}

/// Where the image's parts lie.
#[derive(Clone, Copy)]
pub struct Image {
    /// All of it, .bss included.
    pub whole: Range,
    /// Executable.
    pub text: Range,
    /// Constants, after the text.
    pub rodata: Range,
    /// Which pages are not mapped.
    pub guards: fn(u64) -> bool,
}

/// Makes a table for `ram` and `image`; gives its root. Anything below 512 GiB that is not RAM
/// becomes Device memory. There are two: the `first` knows only the image and the device tree,
/// so that the device tree can be read; the second knows all RAM.
///
/// # Safety
/// Call once for each value of `first`, on the boot CPU, before any other CPU runs.
pub unsafe fn build(first: bool, ram: &[Range], image: &Image) -> u64 {
    // SAFETY: sole user at this time, by this function's contract.
    let pool = unsafe { &mut (*POOL.0.get())[usize::from(first)] };
    let base = core::ptr::from_mut(pool) as u64;
    let mut used = 1usize;
    let touches = |a: u64, b: u64, r: &Range| a < r.end && r.start < b;
    let attr = |at: u64| {
        if image.text.contains(at, 4096) {
            (NORMAL & !XN) | RO
        } else if image.rodata.contains(at, 4096) {
            NORMAL | RO
        } else if ram.iter().any(|r| r.contains(at, 4096)) {
            NORMAL
        } else {
            DEVICE
        }
    };
    // A block may stand for a range when RAM covers it wholly or not at all, and it holds no image.
    let uniform = |a: u64, b: u64| {
        !touches(a, b, &image.whole)
            && ram
                .iter()
                .all(|r| !touches(a, b, r) || r.contains(a, b - a))
    };
    for i in 0..512usize {
        let a = (i as u64) << 30;
        if uniform(a, a + (1 << 30)) {
            pool[0][i] = a | attr(a) | VALID;
            continue;
        }
        let l2 = used;
        used += 1;
        assert!(used <= TABLES, "memory map has too many pieces");
        pool[0][i] = (base + l2 as u64 * 4096) | TABLE;
        for j in 0..512usize {
            let a2 = a + ((j as u64) << 21);
            if uniform(a2, a2 + (1 << 21)) || used == TABLES {
                pool[l2][j] = a2 | attr(a2) | VALID;
                continue;
            }
            let l3 = used;
            used += 1;
            pool[l2][j] = (base + l3 as u64 * 4096) | TABLE;
            for (k, e) in pool[l3].iter_mut().enumerate() {
                let a3 = a2 + ((k as u64) << 12);
                *e = match (image.guards)(a3) {
                    true => 0,
                    false => a3 | attr(a3) | PAGE,
                };
            }
        }
    }
    base & ADDR
}

/// Turns the MMU and the caches on for this CPU.
///
/// # Safety
/// `root` comes from [`build`]; the code that runs is identity-mapped by it.
pub unsafe fn enable(root: u64) {
    // SAFETY: the map is an identity map that covers code, stack and data in use, so the
    // instruction after the switch is the same one.
    unsafe {
        asm!(
            "msr mair_el2, {mair}", "msr tcr_el2, {tcr}", "msr ttbr0_el2, {root}",
            "dsb ish", "isb", "tlbi alle2", "dsb ish", "ic iallu", "dsb ish", "isb",
            "msr sctlr_el2, {sctlr}", "isb",
            mair = in(reg) MAIR, tcr = in(reg) TCR, root = in(reg) root, sctlr = in(reg) SCTLR,
        );
    }
}
