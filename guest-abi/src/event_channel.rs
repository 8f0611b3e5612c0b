// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels (`event_channel.h`).

use crate::{DomId, Port};

numbers! {
    /// Operations of `event_channel_op` (`EVTCHNOP_*`).
    pub enum EventOp: u64 {
        /// Connect to a remote domain's unbound port: [`EvtchnBindInterdomain`].
        BindInterdomain = 0, "bind_interdomain";
        /// Bind a virtual interrupt: [`EvtchnBindVirq`].
        BindVirq = 1, "bind_virq";
        /// Bind a physical interrupt; not on Arm.
        BindPirq = 2, "bind_pirq";
        /// Close a port: [`EvtchnClose`].
        Close = 3, "close";
        /// Signal the other end: [`EvtchnSend`].
        Send = 4, "send";
        /// What a port is: [`EvtchnStatus`].
        Status = 5, "status";
        /// Make a port that a remote domain can connect to: [`EvtchnAllocUnbound`].
        AllocUnbound = 6, "alloc_unbound";
        /// Make a port for signals among own vcpus: [`EvtchnBindIpi`].
        BindIpi = 7, "bind_ipi";
        /// Choose the vcpu to be told: [`EvtchnBindVcpu`].
        BindVcpu = 8, "bind_vcpu";
        /// Unmask, and tell again if pending: [`EvtchnUnmask`].
        Unmask = 9, "unmask";
        /// Close every port: [`EvtchnReset`].
        Reset = 10, "reset";
        /// Switch a vcpu to the FIFO ABI: [`EvtchnInitControl`].
        InitControl = 11, "init_control";
        /// Add a page of FIFO event words: [`EvtchnExpandArray`].
        ExpandArray = 12, "expand_array";
        /// Set a port's priority: [`EvtchnSetPriority`].
        SetPriority = 13, "set_priority";
    }

    /// What a port is (`EVTCHNSTAT_*`).
    pub enum EvtchnStat: u32 {
        /// Not in use.
        Closed = 0, "closed";
        /// Waits for a remote domain.
        Unbound = 1, "unbound";
        /// Connected to a remote domain.
        Interdomain = 2, "interdomain";
        /// A physical interrupt.
        Pirq = 3, "pirq";
        /// A virtual interrupt.
        Virq = 4, "virq";
        /// Among own vcpus.
        Ipi = 5, "ipi";
    }
}

/// Ports of the 2-level ABI (`EVTCHN_2L_NR_CHANNELS`).
pub const EVTCHN_2L_NR_CHANNELS: u32 = 4096;
/// Ports of the FIFO ABI (`EVTCHN_FIFO_NR_CHANNELS`).
pub const EVTCHN_FIFO_NR_CHANNELS: u32 = 1 << fifo::LINK_BITS;

/// The FIFO ABI's words and queues.
pub mod fifo {
    /// Event word: the event is pending.
    pub const PENDING: u32 = 1 << 31;
    /// Event word: the event is masked.
    pub const MASKED: u32 = 1 << 30;
    /// Event word: the event is in a queue.
    pub const LINKED: u32 = 1 << 29;
    /// Event word: the guest is unmasking.
    pub const BUSY: u32 = 1 << 28;
    /// Bits of an event word that link to the next port.
    pub const LINK_BITS: u32 = 17;
    /// The link in an event word.
    pub const LINK_MASK: u32 = (1 << LINK_BITS) - 1;
    /// The highest priority.
    pub const PRIORITY_MAX: u32 = 0;
    /// The priority of a port that was given none.
    pub const PRIORITY_DEFAULT: u32 = 7;
    /// The lowest priority.
    pub const PRIORITY_MIN: u32 = 15;
    /// Queues of a vcpu, one for each priority.
    pub const MAX_QUEUES: usize = 16;
    /// Event words in a page.
    pub const WORDS_PER_PAGE: u32 = 1024;
}

