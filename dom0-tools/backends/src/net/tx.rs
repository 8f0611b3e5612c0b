// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest sends.

use super::{Checksum, Copies, CopyIn, Frame, Groups, HEADER, Interface, Limits};
use alloc::vec::Vec;
use core::fmt;
use guest_abi::io::netif::{
    ExtraType, GSO_TYPE_TCPV4, GSO_TYPE_TCPV6, NetifExtraInfo, NetifTxRequest, NetifTxResponse,
    Status, nettxf,
};
use guest_abi::io::ring::{BackRing, RingError};
use guest_abi::mem::SharedMem;
use guest_abi::{GrantRef, PAGE_SIZE};

/// Most entries of a packet: the 18 parts that every back end takes, two more that old front ends use,
/// and extra information of each of four kinds.
const MAX_ENTRIES: usize = 24;

/// The front end breaks the protocol: the device is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The ring's index is impossible.
    Ring(RingError),
    /// A packet's part leaves its page.
    CrossPage {
        /// First byte.
        offset: u16,
        /// Bytes.
        size: usize,
    },
    /// A packet has more entries than any may have.
    Endless,
    /// A packet's last entries are not there.
    Incomplete,
    /// There is no such kind of extra information.
    Extra(u8),
    /// A packet is to be split into nothing, or in a way that does not exist.
    Split {
        /// Bytes of a segment.
        size: u16,
        /// What it is said to be (`XEN_NETIF_GSO_TYPE_*`).
        kind: u8,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(e) => e.fmt(f),
            Self::CrossPage { offset, size } => {
                write!(f, "{size} bytes at {offset} are not within a page")
            }
            Self::Endless => write!(f, "a packet of more than {MAX_ENTRIES} entries"),
            Self::Incomplete => f.write_str("a packet without its end"),
            Self::Extra(kind) => write!(f, "extra information of unknown kind {kind}"),
            Self::Split { size, kind } => {
                write!(
                    f,
                    "a packet to be split into {size} bytes in the way {kind}"
                )
            }
        }
    }
}

impl core::error::Error for Fault {}

impl From<RingError> for Fault {
    fn from(e: RingError) -> Self {
        Self::Ring(e)
    }
}

/// What [`Tx::take`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Taken {
    /// The front end is to be sent an event: requests were answered.
    pub notify: bool,
    /// There are more packets and no event will tell of them: call again.
    pub more: bool,
    /// The credit is used up: call again at this time, in nanoseconds.
    pub until: Option<u64>,
    /// Packets that were not sent: the guest's own fault, or memory ran out.
    pub dropped: u32,
}

/// One ring of what a guest sends.
pub struct Tx {
    ring: BackRing<NetifTxRequest, NetifTxResponse>,
    max_frame: usize,
    /// A packet's first request that waits for credit.
    held: Option<NetifTxRequest>,
    broken: bool,
    work: Work,
}

/// What one call of [`Tx::take`] works with, kept for the next, so that it needs no memory.
#[derive(Default)]
struct Work {
    entries: Vec<Entry>,
    packets: Vec<Packet>,
    /// Of each copy, which packet it is for.
    copies: Vec<usize>,
}

/// A part of a packet.
struct Part {
    gref: GrantRef,
    offset: u16,
    size: usize,
}

/// An entry that is to be answered: a part, or extra information.
struct Entry {
    id: u16,
    part: Option<Part>,
}

/// How a packet is to be split.
#[derive(Clone, Copy)]
struct Split {
    size: u16,
    ipv6: bool,
}

/// A packet that is taken.
struct Packet {
    entries: usize,
    checksum: Checksum,
    split: Option<Split>,
    bytes: Vec<u8>,
    good: bool,
    /// It only says which multicast frames the guest wants.
    control: bool,
}

impl Tx {
    /// Takes up the ring that a front end made in one page. `None` never happens with a page.
    pub fn attach(ring: &impl SharedMem, limits: &Limits) -> Option<Self> {
        Some(Self {
            ring: BackRing::attach(ring, PAGE_SIZE)?,
            max_frame: limits.max_frame(),
            held: None,
            broken: false,
            work: Work::default(),
        })
    }

