// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is refused, with which error, and that nothing changed.

use guest_abi::calls::{console, domctl, event, memory, sched, sysctl, vcpu};
use guest_abi::domctl::{Domctl, DomctlCmd, DomctlCreatedomain, cdf};
use guest_abi::memory::{AddToPhysmap, MapSpace, MemoryReservation};
use guest_abi::sched::ShutdownReason;
use guest_abi::sysctl::{Sysctl, SysctlPhysinfo};
use guest_abi::xen::MulticallEntry;
use guest_abi::{DomId, Errno, Gfn, HypercallNr, Port, arch};
use hv_core::hypercall::Reply;
use hv_core::machine::{Meter, PhysMem};
use hv_core::types::{Access, Pa};
use sim::{Config, Guest, WINDOW, World};

const RAM0: u64 = arch::GUEST_RAM0_BASE;
const ARG: u64 = RAM0 + 0x3_0000;
const ENOSYS: i64 = Errno::ENOSYS.to_ret();
const EFAULT: i64 = Errno::EFAULT.to_ret();
const EPERM: i64 = Errno::EPERM.to_ret();

fn nr(n: HypercallNr) -> u64 {
    n.number()
}

#[test]
fn unknown_numbers_do_not_exist() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let known = [7, 12, 13, 17, 18, 20, 21, 24, 29, 32, 34, 35, 36];
    for n in (0..256)
        .filter(|n| !known.contains(n))
        .chain([1 << 32 | 17, u64::MAX, 0x8000_0011])
    {
        // hypfs is the control domain's.
        let answer = if n == 42 {
            Errno::EPERM.to_ret()
        } else {
            ENOSYS
        };
        assert_eq!(g.raw(n, [0, ARG, 1, 0, 0]), answer, "hypercall {n}");
    }
    for (n, op) in [
        (12, 63),
        (12, 8),
        (17, 99),
        (18, 2),
        (20, 50),
        (20, 3),
        (24, 99),
        (29, 99),
        (32, 14),
        (34, 99),
    ] {
        assert_eq!(
            g.raw(n, [op, ARG, 1, 0, 0]),
            if n == 24 {
                Errno::ENOENT.to_ret()
            } else {
                ENOSYS
            },
            "{n}/{op}"
        );
    }
    assert_eq!(g.raw(24, [99, 0, ARG, 0, 0]), Errno::EINVAL.to_ret());
    assert_eq!(
        g.raw(24, [0, 0, ARG, 0, 0]),
        Errno::EINVAL.to_ret(),
        "CPUs come up by PSCI"
    );
    let h = w.dom0();
    let at = w.dom0_base() + 0x4000;
    h.put(
        at,
        &Domctl {
            cmd: 999,
            interface_version: guest_abi::domctl::INTERFACE_VERSION,
            ..Default::default()
        },
    );
    assert_eq!(h.raw(nr(HypercallNr::Domctl), [at, 0, 0, 0, 0]), ENOSYS);
    h.put(
        at,
        &Sysctl {
            cmd: 999,
            interface_version: guest_abi::sysctl::INTERFACE_VERSION,
            ..Default::default()
        },
    );
    assert_eq!(h.raw(nr(HypercallNr::Sysctl), [at, 0, 0, 0, 0]), ENOSYS);
}

/// A call that is refused is refused first: nothing is translated, copied or walked for it, whatever its arguments.
#[test]
fn xsa_492_499_a_call_that_is_refused_costs_nothing() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    for n in [
        HypercallNr::Domctl,
        HypercallNr::Sysctl,
        HypercallNr::PlatformOp,
        HypercallNr::HypfsOp,
    ] {
        for at in [ARG, 0, u64::MAX, RAM0 + 4095] {
            let mut x = [at; 5];
            assert_eq!(w.slice(g.v, nr(n), &mut x), Reply::Done(EPERM));
            assert_eq!(w.m.spent(), 0, "{n:?}");
        }
    }
    // One that is not refused is counted.
    let mut x = [ARG, 1, 0, 0, 0];
    let _ = w.slice(g.v, nr(HypercallNr::Multicall), &mut x);
    assert!(w.m.spent() > 0);
}

