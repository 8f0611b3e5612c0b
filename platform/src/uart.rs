// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console UART: Arm PL011 (DDI 0183). Sending is polled, receiving may raise interrupts.

use crate::dt::{UartInfo, UartKind};
use crate::mmio::Mmio;

const DR: usize = 0x00;
const FR: usize = 0x18;
const LCRH: usize = 0x2C;
const CR: usize = 0x30;
const IFLS: usize = 0x34;
const IMSC: usize = 0x38;
const MIS: usize = 0x40;
const ICR: usize = 0x44;

const FR_BUSY: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;
/// Receive, and receive time-out: characters below the FIFO's level that nobody follows.
const INT_RX: u32 = 1 << 4 | 1 << 6;
const CR_ENABLE: u32 = 1 << 0 | 1 << 8 | 1 << 9;
/// 8 bits, FIFOs on.
const LCRH_8N1: u32 = 0b11 << 5;
const LCRH_FEN: u32 = 1 << 4;

/// How often a full FIFO is looked at before a character is dropped: a stuck UART must not hang
/// the hypervisor.
const TX_TRIES: u32 = 1_000_000;

/// A UART. All kinds behind one type, without dynamic dispatch.
#[derive(Clone, Copy, Debug)]
pub enum Uart {
    /// Arm PL011.
    Pl011(Pl011),
}

/// An Arm PL011.
#[derive(Clone, Copy, Debug)]
pub struct Pl011 {
    regs: Mmio,
}

impl Uart {
    /// The UART that the device tree named, mapped at virtual address `base`.
    ///
    /// # Safety
    /// As [`Mmio::new`] for the device's registers (4 KiB).
    #[must_use]
    pub const unsafe fn new(info: &UartInfo, base: usize) -> Self {
        match info.kind {
            // SAFETY: the caller's promise.
            UartKind::Pl011 => Self::Pl011(unsafe { Pl011::new(base) }),
        }
    }

    /// Makes the UART usable, keeping the firmware's baud rate. Interrupts are off after it.
    /// The FIFO stays as the firmware left it, on or off: changing it would lose what was typed
    /// before.
    pub fn init(&self) {
        match self {
            Self::Pl011(u) => u.init(),
        }
    }

    /// Sends one byte, waiting for room; gives up on a UART that never has any.
    #[inline]
    pub fn put(&self, byte: u8) {
        match self {
            Self::Pl011(u) => u.put(byte),
        }
    }

    /// Takes one received byte, if there is one. With errors (break, framing, parity, overrun)
    /// the byte is still given.
    #[inline]
    #[must_use]
    pub fn get(&self) -> Option<u8> {
        match self {
            Self::Pl011(u) => u.get(),
        }
    }

    /// Whether there is room to send a byte without waiting.
    #[must_use]
    pub fn can_put(&self) -> bool {
        match self {
            Self::Pl011(u) => u.regs.read32(FR) & FR_TXFF == 0,
        }
    }

    /// Waits until everything sent has left, within bounds.
    pub fn flush(&self) {
        match self {
            Self::Pl011(u) => u.flush(),
        }
    }

    /// Turns the receive interrupt on or off. The line stays high while bytes wait: read them
    /// all with [`Uart::get`] in the handler.
    pub fn rx_interrupt(&self, on: bool) {
        match self {
            Self::Pl011(u) => u.regs.write32(IMSC, if on { INT_RX } else { 0 }),
        }
    }

    /// Acknowledges what caused the interrupt; call before reading the bytes. Gives whether
    /// the UART raised it at all.
    pub fn ack_interrupt(&self) -> bool {
        match self {
            Self::Pl011(u) => {
                let s = u.regs.read32(MIS);
                u.regs.write32(ICR, s);
                s != 0
            }
        }
    }
}

impl Pl011 {
    /// The PL011 whose registers are mapped at virtual address `base`.
    ///
    /// # Safety
    /// As [`Mmio::new`], for 4 KiB.
    #[must_use]
    pub const unsafe fn new(base: usize) -> Self {
        Self {
            // SAFETY: the caller's promise.
            regs: unsafe { Mmio::new(base) },
        }
    }

    fn init(&self) {
        self.flush();
        self.regs.write32(IMSC, 0);
        self.regs.write32(ICR, 0x7ff);
        let fifo = self.regs.read32(LCRH) & LCRH_FEN;
        self.regs.write32(LCRH, LCRH_8N1 | fifo);
        self.regs.write32(IFLS, 0); // interrupt from one eighth full on
        self.regs.write32(CR, CR_ENABLE);
    }

    #[inline]
    fn put(&self, byte: u8) {
        for _ in 0..TX_TRIES {
            if self.regs.read32(FR) & FR_TXFF == 0 {
                self.regs.write32(DR, u32::from(byte));
                return;
            }
        }
    }

    #[inline]
    fn get(&self) -> Option<u8> {
        (self.regs.read32(FR) & FR_RXFE == 0).then(|| self.regs.read32(DR) as u8)
    }

    fn flush(&self) {
        for _ in 0..TX_TRIES {
            if self.regs.read32(FR) & FR_BUSY == 0 {
                return;
            }
        }
    }
}

impl core::fmt::Write for Uart {
    /// Sends text, a carriage return before each line feed.
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        for b in s.bytes() {
            if b == b'\n' {
                self.put(b'\r');
            }
            self.put(b);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uart(regs: &mut [u32; 1024]) -> Uart {
        // SAFETY: the buffer outlives the test's use of the driver.
        Uart::Pl011(unsafe { Pl011::new(regs.as_mut_ptr() as usize) })
    }

    #[test]
    fn sends_when_there_is_room_and_gives_up_when_there_is_none() {
        let mut r = [0u32; 1024];
        let u = uart(&mut r);
        u.put(b'x');
        assert_eq!(r[DR / 4], u32::from(b'x'));
        r[FR / 4] = FR_TXFF;
        let u = uart(&mut r);
        assert!(!u.can_put());
        u.put(b'y'); // must return
        assert_eq!(r[DR / 4], u32::from(b'x'));
    }

    #[test]
    fn receives_only_what_is_there() {
        let mut r = [0u32; 1024];
        r[DR / 4] = 0x441; // 'A' with a parity error flag
        let u = uart(&mut r);
        assert_eq!(u.get(), Some(b'A'));
        r[FR / 4] = FR_RXFE;
        let u = uart(&mut r);
        assert_eq!(u.get(), None);
    }

    #[test]
    fn interrupt_mask_follows() {
        let mut r = [0u32; 1024];
        let u = uart(&mut r);
        u.init();
        u.rx_interrupt(true);
        assert_eq!(r[IMSC / 4], 0x50);
        assert_eq!(r[CR / 4], 0x301);
        assert_eq!(r[LCRH / 4], 0x60);
        let u = uart(&mut r);
        u.rx_interrupt(false);
        assert_eq!(r[IMSC / 4], 0);
    }
}