    /// Takes up to `budget` packets, answers them, and appends those that are good to `frames`; requests that only
    /// name a multicast address are heeded. When none is left, the front end is asked for an event at the next one.
    ///
    /// # Errors
    /// The front end breaks the protocol. The device is to be closed; nothing more is taken.
    pub fn take(
        &mut self,
        ring: &impl SharedMem,
        copies: &mut impl Copies,
        interface: &mut Interface,
        now: u64,
        budget: usize,
        frames: &mut Vec<Frame>,
    ) -> Result<Taken, Fault> {
        let mut taken = Taken::default();
        if self.broken {
            return Ok(taken);
        }
        let mut work = core::mem::take(&mut self.work);
        work.entries.clear();
        work.packets.clear();
        let gathered = self.gather(ring, interface, now, budget, &mut taken, &mut work);
        self.broken = gathered.is_err();
        gathered?;
        work.fetch(copies);
        let mut entries = work.entries.iter();
        for packet in work.packets.drain(..) {
            let frame = match packet.good && !packet.control {
                true => self.frame(packet.bytes, packet.checksum, packet.split),
                false => None,
            };
            let good = packet.good && (packet.control || frame.is_some());
            let status = match good {
                true => Status::Okay,
                false => Status::Error,
            };
            for entry in entries.by_ref().take(packet.entries) {
                let status = entry.part.as_ref().map_or(Status::Null, |_| status);
                let answer = NetifTxResponse {
                    id: entry.id,
                    status: status.number(),
                };
                // There is space: the request was taken and has no answer.
                let _ = self.ring.push(ring, &answer);
            }
            taken.dropped += u32::from(!good && !packet.control);
            frames.extend(frame);
        }
        self.work = work;
        taken.notify = self.ring.publish(ring);
        Ok(taken)
    }

    fn gather(
        &mut self,
        ring: &impl SharedMem,
        interface: &mut Interface,
        now: u64,
        budget: usize,
        taken: &mut Taken,
        work: &mut Work,
    ) -> Result<(), Fault> {
        while work.packets.len() < budget {
            let first = match self.held.take() {
                Some(first) => first,
                None => match self.ring.pop(ring)? {
                    Some(first) => first,
                    None if self.ring.final_check(ring)? => continue,
                    None => return Ok(()),
                },
            };
            if let Err(until) = interface.credit.check(now) {
                self.held = Some(first);
                taken.until = Some(until);
                return Ok(());
            }
            interface.credit.spend(first.size.into());
            let packet = self.packet(ring, &first, &mut work.entries, &mut interface.groups)?;
            work.packets.push(packet);
        }
        taken.more = self.ring.final_check(ring)?;
        Ok(())
    }

    fn frame(&self, bytes: Vec<u8>, checksum: Checksum, split: Option<Split>) -> Option<Frame> {
        match split {
            Some(Split { size, ipv6 }) => Frame::large(bytes, size, ipv6, self.max_frame),
            None => Frame::new(bytes, checksum),
        }
    }

    /// The next entry of a packet that is not at its end.
    fn next(&mut self, ring: &impl SharedMem, so_far: usize) -> Result<NetifTxRequest, Fault> {
        if so_far >= MAX_ENTRIES {
            return Err(Fault::Endless);
        }
        self.ring.pop(ring)?.ok_or(Fault::Incomplete)
    }

