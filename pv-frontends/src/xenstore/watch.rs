// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watches.

use super::client::Xenstore;
use crate::platform::NOBODY;
use crate::{Error, Platform};
use alloc::collections::VecDeque;
use alloc::string::String;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};

/// Most watches at one time.
pub const MAX_WATCHES: usize = 64;
/// Most paths that a watch keeps. When more change before they are taken, it forgets which and tells its own
/// path: look at everything.
pub const MAX_EVENTS: usize = 32;

/// A watch, until it is dropped.
pub struct Watch<'x, P: Platform> {
    xs: &'x Xenstore<P>,
    id: u32,
}

opaque!(Watch<'x, P>);

/// What the connection knows of it.
#[derive(Debug)]
pub(super) struct State {
    pub(super) path: String,
    events: VecDeque<String>,
    pub(super) waker: Option<Waker>,
}

impl State {
    pub(super) fn new(path: &str) -> Self {
        Self {
            path: path.into(),
            events: VecDeque::new(),
            waker: None,
        }
    }

    /// Keeps a path that changed.
    pub(super) fn push(&mut self, path: &str) {
        let own = self.events.front().is_some_and(|e| *e == self.path);
        if own || self.events.iter().any(|e| e == path) {
            return;
        }
        if self.events.len() == MAX_EVENTS || path == self.path {
            self.events.clear();
            self.events.push_back(self.path.clone());
        } else {
            self.events.push_back(path.into());
        }
    }
}

impl<'x, P: Platform> Watch<'x, P> {
    pub(super) async fn new(xs: &'x Xenstore<P>, path: &str) -> Result<Self, Error> {
        let (id, reply) = xs.add_watch(path)?;
        let watch = Self { xs, id };
        reply.await?;
        Ok(watch)
    }

    /// The next path that changed, if there is one: the watch's own, or one below it. A path that changed
    /// several times may come once.
    ///
    /// # Errors
    /// The connection failed and nothing is left.
    pub fn try_next(&self) -> Result<Option<String>, Error> {
        let mut cx = Context::from_waker(NOBODY);
        match self.poll_next(&mut cx) {
            Poll::Ready(result) => result.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// The next path that changed; whoever waits is woken.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Result<String, Error>> {
        self.xs
            .poll_watch(self.id, cx.waker(), |s| s.events.pop_front())
    }

    /// Waits for the next path that changes.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn next(&self) -> Result<String, Error> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Whether something changed since the last call; what, is forgotten.
    pub(crate) fn poll_any(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.xs.poll_watch(self.id, cx.waker(), |s| {
            let any = !s.events.is_empty();
            s.events.clear();
            any.then_some(())
        })
    }
}

impl<P: Platform> Drop for Watch<'_, P> {
    fn drop(&mut self) {
        self.xs.remove_watch(self.id);
    }
}
