// SPDX-License-Identifier: MIT OR Apache-2.0
//! Raspberry Pi 4 Model B (BCM2711).

use super::Board;
use crate::dt::{Range, UartKind};

pub(super) const BOARD: Board = Board {
    name: "Raspberry Pi 4",
    compatible: &["raspberrypi,4-model-b", "brcm,bcm2711"],
    // The firmware's stub, in which secondary CPUs spin, and its release words are in the first
    // page; older device trees do not reserve it.
    reserved: &[Range {
        base: 0,
        size: 0x1000,
    }],
    // The peripherals' legacy masters see the first GiB only, through the 0xC000_0000 alias.
    dma_limit: Some(0x4000_0000),
    // The PL011 is wired to Bluetooth, the mini-UART to pins 8 and 10 of the header.
    uart: UartKind::MiniUart,
    // QEMU's model is told by its interrupt controller.
    emulated: false,
    // The slot for the card is at EMMC2. In QEMU's model the card is at the controller that on the
    // board serves Wi-Fi (the Arasan one); the two share an interrupt.
    dom0: &["brcm,bcm2711-emmc2", "brcm,bcm2835-sdhci"],
};
