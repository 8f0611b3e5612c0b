// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network cards: virtio-net over virtio-mmio, one queue each way (Virtio 1.2, section 5.1).
//!
//! The card is asked for no offload: a frame is whole and its checksums are in it, both ways. The queues are
//! used without `EVENT_IDX`, whose test in `VirtQueue::should_notify` fails when the index wraps.

use super::{Buffer, El1, Features, QUEUE, TAKEN, VERSION_1};
use crate::gic;
use crate::machine::VirtioMmio;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};
use virtio_drivers::Error;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceType, InterruptStatus, Transport};

/// Feature bits.
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const STATUS: u64 = 1 << 16;

/// Bytes before each frame: `struct virtio_net_hdr`, of which nothing is used.
const HEADER: usize = 12;
/// Bytes of a frame beside what the MTU counts: addresses, type, a VLAN's tag.
const FRAME_EXTRA: usize = 18;
/// The MTU of a card that tells none.
const DEFAULT_MTU: u16 = 1500;
/// The largest MTU that buffers are made for; a card that tells of a larger one is used with [`DEFAULT_MTU`].
const MAX_MTU: u16 = 9000;

/// The queues' numbers.
const RECEIVE: u16 = 0;
const SEND: u16 = 1;

/// Why a card cannot be used, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It cannot be set up.
    Setup(Error),
    /// It speaks only what was before Virtio 1.0.
    Legacy,
    /// There is no memory for its buffers.
    Memory,
    /// It gave back a buffer that it did not have.
    NotIts(u16),
    /// It says that it wrote so many bytes to a buffer, which is less than a header or more than there is.
    Length(u32),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(e) => write!(f, "cannot be set up: {e}"),
            Self::Legacy => f.write_str("speaks no Virtio 1.0"),
            Self::Memory => f.write_str("has no memory for its buffers"),
            Self::NotIts(n) => write!(f, "gave back buffer {n}, which it did not have"),
            Self::Length(n) => write!(f, "says that it wrote {n} bytes to a buffer"),
        }
    }
}

impl core::error::Error for Fault {}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Self::Setup(e)
    }
}

/// A virtio-net device. It does nothing more once this is dropped.
pub struct Card {
    /// Dropped first, which resets the device: then it uses no buffer any more.
    transport: MmioTransport<'static>,
    receive: VirtQueue<El1, QUEUE>,
    send: VirtQueue<El1, QUEUE>,
    /// Buffers that it may write to, by their tokens.
    posted: Vec<Option<Buffer>>,
    /// Frames that it sends, by their tokens.
    sending: Vec<Option<Vec<u8>>>,
    header: Box<[u8; HEADER]>,
    mac: Option<[u8; 6]>,
    mtu: u16,
    link: bool,
    features: u64,
}

impl Card {
    /// The card behind a transport, ready to receive; `None` if there is none or it is in use. Its interrupt
    /// is let through.
    ///
    /// # Errors
    /// There is one, and it cannot be used.
    pub fn open(at: &VirtioMmio) -> Result<Option<Self>, Fault> {
        if TAKEN.lock().contains(&at.base) {
            return Ok(None);
        }
        let Some(header) = NonNull::new(at.base as *mut _) else {
            return Ok(None);
        };
        // SAFETY: registers that the device tree names as a virtio-mmio transport, mapped for
        // ever; `TAKEN` has each of them used once.
        let Ok(mut transport) = (unsafe { MmioTransport::new(header, at.size as usize) }) else {
            return Ok(None);
        };
        if transport.device_type() != DeviceType::Network {
            return Ok(None);
        }
        TAKEN.lock().push(at.base);
        let (mtu, wanted) = match transport.read_device_features() & MTU {
            0 => (DEFAULT_MTU, 0),
            _ => match transport.read_config_space::<u16>(10)? {
                mtu @ DEFAULT_MTU..=MAX_MTU => (mtu, MTU),
                _ => (DEFAULT_MTU, 0),
            },
        };
        let features = transport
            .begin_init(Features::from_bits_retain(
                MAC | STATUS | VERSION_1 | wanted,
            ))
            .bits();
        if features & VERSION_1 == 0 {
            return Err(Fault::Legacy);
        }
        let mut mac = [0; 6];
        for (i, byte) in mac.iter_mut().enumerate() {
            *byte = transport.read_config_space(i)?;
        }
        let receive = VirtQueue::new(&mut transport, RECEIVE, false, false)?;
        let mut send = VirtQueue::new(&mut transport, SEND, false, false)?;
        // What was sent is looked after when there is more to send.
        send.set_dev_notify(false);
        transport.finish_init();
        let mut card = Self {
            transport,
            receive,
            send,
            posted: (0..QUEUE).map(|_| None).collect(),
            sending: (0..QUEUE).map(|_| None).collect(),
            header: Box::new([0; HEADER]),
            mac: (features & MAC != 0).then_some(mac),
            mtu,
            link: true,
            features,
        };
        card.read_link();
        for _ in 0..QUEUE {
            let buffer = Buffer::new(HEADER + card.max_frame()).ok_or(Fault::Memory)?;
            card.post(buffer)?;
        }
        gic::enable(at.intid, gic::Trigger::Edge);
        Ok(Some(card))
    }

