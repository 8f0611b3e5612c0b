// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watches, found by path.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_abi::Errno;
use guest_abi::io::xs_wire::PAYLOAD_MAX;

use crate::conn::{ConnId, Connection, Event};
use crate::path;
use crate::perm::Perm;
use crate::quota::Quota;
use crate::tree::Fire;

/// What a watch is charged for beside its path and token.
const WATCH_OVERHEAD: usize = 128;

#[derive(Debug)]
struct Watch {
    conn: ConnId,
    token: Arc<str>,
    /// Bytes to cut from the front of an event's path, which was given as relative.
    cut: usize,
    /// It fired, and its client has not been told for want of room.
    missed: bool,
}

impl Watch {
    fn cost(&self, path: &str) -> u64 {
        (WATCH_OVERHEAD + path.len() + self.token.len()) as u64
    }

    /// The event for a change of `changed`, seen by this watch on `path`.
    fn event(&self, path: &str, changed: &str) -> Event {
        let form = |p: &str| Event {
            path: String::from(p.get(self.cut..).unwrap_or(p)),
            token: self.token.clone(),
        };
        // A long path and a long token may not fit together, the watch's own path always does.
        let event = form(changed);
        if event.wire_len() <= PAYLOAD_MAX {
            event
        } else {
            form(path)
        }
    }

    /// Queues an event for the client, or remembers that it is owed one.
    fn tell(&mut self, clients: &mut Clients, quota: &Quota, event: Event) {
        if !clients.deliver(self.conn, event, quota) {
            self.missed = true;
            if let Some(conn) = clients.conns.get_mut(&self.conn) {
                conn.missed = conn.missed.saturating_add(1);
            }
        }
    }
}

/// All watches of all clients.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    by_path: BTreeMap<Arc<str>, Vec<Watch>>,
}

/// The clients, and those that have something to fetch.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    pub(crate) conns: BTreeMap<ConnId, Connection>,
    pub(crate) ready: alloc::collections::BTreeSet<ConnId>,
    /// Bytes charged for watches and open transactions of all clients, as last settled.
    pub(crate) held: u64,
}

impl Clients {
    /// Brings [`Clients::held`] up to date with one client, that has done something or is about to go.
    pub(crate) fn settle(&mut self, id: ConnId, gone: bool) {
        if let Some(conn) = self.conns.get_mut(&id) {
            let now = if gone { 0 } else { conn.charged() };
            self.held = self.held.saturating_sub(conn.counted).saturating_add(now);
            conn.counted = now;
        }
    }

    /// Queues `event`; false if there is no room.
    fn deliver(&mut self, id: ConnId, event: Event, quota: &Quota) -> bool {
        let Some(conn) = self.conns.get_mut(&id) else {
            return true;
        };
        self.ready.insert(id);
        conn.event(event, quota)
    }
}

impl Watches {
    pub(crate) fn len(&self) -> usize {
        self.by_path.values().map(Vec::len).sum()
    }

    /// Sets a watch; `cut` bytes of an event's path are not reported.
    ///
    /// # Errors
    /// `EEXIST` if the client has it already, `E2BIG` or `ENOSPC` beyond its quota (`used` bytes being
    /// charged to its domain, and `all` to all domains).
    pub(crate) fn add(
        &mut self,
        clients: &mut Clients,
        id: ConnId,
        (path, cut): (&Arc<str>, usize),
        token: &str,
        (quota, used, all): (&Quota, u64, u64),
    ) -> Result<(), Errno> {
        let conn = clients.conns.get_mut(&id).ok_or(Errno::EINVAL)?;
        let there = self.by_path.get(path).map_or(&[][..], Vec::as_slice);
        if there.iter().any(|w| w.conn == id && *w.token == *token) {
            return Err(Errno::EEXIST);
        }
        let watch = Watch {
            conn: id,
            token: token.into(),
            cut,
            missed: false,
        };
        let cost = watch.cost(path);
        if !conn.who.privileged() {
            if conn.watches >= quota.watches {
                return Err(Errno::E2BIG);
            }
            if used.saturating_add(cost) > quota.memory
                || all.saturating_add(cost) > quota.total
                || path::depth(path) > quota.depth
            {
                return Err(Errno::ENOSPC);
            }
        }
        conn.watches = conn.watches.saturating_add(1);
        conn.watch_bytes = conn.watch_bytes.saturating_add(cost);
        self.by_path.entry(path.clone()).or_default().push(watch);
        Ok(())
    }

