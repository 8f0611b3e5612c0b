// SPDX-License-Identifier: MIT OR Apache-2.0
//! SD cards behind a standard host controller (SD Host Controller Simplified Specification 3.00; the
//! card's side is the Physical Layer Simplified Specification 6.00).
//!
//! The processor moves the data, a block of 512 bytes each time that the controller has one or has
//! room for one: QEMU's controllers know no DMA, and no rule of a board's on what DMA reaches
//! matters. One request is under way at a time, the others wait in a queue. Whatever the card or the
//! controller does not do in time is an error of the request, and the next one starts anew.
//!
//! Registers are read and written as whole words: some controllers know nothing else.

use alloc::collections::VecDeque;
use guest_abi::Errno;

/// Bytes of a block.
pub const BLOCK: usize = 512;
/// Requests that wait.
const QUEUE: usize = 128;

/// Registers, as offsets of words.
mod reg {
    pub const BLOCKS: u8 = 0x04;
    pub const ARGUMENT: u8 = 0x08;
    pub const COMMAND: u8 = 0x0c;
    pub const RESPONSE: u8 = 0x10;
    pub const DATA: u8 = 0x20;
    pub const STATE: u8 = 0x24;
    /// Host, power, block gap and wake-up control.
    pub const HOST: u8 = 0x28;
    /// Clock and time-out control, software reset.
    pub const CLOCK: u8 = 0x2c;
    pub const STATUS: u8 = 0x30;
    pub const STATUS_ENABLE: u8 = 0x34;
    pub const SIGNAL_ENABLE: u8 = 0x38;
    pub const CAPABILITIES: u8 = 0x40;
}

/// The command line, the data lines are in use.
const STATE_CMD: u32 = 1 << 0;
const STATE_DAT: u32 = 1 << 1;

const RESET_ALL: u32 = 1 << 24;
const RESET_CMD: u32 = 1 << 25;
const RESET_DAT: u32 = 1 << 26;
const CLOCK_ON: u32 = 1 << 0;
const CLOCK_STABLE: u32 = 1 << 1;
const CLOCK_TO_CARD: u32 = 1 << 2;
/// The longest time-out of data that a controller knows: 2^27 of its ticks.
const TIMEOUT: u32 = 0xe << 16;

/// 3.3 V, on.
const POWER: u32 = 0x0f << 8;
const FOUR_BITS: u32 = 1 << 1;

const COMMAND_DONE: u32 = 1 << 0;
const TRANSFER_DONE: u32 = 1 << 1;
const ROOM: u32 = 1 << 4;
const READY: u32 = 1 << 5;
const ERROR: u32 = 1 << 15;
/// All that stands for an error of a command or of data.
const ERRORS: u32 = 0x017f << 16;
const EVENTS: u32 = COMMAND_DONE | TRANSFER_DONE | ROOM | READY | ERRORS;

/// Transfer mode, and what command has which response.
const COUNTED: u32 = 1 << 1;
const AUTO_STOP: u32 = 1 << 2;
const TO_HOST: u32 = 1 << 4;
const SEVERAL: u32 = 1 << 5;
const WITH_DATA: u32 = 1 << 21;
const NO_RESPONSE: u32 = 0;
/// 136 bits; 48 bits; the same and busy after it. With checks, but for R3.
const R2: u32 = 0x09 << 16;
const R3: u32 = 0x02 << 16;
const R1: u32 = 0x1a << 16;
const R1B: u32 = 0x1b << 16;

/// The bits of a card's status (response R1) that are errors, but for those of the command before.
const CARD_ERRORS: u32 = 0xfd39_a008;

const MS: u64 = 1_000_000;
/// How long a command may take, and how long a block: a card may be busy for 250 ms after a write
/// (Physical Layer, 4.6.2.2), some take longer.
const COMMAND_TIME: u64 = 100 * MS;
const DATA_TIME: u64 = 2_000 * MS;

/// The controller's registers, and the clock.
pub trait Port {
    /// Reads a word.
    fn read(&self, register: u8) -> u32;
    /// Writes a word.
    fn write(&self, register: u8, value: u32);
    /// Nanoseconds since some time.
    fn now(&self) -> u64;
}

/// Memory of whole blocks.
pub trait Blocks {
    /// Its bytes.
    fn bytes(&self) -> usize;
    /// Copies a block out of it.
    fn get(&self, block: usize, to: &mut [u8; BLOCK]);
    /// Copies a block into it.
    fn put(&mut self, block: usize, from: &[u8; BLOCK]);
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    /// Reads blocks.
    Read,
    /// Writes blocks.
    Write,
    /// Waits until all before it is done; a card has what it has taken.
    Flush,
}

