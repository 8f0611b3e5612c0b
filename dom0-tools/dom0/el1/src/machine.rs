// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the device tree says of the machine.

use alloc::string::String;
use alloc::vec::Vec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

/// The interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gic {
    /// GICv2: distributor and CPU interface.
    V2 {
        /// The distributor's address.
        gicd: u64,
        /// The CPU interface's address.
        gicc: u64,
    },
    /// GICv3: distributor and redistributors.
    V3 {
        /// The distributor's address.
        gicd: u64,
        /// The first redistributor's address.
        gicr: u64,
    },
}

/// The `/hypervisor` node.
#[derive(Clone, Debug)]
pub struct Hypervisor {
    /// Its first `compatible` string, such as `xen,xen-4.17`.
    pub compatible: String,
    /// The window for grant-table frames: start and bytes.
    pub grant_window: (u64, u64),
    /// Address space without memory behind it, for foreign and granted pages: start and bytes.
    pub extended: Vec<(u64, u64)>,
    /// The interrupt that says that events are pending.
    pub event_intid: u32,
}

/// A virtio-mmio transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Its registers' address.
    pub base: u64,
    /// Their bytes.
    pub size: u64,
    /// Its interrupt.
    pub intid: u32,
}

/// A standard SD host controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SdHost {
    /// What it is, as the device tree has it.
    pub kind: &'static str,
    /// Its registers' address.
    pub base: u64,
    /// Their bytes.
    pub size: u64,
    /// Its interrupt.
    pub intid: u32,
}

/// Kinds of SD host controllers, by rising doubt that the card for users is there: on a Raspberry Pi 4
/// it is at the first one, in QEMU's model at the second, which on the board has the Wi-Fi.
const SD_HOSTS: &[&str] = &["brcm,bcm2711-emmc2", "brcm,bcm2835-sdhci"];

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The counter's value at the program's first instruction.
    pub entry_ticks: u64,
    /// Memory: start and bytes of each bank.
    pub memory: Vec<(u64, u64)>,
    /// CPUs in the tree.
    pub cpus: u32,
    /// The interrupt controller.
    pub gic: Gic,
    /// The hypervisor, if there is one.
    pub hypervisor: Option<Hypervisor>,
    /// `/chosen` `bootargs`.
    pub bootargs: String,
    /// virtio-mmio transports, in the order of the tree.
    pub virtio: Vec<VirtioMmio>,
    /// SD host controllers, the likeliest to have a card first.
    pub sd: Vec<SdHost>,
    /// A PL011 or SBSA UART: its address.
    pub uart: Option<u64>,
    /// `/chosen` `rng-seed`.
    pub seed: Vec<u8>,
    /// What the hypervisor says of the machine: the board's name, and its facts.
    pub facts: Option<(String, Vec<u8>)>,
}

impl Machine {
    /// Bytes of memory in all.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory.iter().map(|&(_, n)| n).sum()
    }
}

pub(crate) fn tree(dtb: usize) -> Fdt<'static> {
    // SAFETY: the boot protocol has x0 at a device tree, in memory that nothing writes: the heap
    // is laid around it. Its header tells its length, which `Fdt::new` checks against the slice.
    let bytes = unsafe {
        let head = core::slice::from_raw_parts(dtb as *const u8, 8);
        let size = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        core::slice::from_raw_parts(dtb as *const u8, size.min(2 << 20))
    };
    match Fdt::new(bytes) {
        Ok(tree) => tree,
        Err(e) => panic!("no device tree at {dtb:#x}: {e}"),
    }
}

/// Cells of a property, from `at` on, as one number.
fn cells(bytes: &[u8], at: usize, n: usize) -> Option<u64> {
    let mut v = 0u64;
    for i in at..at + n {
        let word = bytes.get(i * 4..i * 4 + 4)?;
        v = v << 32 | u64::from(u32::from_be_bytes(word.try_into().ok()?));
    }
    Some(v)
}

/// Calls `f` with start and length of each range in `reg`. Every bus that is looked at here has
/// the root's cell sizes.
fn reg(tree: &Fdt<'_>, node: &FdtNode<'_>, mut f: impl FnMut(u64, u64)) {
    let root = tree.root();
    let size = |name: &str, or: usize| {
        root.property(name)
            .and_then(|p| cells(p.value(), 0, 1))
            .map_or(or, |v| v as usize)
    };
    let (a, s) = (size("#address-cells", 2), size("#size-cells", 1));
    if a > 2 || s > 2 {
        return;
    }
    let Some(p) = node.property("reg") else {
        return;
    };
    let mut at = 0;
    while let (Some(start), Some(len)) = (cells(p.value(), at, a), cells(p.value(), at + a, s)) {
        f(start, len);
        at += a + s;
        if a + s == 0 {
            break;
        }
    }
}

fn compatible(node: &FdtNode<'_>, with: &[&str]) -> bool {
    node.property("compatible").is_some_and(|p| {
        p.value()
            .split(|&b| b == 0)
            .any(|s| with.iter().any(|w| w.as_bytes() == s))
    })
}

/// The first interrupt of a node with three-cell specifiers, as an INTID.
fn intid(node: &FdtNode<'_>, index: usize) -> Option<u32> {
    let p = node.property("interrupts")?;
    let kind = cells(p.value(), index * 3, 1)?;
    let n = cells(p.value(), index * 3 + 1, 1)? as u32;
    Some(if kind == 1 { n + 16 } else { n + 32 })
}

