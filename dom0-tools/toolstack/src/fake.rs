// SPDX-License-Identifier: MIT OR Apache-2.0
//! A control domain that is stricter than a real one, for tests.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use crate::host::*;

/// Runs a future that never waits for anything outside.
pub fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..100_000 {
        if let Poll::Ready(out) = future.as_mut().poll(&mut cx) {
            return out;
        }
    }
    panic!("a future that does not end")
}

#[derive(Clone, Debug, PartialEq)]
pub struct Dom {
    pub info: DomInfo,
    pub request: CreateDomain,
    pub pages: BTreeSet<u64>,
    /// What was written into its memory, by address.
    pub written: BTreeMap<u64, Vec<u8>>,
    pub flushed: BTreeSet<u64>,
    pub params: BTreeMap<HvmParam, u64>,
    pub ports: u32,
    pub grants: Option<(Gfn, Gfn)>,
    pub contexts: BTreeMap<u32, VcpuContext>,
    pub pool: u64,
    pub vuart: Option<Gfn>,
    pub affinity: BTreeMap<u32, Vec<u64>>,
    pub weight: u16,
    pub destroys: u32,
}

/// All that a test may want to compare with before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub doms: BTreeMap<u16, Dom>,
    pub nodes: BTreeMap<String, (Vec<u8>, Vec<Perm>)>,
    pub introduced: BTreeSet<u16>,
    pub consoles: BTreeSet<u16>,
    pub blocks: BTreeMap<(u16, u32), BlockStart>,
    pub nets: BTreeMap<(u16, u32), NetStart>,
}

#[derive(Default)]
pub struct Fake {
    pub state: RefCell<State>,
    pub files: RefCell<BTreeMap<String, Vec<u8>>>,
    /// Other names that files have.
    pub aliases: RefCell<BTreeMap<String, String>>,
    places: RefCell<Vec<String>>,
    pub readonly_files: RefCell<BTreeSet<String>>,
    /// The call with this number fails.
    pub fail_at: Cell<Option<(u32, Errno)>>,
    pub calls: Cell<u32>,
    pub next_dom: Cell<u16>,
    pub clock_ns: Cell<u64>,
    pub total_pages: Cell<u64>,
    /// Open files, which must all be closed in the end.
    pub open: Rc<Cell<u32>>,
    /// A guest that lets go of its disks when asked.
    pub polite: Cell<bool>,
    /// Paths that the guest watches; when it is polite, until somebody waits for it to stop.
    pub watched: RefCell<BTreeSet<String>>,
    /// States that front and back end take, one after the other, as somebody waits for the back-end's.
    pub states: RefCell<Vec<(&'static str, &'static str)>>,
    pub powered: Cell<Option<bool>>,
    pub attached: RefCell<Vec<DomId>>,
    /// Refuse extents larger than this.
    pub largest_order: Cell<Option<u8>>,
    pub extents: RefCell<BTreeMap<u8, u64>>,
    /// Reads of files stop here.
    pub cut: Cell<Option<u64>>,
    /// When domains stop by themselves after a shutdown request.
    pub obeys: Cell<bool>,
    pub machine: RefCell<MachineFacts>,
    /// So many thousandths of the time that is slept guests run.
    pub busy: Cell<u64>,
}

pub struct FakeFile {
    path: String,
    bytes: Vec<u8>,
    open: Rc<Cell<u32>>,
}

impl Drop for FakeFile {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
    }
}

pub struct FakeWatch(String);

/// An arm64 `Image` of so many bytes.
pub fn image(size: usize, memory: u64) -> Vec<u8> {
    let mut b = alloc::vec![0xaa; size];
    b[..64].fill(0);
    b[16..24].copy_from_slice(&memory.to_le_bytes());
    b[24] = 10;
    b[56..60].copy_from_slice(b"ARM\x64");
    b
}

impl Fake {
    pub fn new() -> Self {
        let fake = Self {
            next_dom: Cell::new(1),
            total_pages: Cell::new(262_144),
            clock_ns: Cell::new(10_000_000_000),
            ..Self::default()
        };
        let mut files = fake.files.borrow_mut();
        files.insert("/guests/Image".to_string(), image(0x3000, 0x5000));
        files.insert("/guests/initrd".to_string(), alloc::vec![0xbb; 5000]);
        files.insert("/guests/a.img".to_string(), alloc::vec![0; 4096]);
        files.insert("/guests/b.img".to_string(), alloc::vec![0; 8192]);
        drop(files);
        fake.state.borrow_mut().nodes.insert(
            "/".to_string(),
            (Vec::new(), alloc::vec![Perm::none(DomId(0))]),
        );
        fake
    }