#[test]
fn control_is_the_control_domains() {
    let w = World::boot(3);
    let h = w.dom0();
    let (d, victim) = (
        w.create(Config::default()).unwrap(),
        w.create(Config::default()).unwrap(),
    );
    let g = d.guest(&w);
    let before = w.totals();
    for cmd in 0..100 {
        g.put(
            ARG,
            &Domctl {
                cmd,
                interface_version: guest_abi::domctl::INTERFACE_VERSION,
                domain: victim.id,
                ..Default::default()
            },
        );
        for n in [
            HypercallNr::Domctl,
            HypercallNr::Sysctl,
            HypercallNr::PlatformOp,
        ] {
            assert_eq!(g.raw(nr(n), [ARG, 0, 0, 0, 0]), EPERM);
            // And through a multicall.
            let mut e = [MulticallEntry {
                op: nr(n),
                args: [ARG, 0, 0, 0, 0, 0],
                ..Default::default()
            }];
            guest_abi::calls::multicall(&g, &mut e, []).unwrap();
            assert_eq!(e[0].result as i64, EPERM);
        }
    }
    for id in [victim.id, DomId(0)] {
        assert_eq!(event::alloc_unbound(&g, id, d.id), Err(Errno::EPERM));
        assert_eq!(event::reset(&g, id), Err(Errno::EPERM));
        assert_eq!(
            event::status(&g, id, Port(1)).map(|_| ()),
            Err(Errno::EPERM)
        );
        assert_eq!(
            sched::remote_shutdown(&g, id, ShutdownReason::Crash),
            Err(Errno::EPERM)
        );
        assert_eq!(
            memory::add_to_physmap(&g, id, MapSpace::SharedInfo, 0, Gfn(5)),
            Err(Errno::EPERM)
        );
        assert_eq!(
            memory::remove_from_physmap(&g, id, Gfn::of(RAM0)),
            Err(Errno::EPERM)
        );
        assert_eq!(memory::current_reservation(&g, id), Err(Errno::EPERM));
        assert_eq!(memory::populate_physmap(&g, id, 0, &[Gfn(9)]), Ok(0));
        assert_eq!(
            memory::decrease_reservation(&g, id, 0, &[Gfn::of(RAM0)]),
            Ok(0)
        );
        let mut errs = [7];
        let r = memory::map_foreign(&g, id, &[Gfn::of(RAM0)], &[Gfn::of(WINDOW)], &mut errs);
        assert_eq!((r, errs), (Err(Errno::EPERM), [7]));
        let r = memory::acquire_resource(
            &g,
            id,
            guest_abi::memory::Resource::GrantTable,
            0,
            0,
            &[Gfn(7)],
        );
        assert_eq!(r, Err(Errno::EPERM));
    }
    assert_eq!(
        sched::remote_shutdown(&g, d.id, ShutdownReason::Crash),
        Err(Errno::EPERM)
    );
    assert_eq!(
        event::bind_virq(&g, guest_abi::xen::Virq::Timer, 9).map(|_| ()),
        Err(Errno::ENOENT)
    );
    let mut none = [0; 4];
    assert_eq!(console::read(&g, &mut none), Err(Errno::EPERM));
    assert_eq!(w.totals(), before);
    w.check();
    // What the control domain may do with itself has limits too.
    assert_eq!(domctl::destroydomain(&h, DomId(0)), Err(Errno::EINVAL));
    assert_eq!(domctl::pausedomain(&h, DomId(0)), Err(Errno::EINVAL));
    assert_eq!(domctl::destroydomain(&h, DomId(77)), Err(Errno::ESRCH));
    let mut c = DomctlCreatedomain {
        flags: cdf::HVM,
        max_vcpus: 1,
        ..Default::default()
    };
    assert_eq!(
        domctl::createdomain(&h, DomId(0), &mut c).map(|_| ()),
        Err(Errno::EINVAL)
    );
}