    /// Takes the rest of a packet.
    fn packet(
        &mut self,
        ring: &impl SharedMem,
        first: &NetifTxRequest,
        entries: &mut Vec<Entry>,
        groups: &mut Groups,
    ) -> Result<Packet, Fault> {
        let begin = entries.len();
        let total = usize::from(first.size);
        let (mut good, mut control, mut split) = (true, false, None);
        entries.push(Entry {
            id: first.id,
            part: Some(Part {
                gref: first.gref,
                offset: first.offset,
                size: total,
            }),
        });
        let mut extra = first.flags & nettxf::EXTRA_INFO != 0;
        while extra {
            let entry = self.next(ring, entries.len() - begin)?;
            let info = NetifExtraInfo::from_tx(&entry);
            match ExtraType::from_number(info.kind) {
                Some(ExtraType::Hash) => {}
                Some(ExtraType::Gso) => split = Some(split_of(&info)?),
                Some(ExtraType::McastAdd) => {
                    control = true;
                    good &= groups.add(info.mcast_addr());
                }
                Some(ExtraType::McastDel) => {
                    control = true;
                    groups.remove(info.mcast_addr());
                }
                None => return Err(Fault::Extra(info.kind)),
            }
            extra = info.more();
            entries.push(Entry { id: 0, part: None });
        }
        if control {
            // There is no packet: what else the first request says does not matter.
            return Ok(Packet {
                entries: entries.len() - begin,
                checksum: Checksum::Present,
                split: None,
                bytes: Vec::new(),
                good,
                control,
            });
        }
        let mut rest = 0;
        let mut more = first.flags & nettxf::MORE_DATA != 0;
        while more {
            let entry = self.next(ring, entries.len() - begin)?;
            more = entry.flags & nettxf::MORE_DATA != 0;
            let size = usize::from(entry.size);
            rest += size;
            entries.push(Entry {
                id: entry.id,
                part: Some(within(entry.gref, entry.offset, size)?),
            });
        }
        // One that is to be split is as long as its size field can say.
        good = good && total >= HEADER && (split.is_some() || total <= self.max_frame);
        // The first tells of the whole; its own part is what the others leave.
        match total.checked_sub(rest) {
            Some(size) => {
                let part = within(first.gref, first.offset, size)?;
                if let Some(entry) = entries.get_mut(begin) {
                    entry.part = Some(part);
                }
            }
            None => good = false,
        }
        let checksum = if first.flags & nettxf::CSUM_BLANK != 0 {
            Checksum::Blank
        } else if first.flags & nettxf::DATA_VALIDATED != 0 {
            Checksum::Validated
        } else {
            Checksum::Present
        };
        let mut bytes = Vec::new();
        good = good && bytes.try_reserve_exact(total).is_ok();
        if good {
            bytes.resize(total, 0);
        }
        Ok(Packet {
            entries: entries.len() - begin,
            checksum,
            split,
            bytes,
            good,
            control,
        })
    }
}

fn split_of(info: &NetifExtraInfo) -> Result<Split, Fault> {
    let (size, kind) = (info.gso_size(), info.gso_type());
    let ipv6 = match kind {
        GSO_TYPE_TCPV4 => false,
        GSO_TYPE_TCPV6 => true,
        _ => return Err(Fault::Split { size, kind }),
    };
    match size {
        0 => Err(Fault::Split { size, kind }),
        _ => Ok(Split { size, ipv6 }),
    }
}

/// A part, if it is within its page.
fn within(gref: GrantRef, offset: u16, size: usize) -> Result<Part, Fault> {
    if usize::from(offset) + size > PAGE_SIZE {
        return Err(Fault::CrossPage { offset, size });
    }
    Ok(Part { gref, offset, size })
}

impl Work {
    /// Copies the good packets' bytes, all with one call.
    fn fetch(&mut self, copies: &mut impl Copies) {
        let mut list = Vec::with_capacity(self.entries.len());
        self.copies.clear();
        let mut entries = self.entries.iter();
        for (n, packet) in self.packets.iter_mut().enumerate() {
            let mut rest = packet.bytes.as_mut_slice();
            for entry in entries.by_ref().take(packet.entries) {
                let Some(part) = &entry.part else { continue };
                let Some((to, after)) = rest.split_at_mut_checked(part.size) else {
                    // A packet that is not good has no bytes.
                    rest = &mut [];
                    continue;
                };
                rest = after;
                if part.size > 0 {
                    self.copies.push(n);
                    list.push(CopyIn {
                        gref: part.gref,
                        offset: part.offset,
                        to,
                        ok: false,
                    });
                }
            }
        }
        if list.is_empty() {
            return;
        }
        copies.copy_in(&mut list);
        let failed: Vec<usize> = list
            .iter()
            .zip(&self.copies)
            .filter_map(|(copy, n)| (!copy.ok).then_some(*n))
            .collect();
        for n in failed {
            if let Some(packet) = self.packets.get_mut(n) {
                packet.good = false;
            }
        }
    }
}
