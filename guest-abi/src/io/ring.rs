// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rings in shared pages (`io/ring.h`), for both ends.
//!
//! Indexes are `u32` that run on and wrap; an entry's place is its index modulo the ring's size, a
//! power of two. The other end's index is hostile: it is read once, checked against what is possible
//! ([`pending`]) and kept; what is impossible is a [`RingError`] and the connection's end. Own
//! indexes are private and never read back from the page.
//!
//! Pages are [`SharedMem`]. [`FrontRing`] and [`BackRing`] hold requests and responses in the same entries, [`ByteRing`] is
//! the kind of the console and the xenstore.

use crate::mem::SharedMem;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{Ordering, fence};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Byte offsets of the words of a ring's head.
pub mod head {
    /// Requests written; the front end's.
    pub const REQ_PROD: usize = 0;
    /// The back end wants to be told of this request; the back end's.
    pub const REQ_EVENT: usize = 4;
    /// Responses written; the back end's.
    pub const RSP_PROD: usize = 8;
    /// The front end wants to be told of this response; the front end's.
    pub const RSP_EVENT: usize = 12;
    /// Where the entries start.
    pub const ENTRIES: usize = 64;
}

/// The other end's index is impossible: it is broken or hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingError {
    /// The index that was read.
    pub index: u32,
    /// The reader's own.
    pub own: u32,
    /// How far ahead it may be.
    pub limit: u32,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ring index {} is more than {} ahead of {}",
            self.index, self.limit, self.own
        )
    }
}

impl core::error::Error for RingError {}

/// Entries of a ring of `bytes` bytes: what fits behind the head, rounded down to a power of two.
/// `None` when none fits.
#[must_use]
pub const fn ring_size(bytes: usize, entry_size: usize) -> Option<u32> {
    if bytes <= head::ENTRIES || entry_size == 0 {
        return None;
    }
    let n = (bytes - head::ENTRIES) / entry_size;
    if n == 0 || n > 1 << 31 {
        return None;
    }
    Some(1 << n.ilog2())
}

/// How far the producer's index `prod` is ahead of the consumer's `cons`.
///
/// # Errors
/// It is ahead by more than `limit`.
#[inline]
pub const fn pending(prod: u32, cons: u32, limit: u32) -> Result<u32, RingError> {
    let n = prod.wrapping_sub(cons);
    if n > limit {
        return Err(RingError {
            index: prod,
            own: cons,
            limit,
        });
    }
    Ok(n)
}

/// Whether the consumer, who waits for index `event`, is to be told that the producer went from
/// `old` to `new`.
#[inline]
#[must_use]
pub const fn needs_notify(old: u32, new: u32, event: u32) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

/// What both ends have: the entries' number and places.
struct Entries<Q, S> {
    size: u32,
    types: PhantomData<(Q, S)>,
}

impl<Q, S> Entries<Q, S> {
    const ENTRY_SIZE: usize = if size_of::<Q>() > size_of::<S>() {
        size_of::<Q>()
    } else {
        size_of::<S>()
    };

    fn new(bytes: usize) -> Option<Self> {
        Some(Self {
            size: ring_size(bytes, Self::ENTRY_SIZE)?,
            types: PhantomData,
        })
    }

    #[inline]
    fn offset(&self, index: u32) -> usize {
        head::ENTRIES + (index & (self.size - 1)) as usize * Self::ENTRY_SIZE
    }
}

/// The end that sends requests of type `Q` and gets responses of type `S`.
pub struct FrontRing<Q, S> {
    entries: Entries<Q, S>,
    /// Requests written, and of these published.
    req_prod: u32,
    req_published: u32,
    /// Responses taken, and seen to be there.
    rsp_cons: u32,
    rsp_seen: u32,
}

impl<Q: FromBytes + IntoBytes + Immutable, S: FromBytes + IntoBytes + Immutable> FrontRing<Q, S> {
    /// Makes an empty ring in `bytes` bytes of pages that nobody else uses yet. `None` when no entry
    /// fits.
    pub fn new(mem: &impl SharedMem, bytes: usize) -> Option<Self> {
        let entries = Entries::new(bytes)?;
        mem.write(0, &[0; head::ENTRIES]);
        mem.store32(head::REQ_EVENT, 1);
        mem.store32(head::RSP_EVENT, 1);
        Some(Self {
            entries,
            req_prod: 0,
            req_published: 0,
            rsp_cons: 0,
            rsp_seen: 0,
        })
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.entries.size
    }

