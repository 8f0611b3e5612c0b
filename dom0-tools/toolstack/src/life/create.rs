// SPDX-License-Identifier: MIT OR Apache-2.0
//! Creation: an ordered list of steps. Each that leaves something behind says how to undo it before
//! the next begins, and when one fails, all are undone, the last first.

use alloc::format;
use alloc::vec::Vec;
use builder::layout::{self, Layout};
use builder::{BuildError, GuestSpec, ImageHeader};

use super::files::{Opened, Role};
use super::network;
use super::tree::{self, GuestNodes};
use super::{Claim, Kept, MEMORY_SLACK_KIB, Toolstack, mib};
use crate::config::{DomainConfig, Uuid};
use crate::error::{Context, Error, Result, fail};
use crate::host::{
    CreateDomain, CreatedDomain, DomId, Errno, Gfn, GicVersion, Host, HvmParam, Port, VcpuContext,
};

/// EL1h with all exceptions masked.
const PSR_GUEST64_INIT: u64 = 0x3c5;
/// The MMU and the caches off; the bits that are reserved as one.
const SCTLR_GUEST_INIT: u64 = 0x00c5_0078;
/// Events come as PPI 31, level low (`HVM_PARAM_CALLBACK_TYPE_PPI`).
const CALLBACK_PPI: u64 = 2 << 56 | 2 << 8 | 31;
/// Extents that memory is given in: 2 MiB, 4 KiB; and how many at most in one call. All others wait for dom0 until
/// it is back.
const EXTENTS: [(u8, u64); 2] = [(9, 16), (0, 1024)];
/// Pages cleaned in one call.
const FLUSH_PAGES: u64 = 4096;
/// The guest's shared interrupts: the virtual UART's is the first.
const VUART_SPIS: u32 = 32;

/// How to undo a step.
#[derive(Clone, Debug)]
enum Undo {
    Domain(DomId),
    Nodes(DomId),
    Introduction(DomId),
    Console(DomId),
    Disk(DomId, u32),
    Vif(DomId, u32),
    Kept(DomId),
}

/// The files of a guest, looked at before anything is made.
struct Files<'a, H: Host> {
    kernel: (Opened<'a, H>, ImageHeader),
    ramdisk: Option<Opened<'a, H>>,
    /// In the configuration's order.
    disks: Vec<Opened<'a, H>>,
}

/// The ports that the toolstack takes for a guest.
struct Ports {
    store: Port,
    console: Port,
}

impl<H: Host> Toolstack<H> {
    /// Creates a domain and, unless `paused`, lets it run.
    ///
    /// # Errors
    /// Says what failed; everything that was done until then has been undone.
    pub async fn create(&self, config: &DomainConfig, paused: bool) -> Result<DomId> {
        let Some(_name) = self.claim(Claim::Name(config.name.clone())) else {
            return fail!("a domain \"{}\" is being created already", config.name);
        };
        let files = self.look_at(config).await?;

        let mut undo = Vec::new();
        match self.steps(config, files, paused, &mut undo).await {
            Ok(dom) => Ok(dom),
            Err(e) => {
                let left = self.undo(undo).await;
                let text = match left {
                    None => format!("{}: {e}", config.name),
                    Some(left) => format!("{}: {e} (and undoing failed: {left})", config.name),
                };
                Err(Error(text))
            }
        }
    }

    /// Looks whether a domain could be created, and creates nothing.
    ///
    /// # Errors
    /// Says what is missing or taken.
    pub async fn check(&self, config: &DomainConfig) -> Result<()> {
        let files = self.look_at(config).await?;
        builder::build(&GuestSpec {
            memory: config.maxmem_mib.saturating_mul(1 << 20),
            kernel: files.kernel.1,
            kernel_size: files.kernel.0.size,
            ramdisk_size: files.ramdisk.as_ref().map(|r| r.size),
            vcpus: config.maxvcpus,
            // What the host has is known only when the domain is there: the one that takes more.
            gic: config.gic.unwrap_or(GicVersion::V3),
            bootargs: &config.cmdline,
            rng_seed: None,
            vuart: config.vuart,
            clock_frequency: 0,
            gpaddr_bits: 40,
        })
        .map(|_| ())
        .map_err(|e| refused(config, &e))
    }

