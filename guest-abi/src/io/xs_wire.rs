// SPDX-License-Identifier: MIT OR Apache-2.0
//! The xenstore protocol (`io/xs_wire.h`): messages, limits, and the page with its two byte rings.

use super::ring::ByteRing;
use crate::Errno;
use core::mem::offset_of;

numbers! {
    /// What a message asks or answers (`XS_*`).
    pub enum MsgType: u32 {
        /// Control of the daemon.
        Control = 0, "CONTROL";
        /// Children of a node.
        Directory = 1, "DIRECTORY";
        /// Value of a node.
        Read = 2, "READ";
        /// Permissions of a node.
        GetPerms = 3, "GET_PERMS";
        /// Watch a node.
        Watch = 4, "WATCH";
        /// End a watch.
        Unwatch = 5, "UNWATCH";
        /// Start a transaction.
        TransactionStart = 6, "TRANSACTION_START";
        /// End a transaction.
        TransactionEnd = 7, "TRANSACTION_END";
        /// Tell of a new domain.
        Introduce = 8, "INTRODUCE";
        /// Tell that a domain is gone.
        Release = 9, "RELEASE";
        /// Where a domain's part of the store is.
        GetDomainPath = 10, "GET_DOMAIN_PATH";
        /// Write a node.
        Write = 11, "WRITE";
        /// Make a node.
        Mkdir = 12, "MKDIR";
        /// Remove a node and what is below.
        Rm = 13, "RM";
        /// Set permissions.
        SetPerms = 14, "SET_PERMS";
        /// From the daemon: a watch fired.
        WatchEvent = 15, "WATCH_EVENT";
        /// From the daemon: an error's name.
        Error = 16, "ERROR";
        /// Whether a domain was introduced.
        IsDomainIntroduced = 17, "IS_DOMAIN_INTRODUCED";
        /// Undo a domain's shutdown mark.
        Resume = 18, "RESUME";
        /// Let a domain act for another.
        SetTarget = 19, "SET_TARGET";
        /// Forget the sender's watches and transactions.
        ResetWatches = 21, "RESET_WATCHES";
        /// Part of a long list of children.
        DirectoryPart = 22, "DIRECTORY_PART";
    }
}

abi! {
    /// Head of a message; `len` bytes follow.
    ["xsd_sockmsg", 16, "io/xs_wire.h"]
    pub struct XsdSockmsg {
        /// [`MsgType`].
        pub kind: u32 = "type",
        /// The sender's number, which the answer repeats.
        pub req_id: u32,
        /// The transaction, 0 for none.
        pub tx_id: u32,
        /// Bytes that follow, at most [`PAYLOAD_MAX`].
        pub len: u32,
    }

    /// The page.
    ["xenstore_domain_interface", 2076, "io/xs_wire.h"]
    pub struct XenstoreDomainInterface {
        /// From the guest to the daemon.
        pub req: [u8; 1024],
        /// From the daemon to the guest.
        pub rsp: [u8; 1024],
        /// The daemon's.
        pub req_cons: u32,
        /// The guest's.
        pub req_prod: u32,
        /// The guest's.
        pub rsp_cons: u32,
        /// The daemon's.
        pub rsp_prod: u32,
        /// `SERVER_FEATURE_*`.
        pub server_features: u32,
        /// [`CONNECTED`] or [`RECONNECT`].
        pub connection: u32,
        /// `ERROR_*`.
        pub error: u32,
    }
}

/// Size in bytes of each ring.
pub const RING_SIZE: u32 = 1024;
/// Most bytes after a message's head.
pub const PAYLOAD_MAX: usize = 4096;
/// Most bytes of an absolute path, its closing zero included.
pub const ABS_PATH_MAX: usize = 3072;
/// Most bytes of a relative path, its closing zero included.
pub const REL_PATH_MAX: usize = 2048;
/// The guest may ask for a reconnection.
pub const SERVER_FEATURE_RECONNECTION: u32 = 1;
/// The `error` word is there.
pub const SERVER_FEATURE_ERROR: u32 = 2;
/// `connection`: in use.
pub const CONNECTED: u32 = 0;
/// `connection`: the guest asks for a reconnection, which the daemon ends with [`CONNECTED`].
pub const RECONNECT: u32 = 1;
/// `error`: none.
pub const ERROR_NONE: u32 = 0;
/// `error`: communication.
pub const ERROR_COMM: u32 = 1;
/// `error`: a ring index is invalid.
pub const ERROR_RINGIDX: u32 = 2;
/// `error`: a message is too long.
pub const ERROR_PROTO: u32 = 3;
/// Byte offset of the `server_features` word.
pub const SERVER_FEATURES: usize = offset_of!(XenstoreDomainInterface, server_features);
/// Byte offset of the `connection` word.
pub const CONNECTION: usize = offset_of!(XenstoreDomainInterface, connection);
/// Byte offset of the `error` word.
pub const ERROR: usize = offset_of!(XenstoreDomainInterface, error);

/// Requests: the guest writes, the daemon reads.
pub const REQ: ByteRing = ByteRing {
    data: offset_of!(XenstoreDomainInterface, req),
    size: RING_SIZE,
    prod: offset_of!(XenstoreDomainInterface, req_prod),
    cons: offset_of!(XenstoreDomainInterface, req_cons),
};

/// Answers and watch events: the daemon writes, the guest reads.
pub const RSP: ByteRing = ByteRing {
    data: offset_of!(XenstoreDomainInterface, rsp),
    size: RING_SIZE,
    prod: offset_of!(XenstoreDomainInterface, rsp_prod),
    cons: offset_of!(XenstoreDomainInterface, rsp_cons),
};

/// The errors whose names an [`MsgType::Error`] carries.
pub const ERRORS: &[Errno] = &[
    Errno::EINVAL,
    Errno::EACCES,
    Errno::EEXIST,
    Errno::EISDIR,
    Errno::ENOENT,
    Errno::ENOMEM,
    Errno::ENOSPC,
    Errno::EIO,
    Errno::ENOTEMPTY,
    Errno::ENOSYS,
    Errno::EROFS,
    Errno::EBUSY,
    Errno::EAGAIN,
    Errno::EISCONN,
    Errno::E2BIG,
    Errno::EPERM,
];

/// The error of a name, without its closing zero; [`Errno::EINVAL`] when it is none of [`ERRORS`].
#[must_use]
pub fn errno_of(name: &[u8]) -> Errno {
    for e in ERRORS {
        if e.name().as_bytes() == name {
            return *e;
        }
    }
    Errno::EINVAL
}