    fn call(&self) -> Result<(), Errno> {
        self.calls.set(self.calls.get() + 1);
        match self.fail_at.get() {
            Some((n, e)) if n == self.calls.get() => Err(e),
            _ => Ok(()),
        }
    }

    fn dom<T>(&self, dom: DomId, f: impl FnOnce(&mut Dom) -> Result<T, Errno>) -> Result<T, Errno> {
        self.call()?;
        let mut state = self.state.borrow_mut();
        let d = state.doms.get_mut(&dom.0).ok_or(Errno::ESRCH)?;
        assert!(!d.info.dying, "a dying domain is operated on");
        f(d)
    }

    fn used(&self) -> u64 {
        let state = self.state.borrow();
        state
            .doms
            .values()
            .map(|d| d.info.tot_pages + d.pool / 4096)
            .sum()
    }

    /// A node's text.
    pub fn node(&self, path: &str) -> Option<String> {
        let state = self.state.borrow();
        state
            .nodes
            .get(path)
            .map(|(v, _)| String::from_utf8(v.clone()).unwrap())
    }

    /// The tree as `xenstore-ls -fp` writes it, below a path.
    pub fn tree(&self, below: &str) -> Vec<String> {
        let state = self.state.borrow();
        let nodes = state.nodes.iter().filter(|(p, _)| p.starts_with(below));
        nodes
            .map(|(p, (v, perms))| {
                let perms: Vec<_> = perms
                    .iter()
                    .map(|p| alloc::format!("{}{}", p.letter(), p.dom))
                    .collect();
                alloc::format!(
                    "{p} = \"{}\"   ({})",
                    String::from_utf8_lossy(v),
                    perms.join(",")
                )
            })
            .collect()
    }

    /// The guest stops.
    pub fn stop(&self, dom: DomId, code: ShutdownCode) {
        self.state
            .borrow_mut()
            .doms
            .get_mut(&dom.0)
            .unwrap()
            .info
            .shutdown = Some(code);
    }
}

impl Host for Fake {
    type File = FakeFile;
    type Watch = FakeWatch;

