// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network protocol: what the back end writes to the store, its states, and its answers to good and bad requests.
//! What ends an interface for good is done to interfaces of their own, and a peer answers frames (`role=answers` of the
//! guest `bench`).

use super::front::Front;
use super::{MS, Served};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use el1::shared::Shared;
use guest_abi::io::netif::{
    NetifExtraInfo, NetifRxRequest, NetifRxResponse, NetifTxRequest, NetifTxResponse, Status,
    nettxf,
};
use guest_abi::io::ring::{FrontRing, head};
use guest_abi::mem::SharedMem;
use guest_abi::{GrantRef, Port};

/// A multicast address that the peer sends to, when asked with its last byte.
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 9];

/// A connected interface.
struct Net {
    tx: FrontRing<NetifTxRequest, NetifTxResponse>,
    rx: FrontRing<NetifRxRequest, NetifRxResponse>,
    tx_page: Shared,
    rx_page: Shared,
    port: Port,
}

fn slot(gref: u32, offset: u16, size: u16, flags: u16) -> NetifTxRequest {
    NetifTxRequest {
        gref: GrantRef(gref),
        offset,
        flags,
        id: 0,
        size,
    }
}

/// An extra's entry. Its answer has no number of its own.
fn extra(info: NetifExtraInfo) -> NetifTxRequest {
    info.to_tx()
}

/// A frame of `size` bytes in parts, of which the first says how many bytes there are.
fn parts(gref: u32, size: u16, rest: &[u16]) -> Vec<NetifTxRequest> {
    let mut all = Vec::from([slot(gref, 0, size, nettxf::MORE_DATA)]);
    all.extend(rest.iter().map(|n| slot(gref, 0, *n, nettxf::MORE_DATA)));
    if let Some(last) = all.last_mut() {
        last.flags = 0;
    }
    all
}

impl Served {
    pub fn nets(&mut self) {
        let (Some(tx), Some(rx), Some(data), Some(room)) = (
            Shared::fresh(1),
            Shared::fresh(1),
            Shared::fresh(1),
            Shared::fresh(1),
        ) else {
            return self.case("net", "no memory");
        };
        let mut front = self.front("net", "vif", 0);
        self.begin(&front);
        let Some(mut net) = self.connect_net(&front, tx, rx, &[]) else {
            return self.case("net.connect", "failed");
        };
        self.nodes("net.back", &front.back.clone());
        self.frame(data, 0);
        self.sending(&mut net, data);
        self.receiving(&mut net, data, room);
        let request = format!("{}/request-multicast-control", front.path);
        self.multicast(&mut net, data, room, &request);
        let r = self.close(&mut front);
        let held = self.in_use(self.gref_of(&tx)) || self.in_use(self.gref_of(&rx));
        self.case("net.close", format!("{r} held {held}"));
        for (name, keys) in [
            ("no_rx_copy", &[("request-rx-copy", "0")][..]),
            ("no_grant", &[("tx-ring-ref", "400")]),
            ("no_rx_grant", &[("rx-ring-ref", "400")]),
            ("grant_text", &[("tx-ring-ref", "x")]),
            ("no_port", &[("event-channel", "1000")]),
            ("many_queues", &[("multi-queue-num-queues", "100")]),
            ("no_queues", &[("multi-queue-num-queues", "0")]),
        ] {
            self.reopen(&mut front);
            let connected = self.connect_net(&front, tx, rx, keys).is_some();
            let closed = self.close(&mut front);
            self.case(
                format!("net.front.{name}"),
                format!("{connected}; {closed}"),
            );
            for (key, _) in keys {
                self.rm(&format!("{}/{key}", front.path));
            }
        }
        let r = self.reopen(&mut front);
        self.case("net.reopen", r);
        if let Some(mut net) = self.connect_net(&front, tx, rx, &[]) {
            let gref = self.grant(0, data.addr(), false);
            let r = self.tx(&mut net, &[slot(gref, 0, 60, 0)]);
            self.case("net.reopen.frame", r);
            // Requested before it connected, and the addresses of before are forgotten.
            let r = self.group_comes(&mut net, data, room);
            self.case("net.reopen.multicast", r);
            let r = self.ask_group(&mut net, true, GROUP);
            let comes = self.group_comes(&mut net, data, room);
            self.case("net.reopen.multicast.added", format!("{r}; {comes}"));
        }
        let r = self.close(&mut front);
        self.case("net.last_close", r);
        self.ends(tx, rx, data);
    }

