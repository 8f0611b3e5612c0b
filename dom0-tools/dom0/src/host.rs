// SPDX-License-Identifier: MIT OR Apache-2.0
//! The toolstack's [`Host`]: hypercalls, files, xenstore, consoles and disks of this control domain.

use crate::blk::Blocks;
use crate::console::Consoles;
use crate::disk::{Disk, File, TRANSFER};
use crate::exec::{OWN, yield_now};
use crate::fat::{Placement, SECTOR, Volume};
use crate::net::Networks;
use crate::rt::Rt;
use crate::terminal::Terminal;
use crate::xs::{Watch, Xenstore};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Deref;
use el1::machine::Gic;
use el1::{Machine, events, heap, hvc, mem, time};
use embassy_futures::select::{Either, select};
use guest_abi::arch::{ArchDomainconfig, VcpuGuestContext};
use guest_abi::calls;
use guest_abi::domctl::{DomctlCreatedomain, DomctlGetdomaininfo, affinity, cdf, dominf};
use guest_abi::event_channel::EvtchnStat;
use guest_abi::grant_table::gtf;
use guest_abi::hvm::Param;
use guest_abi::memory::{RESOURCE_GRANT_TABLE_SHARED, Resource};
use guest_abi::sched::ShutdownReason;
use guest_abi::sysctl::SysctlCputopo;
use guest_abi::version::{CapabilitiesInfo, Commandline};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use toolstack::host::*;

/// Pages of another domain's that are mapped at a time.
const PIECE: usize = TRANSFER / 4096;

/// Everything of the control domain.
pub struct Inner {
    /// The loop under all tasks.
    pub rt: &'static Rt,
    /// The machine.
    pub machine: Machine,
    /// The person's terminal.
    pub terminal: Rc<Terminal>,
    /// xenstore.
    pub xs: Rc<Xenstore>,
    /// Guests' consoles.
    pub consoles: Consoles,
    /// Guests' disks.
    pub blocks: Blocks,
    /// Guests' networks.
    pub networks: Networks,
    /// The volume with `/guests`, if there is one.
    pub volume: Option<Volume<Rc<Disk>>>,
    /// All disks, by their serials; the volume's too.
    pub disks: BTreeMap<String, Rc<Disk>>,
    /// Why no card was found, where there could be one.
    pub troubles: Vec<String>,
    rng: RefCell<ChaCha20Rng>,
}

/// A handle that every task can have.
#[derive(Clone, Copy)]
pub struct Dom0(&'static Inner);

impl Deref for Dom0 {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        self.0
    }
}

impl Dom0 {
    /// Puts it together.
    #[must_use]
    pub fn new(rt: &'static Rt, machine: Machine, terminal: Rc<Terminal>) -> Self {
        let mut disks = BTreeMap::new();
        for transport in &machine.virtio {
            if let Some(disk) = Disk::virtio(rt, &terminal, transport) {
                disks.insert(disk.serial(), disk);
            }
        }
        let mut troubles = Vec::new();
        for host in &machine.sd {
            match Disk::card(rt, &terminal, host) {
                Ok(disk) => {
                    disks.insert(disk.serial(), disk);
                    troubles.clear();
                    break;
                }
                Err(what) => troubles.push(format!("{} at {:#x}: {what}", host.kind, host.base)),
            }
        }
        let volume = disks
            .get("volume")
            .and_then(|d| Volume::open(d.clone()).ok());
        // The firmware's seed, and whatever the time of starting adds.
        let mut seed = [0u8; 32];
        let clock = time::ticks().to_le_bytes();
        for (i, b) in machine.seed.iter().chain(&clock).enumerate() {
            if let Some(s) = seed.get_mut(i % 32) {
                *s = s.rotate_left(3) ^ b;
            }
        }
        let networks = Networks::new(heap::total() / 4);
        networks.make(DEFAULT_BRIDGE);
        Self(Box::leak(Box::new(Inner {
            rt,
            machine,
            xs: Rc::new(Xenstore::new(rt)),
            consoles: Consoles::new(rt, terminal.clone()),
            blocks: Blocks::default(),
            networks,
            terminal,
            volume,
            disks,
            troubles,
            rng: RefCell::new(ChaCha20Rng::from_seed(seed)),
        })))
    }

