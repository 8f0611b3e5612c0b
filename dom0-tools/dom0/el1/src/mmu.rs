// SPDX-License-Identifier: MIT OR Apache-2.0
//! The identity map: memory and what the hypervisor lends are normal write-back, everything else
//! below 512 GiB is device memory. The program's text can be executed and not written, its constants
//! can only be read, nothing else can be executed, and where address 0 is no memory nothing is mapped.

use crate::{LIMIT, machine};
use core::arch::asm;
use core::cell::UnsafeCell;
use dtoolkit::fdt::Fdt;

const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// Tables for those gigabytes that are of several kinds, and for the image's pages.
const TABLES: usize = 32;

/// Block descriptors: normal write-back inner shareable (attribute 0); device (attribute 1). Both
/// are accessed, of every ASID, and never executed.
const NORMAL: u64 = 0x701 | NEVER;
const DEVICE: u64 = 0x405 | NEVER;
/// Page descriptors of the image.
const TEXT: u64 = 0x703 | READ_ONLY | NOT_AT_EL0;
const CONSTANTS: u64 = 0x703 | READ_ONLY | NEVER;
const READ_ONLY: u64 = 1 << 7;
const NOT_AT_EL0: u64 = 1 << 54;
const NEVER: u64 = 3 << 53;
const TABLE: u64 = 3;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Table([u64; 512]);

struct Pool(UnsafeCell<(Table, [Table; TABLES])>);

// SAFETY: only `init` touches them, once, and then the hardware walks them.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new((
    Table([0; 512]),
    [const { Table([0; 512]) }; TABLES],
)));

struct Map<'a> {
    top: &'a mut Table,
    pool: &'a mut [Table; TABLES],
    used: usize,
}

impl Map<'_> {
    /// A new table that maps in pieces of `size` what the entry `whole` mapped.
    fn split(&mut self, whole: u64, size: u64) -> Option<(usize, u64)> {
        let n = self.used;
        let table = self.pool.get_mut(n)?;
        self.used += 1;
        let page = if size == PAGE { 2 } else { 0 };
        for (i, e) in table.0.iter_mut().enumerate() {
            *e = (whole + i as u64 * size) | page;
        }
        Some((n, core::ptr::from_ref(table) as u64 | TABLE))
    }

    /// Which table an entry of the level above names.
    fn number(&self, entry: u64) -> usize {
        ((entry & !0xfff) - core::ptr::from_ref(&self.pool[0]) as u64) as usize / 4096
    }

    /// The table of 2 MiB blocks around an address; `None` when there is no room for it.
    fn blocks(&mut self, at: u64) -> Option<usize> {
        let i = (at / GIB) as usize;
        let e = self.top.0[i];
        if e & 3 == TABLE {
            return Some(self.number(e));
        }
        let (n, entry) = self.split(e, MIB2)?;
        self.top.0[i] = entry;
        Some(n)
    }

    /// The entry of the page at an address.
    fn page(&mut self, at: u64) -> Option<&mut u64> {
        let table = self.blocks(at)?;
        let i = (at / MIB2 % 512) as usize;
        let e = self.pool[table].0[i];
        let n = if e & 3 == TABLE {
            self.number(e)
        } else {
            let (n, entry) = self.split(e, PAGE)?;
            self.pool[table].0[i] = entry;
            n
        };
        Some(&mut self.pool[n].0[(at / PAGE % 512) as usize])
    }

    /// Makes a range normal memory, in whole blocks.
    fn normal(&mut self, start: u64, len: u64) {
        let end = start.saturating_add(len).min(LIMIT);
        let mut at = start & !(MIB2 - 1);
        while at < end {
            let gib = at & !(GIB - 1);
            let whole =
                at == gib && end - at >= GIB && self.top.0[(at / GIB) as usize] & 3 != TABLE;
            let table = if whole { None } else { self.blocks(at) };
            if let Some(n) = table {
                self.pool[n].0[(at / MIB2 % 512) as usize] = at | NORMAL;
                at += MIB2;
            } else {
                self.top.0[(at / GIB) as usize] = gib | NORMAL;
                at = gib + GIB;
            }
        }
    }
}

/// The image: its begin, the end of its text, and the begin of what is written.
fn image() -> (u64, u64, u64) {
    unsafe extern "C" {
        static __image_start: u8;
        static __text_end: u8;
        static __data_start: u8;
    }
    (
        &raw const __image_start as u64,
        &raw const __text_end as u64,
        &raw const __data_start as u64,
    )
}

pub(crate) fn init(tree: &Fdt<'_>) {
    // SAFETY: called once, before anything else could refer to the tables.
    let (top, pool) = unsafe { &mut *POOL.0.get() };
    for (gib, entry) in top.0.iter_mut().enumerate() {
        *entry = (gib as u64 * GIB) | DEVICE;
    }
    let mut map = Map { top, pool, used: 0 };
    if let Some(n) = map.blocks(0) {
        map.pool[n].0[0] = 0;
    }
    machine::normal_ranges(tree, |start, len| map.normal(start, len));
    let (start, text_end, data) = image();
    for at in (start..data).step_by(PAGE as usize) {
        let kind = if at < text_end { TEXT } else { CONSTANTS };
        match map.page(at) {
            Some(e) => *e = at | kind,
            None => panic!("too many kinds of memory for {TABLES} tables"),
        }
    }
    let ttbr = core::ptr::from_ref(&*map.top) as u64 | 1 << 48;
    // SAFETY: the new map holds what the old one does (memory as normal, at its own address) and
    // more, but that it forbids to write what is not written and to execute what is no text; the old
    // one's entries are of ASID 0 and go with it.
    unsafe {
        asm!("dsb ishst", "msr ttbr0_el1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb",
             in(reg) ttbr, options(nostack));
    }
}
