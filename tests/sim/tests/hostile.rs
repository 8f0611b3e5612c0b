// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile guest makes any call with anything, while the control domain makes and ends domains:
//! nobody panics, no page gets two owners, a bystander's memory stays what it was, and at the end
//! everything comes back.

use guest_abi::calls::{event, memory};
use guest_abi::domctl::{Domctl, INTERFACE_VERSION};
use guest_abi::grant_table::{GrantEntryV1, gtf};
use guest_abi::memory::MapSpace;
use guest_abi::{DomId, Gfn, arch};
use hv_core::hypercall::Reply;
use hv_core::types::Access;
use proptest::prelude::*;
use sim::{Config, DomU, Guest, WINDOW, World};

const RAM0: u64 = arch::GUEST_RAM0_BASE;
const SMALL: Config = Config {
    vcpus: 2,
    blocks: 1,
    pages: 40,
    vuart: false,
};
/// The bystander's pages that it fills; and the one that it grants to the attacker.
const SECRET: std::ops::Range<u64> = 40..60;
const GRANTED: u64 = 61;
/// What the control domain maps of the attacker stays below this many.
const WINDOWS: u64 = 64;
/// The last page of the address space.
const TOP: u64 = u64::MAX - 4095;

#[derive(Clone, Debug)]
enum Step {
    /// A call with structures at some place: number, operation, where, and the fields.
    Call {
        nr: u8,
        op: u8,
        place: u8,
        fields: [u8; 10],
        rest: [u8; 3],
    },
    /// Scribbles over its own memory.
    Scribble { page: u8, at: u16, value: u64 },
    /// A grant entry that may be good.
    Grant {
        gref: u8,
        to: u8,
        page: u8,
        flags: u8,
    },
    /// The control domain maps a page of the attacker's, by frame or by grant.
    Dom0Map { gref: Option<u8>, page: u8, at: u8 },
    /// The control domain lets go of one.
    Dom0Unmap { at: u8 },
    /// The control domain binds a channel and signals it.
    Dom0Bind { port: u8 },
    /// Another domain comes, or goes.
    Neighbour,
    /// The attacker is ended, a slice at a time, and goes on calling meanwhile; then a new one comes.
    Kill { calls: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let call = || {
        (
            any::<u8>(),
            any::<u8>(),
            any::<u8>(),
            any::<[u8; 10]>(),
            any::<[u8; 3]>(),
        )
            .prop_map(|(nr, op, place, fields, rest)| Step::Call {
                nr,
                op,
                place,
                fields,
                rest,
            })
    };
    prop_oneof![
        30 => call(),
        4 => (any::<u8>(), any::<u16>(), any::<u64>()).prop_map(|(page, at, value)| Step::Scribble { page, at, value }),
        4 => (0u8..20, 0u8..5, any::<u8>(), 0u8..8).prop_map(|(gref, to, page, flags)| Step::Grant { gref, to, page, flags }),
        4 => (proptest::option::of(0u8..20), any::<u8>(), any::<u8>()).prop_map(|(gref, page, at)| Step::Dom0Map { gref, page, at }),
        3 => any::<u8>().prop_map(|at| Step::Dom0Unmap { at }),
        2 => (0u8..20).prop_map(|port| Step::Dom0Bind { port }),
        1 => Just(Step::Neighbour),
        1 => (0u8..6).prop_map(|calls| Step::Kill { calls }),
    ]
}

/// A value for a field: small, a frame, an address, a domain, or at a border.
fn value(b: u8, ids: &[u64]) -> u64 {
    let n = u64::from(b);
    match b {
        0..=63 => n,
        64..=111 => (RAM0 >> 12) + (n - 64) * 3,
        112..=143 => RAM0 + (n - 112) * 0x1_0010,
        144..=159 => (arch::GUEST_GNTTAB_BASE >> 12) + (n - 144),
        160..=167 => arch::GUEST_GNTTAB_BASE + (n - 160) * 4096,
        168..=199 => ids[(n as usize - 168) % ids.len()],
        200..=207 => 0x7ff0 + (n - 200),
        208..=215 => u64::MAX - (n - 208),
        216..=223 => (1 << 28) - 1 + (n - 216),
        224..=231 => 1 << ((n - 224) * 8 + 7),
        232..=239 => (n - 231) * 512,
        240..=247 => u64::from(u32::MAX) - (n - 240),
        _ => i64::MAX as u64 - (n - 248),
    }
}

struct Attack<'w> {
    w: &'w World,
    d: DomU,
    bystander: DomU,
    neighbour: Option<DomU>,
    dom0_grants: Vec<(u64, u32)>,
}

