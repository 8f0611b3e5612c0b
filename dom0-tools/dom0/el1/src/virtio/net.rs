// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network cards: virtio-net over virtio-mmio, one queue each way (Virtio 1.2, section 5.1).
//!
//! Whoever opens a card says which of its offloads are to be used. What stands in frames' headers of them is not
//! looked at here.

use super::queue::{Parts, Queue};
use super::{Buffer, Fault, Features, QUEUE, VERSION_1};
use alloc::boxed::Box;
use alloc::vec::Vec;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

/// Feature bits.
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const MRG_RXBUF: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;

/// Bytes before each frame: `struct virtio_net_hdr`.
pub const HEADER: usize = 12;
/// Where in it the number of a frame's buffers is.
const BUFFERS: usize = 10;
/// Bytes of a frame beside what the MTU counts: addresses, type, a VLAN's tag.
const FRAME_EXTRA: usize = 18;
/// The MTU of a card that tells none.
const DEFAULT_MTU: u16 = 1500;
/// The largest MTU that buffers are made for; a card that tells of a larger one is used with [`DEFAULT_MTU`].
const MAX_MTU: u16 = 9000;
/// Most bytes of a frame that is to be split, or was joined.
const LARGE: usize = u16::MAX as usize + FRAME_EXTRA;
/// Bytes of a buffer when a frame may have several.
const PART: usize = 4096;

/// The queues' numbers.
const RECEIVE: u16 = 0;
const SEND: u16 = 1;

// SAFETY: pages that are the buffer's own until it is dropped, and never none.
unsafe impl Parts for Buffer {
    fn with_parts<R>(
        &mut self,
        f: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
    ) -> R {
        f(&[], &mut [&mut **self])
    }
}

/// A frame on its way out; it has bytes.
struct Sending {
    header: Box<[u8; HEADER]>,
    frame: Vec<u8>,
}

// SAFETY: a box and a vector that nobody changes: their contents do not move with them.
unsafe impl Parts for Sending {
    fn with_parts<R>(
        &mut self,
        f: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
    ) -> R {
        f(&[&self.header[..], &self.frame], &mut [])
    }
}

/// A frame that came in.
pub struct Received {
    /// What the card says of it.
    pub header: [u8; HEADER],
    /// Its bytes; none when it was too long, or there was no memory for it.
    pub bytes: Vec<u8>,
}

/// One of which not all buffers have come.
struct Partial {
    frame: Received,
    /// It is not to be had.
    dropped: bool,
    /// Buffers that are to come.
    left: u16,
}

impl Partial {
    fn add(&mut self, bytes: &[u8]) {
        let all = &mut self.frame.bytes;
        self.dropped |= all.len() + bytes.len() > LARGE || all.try_reserve(bytes.len()).is_err();
        match self.dropped {
            true => *all = Vec::new(),
            false => all.extend_from_slice(bytes),
        }
    }
}

/// A virtio-net device. It does nothing more once this is dropped.
pub struct Card<T: Transport = MmioTransport<'static>> {
    /// Dropped first, which resets the device: then it uses no buffer any more.
    transport: T,
    /// Buffers that it may write to.
    receive: Queue<Buffer>,
    partial: Option<Partial>,
    send: Queue<Sending>,
    mac: Option<[u8; 6]>,
    mtu: u16,
    link: bool,
    features: u64,
    /// It says that it cannot go on.
    stuck: bool,
}

#[cfg(target_os = "none")]
impl Card {
    /// The card behind a transport, ready to receive; `None` if there is none or it is in use. Its interrupt
    /// is let through. `choose` says which offloads of those that it offers are to be used: feature bits, as in Virtio
    /// 1.2, section 5.1.3.
    ///
    /// # Errors
    /// There is one, and it cannot be used.
    pub fn open(
        at: &crate::machine::VirtioMmio,
        choose: impl FnOnce(u64) -> u64,
    ) -> Result<Option<Self>, Fault> {
        use virtio_drivers::transport::DeviceType;

        let Some(transport) = super::transport(at, DeviceType::Network) else {
            return Ok(None);
        };
        let card = Self::start(transport, choose)?;
        crate::gic::enable(at.intid, crate::gic::Trigger::Edge);
        Ok(Some(card))
    }
}

impl<T: Transport> Card<T> {
    fn start(mut transport: T, choose: impl FnOnce(u64) -> u64) -> Result<Self, Fault> {
        let offered = transport.read_device_features();
        let (mtu, wanted) = match offered & MTU {
            0 => (DEFAULT_MTU, 0),
            _ => match transport.read_config_space::<u16>(10)? {
                mtu @ DEFAULT_MTU..=MAX_MTU => (mtu, MTU),
                _ => (DEFAULT_MTU, 0),
            },
        };
        let features = transport
            .begin_init(Features::from_bits_retain(
                MAC | STATUS | VERSION_1 | wanted | choose(offered),
            ))
            .bits();
        if features & VERSION_1 == 0 {
            return Err(Fault::Legacy);
        }
        let mut mac = [0; 6];
        for (i, byte) in mac.iter_mut().enumerate() {
            *byte = transport.read_config_space(i)?;
        }
        let receive = Queue::new(&mut transport, RECEIVE, false)?;
        let mut send = Queue::new(&mut transport, SEND, false)?;
        // What was sent is looked after when there is more to send.
        send.set_interrupt(false);
        transport.finish_init();
        let mut card = Self {
            transport,
            receive,
            partial: None,
            send,
            mac: (features & MAC != 0).then_some(mac),
            mtu,
            link: true,
            features,
            stuck: false,
        };
        card.read_link();
        let len = match features & MRG_RXBUF {
            0 => HEADER + card.max_frame(),
            _ => PART,
        };
        for _ in 0..QUEUE {
            card.post(Buffer::new(len).ok_or(Fault::Memory)?)?;
        }
        Ok(card)
    }

