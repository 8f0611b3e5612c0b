// SPDX-License-Identifier: MIT OR Apache-2.0
//! The loop under all tasks: runs what is ready, takes interrupts, and sleeps.

use crate::exec::{Executor, Notify, OWN, Timers};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use backends::fair::Patience;
use core::cell::{Cell, RefCell};
use core::future::Future;
use el1::{cpu, events, gic, hvc, time};
use guest_abi::{DomId, Errno, Port, calls};

/// How many tasks run between two looks for interrupts.
const BURST: usize = 16;
/// What an event costs whom it is from, in nanoseconds, beside what is done at it.
const EVENT: u64 = 2000;

/// The machine that all tasks share.
#[derive(Default)]
pub struct Rt {
    exec: Executor,
    timers: Timers,
    ports: RefCell<BTreeMap<u32, (u16, Rc<Notify>)>>,
    lines: RefCell<BTreeMap<u32, Rc<dyn Fn()>>>,
}

impl Rt {
    /// One for the program's whole life.
    #[must_use]
    pub fn new() -> &'static Self {
        gic::enable(time::INTID, gic::Trigger::Level);
        Box::leak(Box::default())
    }

    /// Adds a task of this program's own.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.exec.spawn(OWN, task);
    }

    /// Adds a task that works for a domain, on its time.
    pub fn spawn_for(&self, dom: DomId, task: impl Future<Output = ()> + 'static) {
        self.exec.spawn(dom.0, task);
    }

    /// Whether others than a domain's tasks are ready to run: then one of its tasks does less at a time.
    pub fn is_wanted(&self, dom: DomId) -> bool {
        self.exec.is_wanted(dom.0)
    }

    /// Waits.
    pub async fn sleep_ms(&self, ms: u64) {
        let until = time::now_ns().saturating_add(ms.saturating_mul(1_000_000));
        self.timers.until(until).await;
    }

    /// Has `handle` called when an interrupt comes up, which is to be let through by the caller.
    pub fn on_interrupt(&self, intid: u32, handle: impl Fn() + 'static) {
        self.lines.borrow_mut().insert(intid, Rc::new(handle));
    }

    /// Takes event-channel interrupts.
    pub fn serve_events(&'static self, intid: u32) {
        self.on_interrupt(intid, || events::take(|port| self.event(port)));
    }

    /// A port came up. It stays masked until its listener has looked after it and waits again: what the peer does
    /// meanwhile interrupts nobody.
    fn event(&self, port: u32) {
        events::mask(port);
        if let Some((whose, notify)) = self.ports.borrow().get(&port) {
            self.exec.charge(*whose, EVENT);
            notify.notify();
        }
    }

    /// Connects to a port that another domain keeps for this one.
    pub fn connect(&'static self, dom: DomId, port: Port) -> Result<Listener, Errno> {
        calls::event::bind_interdomain(&hvc::xen(), dom, port)
            .map(|own| self.listen_for(dom.0, own))
    }

    /// Listens on a port of this domain's own, and closes it at the end.
    pub fn listen(&'static self, port: Port) -> Listener {
        self.listen_for(OWN, port)
    }

    fn listen_for(&'static self, whose: u16, port: Port) -> Listener {
        let notify: Rc<Notify> = Rc::default();
        let entry = (whose, notify.clone());
        self.ports.borrow_mut().insert(port.0, entry);
        events::unmask(port.0);
        Listener {
            rt: self,
            port,
            seen: notify.seen(),
            notify,
            patience: Cell::default(),
        }
    }

    /// Runs for ever.
    pub fn run(&self) -> ! {
        loop {
            for _ in 0..BURST {
                if !self.exec.run_one(time::now_ns) {
                    break;
                }
            }
            while gic::poll(|intid| {
                if intid == time::INTID {
                    time::set_alarm(None);
                    return;
                }
                let handle = self.lines.borrow().get(&intid).cloned();
                match handle {
                    Some(handle) => handle(),
                    None => gic::disable(intid),
                }
            }) {}
            let next = self.timers.fire(time::now_ns());
            if !self.exec.is_ready() {
                time::set_alarm(next);
                cpu::idle();
            }
        }
    }
}

/// A port that is listened on, until this is dropped, which closes it.
pub struct Listener {
    rt: &'static Rt,
    port: Port,
    notify: Rc<Notify>,
    seen: u64,
    patience: Cell<Patience>,
}

impl Listener {
    /// The port's number.
    #[must_use]
    pub fn port(&self) -> Port {
        self.port
    }
    /// Tells the other end.
    pub fn send(&self) {
        hvc::send(self.port);
    }
    /// Waits for an event since the last wait.
    pub async fn wait(&mut self) {
        self.open();
        self.notify.changed(&mut self.seen).await;
    }
    /// Lets events through again, to be called when what the last one was for has been looked after, before the wait
    /// for the next. One that came meanwhile is told at once.
    pub fn open(&self) {
        if events::open(self.port.0) {
            self.notify.notify();
        }
    }
    /// There was something to do at the last event, or not: for how long, in milliseconds, the port is to be left as it
    /// is before it is opened, for it rings too often for nothing.
    #[must_use]
    pub fn judge(&self, useful: bool) -> u64 {
        let mut patience = self.patience.get();
        let wait = patience.judge(useful);
        self.patience.set(patience);
        wait
    }
    /// Has the next wait end at once, for others who know of something to do.
    #[must_use]
    pub fn waker(&self) -> Rc<Notify> {
        self.notify.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        events::mask(self.port.0);
        self.rt.ports.borrow_mut().remove(&self.port.0);
        let _ = calls::event::close(&hvc::xen(), self.port);
    }
}
