// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of things inside the hypervisor. Addresses and ids never travel as bare integers.

pub use guest_abi::{DomId, Errno, Gfn, GrantRef, Mfn, Port};

/// Domains that may exist at one time, dying ones included: each needs a VMID of 8 bits.
pub const MAX_DOMAINS: usize = 128;
/// Virtual CPUs that one domain may have: a set of them fits one 64-bit word.
pub const MAX_VCPUS: usize = 64;
/// Physical CPUs.
pub const MAX_CPUS: usize = 8;
/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

/// A domain's place in the hypervisor's tables (not its [`DomId`]): below [`MAX_DOMAINS`].
/// A slot is used again only after everything of the old domain is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u8);

impl Slot {
    /// As an index.
    #[must_use]
    #[inline]
    pub const fn idx(self) -> usize {
        self.0 as usize
    }
}

/// A virtual CPU's number within its domain, below [`MAX_VCPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u8);

impl VcpuId {
    /// As an index.
    #[must_use]
    #[inline]
    pub const fn idx(self) -> usize {
        self.0 as usize
    }
}

/// One virtual CPU of one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuRef {
    /// The domain.
    pub slot: Slot,
    /// The virtual CPU in it.
    pub vcpu: VcpuId,
}

/// A physical CPU's number, below [`MAX_CPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub u8);

impl CpuId {
    /// As an index.
    #[must_use]
    #[inline]
    pub const fn idx(self) -> usize {
        self.0 as usize
    }
}

/// A machine physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pa(pub u64);

impl Pa {
    /// The frame that holds it.
    #[must_use]
    #[inline]
    pub const fn mfn(self) -> Mfn {
        Mfn(self.0 >> 12)
    }
    /// `bytes` further on.
    #[must_use]
    #[inline]
    pub const fn add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// What a mapping or a reference allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}
