// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parameters of a domain (`hvm/hvm_op.h`, `hvm/params.h`).

use crate::DomId;

numbers! {
    /// Operations of `hvm_op` that exist on Arm (`HVMOP_*`).
    pub enum HvmOp: u64 {
        /// Set a parameter: [`HvmParam`].
        SetParam = 0, "set_param";
        /// Get a parameter: [`HvmParam`].
        GetParam = 1, "get_param";
        /// Raise an event for an introspecting domain.
        GuestRequestVmEvent = 24, "guest_request_vm_event";
        /// Alternative maps.
        Altp2m = 25, "altp2m";
    }

    /// Parameters that exist on Arm (`HVM_PARAM_*`).
    pub enum Param: u32 {
        /// How the guest learns of events: [`callback_ppi`].
        CallbackIrq = 0, "CALLBACK_IRQ";
        /// Frame of the xenstore ring.
        StorePfn = 1, "STORE_PFN";
        /// Event channel of the xenstore ring.
        StoreEvtchn = 2, "STORE_EVTCHN";
        /// Frame of the console ring.
        ConsolePfn = 17, "CONSOLE_PFN";
        /// Event channel of the console ring.
        ConsoleEvtchn = 18, "CONSOLE_EVTCHN";
        /// Frame of the paging ring.
        PagingRingPfn = 27, "PAGING_RING_PFN";
        /// Frame of the monitor ring; the toolstack.
        MonitorRingPfn = 28, "MONITOR_RING_PFN";
        /// Frame of the sharing ring.
        SharingRingPfn = 29, "SHARING_RING_PFN";
    }
}

/// How many parameters there are (`HVM_NR_PARAMS`); larger indexes are invalid.
pub const NR_PARAMS: u32 = 39;
/// [`Param::CallbackIrq`]: a private peripheral interrupt, in bits 56 to 63.
pub const CALLBACK_TYPE_PPI: u64 = 2;
/// [`Param::CallbackIrq`]: the interrupt is level triggered, active low, in bits 8 to 15.
pub const CALLBACK_PPI_LOW_LEVEL: u64 = 2;

/// The value of [`Param::CallbackIrq`] for a level-triggered, active-low PPI (its interrupt id,
/// 16 to 31).
#[must_use]
pub const fn callback_ppi(intid: u8) -> u64 {
    CALLBACK_TYPE_PPI << 56 | CALLBACK_PPI_LOW_LEVEL << 8 | intid as u64
}

abi! {
    /// Set or get a parameter.
    ["xen_hvm_param", 16, "hvm/hvm_op.h"]
    pub struct HvmParam {
        /// In: whose.
        pub domid: DomId,
        /// Padding.
        pub pad: u16,
        /// In: [`Param`].
        pub index: u32,
        /// In or out: the value.
        pub value: u64,
    }
}
