// SPDX-License-Identifier: MIT OR Apache-2.0
//! xenstore's host: a task for each domain's ring, and watches of the control domain's own.

use crate::exec::{Notify, yield_now};
use crate::rt::{Listener, Rt};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::RefCell;
use el1::heap;
use el1::mem::{self, Mapping};
use embassy_futures::select::select;
use guest_abi::{DomId, Errno, Gfn, Port};
use xenstore::{ConnId, Quota, Store, unnumbered};

/// How long output waits for room before the ring is looked at again, in milliseconds.
const RETRY_MS: u64 = 20;
/// How much later one gets its reply that does not number its requests, in milliseconds.
const REPLY_MS: u64 = 1;

/// A domain's ring. Its end takes page and port away at once; the task ends when it finds that.
struct Ring {
    link: Rc<RefCell<Option<(Mapping, Listener)>>>,
    wake: Rc<Notify>,
}

/// The store and its clients.
pub struct Xenstore {
    rt: &'static Rt,
    store: RefCell<Store>,
    rings: RefCell<BTreeMap<DomId, Ring>>,
    local: RefCell<BTreeMap<ConnId, Rc<Notify>>>,
    /// Some domain's requests were served, or it was forgotten.
    served: Notify,
}

impl Xenstore {
    /// An empty store. All guests together can fill a quarter of the heap with it.
    #[must_use]
    pub fn new(rt: &'static Rt) -> Self {
        Self {
            rt,
            store: RefCell::new(Store::with_quota(Quota {
                total: heap::total() as u64 / 4,
                ..Quota::default()
            })),
            rings: RefCell::default(),
            local: RefCell::default(),
            served: Notify::default(),
        }
    }

    /// Does something with the store, and wakes whoever is told of it.
    pub fn with<R>(&self, f: impl FnOnce(&mut Store) -> R) -> R {
        let mut store = self.store.borrow_mut();
        let r = f(&mut store);
        while let Some(id) = store.next_ready() {
            match id {
                ConnId::Domain(dom) => {
                    if let Some(ring) = self.rings.borrow().get(&dom) {
                        ring.wake.notify();
                    }
                }
                ConnId::Local(_) => {
                    if let Some(notify) = self.local.borrow().get(&id) {
                        notify.notify();
                    }
                }
            }
        }
        r
    }

    /// Serves a domain from now on.
    pub fn introduce(self: &Rc<Self>, dom: DomId, ring: Gfn, port: Port) -> Result<(), Errno> {
        self.end_ring(dom);
        let page = mem::map_foreign(dom, &[ring])?;
        let listener = self.rt.connect(dom, port)?;
        self.with(|s| s.introduce(dom))?;
        let wake = listener.waker();
        let link = Rc::new(RefCell::new(Some((page, listener))));
        let (this, ring) = (self.clone(), link.clone());
        self.rings.borrow_mut().insert(
            dom,
            Ring {
                link,
                wake: wake.clone(),
            },
        );
        self.rt
            .spawn_for(dom, async move { this.serve(dom, &ring, &wake).await });
        Ok(())
    }

    async fn serve(&self, dom: DomId, link: &RefCell<Option<(Mapping, Listener)>>, wake: &Notify) {
        let mut seen = wake.seen();
        loop {
            // Without memory nothing is begun, and no guest's request is lost: it waits in its ring.
            if !heap::admits() {
                self.rt.sleep_ms(RETRY_MS).await;
                if link.borrow().is_some() {
                    continue;
                }
            }
            // Who sends one request at a time may look only after the event where the reply will be, and waits for ever if it
            // is there by then, as U-Boot does.
            let hasty = match &*link.borrow() {
                None => return,
                Some((page, _)) => unnumbered(&**page),
            };
            if hasty {
                self.rt.sleep_ms(REPLY_MS).await;
            }
            let result = match &*link.borrow() {
                None => return,
                Some((page, port)) => {
                    let result = self.with(|s| s.pump(dom, &**page));
                    if result.notify {
                        port.send();
                    }
                    let pause = match result.more {
                        true => 0,
                        false => port.judge(result.notify),
                    };
                    if !result.more && pause == 0 {
                        port.open();
                    }
                    (result, pause)
                }
            };
            let (result, pause) = result;
            if result.notify {
                self.served.notify();
            }
            if pause > 0 {
                self.rt.sleep_ms(pause).await;
                if let Some((_, port)) = &*link.borrow() {
                    port.open();
                }
            }
            if result.more {
                yield_now().await;
            } else if result.waiting {
                select(wake.changed(&mut seen), self.rt.sleep_ms(RETRY_MS)).await;
            } else {
                wake.changed(&mut seen).await;
            }
        }
    }

    fn end_ring(&self, dom: DomId) {
        if let Some(ring) = self.rings.borrow_mut().remove(&dom) {
            ring.link.take();
            ring.wake.notify();
        }
    }

    /// The domain is gone: nothing of it is left in the store.
    pub fn forget(&self, dom: DomId) {
        self.end_ring(dom);
        self.with(|s| s.domain_died(dom));
        self.served.notify();
    }

    /// How often domains' requests were served.
    pub fn requests(&self) -> u64 {
        self.served.seen()
    }

    /// Waits until a domain does not watch a path, nor one above it.
    pub async fn unwatched(&self, dom: DomId, path: &str) {
        let mut seen = self.served.seen();
        while self.with(|s| s.is_watched(dom, path)) {
            self.served.changed(&mut seen).await;
        }
    }

    /// The domains that are served.
    pub fn domains(&self) -> alloc::vec::Vec<DomId> {
        self.rings.borrow().keys().copied().collect()
    }

    /// Watches a path, or `@introduceDomain`, or `@releaseDomain`.
    pub fn watch(self: &Rc<Self>, path: &str) -> Result<Watch, Errno> {
        let conn = self.with(Store::open);
        let notify: Rc<Notify> = Rc::default();
        self.local.borrow_mut().insert(conn, notify.clone());
        let watch = Watch {
            xs: self.clone(),
            conn,
            seen: notify.seen(),
            notify,
        };
        self.with(|s| s.watch(conn, path, "dom0"))?;
        Ok(watch)
    }
}

/// A watch of the control domain's, until it is dropped.
pub struct Watch {
    xs: Rc<Xenstore>,
    conn: ConnId,
    notify: Rc<Notify>,
    seen: u64,
}

impl Watch {
    /// The next path that changed, if there is one.
    pub fn try_next(&mut self) -> Option<String> {
        self.seen = self.notify.seen();
        self.xs.with(|s| s.poll_event(self.conn)).map(|e| e.path)
    }

    /// Waits until something changes after the last [`Self::try_next`].
    pub async fn changed(&mut self) {
        self.notify.changed(&mut self.seen).await;
    }

    /// Waits for the next path that changes.
    pub async fn next(&mut self) -> String {
        loop {
            if let Some(path) = self.try_next() {
                return path;
            }
            self.notify.changed(&mut self.seen).await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.xs.local.borrow_mut().remove(&self.conn);
        self.xs.with(|s| s.close(self.conn));
    }
}
