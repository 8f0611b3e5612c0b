// SPDX-License-Identifier: MIT OR Apache-2.0
//! Aborts that stage 2 raises, and exceptions that the hypervisor gives to a guest's EL1.
//!
//! An access that stage 2 stops is one of three things. Another CPU was just breaking the block
//! around it (break-before-make): it is made again. The guest touched what it does not have: its
//! EL1 gets an external abort, as a machine without a hypervisor would give it, and as Xen does.
//! The guest cannot take that either, as its own exception vector aborts: the domain is ended.

use crate::hypervisor::Hypervisor;
use crate::machine::PhysMem;
use crate::p2m::Kind;
use crate::types::{Access, Gfn, Slot};

/// What was being done (ESR_EL2 of a data or instruction abort from a lower exception level; Arm
/// ARM, "ISS encoding for an exception from a Data Abort").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Fetching an instruction.
    Fetch,
    /// Reading or writing data.
    Data(Access),
    /// Reading a stage-1 table, for either.
    Walk {
        /// For a fetch.
        fetch: bool,
    },
}

/// An abort, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// What was being done.
    pub doing: Doing,
    /// Nothing is mapped there, or was at that moment.
    pub translation: bool,
    /// Level of the failed translation.
    level: u8,
}

impl Abort {
    /// Decodes the syndrome of a data (`fetch` false) or instruction abort.
    #[must_use]
    pub const fn decode(iss: u32, fetch: bool) -> Self {
        let doing = if iss & (1 << 7) != 0 {
            Doing::Walk { fetch }
        } else if fetch {
            Doing::Fetch
        } else if iss & (1 << 6) != 0 {
            Doing::Data(Access::Write)
        } else {
            Doing::Data(Access::Read)
        };
        Self {
            doing,
            translation: iss & 0x3c == 0x04,
            level: (iss & 3) as u8,
        }
    }

    /// What the guest is told it ran into.
    #[must_use]
    pub const fn exception(&self) -> Exception {
        match self.doing {
            Doing::Fetch => Exception::InstructionAbort { walk: None },
            Doing::Walk { fetch: true } => Exception::InstructionAbort {
                walk: Some(self.level),
            },
            Doing::Data(a) => Exception::DataAbort {
                write: matches!(a, Access::Write),
                walk: None,
            },
            Doing::Walk { fetch: false } => Exception::DataAbort {
                write: false,
                walk: Some(self.level),
            },
        }
    }
}

impl Hypervisor {
    /// Whether an access that was stopped at guest physical address `ipa` would go through now: the
    /// entry was only away while another CPU changed a neighbour. The hypervisor lock makes sure
    /// that nobody is in the midst of that.
    #[must_use]
    pub fn goes_through_now<M: PhysMem>(&self, m: &M, slot: Slot, ipa: u64, abort: &Abort) -> bool {
        let Some(map) = self
            .domains
            .get(slot)
            .and_then(|d| d.p2m.lookup(m, Gfn::of(ipa)))
        else {
            return false;
        };
        abort.translation
            && match abort.doing {
                Doing::Fetch => map.kind == Kind::Ram,
                Doing::Data(access) => map.allows(access),
                Doing::Walk { .. } => true,
            }
    }
}

/// An exception for a guest's EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// The instruction does not exist.
    Undefined,
    /// An external abort of a data access, or of the table walk for it at a level.
    DataAbort {
        /// It was a write.
        write: bool,
        /// The level of the table.
        walk: Option<u8>,
    },
    /// An external abort of a fetch, or of the table walk for it at a level.
    InstructionAbort {
        /// The level of the table.
        walk: Option<u8>,
    },
}

/// Where a guest goes on when it takes an exception, and what it finds in its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Program counter.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
    /// ESR_EL1.
    pub esr: u64,
}

/// What an exception's taking depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// The address of the instruction.
    pub pc: u64,
    /// PSTATE there.
    pub pstate: u64,
    /// VBAR_EL1.
    pub vbar: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// The CPU has PSTATE.PAN.
    pub pan: bool,
    /// The instruction was one of 32 bits (ESR_EL2.IL).
    pub il: bool,
}

/// Bytes of an exception vector table.
const VECTORS: u64 = 0x800;
const PSTATE_PAN: u64 = 1 << 22;
const SCTLR_SPAN: u64 = 1 << 23;
/// EL1h with all interrupts masked.
const PSTATE_EL1H: u64 = 0x3c5;

impl At {
    const fn in_el0(&self) -> bool {
        self.pstate & 0xf == 0
    }

    /// Whether the instruction is of the guest's own exception vectors, so that it can take no
    /// abort: the handler of the abort would abort again, for ever.
    #[must_use]
    pub const fn in_own_vectors(&self) -> bool {
        !self.in_el0() && self.pc.wrapping_sub(self.vbar) < VECTORS
    }

