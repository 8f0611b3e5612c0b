// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device trees of guests and of the control domain. Both have the same shape: what differs is
//! whose addresses they tell.

use crate::facts::{self, Facts};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use vm_fdt::FdtWriter;

use crate::GicVersion;
use crate::layout::{self, Bank, Region};

/// The release of Xen whose ABI the hypervisor node claims.
pub const XEN_VERSION: &str = "4.17";
/// The longest kernel command line: arm64 Linux keeps 2048 bytes with the final NUL
/// (`COMMAND_LINE_SIZE`).
pub const MAX_BOOTARGS: usize = 2047;
/// Bytes of the control domain's command line, which may carry commands to run.
pub const MAX_DOM0_BOOTARGS: usize = 16 * 1024;

const GIC_PHANDLE: u32 = 65000;
/// Flags of a per-CPU interrupt: level low, CPUs 0 to 3 in GICv2's mask, as Xen writes it.
const LEVEL_LOW: u32 = 0xf08;
/// Flags of a shared interrupt: level high, with the same mask.
const LEVEL_HIGH: u32 = 0xf04;
/// The interrupt of events in guests.
const GUEST_EVENT_INTID: u32 = 31;

/// Why a device tree cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// The command line is too long: its length in bytes.
    BootargsTooLong(usize),
    /// The command line has a NUL byte in it.
    BootargsNul,
    /// No vcpu, or more than the interrupt controller can have.
    BadVcpus {
        /// How many are asked for.
        asked: u32,
        /// How many there can be.
        max: u32,
    },
    /// The event interrupt is no PPI.
    BadEventInterrupt(u32),
    /// There is no memory.
    NoMemory,
    /// The writer refused, for instance two nodes of one name.
    Write(String),
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BootargsTooLong(n) => write!(
                f,
                "the kernel command line has {n} bytes; Linux takes at most {MAX_BOOTARGS}"
            ),
            Self::BootargsNul => f.write_str("the kernel command line has a NUL byte in it"),
            Self::BadVcpus { asked, max } => {
                write!(
                    f,
                    "{asked} vcpus: there can be 1 to {max} with this interrupt controller"
                )
            }
            Self::BadEventInterrupt(n) => {
                write!(
                    f,
                    "event interrupt {n} is not a private peripheral interrupt (16 to 31)"
                )
            }
            Self::NoMemory => f.write_str("there is no memory"),
            Self::Write(e) => write!(f, "the device tree cannot be written: {e}"),
        }
    }
}

impl core::error::Error for TreeError {}

impl From<vm_fdt::Error> for TreeError {
    fn from(e: vm_fdt::Error) -> Self {
        Self::Write(e.to_string())
    }
}

type Result<T> = core::result::Result<T, TreeError>;

/// What a guest's device tree tells.
#[derive(Clone, Debug)]
pub struct GuestTree<'a> {
    /// Its RAM.
    pub banks: &'a [Bank],
    /// The number of vcpus.
    pub vcpus: u32,
    /// Its interrupt controller.
    pub gic: GicVersion,
    /// The kernel's command line; the property is left out if it is empty.
    pub bootargs: &'a str,
    /// The ramdisk's first byte and the byte behind its last.
    pub initrd: Option<(u64, u64)>,
    /// Randomness for the kernel's generator.
    pub rng_seed: Option<&'a [u8; 128]>,
    /// It has a virtual SBSA UART, which is then its `stdout-path`.
    pub vuart: bool,
    /// The timer's frequency in Hz, or 0 if its own register is right.
    pub clock_frequency: u32,
    /// The width of guest physical addresses in bits.
    pub gpaddr_bits: u8,
}

/// An interrupt controller's registers.
#[derive(Clone, Copy, Debug)]
pub struct GicNode {
    /// Its version.
    pub version: GicVersion,
    /// The distributor.
    pub distributor: Region,
    /// GICv2: the CPU interface; GICv3: the redistributors.
    pub cpu: Region,
}

/// A device with memory-mapped registers that is passed through.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// What it is, as the host's device tree has it.
    pub compatible: &'a str,
    /// Its registers.
    pub reg: Region,
    /// Its interrupt's number among the SPIs: intid - 32.
    pub spi: u32,
    /// The interrupt's flags as in the host's device tree: 1 edge rising, 4 level high.
    pub flags: u32,
}

