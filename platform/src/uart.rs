// SPDX-License-Identifier: MIT OR Apache-2.0
//! Console UARTs: Arm PL011 (DDI 0183), and the mini-UART of Broadcom's BCM2835 to BCM2711 (BCM2711
//! ARM Peripherals, section 2.2; a 16550's registers, four bytes apart). Sending and receiving may raise
//! interrupts. Baud rates stay as the firmware set them: what clocks a UART is its business.

use crate::dt::{UartInfo, UartKind};
use crate::mmio::Mmio;

/// How often a full FIFO is looked at before a character is dropped: a stuck UART must not hang
/// the hypervisor.
const TX_TRIES: u32 = 1_000_000;

/// A kind of UART, in offsets and bits of its registers.
#[derive(Debug)]
struct Layout {
    data: usize,
    status: usize,
    /// Bits of the status that say the contrary of the three below.
    inverted: u32,
    /// There is room to send.
    room: u32,
    /// A byte came in.
    ready: u32,
    /// All that was sent has left.
    idle: u32,
    /// Where interrupts are turned on, and by what: for receiving, and for sending.
    interrupts: (usize, u32, u32),
    /// Where the interrupt for sending is ended by writing its bit; 0: nowhere.
    ack: usize,
    /// What is written at the start, with interrupts off. Bits of the first field stay as they are.
    init: &'static [(u32, usize, u32)],
}

/// FR, IMSC, ICR. The FIFO (LCRH bit 4) stays as the firmware left it, on or off: changing it
/// would lose what was typed before. Interrupt from one eighth full on, or after a while; for sending when its
/// FIFO becomes half empty (DDI 0183G, 3.4.3: not when it is), or empty where it is off. Those for receiving end when
/// all is read.
const PL011: Layout = Layout {
    data: 0x00,
    status: 0x18,
    inverted: !0,
    room: 1 << 5,
    ready: 1 << 4,
    idle: 1 << 3,
    interrupts: (0x38, 1 << 4 | 1 << 6, 1 << 5),
    ack: 0x44,
    init: &[
        (0, 0x44, 0x7ff),
        (1 << 4, 0x2c, 0b11 << 5),
        (0, 0x34, 0),
        (0, 0x30, 1 << 0 | 1 << 8 | 1 << 9),
    ],
};

/// LSR, IER. Bit 0 of IER is for receiving, and bits 2 and 3 must be set for it to work: the manual
/// has it otherwise, and Linux' driver for the 16550 is right. Bit 1 is for sending: raised while the FIFO is empty. 8
/// bits; receiver and sender on.
const MINI: Layout = Layout {
    data: 0x00,
    status: 0x14,
    inverted: 0,
    room: 1 << 5,
    ready: 1 << 0,
    idle: 1 << 6,
    interrupts: (0x04, 0b1101, 0b0010),
    ack: 0,
    init: &[(0, 0x0c, 0b11), (0, 0x10, 0), (0, 0x20, 0b11)],
};

/// A UART.
#[derive(Clone, Copy, Debug)]
pub struct Uart {
    regs: Mmio,
    at: &'static Layout,
}

impl Uart {
    /// The UART that the device tree named, mapped at virtual address `base`.
    ///
    /// # Safety
    /// As [`Mmio::new`] for the device's registers.
    #[must_use]
    pub const unsafe fn new(info: &UartInfo, base: usize) -> Self {
        Self {
            // SAFETY: the caller's promise.
            regs: unsafe { Mmio::new(base) },
            at: match info.kind {
                UartKind::Pl011 => &PL011,
                UartKind::MiniUart => &MINI,
            },
        }
    }

    #[inline]
    fn status(&self) -> u32 {
        self.regs.read32(self.at.status) ^ self.at.inverted
    }

    /// Waits until one of `bits` is set in the status, within bounds; whether it was.
    #[inline]
    fn wait(&self, bits: u32) -> bool {
        (0..TX_TRIES).any(|_| self.status() & bits != 0)
    }

    /// Makes the UART usable, keeping the firmware's baud rate. Interrupts are off after it.
    pub fn init(&self) {
        self.flush();
        self.interrupts(false, false);
        for &(keep, register, value) in self.at.init {
            let old = if keep == 0 {
                0
            } else {
                self.regs.read32(register) & keep
            };
            self.regs.write32(register, value | old);
        }
    }

    /// Sends one byte, waiting for room; gives up on a UART that never has any, and says so.
    #[inline]
    pub fn put(&self, byte: u8) -> bool {
        self.wait(self.at.room) && self.feed(|| Some(byte))
    }

    /// Sends one byte of those that there are, if there is room for it; whether it did.
    #[inline]
    pub fn feed(&self, next: impl FnOnce() -> Option<u8>) -> bool {
        self.status() & self.at.room != 0
            && next().is_some_and(|b| {
                self.regs.write32(self.at.data, u32::from(b));
                true
            })
    }

