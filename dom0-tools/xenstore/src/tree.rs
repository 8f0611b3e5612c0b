// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tree and the overlays in which it is changed.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use guest_abi::{DomId, Errno};

use crate::path;
use crate::perm::{Perm, Rights, Who};
use crate::quota::Quota;

/// What a node is charged for beside its path, value and permissions.
const NODE_OVERHEAD: usize = 128;
/// What a node touched by a transaction is charged for beside its path and contents.
const TOUCH_OVERHEAD: usize = 128;

/// A node. Nodes are never changed, only replaced.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Arc<[u8]>,
    pub(crate) perms: Arc<[Perm]>,
    /// Names of the children, oldest first.
    pub(crate) children: Vec<Arc<str>>,
    /// A number that no other node, or earlier state of this one, ever had.
    pub(crate) generation: u64,
}

impl Node {
    pub(crate) fn owner(&self) -> DomId {
        self.perms.first().map_or(DomId(0), |p| p.domid)
    }

    /// Bytes that the owner is charged. Independent of the children, so that a domain's account
    /// changes with its own nodes only; a child's name is charged to the child.
    fn cost(&self, path: &str) -> u64 {
        let perms = core::mem::size_of_val::<[Perm]>(&self.perms);
        (NODE_OVERHEAD + path.len() + path::name(path).len() + self.value.len() + perms) as u64
    }

    /// Bytes of memory that a copy of the node takes which only a transaction has.
    fn held(&self, path: &str) -> u64 {
        let names = core::mem::size_of_val::<[Arc<str>]>(&self.children) as u64;
        self.cost(path).saturating_add(names)
    }
}

/// What a domain owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) nodes: i64,
    pub(crate) bytes: i64,
}

impl Usage {
    fn add(&mut self, other: Self) {
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// All nodes by path, and what each domain owns of them.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    usage: BTreeMap<DomId, Usage>,
    /// Bytes charged for all nodes.
    bytes: i64,
    generation: u64,
}

impl Tree {
    /// The root alone: domain 0's, private.
    pub(crate) fn new() -> Self {
        let root = Node {
            value: Arc::from([]),
            perms: Arc::from([Perm::none(DomId(0))]),
            children: Vec::new(),
            generation: 0,
        };
        let usage = Usage {
            nodes: 1,
            bytes: root.cost("/") as i64,
        };
        Self {
            bytes: usage.bytes,
            nodes: BTreeMap::from([(Arc::from("/"), Arc::new(root))]),
            usage: BTreeMap::from([(DomId(0), usage)]),
            generation: 1,
        }
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Arc<Node>> {
        self.nodes.get(path)
    }

    pub(crate) fn usage(&self, domid: DomId) -> Usage {
        self.usage.get(&domid).copied().unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes charged for all nodes of all domains.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.max(0) as u64
    }

    /// Bytes charged for all nodes if they grew by `bytes`.
    fn with(&self, bytes: i64) -> u64 {
        self.bytes.saturating_add(bytes).max(0) as u64
    }

    /// Domains that own something.
    pub(crate) fn owners(&self) -> impl Iterator<Item = DomId> + '_ {
        self.usage.keys().copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Node>)> {
        self.nodes.iter()
    }

    /// Makes the overlay's changes the tree's, if no node that it touched was changed since.
    ///
    /// # Errors
    /// `EAGAIN` if one was, or if the overlay names a domain that has died since; `ENOSPC` if a domain
    /// that it charges has no room any more and `quota` is given. The tree is unchanged then.
    pub(crate) fn commit(&mut self, overlay: &Overlay, quota: Option<&Quota>) -> Result<(), Errno> {
        let same = |path: &Arc<str>, t: &Touched| match (self.nodes.get(path), &t.before) {
            (None, None) => true,
            (Some(now), Some(seen)) => now.generation == seen.generation,
            _ => false,
        };
        if overlay.doomed || !overlay.touched.iter().all(|(p, t)| same(p, t)) {
            return Err(Errno::EAGAIN);
        }
        for (domid, delta) in overlay.delta.iter().filter(|(d, _)| **d != DomId(0)) {
            quota.map_or(Ok(()), |quota| room(self.usage(*domid), *delta, 0, quota))?;
        }
        if quota.is_some_and(|q| overlay.growth() > 0 && self.with(overlay.growth()) > q.total) {
            return Err(Errno::ENOSPC);
        }
        for (path, touched) in &overlay.touched {
            match (&touched.before, &touched.now) {
                (Some(a), Some(b)) if Arc::ptr_eq(a, b) => {}
                (None, None) => {}
                (_, Some(node)) => {
                    self.nodes.insert(path.clone(), node.clone());
                }
                (_, None) => {
                    self.nodes.remove(path);
                }
            }
        }
        self.bytes = self.bytes.saturating_add(overlay.growth());
        for (domid, delta) in &overlay.delta {
            let usage = self.usage.entry(*domid).or_default();
            usage.add(*delta);
            if *usage == Usage::default() {
                self.usage.remove(domid);
            }
        }
        Ok(())
    }

