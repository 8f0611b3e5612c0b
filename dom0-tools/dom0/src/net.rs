// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests' networks: bridges, a task for each interface, and one for each of its pairs of rings.
//! Frames are copied out of the sender's pages and into the receivers'.

use crate::card::Card;
use crate::device::{Devices, Served, Service};
use crate::exec::yield_now;
use crate::host::Dom0;
use crate::ip::Address;
use crate::own::Own;
use crate::rt::Listener;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use backends::bridge::{Bridge, Filter, Mac, Net, PortId};
use backends::net::{
    Copies, CopyIn, CopyOut, Credit, Device, Frame, FrontConfig, Groups, Interface, Limits, Pool,
    QueueConfig, Rx, Tx, Waiting,
};
use core::cell::RefCell;
use el1::heap;
use el1::mem;
use el1::{hvc, time};
use embassy_futures::select::select3;
use guest_abi::{DomId, Errno, Port};
use toolstack::config;
use toolstack::host::{BridgeInfo, BridgePort, CARD, DEFAULT_BRIDGE, NetStart};

/// Most pairs of rings of an interface.
const QUEUES: u16 = 4;
/// Packets that are taken from a ring at a time.
const BUDGET: usize = 64;
/// How long a ring waits for memory before it is looked at again, in milliseconds.
const RETRY_MS: u64 = 20;
/// Bytes for one port that are delivered before more are taken from the sender.
const EAGER: usize = 128 << 10;

/// An interface that is served.
struct Vif {
    served: Rc<Served>,
    mac: Mac,
    bridge: String,
    port: PortId,
    interface: RefCell<Interface>,
    /// The receiving sides of the queues that run.
    inputs: RefCell<Vec<Rc<Input>>>,
}

/// Where a queue's guest receives.
struct Input {
    rx: RefCell<Rx>,
    ring: mem::Mapping,
    port: Port,
}

/// What is behind a bridge's port.
enum Station {
    Vif(Rc<Vif>),
    Card(Rc<Card>),
    Own(Rc<Own>),
}

impl Station {
    /// Whether a frame is to go there at all.
    fn wants(&self, frame: &Frame) -> bool {
        match self {
            Self::Vif(vif) => vif.interface.borrow().groups.allow(frame.bytes()),
            Self::Card(_) | Self::Own(_) => true,
        }
    }

    /// Has a frame wait where it goes to, and whether it does, with all of its segments; `None` when there is nobody.
    fn queue(&self, frame: &Rc<Frame>) -> Option<(Outlet, bool)> {
        Some(match self {
            Self::Vif(vif) => {
                let inputs = vif.inputs.borrow();
                let input = match inputs.len() {
                    0 | 1 => inputs.first()?,
                    n => inputs.get(frame.flow() as usize % n)?,
                };
                let taken = input.rx.borrow_mut().queue(frame.clone());
                (Outlet::Vif(vif.clone(), input.clone()), taken)
            }
            Self::Card(card) => (Outlet::Card(card.clone()), card.queue(frame)),
            Self::Own(own) => (Outlet::Own(own.clone()), own.queue(frame)),
        })
    }
}

/// Where frames wait to be given away.
enum Outlet {
    Vif(Rc<Vif>, Rc<Input>),
    Card(Rc<Card>),
    Own(Rc<Own>),
}

impl Outlet {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Vif(_, a), Self::Vif(_, b)) => Rc::ptr_eq(a, b),
            (Self::Card(a), Self::Card(b)) => Rc::ptr_eq(a, b),
            (Self::Own(a), Self::Own(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }

    fn waiting_bytes(&self) -> usize {
        match self {
            Self::Vif(_, input) => input.rx.borrow().waiting_bytes(),
            Self::Card(card) => card.waiting_bytes(),
            Self::Own(own) => own.waiting_bytes(),
        }
    }

    fn flush(&self) {
        match self {
            Self::Vif(vif, input) => flush(vif, input),
            Self::Card(card) => card.flush(),
            Self::Own(own) => own.flush(),
        }
    }
}

/// A bridge, and what is behind its ports.
#[derive(Default)]
struct Switch {
    bridge: Bridge,
    stations: BTreeMap<PortId, Station>,
}

