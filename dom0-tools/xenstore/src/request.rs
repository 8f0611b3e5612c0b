// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests of the wire protocol (`docs/misc/xenstore.txt`).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_abi::io::xs_wire::{self, MsgType as Op, PAYLOAD_MAX, XsdSockmsg};
use guest_abi::{DomId, Errno, Gfn, Port};

use crate::conn::{ConnId, HEAD, OPEN};
use crate::path;
use crate::perm::{Perm, Who, parse_domid};
use crate::store::{Effect, Store};
use crate::tree::Node;

/// The whole payload: one string with its NUL.
fn one(payload: &[u8]) -> Result<&[u8], Errno> {
    match payload.split_last() {
        Some((0, text)) if !text.contains(&0) => Ok(text),
        _ => Err(Errno::EINVAL),
    }
}

/// The whole payload: two strings, each with its NUL.
fn two(payload: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let mut args = strings(payload)?;
    match (args.next(), args.next(), args.next()) {
        (Some(a), Some(b), None) => Ok((a, b)),
        _ => Err(Errno::EINVAL),
    }
}

/// The whole payload: strings, each with its NUL.
fn strings(payload: &[u8]) -> Result<impl Iterator<Item = &[u8]>, Errno> {
    match payload.split_last() {
        Some((0, text)) => Ok(text.split(|b| *b == 0)),
        _ => Err(Errno::EINVAL),
    }
}

/// The payload's first string and what comes after its NUL.
fn first(payload: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let nul = payload.iter().position(|b| *b == 0).ok_or(Errno::EINVAL)?;
    let (text, rest) = payload.split_at_checked(nul).ok_or(Errno::EINVAL)?;
    Ok((text, rest.get(1..).unwrap_or_default()))
}

fn number<T: core::str::FromStr>(text: &[u8]) -> Result<T, Errno> {
    core::str::from_utf8(text)
        .ok()
        .and_then(|t| t.parse().ok())
        .ok_or(Errno::EINVAL)
}

fn domid(text: &[u8]) -> Result<DomId, Errno> {
    parse_domid(text).ok_or(Errno::EINVAL)
}

fn joined<T: AsRef<[u8]>>(parts: impl Iterator<Item = T>) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(part.as_ref());
        out.push(0);
    }
    out
}

fn text(s: &str) -> Vec<u8> {
    joined(core::iter::once(s))
}

fn perms_text(perms: &[Perm]) -> Vec<u8> {
    joined(perms.iter().map(Perm::to_string))
}

/// The children from byte `offset` of their list on (which may be within a name): the node's generation, as many names
/// as fit, and an empty name if the list ends with them.
fn directory_part(node: &Node, offset: usize) -> Vec<u8> {
    let mut out = text(&node.generation.to_string());
    let mut at = 0_usize;
    for name in &node.children {
        let skip = offset.saturating_sub(at);
        at += name.len() + 1;
        // Nothing of it is left if `offset` is beyond its NUL.
        let Some(rest) = name.as_bytes().get(skip..) else {
            continue;
        };
        // One byte is kept for the end.
        if out.len() + rest.len() + 2 > PAYLOAD_MAX {
            return out;
        }
        out.extend_from_slice(rest);
        out.push(0);
    }
    out.push(0);
    out
}

impl Store {
    /// How many bytes the domain has to send for the head or the payload of its present request to be
    /// complete; 0 if its requests are not read at present.
    pub(crate) fn wanted(&self, domid: DomId) -> usize {
        let Some(conn) = self.clients.conns.get(&ConnId::Domain(domid)) else {
            return 0;
        };
        if conn.accepts(&self.quota) {
            conn.missing()
        } else {
            0
        }
    }

