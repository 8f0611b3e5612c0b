// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's hypercalls on the simulated machine, beside a bystander and a control domain that maps what is granted.

use crate::Input;
use guest_abi::calls::memory;
use guest_abi::grant_table::GnttabMapGrantRef;
use guest_abi::memory::MapSpace;
use guest_abi::{DomId, Gfn, GrantRef, arch};
use hv_core::hypercall::Reply;
use sim::{Config, DomU, WINDOW, World};

const RAM: u64 = arch::GUEST_RAM0_BASE;
const SMALL: Config = Config {
    vcpus: 2,
    blocks: 0,
    pages: 64,
    vuart: false,
};
/// Where its calls' structures are: pages that it may also change by other acts.
const ARGUMENTS: u64 = RAM + 0x2000;
/// A page of the bystander's that nobody was given.
const SECRET: u64 = RAM + 0x5000;

/// A value for a field or a register: small, a frame, an address, at a border, or any.
fn value(input: &mut Input<'_>, ids: [DomId; 2]) -> u64 {
    let n = u64::from(input.u8());
    match input.u8() % 10 {
        0..=2 => n,
        3 => (RAM >> 12) + n % 72,
        4 => ARGUMENTS + n * 8,
        5 => (arch::GUEST_GNTTAB_BASE >> 12) + n % 8,
        6 => u64::from([ids[0].0, ids[1].0, 0, 0x7ff0][n as usize % 4]),
        7 => (1 << (n % 64)) - 1,
        8 => u64::MAX - n,
        _ => input.u64(),
    }
}

fn arm(w: &World) -> Option<DomU> {
    let d = w.create(SMALL).ok()?;
    let g = d.guest(w);
    let at = Gfn::of(arch::GUEST_GNTTAB_BASE);
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::GrantTable, 0, at).ok()?;
    Some(d)
}

/// Nobody panics, no page has two owners, nobody's memory is read or changed by others, and in the end all comes back.
pub fn hypercalls(data: &[u8]) {
    let mut input = Input(data);
    let w = World::boot(2 + input.u8() % 2);
    let (Some(bystander), Some(mut d)) = (arm(&w), arm(&w)) else {
        panic!("a new machine has room");
    };
    bystander.guest(&w).put(SECRET, &[0x5a_u8; 4096]);
    let mut mapped: Vec<(u64, u32)> = Vec::new();
    let mut acts = 0;
    while let Some(act) = input.act() {
        // An act looks at all pages of the machine, so that there cannot be very many.
        acts += 1;
        if acts > 200 {
            break;
        }
        let ids = [d.id, bystander.id];
        let g = d.vcpu(&w, act >> 7);
        match act % 16 {
            0..=9 => {
                let nr =
                    [12, 13, 17, 18, 20, 21, 24, 29, 32, 34, 35, 36][usize::from(input.u8() % 12)];
                let mut x = [0; 5];
                x[0] = u64::from(input.u8() % 40);
                for v in x.iter_mut().skip(1) {
                    *v = value(&mut input, ids);
                }
                // Mostly its structure is where it put one.
                if act & 0x40 == 0 {
                    x[if matches!(nr, 18 | 24) { 2 } else { 1 }] = ARGUMENTS;
                }
                if nr == 13 && act & 0x20 == 0 {
                    (x[0], x[1]) = (ARGUMENTS, x[1] % 6);
                }
                for _ in 0..60 {
                    if let Reply::Done(_) = w.slice(g.v, nr, &mut x) {
                        break;
                    }
                }
            }
            10..=12 => {
                for i in 0..u64::from(input.u8() % 8) {
                    let v = value(&mut input, ids);
                    let _ = g.write(ARGUMENTS + i * 8, &v.to_le_bytes());
                }
            }
            13 => {
                let entry = arch::GUEST_GNTTAB_BASE + 64 + u64::from(input.u8() % 8) * 8;
                let frame = (RAM >> 12) as u32 + u32::from(input.u8() % 72);
                let flags = u32::from(input.u8() % 8);
                let _ = g.write(entry, &flags.to_le_bytes());
                let _ = g.write(entry + 4, &frame.to_le_bytes());
            }
            14 => {
                let at = WINDOW + u64::from(input.u8() % 16) * 4096;
                let op = &mut [GnttabMapGrantRef {
                    host_addr: at,
                    flags: 2 | u32::from(act & 0x80) >> 5,
                    gref: GrantRef(8 + u32::from(input.u8() % 8)),
                    dom: d.id,
                    ..Default::default()
                }];
                if guest_abi::calls::grant::map(&w.dom0(), op).is_ok() && op[0].status == 0 {
                    mapped.push((at, op[0].handle));
                }
            }
            _ => {
                unmap(&w, &mut mapped);
                if act & 0x80 != 0 {
                    w.destroy(d.id);
                    let Some(new) = arm(&w) else {
                        panic!("what the last one had is free again");
                    };
                    d = new;
                }
            }
        }
    }
    w.check();
    let secret: [u8; 4096] = bystander.guest(&w).get(SECRET);
    assert!(secret.iter().all(|b| *b == 0x5a), "the bystander's memory");
    unmap(&w, &mut mapped);
    for id in [d.id, bystander.id] {
        w.destroy(id);
        assert_eq!(w.slot(id), None, "it is gone");
    }
    w.check();
}

/// The control domain lets go of what it maps.
fn unmap(w: &World, mapped: &mut Vec<(u64, u32)>) {
    for (host_addr, handle) in mapped.drain(..) {
        let op = &mut [guest_abi::grant_table::GnttabUnmapGrantRef {
            host_addr,
            handle,
            ..Default::default()
        }];
        assert!(guest_abi::calls::grant::unmap(&w.dom0(), op).is_ok());
        assert_eq!(op[0].status, 0);
    }
}