abi! {
    /// Make a port that `remote_dom` can connect to.
    ["evtchn_alloc_unbound", 8, "event_channel.h"]
    pub struct EvtchnAllocUnbound {
        /// In: the domain that gets the port.
        pub dom: DomId,
        /// In: the domain that may connect.
        pub remote_dom: DomId,
        /// Out: the port.
        pub port: Port,
    }

    /// Connect to a remote domain's unbound port.
    ["evtchn_bind_interdomain", 12, "event_channel.h"]
    pub struct EvtchnBindInterdomain {
        /// In: the remote domain.
        pub remote_dom: DomId,
        /// Padding.
        pub _pad: u16 = "-",
        /// In: its port.
        pub remote_port: Port,
        /// Out: the caller's port.
        pub local_port: Port,
    }

    /// Bind a virtual interrupt.
    ["evtchn_bind_virq", 12, "event_channel.h"]
    pub struct EvtchnBindVirq {
        /// In: [`Virq`](crate::xen::Virq).
        pub virq: u32,
        /// In: the vcpu.
        pub vcpu: u32,
        /// Out: the port.
        pub port: Port,
    }

    /// Make a port for signals among own vcpus.
    ["evtchn_bind_ipi", 8, "event_channel.h"]
    pub struct EvtchnBindIpi {
        /// In: the vcpu that is told.
        pub vcpu: u32,
        /// Out: the port.
        pub port: Port,
    }

    /// Choose the vcpu to be told.
    ["evtchn_bind_vcpu", 8, "event_channel.h"]
    pub struct EvtchnBindVcpu {
        /// In: the port.
        pub port: Port,
        /// In: the vcpu.
        pub vcpu: u32,
    }

    /// Close a port.
    ["evtchn_close", 4, "event_channel.h"]
    pub struct EvtchnClose {
        /// In: the port.
        pub port: Port,
    }

    /// Signal the other end.
    ["evtchn_send", 4, "event_channel.h"]
    pub struct EvtchnSend {
        /// In: the caller's port.
        pub port: Port,
    }

    /// Unmask.
    ["evtchn_unmask", 4, "event_channel.h"]
    pub struct EvtchnUnmask {
        /// In: the port.
        pub port: Port,
    }

    /// Close every port of a domain.
    ["evtchn_reset", 2, "event_channel.h"]
    pub struct EvtchnReset {
        /// In: the domain.
        pub dom: DomId,
    }

    /// What a port is.
    ["evtchn_status", 24, "event_channel.h"]
    pub struct EvtchnStatus {
        /// In: the domain.
        pub dom: DomId,
        /// Padding.
        pub _pad: u16 = "-",
        /// In: the port.
        pub port: Port,
        /// Out: [`EvtchnStat`].
        pub status: u32,
        /// Out: the vcpu that is told.
        pub vcpu: u32,
        /// Out: the virtual interrupt; of an unbound or interdomain port, the remote domain's number
        /// in the low 16 bits ([`EvtchnStatus::remote_dom`]).
        pub u: u32 = "u.virq",
        /// Out: an interdomain port's remote port.
        pub remote_port: Port = "u.interdomain.port",
    }

    /// Switch a vcpu to the FIFO ABI.
    ["evtchn_init_control_t", 24, "event_channel.h"]
    pub struct EvtchnInitControl {
        /// In: frame of the control block.
        pub control_gfn: u64,
        /// In: its byte offset in the frame, a multiple of 8.
        pub offset: u32,
        /// In: the vcpu.
        pub vcpu: u32,
        /// Out: bits of a link ([`fifo::LINK_BITS`]).
        pub link_bits: u8,
        /// Padding.
        pub pad: [u8; 7] = "_pad",
    }

    /// Add a page of event words.
    ["evtchn_expand_array", 8, "event_channel.h"]
    pub struct EvtchnExpandArray {
        /// In: its frame.
        pub array_gfn: u64,
    }

    /// Set a port's priority.
    ["evtchn_set_priority", 8, "event_channel.h"]
    pub struct EvtchnSetPriority {
        /// In: the port.
        pub port: Port,
        /// In: 0 (highest) to 15 (lowest).
        pub priority: u32,
    }

    /// A vcpu's queue heads, shared with the guest.
    ["evtchn_fifo_control_block_t", 72, "event_channel.h"]
    pub struct EvtchnFifoControlBlock {
        /// One bit for each queue that has events.
        pub ready: u32,
        /// Reserved.
        pub rsvd: u32 = "_rsvd",
        /// First port of each queue, 0 when it is empty.
        pub head: [u32; fifo::MAX_QUEUES],
    }
}

impl EvtchnStatus {
    /// The remote domain of an unbound or interdomain port.
    #[must_use]
    pub const fn remote_dom(&self) -> DomId {
        DomId(self.u as u16)
    }

    /// Writes the remote domain of an unbound or interdomain port.
    pub const fn set_remote_dom(&mut self, dom: DomId) {
        self.u = dom.0 as u32;
    }
}