struct Shared {
    /// What waits for guests, as far as it is not little.
    pool: Rc<Pool>,
    vifs: Devices,
    bridges: RefCell<BTreeMap<String, Switch>>,
    own: RefCell<Option<Rc<Own>>>,
}

/// All bridges and interfaces.
#[derive(Clone)]
pub struct Networks(Rc<Shared>);

impl Networks {
    /// None yet. Frames that wait for guests may use about so many bytes.
    pub fn new(waiting: usize) -> Self {
        Self(Rc::new(Shared {
            pool: Rc::new(Pool::new(waiting)),
            vifs: Devices::default(),
            bridges: RefCell::default(),
            own: RefCell::default(),
        }))
    }

    /// Serves an interface. Its bridge is made when there is none of that name.
    pub fn start(&self, dom0: Dom0, start: &NetStart) -> Result<(), Errno> {
        let new = self.0.vifs.open(dom0, "vif", start.dom, start.devid)?;
        let ips = start.ips.iter();
        let filter = Filter {
            mac: (!start.ips.is_empty()).then_some(start.mac.0),
            ips: ips.map(|&(address, bits)| Net { address, bits }).collect(),
        };
        let credit = match start.rate {
            None => Credit::unlimited(),
            Some(rate) => Credit::new(rate.bytes(), rate.interval_us),
        };
        let mut bridges = self.0.bridges.borrow_mut();
        let switch = bridges.entry(start.bridge.clone()).or_default();
        let port = switch.bridge.add(filter).ok_or(Errno::ENOSPC)?;
        switch.bridge.keep(port, start.mac.0);
        let vif = Rc::new(Vif {
            served: new.0.clone(),
            mac: start.mac.0,
            bridge: start.bridge.clone(),
            port,
            interface: RefCell::new(Interface::new(credit)),
            inputs: RefCell::default(),
        });
        switch.stations.insert(port, Station::Vif(vif.clone()));
        let limits = Limits {
            queues: QUEUES,
            mtu: start.mtu,
        };
        let task = Task {
            nets: self.clone(),
            limits,
            vif,
        };
        self.0.vifs.serve(new, Device::new(limits), task);
        Ok(())
    }

    /// Ends serving an interface, and waits until nothing of the guest's is held any more.
    pub async fn stop(&self, dom: DomId, devid: u32) {
        self.0.vifs.stop(dom, devid).await;
    }

    /// Makes a bridge, unless it is there.
    pub fn make(&self, name: &str) {
        self.0.bridges.borrow_mut().entry(name.into()).or_default();
    }

    /// Puts something that is no guest's on the default bridge. `None` when that has no port left.
    fn add(&self, station: Station) -> Option<PortId> {
        let mut bridges = self.0.bridges.borrow_mut();
        let switch = bridges.entry(DEFAULT_BRIDGE.into()).or_default();
        let port = switch.bridge.add(Filter::default())?;
        if let Station::Own(own) = &station {
            switch.bridge.keep(port, own.mac());
        }
        switch.stations.insert(port, station);
        Some(port)
    }

    /// Puts the machine's card on the default bridge. `None` when that has no port left.
    pub fn add_card(&self, card: Rc<Card>) -> Option<PortId> {
        self.add(Station::Card(card))
    }

    /// The same for the control domain's own place there.
    pub fn add_own(&self, own: Rc<Own>) -> Option<PortId> {
        *self.0.own.borrow_mut() = Some(own.clone());
        self.add(Station::Own(own))
    }

    /// The control domain's own address, if it has one.
    pub fn own_address(&self) -> Option<Address> {
        self.0.own.borrow().as_ref()?.address()
    }

