// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disks: virtio-blk over virtio-mmio, several requests at a time (Virtio 1.2, section 5.2). Network cards
//! are in [`net`].
//!
//! Data goes straight between the device and a [`Buffer`] of this program's own or pages that are
//! mapped from other domains ([`Shared`]).

use crate::pages;
use crate::shared::Shared;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::hint::spin_loop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use guest_abi::Errno;
use queue::{Parts, Queue};
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PhysAddr};

#[cfg(test)]
mod fake;
pub mod net;
mod queue;
#[cfg(test)]
mod tests;

/// Requests in flight, and parts of one; frames of a card's in flight, each way.
const QUEUE: usize = 128;
/// The most pages of one request, which has a header and a status too.
pub const MAX_SEGMENTS: usize = QUEUE - 2;

/// How long, in ns, a disk may take to tell its serial: nothing else runs meanwhile.
#[cfg(target_os = "none")]
const ANSWER_NS: u64 = 5_000_000_000;

/// Feature bits.
const RO: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const INDIRECT: u64 = 1 << 28;
const VERSION_1: u64 = 1 << 32;

/// Why a device cannot be used, or not any more.
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
    /// It says that a frame has so many buffers.
    Buffers(u16),
    /// It says that it cannot go on.
    Stuck,
    /// It does not answer.
    Silent,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(e) => write!(f, "cannot be set up: {e}"),
            Self::Legacy => f.write_str("speaks no Virtio 1.0"),
            Self::Memory => f.write_str("has no memory for its buffers"),
            Self::NotIts(n) => write!(f, "gave back buffer {n}, which it did not have"),
            Self::Length(n) => write!(f, "says that it wrote {n} bytes to a buffer"),
            Self::Buffers(n) => write!(f, "says that a frame has {n} buffers"),
            Self::Stuck => f.write_str("says that it must be reset"),
            Self::Silent => f.write_str("does not answer"),
        }
    }
}

impl core::error::Error for Fault {}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Self::Setup(e)
    }
}

struct El1;

// SAFETY: memory is mapped at its own address, so that what the heap gives is what the device
// sees; pages are zeroed, aligned and in one piece.
unsafe impl Hal for El1 {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match pages::alloc_pages(pages) {
            Some(p) => (p.as_ptr() as u64, p),
            None => (0, NonNull::dangling()),
        }
    }
    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller's promise: it is from `dma_alloc`.
        unsafe { pages::free_pages(vaddr, pages) };
        0
    }
    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).unwrap_or(NonNull::dangling())
    }
    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        let address = buffer.cast::<u8>().as_ptr() as u64;
        #[cfg(target_os = "none")]
        let address = crate::mem::machine_address(address);
        address
    }
    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// Whole pages of this program's own.
pub struct Buffer {
    start: NonNull<u8>,
    pages: usize,
    len: usize,
}

impl Buffer {
    /// Zeroed bytes, at a page's start. `None`: out of memory.
    #[must_use]
    pub fn new(len: usize) -> Option<Self> {
        let pages = len.div_ceil(4096).max(1);
        Some(Self {
            start: pages::alloc_pages(pages)?,
            pages,
            len,
        })
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes, owned; a device writes only while `Disk` owns it.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `deref`.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: from `alloc_pages` with as many pages, and gone after this.
        unsafe { pages::free_pages(self.start, self.pages) }
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads sectors.
    Read,
    /// Writes sectors.
    Write,
    /// Has all that was written before on stable storage.
    Flush,
    /// Says that this many sectors are of no use any more.
    Discard(u32),
}

/// A request's data.
pub enum Data {
    /// None, for flush and discard.
    None,
    /// This program's own.
    Own(Buffer),
    /// Other domains' pages, which stay mapped until the request is complete.
    Shared(Vec<Shared>),
}

impl Data {
    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Own(b) => b.len(),
            Self::Shared(list) => list.iter().map(Shared::len).sum(),
        }
    }
}

