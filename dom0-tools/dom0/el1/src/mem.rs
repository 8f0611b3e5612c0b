// SPDX-License-Identifier: MIT OR Apache-2.0
//! The window: address space without memory behind it, in which other domains' pages appear.

use crate::machine::Hypervisor;
use crate::shared::Shared;
use crate::{Global, LIMIT, hvc};
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Deref;
use guest_abi::grant_table::{
    GnttabCopy, GnttabCopyPtr, GnttabMapGrantRef, GnttabUnmapGrantRef, GrantStatus, gntcopy, gntmap,
};
use guest_abi::memory::Resource;
use guest_abi::{DomId, Errno, Gfn, GrantRef, calls};

/// Pages of the window at most.
const PAGES: u64 = 1 << 18;

struct Window {
    /// Its first page.
    first: u64,
    /// Free runs of pages: start and length.
    free: BTreeMap<u64, u64>,
    /// The machine frame behind each page; 0 where it is not known. As long as the window has
    /// been used so far.
    machine: Vec<u64>,
    /// Pages in use.
    used: u64,
}

static WINDOW: Global<Option<Window>> = Global::new(None);

/// Takes the largest of the hypervisor's regions, within what is mapped, as the window: an extended
/// region, or the place for grant-table frames, which are not used here.
pub(crate) fn init(hypervisor: &Hypervisor, memory: &[(u64, u64)]) {
    let best = hypervisor
        .extended
        .iter()
        .chain([&hypervisor.grant_window])
        .map(|&(start, len)| {
            let start = start.next_multiple_of(4096);
            (
                start,
                start.saturating_add(len).min(LIMIT).saturating_sub(start),
            )
        })
        .filter(|&(start, len)| {
            !memory
                .iter()
                .any(|&(s, n)| start < s + n && start + len > s)
        })
        .max_by_key(|&(_, len)| len);
    if let Some((start, len)) = best
        && len >= 4096
    {
        let first = start / 4096;
        *WINDOW.lock() = Some(Window {
            first,
            free: BTreeMap::from([(first, (len / 4096).min(PAGES))]),
            machine: Vec::new(),
            used: 0,
        });
    }
}

impl Window {
    fn take(&mut self, pages: u64) -> Option<u64> {
        let (&start, &len) = self.free.iter().find(|&(_, &len)| len >= pages)?;
        self.free.remove(&start);
        if len > pages {
            self.free.insert(start + pages, len - pages);
        }
        let end = (start - self.first + pages) as usize;
        if self.machine.len() < end {
            self.machine.resize(end, 0);
        }
        self.used += pages;
        Some(start)
    }

    fn give(&mut self, mut start: u64, mut pages: u64) {
        self.used -= pages;
        let from = (start - self.first) as usize;
        self.machine[from..from + pages as usize].fill(0);
        if let Some((&s, &n)) = self.free.range(..start).next_back()
            && s + n == start
        {
            self.free.remove(&s);
            (start, pages) = (s, n + pages);
        }
        if let Some(n) = self.free.remove(&(start + pages)) {
            pages += n;
        }
        self.free.insert(start, pages);
    }
}

/// Pages of the window that are in use.
#[must_use]
pub fn window_used() -> u64 {
    WINDOW.lock().as_ref().map_or(0, |w| w.used)
}

/// The machine address of what lies at a guest physical address: its own in memory, which is
/// mapped one to one; another domain's page's in the window.
#[cfg(feature = "virtio")]
pub(crate) fn machine_address(addr: u64) -> u64 {
    if let Some(w) = WINDOW.lock().as_ref()
        && let Some(page) = (addr / 4096).checked_sub(w.first)
        && let Some(&frame) = w.machine.get(page as usize)
    {
        return frame * 4096 + addr % 4096;
    }
    addr
}

enum How {
    /// By `add_to_physmap` and the like.
    Frames,
    /// By grants, with their handles.
    Grants(Vec<u32>),
}

/// Pages of another domain's, mapped until this is dropped. Nobody may use a copy of its
/// [`Shared`] afterwards.
pub struct Mapping {
    pages: Shared,
    how: How,
}

impl Deref for Mapping {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.pages
    }
}

fn take(pages: usize) -> Result<(u64, Shared), Errno> {
    if pages == 0 {
        return Err(Errno::EINVAL);
    }
    let first = WINDOW
        .lock()
        .as_mut()
        .and_then(|w| w.take(pages as u64))
        .ok_or(Errno::ENOMEM)?;
    Shared::at(first, pages)
        .map(|s| (first, s))
        .ok_or(Errno::ENOMEM)
}

fn give(first: u64, pages: usize) {
    if let Some(w) = WINDOW.lock().as_mut() {
        w.give(first, pages as u64);
    }
}

fn remove(gfn: Gfn) {
    let _ = calls::memory::remove_from_physmap(&hvc::xen(), DomId::SELF, gfn);
}

