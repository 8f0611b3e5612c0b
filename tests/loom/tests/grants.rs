// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flags of grant entries: a granter takes a grant back while another domain maps it, copies by it or lets go of it.

use guest_abi::grant_table::{GnttabQuerySize, GrantOp, gntcopy, gntmap};
use guest_abi::grants::{GrantTable, ReadWrite};
use guest_abi::{Gfn, GrantRef, Hypercall, HypercallNr, Lent, call};
use hv_core::grant::{CopyOp, CopyPtr, Grants, MapOp, PageHost, UnmapOp};
use hv_core::types::{Access, DomId, Errno, Mfn, Slot};
use loom::sync::{Arc, Mutex};
use loom::thread;
use loom_models::{Memory, View, model};
use zerocopy::IntoBytes;

const FRAME: u64 = 0x1000;
const GRANTER: Slot = Slot(1);
const MAPPER: Slot = Slot(2);
/// Pages of the hypervisor's own, for its records of entries and of mappings.
const PRIVATE: u64 = 0x10_0000;
const PAGES: u64 = 8;
/// Bytes of such a record.
const RECORD: u64 = 16;
/// The first reference that is a guest's own.
const REF: u32 = 8;
/// The granter's page, and one of the mapper's own.
const PAGE: Gfn = Gfn(0x10);

/// Pages with one reference each, of which others are counted.
struct Host {
    memory: Memory,
    references: i32,
    mapped: Option<(Gfn, Mfn)>,
    private: u64,
}

impl PageHost for Host {
    type Mem = Memory;
    fn mem(&self) -> &Memory {
        &self.memory
    }
    fn find(&self, domid: DomId) -> Option<Slot> {
        (1..3).contains(&domid.0).then_some(Slot(domid.0 as u8))
    }
    fn resolve(&self, slot: Slot, gfn: Gfn, _: Access) -> Result<Mfn, Errno> {
        Ok(Mfn(gfn.0 + u64::from(slot.0) * 0x100))
    }
    fn get_page(&mut self, _: Mfn) -> Result<(), Errno> {
        self.references += 1;
        Ok(())
    }
    fn put_page(&mut self, _: Mfn) {
        self.references -= 1;
    }
    fn map_granted(&mut self, _: Slot, gfn: Gfn, mfn: Mfn, _: Access) -> Result<(), Errno> {
        assert_eq!(self.mapped.replace((gfn, mfn)), None);
        Ok(())
    }
    fn granted(&self, _: Slot, gfn: Gfn) -> Option<Mfn> {
        self.mapped.filter(|m| m.0 == gfn).map(|m| m.1)
    }
    fn unmap_granted(&mut self, slot: Slot, gfn: Gfn) -> Result<Mfn, Errno> {
        let mfn = self.granted(slot, gfn).ok_or(Errno::EINVAL)?;
        self.mapped = None;
        Ok(mfn)
    }
    fn forget_granted(&mut self, slot: Slot, gfn: Gfn) -> Option<Mfn> {
        self.unmap_granted(slot, gfn).ok()
    }
    fn alloc_own(&mut self, slot: Slot, private: bool) -> Result<Mfn, Errno> {
        if !private {
            return Ok(Mfn(FRAME >> 12 << (slot.0 - 1)));
        }
        self.private += 1;
        Ok(Mfn((PRIVATE >> 12) + self.private - 1))
    }
    fn contended(&self, slot: Slot) {
        panic!("{slot:?} is to be ended, which stores a fixed number of times")
    }
    fn owns(&self, slot: Slot, _: Mfn) -> bool {
        slot == GRANTER
    }
}

/// The hypervisor behind its lock.
#[derive(Clone)]
struct Hv(Arc<Mutex<Box<(Grants, Host)>>>);

impl Hv {
    fn with<R>(&self, f: impl FnOnce(&mut Grants, &mut Host) -> R) -> R {
        let (grants, host) = &mut **self.0.lock().unwrap();
        f(grants, host)
    }

    fn map(&self) -> Option<u32> {
        let op = MapOp {
            host_addr: 0x5000,
            flags: gntmap::HOST_MAP,
            gref: GrantRef(REF),
            dom: DomId(1),
        };
        let mapped = self.with(|g, h| g.map(h, MAPPER, &op));
        mapped.ok().map(|m| m.handle)
    }

    fn unmap(&self, handle: u32) {
        let op = UnmapOp {
            host_addr: 0x5000,
            handle,
        };
        assert_eq!(self.with(|g, h| g.unmap(h, MAPPER, &op)).number(), 0);
    }