/// A request that has ended.
pub struct Done {
    /// As it was submitted with.
    pub tag: u64,
    /// As it was submitted with.
    pub data: Data,
    /// How it ended.
    pub result: Result<(), Errno>,
}

#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
    /// Discard's own part: sector, count, flags.
    discard: (u64, u32, u32),
}

/// A value that a device writes. Who moves a `Box` claims for itself what is in it; who moves this does not.
struct Place<T>(NonNull<T>);

impl<T> Place<T> {
    fn new(value: T) -> Self {
        Self(NonNull::from(Box::leak(Box::new(value))))
    }
}

impl<T: Copy> Place<T> {
    /// What is there.
    fn get(&self) -> T {
        // SAFETY: from a box that is freed with this alone, and initialised.
        unsafe { self.0.as_ptr().read_volatile() }
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        // SAFETY: from a box, once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

struct InFlight {
    tag: u64,
    data: Data,
    op: Op,
    header: Box<Header>,
    status: Place<u8>,
}

impl InFlight {
    fn new(kind: u32, sector: u64, op: Op, data: Data, tag: u64) -> Self {
        let header = Header {
            kind,
            reserved: 0,
            sector,
            discard: (0, 0, 0),
        };
        Self {
            tag,
            data,
            op,
            header: Box::new(header),
            status: Place::new(0xff),
        }
    }

    fn done(self, result: Result<(), Errno>) -> Done {
        Done {
            tag: self.tag,
            data: self.data,
            result,
        }
    }
}

// SAFETY: header and status are in places of their own, a buffer has pages of its own, and other domains' pages stay mapped as long as
// their list is here; none of them is changed, and `submit` looks that none is empty.
unsafe impl Parts for InFlight {
    fn with_parts<R>(
        &mut self,
        f: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
    ) -> R {
        let base = core::ptr::from_ref(&*self.header).cast::<u8>();
        let mut ranges: [(*mut u8, usize); MAX_SEGMENTS] =
            [(core::ptr::null_mut(), 0); MAX_SEGMENTS];
        let mut n = 0;
        let mut add = |p: *mut u8, len: usize| {
            if let Some(r) = ranges.get_mut(n) {
                *r = (p, len);
                n += 1;
            }
        };
        match &mut self.data {
            Data::None => {}
            Data::Own(b) => add(b.start.as_ptr(), b.len),
            Data::Shared(list) => each_page(list, |at, len| add(at as *mut u8, len)),
        }
        // SAFETY: the header is 32 bytes in a box of its own. Pages of other domains are never
        // looked at through these slices: they only carry addresses to `El1::share`.
        unsafe {
            let head = core::slice::from_raw_parts(base, 16);
            let discard = core::slice::from_raw_parts(base.add(16), 16);
            let status = core::slice::from_raw_parts_mut(self.status.0.as_ptr(), 1);
            match self.op {
                Op::Flush => f(&[head], &mut [status]),
                Op::Discard(_) => f(&[head, discard], &mut [status]),
                Op::Write => {
                    let mut parts: [&[u8]; QUEUE] = [&[]; QUEUE];
                    parts[0] = head;
                    for (part, &(p, len)) in parts[1..].iter_mut().zip(&ranges[..n]) {
                        *part = core::slice::from_raw_parts(p, len);
                    }
                    f(&parts[..=n], &mut [status])
                }
                Op::Read => {
                    let mut parts: [&mut [u8]; QUEUE] =
                        core::array::from_fn(|_| Default::default());
                    for (part, &(p, len)) in parts.iter_mut().zip(&ranges[..n]) {
                        *part = core::slice::from_raw_parts_mut(p, len);
                    }
                    parts[n] = status;
                    f(&[head], &mut parts[..=n])
                }
            }
        }
    }
}

/// Splits ranges at page borders, where machine addresses may jump.
fn each_page(list: &[Shared], mut f: impl FnMut(u64, usize)) {
    for range in list {
        let (mut at, mut left) = (range.addr(), range.len());
        while left > 0 {
            let n = left.min(4096 - (at % 4096) as usize);
            f(at, n);
            at += n as u64;
            left -= n;
        }
    }
}

/// Transports that are in use.
#[cfg(target_os = "none")]
static TAKEN: crate::Global<Vec<u64>> = crate::Global::new(Vec::new());

/// The transport of a device of this kind, if there is one there and it is not in use.
#[cfg(target_os = "none")]
fn transport(
    at: &crate::machine::VirtioMmio,
    kind: virtio_drivers::transport::DeviceType,
) -> Option<MmioTransport<'static>> {
    let mut taken = TAKEN.lock();
    if taken.contains(&at.base) {
        return None;
    }
    let header = NonNull::new(at.base as *mut _)?;
    // SAFETY: registers that the device tree names as a virtio-mmio transport, mapped for
    // ever; `TAKEN` has each of them used once.
    let transport = unsafe { MmioTransport::new(header, at.size as usize).ok()? };
    if transport.device_type() != kind {
        return None;
    }
    taken.push(at.base);
    Some(transport)
}

/// A virtio-blk device.
pub struct Disk<T: Transport = MmioTransport<'static>> {
    /// Dropped first, which resets the device: then it uses no buffer any more.
    transport: T,
    queue: Queue<InFlight>,
    features: u64,
    sectors: u64,
    max_discard: u32,
    serial: String,
    /// Why it is used no more: it was reset then.
    fault: Option<Fault>,
}