    /// A file on the volume, or a whole disk `/dev/<serial>`.
    pub fn file(&self, path: &str) -> Result<File, Errno> {
        if let Some(serial) = path.strip_prefix("/dev/") {
            let disk = self.disks.get(serial).filter(|_| serial != "volume");
            let disk = disk.ok_or(Errno::ENOENT)?.clone();
            let place = Rc::new(Placement::whole(disk.sectors())?);
            return Ok(File {
                disk,
                place,
                whose: OWN,
            });
        }
        let volume = self.volume.as_ref().ok_or(Errno::ENODEV)?;
        Ok(File {
            disk: volume.disk().clone(),
            place: Rc::new(volume.find(path)?),
            whose: OWN,
        })
    }

    /// Calls `f` with each piece of a range of a domain's memory: what is mapped, and where in
    /// the range it is.
    fn each_piece(
        &self,
        dom: DomId,
        gpa: u64,
        len: u64,
        mut f: impl FnMut(el1::shared::Shared, u64),
    ) -> Result<(), Errno> {
        let end = gpa.checked_add(len).ok_or(Errno::EINVAL)?;
        let mut at = gpa;
        while at < end {
            let first = at / 4096;
            let last = end.div_ceil(4096).min(first + PIECE as u64);
            let gfns: Vec<Gfn> = (first..last).map(Gfn).collect();
            let map = mem::map_foreign(dom, &gfns)?;
            let upto = (last * 4096).min(end);
            let part = map.part((at - first * 4096) as usize, (upto - at) as usize);
            f(part, at - gpa);
            at = upto;
        }
        Ok(())
    }
}

fn gic_number(gic: Option<GicVersion>) -> u8 {
    match gic {
        None => ArchDomainconfig::GIC_NATIVE,
        Some(GicVersion::V2) => ArchDomainconfig::GIC_V2,
        Some(GicVersion::V3) => ArchDomainconfig::GIC_V3,
    }
}

fn dom_info(i: &DomctlGetdomaininfo) -> DomInfo {
    let flag = |bit| i.flags & bit != 0;
    DomInfo {
        dom: i.domain,
        handle: i.handle,
        dying: flag(dominf::DYING),
        shutdown: flag(dominf::SHUTDOWN)
            .then(|| ShutdownCode::from_number(dominf::shutdown_code(i.flags) as u8)),
        paused: flag(dominf::PAUSED),
        blocked: flag(dominf::BLOCKED),
        running: flag(dominf::RUNNING),
        tot_pages: i.tot_pages,
        max_pages: i.max_pages,
        cpu_time_ns: i.cpu_time,
        online_vcpus: i.nr_online_vcpus,
        max_vcpu_id: i.max_vcpu_id,
        gpaddr_bits: i.gpaddr_bits,
    }
}

fn to_bytes(cpus: &[u64]) -> Vec<u8> {
    cpus.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(calls::version::text(bytes)).into_owned()
}

/// The name that xl shows for a scheduler's number.
fn scheduler_name(id: u32) -> &'static str {
    use guest_abi::domctl::scheduler as s;
    match id {
        s::CREDIT => "credit",
        s::CREDIT2 => "credit2",
        s::ARINC653 => "arinc653",
        s::RTDS => "rtds",
        s::NULL => "null",
        _ => "unknown",
    }
}

/// How long a guest is looked at that does not come to rest, and how often, in milliseconds.
const QUIET_MS: u64 = 1000;
const LOOK_MS: u64 = 4;

