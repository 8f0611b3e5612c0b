// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine as the firmware's device tree describes it.
//!
//! The `fdt` crate reads the tree; it trusts its input, so the whole blob is checked first
//! ([`Machine::parse`] on a damaged one gives an error, never a panic). Only ever give it the
//! firmware's tree: nothing else needs to be read at EL2.

use crate::board::{self, Board};
use crate::map::Range as Pages;
use crate::psci::Conduit;
use arrayvec::{ArrayString, ArrayVec};
use fdt::Fdt;
use fdt::node::FdtNode;

/// CPUs that are described; more are counted in [`Machine::cpus_left_out`].
pub const MAX_CPUS: usize = 8;
/// Memory banks that are described; more are left out.
pub const MAX_BANKS: usize = 8;
/// Reserved regions; more are an error.
pub const MAX_RESERVED: usize = 32;
/// Devices of the control domain that are described; more are left out.
pub const MAX_DEVICES: usize = 64;
/// GICv3 redistributor regions; more are an error.
pub const MAX_GICR: usize = 4;
/// Bytes of boot arguments; longer ones are cut.
pub const MAX_BOOTARGS: usize = 16 * 1024;
/// Bytes of the firmware's random seed that are kept.
pub const MAX_SEED: usize = 64;
/// Bytes that a device tree may have: QEMU's is padded to 1 MiB, the boot protocol allows 2.
pub const MAX_DTB: usize = 2 << 20;
/// How deep nodes may nest.
const MAX_DEPTH: usize = 12;

/// Physical addresses `base` up to `base + size`, not included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

impl Range {
    /// One past the last byte (the end of the address space at most).
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
}

/// An interrupt as wired to the GIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq {
    /// INTID: 16 to 31 for a PPI, 32 on for an SPI.
    pub intid: u32,
    /// Edge-triggered; otherwise level-triggered.
    pub edge: bool,
}

/// How a CPU is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuStart {
    /// PSCI CPU_ON.
    Psci,
    /// It spins until an entry point is written to this address.
    SpinTable {
        /// Physical address of the 64-bit release word.
        release: u64,
    },
}

/// A CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Affinity fields of its MPIDR.
    pub mpidr: u64,
    /// How it is started.
    pub start: CpuStart,
}

/// The interrupt controller, with the virtual interface that a hypervisor needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GicInfo {
    /// GICv2.
    V2 {
        /// Distributor.
        gicd: Range,
        /// Physical CPU interface.
        gicc: Range,
        /// Virtual interface control.
        gich: Range,
        /// Virtual CPU interface, for guests.
        gicv: Range,
        /// INTID of the maintenance interrupt.
        maintenance: u32,
    },
    /// GICv3 or later, affinity routing; the CPU interfaces are system registers.
    V3 {
        /// Distributor.
        gicd: Range,
        /// Redistributor regions.
        gicr: ArrayVec<Range, MAX_GICR>,
        /// Bytes from one redistributor to the next if the tree says so (`redistributor-stride`).
        stride: Option<u64>,
        /// INTID of the maintenance interrupt.
        maintenance: u32,
    },
}

impl GicInfo {
    /// Whether any of its register blocks is one that is asked for.
    fn registers(&self, mut is: impl FnMut(Range) -> bool) -> bool {
        match self {
            Self::V2 {
                gicd,
                gicc,
                gich,
                gicv,
                ..
            } => [*gicd, *gicc, *gich, *gicv].into_iter().any(is),
            Self::V3 { gicd, gicr, .. } => is(*gicd) || gicr.iter().copied().any(is),
        }
    }
}

/// Kinds of UART with a driver in [`crate::uart`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartKind {
    /// Arm PL011.
    Pl011,
    /// Broadcom's mini-UART (`brcm,bcm2835-aux-uart`).
    MiniUart,
}