/// The window's frames from `first` on.
fn frames(first: u64, n: usize) -> Vec<Gfn> {
    (first..).map(Gfn).take(n).collect()
}

/// Maps frames of another domain's. All or none.
pub fn map_foreign(dom: DomId, gfns: &[Gfn]) -> Result<Mapping, Errno> {
    let (first, pages) = take(gfns.len())?;
    let own = frames(first, gfns.len());
    // What is not tried has failed.
    let mut errors = vec![-Errno::EIO.number(); gfns.len()];
    let mut result = Ok(());
    for ((theirs, ours), errs) in gfns
        .chunks(512)
        .zip(own.chunks(512))
        .zip(errors.chunks_mut(512))
    {
        result = calls::memory::map_foreign(&hvc::xen(), dom, theirs, ours, errs);
        if result.is_err() {
            errs.fill(-Errno::EIO.number());
            break;
        }
    }
    if result.is_ok()
        && let Some(&e) = errors.iter().find(|&&e| e != 0)
    {
        result = Err(Errno::from_number(e.wrapping_neg()).unwrap_or(Errno::EIO));
    }
    if let Err(e) = result {
        for (gfn, _) in own.iter().zip(&errors).filter(|(_, e)| **e == 0) {
            remove(*gfn);
        }
        give(first, gfns.len());
        return Err(e);
    }
    Ok(Mapping {
        pages,
        how: How::Frames,
    })
}

/// Maps frames of a resource of another domain's, such as its grant table.
pub fn map_resource(
    dom: DomId,
    kind: Resource,
    id: u32,
    frame: u64,
    n: usize,
) -> Result<Mapping, Errno> {
    let (first, pages) = take(n)?;
    let own = frames(first, n);
    if let Err(e) = calls::memory::acquire_resource(&hvc::xen(), dom, kind, id, frame, &own) {
        give(first, n);
        return Err(e);
    }
    Ok(Mapping {
        pages,
        how: How::Frames,
    })
}

/// A granted page, mapped until [`unmap_granted`] takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    gfn: u64,
    handle: u32,
}

impl Granted {
    /// Its address, for [`Shared`] and disks alike.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.gfn * 4096
    }
}

/// One page for [`map_granted`].
#[derive(Clone, Copy, Debug)]
pub struct ToMap {
    /// The grant.
    pub gref: GrantRef,
    /// To be written too.
    pub writable: bool,
    /// Where it is, when that went well.
    pub page: Option<Granted>,
}

/// Maps granted pages, each at a place of its own.
pub fn map_granted(dom: DomId, list: &mut [ToMap]) {
    let mut ops: Vec<GnttabMapGrantRef> = Vec::with_capacity(list.len());
    for item in &mut *list {
        item.page = None;
        // Those without a place get address 0, which maps nothing.
        let gfn = take(1).map_or(0, |(gfn, _)| gfn);
        let readonly = if item.writable { 0 } else { gntmap::READONLY };
        ops.push(GnttabMapGrantRef {
            host_addr: gfn * 4096,
            flags: gntmap::HOST_MAP | readonly,
            gref: item.gref,
            dom,
            status: GrantStatus::GeneralError.number(),
            ..Default::default()
        });
    }
    ops.retain(|op| op.host_addr != 0);
    let _ = calls::grant::map(&hvc::xen(), &mut ops);
    // Places ran out, if at all, for the last ones.
    for (item, op) in list.iter_mut().zip(&ops) {
        let gfn = op.host_addr / 4096;
        if op.status == 0 {
            set_machine(gfn, op.dev_bus_addr / 4096);
            item.page = Some(Granted {
                gfn,
                handle: op.handle,
            });
        } else {
            give(gfn, 1);
        }
    }
}

/// Unmaps granted pages; nobody uses them any more.
pub fn unmap_granted(pages: &[Granted]) {
    unmap_grants(pages.iter().map(|p| (p.addr(), p.handle)));
    for p in pages {
        give(p.gfn, 1);
    }
}

/// What [`copy_spans`] works with, kept so that a call needs no memory.
static COPIES: Global<(Vec<GnttabCopy>, Vec<usize>)> = Global::new((Vec::new(), Vec::new()));

/// Copies from granted pages, all with one call: for each copy the grant, the first byte in its page, and where to.
/// Whether each went well.
pub fn copy_from_grants<'a>(
    dom: DomId,
    list: impl Iterator<Item = (GrantRef, u16, &'a mut [u8])>,
) -> Vec<bool> {
    // Who writes the bytes is not seen by the compiler.
    let spans = list.map(|(gref, offset, to)| {
        let to = core::hint::black_box(to);
        (gref, offset, to.as_mut_ptr() as u64, to.len())
    });
    copy_spans(dom, gntcopy::SOURCE_GREF, spans)
}