    /// How many requests can be written now. A response frees an entry when it is taken.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.entries.size - self.in_flight()
    }

    /// How many requests were written whose response was not taken.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Writes a request, which [`FrontRing::publish`] shows to the other end. `false` when the ring
    /// is full.
    #[must_use]
    pub fn push(&mut self, mem: &impl SharedMem, request: &Q) -> bool {
        if self.free() == 0 {
            return false;
        }
        mem.write(self.entries.offset(self.req_prod), request.as_bytes());
        self.req_prod = self.req_prod.wrapping_add(1);
        true
    }

    /// Shows the requests written since the last time. Whether the other end wants an event.
    #[must_use]
    pub fn publish(&mut self, mem: &impl SharedMem) -> bool {
        let old = self.req_published;
        let new = self.req_prod;
        if old == new {
            return false;
        }
        mem.store32(head::REQ_PROD, new);
        self.req_published = new;
        fence(Ordering::SeqCst);
        needs_notify(old, new, mem.load32(head::REQ_EVENT))
    }

    /// How many responses are there.
    ///
    /// # Errors
    /// The other end's index is impossible: more responses than requests.
    pub fn pending(&mut self, mem: &impl SharedMem) -> Result<u32, RingError> {
        let prod = mem.load32(head::RSP_PROD);
        let limit = self.req_published.wrapping_sub(self.rsp_cons);
        let n = pending(prod, self.rsp_cons, limit)?;
        self.rsp_seen = prod;
        Ok(n)
    }

    /// Takes the next response, if there is one.
    ///
    /// # Errors
    /// The other end's index is impossible.
    pub fn pop(&mut self, mem: &impl SharedMem) -> Result<Option<S>, RingError> {
        if self.rsp_cons == self.rsp_seen && self.pending(mem)? == 0 {
            return Ok(None);
        }
        let mut s = S::new_zeroed();
        mem.read(self.entries.offset(self.rsp_cons), s.as_mut_bytes());
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(s))
    }

    /// To be called when no response is left, before waiting: asks for an event at the next one.
    /// Whether there are responses after all, so that one must not wait.
    ///
    /// # Errors
    /// The other end's index is impossible.
    pub fn final_check(&mut self, mem: &impl SharedMem) -> Result<bool, RingError> {
        if self.pending(mem)? > 0 {
            return Ok(true);
        }
        mem.store32(head::RSP_EVENT, self.rsp_cons.wrapping_add(1));
        fence(Ordering::SeqCst);
        Ok(self.pending(mem)? > 0)
    }
}

/// The end that gets requests of type `Q` and sends responses of type `S`.
pub struct BackRing<Q, S> {
    entries: Entries<Q, S>,
    /// Responses written, and of these published.
    rsp_prod: u32,
    rsp_published: u32,
    /// Requests taken, and seen to be there.
    req_cons: u32,
    req_seen: u32,
}

impl<Q: FromBytes + IntoBytes + Immutable, S: FromBytes + IntoBytes + Immutable> BackRing<Q, S> {
    /// Takes up a ring in `bytes` bytes that a front end made, where its last back end left it: what
    /// has no response counts as not yet taken. `None` when no entry fits.
    pub fn attach(mem: &impl SharedMem, bytes: usize) -> Option<Self> {
        let entries = Entries::new(bytes)?;
        let rsp_prod = mem.load32(head::RSP_PROD);
        Some(Self {
            entries,
            rsp_prod,
            rsp_published: rsp_prod,
            req_cons: rsp_prod,
            req_seen: rsp_prod,
        })
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.entries.size
    }

    /// How many requests were taken and have no response yet.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// How many requests are there.
    ///
    /// # Errors
    /// The other end's index is impossible: more requests than the ring has entries free for.
    pub fn pending(&mut self, mem: &impl SharedMem) -> Result<u32, RingError> {
        let prod = mem.load32(head::REQ_PROD);
        let n = pending(prod, self.req_cons, self.entries.size - self.in_flight())?;
        self.req_seen = prod;
        Ok(n)
    }

    /// Takes the next request, if there is one.
    ///
    /// # Errors
    /// The other end's index is impossible.
    pub fn pop(&mut self, mem: &impl SharedMem) -> Result<Option<Q>, RingError> {
        if self.req_cons == self.req_seen && self.pending(mem)? == 0 {
            return Ok(None);
        }
        let mut q = Q::new_zeroed();
        mem.read(self.entries.offset(self.req_cons), q.as_mut_bytes());
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(Some(q))
    }