    /// Its Ethernet address, if it has one.
    #[must_use]
    pub fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }
    /// Most bytes of a frame that it sends.
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
            self.read_link();
        }
    }

    /// Gives the card a buffer to write to.
    fn post(&mut self, mut buffer: Buffer) -> Result<(), Fault> {
        // SAFETY: the buffer stays in `posted` until `pop_used`, or the device is reset before it goes.
        let token = unsafe { self.receive.add(&[], &mut [&mut *buffer])? };
        let slot = self.posted.get_mut(usize::from(token));
        *slot.ok_or(Fault::NotIts(token))? = Some(buffer);
        fence(Ordering::SeqCst);
        if self.receive.should_notify() {
            self.transport.notify(RECEIVE);
        }
        Ok(())
    }

    /// The next frame that came in; an empty one when there was no memory for it. With `None` an interrupt
    /// tells of the next.
    ///
    /// # Errors
    /// The card misbehaves and is not to be used any more.
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let Some(token) = self.receive.peek_used() else {
            return Ok(None);
        };
        let slot = self.posted.get_mut(usize::from(token));
        let slot = slot.ok_or(Fault::NotIts(token))?;
        let buffer = slot.as_mut().ok_or(Fault::NotIts(token))?;
        // SAFETY: the same buffer as at `add`.
        let len = unsafe { self.receive.pop_used(token, &[], &mut [&mut **buffer])? };
        let buffer = slot.take().ok_or(Fault::NotIts(token))?;
        let bytes = buffer.get(HEADER..len as usize);
        let bytes = bytes.ok_or(Fault::Length(len))?;
        let mut frame = Vec::new();
        if frame.try_reserve_exact(bytes.len()).is_ok() {
            frame.extend_from_slice(bytes);
        }
        self.post(buffer)?;
        Ok(Some(frame))
    }

    /// Forgets what was sent.
    fn reclaim(&mut self) -> Result<(), Fault> {
        while let Some(token) = self.send.peek_used() {
            let slot = self.sending.get_mut(usize::from(token));
            let slot = slot.ok_or(Fault::NotIts(token))?;
            let frame = slot.as_ref().ok_or(Fault::NotIts(token))?;
            let buffers: [&[u8]; 2] = [&self.header[..], frame];
            // SAFETY: the same buffers as at `add`.
            unsafe { self.send.pop_used(token, &buffers, &mut [])? };
            *slot = None;
        }
        Ok(())
    }

    /// Whether it takes a frame to send just now. If not, an interrupt tells when it does.
    ///
    /// # Errors
    /// The card misbehaves and is not to be used any more.
    pub fn has_room(&mut self) -> Result<bool, Fault> {
        let room = |queue: &VirtQueue<El1, QUEUE>| queue.available_desc() >= 2;
        self.reclaim()?;
        if !room(&self.send) {
            self.send.set_dev_notify(true);
            // What it has done until it sees that is not told.
            fence(Ordering::SeqCst);
            self.reclaim()?;
        }
        let has = room(&self.send);
        if has {
            self.send.set_dev_notify(false);
        }
        Ok(has)
    }

    /// Sends a frame, for which there is room. One that is empty or too long for the card is not sent: false.
    ///
    /// # Errors
    /// The card misbehaves and is not to be used any more.
    pub fn send(&mut self, frame: Vec<u8>) -> Result<bool, Fault> {
        if frame.is_empty() || frame.len() > self.max_frame() {
            return Ok(false);
        }
        // SAFETY: both stay as they are, where they are, until `pop_used`, or the device is reset before they
        // go; a vector's bytes do not move with it.
        let token = unsafe { self.send.add(&[&self.header[..], &frame], &mut [])? };
        let slot = self.sending.get_mut(usize::from(token));
        *slot.ok_or(Fault::NotIts(token))? = Some(frame);
        fence(Ordering::SeqCst);
        if self.send.should_notify() {
            self.transport.notify(SEND);
        }
        Ok(true)
    }
}
