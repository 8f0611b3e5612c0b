// SPDX-License-Identifier: MIT OR Apache-2.0
//! The balloon: memory that the domain gives back to the hypervisor and takes again, as the toolstack wants
//! (`memory/target`, in KiB).
//!
//! ```
//! use guest_abi::Gfn;
//! use pv_frontends::balloon::{Balloon, Memory};
//! use pv_frontends::{Error, Platform, xenstore::Access};
//!
//! /// Pages that the kernel's allocator handed out and that nothing uses.
//! struct Spare(Vec<Gfn>);
//!
//! impl Memory for Spare {
//!     fn take(&mut self, frames: &mut [Gfn]) -> usize {
//!         let n = frames.len().min(self.0.len());
//!         frames[..n].copy_from_slice(&self.0.split_off(self.0.len() - n));
//!         n
//!     }
//!     fn give(&mut self, frames: &[Gfn]) {
//!         self.0.extend(frames);
//!     }
//! }
//!
//! /// For an executor; a kernel without one calls `poll` when xenstore's event came, and `adjust`.
//! async fn run<P: Platform>(store: Access<'_, P>, spare: Spare) -> Result<(), Error> {
//!     let mut balloon = Balloon::open(store, spare).await?;
//!     loop {
//!         balloon.follow().await?;
//!     }
//! }
//! ```

use crate::xenstore::{Access, Reply, Watch};
use crate::{Error, Platform};
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll};
use guest_abi::io::xs_wire::MsgType;
use guest_abi::{DomId, Gfn, PAGE_SIZE, calls};

const TARGET: &str = "memory/target";
const STATIC_MAX: &str = "memory/static-max";
const KIB_PER_PAGE: u64 = PAGE_SIZE as u64 / 1024;
/// Pages that one [`Balloon::adjust`] moves at most.
pub const SLICE: usize = 256;

/// The kernel's memory, as far as the balloon is concerned.
///
/// A frame that was taken has no memory behind it until it is given: the kernel must have nothing of its own there, and
/// must not touch it. It is ordinary memory of the domain, in a bank of the device tree, that no grant refers to.
pub trait Memory {
    /// Takes pages of 4 KiB out of use; how many, their frames first in `frames`. It may be less than asked for, and 0
    /// when the kernel needs all that it has.
    fn take(&mut self, frames: &mut [Gfn]) -> usize;

    /// Pages that the kernel may use again. What is in them is not known.
    fn give(&mut self, frames: &[Gfn]);
}

/// How far [`Balloon::adjust`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The domain has as much memory as it should.
    Done,
    /// There is more to do: call again.
    More,
    /// The kernel has no more to give, or the hypervisor has no more to give: try again later.
    Short,
}

/// The balloon. When it is dropped, the pages that are in it stay with the hypervisor.
pub struct Balloon<'x, P: Platform, M: Memory> {
    store: Access<'x, P>,
    watch: Watch<'x, P>,
    reading: Option<Reply<'x, P>>,
    memory: M,
    /// Frames without memory.
    out: Vec<Gfn>,
    /// Pages that the domain had when the balloon began, and what the store says that it began with. They differ: the
    /// console's page and the like are not counted.
    base: (u64, u64),
    /// Pages that the domain has, and should have.
    has: u64,
    goal: u64,
}

impl<P: Platform, M: Memory> core::fmt::Debug for Balloon<'_, P, M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Balloon")
            .field("out", &self.out.len())
            .field("has", &self.has)
            .field("goal", &self.goal)
            .finish_non_exhaustive()
    }
}

impl<'x, P: Platform, M: Memory> Balloon<'x, P, M> {
    /// Begins. What the domain has now counts as what the store says that it began with (`memory/static-max`, or where
    /// that is not there the target); targets are relative to that, the first one too.
    ///
    /// # Errors
    /// [`Error::Store`] with `ENOENT` when there is no target; [`Error::BadValue`] when it is no number;
    /// [`Error::Xen`].
    pub async fn open(store: Access<'x, P>, memory: M) -> Result<Self, Error> {
        let watch = store.watch(TARGET).await?;
        let target = store.read_number::<u64>(TARGET).await? / KIB_PER_PAGE;
        let began = match store.read_number::<u64>(STATIC_MAX).await {
            Ok(kib) => kib / KIB_PER_PAGE,
            Err(Error::Store(_)) => target,
            Err(e) => return Err(e),
        };
        let xen = store.xenstore().platform().xen();
        let has = calls::memory::current_reservation(xen, DomId::SELF).map_err(Error::Xen)?;
        Ok(Self {
            store,
            watch,
            reading: None,
            memory,
            out: Vec::new(),
            base: (has, began),
            has,
            goal: has.saturating_add(target).saturating_sub(began),
        })
    }