/// What the control domain's device tree tells.
#[derive(Clone, Debug)]
pub struct Dom0Tree<'a> {
    /// Its RAM, mapped 1:1.
    pub banks: &'a [Bank],
    /// The number of vcpus.
    pub vcpus: u32,
    /// Its interrupt controller, at the host's addresses.
    pub gic: GicNode,
    /// Where grant-table frames may be mapped.
    pub grant_window: Region,
    /// Address space without memory behind it, where foreign and granted pages may be mapped.
    pub extended: &'a [Region],
    /// The events' interrupt: a PPI, 16 to 31.
    pub event_intid: u32,
    /// Its command line; the property is left out if it is empty.
    pub bootargs: &'a str,
    /// A ramdisk's first byte and the byte behind its last.
    pub initrd: Option<(u64, u64)>,
    /// Randomness.
    pub rng_seed: Option<&'a [u8; 128]>,
    /// The timer's frequency in Hz, or 0 if its own register is right.
    pub clock_frequency: u32,
    /// The board's name, and what the hypervisor knows of the machine.
    pub board: &'a str,
    /// See [`Facts`].
    pub facts: Facts,
    /// Devices that are passed through.
    pub devices: &'a [Device<'a>],
}

struct Hypervisor<'a> {
    grant: Region,
    extended: &'a [Region],
    event_intid: u32,
}

struct Tree<'a> {
    model: String,
    compatible: Vec<String>,
    banks: &'a [Bank],
    vcpus: u32,
    gic: GicNode,
    bootargs: &'a str,
    bootargs_limit: usize,
    initrd: Option<(u64, u64)>,
    rng_seed: Option<&'a [u8; 128]>,
    stdout: Option<&'a str>,
    clock_frequency: u32,
    hypervisor: Hypervisor<'a>,
}

/// The affinity with which a vcpu is known: 16 to a cluster (`MPIDR_EL1` Aff0 and Aff1, and the
/// `cpu` nodes' `reg`).
#[must_use]
pub const fn vcpu_affinity(id: u32) -> u32 {
    (id & 0xf) | ((id >> 4) << 8)
}

/// A guest's device tree, as Xen's toolstack would make it.
///
/// # Errors
/// The command line, the number of vcpus or the memory is out of range.
pub fn guest_tree(t: &GuestTree<'_>) -> Result<Vec<u8>> {
    let gic = match t.gic {
        GicVersion::V2 => GicNode {
            version: t.gic,
            distributor: Region {
                base: layout::GICD_BASE,
                size: 0x1000,
            },
            cpu: Region {
                base: layout::GICC_BASE,
                size: 0x2000,
            },
        },
        GicVersion::V3 => GicNode {
            version: t.gic,
            distributor: Region {
                base: layout::GICD_BASE,
                size: 0x1_0000,
            },
            cpu: Region {
                base: layout::GICR_BASE,
                size: 0x100_0000,
            },
        },
    };
    let uart = format!("sbsa-uart@{:x}", layout::VUART_BASE);
    let stdout = format!("/{uart}");
    let extended = layout::extended_regions(t.banks, t.gpaddr_bits);
    let tree = Tree {
        model: format!("XENVM-{XEN_VERSION}"),
        compatible: alloc::vec![format!("xen,xenvm-{XEN_VERSION}"), "xen,xenvm".to_string()],
        banks: t.banks,
        vcpus: t.vcpus,
        gic,
        bootargs: t.bootargs,
        bootargs_limit: MAX_BOOTARGS,
        initrd: t.initrd,
        rng_seed: t.rng_seed,
        stdout: t.vuart.then_some(stdout.as_str()),
        clock_frequency: t.clock_frequency,
        hypervisor: Hypervisor {
            grant: Region {
                base: layout::GRANT_BASE,
                size: layout::GRANT_SIZE,
            },
            extended: &extended,
            event_intid: GUEST_EVENT_INTID,
        },
    };
    tree.write(|w| {
        if t.vuart {
            let node = w.begin_node(&uart)?;
            w.property_string("compatible", "arm,sbsa-uart")?;
            w.property_array_u64("reg", &[layout::VUART_BASE, 0x1000])?;
            w.property_array_u32("interrupts", &[0, 0, LEVEL_HIGH])?;
            w.property_u32("interrupt-parent", GIC_PHANDLE)?;
            w.property_u32("current-speed", 115_200)?;
            w.end_node(node)?;
        }
        Ok(())
    })
}

