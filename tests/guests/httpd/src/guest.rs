// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest: its interface, addresses, connections, and what the toolstack asks of it.

use crate::config::{Address, Config, is_host};
use crate::http::{Connection, Site};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{Arguments, Write};
use core::task::{Context, Poll, Waker};
use el1::{Machine, time};
use guest_abi::sched::ShutdownReason;
use pv_frontends::balloon::{Balloon, Progress};
use pv_frontends::net::{Phy, Vif};
use pv_frontends::{Error, Platform, xenbus};
use rt::{Control, Guest, Kernel, Spare, Store};
use smoltcp::iface::{Config as IfaceConfig, Interface, PollIngressSingleResult, PollResult};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

const SECOND: u64 = 1_000_000_000;
/// How long the other end of a device may take.
const PATIENCE: u64 = 20 * SECOND;
/// How long a client may take for a request's head, and for each further step.
const CLIENT: u64 = 10 * SECOND;
/// How long a DHCP server may take until `else=` counts.
const DHCP: u64 = 5 * SECOND;
const PORT: u16 = 80;
/// Connections at a time; more are refused.
const PLACES: usize = 8;
/// Bytes of each connection that wait to be read, and to be sent.
const BUFFER: usize = 48 << 10;
/// Frames that are taken, and rounds of sending, before the guest looks at other things.
const BURST: usize = 64;

type Card = Vif<'static, &'static Kernel>;

pub fn main(machine: Machine) -> ! {
    let from = machine.entry_ticks;
    let bootargs = machine.bootargs.clone();
    let seed = machine.seed.first_chunk().map(|b| u64::from_le_bytes(*b));
    let mut guest = Guest::new(machine);
    let config = match Config::parse(&bootargs) {
        Ok(config) => config,
        Err(word) => {
            let _ = writeln!(
                guest.console,
                "httpd: {word} makes no sense: ip=dhcp, ip=ADDRESS/BITS[,GATEWAY] and else=ADDRESS/BITS[,GATEWAY] are known"
            );
            guest.shutdown(ShutdownReason::Poweroff)
        }
    };
    let end = guest
        .xenstore()
        .and_then(|xs| Server::open(&mut guest, xs, config, seed.unwrap_or(from), from)?.run());
    let reason = end.unwrap_or_else(|e| {
        let _ = writeln!(guest.console, "httpd: xenstore: {e}");
        ShutdownReason::Crash
    });
    let _ = writeln!(guest.console, "httpd: end: {reason:?}");
    guest.shutdown(reason)
}

/// Why an interface is not served any more.
enum End {
    /// The toolstack asked for the guest's end.
    Asked(ShutdownReason),
    /// The interface does not work any more.
    Failed(Error),
}

impl From<Error> for End {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

struct Server<'g> {
    guest: &'g mut Guest,
    xs: &'static Store,
    config: Config,
    control: Control,
    /// None when the toolstack names no target.
    balloon: Option<Balloon<'static, &'static Kernel, Spare>>,
    site: Site,
    /// The counter when the guest began.
    from: u64,
    seed: u64,
}

impl<'g> Server<'g> {
    fn open(
        guest: &'g mut Guest,
        xs: &'static Store,
        config: Config,
        seed: u64,
        from: u64,
    ) -> Result<Self, Error> {
        let store = xs.by(xs.platform().now() + PATIENCE);
        let name = store.read_text("name")?;
        let balloon = store.run(Balloon::open(store.access(), Spare::default()));
        Ok(Self {
            control: Control::open(xs)?,
            balloon: match balloon {
                Ok(balloon) => Some(balloon),
                Err(Error::Store(_) | Error::BadValue) => None,
                Err(e) => return Err(e),
            },
            site: Site {
                about: format!(
                    "This is {name}, a kernel in Rust: pv-frontends and smoltcp on bare metal."
                ),
                up_ms: 0,
                served: 0,
                stall: config.stall,
                stalled: false,
            },
            guest,
            xs,
            config,
            from,
            seed,
        })
    }