#[test]
fn other_interface_versions_are_refused() {
    let w = World::boot(3);
    let h = w.dom0();
    let at = w.dom0_base() + 0x4000;
    for version in [0, 0x14, 0x17, 0x18, u32::MAX] {
        h.put(
            at,
            &Domctl {
                cmd: DomctlCmd::Createdomain.number(),
                interface_version: version,
                ..Default::default()
            },
        );
        assert_eq!(
            h.raw(nr(HypercallNr::Domctl), [at, 0, 0, 0, 0]),
            Errno::EACCES.to_ret()
        );
        h.put(
            at,
            &Sysctl {
                cmd: 3,
                interface_version: version,
                ..Default::default()
            },
        );
        assert_eq!(
            h.raw(nr(HypercallNr::Sysctl), [at, 0, 0, 0, 0]),
            Errno::EACCES.to_ret()
        );
        h.put(
            at,
            &guest_abi::platform::PlatformOp {
                interface_version: version,
                ..Default::default()
            },
        );
        assert_eq!(
            h.raw(nr(HypercallNr::PlatformOp), [at, 0, 0, 0, 0]),
            Errno::EACCES.to_ret()
        );
    }
}

/// Places where no structure can be: nothing there, the border of memory, a table's end, a wrap.
fn bad_places(g: &Guest<'_>, end: u64) -> Vec<u64> {
    assert!(!g.read(end, &mut [0]));
    vec![
        0,
        end,
        end - 1,
        1 << 40,
        (1 << 40) - 1,
        u64::MAX,
        u64::MAX - 7,
        0xffff_0000_0000_0000,
    ]
}

#[test]
fn bad_pointers_fault_and_change_nothing() {
    let w = World::boot(2);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let ports = || w.hv.borrow().events.ports_in_use(d.v.slot);
    let before = (w.totals(), ports());
    // A device that the guest has mapped is no memory.
    let devices = [arch::GUEST_GICC_BASE, arch::GUEST_GICC_BASE + 0x1ffc];
    for p in bad_places(&g, d.end()).into_iter().chain(devices) {
        for op in [6, 7, 15] {
            // A reservation answers how many extents it dealt with.
            let answer = if op == 6 { 0 } else { EFAULT };
            assert_eq!(g.raw(12, [op, p, 0, 0, 0]), answer, "memory {op} at {p:#x}");
        }
        for op in (0..=13).filter(|o| *o != 2) {
            assert_eq!(g.raw(32, [op, p, 0, 0, 0]), EFAULT, "event {op} at {p:#x}");
        }
        for op in [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12] {
            assert_eq!(g.raw(20, [op, p, 1, 0, 0]), EFAULT, "grant {op} at {p:#x}");
        }
        for op in [2, 3, 4, 5, 6] {
            assert_eq!(g.raw(29, [op, p, 0, 0, 0]), EFAULT, "sched {op} at {p:#x}");
        }
        for op in [1, 2, 3, 4, 5, 6, 8, 9] {
            assert_eq!(
                g.raw(17, [op, p, 0, 0, 0]),
                EFAULT,
                "version {op} at {p:#x}"
            );
        }
        for (n, args) in [
            (24, [5, 0, p, 0, 0]),
            (24, [10, 0, p, 0, 0]),
            (34, [0, p, 0, 0, 0]),
            (34, [1, p, 0, 0, 0]),
            (18, [0, 8, p, 0, 0]),
            (13, [p, 1, 0, 0, 0]),
        ] {
            assert_eq!(g.raw(n, args), EFAULT, "{n} at {p:#x}");
        }
        for n in [35, 36, 7] {
            assert_eq!(h.raw(n, [p.max(1), 0, 0, 0, 0]), EFAULT, "{n} at {p:#x}");
        }
    }
    assert_eq!((w.totals(), ports()), before);
    // A list that ends in nothing: as many as could be done.
    let r = MemoryReservation {
        extent_start: d.end() - 16,
        nr_extents: 4,
        domid: DomId::SELF,
        ..Default::default()
    };
    g.put(ARG, &r);
    g.put(d.end() - 16, &[(RAM0 >> 12) + 100, (RAM0 >> 12) + 101]);
    assert_eq!(g.raw(12, [1, ARG, 0, 0, 0]), 2);
    assert_eq!(
        memory::populate_physmap(
            &g,
            DomId::SELF,
            0,
            &[Gfn((RAM0 >> 12) + 100), Gfn((RAM0 >> 12) + 101)]
        ),
        Ok(2)
    );
    // A list of ports to poll that is not there.
    g.put(
        ARG,
        &guest_abi::sched::SchedPoll {
            ports: d.end(),
            nr_ports: 1,
            ..Default::default()
        },
    );
    assert_eq!(g.raw(29, [3, ARG, 0, 0, 0]), EFAULT);
    assert!(!w.hv.borrow().sched.is_blocked(g.v));
    w.check();
}

