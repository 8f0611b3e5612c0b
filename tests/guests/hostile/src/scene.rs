// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the attacker finds around it: addresses, domains, and how its own memory is laid out.

use crate::{Op, Rng};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// The arena: the attacker's memory that takes part, as pages from its begin.
pub mod layout {
    /// Pages of the arena in all: 4 MiB.
    pub const PAGES: u64 = 1024;
    /// Most vcpus.
    pub const VCPUS: u64 = 8;
    /// Roots of stage-1 trees for the upper half, and what hangs from the first.
    pub const TABLES: u64 = 0;
    /// Roots: [`super::evil`] says what they are.
    pub const ROOTS: u8 = 4;
    /// Generated instructions, a page for each vcpu.
    pub const CODE: u64 = 16;
    /// Arguments of calls: [`ARGUMENTS`] pages for each vcpu.
    pub const ARGS: u64 = 32;
    /// Pages of arguments that a vcpu has.
    pub const ARGUMENTS: u64 = 8;
    /// Where `shared_info`, event words and registered areas are put at first.
    pub const SHARED: u64 = 96;
    /// Everything from here on comes and goes.
    pub const SCRATCH: u64 = 128;
}

/// What the last 2 MiB of the address space look like: 8 blocks of 64 pages, which are the vcpus' arguments over and
/// over, in different ways.
pub mod evil {
    use super::{PAGE, Scene, layout};

    /// The first address.
    pub const BASE: u64 = 0xffff_ffff_ffe0_0000;
    /// Pages.
    pub const PAGES: u64 = 512;
    /// Blocks.
    pub const BLOCKS: u64 = 8;
    /// Pages of a block.
    pub const BLOCK: u64 = PAGES / BLOCKS;

    /// A page of normal memory: accessed, inner shareable, never executed.
    pub const NORMAL: u64 = 0x703 | 3 << 53;
    /// For EL0 too.
    pub const EL0: u64 = 1 << 6;
    /// Not to be written.
    pub const READ_ONLY: u64 = 1 << 7;
    /// Device memory.
    pub const DEVICE: u64 = 0x407 | 3 << 53;
    /// A table.
    pub const TABLE: u64 = 3;

    /// The descriptor of the page with this number.
    #[must_use]
    pub fn descriptor(scene: &Scene, n: u64) -> u64 {
        let args = scene.arena + (layout::ARGS + n % BLOCK) * PAGE;
        match n / BLOCK {
            // As they are; for EL0 too; read-only; every other one missing.
            0 | 7 => args | NORMAL,
            1 => args | NORMAL | EL0,
            2 => args | NORMAL | READ_ONLY,
            3 if n.is_multiple_of(2) => args | NORMAL,
            3 => 0,
            // Alternately to be written and not.
            4 => args | NORMAL | if n.is_multiple_of(2) { 0 } else { READ_ONLY },
            // What is shared, granted, emulated, lent, or nowhere.
            5 => match n % BLOCK {
                k @ 0..16 => (scene.window + k * PAGE) | NORMAL,
                k @ 16..32 => (scene.arena + (layout::SHARED + k) * PAGE) | NORMAL,
                k @ 32..40 => (scene.gicd + (k - 32) * PAGE) | DEVICE,
                k @ 40..44 => (scene.gicd + (k - 40) * PAGE) | NORMAL,
                k @ 44..48 => (scene.uart + (k - 44) * PAGE) | DEVICE,
                k @ 48..56 => (0x3900_0000 + (k - 48) * PAGE) | NORMAL,
                56 => (1 << 40) | NORMAL,
                57 => 0x0000_ffff_ffff_f000 | NORMAL,
                k => (k << 36) | NORMAL,
            },
            // What comes and goes.
            _ => (scene.arena + (layout::SCRATCH + n % BLOCK) * PAGE) | NORMAL,
        }
    }

