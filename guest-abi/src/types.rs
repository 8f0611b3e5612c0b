// SPDX-License-Identifier: MIT OR Apache-2.0
//! The identifiers of the ABI as distinct types.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id!(
    /// A domain's number, `domid_t` of `xen.h`: 0 is the control domain, guests follow, numbers
    /// from 0x7ff0 on are reserved.
    DomId(u16)
);
id!(
    /// An event-channel port, `evtchn_port_t` of `event_channel.h`. Port 0 is never valid.
    Port(u32)
);
id!(
    /// A grant reference, `grant_ref_t` of `grant_table.h`: an index into the granter's table.
    GrantRef(u32)
);
id!(
    /// A guest frame number: a guest physical address (IPA) in units of 4 KiB pages.
    Gfn(u64)
);
id!(
    /// A machine frame number: a machine physical address (PA) in units of 4 KiB pages.
    Mfn(u64)
);

impl DomId {
    /// The caller itself (`DOMID_SELF`).
    pub const SELF: Self = Self(0x7ff0);
    /// Pages of I/O devices (`DOMID_IO`).
    pub const IO: Self = Self(0x7ff1);
    /// The hypervisor (`DOMID_XEN`).
    pub const XEN: Self = Self(0x7ff2);
    /// Copy-on-write shared pages (`DOMID_COW`).
    pub const COW: Self = Self(0x7ff3);
    /// No domain (`DOMID_INVALID`).
    pub const INVALID: Self = Self(0x7ff4);
    /// The idle domain (`DOMID_IDLE`).
    pub const IDLE: Self = Self(0x7fff);
    /// The first reserved number (`DOMID_FIRST_RESERVED`): real domains are below it.
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
}

impl Gfn {
    /// The frame so many further on; beyond the end of all numbers from 0 on again.
    #[must_use]
    #[inline]
    pub const fn plus(self, frames: u64) -> Self {
        Self(self.0.wrapping_add(frames))
    }
    /// The first byte's guest physical address.
    #[must_use]
    pub const fn addr(self) -> u64 {
        self.0 << 12
    }
    /// The frame that holds a guest physical address.
    #[must_use]
    pub const fn of(addr: u64) -> Self {
        Self(addr >> 12)
    }
}

impl Mfn {
    /// The frame so many further on; beyond the end of all numbers from 0 on again.
    #[must_use]
    #[inline]
    pub const fn plus(self, frames: u64) -> Self {
        Self(self.0.wrapping_add(frames))
    }
    /// The first byte's machine physical address.
    #[must_use]
    pub const fn addr(self) -> u64 {
        self.0 << 12
    }
    /// The frame that holds a machine physical address.
    #[must_use]
    pub const fn of(addr: u64) -> Self {
        Self(addr >> 12)
    }
}
