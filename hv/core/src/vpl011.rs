// SPDX-License-Identifier: MIT OR Apache-2.0
//! The emulated UART of guests that know no PV console: an Arm SBSA UART (`vuart = "sbsa_uart"`),
//! with the registers that only a full PL011 has accepted, too.
//!
//! Bytes go through a `xencons_interface` page (`public/io/console.h`) that a console back-end in
//! another domain maps, or, without such a page, straight to the caller. Both parties of the page
//! may write anything into it: the indexes are read afresh each time, and what makes no sense reads
//! as "nothing there" or "no room".

use crate::machine::PhysMem;
use crate::types::{Mfn, Pa};

/// The guest physical address of the UART, 4 KiB of registers.
pub const BASE: u64 = 0x2200_0000;
/// Its interrupt (an SPI's INTID).
pub const INTID: u32 = 32;

const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;
const PERIPH_ID: u64 = 0xfe0;

const FR_BUSY: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;

const RXI: u32 = 1 << 4;
const TXI: u32 = 1 << 5;
const RTI: u32 = 1 << 6;
const ALL_INTERRUPTS: u32 = 0x7ff;

/// Half the FIFO of an SBSA UART: where its interrupts trigger.
const FIFO_LEVEL: u32 = 16;
/// Bytes that are kept for a guest whose console is the hypervisor's.
const LOCAL_SIZE: u32 = 32;

// `struct xencons_interface`.
const IN_SIZE: u32 = 1024;
const OUT_SIZE: u32 = 2048;
const OUT: u64 = 1024;
const IN_CONS: u64 = 3072;
const IN_PROD: u64 = 3076;
const OUT_CONS: u64 = 3080;
const OUT_PROD: u64 = 3084;

/// What an access asks of the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// The back-end's event is to be sent.
    pub notify: bool,
    /// The interrupt line changes to this level.
    pub irq: Option<bool>,
    /// A byte for the hypervisor's console.
    pub output: Option<u8>,
}

#[derive(Debug)]
enum Backend {
    /// A back-end domain shares this page.
    Ring(Mfn),
    /// Input waits here; output goes to the caller.
    Local {
        bytes: [u8; LOCAL_SIZE as usize],
        cons: u32,
        prod: u32,
    },
}

/// The state of one UART.
#[derive(Debug)]
pub struct Vpl011 {
    backend: Backend,
    fr: u32,
    ris: u32,
    imsc: u32,
    line: bool,
    /// ILPR, IBRD, FBRD, LCR_H, CR, IFLS: kept, and of no effect.
    config: [u16; 6],
}

/// Bytes waiting between two free-running indexes; `None` if there cannot be so many.
fn queued(prod: u32, cons: u32, size: u32) -> Option<u32> {
    let n = prod.wrapping_sub(cons);
    (n <= size).then_some(n)
}

impl Vpl011 {
    /// A UART as after reset, with its back-end's page if there is one. The page must stay
    /// referenced as long as the UART lives.
    #[must_use]
    pub fn new(ring: Option<Mfn>) -> Self {
        Self {
            backend: match ring {
                Some(mfn) => Backend::Ring(mfn),
                None => Backend::Local {
                    bytes: [0; LOCAL_SIZE as usize],
                    cons: 0,
                    prod: 0,
                },
            },
            fr: FR_TXFE | FR_RXFE,
            ris: 0,
            imsc: 0,
            line: false,
            config: [0, 0, 0, 0, 0x300, 0x12],
        }
    }

    /// The page shared with the back-end.
    #[must_use]
    pub fn ring(&self) -> Option<Mfn> {
        match self.backend {
            Backend::Ring(mfn) => Some(mfn),
            Backend::Local { .. } => None,
        }
    }

    /// The interrupt line's level.
    #[must_use]
    pub fn line(&self) -> bool {
        self.line
    }

