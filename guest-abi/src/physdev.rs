// SPDX-License-Identifier: MIT OR Apache-2.0
//! Physical devices (`physdev.h`): on Arm only the announcement of PCI devices.

numbers! {
    /// Operations of `physdev_op` that can exist on Arm (`PHYSDEVOP_*`).
    pub enum PhysdevOp: u64 {
        /// A PCI device came: [`PhysdevPciDeviceAdd`].
        PciDeviceAdd = 25, "pci_device_add";
        /// A PCI device went: [`PhysdevPciDevice`].
        PciDeviceRemove = 26, "pci_device_remove";
    }
}

abi! {
    /// A PCI device came; optional words follow.
    ["physdev_pci_device_add", 12, "physdev.h"]
    pub struct PhysdevPciDeviceAdd {
        /// Segment.
        pub seg: u16,
        /// Bus.
        pub bus: u8,
        /// Device and function.
        pub devfn: u8,
        /// Flags.
        pub flags: u32,
        /// The physical function's bus, device and function.
        pub physfn: [u8; 2],
        /// Padding.
        pub _pad: [u8; 2] = "-",
    }

    /// A PCI device.
    ["physdev_pci_device", 4, "physdev.h"]
    pub struct PhysdevPciDevice {
        /// Segment.
        pub seg: u16,
        /// Bus.
        pub bus: u8,
        /// Device and function.
        pub devfn: u8,
    }
}
