// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers and layouts of the wire protocol (Xen's `io/xs_wire.h`).

/// Bytes of a message's header, `struct xsd_sockmsg`.
pub const HEADER_LEN: usize = 16;
/// Most bytes that may follow a header, in both directions (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;
/// Longest absolute path in bytes (`XENSTORE_ABS_PATH_MAX`).
pub const ABS_PATH_MAX: usize = 3072;
/// Longest relative path in bytes, as given (`XENSTORE_REL_PATH_MAX`).
pub const REL_PATH_MAX: usize = 2048;

/// `struct xenstore_domain_interface`: byte offsets in the page that a domain shares with the store.
pub mod ring {
    /// Bytes of each of the two rings (`XENSTORE_RING_SIZE`), a power of two.
    pub const SIZE: u32 = 1024;
    /// Requests, `char req[1024]`.
    pub const REQ: usize = 0;
    /// Replies and events, `char rsp[1024]`.
    pub const RSP: usize = 1024;
    /// `req_cons`: free-running, moved by the store.
    pub const REQ_CONS: usize = 2048;
    /// `req_prod`: free-running, moved by the domain.
    pub const REQ_PROD: usize = 2052;
    /// `rsp_cons`: free-running, moved by the domain.
    pub const RSP_CONS: usize = 2056;
    /// `rsp_prod`: free-running, moved by the store.
    pub const RSP_PROD: usize = 2060;
    /// `server_features`: bits that the store sets.
    pub const SERVER_FEATURES: usize = 2064;
    /// `connection`: [`CONNECTED`] or [`RECONNECT`].
    pub const CONNECTION: usize = 2068;
    /// `error`: why the store stopped serving the ring, or [`ERROR_NONE`].
    pub const ERROR: usize = 2072;

    /// The store serves reconnection (`XENSTORE_SERVER_FEATURE_RECONNECTION`).
    pub const FEATURE_RECONNECTION: u32 = 1;
    /// The store reports errors in `error` (`XENSTORE_SERVER_FEATURE_ERROR`).
    pub const FEATURE_ERROR: u32 = 2;

    /// The steady state of `connection` (`XENSTORE_CONNECTED`).
    pub const CONNECTED: u32 = 0;
    /// The domain asks for a new start (`XENSTORE_RECONNECT`).
    pub const RECONNECT: u32 = 1;

    /// No error (`XENSTORE_ERROR_NONE`).
    pub const ERROR_NONE: u32 = 0;
    /// A producer is more than a ring ahead of its consumer (`XENSTORE_ERROR_RINGIDX`).
    pub const ERROR_RINGIDX: u32 = 2;
    /// A payload longer than [`super::PAYLOAD_MAX`] was announced (`XENSTORE_ERROR_PROTO`).
    pub const ERROR_PROTO: u32 = 3;
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $n:literal),* $(,)?) => {
        /// What a message is, the header's `type` (`enum xsd_sockmsg_type`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Op { $($(#[$doc])* $name = $n),* }

        impl Op {
            /// From the header's number; `None` for one that the protocol does not have.
            #[must_use]
            pub const fn from_number(n: u32) -> Option<Self> {
                match n { $($n => Some(Self::$name),)* _ => None }
            }
        }
    };
}

ops! {
    /// A command to the store itself; domain 0 only.
    Control = 0,
    /// Names of a node's children.
    Directory = 1,
    /// A node's value.
    Read = 2,
    /// A node's permissions.
    GetPerms = 3,
    /// Sets a watch.
    Watch = 4,
    /// Takes a watch away.
    Unwatch = 5,
    /// Begins a transaction.
    TransactionStart = 6,
    /// Commits or drops a transaction.
    TransactionEnd = 7,
    /// The store is to serve a domain; domain 0 only.
    Introduce = 8,
    /// The store is to serve a domain no more; domain 0 only.
    Release = 9,
    /// A domain's home path.
    GetDomainPath = 10,
    /// Sets a node's value, making the node if need be.
    Write = 11,
    /// Makes a node unless it is there.
    Mkdir = 12,
    /// Removes a node and all below it.
    Rm = 13,
    /// Sets a node's permissions.
    SetPerms = 14,
    /// Store to client: a watched path changed.
    WatchEvent = 15,
    /// Store to client: the request failed.
    Error = 16,
    /// Whether the store serves a domain.
    IsDomainIntroduced = 17,
    /// A shut-down domain runs again; domain 0 only.
    Resume = 18,
    /// A domain acts for another; domain 0 only.
    SetTarget = 19,
    /// Drops the caller's watches and transactions.
    ResetWatches = 21,
    /// A part of a long list of children.
    DirectoryPart = 22,
}

/// A message's header, `struct xsd_sockmsg`: four little-endian words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// An [`Op`]'s number, or anything else that a client sent.
    pub kind: u32,
    /// The client's number for the request, echoed in the reply.
    pub req_id: u32,
    /// The transaction, 0 for none.
    pub tx_id: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` if there are too few.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let four = bytes.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes(four.try_into().ok()?))
        };
        Some(Self {
            kind: word(0)?,
            req_id: word(4)?,
            tx_id: word(8)?,
            len: word(12)?,
        })
    }

    /// The header as it goes over the ring.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let words = [self.kind, self.req_id, self.tx_id, self.len];
        for (slot, word) in out.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}
