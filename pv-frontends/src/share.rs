// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages and event channels that a front end gives its back end, taken back when they are dropped.

use crate::xenstore::Xenstore;
use crate::{Error, Pages, Platform};
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Deref;
use guest_abi::grants::{Grant, InUse, ReadWrite};
use guest_abi::{DomId, GrantRef, Port, calls};

/// Pages that a domain may read and write. When they are dropped, the grants end and the pages go back to the
/// kernel; if the domain still has one mapped, all wait in [`Retired`] for it to let go.
pub(crate) struct Share<'x, P: Platform> {
    xs: &'x Xenstore<P>,
    pages: Option<P::Pages>,
    grants: Vec<Grant<ReadWrite>>,
}

impl<'x, P: Platform> Share<'x, P> {
    pub(crate) fn new(xs: &'x Xenstore<P>, to: DomId, pages: usize) -> Result<Self, Error> {
        let mem = xs.platform().alloc(pages).ok_or(Error::NoMemory)?;
        let mut share = Self {
            xs,
            pages: None,
            grants: Vec::with_capacity(pages),
        };
        for i in 0..pages {
            let grant = xs.platform().grant(to, mem.gfn(i));
            // Those that were had are ended when `share` is dropped, before anybody knows of them.
            share.grants.push(grant.map_err(|_| Error::NoMemory)?);
        }
        share.pages = Some(mem);
        Ok(share)
    }

    /// The pages' grants, in their order.
    pub(crate) fn grefs(&self) -> impl Iterator<Item = GrantRef> {
        self.grants.iter().map(Grant::gref)
    }

    /// The first page's grant.
    pub(crate) fn gref(&self) -> GrantRef {
        self.grants.first().map_or(GrantRef(0), Grant::gref)
    }
}

impl<P: Platform> Deref for Share<'_, P> {
    type Target = P::Pages;
    #[allow(clippy::expect_used, reason = "there from `new` to `drop`")]
    fn deref(&self) -> &P::Pages {
        self.pages.as_ref().expect("a share has its pages")
    }
}

impl<P: Platform> Drop for Share<'_, P> {
    fn drop(&mut self) {
        let grants = core::mem::take(&mut self.grants);
        let left = end_all(self.xs.platform(), grants);
        if !left.is_empty() {
            self.xs.retire(Retired {
                pages: self.pages.take(),
                grants: left,
            });
        }
    }
}

/// Ends grants; those that are in use.
fn end_all<P: Platform>(platform: &P, grants: Vec<Grant<ReadWrite>>) -> Vec<Grant<ReadWrite>> {
    let end = |grant| platform.end_grant(grant).err();
    grants
        .into_iter()
        .filter_map(end)
        .map(|InUse(g)| g)
        .collect()
}

/// Pages that another domain has mapped although it was told to let go of them.
pub(crate) struct Retired<M> {
    /// Nobody reads or writes them; they go back to the kernel when the grants have ended.
    #[allow(dead_code, reason = "kept for its drop")]
    pages: Option<M>,
    grants: Vec<Grant<ReadWrite>>,
}

impl<M> Retired<M> {
    /// Ends what can be ended; whether all is.
    pub(crate) fn sweep<P: Platform>(&mut self, platform: &P) -> bool {
        self.grants = end_all(platform, core::mem::take(&mut self.grants));
        self.grants.is_empty()
    }
}

/// An event channel that is closed when it is dropped.
pub(crate) struct Line<'x, P: Platform> {
    platform: &'x P,
    port: Port,
    lost: Cell<bool>,
}

impl<'x, P: Platform> Line<'x, P> {
    /// A new one, which `to` may connect to.
    pub(crate) fn new(platform: &'x P, to: DomId) -> Result<Self, Error> {
        let port = calls::event::alloc_unbound(platform.xen(), DomId::SELF, to);
        let line = Self {
            platform,
            port: port.map_err(Error::Xen)?,
            lost: Cell::new(false),
        };
        calls::event::unmask(platform.xen(), line.port).map_err(Error::Xen)?;
        Ok(line)
    }

    pub(crate) fn port(&self) -> Port {
        self.port
    }

    /// It is no more, because the domain goes on as a new one. Its number may be another one's.
    pub(crate) fn lost(&self) {
        self.lost.set(true);
    }

    pub(crate) fn send(&self) {
        // Nobody at the other end is all that can be wrong.
        let _ = calls::event::send(self.platform.xen(), self.port);
    }
}

impl<P: Platform> Drop for Line<'_, P> {
    fn drop(&mut self) {
        if !self.lost.get() {
            let _ = calls::event::close(self.platform.xen(), self.port);
        }
    }
}
