// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask attack`: the guest `hostile` does to the hypervisor what its seed says, beside a witness that sees whether
//! that can be felt. Afterwards nothing may be lost.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;

use crate::build::{self, Built};
use crate::guests::KERNELS;
use crate::machine::{BOARDS, Machine};
use crate::project::Project;
use crate::scenarios::{linux_ready, resources, unchanged};
use crate::session::{COMMAND, PROMPT, Session};
use crate::setup;
use crate::volume::Volume;

#[derive(clap::Args)]
pub struct Args {
    /// What the attacker's programs are made of [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// For how long, as 60s, 10m or 2h
    #[arg(long = "for", value_parser = parse_time, default_value = "60s", value_name = "TIME")]
    time: Duration,
    /// How many CPUs the machine has
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// The version of its interrupt controller: 2 or 3
    #[arg(long, default_value_t = 3)]
    gic: u32,
    /// How many vcpus the attacker has [default: one more than the machine has CPUs]
    #[arg(long)]
    vcpus: Option<u32>,
    /// Play the program of this seed, which a life of the attacker has printed, over and over, not one that is made of --seed
    #[arg(long, value_name = "SEED", conflicts_with = "seed")]
    program: Option<u64>,
    /// The first operation of each program
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// The operation of each program before which it stops
    #[arg(long)]
    to: Option<u64>,
    /// Linux guests beside it, which compute and check what they computed
    #[arg(long)]
    soak: bool,
    /// Attack a hypervisor that has this fault, which must be found
    #[arg(long)]
    planted: Option<Planted>,
}

/// A fault that is built into a hypervisor, to see that the attack finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Planted {
    /// Some pages are not free when nobody has them any more.
    Loss,
    /// What is granted to be read can be written.
    Write,
}

impl Planted {
    const ALL: [Self; 2] = [Self::Loss, Self::Write];

    /// The feature's name, and what the attack has to say.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Loss => ("loss", "something is lost"),
            Self::Write => ("write", "witness: FAULT"),
        }
    }

    fn built(self, project: &Project, built: &Built) -> Result<Built> {
        Ok(Built {
            hypervisor: build::planted(project, self.names().0)?,
            ..built.clone()
        })
    }

    /// What an attack came to, where this had to be found.
    fn found(self, result: Result<String>) -> Result<String> {
        let (name, sign) = self.names();
        match result {
            Ok(seen) => bail!("the planted fault ({name}) was not found: {seen}"),
            Err(e) if format!("{e:#}").contains(sign) => {
                Ok(format!("found, as it should be: {e:#}"))
            }
            Err(e) => Err(e.context("something else than the planted fault was found")),
        }
    }
}

/// QEMU came to its own end, by an assertion of its own, which says nothing of the hypervisor.
#[derive(Debug)]
pub struct QemuEnded(String);

impl std::fmt::Display for QemuEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QEMU ended by an assertion of its own: {}", self.0)
    }
}

impl std::error::Error for QemuEnded {}

/// What QEMU said of its own end in a log, if it did. What guests print has their number before it.
fn qemus_own_end(log: &str) -> Option<&str> {
    let line =
        Regex::new(r"(?m)(qemu-system-aarch64: \S+:\d+: [^\n]*Assertion|ERROR:\.\./)[^\n]*$")
            .ok()?;
    let last = log.rfind("\n$ ").unwrap_or(0);
    line.find_iter(log.get(last..)?).map(|m| m.as_str()).last()
}

/// What is attacked, and how.
pub struct Attack<'a> {
    pub project: &'a Project,
    pub built: &'a Built,
    pub log: PathBuf,
    pub time: Duration,
    pub cpus: u32,
    pub gic: u32,
    pub vcpus: u32,
    /// What goes on the attacker's command line.
    pub words: String,
    pub soak: bool,
}

