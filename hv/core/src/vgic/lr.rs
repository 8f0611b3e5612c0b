// SPDX-License-Identifier: MIT OR Apache-2.0
//! List registers: what is in one, and its two encodings (IHI 0048 5.3.7, IHI 0069 12.4.6).

/// The list registers of the CPU that we run on, with the running vcpu's content. Words are in
/// the machine's format: GICv2's 32 bits or GICv3's 64.
pub trait ListRegs {
    /// How many there are.
    fn count(&self) -> usize;
    /// Reads one.
    fn read(&self, n: usize) -> u64;
    /// Writes one.
    fn write(&mut self, n: usize, value: u64);
    /// Bit n: register n holds neither an interrupt nor an end that was asked for
    /// (`GICH_ELRSR`, `ICH_ELRSR_EL2`).
    fn empty(&self) -> u32;
    /// Sets what the virtual interface tells and traps beside interrupts: of [`control`] (`GICH_HCR`,
    /// `ICH_HCR_EL2`). The count of ends begins anew.
    fn control(&mut self, bits: u32);
    /// How many interrupts the guest has ended that were active in no list register since it was asked last
    /// (`EOICount`, 5 bits), and begins the count anew.
    fn ends(&mut self) -> u32;
}

/// Bits of [`ListRegs::control`].
pub mod control {
    /// `UIE`: a maintenance interrupt when no or one list register holds an interrupt.
    pub const UNDERFLOW: u32 = 1 << 1;
    /// `LRENPIE`: a maintenance interrupt when one was ended that is in no list register.
    pub const ENDS: u32 = 1 << 2;
    /// `NPIE`: a maintenance interrupt when no list register holds a pending interrupt.
    pub const NONE_PENDING: u32 = 1 << 3;
    /// `TDIR` of `ICH_HCR_EL2`: writes to ICC_DIR_EL1 trap (where `ICH_VTR_EL2.TDS` says that they can).
    pub const TRAP_DEACTIVATE: u32 = 1 << 14;
}

/// State bit: waits to be acknowledged.
pub(super) const PENDING: u8 = 1;
/// State bit: acknowledged and not yet ended.
pub(super) const ACTIVE: u8 = 2;

/// The content of a list register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lr {
    pub irq: u16,
    pub priority: u8,
    /// [`PENDING`], [`ACTIVE`], both or none.
    pub state: u8,
    /// GICv2 SGIs: the sending vcpu.
    pub from: u8,
    /// Linked to the physical interrupt of the same number.
    pub hw: bool,
    /// A maintenance interrupt when it ends. Not together with `hw`.
    pub eoi: bool,
    /// It is pending because its line is high, and for nothing else.
    pub line: bool,
}

impl Lr {
    pub const EMPTY: Self = Self {
        irq: 0,
        priority: 0,
        state: 0,
        from: 0,
        hw: false,
        eoi: false,
        line: false,
    };
}

/// GICv2: group 0, which is what the guest's bit 0 of GICC_CTLR enables. GICv3: group 1.
#[inline]
pub(super) fn encode(lr: &Lr, v3: bool) -> u64 {
    let (irq, state, prio) = (
        u64::from(lr.irq),
        u64::from(lr.state),
        u64::from(lr.priority),
    );
    if v3 {
        let link = if lr.hw {
            1 << 61 | irq << 32
        } else {
            u64::from(lr.eoi) << 41
        };
        state << 62 | 1 << 60 | prio << 48 | link | irq
    } else {
        let link = if lr.hw {
            1 << 31 | irq << 10
        } else {
            u64::from(lr.eoi) << 19 | u64::from(lr.from & 7) << 10
        };
        link | state << 28 | (prio >> 3) << 23 | irq
    }
}

/// The state in an encoded list register.
#[inline]
pub(super) fn state_of(raw: u64, v3: bool) -> u8 {
    (if v3 { raw >> 62 } else { raw >> 28 & 3 }) as u8
}