#[cfg(target_os = "none")]
impl Disk {
    /// The disk behind a transport; `None` if there is none or it is in use. Its interrupt is let through.
    ///
    /// # Errors
    /// There is one, and it cannot be used.
    pub fn open(at: &crate::machine::VirtioMmio) -> Result<Option<Self>, Fault> {
        use virtio_drivers::transport::DeviceType;

        let Some(transport) = transport(at, DeviceType::Block) else {
            return Ok(None);
        };
        let until = crate::time::now_ns().saturating_add(ANSWER_NS);
        let disk = Self::start(transport, || crate::time::now_ns() < until)?;
        crate::gic::enable(at.intid, crate::gic::Trigger::Edge);
        Ok(Some(disk))
    }
}

impl<T: Transport> Disk<T> {
    /// Sets it up, as long as `wait` says that its answer is to be waited for.
    fn start(mut transport: T, wait: impl FnMut() -> bool) -> Result<Self, Fault> {
        let features = transport
            .begin_init(Features::from_bits_retain(
                RO | FLUSH | DISCARD | INDIRECT | VERSION_1,
            ))
            .bits();
        let low: u32 = transport.read_config_space(0)?;
        let high: u32 = transport.read_config_space(4)?;
        let max_discard = if features & DISCARD != 0 {
            transport.read_config_space::<u32>(36).unwrap_or(0)
        } else {
            0
        };
        let queue = Queue::new(&mut transport, 0, features & INDIRECT != 0)?;
        transport.finish_init();
        let mut disk = Self {
            transport,
            queue,
            features,
            sectors: u64::from(low) | u64::from(high) << 32,
            max_discard,
            serial: String::new(),
            fault: None,
        };
        disk.serial = disk.read_serial(wait)?;
        Ok(disk)
    }

    /// `VIRTIO_BLK_T_GET_ID`, before interrupts.
    fn read_serial(&mut self, mut wait: impl FnMut() -> bool) -> Result<String, Fault> {
        let data = Data::Own(Buffer::new(20).ok_or(Fault::Memory)?);
        let request = InFlight::new(8, 0, Op::Read, data, 0);
        let added = self.queue.add(request, &mut self.transport);
        added.map_err(|_| Fault::Memory)?;
        let request = loop {
            match self.queue.take()? {
                Some((request, _)) => break request,
                None if wait() => spin_loop(),
                None => return Err(Fault::Silent),
            }
        };
        self.transport.ack_interrupt();
        let Data::Own(id) = &request.data else {
            return Ok(String::new());
        };
        let text = id.split(|&b| b == 0).next().unwrap_or_default();
        Ok(match request.status.get() {
            0 => String::from_utf8_lossy(text).into_owned(),
            _ => String::new(),
        })
    }

