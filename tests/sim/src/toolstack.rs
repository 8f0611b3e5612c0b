// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `xl create` and `xl destroy` call, by the control domain.

use crate::world::{BOUNCE_PAGES, Guest, World};
use guest_abi::arch::{self, ArchDomainconfig, VcpuGuestContext};
use guest_abi::calls::{domctl, event, hvm, memory};
use guest_abi::domctl::{DomctlCreatedomain, cdf};
use guest_abi::grant_table::{GrantEntryV1, RESERVED_CONSOLE, RESERVED_XENSTORE, gtf};
use guest_abi::hvm::{Param, callback_ppi};
use guest_abi::memory::{RESOURCE_GRANT_TABLE_SHARED, Resource};
use guest_abi::{DomId, Errno, Gfn, Port};
use hv_core::types::{VcpuId, VcpuRef};

/// Where the control domain maps others' pages.
pub const WINDOW: u64 = 0x3800_0000;
/// Where it builds others' memory.
const BUILD: u64 = WINDOW + (1 << 20);
/// What a kernel looks like here.
const KERNEL: &[u8] = b"kernel";

/// What a domain is made with.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// vcpus.
    pub vcpus: u32,
    /// Blocks of 2 MiB.
    pub blocks: u64,
    /// Single pages after these; the last ones carry the structures of calls.
    pub pages: u64,
    /// With an emulated PL011.
    pub vuart: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vcpus: 2,
            blocks: 1,
            pages: 64,
            vuart: false,
        }
    }
}

/// A domain as its toolstack knows it.
#[derive(Clone, Copy, Debug)]
pub struct DomU {
    /// Its number.
    pub id: DomId,
    /// Its vcpu 0.
    pub v: VcpuRef,
    /// Its end of the xenstore channel.
    pub store: Port,
    /// Its end of the console channel.
    pub console: Port,
    /// The config.
    pub config: Config,
}

impl DomU {
    /// Its vcpu 0, to act as.
    #[must_use]
    pub fn guest<'w>(&self, w: &'w World) -> Guest<'w> {
        Guest {
            w,
            v: self.v,
            bounce: self.end() - BOUNCE_PAGES * 4096,
        }
    }

    /// Another of its vcpus.
    #[must_use]
    pub fn vcpu<'w>(&self, w: &'w World, n: u8) -> Guest<'w> {
        Guest {
            v: VcpuRef {
                vcpu: VcpuId(n),
                ..self.v
            },
            ..self.guest(w)
        }
    }

    /// The end of its memory.
    #[must_use]
    pub fn end(&self) -> u64 {
        arch::GUEST_RAM0_BASE + self.config.blocks * (2 << 20) + self.config.pages * 4096
    }
}

impl World {
    /// Makes a domain and unpauses it.
    ///
    /// # Errors
    /// Of the call that failed; the domain is destroyed again.
    pub fn create(&self, config: Config) -> Result<DomU, Errno> {
        let h = self.dom0();
        let mut c = DomctlCreatedomain {
            handle: [7; 16],
            flags: cdf::HVM | cdf::HAP,
            max_vcpus: config.vcpus,
            max_evtchn_port: 1023,
            max_grant_frames: 64,
            max_maptrack_frames: 4,
            grant_opts: 1,
            arch: ArchDomainconfig {
                gic_version: ArchDomainconfig::GIC_NATIVE,
                nr_spis: if config.vuart { 32 } else { 0 },
                ..Default::default()
            },
            ..Default::default()
        };
        let id = domctl::createdomain(&h, DomId(0), &mut c)?;
        let made = self.build(&h, id, config);
        if made.is_err() {
            self.destroy(id);
        }
        made
    }