#[test]
fn structures_may_cross_pages_and_answers_need_write_access() {
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    // Pages that are not neighbours in the machine.
    let list: Vec<Gfn> = (4..6).map(|k| Gfn((RAM0 >> 12) + k)).collect();
    assert_eq!(
        memory::decrease_reservation(&g, DomId::SELF, 0, &list),
        Ok(2)
    );
    assert_eq!(
        memory::populate_physmap(&g, DomId::SELF, 0, &[list[1], list[0]]),
        Ok(2)
    );
    let mfn = |gfn: Gfn| g.mfn(gfn.0, Access::Read).unwrap();
    assert_ne!(mfn(list[0]) + 1, mfn(list[1]));
    let at = list[1].addr() - 5;
    g.put(
        at,
        &guest_abi::event_channel::EvtchnAllocUnbound {
            dom: DomId::SELF,
            remote_dom: DomId(0),
            port: Port(0),
        },
    );
    assert_eq!(g.raw(32, [6, at, 0, 0, 0]), 0);
    let port: guest_abi::event_channel::EvtchnAllocUnbound = g.get(at);
    assert_ne!(port.port, Port(0));
    event::close(&g, port.port).unwrap();

    // A read-only grant holds the structure: it can be read, but not answered to.
    let ports = w.hv.borrow().events.ports_in_use(d.v.slot);
    let gnttab = arch::GUEST_GNTTAB_BASE;
    memory::add_to_physmap(&h, DomId::SELF, MapSpace::GrantTable, 0, Gfn::of(WINDOW)).unwrap();
    let page = w.dom0_base() + 0x9000;
    let e = guest_abi::grant_table::GrantEntryV1 {
        flags: 1 | 4,
        domid: d.id,
        frame: (page >> 12) as u32,
    };
    h.put(WINDOW + 64, &e);
    let mut op = [guest_abi::grant_table::GnttabMapGrantRef {
        host_addr: gnttab + 0x10_0000,
        flags: 2 | 4,
        gref: guest_abi::GrantRef(8),
        dom: DomId(0),
        ..Default::default()
    }];
    guest_abi::calls::grant::map(&g, &mut op).unwrap();
    assert_eq!(op[0].status, 0);
    h.put(
        page,
        &guest_abi::event_channel::EvtchnAllocUnbound {
            dom: DomId::SELF,
            remote_dom: DomId(0),
            port: Port(0),
        },
    );
    assert_eq!(g.raw(32, [6, op[0].host_addr, 0, 0, 0]), EFAULT);
    for (n, cmd) in [(20, 5), (20, 6), (20, 0), (20, 8), (17, 6), (34, 1)] {
        let args = if n == 20 {
            [cmd, op[0].host_addr, 1, 0, 0]
        } else {
            [cmd, op[0].host_addr, 0, 0, 0]
        };
        // What is read there is no index that exists.
        let r = g.raw(n, args);
        let bad_index = (n, cmd) == (17, 6) && r == Errno::EINVAL.to_ret();
        assert!(r == EFAULT || n == 34 || bad_index, "{n}/{cmd}: {r}");
    }
    assert_eq!(w.hv.borrow().events.ports_in_use(d.v.slot), ports);
    w.check();
}

