// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control domain's own place on the default bridge: an address, an answer to ping, and a page that shows how
//! things are. Nothing can be changed by it.

use crate::exec::{Notify, yield_now};
use crate::host::Dom0;
use crate::ip::{Address, Source};
use crate::status::{self, Asked, MAX_HEAD};
use alloc::format;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use backends::bridge::{Mac, PortId};
use backends::net::{Checksum, Frame, Waiting};
use core::cell::{Cell, RefCell};
use el1::time;
use embassy_futures::select::select;
use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};
use toolstack::cli;
use toolstack::host::{DEFAULT_BRIDGE, Host};
use toolstack::life::Toolstack;

/// Where the page is served.
const PORT: u16 = 80;
/// Connections at a time; more are refused.
const PLACES: usize = 8;
/// Bytes of a connection that wait to be sent.
const SEND_BUFFER: usize = 16 << 10;
/// How long a client may take in all, in nanoseconds.
const PATIENCE: u64 = 20_000_000_000;
/// The page is made anew after this, in nanoseconds.
const FRESH: u64 = 1_000_000_000;
/// Frames that are taken, and rounds of sending, before others have their turn.
const BUDGET: usize = 64;
/// Most bytes of a frame: of an Ethernet's.
const MAX_FRAME: usize = 1514;
/// What the page shows: what these verbs print.
const VERBS: [&str; 3] = ["uptime", "list", "bridge-list"];

/// What others see of it.
pub struct Own {
    mac: Mac,
    waiting: RefCell<Waiting>,
    changed: Notify,
    address: Cell<Option<Address>>,
}

impl Own {
    /// Its Ethernet address.
    pub fn mac(&self) -> Mac {
        self.mac
    }
    /// Its IP address, if it has one by now.
    pub fn address(&self) -> Option<Address> {
        self.address.get()
    }
    /// Adds a frame, which [`Self::flush`] tells of. False when it is dropped.
    pub fn queue(&self, frame: &Rc<Frame>) -> bool {
        // What a bridge sends to all because it does not know better is of no interest.
        let to = frame.bytes().first_chunk::<6>();
        if to.is_some_and(|to| *to != self.mac && to[0] & 1 == 0) {
            return true;
        }
        let mut waiting = self.waiting.borrow_mut();
        waiting.add(frame.clone(), false, MAX_FRAME)
    }
    /// Bytes that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.borrow().bytes()
    }
    /// There are frames.
    pub fn flush(&self) {
        self.changed.notify();
    }
}

/// Puts the control domain on the default bridge, with an Ethernet address that is made from the card's.
pub fn start(
    dom0: Dom0,
    tools: &'static Toolstack<Dom0>,
    card: Option<Mac>,
    source: Source,
) -> Option<()> {
    let [_, _, a, b, c, d] = card.unwrap_or_else(|| {
        let mut random = [0; 6];
        dom0.random(&mut random);
        random
    });
    let own = Rc::new(Own {
        // Administered locally (IEEE 802, 8.2).
        mac: [0x02, 0x16, a, b, c, d],
        waiting: RefCell::default(),
        changed: Notify::default(),
        address: Cell::default(),
    });
    let port = dom0.networks.add_own(own.clone())?;
    let stack = Stack::new(dom0, tools, own, port, source);
    dom0.rt.spawn(stack.run());
    Some(())
}

/// The frames' way in and out.
struct Wire {
    own: Rc<Own>,
    out: Vec<Frame>,
}

struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut Vec<Frame>);

impl phy::Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = Rc::unwrap_or_clone(self.own.waiting.borrow_mut().take()?);
        Some((Incoming(frame.into_bytes()), Outgoing(&mut self.out)))
    }
    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.out))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = MAX_FRAME;
        caps
    }
}

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        self.0.extend(Frame::new(bytes, Checksum::Validated));
        result
    }
}

/// A place for a connection.
struct Place {
    socket: SocketHandle,
    /// When the client has taken too long; `None` when there is none.
    until: Option<u64>,
    talk: Talk,
}

