// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypercalls of a guest's boot, in its order: Linux's, and those of guests that use less.

use guest_abi::calls::{self, domctl, event, grant, hvm, memory, sched, vcpu, version};
use guest_abi::domctl::dominf;
use guest_abi::event_channel::{EvtchnStat, fifo};
use guest_abi::hvm::{Param, callback_ppi};
use guest_abi::memory::MapSpace;
use guest_abi::sched::ShutdownReason;
use guest_abi::vcpu::VcpuRunstateInfo;
use guest_abi::version::Feature;
use guest_abi::xen::{Virq, VmAssist, VmAssistCmd, offset};
use guest_abi::{DomId, Errno, Gfn, Port, arch};
use sim::{Config, WINDOW, World};

const RAM0: u64 = arch::GUEST_RAM0_BASE;
const INFO: u64 = RAM0 + 0x8000;
const VCPU_INFO: u64 = RAM0 + 0x9000;
const CONTROL: u64 = RAM0 + 0xa000;
const ARRAY: u64 = RAM0 + 0x1_0000;
const RUNSTATE: u64 = RAM0 + 0x2_0fe0;
const GNTTAB: u64 = arch::GUEST_GNTTAB_BASE;

#[test]
fn linux_boots() {
    let w = World::boot(3);
    let h = w.dom0();
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);

    // 1
    let all = version::features(&g, 0).unwrap();
    let has = |f: Feature| all & f.bit() != 0;
    assert!(has(Feature::WritablePageTables) && has(Feature::AutoTranslatedPhysmap));
    assert!(has(Feature::MemoryOpVnodeSupported) && has(Feature::ArmSmcccSupported));
    assert!(has(Feature::NotDirectMapped) && !has(Feature::DirectMapped) && !has(Feature::Dom0));
    let dom0 = version::features(&h, 0).unwrap();
    assert_ne!(dom0 & Feature::Dom0.bit(), 0);
    assert_ne!(dom0 & Feature::DirectMapped.bit(), 0);
    assert_eq!(dom0 & Feature::NotDirectMapped.bit(), 0);
    assert_eq!(version::version(&g), Ok((4, 17)));
    assert_eq!(version::pagesize(&g), Ok(4096));

    // 2: over a page of RAM, whose old page is given back.
    let had = memory::current_reservation(&g, DomId::SELF).unwrap();
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::SharedInfo, 0, Gfn::of(INFO)).unwrap();
    assert_eq!(memory::current_reservation(&g, DomId::SELF), Ok(had - 1));
    // Seconds of the wall clock are there, and no writer (row 12).
    let clock: [u32; 3] = g.get(INFO + offset::WC_VERSION as u64);
    assert_eq!((clock[0] % 2, clock[1], clock[2]), (0, 1_700_000_000, 0));

    // 3, 4, 5
    assert_eq!(grant::query_size(&g, DomId::SELF), Ok((1, 64)));
    assert_eq!(grant::set_version(&g, 1), Ok(1));
    assert_eq!(grant::set_version(&g, 2), Err(Errno::ENOSYS));
    assert_eq!(grant::get_version(&g, DomId::SELF), Ok(1));
    for i in [0, 3, 2, 1] {
        memory::add_to_physmap(
            &g,
            DomId::SELF,
            MapSpace::GrantTable,
            i,
            Gfn::of(GNTTAB + i * 4096),
        )
        .unwrap();
    }
    assert_eq!(grant::query_size(&g, DomId::SELF), Ok((4, 64)));
    // What the toolstack has granted.
    let seeded: [u16; 2] = g.get(GNTTAB);
    assert_eq!(seeded, [1, 0]);

    // 6, 7, 8
    assert_eq!(event::init_control(&g, 0, Gfn::of(CONTROL).0, 0), Ok(17));
    vcpu::register_vcpu_info(&g, 0, Gfn::of(VCPU_INFO).0, 64).unwrap();
    assert!(g.upcall(), "what may have been lost is told of again");
    assert_eq!(
        vcpu::register_vcpu_info(&g, 0, Gfn::of(VCPU_INFO).0, 64),
        Err(Errno::EINVAL)
    );
    vcpu::register_vcpu_info(&g, 1, Gfn::of(VCPU_INFO).0, 128).unwrap();
    assert_eq!(
        vcpu::register_vcpu_info(&g, 2, Gfn::of(VCPU_INFO).0, 192),
        Err(Errno::ENOENT)
    );
    assert_eq!(
        event::init_control(&g, 1, Gfn::of(CONTROL).0 + 1, 0),
        Ok(17)
    );
    g.put(VCPU_INFO + 64, &[0u8; 48]);
    assert!(!g.upcall());

    // 9: ports are beyond the array until it is there; what was pending is not lost.
    let virq = event::bind_virq(&g, Virq::Timer, 0).unwrap();
    let back = event::bind_interdomain(&h, d.id, d.console).unwrap();
    event::send(&h, back).unwrap();
    assert!(!g.upcall());
    event::expand_array(&g, Gfn::of(ARRAY).0).unwrap();
    assert!(event::status(&g, DomId::SELF, virq).unwrap().status == EvtchnStat::Virq.number());

    // 10, 11
    assert_eq!(
        hvm::get_param(&g, DomId::SELF, Param::ConsoleEvtchn),
        Ok(u64::from(d.console.0))
    );
    assert_eq!(
        hvm::get_param(&g, DomId::SELF, Param::ConsolePfn),
        Ok(arch::GUEST_MAGIC_BASE >> 12)
    );
    assert_eq!(
        hvm::get_param(&g, DomId::SELF, Param::StoreEvtchn),
        Ok(u64::from(d.store.0))
    );
    assert_eq!(
        hvm::get_param(&g, DomId::SELF, Param::StorePfn),
        Ok((arch::GUEST_MAGIC_BASE >> 12) + 1)
    );
    assert_eq!(
        hvm::get_param(&g, DomId::SELF, Param::CallbackIrq),
        Ok(callback_ppi(31))
    );
    assert_eq!(
        hvm::get_param(&g, DomId::SELF, Param::MonitorRingPfn),
        Err(Errno::EPERM)
    );
    assert_eq!(
        hvm::set_param(&g, DomId::SELF, Param::StorePfn, 1),
        Err(Errno::EPERM)
    );
    let ring: [u8; 4096] = g.get(arch::GUEST_MAGIC_BASE + 4096);
    assert_eq!(ring, [0; 4096]);

    // 13: across two pages, and the vcpu reads its own at once.
    calls::vm_assist(&g, VmAssistCmd::Enable, VmAssist::RUNSTATE_UPDATE_FLAG).unwrap();
    assert_eq!(
        calls::vm_assist(&g, VmAssistCmd::Enable, 3),
        Err(Errno::EINVAL)
    );
    vcpu::register_runstate_memory_area(&g, 0, RUNSTATE).unwrap();
    let state: VcpuRunstateInfo = g.get(RUNSTATE);
    assert_eq!(state.state_entry_time >> 63, 0, "no update is under way");
    assert_ne!(state.state_entry_time, 0);
    vcpu::register_runstate_memory_area(&g, 1, RUNSTATE + 48).unwrap();

    // 14: the console speaks; masked first, then unmasked.
    let word = ARRAY + u64::from(d.console.0) * 4;
    let raised: u32 = g.get(word);
    assert_ne!(raised & fifo::PENDING, 0, "sent before the array was there");
    g.put(word, &fifo::MASKED);
    g.put(VCPU_INFO + 64, &[0u8; 48]);
    g.put(CONTROL, &[0u8; 72]);
    event::send(&h, back).unwrap();
    assert!(!g.upcall(), "it is masked");
    let masked: u32 = g.get(word);
    assert_eq!(
        masked & (fifo::PENDING | fifo::MASKED),
        fifo::PENDING | fifo::MASKED
    );
    g.put(word, &(masked & !fifo::MASKED));
    event::unmask(&g, d.console).unwrap();
    assert!(g.upcall());
    let ready: u32 = g.get(CONTROL);
    assert_eq!(ready, 1 << fifo::PRIORITY_DEFAULT);
    let head: u32 = g.get(CONTROL + 8 + 4 * u64::from(fifo::PRIORITY_DEFAULT));
    assert_eq!(head, d.console.0);
    event::set_priority(&g, d.console, 3).unwrap();
    event::bind_vcpu(&g, d.console, 1).unwrap();
    assert_eq!(event::bind_vcpu(&g, virq, 1), Err(Errno::EINVAL));
    let ipi = event::bind_ipi(&g, 1).unwrap();
    event::send(&g, ipi).unwrap();
    assert!(d.vcpu(&w, 1).upcall());
    // The balloon: a whole block goes and comes back, page by page and as one.
    let block = Gfn(RAM0 >> 12);
    let some: Vec<Gfn> = (64..512).map(|k| Gfn(block.0 + k)).collect();
    assert_eq!(
        memory::decrease_reservation(&g, DomId::SELF, 0, &some),
        Ok(some.len())
    );
    assert!(!g.write(some[0].addr(), b"gone"));
    assert_eq!(
        memory::populate_physmap(&g, DomId::SELF, 0, &some),
        Ok(some.len())
    );
    assert_eq!(g.get::<[u8; 64]>(some[3].addr()), [0; 64]);
    w.check();
    // Up to its limit and no further.
    let max = memory::maximum_reservation(&g, DomId::SELF).unwrap();
    let have = memory::current_reservation(&g, DomId::SELF).unwrap();
    let more: Vec<Gfn> = (0..max - have + 5).map(|k| Gfn(0x6_0000 + k)).collect();
    assert_eq!(
        memory::populate_physmap(&g, DomId::SELF, 0, &more),
        Ok((max - have) as usize)
    );
    w.check();

    // 15
    sched::shutdown(&g, ShutdownReason::Reboot).unwrap();
    let info = domctl::getdomaininfo(&h, d.id).unwrap();
    assert_eq!(dominf::shutdown_code(info.flags), 1);
    w.destroy(d.id);
    w.check();
}

