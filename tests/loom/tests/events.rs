// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event words and bitmaps: the hypervisor raises, the guest takes, masks and unmasks, and no event is lost in any
//! order of their accesses (XSA-340, 358, 359, 505: what was published in the wrong order, or changed meanwhile).

use guest_abi::event_channel::{
    EventOp, EvtchnBindIpi, EvtchnExpandArray, EvtchnInitControl, EvtchnUnmask, fifo,
};
use guest_abi::events::{Area, Events as GuestEvents, Upcall};
use guest_abi::mem::Page;
use guest_abi::xen::offset;
use guest_abi::{Errno, Gfn, Hypercall, HypercallNr, Lent, call};
use hv_core::event::{Events, Notify, Progress};
use hv_core::types::{DomId, Mfn, Pa, Port, Slot};
use loom::sync::{Arc, Mutex};
use loom::thread;
use loom_models::{Memory, View, model};
use std::cell::Cell;
use zerocopy::{FromBytes, IntoBytes};

const INFO: u64 = 0x1000;
const AREA: u64 = 0x2000;
const ARRAY: u64 = 0x3000;
const SLOT: Slot = Slot(1);

/// The hypervisor as a guest reaches it: its lock, and what it raised.
#[derive(Clone)]
struct Hv {
    events: Arc<Mutex<Events>>,
    memory: Memory,
    fifo: bool,
}

impl Hv {
    fn with<R>(&self, f: impl FnOnce(&mut Events) -> R) -> R {
        f(&mut self.events.lock().unwrap())
    }

    fn send(&self, port: Port) -> Notify {
        self.with(|e| e.send(SLOT, port, &self.memory)).unwrap()
    }