/// The console UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UartInfo {
    /// What it is.
    pub kind: UartKind,
    /// Its registers.
    pub regs: Range,
    /// Its interrupt, if it has one.
    pub irq: Option<Irq>,
}

/// INTIDs of the generic timer's PPIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerInfo {
    /// EL1 secure physical timer.
    pub secure: u32,
    /// EL1 physical timer.
    pub physical: u32,
    /// Virtual timer.
    pub virt: u32,
    /// EL2 physical timer.
    pub hyp: u32,
    /// Ticks per second, given only where the firmware left `CNTFRQ_EL0` wrong.
    pub frequency: Option<u32>,
}

/// A simple device: registers and one interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is: the string of `compatible` by which it was found.
    pub kind: &'static str,
    /// Its registers.
    pub regs: Range,
    /// Its interrupt, if it has one.
    pub irq: Option<Irq>,
}

/// Why a machine cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DtError {
    /// No device tree at the address given: bad magic.
    NoDeviceTree,
    /// Larger than [`MAX_DTB`] or than the memory given.
    TooLarge,
    /// The blob is damaged, at this byte offset.
    Malformed(usize),
    /// No `memory` node with any memory.
    NoMemory,
    /// No CPU that can be started.
    NoCpus,
    /// No GICv2 or GICv3.
    NoGic,
    /// The GIC has no virtual interface or no maintenance interrupt: on QEMU's virt machine,
    /// `virtualization=on` is missing.
    NoGicVirtualInterface,
    /// No generic timer with an EL2 interrupt.
    NoTimer,
    /// More of this than there is room for.
    TooMany(&'static str),
    /// Registers that the hypervisor uses lie where the tree forbids to map anything (`no-map`).
    NoMapOverRegisters,
}

impl core::fmt::Display for DtError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoDeviceTree => f.write_str("no device tree from the firmware"),
            Self::TooLarge => write!(f, "device tree larger than {} KiB", MAX_DTB >> 10),
            Self::Malformed(at) => write!(f, "device tree damaged at byte {at:#x}"),
            Self::NoMemory => f.write_str("device tree has no memory"),
            Self::NoCpus => f.write_str("device tree has no usable CPU"),
            Self::NoGic => f.write_str("no GICv2 or GICv3 in the device tree"),
            Self::NoGicVirtualInterface => f.write_str(
                "the GIC has no virtual interface (QEMU: -machine virt,virtualization=on)",
            ),
            Self::NoTimer => f.write_str("no generic timer with an EL2 interrupt"),
            Self::TooMany(what) => write!(f, "too many {what} in the device tree"),
            Self::NoMapOverRegisters => {
                f.write_str("memory reserved as no-map has registers in it")
            }
        }
    }
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its board's further data.
    pub board: &'static Board,
    /// The root node's `model` (cut to fit).
    pub model: ArrayString<64>,
    /// Memory banks by rising address.
    pub memory: ArrayVec<Range, MAX_BANKS>,
    /// Not to be used as free memory: the tree's reservations and the board's. Neither the tree
    /// itself nor the initrd is in here.
    pub reserved: ArrayVec<Range, MAX_RESERVED>,
    /// Those of `reserved` that nobody may map either (`no-map`; Devicetree Specification 0.4, 3.5.4): the CPU is not to
    /// read there by speculation.
    pub no_map: ArrayVec<Range, MAX_RESERVED>,
    /// CPUs in the tree's order.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// How many more CPUs there are.
    pub cpus_left_out: usize,
    /// How PSCI is called, if there is any.
    pub psci: Option<Conduit>,
    /// The interrupt controller.
    pub gic: GicInfo,
    /// The UART that `stdout-path` names, otherwise the first one known.
    pub uart: Option<UartInfo>,
    /// The generic timer.
    pub timer: TimerInfo,
    /// `/chosen/bootargs`, cut at [`MAX_BOOTARGS`].
    pub bootargs: ArrayString<MAX_BOOTARGS>,
    /// `/chosen/rng-seed`, cut at [`MAX_SEED`] bytes.
    pub seed: ArrayVec<u8, MAX_SEED>,
    /// `/chosen/linux,initrd-start` and `-end`.
    pub initrd: Option<Range>,
    /// The control domain's devices ([`Board::dom0`]) by rising address.
    pub devices: ArrayVec<Device, MAX_DEVICES>,
    /// Real-time clock (PL031): its registers.
    pub rtc: Option<Range>,
    /// Power management block ([`crate::power`]): its registers.
    pub pm: Option<Range>,
    /// Bytes of the device tree itself, padding included.
    pub dtb_size: usize,
}