    /// The bridges and what is at their ports.
    pub fn list(&self) -> Vec<BridgeInfo> {
        let now = time::now_ns();
        let bridges = self.0.bridges.borrow();
        let info = |(name, switch): (&String, &Switch)| {
            let mut macs = BTreeMap::<PortId, Vec<config::Mac>>::new();
            for (mac, at) in switch.bridge.addresses(now) {
                macs.entry(at).or_default().push(config::Mac(mac));
            }
            let port = |(&id, station): (&PortId, &Station)| {
                let (name, guest, mac, link) = match station {
                    Station::Vif(v) => (
                        format!("vif{}.{}", v.served.dom, v.served.id),
                        Some((v.served.dom, v.served.id)),
                        Some(v.mac),
                        v.served.queues() > 0,
                    ),
                    Station::Card(card) => (CARD.into(), None, card.mac(), card.link()),
                    Station::Own(own) => {
                        let up = own.address().is_some();
                        ("dom0".into(), None, Some(own.mac()), up)
                    }
                };
                let c = switch.bridge.counters(id);
                BridgePort {
                    name,
                    guest,
                    mac: mac.map(config::Mac),
                    link,
                    came: (c.in_frames, c.in_bytes),
                    went: (c.out_frames, c.out_bytes),
                    refused: c.in_refused,
                    dropped: c.out_dropped,
                    macs: macs.remove(&id).unwrap_or_default(),
                }
            };
            BridgeInfo {
                name: name.clone(),
                ports: switch.stations.iter().map(port).collect(),
            }
        };
        bridges.iter().map(info).collect()
    }

    /// Frames came in at a bridge's port that are no frames.
    fn refused(&self, bridge: &str, port: PortId, frames: u32) {
        if let Some(switch) = self.0.bridges.borrow_mut().get_mut(bridge) {
            switch.bridge.refused(port, frames);
        }
    }

    /// Frames came in at a bridge's port.
    pub fn forward(&self, bridge: &str, from: PortId, frames: impl Iterator<Item = Frame>) {
        let now = time::now_ns();
        let (mut to, mut touched) = (Vec::new(), Vec::<Outlet>::new());
        {
            let mut bridges = self.0.bridges.borrow_mut();
            let Some(Switch { bridge, stations }) = bridges.get_mut(bridge) else {
                return;
            };
            for frame in frames {
                bridge.forward(from, frame.bytes(), now, &mut to);
                let frame = Rc::new(frame);
                for port in to.drain(..) {
                    let Some(station) = stations.get(&port).filter(|s| s.wants(&frame)) else {
                        continue;
                    };
                    let queued = station.queue(&frame);
                    let all = queued.as_ref().is_some_and(|(_, all)| *all);
                    bridge.sent(port, frame.bytes().len(), all);
                    // Some of its segments may wait where not all do.
                    let Some((outlet, _)) = queued else { continue };
                    if outlet.waiting_bytes() >= EAGER {
                        outlet.flush();
                    }
                    if !touched.iter().any(|t| t.is(&outlet)) {
                        touched.push(outlet);
                    }
                }
            }
        }
        for outlet in touched {
            outlet.flush();
        }
    }
}

/// Gives a guest what waits for it.
fn flush(vif: &Vif, input: &Input) {
    match input
        .rx
        .borrow_mut()
        .flush(&*input.ring, &mut Grants(vif.served.dom))
    {
        Ok(true) => hvc::send(input.port),
        Ok(false) => {}
        Err(e) => vif.served.broke(e),
    }
}

struct Task {
    nets: Networks,
    limits: Limits,
    vif: Rc<Vif>,
}

impl Service for Task {
    type Kind = backends::net::Vif;

    fn connect(&self, config: &FrontConfig) -> Result<(), Errno> {
        // What it asked for with an earlier connection.
        self.vif.interface.borrow_mut().groups.clear();
        let mut ready = Vec::new();
        for q in &config.queues {
            ready.push(self.open(config, q)?);
        }
        for runner in ready {
            self.vif.inputs.borrow_mut().push(runner.input.clone());
            let wake = runner.tx_port.waker();
            self.vif.served.begin(wake, runner.run());
        }
        Ok(())
    }

    fn look(&self) {
        let control = self.vif.served.front("request-multicast-control");
        self.vif.interface.borrow_mut().groups.control = Groups::requested(control.as_deref());
    }

    fn disconnect(&self) {
        self.vif.inputs.borrow_mut().clear();
    }

