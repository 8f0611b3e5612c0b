// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own stage 1, built before any lock or atomic is used. What is mapped how: [`platform::map`].

use core::arch::asm;
use core::cell::UnsafeCell;
use platform::map::Map;
pub use platform::map::{Image, MAIR, MapError, Range, Table};

/// TCR_EL2: 39 bits of address, 4 KiB granule, inner-shareable write-back walks, 40-bit output.
pub const TCR: u64 = 25 | (1 << 8) | (1 << 10) | (3 << 12) | (2 << 16) | (1 << 23) | (1 << 31);
/// SCTLR_EL2: MMU, caches, SP alignment check, write-implies-XN, and the RES1 bits.
pub const SCTLR: u64 = 0x30c5_0830 | 1 | (1 << 2) | (1 << 3) | (1 << 12) | (1 << 19);

#[repr(C, align(4096))]
struct Pool<const N: usize>(UnsafeCell<[Table; N]>);
// SAFETY: only `build` touches a pool, on the boot CPU before any other CPU runs; afterwards the tables are read by
// the MMU alone.
unsafe impl<const N: usize> Sync for Pool<N> {}
/// The image and the device tree: the root, and for each of the two that may cross a border of a GiB two tables of
/// blocks and two of pages.
static FIRST: Pool<9> = Pool(UnsafeCell::new([[0; 512]; 9]));
/// All of memory, and each piece of it that the firmware reserves as `no-map`.
static SECOND: Pool<48> = Pool(UnsafeCell::new([[0; 512]; 48]));

/// Makes a table for `ram` without `no_map`, and `image`; gives its root. Anything below 512 GiB that is neither becomes
/// Device memory. There are two: the `first` knows only the image and the device tree, so that the device tree can be
/// read; the second knows all RAM.
///
/// # Errors
/// As [`Map::build`].
///
/// # Safety
/// Call once for each value of `first`, on the boot CPU, before any other CPU runs.
pub unsafe fn build(
    first: bool,
    ram: &[Range],
    no_map: &[Range],
    image: &Image,
) -> Result<u64, MapError> {
    // SAFETY: sole user at this time, by this function's contract.
    let tables: &mut [Table] = unsafe {
        match first {
            true => &mut *FIRST.0.get(),
            false => &mut *SECOND.0.get(),
        }
    };
    let root = tables.as_ptr() as u64;
    Map { ram, no_map, image }.build(tables, root)?;
    Ok(root)
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
