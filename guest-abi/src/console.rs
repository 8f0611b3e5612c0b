// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own console (`xen.h`).

numbers! {
    /// Operations of `console_io` (`CONSOLEIO_*`). Arguments: length in bytes, address of the buffer.
    pub enum ConsoleOp: u64 {
        /// Print. Returns 0.
        Write = 0, "write";
        /// Take what was typed. Returns how many bytes.
        Read = 1, "read";
    }
}