    /// The nodes at and below `root`, each parent before its children.
    pub(crate) fn walk(&self, root: &str) -> Walk<'_> {
        let start = self.nodes.get_key_value(root);
        Walk {
            tree: self,
            base: start.map_or(0, |(p, _)| path::depth(p)),
            stack: start.into_iter().collect(),
        }
    }
}

/// Whether a domain of this usage may grow by `delta`, `other` bytes being used beside the tree.
fn room(usage: Usage, delta: Usage, other: u64, quota: &Quota) -> Result<(), Errno> {
    let nodes = usage.nodes.saturating_add(delta.nodes);
    let bytes = usage
        .bytes
        .saturating_add(delta.bytes)
        .saturating_add_unsigned(other);
    let full = |now: i64, most: u64| now > i64::try_from(most).unwrap_or(i64::MAX);
    if (delta.nodes > 0 && full(nodes, quota.nodes))
        || (delta.bytes > 0 && full(bytes, quota.memory))
    {
        return Err(Errno::ENOSPC);
    }
    Ok(())
}

/// A node as [`Walk`] shows it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Absolute path.
    pub path: &'a str,
    /// Levels below the path that the walk began at.
    pub depth: usize,
    /// Any bytes.
    pub value: &'a [u8],
    /// Owner first.
    pub perms: &'a [Perm],
}

/// All nodes at and below one, each before its children, children in the order of their making.
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    base: usize,
    stack: Vec<(&'a Arc<str>, &'a Arc<Node>)>,
}

impl<'a> Iterator for Walk<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let (path, node) = self.stack.pop()?;
        let children = node.children.iter().rev();
        self.stack.extend(
            children.filter_map(|name| self.tree.nodes.get_key_value(&*path::child(path, name))),
        );
        Some(Entry {
            path,
            depth: path::depth(path).saturating_sub(self.base),
            value: &node.value,
            perms: &node.perms,
        })
    }
}

/// Which watches a change fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fire {
    /// Those on the very node: it went with its parent, whose removal the watches above are told of.
    Exact,
    /// Those on the node and on all above.
    Above,
}

/// A node that a transaction has read or changed.
#[derive(Debug)]
pub(crate) struct Touched {
    /// As it was when first touched; `None`: was not there.
    pub(crate) before: Option<Arc<Node>>,
    /// As the transaction has it; `None`: is not there.
    pub(crate) now: Option<Arc<Node>>,
    pub(crate) fire: Option<Fire>,
}

impl Touched {
    /// Bytes of memory that are held for what was put in place of the node.
    fn held(&self, path: &str) -> u64 {
        match (&self.before, &self.now) {
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => 0,
            (_, now) => now.as_ref().map_or(0, |n| n.held(path)),
        }
    }
}

/// A transaction's view: the nodes that it touched.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    touched: BTreeMap<Arc<str>, Touched>,
    /// Paths with a [`Touched::fire`], in the order of the first change.
    order: Vec<Arc<str>>,
    delta: BTreeMap<DomId, Usage>,
    /// Bytes that the transaction itself is charged: for what it touched, as that was, and for what it has
    /// in the place of that.
    pub(crate) cost: u64,
    /// Cannot be committed any more.
    doomed: bool,
}

impl Overlay {
    /// The changes that watches are to be told of, in order.
    pub(crate) fn changes(&self) -> impl Iterator<Item = (&Arc<str>, &Touched, Fire)> {
        self.order.iter().filter_map(|path| {
            let touched = self.touched.get(path)?;
            let there = touched.before.is_some() || touched.now.is_some();
            Some((path, touched, touched.fire.filter(|_| there)?))
        })
    }