    /// Takes bytes that a domain sent and carries out the requests that they complete. Returns how many
    /// it took: fewer than there are while too many replies wait for the domain to fetch them
    /// ([`Store::output`]). [`Store::pump`] does this for a ring.
    ///
    /// # Errors
    /// `EINVAL` if the domain is not served, or not any more for it broke the protocol by announcing a
    /// payload of more than 4096 bytes.
    pub fn input(&mut self, domid: DomId, bytes: &[u8]) -> Result<usize, Errno> {
        let id = ConnId::Domain(domid);
        let mut used = 0;
        loop {
            let conn = self.clients.conns.get_mut(&id).ok_or(Errno::EINVAL)?;
            if conn.failed.is_some() {
                return Err(Errno::EINVAL);
            }
            let rest = bytes.get(used..).unwrap_or_default();
            let missing = conn.missing();
            let take = rest.get(..missing.min(rest.len())).unwrap_or_default();
            if take.is_empty() || !conn.accepts(&self.quota) {
                return Ok(used);
            }
            used += take.len();
            conn.input.reserve_exact(missing);
            conn.input.extend_from_slice(take);
            match conn.head() {
                Some(head) if head.len as usize > PAYLOAD_MAX => {
                    self.fail(id, xs_wire::ERROR_PROTO);
                    return Err(Errno::EINVAL);
                }
                Some(head) if conn.missing() == 0 => {
                    let message = core::mem::take(&mut conn.input);
                    self.request(id, head, message.get(HEAD..).unwrap_or_default());
                }
                _ => {}
            }
        }
    }

    /// Moves what waits for a domain into `buf`; returns how many bytes. [`Store::pump`] does this for a
    /// ring.
    pub fn output(&mut self, domid: DomId, buf: &mut [u8]) -> usize {
        let id = ConnId::Domain(domid);
        let mut done = 0;
        loop {
            let Some(conn) = self.clients.conns.get_mut(&id) else {
                return done;
            };
            let n = conn.output(buf.get_mut(done..).unwrap_or_default());
            done += n;
            self.watches.catch_up(&mut self.clients, &self.quota, id);
            if n == 0 {
                return done;
            }
        }
    }

    /// Stops serving a connection.
    pub(crate) fn fail(&mut self, id: ConnId, why: u32) {
        self.reset_client(id);
        if let Some(conn) = self.clients.conns.get_mut(&id) {
            conn.failed = Some(why);
        }
    }

    /// Carries out one request and queues its reply.
    fn request(&mut self, id: ConnId, head: XsdSockmsg, payload: &[u8]) {
        let mut fired = None;
        let result = self.dispatch(id, head, payload, &mut fired);
        self.clients.settle(id, false);
        let (kind, payload) = match result {
            Ok(payload) if payload.len() <= PAYLOAD_MAX => (head.kind, payload),
            Ok(_) => (Op::Error.number(), text(Errno::E2BIG.name())),
            Err(e) => (Op::Error.number(), text(e.name())),
        };
        if let Some(conn) = self.clients.conns.get_mut(&id) {
            conn.reply(
                XsdSockmsg {
                    kind,
                    len: payload.len() as u32,
                    ..head
                },
                &payload,
            );
            self.clients.ready.insert(id);
        }
        if let Some((path, token)) = fired {
            self.watches
                .first(&mut self.clients, &self.quota, id, &path, &token);
        }
    }