    /// A frame for everybody, that wants an answer or not.
    fn frame(&mut self, data: Shared, answer: u8) {
        let mut frame = [0xff; 15];
        frame[6..12].copy_from_slice(&[0, 0x16, 0x3e, 0, 0, 0x10]);
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        frame[14] = answer;
        data.write(0, &frame);
    }

    fn connect_net(
        &mut self,
        front: &Front,
        tx_page: Shared,
        rx_page: Shared,
        more: &[(&str, &str)],
    ) -> Option<Net> {
        let tx = FrontRing::new(&tx_page, 4096)?;
        let rx = FrontRing::new(&rx_page, 4096)?;
        let port = self.channel()?;
        let grants = [tx_page, rx_page].map(|page| self.grant(0, page.addr(), false));
        for (key, value) in [
            ("tx-ring-ref", grants[0]),
            ("rx-ring-ref", grants[1]),
            ("event-channel", port.0),
            ("request-rx-copy", 1),
            ("feature-rx-notify", 1),
            ("feature-sg", 1),
        ] {
            self.put(&format!("{}/{key}", front.path), value);
        }
        for (key, value) in more {
            self.put(&format!("{}/{key}", front.path), value);
        }
        self.enter(front, 4);
        let state = self.await_state(front, &[4, 5, 6]);
        (state == 4).then_some(Net {
            tx,
            rx,
            tx_page,
            rx_page,
            port,
        })
    }

    /// Sends entries, as they are but for their numbers; their answers.
    fn tx(&mut self, net: &mut Net, entries: &[NetifTxRequest]) -> String {
        for (i, entry) in entries.iter().enumerate() {
            // An extra begins with its kind, where a request has its page.
            let after_extra = i > 0 && entries[i - 1].flags & nettxf::EXTRA_INFO != 0;
            let mut entry = *entry;
            if !after_extra {
                entry.id = 100 + i as u16;
            }
            if !net.tx.push(&net.tx_page, &entry) {
                return "the ring is full".into();
            }
        }
        if net.tx.publish(&net.tx_page) {
            self.send(net.port);
        }
        let mut answers = Vec::new();
        self.within(1000 * MS, |_| {
            while let Ok(Some(r)) = net.tx.pop(&net.tx_page) {
                let status = Status::from_number(r.status);
                let status = status.map_or(r.status.to_string(), |s| format!("{s:?}"));
                // An extra's answer has whatever number is in its place.
                if r.status == Status::Null.number() {
                    answers.push(status);
                } else {
                    answers.push(format!("{}:{status}", r.id));
                }
            }
            (answers.len() >= entries.len()).then_some(())
        });
        if answers.is_empty() {
            "no answer".into()
        } else {
            answers.join(" ")
        }
    }