    /// Entries of the tables: page of [`layout::TABLES`], entry, descriptor. Root 0 leads to the pages above and to
    /// nothing else. In root 1 every entry is the root itself, so that every address is mapped, to the root. Root 2's
    /// last entry leads to a table all of whose entries are itself. Root 3 leads out of memory.
    pub fn tables(scene: &Scene) -> impl Iterator<Item = (u64, u64, u64)> {
        let at = move |page: u64| scene.arena + (layout::TABLES + page) * PAGE;
        let own = move |page: u64| at(page) | NORMAL & !(3 << 53);
        let (l1, l2, l3) = (4, 5, 6);
        let tree = [
            (0, 511, at(l1) | TABLE),
            (l1, 511, at(l2) | TABLE),
            (l2, 511, at(l3) | TABLE),
            (2, 511, own(7)),
            (3, 511, 0x7f_ffff_f000 | TABLE),
            (3, 510, 0xffff_ffff_f000 | TABLE),
        ];
        tree.into_iter()
            .chain((0..512).map(move |n| (1, n, own(1))))
            .chain((0..512).map(move |n| (7, n, own(7))))
            .chain((0..PAGES).map(move |n| (l3, n, descriptor(scene, n))))
    }
}

/// What the attacker knows.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Its own number.
    pub own: u64,
    /// The witness's number.
    pub peer: u64,
    /// Its vcpus.
    pub vcpus: u64,
    /// This vcpu.
    pub vcpu: u64,
    /// Where the arena is, guest physical and virtual alike.
    pub arena: u64,
    /// Its memory's first address, where its image is.
    pub ram: u64,
    /// Address space for grant tables and mappings: 64 pages at least.
    pub window: u64,
    /// The distributor.
    pub gicd: u64,
    /// The CPU interface (GICv2) or the first redistributor (GICv3).
    pub gicx: u64,
    /// GICv3.
    pub v3: bool,
    /// The emulated UART.
    pub uart: u64,
    /// The address by which other vcpus are started, and what they find in x0: a base and a step for each vcpu.
    pub entry: u64,
    /// See [`entry`](Self::entry).
    pub context: (u64, u64),
}

impl Scene {
    /// A page of the arena.
    #[must_use]
    pub fn page(&self, n: u64) -> u64 {
        self.arena + n % layout::PAGES * PAGE
    }

    /// A vcpu's arguments.
    #[must_use]
    pub fn args(&self, vcpu: u64) -> u64 {
        self.page(layout::ARGS + vcpu % layout::VCPUS * layout::ARGUMENTS)
    }

    pub(crate) fn domid(&self, r: &mut Rng) -> u64 {
        match r.below(16) {
            0..10 => 0x7ff0,
            10 | 11 => self.own,
            12 => self.peer,
            13 => r.below(4),
            14 => self.own.wrapping_add(r.below(3)).wrapping_sub(1),
            _ => match r.below(3) {
                0 => 0x7ff0 + r.below(16),
                1 => 0xffff - r.below(3),
                _ => r.below(0x1_0000),
            },
        }
    }

    pub(crate) fn vcpu(&self, r: &mut Rng) -> u64 {
        match r.below(16) {
            0..14 => r.below(self.vcpus),
            14 => r.below(10),
            _ => r.border(),
        }
    }

    pub(crate) fn port(&self, r: &mut Rng) -> u64 {
        match r.below(32) {
            0..28 => r.below(24),
            28 | 29 => r.below(4200),
            30 => r.pick(&[1023, 1024, 4095, 4096, 131_071, 131_072]),
            _ => r.border(),
        }
    }

    pub(crate) fn gref(&self, r: &mut Rng) -> u64 {
        match r.below(32) {
            0..24 => r.below(32),
            // The witness's grant for this domain is the one of its number.
            24..28 => 8 + self.own,
            28 | 29 => r.below(4096),
            30 => r.pick(&[511, 512, 1023, 1024, 2047, 2048]),
            _ => r.border(),
        }
    }

    pub(crate) fn gfn(&self, r: &mut Rng) -> u64 {
        let arena = self.arena / PAGE;
        match r.below(64) {
            0..40 => arena + layout::SCRATCH + r.below(layout::PAGES - layout::SCRATCH),
            40..44 => arena + layout::SCRATCH + r.below(8),
            44..48 => arena + layout::SHARED + r.below(32),
            48 => arena + r.below(layout::SHARED),
            49..58 => self.window / PAGE + r.below(64),
            58 => self.gicd / PAGE + r.below(16),
            59 => 0x3_9000 + r.below(5),
            60 => r.pick(&[0, 1 << 28, (1 << 28) - 1, 1 << 36, 1 << 40, 0x8_0000]),
            61 => r.border(),
            62 if r.one_in(3000) => self.ram / PAGE + r.below(4096),
            _ => arena + layout::SCRATCH + r.below(512) / 64 * 64,
        }
    }

