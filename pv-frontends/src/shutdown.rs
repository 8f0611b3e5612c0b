// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the toolstack asks of the domain as a whole (`control/shutdown`): to power off, to restart, to be suspended.
//!
//! ```no_run
//! use guest_abi::{calls, sched::ShutdownReason};
//! use pv_frontends::shutdown::{Accept, Request, Shutdown};
//! use pv_frontends::{Error, Platform, xenstore::Xenstore};
//!
//! fn until_the_end<P: Platform>(xs: &Xenstore<P>) -> Result<(), Error> {
//!     let store = xs.by(xs.platform().now() + 1_000_000_000);
//!     let accept = Accept { poweroff: true, reboot: true, suspend: false };
//!     let mut shutdown = store.run(Shutdown::open(store.access(), accept))?;
//!     let reason = match xs.by(u64::MAX).run(shutdown.next())? {
//!         Request::Reboot => ShutdownReason::Reboot,
//!         _ => ShutdownReason::Poweroff,
//!     };
//!     // Flush the disks, then:
//!     calls::sched::shutdown(xs.platform().xen(), reason).map_err(Error::Xen)
//! }
//! ```
//!
//! # Suspension
//!
//! A domain is suspended to be saved and restored, or moved to another machine. A kernel that answers
//! [`Request::Suspend`]:
//!
//! 1. has nothing under way that must not be lost (flushes its disks), stops its other vcpus (PSCI `CPU_OFF`), and
//!    masks interrupts.
//! 2. calls [`suspend`].
//! 3. When that returns `false`, the suspension was given up: everything is as before.
//! 4. When it returns `true`, memory is as it was, and all that the hypervisor kept for the domain is new. It
//!    maps the shared-info page and registers its vcpus' information again (`guest_abi::events::Events` is made anew),
//!    and maps the grant table again
//!    ([`GrantTable::resume`](guest_abi::grants::GrantTable::resume)). No event channel is left but the console's and
//!    xenstore's; ports and grants from before mean nothing any more.
//! 5. calls [`Console::resume`](crate::console::Console::resume) and
//!    [`Xenstore::resume`](crate::xenstore::Xenstore::resume); watches are set again, and fire.
//! 6. calls [`Disk::resume`](crate::blk::Disk::resume) and [`Vif::resume`](crate::net::Vif::resume) of each device, with a
//!    deadline. A [`Balloon`](crate::balloon::Balloon) and a [`Shutdown`] need nothing.
//! 7. starts its other vcpus again, and unmasks interrupts.

use crate::xenstore::{Access, Watch};
use crate::{Error, Platform};
use guest_abi::{Errno, calls};

const NODE: &str = "control/shutdown";

/// What the toolstack asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End; the domain will be destroyed.
    Poweroff,
    /// End; the domain will be destroyed. The same as [`Request::Poweroff`] for most.
    Halt,
    /// End; the domain will be made anew.
    Reboot,
    /// Be ready to be saved, see [suspension](self#suspension).
    Suspend,
}

impl Request {
    fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"poweroff" => Some(Self::Poweroff),
            b"halt" => Some(Self::Halt),
            b"reboot" => Some(Self::Reboot),
            b"suspend" => Some(Self::Suspend),
            _ => None,
        }
    }
}

/// What the kernel does when it is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    /// It powers off, and halts.
    pub poweroff: bool,
    /// It restarts.
    pub reboot: bool,
    /// It can be suspended.
    pub suspend: bool,
}

impl Accept {
    fn has(self, request: Request) -> bool {
        match request {
            Request::Poweroff | Request::Halt => self.poweroff,
            Request::Reboot => self.reboot,
            Request::Suspend => self.suspend,
        }
    }
}

/// Watches for requests.
pub struct Shutdown<'x, P: Platform> {
    store: Access<'x, P>,
    watch: Watch<'x, P>,
    accept: Accept,
}

opaque!(Shutdown<'x, P>);

impl<'x, P: Platform> Shutdown<'x, P> {
    /// Says in the store what the kernel accepts (`control/feature-poweroff`, `-reboot`, `-suspend`), and watches
    /// from now on; a request that is there already counts.
    ///
    /// # Errors
    /// xenstore's.
    pub async fn open(store: Access<'x, P>, accept: Accept) -> Result<Self, Error> {
        for (name, yes) in [
            ("poweroff", accept.poweroff),
            ("reboot", accept.reboot),
            ("suspend", accept.suspend),
        ] {
            let value = if yes { b"1" } else { b"0" };
            let path = alloc::format!("control/feature-{name}");
            match store.write(&path, value).await {
                // A toolstack that does not let it be said does not look there.
                Ok(()) | Err(Error::Store(_)) => {}
                Err(e) => return Err(e),
            }
        }
        let watch = store.watch(NODE).await?;
        Ok(Self {
            store,
            watch,
            accept,
        })
    }

    /// Waits for a request that the kernel accepts, and tells the toolstack that it was seen. Others are left as
    /// they are, by which the toolstack knows that nothing will come of them.
    ///
    /// # Errors
    /// xenstore's.
    pub async fn next(&mut self) -> Result<Request, Error> {
        loop {
            self.watch.next().await?;
            let accept = self.accept;
            let request = self.store.transaction(async |t| {
                let text = match t.read(NODE).await {
                    Err(Error::Store(Errno::ENOENT)) => return Ok(None),
                    text => text?,
                };
                let request = Request::parse(&text).filter(|r| accept.has(*r));
                if request.is_some() {
                    t.write(NODE, b"").await?;
                }
                Ok(request)
            });
            if let Some(request) = request.await? {
                return Ok(request);
            }
        }
    }
}

/// Has the domain suspended. Returns when it goes on: `true` when as a new one, in which everything that the hypervisor
/// kept is to be set up again; see [suspension](self#suspension).
///
/// # Errors
/// [`Error::Xen`].
pub fn suspend<P: Platform>(platform: &P) -> Result<bool, Error> {
    calls::sched::suspend(platform.xen()).map_err(Error::Xen)
}
