// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interface as a device of smoltcp.

use super::{Checksum, Vif};
use crate::Platform;
use alloc::vec::Vec;
use core::fmt;
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// An interface as a [`Device`] of `smoltcp`, Ethernet.
///
/// smoltcp makes and checks all checksums, unless the interface was opened with
/// [`blank_checksums`](super::Config::blank_checksums): then it does not check those of TCP and UDP of what is
/// received, which are blank in frames from the same machine. Frames from elsewhere are then only as good as what the
/// back end's network card checks.
///
/// When the interface has failed, nothing comes any more and nothing can be sent; [`Vif::failed`] says why.
pub struct Phy<'d, 'x, P: Platform> {
    vif: &'d Vif<'x, P>,
    /// A frame received, and one to send.
    received: Vec<u8>,
    sent: Vec<u8>,
}

impl<P: Platform> fmt::Debug for Phy<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Phy")
            .field("vif", self.vif)
            .finish_non_exhaustive()
    }
}

impl<'d, 'x, P: Platform> Phy<'d, 'x, P> {
    /// Makes one, with two buffers of a frame each.
    pub fn new(vif: &'d Vif<'x, P>) -> Self {
        let max = vif.info().max_frame;
        Self {
            vif,
            received: alloc::vec![0; max],
            sent: alloc::vec![0; max],
        }
    }

    /// The interface.
    pub fn vif(&self) -> &'d Vif<'x, P> {
        self.vif
    }
}

/// A frame that was received.
pub struct RxToken<'t>(&'t [u8]);

/// Room for a frame.
pub struct TxToken<'t, 'x, P: Platform> {
    vif: &'t Vif<'x, P>,
    buffer: &'t mut Vec<u8>,
}

impl<'x, P: Platform> Device for Phy<'_, 'x, P> {
    type RxToken<'t>
        = RxToken<'t>
    where
        Self: 't;
    type TxToken<'t>
        = TxToken<'t, 'x, P>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_, 'x, P>)> {
        let info = self.vif.info();
        // The answer needs room too.
        if !self.vif.has_room(info.max_frame) {
            return None;
        }
        self.received.resize(info.max_frame, 0);
        let frame = self.vif.try_recv(&mut self.received).ok()??;
        let tx = TxToken {
            vif: self.vif,
            buffer: &mut self.sent,
        };
        Some((RxToken(self.received.get(..frame.len)?), tx))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_, 'x, P>> {
        if !self.vif.has_room(self.vif.info().max_frame) {
            return None;
        }
        Some(TxToken {
            vif: self.vif,
            buffer: &mut self.sent,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ethernet;
        // smoltcp counts addresses and type too.
        c.max_transmission_unit = self.vif.info().mtu + super::HEADER;
        if self.vif.config.blank_checksums {
            c.checksum.tcp = phy::Checksum::Tx;
            c.checksum.udp = phy::Checksum::Tx;
        }
        c
    }
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl<P: Platform> phy::TxToken for TxToken<'_, '_, P> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.buffer.clear();
        self.buffer.resize(len, 0);
        let result = f(self.buffer);
        // There is room, as was seen; a frame that cannot be sent is lost, as on any network.
        let _ = self.vif.try_send(self.buffer, Checksum::Present);
        self.vif.kick();
        result
    }
}