    /// Pages that are in the balloon.
    pub fn pages(&self) -> usize {
        self.out.len()
    }

    /// The kernel's memory.
    pub fn memory(&mut self) -> &mut M {
        &mut self.memory
    }

    /// Follows the target: whether it changed. Does not wait. A target that is no number is none.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            if let Some(reply) = &mut self.reading {
                let Poll::Ready(answer) = Pin::new(reply).poll(cx) else {
                    return Poll::Pending;
                };
                self.reading = None;
                let target = match answer {
                    Ok(text) => crate::xenstore::decimal::<u64>(&text),
                    Err(Error::Store(_)) => None,
                    Err(e) => return Poll::Ready(Err(e)),
                };
                let (had, base) = self.base;
                let goal = |kib| (had.saturating_add(kib / KIB_PER_PAGE)).saturating_sub(base);
                let goal = target.map(goal);
                if let Some(goal) = goal.filter(|goal| *goal != self.goal) {
                    self.goal = goal;
                    return Poll::Ready(Ok(()));
                }
            }
            match self.watch.poll_any(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
            let xs = self.store.xenstore();
            let path = [TARGET.as_bytes(), b"\0"];
            self.reading = Some(xs.request(MsgType::Read, 0, &path)?);
        }
    }

    /// Moves at most [`SLICE`] pages towards the target.
    ///
    /// # Errors
    /// [`Error::Xen`]; no page is lost then. [`Error::NoMemory`] when the balloon's own list cannot grow.
    pub fn adjust(&mut self) -> Result<Progress, Error> {
        let (less, more) = (
            self.has.saturating_sub(self.goal),
            self.goal.saturating_sub(self.has),
        );
        let slice = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(SLICE);
        let moved = match (less, more) {
            (0, 0) => return Ok(Progress::Done),
            (0, more) => self.deflate(slice(more))?,
            (less, _) => self.inflate(slice(less))?,
        };
        Ok(if self.has == self.goal {
            Progress::Done
        } else if moved == 0 {
            Progress::Short
        } else {
            Progress::More
        })
    }

    /// Gives pages back to the hypervisor; how many.
    fn inflate(&mut self, n: usize) -> Result<usize, Error> {
        self.out.try_reserve(n).map_err(|_| Error::NoMemory)?;
        let mut frames = [Gfn(0); SLICE];
        let frames = frames.get_mut(..n).unwrap_or_default();
        let taken = self.memory.take(frames).min(n);
        let (frames, _) = frames.split_at(taken);
        if frames.is_empty() {
            return Ok(0);
        }
        let xen = self.store.xenstore().platform().xen();
        let result = calls::memory::decrease_reservation(xen, DomId::SELF, 0, frames);
        let (gone, left) = frames.split_at(result.unwrap_or(0).min(taken));
        self.out.extend_from_slice(gone);
        self.has = self.has.saturating_sub(gone.len() as u64);
        if !left.is_empty() {
            self.memory.give(left);
        }
        result.map(|_| gone.len()).map_err(Error::Xen)
    }

    /// Takes pages from the hypervisor again; how many.
    fn deflate(&mut self, n: usize) -> Result<usize, Error> {
        let at = self.out.len().saturating_sub(n);
        let frames = self.out.get(at..).unwrap_or_default();
        if frames.is_empty() {
            return Ok(0);
        }
        let xen = self.store.xenstore().platform().xen();
        let got = calls::memory::populate_physmap(xen, DomId::SELF, 0, frames);
        let got = got.map_err(Error::Xen)?.min(frames.len());
        let (back, _) = frames.split_at(got);
        self.memory.give(back);
        self.has += got as u64;
        self.out.drain(at..at + got);
        Ok(got)
    }

    /// Waits until the target changes, and goes there as far as it is possible.
    ///
    /// # Errors
    /// As [`Balloon::adjust`]; xenstore's.
    pub async fn follow(&mut self) -> Result<Progress, Error> {
        poll_fn(|cx| self.poll(cx)).await?;
        loop {
            match self.adjust()? {
                Progress::More => {}
                end => return Ok(end),
            }
        }
    }
}
