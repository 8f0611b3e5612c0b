// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arm64: a guest's physical memory map, its registers at start, its interrupts (`arch-arm.h`).
//!
//! Addresses are guest physical, sizes in bytes. Guests are to read them from their device tree, yet
//! some builds hard-wire them, so the values stay as they are.

macro_rules! consts {
    ($ty:ty; $($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* pub const $name: $ty = $value;)*
    };
}

consts! { u64;
    /// virtio-mmio devices, 0x200 bytes each.
    GUEST_VIRTIO_MMIO_BASE = 0x0200_0000;
    /// Size of the virtio-mmio window.
    GUEST_VIRTIO_MMIO_SIZE = 0x0010_0000;
    /// GICv2 distributor.
    GUEST_GICD_BASE = 0x0300_1000;
    /// Size of the GICv2 distributor.
    GUEST_GICD_SIZE = 0x1000;
    /// GICv2 CPU interface.
    GUEST_GICC_BASE = 0x0300_2000;
    /// Size of the GICv2 CPU interface.
    GUEST_GICC_SIZE = 0x2000;
    /// GICv3 distributor.
    GUEST_GICV3_GICD_BASE = 0x0300_1000;
    /// Size of the GICv3 distributor.
    GUEST_GICV3_GICD_SIZE = 0x0001_0000;
    /// GICv3 redistributors of vcpus 0..128.
    GUEST_GICV3_GICR0_BASE = 0x0302_0000;
    /// Size of the redistributor region.
    GUEST_GICV3_GICR0_SIZE = 0x0100_0000;
    /// Redistributor of one vcpu: two frames of 64 KiB.
    GUEST_GICV3_RDIST_STRIDE = 0x0002_0000;
    /// Virtual PCI configuration space.
    GUEST_VPCI_ECAM_BASE = 0x1000_0000;
    /// Size of the virtual PCI configuration space.
    GUEST_VPCI_ECAM_SIZE = 0x1000_0000;
    /// ACPI tables.
    GUEST_ACPI_BASE = 0x2000_0000;
    /// Size of the ACPI tables' window.
    GUEST_ACPI_SIZE = 0x0200_0000;
    /// The emulated PL011.
    GUEST_PL011_BASE = 0x2200_0000;
    /// Size of the emulated PL011.
    GUEST_PL011_SIZE = 0x1000;
    /// Virtual PCI memory.
    GUEST_VPCI_MEM_ADDR = 0x2300_0000;
    /// Size of the virtual PCI memory.
    GUEST_VPCI_MEM_SIZE = 0x1000_0000;
    /// Window for the grant table, `reg[0]` of the hypervisor node.
    GUEST_GNTTAB_BASE = 0x3800_0000;
    /// Size of the window for the grant table.
    GUEST_GNTTAB_SIZE = 0x0100_0000;
    /// Pages that the toolstack gives a guest: see `MAGIC_*`.
    GUEST_MAGIC_BASE = 0x3900_0000;
    /// Size of the magic pages' window.
    GUEST_MAGIC_SIZE = 0x0100_0000;
    /// First memory bank.
    GUEST_RAM0_BASE = 0x4000_0000;
    /// Most that the first memory bank holds.
    GUEST_RAM0_SIZE = 0xc000_0000;
    /// Virtual PCI prefetchable memory.
    GUEST_VPCI_PREFETCH_MEM_ADDR = 0x1_0000_0000;
    /// Size of the virtual PCI prefetchable memory.
    GUEST_VPCI_PREFETCH_MEM_SIZE = 0x1_0000_0000;
    /// Second memory bank.
    GUEST_RAM1_BASE = 0x02_0000_0000;
    /// Most that the second memory bank holds.
    GUEST_RAM1_SIZE = 0xfe_0000_0000;
    /// Most memory that a guest can have.
    GUEST_RAM_MAX = GUEST_RAM0_SIZE + GUEST_RAM1_SIZE;
    /// Magic page of the console ring: index from [`GUEST_MAGIC_BASE`].
    MAGIC_CONSOLE = 0;
    /// Magic page of the xenstore ring.
    MAGIC_XENSTORE = 1;
    /// Magic page of the memory-access ring.
    MAGIC_MEMACCESS = 2;
    /// Magic page of the virtual UART's ring.
    MAGIC_VUART = 3;
    /// How many magic pages there are.
    MAGIC_PAGES = 4;
    /// The processor state in which a vcpu starts: EL1h, SError, IRQ and FIQ masked.
    PSR_GUEST64_INIT = PSR_ABT_MASK | PSR_FIQ_MASK | PSR_IRQ_MASK | PSR_MODE_EL1H;
    /// SCTLR_EL1 in which a vcpu starts: MMU and caches off.
    SCTLR_GUEST_INIT = 0x00c5_0078;
    /// FIQ masked.
    PSR_FIQ_MASK = 1 << 6;
    /// IRQ masked.
    PSR_IRQ_MASK = 1 << 7;
    /// SError masked.
    PSR_ABT_MASK = 1 << 8;
    /// Debug exceptions masked.
    PSR_DBG_MASK = 1 << 9;
    /// AArch32.
    PSR_MODE_BIT = 0x10;
    /// EL1 on its own stack.
    PSR_MODE_EL1H = 0x05;
    /// EL1 on EL0's stack.
    PSR_MODE_EL1T = 0x04;
    /// EL0.
    PSR_MODE_EL0T = 0x00;
}