    /// The features that it is used with.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }
    /// Its Ethernet address, if it has one.
    #[must_use]
    pub fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }
    /// Most bytes of a frame, unless it is to be split or was joined.
    #[must_use]
    pub fn max_frame(&self) -> usize {
        usize::from(self.mtu) + FRAME_EXTRA
    }
    /// It is connected with something. A card that does not tell is.
    #[must_use]
    pub fn link(&self) -> bool {
        self.link
    }

    fn read_link(&mut self) {
        if self.features & STATUS != 0 {
            let status = self.transport.read_config_space::<u16>(6);
            self.link = status.is_ok_and(|s| s & 1 != 0);
        }
    }

    /// To be called when its interrupt came up, before the others.
    pub fn acknowledge(&mut self) {
        let what = self.transport.ack_interrupt();
        if what.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
            let status = self.transport.get_status();
            self.stuck = status.contains(DeviceStatus::DEVICE_NEEDS_RESET);
            self.read_link();
        }
    }

    /// Gives the card a buffer to write to.
    fn post(&mut self, buffer: Buffer) -> Result<(), Fault> {
        // There is room: at most as many are made.
        let posted = self.receive.add(buffer, &mut self.transport);
        posted.map_err(|_| Fault::Memory)
    }

    /// The next frame that came in. With `None` an interrupt tells of the next.
    ///
    /// # Errors
    /// The card misbehaves and is not to be used any more.
    pub fn receive(&mut self) -> Result<Option<Received>, Fault> {
        if self.stuck {
            return Err(Fault::Stuck);
        }
        while let Some((buffer, len)) = self.receive.take()? {
            let bytes = buffer.get(..len as usize).ok_or(Fault::Length(len))?;
            let mut partial = match self.partial.take() {
                Some(mut partial) => {
                    partial.add(bytes);
                    partial
                }
                None => self.begin(bytes)?,
            };
            self.post(buffer)?;
            partial.left -= 1;
            if partial.left == 0 {
                // What waits is counted by its bytes: it is to hold no more.
                partial.frame.bytes.shrink_to_fit();
                return Ok(Some(partial.frame));
            }
            self.partial = Some(partial);
        }
        Ok(None)
    }

    /// A frame's first buffer, which counts among those that are to come.
    fn begin(&self, bytes: &[u8]) -> Result<Partial, Fault> {
        let Some((header, bytes)) = bytes.split_first_chunk() else {
            return Err(Fault::Length(bytes.len() as u32));
        };
        let header: [u8; HEADER] = *header;
        let left = match self.features & MRG_RXBUF {
            0 => 1,
            _ => u16::from_le_bytes([header[BUFFERS], header[BUFFERS + 1]]),
        };
        if left == 0 || usize::from(left) > QUEUE {
            return Err(Fault::Buffers(left));
        }
        let mut partial = Partial {
            frame: Received {
                header,
                bytes: Vec::new(),
            },
            dropped: false,
            left,
        };
        if left > 1 {
            let most = LARGE.min(usize::from(left) * PART);
            partial.dropped = partial.frame.bytes.try_reserve_exact(most).is_err();
        }
        partial.add(bytes);
        Ok(partial)
    }

    /// Forgets what was sent.
    fn reclaim(&mut self) -> Result<(), Fault> {
        while self.send.take()?.is_some() {}
        Ok(())
    }

    /// Whether it takes a frame to send just now. If not, an interrupt tells when it does.
    ///
    /// # Errors
    /// The card misbehaves and is not to be used any more.
    pub fn has_room(&mut self) -> Result<bool, Fault> {
        let room = |queue: &Queue<Sending>| queue.room() >= 2;
        self.reclaim()?;
        if !room(&self.send) {
            self.send.set_interrupt(true);
            self.reclaim()?;
        }
        let has = room(&self.send);
        if has {
            self.send.set_interrupt(false);
        }
        Ok(has)
    }

    /// Sends a frame, for which there is room, with its header, which has no feature that is not used. One that is empty
    /// or too long for the card is not sent: false.
    pub fn send(&mut self, header: [u8; HEADER], frame: Vec<u8>) -> bool {
        let most = match header[1] {
            0 => self.max_frame(),
            _ => LARGE,
        };
        if frame.is_empty() || frame.len() > most {
            return false;
        }
        let header = Box::new(header);
        let sending = Sending { header, frame };
        self.send.add(sending, &mut self.transport).is_ok()
    }
}

#[cfg(test)]
mod tests;
