// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scheduling as a guest sees it (`sched.h`).

use crate::DomId;

numbers! {
    /// Operations of `sched_op` (`SCHEDOP_*`).
    pub enum SchedOp: u64 {
        /// Let others run.
        Yield = 0, "yield";
        /// Sleep until an event comes.
        Block = 1, "block";
        /// Stop the domain: [`SchedShutdown`].
        Shutdown = 2, "shutdown";
        /// Sleep until one of some ports is pending or a time has come: [`SchedPoll`].
        Poll = 3, "poll";
        /// Stop another domain: [`SchedRemoteShutdown`].
        RemoteShutdown = 4, "remote_shutdown";
        /// Say why the domain will stop: [`SchedShutdown`].
        ShutdownCode = 5, "shutdown_code";
        /// Set a watchdog: [`SchedWatchdog`].
        Watchdog = 6, "watchdog";
        /// Pin the calling vcpu: [`SchedPinOverride`]; the hardware domain.
        PinOverride = 7, "pin_override";
    }

    /// Why a domain stopped (`SHUTDOWN_*`).
    pub enum ShutdownReason: u32 {
        /// It is done.
        Poweroff = 0, "poweroff";
        /// It wants to start anew.
        Reboot = 1, "reboot";
        /// It is ready to be saved.
        Suspend = 2, "suspend";
        /// It crashed.
        Crash = 3, "crash";
        /// Its watchdog ran out.
        Watchdog = 4, "watchdog";
        /// It wants to start anew with its memory kept.
        SoftReset = 5, "soft_reset";
    }
}

/// Most ports in one [`SchedPoll`].
pub const POLL_MAX_PORTS: u32 = 128;
/// Watchdogs of a domain; their numbers start at 1.
pub const NR_WATCHDOGS: u32 = 2;

abi! {
    /// Stop the domain.
    ["sched_shutdown", 4, "sched.h"]
    pub struct SchedShutdown {
        /// In: [`ShutdownReason`].
        pub reason: u32,
    }

    /// Sleep until a port is pending.
    ["sched_poll", 24, "sched.h"]
    pub struct SchedPoll {
        /// In: address of an array of `u32` ports.
        pub ports: u64,
        /// In: how many.
        pub nr_ports: u32,
        /// Padding.
        pub _pad: u32 = "-",
        /// In: system time in nanoseconds when to wake, 0 for never.
        pub timeout: u64,
    }

    /// Stop another domain.
    ["sched_remote_shutdown", 8, "sched.h"]
    pub struct SchedRemoteShutdown {
        /// In: which.
        pub domain_id: DomId,
        /// Padding.
        pub _pad: u16 = "-",
        /// In: [`ShutdownReason`].
        pub reason: u32,
    }

    /// Set a watchdog.
    ["sched_watchdog", 8, "sched.h"]
    pub struct SchedWatchdog {
        /// In: which, 0 to get a new one.
        pub id: u32,
        /// In: seconds until it fires, 0 to stop it.
        pub timeout: u32,
    }

    /// Pin the calling vcpu.
    ["sched_pin_override", 4, "sched.h"]
    pub struct SchedPinOverride {
        /// In: the physical CPU, or -1 to undo.
        pub pcpu: i32,
    }
}