    /// An order of an extent.
    pub(crate) fn order(&self, r: &mut Rng) -> u64 {
        match r.below(16) {
            0..12 => 0,
            12 | 13 => r.below(5),
            14 => 9,
            _ => r.pick(&[1, 8, 9, 10, 11, 18, 30, 31, 63, 64, 0xffff_ffff]),
        }
    }

    /// An address of a device's, or of none.
    pub(crate) fn device_address(&self, r: &mut Rng, size: u64) -> u64 {
        let gicd = if self.v3 { 0x1_0000 } else { 0x1000 };
        let base = match r.below(16) {
            0..5 => self.gicd + r.below(gicd),
            5..8 if self.v3 => self.gicx + r.below(self.vcpus * 0x2_0000),
            8 if self.v3 => self.gicx + r.below(0x100_0000),
            5..9 => self.gicx + r.below(0x2000),
            9..12 => self.uart + r.below(0x1000),
            12 => self.gicd.wrapping_sub(0x1000) + r.below(0x4000),
            13 => 0x200_0000 + r.below(0x2_0000),
            14 => {
                r.pick(&[
                    0x0,
                    0x2300_0000,
                    0x3900_0000,
                    0x3901_0000,
                    0x8000_0000,
                    0x1_0000_0000,
                ]) + r.below(0x1000)
            }
            _ => self.window + r.below(64 * PAGE),
        };
        // Registers lie close together where most are.
        let base = if r.one_in(2) { base } else { base & !0xe00 };
        if r.one_in(8) {
            base
        } else {
            base & !(size - 1)
        }
    }

    pub(crate) fn device(&self, r: &mut Rng) -> Op {
        let size = 1 << r.below(4);
        // Registers of 32 bits most of all.
        let size = if r.one_in(2) { 4 } else { size };
        let at = self.device_address(r, size);
        let size = size as u8;
        if r.one_in(2) {
            Op::Load { at, size }
        } else {
            let value = match r.below(4) {
                0 => r.draw(),
                1 => r.border(),
                2 => r.pick(&[0, 0xffff_ffff, 0xa0a0_a0a0, 0x0101_0101, u64::MAX]),
                _ => 1 << r.below(64),
            };
            Op::Store { at, size, value }
        }
    }

    /// A descriptor of a stage-1 table.
    fn descriptor(&self, r: &mut Rng) -> u64 {
        match r.below(8) {
            0..4 => evil::descriptor(self, r.below(evil::PAGES)),
            4 => self.page(layout::TABLES + r.below(8)) | evil::TABLE,
            5 => self.page(layout::TABLES + r.below(8)) | evil::NORMAL,
            6 => 0,
            _ => r.draw(),
        }
    }