impl<'w> Attack<'w> {
    fn new(w: &'w World) -> Self {
        let bystander = w.create(SMALL).unwrap();
        let b = bystander.guest(w);
        for k in SECRET {
            b.put(RAM0 + k * 4096, &[k as u8; 4096]);
        }
        memory::add_to_physmap(
            &b,
            DomId::SELF,
            MapSpace::GrantTable,
            0,
            Gfn::of(arch::GUEST_GNTTAB_BASE),
        )
        .unwrap();
        let d = Self::arm(w, &bystander);
        Self {
            w,
            d,
            bystander,
            neighbour: None,
            dom0_grants: Vec::new(),
        }
    }

    /// A new attacker, with a head start.
    fn arm(w: &World, bystander: &DomU) -> DomU {
        let d = w.create(SMALL).unwrap();
        let g = d.guest(w);
        for i in 0..2 {
            let at = Gfn::of(arch::GUEST_GNTTAB_BASE + i * 4096);
            memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, i, at).unwrap();
        }
        memory::add_to_physmap(
            &g,
            DomId::SELF,
            MapSpace::SharedInfo,
            0,
            Gfn((RAM0 >> 12) + 8),
        )
        .unwrap();
        let e = GrantEntryV1 {
            flags: gtf::PERMIT_ACCESS,
            domid: d.id,
            frame: ((RAM0 >> 12) + GRANTED) as u32,
        };
        bystander.guest(w).put(arch::GUEST_GNTTAB_BASE + 64, &e);
        event::alloc_unbound(&bystander.guest(w), DomId::SELF, d.id).unwrap();
        d
    }

    fn guest(&self) -> Guest<'w> {
        self.d.guest(self.w)
    }

    fn ids(&self) -> Vec<u64> {
        vec![
            u64::from(self.d.id.0),
            u64::from(self.bystander.id.0),
            0,
            0x7ff0,
            u64::from(self.d.id.0) + 1,
        ]
    }

    /// Puts structures in the attacker's memory and gives a call's registers.
    fn prepare(
        &self,
        g: &Guest<'_>,
        nr: u8,
        op: u8,
        place: u8,
        fields: &[u8; 10],
        rest: &[u8; 3],
    ) -> (u64, [u64; 5]) {
        const NRS: [u64; 13] = [12, 12, 12, 13, 17, 18, 20, 20, 20, 24, 29, 32, 32];
        let ids = self.ids();
        let nr = match nr {
            0..=199 => NRS[nr as usize % NRS.len()],
            200..=214 => [34, 21, 35, 36, 7][nr as usize % 5],
            _ => u64::from(nr) - 200,
        };
        let op = match op {
            0..=239 => u64::from(op) % if nr == 12 { 29 } else { 15 },
            n => value(n, &ids),
        };
        let at = match place {
            0..=199 => RAM0 + (2 + u64::from(place) % 6) * 4096 + u64::from(place) * 8,
            200..=220 => RAM0 + 0x6000 - u64::from(place - 199),
            221..=239 => TOP + 0xf00 + u64::from(place - 220) * 8,
            240..=246 => u64::MAX - u64::from(place - 240),
            n => value(n, &ids),
        };
        // Fields of 16, 32 and 64 bits, as the structures have them.
        let v: Vec<u64> = fields.iter().map(|f| value(*f, &ids)).collect();
        let mut bytes = [0u8; 144];
        let put = |b: &mut [u8; 144], at: usize, n: usize, v: u64| {
            b[at..at + n].copy_from_slice(&v.to_le_bytes()[..n])
        };
        for (i, x) in v.iter().enumerate() {
            put(&mut bytes, i * 8, 8, *x);
        }
        match (nr, op) {
            (12, 0 | 1 | 6) => {
                put(&mut bytes, 0, 8, RAM0 + 0x7000 + v[0] % 0x1000);
                put(&mut bytes, 8, 8, v[1] % 600);
                put(&mut bytes, 16, 8, v[2] % 11);
                put(&mut bytes, 24, 8, 0x7ff0);
                let list: Vec<u64> = v
                    .iter()
                    .cycle()
                    .take(512)
                    .enumerate()
                    .map(|(i, x)| x ^ (i as u64 % 7))
                    .collect();
                for (i, x) in list.iter().enumerate() {
                    let _ = g.write(RAM0 + 0x7000 + i as u64 * 8, &x.to_le_bytes());
                }
            }
            (12, 7) => {
                put(&mut bytes, 0, 2, 0x7ff0);
                put(&mut bytes, 4, 4, v[1] % 6);
                put(&mut bytes, 8, 8, v[2] % 70);
            }
            (12, 15) => put(&mut bytes, 0, 2, 0x7ff0),
            (20, 0) => {
                for k in 0..4 {
                    put(&mut bytes, k * 32, 8, 0x3a00_0000 + (v[k] % 16) * 4096);
                    put(&mut bytes, k * 32 + 8, 4, 2 | (v[k + 1] & 4));
                    put(&mut bytes, k * 32 + 12, 4, v[k + 2] % 20);
                    put(
                        &mut bytes,
                        k * 32 + 16,
                        2,
                        ids[v[k + 3] as usize % ids.len()],
                    );
                }
            }
            (20, 1) => {
                for k in 0..5 {
                    put(&mut bytes, k * 24, 8, 0x3a00_0000 + (v[k] % 16) * 4096);
                    put(&mut bytes, k * 24 + 16, 4, v[k + 1] % 12);
                }
            }
            (20, 5) => {
                for k in 0..3 {
                    put(&mut bytes, k * 40 + 8, 2, ids[v[k] as usize % ids.len()]);
                    put(&mut bytes, k * 40 + 24, 2, 0x7ff0);
                    put(&mut bytes, k * 40 + 34, 2, v[k] & 3);
                }
            }
            (35 | 36, _) => {
                let d = Domctl {
                    cmd: op as u32,
                    interface_version: INTERFACE_VERSION,
                    ..Default::default()
                };
                bytes[..16].copy_from_slice(&zerocopy::IntoBytes::as_bytes(&d)[..16]);
            }
            (13, _) => {
                put(&mut bytes, 0, 8, [12, 20, 32, 29, 13][v[0] as usize % 5]);
                put(&mut bytes, 16, 8, v[1] % 15);
                put(&mut bytes, 24, 8, at.wrapping_add(64));
                put(&mut bytes, 32, 8, v[3] % 4);
            }
            _ => {}
        }
        let _ = g.write(
            if at >= TOP {
                RAM0 + 0x9000 + (at - TOP)
            } else {
                at
            },
            &bytes,
        );
        let more = |i: usize| value(rest[i], &ids);
        let x = match nr {
            20 => [op, at, u64::from(rest[0] % 6), more(1), more(2)],
            24 => [op, u64::from(rest[0] % 4), at, more(1), more(2)],
            18 => [op % 3, u64::from(rest[0]) * 16, at, more(1), more(2)],
            13 => [at, u64::from(rest[0] % 4), more(1), more(2), 0],
            7 | 35 | 36 => [at, more(0), more(1), more(2), 0],
            _ => [op, at, more(0), more(1), more(2)],
        };
        (nr, x)
    }

    fn call(&self, slices: usize, nr: u8, op: u8, place: u8, fields: &[u8; 10], rest: &[u8; 3]) {
        let g = self.guest();
        let (nr, mut x) = self.prepare(&g, nr, op, place, fields, rest);
        // Its last page of virtual addresses is memory, its first one may be read, and the others are
        // what they are.
        self.w.m.stage1.borrow_mut().extend([
            (TOP >> 12, (RAM0 + 0x9000, true)),
            (0, (RAM0 + 0x9000, false)),
        ]);
        for _ in 0..slices {
            if let Reply::Done(_) = self.w.slice(g.v, nr, &mut x) {
                break;
            }
        }
        self.w.m.stage1.borrow_mut().clear();
    }

    fn dom0_unmap(&mut self, at: u8) {
        let h = self.w.dom0();
        let at = WINDOW + (u64::from(at) % WINDOWS) * 4096;
        if let Some(i) = self.dom0_grants.iter().position(|m| m.0 == at) {
            let (host_addr, handle) = self.dom0_grants.swap_remove(i);
            let mut op = [guest_abi::grant_table::GnttabUnmapGrantRef {
                host_addr,
                handle,
                ..Default::default()
            }];
            guest_abi::calls::grant::unmap(&h, &mut op).unwrap();
            assert_eq!(op[0].status, 0);
        } else {
            let _ = memory::remove_from_physmap(&h, DomId::SELF, Gfn::of(at));
        }
    }

    fn step(&mut self, s: &Step) {
        let g = self.guest();
        match s {
            Step::Call {
                nr,
                op,
                place,
                fields,
                rest,
            } => self.call(40, *nr, *op, *place, fields, rest),
            Step::Scribble { page, at, value } => {
                let base = match page {
                    0..=99 => RAM0 + u64::from(*page) * 4096,
                    100..=149 => arch::GUEST_GNTTAB_BASE + u64::from(page % 2) * 4096,
                    _ => RAM0 + 0x8000,
                };
                // A neighbour's page that it was granted is a bystander's no more.
                let _ = g.write(base + u64::from(at % 512) * 8, &value.to_le_bytes());
            }
            Step::Grant {
                gref,
                to,
                page,
                flags,
            } => {
                let e = GrantEntryV1 {
                    flags: u16::from(*flags) & 7,
                    domid: DomId(self.ids()[usize::from(*to)] as u16),
                    frame: ((RAM0 >> 12) + u64::from(*page)) as u32,
                };
                let _ = g.write(
                    arch::GUEST_GNTTAB_BASE + u64::from(*gref) * 8,
                    zerocopy::IntoBytes::as_bytes(&e),
                );
            }
            Step::Dom0Map { gref, page, at } => {
                let h = self.w.dom0();
                let at = WINDOW + (u64::from(*at) % WINDOWS) * 4096;
                match gref {
                    Some(gref) => {
                        let mut op = [guest_abi::grant_table::GnttabMapGrantRef {
                            host_addr: at,
                            flags: 2 | u32::from(page & 4),
                            gref: guest_abi::GrantRef(u32::from(*gref)),
                            dom: self.d.id,
                            ..Default::default()
                        }];
                        guest_abi::calls::grant::map(&h, &mut op).unwrap();
                        if op[0].status == 0 {
                            self.dom0_grants.push((at, op[0].handle));
                        }
                    }
                    None => {
                        let mut errs = [0];
                        let from = Gfn((RAM0 >> 12) + u64::from(*page));
                        memory::map_foreign(&h, self.d.id, &[from], &[Gfn::of(at)], &mut errs)
                            .unwrap();
                        if errs[0] == 0 {
                            let mut b = [0];
                            assert!(h.read(at, &mut b));
                        }
                    }
                }
            }
            Step::Dom0Unmap { at } => self.dom0_unmap(*at),
            Step::Dom0Bind { port } => {
                let h = self.w.dom0();
                if let Ok(p) =
                    event::bind_interdomain(&h, self.d.id, guest_abi::Port(u32::from(*port)))
                {
                    event::send(&h, p).unwrap();
                    if port % 2 == 0 {
                        event::close(&h, p).unwrap();
                    }
                }
            }
            Step::Neighbour => match self.neighbour.take() {
                Some(n) => self.w.destroy(n.id),
                None => {
                    self.neighbour = Some(
                        self.w
                            .create(Config {
                                vuart: true,
                                ..SMALL
                            })
                            .unwrap(),
                    )
                }
            },
            Step::Kill { calls } => {
                let h = self.w.dom0();
                let at = self.w.dom0_base() + 0x4000;
                h.put(
                    at,
                    &Domctl {
                        cmd: 2,
                        interface_version: INTERFACE_VERSION,
                        domain: self.d.id,
                        ..Default::default()
                    },
                );
                let mut x = [at, 0, 0, 0, 0];
                // One call of its own was under way on another CPU when it died.
                let more = Reply::Done(guest_abi::Errno::ERESTART.to_ret());
                if self.w.slice(h.v, 36, &mut x) == more && *calls > 0 {
                    self.call(
                        1,
                        calls.wrapping_mul(37),
                        calls.wrapping_mul(11),
                        7,
                        &[*calls * 40; 10],
                        &[1; 3],
                    );
                }
                self.w.destroy(self.d.id);
                self.d = Self::arm(self.w, &self.bystander);
            }
        }
    }

    fn untouched(&self) {
        let b = self.bystander.guest(self.w);
        for k in SECRET {
            assert_eq!(
                b.get::<[u8; 4096]>(RAM0 + k * 4096),
                [k as u8; 4096],
                "page {k} of the bystander"
            );
            let mfn = b.mfn((RAM0 >> 12) + k, Access::Read).unwrap();
            assert_eq!(self.w.refs(mfn), 1);
        }
    }

    fn end(mut self) {
        self.w.destroy(self.d.id);
        self.w.check();
        for at in 0..WINDOWS {
            self.dom0_unmap(at as u8);
        }
        assert_eq!(self.w.slot(self.d.id), None, "the attacker is reaped");
        if let Some(n) = self.neighbour {
            self.w.destroy(n.id);
            assert_eq!(self.w.slot(n.id), None);
        }
        self.w.destroy(self.bystander.id);
        assert_eq!(self.w.slot(self.bystander.id), None);
        let h = self.w.dom0();
        event::reset(&h, DomId::SELF).unwrap();
        self.w.check();
    }
}

