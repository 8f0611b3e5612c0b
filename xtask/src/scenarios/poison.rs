// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine whose memory is full of something when it starts, and of what the boot loader left (XSA-245, 372).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use regex::Regex;

use super::{BOOT, POWER_OFF, Stage};
use crate::machine::Machine;

/// In each double word of memory before anything else is.
const POISON: u64 = 0x5eed_0fba_dbad_c0de;
/// Where memory begins, and how much there is, in MiB.
const RAM: u64 = 0x4000_0000;
const MEMORY: u64 = 1024;
/// How long a guest takes to look at all of its memory.
const LOOKS: Duration = Duration::from_secs(90);
const LOOK: &str = "name = \"look\"\nkernel = \"/guests/hostile.bin\"\nmemory = 4\n";

/// Pages that have what was there before.
struct Left {
    /// Poison, in dom0's memory and elsewhere.
    dom0: u64,
    poison: u64,
    /// A page of dom0's image as the boot loader put it there, outside of dom0's memory.
    module: u64,
}

impl Left {
    fn of(memory: &Path, dom0: &Range<u64>, image: &HashSet<Vec<u8>>) -> Result<Self> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(memory)?);
        let mut page = vec![0; 4096];
        let mut left = Self {
            dom0: 0,
            poison: 0,
            module: 0,
        };
        for n in 0..MEMORY << 8 {
            file.read_exact(&mut page)?;
            let own = dom0.contains(&(RAM + n * 4096));
            // In dom0's any word would be one too many; elsewhere it is pages that are counted.
            let step = if own { 8 } else { 64 };
            if page
                .chunks_exact(step)
                .any(|at| at.starts_with(&POISON.to_le_bytes()))
            {
                *(if own {
                    &mut left.dom0
                } else {
                    &mut left.poison
                }) += 1;
            } else if !own && image.contains(&page) {
                left.module += 1;
            }
        }
        Ok(left)
    }
}

/// What was in memory before the hypervisor was, nobody sees: not dom0, nor the guests that get all that is free.
pub(super) fn poisoned_memory(stage: &Stage) -> Result<()> {
    let guests = stage.fresh_guests()?;
    fs::copy(
        stage.project.path("build/hostile.bin"),
        guests.join("hostile.bin"),
    )?;
    let look = format!("{LOOK}cmdline = \"role=look word={POISON}\"\n");
    fs::write(guests.join("look.cfg"), look)?;
    let memory = stage.dir()?.join("memory");
    let mut file = File::create(&memory)?;
    let chunk = POISON.to_le_bytes().repeat(1 << 17);
    (0..MEMORY).try_for_each(|_| file.write_all(&chunk))?;
    drop(file);
    let result = seen(stage, &memory);
    fs::remove_file(&memory)?;
    result
}

fn seen(stage: &Stage, memory: &Path) -> Result<()> {
    let image = fs::read(&stage.built.dom0)?;
    let image: HashSet<Vec<u8>> = image
        .chunks_exact(4096)
        .filter(|page| page.iter().any(|b| *b != 0))
        .map(<[u8]>::to_vec)
        .collect();
    let machine = Machine {
        gic: 3,
        cpus: 1,
        memory: MEMORY,
        memory_file: Some(memory.to_owned()),
        ..Machine::default()
    };
    let volume = stage.volume()?;
    let mut session = stage.start(&machine, &volume)?;
    let line = session.expect(r"control domain: \d+ MiB at 0x[0-9a-f]+$", BOOT)?;
    let found = Regex::new(r"(\d+) MiB at 0x([0-9a-f]+)")?;
    let found = found.captures(&line).context("no control domain")?;
    let at = u64::from_str_radix(&found[2], 16)?;
    let dom0 = at..at + (found[1].parse::<u64>()? << 20);
    session.prompt(BOOT)?;
    let before = Left::of(memory, &dom0, &image)?;
    ensure!(
        before.dom0 == 0,
        "dom0 has {} pages with what was there before",
        before.dom0
    );
    let free = |session: &mut super::Session| -> Result<u64> {
        session.json("info --json")?["free_pages"]
            .as_u64()
            .context("no number of free pages")
    };
    let first = free(&mut session)?;
    // Else the test says nothing.
    ensure!(
        before.poison > first / 10 * 9 && before.module > image.len() as u64 / 2,
        "of {first} free pages {} are poisoned, and {} have dom0's image",
        before.poison,
        before.module
    );
    let mut given = 0;
    let mut next = (first >> 8) - 4;
    for n in 0.. {
        let size = next.saturating_sub(n * 4).max(4);
        session.line(&format!(
            "create /guests/look.cfg name=\"look{n}\" memory={size}"
        ))?;
        let line = session.expect(r"look: \d+ of \d+ words|^error:.*", LOOKS)?;
        let words: Vec<u64> = line.split(' ').filter_map(|w| w.parse().ok()).collect();
        match (words.as_slice(), given) {
            ([found, all], _) if line.starts_with("look") => {
                ensure!(*found == 0, "a guest of {size} MiB: {line}");
                ensure!(*all == size << 17, "a guest of {size} MiB: {line}");
                given += size << 8;
                next = 4;
            }
            // Tables and what is kept take a little too.
            (_, 0) if n < 8 => {}
            _ => break,
        }
    }
    ensure!(
        given > first / 10 * 9,
        "of {first} pages only {given} were given"
    );
    let last = free(&mut session)?;
    let after = Left::of(memory, &dom0, &image)?;
    ensure!(
        after.dom0 == 0,
        "dom0 has {} pages with what was there before",
        after.dom0
    );
    let gone = (before.poison + before.module).saturating_sub(after.poison + after.module);
    ensure!(
        gone >= given,
        "guests have {given} pages, but only {gone} have been cleared; {last} are free"
    );
    println!(
        "  {given} pages given of {first}; with what was there before: {} and {} at first, {} and {} at last, {last} free",
        before.poison, before.module, after.poison, after.module
    );
    session.line("poweroff")?;
    session.ended(POWER_OFF)
}
