// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a virtio-net card does for frames, beside moving them: checksums, and segments of TCP. The header before
//! each frame says what is to be done (Virtio 1.2, section 5.1.6).

use super::frame::{CWR, Segment, complement};
use super::{Checksum, Frame};
use alloc::vec::Vec;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

/// `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes)]
#[repr(C)]
pub struct Header {
    flags: u8,
    /// How it is to be split.
    kind: u8,
    /// Bytes before the data of TCP. What a card says of it need not be so.
    headers: U16,
    /// Bytes of data in a segment.
    size: U16,
    /// Where the bytes begin that the checksum is of.
    start: U16,
    /// Its place, from there.
    offset: U16,
    /// Buffers of a frame that was received: the driver's own matter.
    buffers: U16,
}

/// Feature bits (Virtio 1.2, section 5.1.3): what the card does for what it is to send, what it leaves to be done for
/// what it received, and frames in several buffers.
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const MRG_RXBUF: u64 = 1 << 15;

/// Flags.
const NEEDS_CSUM: u8 = 1 << 0;
const DATA_VALID: u8 = 1 << 1;

/// Types of segmentation.
const NONE: u8 = 0;
const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
/// More than one segment of it says that congestion was noticed.
const ECN: u8 = 0x80;

impl Header {
    /// As it stands before a frame.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 12] {
        zerocopy::transmute!(self)
    }
    /// The same the other way.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 12]) -> Self {
        zerocopy::transmute!(bytes)
    }
}

/// What a card does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    features: u64,
    max_frame: usize,
}

impl Offload {
    /// Of what a card offers, the features that are to be used: those without which others may not be used are there
    /// (Virtio 1.2, section 5.1.3.1).
    ///
    /// Large frames are received only in several buffers (`MRG_RXBUF`), each a page: buffers that hold one whole would
    /// take 17 times the memory, nearly all of it for nothing when frames are small.
    #[must_use]
    pub const fn choose(offered: u64) -> u64 {
        const RECEIVE_LARGE: u64 = GUEST_CSUM | MRG_RXBUF;
        let mut chosen = offered & (CSUM | GUEST_CSUM);
        let send = offered & (HOST_TSO4 | HOST_TSO6);
        if offered & CSUM != 0 && send != 0 {
            chosen |= send | offered & HOST_ECN;
        }
        let receive = offered & (GUEST_TSO4 | GUEST_TSO6);
        if offered & RECEIVE_LARGE == RECEIVE_LARGE && receive != 0 {
            chosen |= receive | MRG_RXBUF;
        }
        chosen
    }

    /// By features that were chosen; single frames have at most `max_frame` bytes.
    #[must_use]
    pub const fn new(features: u64, max_frame: usize) -> Self {
        Self {
            features,
            max_frame,
        }
    }

    const fn has(self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Whether the card splits this frame, which is to be split.
    #[must_use]
    pub fn splits(self, frame: &Frame) -> bool {
        self.split(frame).is_some()
    }

    /// How the card is told to: the type, and where the data of TCP begin.
    fn split(self, frame: &Frame) -> Option<(u8, usize, Segment)> {
        let size = usize::from(frame.split()?);
        let (feature, kind) = match frame.blank_ipv6() {
            true => (HOST_TSO6, TCPV6),
            false => (HOST_TSO4, TCPV4),
        };
        let segment = Segment::find(frame.bytes())?;
        let data = segment.tcp_data(frame.bytes())?;
        let ecn = segment.tcp_flags(frame.bytes())? & CWR != 0;
        let good =
            self.has(feature) && data + size <= self.max_frame && (!ecn || self.has(HOST_ECN));
        good.then_some((kind | if ecn { ECN } else { 0 }, data, segment))
    }

    /// A frame as the card is to get it: what it does not do is done.
    #[must_use]
    pub fn send(self, frame: Frame) -> (Header, Vec<u8>) {
        match self.header(&frame) {
            Some((header, segment)) => {
                let mut bytes = frame.bare();
                segment.begin(&mut bytes);
                (header, bytes)
            }
            None => (Header::default(), frame.into_bytes()),
        }
    }

    /// The header of a frame for which the card has something to do.
    fn header(self, frame: &Frame) -> Option<(Header, Segment)> {
        if frame.checksum() != Checksum::Blank || !self.has(CSUM) {
            return None;
        }
        let (kind, headers, segment) = match frame.split() {
            Some(_) => self.split(frame)?,
            None => (NONE, 0, Segment::find(frame.bytes())?),
        };
        // The card's sum is that of all bytes to the end.
        if segment.end != frame.bytes().len() {
            return None;
        }
        let number = |n: usize| u16::try_from(n).ok().map(U16::new);
        let header = Header {
            flags: NEEDS_CSUM,
            kind,
            headers: number(headers)?,
            size: frame.split().unwrap_or(0).into(),
            start: number(segment.start)?,
            offset: number(segment.checksum - segment.start)?,
            buffers: U16::ZERO,
        };
        Some((header, segment))
    }

    /// A frame that the card received. `None`: it is none, or too long, or its header says of it what is not so or
    /// what the card was not allowed to say.
    #[must_use]
    pub fn receive(self, header: &Header, bytes: Vec<u8>) -> Option<Frame> {
        if !self.has(GUEST_CSUM) {
            let fits = bytes.len() <= self.max_frame;
            return fits.then(|| Frame::new(bytes, Checksum::Present))?;
        }
        let start = usize::from(header.start.get());
        let place = start + usize::from(header.offset.get());
        let blank = header.flags & NEEDS_CSUM != 0;
        // Where it says that the checksum is.
        let is_at = |s: &Segment| s.start == start && s.checksum == place;
        let ipv6 = match header.kind {
            NONE => {
                if bytes.len() > self.max_frame {
                    return None;
                }
                return match (blank, header.flags & DATA_VALID != 0) {
                    (false, false) => Frame::new(bytes, Checksum::Present),
                    (false, true) => Frame::new(bytes, Checksum::Validated),
                    (true, _) if Segment::find(&bytes).is_some_and(|s| is_at(&s)) => {
                        Frame::new(bytes, Checksum::Blank)
                    }
                    (true, _) => Frame::new(fill_in(bytes, start, place)?, Checksum::Present),
                };
            }
            TCPV4 if self.has(GUEST_TSO4) => false,
            TCPV6 if self.has(GUEST_TSO6) => true,
            _ => return None,
        };
        if !blank || !Segment::find(&bytes).is_some_and(|s| is_at(&s)) {
            return None;
        }
        Frame::large(bytes, header.size.get(), ipv6, self.max_frame)
    }
}

/// The checksum of what is neither TCP nor UDP as guests know them (within another packet, say): over all from `start` on,
/// with what is at its place to begin with.
fn fill_in(mut bytes: Vec<u8>, start: usize, place: usize) -> Option<Vec<u8>> {
    // 0 is the same sum, and says of UDP that there is none.
    let sum = match complement(bytes.get(start..)?) {
        0 => 0xffff,
        sum => sum,
    };
    bytes
        .get_mut(place..place + 2)?
        .copy_from_slice(&sum.to_be_bytes());
    Some(bytes)
}
