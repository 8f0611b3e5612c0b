// SPDX-License-Identifier: MIT OR Apache-2.0
//! Error numbers of the ABI (`errno.h`).

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $n:literal),* $(,)?) => {
        /// An error of the ABI. A hypercall answers with the number negated.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        #[allow(clippy::upper_case_acronyms)]
        pub enum Errno { $($(#[$doc])* $name = $n),* }

        impl Errno {
            /// The positive number.
            #[must_use]
            pub const fn number(self) -> i32 { self as i32 }
            /// What a hypercall returns for it, as the guest's x0 holds it.
            #[must_use]
            pub const fn to_ret(self) -> i64 { -(self as i32 as i64) }
            /// From a positive number.
            #[must_use]
            pub const fn from_number(n: i32) -> Option<Self> {
                match n { $($n => Some(Self::$name),)* _ => None }
            }
            /// The name, such as `EINVAL`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1,
    /// No such entry.
    ENOENT = 2,
    /// No such domain.
    ESRCH = 3,
    /// Interrupted.
    EINTR = 4,
    /// I/O error.
    EIO = 5,
    /// No such device or address.
    ENXIO = 6,
    /// Argument list too long.
    E2BIG = 7,
    /// Not an executable.
    ENOEXEC = 8,
    /// Bad file.
    EBADF = 9,
    /// No child.
    ECHILD = 10,
    /// Try again.
    EAGAIN = 11,
    /// Out of memory.
    ENOMEM = 12,
    /// Permission denied.
    EACCES = 13,
    /// Bad address.
    EFAULT = 14,
    /// Busy.
    EBUSY = 16,
    /// Exists.
    EEXIST = 17,
    /// Across devices.
    EXDEV = 18,
    /// No such device.
    ENODEV = 19,
    /// Not a directory.
    ENOTDIR = 20,
    /// Is a directory.
    EISDIR = 21,
    /// Invalid argument.
    EINVAL = 22,
    /// Too many open files in the system.
    ENFILE = 23,
    /// Too many open files.
    EMFILE = 24,
    /// Out of some space.
    ENOSPC = 28,
    /// Read-only.
    EROFS = 30,
    /// Too many links.
    EMLINK = 31,
    /// Out of domain.
    EDOM = 33,
    /// Out of range.
    ERANGE = 34,
    /// Would deadlock.
    EDEADLK = 35,
    /// Name too long.
    ENAMETOOLONG = 36,
    /// No locks.
    ENOLCK = 37,
    /// Not implemented.
    ENOSYS = 38,
    /// Not empty.
    ENOTEMPTY = 39,
    /// No data.
    ENODATA = 61,
    /// A timer ran out.
    ETIME = 62,
    /// Not a data message.
    EBADMSG = 74,
    /// Too large for the type.
    EOVERFLOW = 75,
    /// Illegal byte sequence.
    EILSEQ = 84,
    /// The call was cut short and is to be made again.
    ERESTART = 85,
    /// Not a socket.
    ENOTSOCK = 88,
    /// Message too long.
    EMSGSIZE = 90,
    /// Not supported.
    EOPNOTSUPP = 95,
    /// Address in use.
    EADDRINUSE = 98,
    /// Address not available.
    EADDRNOTAVAIL = 99,
    /// No buffers.
    ENOBUFS = 105,
    /// Is connected.
    EISCONN = 106,
    /// Not connected.
    ENOTCONN = 107,
    /// Timed out.
    ETIMEDOUT = 110,
    /// Refused.
    ECONNREFUSED = 111,
}

impl Errno {
    /// Reads what a hypercall returned: a value of 0 or more, or an error's number negated. A number
    /// that the ABI does not define is taken for [`Errno::EIO`].
    ///
    /// # Errors
    /// The error that was returned.
    pub const fn check(ret: i64) -> Result<u64, Self> {
        if ret >= 0 {
            return Ok(ret as u64);
        }
        if ret < -4095 {
            return Err(Self::EIO);
        }
        match Self::from_number(-ret as i32) {
            Some(e) => Err(e),
            None => Err(Self::EIO),
        }
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for Errno {}