    fn say(&mut self, what: Arguments<'_>) {
        let _ = writeln!(self.guest.console, "httpd: {what}");
    }

    fn now(&self) -> u64 {
        self.guest.kernel.now()
    }

    /// Interface after interface, until the toolstack asks for the end.
    fn run(mut self) -> Result<ShutdownReason, Error> {
        let store = self.xs.by(self.now() + PATIENCE);
        // Fires at once, and when an interface comes or goes.
        let devices = store.watch("device/vif")?;
        self.say(format_args!("waiting for a network interface"));
        loop {
            if let Some(reason) = self.asked()? {
                return Ok(reason);
            }
            if devices.try_next()?.is_none() {
                self.guest.wait(None);
                continue;
            }
            let store = self.xs.by(self.now() + PATIENCE);
            let ids = store.run(xenbus::devices(&store.access(), "vif"))?;
            let Some(&id) = ids.first() else { continue };
            let vif = match store.run(Vif::open(store.access(), id, Default::default())) {
                Ok(vif) => vif,
                Err(e) => {
                    self.say(format_args!("interface {id}: cannot be opened: {e}"));
                    continue;
                }
            };
            let end = self.serve(&vif);
            if let End::Failed(e) = &end {
                self.say(format_args!("interface {id}: {e}"));
            }
            // Lets the other end let go, too.
            let closed = self.xs.by(self.now() + PATIENCE).run(vif.close());
            if let Err(e) = closed {
                self.say(format_args!("interface {id}: not closed: {e}"));
            }
            match end {
                End::Asked(reason) => return Ok(reason),
                End::Failed(_) => self.say(format_args!("waiting for a network interface")),
            }
        }
    }

    /// Does what the toolstack asks as to memory; what it asks as to the guest's end.
    fn asked(&mut self) -> Result<Option<ShutdownReason>, Error> {
        let mut cx = Context::from_waker(Waker::noop());
        if let Some(balloon) = &mut self.balloon
            && let Poll::Ready(changed) = balloon.poll(&mut cx)
        {
            changed?;
            let end = loop {
                match balloon.adjust() {
                    Ok(Progress::More) => {}
                    end => break end,
                }
            };
            let kib = balloon.pages() * 4;
            match end {
                Ok(Progress::Short) => self.say(format_args!(
                    "{kib} KiB given back, and no more can be moved"
                )),
                Ok(_) => self.say(format_args!("{kib} KiB given back")),
                Err(e) => self.say(format_args!("{kib} KiB given back, then: {e}")),
            }
        }
        self.control.asked()
    }

    /// One interface, as long as it works and nobody asks for the end.
    fn serve(&mut self, vif: &Card) -> End {
        let info = vif.info();
        let mac = EthernetAddress(info.mac);
        if !mac.is_unicast() {
            return End::Failed(Error::BadValue);
        }
        self.say(format_args!("interface {mac}, mtu {}", info.mtu));
        let mut net = Net::new(self, vif, mac);
        loop {
            match net.turn(self) {
                // Whatever waits inside of a turn takes events that others wait for: sleep after a turn without work alone.
                Ok(Turn::Worked) => {}
                Ok(Turn::Idle(until)) => self.guest.wait(until),
                Err(end) => {
                    net.hang_up(self.now());
                    return end;
                }
            }
            if self.site.stalled && net.all_is_said() {
                self.say(format_args!("stalled"));
                return self.stall();
            }
        }
    }

    /// Looks at nothing but the toolstack's requests, for ever.
    fn stall(&mut self) -> End {
        loop {
            match self.asked() {
                Ok(None) => self.guest.wait(None),
                Ok(Some(reason)) => return End::Asked(reason),
                Err(e) => return End::Failed(e),
            }
        }
    }
}

/// What came of looking at everything once.
enum Turn {
    Worked,
    /// There was nothing to do. When there is again, unless an event comes before.
    Idle(Option<u64>),
}

/// An interface at work.
struct Net<'v> {
    vif: &'v Card,
    phy: Phy<'v, 'static, &'static Kernel>,
    iface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    /// When `else=` counts.
    otherwise: Option<(u64, Address)>,
    places: Vec<Place>,
}

