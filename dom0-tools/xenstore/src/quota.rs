// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one domain may use of the store.

/// Limits for each domain but domain 0, which has none. Together they bound what any one guest can make
/// the store hold: [`Quota::memory`], plus `outstanding` replies and one request of at most 4112 bytes
/// each, plus `event_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Nodes that it owns; beyond: `ENOSPC`.
    pub nodes: u64,
    /// Bytes of a node's value; beyond: `ENOSPC`.
    pub node_size: usize,
    /// Entries of a node's permissions; beyond: `ENOSPC`.
    pub perms: usize,
    /// Components of a path that it makes or watches; beyond: `ENOSPC`.
    pub depth: usize,
    /// Watches that it has set; beyond: `E2BIG`.
    pub watches: u32,
    /// Transactions that it has open; beyond: `ENOSPC`.
    pub transactions: usize,
    /// Nodes that one transaction touches; beyond: `ENOSPC`.
    pub transaction_nodes: usize,
    /// Bytes of its nodes, watches and transactions together; beyond: `ENOSPC`.
    pub memory: u64,
    /// Bytes of all nodes, watches and transactions of all domains together; beyond, all but domain 0 get
    /// `ENOSPC`. Less than what the host has, so that it never runs out of memory for what domains store.
    pub total: u64,
    /// Replies that wait for the domain to read them. While there are that many, its requests are not
    /// read.
    pub outstanding: usize,
    /// Watch events that wait for the domain to read them. Beyond, a watch that fires is remembered,
    /// and reported once, with its own path, when the others have been read.
    pub events: usize,
    /// Bytes of those events.
    pub event_bytes: usize,
}

impl Default for Quota {
    /// Xen's own numbers where Xen has the limit. (It says 128 watches and 10 transactions, and lets one more.)
    fn default() -> Self {
        Self {
            nodes: 1000,
            node_size: 2048,
            perms: 5,
            depth: 64,
            watches: 129,
            transactions: 11,
            transaction_nodes: 1024,
            memory: 2 << 20,
            total: 32 << 20,
            outstanding: 20,
            events: 256,
            event_bytes: 64 << 10,
        }
    }
}