/// Total size that a device tree's header gives, from its first 8 bytes: how much to map before
/// [`Machine::parse`].
///
/// # Errors
/// [`DtError::NoDeviceTree`], [`DtError::TooLarge`].
pub fn size_of_tree(first8: [u8; 8]) -> Result<usize, DtError> {
    let v = u64::from_be_bytes(first8);
    if v >> 32 != MAGIC.into() {
        return Err(DtError::NoDeviceTree);
    }
    let size = v as u32 as usize;
    if size > MAX_DTB {
        Err(DtError::TooLarge)
    } else {
        Ok(size)
    }
}

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

fn be32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(
        b.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

/// Length of the text at `at`, which must end in a zero byte within `b`.
fn text_len(b: &[u8], at: usize) -> Option<usize> {
    let rest = b.get(at..)?;
    let len = rest.iter().position(|&c| c == 0)?;
    core::str::from_utf8(rest.get(..len)?).ok().map(|_| len)
}

/// Checks everything that `fdt` takes for granted, and takes NOP tokens out, which it trips over:
/// a node that firmware (or QEMU's raspi4b) struck out has become a row of them.
fn check(blob: &mut [u8]) -> Result<(), DtError> {
    let bad = DtError::Malformed;
    let first8 = blob
        .get(..8)
        .and_then(|b| b.try_into().ok())
        .ok_or(DtError::NoDeviceTree)?;
    let size = size_of_tree(first8)?;
    let blob = blob.get_mut(..size).ok_or(DtError::TooLarge)?;
    let word = |i: usize| be32(blob, i * 4).map(|v| v as usize).ok_or(bad(i * 4));
    let (st, ss, rsv) = (word(2)?, word(3)?, word(4)?);
    let (version, compatible) = (word(5)?, word(6)?);
    let (ss_len, st_len) = (word(8)?, word(9)?);
    if version < 17 || compatible > 17 {
        return Err(bad(20));
    }
    if rsv.checked_add(16).is_none_or(|e| e > size) || !st.is_multiple_of(4) {
        return Err(bad(16));
    }
    // The tokens come before the strings (Devicetree Specification 0.4, figure 5.1).
    let (head, strings) = blob.split_at_mut_checked(ss).ok_or(bad(12))?;
    let strings = strings.get(..ss_len).ok_or(bad(12))?;
    let tokens = head
        .get_mut(st..)
        .and_then(|b| b.get_mut(..st_len))
        .ok_or(bad(8))?;
    let (mut at, mut depth, mut children) = (0usize, 0usize, false);
    // Where the token goes, when those before it that are left out are gone.
    let mut to = 0;
    loop {
        let (from, here) = (at, bad(st + at));
        let token = be32(tokens, at).ok_or(here)?;
        at += 4;
        match token {
            NOP => continue,
            BEGIN_NODE => {
                let len = text_len(tokens, at).ok_or(here)?;
                depth += 1;
                if depth > MAX_DEPTH || (depth == 1) != (len == 0) {
                    return Err(here);
                }
                at += (len + 1).next_multiple_of(4);
                children = false;
            }
            END_NODE => {
                depth = depth.checked_sub(1).ok_or(here)?;
                children = true;
                if depth == 0 {
                    while be32(tokens, at) == Some(NOP) {
                        at += 4;
                    }
                    if be32(tokens, at) != Some(END) {
                        return Err(here);
                    }
                    // `fdt` itself never looks at the end token, of which it has the number
                    // wrong.
                    tokens.copy_within(from..from + 4, to);
                    tokens.copy_within(at..at + 4, to + 4);
                    return Ok(());
                }
            }
            PROP if depth > 0 && !children => {
                let len = be32(tokens, at).ok_or(here)? as usize;
                let name = be32(tokens, at + 4).ok_or(here)? as usize;
                text_len(strings, name).ok_or(here)?;
                let end = (at + 8).checked_add(len).ok_or(here)?;
                if end > tokens.len() {
                    return Err(here);
                }
                at = end.next_multiple_of(4);
            }
            _ => return Err(here),
        }
        if at > tokens.len() {
            return Err(here);
        }
        tokens.copy_within(from..at, to);
        to += at - from;
    }
}

/// The properties that matter, of one node.
#[derive(Clone, Copy, Default)]
struct Props<'a> {
    compatible: &'a [u8],
    reg: &'a [u8],
    interrupts: &'a [u8],
    ranges: Option<&'a [u8]>,
    status: Option<&'a [u8]>,
    device_type: &'a [u8],
    enable_method: &'a [u8],
    release: &'a [u8],
    address_cells: Option<u32>,
    size_cells: Option<u32>,
    no_map: bool,
}

