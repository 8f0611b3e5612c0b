// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong.

use core::fmt;
use guest_abi::Errno;
use guest_abi::io::ring::RingError;

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The deadline passed. Whether the other end did it is not known.
    TimedOut,
    /// A hypercall failed.
    Xen(Errno),
    /// xenstore answered with this error.
    Store(Errno),
    /// The other end broke the protocol; what, for people. The connection is not used any more.
    Protocol(&'static str),
    /// A value in the store makes no sense.
    BadValue,
    /// The other end is closed or gone, or the connection was ended.
    Gone,
    /// There is no such device.
    NoDevice,
    /// No memory, no page, no grant.
    NoMemory,
    /// As much as possible is under way already; it can be tried again when something of it is done.
    Busy,
    /// The caller's argument makes no sense: out of range, too long, with a zero byte.
    Invalid,
    /// The device reports that it failed.
    Failed,
    /// The other end does not offer this.
    Unsupported,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("timed out"),
            Self::Xen(e) => write!(f, "hypercall: {}", e.name()),
            Self::Store(e) => write!(f, "xenstore: {}", e.name()),
            Self::Protocol(what) => write!(f, "the other end broke the protocol: {what}"),
            Self::BadValue => f.write_str("a value in xenstore makes no sense"),
            Self::Gone => f.write_str("the other end is gone"),
            Self::NoDevice => f.write_str("no such device"),
            Self::NoMemory => f.write_str("out of memory"),
            Self::Busy => f.write_str("busy"),
            Self::Invalid => f.write_str("invalid argument"),
            Self::Failed => f.write_str("the device failed"),
            Self::Unsupported => f.write_str("not supported by the other end"),
        }
    }
}

impl core::error::Error for Error {}

impl From<RingError> for Error {
    fn from(_: RingError) -> Self {
        Self::Protocol("impossible ring index")
    }
}

#[cfg(feature = "embedded-io")]
impl embedded_io::Error for Error {
    fn kind(&self) -> embedded_io::ErrorKind {
        use embedded_io::ErrorKind as Kind;
        match self {
            Self::TimedOut => Kind::TimedOut,
            Self::Protocol(_) | Self::BadValue => Kind::InvalidData,
            Self::Gone => Kind::NotConnected,
            Self::NoDevice => Kind::NotFound,
            Self::NoMemory => Kind::OutOfMemory,
            Self::Invalid => Kind::InvalidInput,
            Self::Unsupported => Kind::Unsupported,
            _ => Kind::Other,
        }
    }
}