    /// Fires a watch that was just set: each fires once at the start.
    pub(crate) fn first(
        &mut self,
        clients: &mut Clients,
        quota: &Quota,
        id: ConnId,
        path: &str,
        token: &str,
    ) {
        let list = self.by_path.get_mut(path).into_iter().flatten();
        for watch in list.filter(|w| w.conn == id && *w.token == *token) {
            let event = watch.event(path, path);
            watch.tell(clients, quota, event);
        }
    }

    /// Takes a watch away.
    ///
    /// # Errors
    /// `ENOENT` if the client has no such watch.
    pub(crate) fn remove(
        &mut self,
        clients: &mut Clients,
        id: ConnId,
        path: &str,
        token: &str,
    ) -> Result<(), Errno> {
        let list = self.by_path.get_mut(path).ok_or(Errno::ENOENT)?;
        let at = list
            .iter()
            .position(|w| w.conn == id && *w.token == *token)
            .ok_or(Errno::ENOENT)?;
        let watch = list.remove(at);
        if list.is_empty() {
            self.by_path.remove(path);
        }
        if let Some(conn) = clients.conns.get_mut(&id) {
            conn.watches = conn.watches.saturating_sub(1);
            conn.watch_bytes = conn.watch_bytes.saturating_sub(watch.cost(path));
            conn.missed = conn.missed.saturating_sub(u32::from(watch.missed));
        }
        Ok(())
    }

    /// Whether a client watches a node, itself or one above it.
    pub(crate) fn has(&self, id: ConnId, path: &str) -> bool {
        let mut at = Some(path);
        while let Some(path) = at {
            let list = self.by_path.get(path).into_iter().flatten();
            if list.into_iter().any(|w| w.conn == id) {
                return true;
            }
            at = path::parent(path);
        }
        false
    }

    /// Takes all watches of a client away.
    pub(crate) fn remove_all(&mut self, clients: &mut Clients, id: ConnId) {
        if let Some(conn) = clients.conns.get_mut(&id) {
            if conn.watches == 0 {
                return;
            }
            conn.watches = 0;
            conn.watch_bytes = 0;
            conn.missed = 0;
        }
        self.by_path.retain(|_, list| {
            list.retain(|w| w.conn != id);
            !list.is_empty()
        });
    }

    /// Tells the watches on `changed`, and on all nodes above it unless only the exact ones are meant,
    /// whose clients may read under any of `visible`.
    pub(crate) fn fire(
        &mut self,
        clients: &mut Clients,
        quota: &Quota,
        (changed, fire): (&str, Fire),
        visible: &[&[Perm]],
    ) {
        let mut at = Some(changed);
        while let Some(path) = at {
            for watch in self.by_path.get_mut(path).into_iter().flatten() {
                let Some(conn) = clients.conns.get(&watch.conn) else {
                    continue;
                };
                let who = conn.who;
                if watch.missed || !visible.iter().any(|perms| who.may_read(perms)) {
                    continue;
                }
                let event = watch.event(path, changed);
                watch.tell(clients, quota, event);
            }
            at = match fire {
                Fire::Exact => None,
                Fire::Above => path::parent(path),
            };
        }
    }

    /// Queues what a client missed, each such watch with its own path, once its queue has no events.
    pub(crate) fn catch_up(&mut self, clients: &mut Clients, quota: &Quota, id: ConnId) {
        match clients.conns.get(&id) {
            Some(conn) if conn.missed > 0 && !conn.has_events() => {}
            _ => return,
        }
        for (path, list) in &mut self.by_path {
            for watch in list.iter_mut().filter(|w| w.conn == id && w.missed) {
                if !clients.deliver(id, watch.event(path, path), quota) {
                    return;
                }
                watch.missed = false;
                if let Some(conn) = clients.conns.get_mut(&id) {
                    conn.missed = conn.missed.saturating_sub(1);
                }
            }
        }
    }
}