impl<'a> Props<'a> {
    fn of(node: FdtNode<'_, 'a>) -> Self {
        let mut p = Self::default();
        for prop in node.properties() {
            let v = prop.value;
            match prop.name {
                "compatible" => p.compatible = v,
                "reg" => p.reg = v,
                "interrupts" => p.interrupts = v,
                "ranges" => p.ranges = Some(v),
                "status" => p.status = Some(v),
                "device_type" => p.device_type = v,
                "enable-method" => p.enable_method = v,
                "cpu-release-addr" => p.release = v,
                "#address-cells" => p.address_cells = be32(v, 0),
                "#size-cells" => p.size_cells = be32(v, 0),
                "no-map" => p.no_map = true,
                _ => {}
            }
        }
        p
    }
    /// Whether one of the strings in `compatible` is one of `any`.
    fn is(&self, any: &[&str]) -> bool {
        strings(self.compatible).any(|c| any.contains(&c))
    }
    fn enabled(&self) -> bool {
        self.status.is_none_or(|s| matches!(text(s), "okay" | "ok"))
    }
    /// The `i`-th interrupt of a node under a GIC (three cells each).
    fn irq(&self, i: usize) -> Option<Irq> {
        let at = i * 12;
        let n = be32(self.interrupts, at + 4)?;
        let flags = be32(self.interrupts, at + 8)?;
        let (base, max) = match be32(self.interrupts, at)? {
            0 => (32, 988),
            1 => (16, 16),
            _ => return None,
        };
        (n < max).then(|| Irq {
            intid: base + n,
            edge: flags & 3 != 0,
        })
    }
}

/// The strings of a string list.
fn strings(v: &[u8]) -> impl Iterator<Item = &str> {
    v.split(|&b| b == 0)
        .filter_map(|s| core::str::from_utf8(s).ok())
        .filter(|s| !s.is_empty())
}

/// The first string of a property, or nothing.
fn text(v: &[u8]) -> &str {
    strings(v).next().unwrap_or("")
}

/// A number of one or two cells.
fn number(v: &[u8]) -> Option<u64> {
    match v.len() {
        4 => be32(v, 0).map(u64::from),
        8 => Some(u64::from(be32(v, 0)?) << 32 | u64::from(be32(v, 4)?)),
        _ => None,
    }
}

/// A number of `cells` cells (0 to 3; of three the last two count, the first is a PCI space).
fn cells(v: &[u8], at: &mut usize, cells: usize) -> Option<u64> {
    let mut n = 0u64;
    for _ in 0..cells {
        n = n << 32 | u64::from(be32(v, *at)?);
        *at += 4;
    }
    Some(n)
}