    /// Carries out one request. `fired` gets a new watch, which is to fire after the reply.
    fn dispatch(
        &mut self,
        id: ConnId,
        head: XsdSockmsg,
        payload: &[u8],
        fired: &mut Option<(Arc<str>, Arc<str>)>,
    ) -> Result<Vec<u8>, Errno> {
        let op = Op::from_number(head.kind).ok_or(Errno::ENOSYS)?;
        let tx = head.tx_id;
        let conn = self.clients.conns.get(&id).ok_or(Errno::EINVAL)?;
        let who = conn.who;
        if tx != 0 && !conn.transactions.contains_key(&tx) {
            return Err(Errno::ENOENT);
        }
        let privileged = matches!(
            op,
            Op::Control
                | Op::Introduce
                | Op::Release
                | Op::Resume
                | Op::SetTarget
                | Op::IsDomainIntroduced
        );
        if privileged && !who.privileged() {
            return Err(Errno::EACCES);
        }
        let path = |raw: &[u8]| path::canonical(who.domid, raw);
        match op {
            Op::Read => {
                let path = path(one(payload)?)?;
                return self.work(id, tx, |s| Ok(s.read(&path)?.value.to_vec()));
            }
            Op::Directory => {
                let path = path(one(payload)?)?;
                return self.work(id, tx, |s| {
                    Ok(joined(s.read(&path)?.children.iter().map(|n| n.as_bytes())))
                });
            }
            Op::DirectoryPart => {
                let (raw, offset) = first(payload)?;
                let (path, offset) = (path(raw)?, number(one(offset)?)?);
                return self.work(id, tx, |s| Ok(directory_part(&*s.read(&path)?, offset)));
            }
            Op::GetPerms => return self.wire_get_perms(id, tx, who, one(payload)?),
            Op::SetPerms => self.wire_set_perms(id, tx, who, payload)?,
            Op::Write => {
                let (raw, value) = first(payload)?;
                let path = path(raw)?;
                self.work(id, tx, |s| s.write(&path, value))?;
            }
            Op::Mkdir => {
                let path = path(one(payload)?)?;
                self.work(id, tx, |s| s.mkdir(&path))?;
            }
            Op::Rm => {
                let path = path(one(payload)?)?;
                self.work(id, tx, |s| s.rm(&path))?;
            }
            Op::Watch => {
                let (path, token) = two(payload)?;
                *fired = Some(self.add_watch(id, path, token)?);
            }
            Op::Unwatch => {
                let (path, token) = two(payload)?;
                // No watch has a path that is none.
                let (path, _) = self.watch_path(id, path).map_err(|_| Errno::ENOENT)?;
                let token = core::str::from_utf8(token).map_err(|_| Errno::ENOENT)?;
                self.watches.remove(&mut self.clients, id, &path, token)?;
            }
            Op::ResetWatches => {
                self.watches.remove_all(&mut self.clients, id);
                if let Some(conn) = self.clients.conns.get_mut(&id) {
                    conn.transactions.clear();
                }
            }
            Op::TransactionStart => return self.start(id, tx, who),
            Op::TransactionEnd => self.end(id, tx, who, one(payload)?)?,
            Op::GetDomainPath => return Ok(text(&path::home(domid(one(payload)?)?))),
            Op::IsDomainIntroduced => {
                let served = self.is_introduced(domid(one(payload)?)?);
                return Ok(text(if served { "T" } else { "F" }));
            }
            Op::Introduce => self.wire_introduce(payload)?,
            Op::Release => {
                let domid = domid(one(payload)?)?;
                if domid == DomId(0) {
                    return Err(Errno::EINVAL);
                }
                if !self.is_introduced(domid) {
                    return Err(Errno::ENOENT);
                }
                self.effect(Effect::Release { domid })?;
                self.release(domid)?;
            }
            Op::Resume => self.domain_resumed(domid(one(payload)?)?)?,
            Op::SetTarget => {
                let mut args = strings(payload)?;
                let (Some(a), Some(b)) = (args.next(), args.next()) else {
                    return Err(Errno::EINVAL);
                };
                self.set_target(domid(a)?, domid(b)?)?;
            }
            Op::Control => return self.control(payload),
            Op::WatchEvent | Op::Error => return Err(Errno::ENOSYS),
        }
        Ok(text("OK"))
    }

    fn start(&mut self, id: ConnId, tx: u32, who: Who) -> Result<Vec<u8>, Errno> {
        if tx != 0 {
            return Err(Errno::EBUSY);
        }
        let room =
            self.charged(id) < self.quota.memory && self.all_charged() + OPEN <= self.quota.total;
        let conn = self.clients.conns.get_mut(&id).ok_or(Errno::EINVAL)?;
        if !who.privileged() && (conn.transactions.len() >= self.quota.transactions || !room) {
            return Err(Errno::ENOSPC);
        }
        Ok(text(&conn.start().to_string()))
    }