    fn copy(&self) -> bool {
        let op = CopyOp {
            source: CopyPtr {
                frame: PAGE.0,
                domid: DomId::SELF,
                offset: 0,
            },
            dest: CopyPtr {
                frame: REF.into(),
                domid: DomId(1),
                offset: 0,
            },
            len: 4,
            flags: gntcopy::DEST_GREF,
        };
        self.with(|g, h| g.copy(h, MAPPER, &op)).number() == 0
    }
}

impl Hypercall for Hv {
    fn call(&self, nr: HypercallNr, args: [u64; 5], lent: &mut [Lent<'_>]) -> i64 {
        if nr == HypercallNr::GrantTableOp {
            assert_eq!(args[0], GrantOp::QuerySize.number());
            let size = GnttabQuerySize {
                dom: DomId::SELF,
                nr_frames: 1,
                max_nr_frames: 1,
                status: 0,
                ..Default::default()
            };
            assert!(call::write(lent, args[1], size.as_bytes()));
        }
        0
    }
}

type Table = GrantTable<Hv, View, Vec<u32>>;

fn setup() -> (Hv, Table) {
    // The entry, and of each page the records of that reference and of the first mapping.
    let mut words = vec![(FRAME + u64::from(REF) * 8, 8)];
    for page in (0..PAGES).map(|n| PRIVATE + n * 4096) {
        words.extend([(page, RECORD), (page + u64::from(REF) * RECORD, RECORD)]);
    }
    let memory = Memory::new(&words);
    // Threads of a model have small stacks, too small for what makes the tables.
    let made = std::thread::spawn(|| {
        let mut host = Host {
            memory: Memory::default(),
            references: 0,
            mapped: None,
            private: 0,
        };
        let mut grants = Grants::new();
        for slot in [GRANTER, MAPPER] {
            grants
                .create_domain(&mut host, slot, DomId(slot.0.into()), 1, 1)
                .unwrap();
        }
        Box::new((grants, host))
    });
    let mut made = made.join().unwrap();
    assert!(made.1.private <= PAGES);
    made.1.memory = memory.clone();
    let hv = Hv(Arc::new(Mutex::new(made)));
    let view = View {
        memory,
        base: FRAME,
    };
    let table = Table::new(hv.clone(), view, Gfn(0x20), vec![0; 512]).unwrap();
    (hv, table)
}

/// Taken back, or mapped, never both.
#[test]
fn xsa_500_a_grant_is_taken_back_or_mapped() {
    model(None, || {
        let (hv, mut table) = setup();
        let grant = table.grant::<ReadWrite>(DomId(2), PAGE).unwrap();
        let mapper = hv.clone();
        let mapper = thread::spawn(move || mapper.map().is_some());
        let ended = table.end(grant).is_ok();
        let mapped = mapper.join().unwrap();
        assert_ne!(ended, mapped, "one of them");
        hv.with(|_, h| {
            assert_eq!(h.mapped.is_some(), mapped);
            assert_eq!(h.references, i32::from(mapped));
        });
    });
}

/// Mapped and let go while it is taken back: it can be in the end, and no reference is left.
#[test]
fn xsa_501_a_grant_that_was_let_go_can_be_taken_back() {
    model(None, || {
        let (hv, mut table) = setup();
        let grant = table.grant::<ReadWrite>(DomId(2), PAGE).unwrap();
        let mapper = hv.clone();
        let mapper = thread::spawn(move || {
            if let Some(handle) = mapper.map() {
                mapper.unmap(handle);
            }
        });
        let first = table.end(grant);
        mapper.join().unwrap();
        if let Err(still) = first {
            assert_eq!(table.end(still.0).unwrap(), PAGE);
        }
        hv.with(|_, h| assert_eq!((h.references, h.mapped), (0, None)));
        assert!(hv.map().is_none(), "no access any more");
    });
}

/// A copy by the grant happens before it is taken back, or not at all; and nothing is left in its flags.
#[test]
fn a_copy_while_the_grant_is_taken_back() {
    model(None, || {
        let (hv, mut table) = setup();
        let grant = table.grant::<ReadWrite>(DomId(2), PAGE).unwrap();
        let copier = hv.clone();
        let copier = thread::spawn(move || copier.copy());
        let first = table.end(grant);
        let copied = copier.join().unwrap();
        match first {
            Ok(_) => {}
            Err(still) => {
                assert!(copied, "in use by whom?");
                assert!(table.end(still.0).is_ok());
            }
        }
        assert!(!hv.copy());
    });
}