/// Where a node's children live: how their `reg` is written and how it becomes an address that
/// a CPU uses.
struct Bus<'p, 'a> {
    parent: Option<&'p Bus<'p, 'a>>,
    /// `None`: nothing on it can be addressed.
    ranges: Option<&'a [u8]>,
    address_cells: usize,
    size_cells: usize,
}

impl Bus<'_, '_> {
    /// The CPU's address for this bus's address.
    fn translate(&self, addr: u64) -> Option<u64> {
        let Some(parent) = self.parent else {
            return Some(addr);
        };
        let ranges = self.ranges?;
        if ranges.is_empty() {
            return parent.translate(addr);
        }
        let mut at = 0;
        loop {
            let child = cells(ranges, &mut at, self.address_cells)?;
            let up = cells(ranges, &mut at, parent.address_cells)?;
            let size = cells(ranges, &mut at, self.size_cells)?;
            if let Some(off) = addr.checked_sub(child).filter(|&o| o < size) {
                return parent.translate(up.checked_add(off)?);
            }
            if self.address_cells + parent.address_cells + self.size_cells == 0 {
                return None;
            }
        }
    }

    /// The `i`-th entry of `reg`, as it stands there.
    fn entry(&self, reg: &[u8], i: usize) -> Option<Range> {
        let mut at = i.checked_mul((self.address_cells + self.size_cells) * 4)?;
        let base = cells(reg, &mut at, self.address_cells)?;
        let size = cells(reg, &mut at, self.size_cells)?;
        Some(Range { base, size })
    }

    /// The `i`-th entry of `reg`, as the CPU sees it.
    fn reg(&self, reg: &[u8], i: usize) -> Option<Range> {
        let Range { base, size } = self.entry(reg, i)?;
        let base = self.translate(base)?;
        base.checked_add(size)?;
        Some(Range { base, size })
    }

    /// How many entries `reg` has.
    fn entries(&self, reg: &[u8]) -> core::ops::Range<usize> {
        let entry = (self.address_cells + self.size_cells) * 4;
        0..reg.len().checked_div(entry).unwrap_or(0)
    }

    /// All entries of `reg` that the CPU sees.
    fn regs<'r>(&'r self, reg: &'r [u8]) -> impl Iterator<Item = Range> + 'r {
        self.entries(reg).filter_map(|i| self.reg(reg, i))
    }
}

/// Puts an element at its place in an ordered list, if there is room.
fn insert<T, const N: usize>(list: &mut ArrayVec<T, N>, new: T, key: impl Fn(&T) -> u64) {
    let at = list.iter().position(|x| key(x) > key(&new));
    let _ = list.try_insert(at.unwrap_or(list.len()), new);
}

/// What the walk over the tree finds.
#[derive(Default)]
struct Found<'a> {
    board: &'static Board,
    memory: ArrayVec<Range, MAX_BANKS>,
    reserved: ArrayVec<Range, MAX_RESERVED>,
    no_map: ArrayVec<Range, MAX_RESERVED>,
    cpus: ArrayVec<Cpu, MAX_CPUS>,
    cpus_left_out: usize,
    psci: Option<Conduit>,
    gic: Option<GicInfo>,
    gic_without_virt: bool,
    uart: Option<UartInfo>,
    /// How well it is known to be the console: 1 any UART, 2 the board's kind, 3 `stdout-path`.
    uart_rank: u8,
    stdout: &'a str,
    timer: Option<TimerInfo>,
    devices: ArrayVec<Device, MAX_DEVICES>,
    rtc: Option<Range>,
    pm: Option<Range>,
}

impl<'a> Found<'a> {
    fn reserve(&mut self, r: Range) -> Result<(), DtError> {
        if r.size == 0 {
            return Ok(());
        }
        self.reserved
            .try_push(r)
            .map_err(|_| DtError::TooMany("reserved regions"))
    }