/// A place for a connection.
struct Place {
    socket: SocketHandle,
    http: Connection,
    /// When the client has taken too long; `None` when there is none.
    until: Option<u64>,
}

fn instant(ns: u64) -> Instant {
    Instant::from_micros_const((ns / 1000).cast_signed())
}

impl<'v> Net<'v> {
    fn new(server: &mut Server<'_>, vif: &'v Card, mac: EthernetAddress) -> Self {
        let now = server.now();
        let mut phy = Phy::new(vif);
        let mut config = IfaceConfig::new(mac.into());
        config.random_seed = server.seed ^ now;
        let iface = Interface::new(config, &mut phy, instant(now));
        let mut sockets = SocketSet::new(Vec::new());
        let places = (0..PLACES).map(|_| {
            let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            Place {
                socket: sockets.add(socket),
                http: Connection::default(),
                until: None,
            }
        });
        let places = places.collect();
        let mut net = Self {
            vif,
            phy,
            iface,
            places,
            dhcp: None,
            otherwise: None,
            sockets,
        };
        match server.config.fixed {
            Some(address) => net.set_address(server, address, "fixed"),
            None => {
                net.dhcp = Some(net.sockets.add(dhcpv4::Socket::new()));
                net.otherwise = server.config.otherwise.map(|a| (now + DHCP, a));
            }
        }
        net
    }

    fn set_address(&mut self, server: &mut Server<'_>, address: Address, how: &str) {
        let Address { ip, bits, gateway } = address;
        self.iface.update_ip_addrs(|all| {
            all.clear();
            let _ = all.push(IpCidr::Ipv4(Ipv4Cidr::new(ip, bits)));
        });
        self.iface.routes_mut().remove_default_ipv4_route();
        if let Some(gateway) = gateway {
            let _ = self.iface.routes_mut().add_default_ipv4_route(gateway);
        }
        server.say(format_args!("serving http://{ip}/ ({address}, {how})"));
    }

    /// Looks at everything once.
    fn turn(&mut self, server: &mut Server<'_>) -> Result<Turn, End> {
        if let Some(reason) = server.asked()? {
            return Err(End::Asked(reason));
        }
        let now = server.now();
        let (at, mut worked) = (instant(now), false);
        self.iface.poll_maintenance(at);
        for _ in 0..BURST {
            match self
                .iface
                .poll_ingress_single(at, &mut self.phy, &mut self.sockets)
            {
                PollIngressSingleResult::None => break,
                _ => worked = true,
            }
        }
        for _ in 0..BURST {
            match self.iface.poll_egress(at, &mut self.phy, &mut self.sockets) {
                PollResult::None => break,
                PollResult::SocketStateChanged => worked = true,
            }
        }
        worked |= self.configure(server, now);
        server.site.up_ms =
            time::ticks_to_ns(time::ticks().saturating_sub(server.from)) / 1_000_000;
        self.make_place();
        for place in &mut self.places {
            worked |= place.turn(&mut self.sockets, &mut server.site, now);
        }
        // That the other end is gone may have come to light just now.
        if let Some(e) = self.vif.failed() {
            return Err(End::Failed(e));
        }
        if worked {
            return Ok(Turn::Worked);
        }
        // Where there is no room for a frame, an event tells when there is.
        let room = self.vif.has_room(self.vif.info().max_frame);
        let stack = self.iface.poll_at(at, &self.sockets).filter(|_| room);
        let stack = stack.map(|i| u64::try_from(i.total_micros()).unwrap_or(0) * 1000);
        let clients = self.places.iter().filter_map(|p| p.until);
        let otherwise = self.otherwise.map(|(at, _)| at);
        Ok(Turn::Idle(clients.chain(stack).chain(otherwise).min()))
    }

