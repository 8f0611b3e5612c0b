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

numbers! {
    /// What a request on the control ring asks (`XEN_NETIF_CTRL_TYPE_*`).
    pub enum CtrlType: u16 {
        /// Which hashes the back end can compute: bits `HASH_TYPE_*`.
        GetHashFlags = 1, "GET_HASH_FLAGS";
        /// Which hashes it shall compute: `data[0]` bits `HASH_TYPE_*`.
        SetHashFlags = 2, "SET_HASH_FLAGS";
        /// The hash's key: `data[0]` the grant of its page, `data[1]` bytes.
        SetHashKey = 3, "SET_HASH_KEY";
        /// Most entries of the table from hash to queue.
        GetHashMappingSize = 4, "GET_HASH_MAPPING_SIZE";
        /// How many entries that table shall have: `data[0]`.
        SetHashMappingSize = 5, "SET_HASH_MAPPING_SIZE";
        /// Entries of that table: `data[0]` the grant of a page of `u32` queue numbers, `data[1]` how many,
        /// `data[2]` the first entry's index.
        SetHashMapping = 6, "SET_HASH_MAPPING";
        /// Which hash: `data[0]` one of `HASH_ALGORITHM_*`.
        SetHashAlgorithm = 7, "SET_HASH_ALGORITHM";
        /// Most grants that the back end keeps mapped for a queue: `data[0]` the queue.
        GetGrefMappingSize = 8, "GET_GREF_MAPPING_SIZE";
        /// Keep grants mapped: `data[0]` the queue, `data[1]` the grant of a page of them, `data[2]` how many.
        AddGrefMapping = 9, "ADD_GREF_MAPPING";
        /// Let go of such grants: arguments as [`CtrlType::AddGrefMapping`].
        DelGrefMapping = 10, "DEL_GREF_MAPPING";
    }

    /// How a request on the control ring went (`XEN_NETIF_CTRL_STATUS_*`).
    pub enum CtrlStatus: u32 {
        /// Done.
        Success = 0, "SUCCESS";
        /// The back end does not know it.
        NotSupported = 1, "NOT_SUPPORTED";
        /// An argument makes no sense.
        InvalidParameter = 2, "INVALID_PARAMETER";
        /// An argument is larger than the back end can hold.
        BufferOverflow = 3, "BUFFER_OVERFLOW";
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
/// Hash: source and destination address of IPv4 (`XEN_NETIF_CTRL_HASH_TYPE_IPV4`).
pub const HASH_TYPE_IPV4: u32 = 1 << 0;
/// Hash: addresses and ports of TCP over IPv4.
pub const HASH_TYPE_IPV4_TCP: u32 = 1 << 1;
/// Hash: source and destination address of IPv6.
pub const HASH_TYPE_IPV6: u32 = 1 << 2;
/// Hash: addresses and ports of TCP over IPv6.
pub const HASH_TYPE_IPV6_TCP: u32 = 1 << 3;
/// Hash: none (`XEN_NETIF_CTRL_HASH_ALGORITHM_NONE`).
pub const HASH_ALGORITHM_NONE: u8 = 0;
/// Hash: Toeplitz (`XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ`).
pub const HASH_ALGORITHM_TOEPLITZ: u8 = 1;
/// Bytes of an entry of the guest's sending ring.
pub const TX_ENTRY_SIZE: usize = size_of::<NetifTxRequest>();
/// Bytes of an entry of the guest's receiving ring.
pub const RX_ENTRY_SIZE: usize = size_of::<NetifRxRequest>();

/// Entries of a sending ring of one page.
pub const TX_ENTRIES: u32 = 256;
/// Entries of a receiving ring of one page.
pub const RX_ENTRIES: u32 = 256;
/// Entries of a control ring, which has one page.
pub const CTRL_ENTRIES: u32 = 128;
const _: () = {
    assert!(matches!(ring_size(4096, TX_ENTRY_SIZE), Some(TX_ENTRIES)));
    assert!(matches!(ring_size(4096, RX_ENTRY_SIZE), Some(RX_ENTRIES)));
    assert!(matches!(
        ring_size(4096, size_of::<NetifCtrlRequest>()),
        Some(CTRL_ENTRIES)
    ));
    // Extra information takes the place of a request or of a response.
    assert!(size_of::<NetifExtraInfo>() <= TX_ENTRY_SIZE);
    assert!(size_of::<NetifExtraInfo>() == size_of::<NetifRxResponse>());
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
        /// By its kind: [`NetifExtraInfo::gso_size`], [`NetifExtraInfo::mcast_addr`],
        /// [`NetifExtraInfo::hash_value`].
        pub u: [u8; 6] = "u.pad",
    }

    /// A request on the control ring.
    ["xen_netif_ctrl_request", 16, "io/netif.h"]
    pub struct NetifCtrlRequest {
        /// The front end's number, which the response repeats.
        pub id: u16,
        /// [`CtrlType`].
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
        /// [`CtrlStatus`].
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

    /// Receive a multicast address from now on, or (`on` false) not any more. The request before it has size 0.
    #[must_use]
    pub const fn mcast(on: bool, addr: [u8; 6]) -> Self {
        let kind = if on {
            ExtraType::McastAdd
        } else {
            ExtraType::McastDel
        };
        Self {
            kind: kind.number(),
            flags: 0,
            u: addr,
        }
    }

    /// The packet's hash: one of `HASH_TYPE_*` by its bit's number, one of `HASH_ALGORITHM_*`, and the value.
    #[must_use]
    pub const fn hash(kind: u8, algorithm: u8, value: [u8; 4], flags: u8) -> Self {
        let v = value;
        Self {
            kind: ExtraType::Hash.number(),
            flags,
            u: [kind, algorithm, v[0], v[1], v[2], v[3]],
        }
    }

    /// Whether another one follows.
    #[must_use]
    pub const fn more(&self) -> bool {
        self.flags & EXTRA_FLAG_MORE != 0
    }

    /// Hash: which (`HASH_TYPE_*` by its bit's number).
    #[must_use]
    pub const fn hash_type(&self) -> u8 {
        self.u[0]
    }

    /// Hash: `HASH_ALGORITHM_*`.
    #[must_use]
    pub const fn hash_algorithm(&self) -> u8 {
        self.u[1]
    }

    /// Hash: its value.
    #[must_use]
    pub const fn hash_value(&self) -> [u8; 4] {
        [self.u[2], self.u[3], self.u[4], self.u[5]]
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

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn extra_information_in_both_entries() {
        for e in [
            NetifExtraInfo::gso(1448, GSO_TYPE_TCPV4, EXTRA_FLAG_MORE),
            NetifExtraInfo::mcast(true, [1, 0, 0x5e, 4, 5, 6]),
            NetifExtraInfo::mcast(false, [1, 0, 0x5e, 4, 5, 6]),
            NetifExtraInfo::hash(1, HASH_ALGORITHM_TOEPLITZ, [9, 8, 7, 6], 0),
        ] {
            assert_eq!(NetifExtraInfo::from_tx(&e.to_tx()), e);
            assert_eq!(NetifExtraInfo::from_rx(&e.to_rx()), e);
        }
        let e = NetifExtraInfo::gso(1448, GSO_TYPE_TCPV6, EXTRA_FLAG_MORE);
        assert_eq!((e.gso_size(), e.gso_type(), e.more()), (1448, 2, true));
        assert_eq!(e.as_bytes(), [1, 1, 0xa8, 5, 2, 0, 0, 0]);
        let e = NetifExtraInfo::mcast(false, [1, 2, 3, 4, 5, 6]);
        assert_eq!(
            (e.kind, e.mcast_addr(), e.more()),
            (3, [1, 2, 3, 4, 5, 6], false)
        );
        let e = NetifExtraInfo::hash(3, HASH_ALGORITHM_TOEPLITZ, [9, 8, 7, 6], 0);
        assert_eq!(
            (e.hash_type(), e.hash_algorithm(), e.hash_value()),
            (3, 1, [9, 8, 7, 6])
        );
        assert_eq!(e.as_bytes(), [4, 0, 3, 1, 9, 8, 7, 6]);
        assert_eq!(
            NetifExtraInfo::from_tx(&NetifTxRequest::new_zeroed()).kind,
            0
        );
    }
}