impl Dom0 {
    /// Waits until a guest has come to rest: its vcpus sleep, and no request came to xenstore between two looks. No event tells
    /// of that. One that is always at work is not waited for longer than a second.
    async fn quiet(&self, dom: DomId) {
        let rests = || {
            self.domain_info(dom)
                .map_or(true, |i| i.blocked || i.paused)
        };
        for _ in 0..QUIET_MS / LOOK_MS {
            let (before, rested) = (self.xs.requests(), rests());
            self.rt.sleep_ms(LOOK_MS).await;
            if rested && rests() && self.xs.requests() == before {
                return;
            }
        }
    }
}

impl Host for Dom0 {
    type File = File;
    type Watch = Watch;

    fn create_domain(&self, req: &CreateDomain) -> Result<CreatedDomain, Errno> {
        let mut config = DomctlCreatedomain {
            handle: req.handle,
            flags: cdf::HVM | cdf::HAP,
            max_vcpus: req.max_vcpus,
            max_evtchn_port: req.max_evtchn_port,
            max_grant_frames: req.max_grant_frames as i32,
            max_maptrack_frames: req.max_maptrack_frames as i32,
            grant_opts: 1,
            arch: ArchDomainconfig {
                gic_version: gic_number(req.gic),
                nr_spis: req.nr_spis,
                ..Default::default()
            },
            ..Default::default()
        };
        let dom = calls::domctl::createdomain(&hvc::xen(), DomId(0), &mut config)?;
        Ok(CreatedDomain {
            dom,
            gic: if config.arch.gic_version == ArchDomainconfig::GIC_V3 {
                GicVersion::V3
            } else {
                GicVersion::V2
            },
            clock_frequency: config.arch.clock_frequency,
        })
    }
    fn set_max_vcpus(&self, dom: DomId, n: u32) -> Result<(), Errno> {
        calls::domctl::max_vcpus(&hvc::xen(), dom, n)
    }
    fn set_max_mem(&self, dom: DomId, kib: u64) -> Result<(), Errno> {
        calls::domctl::max_mem(&hvc::xen(), dom, kib)
    }
    fn set_paging_pool(&self, dom: DomId, bytes: u64) -> Result<(), Errno> {
        calls::domctl::set_paging_mempool_size(&hvc::xen(), dom, bytes)
    }
    fn destroy_domain(&self, dom: DomId) -> Result<(), Errno> {
        calls::domctl::destroydomain(&hvc::xen(), dom)
    }
    fn pause_domain(&self, dom: DomId) -> Result<(), Errno> {
        calls::domctl::pausedomain(&hvc::xen(), dom)
    }
    fn unpause_domain(&self, dom: DomId) -> Result<(), Errno> {
        calls::domctl::unpausedomain(&hvc::xen(), dom)
    }
    fn set_vcpu_context(&self, dom: DomId, vcpu: u32, context: &VcpuContext) -> Result<(), Errno> {
        let mut c = VcpuGuestContext::start(context.pc, context.x0);
        c.user_regs.cpsr = context.cpsr;
        c.sctlr = context.sctlr;
        calls::domctl::setvcpucontext(&hvc::xen(), dom, vcpu, &c)
    }
    fn set_vcpu_affinity(&self, dom: DomId, vcpu: u32, cpus: &[u64]) -> Result<(), Errno> {
        let (mut hard, mut soft) = (to_bytes(cpus), Vec::new());
        calls::domctl::setvcpuaffinity(&hvc::xen(), dom, vcpu, affinity::HARD, &mut hard, &mut soft)
    }
    fn set_weight(&self, dom: DomId, weight: u16) -> Result<(), Errno> {
        let id = calls::sysctl::sched_id(&hvc::xen())?;
        let (_, cap) = calls::domctl::sched_get(&hvc::xen(), dom, id)?;
        calls::domctl::sched_set(&hvc::xen(), dom, id, weight, cap)
    }
    fn weight(&self, dom: DomId) -> Result<u16, Errno> {
        let id = calls::sysctl::sched_id(&hvc::xen())?;
        calls::domctl::sched_get(&hvc::xen(), dom, id).map(|(weight, _)| weight)
    }
    fn cache_flush(&self, dom: DomId, start: Gfn, pages: u64) -> Result<(), Errno> {
        calls::domctl::cacheflush(&hvc::xen(), dom, start, pages)
    }
    fn vuart_init(&self, dom: DomId, gfn: Gfn) -> Result<Port, Errno> {
        calls::domctl::vuart_init(&hvc::xen(), dom, DomId(0), gfn)
    }
    fn domain_info(&self, dom: DomId) -> Result<DomInfo, Errno> {
        let info = calls::domctl::getdomaininfo(&hvc::xen(), dom)?;
        if info.domain != dom {
            return Err(Errno::ESRCH);
        }
        Ok(dom_info(&info))
    }
    fn domain_list(&self) -> Result<Vec<DomInfo>, Errno> {
        let mut all = Vec::new();
        let mut first = DomId(0);
        loop {
            let mut some = [DomctlGetdomaininfo::default(); 16];
            let n = calls::sysctl::getdomaininfolist(&hvc::xen(), first, &mut some)?;
            let some = some.get(..n).unwrap_or_default();
            all.extend(some.iter().map(dom_info));
            match some.last() {
                Some(last) if n == 16 => first = DomId(last.domain.0.saturating_add(1)),
                _ => return Ok(all),
            }
        }
    }
    fn vcpu_info(&self, dom: DomId, vcpu: u32) -> Result<VcpuInfo, Errno> {
        let i = calls::domctl::getvcpuinfo(&hvc::xen(), dom, vcpu)?;
        Ok(VcpuInfo {
            online: i.online != 0,
            blocked: i.blocked != 0,
            running: i.running != 0,
            cpu_time_ns: i.cpu_time,
            cpu: i.cpu,
        })
    }
    fn vcpu_affinity(&self, dom: DomId, vcpu: u32) -> Result<Vec<u64>, Errno> {
        let (mut hard, mut soft) = ([0u8; 8], []);
        calls::domctl::getvcpuaffinity(
            &hvc::xen(),
            dom,
            vcpu,
            affinity::HARD,
            &mut hard,
            &mut soft,
        )?;
        Ok(vec![u64::from_le_bytes(hard)])
    }

