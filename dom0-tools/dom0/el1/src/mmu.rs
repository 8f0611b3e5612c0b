// SPDX-License-Identifier: MIT OR Apache-2.0
//! The identity map: memory and what the hypervisor lends are normal write-back, everything else
//! below 512 GiB is device memory.

use crate::machine;
use core::arch::asm;
use core::cell::UnsafeCell;
use dtoolkit::fdt::Fdt;

/// Address space that is mapped.
pub const LIMIT: u64 = 1 << 39;
const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;
/// Tables for those gigabytes that are of both kinds.
const MIXED: usize = 32;

/// Block descriptors: normal write-back inner shareable (attribute 0); device, never executed
/// (attribute 1). Both are accessed and of every ASID.
const NORMAL: u64 = 0x701;
const DEVICE: u64 = 0x405 | 3 << 53;
const TABLE: u64 = 3;

#[repr(C, align(4096))]
struct Table([u64; 512]);

struct Tables(UnsafeCell<(Table, [Table; MIXED])>);

// SAFETY: only `init` touches them, once, and then the hardware walks them.
unsafe impl Sync for Tables {}

static TABLES: Tables = Tables(UnsafeCell::new((
    Table([0; 512]),
    [const { Table([0; 512]) }; MIXED],
)));

pub(crate) fn init(tree: &Fdt<'_>) {
    // SAFETY: called once, before anything else could refer to the tables.
    let (top, mixed) = unsafe { &mut *TABLES.0.get() };
    for (gib, entry) in top.0.iter_mut().enumerate() {
        *entry = (gib as u64 * GIB) | DEVICE;
    }
    let mut used = 0;
    machine::normal_ranges(tree, |start, len| {
        let end = start.saturating_add(len).min(LIMIT);
        let mut at = start & !(MIB2 - 1);
        while at < end {
            let Some(entry) = top.0.get_mut((at / GIB) as usize) else {
                return;
            };
            let gib = at & !(GIB - 1);
            if *entry & 3 == 1 && *entry & 0x1c == 0 {
                // All normal already.
                at = gib + GIB;
            } else if *entry & 3 == 1 && ((at == gib && end - at >= GIB) || used == MIXED) {
                *entry = gib | NORMAL;
                at = gib + GIB;
            } else {
                if *entry & 3 == 1 {
                    let table = &mut mixed[used];
                    used += 1;
                    for (i, e) in table.0.iter_mut().enumerate() {
                        *e = (gib + i as u64 * MIB2) | DEVICE;
                    }
                    *entry = core::ptr::from_ref(table) as u64 | TABLE;
                }
                let base = core::ptr::from_ref(&mixed[0]) as u64;
                let table = &mut mixed[((*entry & !0xfff) - base) as usize / 4096];
                table.0[(at / MIB2 % 512) as usize] = at | NORMAL;
                at += MIB2;
            }
        }
    });
    let ttbr = core::ptr::from_ref(&*top) as u64 | 1 << 48;
    // SAFETY: the new map holds what the old one does (memory as normal, at its own address) and
    // more; the old one's entries are of ASID 0 and go with it.
    unsafe {
        asm!("dsb ishst", "msr ttbr0_el1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb",
             in(reg) ttbr, options(nostack));
    }
}
