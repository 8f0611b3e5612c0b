// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests' networks: bridges, a task for each interface, and one for each of its pairs of rings.
//! Frames are copied out of the sender's pages and into the receivers'.

use crate::card::Card;
use crate::exec::{Notify, yield_now};
use crate::host::Dom0;
use crate::ip::Address;
use crate::own::Own;
use crate::rt::Listener;
use crate::xs::Watch;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use backends::bridge::{Bridge, Filter, Mac, Net, PortId};
use backends::net::{
    Copies, CopyIn, CopyOut, Credit, Device, Frame, FrontConfig, Groups, Interface, Limits,
    QueueConfig, Rx, Step, Tx, Writes,
};
use core::cell::{Cell, RefCell};
use el1::mem;
use el1::{hvc, time};
use embassy_futures::select::select3;
use guest_abi::grant_table::GrantStatus;
use guest_abi::io::xenbus::State;
use guest_abi::{DomId, Errno, Port};
use toolstack::config;
use toolstack::host::{BridgeInfo, BridgePort, DEFAULT_BRIDGE, NetStart};

/// Most pairs of rings of an interface.
const QUEUES: u16 = 4;
/// Packets that are taken from a ring at a time.
const BUDGET: usize = 64;
/// Bytes for one port that are delivered before more are taken from the sender.
const EAGER: usize = 128 << 10;
/// Most lines that are shown of what goes wrong with an interface.
const REPORTS: u32 = 8;

/// An interface that is served.
struct Served {
    dom: DomId,
    devid: u32,
    mac: Mac,
    bridge: String,
    port: PortId,
    interface: RefCell<Interface>,
    /// It is to end at once.
    stop: Cell<bool>,
    /// Something in it changed: to be stopped, a queue broke or ended, it ended.
    changed: Notify,
    /// Why a queue broke, until it was told.
    fault: RefCell<Option<String>>,
    /// Queues that are to end.
    draining: Cell<bool>,
    /// Wakes for the queues.
    wake: RefCell<Vec<Rc<Notify>>>,
    /// The receiving sides of the queues that run.
    inputs: RefCell<Vec<Rc<Input>>>,
    /// Queues that run.
    queues: Cell<usize>,
    ended: Cell<bool>,
}

impl Served {
    fn broke(&self, why: String) {
        *self.fault.borrow_mut() = Some(why);
        self.changed.notify();
    }
}

/// Where a queue's guest receives.
struct Input {
    rx: RefCell<Rx>,
    ring: mem::Mapping,
    port: Port,
}

/// What is behind a bridge's port.
enum Station {
    Vif(Rc<Served>),
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

    /// Has a frame wait where it goes to; `None` when it is dropped.
    fn queue(&self, frame: &Rc<Frame>) -> Option<Outlet> {
        match self {
            Self::Vif(vif) => {
                let inputs = vif.inputs.borrow();
                let input = match inputs.len() {
                    0 | 1 => inputs.first()?,
                    n => inputs.get(frame.flow() as usize % n)?,
                };
                let taken = input.rx.borrow_mut().queue(frame.clone());
                taken.then(|| Outlet::Vif(vif.clone(), input.clone()))
            }
            Self::Card(card) => card.queue(frame).then(|| Outlet::Card(card.clone())),
            Self::Own(own) => own.queue(frame).then(|| Outlet::Own(own.clone())),
        }
    }
}

