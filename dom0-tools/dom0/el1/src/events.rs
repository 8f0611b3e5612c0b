// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels, 2-level ABI: 4096 ports of vcpu 0, by `shared_info` (`public/xen.h`).

use crate::shared::Shared;
use crate::{Global, gic, hvc, pages};
use core::sync::atomic::Ordering;
use guest_abi::memory::MapSpace;
use guest_abi::xen::offset::{
    EVTCHN_MASK as MASK, EVTCHN_PENDING as PENDING, PENDING_SEL, UPCALL_PENDING,
};
use guest_abi::{DomId, Errno, Gfn, Port, calls};

/// Ports of the 2-level ABI.
pub const PORTS: u32 = 4096;

static INFO: Global<Option<Shared>> = Global::new(None);

/// Maps `shared_info` over a page of its own, masks every port, and lets the event interrupt
/// through.
pub fn init(intid: u32) -> Result<(), Errno> {
    let page = pages::alloc_pages(1).ok_or(Errno::ENOMEM)?;
    let gfn = Gfn::of(page.as_ptr() as u64);
    let space = MapSpace::SharedInfo;
    calls::memory::add_to_physmap(&hvc::xen(), DomId::SELF, space, 0, gfn)?;
    let info = Shared::own(page, 1);
    for word in 0..64 {
        if let Some(mask) = info.atomic64(MASK + word * 8) {
            mask.store(!0, Ordering::Relaxed);
        }
    }
    *INFO.lock() = Some(info);
    gic::enable(intid, gic::Trigger::Level);
    Ok(())
}

fn info() -> Option<Shared> {
    *INFO.lock()
}

/// Calls `f` with each port that is pending and unmasked, which clears it. To be called when the
/// event interrupt came up.
pub fn take(mut f: impl FnMut(u32)) {
    let Some(info) = info() else { return };
    // A byte of its own in the structure, with padding up to the selector.
    if let Some(upcall) = info.atomic32(UPCALL_PENDING) {
        upcall.store(0, Ordering::SeqCst);
    }
    let Some(sel) = info.atomic64(PENDING_SEL) else {
        return;
    };
    let mut words = sel.swap(0, Ordering::SeqCst);
    while words != 0 {
        let word = words.trailing_zeros() as usize;
        words &= words - 1;
        let (Some(pending), Some(mask)) = (
            info.atomic64(PENDING + word * 8),
            info.atomic64(MASK + word * 8),
        ) else {
            return;
        };
        let mut bits = pending.load(Ordering::SeqCst) & !mask.load(Ordering::SeqCst);
        pending.fetch_and(!bits, Ordering::SeqCst);
        while bits != 0 {
            f(word as u32 * 64 + bits.trailing_zeros());
            bits &= bits - 1;
        }
    }
}

/// Masks a port.
pub fn mask(port: u32) {
    let word = info().filter(|_| port < PORTS);
    if let Some(info) = word
        && let Some(mask) = info.atomic64(MASK + port as usize / 64 * 8)
    {
        mask.fetch_or(1 << (port % 64), Ordering::SeqCst);
    }
}

/// Lets a port that was masked come up again. True if it was raised meanwhile: then that is taken, as if it had come up,
/// and the port is masked still.
#[must_use]
pub fn open(port: u32) -> bool {
    let Some(info) = info().filter(|_| port < PORTS) else {
        return false;
    };
    let at = port as usize / 64 * 8;
    let bit = 1 << (port % 64);
    let (Some(pending), Some(mask)) = (info.atomic64(PENDING + at), info.atomic64(MASK + at))
    else {
        return false;
    };
    if mask.fetch_and(!bit, Ordering::SeqCst) & bit == 0 {
        return false;
    }
    // Who raises it sets the pending bit before it looks at the mask: either it saw no mask, and the interrupt
    // comes, or the bit is seen here. Where both are so there is nothing left when the interrupt comes.
    if pending.load(Ordering::SeqCst) & bit == 0 {
        return false;
    }
    mask.fetch_or(bit, Ordering::SeqCst);
    pending.fetch_and(!bit, Ordering::SeqCst);
    true
}

/// Unmasks a port; whatever is pending there comes up.
pub fn unmask(port: u32) {
    if port < PORTS {
        let _ = calls::event::unmask(&hvc::xen(), Port(port));
    }
}

/// The wall clock's base: seconds and nanoseconds since 1970 at system time 0, if it is set.
#[must_use]
pub fn wall_clock() -> Option<(u64, u32)> {
    guest_abi::xen::read_wall_clock(&info()?)
        .filter(|t| t.secs != 0)
        .map(|t| (t.secs, t.nanos))
}