    /// All that can be found wrong before anything is made.
    async fn look_at(&self, config: &DomainConfig) -> Result<Files<'_, H>> {
        self.name_is_free(&config.name)
            .map_err(|e| Error(format!("{}{e}", config.at("name"))))?;
        if let Some(uuid) = config.uuid {
            let domains = self.host.domain_list().during("listing the domains")?;
            if let Some(other) = domains.iter().find(|d| d.handle == uuid.0) {
                return fail!(
                    "{}the uuid is that of domain {}; give another or leave it out",
                    config.at("uuid"),
                    other.dom
                );
            }
        }
        let files = self.open_files(config).await?;
        network::numbered(&config.vifs)?;
        self.memory_suffices(config)?;
        Ok(files)
    }

    async fn open_files(&self, config: &DomainConfig) -> Result<Files<'_, H>> {
        let doing = self.doing();
        let path = &config.kernel;
        let kernel = self.open_named(config, doing, "kernel", path).await?;
        let what = format!("{}kernel {path}", config.at("kernel"));
        let mut head = alloc::vec![0; ImageHeader::HEAD];
        let got = self.host.read_at(&kernel.file, 0, &mut head).await;
        head.truncate(got.during(&what)?);
        let header =
            ImageHeader::parse(&head, kernel.size).map_err(|e| Error(format!("{what}: {e}")))?;
        let ramdisk = match &config.ramdisk {
            None => None,
            Some(path) => {
                let ramdisk = self.open_named(config, doing, "ramdisk", path).await?;
                if ramdisk.size == 0 {
                    return fail!(
                        "{}ramdisk {path}: the file is empty; give a cpio archive, or leave ramdisk out",
                        config.at("ramdisk")
                    );
                }
                Some(ramdisk)
            }
        };
        let mut disks = Vec::new();
        for (i, disk) in config.disks.iter().enumerate() {
            let opened = self.open_disk(doing, disk).await;
            let at = || config.at(&format!("disk {i}"));
            disks.push(opened.map_err(|e| Error(format!("{}{e}", at())))?);
        }
        Ok(Files {
            kernel: (kernel, header),
            ramdisk,
            disks,
        })
    }

    /// Opens the file that the configuration names under `key`.
    async fn open_named(
        &self,
        config: &DomainConfig,
        doing: u64,
        key: &'static str,
        path: &str,
    ) -> Result<Opened<'_, H>> {
        self.open_file(doing, Role::Loaded(key), path)
            .await
            .during(format!("{}{key} {path}", config.at(key)))
    }

    fn memory_suffices(&self, config: &DomainConfig) -> Result<()> {
        let info = self.host.phys_info().during("asking for free memory")?;
        let free = info.free_pages.saturating_mul(4);
        let begins_with = config.maxmem_mib.saturating_mul(1024);
        let need = begins_with.saturating_add(pool_kib(config));
        if need > free {
            let (key, why) = match config.maxmem_mib > config.memory_mib {
                true => (
                    "maxmem",
                    ", as a guest begins with all that it may have and gives back what is above memory",
                ),
                false => ("memory", ""),
            };
            return fail!(
                "{}{} of memory are needed ({} and its page tables{why}), {} are free; destroy a guest or lower {key}",
                config.at(key),
                mib(need),
                mib(begins_with),
                mib(free)
            );
        }
        Ok(())
    }

    async fn undo(&self, steps: Vec<Undo>) -> Option<Error> {
        let mut failed = None;
        for step in steps.into_iter().rev() {
            let result = match step {
                Undo::Domain(dom) => self.destroy_memory(dom).await,
                Undo::Nodes(dom) => {
                    tree::remove(&self.host, dom);
                    Ok(())
                }
                Undo::Introduction(dom) => self
                    .host
                    .xs_release(dom)
                    .during(format!("xenstore: releasing domain {dom}")),
                Undo::Console(dom) => {
                    self.host.console_stop(dom).await;
                    Ok(())
                }
                Undo::Disk(dom, vdev) => {
                    self.remove_disk(dom, vdev).await;
                    Ok(())
                }
                Undo::Vif(dom, devid) => {
                    self.remove_vif(dom, devid).await;
                    Ok(())
                }
                Undo::Kept(dom) => {
                    self.kept.borrow_mut().remove(&dom.0);
                    Ok(())
                }
            };
            failed = failed.or(result.err());
        }
        failed
    }

    async fn steps(
        &self,
        config: &DomainConfig,
        files: Files<'_, H>,
        paused: bool,
        undo: &mut Vec<Undo>,
    ) -> Result<DomId> {
        let uuid = config.uuid.unwrap_or_else(|| {
            let mut bytes = [0; 16];
            self.host.random(&mut bytes);
            Uuid::random(bytes)
        });
        let created = self.make_domain(config, uuid)?;
        let dom = created.dom;
        undo.push(Undo::Domain(dom));
        self.set_up_vcpus(config, dom)?;

        undo.push(Undo::Nodes(dom));
        tree::guest(
            &self.host,
            &GuestNodes {
                dom,
                uuid,
                name: &config.name,
                maxmem_kib: config.maxmem_mib.saturating_mul(1024),
                memory_kib: config.memory_mib.saturating_mul(1024),
                vcpus: config.vcpus,
                maxvcpus: config.maxvcpus,
                start_time: self.host.wall_clock_s(),
            },
        )?;

        self.size_memory(config, dom).await?;
        let ports = Ports {
            store: self.alloc_port(dom, "xenstore")?,
            console: self.alloc_port(dom, "console")?,
        };
        let built = self.build(config, &created, &files)?;
        self.populate_all(dom, &built.layout).await?;
        self.load(config, dom, &files, &built).await?;
        let Files {
            kernel,
            ramdisk,
            disks,
        } = files;
        drop((kernel, ramdisk));
        self.share_pages(dom, &ports).await?;
        let vuart = match config.vuart {
            true => Some(self.make_vuart(dom)?),
            false => None,
        };
        self.flush(dom, &built.layout).await?;
        // What it gives back it does not get again unless it is told to.
        self.limit_memory(dom, config.memory_mib)?;
        let start = VcpuContext {
            pc: built.layout.entry,
            x0: built.layout.dtb.base,
            cpsr: PSR_GUEST64_INIT,
            sctlr: SCTLR_GUEST_INIT,
        };
        self.host
            .set_vcpu_context(dom, 0, &start)
            .during("setting where vcpu 0 starts")?;

        let console = (Gfn::of(layout::CONSOLE_PAGE), ports.console);
        let store = (Gfn::of(layout::XENSTORE_PAGE), ports.store);
        tree::rings(&self.host, dom, console, store)?;
        self.host
            .xs_introduce(dom, store.0, store.1)
            .during("introducing it to xenstore")?;
        undo.push(Undo::Introduction(dom));
        undo.push(Undo::Console(dom));
        self.host
            .console_start(dom, console.0, console.1)
            .await
            .during("starting its console")?;
        if let Some(port) = vuart {
            let ring = Gfn::of(layout::VUART_PAGE);
            self.host
                .vuart_start(dom, ring, port)
                .await
                .during("starting its virtual UART")?;
        }
        for (disk, opened) in config.disks.iter().zip(disks) {
            undo.push(Undo::Disk(dom, disk.devid));
            self.add_disk(dom, disk, opened).await?;
        }
        let vifs = network::numbered(&config.vifs)?;
        for vif in &vifs {
            undo.push(Undo::Vif(dom, vif.devid.unwrap_or(0)));
            self.add_vif(dom, uuid, vif).await?;
        }

        let kept = Kept {
            config: DomainConfig {
                uuid: Some(uuid),
                vifs,
                ..config.clone()
            },
            created_ns: self.host.uptime_ns(),
            ended: false,
            used: Default::default(),
        };
        undo.push(Undo::Kept(dom));
        self.kept.borrow_mut().insert(dom.0, kept);
        if !paused {
            self.unpause(dom)?;
        }
        Ok(dom)
    }

    fn make_domain(&self, config: &DomainConfig, uuid: Uuid) -> Result<CreatedDomain> {
        let request = CreateDomain {
            handle: uuid.0,
            max_vcpus: config.maxvcpus,
            max_evtchn_port: config.max_event_channels,
            max_grant_frames: config.max_grant_frames,
            max_maptrack_frames: config.max_maptrack_frames,
            gic: config.gic,
            nr_spis: if config.vuart { VUART_SPIS } else { 0 },
        };
        match self.host.create_domain(&request) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::ENODEV)
                if config.gic.is_some() =>
            {
                fail!("this machine cannot give the gic_version that is asked for; leave it out")
            }
            other => other.during("creating the domain"),
        }
    }

    fn set_up_vcpus(&self, config: &DomainConfig, dom: DomId) -> Result<()> {
        self.host
            .set_max_vcpus(dom, config.maxvcpus)
            .during(format!("giving it {} vcpus", config.maxvcpus))?;
        if let Some(last) = config.cpus.last() {
            for vcpu in 0..config.maxvcpus {
                let at = usize::try_from(vcpu).unwrap_or(usize::MAX);
                let cpus = config.cpus.get(at).unwrap_or(last);
                self.host
                    .set_vcpu_affinity(dom, vcpu, &[*cpus])
                    .during(format!("cpus: putting vcpu {vcpu} on its CPUs"))?;
            }
        }
        match config.cpu_weight {
            Some(weight) => self
                .host
                .set_weight(dom, weight)
                .during("setting its cpu_weight"),
            None => Ok(()),
        }
    }

    fn limit_memory(&self, dom: DomId, mib: u64) -> Result<()> {
        let kib = mib.saturating_mul(1024).saturating_add(MEMORY_SLACK_KIB);
        self.host
            .set_max_mem(dom, kib)
            .during("limiting its memory")
    }

    /// A guest begins with all the memory that it may ever have: its balloon driver takes `static-max` for what it began with
    /// (Linux's `xen-balloon.c`, `target_diff`), and goes from there to the target. There is no other way that Linux on Arm
    /// could grow beyond its device tree, or would not forget the difference.
    async fn size_memory(&self, config: &DomainConfig, dom: DomId) -> Result<()> {
        self.limit_memory(dom, config.maxmem_mib)?;
        let pool = pool_kib(config).saturating_mul(1024);
        loop {
            match self.host.set_paging_pool(dom, pool) {
                Err(Errno::ERESTART) => self.host.pause_point().await,
                Err(Errno::ENOMEM) => {
                    return fail!(
                        "not enough memory for its page tables ({} KiB)",
                        pool / 1024
                    );
                }
                other => return other.during("setting memory aside for its page tables"),
            }
        }
    }

    fn alloc_port(&self, dom: DomId, what: &str) -> Result<Port> {
        self.host
            .alloc_unbound(dom, DomId(0))
            .during(format!("taking a port for its {what}"))
    }

    fn build(
        &self,
        config: &DomainConfig,
        created: &CreatedDomain,
        files: &Files<'_, H>,
    ) -> Result<builder::Guest> {
        let info = self
            .host
            .domain_info(created.dom)
            .during("asking for its address width")?;
        let mut seed = [0; 128];
        self.host.random(&mut seed);
        let (kernel, header) = &files.kernel;
        builder::build(&GuestSpec {
            memory: config.maxmem_mib.saturating_mul(1 << 20),
            kernel: *header,
            kernel_size: kernel.size,
            ramdisk_size: files.ramdisk.as_ref().map(|r| r.size),
            vcpus: config.maxvcpus,
            gic: created.gic,
            bootargs: &config.cmdline,
            rng_seed: Some(&seed),
            vuart: config.vuart,
            clock_frequency: created.clock_frequency,
            gpaddr_bits: info.gpaddr_bits,
        })
        .map_err(|e| refused(config, &e))
    }

    async fn populate_all(&self, dom: DomId, layout: &Layout) -> Result<()> {
        for bank in &layout.banks {
            self.populate_range(dom, Gfn::of(bank.base), bank.size / layout::PAGE)
                .await?;
        }
        Ok(())
    }

    /// Gives memory in extents as large as fit; where a large one is not to be had, smaller ones.
    async fn populate_range(&self, dom: DomId, first: Gfn, pages: u64) -> Result<()> {
        let mut gfn = first.0;
        let mut left = pages;
        let mut largest = 9;
        while left > 0 {
            let fitting = EXTENTS.iter().copied().find(|(order, _)| {
                let size = 1u64 << order;
                *order <= largest && gfn.is_multiple_of(size) && size <= left
            });
            let Some((order, most)) = fitting else {
                return fail!("memory of no size");
            };
            let asked = (left >> order).min(most);
            let got = match self.host.populate(dom, Gfn(gfn), order, asked) {
                Ok(got) => got.min(asked),
                Err(Errno::ENOMEM) => 0,
                Err(e) => return Err(e).during("giving it memory"),
            };
            gfn = gfn.saturating_add(got << order);
            left = left.saturating_sub(got << order);
            if got < asked {
                if order == 0 {
                    return fail!(
                        "memory ran out: {} were missing; destroy a guest or lower memory",
                        mib(left.saturating_mul(4))
                    );
                }
                largest = order - 1;
            }
            self.host.pause_point().await;
        }
        Ok(())
    }

    async fn load(
        &self,
        config: &DomainConfig,
        dom: DomId,
        files: &Files<'_, H>,
        built: &builder::Guest,
    ) -> Result<()> {
        let path = &config.kernel;
        let base = built.layout.kernel.base;
        self.load_file(dom, &files.kernel.0, base, "kernel", path)
            .await?;
        if let (Some(ramdisk), Some(region)) = (&files.ramdisk, built.layout.ramdisk) {
            let path = config.ramdisk.as_deref().unwrap_or_default();
            self.load_file(dom, ramdisk, region.base, "ramdisk", path)
                .await?;
        }
        self.host
            .write_guest(dom, built.layout.dtb.base, &built.dtb)
            .during("writing its device tree")
    }

    async fn load_file(
        &self,
        dom: DomId,
        opened: &Opened<'_, H>,
        gpa: u64,
        what: &str,
        path: &str,
    ) -> Result<()> {
        let (file, size) = (&opened.file, opened.size);
        let got = self.host.load_file(file, 0, dom, gpa, size).await;
        match got.during(format!("{what} {path}: loading it"))? {
            got if got == size => Ok(()),
            got => {
                fail!("{what} {path}: it is cut short: only {got} of its {size} bytes can be read")
            }
        }
    }

    /// The pages that the guest shares with its back-ends, and how it finds them.
    async fn share_pages(&self, dom: DomId, ports: &Ports) -> Result<()> {
        let magic = Gfn::of(layout::MAGIC_BASE);
        self.populate_range(dom, magic, layout::MAGIC_PAGES).await?;
        self.host
            .zero_guest(dom, magic.addr(), layout::MAGIC_PAGES * layout::PAGE)
            .during("clearing its shared pages")?;
        let console = Gfn::of(layout::CONSOLE_PAGE);
        let store = Gfn::of(layout::XENSTORE_PAGE);
        for (param, value) in [
            (HvmParam::ConsolePfn, console.0),
            (HvmParam::StorePfn, store.0),
            (HvmParam::MonitorRingPfn, Gfn::of(layout::MEMACCESS_PAGE).0),
            (HvmParam::ConsoleEvtchn, ports.console.0.into()),
            (HvmParam::StoreEvtchn, ports.store.0.into()),
            (HvmParam::CallbackIrq, CALLBACK_PPI),
        ] {
            self.host
                .set_hvm_param(dom, param, value)
                .during(format!("setting its parameter {param:?}"))?;
        }
        self.host
            .seed_grants(dom, console, store)
            .during("writing its first grants")
    }

    fn make_vuart(&self, dom: DomId) -> Result<Port> {
        match self.host.vuart_init(dom, Gfn::of(layout::VUART_PAGE)) {
            Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                fail!("this hypervisor has no virtual UART; leave vuart out")
            }
            other => other.during("giving it a virtual UART"),
        }
    }

    /// The guest starts with its caches off and must see what was written.
    async fn flush(&self, dom: DomId, l: &Layout) -> Result<()> {
        let magic = layout::Region {
            base: layout::MAGIC_BASE,
            size: layout::MAGIC_PAGES * layout::PAGE,
        };
        for region in [Some(l.kernel), l.ramdisk, Some(l.dtb), Some(magic)]
            .into_iter()
            .flatten()
        {
            let mut gfn = Gfn::of(region.base).0;
            let end = region.end().div_ceil(layout::PAGE);
            while gfn < end {
                let pages = (end - gfn).min(FLUSH_PAGES);
                self.host
                    .cache_flush(dom, Gfn(gfn), pages)
                    .during("cleaning its memory from the caches")?;
                gfn += pages;
                self.host.pause_point().await;
            }
        }
        Ok(())
    }
}

/// What cannot be built, and the setting that it is about.
fn refused(config: &DomainConfig, e: &BuildError) -> Error {
    let key = match e {
        BuildError::Layout(_) => "memory",
        BuildError::Tree(_) if config.places.contains_key("maxvcpus") => "maxvcpus",
        BuildError::Tree(_) => "vcpus",
    };
    Error(format!("{}{e}", config.at(key)))
}

/// What a guest's page tables may take, in KiB: as Xen's toolstack reckons for Arm, 1 MiB a vcpu, a
/// page for each MiB of memory, and as much again for 128 MiB of foreign mappings.
pub(super) fn pool_kib(config: &DomainConfig) -> u64 {
    let pages = u64::from(config.maxvcpus)
        .saturating_mul(256)
        .saturating_add(config.maxmem_mib)
        .saturating_add(128);
    pages.saturating_mul(4)
}
