// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::vec::Vec;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A command is never answered.
    Silent(u32),
    /// A command is answered by an error of the controller's.
    Refused(u32),
    /// The card says that the address is out of range.
    Range(u32),
    /// The data of this block do not come, or are not taken.
    Stuck(usize),
    /// The checksum of this block is wrong.
    Checksum(usize),
}

/// A controller with a card of 8 MiB, as strict as the specification has it: a command that comes
/// while the lines are in use, or before the card is where it needs to be, fails the test.
struct Machine {
    time: Cell<u64>,
    fault: Cell<Option<Fault>>,
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    registers: Vec<u32>,
    status: u32,
    state: u32,
    response: [u32; 4],
    memory: Vec<u8>,
    /// Blocks that are left of the transfer, its direction, and where it is.
    left: usize,
    read: bool,
    at: usize,
    done: usize,
    word: usize,
    application: bool,
    selected: bool,
    asked: u32,
    commands: Vec<u32>,
    version1: bool,
}

const SIZE: usize = 8 << 20;

impl Machine {
    fn new(version1: bool) -> Rc<Self> {
        let inner = Inner {
            memory: (0..SIZE).map(|i| (i / BLOCK + i % 251) as u8).collect(),
            version1,
            registers: vec![0; 64],
            ..Inner::default()
        };
        Rc::new(Self {
            time: Cell::new(0),
            fault: Cell::new(None),
            inner: RefCell::new(inner),
        })
    }
    fn interrupt(&self) -> bool {
        let inner = self.inner.borrow();
        inner.status & inner.registers[usize::from(reg::SIGNAL_ENABLE) / 4] != 0
    }
}

impl Inner {
    fn raise(&mut self, what: u32) {
        self.status |= what & self.registers[usize::from(reg::STATUS_ENABLE) / 4];
        if self.status & ERRORS != 0 {
            self.status |= ERROR;
        }
    }
    /// The next block is there, or there is room for it, or all is done.
    fn next(&mut self, fault: Option<Fault>) {
        self.word = 0;
        if self.left == 0 {
            self.state &= !STATE_DAT;
            self.raise(TRANSFER_DONE);
        } else if fault == Some(Fault::Checksum(self.done)) {
            self.raise(0x20 << 16);
        } else if fault != Some(Fault::Stuck(self.done)) {
            self.raise(if self.read { READY } else { ROOM });
        }
    }
    fn command(&mut self, word: u32, fault: Option<Fault>) {
        let (index, argument) = (word >> 24, self.registers[2]);
        assert_eq!(self.state & STATE_CMD, 0, "command {index} while one is on");
        if word & WITH_DATA != 0 {
            assert_eq!(self.state & STATE_DAT, 0, "{index} while data move");
        }
        assert_ne!(self.registers[0x2c / 4] & CLOCK_TO_CARD, 0, "no clock");
        self.commands.push(index);
        if fault == Some(Fault::Silent(index)) {
            self.state |= STATE_CMD;
            return;
        }
        let application = core::mem::take(&mut self.application);
        if fault == Some(Fault::Refused(index)) || index == 8 && self.version1 {
            return self.raise(1 << 16);
        }
        self.response = [0x900; 4];
        match (index, application) {
            (0, _) => self.selected = false,
            (8, _) => self.response[0] = argument,
            (55, _) => self.application = true,
            (41, true) => {
                // Ready at the third time.
                self.asked += 1;
                let high = if self.version1 { 0 } else { argument & 1 << 30 };
                self.response[0] = 0xff_8000 | high | u32::from(self.asked > 2) << 31;
            }
            (2, _) => {}
            (3, _) => self.response[0] = 0xb368_0520,
            (9, _) if self.version1 => {
                // (C_SIZE + 1) << (C_SIZE_MULT + 2) blocks of 1 << READ_BL_LEN bytes.
                let csd: u128 = (1023 << 62) | (2 << 47) | (9u128 << 80);
                self.response = core::array::from_fn(|i| (csd >> 8 >> (32 * i)) as u32);
            }
            (9, _) => {
                let csd: u128 = 1 << 126 | ((SIZE as u128 >> 19) - 1) << 48;
                self.response = core::array::from_fn(|i| (csd >> 8 >> (32 * i)) as u32);
            }
            (7, _) => {
                assert_eq!(argument, 0xb368_0000);
                self.selected = true;
            }
            (6, true) => assert_eq!(argument, 2),
            (16, _) => assert_eq!(argument as usize, BLOCK),
            (12, _) if self.left > 0 => self.left = 0,
            (12, _) => return self.raise(1 << 16),
            (13, _) => assert_eq!(argument, 0xb368_0000),
            (17 | 18 | 24 | 25, _) => {
                assert!(self.selected);
                let blocks = (self.registers[1] >> 16) as usize;
                assert_eq!(self.registers[1] & 0xfff, BLOCK as u32);
                assert_eq!(word & SEVERAL != 0, matches!(index, 18 | 25));
                assert_eq!(word & TO_HOST != 0, matches!(index, 17 | 18));
                assert_eq!(word & 1, 0, "no DMA");
                if fault == Some(Fault::Range(index)) {
                    self.response[0] |= 1 << 31;
                    return self.raise(COMMAND_DONE);
                }
                self.at = argument as usize * if self.version1 { 1 } else { BLOCK };
                self.read = index < 24;
                self.left = if word & SEVERAL != 0 { blocks } else { 1 };
                self.done = 0;
                self.state |= STATE_DAT;
                self.raise(COMMAND_DONE);
                return self.next(fault);
            }
            other => panic!("command {other:?}"),
        }
        self.raise(COMMAND_DONE);
        if word & 0x3 << 16 == 0x3 << 16 {
            self.raise(TRANSFER_DONE);
        }
    }
    fn moved(&mut self, fault: Option<Fault>) {
        self.word += 1;
        if self.word == BLOCK / 4 {
            self.at += BLOCK;
            self.left -= 1;
            self.done += 1;
            self.next(fault);
        }
    }
}