    /// Writes a response, which [`BackRing::publish`] shows to the other end. `false` when every
    /// request that was taken has one.
    #[must_use]
    pub fn push(&mut self, mem: &impl SharedMem, response: &S) -> bool {
        if self.in_flight() == 0 {
            return false;
        }
        mem.write(self.entries.offset(self.rsp_prod), response.as_bytes());
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
        true
    }

    /// Shows the responses written since the last time. Whether the other end wants an event.
    #[must_use]
    pub fn publish(&mut self, mem: &impl SharedMem) -> bool {
        let old = self.rsp_published;
        let new = self.rsp_prod;
        if old == new {
            return false;
        }
        mem.store32(head::RSP_PROD, new);
        self.rsp_published = new;
        fence(Ordering::SeqCst);
        needs_notify(old, new, mem.load32(head::RSP_EVENT))
    }

    /// To be called when no request is left, before waiting: asks for an event at the next one.
    /// Whether there are requests after all, so that one must not wait.
    ///
    /// # Errors
    /// The other end's index is impossible.
    pub fn final_check(&mut self, mem: &impl SharedMem) -> Result<bool, RingError> {
        self.wait_for(mem, 1)
    }

    /// Whether `n` requests are there (at least 1, at most the ring's size). If not, asks for an event
    /// when they are.
    ///
    /// # Errors
    /// The other end's index is impossible.
    pub fn wait_for(&mut self, mem: &impl SharedMem, n: u32) -> Result<bool, RingError> {
        if self.pending(mem)? >= n {
            return Ok(true);
        }
        mem.store32(head::REQ_EVENT, self.req_cons.wrapping_add(n));
        fence(Ordering::SeqCst);
        Ok(self.pending(mem)? >= n)
    }
}

/// A ring of bytes at a fixed place in a page. It has no state of its own: both indexes are read
/// from the page and checked at each call. The other end is told by an event after each call that
/// moved bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRing {
    /// Offset of the bytes.
    pub data: usize,
    /// Their number, a power of two.
    pub size: u32,
    /// Offset of the writer's index.
    pub prod: usize,
    /// Offset of the reader's index.
    pub cons: usize,
}

impl ByteRing {
    /// How many bytes can be read.
    ///
    /// # Errors
    /// The indexes are impossible.
    pub fn available(&self, mem: &impl SharedMem) -> Result<u32, RingError> {
        let cons = mem.load32(self.cons);
        pending(mem.load32(self.prod), cons, self.size)
    }

    /// How many bytes can be written.
    ///
    /// # Errors
    /// The indexes are impossible.
    pub fn free(&self, mem: &impl SharedMem) -> Result<u32, RingError> {
        Ok(self.size - self.available(mem)?)
    }

    /// The reader: takes as many bytes as there are and fit. Returns how many.
    ///
    /// # Errors
    /// The indexes are impossible.
    pub fn read(&self, mem: &impl SharedMem, to: &mut [u8]) -> Result<usize, RingError> {
        let cons = mem.load32(self.cons);
        let n = to
            .len()
            .min(pending(mem.load32(self.prod), cons, self.size)? as usize);
        let (to, _) = to.split_at_mut(n);
        let (first, second) = to.split_at_mut(self.before_wrap(cons, n));
        if n == 0 {
            return Ok(0);
        }
        mem.read(self.place(cons), first);
        if !second.is_empty() {
            mem.read(self.data, second);
        }
        mem.store32(self.cons, cons.wrapping_add(n as u32));
        Ok(n)
    }

    /// The writer: puts as many bytes as fit. Returns how many.
    ///
    /// # Errors
    /// The indexes are impossible.
    pub fn write(&self, mem: &impl SharedMem, from: &[u8]) -> Result<usize, RingError> {
        let prod = mem.load32(self.prod);
        let used = pending(prod, mem.load32(self.cons), self.size)?;
        let n = from.len().min((self.size - used) as usize);
        if n == 0 {
            return Ok(0);
        }
        let (from, _) = from.split_at(n);
        let (first, second) = from.split_at(self.before_wrap(prod, n));
        mem.write(self.place(prod), first);
        if !second.is_empty() {
            mem.write(self.data, second);
        }
        mem.store32(self.prod, prod.wrapping_add(n as u32));
        Ok(n)
    }

    fn place(&self, index: u32) -> usize {
        self.data + (index & (self.size - 1)) as usize
    }

    /// How many of `n` bytes from `index` on come before the ring's end.
    fn before_wrap(&self, index: u32, n: usize) -> usize {
        n.min((self.size - (index & (self.size - 1))) as usize)
    }
}

#[cfg(test)]
mod tests;