    fn populate(&self, dom: DomId, first: Gfn, order: u8, count: u64) -> Result<u64, Errno> {
        let mut done = 0;
        while done < count {
            let n = (count - done).min(512);
            let frames: Vec<Gfn> = (done..done + n)
                .map(|i| Gfn(first.0 + (i << order)))
                .collect();
            let got = calls::memory::populate_physmap(&hvc::xen(), dom, u32::from(order), &frames)?;
            done += got as u64;
            if (got as u64) < n {
                break;
            }
        }
        Ok(done)
    }
    fn alloc_unbound(&self, dom: DomId, remote: DomId) -> Result<Port, Errno> {
        calls::event::alloc_unbound(&hvc::xen(), dom, remote)
    }
    fn set_hvm_param(&self, dom: DomId, param: HvmParam, value: u64) -> Result<(), Errno> {
        let param = Param::from_number(param as u32).ok_or(Errno::EINVAL)?;
        calls::hvm::set_param(&hvc::xen(), dom, param, value)
    }
    fn seed_grants(&self, dom: DomId, console: Gfn, store: Gfn) -> Result<(), Errno> {
        let id = RESOURCE_GRANT_TABLE_SHARED;
        let table = mem::map_resource(dom, Resource::GrantTable, id, 0, 1)?;
        for (i, gfn) in [console, store].into_iter().enumerate() {
            let frame = u32::try_from(gfn.0).map_err(|_| Errno::ERANGE)?;
            // The frame, then in one word the flags and dom0's number, 0.
            table.write32(i * 8 + 4, frame);
            table.write32(i * 8, u32::from(gtf::PERMIT_ACCESS));
        }
        Ok(())
    }
    fn write_guest(&self, dom: DomId, gpa: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.each_piece(dom, gpa, bytes.len() as u64, |piece, at| {
            let from = bytes.get(at as usize..).unwrap_or_default();
            piece.write(0, from.get(..piece.len()).unwrap_or(from));
        })
    }
    fn zero_guest(&self, dom: DomId, gpa: u64, len: u64) -> Result<(), Errno> {
        self.each_piece(dom, gpa, len, |piece, _| piece.zero(0, piece.len()))
    }