    fn sending(&mut self, net: &mut Net, data: Shared) {
        let good = self.grant(0, data.addr(), false);
        let read_only = self.grant(0, data.addr(), true);
        let foreign = self.grant(77, data.addr(), false);
        for (name, entry) in [
            ("60", slot(good, 0, 60, 0)),
            ("14", slot(good, 0, 14, 0)),
            ("13", slot(good, 0, 13, 0)),
            ("1", slot(good, 0, 1, 0)),
            ("0", slot(good, 0, 0, 0)),
            ("1514", slot(good, 0, 1514, 0)),
            ("1518", slot(good, 0, 1518, 0)),
            ("4096", slot(good, 0, 4096, 0)),
            ("offset", slot(good, 100, 60, 0)),
            ("to_the_end", slot(good, 4036, 60, 0)),
            ("read_only", slot(read_only, 0, 60, 0)),
            ("no_grant", slot(400, 0, 60, 0)),
            ("grant_beyond", slot(1_000_000, 0, 60, 0)),
            ("grant_max", slot(u32::MAX, 0, 60, 0)),
            ("grant_of_another", slot(foreign, 0, 60, 0)),
            ("validated", slot(good, 0, 60, nettxf::DATA_VALIDATED)),
            ("blank_checksum", slot(good, 0, 60, nettxf::CSUM_BLANK)),
            ("other_flags", slot(good, 0, 60, 0xfff0)),
        ] {
            let r = self.tx(net, &[entry]);
            self.case(format!("net.tx.{name}"), r);
        }
        let mut second_bad = parts(good, 160, &[100]);
        second_bad[1].gref = GrantRef(400);
        let mut first_bad = parts(good, 160, &[100]);
        first_bad[0].gref = GrantRef(400);
        for (name, entries) in [
            ("two_parts", parts(good, 160, &[100])),
            ("second_too_large", parts(good, 160, &[161])),
            ("second_is_all", parts(good, 160, &[160])),
            ("second_is_empty", parts(good, 160, &[0])),
            ("short_in_parts", parts(good, 10, &[5])),
            ("second_without_grant", second_bad),
            ("first_without_grant", first_bad),
            ("17_parts", parts(good, 1700, &[100; 16])),
            ("18_parts", parts(good, 1800, &[100; 17])),
        ] {
            let r = self.tx(net, &entries);
            self.case(format!("net.tx.{name}"), r);
        }
        let with = |info: NetifExtraInfo, size: u16| {
            [slot(good, 0, size, nettxf::EXTRA_INFO), extra(info)]
        };
        for (name, entries) in [
            ("gso_of_nothing", with(NetifExtraInfo::gso(1448, 1, 0), 100)),
            (
                "gso_v6_of_nothing",
                with(NetifExtraInfo::gso(1428, 2, 0), 100),
            ),
            (
                "mcast_add",
                with(NetifExtraInfo::mcast(true, [1, 0, 0x5e, 0, 0, 1]), 0),
            ),
            (
                "mcast_del",
                with(NetifExtraInfo::mcast(false, [1, 0, 0x5e, 0, 0, 1]), 0),
            ),
            (
                "mcast_del_again",
                with(NetifExtraInfo::mcast(false, [1, 0, 0x5e, 0, 0, 1]), 0),
            ),
            (
                "mcast_fields",
                with(NetifExtraInfo::mcast(false, [1, 0, 0x5e, 0, 0, 1]), 5000),
            ),
            (
                "hash",
                with(NetifExtraInfo::hash(0, 0, [1, 2, 3, 4], 0), 60),
            ),
        ] {
            let r = self.tx(net, &entries);
            self.case(format!("net.extra.{name}"), r);
        }
        let r = self.tx(net, &[slot(good, 0, 60, 0)]);
        self.case("net.tx.good_again", r);
        // All of the ring at once.
        let mut done = 0;
        for _ in 0..256 {
            let _ = net.tx.push(&net.tx_page, &slot(good, 0, 60, 0));
        }
        if net.tx.publish(&net.tx_page) {
            self.send(net.port);
        }
        self.within(3000 * MS, |_| {
            while let Ok(Some(r)) = net.tx.pop(&net.tx_page) {
                done += u32::from(r.status == Status::Okay.number());
            }
            (done == 256).then_some(())
        });
        self.case("net.tx.ring_full", done);
        self.case("net.tx.held", self.in_use(good));
    }