/// A time as `90`, `90s`, `10m` or `2h`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let number: u64 = number
        .parse()
        .map_err(|_| "not a time such as 90s, 10m or 2h".to_owned())?;
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("unknown unit {unit:?}: s, m or h")),
    };
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    setup::ensure(project, &BOARDS[0])?;
    let quiet = build::Args {
        quiet: true,
        ..build::Args::default()
    };
    let built = build::build(project, &quiet)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = args.seed.unwrap_or(now.as_micros() as u64 & 0xffff_ffff);
    let mut words = match args.program {
        Some(program) => format!("seed={program} same=1"),
        None => format!("seed={seed}"),
    };
    words += &format!(" from={}", args.from);
    if let Some(to) = args.to {
        words += &format!(" to={to}");
    }
    let planted = match args.planted {
        Some(planted) => planted.built(project, &built)?,
        None => built.clone(),
    };
    let attack = Attack {
        project,
        built: &planted,
        log: project
            .dir("attack")?
            .join(format!("{}-gicv{}.log", args.cpus, args.gic)),
        time: args.time,
        cpus: args.cpus,
        gic: args.gic,
        vcpus: args.vcpus.unwrap_or(args.cpus + 1).clamp(1, 8),
        words,
        soak: args.soak,
    };
    let _ = fs::remove_file(&attack.log);
    println!(
        "attack: {} on {} CPUs with GICv{}, {} s",
        attack.words,
        attack.cpus,
        attack.gic,
        attack.time.as_secs()
    );
    let result = attack.run();
    let result = match args.planted {
        Some(planted) => planted.found(result),
        None => result.map(|seen| format!("{seen}\nattack: nothing gave way")),
    };
    match result {
        Ok(text) => {
            println!("{text}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            println!(
                "attack: FAILED: {error:#}\nall that was shown: {}",
                project.show(&attack.log)
            );
            Ok(ExitCode::FAILURE)
        }
    }
}

/// A minute of it in all, on each interrupt controller and on one CPU and several, for every change: the same programs
/// each time.
pub fn minute(project: &Project, built: &Built, log: &Path) -> Result<()> {
    for (seed, gic, cpus) in [(1, 3, 1), (2, 2, 2), (3, 3, 4)] {
        let attack = Attack {
            project,
            built,
            log: log.to_owned(),
            time: Duration::from_secs(20),
            cpus,
            gic,
            vcpus: cpus + 1,
            words: format!("seed={seed}"),
            soak: false,
        };
        match attack.run() {
            Ok(seen) => println!("  seed {seed}, {cpus} CPUs, GICv{gic}: {seen}"),
            // Reported, and no fault of what is tested.
            Err(e) if e.is::<QemuEnded>() => {
                println!("  seed {seed}, {cpus} CPUs, GICv{gic}: {e:#}")
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether an attack finds what is to be found: hypervisors with a fault each.
pub fn controls(project: &Project, built: &Built, log: &Path) -> Result<()> {
    for planted in Planted::ALL {
        let built = planted.built(project, built)?;
        let attack = Attack {
            project,
            built: &built,
            log: log.to_owned(),
            time: Duration::from_secs(15),
            cpus: 1,
            gic: 3,
            vcpus: 2,
            words: "seed=1".to_owned(),
            soak: false,
        };
        println!("  {planted:?}: {}", planted.found(attack.run())?);
    }
    Ok(())
}

/// From power-on to the prompt.
const BOOT: Duration = Duration::from_secs(60);
/// How long the witness and the prompt may be silent. They share the host with other programs.
const SILENCE: Duration = Duration::from_secs(30);
/// The prompt is not late as long as the witness has not woken so often since: the host gives the machine no time.
const BEATS: u64 = 500;
/// The same of the attacker, which does itself harm: after that it is ended and begun anew.
const LOST: Duration = Duration::from_secs(15);
/// How often the prompt has to answer.
const ASK: Duration = Duration::from_secs(5);

/// What was seen.
#[derive(Default)]
struct Seen {
    /// Operations of each domain's vcpus.
    done: BTreeMap<(u64, u64), u64>,
    /// Lives of the attacker, and how many were ended from here.
    lives: u64,
    ended: u64,
    /// The seed of the last one.
    program: String,
    beats: u64,
    late_us: u64,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} operations in {} lives (last program {}; {} ended from outside); witness: {} beats, {} ms late at most",
            self.done.values().sum::<u64>(),
            self.lives,
            self.program,
            self.ended,
            self.beats,
            self.late_us / 1000
        )
    }
}

/// What lines are looked for.
struct Patterns {
    end: Regex,
    witness: Regex,
    fault: Regex,
    life: Regex,
    did: Regex,
}

impl Patterns {
    fn new() -> Result<Self> {
        Ok(Self {
            end: Regex::new(r"\(PV\) (hypervisor (panic|exception)|halted)")?,
            witness: Regex::new(r"witness: beat (\d+), round \d+, late (\d+) us, faults (\d+)")?,
            fault: Regex::new("witness: (FAULT|failed)")?,
            life: Regex::new(r"hostile: d\d+ seed (\d+) from")?,
            did: Regex::new(r"hostile: d(\d+) v(\d+) at \d+ did (\d+)")?,
        })
    }
}

impl Seen {
    /// Takes note of a line; an error if it tells of harm.
    fn line(&mut self, patterns: &Patterns, line: &str, since: &mut Since) -> Result<()> {
        let number = |text: Option<regex::Match<'_>>| {
            text.and_then(|m| m.as_str().parse::<u64>().ok())
                .unwrap_or_default()
        };
        ensure!(!patterns.end.is_match(line), "the hypervisor ended: {line}");
        ensure!(!patterns.fault.is_match(line), "{line}");
        if let Some(c) = patterns.witness.captures(line) {
            since.witness = Instant::now();
            self.beats = number(c.get(1));
            self.late_us = self.late_us.max(number(c.get(2)));
            ensure!(number(c.get(3)) == 0, "{line}");
        }
        if let Some(c) = patterns.life.captures(line) {
            since.hostile = Instant::now();
            self.lives += 1;
            self.program = c[1].to_owned();
        }
        if let Some(c) = patterns.did.captures(line) {
            since.hostile = Instant::now();
            let key = (number(c.get(1)), number(c.get(2)));
            let done = self.done.entry(key).or_default();
            *done = number(c.get(3)).max(*done);
        }
        if line.contains("Domain-0") {
            since.prompt = Instant::now();
            since.beats = self.beats;
        }
        Ok(())
    }
}