/// Copies into granted pages, all with one call: for each copy the grant, the first byte in its page, and the bytes.
/// Whether each went well.
pub fn copy_to_grants<'a>(
    dom: DomId,
    list: impl Iterator<Item = (GrantRef, u16, &'a [u8])>,
) -> Vec<bool> {
    // Who reads the bytes is not seen either.
    let spans = list.map(|(gref, offset, from)| {
        let from = core::hint::black_box(from);
        (gref, offset, from.as_ptr() as u64, from.len())
    });
    copy_spans(dom, gntcopy::DEST_GREF, spans)
}

/// Copies between granted pages and own memory, which is at its own guest physical address: for each
/// the grant, the first byte in its page, the own address, and the bytes. Whether each went well.
fn copy_spans(
    dom: DomId,
    flags: u16,
    spans: impl Iterator<Item = (GrantRef, u16, u64, usize)>,
) -> Vec<bool> {
    let mut copies = COPIES.lock();
    // Of each operation, which span it is of: a call copies within a page at both ends.
    let (ops, of) = &mut *copies;
    ops.clear();
    of.clear();
    let mut ok = Vec::with_capacity(spans.size_hint().0);
    for (gref, offset, addr, len) in spans {
        let fits = usize::from(offset) + len <= 4096;
        let mut done = 0;
        while fits && done < len {
            let at = addr + done as u64;
            let n = (len - done).min(4096 - (at % 4096) as usize);
            let theirs = GnttabCopyPtr::gref(dom, gref, offset + done as u16);
            let own = GnttabCopyPtr::own(Gfn::of(at), (at % 4096) as u16);
            let (source, dest) = match flags {
                gntcopy::SOURCE_GREF => (theirs, own),
                _ => (own, theirs),
            };
            ops.push(GnttabCopy {
                source,
                dest,
                len: n as u16,
                flags,
                status: GrantStatus::GeneralError.number(),
                ..Default::default()
            });
            of.push(ok.len());
            done += n;
        }
        ok.push(fits);
    }
    // A call that fails leaves the statuses that it was given.
    let _ = calls::grant::copy(&hvc::xen(), ops);
    for (op, &n) in ops.iter().zip(&*of) {
        ok[n] &= op.status == 0;
    }
    ok
}

/// Copies from a granted page's start, within it. False if the grant does not allow it.
pub fn copy_from_grant(dom: DomId, gref: GrantRef, to: &mut [u8]) -> bool {
    copy_from_grants(dom, core::iter::once((gref, 0, to))) == [true]
}

fn set_machine(gfn: u64, frame: u64) {
    if let Some(w) = WINDOW.lock().as_mut()
        && let Some(m) = w.machine.get_mut((gfn - w.first) as usize)
    {
        *m = frame;
    }
}

/// Maps granted pages. All or none; the error is the first one's.
pub fn map_grants(dom: DomId, refs: &[GrantRef], write: bool) -> Result<Mapping, GrantStatus> {
    let (first, pages) = take(refs.len()).map_err(|_| GrantStatus::NoSpace)?;
    let flags = gntmap::HOST_MAP | if write { 0 } else { gntmap::READONLY };
    let mut ops: Vec<GnttabMapGrantRef> = refs
        .iter()
        .zip(first..)
        .map(|(&gref, gfn)| GnttabMapGrantRef {
            host_addr: gfn * 4096,
            flags,
            gref,
            dom,
            status: GrantStatus::GeneralError.number(),
            ..Default::default()
        })
        .collect();
    // A call that fails leaves the statuses that it was given.
    let _ = calls::grant::map(&hvc::xen(), &mut ops);
    let mapped = || ops.iter().filter(|o| o.status == 0);
    let handles: Vec<u32> = mapped().map(|o| o.handle).collect();
    if let Some(bad) = ops.iter().find(|o| o.status != 0) {
        let at: Vec<u64> = mapped().map(|o| o.host_addr).collect();
        unmap_grants(at.into_iter().zip(handles));
        give(first, refs.len());
        return Err(GrantStatus::from_number(bad.status).unwrap_or(GrantStatus::GeneralError));
    }
    for (op, gfn) in ops.iter().zip(first..) {
        set_machine(gfn, op.dev_bus_addr / 4096);
    }
    Ok(Mapping {
        pages,
        how: How::Grants(handles),
    })
}

fn unmap_grants(list: impl Iterator<Item = (u64, u32)>) {
    let mut ops: Vec<GnttabUnmapGrantRef> = list
        .map(|(host_addr, handle)| GnttabUnmapGrantRef {
            host_addr,
            handle,
            ..Default::default()
        })
        .collect();
    let _ = calls::grant::unmap(&hvc::xen(), &mut ops);
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let first = self.pages.addr() / 4096;
        let n = self.pages.len() / 4096;
        match &self.how {
            How::Frames => frames(first, n).into_iter().for_each(remove),
            How::Grants(handles) => {
                unmap_grants((first..).map(|gfn| gfn * 4096).zip(handles.iter().copied()));
            }
        }
        give(first, n);
    }
}
