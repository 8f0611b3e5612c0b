// SPDX-License-Identifier: MIT OR Apache-2.0
//! Networks: the front end of `io/netif.h`.
//!
//! ```
//! use pv_frontends::{Error, Platform, net::{Config, Vif}, xenbus, xenstore::Xenstore};
//!
//! fn echo<P: Platform>(xs: &Xenstore<P>) -> Result<(), Error> {
//!     let deadline = xs.platform().now() + 10_000_000_000;
//!     let store = xs.by(deadline);
//!     let ids = store.run(xenbus::devices(&store.access(), "vif"))?;
//!     let id = *ids.first().ok_or(Error::NoDevice)?;
//!     let vif = store.run(Vif::open(store.access(), id, Config::default()))?;
//!     let mut frame = vec![0; vif.info().max_frame];
//!     let got = vif.by(deadline).recv(&mut frame)?;
//!     vif.by(deadline).send(&frame[..got.len])
//! }
//! ```
//!
//! Frames are Ethernet frames without their check sequence. Three ways to use an interface:
//!
//! * [`Vif::by`] blocks until a deadline: [`send`](Blocking::send), [`recv`](Blocking::recv); the futures of the same
//!   names are the interface's own.
//! * [`Vif::try_send`] and [`Vif::try_recv`] do not wait; [`Vif::kick`] shows the back end all frames at once.
//! * `Phy` is the `Device` of `smoltcp` (feature `smoltcp`).
//!
//! # How data go
//!
//! Through pages of the interface's own, which are granted for as long as the connection lasts; the back end never sees
//! other memory of the kernel's. The price is a copy. A frame of several pages is sent as several parts, which needs
//! a back end that knows them (`feature-sg`).
//!
//! # Multicast
//!
//! A back end gives every interface all multicast frames, or, with [`Config::multicast_control`], only those to the addresses
//! that [`Vif::join`] named ([`multicast`] makes one of an IP address). IPv6 needs those of all nodes and of the own address's
//! solicited node.
//!
//! # When the back end fails
//!
//! When it closes, vanishes or breaks the protocol, what was received can still be taken, and then everything ends with an
//! error; [`Vif::reconnect`] begins anew, with new rings and new pages. Frames that were under way are lost, as frames may
//! be on any network.

#[cfg(feature = "smoltcp")]
mod phy;
mod queue;

use crate::platform::NOBODY;
use crate::share::Line;
use crate::xenbus::Frontend;
use crate::xenstore::Access;
use crate::{Error, Platform, block_on};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::mem::take;
use core::net::IpAddr;
use core::task::{Context, Poll, Waker};
use guest_abi::io::netif::{MAX_TX_SIZE, NetifExtraInfo, RX_ENTRIES, TX_ENTRIES};
use guest_abi::io::xenbus::State;
use guest_abi::{Errno, PAGE_SIZE, Port};
use queue::{Answer, HEADER, Queue};

#[cfg(feature = "smoltcp")]
pub use phy::Phy;

/// Bytes of a frame beside what the MTU counts: addresses, type, a VLAN's tag.
const FRAME_EXTRA: usize = 18;
/// Smallest MTU that makes sense (RFC 791).
const MIN_MTU: usize = 68;
const DEFAULT_MTU: usize = 1500;
/// What another kernel may have written and this one might not. Of the shapes of a connection's keys, a back end takes
/// the one that it finds first.
const LEFTOVERS: &[&str] = &[
    "event-channel",
    "event-channel-tx",
    "event-channel-rx",
    "ctrl-ring-ref",
    "event-channel-ctrl",
    "xdp-headroom",
];