/// The control domain's device tree.
///
/// # Errors
/// As [`guest_tree`], or the event interrupt is no PPI.
#[inline(never)]
pub fn dom0_tree(t: &Dom0Tree<'_>) -> Result<Vec<u8>> {
    let tree = Tree {
        model: "Paravane control domain".to_string(),
        compatible: alloc::vec!["paravane,dom0".to_string(), "xen,xenvm".to_string()],
        banks: t.banks,
        vcpus: t.vcpus,
        gic: t.gic,
        bootargs: t.bootargs,
        bootargs_limit: MAX_DOM0_BOOTARGS,
        initrd: t.initrd,
        rng_seed: t.rng_seed,
        stdout: None,
        clock_frequency: t.clock_frequency,
        hypervisor: Hypervisor {
            grant: t.grant_window,
            extended: t.extended,
            event_intid: t.event_intid,
        },
    };
    tree.write(|w| {
        let node = w.begin_node(facts::NODE)?;
        w.property_string(facts::BOARD, t.board)?;
        w.property_array_u64(facts::FACTS, &t.facts.words())?;
        w.end_node(node)?;
        for device in t.devices {
            let node = w.begin_node(&format!("device@{:x}", device.reg.base))?;
            w.property_string("compatible", device.compatible)?;
            w.property_array_u64("reg", &[device.reg.base, device.reg.size])?;
            w.property_array_u32("interrupts", &[0, device.spi, device.flags])?;
            w.property_u32("interrupt-parent", GIC_PHANDLE)?;
            if device.compatible == "virtio,mmio" {
                w.property_null("dma-coherent")?;
            }
            w.end_node(node)?;
        }
        Ok(())
    })
}