#[test]
fn shared_pages_are_in_one_place() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let add = |space, idx, gfn: u64| memory::add_to_physmap(&g, DomId::SELF, space, idx, Gfn(gfn));
    let (a, b) = ((RAM0 >> 12) + 8, (RAM0 >> 12) + 9);
    assert_eq!(add(MapSpace::SharedInfo, 1, a), Err(Errno::EINVAL));
    assert_eq!(add(MapSpace::SharedInfo, 0, 1 << 28), Err(Errno::EINVAL));
    assert_eq!(add(MapSpace::SharedInfo, 0, u64::MAX), Err(Errno::EINVAL));
    assert_eq!(add(MapSpace::SharedInfo, 0, a), Ok(()));
    assert_eq!(add(MapSpace::SharedInfo, 0, a), Err(Errno::EBUSY));
    assert_eq!(add(MapSpace::SharedInfo, 0, b), Err(Errno::EBUSY));
    memory::remove_from_physmap(&g, DomId::SELF, Gfn(a)).unwrap();
    assert_eq!(
        memory::remove_from_physmap(&g, DomId::SELF, Gfn(a)),
        Err(Errno::ENOENT)
    );
    assert_eq!(add(MapSpace::SharedInfo, 0, b), Ok(()), "as after kexec");
    // A grant frame stays where it is until it is taken away there.
    assert_eq!(add(MapSpace::GrantTable, 0, 1 << 28), Err(Errno::EINVAL));
    assert_eq!(add(MapSpace::GrantTable, 0, a), Ok(()));
    for gfn in [a, a + 4, 1 << 28] {
        assert_eq!(add(MapSpace::GrantTable, 0, gfn), Err(Errno::EBUSY));
    }
    let mut list = [Gfn(0)];
    guest_abi::calls::grant::setup_table(&g, DomId::SELF, &mut list).unwrap();
    assert_eq!(list, [Gfn(a)]);
    memory::remove_from_physmap(&g, DomId::SELF, Gfn(a)).unwrap();
    assert!(!g.read(a << 12, &mut [0]));
    // Over the shared info: that is then nowhere.
    assert_eq!(add(MapSpace::GrantTable, 0, b), Ok(()));
    assert_eq!(add(MapSpace::SharedInfo, 0, b), Ok(()));
    guest_abi::calls::grant::setup_table(&g, DomId::SELF, &mut list).unwrap();
    assert_eq!(list, [Gfn(u64::MAX)]);
    assert_eq!(add(MapSpace::GrantTable, 64, a), Err(Errno::EINVAL));
    assert_eq!(add(MapSpace::GrantTable, u64::MAX, a), Err(Errno::EINVAL));
    assert_eq!(add(MapSpace::GmfnForeign, 0, a), Err(Errno::ENOSYS));
    assert_eq!(add(MapSpace::DevMmio, 0, a), Err(Errno::EACCES));
    g.put(
        ARG,
        &AddToPhysmap {
            domid: DomId(99),
            ..Default::default()
        },
    );
    assert_eq!(g.raw(12, [7, ARG, 0, 0, 0]), Errno::ESRCH.to_ret());
    w.check();
}

#[test]
fn the_console_is_logged_and_limited() {
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let printed = || String::from_utf8(w.m.printed.take()).unwrap();
    console::write(&h, b"dom0 speaks").unwrap();
    console::write(&g, b"\x1b[2J\rvane> \n(PV) I am \xc2\x9bthe hypervisor").unwrap();
    let id = d.id;
    assert_eq!(printed(), format!("dom0 speaks\r\n(d{id}) [2Jvane> \r\n"));
    console::write(&g, b"\n").unwrap();
    let line = format!("(d{id}) (PV) I am the hypervisor\r\n");
    assert_eq!(printed(), line);
    // Who prints too much waits.
    let mut x = [0, 7000, ARG, 0, 0];
    assert!(g.write(ARG, &[b'y'; 4096]));
    for n in 0..200 {
        x[2] = ARG;
        assert_eq!(w.slice(g.v, 18, &mut x), Reply::Again, "{n}");
    }
    assert!((5000..6200).contains(&printed().len()));
    w.m.now.set(w.m.now.get() + 2_000_000_000);
    x[2] = ARG;
    while w.slice(g.v, 18, &mut x) == Reply::Again {
        x[2] = ARG;
    }
    assert!((1000..2500).contains(&printed().len()));
    let mut log = vec![0; 1 << 15];
    let (n, _) = sysctl::readconsole(&h, false, None, &mut log).unwrap();
    let log = String::from_utf8(log[..n].to_vec()).unwrap();
    assert!(
        log.lines().all(|l| l.starts_with(&format!("(d{id}) "))),
        "{log}"
    );
    assert_eq!(
        g.raw(18, [0, u64::from(u32::MAX), ARG, 0, 0]),
        Errno::EINVAL.to_ret()
    );
    assert_eq!(
        g.raw(18, [0, 0xdead << 32 | 4, ARG, 0, 0]),
        0,
        "the count has 32 bits"
    );
    w.hv.borrow_mut().console.typed(b'a');
    let mut typed = [0; 4];
    assert_eq!(console::read(&h, &mut typed), Ok(1));
    assert_eq!(typed, *b"a\0\0\0");
    let info: SysctlPhysinfo = sysctl::physinfo(&h).unwrap();
    assert_eq!(info.nr_cpus, 2);
    assert!(info.free_pages < info.total_pages);
}