/// Where the memory banks start and the most that each holds, in bytes.
pub const GUEST_RAM_BANKS: [(u64, u64); 2] = [
    (GUEST_RAM0_BASE, GUEST_RAM0_SIZE),
    (GUEST_RAM1_BASE, GUEST_RAM1_SIZE),
];

consts! { u32;
    /// Most vcpus of a guest.
    GUEST_MAX_VCPUS = 128;
    /// The virtual timer's interrupt, a PPI.
    GUEST_TIMER_VIRT_PPI = 27;
    /// The secure physical timer's interrupt, a PPI.
    GUEST_TIMER_PHYS_S_PPI = 29;
    /// The non-secure physical timer's interrupt, a PPI.
    GUEST_TIMER_PHYS_NS_PPI = 30;
    /// The event-channel interrupt, a PPI; its level follows `evtchn_upcall_pending`.
    GUEST_EVTCHN_PPI = 31;
    /// The emulated PL011's interrupt, an SPI.
    GUEST_VPL011_SPI = 32;
    /// First interrupt of virtio-mmio devices, an SPI.
    GUEST_VIRTIO_MMIO_SPI_FIRST = 33;
    /// Last interrupt of virtio-mmio devices, an SPI.
    GUEST_VIRTIO_MMIO_SPI_LAST = 43;
    /// `vcpu_guest_context.flags`: the vcpu is online.
    VGCF_ONLINE = 1 << 0;
}

abi! {
    /// Registers of a vcpu.
    ["vcpu_guest_core_regs", 312, "arch-arm.h"]
    pub struct VcpuGuestCoreRegs {
        /// General registers x0 to x30.
        pub x: [u64; 31] = "x0..x30",
        /// Program counter.
        pub pc64: u64,
        /// Processor state.
        pub cpsr: u64,
        /// SPSR_EL1.
        pub spsr_el1: u64,
        /// AArch32 only.
        pub spsr_fiq: u32,
        /// AArch32 only.
        pub spsr_irq: u32,
        /// AArch32 only.
        pub spsr_und: u32,
        /// AArch32 only.
        pub spsr_abt: u32,
        /// SP_EL0.
        pub sp_el0: u64,
        /// SP_EL1.
        pub sp_el1: u64,
        /// ELR_EL1.
        pub elr_el1: u64,
    }

    /// State of a vcpu, as domctl sets and gets it.
    ["vcpu_guest_context", 352, "arch-arm.h"]
    pub struct VcpuGuestContext {
        /// [`VGCF_ONLINE`].
        pub flags: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// General registers.
        pub user_regs: VcpuGuestCoreRegs,
        /// SCTLR_EL1.
        pub sctlr: u64,
        /// TCR_EL1.
        pub ttbcr: u64,
        /// TTBR0_EL1.
        pub ttbr0: u64,
        /// TTBR1_EL1.
        pub ttbr1: u64,
    }

    /// The Arm part of a domain's configuration.
    ["xen_arch_domainconfig", 12, "arch-arm.h"]
    pub struct ArchDomainconfig {
        /// In: `GIC_*`; out: what the domain got.
        pub gic_version: u8,
        /// Padding.
        pub _pad: u8 = "-",
        /// `TEE_*`.
        pub tee_type: u16,
        /// Shared peripheral interrupts that the domain needs.
        pub nr_spis: u32,
        /// Out: the timer's frequency in Hz when the device tree must tell it, else 0.
        pub clock_frequency: u32,
    }
}

impl ArchDomainconfig {
    /// The host's own GIC version.
    pub const GIC_NATIVE: u8 = 0;
    /// GICv2.
    pub const GIC_V2: u8 = 1;
    /// GICv3.
    pub const GIC_V3: u8 = 2;
    /// No trusted execution environment.
    pub const TEE_NONE: u16 = 0;
}

impl VcpuGuestContext {
    /// A vcpu that starts at `pc` with `x0` in its first argument register, MMU off, online.
    #[must_use]
    pub fn start(pc: u64, x0: u64) -> Self {
        let mut c = Self {
            flags: VGCF_ONLINE,
            sctlr: SCTLR_GUEST_INIT,
            ..Self::default()
        };
        c.user_regs.x[0] = x0;
        c.user_regs.pc64 = pc;
        c.user_regs.cpsr = PSR_GUEST64_INIT;
        c
    }
}
