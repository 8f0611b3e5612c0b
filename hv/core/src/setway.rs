// SPDX-License-Identifier: MIT OR Apache-2.0
//! Data-cache maintenance by set and way (`DC ISW`, `DC CSW`, `DC CISW`).
//!
//! Such an instruction works on the caches of the CPU that executes it. A vcpu does not know which
//! CPU that will be a moment later, and cleaning or dropping lines of others is not its right. So
//! the instructions are trapped, and done by address over all of the domain's memory, as Xen does:
//! at the first one of a series, and again when the guest turns its caches on or off. A series is
//! over when a write to a register of the translation regime (HCR_EL2.TVM traps these meanwhile)
//! finds the caches on. The work is done in slices before the vcpu goes on.

use crate::hypervisor::Hypervisor;
use crate::machine::PhysMem;
use crate::p2m::Kind;
use crate::types::{Gfn, Mfn, Slot};

/// SCTLR_EL1.M and SCTLR_EL1.C: with both, the guest's accesses are cached.
const CACHED: u64 = 1 | 1 << 2;
/// Pages that are cleaned in one slice, at most.
const PAGES: u64 = 64;
/// Entries of stage-2 tables that a slice looks at.
const ENTRIES: i64 = 256;

/// What one vcpu has to do with set and way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetWay {
    watched: bool,
    from: Option<Gfn>,
}

impl SetWay {
    /// The vcpu executed such an instruction.
    pub fn operation(&mut self) {
        if !self.watched {
            self.watched = true;
            self.from = Some(Gfn(0));
        }
    }

    /// The vcpu wrote a register of its translation regime; SCTLR_EL1 before and after that.
    pub fn wrote(&mut self, before: u64, after: u64) {
        let on = |sctlr: u64| sctlr & CACHED == CACHED;
        if on(before) != on(after) {
            self.from = Some(Gfn(0));
        }
        if on(after) {
            self.watched = false;
        }
    }

    /// Whether writes to these registers are to be trapped.
    #[must_use]
    pub fn watched(&self) -> bool {
        self.watched
    }

    /// Whether there is something to clean before the vcpu may go on.
    #[must_use]
    #[inline]
    pub fn due(&self) -> bool {
        self.from.is_some()
    }
}

impl Hypervisor {
    /// The next piece of a domain's memory to be cleaned for one of its vcpus, at most 64 pages; no
    /// pages when there was only unmapped space to look at. At the end, nothing is due any more.
    ///
    /// Cleaning changes no byte that anybody sees, so it may be done without the lock, when the
    /// pages may no longer be the domain's.
    pub fn next_to_clean<M: PhysMem>(
        &self,
        m: &M,
        slot: Slot,
        state: &mut SetWay,
    ) -> Option<(Mfn, u64)> {
        let from = state.from?;
        let mut budget = ENTRIES;
        let found = self
            .domains
            .get(slot)
            .and_then(|d| d.p2m.next_mapped(m, from, &mut budget));
        let Some((gfn, map)) = found else {
            state.from = None;
            return None;
        };
        let Some(map) = map else {
            state.from = Some(gfn);
            return Some((Mfn(0), 0));
        };
        let pages = 1u64 << map.order;
        if map.kind == Kind::Mmio {
            state.from = Some(Gfn(gfn.0.saturating_add(pages)));
            return Some((Mfn(0), 0));
        }
        let first = from.0.saturating_sub(gfn.0);
        let n = pages.saturating_sub(first).min(PAGES);
        state.from = Some(Gfn(gfn.0.saturating_add(first).saturating_add(n)));
        Some((Mfn(map.mfn.0.saturating_add(first)), n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: u64 = 0x30c5_0830;

    #[test]
    fn a_series_cleans_once_and_again_when_the_caches_go_on_or_off() {
        let mut s = SetWay::default();
        assert!(!s.watched() && !s.due());
        s.operation();
        assert!(s.watched() && s.due());
        s.from = None;
        // The rest of the series costs nothing more.
        for _ in 0..1000 {
            s.operation();
        }
        assert!(s.watched() && !s.due());
        // A guest that sets up its tables with the caches off.
        s.wrote(OFF, OFF);
        assert!(s.watched() && !s.due());
        // One of the two bits is not enough.
        s.wrote(OFF, OFF | 4);
        s.wrote(OFF | 4, OFF | 4);
        s.wrote(OFF | 4, OFF | 1);
        assert!(s.watched() && !s.due());
        s.wrote(OFF | 1, OFF | CACHED);
        assert!(!s.watched(), "the caches are on");
        assert!(s.due(), "what was written past them is to be seen");
        s.from = None;
        // The next series.
        s.operation();
        assert!(s.watched() && s.due());
        s.from = None;
        s.wrote(OFF | CACHED, OFF);
        assert!(s.watched() && s.due(), "what is in them is to be seen");
    }

    #[test]
    fn a_write_with_the_caches_on_ends_the_series() {
        let mut s = SetWay::default();
        s.operation();
        s.from = None;
        s.wrote(OFF | CACHED, OFF | CACHED);
        assert_eq!(s, SetWay::default());
    }
}
