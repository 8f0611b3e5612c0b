// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network front end: its rings, its pages, its keys.

use crate::{Input, Page};
use backends::bridge::{Bridge, Filter, Net};
use backends::net::{
    Copies, CopyIn, CopyOut, Credit, Device, FrontConfig, HEADER, Interface, Limits, Rx, Step, Tx,
    Waiting,
};
use guest_abi::io::netif::{NetifRxRequest, NetifTxRequest};
use guest_abi::io::ring::head;
use guest_abi::mem::SharedMem;
use guest_abi::{GrantRef, PAGE_SIZE};
use std::rc::Rc;
use zerocopy::IntoBytes;

/// Entries of either ring.
const ENTRIES: u32 = 256;

/// What is in the guest's pages: any bytes, the same for all. Every eighth is not granted.
struct Guest<'d>(&'d [u8]);

impl Guest<'_> {
    fn granted(gref: GrantRef) -> bool {
        !gref.0.is_multiple_of(8)
    }
}

impl Copies for Guest<'_> {
    fn copy_in(&mut self, list: &mut [CopyIn<'_>]) {
        for c in list {
            assert!(!c.to.is_empty() && usize::from(c.offset) + c.to.len() <= PAGE_SIZE);
            let bytes = self.0.iter().chain(core::iter::repeat(&0));
            for (to, from) in c.to.iter_mut().zip(bytes) {
                *to = *from;
            }
            c.ok = Self::granted(c.gref);
        }
    }

    fn copy_out(&mut self, list: &mut [CopyOut<'_>]) {
        assert!(list.len() <= ENTRIES as usize);
        for c in list {
            assert!((1..=PAGE_SIZE).contains(&c.from.len()));
            c.ok = Self::granted(c.gref);
        }
    }
}

/// The bytes are acts of a front end on both of its rings and its keys. Nothing panics; frames are within their bounds;
/// what was answered was asked for; and after a breach of the protocol nothing more is taken or given.
pub fn netback(data: &[u8]) {
    let mut input = Input(data);
    // The guest's pages begin with these bytes, and each act takes further ones.
    let mut guest = Guest(data);
    let start = input.u32();
    let limits = Limits {
        queues: 1 + u16::from(input.u8() % 4),
        mtu: [68, 1500, 9000, 65_517][usize::from(input.u8() % 4)],
    };
    let flags = input.u8();
    let flag = |bit: u8| flags >> bit & 1 != 0;
    let config = FrontConfig {
        scatter_gather: flag(0),
        blank_ipv4: flag(1),
        blank_ipv6: flag(2),
        split_ipv4: flag(3) && flag(0) && flag(1),
        split_ipv6: flag(4) && flag(0) && flag(2),
        queues: Vec::new(),
    };
    let mut interface = Interface::new(match flag(5) {
        true => Credit::new(input.u16().into(), input.u16().into()),
        false => Credit::unlimited(),
    });
    interface.groups.control = flag(7);
    let (tx_page, rx_page) = (Page::new(start), Page::new(start));
    let (Some(mut tx), Some(mut rx)) = (
        Tx::attach(&tx_page.mem(), &limits),
        Rx::attach(&rx_page.mem(), &config, Waiting::default()),
    ) else {
        panic!("a page holds a ring");
    };
    let mut bridge = Bridge::default();
    let own = bridge.add(Filter {
        mac: None,
        ips: match flag(6) {
            true => vec![Net {
                address: [10, 0, 0, 1].into(),
                bits: 24,
            }],
            false => Vec::new(),
        },
    });
    let (Some(own), Some(other)) = (own, bridge.add(Filter::default())) else {
        panic!("there is room for two ports");
    };
    let mut device = Device::new(limits);
    let (mut tx_prod, mut rx_prod) = (start, start);
    let (mut tx_broken, mut rx_broken) = (false, false);
    let (mut now, mut to, mut shown) = (0, Vec::new(), start);

    while let Some(act) = input.act() {
        match act % 12 {
            // Any bytes anywhere in a ring's page.
            0 => {
                let at = usize::from(input.u16() % 4096);
                tx_page.write(at & !3, input.take(16));
            }
            1 => {
                let at = usize::from(input.u16() % 4096);
                rx_page.write(at & !3, input.take(16));
            }
            // Requests that make some sense, and are shown.
            2..5 => {
                for _ in 0..=input.u8() % 4 {
                    let request = NetifTxRequest {
                        gref: GrantRef(input.u8().into()),
                        offset: input.u16() % 4100,
                        flags: u16::from(input.u8() % 16),
                        id: input.u8().into(),
                        size: input.u16(),
                    };
                    let slot = tx_prod % ENTRIES * 12;
                    tx_page.write(head::ENTRIES + slot as usize, request.as_bytes());
                    tx_prod = tx_prod.wrapping_add(1);
                }
                tx_page.mem().store32(head::REQ_PROD, tx_prod);
            }
            5 => {
                for _ in 0..=input.u8() % 32 {
                    let request = NetifRxRequest {
                        id: input.u8().into(),
                        pad: 0,
                        gref: GrantRef(input.u8().into()),
                    };
                    let slot = rx_prod % ENTRIES * 8;
                    rx_page.write(head::ENTRIES + slot as usize, request.as_bytes());
                    rx_prod = rx_prod.wrapping_add(1);
                }
                rx_page.mem().store32(head::REQ_PROD, rx_prod);
            }
            // Indices that are any number.
            6 => tx_page.mem().store32(head::REQ_PROD, input.u32()),
            7 => rx_page.mem().store32(head::REQ_PROD, input.u32()),
            8 => now += u64::from(input.u32()),
            // The keys, and states of both ends.
            9 => {
                let (front, online) = (input.state(), input.u8() % 4 != 0);
                match device.step(front, online, |_| input.value()) {
                    Step::Connect(config) => {
                        assert!((1..=usize::from(limits.queues)).contains(&config.queues.len()));
                        let _ = match input.u8() % 2 {
                            0 => device.connected(),
                            _ => device.connect_failed(),
                        };
                    }
                    Step::Disconnect => device.disconnected(),
                    _ => {}
                }
            }
            // A turn of the back end's.
            _ => {
                let budget = usize::from(input.u8() % 70);
                guest.0 = input.0;
                // Where the front end wrote over it, that is its own affair.
                tx_page.mem().store32(head::RSP_PROD, shown);
                let mut frames = Vec::new();
                let taken = tx.take(
                    &tx_page.mem(),
                    &mut guest,
                    &mut interface,
                    now,
                    budget,
                    &mut frames,
                );
                assert!(frames.len() <= budget && (!tx_broken || frames.is_empty()));
                let answered = tx_page.mem().load32(head::RSP_PROD).wrapping_sub(shown);
                assert!(answered <= ENTRIES && answered as usize >= frames.len());
                shown = shown.wrapping_add(answered);
                if taken.is_err() {
                    assert!(frames.is_empty() && !tx_broken);
                    tx_broken = true;
                }
                for frame in frames {
                    let most = match frame.split() {
                        Some(_) => usize::from(u16::MAX),
                        None => limits.max_frame(),
                    };
                    assert!((HEADER..=most).contains(&frame.bytes().len()));
                    bridge.forward(own, frame.bytes(), now, &mut to);
                    assert!(to.iter().all(|port| *port == other) && to.len() <= 1);
                    to.clear();
                    if let Some(bytes) = frame.completed() {
                        assert_eq!(bytes.len(), frame.bytes().len());
                    }
                    if interface.groups.allow(frame.bytes()) {
                        let _ = rx.queue(Rc::new(frame));
                    }
                    assert!(rx.waiting() <= ENTRIES as usize && rx.waiting_bytes() <= 512 * 1024);
                }
                let flushed = rx.flush(&rx_page.mem(), &mut guest);
                if flushed.is_err() {
                    assert!(!rx_broken && rx.waiting() == 0);
                    rx_broken = true;
                }
            }
        }
    }
}