fn memory_nodes(tree: &Fdt<'_>, mut f: impl FnMut(u64, u64)) {
    for node in tree.root().children() {
        if node
            .property("device_type")
            .is_some_and(|p| p.value() == b"memory\0")
        {
            reg(tree, &node, &mut f);
        }
    }
}

/// Banks of memory.
pub(crate) fn memory(tree: &Fdt<'_>, f: impl FnMut(u64, u64)) {
    memory_nodes(tree, f);
}

/// Whatever is to be mapped as normal memory: the banks, and the hypervisor's windows. A guest
/// finds the page of its console 16 MiB after its grant window.
pub(crate) fn normal_ranges(tree: &Fdt<'_>, mut f: impl FnMut(u64, u64)) {
    memory_nodes(tree, &mut f);
    if let Some(node) = tree.find_node("/hypervisor") {
        reg(tree, &node, |start, len| {
            f(start, len);
            if (start, len) == (0x3800_0000, 0x100_0000) {
                f(0x3900_0000, 0x100_0000);
            }
        });
    }
}

/// Ranges in memory that are not free: the device tree and the initial ramdisk.
pub(crate) fn reserved(tree: &Fdt<'_>, mut f: impl FnMut(u64, u64)) {
    for r in tree.memory_reservations() {
        f(r.address(), r.size());
    }
    if let Some(chosen) = tree.find_node("/chosen") {
        let number = |name: &str| {
            let p = chosen.property(name)?;
            cells(p.value(), 0, p.value().len() / 4)
        };
        if let (Some(start), Some(end)) = (number("linux,initrd-start"), number("linux,initrd-end"))
        {
            f(start, end.saturating_sub(start));
        }
    }
}

/// The address of a PL011, for the very first words.
pub(crate) fn uart(tree: &Fdt<'_>) -> Option<u64> {
    let mut found = None;
    for node in tree.root().children() {
        if found.is_none() && compatible(&node, &["arm,pl011", "arm,sbsa-uart"]) {
            reg(tree, &node, |start, _| {
                found.get_or_insert(start);
            });
        }
    }
    found
}

pub(crate) fn read(tree: &Fdt<'_>, entry_ticks: u64) -> Machine {
    let mut m = Machine {
        entry_ticks,
        memory: Vec::new(),
        cpus: 0,
        gic: Gic::V2 { gicd: 0, gicc: 0 },
        hypervisor: None,
        bootargs: String::new(),
        virtio: Vec::new(),
        sd: Vec::new(),
        uart: uart(tree),
        seed: Vec::new(),
        facts: None,
    };
    let mut gic = None;
    memory(tree, |start, len| m.memory.push((start, len)));
    for node in tree.root().children() {
        let mut regs = Vec::new();
        if compatible(&node, &["arm,gic-v3"]) {
            reg(tree, &node, |start, _| regs.push(start));
            if let [gicd, gicr, ..] = regs[..] {
                gic = Some(Gic::V3 { gicd, gicr });
            }
        } else if compatible(
            &node,
            &["arm,cortex-a15-gic", "arm,gic-400", "arm,cortex-a9-gic"],
        ) {
            reg(tree, &node, |start, _| regs.push(start));
            if let [gicd, gicc, ..] = regs[..] {
                gic = Some(Gic::V2 { gicd, gicc });
            }
        } else if compatible(&node, &["virtio,mmio"]) {
            let Some(intid) = intid(&node, 0) else {
                continue;
            };
            reg(tree, &node, |base, size| {
                m.virtio.push(VirtioMmio { base, size, intid })
            });
        } else if let Some(&kind) = SD_HOSTS.iter().find(|k| compatible(&node, &[k])) {
            let Some(intid) = intid(&node, 0) else {
                continue;
            };
            reg(tree, &node, |base, size| {
                m.sd.push(SdHost {
                    kind,
                    base,
                    size,
                    intid,
                });
            });
        }
    }
    let Some(gic) = gic else {
        panic!("no interrupt controller in the device tree")
    };
    m.gic = gic;
    m.virtio.sort_by_key(|v| v.base);
    m.sd.sort_by_key(|h| SD_HOSTS.iter().position(|k| *k == h.kind));
    if let Some(cpus) = tree.find_node("/cpus") {
        m.cpus = cpus
            .children()
            .filter(|c| c.name().starts_with("cpu@"))
            .count() as u32;
    }
    if let Some(chosen) = tree.find_node("/chosen") {
        if let Some(p) = chosen.property("bootargs") {
            let text = p.value().split(|&b| b == 0).next().unwrap_or_default();
            m.bootargs = String::from_utf8_lossy(text).into_owned();
        }
        if let Some(p) = chosen.property("rng-seed") {
            m.seed = p.value().to_vec();
        }
    }
    if let Some(node) = tree.find_node("/paravane")
        && let (Some(board), Some(facts)) = (node.property("board"), node.property("facts"))
    {
        let name = board.value().split(|&b| b == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        m.facts = Some((name, facts.value().to_vec()));
    }
    if let Some(node) = tree.find_node("/hypervisor") {
        let mut regs = Vec::new();
        reg(tree, &node, |start, len| regs.push((start, len)));
        let name = node.property("compatible").map_or_else(String::new, |p| {
            let first = p.value().split(|&b| b == 0).next().unwrap_or_default();
            String::from_utf8_lossy(first).into_owned()
        });
        if compatible(&node, &["xen,xen"]) {
            m.hypervisor = Some(Hypervisor {
                compatible: name,
                grant_window: regs.first().copied().unwrap_or_default(),
                extended: regs.get(1..).unwrap_or_default().to_vec(),
                event_intid: intid(&node, 0).unwrap_or(31),
            });
        }
    }
    m
}