    fn phys_info(&self) -> Result<PhysInfo, Errno> {
        let i = calls::sysctl::physinfo(&hvc::xen())?;
        Ok(PhysInfo {
            nr_cpus: i.nr_cpus,
            cpu_khz: i.cpu_khz,
            total_pages: i.total_pages,
            free_pages: i.free_pages,
            scrub_pages: i.scrub_pages,
        })
    }
    fn machine(&self) -> Result<MachineFacts, Errno> {
        let m = &self.machine;
        let mut cpus = [SysctlCputopo::default(); 64];
        let n = calls::sysctl::cputopoinfo(&hvc::xen(), &mut cpus)?;
        // XEN_INVALID_CORE_ID: it does not run.
        let started = cpus.iter().take(n).filter(|c| c.core != !0).count();
        let said = m.facts.as_ref();
        let disks = self.disks.values();
        Ok(MachineFacts {
            board: said.map_or_else(|| "unknown".into(), |(board, _)| board.clone()),
            facts: said.and_then(|(_, facts)| Facts::read(facts)),
            gic: match m.gic {
                Gic::V2 { .. } => 2,
                Gic::V3 { .. } => 3,
            },
            started: started as u32,
            counter_hz: time::frequency(),
            memory: m.memory.clone(),
            disks: disks
                .map(|disk| DiskFacts {
                    name: disk.serial(),
                    kind: disk.kind(),
                    bytes: disk.sectors() * 512,
                    read_only: disk.read_only(),
                })
                .collect(),
            volume: self.volume.is_some(),
            troubles: self.troubles.clone(),
        })
    }
    fn own_use(&self) -> OwnUse {
        let status = |port| calls::event::status(&hvc::xen(), DomId::SELF, Port(port));
        // EINVAL: a port beyond all that this domain ever had.
        let open = (0..events::PORTS)
            .map(status)
            .take_while(|s| *s != Err(Errno::EINVAL))
            .filter(|s| s.is_ok_and(|s| s.status != EvtchnStat::Closed as u32))
            .count();
        OwnUse {
            ports: open as u32,
            mapped_pages: mem::window_used(),
            heap: (heap::used() as u64, heap::total() as u64),
            address: self.networks.own_address().map(|a| (a.ip.into(), a.bits)),
        }
    }
    fn version_info(&self) -> Result<VersionInfo, Errno> {
        let xen = hvc::xen();
        let (major, minor) = calls::version::version(&xen)?;
        let compile = calls::version::compile_info(&xen)?;
        let mut capabilities: CapabilitiesInfo = [0; _];
        calls::version::capabilities(&xen, &mut capabilities)?;
        let mut command_line: Commandline = [0; _];
        calls::version::commandline(&xen, &mut command_line)?;
        let scheduler = calls::sysctl::sched_id(&xen).map_or("unknown", scheduler_name);
        Ok(VersionInfo {
            major,
            minor,
            extra: text(&calls::version::extraversion(&xen)?),
            capabilities: text(&capabilities),
            changeset: text(&calls::version::changeset(&xen)?),
            compiler: text(&compile.compiler),
            compile_by: text(&compile.compile_by),
            compile_domain: text(&compile.compile_domain),
            compile_date: text(&compile.compile_date),
            command_line: text(&command_line),
            scheduler: scheduler.into(),
            virt_start: calls::version::platform_parameters(&xen)?,
        })
    }
    fn read_console(&self, clear: bool) -> Result<Vec<u8>, Errno> {
        let mut all = vec![0; 64 << 10];
        let (n, _) = calls::sysctl::readconsole(&hvc::xen(), clear, None, &mut all)?;
        all.truncate(n);
        Ok(all)
    }
    async fn power(&self, restart: bool) -> Result<(), Errno> {
        for disk in self.disks.values() {
            disk.flush(OWN).await?;
        }
        if self.machine.hypervisor.is_none() {
            hvc::psci_off();
        }
        hvc::shutdown(if restart {
            ShutdownReason::Reboot
        } else {
            ShutdownReason::Poweroff
        });
        Err(Errno::EPERM)
    }

