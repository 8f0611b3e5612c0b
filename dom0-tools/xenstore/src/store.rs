// SPDX-License-Identifier: MIT OR Apache-2.0
//! The store: its domains, and what the control domain does with it.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_abi::io::xs_wire::PAYLOAD_MAX;
use guest_abi::{DomId, Errno, Gfn, Port};

use crate::conn::{ConnId, Connection, Event, OPEN};
use crate::path;
use crate::perm::{Perm, Who};
use crate::quota::Quota;
use crate::tree::{self, Fire, Overlay, Session, Tree, Walk};
use crate::watch::{Clients, Watches};

/// Most entries of a node's permissions, so that they fit a reply.
const PERMS_MAX: usize = 512;
/// Most effects that wait for the host.
const EFFECTS_MAX: usize = 64;

const CONTROL_DOMAIN: Who = Who::new(DomId(0));

/// What a domain 0 on a ring asked for and only the host can do (see [`Store::next_effect`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Map the domain's ring page, bind its port, and pump its ring from now on.
    Introduce {
        /// The domain.
        domid: DomId,
        /// Its ring page.
        gfn: Gfn,
        /// Its unbound event channel.
        port: Port,
    },
    /// Unmap and unbind: the store does not serve the domain any more.
    Release {
        /// The domain.
        domid: DomId,
    },
}

/// What the whole store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Nodes, the root included.
    pub nodes: usize,
    /// Bytes charged for nodes.
    pub node_bytes: u64,
    /// Bytes charged for watches and open transactions.
    pub session_bytes: u64,
    /// Watches of all clients.
    pub watches: usize,
    /// Open transactions of all clients.
    pub transactions: usize,
    /// Domains introduced.
    pub domains: usize,
    /// Domains that own nodes, domain 0 included.
    pub owners: usize,
    /// Connections, local ones included.
    pub connections: usize,
    /// Bytes in buffers to and from clients.
    pub queued_bytes: usize,
}

/// What one domain has in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainStats {
    /// Nodes that it owns.
    pub nodes: u64,
    /// Bytes charged for them.
    pub node_bytes: u64,
    /// Watches.
    pub watches: u32,
    /// Open transactions.
    pub transactions: usize,
    /// Bytes charged for watches and transactions.
    pub session_bytes: u64,
    /// Bytes in buffers to and from it.
    pub queued_bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Domain {
    /// It has shut down, and `@releaseDomain` has fired for it.
    pub(crate) shutdown: bool,
}

/// The store. See the [crate's documentation](crate).
#[derive(Debug)]
pub struct Store {
    pub(crate) tree: Tree,
    pub(crate) clients: Clients,
    pub(crate) watches: Watches,
    /// The domains introduced.
    pub(crate) domains: BTreeMap<DomId, Domain>,
    pub(crate) quota: Quota,
    /// Who is told of `@introduceDomain`.
    pub(crate) introduce_perms: Arc<[Perm]>,
    /// Who is told of `@releaseDomain`.
    pub(crate) release_perms: Arc<[Perm]>,
    effects: VecDeque<Effect>,
    next_local: u32,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store with the default [`Quota`]: `/` and, as xenstored has it, `/tool/xenstored`.
    #[must_use]
    pub fn new() -> Self {
        Self::with_quota(Quota::default())
    }

    /// An empty store with limits of one's own.
    #[must_use]
    pub fn with_quota(quota: Quota) -> Self {
        let private: Arc<[Perm]> = Arc::from([Perm::none(DomId(0))]);
        let mut store = Self {
            tree: Tree::new(),
            clients: Clients::default(),
            watches: Watches::default(),
            domains: BTreeMap::new(),
            quota,
            introduce_perms: private.clone(),
            release_perms: private,
            effects: VecDeque::new(),
            next_local: 0,
        };
        // Domain 0 may make any node of a fresh tree: there is no quota and no conflict.
        let _ = store.mkdir("/tool/xenstored");
        store
    }

    /// The limits in force.
    #[must_use]
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    // ---- nodes, for the control domain ----------------------------------------------------------