#[test]
fn blocks_come_back_where_pages_went() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    let block = Gfn(RAM0 >> 12);
    let all: Vec<Gfn> = (0..512).map(|k| Gfn(block.0 + k)).collect();
    assert_eq!(
        memory::decrease_reservation(&g, DomId::SELF, 0, &all),
        Ok(512)
    );
    w.check();
    assert_eq!(
        memory::populate_physmap(&g, DomId::SELF, 9, &[block]),
        Ok(1)
    );
    assert_eq!(
        memory::decrease_reservation(&g, DomId::SELF, 9, &[block]),
        Ok(1)
    );
    w.check();
}

#[test]
fn a_small_guest_uses_what_is_there_by_default() {
    // Zephyr, Unikraft: no vcpu_info of its own, two-level events, setup_table.
    let w = World::boot(2);
    let h = w.dom0();
    let d = w
        .create(Config {
            vcpus: 1,
            ..Config::default()
        })
        .unwrap();
    let g = d.guest(&w);
    memory::add_to_physmap(&g, DomId::SELF, MapSpace::SharedInfo, 0, Gfn::of(INFO)).unwrap();
    let mut frames = [Gfn(0); 4];
    grant::setup_table(&g, DomId::SELF, &mut frames).unwrap();
    assert_eq!(frames, [Gfn(u64::MAX); 4], "mapped nowhere yet");
    for i in 0..4 {
        memory::add_to_physmap(
            &g,
            DomId::SELF,
            MapSpace::GrantTable,
            i,
            Gfn::of(GNTTAB + i * 4096),
        )
        .unwrap();
    }
    grant::setup_table(&g, DomId::SELF, &mut frames).unwrap();
    assert_eq!(frames, [0, 1, 2, 3].map(|i| Gfn::of(GNTTAB + i * 4096)));

    let back = event::bind_interdomain(&h, d.id, d.console).unwrap();
    let _ = g.take_2l(INFO, d.console.0);
    event::send(&h, back).unwrap();
    assert!(g.upcall());
    assert!(g.take_2l(INFO, d.console.0));
    assert!(!g.upcall());
    // And the other way.
    memory::add_to_physmap(&h, DomId::SELF, MapSpace::SharedInfo, 0, Gfn::of(WINDOW)).unwrap();
    let _ = h.take_2l(WINDOW, back.0);
    event::send(&g, d.console).unwrap();
    assert!(h.take_2l(WINDOW, back.0));
    // Masked: pending, but no upcall.
    let mask = INFO + offset::EVTCHN_MASK as u64;
    g.put(mask, &u64::MAX);
    event::send(&h, back).unwrap();
    assert!(!g.upcall());
    g.put(mask, &0u64);
    event::unmask(&g, d.console).unwrap();
    assert!(g.take_2l(INFO, d.console.0));
    // Nothing of it may be asked of another.
    assert_eq!(event::send(&g, Port(77)), Err(Errno::EINVAL));
    // The end: the control domain is told.
    let exc = event::bind_virq(&h, Virq::DomExc, 0).unwrap();
    sched::shutdown(&g, ShutdownReason::Crash).unwrap();
    assert!(h.take_2l(WINDOW, exc.0));
    w.destroy(d.id);
    assert!(h.take_2l(WINDOW, exc.0), "and when it is gone");
    w.check();
}

#[test]
fn a_reset_gives_every_page_and_port_back() {
    let w = World::boot(3);
    let d = w.create(Config::default()).unwrap();
    let g = d.guest(&w);
    vcpu::register_vcpu_info(&g, 0, Gfn::of(VCPU_INFO).0, 0).unwrap();
    event::init_control(&g, 0, Gfn::of(CONTROL).0, 0).unwrap();
    event::expand_array(&g, Gfn::of(ARRAY).0).unwrap();
    for _ in 0..700 {
        event::alloc_unbound(&g, DomId::SELF, DomId(0)).unwrap();
    }
    let mfn = g.mfn(ARRAY >> 12, hv_core::types::Access::Read).unwrap();
    assert_eq!(w.refs(mfn), 2);
    // Whatever the registers hold that are no arguments.
    let at = RAM0 + 0x3_0000;
    g.put(at, &DomId::SELF);
    for rest in [0, 1, u64::MAX] {
        let r = g.raw(32, [10 | (0xdead << 32), at, rest, rest, rest]);
        assert_eq!(r, 0);
    }
    assert_eq!(w.refs(mfn), 1);
    let hv = w.hv.borrow();
    assert_eq!(hv.events.ports_in_use(d.v.slot), 0);
}