    /// A guest's load of `size` bytes (1, 2 or 4) at `off` from [`BASE`]. `None` where the access
    /// is to be answered with a data abort.
    #[inline]
    pub fn read<M: PhysMem>(&mut self, mem: &M, off: u64, size: u8) -> Option<(u32, Effects)> {
        let mask = width(size)?;
        let mut effects = Effects::default();
        let value = match off {
            FR => {
                // A guest that polls for room gets on even if the back-end's event is late.
                if self.fr & FR_TXFF != 0 {
                    effects = self.update(mem);
                }
                self.fr
            }
            DR => {
                let byte = self.take_input(mem);
                effects.notify = byte.is_some() && self.ring().is_some();
                effects.irq = self.line_change();
                byte.unwrap_or(0).into()
            }
            RSR | DMACR => 0,
            IMSC => self.imsc,
            RIS => self.ris,
            MIS => self.ris & self.imsc,
            ILPR..=IFLS if off.is_multiple_of(4) => (*self.config.get(word(off, ILPR)?)?).into(),
            // PeriphID0..3, PCellID0..3 of an r1p5.
            PERIPH_ID..0x1000 if off.is_multiple_of(4) => {
                let ids = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
                *ids.get(word(off, PERIPH_ID)?)?
            }
            _ => return None,
        };
        Some((value & mask, effects))
    }

    /// A guest's store of `size` bytes (1, 2 or 4) at `off` from [`BASE`]. `None` where the access
    /// is to be answered with a data abort.
    #[inline]
    pub fn write<M: PhysMem>(
        &mut self,
        mem: &M,
        off: u64,
        size: u8,
        value: u32,
    ) -> Option<Effects> {
        let mask = width(size)?;
        let value = value & mask;
        let mut effects = Effects::default();
        match off {
            DR => effects = self.send(mem, value as u8),
            // Nothing to clear, nothing to set, nothing to do.
            RSR | FR | RIS | MIS | DMACR => {}
            IMSC => self.imsc = (self.imsc & !mask | value) & ALL_INTERRUPTS,
            ICR => self.ris &= !value,
            ILPR..=IFLS if off.is_multiple_of(4) => {
                let r = self.config.get_mut(word(off, ILPR)?)?;
                *r = *r & !(mask as u16) | value as u16;
            }
            _ => return None,
        }
        effects.irq = self.line_change();
        Some(effects)
    }

    /// The back-end has sent an event: it has put input into the page or taken output.
    pub fn update<M: PhysMem>(&mut self, mem: &M) -> Effects {
        if let Backend::Ring(mfn) = self.backend {
            let word = |at| mem.load32(Pa(mfn.addr()).add(at));
            let waiting = queued(word(IN_PROD), word(IN_CONS), IN_SIZE).unwrap_or(0);
            self.input_waits(waiting, IN_SIZE);
            if let Some(unsent) = queued(word(OUT_PROD), word(OUT_CONS), OUT_SIZE) {
                self.output_waits(unsent);
                if unsent == 0 {
                    self.fr |= FR_TXFE;
                }
            }
        }
        Effects {
            irq: self.line_change(),
            ..Effects::default()
        }
    }

    /// A byte typed at the hypervisor's console; dropped when the guest does not read. Only for a
    /// UART without a back-end's page.
    pub fn receive(&mut self, byte: u8) -> Effects {
        let waiting = match &mut self.backend {
            Backend::Ring(_) => return Effects::default(),
            Backend::Local { bytes, cons, prod } => {
                if prod.wrapping_sub(*cons) < LOCAL_SIZE {
                    if let Some(b) = bytes.get_mut((*prod % LOCAL_SIZE) as usize) {
                        *b = byte;
                    }
                    *prod = prod.wrapping_add(1);
                }
                prod.wrapping_sub(*cons)
            }
        };
        self.input_waits(waiting, LOCAL_SIZE);
        Effects {
            irq: self.line_change(),
            ..Effects::default()
        }
    }

    fn line_change(&mut self) -> Option<bool> {
        let line = self.ris & self.imsc != 0;
        if line == self.line {
            return None;
        }
        self.line = line;
        Some(line)
    }

