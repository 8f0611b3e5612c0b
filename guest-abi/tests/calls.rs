// SPDX-License-Identifier: MIT OR Apache-2.0
//! The typed calls over a fake hypervisor that reads and writes only what was lent.

use guest_abi::arch::VcpuGuestContext;
use guest_abi::call::{self, Hypercall, Lent};
use guest_abi::calls;
use guest_abi::domctl::*;
use guest_abi::event_channel::*;
use guest_abi::grant_table::*;
use guest_abi::hypercall::HypercallNr;
use guest_abi::memory::*;
use guest_abi::sysctl::*;
use guest_abi::xen::*;
use guest_abi::{DomId, Errno, Gfn, GrantRef, Port, hvm, sched};
use zerocopy::{FromZeros, IntoBytes};

/// Answers with a closure.
struct Fake<F>(F);

impl<F: Fn(HypercallNr, [u64; 5], &mut [Lent<'_>]) -> i64> Hypercall for Fake<F> {
    fn call(&self, nr: HypercallNr, args: [u64; 5], lent: &mut [Lent<'_>]) -> i64 {
        (self.0)(nr, args, lent)
    }
}

fn fake<F: Fn(HypercallNr, [u64; 5], &mut [Lent<'_>]) -> i64>(f: F) -> Fake<F> {
    Fake(f)
}

fn get<T: FromZeros + zerocopy::FromBytes + IntoBytes>(lent: &mut [Lent<'_>], addr: u64) -> T {
    let mut t = T::new_zeroed();
    assert!(call::read(lent, addr, t.as_mut_bytes()), "not lent");
    t
}

fn put<T: IntoBytes + zerocopy::Immutable>(lent: &mut [Lent<'_>], addr: u64, t: &T) {
    assert!(call::write(lent, addr, t.as_bytes()), "not lent to write");
}

#[test]
fn errors_are_read_from_the_result() {
    for e in [-1, -38, -4095_i64] {
        let h = fake(|_, _, _| e);
        let expected = Errno::from_number(-e as i32).unwrap_or(Errno::EIO);
        assert_eq!(calls::event::send(&h, Port(3)), Err(expected));
    }
    assert_eq!(Errno::check(i64::MIN), Err(Errno::EIO));
    assert_eq!(Errno::check(7), Ok(7));
}

#[test]
fn events() {
    let h = fake(|nr, [op, a, ..], m| {
        assert_eq!(nr, HypercallNr::EventChannelOp);
        match EventOp::from_number(op).unwrap() {
            EventOp::Send => {
                assert_eq!(get::<EvtchnSend>(m, a).port, Port(9));
            }
            EventOp::AllocUnbound => {
                let mut s: EvtchnAllocUnbound = get(m, a);
                assert_eq!((s.dom, s.remote_dom), (DomId::SELF, DomId(0)));
                s.port = Port(4);
                put(m, a, &s);
            }
            EventOp::BindVirq => {
                let mut s: EvtchnBindVirq = get(m, a);
                assert_eq!((s.virq, s.vcpu), (Virq::DomExc.number(), 0));
                s.port = Port(5);
                put(m, a, &s);
            }
            EventOp::InitControl => {
                let mut s: EvtchnInitControl = get(m, a);
                assert_eq!((s.control_gfn, s.offset, s.vcpu), (77, 128, 2));
                s.link_bits = 17;
                put(m, a, &s);
            }
            _ => return Errno::ENOSYS.to_ret(),
        }
        0
    });
    assert_eq!(calls::event::send(&h, Port(9)), Ok(()));
    assert_eq!(
        calls::event::alloc_unbound(&h, DomId::SELF, DomId(0)),
        Ok(Port(4))
    );
    assert_eq!(calls::event::bind_virq(&h, Virq::DomExc, 0), Ok(Port(5)));
    assert_eq!(calls::event::init_control(&h, 2, 77, 128), Ok(17));
    assert_eq!(calls::event::close(&h, Port(1)), Err(Errno::ENOSYS));
}

#[test]
fn grants() {
    let h = fake(|nr, [op, a, n, ..], m| {
        assert_eq!(nr, HypercallNr::GrantTableOp);
        match GrantOp::from_number(op).unwrap() {
            GrantOp::MapGrantRef => {
                for i in 0..n {
                    let a = a + i * 32;
                    let mut s: GnttabMapGrantRef = get(m, a);
                    s.handle = s.gref.0 + 100;
                    s.status = if i == 1 { -3 } else { 0 };
                    put(m, a, &s);
                }
                0
            }
            GrantOp::SetupTable => {
                assert_eq!(n, 1);
                let s: GnttabSetupTable = get(m, a);
                for i in 0..u64::from(s.nr_frames) {
                    put(m, s.frame_list + 8 * i, &(1000 + i));
                }
                0
            }
            GrantOp::QuerySize => {
                let mut s: GnttabQuerySize = get(m, a);
                s.status = GrantStatus::BadDomain.number();
                put(m, a, &s);
                0
            }
            _ => Errno::ENOSYS.to_ret(),
        }
    });
    let mut ops = [1, 2, 3].map(|n| GnttabMapGrantRef {
        gref: GrantRef(n),
        flags: gntmap::HOST_MAP,
        ..Default::default()
    });
    assert_eq!(calls::grant::map(&h, &mut ops), Ok(()));
    assert_eq!(ops.map(|o| o.handle), [101, 102, 103]);
    assert_eq!(
        ops.map(|o| GrantStatus::check(o.status)),
        [Ok(()), Err(GrantStatus::BadGntref), Ok(())]
    );
    let mut frames = [Gfn(0); 3];
    calls::grant::setup_table(&h, DomId::SELF, &mut frames).unwrap();
    assert_eq!(frames, [Gfn(1000), Gfn(1001), Gfn(1002)]);
    assert_eq!(
        calls::grant::query_size(&h, DomId(99)),
        Err(calls::grant::Error::Status(GrantStatus::BadDomain))
    );
    assert_eq!(calls::grant::set_version(&h, 2), Err(Errno::ENOSYS));
}

#[test]
fn memory() {
    let h = fake(|nr, [op, a, ..], m| {
        assert_eq!(nr, HypercallNr::MemoryOp);
        match MemoryOp::from_number(op).unwrap() {
            MemoryOp::AddToPhysmapBatch => {
                let s: AddToPhysmapBatch = get(m, a);
                assert_eq!((s.domid, s.foreign_domid), (DomId::SELF, DomId(5)));
                assert_eq!(s.space, 4);
                for i in 0..u64::from(s.size) {
                    let theirs: u64 = get(m, s.idxs + 8 * i);
                    let ours: u64 = get(m, s.gpfns + 8 * i);
                    assert_eq!(ours, theirs + 100);
                    let err = if i == 1 { -Errno::EINVAL.number() } else { 0 };
                    put(m, s.errs + 4 * i, &err);
                }
                0
            }
            MemoryOp::PopulatePhysmap => {
                let s: MemoryReservation = get(m, a);
                assert_eq!((s.nr_extents, s.extent_order, s.domid), (3, 9, DomId(7)));
                assert_eq!(get::<u64>(m, s.extent_start + 16), 1024);
                2
            }
            MemoryOp::MaximumGpfn => {
                assert_eq!(get::<DomId>(m, a), DomId(7));
                4711
            }
            _ => Errno::ENOSYS.to_ret(),
        }
    });
    let mut errs = [7; 2];
    let map = |theirs: &[Gfn], ours: &[Gfn], errs: &mut [i32]| {
        calls::memory::map_foreign(&h, DomId(5), theirs, ours, errs)
    };
    assert_eq!(
        map(&[Gfn(1), Gfn(2)], &[Gfn(101), Gfn(102)], &mut errs),
        Ok(())
    );
    assert_eq!(errs, [0, -22]);
    assert_eq!(
        map(&[Gfn(1)], &[Gfn(101), Gfn(102)], &mut errs),
        Err(Errno::EINVAL)
    );
    let many = vec![Gfn(0); 65536];
    assert_eq!(map(&many, &many, &mut vec![0; 65536]), Err(Errno::E2BIG));
    assert_eq!(
        calls::memory::populate_physmap(&h, DomId(7), 9, &[Gfn(0), Gfn(512), Gfn(1024)]),
        Ok(2)
    );
    assert_eq!(calls::memory::maximum_gpfn(&h, DomId(7)), Ok(Gfn(4711)));
}

#[test]
fn domains() {
    let h = fake(|nr, [a, ..], m| {
        assert_eq!(nr, HypercallNr::Domctl);
        let mut d: Domctl = get(m, a);
        if d.interface_version != 0x15 {
            return Errno::EACCES.to_ret();
        }
        match DomctlCmd::from_number(d.cmd).unwrap() {
            DomctlCmd::Createdomain => {
                let mut c: DomctlCreatedomain = d.payload();
                assert_eq!((c.max_vcpus, c.flags), (4, cdf::HVM | cdf::HAP));
                c.arch.gic_version = 2;
                d.set_payload(&c);
                d.domain = DomId(12);
            }
            DomctlCmd::Setvcpucontext => {
                let v: DomctlVcpucontext = d.payload();
                let c: VcpuGuestContext = get(m, v.ctxt);
                assert_eq!(
                    (v.vcpu, c.user_regs.pc64, c.user_regs.x[0]),
                    (0, 0x4008_0000, 5)
                );
                assert_eq!((c.user_regs.cpsr, c.sctlr), (0x1c5, 0x00c5_0078));
            }
            DomctlCmd::Getvcpuaffinity => {
                let v: DomctlVcpuaffinity = d.payload();
                assert_eq!(v.cpumap_hard.nr_bits, 16);
                assert_eq!(v.cpumap_soft.nr_bits, 0);
                put(m, v.cpumap_hard.bitmap, &[0b101_u8]);
            }
            DomctlCmd::Destroydomain => return Errno::ERESTART.to_ret(),
            _ => return Errno::ENOSYS.to_ret(),
        }
        put(m, a, &d);
        0
    });
    let mut c = DomctlCreatedomain {
        max_vcpus: 4,
        flags: cdf::HVM | cdf::HAP,
        ..Default::default()
    };
    assert_eq!(
        calls::domctl::createdomain(&h, DomId(0), &mut c),
        Ok(DomId(12))
    );
    assert_eq!(c.arch.gic_version, 2);
    let start = VcpuGuestContext::start(0x4008_0000, 5);
    assert_eq!(
        calls::domctl::setvcpucontext(&h, DomId(12), 0, &start),
        Ok(())
    );
    let mut hard = [0; 2];
    calls::domctl::getvcpuaffinity(&h, DomId(12), 0, affinity::HARD, &mut hard, &mut []).unwrap();
    assert_eq!(hard, [5, 0]);
    assert_eq!(
        calls::domctl::destroydomain(&h, DomId(12)),
        Err(Errno::ERESTART)
    );
}

#[test]
fn the_system() {
    let h = fake(|nr, [a, ..], m| {
        assert_eq!(nr, HypercallNr::Sysctl);
        let mut s: Sysctl = get(m, a);
        assert_eq!(s.interface_version, 0x15);
        match SysctlCmd::from_number(s.cmd).unwrap() {
            SysctlCmd::Getdomaininfolist => {
                let mut l: SysctlGetdomaininfolist = s.payload();
                let info = DomctlGetdomaininfo {
                    domain: DomId(l.first_domain.0 + 1),
                    flags: dominf::SHUTDOWN | 3 << dominf::SHUTDOWN_SHIFT,
                    ..Default::default()
                };
                put(m, l.buffer, &info);
                // A count beyond the room must not make the caller read there.
                l.num_domains = if l.first_domain == DomId(0) { 1 } else { 99 };
                s.set_payload(&l);
            }
            SysctlCmd::Readconsole => {
                let mut r: SysctlReadconsole = s.payload();
                assert_eq!((r.clear, r.incremental, r.index), (0, 1, 30));
                put(m, r.buffer, b"hello");
                r.count = 5;
                r.index = 35;
                s.set_payload(&r);
            }
            _ => return Errno::ENOSYS.to_ret(),
        }
        put(m, a, &s);
        0
    });
    let mut list = [DomctlGetdomaininfo::default(); 4];
    assert_eq!(
        calls::sysctl::getdomaininfolist(&h, DomId(0), &mut list),
        Ok(1)
    );
    assert_eq!(dominf::shutdown_code(list[0].flags), 3);
    assert_eq!(
        calls::sysctl::getdomaininfolist(&h, DomId(1), &mut list),
        Ok(4)
    );
    let mut buffer = [0; 16];
    assert_eq!(
        calls::sysctl::readconsole(&h, false, Some(30), &mut buffer),
        Ok((5, 35))
    );
    assert_eq!(&buffer[..5], b"hello");
}

#[test]
fn several_at_once() {
    let h = fake(|nr, [a, n, ..], m| {
        assert_eq!((nr, n), (HypercallNr::Multicall, 2));
        for i in 0..n {
            let at = a + i * 64;
            let mut e: MulticallEntry = get(m, at);
            let s: EvtchnSend = get(m, e.args[1]);
            e.result = u64::from(s.port.0);
            put(m, at, &e);
        }
        0
    });
    let (one, two) = (EvtchnSend { port: Port(1) }, EvtchnSend { port: Port(2) });
    let mut lent = [Lent::In(one.as_bytes()), Lent::In(two.as_bytes())];
    let mut entries = [MulticallEntry::default(); 2];
    for (e, l) in entries.iter_mut().zip(&mut lent) {
        e.op = HypercallNr::EventChannelOp.number();
        e.args[0] = EventOp::Send.number();
        e.args[1] = l.addr();
    }
    calls::multicall(&h, &mut entries, lent).unwrap();
    assert_eq!(entries.map(|e| e.result), [1, 2]);
}

#[test]
fn the_rest() {
    let h = fake(|nr, args, m| match (nr, args) {
        (HypercallNr::ConsoleIo, [0, 5, a, ..]) => {
            assert_eq!(&get::<[u8; 5]>(m, a), b"hello");
            0
        }
        (HypercallNr::ConsoleIo, [1, n, a, ..]) => {
            assert_eq!(n, 8);
            put(m, a, b"abc");
            3
        }
        (HypercallNr::XenVersion, [0, ..]) => 4 << 16 | 17,
        (HypercallNr::HvmOp, [1, a, ..]) => {
            let mut p: hvm::HvmParam = get(m, a);
            assert_eq!((p.domid, p.index), (DomId::SELF, 17));
            p.value = 0x39000;
            put(m, a, &p);
            0
        }
        (HypercallNr::SchedOp, [3, a, ..]) => {
            let p: sched::SchedPoll = get(m, a);
            assert_eq!((p.nr_ports, p.timeout), (1, 99));
            assert_eq!(get::<Port>(m, p.ports), Port(6));
            0
        }
        (HypercallNr::VcpuOp, [10, 3, a, ..]) => {
            let p: guest_abi::vcpu::VcpuRegisterVcpuInfo = get(m, a);
            assert_eq!((p.mfn, p.offset), (8, 64));
            0
        }
        (HypercallNr::VmAssist, [0, 5, ..]) => 0,
        _ => Errno::ENOSYS.to_ret(),
    });
    assert_eq!(calls::console::write(&h, b"hello"), Ok(()));
    let mut typed = [0; 8];
    assert_eq!(calls::console::read(&h, &mut typed), Ok(3));
    assert_eq!(&typed[..3], b"abc");
    assert_eq!(calls::version::version(&h), Ok((4, 17)));
    assert_eq!(calls::version::features(&h, 0), Err(Errno::ENOSYS));
    let param = hvm::Param::ConsolePfn;
    assert_eq!(calls::hvm::get_param(&h, DomId::SELF, param), Ok(0x39000));
    assert_eq!(calls::sched::poll(&h, &[Port(6)], 99), Ok(()));
    assert_eq!(calls::vcpu::register_vcpu_info(&h, 3, 8, 64), Ok(()));
    let assist = VmAssist::RUNSTATE_UPDATE_FLAG;
    assert_eq!(calls::vm_assist(&h, VmAssistCmd::Enable, assist), Ok(()));
    assert_eq!(hvm::callback_ppi(31), 0x0200_0000_0000_021f);
    assert_eq!(calls::version::text(b"abc\0def"), b"abc");
}

#[test]
fn numbers_convert_both_ways() {
    for nr in HypercallNr::ALL {
        assert_eq!(HypercallNr::from_number(nr.number()), Some(*nr));
    }
    assert_eq!(HypercallNr::from_number(11), None);
    assert_eq!(HypercallNr::from_number(u64::MAX), None);
    assert_eq!(HypercallNr::EventChannelOp.name(), "event_channel_op");
    assert!(HypercallNr::EventChannelOp.on_arm() && !HypercallNr::Iret.on_arm());
    let words = guest_abi::psci::uid_words(guest_abi::psci::XEN_UID);
    assert_eq!(words[0].to_le_bytes(), [0xa7, 0x18, 0x12, 0xdc]);
    assert_eq!(guest_abi::io::xs_wire::errno_of(b"ENOENT"), Errno::ENOENT);
    assert_eq!(guest_abi::io::xs_wire::errno_of(b"?"), Errno::EINVAL);
}

#[test]
fn a_fake_reaches_only_what_was_lent() {
    let bytes = [1, 2, 3, 4];
    let mut out = [0; 4];
    let mut lent = [Lent::In(&bytes), Lent::Out(&mut out)];
    let (a, b) = (lent[0].addr(), lent[1].addr());
    let mut to = [0; 2];
    assert!(call::read(&mut lent, a + 2, &mut to));
    assert_eq!(to, [3, 4]);
    assert!(!call::read(&mut lent, a.wrapping_sub(64), &mut to));
    assert!(!call::read(&mut lent, u64::MAX, &mut to));
    assert!(!call::write(&mut lent, a, &[9]), "lent only to be read");
    assert!(call::write(&mut lent, b + 3, &[9]));
    assert!(!call::write(&mut lent, b + 3, &[9, 9]));
    assert_eq!(out, [0, 0, 0, 9]);
}

#[test]
fn suspending_tells_whether_the_domain_is_a_new_one() {
    for (ret, expected) in [(0, Ok(true)), (1, Ok(false)), (-1, Err(Errno::EPERM))] {
        let h = fake(|nr, [op, a, ..], m| {
            assert_eq!((nr, op), (HypercallNr::SchedOp, 2));
            assert_eq!(get::<sched::SchedShutdown>(m, a).reason, 2);
            ret
        });
        assert_eq!(calls::sched::suspend(&h), expected);
    }
}

#[test]
fn power_by_psci() {
    use guest_abi::psci::{AFFINITY_OFF, Code, Function};
    struct Firmware(u64);
    impl guest_abi::Smccc for Firmware {
        fn smccc(&self, function: u32, args: [u64; 3]) -> [u64; 4] {
            match Function::from_number(function).unwrap() {
                Function::CpuOn64 => assert_eq!(args, [1, 0x4000_0000, 7]),
                Function::AffinityInfo64 => assert_eq!(args, [1, 0, 0]),
                Function::Features => assert_eq!(args, [0x8400_0008, 0, 0]),
                _ => assert_eq!(args, [0; 3]),
            }
            [self.0, 0, 0, 0]
        }
    }
    use calls::psci;
    assert_eq!(psci::version(&Firmware(0x1_0001)), Ok(0x1_0001));
    assert_eq!(psci::version(&Firmware(u64::MAX)), Err(Code::NotSupported));
    // A 32-bit function leaves the upper half alone.
    assert_eq!(
        psci::version(&Firmware(0xffff_ffff)),
        Err(Code::NotSupported)
    );
    assert!(psci::has(&Firmware(0), Function::SystemOff));
    assert!(!psci::has(&Firmware(-1_i64 as u64), Function::SystemOff));
    assert_eq!(psci::cpu_on(&Firmware(0), 1, 0x4000_0000, 7), Ok(()));
    let already = Firmware(-4_i64 as u64);
    assert_eq!(
        psci::cpu_on(&already, 1, 0x4000_0000, 7),
        Err(Code::AlreadyOn)
    );
    assert_eq!(psci::affinity_info(&Firmware(1), 1), Ok(AFFINITY_OFF));
    assert_eq!(psci::cpu_off(&Firmware(-3_i64 as u64)), Code::Denied);
    assert_eq!(psci::system_off(&Firmware(0)), Code::InternalFailure);
    assert_eq!(
        psci::system_reset(&Firmware(-77_i64 as u64)),
        Code::InternalFailure
    );
}
