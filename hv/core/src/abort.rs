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

/// An abort: its syndrome (ISS), and whether it was a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort(u32);

/// Bit of [`Abort`]: of an instruction. ISS has 25 bits.
const FETCH: u32 = 1 << 31;

/// Which register knows the guest physical address of an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// HPFAR_EL2.
    Hpfar,
    /// None: FAR_EL2 is translated by the guest's stage 1. Where that fails, the guest has changed it meanwhile
    /// and makes the access again.
    Far,
}

/// A load or store of one general register: the syndrome that describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio(u32);

impl Mmio {
    /// The register; 31 is the zero register.
    #[inline]
    #[must_use]
    pub const fn rt(self) -> u8 {
        (self.0 >> 16 & 31) as u8
    }

    /// Bytes: 1, 2, 4 or 8.
    #[inline]
    #[must_use]
    pub const fn size(self) -> u8 {
        1 << (self.0 >> 22 & 3)
    }

    /// A store.
    #[inline]
    #[must_use]
    pub const fn write(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// What a load of `value` leaves in the register.
    #[inline]
    #[must_use]
    pub const fn loaded(self, value: u64) -> u64 {
        // SSE: signed.
        if self.0 & 1 << 21 == 0 || self.size() >= 8 {
            return value;
        }
        let shift = (8u32.wrapping_sub(self.size() as u32) & 7) << 3;
        let x = (value.wrapping_shl(shift) as i64).wrapping_shr(shift) as u64;
        // SF: to 64 bits.
        if self.0 & 1 << 15 != 0 {
            x
        } else {
            x & 0xffff_ffff
        }
    }
}

impl Abort {
    /// Decodes the syndrome of a data (`fetch` false) or instruction abort.
    #[inline]
    #[must_use]
    pub const fn decode(iss: u32, fetch: bool) -> Self {
        Self(iss & 0x1ff_ffff | if fetch { FETCH } else { 0 })
    }

    /// What was being done.
    #[inline]
    #[must_use]
    pub const fn doing(self) -> Doing {
        let fetch = self.0 & FETCH != 0;
        if self.walk() {
            Doing::Walk { fetch }
        } else if fetch {
            Doing::Fetch
        } else if self.0 & 1 << 6 != 0 {
            Doing::Data(Access::Write)
        } else {
            Doing::Data(Access::Read)
        }
    }

    /// It was on a walk of stage 1 (S1PTW).
    #[inline]
    const fn walk(self) -> bool {
        self.0 & 1 << 7 != 0
    }

    /// Data were read or written.
    #[inline]
    const fn data(self) -> bool {
        self.0 & (1 << 7 | FETCH) == 0
    }

    /// Nothing is mapped there, or was at that moment.
    #[inline]
    #[must_use]
    pub const fn translation(self) -> bool {
        self.0 & 0x3c == 0x04
    }

    /// The mapping does not allow it, or did not at that moment.
    #[inline]
    const fn permission(self) -> bool {
        self.0 & 0x3c == 0x0c
    }

    /// Level, of a walk.
    const fn level(self) -> u8 {
        (self.0 & 3) as u8
    }

    /// Where the guest physical address is to be had. HPFAR_EL2 has it for translation, access flag and
    /// address size faults of stage 2, and for any fault of stage 2 on a walk of stage 1; for a permission
    /// fault of the access itself, and all others, it is UNKNOWN (Arm ARM, "HPFAR_EL2").
    #[inline]
    #[must_use]
    pub const fn place(self) -> Place {
        if self.0 & 0x30 == 0 && (self.walk() || !self.permission()) {
            Place::Hpfar
        } else {
            Place::Far
        }
    }

    /// The access, if a device may be behind it: only where nothing is mapped. What the map has and does not
    /// allow is no device.
    #[inline]
    #[must_use]
    pub const fn emulated(self) -> Option<Mmio> {
        if self.data() && self.translation() && self.described() {
            Some(Mmio(self.0))
        } else {
            None
        }
    }

    /// The CPU describes the instruction (ISV).
    #[inline]
    const fn described(self) -> bool {
        self.0 & 1 << 24 != 0
    }

    /// Whether a device may be behind it, but the CPU does not describe the instruction (ISV is 0).
    #[must_use]
    pub const fn undescribed(self) -> bool {
        self.data() && self.translation() && !self.described()
    }

