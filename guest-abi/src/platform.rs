// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control of the platform by the control domain (`platform.h`): on Arm only the wall clock.

/// What every [`PlatformOp`] carries (`XENPF_INTERFACE_VERSION`).
pub const INTERFACE_VERSION: u32 = 0x0300_0001;

numbers! {
    /// Operations of `platform_op` that exist on Arm (`XENPF_*`).
    pub enum PlatformCmd: u32 {
        /// Set the wall clock: [`PlatformSettime64`].
        Settime64 = 62, "settime64";
    }
}

abi! {
    /// Set the wall clock.
    ["xenpf_settime64", 24, "platform.h"]
    pub struct PlatformSettime64 {
        /// In: seconds since 1970.
        pub secs: u64,
        /// In: nanoseconds.
        pub nsecs: u32,
        /// Zero.
        pub mbz: u32,
        /// In: the system time, in nanoseconds since boot, at which that was so.
        pub system_time: u64,
    }

    /// The argument of `platform_op`.
    ["xen_platform_op", 136, "platform.h"]
    pub struct PlatformOp {
        /// [`PlatformCmd`].
        pub cmd: u32,
        /// [`INTERFACE_VERSION`].
        pub interface_version: u32,
        /// The operation's own.
        pub settime64: PlatformSettime64 = "u.settime64",
        /// The rest of the union.
        pub _pad: [u64; 13] = "-",
    }
}