/// How much an interface uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Pairs of rings, each with its event channels; at most what the back end offers. More than one is of use where
    /// a back end serves each on a CPU of its own.
    pub queues: u16,
    /// Pages to receive into, for each queue; at most 256, and at least what the largest frame needs.
    pub receive_pages: u16,
    /// Pages to send from, for each queue; at most 256, and at least what the largest frame needs.
    pub send_pages: u16,
    /// Frames may come with a blank TCP or UDP checksum ([`Checksum::Blank`]): those of other domains of the machine,
    /// which then need not be summed up at all.
    pub blank_checksums: bool,
    /// Of multicast frames only those shall come that [`Vif::join`] asked for, where the back end can see to that.
    pub multicast_control: bool,
}

impl Default for Config {
    /// One queue, 256 KiB to receive and as much to send, every checksum in place, all multicast frames.
    fn default() -> Self {
        Self {
            queues: 1,
            receive_pages: 64,
            send_pages: 64,
            blank_checksums: false,
            multicast_control: false,
        }
    }
}

/// What an interface is and can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Most bytes of a packet: of a frame without its 14 bytes of addresses and type.
    pub mtu: usize,
    /// Most bytes of a frame: the MTU, addresses, type and a VLAN's tag.
    pub max_frame: usize,
    /// Pairs of rings.
    pub queues: u16,
    /// Sending and receiving have event channels of their own.
    pub split_channels: bool,
    /// Frames may have several parts.
    pub scatter_gather: bool,
    /// Frames with TCP or UDP over IPv4 may be sent with [`Checksum::Blank`].
    pub blank_ipv4: bool,
    /// Frames with TCP or UDP over IPv6 may be sent with [`Checksum::Blank`].
    pub blank_ipv6: bool,
    /// Of multicast frames only those come that [`Vif::join`] asked for.
    pub multicast_control: bool,
}

/// What is known of a frame's TCP or UDP checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is in the frame, and nobody looked whether it is right.
    #[default]
    Present,
    /// It is in the frame, and right.
    Validated,
    /// The frame never left the machine and is right as it is, but in the checksum's place is only the sum of the
    /// pseudo-header. Whoever sends it on to elsewhere fills the checksum in.
    Blank,
}

/// A frame that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub len: usize,
    /// What is known of its checksum.
    pub checksum: Checksum,
}

/// What went through an interface since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames that the back end took.
    pub sent: u64,
    /// Frames that the back end says it dropped or could not send.
    pub send_errors: u64,
    /// Frames that were received.
    pub received: u64,
    /// Frames that the back end says it could not deliver, and such as are too short or too long.
    pub receive_errors: u64,
}

/// A network interface that is connected.
pub struct Vif<'x, P: Platform> {
    config: Config,
    front: RefCell<Frontend<'x, P>>,
    info: Cell<Info>,
    link: RefCell<Link<'x, P>>,
    /// The multicast addresses that were joined.
    groups: RefCell<Vec<[u8; 6]>>,
}

/// An interface, blocking until a deadline. From [`Vif::by`].
pub struct Blocking<'d, 'x, P: Platform> {
    vif: &'d Vif<'x, P>,
    deadline: u64,
}

impl<P: Platform> core::fmt::Debug for Vif<'_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vif")
            .field("info", &self.info.get())
            .finish_non_exhaustive()
    }
}

struct Link<'x, P: Platform> {
    queues: Vec<Queue<'x, P>>,
    /// The queue to receive from next.
    turn: usize,
    stats: Stats,
    failed: Option<Error>,
    /// Who waits for a frame or for room.
    waiting: Vec<Waker>,
    woken: Vec<Waker>,
}