/// A request that has ended: its tag, its memory, and how.
pub type Ended<B> = (u64, B, Result<(), Errno>);

struct Request<B> {
    what: Do,
    block: u32,
    data: B,
    tag: u64,
}

struct Active<B> {
    request: Request<B>,
    blocks: usize,
    moved: usize,
    /// When it is given up unless something happens before.
    deadline: u64,
}

/// A card.
pub struct Card<P, B> {
    port: P,
    blocks: u64,
    by_block: bool,
    read_only: bool,
    relative_address: u32,
    queue: VecDeque<Request<B>>,
    active: Option<Active<B>>,
    ended: VecDeque<Ended<B>>,
}

/// A command that was not answered as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed;

type Answer<T> = Result<T, Failed>;

/// Waits until `done`.
fn until<P: Port>(port: &P, time: u64, done: impl Fn(&P) -> bool) -> Answer<()> {
    let end = port.now() + time;
    loop {
        // The time first: what was done while somebody else had the processor is done in time.
        let late = port.now() > end;
        if done(port) {
            return Ok(());
        }
        if late {
            return Err(Failed);
        }
        core::hint::spin_loop();
    }
}

fn pause<P: Port>(port: &P, time: u64) {
    let _ = until(port, time, |_| false);
}

fn reset<P: Port>(port: &P, what: u32) -> Answer<()> {
    let clock = port.read(reg::CLOCK) & 0x00ff_ffff;
    port.write(reg::CLOCK, clock | what);
    until(port, COMMAND_TIME, |p| p.read(reg::CLOCK) & what == 0)
}

/// Sets the card's clock to at most `hz`, from a clock of `base`.
fn clock<P: Port>(port: &P, base: u64, hz: u64) -> Answer<()> {
    port.write(reg::CLOCK, TIMEOUT);
    // The card's clock is the base clock divided by twice this, of 10 bits.
    let n = base.div_ceil(2 * hz).clamp(1, 1023) as u32;
    let control = TIMEOUT | (n & 0xff) << 8 | (n >> 8) << 6 | CLOCK_ON;
    port.write(reg::CLOCK, control);
    until(port, COMMAND_TIME, |p| {
        p.read(reg::CLOCK) & CLOCK_STABLE != 0
    })?;
    port.write(reg::CLOCK, control | CLOCK_TO_CARD);
    Ok(())
}

/// Gives a command and waits for its response: the words from bits 31:0 on (of R2, bits 39:8 on).
fn command<P: Port>(port: &P, index: u32, argument: u32, response: u32) -> Answer<[u32; 4]> {
    let lines = if response == R1B {
        STATE_CMD | STATE_DAT
    } else {
        STATE_CMD
    };
    until(port, COMMAND_TIME, |p| p.read(reg::STATE) & lines == 0)?;
    port.write(reg::STATUS, EVENTS);
    port.write(reg::ARGUMENT, argument);
    port.write(reg::COMMAND, index << 24 | response);
    let wanted = if response == R1B {
        TRANSFER_DONE
    } else {
        COMMAND_DONE
    };
    let time = if response == R1B {
        DATA_TIME
    } else {
        COMMAND_TIME
    };
    let waited = until(port, time, |p| p.read(reg::STATUS) & (wanted | ERROR) != 0);
    let status = port.read(reg::STATUS);
    port.write(reg::STATUS, EVENTS);
    if waited.is_err() || status & ERROR != 0 {
        reset(port, RESET_CMD | RESET_DAT)?;
        return Err(Failed);
    }
    let word = |i: u8| port.read(reg::RESPONSE + 4 * i);
    Ok([word(0), word(1), word(2), word(3)])
}

/// A [`command`] that is answered by the card's status, which must know of no error.
fn ask<P: Port>(port: &P, index: u32, argument: u32, response: u32) -> Answer<()> {
    let [status, ..] = command(port, index, argument, response)?;
    if status & CARD_ERRORS == 0 {
        Ok(())
    } else {
        Err(Failed)
    }
}

