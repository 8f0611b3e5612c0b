// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's network card: a port of the default bridge, by which guests reach the world.

use crate::exec::{Notify, yield_now};
use crate::host::Dom0;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use backends::bridge::{Mac, PortId};
use backends::net::{Frame, Header, Offload, Waiting, join};
use core::cell::{Cell, RefCell};
use el1::machine::VirtioMmio;
use el1::virtio::{Fault, net};
use toolstack::host::DEFAULT_BRIDGE;

/// Frames that are taken from the card at a time.
const BUDGET: usize = 64;
/// And bytes, with which no further one is taken.
const BYTES: usize = 256 << 10;

/// The card.
pub struct Card {
    /// `None` once it misbehaved: it was reset then.
    device: RefCell<Option<net::Card>>,
    mac: Option<Mac>,
    max_frame: usize,
    offload: Offload,
    /// What is to be sent.
    waiting: RefCell<Waiting>,
    /// Its interrupt came up, or it misbehaved.
    changed: Notify,
    fault: Cell<Option<Fault>>,
}

/// Takes the first card among the transports, if there is one, and puts it on the default bridge.
pub fn start(dom0: Dom0) -> Option<Rc<Card>> {
    for at in &dom0.machine.virtio {
        match net::Card::open(at, Offload::choose) {
            Ok(None) => {}
            Ok(Some(device)) => return serve(dom0, at, device),
            Err(e) => {
                say(dom0, e);
                return None;
            }
        }
    }
    None
}

fn say(dom0: Dom0, fault: Fault) {
    dom0.terminal
        .write(&format!("dom0: the network card {fault}\n"));
}

fn serve(dom0: Dom0, at: &VirtioMmio, device: net::Card) -> Option<Rc<Card>> {
    let card = Rc::new(Card {
        mac: device.mac(),
        max_frame: device.max_frame(),
        offload: Offload::new(device.features(), device.max_frame()),
        device: RefCell::new(Some(device)),
        waiting: RefCell::default(),
        changed: Notify::default(),
        fault: Cell::default(),
    });
    let port = dom0.networks.add_card(card.clone())?;
    let handle = card.clone();
    dom0.rt.on_interrupt(at.intid, move || {
        if let Some(device) = &mut *handle.device.borrow_mut() {
            device.acknowledge();
        }
        handle.changed.notify();
    });
    let this = card.clone();
    dom0.rt.spawn(async move {
        let fault = this.run(dom0, port).await;
        // Resets it.
        this.device.take();
        this.waiting.take();
        say(dom0, fault);
    });
    Some(card)
}

impl Card {
    /// Its Ethernet address, if it has one.
    pub fn mac(&self) -> Option<Mac> {
        self.mac
    }

    /// It is connected with something.
    pub fn link(&self) -> bool {
        self.device.borrow().as_ref().is_some_and(net::Card::link)
    }

    /// Adds a frame, which [`Self::flush`] sends. False when it, or a part of it, is dropped: it is too long for the
    /// card, or too much waits.
    pub fn queue(&self, frame: &Rc<Frame>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let (whole, max_frame) = match self.offload.splits(frame) {
            true => (true, usize::MAX),
            false => (false, self.max_frame),
        };
        self.device.borrow().is_some() && waiting.add(frame.clone(), whole, max_frame)
    }

    /// Bytes that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.borrow().bytes()
    }

    /// Sends what waits, as much as the card takes.
    pub fn flush(&self) {
        if let Some(device) = &mut *self.device.borrow_mut()
            && let Err(e) = self.send(device)
        {
            self.fault.set(Some(e));
            self.changed.notify();
        }
    }

    fn send(&self, device: &mut net::Card) -> Result<(), Fault> {
        let mut waiting = self.waiting.borrow_mut();
        while !waiting.is_empty() && device.has_room()? {
            let Some(frame) = waiting.take() else {
                break;
            };
            // Not copied when nobody else is to get it.
            let (header, bytes) = self.offload.send(Rc::unwrap_or_clone(frame));
            device.send(header.to_bytes(), bytes);
        }
        Ok(())
    }

    /// Takes some frames from the card; whether there may be more. What is shorter than an Ethernet header is no frame,
    /// nor is what the card says nonsense of.
    fn take(&self, frames: &mut Vec<Frame>) -> Result<bool, Fault> {
        let mut device = self.device.borrow_mut();
        let Some(device) = &mut *device else {
            return Ok(false);
        };
        let mut bytes = 0;
        for _ in 0..BUDGET {
            let Some(got) = device.receive()? else {
                return Ok(false);
            };
            bytes += got.bytes.len();
            let header = Header::from_bytes(got.header);
            frames.extend(self.offload.receive(&header, got.bytes));
            if bytes >= BYTES {
                break;
            }
        }
        Ok(true)
    }

    /// Serves the card until it misbehaves.
    async fn run(&self, dom0: Dom0, port: PortId) -> Fault {
        let mut frames = Vec::new();
        loop {
            let mut seen = self.changed.seen();
            if let Some(fault) = self.fault.take() {
                return fault;
            }
            let more = match self.take(&mut frames) {
                Ok(more) => more,
                Err(fault) => return fault,
            };
            join(&mut frames, self.max_frame);
            dom0.networks
                .forward(DEFAULT_BRIDGE, port, frames.drain(..));
            self.flush();
            if more {
                yield_now().await;
            } else {
                self.changed.changed(&mut seen).await;
            }
        }
    }
}