/// Maps the last page of virtual addresses, and all that a walk which wraps to 0 would come by.
fn map_top(w: &World, to: u64) {
    let mut s1 = w.m.stage1.borrow_mut();
    s1.insert(TOP >> 12, (to, true));
    for page in 0..1 << 17 {
        s1.insert(page, (to, true));
    }
}

#[test]
fn the_last_page_of_the_address_space_is_a_page_as_any() {
    let w = World::boot(3);
    let d = w.create(SMALL).unwrap();
    let g = d.guest(&w);
    let page = RAM0 + 0x3000;
    map_top(&w, page);
    // EVTCHNOP_alloc_unbound, bind_virq, bind_ipi: each answers through the last page, and looks at
    // no page but that of its argument.
    for (op, first) in [(6u64, 0x7ff0_7ff0u64), (1, 0), (7, 0)] {
        for at in [TOP, TOP + 0xff0, TOP + 0xff4] {
            g.put(page + (at - TOP), &first);
            g.put(page + (at - TOP) + 4, &0u32);
            let before = w.m.translations.get();
            let r = g.raw(32, [op, at, 0, 0, 0]);
            let looked = w.m.translations.get() - before;
            assert!(
                looked <= 4,
                "operation {op} at {at:#x}: {looked} translations"
            );
            // A VIRQ is bound once.
            let expected = if op == 1 && at != TOP { -17 } else { 0 };
            assert_eq!(r, expected, "operation {op} at {at:#x}");
        }
    }
    // A structure that goes on beyond the last address goes on at the first one, as Xen's copies do.
    g.put(page + 0xffc, &0x7ff0_7ff0u32);
    assert_eq!(g.raw(32, [6, TOP + 0xffc, 0, 0, 0]), 0);
    assert_ne!(g.get::<u32>(page), 0, "the port is at address 0");
}