/// When each was heard last.
struct Since {
    witness: Instant,
    hostile: Instant,
    prompt: Instant,
    asked: Instant,
    /// How often the witness had woken when the prompt was heard last.
    beats: u64,
}

impl Attack<'_> {
    /// Attacks. What was seen; an error if anything gave way.
    pub fn run(&self) -> Result<String> {
        // Several may be under way, one in each configuration.
        let folder = self.folder()?;
        let guests = folder.join("guests");
        let _ = fs::remove_dir_all(&guests);
        fs::create_dir_all(&guests)?;
        fs::copy(
            self.project.path("build/hostile.bin"),
            guests.join("hostile.bin"),
        )?;
        fs::write(guests.join("witness.cfg"), WITNESS)?;
        fs::write(guests.join("hostile.cfg"), self.hostile())?;
        let volume = Volume::lock(&folder)?;
        volume.discard();
        let demo = self.project.path("guests");
        volume.sync(
            if self.soak {
                vec![demo.as_path(), guests.as_path()]
            } else {
                vec![guests.as_path()]
            }
            .as_slice(),
        )?;
        let monitor = folder.join("monitor");
        let _ = fs::remove_file(&monitor);
        let machine = Machine {
            gic: self.gic,
            cpus: self.cpus,
            memory: if self.soak { 4 << 10 } else { 1 << 10 },
            monitor: Some(monitor.clone()),
            ..Machine::default()
        };
        let qemu = machine.qemu(self.built, volume.image())?;
        let bound = self.time + Duration::from_secs(600);
        let mut session = Session::start(qemu, &self.log, bound)?;
        let mut seen = Seen::default();
        let result = self.play(&mut session, &mut seen);
        if let Err(error) = result {
            let _ = session.text(Duration::from_secs(2));
            if let Some(line) = fs::read_to_string(&self.log)
                .ok()
                .filter(|_| session.is_over())
                .as_deref()
                .and_then(qemus_own_end)
            {
                return Err(anyhow::Error::new(QemuEnded(format!(
                    "{line}, after {seen}"
                ))));
            }
            let _ = self.registers(&monitor);
            return Err(error.context(format!("after {seen}")));
        }
        Ok(seen.to_string())
    }

    fn folder(&self) -> Result<PathBuf> {
        let soak = if self.soak { "-soak" } else { "" };
        let name = format!("attack/{}-gicv{}{soak}", self.cpus, self.gic);
        self.project.dir(&name)
    }

    fn hostile(&self) -> String {
        // The witness comes after itself and the others.
        let peer = 2 + if self.soak { KERNELS.len() } else { 0 };
        format!(
            "name = \"hostile\"\nkernel = \"/guests/hostile.bin\"\ncmdline = \"{} peer={peer}\"\nmemory = 40\n\
             vcpus = {}\nvuart = \"sbsa_uart\"\non_crash = \"restart\"\non_poweroff = \"restart\"\n\
             on_reboot = \"restart\"\non_watchdog = \"restart\"\n",
            self.words, self.vcpus
        )
    }

    fn play(&self, session: &mut Session, seen: &mut Seen) -> Result<()> {
        let heap = heap(&session.expect(HEAP, BOOT)?)?;
        session.prompt(BOOT)?;
        // What is made once and kept.
        session.vane("create /guests/witness.cfg")?;
        session.vane("destroy witness")?;
        let before = resources(session)?;
        let mut linux = Vec::new();
        if self.soak {
            for kernel in KERNELS {
                session.vane(&format!("create /guests/{}.cfg", kernel.guest))?;
                session.attach(kernel.guest)?;
                linux_ready(session, kernel, 1)?;
                session.shell(CHECK)?;
                session.detach()?;
                linux.push(kernel.guest);
            }
        }
        session.line("create /guests/witness.cfg")?;
        session.expect("witness: beat", COMMAND)?;
        session.line("create /guests/hostile.cfg")?;
        self.watch(session, seen)?;
        self.stop(session, "hostile")?;
        // Whether it goes on, with nobody beside it.
        session.expect(
            r"witness: beat \d+, round \d+, late \d+ us, faults 0\b",
            SILENCE,
        )?;
        self.stop(session, "witness")?;
        quiet(session)?;
        for guest in linux {
            session.attach(guest)?;
            session.shell("test -s /tmp/rounds && ! test -e /tmp/wrong")?;
            session.detach()?;
            session.vane(&format!("destroy {guest}"))?;
        }
        // The last pages of a domain may be on their way.
        let end = Instant::now() + SILENCE;
        while let Err(error) = unchanged(session, &before) {
            if Instant::now() > end {
                return Err(error.context("something is lost"));
            }
            // One that shut itself down just before may have been begun anew since.
            session.line("destroy hostile")?;
            thread::sleep(Duration::from_secs(1));
        }
        session.line("poweroff")?;
        let left = session.expect(HEAP, COMMAND)?;
        // A life may begin before the last one is wholly gone.
        let lives = 2 * u64::from(self.vcpus);
        let others = if self.soak { 16 } else { 0 };
        let kept = kept(self.cpus, 2 + lives + others, 4 + others);
        ensure!(
            self::heap(&left)? <= heap + kept,
            "something is lost: {heap} bytes of the hypervisor's heap were in use at first, and at last {left}"
        );
        Ok(())
    }

    /// Ends a domain. The prompt may have others' lines in it.
    fn stop(&self, session: &mut Session, name: &str) -> Result<()> {
        session.line("")?;
        session.line(&format!("destroy {name}"))?;
        let end = Instant::now() + SILENCE;
        while Instant::now() < end {
            session.line(&format!("domid {name}"))?;
            if session
                .expect(&format!("no domain.*{name}"), Duration::from_secs(3))
                .is_ok()
            {
                return Ok(());
            }
        }
        bail!("{name} cannot be ended in {} s", SILENCE.as_secs())
    }

    fn watch(&self, session: &mut Session, seen: &mut Seen) -> Result<()> {
        let patterns = Patterns::new()?;
        let now = Instant::now();
        let end = now + self.time;
        let mut since = Since {
            witness: now,
            hostile: now,
            prompt: now,
            asked: now,
            beats: 0,
        };
        while Instant::now() < end {
            for line in session.text(Duration::from_millis(200))?.lines() {
                seen.line(&patterns, line, &mut since)?;
            }
            ensure!(
                since.witness.elapsed() < SILENCE,
                "the witness says nothing any more"
            );
            ensure!(
                since.prompt.elapsed() < SILENCE + ASK || seen.beats < since.beats + BEATS,
                "the prompt does not answer any more"
            );
            if since.asked.elapsed() > ASK {
                since.asked = Instant::now();
                session.line("uptime")?;
            }
            if since.hostile.elapsed() > LOST {
                since.hostile = Instant::now();
                seen.ended += 1;
                session.line("destroy hostile")?;
                thread::sleep(Duration::from_secs(1));
                session.line("create /guests/hostile.cfg")?;
            }
        }
        Ok(())
    }

    /// Where each CPU is, in the log: for a machine that does not answer.
    fn registers(&self, monitor: &Path) -> Result<()> {
        let mut stream = UnixStream::connect(monitor)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        writeln!(stream, "info registers -a")?;
        let mut log = fs::File::options().append(true).open(&self.log)?;
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            log.write_all(buffer.get(..n).context("a long read")?)?;
        }
        Ok(())
    }
}