    /// Its serial, which tells which disk it is.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }
    /// Its size in sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }
    /// It cannot be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.features & RO != 0
    }
    /// The most sectors of one discard request; 0: it cannot.
    #[must_use]
    pub fn max_discard(&self) -> u32 {
        self.max_discard
    }
    /// Starts a request. [`Errno::EAGAIN`] with the data back: too many are in flight.
    pub fn submit(
        &mut self,
        op: Op,
        sector: u64,
        data: Data,
        tag: u64,
    ) -> Result<(), (Errno, Data)> {
        if self.fault.is_some() {
            return Err((Errno::EIO, data));
        }
        let bytes = data.bytes();
        let (kind, sectors) = match op {
            Op::Read => (0, bytes as u64 / 512),
            Op::Write => (1, bytes as u64 / 512),
            Op::Flush if self.features & FLUSH == 0 => return Err((Errno::EOPNOTSUPP, data)),
            Op::Flush => (4, 0),
            Op::Discard(n) if n > self.max_discard => return Err((Errno::EOPNOTSUPP, data)),
            Op::Discard(n) => (11, u64::from(n)),
        };
        let transfer = matches!(op, Op::Read | Op::Write);
        let mut parts = usize::from(matches!(data, Data::Own(_)));
        if let Data::Shared(list) = &data {
            each_page(list, |_, _| parts += 1);
        }
        if transfer != (bytes > 0)
            || !bytes.is_multiple_of(512)
            || parts > MAX_SEGMENTS
            || sector
                .checked_add(sectors)
                .is_none_or(|end| end > self.sectors)
        {
            return Err((Errno::EINVAL, data));
        }
        if op != Op::Read && self.read_only() {
            return Err((Errno::EROFS, data));
        }
        let at = if transfer { sector } else { 0 };
        let mut request = InFlight::new(kind, at, op, data, tag);
        request.header.discard = (sector, sectors as u32, 0);
        let added = self.queue.add(request, &mut self.transport);
        added.map_err(|request| (Errno::EAGAIN, request.data))
    }

    /// To be called when its interrupt came up, before [`Self::complete`].
    pub fn acknowledge(&mut self) {
        let what = self.transport.ack_interrupt();
        if what.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT)
            && (self.transport.get_status()).contains(DeviceStatus::DEVICE_NEEDS_RESET)
        {
            self.give_up(Fault::Stuck);
        }
    }

    /// Why it is used no more, if it misbehaved: all its requests end with errors.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Resets it, after which it uses no buffer any more: all its requests end with errors.
    pub fn give_up(&mut self, fault: Fault) {
        self.transport.set_status(DeviceStatus::empty());
        self.fault = Some(fault);
    }

    /// The next request that has ended.
    pub fn complete(&mut self) -> Option<Done> {
        if self.fault.is_none() {
            match self.queue.take() {
                Ok(None) => return None,
                Ok(Some((request, _))) => {
                    let result = match request.status.get() {
                        0 => Ok(()),
                        2 => Err(Errno::EOPNOTSUPP),
                        _ => Err(Errno::EIO),
                    };
                    return Some(request.done(result));
                }
                Err(fault) => self.give_up(fault),
            }
        }
        Some(self.queue.take_back()?.done(Err(Errno::EIO)))
    }
}

bitflags::bitflags! {
    /// Feature bits as `Transport` takes them.
    #[derive(Clone, Copy, Debug)]
    struct Features: u64 {
        const ALL = !0;
    }
}