    /// Input has come: flags and interrupts that say so.
    fn input_waits(&mut self, waiting: u32, size: u32) {
        if waiting == 0 {
            return;
        }
        self.fr &= !FR_RXFE;
        self.ris |= RTI;
        if waiting == size {
            self.fr |= FR_RXFF;
        }
        if waiting >= size.saturating_sub(FIFO_LEVEL) {
            self.ris |= RXI;
        }
    }

    /// So many bytes of output are not yet taken.
    fn output_waits(&mut self, unsent: u32) {
        if unsent >= OUT_SIZE {
            // Busy only now: a driver that waits for it after each byte is not held up.
            self.fr |= FR_TXFF | FR_BUSY;
        } else {
            self.fr &= !(FR_TXFF | FR_BUSY);
        }
        if unsent <= OUT_SIZE - FIFO_LEVEL {
            self.ris |= TXI;
        } else {
            self.ris &= !TXI;
        }
    }

    fn take_input<M: PhysMem>(&mut self, mem: &M) -> Option<u8> {
        let (byte, left, size) = match &mut self.backend {
            Backend::Ring(mfn) => {
                let at = |off| Pa(mfn.addr()).add(off);
                let cons = mem.load32(at(IN_CONS));
                let waiting = queued(mem.load32(at(IN_PROD)), cons, IN_SIZE).unwrap_or(0);
                let left = waiting.checked_sub(1);
                let byte = left.map(|_| {
                    let byte = mem.load8(at(u64::from(cons % IN_SIZE)));
                    mem.store32(at(IN_CONS), cons.wrapping_add(1));
                    byte
                });
                (byte, left.unwrap_or(0), IN_SIZE)
            }
            Backend::Local { bytes, cons, prod } => {
                let left = prod.wrapping_sub(*cons).checked_sub(1);
                let byte = left.and_then(|_| {
                    let byte = bytes.get((*cons % LOCAL_SIZE) as usize).copied();
                    *cons = cons.wrapping_add(1);
                    byte
                });
                (byte, left.unwrap_or(0), LOCAL_SIZE)
            }
        };
        self.fr &= !FR_RXFF;
        if left == 0 {
            self.fr |= FR_RXFE;
            self.ris &= !RTI;
        }
        if left < size.saturating_sub(FIFO_LEVEL) {
            self.ris &= !RXI;
        }
        byte
    }

    fn send<M: PhysMem>(&mut self, mem: &M, byte: u8) -> Effects {
        let Backend::Ring(mfn) = self.backend else {
            self.ris |= TXI;
            return Effects {
                output: Some(byte),
                ..Effects::default()
            };
        };
        let at = |off| Pa(mfn.addr()).add(off);
        let prod = mem.load32(at(OUT_PROD));
        let unsent = queued(prod, mem.load32(at(OUT_CONS)), OUT_SIZE).unwrap_or(OUT_SIZE);
        // A guest that writes in spite of TXFF loses what it writes.
        if unsent < OUT_SIZE {
            mem.store8(at(OUT).add(u64::from(prod % OUT_SIZE)), byte);
            mem.store32(at(OUT_PROD), prod.wrapping_add(1));
            self.output_waits(unsent.saturating_add(1));
        }
        self.fr &= !FR_TXFE;
        Effects {
            notify: true,
            ..Effects::default()
        }
    }
}

/// Which of the words from `first` on a register is.
const fn word(off: u64, first: u64) -> Option<usize> {
    match off.checked_sub(first) {
        Some(bytes) => Some(bytes as usize / 4),
        None => None,
    }
}