    fn create_domain(&self, req: &CreateDomain) -> Result<CreatedDomain, Errno> {
        self.call()?;
        let dom = DomId(self.next_dom.get());
        self.next_dom.set(dom.0 + 1);
        let info = DomInfo {
            dom,
            handle: req.handle,
            dying: false,
            shutdown: None,
            paused: true,
            blocked: false,
            running: false,
            tot_pages: 0,
            max_pages: 0,
            cpu_time_ns: 1_500_000_000,
            online_vcpus: 0,
            max_vcpu_id: 0,
            gpaddr_bits: 40,
        };
        let new = Dom {
            info,
            request: req.clone(),
            pages: BTreeSet::new(),
            written: BTreeMap::new(),
            flushed: BTreeSet::new(),
            params: BTreeMap::new(),
            ports: 0,
            grants: None,
            contexts: BTreeMap::new(),
            pool: 0,
            vuart: None,
            affinity: BTreeMap::new(),
            weight: 256,
            destroys: 0,
        };
        self.state.borrow_mut().doms.insert(dom.0, new);
        let gic = req.gic.unwrap_or(GicVersion::V2);
        Ok(CreatedDomain {
            dom,
            gic,
            clock_frequency: 0,
        })
    }
    fn set_max_vcpus(&self, dom: DomId, n: u32) -> Result<(), Errno> {
        self.dom(dom, |d| {
            assert_eq!(n, d.request.max_vcpus);
            d.info.max_vcpu_id = n - 1;
            d.info.online_vcpus = 1;
            Ok(())
        })
    }
    fn set_max_mem(&self, dom: DomId, kib: u64) -> Result<(), Errno> {
        self.dom(dom, |d| {
            d.info.max_pages = kib / 4;
            Ok(())
        })
    }
    fn set_paging_pool(&self, dom: DomId, bytes: u64) -> Result<(), Errno> {
        let used = self.used();
        let total = self.total_pages.get();
        self.dom(dom, |d| {
            if used + bytes / 4096 > total {
                return Err(Errno::ENOMEM);
            }
            // In two rounds, as a long call may be.
            if d.pool == 0 {
                d.pool = 1;
                return Err(Errno::ERESTART);
            }
            d.pool = bytes;
            Ok(())
        })
    }
    fn destroy_domain(&self, dom: DomId) -> Result<(), Errno> {
        self.call()?;
        let mut state = self.state.borrow_mut();
        assert!(
            !state.consoles.contains(&dom.0),
            "a console outlives its domain"
        );
        assert!(
            !state.introduced.contains(&dom.0),
            "xenstore still knows the domain"
        );
        assert!(
            !state.blocks.keys().any(|(d, _)| *d == dom.0),
            "a disk outlives its domain"
        );
        assert!(
            !state.nets.keys().any(|(d, _)| *d == dom.0),
            "an interface outlives its domain"
        );
        let d = state.doms.get_mut(&dom.0).ok_or(Errno::ESRCH)?;
        d.info.dying = true;
        d.destroys += 1;
        if d.destroys < 3 {
            return Err(if d.destroys == 1 {
                Errno::ERESTART
            } else {
                Errno::EAGAIN
            });
        }
        state.doms.remove(&dom.0);
        Ok(())
    }
    fn pause_domain(&self, dom: DomId) -> Result<(), Errno> {
        self.dom(dom, |d| {
            d.info.paused = true;
            Ok(())
        })
    }
    fn unpause_domain(&self, dom: DomId) -> Result<(), Errno> {
        self.dom(dom, |d| {
            assert!(
                d.contexts.contains_key(&0) && d.grants.is_some(),
                "it is not ready to run"
            );
            if !d.info.paused {
                return Err(Errno::EINVAL);
            }
            d.info.paused = false;
            Ok(())
        })
    }
    fn set_vcpu_context(&self, dom: DomId, vcpu: u32, c: &VcpuContext) -> Result<(), Errno> {
        self.dom(dom, |d| {
            d.contexts.insert(vcpu, *c);
            Ok(())
        })
    }
    fn set_vcpu_affinity(&self, dom: DomId, vcpu: u32, cpus: &[u64]) -> Result<(), Errno> {
        self.dom(dom, |d| {
            d.affinity.insert(vcpu, cpus.to_vec());
            Ok(())
        })
    }
    fn set_weight(&self, dom: DomId, weight: u16) -> Result<(), Errno> {
        self.dom(dom, |d| {
            d.weight = weight;
            Ok(())
        })
    }
    fn weight(&self, dom: DomId) -> Result<u16, Errno> {
        match dom {
            DomId(0) => Ok(256),
            _ => self.dom(dom, |d| Ok(d.weight)),
        }
    }
    fn cache_flush(&self, dom: DomId, start: Gfn, pages: u64) -> Result<(), Errno> {
        assert!(pages <= 4096);
        self.dom(dom, |d| {
            for page in start.0..start.0 + pages {
                assert!(
                    d.pages.contains(&page),
                    "a page that is not there is cleaned: {page:x}"
                );
                d.flushed.insert(page);
            }
            Ok(())
        })
    }
    fn vuart_init(&self, dom: DomId, gfn: Gfn) -> Result<Port, Errno> {
        self.dom(dom, |d| {
            assert!(d.pages.contains(&gfn.0) && d.request.nr_spis >= 1);
            d.vuart = Some(gfn);
            d.ports += 1;
            Ok(Port(d.ports))
        })
    }
    fn domain_info(&self, dom: DomId) -> Result<DomInfo, Errno> {
        self.call()?;
        let list = self.domain_list()?;
        list.into_iter().find(|d| d.dom == dom).ok_or(Errno::ESRCH)
    }
    fn domain_list(&self) -> Result<Vec<DomInfo>, Errno> {
        self.call()?;
        let dom0 = DomInfo {
            dom: DomId(0),
            handle: [0; 16],
            dying: false,
            shutdown: None,
            paused: false,
            blocked: false,
            running: true,
            tot_pages: 32768,
            max_pages: 32768,
            cpu_time_ns: 2_340_000_000,
            online_vcpus: 1,
            max_vcpu_id: 0,
            gpaddr_bits: 40,
        };
        let state = self.state.borrow();
        Ok(core::iter::once(dom0)
            .chain(state.doms.values().map(|d| d.info.clone()))
            .collect())
    }
    fn vcpu_info(&self, dom: DomId, vcpu: u32) -> Result<VcpuInfo, Errno> {
        self.call()?;
        let on = dom == DomId(0) || vcpu == 0;
        Ok(VcpuInfo {
            online: on,
            blocked: on && dom != DomId(0),
            running: dom == DomId(0),
            cpu_time_ns: 700_000_000,
            cpu: 1,
        })
    }
    fn vcpu_affinity(&self, dom: DomId, vcpu: u32) -> Result<Vec<u64>, Errno> {
        let state = self.state.borrow();
        let set = state.doms.get(&dom.0).and_then(|d| d.affinity.get(&vcpu));
        Ok(set.cloned().unwrap_or(alloc::vec![u64::MAX]))
    }
    fn populate(&self, dom: DomId, first: Gfn, order: u8, count: u64) -> Result<u64, Errno> {
        assert!(count << order <= 8192, "all others wait for so long a call");
        let free = self.total_pages.get() - self.used();
        let largest = self.largest_order.get().unwrap_or(18);
        let got = self.dom(dom, |d| {
            let room = (d.info.max_pages - d.info.tot_pages).min(free);
            let got = if order > largest {
                0
            } else {
                count.min(room >> order)
            };
            for page in first.0..first.0 + (got << order) {
                assert!(d.pages.insert(page), "a page is given twice: {page:x}");
            }
            d.info.tot_pages += got << order;
            Ok(got)
        })?;
        *self.extents.borrow_mut().entry(order).or_default() += got;
        Ok(got)
    }
    fn alloc_unbound(&self, dom: DomId, remote: DomId) -> Result<Port, Errno> {
        assert_eq!(remote, DomId(0));
        self.dom(dom, |d| {
            d.ports += 1;
            Ok(Port(d.ports))
        })
    }
    fn set_hvm_param(&self, dom: DomId, param: HvmParam, value: u64) -> Result<(), Errno> {
        self.dom(dom, |d| {
            assert!(d.params.insert(param, value).is_none());
            Ok(())
        })
    }
    fn seed_grants(&self, dom: DomId, console: Gfn, store: Gfn) -> Result<(), Errno> {
        self.dom(dom, |d| {
            assert!(d.pages.contains(&console.0) && d.pages.contains(&store.0));
            d.grants = Some((console, store));
            Ok(())
        })
    }
    fn write_guest(&self, dom: DomId, gpa: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.dom(dom, |d| {
            for page in gpa / 4096..(gpa + bytes.len() as u64).div_ceil(4096) {
                assert!(
                    d.pages.contains(&page),
                    "a page that is not there is written: {page:x}"
                );
                assert!(
                    !d.flushed.contains(&page),
                    "a page is written after it was cleaned"
                );
            }
            d.written.insert(gpa, bytes.to_vec());
            Ok(())
        })
    }
    fn zero_guest(&self, dom: DomId, gpa: u64, len: u64) -> Result<(), Errno> {
        self.write_guest(dom, gpa, &alloc::vec![0; len as usize])
    }
    fn phys_info(&self) -> Result<PhysInfo, Errno> {
        self.call()?;
        Ok(PhysInfo {
            nr_cpus: 2,
            cpu_khz: 62_500,
            total_pages: self.total_pages.get() + 32768,
            free_pages: self.total_pages.get() - self.used(),
            scrub_pages: 0,
        })
    }
    fn machine(&self) -> Result<MachineFacts, Errno> {
        self.call()?;
        Ok(self.machine.borrow().clone())
    }
    fn own_use(&self) -> OwnUse {
        let state = self.state.borrow();
        OwnUse {
            ports: 4 + state.doms.values().map(|d| d.ports).sum::<u32>(),
            mapped_pages: state.consoles.len() as u64,
            heap: (1 << 20, 64 << 20),
            address: None,
        }
    }
    fn version_info(&self) -> Result<VersionInfo, Errno> {
        self.call()?;
        Ok(VersionInfo {
            major: 4,
            minor: 17,
            extra: ".0".into(),
            scheduler: "credit".into(),
            ..VersionInfo::default()
        })
    }
    fn read_console(&self, clear: bool) -> Result<Vec<u8>, Errno> {
        self.call()?;
        Ok(if clear {
            b"last\n".to_vec()
        } else {
            b"(XEN) hello\n".to_vec()
        })
    }
    async fn power(&self, restart: bool) -> Result<(), Errno> {
        self.powered.set(Some(restart));
        Ok(())
    }
    fn uptime_ns(&self) -> u64 {
        // Time passes with every look at it.
        self.clock_ns.set(self.clock_ns.get() + 1_000_000);
        self.clock_ns.get()
    }
    fn wall_clock_s(&self) -> u64 {
        1_795_477_247
    }
    fn random(&self, out: &mut [u8]) {
        out.fill(0x5a);
    }
    async fn sleep_ms(&self, ms: u64) {
        self.clock_ns.set(self.clock_ns.get() + ms * 1_000_000);
        for d in self.state.borrow_mut().doms.values_mut() {
            d.info.cpu_time_ns += ms * self.busy.get() * 1000;
        }
        if self.obeys.get() {
            let mut state = self.state.borrow_mut();
            let asked: Vec<u16> = (state.doms.keys().copied())
                .filter(|d| {
                    state
                        .nodes
                        .get(&alloc::format!("/local/domain/{d}/control/shutdown"))
                        .is_some_and(|n| !n.0.is_empty())
                })
                .collect();
            for d in asked {
                state.doms.get_mut(&d).unwrap().info.shutdown = Some(ShutdownCode::Poweroff);
            }
        }
    }
    async fn pause_point(&self) {}
    async fn open(&self, path: &str) -> Result<FakeFile, Errno> {
        self.call()?;
        let path = self
            .aliases
            .borrow()
            .get(path)
            .map_or(path, |p| p)
            .to_string();
        let bytes = self
            .files
            .borrow()
            .get(&path)
            .cloned()
            .ok_or(Errno::ENOENT)?;
        self.open.set(self.open.get() + 1);
        Ok(FakeFile {
            path,
            bytes,
            open: self.open.clone(),
        })
    }
    fn extents(&self, file: &FakeFile) -> Result<Extents, Errno> {
        self.call()?;
        let mut places = self.places.borrow_mut();
        if !places.contains(&file.path) {
            places.push(file.path.clone());
        }
        let at = places.iter().position(|p| *p == file.path).unwrap() as u64;
        let sectors = file.bytes.len().div_ceil(512) as u64;
        Extents::new(0, core::iter::once((at << 32, sectors)))
    }
    async fn file_size(&self, file: &FakeFile) -> Result<u64, Errno> {
        self.call()?;
        Ok(file.bytes.len() as u64)
    }
    async fn read_at(&self, file: &FakeFile, offset: u64, out: &mut [u8]) -> Result<usize, Errno> {
        self.call()?;
        let rest = file.bytes.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(out.len());
        out[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    async fn load_file(
        &self,
        file: &FakeFile,
        offset: u64,
        dom: DomId,
        gpa: u64,
        len: u64,
    ) -> Result<u64, Errno> {
        assert!(gpa.is_multiple_of(4096) && offset == 0);
        let len = len
            .min(file.bytes.len() as u64)
            .min(self.cut.get().unwrap_or(u64::MAX));
        self.write_guest(dom, gpa, &file.bytes[..len as usize])?;
        Ok(len)
    }
    async fn list_dir(&self, path: &str) -> Result<Vec<DirEntry>, Errno> {
        self.call()?;
        let files = self.files.borrow();
        let prefix = alloc::format!("{}/", path.trim_end_matches('/'));
        Ok(files
            .keys()
            .filter_map(|f| f.strip_prefix(&prefix))
            .map(|name| DirEntry {
                name: name.to_string(),
                dir: false,
            })
            .collect())
    }
    async fn console_start(&self, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno> {
        self.call()?;
        assert_eq!((ring, port), (Gfn(0x39000), Port(2)));
        assert!(self.state.borrow_mut().consoles.insert(dom.0));
        Ok(())
    }
    async fn vuart_start(&self, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno> {
        self.call()?;
        assert_eq!((ring, port), (Gfn(0x39003), Port(3)));
        assert!(self.state.borrow().consoles.contains(&dom.0));
        Ok(())
    }
    async fn console_stop(&self, dom: DomId) {
        self.state.borrow_mut().consoles.remove(&dom.0);
    }
    async fn console_attach(&self, dom: DomId) -> Result<(), Errno> {
        self.call()?;
        if !self.state.borrow().consoles.contains(&dom.0) {
            return Err(Errno::ENOENT);
        }
        self.attached.borrow_mut().push(dom);
        Ok(())
    }
    fn block_probe(&self, file: &FakeFile) -> Result<BlockTarget, Errno> {
        self.call()?;
        let writable = !self.readonly_files.borrow().contains(&file.path);
        Ok(BlockTarget {
            sectors: file.bytes.len() as u64 / 512,
            writable,
        })
    }
    async fn block_start(&self, disk: &BlockStart, _file: FakeFile) -> Result<(), Errno> {
        self.call()?;
        let back = alloc::format!("/local/domain/0/backend/vbd/{}/{}", disk.dom, disk.vdev);
        assert_eq!(
            self.node(&alloc::format!("{back}/state")).as_deref(),
            Some("1")
        );
        assert_eq!(
            self.node(&alloc::format!("{back}/params")).as_ref(),
            Some(&disk.target)
        );
        let old = self
            .state
            .borrow_mut()
            .blocks
            .insert((disk.dom.0, disk.vdev), disk.clone());
        assert!(old.is_none());
        Ok(())
    }
    async fn block_stop(&self, dom: DomId, vdev: u32) {
        self.state.borrow_mut().blocks.remove(&(dom.0, vdev));
    }
    async fn net_start(&self, net: &NetStart) -> Result<(), Errno> {
        self.call()?;
        let back = alloc::format!("/local/domain/0/backend/vif/{}/{}", net.dom, net.devid);
        assert_eq!(
            self.node(&alloc::format!("{back}/state")).as_deref(),
            Some("1")
        );
        assert_eq!(
            self.node(&alloc::format!("{back}/bridge")).as_ref(),
            Some(&net.bridge)
        );
        let key = (net.dom.0, net.devid);
        let old = self.state.borrow_mut().nets.insert(key, net.clone());
        assert!(old.is_none());
        Ok(())
    }
    async fn net_stop(&self, dom: DomId, devid: u32) {
        self.state.borrow_mut().nets.remove(&(dom.0, devid));
    }
    fn bridges(&self) -> Vec<BridgeInfo> {
        let state = self.state.borrow();
        let vif = |n: &NetStart| BridgePort {
            name: alloc::format!("vif{}.{}", n.dom, n.devid),
            guest: Some((n.dom, n.devid)),
            mac: Some(n.mac),
            link: true,
            came: (3, 180),
            went: (2, 120),
            refused: 1,
            dropped: 0,
            macs: alloc::vec![n.mac],
        };
        let card = BridgePort {
            name: CARD.into(),
            guest: None,
            mac: Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
            link: false,
            came: (7, 700),
            went: (0, 0),
            refused: 0,
            dropped: 4,
            macs: alloc::vec![Mac([2, 0, 0, 0, 0, 1])],
        };
        let mut bridges = BTreeMap::from([(DEFAULT_BRIDGE.into(), alloc::vec![card])]);
        for n in state.nets.values() {
            bridges.entry(n.bridge.clone()).or_default().push(vif(n));
        }
        let bridges = bridges.into_iter();
        bridges
            .map(|(name, ports)| BridgeInfo { name, ports })
            .collect()
    }
    fn xs_read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        self.call()?;
        self.state
            .borrow()
            .nodes
            .get(path)
            .map(|(v, _)| v.clone())
            .ok_or(Errno::ENOENT)
    }
    fn xs_write(&self, path: &str, value: &[u8]) -> Result<(), Errno> {
        self.call()?;
        assert!(
            path.starts_with('/') && !path.ends_with('/') && !path.contains("//"),
            "{path}"
        );
        let mut state = self.state.borrow_mut();
        let (parent, _) = path.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() { "/" } else { parent };
        let perms = state
            .nodes
            .get(parent)
            .unwrap_or_else(|| panic!("{path} has no parent"))
            .1
            .clone();
        state
            .nodes
            .entry(path.to_string())
            .or_insert((Vec::new(), perms))
            .0 = value.to_vec();
        Ok(())
    }
    fn xs_mkdir(&self, path: &str) -> Result<(), Errno> {
        if self.xs_read(path).is_err() {
            self.xs_write(path, b"")?;
        }
        Ok(())
    }
    fn xs_rm(&self, path: &str) -> Result<(), Errno> {
        self.call()?;
        let mut state = self.state.borrow_mut();
        state.nodes.remove(path).ok_or(Errno::ENOENT)?;
        let below = alloc::format!("{path}/");
        state.nodes.retain(|p, _| !p.starts_with(&below));
        Ok(())
    }
    fn xs_list(&self, path: &str) -> Result<Vec<String>, Errno> {
        self.call()?;
        let state = self.state.borrow();
        state.nodes.get(path).ok_or(Errno::ENOENT)?;
        let below = alloc::format!("{}/", path.trim_end_matches('/'));
        let names = state.nodes.keys().filter_map(|p| p.strip_prefix(&below));
        Ok(names
            .filter(|n| !n.is_empty() && !n.contains('/'))
            .map(ToString::to_string)
            .collect())
    }
    fn xs_get_perms(&self, path: &str) -> Result<Vec<Perm>, Errno> {
        self.call()?;
        self.state
            .borrow()
            .nodes
            .get(path)
            .map(|(_, p)| p.clone())
            .ok_or(Errno::ENOENT)
    }
    fn xs_set_perms(&self, path: &str, perms: &[Perm]) -> Result<(), Errno> {
        self.call()?;
        let mut state = self.state.borrow_mut();
        state.nodes.get_mut(path).ok_or(Errno::ENOENT)?.1 = perms.to_vec();
        Ok(())
    }
    fn xs_introduce(&self, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno> {
        self.call()?;
        assert_eq!((ring, port), (Gfn(0x39001), Port(1)));
        assert!(self.state.borrow_mut().introduced.insert(dom.0));
        Ok(())
    }
    fn xs_release(&self, dom: DomId) -> Result<(), Errno> {
        self.call()?;
        self.state.borrow_mut().introduced.remove(&dom.0);
        Ok(())
    }
    fn xs_watch(&self, path: &str) -> Result<FakeWatch, Errno> {
        self.call()?;
        Ok(FakeWatch(path.to_string()))
    }
    async fn xs_next(&self, watch: &mut FakeWatch, timeout_ms: Option<u64>) -> Option<String> {
        let now = self.clock_ns.get();
        self.clock_ns.set(now + timeout_ms.unwrap_or(0) * 1_000_000);
        let next = self.states.borrow_mut().pop();
        if let Some((front, back)) = next {
            self.clock_ns.set(now + 1_000_000);
            let folder = watch.0.strip_suffix("/state").unwrap();
            let path = self.node(&alloc::format!("{folder}/frontend")).unwrap();
            let mut state = self.state.borrow_mut();
            let mut set = |path: &str, to: &str| {
                state.nodes.get_mut(path).unwrap().0 = to.as_bytes().to_vec();
            };
            set(&alloc::format!("{path}/state"), front);
            set(&watch.0, back);
            return Some(watch.0.clone());
        }
        if self.polite.get() {
            let mut state = self.state.borrow_mut();
            state.nodes.get_mut(&watch.0).unwrap().0 = b"6".to_vec();
            return Some(watch.0.clone());
        }
        None
    }
    fn xs_is_watched(&self, _: DomId, path: &str) -> bool {
        let watched = self.watched.borrow();
        let above = |w: &String| {
            path.strip_prefix(w.as_str())
                .is_some_and(|p| p.is_empty() || p.starts_with('/'))
        };
        watched.iter().any(above)
    }
    async fn xs_unwatched(&self, dom: DomId, path: &str, timeout_ms: u64) -> bool {
        if self.polite.get() {
            self.watched.borrow_mut().remove(path);
        }
        let watched = self.xs_is_watched(dom, path);
        if watched {
            let now = self.clock_ns.get();
            self.clock_ns.set(now + timeout_ms * 1_000_000);
        }
        !watched
    }
}
