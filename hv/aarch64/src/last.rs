// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of a run that nobody asked for: last words in a page that a warm reset leaves as it is, then the reset.

use crate::mach::counter;
use crate::mmu::Range;
use crate::{console, panic, run};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use hv_core::hypervisor::Power;
use hv_core::last::{PAGE, TEXT, Why, Words, count, pause};
use hv_core::machine::{Cache, CacheOp};
use hv_core::types::Pa;

/// Halt instead of resetting.
pub static NOREBOOT: AtomicBool = AtomicBool::new(false);
/// The page's address; 0: there is none.
static PLACE: AtomicU64 = AtomicU64::new(0);
/// Why the run before ended ([`Why::number`] and 256), 0 if as it should, and how many did like that.
static BEFORE: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];

/// A line of a log that others may have written.
struct Line<'a>(&'a [u8]);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&b| {
            f.write_char(match b {
                b' '..=b'~' => b.into(),
                _ => '.',
            })
        })
    }
}

/// The page among `ram` that is neither `own` nor any of `busy`: one that is at the same place in the next run and takes
/// no larger block apart, below the image or behind what is the hypervisor's own.
#[cold]
pub fn choose(ram: &[Range], own: &Range, busy: &[Range]) -> Option<Range> {
    let below = own.start.wrapping_sub(PAGE as u64);
    let pages = [below, own.end].map(|start| Range {
        start,
        end: start.wrapping_add(PAGE as u64),
    });
    pages.into_iter().find(|p| {
        ram.iter().any(|r| r.contains(p.start, PAGE as u64))
            && !busy.iter().any(|b| b.start < p.end && p.start < b.end)
    })
}

fn page<R>(f: impl FnOnce(&mut [u8; PAGE]) -> R) -> Option<R> {
    let at = PLACE.load(Ordering::Relaxed);
    if at == 0 {
        return None;
    }
    // SAFETY: RAM that is kept from everybody else, mapped; touched by the boot CPU before there are others, and by the
    // one CPU that ends the run.
    let result = f(unsafe { &mut *(at as *mut [u8; PAGE]) });
    run::mach().dcache(Pa(at), PAGE as u64, CacheOp::Clean);
    Some(result)
}

/// Shows what the run before left in the page, and forgets it there.
#[cold]
pub fn show(place: &Range) {
    PLACE.store(place.start, Ordering::Relaxed);
    let _ = page(|page| {
        if let Some(w) = Words::read(page) {
            BEFORE[0].store(256 | u32::from(w.why.number()), Ordering::Relaxed);
            BEFORE[1].store(w.crashes, Ordering::Relaxed);
            log::warn!(
                "the last run ended after {} s: {} ({} in a row). Its last words:",
                w.lasted,
                w.why.words(),
                w.crashes
            );
            for line in w.text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end) {
                // What that run showed of the one before it is not shown again.
                if !line.is_empty() && !line.starts_with(b"(PV) | ") {
                    log::warn!("| {}", Line(line));
                }
            }
        }
        page[0] = 0;
    });
}

/// How the run before ended, for the control domain: see `builder::facts`.
pub fn before() -> (u64, u64) {
    let [why, crashes] = [0, 1].map(|n| BEFORE[n].load(Ordering::Relaxed).into());
    (why, crashes)
}

/// Ends this run on the CPU that found out, when the others have been stopped.
#[cold]
pub fn end(why: Why) -> ! {
    let frequency = platform::timer::frequency();
    let lasted = run::MACH
        .get()
        .map_or(0, |m| m.ns(counter()) / 1_000_000_000);
    let crashes = count(BEFORE[1].load(Ordering::Relaxed), lasted);
    let pause = pause(crashes);
    let kept = page(|page| {
        let mut text = [0; TEXT];
        let text = console::last(&mut text);
        let words = Words {
            why,
            crashes,
            lasted,
            text,
        };
        words.write(page);
    });
    if kept.is_none() || NOREBOOT.load(Ordering::Relaxed) {
        console::panic_print(format_args!("(PV) halted\n"));
        run::halt();
    }
    console::panic_print(format_args!(
        "(PV) {}: reset in {pause} s ({crashes} in a row)\n",
        why.words()
    ));
    let from = counter();
    while counter().wrapping_sub(from) < frequency.saturating_mul(pause) {
        run::feed();
        core::hint::spin_loop();
    }
    run::power(Power::Reset)
}

/// Stops the other CPUs, and ends this run on `cpu`.
#[cold]
pub fn dom0_ended(reason: u8, cpu: hv_core::types::CpuId) -> ! {
    if panic::first(cpu) {
        console::flush();
        end(Why::Dom0(reason));
    }
    run::halt()
}
