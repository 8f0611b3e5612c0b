// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections: what is between the store and one of its clients.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_abi::DomId;
use guest_abi::io::xs_wire::{MsgType, XsdSockmsg};
use zerocopy::{FromBytes, IntoBytes};

use crate::perm::Who;
use crate::quota::Quota;
use crate::tree::Overlay;
/// Bytes of a message's head.
pub(crate) const HEAD: usize = size_of::<XsdSockmsg>();

/// What an open transaction is charged for beside what it holds.
pub(crate) const OPEN: u64 = 64;

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnId {
    /// A domain, over its ring.
    Domain(DomId),
    /// A part of the control domain, from [`crate::Store::open`].
    Local(u32),
}

/// A watch that fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What changed, in the form (absolute or relative) in which the watch was set.
    pub path: String,
    /// The watch's token.
    pub token: Arc<str>,
}

impl Event {
    /// Bytes of the event's payload on the wire.
    pub(crate) fn wire_len(&self) -> usize {
        self.path.len() + self.token.len() + 2
    }
}

/// A message that waits for the client.
#[derive(Debug)]
enum Message {
    Reply(Vec<u8>),
    Event(Event),
}

/// One client's state.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) who: Who,
    /// Messages to the client, oldest first.
    queue: VecDeque<Message>,
    replies: usize,
    events: usize,
    event_bytes: usize,
    /// The message that is on its way, and how much of it has gone.
    sending: Vec<u8>,
    sent: usize,
    /// The request that is arriving, head included.
    pub(crate) input: Vec<u8>,
    /// Why the store does not serve the ring any more: a `xs_wire::ERROR_*`.
    pub(crate) failed: Option<u32>,
    /// The ring's feature word has been set.
    pub(crate) advertised: bool,
    pub(crate) transactions: BTreeMap<u32, Overlay>,
    next_transaction: u32,
    pub(crate) watches: u32,
    pub(crate) watch_bytes: u64,
    /// Watches that fired and could not be queued; each is marked.
    pub(crate) missed: u32,
    /// What of [`Connection::charged`] is in `Clients::held`.
    pub(crate) counted: u64,
}

impl Connection {
    pub(crate) fn new(who: Who) -> Self {
        Self {
            who,
            queue: VecDeque::new(),
            replies: 0,
            events: 0,
            event_bytes: 0,
            sending: Vec::new(),
            sent: 0,
            input: Vec::new(),
            failed: None,
            advertised: false,
            transactions: BTreeMap::new(),
            next_transaction: 1,
            watches: 0,
            watch_bytes: 0,
            missed: 0,
            counted: 0,
        }
    }

    /// Whether a further request may be read: a client that leaves its replies where they are has to
    /// wait.
    pub(crate) fn accepts(&self, quota: &Quota) -> bool {
        let waiting = self.replies + usize::from(!self.sending.is_empty());
        self.failed.is_none() && waiting < quota.outstanding.max(1)
    }

    /// The head of the request that is arriving, once it is there.
    pub(crate) fn head(&self) -> Option<XsdSockmsg> {
        XsdSockmsg::read_from_prefix(&self.input)
            .ok()
            .map(|(head, _)| head)
    }

    /// Bytes that are missing of its head, or else of its payload.
    pub(crate) fn missing(&self) -> usize {
        let all = HEAD + self.head().map_or(0, |h| h.len as usize);
        all.saturating_sub(self.input.len())
    }

    pub(crate) fn reply(&mut self, head: XsdSockmsg, payload: &[u8]) {
        let mut bytes = Vec::with_capacity(HEAD + payload.len());
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(payload);
        self.queue.push_back(Message::Reply(bytes));
        self.replies += 1;
    }

    /// Queues an event, unless the same waits already. False if there is no room for it.
    pub(crate) fn event(&mut self, event: Event, quota: &Quota) -> bool {
        let same = |m: &Message| matches!(m, Message::Event(e) if *e == event);
        if self.queue.iter().any(same) {
            return true;
        }
        let bytes = self.event_bytes.saturating_add(event.wire_len());
        if self.events > 0 && (self.events >= quota.events || bytes > quota.event_bytes) {
            return false;
        }
        self.events += 1;
        self.event_bytes = bytes;
        self.queue.push_back(Message::Event(event));
        true
    }

    pub(crate) fn has_events(&self) -> bool {
        self.events > 0
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.sending.is_empty() || !self.queue.is_empty()
    }

    /// The next event, for a client that has no replies.
    pub(crate) fn pop_event(&mut self) -> Option<Event> {
        match self.pop()? {
            Message::Event(event) => Some(event),
            Message::Reply(_) => None,
        }
    }

    fn pop(&mut self) -> Option<Message> {
        let message = self.queue.pop_front()?;
        match &message {
            Message::Reply(_) => self.replies = self.replies.saturating_sub(1),
            Message::Event(event) => {
                self.events = self.events.saturating_sub(1);
                self.event_bytes = self.event_bytes.saturating_sub(event.wire_len());
            }
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
        Some(message)
    }

    /// Moves as much output into `buf` as there is and fits; returns how much.
    pub(crate) fn output(&mut self, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            if self.sending.is_empty() {
                match self.pop() {
                    Some(Message::Reply(bytes)) => self.sending = bytes,
                    Some(Message::Event(event)) => self.sending = encode(&event),
                    None => break,
                }
                self.sent = 0;
            }
            let from = self.sending.get(self.sent..).unwrap_or_default();
            let n = from.len().min(rest.len());
            for (to, byte) in rest.iter_mut().zip(from) {
                *to = *byte;
            }
            done += n;
            self.sent += n;
            if self.sent >= self.sending.len() {
                self.sending = Vec::new();
            }
        }
        done
    }

    /// Opens a transaction and returns its number.
    pub(crate) fn start(&mut self) -> u32 {
        // At most `Quota::transactions` numbers are taken, so a free one is near. Domain 0 has no
        // quota, but cannot hold 2^32 transactions in memory.
        while self.next_transaction == 0 || self.transactions.contains_key(&self.next_transaction) {
            self.next_transaction = self.next_transaction.wrapping_add(1);
        }
        let id = self.next_transaction;
        self.next_transaction = id.wrapping_add(1);
        self.transactions.insert(id, Overlay::default());
        id
    }

    /// Bytes charged for watches and open transactions.
    pub(crate) fn charged(&self) -> u64 {
        let open = self.transactions.values().map(|t| t.cost + OPEN).sum();
        self.watch_bytes.saturating_add(open)
    }

    /// Bytes in buffers.
    pub(crate) fn queued(&self) -> usize {
        let replies = self.queue.iter().map(|m| match m {
            Message::Reply(bytes) => bytes.len(),
            Message::Event(_) => 0,
        });
        replies.sum::<usize>() + self.event_bytes + self.sending.len() + self.input.len()
    }
}

/// An event as it goes over the wire.
fn encode(event: &Event) -> Vec<u8> {
    let len = event.wire_len();
    let head = XsdSockmsg {
        kind: MsgType::WatchEvent.number(),
        req_id: 0,
        tx_id: 0,
        len: len as u32,
    };
    let mut bytes = Vec::with_capacity(HEAD + len);
    bytes.extend_from_slice(head.as_bytes());
    for text in [event.path.as_str(), &event.token] {
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
    }
    bytes
}
