// SPDX-License-Identifier: MIT OR Apache-2.0
//! `domctl` and `sysctl` (`domctl.h`, `sysctl.h`, interface 0x15 of Xen 4.17): what a toolstack
//! does with domains and asks of the machine. The control domain's alone.

use super::{Answer, Call, OK, Reply, done};
use crate::domain::Death;
use crate::hypervisor::NewDomain;
use crate::machine::{CacheOp, Machine, StartState, cost};
use crate::p2m::Kind;
use crate::types::{DomId, Errno, Gfn, Pa, Slot, VcpuRef};
use guest_abi::arch::{ArchDomainconfig, VGCF_ONLINE, VcpuGuestContext};
use guest_abi::domctl::{self, *};
use guest_abi::sysctl::{self, *};
use guest_abi::xen::XenctlBitmap;

/// `sysctl.cmd` while a list of domains is made: the bit, and above it the domain to go on with.
const LIST_GOES_ON: u32 = 1 << 15;

/// Where the `n`th of a guest's array of `T` is; behind the last address from 0 on again.
fn nth<T>(array: u64, n: u32) -> u64 {
    array.wrapping_add(u64::from(n).wrapping_mul(size_of::<T>() as u64))
}

impl<M: Machine> Call<'_, M> {
    #[inline(never)]
    pub(super) fn domctl(&mut self, a: &mut [u64; 5]) -> Answer {
        let mut op: Domctl = self.guest().get(a[0])?;
        if op.interface_version != domctl::INTERFACE_VERSION {
            return Err(Errno::EACCES);
        }
        let cmd = DomctlCmd::from_number(op.cmd).ok_or(Errno::ENOSYS)?;
        if cmd == DomctlCmd::Createdomain {
            return self.create(a[0], op);
        }
        if cmd == DomctlCmd::Getdomaininfo {
            // Tools walk the domains with it: a number that nobody has means the next one.
            if op.domain >= DomId::FIRST_RESERVED {
                return Err(Errno::EINVAL);
            }
            let next = self.hv.domains.next_from(op.domain).ok_or(Errno::ESRCH)?;
            let info = self.info(next.slot)?;
            op.domain = info.domain;
            op.set_payload(&info);
            return self.guest().put(a[0], &op).and(OK);
        }
        let slot = self.hv.domains.find(op.domain).ok_or(Errno::ESRCH)?;
        let m = self.m;
        let own = slot == self.slot();
        if cmd == DomctlCmd::Destroydomain {
            if own {
                return Err(Errno::EINVAL);
            }
            // Each call is a slice, and the toolstack makes the next one: the control domain has one
            // vcpu, and others want to be served by it meanwhile.
            return self.hv.destroy_slice(m, slot).and(OK);
        }
        if self
            .hv
            .domains
            .get(slot)
            .is_none_or(|d| d.death != Death::Alive)
        {
            return Err(Errno::ESRCH);
        }
        match cmd {
            DomctlCmd::Pausedomain => {
                if own {
                    return Err(Errno::EINVAL);
                }
                // It is paused when none of its vcpus is on a CPU any more; until then the call is
                // made again.
                return if self.hv.pause_domain_by(m, slot, self.who)? {
                    OK
                } else {
                    Ok(Reply::Again)
                };
            }
            DomctlCmd::Unpausedomain => {
                if own {
                    return Err(Errno::EINVAL);
                }
                self.hv.pause_domain(m, slot, false)?;
            }
            DomctlCmd::MaxVcpus => {
                let p: DomctlMaxVcpus = op.payload();
                let have = self.hv.domains.get(slot).map_or(0, |d| d.vcpus.len());
                if p.max as usize != have {
                    return Err(Errno::EINVAL);
                }
            }
            DomctlCmd::MaxMem => {
                let p: DomctlMaxMem = op.payload();
                let d = self.hv.domains.get_mut(slot).ok_or(Errno::ESRCH)?;
                d.max_pages = u32::try_from(p.max_memkb / 4).map_err(|_| Errno::EINVAL)?;
            }
            DomctlCmd::SetPagingMempoolSize => {
                let p: DomctlPagingMempool = op.payload();
                let tables = u32::try_from(p.size / 4096).map_err(|_| Errno::EINVAL)?;
                let (d, c) = self.hv.p2m_of(m, slot)?;
                d.p2m.set_table_limit(c.frames, tables.max(64))?;
            }
            DomctlCmd::GetPagingMempoolSize => {
                let d = self.hv.domains.get(slot).ok_or(Errno::ESRCH)?;
                op.set_payload(&DomctlPagingMempool {
                    size: u64::from(d.p2m.table_limit()) * 4096,
                });
                self.guest().put(a[0], &op)?;
            }
            DomctlCmd::SetAddressSize => {
                let p: DomctlAddressSize = op.payload();
                if p.size != 64 {
                    return Err(Errno::EINVAL);
                }
            }
            DomctlCmd::GetAddressSize => {
                op.set_payload(&DomctlAddressSize { size: 64 });
                self.guest().put(a[0], &op)?;
            }
            DomctlCmd::Setvcpucontext => {
                let p: DomctlVcpucontext = op.payload();
                let c: VcpuGuestContext = self.guest().get(p.ctxt)?;
                self.set_context(slot, p.vcpu, &c)?;
            }
            DomctlCmd::Getvcpucontext => {
                let p: DomctlVcpucontext = op.payload();
                let v = self.vcpu(slot, p.vcpu)?;
                if self.hv.sched.running_on(v).is_some() {
                    return Err(Errno::EBUSY);
                }
                let s = m.get_state(v);
                let mut c = VcpuGuestContext {
                    sctlr: s.sctlr,
                    ttbcr: s.tcr,
                    ttbr0: s.ttbr0,
                    ttbr1: s.ttbr1,
                    ..Default::default()
                };
                c.flags = if self.hv.sched.is_down(v) {
                    0
                } else {
                    VGCF_ONLINE
                };
                let r = &mut c.user_regs;
                (r.x, r.pc64, r.cpsr) = (s.x, s.pc, s.cpsr);
                (r.sp_el0, r.sp_el1, r.elr_el1, r.spsr_el1) =
                    (s.sp_el0, s.sp_el1, s.elr_el1, s.spsr_el1);
                self.guest().put(p.ctxt, &c)?;
            }
            DomctlCmd::Getvcpuinfo => {
                let mut p: DomctlGetvcpuinfo = op.payload();
                let v = self.vcpu(slot, p.vcpu)?;
                let on = self.hv.sched.running_on(v);
                p.online = u8::from(!self.hv.sched.is_down(v));
                p.blocked = u8::from(self.hv.sched.is_blocked(v));
                p.running = u8::from(on.is_some());
                p.cpu_time = self
                    .hv
                    .sched
                    .runstate_at(v, m.now())
                    .map_or(0, |r| r.time.first().copied().unwrap_or(0));
                p.cpu = u32::from(self.hv.sched.home(v).0);
                op.set_payload(&p);
                self.guest().put(a[0], &op)?;
            }
            DomctlCmd::Setvcpuaffinity | DomctlCmd::Getvcpuaffinity => {
                let p: DomctlVcpuaffinity = op.payload();
                let v = self.vcpu(slot, p.vcpu)?;
                if cmd == DomctlCmd::Getvcpuaffinity {
                    let mask = self.hv.sched.affinity(v);
                    self.put_bitmap(&p.cpumap_hard, mask)?;
                    self.put_bitmap(
                        &p.cpumap_soft,
                        u64::MAX.wrapping_shr(0u32.wrapping_sub(self.hv.info.cpus)),
                    )?;
                } else if p.flags & affinity::HARD != 0 {
                    let mask = self.get_bitmap(&p.cpumap_hard)?;
                    let kick = self.hv.sched.set_affinity(v, mask, m.now())?;
                    if let Some(c) = kick {
                        self.hv.effects.kick |= 1 << c.0;
                    }
                }
            }
            DomctlCmd::Cacheflush => return self.cache_flush(a, slot, op),
            DomctlCmd::Setdomainhandle => {
                let p: DomctlSetdomainhandle = op.payload();
                if let Some(d) = self.hv.domains.get_mut(slot) {
                    d.handle = p.handle;
                }
            }
            DomctlCmd::SchedulerOp => {
                let mut p: DomctlSchedulerOp = op.payload();
                match p.cmd {
                    schedop::PUTINFO => self.hv.sched.set_weight(slot, u32::from(p.weight))?,
                    schedop::GETINFO => {
                        p.weight = self.hv.sched.weight(slot) as u16;
                        p.cap = 0;
                        op.set_payload(&p);
                        self.guest().put(a[0], &op)?;
                    }
                    _ => return Err(Errno::EOPNOTSUPP),
                }
            }
            DomctlCmd::VuartOp => {
                let mut p: DomctlVuartOp = op.payload();
                if p.cmd != VUART_OP_INIT || p.kind != VUART_TYPE_VPL011 {
                    return Err(Errno::EINVAL);
                }
                if self.hv.domains.get(slot).is_none_or(|d| !d.creating) {
                    return Err(Errno::EPERM);
                }
                p.evtchn = self.hv.vuart_init(m, slot, Gfn(p.gfn), p.console_domid)?;
                op.set_payload(&p);
                self.guest().put(a[0], &op)?;
            }
            DomctlCmd::Setnodeaffinity | DomctlCmd::Settimeoffset | DomctlCmd::HypercallInit => {}
            _ => return Err(Errno::ENOSYS),
        }
        OK
    }

    fn create(&mut self, arg: u64, mut op: Domctl) -> Answer {
        let mut p: DomctlCreatedomain = op.payload();
        let allowed = cdf::HVM | cdf::HAP;
        if p.flags != allowed {
            return Err(Errno::EINVAL);
        }
        let native = p.arch.gic_version == ArchDomainconfig::GIC_NATIVE;
        let frames = |n: i32, default: u32| if n < 0 { default } else { n as u32 };
        let new = NewDomain {
            handle: p.handle,
            max_vcpus: p.max_vcpus,
            max_port: p.max_evtchn_port,
            max_grant_frames: frames(p.max_grant_frames, 64),
            max_maptrack_frames: frames(p.max_maptrack_frames, 1024),
            gic_version: match native {
                true => 0,
                false => p.arch.gic_version.checked_add(1).ok_or(Errno::EINVAL)?,
            },
            nr_spis: u16::try_from(p.arch.nr_spis).map_err(|_| Errno::EINVAL)?,
            privileged: false,
        };
        self.guest().check_writable(arg, size_of::<Domctl>())?;
        let slot = self.hv.create_domain(self.m, &new)?;
        if let Some(d) = self.hv.domains.get(slot) {
            p.arch.gic_version = d.gic_version.saturating_sub(1);
            op.domain = d.domid;
        }
        op.set_payload(&p);
        self.guest().put(arg, &op).and(OK)
    }

    fn vcpu(&self, slot: Slot, id: u32) -> Result<VcpuRef, Errno> {
        self.hv
            .domains
            .get(slot)
            .and_then(|d| d.vcpu(id))
            .ok_or(Errno::ESRCH)
    }

    fn set_context(&mut self, slot: Slot, id: u32, c: &VcpuGuestContext) -> Result<(), Errno> {
        let v = self.vcpu(slot, id)?;
        let r = &c.user_regs;
        let s = StartState {
            x: r.x,
            pc: r.pc64,
            cpsr: r.cpsr,
            sctlr: c.sctlr,
            tcr: c.ttbcr,
            ttbr0: c.ttbr0,
            ttbr1: c.ttbr1,
            sp_el0: r.sp_el0,
            sp_el1: r.sp_el1,
            elr_el1: r.elr_el1,
            spsr_el1: r.spsr_el1,
        };
        if c.flags & VGCF_ONLINE == 0 {
            return Err(Errno::EINVAL);
        }
        self.hv.start_vcpu(self.m, v, &s)
    }

    fn put_bitmap(&self, b: &XenctlBitmap, mask: u64) -> Result<(), Errno> {
        let bytes = mask.to_le_bytes();
        let n = (b.nr_bits.div_ceil(8) as usize).min(8);
        self.guest()
            .write(b.bitmap, bytes.get(..n).ok_or(Errno::EINVAL)?)
    }

    fn get_bitmap(&self, b: &XenctlBitmap) -> Result<u64, Errno> {
        let mut bytes = [0; 8];
        let n = (b.nr_bits.div_ceil(8) as usize).min(8);
        self.guest()
            .read(b.bitmap, bytes.get_mut(..n).ok_or(Errno::EINVAL)?)?;
        let all = u64::from_le_bytes(bytes);
        Ok(if b.nr_bits < 64 {
            all & 1u64.wrapping_shl(b.nr_bits).wrapping_sub(1)
        } else {
            all
        })
    }

    fn cache_flush(&mut self, a: &mut [u64; 5], slot: Slot, mut op: Domctl) -> Answer {
        let mut p: DomctlCacheflush = op.payload();
        let d = self.hv.domains.get(slot).ok_or(Errno::ESRCH)?;
        // 1 GiB at most, as Xen's.
        if p.nr_pfns > 1 << 18 || p.start_pfn.checked_add(p.nr_pfns).is_none() {
            return Err(Errno::EINVAL);
        }
        while p.nr_pfns != 0 && !self.used_up() {
            if let Some(map) = d.p2m.lookup(self.m, Gfn(p.start_pfn))
                && map.kind == Kind::Ram
            {
                self.m.dcache(Pa(map.mfn.addr()), 4096, CacheOp::Clean);
            }
            p.start_pfn = p.start_pfn.checked_add(1).ok_or(Errno::EINVAL)?;
            p.nr_pfns = p.nr_pfns.saturating_sub(1);
        }
        if p.nr_pfns == 0 {
            self.m.drop_instructions();
            return OK;
        }
        op.set_payload(&p);
        self.guest().put(a[0], &op)?;
        Ok(Reply::Again)
    }

    fn info(&self, slot: Slot) -> Result<DomctlGetdomaininfo, Errno> {
        let d = self.hv.domains.get(slot).ok_or(Errno::ESRCH)?;
        let sched = &self.hv.sched;
        let vcpus = || d.vcpu_refs();
        self.m
            .spend((d.vcpus.len() as u32).saturating_mul(cost::INFO / 4));
        self.m.spend(cost::INFO);
        let online = vcpus().filter(|&v| !sched.is_down(v)).count() as u32;
        let mut flags = dominf::HVM_GUEST | dominf::HAP;
        if d.death != Death::Alive {
            flags |= dominf::DYING;
        }
        if let Some(code) = d.shutdown {
            flags |= dominf::SHUTDOWN | (code & 0xff) << dominf::SHUTDOWN_SHIFT;
        }
        if d.paused != 0 {
            flags |= dominf::PAUSED;
        }
        if vcpus().any(|v| sched.running_on(v).is_some()) {
            flags |= dominf::RUNNING;
        } else if !vcpus().any(|v| sched.is_runnable(v)) {
            flags |= dominf::BLOCKED;
        }
        Ok(DomctlGetdomaininfo {
            domain: d.domid,
            flags,
            tot_pages: u64::from(self.hv.charged(slot)),
            max_pages: u64::from(d.max_pages),
            shared_info_frame: d.shared_info.0,
            cpu_time: sched.cpu_time(slot, self.m.now()),
            nr_online_vcpus: online,
            max_vcpu_id: (d.vcpus.len() as u32).saturating_sub(1),
            handle: d.handle,
            gpaddr_bits: crate::p2m::IPA_BITS as u8,
            arch_config: ArchDomainconfig {
                gic_version: d.gic_version.saturating_sub(1),
                nr_spis: u32::from(d.nr_spis),
                ..Default::default()
            },
            ..Default::default()
        })
    }

    #[inline(never)]
    pub(super) fn sysctl(&mut self, a: &mut [u64; 5]) -> Answer {
        let mut op: Sysctl = self.guest().get(a[0])?;
        if op.interface_version != sysctl::INTERFACE_VERSION {
            return Err(Errno::EACCES);
        }
        let (listed, cmd) = (op.cmd >> 16, op.cmd & 0xffff);
        let list = LIST_GOES_ON | SysctlCmd::Getdomaininfolist.number();
        let (cmd, goes_on) = if cmd == list {
            (cmd & !LIST_GOES_ON, true)
        } else {
            (op.cmd, false)
        };
        match SysctlCmd::from_number(cmd).ok_or(Errno::ENOSYS)? {
            SysctlCmd::Readconsole => {
                let mut p: SysctlReadconsole = op.payload();
                let mut at = if p.incremental != 0 {
                    u64::from(p.index)
                } else {
                    0
                };
                let mut buf = [0; 256];
                let mut n = 0;
                let mut first = None;
                while n < p.count {
                    let want = buf.len().min(p.count.saturating_sub(n) as usize);
                    let part = buf.get_mut(..want).ok_or(Errno::EINVAL)?;
                    let (got, from) = self.m.read_log(at, part);
                    if got == 0 {
                        break;
                    }
                    first.get_or_insert(from);
                    let part = buf.get(..got).ok_or(Errno::EINVAL)?;
                    self.guest()
                        .write(p.buffer.wrapping_add(u64::from(n)), part)?;
                    at = from.saturating_add(got as u64);
                    n = n.saturating_add(got as u32);
                }
                p.index = first.unwrap_or(at) as u32;
                p.count = n;
                if p.clear != 0 {
                    self.m.clear_log();
                }
                op.set_payload(&p);
            }
            SysctlCmd::Physinfo => {
                let cpus = self.hv.info.cpus;
                op.set_payload(&SysctlPhysinfo {
                    threads_per_core: 1,
                    cores_per_socket: cpus,
                    nr_cpus: cpus,
                    max_cpu_id: cpus.saturating_sub(1),
                    nr_nodes: 1,
                    cpu_khz: self.hv.info.khz,
                    capabilities: physcap::HVM | physcap::HAP | physcap::GNTTAB_V1,
                    total_pages: self.hv.frames.total_pages(),
                    free_pages: self.hv.frames.free_pages(),
                    max_mfn: self.hv.frames.max_mfn().0,
                    ..Default::default()
                });
            }
            SysctlCmd::SchedId => op.set_payload(&SysctlSchedId {
                sched_id: domctl::scheduler::CREDIT2,
            }),
            SysctlCmd::Getdomaininfolist => {
                let mut p: SysctlGetdomaininfolist = op.payload();
                let mut from = p.first_domain;
                if goes_on {
                    from = DomId(listed as u16);
                } else {
                    p.num_domains = 0;
                }
                op.cmd = cmd;
                while p.num_domains < p.max_domains
                    && let Some(d) = self.hv.domains.next_from(from)
                {
                    from = DomId(d.domid.0.saturating_add(1));
                    let info = self.info(d.slot)?;
                    let at = nth::<DomctlGetdomaininfo>(p.buffer, p.num_domains);
                    self.guest().put(at, &info)?;
                    p.num_domains = p.num_domains.saturating_add(1);
                    if self.used_up() {
                        op.cmd = u32::from(from.0) << 16 | list;
                        op.set_payload(&p);
                        self.guest().put(a[0], &op)?;
                        return Ok(Reply::Again);
                    }
                }
                op.set_payload(&p);
            }
            SysctlCmd::DebugKeys => return OK,
            SysctlCmd::Availheap => {
                let mut p: SysctlAvailheap = op.payload();
                p.avail_bytes = self.hv.frames.free_pages() << 12;
                op.set_payload(&p);
            }
            SysctlCmd::Cputopoinfo => {
                let mut p: SysctlCputopoinfo = op.payload();
                let cpus = self.hv.info.cpus;
                if p.cputopo != 0 {
                    for i in 0..cpus.min(p.num_cpus) {
                        let at = nth::<SysctlCputopo>(p.cputopo, i);
                        // A CPU that does not run is nowhere: `XEN_INVALID_CORE_ID` and so on.
                        let runs = self.hv.info.started >> i & 1 != 0;
                        let (core, elsewhere) = if runs { (i, 0) } else { (!0, !0) };
                        self.guest().put(
                            at,
                            &SysctlCputopo {
                                core,
                                socket: elsewhere,
                                node: elsewhere,
                            },
                        )?;
                    }
                }
                p.num_cpus = cpus;
                op.set_payload(&p);
            }
            SysctlCmd::Numainfo => {
                let mut p: SysctlNumainfo = op.payload();
                if p.meminfo != 0 && p.num_nodes >= 1 {
                    let info = SysctlMeminfo {
                        memsize: self.hv.frames.total_pages() << 12,
                        memfree: self.hv.frames.free_pages() << 12,
                    };
                    self.guest().put(p.meminfo, &info)?;
                    if p.distance != 0 {
                        self.guest().put(p.distance, &10u32)?;
                    }
                }
                p.num_nodes = 1;
                op.set_payload(&p);
            }
            SysctlCmd::Pcitopoinfo => return Err(Errno::ENODEV),
            _ => return Err(Errno::ENOSYS),
        }
        self.guest().put(a[0], &op)?;
        done(0i64)
    }
}