    /// One node and all below it. `fdt` nests no deeper than `check` allowed.
    fn walk(
        &mut self,
        node: FdtNode<'_, 'a>,
        parent: &str,
        bus: &Bus<'_, 'a>,
    ) -> Result<(), DtError> {
        let p = Props::of(node);
        self.visit(node, parent, bus, &p)?;
        let below = Bus {
            parent: Some(bus),
            ranges: p.ranges,
            address_cells: p.address_cells.map_or(2, |c| c.min(3) as usize),
            size_cells: p.size_cells.map_or(1, |c| c.min(3) as usize),
        };
        for child in node.children() {
            self.walk(child, node.name, &below)?;
        }
        Ok(())
    }

    fn visit(
        &mut self,
        node: FdtNode<'_, 'a>,
        parent: &str,
        bus: &Bus<'_, 'a>,
        p: &Props<'a>,
    ) -> Result<(), DtError> {
        if text(p.device_type) == "cpu" && parent == "cpus" {
            self.cpu(bus, p);
            return Ok(());
        }
        if parent == "reserved-memory" {
            // Reserved whatever `status` says, and where no bus leads: being wrong in that direction does no harm.
            for mut r in bus.entries(p.reg).filter_map(|i| bus.entry(p.reg, i)) {
                r.base = bus.translate(r.base).unwrap_or(r.base);
                self.reserve(r)?;
                if p.no_map && r.size != 0 {
                    // As many as `reserved` has room for.
                    let _ = self.no_map.try_push(r);
                }
            }
            return Ok(());
        }
        if !p.enabled() {
            return Ok(());
        }
        if text(p.device_type) == "memory" {
            for r in bus.regs(p.reg).filter(|r| r.size != 0) {
                insert(&mut self.memory, r, |r| r.base);
            }
            return Ok(());
        }
        if p.compatible.is_empty() {
            return Ok(());
        }
        let uart = if p.is(&["arm,pl011"]) {
            Some(UartKind::Pl011)
        } else if p.is(&["brcm,bcm2835-aux-uart"]) {
            Some(UartKind::MiniUart)
        } else {
            None
        };
        let board = self.board;
        if let Some(&kind) = board.dom0.iter().find(|k| p.is(&[k])) {
            if let Some(regs) = bus.reg(p.reg, 0) {
                let irq = p.irq(0);
                let device = Device { kind, regs, irq };
                insert(&mut self.devices, device, |d| d.regs.base);
            }
        } else if let Some(kind) = uart {
            let rank = match () {
                () if node.name == self.stdout => 3,
                () if kind == board.uart => 2,
                () => 1,
            };
            if rank > self.uart_rank
                && let Some(regs) = bus.reg(p.reg, 0)
            {
                let irq = p.irq(0);
                self.uart = Some(UartInfo { kind, regs, irq });
                self.uart_rank = rank;
            }
        } else if p.is(&["arm,cortex-a15-gic", "arm,gic-400", "arm,cortex-a7-gic"]) {
            self.gic_v2(bus, p);
        } else if p.is(&["arm,gic-v3"]) {
            self.gic_v3(node, bus, p)?;
        } else if p.is(&["arm,armv8-timer"]) {
            let ppi = |i| p.irq(i).map(|irq| irq.intid);
            if let (Some(secure), Some(physical), Some(virt), Some(hyp)) =
                (ppi(0), ppi(1), ppi(2), ppi(3))
            {
                let frequency = node
                    .property("clock-frequency")
                    .and_then(|v| be32(v.value, 0));
                self.timer = Some(TimerInfo {
                    secure,
                    physical,
                    virt,
                    hyp,
                    frequency,
                });
            }
        } else if p.is(&["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]) {
            self.psci = match node.property("method").map(|m| text(m.value)) {
                Some("smc") => Some(Conduit::Smc),
                Some("hvc") => Some(Conduit::Hvc),
                _ => None,
            };
        } else if p.is(&["arm,pl031"]) && self.rtc.is_none() {
            self.rtc = bus.reg(p.reg, 0);
        } else if p.is(&["brcm,bcm2835-pm-wdt"]) {
            self.pm = bus.reg(p.reg, 0);
        }
        Ok(())
    }

    /// A CPU whose `status` is `disabled` is one that waits to be started.
    fn cpu(&mut self, bus: &Bus<'_, 'a>, p: &Props<'a>) {
        let mut at = 0;
        let Some(mpidr) = cells(p.reg, &mut at, bus.address_cells.min(2)) else {
            return;
        };
        let start = match text(p.enable_method) {
            "spin-table" => match number(p.release) {
                Some(release) => CpuStart::SpinTable { release },
                None => return,
            },
            // A single CPU needs no way to start it.
            "psci" | "" => CpuStart::Psci,
            _ => return,
        };
        if p.status.is_some_and(|s| text(s).starts_with("fail")) {
            return;
        }
        if self.cpus.try_push(Cpu { mpidr, start }).is_err() {
            self.cpus_left_out += 1;
        }
    }

    fn gic_v2(&mut self, bus: &Bus<'_, 'a>, p: &Props<'a>) {
        let reg = |i| bus.reg(p.reg, i);
        if let (Some(gicd), Some(gicc), Some(gich), Some(gicv), Some(irq)) =
            (reg(0), reg(1), reg(2), reg(3), p.irq(0))
        {
            self.gic = Some(GicInfo::V2 {
                gicd,
                gicc,
                gich,
                gicv,
                maintenance: irq.intid,
            });
        } else {
            self.gic_without_virt = true;
        }
    }

    fn gic_v3(
        &mut self,
        node: FdtNode<'_, 'a>,
        bus: &Bus<'_, 'a>,
        p: &Props<'a>,
    ) -> Result<(), DtError> {
        let prop = |name| node.property(name).and_then(|v| number(v.value));
        let regions = prop("#redistributor-regions").unwrap_or(1);
        if regions > MAX_GICR as u64 {
            return Err(DtError::TooMany("redistributor regions"));
        }
        let gicr: ArrayVec<_, MAX_GICR> = (1..=regions as usize)
            .filter_map(|i| bus.reg(p.reg, i))
            .collect();
        match (bus.reg(p.reg, 0), p.irq(0)) {
            (Some(gicd), Some(irq)) if !gicr.is_empty() => {
                let stride = prop("redistributor-stride");
                self.gic = Some(GicInfo::V3 {
                    gicd,
                    gicr,
                    stride,
                    maintenance: irq.intid,
                });
            }
            _ => self.gic_without_virt = true,
        }
        Ok(())
    }
}

/// As much of `s` as fits.
fn cut<const N: usize>(s: &str) -> ArrayString<N> {
    let mut out = ArrayString::new();
    for c in s.chars() {
        if out.try_push(c).is_err() {
            break;
        }
    }
    out
}

impl Machine {
    /// Reads the firmware's device tree, which `blob` begins with; NOP tokens in it go.
    ///
    /// # Errors
    /// What makes the machine unusable, see [`DtError`].
    #[inline(never)]
    pub fn parse(blob: &mut [u8]) -> Result<Self, DtError> {
        check(blob)?;
        let blob = &*blob;
        let fdt = Fdt::new(blob).map_err(|_| DtError::NoDeviceTree)?;
        let Some(root) = fdt.find_node("/") else {
            return Err(DtError::Malformed(0));
        };
        let rp = Props::of(root);
        let board = board::find(strings(rp.compatible));
        let mut found = Found {
            board,
            ..Found::default()
        };
        for r in fdt.memory_reservations() {
            found.reserve(Range {
                base: r.address() as u64,
                size: r.size() as u64,
            })?;
        }
        for &r in board.reserved {
            found.reserve(r)?;
        }

        let mut bootargs = ArrayString::new();
        let mut seed = ArrayVec::new();
        let (mut start, mut end) = (None, None);
        if let Some(chosen) = fdt.find_node("/chosen") {
            for prop in chosen.properties() {
                match prop.name {
                    "bootargs" => bootargs = cut(text(prop.value)),
                    "rng-seed" => seed = prop.value.iter().copied().take(MAX_SEED).collect(),
                    "linux,initrd-start" => start = number(prop.value),
                    "linux,initrd-end" => end = number(prop.value),
                    "stdout-path" => found.stdout = stdout_name(&fdt, text(prop.value)),
                    _ => {}
                }
            }
        }
        let initrd = match (start, end) {
            (Some(base), Some(end)) if end > base => Some(Range {
                base,
                size: end - base,
            }),
            _ => None,
        };

        let nowhere = Bus {
            parent: None,
            ranges: None,
            address_cells: 2,
            size_cells: 2,
        };
        let top = Bus {
            parent: None,
            ranges: None,
            address_cells: rp.address_cells.map_or(2, |c| c.min(3) as usize),
            size_cells: rp.size_cells.map_or(1, |c| c.min(3) as usize),
        };
        found.visit(root, "", &nowhere, &rp)?;
        for child in root.children() {
            found.walk(child, "", &top)?;
        }

        if found.memory.is_empty() {
            return Err(DtError::NoMemory);
        }
        if found.cpus.is_empty() {
            return Err(DtError::NoCpus);
        }
        let gic = found.gic.ok_or(if found.gic_without_virt {
            DtError::NoGicVirtualInterface
        } else {
            DtError::NoGic
        })?;
        let no_map = &found.no_map;
        let over = |r: Range| {
            let pages = Pages::pages_of(r);
            no_map.iter().any(|n| Pages::pages_of(*n).overlaps(&pages))
        };
        // What the hypervisor itself uses.
        let own = [found.uart.map(|u| u.regs), found.rtc, found.pm];
        if own.into_iter().flatten().any(over) || gic.registers(over) {
            return Err(DtError::NoMapOverRegisters);
        }
        Ok(Self {
            board,
            model: root
                .property("model")
                .map_or_else(ArrayString::new, |m| cut(text(m.value))),
            memory: found.memory,
            reserved: found.reserved,
            no_map: found.no_map,
            cpus: found.cpus,
            cpus_left_out: found.cpus_left_out,
            psci: found.psci,
            gic,
            uart: found.uart,
            timer: found.timer.ok_or(DtError::NoTimer)?,
            bootargs,
            seed,
            initrd,
            devices: found.devices,
            rtc: found.rtc,
            pm: found.pm,
            dtb_size: fdt.total_size(),
        })
    }

    /// RAM, in whole pages.
    #[must_use]
    pub fn ram(&self) -> ArrayVec<Pages, MAX_BANKS> {
        let banks = self.memory.iter().map(|r| Pages::pages_in(*r));
        banks.filter(|r| r.start < r.end).collect()
    }

    /// What must not be mapped, in whole pages.
    #[must_use]
    pub fn forbidden(&self) -> ArrayVec<Pages, MAX_RESERVED> {
        self.no_map.iter().map(|r| Pages::pages_of(*r)).collect()
    }
}

/// Name, with its unit address, of the node that `stdout-path` means: a path or an alias, then
/// perhaps `:` and the line's settings.
fn stdout_name<'a>(fdt: &Fdt<'a>, value: &str) -> &'a str {
    let path = value.split(':').next().unwrap_or("");
    let resolved = if path.starts_with('/') {
        path
    } else {
        fdt.find_node("/aliases")
            .and_then(|a| a.property(path))
            .map_or("", |v| text(v.value))
    };
    if !resolved.starts_with('/') {
        return "";
    }
    fdt.find_node(resolved).map_or("", |n| n.name)
}

#[cfg(test)]
mod tests;
