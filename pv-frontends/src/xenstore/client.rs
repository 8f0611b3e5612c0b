// SPDX-License-Identifier: MIT OR Apache-2.0
//! The connection: messages in and out of the ring.

use super::watch::{MAX_WATCHES, State as WatchState};
use crate::platform::NOBODY;
use crate::platform::attach;
use crate::share::Retired;
use crate::{Error, Platform};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::Future;
use core::mem::take;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use guest_abi::hvm::Param;
use guest_abi::io::xs_wire::{self as wire, MsgType, PAYLOAD_MAX, REQ, RSP, XsdSockmsg};
use guest_abi::mem::SharedMem;
use guest_abi::{Hypercall, Port, calls};
use zerocopy::{FromBytes, IntoBytes};

/// Most requests of callers under way at one time.
pub const MAX_REQUESTS: usize = 32;
/// Most requests under way with those of this module's own and those that nobody waits for any more.
const MAX_SLOTS: usize = 2 * MAX_REQUESTS + MAX_WATCHES;
/// How often one pump looks for more.
const ROUNDS: usize = 64;
const HEAD: usize = size_of::<XsdSockmsg>();

/// The connection with xenstore, one for each domain.
///
/// It is dropped with its page mapped; another may be opened then.
pub struct Xenstore<P: Platform> {
    platform: P,
    inner: RefCell<Inner<P::Pages>>,
    retired: RefCell<Vec<Retired<P::Pages>>>,
}

struct Inner<M> {
    page: M,
    port: Port,
    /// Messages to send, and how much of the first one is sent.
    out: VecDeque<Message>,
    sent: usize,
    /// The message that is arriving.
    input: Vec<u8>,
    slots: BTreeMap<u32, Slot>,
    last_id: u32,
    watches: BTreeMap<u32, WatchState>,
    last_watch: u32,
    failed: Option<Error>,
    /// The server was asked to begin anew and has not.
    reconnecting: bool,
    waker: Option<Waker>,
    /// Who is to be woken when nothing is borrowed any more.
    woken: Vec<Waker>,
}

struct Message {
    id: u32,
    bytes: Vec<u8>,
}

/// A request under way.
struct Slot {
    kind: MsgType,
    answer: Option<Result<Vec<u8>, Error>>,
    waker: Option<Waker>,
    /// Nobody waits for the answer.
    abandoned: bool,
}

/// The answer to a request, a future. Dropped before the answer is there, it takes the request back if it is not
/// on its way, and else ignores the answer.
#[must_use = "the answer tells whether it was done"]
pub struct Reply<'x, P: Platform> {
    xs: &'x Xenstore<P>,
    id: u32,
}

opaque!(Xenstore<P>, Reply<'x, P>);

impl<'x, P: Platform> Reply<'x, P> {
    pub(super) fn new(xs: &'x Xenstore<P>, id: u32) -> Self {
        Self { xs, id }
    }
}

impl<P: Platform> Future for Reply<'_, P> {
    type Output = Result<Vec<u8>, Error>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.xs.poll_answer(self.id, cx.waker())
    }
}

impl<P: Platform> Drop for Reply<'_, P> {
    fn drop(&mut self) {
        self.xs.inner.borrow_mut().abandon(self.id);
    }
}

impl<P: Platform> Xenstore<P> {
    /// Takes up the connection that the toolstack prepared (`HVM_PARAM_STORE_PFN`, `_EVTCHN`). Answers and events
    /// that are left in the ring from a kernel before are thrown away. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a hypervisor or a store; [`Error::NoMemory`] when the page cannot be mapped.
    pub fn open(platform: P) -> Result<Self, Error> {
        let (page, port) = attach(&platform, Param::StorePfn, Param::StoreEvtchn)?;
        if page.load32(wire::CONNECTION) == wire::CONNECTED {
            let left = page.load32(RSP.prod);
            page.store32(RSP.cons, left);
        }
        let reconnecting = page.load32(wire::CONNECTION) == wire::RECONNECT;
        Ok(Self {
            platform,
            retired: RefCell::default(),
            inner: RefCell::new(Inner {
                page,
                port,
                out: VecDeque::new(),
                sent: 0,
                input: Vec::new(),
                slots: BTreeMap::new(),
                last_id: 0,
                watches: BTreeMap::new(),
                last_watch: 0,
                failed: None,
                reconnecting,
                waker: None,
                woken: Vec::new(),
            }),
        })
    }

    /// The platform.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// The event channel that fires when there is something to do.
    pub fn port(&self) -> Port {
        self.inner.borrow().port
    }