/// Nobody waits for the UART under the lock: a call takes what there is room for and is made again.
#[test]
fn a_slow_uart_makes_who_prints_wait_and_nobody_else() {
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    w.m.uart_takes.set(0);
    // Guests do not wait for it at all.
    for n in 0..100 {
        console::write(&g, format!("line {n}\n").as_bytes()).unwrap();
    }
    let text = vec![b'x'; 4096];
    w.m.write(Pa(h.bounce), &text);
    let mut slices = 0;
    let mut x = [0, 32 * 1024, h.bounce, 0, 0];
    let all = x[1];
    while w.slice(h.v, 18, &mut x) == Reply::Again {
        slices += 1;
        assert!(slices < 2000, "it ends");
        x[2] = h.bounce;
        if slices % 2 == 0 {
            w.m.send(64);
        }
    }
    w.m.send(usize::MAX);
    let printed = w.m.printed.take();
    let got = printed.iter().filter(|&&b| b == b'x').count();
    assert_eq!(got as u64, all, "and nothing is lost");
    // A UART that never takes anything does not hold dom0 for ever.
    let mut x = [0, 32 * 1024, h.bounce, 0, 0];
    slices = 0;
    while w.slice(h.v, 18, &mut x) == Reply::Again {
        slices += 1;
        assert!(slices < 2000, "it ends");
        x[2] = h.bounce;
    }
}

#[test]
fn multicalls_answer_each_entry() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let entry = |op: u64, args: [u64; 5]| MulticallEntry {
        op,
        result: 77,
        args: [args[0], args[1], args[2], args[3], args[4], 0],
    };
    let mut all = [
        entry(17, [0; 5]),
        entry(99, [0; 5]),
        entry(13, [ARG, 1, 0, 0, 0]),
        entry(32, [6, 0, 0, 0, 0]),
        entry(17, [7, 0, 0, 0, 0]),
    ];
    guest_abi::calls::multicall(&g, &mut all, []).unwrap();
    let results: Vec<i64> = all.iter().map(|e| e.result as i64).collect();
    assert_eq!(results, [0x4_0011, -38, -22, -14, 4096]);
    let mut many = [entry(17, [0; 5]); 50];
    guest_abi::calls::multicall(&g, &mut many, []).unwrap();
    assert!(many.iter().all(|e| e.result == 0x4_0011));
    assert_eq!(
        vcpu::register_runstate_memory_area(&g, 5, 0),
        Err(Errno::ENOENT)
    );
}

#[test]
fn information_of_a_missing_domain_is_that_of_the_next_one() {
    let w = World::boot(3);
    let h = w.dom0();
    let made = [(); 3].map(|()| w.create(Config::default()).unwrap().id);
    let ask = |id| domctl::getdomaininfo(&h, id).map(|i| i.domain);
    w.destroy(made[1]);
    assert_eq!(ask(made[0]), Ok(made[0]));
    assert_eq!(ask(made[1]), Ok(made[2]), "as Xen 4.17 does");
    assert_eq!(ask(DomId(made[2].0 + 1)), Err(Errno::ESRCH));
    assert_eq!(ask(DomId::SELF), Err(Errno::EINVAL));
    assert_eq!(ask(DomId::INVALID), Err(Errno::EINVAL));
    // Other operations want the very domain.
    assert_eq!(domctl::pausedomain(&h, made[1]), Err(Errno::ESRCH));
    assert_eq!(domctl::pausedomain(&h, DomId::SELF), Err(Errno::ESRCH));
    // The list goes by numbers too, from the first one asked for.
    let mut list = [guest_abi::domctl::DomctlGetdomaininfo::default(); 8];
    let n = sysctl::getdomaininfolist(&h, made[1], &mut list).unwrap();
    assert_eq!((n, list[0].domain), (1, made[2]));
    let n = sysctl::getdomaininfolist(&h, DomId(0), &mut list).unwrap();
    let all: Vec<_> = list[..n].iter().map(|i| i.domain).collect();
    assert_eq!(all, [DomId(0), made[0], made[2]]);
}