    fn uptime_ns(&self) -> u64 {
        time::now_ns()
    }
    fn wall_clock_s(&self) -> u64 {
        events::wall_clock().map_or(0, |(s, ns)| {
            s + (u64::from(ns) + time::now_ns()) / 1_000_000_000
        })
    }
    fn random(&self, out: &mut [u8]) {
        self.rng.borrow_mut().fill_bytes(out);
    }
    async fn sleep_ms(&self, ms: u64) {
        self.rt.sleep_ms(ms).await;
    }
    async fn pause_point(&self) {
        yield_now().await;
    }

    async fn open(&self, path: &str) -> Result<File, Errno> {
        self.file(path)
    }
    fn extents(&self, file: &File) -> Result<Extents, Errno> {
        let device = self.disks.values().position(|d| Rc::ptr_eq(d, &file.disk));
        let map = &file.place.map;
        let runs = map
            .runs(0, map.sectors(), u64::MAX)
            .map_err(|_| Errno::EIO)?;
        let device = device.ok_or(Errno::ENODEV)? as u32;
        Extents::new(device, runs.map(|r| (r.lba, r.sectors)))
    }
    async fn file_size(&self, file: &File) -> Result<u64, Errno> {
        Ok(file.size())
    }
    async fn read_at(&self, file: &File, offset: u64, out: &mut [u8]) -> Result<usize, Errno> {
        file.read_at(offset, out).await
    }
    async fn load_file(
        &self,
        file: &File,
        offset: u64,
        dom: DomId,
        gpa: u64,
        len: u64,
    ) -> Result<u64, Errno> {
        let len = len.min(file.size().saturating_sub(offset));
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let skip = at % SECTOR as u64;
            let n = (len - done).min(TRANSFER as u64 - skip);
            let sectors = (skip + n).div_ceil(SECTOR as u64);
            let buffer = file.read_sectors(at / SECTOR as u64, sectors).await?;
            let bytes = buffer.get(skip as usize..(skip + n) as usize);
            self.write_guest(dom, gpa + done, bytes.ok_or(Errno::EIO)?)?;
            done += n;
        }
        Ok(done)
    }
    async fn list_dir(&self, path: &str) -> Result<Vec<DirEntry>, Errno> {
        if path.trim_matches('/') == "dev" {
            let names = self.disks.keys().filter(|s| *s != "volume");
            return Ok(names
                .map(|name| DirEntry {
                    name: name.clone(),
                    dir: false,
                })
                .collect());
        }
        let volume = self.volume.as_ref().ok_or(Errno::ENODEV)?;
        let entries = volume.list(path)?;
        Ok(entries
            .into_iter()
            .map(|e| DirEntry {
                name: e.name,
                dir: e.dir,
            })
            .collect())
    }

    async fn console_start(&self, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno> {
        self.consoles.start(dom, ring, port)
    }
    async fn vuart_start(&self, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno> {
        self.consoles.start(dom, ring, port)
    }
    async fn console_stop(&self, dom: DomId) {
        self.consoles.stop(dom);
    }
    async fn console_attach(&self, dom: DomId) -> Result<(), Errno> {
        self.consoles.attach(dom).await
    }
    fn block_probe(&self, file: &File) -> Result<BlockTarget, Errno> {
        Ok(BlockTarget {
            sectors: file.size() / SECTOR as u64,
            writable: !file.disk.read_only(),
        })
    }
    async fn block_start(&self, disk: &BlockStart, file: File) -> Result<(), Errno> {
        self.blocks.start(*self, disk, file)
    }
    async fn block_stop(&self, dom: DomId, vdev: u32) {
        self.blocks.stop(dom, vdev).await;
    }
    async fn net_start(&self, net: &NetStart) -> Result<(), Errno> {
        self.networks.start(*self, net)
    }
    async fn net_stop(&self, dom: DomId, devid: u32) {
        self.networks.stop(dom, devid).await;
    }
    fn bridges(&self) -> Vec<BridgeInfo> {
        self.networks.list()
    }

    fn xs_read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        self.xs.with(|s| s.read(path))
    }
    fn xs_write(&self, path: &str, value: &[u8]) -> Result<(), Errno> {
        self.xs.with(|s| s.write(path, value))
    }
    fn xs_mkdir(&self, path: &str) -> Result<(), Errno> {
        self.xs.with(|s| s.mkdir(path))
    }
    fn xs_rm(&self, path: &str) -> Result<(), Errno> {
        self.xs.with(|s| {
            if s.exists(path) {
                s.rm(path)
            } else {
                Err(Errno::ENOENT)
            }
        })
    }
    fn xs_list(&self, path: &str) -> Result<Vec<String>, Errno> {
        self.xs.with(|s| s.ls(path))
    }
    fn xs_get_perms(&self, path: &str) -> Result<Vec<Perm>, Errno> {
        let perms = self.xs.with(|s| s.get_perms(path))?;
        Ok(perms
            .into_iter()
            .map(|p| Perm {
                dom: p.domid,
                read: matches!(p.access, xenstore::Access::Read | xenstore::Access::Both),
                write: matches!(p.access, xenstore::Access::Write | xenstore::Access::Both),
            })
            .collect())
    }
    fn xs_set_perms(&self, path: &str, perms: &[Perm]) -> Result<(), Errno> {
        let perms: Vec<_> = perms
            .iter()
            .map(|p| xenstore::Perm {
                domid: p.dom,
                access: match (p.read, p.write) {
                    (false, false) => xenstore::Access::None,
                    (true, false) => xenstore::Access::Read,
                    (false, true) => xenstore::Access::Write,
                    (true, true) => xenstore::Access::Both,
                },
            })
            .collect();
        self.xs.with(|s| s.set_perms(path, &perms))
    }
    fn xs_introduce(&self, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno> {
        self.xs.introduce(dom, ring, port)
    }
    fn xs_release(&self, dom: DomId) -> Result<(), Errno> {
        self.xs.forget(dom);
        Ok(())
    }
    fn xs_watch(&self, path: &str) -> Result<Watch, Errno> {
        self.xs.watch(path)
    }
    async fn xs_next(&self, watch: &mut Watch, timeout_ms: Option<u64>) -> Option<String> {
        match timeout_ms {
            None => Some(watch.next().await),
            Some(0) => watch.try_next(),
            Some(ms) => match select(watch.next(), self.rt.sleep_ms(ms)).await {
                Either::First(path) => Some(path),
                Either::Second(()) => None,
            },
        }
    }
    fn xs_is_watched(&self, dom: DomId, path: &str) -> bool {
        self.xs.with(|s| s.is_watched(dom, path))
    }
    async fn xs_unwatched(&self, dom: DomId, path: &str, timeout_ms: u64) -> bool {
        let forgotten = async {
            self.xs.unwatched(dom, path).await;
            self.quiet(dom).await;
        };
        matches!(
            select(forgotten, self.rt.sleep_ms(timeout_ms)).await,
            Either::First(())
        )
    }
}