    /// Moves what there is to move, and wakes whoever waited for it. To be called after the event channel fired;
    /// blocking calls and the polls of futures do so by themselves. Bounded time, whatever the server does.
    pub fn handle_event(&self) {
        let woken = {
            let mut inner = self.inner.borrow_mut();
            inner.pump(self.platform.xen());
            take(&mut inner.woken)
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// Why the connection failed, if it did. [`Access::reconnect`](super::Access::reconnect) begins anew.
    pub fn failed(&self) -> Option<Error> {
        self.inner.borrow().failed
    }

    /// To be called after the domain came back from a suspension (saved and restored, or migrated): the ring may
    /// be another one. Requests under way end with [`Error::Gone`]; watches are set again, and fire.
    ///
    /// # Errors
    /// As [`Xenstore::open`].
    pub fn resume(&self) -> Result<(), Error> {
        let (page, port) = attach(&self.platform, Param::StorePfn, Param::StoreEvtchn)?;
        {
            let mut inner = self.inner.borrow_mut();
            inner.page = page;
            inner.port = port;
            inner.reconnecting = false;
            inner.begin_anew();
            inner.watch_again();
        }
        self.handle_event();
        Ok(())
    }

    /// Pages that another domain has mapped although its device's connection has ended, counted after an attempt to
    /// take them back. They are not used until it lets go of them, or ends.
    pub fn retired(&self) -> usize {
        self.sweep();
        self.retired.borrow().len()
    }

    pub(crate) fn sweep(&self) {
        let mut all = self.retired.take();
        all.retain_mut(|r| !r.sweep(&self.platform));
        self.retired.borrow_mut().append(&mut all);
    }

    pub(crate) fn retire(&self, pages: Retired<P::Pages>) {
        self.retired.borrow_mut().push(pages);
    }

    pub(super) fn submit(&self, kind: MsgType, tx: u32, parts: &[&[u8]]) -> Result<u32, Error> {
        let id = {
            let mut inner = self.inner.borrow_mut();
            if let Some(e) = inner.failed {
                return Err(e);
            }
            if inner.slots.values().filter(|s| !s.abandoned).count() >= MAX_REQUESTS
                || inner.slots.len() >= MAX_SLOTS
            {
                return Err(Error::Busy);
            }
            if parts.iter().map(|p| p.len()).sum::<usize>() > PAYLOAD_MAX {
                return Err(Error::Invalid);
            }
            inner.send(kind, tx, parts, false)
        };
        self.handle_event();
        Ok(id)
    }

    fn poll_answer(&self, id: u32, waker: &Waker) -> Poll<Result<Vec<u8>, Error>> {
        self.handle_event();
        let mut inner = self.inner.borrow_mut();
        let Some(slot) = inner.slots.get_mut(&id) else {
            return Poll::Ready(Err(Error::Gone));
        };
        match slot.answer.take() {
            Some(answer) => {
                inner.slots.remove(&id);
                Poll::Ready(answer)
            }
            None => {
                set_waker(&mut slot.waker, waker);
                Poll::Pending
            }
        }
    }

    /// A request whose answer nobody waits for.
    fn send_only(&self, kind: MsgType, tx: u32, parts: &[&[u8]]) {
        {
            let mut inner = self.inner.borrow_mut();
            if inner.failed.is_some() {
                return;
            }
            inner.send(kind, tx, parts, true);
        }
        self.handle_event();
    }

    pub(super) fn end_transaction(&self, tx: u32) {
        self.send_only(MsgType::TransactionEnd, tx, &[b"F\0"]);
    }

    pub(super) fn add_watch(&self, path: &str) -> Result<(u32, Reply<'_, P>), Error> {
        let id = {
            let mut inner = self.inner.borrow_mut();
            if inner.watches.len() >= MAX_WATCHES {
                return Err(Error::Busy);
            }
            let id = inner.last_watch.wrapping_add(1);
            inner.last_watch = id;
            inner.watches.insert(id, WatchState::new(path));
            id
        };
        let token = alloc::format!("{id:x}");
        let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
        match self.request(MsgType::Watch, 0, &parts) {
            Ok(reply) => Ok((id, reply)),
            Err(e) => {
                self.inner.borrow_mut().watches.remove(&id);
                Err(e)
            }
        }
    }

    pub(super) fn remove_watch(&self, id: u32) {
        let Some(state) = self.inner.borrow_mut().watches.remove(&id) else {
            return;
        };
        let token = alloc::format!("{id:x}");
        let parts: [&[u8]; 4] = [state.path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
        self.send_only(MsgType::Unwatch, 0, &parts);
    }

    pub(super) fn poll_watch<R>(
        &self,
        id: u32,
        waker: &Waker,
        look: impl FnOnce(&mut WatchState) -> Option<R>,
    ) -> Poll<Result<R, Error>> {
        self.handle_event();
        let mut inner = self.inner.borrow_mut();
        let failed = inner.failed;
        let Some(state) = inner.watches.get_mut(&id) else {
            return Poll::Ready(Err(Error::Gone));
        };
        match (look(state), failed) {
            (Some(r), _) => Poll::Ready(Ok(r)),
            (None, Some(e)) => Poll::Ready(Err(e)),
            (None, None) => {
                set_waker(&mut state.waker, waker);
                Poll::Pending
            }
        }
    }

    pub(super) fn begin_reconnect(&self) -> Result<(), Error> {
        let mut inner = self.inner.borrow_mut();
        let features = inner.page.load32(wire::SERVER_FEATURES);
        if features & wire::SERVER_FEATURE_RECONNECTION == 0 {
            return Err(Error::Unsupported);
        }
        inner.begin_anew();
        inner.reconnecting = true;
        inner.page.store32(wire::CONNECTION, wire::RECONNECT);
        let _ = calls::event::send(self.platform.xen(), inner.port);
        Ok(())
    }

    pub(super) fn poll_reconnect(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.handle_event();
        let mut inner = self.inner.borrow_mut();
        if !inner.reconnecting {
            return Poll::Ready(inner.failed.map_or(Ok(()), Err));
        }
        set_waker(&mut inner.waker, cx.waker());
        Poll::Pending
    }
}

/// Keeps who is to be woken. Who only looks ([`NOBODY`]) takes nobody's place.
fn set_waker(place: &mut Option<Waker>, waker: &Waker) {
    if place.is_some() && waker.will_wake(NOBODY) {
        return;
    }
    if !place.as_ref().is_some_and(|w| w.will_wake(waker)) {
        *place = Some(waker.clone());
    }
}

impl<M: SharedMem> Inner<M> {
    fn send(&mut self, kind: MsgType, tx: u32, parts: &[&[u8]], abandoned: bool) -> u32 {
        // At most some dozens are in use, so a free one is near.
        let mut id = self.last_id.wrapping_add(1);
        while id == 0 || self.slots.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        self.last_id = id;
        let len = parts.iter().map(|p| p.len()).sum::<usize>();
        let head = XsdSockmsg {
            kind: kind.number(),
            req_id: id,
            tx_id: tx,
            len: len as u32,
        };
        let mut bytes = Vec::with_capacity(HEAD + len);
        bytes.extend_from_slice(head.as_bytes());
        parts.iter().for_each(|p| bytes.extend_from_slice(p));
        self.out.push_back(Message { id, bytes });
        let slot = Slot {
            kind,
            answer: None,
            waker: None,
            abandoned,
        };
        self.slots.insert(id, slot);
        id
    }

    /// Nobody waits for this answer any more.
    fn abandon(&mut self, id: u32) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.abandoned = true;
        slot.waker = None;
        if let Some(answer) = slot.answer.take() {
            let kind = slot.kind;
            self.slots.remove(&id);
            self.undo(kind, answer);
            return;
        }
        // Not on its way yet: it need not be sent.
        let started = usize::from(self.sent > 0);
        if let Some(at) = self.out.iter().position(|m| m.id == id)
            && at >= started
        {
            self.out.remove(at);
            self.slots.remove(&id);
        }
    }

    /// Ends what an answer that nobody takes has begun.
    fn undo(&mut self, kind: MsgType, answer: Result<Vec<u8>, Error>) {
        if let (MsgType::TransactionStart, Ok(id)) = (kind, answer)
            && let Some(tx) = super::decimal(id.strip_suffix(b"\0").unwrap_or(&id))
        {
            self.send(MsgType::TransactionEnd, tx, &[b"F\0"], true);
        }
    }

    fn wake(&mut self, waker: Option<Waker>) {
        self.woken.extend(waker);
    }

    /// Ends every request with an error.
    fn end_requests(&mut self, error: Error) {
        self.out.clear();
        self.sent = 0;
        self.input.clear();
        self.slots.retain(|_, s| !s.abandoned);
        for slot in self.slots.values_mut() {
            if slot.answer.is_none() {
                slot.answer = Some(Err(error));
                self.woken.extend(slot.waker.take());
            }
        }
    }

    fn begin_anew(&mut self) {
        self.end_requests(Error::Gone);
        self.failed = None;
    }

    fn watch_again(&mut self) {
        let all: Vec<(u32, alloc::string::String)> = self
            .watches
            .iter()
            .map(|(id, state)| (*id, state.path.clone()))
            .collect();
        for (id, path) in all {
            let token = alloc::format!("{id:x}");
            let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
            self.send(MsgType::Watch, 0, &parts, true);
        }
    }

    fn fail(&mut self, error: Error) {
        self.failed = Some(error);
        self.end_requests(error);
        for state in self.watches.values_mut() {
            self.woken.extend(state.waker.take());
        }
        let waker = self.waker.take();
        self.wake(waker);
    }

    fn pump(&mut self, xen: &impl Hypercall) {
        if self.reconnecting {
            if self.page.load32(wire::CONNECTION) != wire::CONNECTED {
                return;
            }
            self.reconnecting = false;
            let waker = self.waker.take();
            self.wake(waker);
            self.watch_again();
        }
        if self.failed.is_some() {
            return;
        }
        let features = self.page.load32(wire::SERVER_FEATURES);
        if features & wire::SERVER_FEATURE_ERROR != 0
            && self.page.load32(wire::ERROR) != wire::ERROR_NONE
        {
            return self.fail(Error::Protocol("xenstore: the server reports an error"));
        }
        for _ in 0..ROUNDS {
            match self.step() {
                Ok(false) => return,
                Ok(true) => {
                    let _ = calls::event::send(xen, self.port);
                }
                Err(e) => return self.fail(e),
            }
        }
    }

    /// Moves bytes out and in; whether any moved.
    fn step(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        while let Some(message) = self.out.front() {
            let n = REQ.write(
                &self.page,
                message.bytes.get(self.sent..).unwrap_or_default(),
            )?;
            self.sent += n;
            moved |= n > 0;
            if self.sent < message.bytes.len() {
                break;
            }
            self.out.pop_front();
            self.sent = 0;
        }
        if RSP.available(&self.page)? == 0 {
            return Ok(moved);
        }
        let mut buffer = [0; wire::RING_SIZE as usize];
        let n = RSP.read(&self.page, &mut buffer)?;
        let mut bytes = buffer.get(..n).unwrap_or_default();
        while !bytes.is_empty() {
            bytes = self.take(bytes)?;
        }
        Ok(moved || n > 0)
    }

    /// Takes bytes of the message that is arriving, and the message when it is complete; the rest is left.
    fn take<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Error> {
        let mut missing = HEAD.saturating_sub(self.input.len());
        if missing == 0 {
            missing = self.missing()?;
        }
        let (now, rest) = bytes.split_at(missing.min(bytes.len()));
        self.input.extend_from_slice(now);
        if self.input.len() >= HEAD && self.missing()? == 0 {
            let message = take(&mut self.input);
            if let Ok((head, payload)) = XsdSockmsg::read_from_prefix(&message) {
                self.message(&head, payload);
            }
        }
        Ok(rest)
    }

    /// Bytes that are missing of a message whose head is complete.
    fn missing(&self) -> Result<usize, Error> {
        let Ok((head, payload)) = XsdSockmsg::read_from_prefix(&self.input) else {
            return Ok(HEAD);
        };
        let len = head.len as usize;
        if len > PAYLOAD_MAX {
            return Err(Error::Protocol("xenstore: a message is too long"));
        }
        Ok(len.saturating_sub(payload.len()))
    }

    fn message(&mut self, head: &XsdSockmsg, payload: &[u8]) {
        if head.kind == MsgType::WatchEvent.number() {
            return self.event(payload);
        }
        // An answer to nothing means nothing.
        let Some(slot) = self.slots.get_mut(&head.req_id) else {
            return;
        };
        if slot.answer.is_some() {
            return;
        }
        let answer = if head.kind == slot.kind.number() {
            Ok(payload.to_vec())
        } else if head.kind == MsgType::Error.number() {
            let name = payload.strip_suffix(b"\0").unwrap_or(payload);
            Err(Error::Store(wire::errno_of(name)))
        } else {
            Err(Error::Protocol("xenstore: an answer of another kind"))
        };
        if slot.abandoned {
            let kind = slot.kind;
            self.slots.remove(&head.req_id);
            self.undo(kind, answer);
        } else {
            slot.answer = Some(answer);
            let waker = slot.waker.take();
            self.wake(waker);
        }
    }

    fn event(&mut self, payload: &[u8]) {
        let mut parts = payload.split(|b| *b == 0);
        let (Some(path), Some(token)) = (parts.next(), parts.next()) else {
            return;
        };
        let (Ok(path), Ok(token)) = (core::str::from_utf8(path), core::str::from_utf8(token))
        else {
            return;
        };
        let id = u32::from_str_radix(token, 16).unwrap_or(0);
        if let Some(state) = self.watches.get_mut(&id) {
            state.push(path);
            let waker = state.waker.take();
            self.wake(waker);
        }
    }
}