impl Port for Rc<Machine> {
    fn read(&self, register: u8) -> u32 {
        let mut i = self.inner.borrow_mut();
        match register {
            reg::STATUS => i.status,
            reg::STATE => i.state,
            reg::CAPABILITIES => 52 << 8,
            reg::RESPONSE..reg::DATA => i.response[usize::from(register - reg::RESPONSE) / 4],
            reg::DATA => {
                assert!(i.read && i.left > 0, "nothing to read");
                let at = i.at + i.word * 4;
                let word = u32::from_le_bytes(i.memory[at..at + 4].try_into().unwrap());
                i.moved(self.fault.get());
                word
            }
            reg::CLOCK => {
                // Stable when it is on.
                let v = i.registers[usize::from(register) / 4];
                v | (v & CLOCK_ON) << 1
            }
            _ => i.registers[usize::from(register) / 4],
        }
    }
    fn write(&self, register: u8, value: u32) {
        let mut i = self.inner.borrow_mut();
        let fault = self.fault.get();
        match register {
            reg::STATUS => {
                i.status &= !value;
                if i.status & ERRORS == 0 {
                    i.status &= !ERROR;
                }
            }
            reg::COMMAND => i.command(value, fault),
            reg::DATA => {
                assert!(!i.read && i.left > 0, "nothing to write");
                let at = i.at + i.word * 4;
                i.memory[at..at + 4].copy_from_slice(&value.to_le_bytes());
                i.moved(fault);
            }
            reg::CLOCK => {
                if value & RESET_ALL != 0 {
                    i.registers.fill(0);
                    (i.status, i.state) = (0, 0);
                }
                if value & RESET_CMD != 0 {
                    i.state &= !STATE_CMD;
                }
                if value & RESET_DAT != 0 {
                    i.state &= !STATE_DAT;
                }
                i.registers[usize::from(register) / 4] = value & 0x00ff_ffff;
            }
            _ => i.registers[usize::from(register) / 4] = value,
        }
    }
    fn now(&self) -> u64 {
        self.time.set(self.time.get() + 1000);
        self.time.get()
    }
}

impl Blocks for Vec<u8> {
    fn bytes(&self) -> usize {
        self.len()
    }
    fn get(&self, block: usize, to: &mut [u8; BLOCK]) {
        to.copy_from_slice(&self[block * BLOCK..][..BLOCK]);
    }
    fn put(&mut self, block: usize, from: &[u8; BLOCK]) {
        self[block * BLOCK..][..BLOCK].copy_from_slice(from);
    }
}

type Sd = Card<Rc<Machine>, Vec<u8>>;

fn start(version1: bool) -> (Rc<Machine>, Sd) {
    let machine = Machine::new(version1);
    let card = Sd::start(machine.clone()).unwrap();
    (machine, card)
}

/// Runs what there is by interrupts alone, or by time where none comes.
fn run(machine: &Machine, card: &mut Sd) -> Vec<Ended<Vec<u8>>> {
    let mut all = Vec::new();
    for _ in 0..100 {
        if !machine.interrupt() {
            machine.time.set(machine.time.get() + DATA_TIME / 2);
        }
        card.advance();
        all.extend(core::iter::from_fn(|| card.ended()));
        if !card.busy() {
            break;
        }
    }
    assert!(!card.busy());
    all
}