/// Bytes that the hypervisor's heap keeps when there were so many vcpus and domains at once, dom0 among them: room for a
/// timer of each vcpu and each domain in eight heaps (`hv_core::timers`), and for each vcpu in the queue of each CPU
/// (`hv_core::sched`), 16 bytes each, in blocks of a power of two.
fn kept(cpus: u32, vcpus: u64, domains: u64) -> u64 {
    let block = |entries: u64| (entries * 16).next_power_of_two();
    8 * (block(vcpus + domains) - block(2)) + u64::from(cpus) * (block(vcpus) - block(1))
}

/// What the hypervisor says when it is ready and before it ends.
const HEAP: &str = r"\(PV\) .*, \d+ bytes of the heap in use";

/// The number in that.
fn heap(line: &str) -> Result<u64> {
    let number = line.split(' ').rev().nth(6).context("no number of bytes")?;
    Ok(number.parse()?)
}

/// Waits until nothing but the prompt is shown.
fn quiet(session: &mut Session) -> Result<()> {
    while !session.text(Duration::from_secs(2))?.is_empty() {}
    session.line("")?;
    session.expect(&format!("{PROMPT}$"), COMMAND)?;
    session.line("")?;
    session.expect(&format!("^{PROMPT}$"), COMMAND).map(drop)
}

