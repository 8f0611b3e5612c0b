// SPDX-License-Identifier: MIT OR Apache-2.0
//! What front ends of all kinds do: nodes, states, grants, channels.

use super::{MS, PATIENCE, Served};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use el1::hvc;
use el1::shared::Shared;
use guest_abi::mem::SharedMem;
use guest_abi::{DomId, Port, calls};

/// A device's front end.
pub struct Front {
    /// How its cases' names begin.
    pub name: &'static str,
    /// Its folder in the store, and the back end's.
    pub path: String,
    pub back: String,
}

impl Served {
    pub fn front(&mut self, name: &'static str, class: &str, number: u32) -> Front {
        let path = format!("device/{class}/{number}");
        let back = self.text(&format!("{path}/backend"));
        Front { name, path, back }
    }

    /// A node's value and permissions.
    pub fn node(&mut self, path: &str) -> String {
        let path = [path.as_bytes(), b"\0"].concat();
        let value = self.ask(2, 0, &path);
        let perms = self.ask(3, 0, &path);
        format!("{value:?} {perms}")
    }

    pub fn rm(&mut self, path: &str) {
        self.call(13, 0, &[path.as_bytes(), b"\0"].concat());
    }

    /// Tells of what a new device has in its folder, and of the back end's first state.
    pub fn begin(&mut self, front: &Front) {
        let name = front.name;
        let state = self.await_state(front, &[2]);
        self.case(format!("{name}.first_state"), state);
        self.nodes(&format!("{name}.front"), &front.path);
    }

    /// Tells of a folder's nodes.
    pub fn nodes(&mut self, name: &str, folder: &str) {
        let mut keys = self.list(folder);
        keys.sort();
        for key in keys {
            let node = self.node(&format!("{folder}/{key}"));
            self.case(format!("{name}.{key}"), node);
        }
    }

    pub fn enter(&mut self, front: &Front, state: u32) {
        self.put(&format!("{}/state", front.path), state);
    }

    /// The back end's state once it is one of these; what it is at last if that does not come.
    pub fn await_state(&mut self, front: &Front, states: &[u32]) -> u32 {
        let path = format!("{}/state", front.back);
        let get = |s: &mut Self| s.text(&path).parse().unwrap_or(0);
        self.within(PATIENCE, |s| Some(get(s)).filter(|n| states.contains(n)))
            .unwrap_or_else(|| get(self))
    }

    /// Closes; the back end's states on the way.
    pub fn close(&mut self, front: &mut Front) -> String {
        self.enter(front, 5);
        let closing = self.await_state(front, &[5, 6]);
        self.enter(front, 6);
        let closed = self.await_state(front, &[6, 2]);
        format!("{closing} {closed}")
    }

    /// Begins anew after that; the back end's state.
    pub fn reopen(&mut self, front: &mut Front) -> u32 {
        self.enter(front, 1);
        self.await_state(front, &[2])
    }

    /// A new channel for dom0 to bind to.
    pub fn channel(&mut self) -> Option<Port> {
        let port = calls::event::alloc_unbound(&hvc::xen(), DomId::SELF, DomId(0)).ok()?;
        calls::event::unmask(&hvc::xen(), port).ok()?;
        Some(port)
    }

    /// Grants a page.
    pub fn grant(&mut self, to: u32, addr: u64, read_only: bool) -> u32 {
        let found = self.given.iter().find(|g| g.0 == (to, addr, read_only));
        if let Some((_, gref)) = found {
            return *gref;
        }
        let gref = self.gref;
        self.gref += 1;
        let at = gref as usize * 8;
        self.grants.store32(at + 4, (addr / 4096) as u32);
        self.grants
            .store32(at, to << 16 | 1 | u32::from(read_only) << 2);
        self.given.push(((to, addr, read_only), gref));
        gref
    }

    /// The grant of a page that dom0 may write.
    pub fn gref_of(&self, page: &Shared) -> u32 {
        let found = self.given.iter().find(|g| g.0 == (0, page.addr(), false));
        found.map_or(0, |g| g.1)
    }

    /// Whether somebody has a granted page mapped.
    pub fn in_use(&self, gref: u32) -> bool {
        self.grants.load32(gref as usize * 8) & 0x18 != 0
    }

    pub fn wait_ms(&mut self, ms: u64) {
        self.within(ms * MS, |_| None::<()>);
    }
}

/// Grants that were made: to whom, of what, whether read-only.
pub type Given = Vec<((u32, u64, bool), u32)>;