/// How far a connection is.
enum Talk {
    /// The request is to come, or to be answered.
    Request,
    /// The answer, and how much of it is on its way.
    Answer(Rc<Vec<u8>>, usize),
    /// All is said.
    Over,
}

/// What is to be done for a connection.
enum Step {
    Nothing,
    /// There is something to be sent.
    Send,
    /// It is to get the page.
    Page,
}

struct Stack {
    dom0: Dom0,
    tools: &'static Toolstack<Dom0>,
    own: Rc<Own>,
    port: PortId,
    wire: Wire,
    iface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    places: Vec<Place>,
    /// The page, and when it was made.
    page: Option<(u64, Rc<Vec<u8>>)>,
}

fn instant(ns: u64) -> Instant {
    Instant::from_micros_const((ns / 1000).cast_signed())
}

impl Stack {
    fn new(
        dom0: Dom0,
        tools: &'static Toolstack<Dom0>,
        own: Rc<Own>,
        port: PortId,
        source: Source,
    ) -> Self {
        let mut wire = Wire {
            own: own.clone(),
            out: Vec::new(),
        };
        let mut config = Config::new(EthernetAddress(own.mac).into());
        let mut seed = [0; 8];
        dom0.random(&mut seed);
        config.random_seed = u64::from_le_bytes(seed);
        let iface = Interface::new(config, &mut wire, instant(time::now_ns()));
        let mut sockets = SocketSet::new(Vec::new());
        let places = (0..PLACES).map(|_| Place {
            socket: sockets.add(tcp::Socket::new(
                tcp::SocketBuffer::new(vec![0; MAX_HEAD]),
                tcp::SocketBuffer::new(vec![0; SEND_BUFFER]),
            )),
            until: None,
            talk: Talk::Request,
        });
        let places = places.collect();
        let dhcp = (source == Source::Dhcp).then(|| sockets.add(dhcpv4::Socket::new()));
        let mut stack = Self {
            dom0,
            tools,
            own,
            port,
            wire,
            iface,
            sockets,
            dhcp,
            places,
            page: None,
        };
        if let Source::Fixed(address) = source {
            stack.set_address(Some(address));
        }
        stack
    }

    fn set_address(&mut self, address: Option<Address>) {
        self.iface.update_ip_addrs(|all| {
            all.clear();
            if let Some(a) = address {
                // There is room for one.
                let _ = all.push(IpCidr::Ipv4(Ipv4Cidr::new(a.ip, a.bits)));
            }
        });
        let routes = self.iface.routes_mut();
        routes.remove_default_ipv4_route();
        if let Some(gateway) = address.and_then(|a| a.gateway) {
            let _ = routes.add_default_ipv4_route(gateway);
        }
        self.own.address.set(address);
    }

    async fn run(mut self) {
        loop {
            let mut seen = self.own.changed.seen();
            let mut more = self.receive();
            self.ask_for_address();
            more |= self.serve().await;
            more |= self.send();
            if more {
                yield_now().await;
            } else {
                let changed = self.own.changed.changed(&mut seen);
                match self
                    .iface
                    .poll_delay(instant(time::now_ns()), &self.sockets)
                {
                    None if self.places.iter().all(|p| p.until.is_none()) => changed.await,
                    delay => {
                        let now = time::now_ns();
                        let until = self.places.iter().filter_map(|p| p.until).min();
                        let left = until.map(|at| at.saturating_sub(now) / 1_000_000);
                        let delay = delay.map(|d| d.total_millis());
                        let ms = delay.into_iter().chain(left).min().unwrap_or(0);
                        select(changed, self.dom0.rt.sleep_ms(ms + 1)).await;
                    }
                }
            }
        }
    }

    /// Takes what came in; whether there may be more.
    fn receive(&mut self) -> bool {
        let now = instant(time::now_ns());
        (0..BUDGET).all(|_| {
            let (wire, sockets) = (&mut self.wire, &mut self.sockets);
            let taken = self.iface.poll_ingress_single(now, wire, sockets);
            !matches!(taken, PollIngressSingleResult::None)
        })
    }