/// Where frames wait to be given away.
enum Outlet {
    Vif(Rc<Served>, Rc<Input>),
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

#[derive(Default)]
struct Shared {
    vifs: RefCell<BTreeMap<(DomId, u32), Rc<Served>>>,
    bridges: RefCell<BTreeMap<String, Switch>>,
    own: RefCell<Option<Rc<Own>>>,
}

/// All bridges and interfaces.
#[derive(Clone, Default)]
pub struct Networks(Rc<Shared>);

impl Networks {
    /// Serves an interface. Its bridge is made when there is none of that name.
    pub fn start(&self, dom0: Dom0, start: &NetStart) -> Result<(), Errno> {
        let key = (start.dom, start.devid);
        if self.0.vifs.borrow().contains_key(&key) {
            return Err(Errno::EEXIST);
        }
        let back = format!("/local/domain/0/backend/vif/{}/{}", key.0, key.1);
        let front = format!("/local/domain/{}/device/vif/{}", key.0, key.1);
        let watches = (dom0.xs.watch(&back)?, dom0.xs.watch(&front)?);
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
        let served = Rc::new(Served {
            dom: start.dom,
            devid: start.devid,
            mac: start.mac.0,
            bridge: start.bridge.clone(),
            port,
            interface: RefCell::new(Interface::new(credit)),
            stop: Cell::default(),
            changed: Notify::default(),
            fault: RefCell::default(),
            draining: Cell::default(),
            wake: RefCell::default(),
            inputs: RefCell::default(),
            queues: Cell::default(),
            ended: Cell::default(),
        });
        switch.stations.insert(port, Station::Vif(served.clone()));
        drop(bridges);
        self.0.vifs.borrow_mut().insert(key, served.clone());
        let task = Task {
            dom0,
            nets: self.clone(),
            limits: Limits {
                queues: QUEUES,
                mtu: start.mtu,
            },
            back,
            front,
            served: served.clone(),
            said: Cell::default(),
        };
        let nets = self.clone();
        dom0.rt.spawn(async move {
            task.run(watches).await;
            nets.0.vifs.borrow_mut().remove(&key);
            if let Some(switch) = nets.0.bridges.borrow_mut().get_mut(&served.bridge) {
                switch.bridge.remove(served.port);
                switch.stations.remove(&served.port);
            }
            served.ended.set(true);
            served.changed.notify();
        });
        Ok(())
    }

    /// Ends serving an interface, and waits until nothing of the guest's is held any more.
    pub async fn stop(&self, dom: DomId, devid: u32) {
        let served = self.0.vifs.borrow().get(&(dom, devid)).cloned();
        let Some(served) = served else { return };
        let mut seen = served.changed.seen();
        served.stop.set(true);
        served.changed.notify();
        while !served.ended.get() {
            served.changed.changed(&mut seen).await;
        }
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
                        format!("vif{}.{}", v.dom, v.devid),
                        Some((v.dom, v.devid)),
                        Some(v.mac),
                        v.queues.get() > 0,
                    ),
                    Station::Card(card) => ("eth0".into(), None, card.mac(), card.link()),
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
                    let outlet = station.queue(&frame);
                    bridge.sent(port, frame.bytes().len(), outlet.is_some());
                    let Some(outlet) = outlet else { continue };
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
fn flush(vif: &Served, input: &Input) {
    match input
        .rx
        .borrow_mut()
        .flush(&*input.ring, &mut Grants(vif.dom))
    {
        Ok(true) => hvc::send(input.port),
        Ok(false) => {}
        Err(e) => vif.broke(e.to_string()),
    }
}

struct Task {
    dom0: Dom0,
    nets: Networks,
    limits: Limits,
    back: String,
    front: String,
    served: Rc<Served>,
    /// Lines that were shown.
    said: Cell<u32>,
}

impl Task {
    fn node(&self, dir: &str, key: &str) -> Option<String> {
        let value = self
            .dom0
            .xs
            .with(|s| s.read(&format!("{dir}/{key}")))
            .ok()?;
        String::from_utf8(value).ok()
    }

    /// Writes to the back end's folder, unless that is gone.
    fn write(&self, writes: Writes) {
        let _ = self.dom0.xs.with(|s| {
            s.transact(|t| {
                if t.exists(&format!("{}/frontend", self.back)) {
                    for (key, value) in &writes {
                        t.write(&format!("{}/{key}", self.back), value.as_bytes())?;
                    }
                }
                Ok::<(), Errno>(())
            })
        });
    }

    async fn run(&self, (mut back, mut front): (Watch, Watch)) {
        let mut device = Device::new(self.limits);
        loop {
            let mut seen = self.served.changed.seen();
            while back.try_next().is_some() || front.try_next().is_some() {}
            let fault = self.served.fault.take();
            if let Some(why) = fault {
                self.say(&format!("the guest breaks the protocol: {why}"));
                self.write(device.broken());
            }
            let control = self.node(&self.front, "request-multicast-control");
            self.served.interface.borrow_mut().groups.control =
                Groups::requested(control.as_deref());
            let state = self.node(&self.front, "state");
            let state = match state
                .and_then(|s| s.parse().ok())
                .and_then(State::from_number)
            {
                Some(state) if !self.served.stop.get() => state,
                _ => State::Unknown,
            };
            let online = self.node(&self.back, "online").as_deref() != Some("0");
            match device.step(state, online, |key| self.node(&self.front, key)) {
                Step::Wait if self.served.stop.get() => break,
                Step::Wait => {
                    let changed = self.served.changed.changed(&mut seen);
                    select3(back.changed(), front.changed(), changed).await;
                }
                Step::Write(writes) => self.write(writes),
                Step::Connect(config) => {
                    let writes = match self.connect(&config) {
                        Ok(()) => device.connected(),
                        Err(e) => {
                            self.say(&format!("cannot connect: {e}"));
                            device.connect_failed()
                        }
                    };
                    self.write(writes);
                }
                Step::Refuse(bad, writes) => {
                    self.say(&format!("{bad}, which makes no sense"));
                    self.write(writes);
                }
                Step::Disconnect => {
                    self.disconnect().await;
                    device.disconnected();
                }
                Step::Gone => break,
            }
        }
        self.disconnect().await;
    }