    /// Follows DHCP; whether the address changed.
    fn configure(&mut self, server: &mut Server<'_>, now: u64) -> bool {
        let Some(dhcp) = self.dhcp else { return false };
        let lease = match self.sockets.get_mut::<dhcpv4::Socket>(dhcp).poll() {
            Some(dhcpv4::Event::Configured(c)) if is_host(c.address.address()) => Some(Address {
                ip: c.address.address(),
                bits: c.address.prefix_len(),
                gateway: c.router.filter(|r| is_host(*r)),
            }),
            Some(_) => None,
            None => {
                let due = self.otherwise.take_if(|(at, _)| *at <= now);
                let Some((_, address)) = due else {
                    return false;
                };
                self.set_address(server, address, "no DHCP server answers");
                return true;
            }
        };
        match lease {
            Some(address) => {
                self.otherwise = None;
                self.set_address(server, address, "by DHCP");
            }
            None => {
                self.otherwise = server.config.otherwise.map(|a| (now + DHCP, a));
                self.iface.routes_mut().remove_default_ipv4_route();
                // At the start there is none to be lost.
                if !self.iface.ip_addrs().is_empty() {
                    self.iface.update_ip_addrs(|all| all.clear());
                    server.say(format_args!("no address any more"));
                }
            }
        }
        true
    }

    /// When no place is free, a connection that both ends have ended, and that only waits for stray packets, makes room.
    fn make_place(&mut self) {
        let state = |p: &&Place| self.sockets.get::<tcp::Socket>(p.socket).state();
        if self.places.iter().any(|p| state(&p) == tcp::State::Listen) {
            return;
        }
        let ended = self
            .places
            .iter()
            .find(|p| state(p) == tcp::State::TimeWait);
        if let Some(socket) = ended.map(|p| p.socket) {
            self.sockets.get_mut::<tcp::Socket>(socket).abort();
        }
    }

    /// Every answer has gone out and was taken.
    fn all_is_said(&self) -> bool {
        let quiet = |p: &Place| {
            let socket = self.sockets.get::<tcp::Socket>(p.socket);
            !p.http.is_answering() && socket.send_queue() == 0
        };
        self.places.iter().all(quiet)
    }

    /// Tells clients that their connections are cut, if the interface still works.
    fn hang_up(&mut self, now: u64) {
        for place in &self.places {
            self.sockets.get_mut::<tcp::Socket>(place.socket).abort();
        }
        self.iface
            .poll_egress(instant(now), &mut self.phy, &mut self.sockets);
    }
}

impl Place {
    /// Takes what came, gives what there is; whether that was anything.
    fn turn(&mut self, sockets: &mut SocketSet<'_>, site: &mut Site, now: u64) -> bool {
        let socket = sockets.get_mut::<tcp::Socket>(self.socket);
        match socket.state() {
            tcp::State::Closed => {
                self.http = Connection::default();
                self.until = None;
                // It is closed, and the port is not 0.
                let _ = socket.listen(PORT);
                return true;
            }
            tcp::State::Listen => return false,
            tcp::State::TimeWait => {
                self.until = None;
                return false;
            }
            _ => {}
        }
        let until = *self.until.get_or_insert(now + CLIENT);
        let mut worked = false;
        while socket.can_recv() {
            let taken = socket.recv(|bytes| {
                let n = self.http.input(bytes, site);
                (n, n)
            });
            // What comes of a request's head gives it no more time.
            match taken {
                Ok(1..) if !self.http.awaits_head() => self.until = Some(now + CLIENT),
                Ok(1..) => {}
                _ => break,
            }
            worked = true;
        }
        while socket.can_send() {
            let given = socket.send(|room| {
                let n = self.http.output(room);
                (n, n)
            });
            let Ok(1..) = given else { break };
            (worked, self.until) = (true, Some(now + CLIENT));
        }
        let no_more = socket.state() == tcp::State::CloseWait && !socket.can_recv();
        if self.http.is_over() || (no_more && !self.http.is_answering()) {
            socket.close();
        }
        if !worked && now >= until {
            worked = true;
            if self.http.too_late() {
                self.until = Some(now + CLIENT);
            } else {
                socket.abort();
            }
        }
        worked
    }
}