    /// Gives the bridge what is to be sent; whether there may be more.
    fn send(&mut self) -> bool {
        let now = instant(time::now_ns());
        let more = (0..BUDGET).all(|_| {
            let (wire, sockets) = (&mut self.wire, &mut self.sockets);
            self.iface.poll_egress(now, wire, sockets) != PollResult::None
        });
        let frames = self.wire.out.drain(..);
        self.dom0
            .networks
            .forward(DEFAULT_BRIDGE, self.port, frames);
        more
    }

    fn ask_for_address(&mut self) {
        let Some(dhcp) = self.dhcp else { return };
        let got = match self.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
            None => return,
            Some(dhcpv4::Event::Deconfigured) => None,
            Some(dhcpv4::Event::Configured(c)) => {
                Address::new(c.address.address(), c.address.prefix_len(), c.router)
            }
        };
        self.set_address(got);
    }

    /// Looks after all connections; whether there is something to be sent for them.
    async fn serve(&mut self) -> bool {
        let now = time::now_ns();
        let mut any = false;
        for n in 0..PLACES {
            match self.look(n, now) {
                Step::Nothing => {}
                Step::Send => any = true,
                Step::Page => {
                    let page = self.page(now).await;
                    if let Some(place) = self.places.get_mut(n) {
                        place.talk = Talk::Answer(page, 0);
                    }
                    any = true;
                }
            }
        }
        any
    }

    /// Looks after a connection.
    fn look(&mut self, n: usize, now: u64) -> Step {
        let Some(place) = self.places.get_mut(n) else {
            return Step::Nothing;
        };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(place.socket);
        match socket.state() {
            tcp::State::Closed | tcp::State::Listen => {
                (place.until, place.talk) = (None, Talk::Request);
                if !socket.is_open() {
                    // A closed one can listen.
                    let _ = socket.listen(PORT);
                }
                return Step::Nothing;
            }
            // Nothing more is to come, and a place is worth more than to be sure of that.
            tcp::State::TimeWait => {
                socket.abort();
                return Step::Send;
            }
            _ => {}
        }
        if now >= *place.until.get_or_insert(now.saturating_add(PATIENCE)) {
            socket.abort();
            return Step::Send;
        }
        match &mut place.talk {
            Talk::Request => match status::asked(socket.peek(MAX_HEAD).unwrap_or_default()) {
                // It has said all that it says.
                Asked::More if socket.state() == tcp::State::CloseWait => {
                    socket.abort();
                    Step::Send
                }
                Asked::More => Step::Nothing,
                Asked::Page => Step::Page,
                Asked::Else(status) => {
                    let text = Rc::new(status::answer(status, ""));
                    place.talk = Talk::Answer(text, 0);
                    Step::Send
                }
            },
            Talk::Answer(text, sent) => {
                let rest = text.get(*sent..).unwrap_or_default();
                let n = socket.send_slice(rest).unwrap_or(0);
                *sent += n;
                if n == rest.len() {
                    socket.close();
                    place.talk = Talk::Over;
                    return Step::Send;
                }
                if n > 0 { Step::Send } else { Step::Nothing }
            }
            Talk::Over => Step::Nothing,
        }
    }

    /// The page, made anew when it is not fresh.
    async fn page(&mut self, now: u64) -> Rc<Vec<u8>> {
        if let Some((made, page)) = &self.page
            && now.saturating_sub(*made) < FRESH
        {
            return page.clone();
        }
        let mut text = format!("Paravane {}\n\n", env!("CARGO_PKG_VERSION"));
        for verb in VERBS {
            cli::run(self.tools, verb, &mut text).await;
            text.push('\n');
        }
        let page = Rc::new(status::answer("200 OK", &text));
        self.page = Some((now, page.clone()));
        page
    }
}
