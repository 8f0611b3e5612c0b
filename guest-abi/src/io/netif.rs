// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network interfaces (`io/netif.h`): a ring for each direction, each entry a part of a packet.

use super::ring::ring_size;
use crate::GrantRef;
use zerocopy::IntoBytes;

/// Flags of a packet from the guest (`NETTXF_*`).
pub mod nettxf {
    /// The checksum is to be filled in.
    pub const CSUM_BLANK: u16 = 1 << 0;
    /// The contents were checked.
    pub const DATA_VALIDATED: u16 = 1 << 1;
    /// The packet goes on in the next request.
    pub const MORE_DATA: u16 = 1 << 2;
    /// The next entry is a [`NetifExtraInfo`](super::NetifExtraInfo).
    pub const EXTRA_INFO: u16 = 1 << 3;
}

/// Flags of a packet to the guest (`NETRXF_*`).
pub mod netrxf {
    /// The contents were checked.
    pub const DATA_VALIDATED: u16 = 1 << 0;
    /// The checksum is blank.
    pub const CSUM_BLANK: u16 = 1 << 1;
    /// The packet goes on in the next response.
    pub const MORE_DATA: u16 = 1 << 2;
    /// The next entry is a [`NetifExtraInfo`](super::NetifExtraInfo).
    pub const EXTRA_INFO: u16 = 1 << 3;
    /// The response only carries a segment size; obsolete.
    pub const GSO_PREFIX: u16 = 1 << 4;
}

numbers! {
    /// How a request went (`NETIF_RSP_*`); a positive status of a received part is its bytes.
    pub enum Status: i16 {
        /// Dropped.
        Dropped = -2, "DROPPED";
        /// Failed.
        Error = -1, "ERROR";
        /// Done.
        Okay = 0, "OKAY";
        /// No response: the entry held extra information.
        Null = 1, "NULL";
    }

    /// Kinds of extra information (`XEN_NETIF_EXTRA_TYPE_*`).
    pub enum ExtraType: u8 {
        /// The packet is to be split.
        Gso = 1, "GSO";
        /// Receive a multicast address.
        McastAdd = 2, "MCAST_ADD";
        /// Do not receive a multicast address.
        McastDel = 3, "MCAST_DEL";
        /// The packet's hash.
        Hash = 4, "HASH";
    }
}

/// Entries that a packet may use at least (`XEN_NETIF_NR_SLOTS_MIN`).
pub const NR_SLOTS_MIN: u32 = 18;
/// Most bytes of a packet from the guest.
pub const MAX_TX_SIZE: usize = 0xffff;
/// [`NetifExtraInfo::flags`]: another one follows.
pub const EXTRA_FLAG_MORE: u8 = 1 << 0;
/// Splitting: TCP over IPv4.
pub const GSO_TYPE_TCPV4: u8 = 1;
/// Splitting: TCP over IPv6.
pub const GSO_TYPE_TCPV6: u8 = 2;
/// Bytes of an entry of the guest's sending ring.
pub const TX_ENTRY_SIZE: usize = size_of::<NetifTxRequest>();
/// Bytes of an entry of the guest's receiving ring.
pub const RX_ENTRY_SIZE: usize = size_of::<NetifRxRequest>();

/// Entries of a sending ring of one page.
pub const TX_ENTRIES: u32 = 256;
/// Entries of a receiving ring of one page.
pub const RX_ENTRIES: u32 = 256;
const _: () = {
    assert!(matches!(ring_size(4096, TX_ENTRY_SIZE), Some(TX_ENTRIES)));
    assert!(matches!(ring_size(4096, RX_ENTRY_SIZE), Some(RX_ENTRIES)));
};