    fn say(&self, what: &str) {
        let said = self.said.get();
        if said >= REPORTS {
            return;
        }
        self.said.set(said + 1);
        self.dom0
            .terminal
            .write(&format!("{}: {what}\n", self.back));
    }

    fn connect(&self, config: &FrontConfig) -> Result<(), Errno> {
        self.served.draining.set(false);
        // What an earlier connection's queues ended with, and asked for.
        self.served.fault.take();
        self.served.interface.borrow_mut().groups.clear();
        let mut ready = Vec::new();
        for q in &config.queues {
            ready.push(self.open(config, q)?);
        }
        for runner in ready {
            let mut wake = self.served.wake.borrow_mut();
            wake.push(runner.tx_port.waker());
            self.served.inputs.borrow_mut().push(runner.input.clone());
            self.served.queues.set(self.served.queues.get() + 1);
            self.dom0.rt.spawn(runner.run());
        }
        Ok(())
    }

    fn open(&self, config: &FrontConfig, q: &QueueConfig) -> Result<Runner, Errno> {
        let map = |gref| {
            mem::map_grants(self.served.dom, &[gref], true).map_err(|e| match e {
                GrantStatus::NoSpace => Errno::ENOMEM,
                _ => Errno::EINVAL,
            })
        };
        let (ring, rx_ring) = (map(q.tx_ring)?, map(q.rx_ring)?);
        let tx = Tx::attach(&*ring, &self.limits).ok_or(Errno::EINVAL)?;
        let rx = Rx::attach(&*rx_ring, config).ok_or(Errno::EINVAL)?;
        let connect = |port| self.dom0.rt.connect(self.served.dom, port);
        let tx_port = connect(q.tx_port)?;
        let rx_port = match q.rx_port == q.tx_port {
            true => None,
            false => Some(connect(q.rx_port)?),
        };
        let input = Input {
            rx: RefCell::new(rx),
            ring: rx_ring,
            port: rx_port.as_ref().unwrap_or(&tx_port).port(),
        };
        Ok(Runner {
            dom0: self.dom0,
            nets: self.nets.clone(),
            served: self.served.clone(),
            tx,
            ring,
            tx_port,
            rx_port,
            input: Rc::new(input),
        })
    }

    async fn disconnect(&self) {
        self.served.draining.set(true);
        self.served.inputs.borrow_mut().clear();
        for wake in self.served.wake.take() {
            wake.notify();
        }
        let mut seen = self.served.changed.seen();
        while self.served.queues.get() > 0 {
            self.served.changed.changed(&mut seen).await;
        }
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
    dom0: Dom0,
    nets: Networks,
    served: Rc<Served>,
    tx: Tx,
    ring: mem::Mapping,
    tx_port: Listener,
    rx_port: Option<Listener>,
    input: Rc<Input>,
}

impl Runner {
    async fn run(mut self) {
        let mut frames = Vec::new();
        while !self.served.draining.get() {
            let taken = self.tx.take(
                &*self.ring,
                &mut Grants(self.served.dom),
                &mut self.served.interface.borrow_mut(),
                time::now_ns(),
                BUDGET,
                &mut frames,
            );
            let (bridge, port) = (&self.served.bridge, self.served.port);
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
                Err(e) => self.served.broke(e.to_string()),
            }
            self.nets.forward(bridge, port, frames.drain(..));
            flush(&self.served, &self.input);
            if more {
                yield_now().await;
            } else {
                self.wait(until).await;
            }
        }
        let served = self.served.clone();
        drop(self);
        served.queues.set(served.queues.get() - 1);
        served.changed.notify();
    }

    /// Waits for an event, or a time in nanoseconds.
    async fn wait(&mut self, until: Option<u64>) {
        let rt = self.dom0.rt;
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