    /// Offers a page, has the peer answer, and tells what came.
    fn rx(&mut self, net: &mut Net, data: Shared, room: Shared, gref: u32) -> String {
        for at in (0..128).step_by(4) {
            room.store32(at, 0);
        }
        let request = NetifRxRequest {
            id: 200,
            gref: GrantRef(gref),
            ..NetifRxRequest::default()
        };
        let _ = net.rx.push(&net.rx_page, &request);
        let _ = net.rx.publish(&net.rx_page);
        self.frame(data, 1);
        let good = self.grant(0, data.addr(), false);
        self.tx(net, &[slot(good, 0, 60, 0)]);
        self.frame(data, 0);
        let answer = self.within(3000 * MS, |_| net.rx.pop(&net.rx_page).ok().flatten());
        let Some(r) = answer else {
            return "nothing".into();
        };
        let mut start = [0; 15];
        room.read(0, &mut start);
        format!(
            "id {} offset {} flags {} status {} to us {} type {:02x}{:02x}",
            r.id,
            r.offset,
            r.flags,
            r.status,
            start[5] == 0x10,
            start[12],
            start[13]
        )
    }

    fn receiving(&mut self, net: &mut Net, data: Shared, room: Shared) {
        let good = self.grant(0, room.addr(), false);
        let read_only = self.grant(0, room.addr(), true);
        let foreign = self.grant(77, room.addr(), false);
        // The peer may still be starting: what is offered first is used when it answers.
        let first = (0..10).find_map(|_| {
            let r = self.rx(net, data, room, good);
            (r != "nothing").then_some(r)
        });
        self.case("net.rx.first", first.unwrap_or("nothing".into()));
        // Take back what was offered meanwhile, by having it used.
        while net.rx.in_flight() > 0 {
            self.frame(data, 1);
            let gref = self.grant(0, data.addr(), false);
            self.tx(net, &[slot(gref, 0, 60, 0)]);
            let answer = self.within(3000 * MS, |_| net.rx.pop(&net.rx_page).ok().flatten());
            if answer.is_none() {
                break;
            }
        }
        for (name, gref) in [
            ("good", good),
            ("read_only", read_only),
            ("no_grant", 400),
            ("grant_beyond", 1_000_000),
            ("grant_of_another", foreign),
            ("good_again", good),
        ] {
            let r = self.rx(net, data, room, gref);
            self.case(format!("net.rx.{name}"), r);
        }
        self.case("net.rx.held", self.in_use(good));
    }

    /// Has the peer send to a multicast address, and then to us: whether the first came.
    fn group_comes(&mut self, net: &mut Net, data: Shared, room: Shared) -> String {
        let (good, gref) = (
            self.grant(0, data.addr(), false),
            self.grant(0, room.addr(), false),
        );
        for answer in [GROUP[5], 1] {
            self.frame(data, answer);
            self.tx(net, &[slot(good, 0, 60, 0)]);
        }
        self.frame(data, 0);
        let mut came = false;
        loop {
            let request = NetifRxRequest {
                id: 200,
                gref: GrantRef(gref),
                ..NetifRxRequest::default()
            };
            let _ = net.rx.push(&net.rx_page, &request);
            if net.rx.publish(&net.rx_page) {
                self.send(net.port);
            }
            let answer = self.within(3000 * MS, |_| net.rx.pop(&net.rx_page).ok().flatten());
            let mut to = [0; 6];
            room.read(0, &mut to);
            match (answer, to) {
                (None, _) => return "nothing".into(),
                (_, GROUP) if !came => came = true,
                _ => return came.to_string(),
            }
        }
    }

    /// Asks for a multicast address, or not to have it.
    fn ask_group(&mut self, net: &mut Net, add: bool, group: [u8; 6]) -> String {
        let info = NetifExtraInfo::mcast(add, group);
        self.tx(net, &[slot(0, 0, 0, nettxf::EXTRA_INFO), extra(info)])
    }