#[test]
fn blocks_are_read_and_written_in_order() {
    for version1 in [false, true] {
        let (machine, mut card) = start(version1);
        let sectors = if version1 { 1024 << 4 } else { SIZE / BLOCK };
        assert_eq!((card.blocks(), card.read_only()), (sectors as u64, false));
        let new: Vec<u8> = (0..3 * BLOCK).map(|i| (i / 7) as u8).collect();
        card.submit(Do::Read, 5, vec![0; BLOCK], 1).unwrap();
        card.submit(Do::Write, 100, new.clone(), 2).unwrap();
        card.submit(Do::Flush, 0, Vec::new(), 3).unwrap();
        card.submit(Do::Read, 99, vec![0; 5 * BLOCK], 4).unwrap();
        card.submit(Do::Write, 7, vec![9; BLOCK], 5).unwrap();
        let before = machine.time.get();
        let ended = run(&machine, &mut card);
        assert!(machine.time.get() - before < DATA_TIME, "interrupts do it");
        let tags: Vec<_> = ended.iter().map(|e| (e.0, e.2)).collect();
        assert_eq!(tags, [1, 2, 3, 4, 5].map(|t| (t, Ok(()))));
        let memory = &machine.inner.borrow().memory;
        assert_eq!(ended[0].1, memory[5 * BLOCK..6 * BLOCK]);
        assert_eq!(ended[3].1[BLOCK..4 * BLOCK], new);
        assert_eq!(ended[3].1, memory[99 * BLOCK..104 * BLOCK]);
        assert_eq!(memory[7 * BLOCK..8 * BLOCK], [9; BLOCK]);
    }
}

#[test]
fn what_goes_wrong_is_that_requests_error_alone() {
    let faults = [
        Fault::Silent(18),
        Fault::Refused(18),
        Fault::Range(18),
        Fault::Stuck(0),
        Fault::Stuck(2),
        Fault::Checksum(1),
        Fault::Silent(12),
    ];
    for fault in faults {
        let (machine, mut card) = start(false);
        machine.fault.set(Some(fault));
        card.submit(Do::Read, 0, vec![0; 4 * BLOCK], 1).unwrap();
        card.submit(Do::Flush, 0, Vec::new(), 2).unwrap();
        let ended = run(&machine, &mut card);
        let bad = fault != Fault::Silent(12);
        let result = if bad { Err(Errno::EIO) } else { Ok(()) };
        assert_eq!((ended[0].0, ended[0].2), (1, result), "{fault:?}");
        assert_eq!(ended[0].1.len(), 4 * BLOCK);
        assert_eq!((ended[1].0, ended[1].2), (2, Ok(())));
        machine.fault.set(None);
        card.submit(Do::Read, 3, vec![0; 2 * BLOCK], 3).unwrap();
        let ended = run(&machine, &mut card);
        assert_eq!(ended[0].2, Ok(()), "after {fault:?}");
        assert_eq!(
            ended[0].1,
            machine.inner.borrow().memory[3 * BLOCK..5 * BLOCK]
        );
    }
}

#[test]
fn a_start_that_fails_says_at_what_and_ends() {
    for (fault, what) in [
        (Fault::Silent(0), "no card answers"),
        (Fault::Refused(55), "no card answers"),
        (Fault::Refused(41), "no card answers"),
        (Fault::Silent(9), "no card answers"),
        (Fault::Refused(7), "the card does not get ready for data"),
        (Fault::Refused(6), "the card does not get ready for data"),
    ] {
        let machine = Machine::new(false);
        machine.fault.set(Some(fault));
        assert_eq!(Sd::start(machine.clone()).err(), Some(what), "{fault:?}");
        assert!(machine.time.get() < 3_000 * MS);
    }
}

#[test]
fn requests_that_make_no_sense_come_back() {
    let (machine, mut card) = start(false);
    let last = card.blocks() - 1;
    let mut refused = |what, block, bytes| {
        let (e, data) = card.submit(what, block, vec![0; bytes], 9).unwrap_err();
        assert_eq!(data.len(), bytes);
        e
    };
    assert_eq!(refused(Do::Read, last, 2 * BLOCK), Errno::EINVAL);
    assert_eq!(refused(Do::Read, u64::MAX, BLOCK), Errno::EINVAL);
    assert_eq!(refused(Do::Write, 0, BLOCK + 1), Errno::EINVAL);
    assert_eq!(refused(Do::Write, 0, 0), Errno::EINVAL);
    assert_eq!(refused(Do::Flush, 0, BLOCK), Errno::EINVAL);
    assert_eq!(refused(Do::Read, 0, 0x1_0000 * BLOCK), Errno::EINVAL);
    let mut n = 0;
    let full = loop {
        match card.submit(Do::Read, 0, vec![0; BLOCK], n) {
            Ok(()) => n += 1,
            Err((e, _)) => break e,
        }
    };
    assert_eq!((full, n), (Errno::EAGAIN, QUEUE as u64 + 1));
    assert_eq!(run(&machine, &mut card).len(), QUEUE + 1);
}

#[test]
fn capacities() {
    // Cards of 8 GB (CSD version 2), and of 2 GB with blocks of 1024 bytes (version 1).
    let words = |csd: u128| core::array::from_fn(|i| (csd >> 8 >> (32 * i)) as u32);
    let csd = 0x400e_0032_5b59_0000_3b37_7f80_0a40_4055;
    assert_eq!(capacity(words(csd)), (15_523_840, false));
    let old = 0x002e_0032_5b5a_a3a9_ffff_ff80_0a80_003b;
    assert_eq!(capacity(words(old)), (3752 * 512 * 2, false));
    assert!(capacity(words(csd | 1 << 13)).1);
}
