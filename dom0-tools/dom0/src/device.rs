// SPDX-License-Identifier: MIT OR Apache-2.0
//! The devices that guests are served: the life of each in the store, and its queues' beginning and end.

use crate::exec::Notify;
use crate::host::Dom0;
use crate::rt::Listener;
use crate::xs::Watch;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use backends::device::{Device, Kind, Step, Writes};
use core::cell::{Cell, RefCell};
use core::fmt::Display;
use el1::mem;
use embassy_futures::select::select3;
use guest_abi::grant_table::GrantStatus;
use guest_abi::io::xenbus::State;
use guest_abi::{DomId, Errno, GrantRef, Port};

/// Most lines that are shown of what goes wrong with a device.
const REPORTS: u32 = 8;

/// What is a device's own.
pub trait Service: 'static {
    /// What it is in the store.
    type Kind: Kind;
    /// Begins all of a front end's queues ([`Served::begin`]), or none.
    fn connect(&self, config: &<Self::Kind as Kind>::Front) -> Result<(), Errno>;
    /// Something in the front end's folder may have changed.
    fn look(&self) {}
    /// The queues are to end.
    fn disconnect(&self) {}
    /// The device and its queues have ended.
    async fn ended(&self);
}

/// A device that is served.
pub struct Served {
    pub dom0: Dom0,
    pub dom: DomId,
    pub id: u32,
    back: String,
    front: String,
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
    /// Queues that run.
    queues: Cell<usize>,
    ended: Cell<bool>,
    /// Lines that were shown.
    said: Cell<u32>,
}

/// Watches of a device's folders, the back end's and the front end's.
type Watches = (Watch, Watch);

/// Devices by their domain and number.
type Table = BTreeMap<(DomId, u32), Rc<Served>>;

/// The devices of a kind that are served.
#[derive(Clone, Default)]
pub struct Devices(Rc<RefCell<Table>>);

impl Devices {
    /// A device that is to be served.
    pub fn open(
        &self,
        dom0: Dom0,
        kind: &str,
        dom: DomId,
        id: u32,
    ) -> Result<(Rc<Served>, Watches), Errno> {
        if self.0.borrow().contains_key(&(dom, id)) {
            return Err(Errno::EEXIST);
        }
        let back = format!("/local/domain/0/backend/{kind}/{dom}/{id}");
        let front = format!("/local/domain/{dom}/device/{kind}/{id}");
        let watches = (dom0.xs.watch(&back)?, dom0.xs.watch(&front)?);
        let served = Served {
            dom0,
            dom,
            id,
            back,
            front,
            stop: Cell::default(),
            changed: Notify::default(),
            fault: RefCell::default(),
            draining: Cell::default(),
            wake: RefCell::default(),
            queues: Cell::default(),
            ended: Cell::default(),
            said: Cell::default(),
        };
        Ok((Rc::new(served), watches))
    }

    /// Serves it, in a task of its own.
    pub fn serve<S: Service>(
        &self,
        (served, watches): (Rc<Served>, Watches),
        device: Device<S::Kind>,
        service: S,
    ) {
        let key = (served.dom, served.id);
        self.0.borrow_mut().insert(key, served.clone());
        let all = self.clone();
        served.dom0.rt.spawn_for(served.dom, async move {
            served.live(watches, device, &service).await;
            service.ended().await;
            all.0.borrow_mut().remove(&key);
            served.ended.set(true);
            served.changed.notify();
        });
    }

    /// Ends serving a device, and waits until nothing of the guest's is held any more.
    pub async fn stop(&self, dom: DomId, id: u32) {
        let served = self.0.borrow().get(&(dom, id)).cloned();
        let Some(served) = served else { return };
        let mut seen = served.changed.seen();
        served.stop.set(true);
        served.changed.notify();
        while !served.ended.get() {
            served.changed.changed(&mut seen).await;
        }
    }
}

impl Served {
    /// A queue broke the protocol.
    pub fn broke(&self, why: impl Display) {
        *self.fault.borrow_mut() = Some(why.to_string());
        self.changed.notify();
    }

    /// Whether queues are to end.
    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Queues that run.
    pub fn queues(&self) -> usize {
        self.queues.get()
    }

    /// Begins a queue, and how to wake it when it is to end.
    pub fn begin(self: &Rc<Self>, wake: Rc<Notify>, queue: impl Future<Output = ()> + 'static) {
        self.wake.borrow_mut().push(wake);
        self.queues.set(self.queues.get() + 1);
        let served = self.clone();
        self.dom0.rt.spawn_for(self.dom, async move {
            queue.await;
            served.queues.set(served.queues.get() - 1);
            served.changed.notify();
        });
    }

    /// Maps pages of the guest's.
    pub fn map(&self, pages: &[GrantRef]) -> Result<mem::Mapping, Errno> {
        mem::map_grants(self.dom, pages, true).map_err(|e| match e {
            GrantStatus::NoSpace => Errno::ENOMEM,
            _ => Errno::EINVAL,
        })
    }

    /// Binds an event channel of the guest's.
    pub fn bind(&self, port: Port) -> Result<Listener, Errno> {
        self.dom0.rt.connect(self.dom, port)
    }

    /// What the front end wrote to a node of its folder.
    pub fn front(&self, key: &str) -> Option<String> {
        self.node(&self.front, key)
    }

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

    /// Shows what goes wrong, unless that is too much.
    pub fn say(&self, what: &str) {
        let said = self.said.get();
        if said >= REPORTS {
            return;
        }
        self.said.set(said + 1);
        self.dom0
            .terminal
            .write(&format!("{}: {what}\n", self.back));
    }

    async fn live<S: Service>(
        &self,
        (mut back, mut front): Watches,
        mut device: Device<S::Kind>,
        service: &S,
    ) {
        loop {
            let mut seen = self.changed.seen();
            while back.try_next().is_some() || front.try_next().is_some() {}
            let fault = self.fault.take();
            if let Some(why) = fault {
                self.say(&format!("the guest breaks the protocol: {why}"));
                self.write(device.broken());
            }
            service.look();
            let state = self.front("state");
            let state = match state
                .and_then(|s| s.parse().ok())
                .and_then(State::from_number)
            {
                Some(state) if !self.stop.get() => state,
                _ => State::Unknown,
            };
            let online = self.node(&self.back, "online").as_deref() != Some("0");
            match device.step(state, online, |key| self.front(key)) {
                Step::Wait if self.stop.get() => break,
                Step::Wait => {
                    let changed = self.changed.changed(&mut seen);
                    select3(back.changed(), front.changed(), changed).await;
                }
                Step::Write(writes) => self.write(writes),
                Step::Connect(config) => {
                    self.draining.set(false);
                    // What an earlier connection's queues ended with.
                    self.fault.take();
                    let writes = match service.connect(&config) {
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
                    self.disconnect(service).await;
                    device.disconnected();
                }
                Step::Gone => break,
            }
        }
        self.disconnect(service).await;
    }

    async fn disconnect(&self, service: &impl Service) {
        self.draining.set(true);
        service.disconnect();
        for wake in self.wake.take() {
            wake.notify();
        }
        let mut seen = self.changed.seen();
        while self.queues.get() > 0 {
            self.changed.changed(&mut seen).await;
        }
    }
}