    /// Takes one received byte, if there is one. With errors (break, framing, parity, overrun)
    /// the byte is still given.
    #[inline]
    #[must_use]
    pub fn get(&self) -> Option<u8> {
        (self.status() & self.at.ready != 0).then(|| self.regs.read32(self.at.data) as u8)
    }

    /// Waits until everything sent has left, within bounds.
    pub fn flush(&self) {
        self.wait(self.at.idle);
    }

    /// Turns interrupts on or off. That for receiving is raised while bytes wait: read them with [`Uart::get`] in the
    /// handler. That for sending is raised when the FIFO has become emptier: it is to be filled before, until
    /// [`Uart::feed`] finds no room or by [`FIFO`](Self::FIFO) bytes.
    pub fn interrupts(&self, receive: bool, send: bool) {
        let (register, rx, tx) = self.at.interrupts;
        let bits = if receive { rx } else { 0 } | if send { tx } else { 0 };
        self.regs.write32(register, bits);
    }

    /// Acknowledges the interrupt for sending; call before sending more.
    pub fn ack_interrupt(&self) {
        if self.at.ack != 0 {
            self.regs.write32(self.at.ack, self.at.interrupts.2);
        }
    }

    /// Bytes that no kind's FIFO for sending exceeds.
    pub const FIFO: usize = 32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dt::Range;

    fn uart(kind: UartKind, regs: &mut [u32; 1024]) -> Uart {
        let info = UartInfo {
            kind,
            regs: Range::default(),
            irq: None,
        };
        // SAFETY: the buffer outlives the test's use of the driver.
        unsafe { Uart::new(&info, regs.as_mut_ptr() as usize) }
    }

    #[test]
    #[cfg_attr(miri, ignore = "a million looks at a register take minutes")]
    fn pl011_sends_when_there_is_room_and_gives_up_when_there_is_none() {
        let mut r = [0u32; 1024];
        assert!(uart(UartKind::Pl011, &mut r).put(b'x'));
        assert_eq!(r[0], u32::from(b'x'));
        r[0x18 / 4] = 1 << 5;
        assert!(!uart(UartKind::Pl011, &mut r).put(b'y')); // must return
        assert!(!uart(UartKind::Pl011, &mut r).feed(|| panic!("no room")));
        r[0x18 / 4] = 0;
        assert!(!uart(UartKind::Pl011, &mut r).feed(|| None));
        assert_eq!(r[0], u32::from(b'x'));
    }

    #[test]
    fn pl011_receives_only_what_is_there() {
        let mut r = [0u32; 1024];
        r[0] = 0x441; // 'A' with a parity error flag
        assert_eq!(uart(UartKind::Pl011, &mut r).get(), Some(b'A'));
        r[0x18 / 4] = 1 << 4;
        assert_eq!(uart(UartKind::Pl011, &mut r).get(), None);
    }

    #[test]
    fn pl011_starts_with_the_fifo_as_it_was() {
        for fifo in [0, 1 << 4] {
            let mut r = [0u32; 1024];
            r[0x2c / 4] = fifo | 1;
            let u = uart(UartKind::Pl011, &mut r);
            u.init();
            u.interrupts(true, false);
            assert_eq!((r[0x38 / 4], r[0x30 / 4]), (0x50, 0x301));
            assert_eq!((r[0x2c / 4], r[0x44 / 4]), (0x60 | fifo, 0x7ff));
            uart(UartKind::Pl011, &mut r).interrupts(true, true);
            assert_eq!(r[0x38 / 4], 0x70);
            uart(UartKind::Pl011, &mut r).interrupts(false, false);
            assert_eq!(r[0x38 / 4], 0);
            uart(UartKind::Pl011, &mut r).ack_interrupt();
            assert_eq!(r[0x44 / 4], 0x20, "what was typed is not lost");
        }
    }

    #[test]
    fn the_mini_uart_has_its_bits_the_other_way_round() {
        let mut r = [0u32; 1024];
        let u = uart(UartKind::MiniUart, &mut r);
        assert!(!u.put(b'y')); // no room: must return
        assert_eq!((r[0], uart(UartKind::MiniUart, &mut r).get()), (0, None));
        r[0x14 / 4] = 1 << 5 | 1 << 6;
        let u = uart(UartKind::MiniUart, &mut r);
        u.init();
        assert!(u.put(b'x'));
        u.interrupts(true, false);
        assert_eq!((r[0], r[0x04 / 4], r[0x20 / 4]), (u32::from(b'x'), 0xd, 3));
        uart(UartKind::MiniUart, &mut r).interrupts(true, true);
        assert_eq!(r[0x04 / 4], 0xf);
        (r[0], r[0x14 / 4]) = (0x41, 1);
        assert_eq!(uart(UartKind::MiniUart, &mut r).get(), Some(b'A'));
        uart(UartKind::MiniUart, &mut r).ack_interrupt();
        assert_eq!(r[0], 0x41);
    }
}