    /// How `what` is taken to EL1 from here (Arm ARM, `AArch64.TakeException`).
    #[must_use]
    pub const fn take(&self, what: Exception) -> Entry {
        let low = self.in_el0();
        let offset = if self.pstate & 0x10 != 0 {
            0x600
        } else if low {
            0x400
        } else if self.pstate & 1 != 0 {
            0x200
        } else {
            0x000
        };
        let (ec, iss) = match what {
            Exception::Undefined => (0, 0),
            Exception::DataAbort { write, walk } => {
                (0x25 - low as u64, external(walk) | (write as u64) << 6)
            }
            Exception::InstructionAbort { walk } => (0x21 - low as u64, external(walk)),
        };
        let il = self.il || matches!(what, Exception::Undefined);
        // PAN stays as it was, and is set by an exception unless the guest has chosen otherwise.
        let set = self.pan && self.sctlr & SCTLR_SPAN == 0;
        let pan = if set {
            PSTATE_PAN
        } else {
            self.pstate & PSTATE_PAN
        };
        Entry {
            pc: self.vbar.wrapping_add(offset),
            pstate: PSTATE_EL1H | pan,
            esr: ec << 26 | (il as u64) << 25 | iss,
        }
    }
}

/// Status code of a synchronous external abort, of an access or of a table walk.
const fn external(walk: Option<u8>) -> u64 {
    match walk {
        None => 0x10,
        Some(level) => 0x14 | level as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSLATION: u32 = 0x06;
    const PERMISSION: u32 = 0x0e;

    #[test]
    fn syndromes() {
        let d = |iss| Abort::decode(iss, false);
        assert_eq!(d(TRANSLATION).doing, Doing::Data(Access::Read));
        assert_eq!(d(TRANSLATION | 1 << 6).doing, Doing::Data(Access::Write));
        assert_eq!(d(TRANSLATION | 1 << 7).doing, Doing::Walk { fetch: false });
        assert_eq!(
            Abort::decode(TRANSLATION | 1 << 7, true).doing,
            Doing::Walk { fetch: true }
        );
        assert_eq!(Abort::decode(TRANSLATION, true).doing, Doing::Fetch);
        assert!((0x04..0x08).all(|f| d(f).translation));
        for other in [0x00, 0x08, PERMISSION, 0x10, 0x14, 0x21, 0x30, 0x34] {
            assert!(!d(other).translation, "{other:#x}");
        }
    }

    #[test]
    fn exceptions_go_where_the_architecture_says() {
        let at = At {
            pc: 0x4008_1234,
            vbar: 0x4010_0000,
            sctlr: SCTLR_SPAN,
            il: true,
            ..At::default()
        };
        let read = Exception::DataAbort {
            write: false,
            walk: None,
        };
        let from = |pstate| At { pstate, ..at }.take(read);
        assert_eq!(from(0x3c5).pc, at.vbar + 0x200);
        assert_eq!(from(0x3c4).pc, at.vbar);
        assert_eq!(from(0x000).pc, at.vbar + 0x400);
        assert_eq!(from(0x010).pc, at.vbar + 0x600);
        assert_eq!(from(0x3c5).esr, 0x25 << 26 | 1 << 25 | 0x10);
        assert_eq!(from(0x010).esr, 0x24 << 26 | 1 << 25 | 0x10);
        assert_eq!(from(0x000).pstate, PSTATE_EL1H);
        let fetch = Abort::decode(TRANSLATION, true).exception();
        assert_eq!(
            At { pstate: 5, ..at }.take(fetch).esr,
            0x21 << 26 | 1 << 25 | 0x10
        );
        let walk = Abort::decode(TRANSLATION | 1 << 7, false).exception();
        assert_eq!(
            At { pstate: 0, ..at }.take(walk).esr,
            0x24 << 26 | 1 << 25 | 0x16
        );
        let write = Abort::decode(TRANSLATION | 1 << 6, false).exception();
        assert_eq!(At { pstate: 5, ..at }.take(write).esr & 0x7f, 0x50);
        let undefined = At {
            il: false,
            pstate: 5,
            ..at
        }
        .take(Exception::Undefined);
        assert_eq!(undefined.esr, 1 << 25);
    }

    #[test]
    fn pan_is_set_where_the_guest_wants_it() {
        let at = At {
            pstate: 5,
            pan: true,
            ..At::default()
        };
        assert_eq!(
            at.take(Exception::Undefined).pstate,
            PSTATE_EL1H | PSTATE_PAN
        );
        let span = At {
            sctlr: SCTLR_SPAN,
            ..at
        };
        assert_eq!(span.take(Exception::Undefined).pstate, PSTATE_EL1H);
        let was = At {
            pstate: 5 | PSTATE_PAN,
            ..span
        };
        assert_eq!(
            was.take(Exception::Undefined).pstate,
            PSTATE_EL1H | PSTATE_PAN
        );
        assert_eq!(
            At { pan: false, ..at }.take(Exception::Undefined).pstate,
            PSTATE_EL1H
        );
    }

    #[test]
    fn a_vector_that_aborts_is_the_end() {
        let at = At {
            vbar: 0xffff_8000_0801_0800,
            pstate: 0x3c5,
            ..At::default()
        };
        for (pc, own) in [
            (at.vbar, true),
            (at.vbar + 0x7fc, true),
            (at.vbar + 0x800, false),
            (at.vbar - 4, false),
        ] {
            assert_eq!(At { pc, ..at }.in_own_vectors(), own, "{pc:#x}");
        }
        // A program may run at the same virtual address.
        assert!(
            !At {
                pc: at.vbar,
                pstate: 0,
                ..at
            }
            .in_own_vectors()
        );
    }
}