/// The simulator asserts what each hold of the lock costs: here, that entries of a multicall do not
/// each get a slice of their own.
#[test]
fn a_multicall_and_all_in_it_share_one_budget() {
    let w = World::boot(3);
    let d = w.create(SMALL).unwrap();
    let g = d.guest(&w);
    let (list, calls) = (RAM0 + 0x2000, RAM0 + 0x6000);
    for i in 0..16 {
        let mut e = [0u64; 8];
        // GNTTABOP_copy of a list of 64.
        (e[0], e[2], e[3], e[4]) = (20, 5, list, 64);
        g.put(calls + i * 64, &e);
    }
    let mut x = [calls, 16, 0, 0, 0];
    let mut slices = 1;
    while w.slice(g.v, 13, &mut x) == Reply::Again {
        slices += 1;
    }
    assert!((20..100).contains(&slices), "{slices} slices");
    for i in 0..16 {
        assert_eq!(
            g.get::<u64>(calls + i * 64 + 8),
            0,
            "the result of entry {i}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_hostile_guest_harms_itself_alone(steps in proptest::collection::vec(step(), 1..150)) {
        let w = World::boot(3);
        // The window's tables stay.
        let h = w.dom0();
        let first = w.create(SMALL).unwrap();
        let mut errs = [1];
        memory::map_foreign(&h, first.id, &[Gfn::of(RAM0)], &[Gfn::of(WINDOW)], &mut errs).unwrap();
        memory::remove_from_physmap(&h, DomId::SELF, Gfn::of(WINDOW)).unwrap();
        w.destroy(first.id);
        let start = w.totals();
        let mut a = Attack::new(&w);
        for (i, s) in steps.iter().enumerate() {
            a.step(s);
            if i % 8 == 0 {
                w.check();
            }
        }
        w.check();
        a.untouched();
        a.end();
        prop_assert_eq!(w.totals(), start);
    }
}
