// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel brings.

use crate::Error;
use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use guest_abi::grants::{Grant, InUse, ReadWrite};
use guest_abi::hvm::Param;
use guest_abi::mem::SharedMem;
use guest_abi::{DomId, Errno, Gfn, Hypercall, Port, calls};

/// Pages of this domain that other domains may write at any time, contiguous where this program sees
/// them. They go back to the kernel when they are dropped, if they came from [`Platform::alloc`].
///
/// Reads and writes are [`SharedMem`]'s: never through a reference to the memory, and without a panic when an
/// offset is out of range.
pub trait Pages: SharedMem {
    /// The guest frame of the page with this number, from 0 on.
    fn gfn(&self, index: usize) -> Gfn;
}

/// What a front end needs of the kernel.
///
/// A reference to a platform is one too, so that front ends can share a `&'static` one.
pub trait Platform {
    /// How hypercalls are made: `guest_abi::call::Hvc` on arm64.
    type Xen: Hypercall;
    /// Shared pages.
    type Pages: Pages;

    /// How hypercalls are made.
    fn xen(&self) -> &Self::Xen;

    /// A clock that never goes back, in nanoseconds from any start.
    fn now(&self) -> u64;

    /// Sleeps until an event channel fired or [`Platform::now`] is `until`; may return early. If an event
    /// came after the last return, it returns at once: a caller looks for work, finds none, and
    /// then waits.
    ///
    /// The default does not sleep at all, so that the caller polls.
    fn wait(&self, until: u64) {
        let _ = until;
        core::hint::spin_loop();
    }

    /// Zeroed pages to share, each granted by its frame. `None` when there are none.
    ///
    /// They are ordinary memory, mapped as normal write-back memory. Nothing else of the kernel's lies in them.
    fn alloc(&self, pages: usize) -> Option<Self::Pages>;

    /// Lets a domain read and write a page: [`GrantTable::grant`](guest_abi::grants::GrantTable::grant).
    ///
    /// # Errors
    /// No grant is left.
    fn grant(&self, to: DomId, gfn: Gfn) -> Result<Grant<ReadWrite>, Errno>;

    /// Ends a grant: [`GrantTable::end`](guest_abi::grants::GrantTable::end).
    ///
    /// # Errors
    /// The grant, when the domain still has the page mapped.
    fn end_grant(&self, grant: Grant<ReadWrite>) -> Result<Gfn, InUse<ReadWrite>>;

    /// A page that the toolstack put into this domain: the console's or xenstore's. It is in no
    /// memory bank of the device tree, and is to be mapped as normal write-back memory. `None` when it
    /// cannot be mapped.
    fn map(&self, gfn: Gfn) -> Option<Self::Pages>;
}

impl<P: Platform + ?Sized> Platform for &P {
    type Xen = P::Xen;
    type Pages = P::Pages;
    fn xen(&self) -> &Self::Xen {
        (**self).xen()
    }
    fn now(&self) -> u64 {
        (**self).now()
    }
    fn wait(&self, until: u64) {
        (**self).wait(until);
    }
    fn alloc(&self, pages: usize) -> Option<Self::Pages> {
        (**self).alloc(pages)
    }
    fn grant(&self, to: DomId, gfn: Gfn) -> Result<Grant<ReadWrite>, Errno> {
        (**self).grant(to, gfn)
    }
    fn end_grant(&self, grant: Grant<ReadWrite>) -> Result<Gfn, InUse<ReadWrite>> {
        (**self).end_grant(grant)
    }
    fn map(&self, gfn: Gfn) -> Option<Self::Pages> {
        (**self).map(gfn)
    }
}

/// The waker of who only looks, one and the same everywhere: it takes nobody's place.
pub(crate) static NOBODY: &Waker = Waker::noop();

/// Runs one of this crate's futures to its end without an executor, sleeping by [`Platform::wait`] in
/// between.
///
/// # Errors
/// [`Error::TimedOut`] when [`Platform::now`] has reached `deadline`; else the future's own. Each
/// future is polled at least once, so what is there already is had even after the deadline.
pub fn block_on<P: Platform + ?Sized, T>(
    platform: &P,
    deadline: u64,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(NOBODY);
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        if platform.now() >= deadline {
            return Err(Error::TimedOut);
        }
        platform.wait(deadline);
    }
}

/// A page and port that the toolstack gave the domain.
pub(crate) fn attach<P: Platform>(
    platform: &P,
    page: Param,
    port: Param,
) -> Result<(P::Pages, Port), Error> {
    let get = |param| {
        let value = calls::hvm::get_param(platform.xen(), DomId::SELF, param);
        value.ok().filter(|v| *v != 0).ok_or(Error::NoDevice)
    };
    let gfn = Gfn(get(page)?);
    let port = Port(u32::try_from(get(port)?).map_err(|_| Error::NoDevice)?);
    let page = platform.map(gfn).ok_or(Error::NoMemory)?;
    calls::event::unmask(platform.xen(), port).map_err(Error::Xen)?;
    Ok((page, port))
}