    pub(crate) fn scribble(&self, r: &mut Rng) -> Op {
        let word = r.below(PAGE / 8) * 8;
        let (at, value) = match r.below(16) {
            // Another vcpu's arguments, or one's own, at any time.
            0..3 => (
                self.args(r.below(self.vcpus)) + r.below(layout::ARGUMENTS * PAGE / 8) * 8,
                self.value(r),
            ),
            // Tables of the last 2 MiB, and of the rest.
            3 => (self.page(layout::TABLES + 6) + word, self.descriptor(r)),
            4 if r.one_in(8) => (
                self.page(layout::TABLES + r.below(8)) + word,
                self.descriptor(r),
            ),
            // Grants: a reasonable entry, or anything.
            4..9 => {
                let entry = match r.below(8) {
                    0..6 => {
                        r.pick(&[0, 1, 1, 1, 5, 2, 3]) | self.domid(r) << 16 | self.gfn(r) << 32
                    }
                    6 => r.pick(&[0x18, 0x8, 0x19, 0x1d]) | self.domid(r) << 16,
                    _ => r.draw(),
                };
                let frame = self.window + r.below(4) * r.below(2) * PAGE;
                (frame + self.gref(r) % 512 * 8, entry)
            }
            // What is shared for events: pending, mask, selector, the words of ports, queue heads.
            9..14 => {
                let page = self.page(layout::SHARED + r.below(8));
                let at = if r.one_in(2) { r.below(64) * 8 } else { word };
                let value = match r.below(5) {
                    0 => 0,
                    1 => u64::MAX,
                    // A FIFO word: flags and a link.
                    2 => r.below(8) << 29 | r.below(64) | r.below(8) << 61 | r.below(64) << 32,
                    3 => 1 << r.below(64),
                    _ => r.draw(),
                };
                (page + at, value)
            }
            14 => (
                self.page(layout::SCRATCH + r.below(64)) + word,
                self.value(r),
            ),
            _ => (self.window + r.below(64) * PAGE + word, self.value(r)),
        };
        Op::Scribble { at, value }
    }

    /// Any number that some field takes.
    pub(crate) fn value(&self, r: &mut Rng) -> u64 {
        match r.below(10) {
            0 => r.below(32),
            1 => self.gfn(r),
            2 => self.gfn(r).wrapping_mul(PAGE),
            3 => self.domid(r),
            4 => self.port(r),
            5 => self.args(self.vcpu) + r.below(0x8000),
            6 => evil::BASE + r.below(evil::PAGES * PAGE),
            7 => self.device_address(r, 8),
            8 => r.border(),
            _ => r.draw(),
        }
    }

    /// PSCI, SMCCC, and what is neither.
    pub(crate) fn smccc(&self, r: &mut Rng) -> Op {
        let wide = r.below(2) << 30;
        let target = match r.below(8) {
            0..7 => self.vcpu(r),
            _ => self.value(r),
        };
        let context = self.context.0 + self.context.1 * (target % layout::VCPUS);
        let x = match r.below(16) {
            // CPU_ON, as it should be, and so that the vcpu is lost.
            0..5 => [0x8400_0003 | wide, target, self.entry, context],
            5 if r.one_in(200) => [0x8400_0003 | wide, target, self.value(r), context],
            5 | 6 => [0x8400_0004 | wide, target, r.below(4), 0],
            7 if r.one_in(64) => [0x8400_0002, 0, 0, 0],
            8 => [0x8400_0001 | wide, self.value(r), self.entry, context],
            9..12 => {
                // All functions but those that end the domain.
                let mut function = r.below(0x20);
                if matches!(function, 2 | 8 | 9 | 0xe | 0x12) {
                    function = 0;
                }
                [
                    0x8400_0000 | wide | function,
                    self.value(r),
                    self.value(r),
                    self.value(r),
                ]
            }
            12 => [
                0x8000_0000 | wide | r.pick(&[0, 1, 2, 0x7fff, 0x8000, 0x3fff, 0x4000]),
                r.pick(&[0x8000_0000, 0x8000_7fff, 0x8400_0000]),
                0,
                0,
            ],
            13 => [
                0x8600_0000 | wide | r.pick(&[0xff00, 0xff01, 0xff03, 0, 1]),
                self.value(r),
                0,
                0,
            ],
            14 => [0x8400_0050 + r.below(4) + wide, r.below(300), 0, 0],
            _ => {
                let x0 = r.draw();
                // Not what ends the domain, by chance.
                [x0 & !0x400_0000, r.draw(), self.value(r), r.border()]
            }
        };
        Op::Smccc {
            smc: r.one_in(4),
            x,
        }
    }

    /// What ends the domain.
    pub(crate) fn end(&self, r: &mut Rng) -> Op {
        match r.below(4) {
            0 => Op::Smccc {
                smc: false,
                x: [0x8400_0008 + r.below(2), 0, 0, 0],
            },
            1 => Op::Smccc {
                smc: r.one_in(2),
                x: [0xc400_000e, 0, self.entry, 0],
            },
            _ => Op::Call(crate::calls::shutdown(r, self)),
        }
    }
}