abi! {
    /// Part of a packet from the guest.
    ["netif_tx_request", 12, "io/netif.h"]
    pub struct NetifTxRequest {
        /// The page.
        pub gref: GrantRef,
        /// First byte in it.
        pub offset: u16,
        /// [`nettxf`].
        pub flags: u16,
        /// The front end's number, which the response repeats.
        pub id: u16,
        /// Bytes; of a packet's first request, of the whole packet.
        pub size: u16,
    }

    /// How it went.
    ["netif_tx_response", 4, "io/netif.h"]
    pub struct NetifTxResponse {
        /// The request's.
        pub id: u16,
        /// [`Status`].
        pub status: i16,
    }

    /// A page to receive into.
    ["netif_rx_request", 8, "io/netif.h"]
    pub struct NetifRxRequest {
        /// The front end's number, which the response repeats.
        pub id: u16,
        /// Padding.
        pub pad: u16,
        /// The page.
        pub gref: GrantRef,
    }

    /// Part of a packet to the guest.
    ["netif_rx_response", 8, "io/netif.h"]
    pub struct NetifRxResponse {
        /// The request's.
        pub id: u16,
        /// First byte in the page.
        pub offset: u16,
        /// [`netrxf`].
        pub flags: u16,
        /// [`Status`], or bytes.
        pub status: i16,
    }

    /// Extra information, in the place of a request or response.
    ["netif_extra_info", 8, "io/netif.h"]
    pub struct NetifExtraInfo {
        /// [`ExtraType`].
        pub kind: u8 = "type",
        /// [`EXTRA_FLAG_MORE`].
        pub flags: u8,
        /// By its kind: [`NetifExtraInfo::gso_size`], [`NetifExtraInfo::mcast_addr`].
        pub u: [u8; 6] = "u.pad",
    }

    /// A request on the control ring.
    ["xen_netif_ctrl_request", 16, "io/netif.h"]
    pub struct NetifCtrlRequest {
        /// The front end's number, which the response repeats.
        pub id: u16,
        /// What it asks.
        pub kind: u16 = "type",
        /// Its arguments.
        pub data: [u32; 3],
    }

    /// How it went.
    ["xen_netif_ctrl_response", 12, "io/netif.h"]
    pub struct NetifCtrlResponse {
        /// The request's.
        pub id: u16,
        /// The request's.
        pub kind: u16 = "type",
        /// 0 done, 1 not supported, 2 invalid parameter, 3 buffer overflow.
        pub status: u32,
        /// Its value.
        pub data: u32,
    }
}

impl NetifExtraInfo {
    /// The packet is to be split into segments of `size` bytes, by `GSO_TYPE_*`.
    #[must_use]
    pub const fn gso(size: u16, kind: u8, flags: u8) -> Self {
        let s = size.to_le_bytes();
        Self {
            kind: ExtraType::Gso.number(),
            flags,
            u: [s[0], s[1], kind, 0, 0, 0],
        }
    }

    /// Splitting: bytes of a segment.
    #[must_use]
    pub const fn gso_size(&self) -> u16 {
        u16::from_le_bytes([self.u[0], self.u[1]])
    }

    /// Splitting: `GSO_TYPE_*`.
    #[must_use]
    pub const fn gso_type(&self) -> u8 {
        self.u[2]
    }

    /// Multicast: the address.
    #[must_use]
    pub const fn mcast_addr(&self) -> [u8; 6] {
        self.u
    }

    /// Reads it from the entry of a request.
    #[must_use]
    pub fn from_tx(r: &NetifTxRequest) -> Self {
        let mut e = Self::default();
        for (to, from) in e.as_mut_bytes().iter_mut().zip(r.as_bytes()) {
            *to = *from;
        }
        e
    }

    /// Writes it as the entry of a request.
    #[must_use]
    pub fn to_tx(&self) -> NetifTxRequest {
        let mut r = NetifTxRequest::default();
        for (to, from) in r.as_mut_bytes().iter_mut().zip(self.as_bytes()) {
            *to = *from;
        }
        r
    }

    /// Reads it from the entry of a response.
    #[must_use]
    pub fn from_rx(r: &NetifRxResponse) -> Self {
        zerocopy::transmute!(*r)
    }

    /// Writes it as the entry of a response.
    #[must_use]
    pub fn to_rx(&self) -> NetifRxResponse {
        zerocopy::transmute!(*self)
    }
}