impl<'x, P: Platform> Vif<'x, P> {
    /// Connects with an interface (`device/vif/ID`; [`xenbus::devices`](crate::xenbus::devices) lists them).
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::BadValue`] when the store describes no interface; [`Error::Unsupported`] when the
    /// back end cannot copy to the front end's pages; [`Error::Gone`] when it closes meanwhile; [`Error::NoMemory`]. It
    /// waits for the back end as long as it takes: give it a deadline.
    pub async fn open(store: Access<'x, P>, id: u32, config: Config) -> Result<Self, Error> {
        let mut front = Frontend::open(store, "vif", id).await?;
        let (link, info) = connect(&mut front, &config).await?;
        Ok(Self {
            config,
            front: RefCell::new(front),
            info: Cell::new(info),
            link: RefCell::new(link),
            groups: RefCell::default(),
        })
    }

    /// Begins anew after the back end failed or restarted, with the multicast addresses that were joined. What can be done may
    /// have changed ([`Vif::info`]).
    ///
    /// # Errors
    /// As [`Vif::open`]; as [`Vif::join`], when it is connected but for the addresses.
    pub async fn reconnect(&mut self) -> Result<(), Error> {
        self.link.get_mut().fail(Error::Gone);
        let (mut link, info) = connect(self.front.get_mut(), &self.config).await?;
        link.stats = self.link.get_mut().stats;
        self.link = RefCell::new(link);
        self.info.set(info);
        let groups = self.groups.get_mut().clone();
        for group in groups {
            self.ask(true, group).await?;
        }
        Ok(())
    }

    /// Connects anew after the domain was restored or moved ([`shutdown`](crate::shutdown) says what comes before).
    ///
    /// # Errors
    /// As [`Vif::open`].
    pub async fn resume(&mut self) -> Result<(), Error> {
        for queue in &mut self.link.get_mut().queues {
            queue.lines().for_each(Line::lost);
        }
        self.link.get_mut().fail(Error::Gone);
        self.front.get_mut().resume().await?;
        self.reconnect().await
    }

    /// Ends the connection in good order: waits until the back end has let go of everything. Frames under way may be
    /// lost.
    ///
    /// # Errors
    /// xenstore's. It waits for the back end as long as it takes: give it a deadline. When that cuts it short, what
    /// the back end still has mapped is kept from other use.
    pub async fn close(self) -> Result<(), Error> {
        self.front.into_inner().close().await
    }

    /// What the interface is and can do.
    pub fn info(&self) -> Info {
        self.info.get()
    }

    /// What went through it.
    pub fn stats(&self) -> Stats {
        self.link.borrow().stats
    }

    /// Its event channels, one or two for each queue. When one fires, [`Vif::handle_event`] is to be called; blocking
    /// calls and the polls of futures do so by themselves.
    pub fn ports(&self) -> Vec<Port> {
        let link = self.link.borrow();
        let ports = link.queues.iter().flat_map(|q| q.lines().map(Line::port));
        ports.collect()
    }

    /// Why the interface does not work any more, if so.
    pub fn failed(&self) -> Option<Error> {
        self.link.borrow().failed
    }

    /// Takes what the back end did, and wakes whoever waited for it.
    pub fn handle_event(&self) {
        let mut cx = Context::from_waker(NOBODY);
        self.poll(&mut cx);
    }

    fn poll(&self, cx: &mut Context<'_>) {
        let gone = Frontend::is_gone(&self.front, cx);
        let woken = {
            let mut link = self.link.borrow_mut();
            link.take_responses(false);
            if gone && link.failed.is_none() {
                link.fail(Error::Gone);
            }
            take(&mut link.woken)
        };
        woken.into_iter().for_each(Waker::wake);
    }

    fn submit(&self, frame: &[u8], checksum: Checksum) -> Result<(), Error> {
        if !(HEADER..=self.info.get().max_frame).contains(&frame.len()) {
            return Err(Error::Invalid);
        }
        let mut result = self.link.borrow_mut().submit(frame, checksum);
        if result == Err(Error::Busy) && self.make_room() {
            result = self.link.borrow_mut().submit(frame, checksum);
        }
        result
    }

    /// Takes what the back end did, and asks for an event at the next frame that it takes from the guest. Whether
    /// anything was taken.
    fn make_room(&self) -> bool {
        let (any, woken) = {
            let mut link = self.link.borrow_mut();
            (link.take_responses(true), take(&mut link.woken))
        };
        woken.into_iter().for_each(Waker::wake);
        any
    }

    /// Sends a frame if there is room; `frame` is free again at once. The back end sees it with the next
    /// [`Vif::kick`].
    ///
    /// # Errors
    /// [`Error::Busy`] when the pages or the ring are used up: an event will tell when that changes.
    /// [`Error::Invalid`] for a frame that is shorter than its header or longer than [`Info::max_frame`]. Why the
    /// interface failed.
    pub fn try_send(&self, frame: &[u8], checksum: Checksum) -> Result<(), Error> {
        self.submit(frame, checksum)
    }

    /// Takes a frame that was received, if there is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `to` is too short for it, which it stays for; why the interface failed, when no frame
    /// is left.
    pub fn try_recv(&self, to: &mut [u8]) -> Result<Option<Received>, Error> {
        self.handle_event();
        self.link.borrow_mut().receive(to)
    }

    /// Bytes of the frame that [`Vif::try_recv`] would take, if there is one.
    pub fn next_len(&self) -> Option<usize> {
        self.handle_event();
        let link = self.link.borrow();
        link.next_queue()
            .and_then(|n| link.queues.get(n)?.next_len())
    }

    /// Whether a frame of that many bytes can be sent now. If not, an event will tell when that changes.
    pub fn has_room(&self, bytes: usize) -> bool {
        let look = || self.link.borrow().has_room(bytes);
        look() || (self.make_room() && look())
    }

    /// Shows the back end the frames that were sent, with one event for all of a queue if it wants one.
    pub fn kick(&self) {
        self.link
            .borrow_mut()
            .queues
            .iter_mut()
            .for_each(Queue::kick);
    }

    /// Sends a frame, when there is room; that it was sent is not waited for.
    ///
    /// # Errors
    /// As [`Vif::try_send`], but for [`Error::Busy`].
    pub async fn send(&self, frame: &[u8]) -> Result<(), Error> {
        self.send_with(frame, Checksum::Present).await
    }

    /// Sends a frame whose checksum is as said.
    ///
    /// # Errors
    /// As [`Vif::send`].
    pub async fn send_with(&self, frame: &[u8], checksum: Checksum) -> Result<(), Error> {
        poll_fn(|cx| {
            self.poll(cx);
            let result = self.submit(frame, checksum);
            self.kick();
            if result == Err(Error::Busy) {
                self.link.borrow_mut().note(cx.waker());
                return Poll::Pending;
            }
            Poll::Ready(result)
        })
        .await
    }

    /// Waits for a frame.
    ///
    /// # Errors
    /// As [`Vif::try_recv`].
    pub async fn recv(&self, to: &mut [u8]) -> Result<Received, Error> {
        poll_fn(|cx| {
            self.poll(cx);
            let mut link = self.link.borrow_mut();
            match link.receive(to) {
                Ok(Some(frame)) => Poll::Ready(Ok(frame)),
                Ok(None) => {
                    link.note(cx.waker());
                    Poll::Pending
                }
                Err(e) => Poll::Ready(Err(e)),
            }
        })
        .await
    }

    /// Has frames to a multicast address come, until [`Vif::leave`]. Where all come ([`Info::multicast_control`]), nothing is
    /// to be done, but if the back end is another after a [`Vif::reconnect`], it is done then.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no multicast address; [`Error::Failed`] when the back end has no room for it (Linux's and
    /// Paravane's have for 64); why the interface failed.
    pub async fn join(&self, group: [u8; 6]) -> Result<(), Error> {
        self.set_group(true, group).await
    }

    /// Has frames to a multicast address not come any more.
    ///
    /// # Errors
    /// As [`Vif::join`].
    pub async fn leave(&self, group: [u8; 6]) -> Result<(), Error> {
        self.set_group(false, group).await
    }

    async fn set_group(&self, add: bool, group: [u8; 6]) -> Result<(), Error> {
        if group[0] & 1 == 0 {
            return Err(Error::Invalid);
        }
        if self.groups.borrow().contains(&group) != add {
            self.ask(add, group).await?;
        }
        let mut groups = self.groups.borrow_mut();
        groups.retain(|g| *g != group);
        if add {
            groups.push(group);
        }
        Ok(())
    }

    /// Asks the back end for a multicast address, or not to have it, and waits for its answer.
    async fn ask(&self, add: bool, group: [u8; 6]) -> Result<(), Error> {
        if !self.info.get().multicast_control {
            return Ok(());
        }
        let mut answer = None;
        poll_fn(|cx| {
            self.poll(cx);
            // Has the back end tell of the next answer.
            self.make_room();
            let mut link = self.link.borrow_mut();
            if answer.is_none() {
                match link.ask(NetifExtraInfo::mcast(add, group)) {
                    Err(Error::Busy) => {}
                    Err(e) => return Poll::Ready(Err(e)),
                    Ok(asked) => answer = Some(asked),
                }
            }
            match (answer.as_ref().and_then(|a| a.get()), link.failed) {
                (Some(true), _) => Poll::Ready(Ok(())),
                (Some(false), _) => Poll::Ready(Err(Error::Failed)),
                (None, Some(e)) => Poll::Ready(Err(e)),
                (None, None) => {
                    link.note(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The interface, blocking until `deadline` ([`Platform::now`]).
    pub fn by(&self, deadline: u64) -> Blocking<'_, 'x, P> {
        Blocking {
            vif: self,
            deadline,
        }
    }

    fn platform(&self) -> &'x P {
        self.front.borrow().store().xenstore().platform()
    }
}

impl<P: Platform> Blocking<'_, '_, P> {
    fn run<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        block_on(self.vif.platform(), self.deadline, future)
    }

    /// [`Vif::send`].
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as there.
    pub fn send(&self, frame: &[u8]) -> Result<(), Error> {
        self.run(self.vif.send(frame))
    }

    /// [`Vif::send_with`].
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as there.
    pub fn send_with(&self, frame: &[u8], checksum: Checksum) -> Result<(), Error> {
        self.run(self.vif.send_with(frame, checksum))
    }

    /// [`Vif::recv`].
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as there.
    pub fn recv(&self, to: &mut [u8]) -> Result<Received, Error> {
        self.run(self.vif.recv(to))
    }

    /// [`Vif::join`].
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as there.
    pub fn join(&self, group: [u8; 6]) -> Result<(), Error> {
        self.run(self.vif.join(group))
    }

    /// [`Vif::leave`].
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as there.
    pub fn leave(&self, group: [u8; 6]) -> Result<(), Error> {
        self.run(self.vif.leave(group))
    }
}

impl<P: Platform> Link<'_, P> {
    /// The queue for a frame: frames of one flow keep to one, so that they keep their order.
    fn queue_of(&self, frame: &[u8]) -> usize {
        match self.queues.len() {
            0 | 1 => 0,
            n => queue::flow(frame) as usize % n,
        }
    }

    fn submit(&mut self, frame: &[u8], checksum: Checksum) -> Result<(), Error> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        let n = self.queue_of(frame);
        let queue = self.queues.get_mut(n).ok_or(Error::Gone)?;
        queue.submit(frame, checksum)
    }

    /// Asks the back end about a multicast address, and shows it that.
    fn ask(&mut self, info: NetifExtraInfo) -> Result<Answer, Error> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        let queue = self.queues.first_mut().ok_or(Error::Gone)?;
        let answer = queue.ask(info)?;
        queue.kick();
        Ok(answer)
    }

    /// Whether any frame of that length can be sent, whatever its queue.
    fn has_room(&self, bytes: usize) -> bool {
        self.failed.is_none() && self.queues.iter().all(|q| q.has_room(bytes))
    }

    /// The next queue that has a frame.
    fn next_queue(&self) -> Option<usize> {
        let n = self.queues.len();
        let mut order = (0..n).map(|i| (self.turn + i) % n);
        order.find(|i| self.queues.get(*i).is_some_and(|q| q.next_len().is_some()))
    }

    fn receive(&mut self, to: &mut [u8]) -> Result<Option<Received>, Error> {
        let Some(n) = self.next_queue() else {
            return self.failed.map_or(Ok(None), Err);
        };
        let frame = match self.queues.get_mut(n) {
            Some(queue) => queue.receive(to)?,
            None => None,
        };
        self.turn = n + 1;
        if self.failed.is_none()
            && let Some(queue) = self.queues.get_mut(n)
        {
            queue.refill();
        }
        Ok(frame)
    }

    /// Takes what the back end did; `want_room`: and asks for an event at the next frame that it took from the guest.
    /// Whether anything was taken.
    fn take_responses(&mut self, want_room: bool) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let mut any = false;
        let mut result = Ok(());
        for queue in &mut self.queues {
            result = queue
                .take_responses(want_room, &mut self.stats)
                .map(|n| any |= n);
            if result.is_err() {
                break;
            }
        }
        if any {
            self.woken.append(&mut self.waiting);
        }
        if let Err(e) = result {
            self.fail(e);
        }
        any
    }

    /// Ends everything with an error. The pages stay with the back end until the connection is dropped.
    fn fail(&mut self, error: Error) {
        self.failed = Some(error);
        self.woken.append(&mut self.waiting);
    }

    fn note(&mut self, waker: &Waker) {
        if !self.waiting.iter().any(|w| w.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }
}

/// The Ethernet address of a multicast address (RFC 1112, RFC 2464); `None` when it is none.
#[must_use]
pub fn multicast(ip: IpAddr) -> Option<[u8; 6]> {
    ip.is_multicast().then(|| match ip {
        IpAddr::V4(ip) => {
            let [_, b, c, d] = ip.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            [0x33, 0x33, a, b, c, d]
        }
    })
}

/// An Ethernet address as text, `00:16:3e:12:34:56`.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| matches!(p.len(), 1 | 2))?;
        *byte = u8::from_str_radix(part, 16)
            .ok()
            .filter(|_| !part.starts_with('+'))?;
    }
    parts.next().is_none().then_some(mac)
}

/// Reads what the store says of the interface.
async fn info<P: Platform>(front: &Frontend<'_, P>, config: &Config) -> Result<Info, Error> {
    if !front.offers("feature-rx-copy").await? {
        return Err(Error::Unsupported);
    }
    let (store, node) = (front.store(), front.node());
    let text = store.read_text(&format!("{node}/mac")).await;
    let text = text.map_err(|e| match e {
        Error::Store(Errno::ENOENT) => Error::BadValue,
        e => e,
    })?;
    let scatter_gather = front.offers("feature-sg").await?;
    // The toolstack's script leaves it in either folder.
    let mtu = match store.read_number(&format!("{node}/mtu")).await {
        Ok(mtu) => Some(mtu),
        Err(Error::Store(Errno::ENOENT)) => front.offer("mtu").await?,
        Err(e) => return Err(e),
    };
    let mtu = mtu.unwrap_or(DEFAULT_MTU);
    if !(MIN_MTU..=MAX_TX_SIZE - FRAME_EXTRA).contains(&mtu) {
        return Err(Error::BadValue);
    }
    let mtu = if scatter_gather {
        mtu
    } else {
        mtu.min(PAGE_SIZE - FRAME_EXTRA)
    };
    let queues = front.offer("multi-queue-max-queues").await?.unwrap_or(1);
    Ok(Info {
        mac: mac(&text).ok_or(Error::BadValue)?,
        mtu,
        max_frame: mtu + FRAME_EXTRA,
        queues: config.queues.min(queues).max(1),
        split_channels: front.offers("feature-split-event-channels").await?,
        scatter_gather,
        blank_ipv4: !front.offers("feature-no-csum-offload").await?,
        blank_ipv6: front.offers("feature-ipv6-csum-offload").await?,
        multicast_control: config.multicast_control
            && front.offers("feature-multicast-control").await?,
    })
}

/// Makes rings and pages, tells the back end, and waits until it has them.
async fn connect<'x, P: Platform>(
    front: &mut Frontend<'x, P>,
    config: &Config,
) -> Result<(Link<'x, P>, Info), Error> {
    let xs = front.store().xenstore();
    xs.sweep();
    front.restart().await?;
    let info = info(front, config).await?;
    let to = front.backend_dom();
    let least = info.max_frame.div_ceil(PAGE_SIZE) + 2;
    let pages = |n: u16, entries: u32| usize::from(n).max(least).min(entries as usize);

    let mut keys: Vec<(String, String)> = Vec::new();
    let mut key = |name: String, value: String| keys.push((name, value));
    let on = |yes: bool| u8::from(yes).to_string();
    for (name, value) in [
        ("request-rx-copy", true),
        ("feature-rx-notify", true),
        ("feature-sg", true),
        ("feature-no-csum-offload", !config.blank_checksums),
        ("feature-ipv6-csum-offload", config.blank_checksums),
        // A kernel before this one may have said otherwise.
        ("feature-gso-tcpv4", false),
        ("feature-gso-tcpv6", false),
        ("request-multicast-control", info.multicast_control),
    ] {
        key(name.into(), on(value));
    }
    key("multi-queue-num-queues".into(), info.queues.to_string());
    let mut queues = Vec::new();
    for n in 0..info.queues {
        let queue = Queue::new(
            xs,
            to,
            info.split_channels,
            pages(config.send_pages, TX_ENTRIES),
            pages(config.receive_pages, RX_ENTRIES),
            info.max_frame,
        )?;
        let at = if info.queues == 1 {
            String::new()
        } else {
            format!("queue-{n}/")
        };
        let (tx, rx) = queue.grefs();
        key(format!("{at}tx-ring-ref"), tx.to_string());
        key(format!("{at}rx-ring-ref"), rx.to_string());
        let names: &[&str] = if info.split_channels {
            &["event-channel-tx", "event-channel-rx"]
        } else {
            &["event-channel"]
        };
        for (name, line) in names.iter().zip(queue.lines()) {
            key(format!("{at}{name}"), line.port().to_string());
        }
        queues.push(queue);
    }
    front
        .forget(|key| LEFTOVERS.contains(&key) || key.starts_with("queue-"))
        .await?;
    front.switch(State::Connected, &keys).await?;
    front.connected().await?;
    // What was shown before the back end listened.
    queues.iter().flat_map(Queue::lines).for_each(Line::send);
    let link = Link {
        queues,
        turn: 0,
        stats: Stats::default(),
        failed: None,
        waiting: Vec::new(),
        woken: Vec::new(),
    };
    Ok((link, info))
}

#[cfg(test)]
mod tests {
    use super::{mac, multicast};

    #[test]
    fn multicast_addresses() {
        for (ip, mac) in [
            ("224.0.0.251", Some([1, 0, 0x5e, 0, 0, 0xfb])),
            ("239.255.1.2", Some([1, 0, 0x5e, 0x7f, 1, 2])),
            ("10.0.0.1", None),
            ("255.255.255.255", None),
            ("ff02::1", Some([0x33, 0x33, 0, 0, 0, 1])),
            (
                "ff02::1:ff12:3456",
                Some([0x33, 0x33, 0xff, 0x12, 0x34, 0x56]),
            ),
            ("fe80::1", None),
        ] {
            assert_eq!(multicast(ip.parse().unwrap()), mac, "{ip}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(
            mac("00:16:3e:12:Ab:ff"),
            Some([0, 0x16, 0x3e, 0x12, 0xab, 0xff])
        );
        for bad in [
            "",
            "00:16:3e:12:34",
            "00:16:3e:12:34:56:78",
            "00:16:3e:12:34:+6",
            "00:16:3e:12:34:056",
            "00:16:3e:12:34:",
            "00-16-3e-12-34-56",
            "00:16:3e:12:34:5g",
        ] {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }
}