    fn end(&mut self, id: ConnId, tx: u32, who: Who, verdict: &[u8]) -> Result<(), Errno> {
        let commit = match verdict {
            b"T" => true,
            b"F" => false,
            _ => return Err(Errno::EINVAL),
        };
        let conn = self.clients.conns.get_mut(&id).ok_or(Errno::EINVAL)?;
        let overlay = conn.transactions.remove(&tx).ok_or(Errno::ENOENT)?;
        if commit {
            self.commit(&overlay, Some(who))?;
        }
        Ok(())
    }

    fn special_perms(&self, raw: &[u8]) -> Result<&Arc<[Perm]>, Errno> {
        if raw == path::INTRODUCE.as_bytes() {
            Ok(&self.introduce_perms)
        } else if raw == path::RELEASE.as_bytes() {
            Ok(&self.release_perms)
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn wire_get_perms(
        &mut self,
        id: ConnId,
        tx: u32,
        who: Who,
        raw: &[u8],
    ) -> Result<Vec<u8>, Errno> {
        if raw.first() == Some(&b'@') && who.privileged() {
            return Ok(perms_text(self.special_perms(raw)?));
        }
        let path = path::canonical(who.domid, raw)?;
        self.work(id, tx, |s| Ok(perms_text(&s.read(&path)?.perms)))
    }

    fn wire_set_perms(
        &mut self,
        id: ConnId,
        tx: u32,
        who: Who,
        payload: &[u8],
    ) -> Result<(), Errno> {
        let (raw, rest) = first(payload)?;
        let mut perms = Vec::new();
        for entry in strings(rest)? {
            perms.push(Perm::parse(entry).ok_or(Errno::EINVAL)?);
        }
        if raw.first() == Some(&b'@') {
            if !who.privileged() {
                return Err(Errno::EACCES);
            }
            self.special_perms(raw)?;
            let name = core::str::from_utf8(raw).map_err(|_| Errno::EINVAL)?;
            return self.set_special_perms(name, &perms);
        }
        let path = path::canonical(who.domid, raw)?;
        if !who.privileged() {
            if perms.len() > self.quota.perms {
                return Err(Errno::ENOSPC);
            }
            let there = |p: &Perm| p.domid == DomId(0) || self.domains.contains_key(&p.domid);
            if perms.first().is_some_and(|owner| !there(owner)) {
                return Err(Errno::ENOENT);
            }
            // A right for a domain that is not there would be for the next one of that number.
            perms.retain(there);
        }
        self.work(id, tx, |s| s.set_perms(&path, &perms))
    }

    fn wire_introduce(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let mut args = strings(payload)?;
        let (Some(a), Some(b), Some(c)) = (args.next(), args.next(), args.next()) else {
            return Err(Errno::EINVAL);
        };
        let domid = domid(a)?;
        // The frame is in signed decimal.
        let gfn: i64 = number(b)?;
        if domid == DomId(0) {
            return Err(Errno::EINVAL);
        }
        let (gfn, port) = (Gfn(gfn.cast_unsigned()), Port(number(c)?));
        self.effect(Effect::Introduce { domid, gfn, port })?;
        self.introduce(domid)
    }

    fn control(&self, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let (command, _) = first(payload)?;
        let report: String = match command {
            b"help" => "help\nquota\nstats\n".into(),
            b"quota" => {
                let q = &self.quota;
                format!(
                    "nodes {}\nnode-size {}\nperms {}\ndepth {}\nwatches {}\ntransactions {}\n\
                     transaction-nodes {}\nmemory {}\noutstanding {}\nevents {}\n",
                    q.nodes,
                    q.node_size,
                    q.perms,
                    q.depth,
                    q.watches,
                    q.transactions,
                    q.transaction_nodes,
                    q.memory,
                    q.outstanding,
                    q.events,
                )
            }
            b"stats" => {
                let s = self.stats();
                format!(
                    "nodes {}\nnode-bytes {}\nwatches {}\ntransactions {}\ndomains {}\n",
                    s.nodes, s.node_bytes, s.watches, s.transactions, s.domains
                )
            }
            _ => return Err(Errno::EINVAL),
        };
        Ok(text(&report))
    }
}
