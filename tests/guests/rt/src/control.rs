// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the toolstack asks of the guest, for a program that looks now and then.

use crate::Store;
use alloc::boxed::Box;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use guest_abi::sched::ShutdownReason;
use pv_frontends::shutdown::{Accept, Request, Shutdown};
use pv_frontends::{Error, Platform};

const PATIENCE: u64 = 10_000_000_000;

type Next = Pin<Box<dyn Future<Output = Result<Request, Error>>>>;

/// A request to power off or to restart, waited for.
pub struct Control(Option<Next>);

impl Control {
    /// Says that the guest listens, and listens.
    ///
    /// # Errors
    /// xenstore's.
    pub fn open(xs: &'static Store) -> Result<Self, Error> {
        let store = xs.by(xs.platform().now() + PATIENCE);
        let accept = Accept {
            poweroff: true,
            reboot: true,
            suspend: false,
        };
        let mut shutdown = store.run(Shutdown::open(store.access(), accept))?;
        Ok(Self(Some(Box::pin(async move { shutdown.next().await }))))
    }

    /// What is asked, once. Does not wait.
    ///
    /// # Errors
    /// xenstore's.
    pub fn asked(&mut self) -> Result<Option<ShutdownReason>, Error> {
        let Some(next) = &mut self.0 else {
            return Ok(None);
        };
        let Poll::Ready(request) = next.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        else {
            return Ok(None);
        };
        self.0 = None;
        Ok(Some(match request? {
            Request::Reboot => ShutdownReason::Reboot,
            _ => ShutdownReason::Poweroff,
        }))
    }
}
