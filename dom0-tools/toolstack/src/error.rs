// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why something could not be done, in words.

use alloc::format;
use alloc::string::String;
use core::fmt;

use crate::host::Errno;

/// A failure in words: what was tried, on what, and why it went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub String);

/// A result with an [`Error`].
pub type Result<T> = core::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Error {}

/// An error number in words for people.
pub(crate) fn words(e: Errno) -> &'static str {
    match e {
        Errno::EPERM | Errno::EACCES => "not allowed",
        Errno::ENOENT => "there is no such thing",
        Errno::ESRCH => "there is no such domain",
        Errno::EIO => "an input/output error",
        Errno::EBUSY => "it is in use",
        Errno::EEXIST => "it is there already",
        Errno::EINVAL => "not valid",
        Errno::EISDIR => "it is a folder",
        Errno::ENOMEM => "not enough memory",
        Errno::ENOSPC => "no space is left",
        Errno::EROFS => "it cannot be written",
        Errno::ENOSYS | Errno::EOPNOTSUPP => "not supported",
        Errno::ETIMEDOUT => "it took too long",
        Errno::ENAMETOOLONG => "the name is too long",
        other => other.name(),
    }
}

/// Says what was tried when a call failed.
pub(crate) trait Context<T> {
    /// Adds what was tried.
    fn during(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for core::result::Result<T, Errno> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(told).during(what)
    }
}

impl<T> Context<T> for Result<T> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error(format!("{what}: {e}")))
    }
}

/// An error number in words, with its name.
pub(crate) fn told(e: Errno) -> Error {
    match words(e) {
        known if known != e.name() => Error(format!("{known} ({e})")),
        name => Error(name.into()),
    }
}

/// A failure from a format string.
macro_rules! fail {
    ($($arg:tt)*) => { Err($crate::error::Error(alloc::format!($($arg)*))) };
}
pub(crate) use fail;