    /// Bytes by which all nodes together grow.
    fn growth(&self) -> i64 {
        let bytes = self.delta.values().map(|d| d.bytes);
        bytes.fold(0, i64::saturating_add)
    }

    pub(crate) fn touched(&self, path: &str) -> Option<&Touched> {
        self.touched.get(path)
    }

    /// Makes the overlay fail to commit if a change in it gives `domid` anything.
    pub(crate) fn forget(&mut self, domid: DomId) {
        let named = |t: &Touched| {
            t.now
                .iter()
                .any(|n| n.perms.iter().any(|p| p.domid == domid))
        };
        self.doomed |= self.touched.values().any(named);
    }
}

/// Somebody at work in an overlay: all operations on nodes, with their permission and quota checks.
/// Each has its whole effect on the overlay or none.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) overlay: &'a mut Overlay,
    pub(crate) who: Who,
    /// `None` for domain 0.
    pub(crate) quota: Option<&'a Quota>,
    /// Bytes that the caller's domain is charged beside nodes and this overlay.
    pub(crate) other_bytes: u64,
    /// Bytes that all domains are charged beside nodes and this overlay.
    pub(crate) all_bytes: u64,
    /// Whether the overlay outlives the request, and so is charged.
    pub(crate) transaction: bool,
}

impl Session<'_> {
    /// The node at `path` as this transaction sees it.
    fn get(&mut self, path: &str) -> Result<Option<Arc<Node>>, Errno> {
        if let Some(touched) = self.overlay.touched.get(path) {
            return Ok(touched.now.clone());
        }
        let (key, node) = match self.tree.nodes.get_key_value(path) {
            Some((key, node)) => (key.clone(), Some(node.clone())),
            None => (Arc::from(path), None),
        };
        if self.transaction {
            let contents = node.as_ref().map_or(0, |n| n.cost(path));
            let cost = contents.saturating_add((TOUCH_OVERHEAD + path.len()) as u64);
            if let Some(quota) = self.quota {
                let grows = Usage {
                    nodes: 0,
                    bytes: i64::try_from(cost).unwrap_or(i64::MAX),
                };
                if self.overlay.touched.len() >= quota.transaction_nodes {
                    return Err(Errno::ENOSPC);
                }
                self.room(self.who.domid, grows)?;
            }
            self.overlay.cost = self.overlay.cost.saturating_add(cost);
        }
        let touched = Touched {
            before: node.clone(),
            now: node.clone(),
            fire: None,
        };
        self.overlay.touched.insert(key, touched);
        Ok(node)
    }

    /// Replaces nodes that were got before, all or none.
    ///
    /// # Errors
    /// `ENOSPC` if the caller's domain may not hold that much in a transaction.
    fn replace(&mut self, all: Vec<(&str, Option<Node>, Option<Fire>)>) -> Result<(), Errno> {
        if self.transaction {
            let (mut before, mut after) = (0_u64, 0_u64);
            for (path, node, _) in &all {
                let old = self.overlay.touched.get(*path).map_or(0, |t| t.held(path));
                before = before.saturating_add(old);
                after = after.saturating_add(node.as_ref().map_or(0, |n| n.held(path)));
            }
            let bytes = i64::try_from(after.saturating_sub(before)).unwrap_or(i64::MAX);
            self.room(self.who.domid, Usage { nodes: 0, bytes })?;
            self.overlay.cost = self
                .overlay
                .cost
                .saturating_sub(before)
                .saturating_add(after);
        }
        for (path, node, fire) in all {
            self.set(path, node, fire);
        }
        Ok(())
    }

    /// Replaces the node at `path`, which was got before. Cannot fail.
    fn set(&mut self, path: &str, mut node: Option<Node>, fire: Option<Fire>) {
        let generation = self.tree.generation;
        self.tree.generation = generation.wrapping_add(1);
        let Some((key, _)) = self.overlay.touched.get_key_value(path) else {
            return;
        };
        let key = key.clone();
        let Some(touched) = self.overlay.touched.get_mut(path) else {
            return;
        };
        if let Some(old) = &touched.now {
            let cost = old.cost(path) as i64;
            let delta = self.overlay.delta.entry(old.owner()).or_default();
            delta.add(Usage {
                nodes: -1,
                bytes: -cost,
            });
        }
        if let Some(new) = &mut node {
            new.generation = generation;
            let cost = new.cost(path) as i64;
            let delta = self.overlay.delta.entry(new.owner()).or_default();
            delta.add(Usage {
                nodes: 1,
                bytes: cost,
            });
        }
        touched.now = node.map(Arc::new);
        if let Some(fire) = fire {
            match touched.fire {
                None => self.overlay.order.push(key),
                Some(Fire::Exact) => {}
                Some(Fire::Above) => return,
            }
            touched.fire = Some(fire);
        }
    }

    /// Whether `owner` may come to own that much more.
    fn room(&self, owner: DomId, grows: Usage) -> Result<(), Errno> {
        let Some(quota) = self.quota else {
            return Ok(());
        };
        let all = self
            .tree
            .with(self.overlay.growth().saturating_add(grows.bytes))
            .saturating_add(self.overlay.cost)
            .saturating_add(self.all_bytes);
        if grows.bytes > 0 && all > quota.total {
            return Err(Errno::ENOSPC);
        }
        if owner == DomId(0) {
            return Ok(());
        }
        let other = if owner == self.who.domid {
            self.other_bytes.saturating_add(self.overlay.cost)
        } else {
            0
        };
        let mut usage = self.tree.usage(owner);
        usage.add(self.overlay.delta.get(&owner).copied().unwrap_or_default());
        room(usage, grows, other, quota)
    }

    /// The node at `path`, if the caller has the rights that it needs.
    ///
    /// # Errors
    /// `ENOENT` if it is not there and the caller may know, for it has some of these rights to the
    /// nearest node above; `EACCES` otherwise.
    fn node(&mut self, path: &str, need: Rights) -> Result<Arc<Node>, Errno> {
        if let Some(node) = self.get(path)? {
            let allowed = self.who.rights(&node.perms).has(need);
            return if allowed {
                Ok(node)
            } else {
                Err(Errno::EACCES)
            };
        }
        let mut at = path;
        while let Some(above) = path::parent(at) {
            if let Some(node) = self.get(above)? {
                let allowed = self.who.rights(&node.perms).has_any(need);
                return Err(if allowed {
                    Errno::ENOENT
                } else {
                    Errno::EACCES
                });
            }
            at = above;
        }
        Err(Errno::ENOENT)
    }

    /// A node that the caller may read.
    pub(crate) fn read(&mut self, path: &str) -> Result<Arc<Node>, Errno> {
        self.node(path, Rights::READ)
    }

    /// Sets a value, making the node and all missing ones above.
    pub(crate) fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Errno> {
        if self.quota.is_some_and(|q| value.len() > q.node_size) {
            return Err(Errno::ENOSPC);
        }
        match self.node(path, Rights::WRITE) {
            Ok(node) => {
                let bytes = value.len() as i64 - node.value.len() as i64;
                self.room(node.owner(), Usage { nodes: 0, bytes })?;
                let node = Node {
                    value: value.into(),
                    ..Node::clone(&node)
                };
                self.replace(vec![(path, Some(node), Some(Fire::Above))])
            }
            Err(Errno::ENOENT) => self.create(path, value),
            Err(e) => Err(e),
        }
    }

    /// Makes a node and all missing ones above, if it is not there.
    pub(crate) fn mkdir(&mut self, path: &str) -> Result<(), Errno> {
        match self.node(path, Rights::WRITE) {
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => self.create(path, &[]),
            Err(e) => Err(e),
        }
    }

    /// Makes the missing node `path`, the caller having the right to.
    fn create(&mut self, path: &str, value: &[u8]) -> Result<(), Errno> {
        if self.quota.is_some_and(|q| path::depth(path) > q.depth) {
            return Err(Errno::ENOSPC);
        }
        let mut missing = Vec::new();
        let mut at = path;
        let (above, parent) = loop {
            missing.push(at);
            at = path::parent(at).ok_or(Errno::EINVAL)?;
            if let Some(node) = self.get(at)? {
                break (at, node);
            }
        };
        // New nodes inherit the permissions; what an unprivileged domain makes is its own.
        let perms = match parent.perms.split_first() {
            Some((owner, others)) if !self.who.privileged() => {
                let owner = Perm {
                    domid: self.who.domid,
                    access: owner.access,
                };
                core::iter::once(owner)
                    .chain(others.iter().copied())
                    .collect()
            }
            _ => parent.perms.clone(),
        };
        let nodes: Vec<(&str, Node)> = missing
            .iter()
            .enumerate()
            .map(|(i, at)| {
                let below = i.checked_sub(1).and_then(|i| missing.get(i));
                let node = Node {
                    value: if i == 0 { value.into() } else { Arc::from([]) },
                    perms: perms.clone(),
                    children: below.map(|p| path::name(p).into()).into_iter().collect(),
                    generation: 0,
                };
                (*at, node)
            })
            .collect();
        let owner = perms.first().map_or(DomId(0), |p| p.domid);
        let bytes: u64 = nodes.iter().map(|(at, n)| n.cost(at)).sum();
        self.room(
            owner,
            Usage {
                nodes: nodes.len() as i64,
                bytes: bytes as i64,
            },
        )?;

        let mut parent = Node::clone(&parent);
        if let Some(top) = missing.last() {
            parent.children.push(path::name(top).into());
        }
        let made = nodes.into_iter().map(|(at, node)| {
            let fire = (at == path).then_some(Fire::Above);
            (at, Some(node), fire)
        });
        let parent = core::iter::once((above, Some(parent), None));
        self.replace(parent.chain(made).collect())
    }

    /// Removes a node and all below it. Only its own permissions matter.
    pub(crate) fn rm(&mut self, path: &str) -> Result<(), Errno> {
        let found = self.node(path, Rights::WRITE);
        let Some(above) = path::parent(path) else {
            return found.and(Err(Errno::EINVAL));
        };
        match found {
            Ok(_) => {}
            // That it is gone already is fine where its parent is there.
            Err(Errno::ENOENT) if self.get(above)?.is_some() => return Ok(()),
            Err(e) => return Err(e),
        }
        let mut all: Vec<Arc<str>> = Vec::new();
        let mut stack: Vec<Arc<str>> = Vec::from([Arc::from(path)]);
        while let Some(at) = stack.pop() {
            if let Some(node) = self.get(&at)? {
                stack.extend(
                    node.children
                        .iter()
                        .rev()
                        .map(|n| path::child(&at, n).into()),
                );
            }
            all.push(at);
        }
        let parent = self.get(above)?.map(|parent| {
            let mut parent = Node::clone(&parent);
            parent.children.retain(|n| &**n != path::name(path));
            (above, Some(parent), None)
        });
        let gone = all.iter().map(|at| {
            let fire = if &**at == path {
                Fire::Above
            } else {
                Fire::Exact
            };
            (&**at, None, Some(fire))
        });
        self.replace(gone.chain(parent).collect())
    }

    /// Sets permissions; the first entry is the owner's.
    pub(crate) fn set_perms(&mut self, path: &str, perms: &[Perm]) -> Result<(), Errno> {
        let owner = perms.first().ok_or(Errno::EINVAL)?.domid;
        if self.quota.is_some_and(|q| perms.len() > q.perms) {
            return Err(Errno::ENOSPC);
        }
        let node = self.node(path, Rights::OWN)?;
        if !self.who.privileged() && owner != node.owner() {
            return Err(Errno::EPERM);
        }
        let node = Node {
            perms: perms.into(),
            ..Node::clone(&node)
        };
        self.replace(vec![(path, Some(node), Some(Fire::Above))])
    }

    /// Takes `domid` out of a node's permissions, for it has died.
    pub(crate) fn strip(&mut self, path: &str, domid: DomId) -> Result<(), Errno> {
        if let Some(node) = self.get(path)? {
            let node = Node {
                perms: without(&node.perms, domid),
                ..Node::clone(&node)
            };
            self.set(path, Some(node), None);
        }
        Ok(())
    }
}

/// Permissions without the entries, but the owner's, that name `domid`.
pub(crate) fn without(perms: &[Perm], domid: DomId) -> Arc<[Perm]> {
    let keep = |(i, p): (usize, &Perm)| (i == 0 || p.domid != domid).then_some(*p);
    perms.iter().enumerate().filter_map(keep).collect()
}