    fn op(&self, op: u64, arg: u64, lent: &mut [Lent<'_>]) -> Result<(), Errno> {
        fn get<T: FromBytes + IntoBytes>(arg: u64, lent: &mut [Lent<'_>]) -> T {
            let mut t = T::new_zeroed();
            assert!(call::read(lent, arg, t.as_mut_bytes()));
            t
        }
        let m = &self.memory;
        match EventOp::from_number(op) {
            Some(EventOp::InitControl) if !self.fifo => Err(Errno::ENOSYS),
            Some(EventOp::InitControl) => {
                let o: EvtchnInitControl = get(arg, lent);
                self.with(|e| e.init_control(SLOT, o.vcpu, Mfn(o.control_gfn), o.offset))
            }
            Some(EventOp::ExpandArray) => {
                let o: EvtchnExpandArray = get(arg, lent);
                self.with(|e| e.expand_array(SLOT, Mfn(o.array_gfn), m))
                    .map(drop)
            }
            Some(EventOp::Unmask) => {
                let o: EvtchnUnmask = get(arg, lent);
                self.with(|e| e.unmask(SLOT, o.port, m)).map(drop)
            }
            Some(EventOp::BindIpi) => {
                let mut o: EvtchnBindIpi = get(arg, lent);
                o.port = self.with(|e| e.bind_ipi(SLOT, o.vcpu, m))?;
                assert!(call::write(lent, arg, o.as_bytes()));
                Ok(())
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Hypercall for Hv {
    fn call(&self, nr: HypercallNr, args: [u64; 5], lent: &mut [Lent<'_>]) -> i64 {
        assert_eq!(nr, HypercallNr::EventChannelOp);
        self.op(args[0], args[1], lent)
            .map_or_else(|e| e.to_ret(), |()| 0)
    }
}

type Guest = GuestEvents<Hv, View, Vec<Page<View>>>;

struct Setup {
    hv: Hv,
    guest: Guest,
    upcall: Upcall<View>,
    ports: Vec<Port>,
}

/// A domain with one vcpu and some ports by which it signals itself, unmasked and with no event.
fn setup(fifo: bool, ports: usize) -> Setup {
    let memory = Memory::new(&[
        (INFO, 16),
        (INFO + offset::EVTCHN_PENDING as u64, 8),
        (INFO + offset::EVTCHN_MASK as u64, 8),
        (AREA, 128),
        (ARRAY, 16),
    ]);
    let mut events = Events::new();
    events.create_domain(SLOT, DomId(1), 1023, 1).unwrap();
    events.set_shared_info(SLOT, Some(Pa(INFO))).unwrap();
    let hv = Hv {
        events: Arc::new(Mutex::new(events)),
        memory: memory.clone(),
        fifo,
    };
    let page = |base: u64| Page {
        mem: View {
            memory: memory.clone(),
            base,
        },
        gfn: Gfn(base >> 12),
    };
    let array = if fifo { vec![page(ARRAY)] } else { Vec::new() };
    let area = Area::new(page(AREA), 0);
    let (guest, upcall) = GuestEvents::new(hv.clone(), page(INFO).mem, array, area).unwrap();
    let ports: Vec<Port> = (0..ports)
        .map(|_| guest.bind_ipi(0).unwrap().into_port())
        .collect();
    for port in &ports {
        guest.take(*port);
        guest.unmask(*port).unwrap();
    }
    Setup {
        hv,
        guest,
        upcall,
        ports,
    }
}

impl Setup {
    /// The guest takes the interrupts that it is told of, and no more; how many events of each port it had then.
    fn drain(&mut self, mut had: Vec<u32>) -> Vec<u32> {
        let first = self.ports[0].0;
        for _ in 0..4 {
            if !self.upcall.is_pending(&self.guest) {
                return had;
            }
            let more = self
                .upcall
                .scan(&self.guest, 100, |p| had[(p.0 - first) as usize] += 1);
            assert!(!more);
        }
        panic!("the upcall does not come to rest");
    }
}

/// Scans while another CPU sends; then takes what is left. Every event is had once.
fn send_and_scan(fifo: bool, ports: usize) {
    // All orders of two ports are some 7,000, and a minute's work.
    let switches = (ports > 1).then_some(4);
    model(switches, move || {
        let mut s = setup(fifo, ports);
        let (hv, to) = (s.hv.clone(), s.ports.clone());
        let sender = thread::spawn(move || {
            let mut raised = false;
            for port in to {
                raised |= hv.send(port).upcall_vcpus().next().is_some();
            }
            raised
        });
        let first = s.ports[0].0;
        let mut had = vec![0; ports];
        let _ = s
            .upcall
            .scan(&s.guest, 100, |p| had[(p.0 - first) as usize] += 1);
        let raised = sender.join().unwrap();
        assert!(
            raised,
            "the first event finds the upcall not pending, or sets it anew"
        );
        assert_eq!(s.drain(had), vec![1; ports]);
    });
}

#[test]
fn xsa_358_fifo_events_are_not_lost() {
    send_and_scan(true, 1);
}

#[test]
fn xsa_359_a_queue_of_two_is_linked_while_it_is_read() {
    send_and_scan(true, 2);
}

#[test]
fn two_level_events_are_not_lost() {
    send_and_scan(false, 1);
}

/// A port is unmasked while an event comes: it is had, once, whoever saw the other first.
fn send_and_unmask(fifo: bool) {
    model(None, move || {
        let mut s = setup(fifo, 1);
        let port = s.ports[0];
        s.guest.mask(port);
        let hv = s.hv.clone();
        let sender = thread::spawn(move || {
            let _ = hv.send(port);
        });
        s.guest.unmask(port).unwrap();
        sender.join().unwrap();
        assert_eq!(s.drain(vec![0]), [1]);
    });
}

#[test]
fn xsa_340_fifo_event_while_its_port_is_unmasked() {
    send_and_unmask(true);
}

#[test]
fn two_level_event_while_its_port_is_unmasked() {
    send_and_unmask(false);
}

/// The guest masks, takes and unmasks as an interrupt handler does, while two events come one after the other: at
/// least one is had, and one that came after the last was taken is had too.
#[test]
fn a_handler_that_masks_and_unmasks() {
    for fifo in [true, false] {
        model(None, move || {
            let mut s = setup(fifo, 1);
            let port = s.ports[0];
            let hv = s.hv.clone();
            let sender = thread::spawn(move || {
                let _ = hv.send(port);
            });
            s.guest.mask(port);
            let early = u32::from(s.guest.take(port));
            s.guest.unmask(port).unwrap();
            sender.join().unwrap();
            let had = s.drain(vec![early]);
            assert_eq!(had, [1]);
        });
    }
}

/// `EVTCHNOP_reset` takes the words away while the guest reads them, and an event is sent meanwhile: nobody
/// touches a page that was given back, and the ports are gone.
#[test]
fn xsa_505_a_reset_while_events_are_sent_and_read() {
    model(None, || {
        let mut s = setup(true, 1);
        let (hv, port) = (s.hv.clone(), s.ports[0]);
        let resetter = thread::spawn(move || {
            let released = Cell::new(0);
            let m = hv.memory.clone();
            let mut resuming = false;
            loop {
                let r = hv.with(|e| {
                    e.reset(SLOT, resuming, 32, &m, |_| released.set(released.get() + 1))
                });
                resuming = true;
                if r.unwrap() == Progress::Done {
                    break;
                }
            }
            assert_eq!(
                released.get(),
                2,
                "the control block's page and one of words"
            );
        });
        let sent = s.hv.with(|e| e.send(SLOT, port, &s.hv.memory));
        let mut had = 0;
        let _ = s.upcall.scan(&s.guest, 100, |_| had += 1);
        resetter.join().unwrap();
        assert!(had <= u32::from(sent.is_ok()));
        assert_eq!(s.hv.with(|e| e.ports_in_use(SLOT)), 0);
        assert!(s.hv.with(|e| e.send(SLOT, port, &s.hv.memory)).is_err());
    });
}

/// The offset of a word of the array, as the hypervisor and the guest have it.
const _: () = assert!(fifo::WORDS_PER_PAGE == 1024);