const WITNESS: &str = "name = \"witness\"\nkernel = \"/guests/hostile.bin\"\ncmdline = \"role=witness\"\nmemory = 32\n";

/// A Linux guest computes, twice, and compares.
const CHECK: &str = "{ (while :; do head -c 1000000 /dev/urandom > /tmp/x; a=$(md5sum < /tmp/x); b=$(md5sum < /tmp/x); \
                     [ \"$a\" = \"$b\" ] || echo \"$a\" >> /tmp/wrong; date > /tmp/rounds; done) > /dev/null 2>&1 & }";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(parse_time("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_time("2h"), Ok(Duration::from_secs(7200)));
        assert!(parse_time("h").is_err() && parse_time("5d").is_err());
    }

    #[test]
    fn heaps_are_read() {
        let ready = "(PV) 1 CPUs, GICv3, 1014 MiB of memory, 98304 bytes of the heap in use";
        assert!(Regex::new(HEAP).unwrap().is_match(ready));
        assert_eq!(heap(ready).unwrap(), 98304);
        assert_eq!(heap("(PV) Off, 7 bytes of the heap in use").unwrap(), 7);
    }

    /// As was seen after one guest, the attack on one CPU, and on four.
    #[test]
    fn room_is_no_loss() {
        assert_eq!(kept(1, 2, 2), 272);
        assert_eq!(kept(1, 1 + 1 + 2, 3), 816);
        assert_eq!(kept(4, 1 + 1 + 5, 3), 2240);
    }

    #[test]
    fn qemus_end_is_not_ours() {
        let text = "$ qemu a\nERROR:../old.c:1\n\n$ qemu b\nvane> qemu-system-aarch64: ../target/arm/tcg/translate.c:250: \
                    gen_pc_plus_diff: Assertion `s->pc_save != -1' failed.\n";
        assert!(qemus_own_end(text).unwrap().contains("gen_pc_plus_diff"));
        assert_eq!(
            qemus_own_end("$ qemu a\nERROR:../old.c:1\n\n$ qemu b\nvane> (PV) halted\n"),
            None
        );
    }

    #[test]
    fn harm_is_seen() {
        let patterns = Patterns::new().unwrap();
        let now = Instant::now();
        let mut since = Since {
            witness: now,
            hostile: now,
            prompt: now,
            asked: now,
            beats: 0,
        };
        let mut seen = Seen::default();
        let mut line = |text: &str| seen.line(&patterns, text, &mut since);
        assert!(line("vane> hostile: d3 v1 at 9000 did 16384").is_ok());
        assert!(line("(d3) hostile: d3 v1 at 9900 did 20000").is_ok());
        assert!(line("hostile: d3 v2 at 9 did 5").is_ok());
        assert!(line("witness: beat 7, round 1, late 1500 us, faults 0").is_ok());
        assert!(line("witness: beat 8, round 1, late 100 us, faults 1").is_err());
        assert!(line("x witness: FAULT: 3 double words of page 1 are not what they were").is_err());
        assert!(line("(PV) hypervisor panic: at x.rs:1").is_err());
        assert!(line("(PV) hypervisor exception 4: esr").is_err());
        assert_eq!(seen.done.values().sum::<u64>(), 20_005);
        assert_eq!((seen.beats, seen.late_us), (8, 1500));
    }
}