/// The bits that an access of so many bytes has. Registers are 32 bits wide: 64 are too many.
const fn width(size: u8) -> Option<u32> {
    match size {
        1 => Some(0xff),
        2 => Some(0xffff),
        4 => Some(0xffff_ffff),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::fake::FakeMem;
    use proptest::prelude::*;

    const PAGE: Mfn = Mfn(0x4_0000);

    fn ring() -> (FakeMem, Vpl011) {
        let mem = FakeMem::new(PAGE.addr(), 1);
        mem.zero_page(PAGE);
        (mem, Vpl011::new(Some(PAGE)))
    }
    fn word(mem: &FakeMem, at: u64) -> u32 {
        mem.load32(Pa(PAGE.addr() + at))
    }
    fn set(mem: &FakeMem, at: u64, v: u32) {
        mem.store32(Pa(PAGE.addr() + at), v);
    }
    fn rd(u: &mut Vpl011, mem: &FakeMem, off: u64) -> u32 {
        u.read(mem, off, 4).unwrap().0
    }

    #[test]
    fn output_goes_to_the_ring_until_it_is_full() {
        let (mem, mut u) = ring();
        assert_eq!(rd(&mut u, &mem, FR), FR_TXFE | FR_RXFE);
        for i in 0..OUT_SIZE {
            assert_eq!(rd(&mut u, &mem, FR) & (FR_TXFF | FR_BUSY), 0);
            let e = u.write(&mem, DR, 1, i).unwrap();
            assert!(e.notify && e.output.is_none());
            assert_eq!(u.ris & TXI != 0, i < OUT_SIZE - FIFO_LEVEL);
        }
        assert_eq!(rd(&mut u, &mem, FR), FR_TXFF | FR_BUSY | FR_RXFE);
        u.write(&mem, DR, 1, 0x77).unwrap();
        assert_eq!(word(&mem, OUT_PROD), OUT_SIZE, "dropped");
        assert_eq!(mem.load8(Pa(PAGE.addr() + OUT + 5)), 5);
        // The back-end takes one byte, without telling; then all, and tells.
        set(&mem, OUT_CONS, 1);
        assert_eq!(rd(&mut u, &mem, FR), FR_RXFE);
        set(&mem, OUT_CONS, OUT_SIZE);
        u.update(&mem);
        assert_eq!(rd(&mut u, &mem, FR), FR_TXFE | FR_RXFE);
        u.write(&mem, DR, 4, 0xffff_ff41).unwrap();
        assert_eq!(mem.load8(Pa(PAGE.addr() + OUT)), 0x41);
    }

    #[test]
    fn input_comes_with_an_interrupt_whose_line_follows_the_mask() {
        let (mem, mut u) = ring();
        mem.write(Pa(PAGE.addr()), b"ab");
        set(&mem, IN_PROD, 2);
        assert_eq!(u.update(&mem), Effects::default(), "masked");
        assert_eq!(u.write(&mem, IMSC, 2, RTI).unwrap().irq, Some(true));
        assert_eq!(u.write(&mem, IMSC, 2, RTI | RXI).unwrap().irq, None);
        assert_eq!(rd(&mut u, &mem, FR) & FR_RXFE, 0);
        assert_eq!(rd(&mut u, &mem, MIS), RTI);
        let (v, e) = u.read(&mem, DR, 4).unwrap();
        assert_eq!(
            (v, e),
            (
                b'a'.into(),
                Effects {
                    notify: true,
                    ..Effects::default()
                }
            )
        );
        let (v, e) = u.read(&mem, DR, 1).unwrap();
        assert_eq!((v, e.irq, e.notify), (b'b'.into(), Some(false), true));
        assert_eq!(word(&mem, IN_CONS), 2);
        let (v, e) = u.read(&mem, DR, 1).unwrap();
        assert_eq!((v, e), (0, Effects::default()), "empty");
        assert_eq!(rd(&mut u, &mem, FR) & FR_RXFE, FR_RXFE);
        // A full ring raises the receive interrupt proper.
        set(&mem, IN_PROD, 2 + IN_SIZE);
        assert_eq!(u.update(&mem).irq, Some(true));
        assert_eq!(rd(&mut u, &mem, RIS) & (RXI | RTI), RXI | RTI);
        assert_eq!(rd(&mut u, &mem, FR) & FR_RXFF, FR_RXFF);
        assert_eq!(u.write(&mem, ICR, 2, 0x7ff).unwrap().irq, Some(false));
    }

    #[test]
    fn without_a_ring_bytes_pass_through_the_caller() {
        let mem = FakeMem::new(PAGE.addr(), 1);
        let mut u = Vpl011::new(None);
        assert_eq!(u.write(&mem, DR, 4, 0x141).unwrap().output, Some(0x41));
        assert_eq!(rd(&mut u, &mem, FR), FR_TXFE | FR_RXFE);
        u.write(&mem, IMSC, 4, RTI).unwrap();
        assert_eq!(u.receive(b'x').irq, Some(true));
        for _ in 0..100 {
            u.receive(b'y');
        }
        assert_eq!(rd(&mut u, &mem, FR) & FR_RXFF, FR_RXFF);
        assert_eq!(rd(&mut u, &mem, DR), b'x'.into());
        let mut n = 0;
        while rd(&mut u, &mem, FR) & FR_RXFE == 0 {
            assert_eq!(rd(&mut u, &mem, DR), b'y'.into());
            n += 1;
        }
        assert_eq!(n, LOCAL_SIZE - 1);
        assert!(!u.line());
    }

    #[test]
    fn registers_of_a_full_pl011_are_accepted_and_others_abort() {
        let (mem, mut u) = ring();
        u.write(&mem, 0x30, 2, 0x301).unwrap();
        u.write(&mem, 0x2c, 1, 0x70).unwrap();
        u.write(&mem, 0x24, 4, 0xffff_0027).unwrap();
        assert_eq!(rd(&mut u, &mem, 0x30), 0x301);
        u.write(&mem, 0x30, 1, 0).unwrap();
        assert_eq!(rd(&mut u, &mem, 0x30), 0x300);
        assert_eq!(
            (rd(&mut u, &mem, 0x2c), rd(&mut u, &mem, 0x24)),
            (0x70, 0x27)
        );
        assert_eq!(rd(&mut u, &mem, 0xfe0), 0x11);
        assert_eq!(rd(&mut u, &mem, 0xffc), 0xb1);
        assert_eq!(u.read(&mem, FR, 1).unwrap().0, 0x90);
        u.write(&mem, IMSC, 4, u32::MAX).unwrap();
        assert_eq!(rd(&mut u, &mem, IMSC), ALL_INTERRUPTS);
        for (off, size) in [
            (FR, 8),
            (FR, 0),
            (FR, 3),
            (1, 1),
            (0x08, 4),
            (0x19, 1),
            (0x31, 1),
        ] {
            assert_eq!(u.read(&mem, off, size), None, "{off:#x} {size}");
            assert_eq!(u.write(&mem, off, size, 0), None, "{off:#x} {size}");
        }
        assert_eq!(u.read(&mem, ICR, 4), None);
        assert_eq!(u.read(&mem, u64::MAX, 4), None);
    }

    proptest! {
        /// Both ends of the ring write what they like; the UART stays within its page, never
        /// overwrites what is not taken, and the line says what the registers say.
        #[test]
        fn hostile_indexes(ops in prop::collection::vec((0..5u8, any::<u32>(), 0..0x60u64), 1..80)) {
            let (mem, mut u) = ring();
            for (what, v, off) in ops {
                let irq = match what {
                    0 => { set(&mem, IN_CONS + (v % 4 * 4) as u64, v); None }
                    1 => { set(&mem, IN_CONS + (v % 4 * 4) as u64, v % 3000); None }
                    2 => u.update(&mem).irq,
                    3 => {
                        let (prod, cons) = (word(&mem, OUT_PROD), word(&mem, OUT_CONS));
                        let e = u.write(&mem, off & !3, 4, v).unwrap_or_default();
                        if off & !3 == DR && prod.wrapping_sub(cons) >= OUT_SIZE {
                            prop_assert_eq!(word(&mem, OUT_PROD), prod);
                        }
                        prop_assert_eq!(word(&mem, OUT_CONS), cons);
                        e.irq
                    }
                    _ => u.read(&mem, off, 4).and_then(|r| r.1.irq),
                };
                prop_assert!(irq.is_none_or(|l| l == u.line()));
                prop_assert_eq!(u.line(), u.ris & u.imsc != 0);
            }
        }
    }
}