    /// A node's value: any bytes, at most 4096. Relative paths, here and below, are below
    /// `/local/domain/0/`.
    ///
    /// # Errors
    /// `ENOENT` if it is not there, `EINVAL` if `path` is no path.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        Ok(self.node(path)?.value.to_vec())
    }

    /// Whether a node is there.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.node(path).is_ok()
    }

    /// The names of a node's children, oldest first.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn ls(&self, path: &str) -> Result<Vec<String>, Errno> {
        Ok(self
            .node(path)?
            .children
            .iter()
            .map(|n| String::from(&**n))
            .collect())
    }

    /// A node's permissions, owner first; also those of `@introduceDomain` and `@releaseDomain`, which
    /// tell what domains are told of them.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn get_perms(&self, path: &str) -> Result<Vec<Perm>, Errno> {
        match path {
            path::INTRODUCE => Ok(self.introduce_perms.to_vec()),
            path::RELEASE => Ok(self.release_perms.to_vec()),
            _ => Ok(self.node(path)?.perms.to_vec()),
        }
    }

    /// Sets a node's value, making it and all missing nodes above, which inherit permissions.
    ///
    /// # Errors
    /// `EINVAL` if `path` is no path, `E2BIG` if the value is longer than 4096 bytes.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Errno> {
        self.transact(|t| t.write(path, value))
    }

    /// Makes a node, and all missing ones above, with an empty value; leaves one that is there as it is.
    ///
    /// # Errors
    /// `EINVAL` if `path` is no path.
    pub fn mkdir(&mut self, path: &str) -> Result<(), Errno> {
        self.transact(|t| t.mkdir(path))
    }

    /// Removes a node and all below it. That the node is not there is no error.
    ///
    /// # Errors
    /// `ENOENT` if the node above is not there either, `EINVAL` if `path` is no path or is `/`.
    pub fn rm(&mut self, path: &str) -> Result<(), Errno> {
        self.transact(|t| t.rm(path))
    }

    /// Sets a node's permissions, owner first; also those of `@introduceDomain` and `@releaseDomain`.
    ///
    /// Whoever gives a domain number rights or nodes ends with [`Store::domain_died`] for it, also when
    /// the domain was never introduced: else the rights pass to the next domain of that number.
    ///
    /// # Errors
    /// `EINVAL` if `perms` is empty, `E2BIG` beyond 512 entries; as [`Store::read`].
    pub fn set_perms(&mut self, path: &str, perms: &[Perm]) -> Result<(), Errno> {
        match path {
            path::INTRODUCE | path::RELEASE => self.set_special_perms(path, perms),
            _ => self.transact(|t| t.set_perms(path, perms)),
        }
    }

    pub(crate) fn set_special_perms(&mut self, path: &str, perms: &[Perm]) -> Result<(), Errno> {
        if perms.is_empty() {
            return Err(Errno::EINVAL);
        }
        if perms.len() > PERMS_MAX {
            return Err(Errno::E2BIG);
        }
        match path {
            path::INTRODUCE => self.introduce_perms = perms.into(),
            path::RELEASE => self.release_perms = perms.into(),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// Does several things at once: all of them if `f` returns `Ok`, none if it returns an error.
    /// Watches fire afterwards. There is nobody to conflict with, so it never has to be tried again.
    ///
    /// # Errors
    /// What `f` returned.
    pub fn transact<R>(
        &mut self,
        f: impl FnOnce(&mut Transaction<'_>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let mut overlay = Overlay::default();
        let session = Session {
            tree: &mut self.tree,
            overlay: &mut overlay,
            who: CONTROL_DOMAIN,
            quota: None,
            other_bytes: 0,
            all_bytes: 0,
            transaction: false,
        };
        let result = f(&mut Transaction { session })?;
        self.commit(&overlay, None)?;
        Ok(result)
    }

    /// The nodes at and below `root`, each before its children; none if there is no such node.
    #[must_use]
    pub fn walk(&self, root: &str) -> Walk<'_> {
        self.tree.walk(root)
    }

    fn node(&self, path: &str) -> Result<&tree::Node, Errno> {
        let path = path::canonical(DomId(0), path.as_bytes())?;
        self.tree.get(&path).map(|n| &**n).ok_or(Errno::ENOENT)
    }

    // ---- watches, for the control domain --------------------------------------------------------

    /// Opens a connection for a part of the control domain, to have watches and their events of its
    /// own.
    pub fn open(&mut self) -> ConnId {
        let mut id = ConnId::Local(self.next_local);
        while self.clients.conns.contains_key(&id) {
            self.next_local = self.next_local.wrapping_add(1);
            id = ConnId::Local(self.next_local);
        }
        self.next_local = self.next_local.wrapping_add(1);
        self.clients
            .conns
            .insert(id, Connection::new(CONTROL_DOMAIN));
        id
    }

    /// Closes a connection of [`Store::open`] with its watches.
    pub fn close(&mut self, id: ConnId) {
        if matches!(id, ConnId::Local(_)) {
            self.drop_client(id);
        }
    }

    /// Watches a node and all below it, or `@introduceDomain`, or `@releaseDomain`. The watch fires once
    /// at once. Events that have not been fetched and are alike are one event, and when very many wait
    /// ([`Quota::events`]) a watch reports its own path for all: then anything below may have changed.
    ///
    /// # Errors
    /// `EEXIST` if the connection has this watch, `EINVAL` if `path` or `token` cannot be one.
    pub fn watch(&mut self, id: ConnId, path: &str, token: &str) -> Result<(), Errno> {
        let (path, token) = self.add_watch(id, path.as_bytes(), token.as_bytes())?;
        self.watches
            .first(&mut self.clients, &self.quota, id, &path, &token);
        Ok(())
    }

    /// Takes a watch away. Events that wait already stay.
    ///
    /// # Errors
    /// `ENOENT` if the connection has no such watch.
    pub fn unwatch(&mut self, id: ConnId, path: &str, token: &str) -> Result<(), Errno> {
        let (path, _) = self.watch_path(id, path.as_bytes())?;
        self.watches.remove(&mut self.clients, id, &path, token)?;
        self.clients.settle(id, false);
        Ok(())
    }

    /// Whether a domain watches a node, itself or one above it.
    #[must_use]
    pub fn is_watched(&self, domid: DomId, path: &str) -> bool {
        self.watches.has(ConnId::Domain(domid), path)
    }

    /// The next event of a connection of [`Store::open`].
    pub fn poll_event(&mut self, id: ConnId) -> Option<Event> {
        let ConnId::Local(_) = id else {
            return None;
        };
        let event = self.clients.conns.get_mut(&id)?.pop_event();
        self.watches.catch_up(&mut self.clients, &self.quota, id);
        event
    }

    /// A connection that something was queued for since it was last named here: wake the local client,
    /// or pump the domain's ring.
    pub fn next_ready(&mut self) -> Option<ConnId> {
        self.clients.ready.pop_first()
    }

    /// The absolute path that a watch is for, and how much an event's path is to be cut.
    pub(crate) fn watch_path(&self, id: ConnId, raw: &[u8]) -> Result<(Arc<str>, usize), Errno> {
        if raw.first() == Some(&b'@') {
            return path::special(raw).map(|p| (p, 0)).ok_or(Errno::EINVAL);
        }
        let domid = self.clients.conns.get(&id).ok_or(Errno::EINVAL)?.who.domid;
        let path = path::canonical(domid, raw)?;
        let relative = raw.first() != Some(&b'/');
        let cut = if relative {
            path::home(domid).len() + 1
        } else {
            0
        };
        Ok((path, cut))
    }

    pub(crate) fn add_watch(
        &mut self,
        id: ConnId,
        path: &[u8],
        token: &[u8],
    ) -> Result<(Arc<str>, Arc<str>), Errno> {
        let token = core::str::from_utf8(token).map_err(|_| Errno::EINVAL)?;
        // Its event has to fit a message.
        if path.len() + token.len() + 2 > PAYLOAD_MAX || token.contains('\0') {
            return Err(Errno::EINVAL);
        }
        let (path, cut) = self.watch_path(id, path)?;
        let (used, all) = (self.charged(id), self.all_charged());
        self.watches.add(
            &mut self.clients,
            id,
            (&path, cut),
            token,
            (&self.quota, used, all),
        )?;
        self.clients.settle(id, false);
        Ok((path, token.into()))
    }

    // ---- domains --------------------------------------------------------------------------------

    /// The store serves `domid` from now on, by [`Store::pump`] on its ring page; fires
    /// `@introduceDomain`. For a domain that is served already, its connection starts anew. A domain 0
    /// on a ring has all rights.
    ///
    /// # Errors
    /// `EINVAL` if `domid` is a reserved number.
    pub fn introduce(&mut self, domid: DomId) -> Result<(), Errno> {
        if domid >= DomId::FIRST_RESERVED {
            return Err(Errno::EINVAL);
        }
        let id = ConnId::Domain(domid);
        if self.domains.contains_key(&domid) {
            let target = self.clients.conns.get(&id).and_then(|c| c.who.target);
            self.drop_client(id);
            self.clients
                .conns
                .insert(id, Connection::new(Who { domid, target }));
            return Ok(());
        }
        self.domains.insert(domid, Domain::default());
        self.clients
            .conns
            .insert(id, Connection::new(Who::new(domid)));
        self.fire_special(path::INTRODUCE);
        Ok(())
    }

    /// Whether the store serves `domid`.
    #[must_use]
    pub fn is_introduced(&self, domid: DomId) -> bool {
        self.domains.contains_key(&domid)
    }

    /// The store serves `domid` no more, and what it has in the store goes: see [`Store::domain_died`].
    ///
    /// # Errors
    /// `ENOENT` if it is not served.
    pub fn release(&mut self, domid: DomId) -> Result<(), Errno> {
        if !self.domains.contains_key(&domid) {
            return Err(Errno::ENOENT);
        }
        self.domain_died(domid);
        Ok(())
    }

    /// The domain is gone: its connection, watches and transactions are dropped, the nodes that it owns
    /// are removed with all below them, every right that it was given is taken back (so that a later
    /// domain of this number has none of them, XSA-322), and `@releaseDomain` fires if it was served.
    /// May be called for any number at any time; domain 0 only loses its ring.
    pub fn domain_died(&mut self, domid: DomId) {
        self.drop_client(ConnId::Domain(domid));
        let served = self.domains.remove(&domid).is_some();
        if domid != DomId(0) {
            self.forget(domid);
        }
        if served {
            self.fire_special(path::RELEASE);
        }
    }

    /// The domain has shut down or crashed, but is still there: fires `@releaseDomain`, once until
    /// [`Store::domain_resumed`].
    pub fn domain_shutdown(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get_mut(&domid)
            && !domain.shutdown
        {
            domain.shutdown = true;
            self.fire_special(path::RELEASE);
        }
    }

    /// A domain that had shut down runs again.
    ///
    /// # Errors
    /// `ENOENT` if it is not served.
    pub fn domain_resumed(&mut self, domid: DomId) -> Result<(), Errno> {
        self.domains.get_mut(&domid).ok_or(Errno::ENOENT)?.shutdown = false;
        Ok(())
    }

    /// Gives `domid` all rights that `target` has, until one of them goes: for a domain that serves
    /// another as its device model.
    ///
    /// # Errors
    /// `ENOENT` if either is not served; `EINVAL` for domain 0.
    pub fn set_target(&mut self, domid: DomId, target: DomId) -> Result<(), Errno> {
        if domid == DomId(0) || target == DomId(0) {
            return Err(Errno::EINVAL);
        }
        if !self.domains.contains_key(&target) {
            return Err(Errno::ENOENT);
        }
        let conn = self
            .clients
            .conns
            .get_mut(&ConnId::Domain(domid))
            .ok_or(Errno::ENOENT)?;
        conn.who.target = Some(target);
        Ok(())
    }

    /// What a domain 0 on a ring has asked of the host.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Queues an effect; `EBUSY` if the host does not keep up.
    pub(crate) fn effect(&mut self, effect: Effect) -> Result<(), Errno> {
        if self.effects.len() >= EFFECTS_MAX {
            return Err(Errno::EBUSY);
        }
        self.effects.push_back(effect);
        Ok(())
    }

    /// What the whole store holds. When everything of a domain is gone, this is as before it came.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let conns = self.clients.conns.values();
        Stats {
            nodes: self.tree.len(),
            node_bytes: self.tree.bytes(),
            session_bytes: self.clients.held,
            watches: self.watches.len(),
            transactions: conns.clone().map(|c| c.transactions.len()).sum(),
            domains: self.domains.len(),
            owners: self.tree.owners().count(),
            connections: conns.len(),
            queued_bytes: conns.map(Connection::queued).sum(),
        }
    }

    /// What one domain has in the store; all zero for an unknown one. For domain 0 local connections
    /// are not counted.
    #[must_use]
    pub fn domain_stats(&self, domid: DomId) -> DomainStats {
        let usage = self.tree.usage(domid);
        let mut stats = DomainStats {
            nodes: usage.nodes.max(0) as u64,
            node_bytes: usage.bytes.max(0) as u64,
            ..DomainStats::default()
        };
        if let Some(conn) = self.clients.conns.get(&ConnId::Domain(domid)) {
            stats.watches = conn.watches;
            stats.transactions = conn.transactions.len();
            stats.session_bytes = conn.charged();
            stats.queued_bytes = conn.queued();
        }
        stats
    }

    // ---- within the crate -----------------------------------------------------------------------

    /// Bytes that a client's domain is charged in all.
    pub(crate) fn charged(&self, id: ConnId) -> u64 {
        self.clients.conns.get(&id).map_or(0, |conn| {
            let nodes = self.tree.usage(conn.who.domid).bytes.max(0) as u64;
            nodes.saturating_add(conn.charged())
        })
    }

    /// Bytes that all domains are charged.
    pub(crate) fn all_charged(&self) -> u64 {
        self.tree.bytes().saturating_add(self.clients.held)
    }

    /// Does something for a client, in its transaction `tx`, or at once if that is 0.
    pub(crate) fn work<R>(
        &mut self,
        id: ConnId,
        tx: u32,
        f: impl FnOnce(&mut Session<'_>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let held = self.clients.held;
        let conn = self.clients.conns.get_mut(&id).ok_or(Errno::EINVAL)?;
        let who = conn.who;
        let mut overlay = match tx {
            0 => Overlay::default(),
            _ => conn.transactions.remove(&tx).ok_or(Errno::ENOENT)?,
        };
        let quota = (!who.privileged()).then_some(&self.quota);
        let other_bytes = conn.charged();
        let result = f(&mut Session {
            tree: &mut self.tree,
            overlay: &mut overlay,
            who,
            quota,
            other_bytes,
            all_bytes: held
                .saturating_sub(conn.counted)
                .saturating_add(other_bytes)
                .saturating_add(if tx == 0 { 0 } else { OPEN }),
            transaction: tx != 0,
        });
        if tx != 0 {
            conn.transactions.insert(tx, overlay);
            return result;
        }
        let result = result?;
        self.commit(&overlay, None)?;
        Ok(result)
    }

    /// Commits an overlay, with its quota checked once more if it is a guest's transaction, and tells
    /// the watches.
    pub(crate) fn commit(&mut self, overlay: &Overlay, guest: Option<Who>) -> Result<(), Errno> {
        let quota = guest.filter(|w| !w.privileged()).map(|_| &self.quota);
        self.tree.commit(overlay, quota)?;
        for (path, touched, fire) in overlay.changes() {
            // Whoever may read the node, as it was or as it is, sees the change; whoever may list the
            // node above sees it come or go.
            let (before, now) = (touched.before.as_ref(), touched.now.as_ref());
            let (mut old_list, mut new_list) = (None, None);
            if before.is_some() != now.is_some()
                && let Some(above) = path::parent(path)
            {
                old_list = overlay.touched(above).and_then(|t| t.before.as_ref());
                new_list = self.tree.get(above);
            }
            let perms = [before, now, old_list, new_list].map(|n| n.map_or(&[][..], |n| &n.perms));
            self.watches
                .fire(&mut self.clients, &self.quota, (path, fire), &perms);
        }
        Ok(())
    }

    fn fire_special(&mut self, path: &str) {
        let perms = match path {
            path::INTRODUCE => &self.introduce_perms,
            _ => &self.release_perms,
        };
        self.watches.fire(
            &mut self.clients,
            &self.quota,
            (path, Fire::Exact),
            &[perms],
        );
    }

    /// Drops a connection with its watches and transactions.
    fn drop_client(&mut self, id: ConnId) {
        self.watches.remove_all(&mut self.clients, id);
        self.clients.settle(id, true);
        self.clients.conns.remove(&id);
        self.clients.ready.remove(&id);
    }

    /// Takes a connection's watches, transactions and buffers away, but not the connection.
    pub(crate) fn reset_client(&mut self, id: ConnId) {
        self.watches.remove_all(&mut self.clients, id);
        self.clients.settle(id, true);
        self.clients.ready.remove(&id);
        if let Some(conn) = self.clients.conns.get_mut(&id) {
            let advertised = conn.advertised;
            *conn = Connection::new(conn.who);
            conn.advertised = advertised;
        }
    }

    /// Removes everything from tree and transactions that names a domain.
    fn forget(&mut self, domid: DomId) {
        for conn in self.clients.conns.values_mut() {
            conn.transactions.values_mut().for_each(|t| t.forget(domid));
        }
        self.introduce_perms = tree::without(&self.introduce_perms, domid);
        self.release_perms = tree::without(&self.release_perms, domid);

        let mut owned: Vec<Arc<str>> = Vec::new();
        let mut named: Vec<Arc<str>> = Vec::new();
        for (path, node) in self.tree.iter() {
            if node.owner() == domid {
                owned.push(path.clone());
            } else if node.perms.iter().any(|p| p.domid == domid) {
                named.push(path.clone());
            }
        }
        // Domain 0 has no quota and nothing else happens meanwhile, so nothing here can fail but the
        // removal of what went with its parent.
        let _ = self.transact(|t| {
            for path in named {
                let _ = t.session.strip(&path, domid);
            }
            for path in owned {
                match &*path {
                    "/" => t.session.set_perms("/", &[Perm::none(DomId(0))])?,
                    _ => {
                        let _ = t.session.rm(&path);
                    }
                }
            }
            Ok(())
        });
        // Last, so that a domain that acted for it is told like the others.
        for conn in self.clients.conns.values_mut() {
            conn.who.target = conn.who.target.filter(|t| *t != domid);
        }
    }
}

/// Several operations that happen together: see [`Store::transact`]. The methods are as those of
/// [`Store`], and see what the ones before them did.
#[derive(Debug)]
pub struct Transaction<'a> {
    session: Session<'a>,
}