/// Blocks of a card, and whether it refuses writes, from its CSD without the checksum.
fn capacity(csd: [u32; 4]) -> (u64, bool) {
    // Bits as the specification counts them, of which the lowest eight are not there.
    let bits = |high: u32, low: u32| {
        let (at, n) = (low - 8, high - low + 1);
        let pair = |i: u32| csd.get(i as usize).copied().map_or(0, u64::from);
        let value = (pair(at / 32) | pair(at / 32 + 1) << 32) >> (at % 32);
        value & ((1 << n) - 1)
    };
    let read_only = bits(13, 12) != 0;
    let blocks = if bits(127, 126) == 0 {
        let length = 1u64 << bits(83, 80).min(11);
        ((bits(73, 62) + 1) << (bits(49, 47) + 2)) * length / BLOCK as u64
    } else {
        (bits(69, 48) + 1) * 1024
    };
    (blocks, read_only)
}

impl<P: Port, B: Blocks> Card<P, B> {
    /// The card behind a controller, made ready. Takes up to two seconds where there is none.
    ///
    /// # Errors
    /// What the controller or the card did not do.
    pub fn start(port: P) -> Result<Self, &'static str> {
        let at = |r: Answer<()>, what| r.map_err(|Failed| what);
        port.write(reg::SIGNAL_ENABLE, 0);
        at(reset(&port, RESET_ALL), "the controller does not reset")?;
        // In MHz; where it is not told, 200 MHz is above what boards have.
        let base = match port.read(reg::CAPABILITIES) >> 8 & 0xff {
            0 => 200,
            mhz => u64::from(mhz),
        } * 1_000_000;
        port.write(reg::HOST, POWER);
        pause(&port, 10 * MS);
        at(clock(&port, base, 400_000), "the controller has no clock")?;
        port.write(reg::STATUS_ENABLE, EVENTS);
        // 74 clocks before the first command.
        pause(&port, MS);
        let (by_block, relative_address, csd) =
            Self::identify(&port).map_err(|Failed| "no card answers")?;
        let (blocks, read_only) = capacity(csd);
        let select = || {
            ask(&port, 7, relative_address, R1B)?;
            if !by_block {
                ask(&port, 16, BLOCK as u32, R1)?;
            }
            ask(&port, 55, relative_address, R1)?;
            ask(&port, 6, 2, R1)?;
            port.write(reg::HOST, POWER | FOUR_BITS);
            clock(&port, base, 25_000_000)
        };
        at(select(), "the card does not get ready for data")?;
        if blocks == 0 || by_block && blocks > 1 << 32 || !by_block && blocks > 1 << 23 {
            return Err("the card's size makes no sense");
        }
        port.write(reg::STATUS, EVENTS);
        port.write(reg::SIGNAL_ENABLE, EVENTS & !COMMAND_DONE);
        Ok(Self {
            port,
            blocks,
            by_block,
            read_only,
            relative_address,
            queue: VecDeque::new(),
            active: None,
            ended: VecDeque::new(),
        })
    }

    /// From power-on to a card with an address (Physical Layer, 4.2): whether its blocks are counted,
    /// its relative address, and what describes it.
    fn identify(port: &P) -> Answer<(bool, u32, [u32; 4])> {
        command(port, 0, 0, NO_RESPONSE)?;
        // 2.7 to 3.6 V, and a pattern that comes back. Cards of version 1 do not answer.
        let version2 = match command(port, 8, 0x1aa, R1) {
            Ok([0x1aa, ..]) => 1 << 30,
            Ok(_) => return Err(Failed),
            Err(Failed) => 0,
        };
        let end = port.now() + 1_500 * MS;
        let state = loop {
            ask(port, 55, 0, R1)?;
            let [state, ..] = command(port, 41, 0x00ff_8000 | version2, R3)?;
            if state >> 31 != 0 {
                break state;
            }
            if port.now() > end {
                return Err(Failed);
            }
            pause(port, 10 * MS);
        };
        command(port, 2, 0, R2)?;
        let [address, ..] = command(port, 3, 0, R1)?;
        let address = address & 0xffff_0000;
        Ok((
            state >> 30 & 1 != 0,
            address,
            command(port, 9, address, R2)?,
        ))
    }

    /// Its size in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// It cannot be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Something is under way, which may need [`Self::advance`] for its time to run out.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.active.is_some()
    }

    /// Starts a request, or has it wait.
    ///
    /// # Errors
    /// `EAGAIN`: too many wait. `EINVAL`: not of whole blocks, or beyond the end. `EROFS`. The
    /// memory comes back with it.
    pub fn submit(&mut self, what: Do, block: u64, data: B, tag: u64) -> Result<(), (Errno, B)> {
        let (bytes, transfer) = (data.bytes(), what != Do::Flush);
        let blocks = (bytes / BLOCK) as u64;
        if transfer != (bytes > 0)
            || !bytes.is_multiple_of(BLOCK)
            || blocks > 0xffff
            || block.checked_add(blocks).is_none_or(|e| e > self.blocks)
        {
            return Err((Errno::EINVAL, data));
        }
        if what == Do::Write && self.read_only {
            return Err((Errno::EROFS, data));
        }
        if self.queue.len() >= QUEUE {
            return Err((Errno::EAGAIN, data));
        }
        self.queue.push_back(Request {
            what,
            block: block as u32,
            data,
            tag,
        });
        self.begin();
        Ok(())
    }

    /// The next request that has ended.
    pub fn ended(&mut self) -> Option<Ended<B>> {
        self.ended.pop_front()
    }

    /// Begins what waits, until something is under way.
    fn begin(&mut self) {
        while self.active.is_none()
            && let Some(request) = self.queue.pop_front()
        {
            if request.what == Do::Flush {
                self.ended.push_back((request.tag, request.data, Ok(())));
                continue;
            }
            let blocks = request.data.bytes() / BLOCK;
            let (single, direction) = match request.what {
                Do::Read => (17, TO_HOST),
                _ => (24, 0),
            };
            let (index, mode) = match blocks {
                1 => (single, direction),
                _ => (single + 1, direction | SEVERAL | COUNTED | AUTO_STOP),
            };
            let argument = if self.by_block {
                request.block
            } else {
                request.block * BLOCK as u32
            };
            let (port, lines) = (&self.port, STATE_CMD | STATE_DAT);
            if until(port, COMMAND_TIME, |p| p.read(reg::STATE) & lines == 0).is_err() {
                self.recover();
                let ended = (request.tag, request.data, Err(Errno::EIO));
                self.ended.push_back(ended);
                continue;
            }
            port.write(reg::STATUS, EVENTS);
            port.write(reg::BLOCKS, (blocks as u32) << 16 | BLOCK as u32);
            port.write(reg::ARGUMENT, argument);
            port.write(reg::COMMAND, index << 24 | R1 | WITH_DATA | mode);
            self.active = Some(Active {
                request,
                blocks,
                moved: 0,
                deadline: port.now() + DATA_TIME,
            });
        }
    }

    /// Does what can be done now: to be called when the interrupt came up, and from time to time
    /// while [`Self::busy`].
    pub fn advance(&mut self) {
        while let Some(active) = &mut self.active {
            let port = &self.port;
            // As in `until`: the time first.
            let late = port.now() > active.deadline;
            let status = port.read(reg::STATUS);
            if status & COMMAND_DONE != 0 {
                port.write(reg::STATUS, COMMAND_DONE);
                if port.read(reg::RESPONSE) & CARD_ERRORS != 0 {
                    self.finish(Err(Errno::EIO));
                    continue;
                }
            }
            let moves = match active.request.what {
                Do::Read => READY,
                _ => ROOM,
            };
            if status & ERROR != 0 {
                self.finish(Err(Errno::EIO));
            } else if status & moves != 0 && active.moved < active.blocks {
                port.write(reg::STATUS, moves);
                let mut block = [0; BLOCK];
                let data = &mut active.request.data;
                if moves == READY {
                    for word in block.as_chunks_mut::<4>().0 {
                        *word = port.read(reg::DATA).to_le_bytes();
                    }
                    data.put(active.moved, &block);
                } else {
                    data.get(active.moved, &mut block);
                    for word in block.as_chunks::<4>().0 {
                        port.write(reg::DATA, u32::from_le_bytes(*word));
                    }
                }
                active.moved += 1;
                active.deadline = port.now() + DATA_TIME;
            } else if status & TRANSFER_DONE != 0 {
                port.write(reg::STATUS, TRANSFER_DONE);
                let all = active.moved == active.blocks;
                self.finish(if all { Ok(()) } else { Err(Errno::EIO) });
            } else if late {
                self.finish(Err(Errno::EIO));
            } else {
                break;
            }
        }
    }

    /// Ends what is under way, and begins the next.
    fn finish(&mut self, result: Result<(), Errno>) {
        if result.is_err() {
            self.recover();
        }
        if let Some(Active { request, .. }) = self.active.take() {
            self.ended.push_back((request.tag, request.data, result));
        }
        self.begin();
    }

    /// Brings controller and card back to where a transfer can start.
    fn recover(&self) {
        let port = &self.port;
        let _ = reset(port, RESET_CMD | RESET_DAT);
        // Stops the card if it still sends or takes data; it does not answer if it does not. Its
        // status then has old errors, which reading it clears.
        let _ = command(port, 12, 0, R1B);
        let _ = command(port, 13, self.relative_address, R1);
    }
}

#[cfg(test)]
mod tests;