    fn multicast(&mut self, net: &mut Net, data: Shared, room: Shared, request: &str) {
        let r = self.group_comes(net, data, room);
        self.case("net.multicast.not_requested", r);
        for (name, value, comes) in [
            ("requested", 1, "false"),
            ("no_more", 0, "true"),
            ("again", 1, "false"),
        ] {
            self.put(request, value);
            // The back end may see it a little later.
            let r = (0..50).find(|_| {
                self.wait_ms(20);
                self.group_comes(net, data, room) == comes
            });
            self.case(
                format!("net.multicast.{name}"),
                r.map_or("no change", |_| comes),
            );
        }
        for (name, add, group) in [
            ("other", true, [1, 0, 0x5e, 0, 0, 8]),
            ("no_group", true, [0, 0x16, 0x3e, 0, 0, 8]),
            ("added", true, GROUP),
            ("added_twice", true, GROUP),
            ("taken_away", false, GROUP),
            ("taken_away_twice", false, GROUP),
            ("not_there", false, GROUP),
            ("added_again", true, GROUP),
        ] {
            let r = self.ask_group(net, add, group);
            let comes = self.group_comes(net, data, room);
            self.case(format!("net.multicast.{name}"), format!("{r}; {comes}"));
        }
        let full = (0..100).find(|n| {
            self.ask_group(net, true, [1, 0, 0x5e, 1, 0, *n])
                .contains("Error")
        });
        self.case("net.multicast.most", format!("{full:?} more"));
        let r = self.ask_group(net, true, [1, 0, 0x5e, 1, 1, 0]);
        self.case("net.multicast.too_many", r);
    }

    /// What ends an interface.
    fn ends(&mut self, tx: Shared, rx: Shared, data: Shared) {
        let good = self.grant(0, data.addr(), false);
        let unfinished = [slot(good, 0, 160, nettxf::MORE_DATA)];
        let cross = [slot(good, 4090, 60, 0)];
        let no_extra = [slot(good, 0, 60, nettxf::EXTRA_INFO)];
        let bad_extra = [
            slot(good, 0, 60, nettxf::EXTRA_INFO),
            extra(NetifExtraInfo {
                kind: 0,
                ..NetifExtraInfo::default()
            }),
        ];
        let no_segment = [
            slot(good, 0, 60, nettxf::EXTRA_INFO),
            extra(NetifExtraInfo::gso(0, 1, 0)),
        ];
        let many = parts(good, 3000, &[100; 24]);
        for (number, (name, entries)) in (1..).zip([
            ("cross_page", &cross[..]),
            ("unfinished", &unfinished),
            ("no_extra", &no_extra),
            ("bad_extra", &bad_extra),
            ("gso_of_0", &no_segment),
            ("25_parts", &many),
            ("ring_jump", &[]),
        ]) {
            let front = self.front("net.ends", "vif", number);
            self.await_state(&front, &[2]);
            let Some(mut net) = self.connect_net(&front, tx, rx, &[]) else {
                self.case(format!("net.ends.{name}"), "not connected");
                continue;
            };
            let r = if entries.is_empty() {
                net.tx_page.store32(head::REQ_PROD, 1000);
                self.send(net.port);
                self.wait_ms(200);
                net.tx_page.load32(head::RSP_PROD).to_string()
            } else {
                self.tx(&mut net, entries)
            };
            self.case(format!("net.ends.{name}"), r);
            // Whether it works after that.
            let after = self.tx(&mut net, &[slot(good, 0, 60, 0)]);
            self.case(format!("net.ends.{name}.after"), after);
            let state = self.text(&format!("{}/state", front.back));
            self.case(format!("net.ends.{name}.state"), state);
            // The pages are those of the next one.
            self.enter(&front, 5);
            self.await_state(&front, &[5, 6]);
            self.enter(&front, 6);
            let closed = self.await_state(&front, &[6]);
            self.case(format!("net.ends.{name}.closed"), closed);
        }
    }
}