impl Transaction<'_> {
    /// See [`Store::read`].
    ///
    /// # Errors
    /// See there.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, Errno> {
        let path = path::canonical(DomId(0), path.as_bytes())?;
        Ok(self.session.read(&path)?.value.to_vec())
    }

    /// See [`Store::exists`].
    pub fn exists(&mut self, path: &str) -> bool {
        self.read(path).is_ok()
    }

    /// See [`Store::ls`].
    ///
    /// # Errors
    /// See there.
    pub fn ls(&mut self, path: &str) -> Result<Vec<String>, Errno> {
        let path = path::canonical(DomId(0), path.as_bytes())?;
        let node = self.session.read(&path)?;
        Ok(node.children.iter().map(|n| String::from(&**n)).collect())
    }

    /// See [`Store::get_perms`]; nodes only.
    ///
    /// # Errors
    /// See there.
    pub fn get_perms(&mut self, path: &str) -> Result<Vec<Perm>, Errno> {
        let path = path::canonical(DomId(0), path.as_bytes())?;
        Ok(self.session.read(&path)?.perms.to_vec())
    }

    /// See [`Store::write`].
    ///
    /// # Errors
    /// See there.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Errno> {
        if value.len() > PAYLOAD_MAX {
            return Err(Errno::E2BIG);
        }
        self.session
            .write(&path::canonical(DomId(0), path.as_bytes())?, value)
    }

    /// See [`Store::mkdir`].
    ///
    /// # Errors
    /// See there.
    pub fn mkdir(&mut self, path: &str) -> Result<(), Errno> {
        self.session
            .mkdir(&path::canonical(DomId(0), path.as_bytes())?)
    }

    /// See [`Store::rm`].
    ///
    /// # Errors
    /// See there.
    pub fn rm(&mut self, path: &str) -> Result<(), Errno> {
        self.session
            .rm(&path::canonical(DomId(0), path.as_bytes())?)
    }

    /// See [`Store::set_perms`]; nodes only.
    ///
    /// # Errors
    /// See there.
    pub fn set_perms(&mut self, path: &str, perms: &[Perm]) -> Result<(), Errno> {
        if perms.len() > PERMS_MAX {
            return Err(Errno::E2BIG);
        }
        self.session
            .set_perms(&path::canonical(DomId(0), path.as_bytes())?, perms)
    }
}