    fn build(&self, h: &Guest<'_>, id: DomId, config: Config) -> Result<DomU, Errno> {
        domctl::max_vcpus(h, id, config.vcpus)?;
        let pages = config.blocks * 512 + config.pages + 4;
        domctl::max_mem(h, id, (pages + 256) * 4)?;
        let store = event::alloc_unbound(h, id, DomId(0))?;
        let console = event::alloc_unbound(h, id, DomId(0))?;
        domctl::set_paging_mempool_size(h, id, 1 << 20)?;
        domctl::set_address_size(h, id, 64)?;
        let first = arch::GUEST_RAM0_BASE >> 12;
        let blocks: Vec<Gfn> = (0..config.blocks).map(|k| Gfn(first + k * 512)).collect();
        if memory::populate_physmap(h, id, 9, &blocks)? != blocks.len() {
            return Err(Errno::ENOMEM);
        }
        let single: Vec<Gfn> = (0..config.pages)
            .map(|k| Gfn(first + config.blocks * 512 + k))
            .collect();
        let magic: Vec<Gfn> = (0..4)
            .map(|k| Gfn((arch::GUEST_MAGIC_BASE >> 12) + k))
            .collect();
        for list in [&single, &magic] {
            if memory::populate_physmap(h, id, 0, list)? != list.len() {
                return Err(Errno::ENOMEM);
            }
        }

        // The kernel is copied through the window.
        self.through_window(h, id, Gfn(first), |at| {
            let old: [u8; 64] = h.get(at);
            assert_eq!(old, [0; 64], "new memory is clear");
            h.put(at, KERNEL);
        })?;
        for (i, page) in magic.iter().enumerate() {
            self.through_window(h, id, *page, |at| h.put(at, &[i as u8; 16]))?;
            self.through_window(h, id, *page, |at| h.put(at, &[0u8; 4096]))?;
        }
        hvm::set_param(
            h,
            id,
            Param::ConsolePfn,
            magic[arch::MAGIC_CONSOLE as usize].0,
        )?;
        hvm::set_param(
            h,
            id,
            Param::StorePfn,
            magic[arch::MAGIC_XENSTORE as usize].0,
        )?;
        hvm::set_param(
            h,
            id,
            Param::MonitorRingPfn,
            magic[arch::MAGIC_MEMACCESS as usize].0,
        )?;
        hvm::set_param(h, id, Param::ConsoleEvtchn, u64::from(console.0))?;
        hvm::set_param(h, id, Param::StoreEvtchn, u64::from(store.0))?;
        hvm::set_param(h, id, Param::CallbackIrq, callback_ppi(31))?;
        let info = domctl::getdomaininfo(h, id)?;
        assert_eq!(
            (info.domain, info.gpaddr_bits, info.tot_pages),
            (id, 40, pages)
        );
        domctl::cacheflush(h, id, Gfn(first), pages)?;
        domctl::setvcpucontext(h, id, 0, &VcpuGuestContext::start(first << 12, 0x4020_0000))?;

        // The first two grants, for the console and xenstore daemons.
        let at = Gfn(BUILD >> 12);
        memory::acquire_resource(
            h,
            id,
            Resource::GrantTable,
            RESOURCE_GRANT_TABLE_SHARED,
            0,
            &[at],
        )?;
        for (gref, page) in [(RESERVED_CONSOLE, magic[0]), (RESERVED_XENSTORE, magic[1])] {
            let e = GrantEntryV1 {
                flags: gtf::PERMIT_ACCESS,
                domid: DomId(0),
                frame: page.0 as u32,
            };
            h.put(BUILD + u64::from(gref.0) * 8, &e);
        }
        memory::remove_from_physmap(h, DomId::SELF, at)?;
        if config.vuart {
            domctl::vuart_init(h, id, DomId(0), Gfn(magic[arch::MAGIC_VUART as usize].0))?;
        }
        domctl::unpausedomain(h, id)?;
        let slot = self.slot(id).ok_or(Errno::ESRCH)?;
        Ok(DomU {
            id,
            v: VcpuRef {
                slot,
                vcpu: VcpuId(0),
            },
            store,
            console,
            config,
        })
    }

    fn through_window(
        &self,
        h: &Guest<'_>,
        id: DomId,
        page: Gfn,
        f: impl FnOnce(u64),
    ) -> Result<(), Errno> {
        let at = Gfn(BUILD >> 12);
        let mut errs = [1];
        memory::map_foreign(h, id, &[page], &[at], &mut errs)?;
        assert_eq!(errs, [0]);
        f(BUILD);
        memory::remove_from_physmap(h, DomId::SELF, at)
    }

    /// Ends a domain; it may stay as a zombie.
    pub fn destroy(&self, id: DomId) {
        let h = self.dom0();
        let _ = domctl::pausedomain(&h, id);
        loop {
            match domctl::destroydomain(&h, id) {
                Ok(()) => return,
                Err(Errno::ERESTART | Errno::EAGAIN) => {}
                Err(e) => panic!("destroying {id}: {e}"),
            }
        }
    }
}