impl Tree<'_> {
    fn check(&self) -> Result<()> {
        if self.bootargs.len() > self.bootargs_limit {
            return Err(TreeError::BootargsTooLong(self.bootargs.len()));
        }
        if self.bootargs.contains('\0') {
            return Err(TreeError::BootargsNul);
        }
        let max = self.gic.version.max_vcpus();
        if self.vcpus == 0 || self.vcpus > max {
            return Err(TreeError::BadVcpus {
                asked: self.vcpus,
                max,
            });
        }
        if !(16..=31).contains(&self.hypervisor.event_intid) {
            return Err(TreeError::BadEventInterrupt(self.hypervisor.event_intid));
        }
        if self.banks.is_empty() {
            return Err(TreeError::NoMemory);
        }
        Ok(())
    }

    fn write(&self, devices: impl FnOnce(&mut FdtWriter) -> Result<()>) -> Result<Vec<u8>> {
        self.check()?;
        let mut w = FdtWriter::new()?;
        let root = w.begin_node("")?;
        w.property_string("model", &self.model)?;
        w.property_string_list("compatible", self.compatible.clone())?;
        w.property_u32("interrupt-parent", GIC_PHANDLE)?;
        w.property_u32("#address-cells", 2)?;
        w.property_u32("#size-cells", 2)?;
        self.chosen(&mut w)?;
        self.cpus(&mut w)?;
        self.memory(&mut w)?;
        self.interrupt_controller(&mut w)?;
        self.timer(&mut w)?;
        self.hypervisor(&mut w)?;
        devices(&mut w)?;
        w.end_node(root)?;
        Ok(w.finish()?)
    }

    fn chosen(&self, w: &mut FdtWriter) -> Result<()> {
        let node = w.begin_node("chosen")?;
        if !self.bootargs.is_empty() {
            w.property_string("bootargs", self.bootargs)?;
        }
        if let Some((start, end)) = self.initrd {
            w.property_u64("linux,initrd-start", start)?;
            w.property_u64("linux,initrd-end", end)?;
        }
        if let Some(seed) = self.rng_seed {
            w.property("rng-seed", seed)?;
        }
        if let Some(path) = self.stdout {
            w.property_string("stdout-path", path)?;
        }
        w.end_node(node)?;
        Ok(())
    }

    fn cpus(&self, w: &mut FdtWriter) -> Result<()> {
        let cpus = w.begin_node("cpus")?;
        w.property_u32("#address-cells", 1)?;
        w.property_u32("#size-cells", 0)?;
        for id in 0..self.vcpus {
            let affinity = vcpu_affinity(id);
            let cpu = w.begin_node(&format!("cpu@{affinity:x}"))?;
            w.property_string("device_type", "cpu")?;
            w.property_string("compatible", "arm,armv8")?;
            w.property_string("enable-method", "psci")?;
            w.property_u32("reg", affinity)?;
            w.end_node(cpu)?;
        }
        w.end_node(cpus)?;

        let psci = w.begin_node("psci")?;
        w.property_string_list(
            "compatible",
            ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]
                .map(String::from)
                .to_vec(),
        )?;
        w.property_string("method", "hvc")?;
        // PSCI 0.1 lets firmware choose its numbers; these are Xen's.
        w.property_u32("cpu_off", 1)?;
        w.property_u32("cpu_on", 2)?;
        w.end_node(psci)?;
        Ok(())
    }

    fn memory(&self, w: &mut FdtWriter) -> Result<()> {
        for bank in self.banks {
            let node = w.begin_node(&format!("memory@{:x}", bank.base))?;
            w.property_string("device_type", "memory")?;
            w.property_array_u64("reg", &[bank.base, bank.size])?;
            w.end_node(node)?;
        }
        Ok(())
    }

    fn interrupt_controller(&self, w: &mut FdtWriter) -> Result<()> {
        let GicNode {
            version,
            distributor,
            cpu,
        } = self.gic;
        let compatible: &[&str] = match version {
            GicVersion::V2 => &["arm,cortex-a15-gic", "arm,cortex-a9-gic"],
            GicVersion::V3 => &["arm,gic-v3"],
        };
        let node = w.begin_node(&format!("interrupt-controller@{:x}", distributor.base))?;
        w.property_string_list(
            "compatible",
            compatible.iter().map(|s| String::from(*s)).collect(),
        )?;
        w.property_u32("#interrupt-cells", 3)?;
        w.property_u32("#address-cells", 0)?;
        w.property_null("interrupt-controller")?;
        w.property_array_u64(
            "reg",
            &[distributor.base, distributor.size, cpu.base, cpu.size],
        )?;
        w.property_u32("linux,phandle", GIC_PHANDLE)?;
        w.property_phandle(GIC_PHANDLE)?;
        w.end_node(node)?;
        Ok(())
    }

    fn timer(&self, w: &mut FdtWriter) -> Result<()> {
        let node = w.begin_node("timer")?;
        w.property_string("compatible", "arm,armv8-timer")?;
        // Secure physical, non-secure physical, virtual: intids 29, 30 and 27.
        w.property_array_u32(
            "interrupts",
            &[1, 13, LEVEL_LOW, 1, 14, LEVEL_LOW, 1, 11, LEVEL_LOW],
        )?;
        w.property_u32("interrupt-parent", GIC_PHANDLE)?;
        if self.clock_frequency != 0 {
            w.property_u32("clock-frequency", self.clock_frequency)?;
        }
        w.end_node(node)?;
        Ok(())
    }

    fn hypervisor(&self, w: &mut FdtWriter) -> Result<()> {
        let Hypervisor {
            grant,
            extended,
            event_intid,
        } = self.hypervisor;
        let node = w.begin_node("hypervisor")?;
        w.property_string_list(
            "compatible",
            alloc::vec![format!("xen,xen-{XEN_VERSION}"), "xen,xen".to_string()],
        )?;
        let reg: Vec<u64> = core::iter::once(&grant)
            .chain(extended)
            .flat_map(|region| [region.base, region.size])
            .collect();
        w.property_array_u64("reg", &reg)?;
        w.property_array_u32(
            "interrupts",
            &[1, event_intid.saturating_sub(16), LEVEL_LOW],
        )?;
        w.property_u32("interrupt-parent", GIC_PHANDLE)?;
        w.end_node(node)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use dtoolkit::fdt::{Fdt, FdtNode};
    use dtoolkit::{Node, Property};

    /// Every property by `/path:name`, every node by `/path`.
    fn flat(dtb: &[u8]) -> BTreeMap<String, Vec<u8>> {
        fn walk(node: FdtNode<'_>, path: &str, out: &mut BTreeMap<String, Vec<u8>>) {
            for p in node.properties() {
                assert!(
                    out.insert(format!("{path}:{}", p.name()), p.value().to_vec())
                        .is_none()
                );
            }
            for child in node.children() {
                let path = format!("{path}/{}", child.name());
                assert!(out.insert(path.clone(), Vec::new()).is_none());
                walk(child, &path, out);
            }
        }
        let mut out = BTreeMap::new();
        walk(Fdt::new(dtb).unwrap().root(), "", &mut out);
        out
    }

    fn cells(cells: &[u32]) -> Vec<u8> {
        cells.iter().flat_map(|c| c.to_be_bytes()).collect()
    }

    const BANK: [Bank; 1] = [Bank {
        base: 0x4000_0000,
        size: 0x1000_0000,
    }];

    fn observed() -> GuestTree<'static> {
        GuestTree {
            banks: &BANK,
            vcpus: 1,
            gic: GicVersion::V2,
            bootargs: "console=hvc0 rdinit=/init",
            initrd: Some((0x4800_0000, 0x4843_4000)),
            rng_seed: None,
            vuart: false,
            clock_frequency: 0,
            gpaddr_bits: 40,
        }
    }

    #[test]
    fn equals_what_the_real_toolstack_gave_a_guest() {
        let z = |text: &[u8]| text.to_vec();
        let expected: BTreeMap<String, Vec<u8>> = [
            (":model", z(b"XENVM-4.17\0")),
            (":compatible", z(b"xen,xenvm-4.17\0xen,xenvm\0")),
            (":interrupt-parent", cells(&[0xfde8])),
            (":#address-cells", cells(&[2])),
            (":#size-cells", cells(&[2])),
            ("/chosen", z(b"")),
            ("/chosen:bootargs", z(b"console=hvc0 rdinit=/init\0")),
            ("/chosen:linux,initrd-start", cells(&[0, 0x4800_0000])),
            ("/chosen:linux,initrd-end", cells(&[0, 0x4843_4000])),
            ("/cpus", z(b"")),
            ("/cpus:#address-cells", cells(&[1])),
            ("/cpus:#size-cells", cells(&[0])),
            ("/cpus/cpu@0", z(b"")),
            ("/cpus/cpu@0:device_type", z(b"cpu\0")),
            ("/cpus/cpu@0:compatible", z(b"arm,armv8\0")),
            ("/cpus/cpu@0:enable-method", z(b"psci\0")),
            ("/cpus/cpu@0:reg", cells(&[0])),
            ("/psci", z(b"")),
            (
                "/psci:compatible",
                z(b"arm,psci-1.0\0arm,psci-0.2\0arm,psci\0"),
            ),
            ("/psci:method", z(b"hvc\0")),
            ("/psci:cpu_off", cells(&[1])),
            ("/psci:cpu_on", cells(&[2])),
            ("/memory@40000000", z(b"")),
            ("/memory@40000000:device_type", z(b"memory\0")),
            (
                "/memory@40000000:reg",
                cells(&[0, 0x4000_0000, 0, 0x1000_0000]),
            ),
            ("/interrupt-controller@3001000", z(b"")),
            (
                "/interrupt-controller@3001000:compatible",
                z(b"arm,cortex-a15-gic\0arm,cortex-a9-gic\0"),
            ),
            (
                "/interrupt-controller@3001000:#interrupt-cells",
                cells(&[3]),
            ),
            ("/interrupt-controller@3001000:#address-cells", cells(&[0])),
            ("/interrupt-controller@3001000:interrupt-controller", z(b"")),
            (
                "/interrupt-controller@3001000:reg",
                cells(&[0, 0x300_1000, 0, 0x1000, 0, 0x300_2000, 0, 0x2000]),
            ),
            (
                "/interrupt-controller@3001000:linux,phandle",
                cells(&[0xfde8]),
            ),
            ("/interrupt-controller@3001000:phandle", cells(&[0xfde8])),
            ("/timer", z(b"")),
            ("/timer:compatible", z(b"arm,armv8-timer\0")),
            (
                "/timer:interrupts",
                cells(&[1, 13, 0xf08, 1, 14, 0xf08, 1, 11, 0xf08]),
            ),
            ("/timer:interrupt-parent", cells(&[0xfde8])),
            ("/hypervisor", z(b"")),
            ("/hypervisor:compatible", z(b"xen,xen-4.17\0xen,xen\0")),
            (
                "/hypervisor:reg",
                cells(&[
                    0,
                    0x3800_0000,
                    0,
                    0x100_0000,
                    0,
                    0x5000_0000,
                    0,
                    0xb000_0000,
                    2,
                    0,
                    0xfe,
                    0,
                ]),
            ),
            ("/hypervisor:interrupts", cells(&[1, 15, 0xf08])),
            ("/hypervisor:interrupt-parent", cells(&[0xfde8])),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_string(), v))
        .collect();
        assert_eq!(flat(&guest_tree(&observed()).unwrap()), expected);
    }

    #[test]
    fn gicv3_with_many_cpus() {
        let tree = flat(
            &guest_tree(&GuestTree {
                vcpus: 18,
                gic: GicVersion::V3,
                ..observed()
            })
            .unwrap(),
        );
        assert_eq!(
            tree["/interrupt-controller@3001000:compatible"],
            b"arm,gic-v3\0"
        );
        assert_eq!(
            tree["/interrupt-controller@3001000:reg"],
            cells(&[0, 0x300_1000, 0, 0x1_0000, 0, 0x302_0000, 0, 0x100_0000])
        );
        assert_eq!(tree["/cpus/cpu@f:reg"], cells(&[15]));
        assert_eq!(tree["/cpus/cpu@100:reg"], cells(&[0x100]));
        assert_eq!(tree["/cpus/cpu@101:reg"], cells(&[0x101]));
        assert!(!tree.contains_key("/cpus/cpu@102"));
    }

    #[test]
    fn what_may_be_asked_for() {
        let tree = flat(
            &guest_tree(&GuestTree {
                initrd: None,
                bootargs: "",
                rng_seed: Some(&[7; 128]),
                vuart: true,
                clock_frequency: 62_500_000,
                ..observed()
            })
            .unwrap(),
        );
        assert!(
            !tree.contains_key("/chosen:bootargs")
                && !tree.contains_key("/chosen:linux,initrd-start")
        );
        assert_eq!(tree["/chosen:rng-seed"], [7; 128]);
        assert_eq!(tree["/chosen:stdout-path"], b"/sbsa-uart@22000000\0");
        assert_eq!(tree["/sbsa-uart@22000000:compatible"], b"arm,sbsa-uart\0");
        assert_eq!(
            tree["/sbsa-uart@22000000:reg"],
            cells(&[0, 0x2200_0000, 0, 0x1000])
        );
        assert_eq!(
            tree["/sbsa-uart@22000000:interrupts"],
            cells(&[0, 0, 0xf04])
        );
        assert_eq!(tree["/timer:clock-frequency"], cells(&[62_500_000]));
    }

    #[test]
    fn out_of_range_is_refused() {
        let long = "x".repeat(MAX_BOOTARGS + 1);
        let err = |t: GuestTree<'_>| guest_tree(&t).unwrap_err();
        assert_eq!(
            err(GuestTree {
                bootargs: &long,
                ..observed()
            }),
            TreeError::BootargsTooLong(2048)
        );
        assert!(
            guest_tree(&GuestTree {
                bootargs: &long[1..],
                ..observed()
            })
            .is_ok()
        );
        assert_eq!(
            err(GuestTree {
                bootargs: "a\0b",
                ..observed()
            }),
            TreeError::BootargsNul
        );
        assert_eq!(
            err(GuestTree {
                vcpus: 0,
                ..observed()
            }),
            TreeError::BadVcpus { asked: 0, max: 8 }
        );
        assert_eq!(
            err(GuestTree {
                vcpus: 9,
                ..observed()
            }),
            TreeError::BadVcpus { asked: 9, max: 8 }
        );
        assert_eq!(
            err(GuestTree {
                vcpus: 129,
                gic: GicVersion::V3,
                ..observed()
            }),
            TreeError::BadVcpus {
                asked: 129,
                max: 128
            }
        );
        assert_eq!(
            err(GuestTree {
                banks: &[],
                ..observed()
            }),
            TreeError::NoMemory
        );
    }

    #[test]
    fn the_control_domain() {
        let dom0 = Dom0Tree {
            banks: &[
                Bank {
                    base: 0x5000_0000,
                    size: 0x800_0000,
                },
                Bank {
                    base: 0x1_0000_0000,
                    size: 0x1000,
                },
            ],
            vcpus: 1,
            gic: GicNode {
                version: GicVersion::V3,
                distributor: Region {
                    base: 0x800_0000,
                    size: 0x1_0000,
                },
                cpu: Region {
                    base: 0x80a_0000,
                    size: 0xf6_0000,
                },
            },
            grant_window: Region {
                base: 0x6000_0000,
                size: 0x4000_0000,
            },
            extended: &[],
            event_intid: 22,
            bootargs: "log=info",
            initrd: None,
            rng_seed: Some(&[1; 128]),
            clock_frequency: 0,
            board: "a board",
            facts: Facts {
                uart: 1,
                uart_base: 0x900_0000,
                seed: 32,
                ..Facts::default()
            },
            devices: &[
                Device {
                    compatible: "virtio,mmio",
                    reg: Region {
                        base: 0xa00_3e00,
                        size: 0x200,
                    },
                    spi: 47,
                    flags: 1,
                },
                Device {
                    compatible: "virtio,mmio",
                    reg: Region {
                        base: 0xa00_3c00,
                        size: 0x200,
                    },
                    spi: 46,
                    flags: 1,
                },
            ],
        };
        let tree = flat(&dom0_tree(&dom0).unwrap());
        assert_eq!(
            tree["/memory@50000000:reg"],
            cells(&[0, 0x5000_0000, 0, 0x800_0000])
        );
        assert_eq!(tree["/memory@100000000:reg"], cells(&[1, 0, 0, 0x1000]));
        assert_eq!(
            tree["/interrupt-controller@8000000:reg"],
            cells(&[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000])
        );
        assert_eq!(tree["/hypervisor:compatible"], b"xen,xen-4.17\0xen,xen\0");
        assert_eq!(
            tree["/hypervisor:reg"],
            cells(&[0, 0x6000_0000, 0, 0x4000_0000])
        );
        assert_eq!(tree["/hypervisor:interrupts"], cells(&[1, 6, 0xf08]));
        assert_eq!(
            tree["/device@a003e00:reg"],
            cells(&[0, 0xa00_3e00, 0, 0x200])
        );
        assert_eq!(tree["/device@a003c00:interrupts"], cells(&[0, 46, 1]));
        assert_eq!(tree["/psci:method"], b"hvc\0");
        assert_eq!(tree["/paravane:board"], b"a board\0");
        assert_eq!(Facts::read(&tree["/paravane:facts"]), Some(dom0.facts));
        assert_eq!(Facts::read(&tree["/paravane:facts"][1..]), None);
        for event_intid in [0, 15, 32, u32::MAX] {
            assert_eq!(
                dom0_tree(&Dom0Tree {
                    event_intid,
                    ..dom0.clone()
                }),
                Err(TreeError::BadEventInterrupt(event_intid))
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_input_gives_a_readable_tree_or_an_error(
            bootargs in proptest::string::string_regex("(?s).{0,64}").unwrap(),
            vcpus in 0u32..140, v3: bool, vuart: bool, initrd: Option<(u64, u64)>,
            base: u64, size: u64, gpaddr_bits: u8,
        ) {
            let gic = if v3 { GicVersion::V3 } else { GicVersion::V2 };
            let banks = [Bank { base, size }];
            let t = GuestTree { bootargs: &bootargs, vcpus, gic, vuart, initrd, banks: &banks, gpaddr_bits, ..observed() };
            if let Ok(dtb) = guest_tree(&t) {
                let tree = flat(&dtb);
                proptest::prop_assert_eq!(tree.keys().filter(|k| k.ends_with(":enable-method")).count(), vcpus as usize);
            }
        }
    }
}
