// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the front end wrote to the store, read and checked.

use super::Limits;
use crate::device::{BadKey, bad, optional, port, queue_places, required};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest_abi::{GrantRef, Port};

/// What the front end chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontConfig {
    /// A frame to it may have several parts.
    pub scatter_gather: bool,
    /// It takes TCP and UDP over IPv4 with a blank checksum.
    pub blank_ipv4: bool,
    /// It takes TCP and UDP over IPv6 with a blank checksum.
    pub blank_ipv6: bool,
    /// It takes TCP over IPv4 that is still to be split.
    pub split_ipv4: bool,
    /// It takes TCP over IPv6 that is still to be split.
    pub split_ipv6: bool,
    /// Its pairs of rings, at least one.
    pub queues: Vec<QueueConfig>,
}

/// One pair of rings, each of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// The ring of what the guest sends.
    pub tx_ring: GrantRef,
    /// The ring of what the guest receives.
    pub rx_ring: GrantRef,
    /// The front end's event-channel port for sending.
    pub tx_port: Port,
    /// That for receiving; the same when there is one for both.
    pub rx_port: Port,
}

/// Reads what the front end wrote.
pub(super) fn front_config(
    limits: &Limits,
    mut read: impl FnMut(&str) -> Option<String>,
) -> Result<FrontConfig, BadKey> {
    // The other way, giving away pages, does not exist on Arm.
    if required(&mut read, "request-rx-copy")? != 1 {
        return Err(bad("request-rx-copy", read("request-rx-copy")));
    }
    let mut flag = |key| optional(&mut read, key, u32::MAX).map(|n| n.unwrap_or(0) != 0);
    let scatter_gather = flag("feature-sg")?;
    let blank_ipv4 = !flag("feature-no-csum-offload")?;
    let blank_ipv6 = flag("feature-ipv6-csum-offload")?;
    // Such frames have several parts, and blank checksums.
    let split_ipv4 = flag("feature-gso-tcpv4")? && scatter_gather && blank_ipv4;
    let split_ipv6 = flag("feature-gso-tcpv6")? && scatter_gather && blank_ipv6;
    let queues = queue_places(&mut read, limits.queues.max(1))?
        .iter()
        .map(|at| queue_config(at, &mut read))
        .collect::<Result<_, _>>()?;
    Ok(FrontConfig {
        scatter_gather,
        blank_ipv4,
        blank_ipv6,
        split_ipv4,
        split_ipv6,
        queues,
    })
}

fn queue_config(
    at: &str,
    read: &mut impl FnMut(&str) -> Option<String>,
) -> Result<QueueConfig, BadKey> {
    let tx_ring = GrantRef(required(read, &format!("{at}tx-ring-ref"))?);
    let rx_ring = GrantRef(required(read, &format!("{at}rx-ring-ref"))?);
    let (tx, rx) = (
        format!("{at}event-channel-tx"),
        format!("{at}event-channel-rx"),
    );
    let (tx_port, rx_port) = if read(&tx).is_some() {
        (port(read, &tx)?, port(read, &rx)?)
    } else {
        let both = port(read, &format!("{at}event-channel"))?;
        (both, both)
    };
    Ok(QueueConfig {
        tx_ring,
        rx_ring,
        tx_port,
        rx_port,
    })
}