    async fn ended(&self) {
        let mut bridges = self.nets.0.bridges.borrow_mut();
        if let Some(switch) = bridges.get_mut(&self.vif.bridge) {
            switch.bridge.remove(self.vif.port);
            switch.stations.remove(&self.vif.port);
        }
    }
}

impl Task {
    fn open(&self, config: &FrontConfig, q: &QueueConfig) -> Result<Runner, Errno> {
        let served = &self.vif.served;
        let (ring, rx_ring) = (served.map(&[q.tx_ring])?, served.map(&[q.rx_ring])?);
        let tx = Tx::attach(&*ring, &self.limits).ok_or(Errno::EINVAL)?;
        let waiting = Waiting::of(self.nets.0.pool.clone());
        let rx = Rx::attach(&*rx_ring, config, waiting).ok_or(Errno::EINVAL)?;
        let tx_port = served.bind(q.tx_port)?;
        let rx_port = match q.rx_port == q.tx_port {
            true => None,
            false => Some(served.bind(q.rx_port)?),
        };
        let input = Input {
            rx: RefCell::new(rx),
            ring: rx_ring,
            port: rx_port.as_ref().unwrap_or(&tx_port).port(),
        };
        Ok(Runner {
            nets: self.nets.clone(),
            vif: self.vif.clone(),
            tx,
            ring,
            tx_port,
            rx_port,
            input: Rc::new(input),
        })
    }
}

/// A guest's grants.
struct Grants(DomId);

impl Copies for Grants {
    fn copy_in(&mut self, list: &mut [CopyIn<'_>]) {
        let work = list.iter_mut().map(|c| (c.gref, c.offset, &mut *c.to));
        let done = mem::copy_from_grants(self.0, work);
        for (copy, ok) in list.iter_mut().zip(done) {
            copy.ok = ok;
        }
    }
    fn copy_out(&mut self, list: &mut [CopyOut<'_>]) {
        let done = mem::copy_to_grants(self.0, list.iter().map(|c| (c.gref, 0, c.from)));
        for (copy, ok) in list.iter_mut().zip(done) {
            copy.ok = ok;
        }
    }
}

/// A pair of rings at work.
struct Runner {
    nets: Networks,
    vif: Rc<Vif>,
    tx: Tx,
    ring: mem::Mapping,
    tx_port: Listener,
    rx_port: Option<Listener>,
    input: Rc<Input>,
}

impl Runner {
    async fn run(mut self) {
        let mut frames = Vec::new();
        while !self.vif.served.draining() {
            // Without memory nothing is begun, and no frame is lost: it waits in its ring.
            if !heap::admits() {
                self.vif.served.dom0.rt.sleep_ms(RETRY_MS).await;
                continue;
            }
            let taken = self.tx.take(
                &*self.ring,
                &mut Grants(self.vif.served.dom),
                &mut self.vif.interface.borrow_mut(),
                time::now_ns(),
                BUDGET,
                &mut frames,
            );
            let (bridge, port) = (&self.vif.bridge, self.vif.port);
            let (mut more, mut until) = (false, None);
            match taken {
                Ok(taken) => {
                    if taken.notify {
                        self.tx_port.send();
                    }
                    if taken.dropped > 0 {
                        self.nets.refused(bridge, port, taken.dropped);
                    }
                    (more, until) = (taken.more, taken.until);
                }
                Err(e) => self.vif.served.broke(e),
            }
            self.nets.forward(bridge, port, frames.drain(..));
            flush(&self.vif, &self.input);
            if more {
                yield_now().await;
            } else {
                self.wait(until).await;
            }
        }
    }

    /// Waits for an event, or a time in nanoseconds.
    async fn wait(&mut self, until: Option<u64>) {
        let rt = self.vif.served.dom0.rt;
        let posted = async {
            match &mut self.rx_port {
                Some(port) => port.wait().await,
                None => core::future::pending().await,
            }
        };
        let credit = async {
            match until {
                Some(at) => {
                    let ns = at.saturating_sub(time::now_ns());
                    rt.sleep_ms(ns.div_ceil(1_000_000)).await;
                }
                None => core::future::pending().await,
            }
        };
        select3(self.tx_port.wait(), posted, credit).await;
    }
}