    /// What the guest is told it ran into.
    #[must_use]
    pub const fn exception(self) -> Exception {
        match self.doing() {
            Doing::Fetch => Exception::InstructionAbort { walk: None },
            Doing::Walk { fetch: true } => Exception::InstructionAbort {
                walk: Some(self.level()),
            },
            Doing::Data(a) => Exception::DataAbort {
                write: matches!(a, Access::Write),
                walk: None,
            },
            Doing::Walk { fetch: false } => Exception::DataAbort {
                write: false,
                walk: Some(self.level()),
            },
        }
    }
}

impl Hypervisor {
    /// Whether an access that was stopped at guest physical address `ipa` would go through now: the
    /// entry was only away, or another one, while another CPU changed it or a neighbour. The hypervisor lock makes sure
    /// that nobody is in the midst of that.
    #[must_use]
    pub fn goes_through_now<M: PhysMem>(&self, m: &M, slot: Slot, ipa: u64, abort: Abort) -> bool {
        let Some(map) = self
            .domains
            .get(slot)
            .and_then(|d| d.p2m.lookup(m, Gfn::of(ipa)))
        else {
            return false;
        };
        (abort.translation() || abort.permission())
            && match abort.doing() {
                Doing::Fetch => map.kind == Kind::Ram,
                Doing::Data(access) => map.allows(access),
                // A walk that is not allowed goes to a device (HCR_EL2.PTW).
                Doing::Walk { .. } => abort.translation(),
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

/// What a trapped instruction was, as far as going past it depends on that: ESR_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trapped(pub u64);

/// PSTATE of AArch32.
const AARCH32: u64 = 1 << 4;

impl Trapped {
    /// Whether the condition of the instruction fails, so that it does nothing: the CPU may trap it all the
    /// same (Arm ARM, "Conditional execution of undefined instructions"; XSA-102, 103). Only AArch32 has
    /// conditions: in the syndrome (CV, COND), or in the IT state.
    #[must_use]
    pub const fn condition_fails(self, pstate: u64) -> bool {
        // Classes that have the field: WFI and WFE, CP15, CP14, CP10, and SVC, HVC and SMC of AArch32.
        if pstate & AARCH32 == 0 || self.0 >> 26 > 0x13 {
            return false;
        }
        let it = it(pstate);
        let cond = if self.0 & 1 << 24 != 0 {
            self.0 >> 20 & 15
        } else if it != 0 {
            it >> 4
        } else {
            return false;
        };
        let (n, z, c, v) = (
            pstate >> 31 & 1,
            pstate >> 30 & 1,
            pstate >> 29 & 1,
            pstate >> 28 & 1,
        );
        let holds = match cond >> 1 {
            0 => z,
            1 => c,
            2 => n,
            3 => v,
            4 => c & (z ^ 1),
            5 => (n ^ v) ^ 1,
            6 => ((n ^ v) ^ 1) & (z ^ 1),
            _ => return false,
        };
        holds == cond & 1
    }

    /// Program counter and PSTATE after the instruction, when it was done or does nothing.
    #[must_use]
    pub const fn skip(self, pc: u64, pstate: u64) -> (u64, u64) {
        let length = if self.0 & 1 << 25 != 0 { 4 } else { 2 };
        let pc = pc.wrapping_add(length);
        if pstate & AARCH32 == 0 {
            // BTYPE: a branch was no longer the last instruction.
            return (pc, pstate & !(3 << 10));
        }
        // ITAdvance().
        let it = it(pstate);
        let it = if it & 7 == 0 {
            0
        } else {
            it & 0xe0 | it << 1 & 0x1f
        };
        let pstate = pstate & !(0x3f << 10 | 3 << 25) | (it >> 2) << 10 | (it & 3) << 25;
        (pc & 0xffff_ffff, pstate)
    }
}

/// ITSTATE of AArch32 from its PSTATE.
const fn it(pstate: u64) -> u64 {
    (pstate >> 10 & 0x3f) << 2 | pstate >> 25 & 3
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
                (0x25 ^ low as u64, external(walk) | (write as u64) << 6)
            }
            Exception::InstructionAbort { walk } => (0x21 ^ low as u64, external(walk)),
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
        assert_eq!(d(TRANSLATION).doing(), Doing::Data(Access::Read));
        assert_eq!(d(TRANSLATION | 1 << 6).doing(), Doing::Data(Access::Write));
        assert_eq!(
            d(TRANSLATION | 1 << 7).doing(),
            Doing::Walk { fetch: false }
        );
        assert_eq!(
            Abort::decode(TRANSLATION | 1 << 7, true).doing(),
            Doing::Walk { fetch: true }
        );
        assert_eq!(Abort::decode(TRANSLATION, true).doing(), Doing::Fetch);
        assert!((0x04..0x08).all(|f| d(f).translation()));
        for other in [0x00, 0x08, PERMISSION, 0x10, 0x14, 0x21, 0x30, 0x34] {
            assert!(!d(other).translation(), "{other:#x}");
        }
    }

    /// HPFAR_EL2 holds an earlier fault's address where the architecture leaves it UNKNOWN: a write to a page
    /// granted read-only was once taken for one to the device whose address stood there.
    #[test]
    fn where_the_address_is_to_be_had() {
        for write in [0u32, 1 << 6] {
            for status in 0..64u32 {
                let a = Abort::decode(status | write | 1 << 24, false);
                let valid = status < 0x0c;
                assert_eq!(a.place() == Place::Hpfar, valid, "{status:#x}");
                let walk = Abort::decode(status | 1 << 7, false);
                assert_eq!(walk.place() == Place::Hpfar, status < 0x10, "{status:#x}");
                // Only where nothing is mapped may a device be.
                assert_eq!(a.emulated().is_some(), (4..8).contains(&status));
                assert_eq!(walk.emulated(), None);
                let fetch = Abort::decode(status | 1 << 24, true);
                assert_eq!(fetch.emulated(), None);
            }
        }
        assert!(Abort::decode(TRANSLATION, false).undescribed());
        assert!(!Abort::decode(PERMISSION, false).undescribed());
    }

    #[test]
    fn loads_are_extended_as_the_instruction_says() {
        let m = |bits: u32| {
            let abort = Abort::decode(TRANSLATION | 1 << 24 | bits, false);
            abort.emulated().unwrap()
        };
        let (signed, wide) = (1 << 21, 1 << 15);
        assert_eq!(m(0).loaded(0x80), 0x80);
        assert_eq!(m(signed).loaded(0x80), 0xffff_ff80);
        assert_eq!(m(signed | wide).loaded(0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(m(1 << 22 | signed | wide).loaded(0x7fff), 0x7fff);
        assert_eq!(
            m(2 << 22 | signed | wide).loaded(0x8000_0000),
            0xffff_ffff_8000_0000
        );
        assert_eq!(m(3 << 22 | signed).loaded(u64::MAX), u64::MAX);
        assert_eq!((m(2 << 22 | 5 << 16).size(), m(5 << 16).rt()), (4, 5));
        assert_eq!(Abort::decode(TRANSLATION | 5 << 16, false).emulated(), None);
    }

    const THUMB: u64 = 0x30;
    const IL: u64 = 1 << 25;

    #[test]
    fn an_instruction_of_16_bits_is_skipped_as_one() {
        assert_eq!(Trapped(1 << 26).skip(0x1000, THUMB), (0x1002, THUMB));
        assert_eq!(Trapped(1 << 26 | IL).skip(0x1000, THUMB), (0x1004, THUMB));
        assert_eq!(
            Trapped(IL).skip(0xffff_fffc, THUMB).0,
            0,
            "AArch32 wraps at 32 bits"
        );
        assert_eq!(Trapped(IL).skip(0xffff_fffc, 0x3c5).0, 1 << 32);
        // BTYPE goes; the rest of an AArch64 PSTATE stays.
        assert_eq!(Trapped(IL).skip(0, 0xf000_0fc5), (4, 0xf000_03c5));
    }

    #[test]
    fn the_it_state_goes_on() {
        let with = |it: u64| THUMB | (it >> 2) << 10 | (it & 3) << 25;
        // ITTEE EQ: 4 instructions, of which the first two want Z, the others do not.
        let mut pstate = with(0x07);
        for next in [0x0e, 0x1c, 0x18, 0] {
            assert_eq!(it(pstate) >> 4 & 1, u64::from(next == 0x18 || next == 0));
            pstate = Trapped(1 << 26).skip(0, pstate).1;
            assert_eq!(it(pstate), next);
        }
        assert_eq!(pstate, THUMB);
    }

    #[test]
    #[allow(clippy::nonminimal_bool)] // as the architecture's table has them
    fn xsa_102_103_an_instruction_whose_condition_fails_does_nothing() {
        let wfi = Trapped(1 << 26 | IL);
        let conditional = |cond: u64| Trapped(1 << 26 | IL | 1 << 24 | cond << 20);
        for nzcv in 0..16u64 {
            let p = 0x10 | nzcv << 28;
            let (n, z, c, v) = (nzcv & 8 != 0, nzcv & 4 != 0, nzcv & 2 != 0, nzcv & 1 != 0);
            let holds = [
                z,
                !z,
                c,
                !c,
                n,
                !n,
                v,
                !v,
                c && !z,
                !(c && !z),
                n == v,
                n != v,
                n == v && !z,
                !(n == v && !z),
                true,
                true,
            ];
            for (cond, holds) in (0..16).zip(holds) {
                assert_eq!(
                    conditional(cond).condition_fails(p),
                    !holds,
                    "{cond} {nzcv:#x}"
                );
                // The same, told by the IT state.
                let it = (cond << 4 | 8) & 0xff;
                let p = p | 0x20 | (it >> 2) << 10 | (it & 3) << 25;
                assert_eq!(wfi.condition_fails(p), !holds, "IT {cond} {nzcv:#x}");
            }
            assert!(!wfi.condition_fails(p));
            // AArch64 has no conditions, whatever the field holds, and aborts have another field there.
            assert!(!conditional(0).condition_fails(nzcv << 28));
            assert!(!Trapped(0x24 << 26 | 1 << 24).condition_fails(p));
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
