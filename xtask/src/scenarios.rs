// SPDX-License-Identifier: MIT OR Apache-2.0
//! The QEMU scenarios: what a person would do at the prompt, and what must be seen then. One machine at a time.

mod card;
mod debian;
mod network;
mod poison;
mod tap;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::build::Built;
use crate::conformance::Part;
use crate::guests::{self, KERNELS, Kernel};
use crate::machine::{Disk, Fault, Machine, parse_board};
use crate::project::Project;
use crate::session::{COMMAND, PROMPT, Session};
use crate::volume::{self, Volume};

/// From power-on to the prompt.
const BOOT: Duration = Duration::from_secs(30);
/// From `create` to Linux's shell, emulated and with others beside it.
const LINUX: Duration = Duration::from_secs(180);
/// From `create` to the Rust guest's line.
const HELLO: Duration = Duration::from_secs(15);
/// What the Rust guest says when it runs.
const HELLO_LINE: &str = "Hello from a Rust guest!";
/// Its prompt.
const HELLO_PROMPT: &str = "hello> ";
const POWER_OFF: Duration = Duration::from_secs(30);

/// Why a scenario cannot be played on this host.
#[derive(Debug)]
pub struct Skip(String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not on this host: {}", self.0)
    }
}

impl std::error::Error for Skip {}

/// What a scenario does; it fails by an error, and is skipped by [`Skip`].
type Play = Box<dyn Fn(&Stage) -> Result<()>>;

/// One scenario.
pub struct Scenario {
    pub name: String,
    /// It fails when it takes longer.
    pub bound: Duration,
    pub run: Play,
}

/// What scenarios play on.
pub struct Stage<'a> {
    pub project: &'a Project,
    pub built: &'a Built,
    /// The scenario's log.
    pub log: PathBuf,
    pub bound: Duration,
    /// When the scenario began.
    pub begin: Instant,
}

fn scenario(
    name: impl Into<String>,
    minutes: u64,
    run: impl Fn(&Stage) -> Result<()> + 'static,
) -> Scenario {
    Scenario {
        name: name.into(),
        bound: Duration::from_secs(60 * minutes),
        run: Box::new(run),
    }
}

/// All scenarios, quick ones first.
pub fn all() -> Vec<Scenario> {
    let mut all = vec![
        scenario("prompt", 2, prompt),
        scenario("machine-sizes", 5, machine_sizes),
        scenario("no-dom0", 1, no_dom0),
        scenario("not-at-el2", 1, not_at_el2),
        scenario("hypervisor-panic", 2, hypervisor_panic),
        scenario("dom0-crash", 5, dom0_crash),
        scenario("run-exec", 3, run_exec),
        scenario("run-piped", 2, run_piped),
        scenario("idle", 2, idle),
        scenario("guest-faults", 4, guest_faults),
        scenario("hello", 3, hello),
        scenario("cpu-models", 5, cpu_models),
        scenario("linux-cpu-models", 10, linux_cpu_models),
        scenario("xsa-91-registers", 6, xsa_91_registers),
        scenario("rust-guests", 4, rust_guests),
        scenario("vuart", 6, vuart),
        scenario("bad-input", 5, bad_input),
        scenario("create-destroy-hello", 10, create_destroy_hello),
        scenario("bench", 5, |stage| {
            crate::bench::check_committed(stage.project, stage.built)
        }),
    ];
    for part in Part::ALL {
        all.push(scenario(
            format!("conformance-{}", part.name()),
            5,
            move |stage| crate::conformance::check(stage.project, stage.built, part),
        ));
    }
    for kernel in KERNELS {
        for gic in [2, 3] {
            let name = format!("linux-{}-gicv{gic}", kernel.series);
            all.push(scenario(name, 15, move |stage| linux(stage, kernel, gic)));
        }
    }
    all.push(scenario("attack", 10, |stage| {
        crate::attack::minute(stage.project, stage.built, &stage.log)
    }));
    all.push(scenario("attack-controls", 10, |stage| {
        crate::attack::controls(stage.project, stage.built, &stage.log)
    }));
    all.push(scenario("poisoned-memory", 5, poison::poisoned_memory));
    all.push(scenario("rpi4", 15, rpi4));
    all.push(scenario("rpi4-card", 5, rpi4_card));
    all.push(scenario("life-cycle", 15, life_cycle));
    all.push(scenario("verbs", 10, verbs));
    all.push(scenario("maxmem", 15, maxmem));
    all.push(scenario("disks", 10, disks));
    all.push(scenario("full-volume", 6, full_volume));
    all.push(scenario("disk-comes-back", 10, disk_comes_back));
    all.push(scenario("network", 10, network));
    all.push(scenario("httpd", 10, network::httpd));
    all.push(scenario("network-chain", 20, network::chain));
    all.push(scenario("network-faults", 15, network::faults));
    all.push(scenario("network-world", 10, card::world));
    all.push(scenario("network-wire", 5, card::wire));
    all.push(scenario("network-tap", 10, card::tap));
    all.push(scenario("debian", 20, debian::debian));
    all.push(scenario("four-guests", 10, four_guests));
    all.push(scenario("create-destroy-linux", 25, create_destroy_linux));
    all
}

impl Stage<'_> {
    fn dir(&self) -> Result<PathBuf> {
        self.project.dir("test")
    }

    /// The folder of guests that go over the demo guests on the volume; emptied but for new disks.
    fn fresh_guests(&self) -> Result<PathBuf> {
        self.volume()?.discard();
        let guests = self.dir()?.join("guests");
        let _ = fs::remove_dir_all(&guests);
        fs::create_dir_all(&guests)?;
        for Kernel { guest, .. } in KERNELS {
            guests::make_disk(
                self.project,
                &guests.join(format!("{guest}-disk.img")),
                guest,
            )?;
        }
        Ok(guests)
    }

    fn volume(&self) -> Result<Volume> {
        Volume::lock(&self.dir()?)
    }

    /// Starts the machine with what is in the folder of guests.
    fn start(&self, machine: &Machine, volume: &Volume) -> Result<Session> {
        volume.sync(&[&self.project.path("guests"), &self.dir()?.join("guests")])?;
        volume.begin_use()?;
        let left = self.bound.saturating_sub(self.begin.elapsed());
        Session::start(machine.qemu(self.built, volume.image())?, &self.log, left)
    }

    /// Starts the machine with fresh guests, waits for the prompt, plays, and powers off at the prompt.
    fn play(&self, machine: &Machine, act: impl FnOnce(&mut Session) -> Result<()>) -> Result<()> {
        self.fresh_guests()?;
        self.play_on(machine, act)
    }

    /// The same with the guests as they are.
    fn play_on(
        &self,
        machine: &Machine,
        act: impl FnOnce(&mut Session) -> Result<()>,
    ) -> Result<()> {
        let volume = self.volume()?;
        let mut session = self.start(machine, &volume)?;
        session.prompt(BOOT)?;
        act(&mut session)?;
        session.line("poweroff")?;
        session.ended(POWER_OFF)?;
        volume.write_back()?;
        Ok(())
    }

    /// `cargo xtask run` itself, with these arguments and this standard input.
    fn xtask_run(&self, arguments: &[&str], input: &str) -> Result<Output> {
        self.xtask(&[&["run"], arguments].concat(), input)
    }

    /// A command of xtask's.
    fn xtask(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        std::io::Write::write_all(
            &mut child.stdin.take().context("no input")?,
            input.as_bytes(),
        )?;
        let output = child.wait_with_output()?;
        let mut log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)?;
        std::io::Write::write_all(&mut log, &output.stdout)?;
        std::io::Write::write_all(&mut log, &output.stderr)?;
        Ok(output)
    }
}

/// Machines differ by GIC, in every scenario that does not say which.
fn machine(gic: u32, cpus: u32) -> Machine {
    Machine {
        gic,
        cpus,
        ..Machine::default()
    }
}

/// The prompt answers, knows xl's verbs and explains each, completes and recalls what is typed, prints JSON where it
/// lists, and refuses what it does not know.
fn prompt(stage: &Stage) -> Result<()> {
    stage.play(&machine(3, 2), |session| {
        session.vane_shows("list", r"^Name +ID +Mem +VCPUs\s+State\s+Time\(s\)")?;
        session.vane_shows("list", r"^Domain-0 +0 ")?;
        let help = session.vane("help")?;
        let verbs: Vec<&str> = help
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
            .collect();
        for verb in VERBS {
            ensure!(verbs.contains(verb), "`help` does not name {verb}:\n{help}");
        }
        for verb in verbs {
            session.vane_shows(&format!("{verb} -h"), &format!("^usage: {verb}"))?;
        }
        session.vane_shows("info", r"^free_memory +: +\d+")?;
        session.vane_shows("doctor", r"^  cpus +2 of 2 run$")?;
        session.vane_shows("doctor", r"^  seed +32 bytes from the firmware$")?;
        session.vane_shows("dmesg", "(?i)paravane")?;
        session.vane_shows("frobnicate", "frobnicate")?;
        session.vane_shows("lsit", "did you mean \"list\"")?;
        session.vane_shows("exit", "poweroff ends it")?;
        session.vane_shows("list nobody", "nobody")?;

        // Tab completes a verb, a file and a guest's name; the arrow recalls and the line can be changed.
        session.keys("li\t", "list")?;
        session.keys("create /guests/hello.c\t", "create /guests/hello.cfg")?;
        let shown = session.keys("destroy hel\t", "destroy hello")?;
        ensure!(shown.is_empty(), "`destroy hello` says:\n{shown}");
        let shown = session.keys("\x1b[A", "destroy hello")?;
        ensure!(
            shown.contains("no domain"),
            "recalled, it is not run again:\n{shown}"
        );
        session.keys(
            "\x1b[A\x1b[A\x1b[A\x1b[D\x1b[D\x1b[D\x1b[Dxx\x7f\x7f",
            "list",
        )?;

        // Ctrl-R finds what was entered before.
        session.keys("\x12doct\x7f\x7f\x1b[C", "doctor")?;
        session.vane_shows("history", r"^ +\d+  lsit$")?;
        // A terminal that is asked (Ctrl-L does) and tells its width has lines broken there; told another, there.
        session.send("\x0c")?;
        session.expect(&format!("{PROMPT}$"), COMMAND)?;
        session.rewind_line();
        session.send("\x1b[24;40R")?;
        session.line("xenstore-list /local/domain/0/backend/vbd/1")?;
        session.expect(r"^end/vbd/1\n", COMMAND)?;
        session.prompt(COMMAND)?;
        session.send("\x1b[24;200R")?;

        // What lists, lists for programs too.
        session.vane("create hello")?;
        let list = session.json("list --json")?;
        ensure!(
            list[0]["name"] == "Domain-0" && list[1]["name"] == "hello" && list[1]["domid"] == 2,
            "`list --json`: {list}"
        );
        let long = session.json("list -l hello")?;
        ensure!(
            long[0]["config"]["kernel"] == "/guests/hello.bin",
            "`list -l hello`: {long}"
        );
        ensure!(session.json("info --json")?["nr_cpus"] == 2);
        ensure!(session.json("vcpu-list --json")?[1]["vcpu"] == 0);
        ensure!(session.json("uptime --json")?[1]["uptime_s"].is_u64());
        ensure!(session.json("block-list hello --json")? == serde_json::json!([]));
        let tree = session.json("xenstore-ls --json /local/domain/2")?;
        ensure!(tree.to_string().contains("\"hello\""), "{tree}");
        let names = session.json("xenstore-list --json /local/domain/2")?;
        ensure!(names.to_string().contains("console"), "{names}");
        session.vane("destroy hello").map(drop)
    })
}

/// Verbs that must be there, of xl and of xenstore's tools.
const VERBS: &[&str] = &[
    "create",
    "list",
    "info",
    "doctor",
    "console",
    "shutdown",
    "reboot",
    "destroy",
    "pause",
    "unpause",
    "domid",
    "domname",
    "rename",
    "vcpu-list",
    "vcpu-set",
    "mem-set",
    "dmesg",
    "uptime",
    "xenstore-ls",
    "xenstore-read",
    "xenstore-write",
    "xenstore-rm",
    "xenstore-list",
    "xenstore-watch",
    "vcpu-pin",
    "sched-credit2",
    "mem-max",
    "config-update",
    "sysrq",
    "clear",
    "history",
    "block-list",
    "block-attach",
    "block-detach",
    "network-list",
    "network-attach",
    "network-detach",
    "bridge-list",
    "help",
    "poweroff",
];

/// Every model of CPU boots to a guest that answers, by turns with each GIC.
fn cpu_models(stage: &Stage) -> Result<()> {
    let models = Machine::default().board.models;
    for (model, gic) in models.iter().zip([3, 2].into_iter().cycle()) {
        let machine = Machine {
            model: Some(model),
            ..machine(gic, 2)
        };
        stage
            .play(&machine, |session| {
                session.vane_shows("doctor", r"^  cpus +2 of 2 run$")?;
                session.vane("create /guests/hello.cfg")?;
                session.attach("hello")?;
                session.expect(&format!("^{HELLO_PROMPT}$"), HELLO)?;
                session.line("what is typed")?;
                session.expect("^you said: what is typed$", HELLO)?;
                session.detach()?;
                session.vane("destroy hello").map(drop)
            })
            .with_context(|| format!("{model}, GICv{gic}"))?;
    }
    Ok(())
}

/// Linux on four models, the oldest and the newest among them: two vcpus, its disk, and what it was shown of the CPU.
fn linux_cpu_models(stage: &Stage) -> Result<()> {
    let [.., kernel] = KERNELS else {
        bail!("there is no kernel");
    };
    for (model, gic) in [
        ("cortex-a53", 2),
        ("cortex-a76", 3),
        ("neoverse-v1", 3),
        ("max", 2),
    ] {
        let machine = Machine {
            model: Some(model),
            ..machine(gic, 2)
        };
        stage
            .play(&machine, |session| {
                let guest = kernel.guest;
                session.vane_within(&format!("create /guests/{guest}.cfg vcpus=2"), LINUX)?;
                session.attach(guest)?;
                linux_ready(session, kernel, 2)?;
                session.shell("dd if=/dev/urandom of=/mnt/data bs=64k count=16 && sync")?;
                let cpu = session.shell("cat /proc/cpuinfo")?;
                let hidden = ["sve", "sme", "paca", "pacg", "mte"];
                let shown: Vec<&str> = cpu.split_whitespace().collect();
                ensure!(
                    shown.contains(&"asimd") && !hidden.iter().any(|word| shown.contains(word)),
                    "{cpu}"
                );
                session.line("poweroff")?;
                session.prompt(LINUX)?;
                ended(session, guest)
            })
            .with_context(|| format!("{model}, GICv{gic}"))?;
    }
    Ok(())
}

/// The system registers that keep what EL1 writes, on all the models together, and what becomes of each at a switch. Another
/// one that the guest finds is one that nobody has decided about. Those that the guest leaves out stand in el1's
/// `registers.rs`.
const REGISTERS: [(&str, &str); 28] = [
    ("S3_0_C1_C0_2", "CPACR_EL1: switched"),
    ("S3_0_C2_C0_1", "TTBR1_EL1: switched"),
    ("S3_0_C4_C0_0", "SPSR_EL1: switched"),
    ("S3_0_C4_C0_1", "ELR_EL1: switched"),
    ("S3_0_C4_C1_0", "SP_EL0: switched"),
    ("S3_0_C4_C6_0", "ICV_PMR_EL1: in ICH_VMCR_EL2"),
    ("S3_0_C5_C1_0", "AFSR0_EL1: switched"),
    ("S3_0_C5_C1_1", "AFSR1_EL1: switched"),
    ("S3_0_C5_C2_0", "ESR_EL1: switched"),
    ("S3_0_C6_C0_0", "FAR_EL1: switched"),
    ("S3_0_C7_C4_0", "PAR_EL1: switched"),
    ("S3_0_C10_C3_0", "AMAIR_EL1: switched"),
    ("S3_0_C12_C1_1", "DISR_EL1: VDISR_EL2, cleared"),
    ("S3_0_C12_C8_3", "ICV_BPR0_EL1: in ICH_VMCR_EL2"),
    ("S3_0_C12_C8_4", "ICV_AP0R0_EL1: ICH_AP0R0_EL2"),
    ("S3_0_C12_C9_0", "ICV_AP1R0_EL1: ICH_AP1R0_EL2"),
    ("S3_0_C12_C12_3", "ICV_BPR1_EL1: in ICH_VMCR_EL2"),
    ("S3_0_C12_C12_4", "ICV_CTLR_EL1: in ICH_VMCR_EL2"),
    ("S3_0_C12_C12_6", "ICV_IGRPEN0_EL1: in ICH_VMCR_EL2"),
    ("S3_0_C12_C12_7", "ICV_IGRPEN1_EL1: in ICH_VMCR_EL2"),
    ("S3_0_C13_C0_1", "CONTEXTIDR_EL1: switched"),
    ("S3_0_C13_C0_4", "TPIDR_EL1: switched"),
    ("S3_0_C14_C1_0", "CNTKCTL_EL1: switched"),
    ("S3_2_C0_C0_0", "CSSELR_EL1: switched"),
    ("S3_3_C13_C0_2", "TPIDR_EL0: switched"),
    ("S3_3_C13_C0_3", "TPIDRRO_EL0: switched"),
    (
        "S3_3_C14_C2_2",
        "CNTP_CVAL_EL0: trapped, emulated for each vcpu",
    ),
    ("S3_3_C14_C3_2", "CNTV_CVAL_EL0: switched with the timer"),
];

/// Two domains take turns on one CPU thousands of times, and neither finds anything of the other's in a register: every
/// system register that keeps what EL1 writes to it, and floating point. SVE and SME are undefined.
fn xsa_91_registers(stage: &Stage) -> Result<()> {
    for (model, gic) in [
        ("cortex-a72", 2),
        ("cortex-a76", 3),
        ("neoverse-v1", 2),
        ("max", 3),
    ] {
        let guests = stage.fresh_guests()?;
        fs::copy(
            stage.project.path("build/registers.bin"),
            guests.join("registers.bin"),
        )?;
        for name in ["ann", "bob"] {
            let text =
                format!("name = \"{name}\"\nkernel = \"/guests/registers.bin\"\nmemory = 8\n");
            fs::write(guests.join(format!("{name}.cfg")), text)?;
        }
        let machine = Machine {
            model: Some(model),
            ..machine(gic, 1)
        };
        stage
            .play_on(&machine, |session| {
                session.vane("create ann")?;
                session.vane("create bob")?;
                for name in ["ann", "bob"] {
                    session.attach(name)?;
                    let shown = session.expect(r"(?s)\A.*^registers: (ok|failed).*?$", LINUX)?;
                    ensure!(
                        shown.contains("registers: ok") && !shown.contains("leak"),
                        "{name} says:\n{shown}"
                    );
                    let found = shown
                        .lines()
                        .filter_map(|line| line.strip_prefix("register "));
                    for register in found {
                        ensure!(
                            REGISTERS.iter().any(|(known, _)| *known == register),
                            "{register} keeps what is written, and nobody has said what becomes of it"
                        );
                    }
                    session.detach()?;
                }
                session.vane("destroy ann bob").map(drop)
            })
            .with_context(|| format!("{model}, GICv{gic}"))?;
    }
    Ok(())
}

/// Both GICs, the fewest and the most CPUs, the least and the most memory.
fn machine_sizes(stage: &Stage) -> Result<()> {
    for (gic, cpus, memory) in [
        (2, 1, 1 << 10),
        (3, 8, 16 << 10),
        (2, 8, 4 << 10),
        (3, 1, 1 << 10),
    ] {
        let machine = Machine {
            memory,
            ..machine(gic, cpus)
        };
        stage.play(&machine, |session| {
            session.vane_shows("info", &format!(r"^nr_cpus +: +{cpus}$"))?;
            Ok(())
        })?;
    }
    Ok(())
}

/// Without dom0 the hypervisor says so and stops.
fn no_dom0(stage: &Stage) -> Result<()> {
    stage.fresh_guests()?;
    let volume = stage.volume()?;
    let machine = Machine {
        dom0: false,
        ..machine(3, 1)
    };
    stage
        .start(&machine, &volume)?
        .expect("no control domain: give its image as the initrd", BOOT)
        .map(drop)
}

/// A panic of the hypervisor names the functions that led to it, and resets with last words, later each time; with
/// `noreboot` it halts.
fn hypervisor_panic(stage: &Stage) -> Result<()> {
    stage.fresh_guests()?;
    let volume = stage.volume()?;
    let mut machine = Machine {
        resets: true,
        ..machine(3, 2)
    };
    machine.append.push("panic=now".into());
    let mut session = stage.start(&machine, &volume)?;
    session.expect(r"^\(PV\) hypervisor panic: .*boot\.rs:\d+", BOOT)?;
    session.expect(r"^\(PV\) +hv_aarch64::boot::start\+0x", BOOT)?;
    session.expect(r"^\(PV\) +hv_boot\+0x", BOOT)?;
    session.expect(
        r"^\(PV\) the hypervisor panicked: reset in 5 s \(1 in a row\)",
        BOOT,
    )?;
    session.expect(
        r"^\(PV\) the last run ended after \d+ s: the hypervisor panicked \(1 in a row\)",
        BOOT,
    )?;
    session.expect(r"^\(PV\) \| \(PV\) hypervisor panic: .*boot\.rs:\d+", BOOT)?;
    session.expect(r"^\(PV\) \| \(PV\) +hv_boot\+0x", BOOT)?;
    session.expect(
        r"^\(PV\) the hypervisor panicked: reset in 10 s \(2 in a row\)",
        BOOT,
    )?;
    drop(session);
    // A page below each stack is not mapped, and the report has a stack of its own.
    machine.append = vec!["panic=overflow".into(), "noreboot".into()];
    let mut session = stage.start(&machine, &volume)?;
    session.expect(
        r"^\(PV\) hypervisor exception 4 \(synchronous\): .*: the stack is used up",
        BOOT,
    )?;
    session.expect(r"^\(PV\) at hv_aarch64::boot::overflow\+0x", BOOT)?;
    session.expect(r"^\(PV\) halted$", BOOT)?;
    Ok(())
}

/// A control domain that crashes or does not come round any more has the machine reset, with last words, later each time.
fn dom0_crash(stage: &Stage) -> Result<()> {
    stage.fresh_guests()?;
    let volume = stage.volume()?;
    let machine = Machine {
        resets: true,
        append: vec!["crash-test".into(), "dom0_watchdog=3".into()],
        ..machine(3, 2)
    };
    let mut session = stage.start(&machine, &volume)?;
    session.prompt(BOOT)?;
    ensure!(
        !session.vane("doctor")?.contains("last run"),
        "a first run has one before it"
    );
    session.vane("create /guests/hello.cfg")?;
    let ends = [
        ("panic", "dom0 crashed", 5, "asked for by crash-test"),
        (
            "hang",
            "dom0 did not renew its watchdog",
            10,
            "crash-test hang",
        ),
    ];
    for ((how, why, pause, words), n) in ends.into_iter().zip(1..) {
        session.line(&format!("crash-test {how}"))?;
        session.expect(
            &format!(r"^\(PV\) {why}: reset in {pause} s \({n} in a row\)"),
            BOOT,
        )?;
        session.expect(
            &format!(r"^\(PV\) the last run ended after \d+ s: {why} \({n} in a row\)"),
            BOOT,
        )?;
        session.prompt(BOOT)?;
        session.vane_shows("dmesg", &format!(r"(?m)^\(PV\) \| .*{words}"))?;
        let said = session.vane("doctor")?;
        for part in [why, words, &format!("({n} in a row)")] {
            ensure!(
                said.contains(part),
                "doctor says nothing of \"{part}\": {said}"
            );
        }
        // The machine does what it did before.
        session.vane("create /guests/hello.cfg")?;
    }
    // One that is asked for leaves none.
    session.line("poweroff -r -f")?;
    session.prompt(BOOT)?;
    ensure!(
        !session.vane("doctor")?.contains("last run"),
        "a reboot that was asked for is no crash"
    );
    Ok(())
}

/// At EL1 the hypervisor says so and stops.
fn not_at_el2(stage: &Stage) -> Result<()> {
    stage.fresh_guests()?;
    let volume = stage.volume()?;
    let machine = Machine {
        el2: false,
        ..machine(2, 1)
    };
    stage
        .start(&machine, &volume)?
        .expect("EL2", BOOT)
        .map(drop)
}

/// `--exec` prints the commands' output alone, and its status tells.
fn run_exec(stage: &Stage) -> Result<()> {
    let output = stage.xtask_run(
        &[
            "--timeout",
            "60",
            "--exec",
            "list",
            "--exec",
            "domid Domain-0",
        ],
        "",
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "status {} after:\n{text}",
        output.status
    );
    ensure!(
        text.contains("Domain-0") && text.lines().last() == Some("0"),
        "unexpected output:\n{text}"
    );
    ensure!(
        !text.contains("exec: ") && !text.contains(PROMPT),
        "more than the commands' output:\n{text}"
    );
    let output = stage.xtask_run(
        &[
            "--timeout",
            "60",
            "--exec",
            "create /guests/none.cfg",
            "--exec",
            "list",
        ],
        "",
    )?;
    ensure!(
        output.status.code() == Some(1),
        "a failed command gives status {}",
        output.status
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        errors.contains("create /guests/none.cfg"),
        "the failed command is not named:\n{errors}"
    );
    // A console of a guest that is kept ends with it; a word that nobody knows is named.
    let output = stage.xtask_run(
        &[
            "--timeout",
            "90",
            "--append",
            "dom0_men=64M",
            "--exec",
            "create -c linux \"cmdline='console=hvc0 rdinit=/none root=/dev/none panic=-1'\" on_reboot=preserve",
            "--exec",
            "list -v",
        ],
        "",
    )?;
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success() && text.contains("Kernel panic") && text.contains(" reboot"),
        "{}: a kept guest's console does not end:\n{text}\n{errors}",
        output.status
    );
    ensure!(
        errors.contains("dom0_men=64M"),
        "the unknown word is not named:\n{errors}"
    );
    let output = stage.xtask_run(&["--timeout", "2", "--exec", "xenstore-watch /local"], "")?;
    ensure!(
        output.status.code() == Some(124),
        "a timeout gives status {}",
        output.status
    );
    Ok(())
}

/// Piped standard input and output are as good as a terminal, also when the input ends before the machine does.
fn run_piped(stage: &Stage) -> Result<()> {
    let output = stage.xtask_run(&["--timeout", "90"], "list\npoweroff\n")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "status {} after:\n{text}",
        output.status
    );
    ensure!(text.contains("Domain-0"), "no list in:\n{text}");
    // The input's end is the run's, in a guest's console too, once all is done that was typed.
    let output = stage.xtask_run(
        &["--timeout", "90"],
        "create hello\nconsole hello\n\x1ddomid hello",
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.lines().any(|line| line.trim() == "1"),
        "status {} after:\n{text}",
        output.status
    );
    Ok(())
}

/// An idle machine, with a network card and an address on it, leaves the host's CPU alone.
fn idle(stage: &Stage) -> Result<()> {
    let machine = Machine {
        net: Some(crate::net::Net::default()),
        ..machine(3, 4)
    };
    stage.play(&machine, |session| {
        wait_until(session, BOOT, |session| {
            Ok(session.json("info --json")?["control_address"].is_string())
        })?;
        session.vane("create /guests/hello.cfg")?;
        std::thread::sleep(Duration::from_secs(2));
        let (before, from) = (session.cpu_time()?, Instant::now());
        std::thread::sleep(Duration::from_secs(8));
        let share = (session.cpu_time()? - before).as_secs_f64() / from.elapsed().as_secs_f64();
        ensure!(
            share < 0.2,
            "an idle machine takes {:.0} % of a host CPU",
            share * 100.0
        );
        Ok(())
    })
}

/// The Rust guest prints, answers, and ends as it should in each of the ways to end.
fn hello(stage: &Stage) -> Result<()> {
    for gic in [2, 3] {
        stage.play(&machine(gic, 2), |session| {
            session.vane("create /guests/hello.cfg")?;
            session.vane_shows("list", "^hello +1 ")?;
            session.attach("hello")?;
            session.expect(HELLO_LINE, HELLO)?;
            session.expect(&format!("^{HELLO_PROMPT}$"), HELLO)?;
            session.line("what is typed")?;
            session.expect("^you said: what is typed$", HELLO)?;
            session.line("setway")?;
            session.expect("^set and way: ok$", HELLO)?;
            session.detach()?;
            // Whoever comes later sees what was printed before.
            session.attach("hello")?;
            session.expect(HELLO_LINE, HELLO)?;
            session.expect("^you said: what is typed$", HELLO)?;
            session.detach()?;
            session.vane("destroy hello")?;
            gone(session, "hello")?;

            session.vane("create /guests/hello.cfg")?;
            session.vane_shows("domid hello", "^2$")?;
            for (word, next) in [("reboot", Some(3)), ("exit", None)] {
                session.attach("hello")?;
                session.expect(&format!("^{HELLO_PROMPT}$"), HELLO)?;
                session.line(word)?;
                session.prompt(HELLO)?;
                match next {
                    // A guest that lived for less than two seconds is started anew only after two.
                    Some(id) => restarted(session, "hello", id)?,
                    None => ended(session, "hello")?,
                }
            }

            // A guest's fault is that guest's end, with a report, and nobody else's.
            session.vane("create /guests/hello.cfg")?;
            session.attach("hello")?;
            session.expect(&format!("^{HELLO_PROMPT}$"), HELLO)?;
            session.line("crash")?;
            session.prompt(HELLO)?;
            ended(session, "hello")?;
            session.vane_shows("dmesg", "fault: data abort").map(drop)
        })?;
    }
    Ok(())
}

/// Rust guests on the front ends: xenstore read, written and reported back, a disk whose checksum is the host's, taken away
/// while it is read and while it is idle, and ends that the toolstack asks for. Nothing is left of them.
fn rust_guests(stage: &Stage) -> Result<()> {
    let guests = stage.fresh_guests()?;
    let mut disk: Vec<u8> = (0..3 << 20)
        .map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    disk[..32].copy_from_slice(b"The first words of a known disk.");
    // Not whole pages, that the last request is a short one.
    disk.truncate((3 << 20) - 1536);
    fs::write(guests.join("known.img"), &disk)?;
    let mut crc = flate2::Crc::new();
    crc.update(&disk);
    let sum = format!("crc32 {:08x} of {} bytes", crc.sum(), disk.len());
    for (file, guest, name, access) in [
        ("shell-known.cfg", "shell", "shell", "r"),
        ("reader.cfg", "blockcat", "reader", "r"),
        ("writer.cfg", "blockcat", "writer", "w"),
    ] {
        let text = format!(
            "name = \"{name}\"\nkernel = \"/guests/{guest}.bin\"\nmemory = 8\n\
             disk = [ \"/guests/known.img,raw,xvdb,{access}\" ]\n"
        );
        fs::write(guests.join(file), text)?;
    }
    fs::copy(
        stage.project.path("build/port.bin"),
        guests.join("port.bin"),
    )?;
    fs::write(
        guests.join("port.cfg"),
        "name = \"port\"\nkernel = \"/guests/port.bin\"\nmemory = 8\non_poweroff = \"preserve\"\n\
         disk = [ \"/guests/known.img,raw,xvdb,r\" ]\nvif = [ \"\" ]\n",
    )?;
    for gic in [2, 3] {
        stage.play_on(&machine(gic, 1), |session| {
            // The first ones may leave what is made once and kept.
            session.vane("create shell-known")?;
            session.vane("create reader")?;
            session.vane("destroy shell reader")?;
            let before = resources(session)?;

            session.vane("create shell-known")?;
            let id = session.vane("domid shell")?.trim().to_owned();
            session.attach("shell")?;
            session.expect("^This is shell, a shell in Rust", HELLO)?;
            let run = |session: &mut Session, command: &str, shows: &str| -> Result<()> {
                session.expect("^shell> $", HELLO)?;
                session.line(command)?;
                session.expect(shows, HELLO).map(drop)
            };
            run(session, "read name", "^shell$")?;
            run(
                session,
                "write data/greeting good morning",
                "greeting good morning$",
            )?;
            run(session, "read data/greeting", "^good morning$")?;
            run(session, "ls data", "^greeting = \"good morning\"$")?;
            run(session, "read data/nothing", "^read: xenstore: ENOENT$")?;
            run(
                session,
                "write /local/domain/0/x y",
                "^write: xenstore: EACCES$",
            )?;
            let sectors = disk.len() / 512;
            run(
                session,
                "disks",
                &format!("^xvdb: {sectors} sectors, read-only$"),
            )?;
            run(session, "sector 0 xvdb", r"^0010 .*  of a known disk\.$")?;
            run(session, "sector 1000000", "^sector: invalid argument$")?;
            run(session, "sector 0 xvdc", "^sector: no such device$")?;
            run(session, "time", r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC$")?;
            run(session, "memory", "^8192 KiB, of them heap ")?;
            session.expect("^shell> $", HELLO)?;
            session.detach()?;
            let path = format!("/local/domain/{id}/data/greeting");
            session.vane_shows(&format!("xenstore-read {path}"), "^good morning$")?;

            session.vane("create reader")?;
            session.attach("reader")?;
            session.expect("^blockcat: xvdb: 3144192 bytes, read-only", HELLO)?;
            session.expect(&format!("^blockcat: xvdb: {sum} "), HELLO)?;
            session.expect("^blockcat: xvdb: done$", HELLO)?;
            session.detach()?;
            // Idle, then in the midst of reading.
            session.vane("block-detach reader xvdb")?;
            session.vane_shows("block-list reader --json", r"^\[\]$")?;
            session.attach("reader")?;
            session.expect("^blockcat: xvdb: error: the other end is gone$", HELLO)?;
            session.expect("^blockcat: waiting for a disk$", HELLO)?;
            session.detach()?;
            session.vane("block-attach reader /guests/known.img,raw,xvdc,r")?;
            session.attach("reader")?;
            session.expect(&format!("^blockcat: xvdc: {sum} "), HELLO)?;
            session.detach()?;
            session.vane("destroy reader")?;
            session.vane("create reader extra=\"again\"")?;
            session.attach("reader")?;
            session.expect(&format!("^blockcat: xvdb: {sum} "), HELLO)?;
            session.detach()?;
            session.vane("block-detach reader xvdb")?;
            session.attach("reader")?;
            session.expect("^blockcat: xvdb: error: ", HELLO)?;
            session.expect("^blockcat: waiting for a disk$", HELLO)?;
            session.detach()?;

            // Both listen to the toolstack.
            session.vane_within("shutdown -w reader", HELLO)?;
            ended(session, "reader")?;
            session.vane_within("shutdown -w shell", HELLO)?;
            ended(session, "shell")?;
            unchanged(session, &before)?;

            session.vane("create writer")?;
            session.attach("writer")?;
            session.expect(&format!("^blockcat: xvdb: {sum} "), HELLO)?;
            session.expect("^blockcat: xvdb: written and read back$", HELLO)?;
            session.detach()?;
            session.vane("destroy writer")?;
            gone(session, "writer")?;
            unchanged(session, &before)?;

            // The kernel of docs/PORTING.md.
            session.vane("create port")?;
            wait_until(session, HELLO, |session| {
                Ok(session.json("network-list port --json")?[0]["state"] == 4)
            })?;
            // Which asks for an address: a frame for all.
            session.vane("create httpd")?;
            session.attach("port")?;
            session.expect("^port: a console$", HELLO)?;
            session.expect("^port: port is my name$", HELLO)?;
            session.expect("^port: the disk begins with The first words $", HELLO)?;
            session.expect(r"^port: a frame of \d+ bytes came$", HELLO)?;
            session.expect("kept as it is", HELLO)?;
            session.detach()?;
            session.vane_shows("xenstore-ls /local/domain", "greeting = \"hello\"")?;
            session.vane("destroy port httpd")?;
            unchanged(session, &before)?;

            // The demo guests as they come.
            session.line("create -c /guests/shell.cfg")?;
            session.expect("^shell> $", HELLO)?;
            session.line("sector 0 xvda")?;
            session.expect(r"^0000 .*  This disk belong$", HELLO)?;
            session.detach()?;
            session.vane("create blockcat")?;
            session.attach("blockcat")?;
            session.expect("^blockcat: xvda: done$", HELLO)?;
            session.detach()?;
            session.vane("destroy shell blockcat").map(drop)
        })?;
    }
    ensure!(
        fs::read(guests.join("known.img"))? == disk,
        "the disk's file is not as it was"
    );
    Ok(())
}

/// Guests that use the emulated UART alone: the Rust guest, and Linux with its PL011 driver from its first message to
/// the shell. Both are seen and typed to by `console`.
fn vuart(stage: &Stage) -> Result<()> {
    let guests = stage.fresh_guests()?;
    let demo = stage.project.path("guests");
    let linux = fs::read_to_string(demo.join("linux.cfg"))?.replace(
        "console=hvc0",
        "console=ttyAMA0 earlycon=pl011,mmio32,0x22000000",
    );
    fs::write(
        guests.join("uart.cfg"),
        format!("{linux}vuart = \"sbsa_uart\"\n"),
    )?;
    let hello = fs::read_to_string(demo.join("hello.cfg"))?;
    fs::write(
        guests.join("hello-uart.cfg"),
        format!("{hello}vuart = \"sbsa_uart\"\ncmdline = \"console=uart\"\n"),
    )?;
    for gic in [2, 3] {
        stage.play_on(&machine(gic, 2), |session| {
            session.vane("create hello-uart")?;
            session.attach("hello")?;
            session.expect("console: UART$", HELLO)?;
            session.expect(&format!("^{HELLO_PROMPT}$"), HELLO)?;
            session.line("by UART")?;
            session.expect("^you said: by UART$", HELLO)?;
            session.detach()?;
            session.vane("destroy hello")?;
            gone(session, "hello")?;
            if gic == 2 {
                return Ok(());
            }
            session.vane("create uart vcpus=2")?;
            session.attach("linux")?;
            session.expect(r"Booting Linux on physical CPU", LINUX)?;
            session.expect(r"ttyAMA0 at MMIO 0x22000000", LINUX)?;
            linux_ready(session, &KERNELS[0], 2)?;
            session.shell("grep -q ttyAMA0 /sys/class/tty/console/active && [ $(tty) = /dev/ttyAMA0 ]")?;
            session.shell("grep -q uart-pl011 /proc/interrupts")?;
            session.shell("cat /proc/interrupts /proc/cpuinfo >/dev/null; i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i of two hundred; done")?;
            session.line("poweroff")?;
            session.prompt(LINUX)?;
            ended(session, "linux")
        })?;
    }
    Ok(())
}

fn gone(session: &mut Session, guest: &str) -> Result<()> {
    let list = session.vane("list")?;
    ensure!(
        !list
            .lines()
            .any(|line| line.starts_with(&format!("{guest} "))),
        "{guest} is still there:\n{list}"
    );
    Ok(())
}

/// Waits in the attached console for Linux's shell.
pub fn linux_ready(session: &mut Session, kernel: &Kernel, vcpus: u32) -> Result<()> {
    let release = regex::escape(kernel.series);
    session.expect(
        &format!(r"^paravane-guest: ready: Linux {release}\.\S+, {vcpus} cpus, /dev/xvda on /mnt$"),
        LINUX,
    )?;
    session.expect("guest:.*# ", LINUX).map(drop)
}

/// Debian's kernel to a shell with 1, 2 and 4 vcpus; what it writes to its disk is there for the next domain.
fn linux(stage: &Stage, kernel: &Kernel, gic: u32) -> Result<()> {
    stage.play(&machine(gic, 4), |session| linux_domains(session, kernel))
}

fn linux_domains(session: &mut Session, kernel: &Kernel) -> Result<()> {
    let Kernel { guest, .. } = kernel;
    for vcpus in [1, 2, 4] {
        session.vane_within(&format!("create /guests/{guest}.cfg vcpus={vcpus}"), LINUX)?;
        session.vane_shows("list", &format!(r"^{guest} +\d+ +256 "))?;
        session.attach(guest)?;
        linux_ready(session, kernel, vcpus)?;
        session.shell("grep -q hvc0 /sys/class/tty/console/active")?;
        if vcpus == 1 {
            session.shell(
                "dd if=/dev/urandom of=/mnt/data bs=64k count=160 && md5sum /mnt/data >/mnt/sum",
            )?;
        } else {
            session.shell("md5sum -c /mnt/sum")?;
        }
        session.shell(&format!(
            "echo {vcpus} >>/mnt/runs; umount /mnt && mount -t ext4 /dev/xvda /mnt"
        ))?;
        let runs = session.shell("cat /mnt/runs")?;
        ensure!(
            runs.lines().last() == Some(&vcpus.to_string()),
            "written was {vcpus}, read is:\n{runs}"
        );
        if vcpus == 2 {
            session.shell("umount /mnt")?;
            session.detach()?;
            session.vane(&format!("destroy {guest}"))?;
        } else {
            session.line("poweroff")?;
            session.prompt(LINUX)?;
        }
        ended(session, guest)?;
    }
    Ok(())
}

/// Raspberry Pi 4: the prompt on the mini-UART, a Rust guest, and Linux with its disk on the card; what was written is
/// there after the machine was off.
fn rpi4(stage: &Stage) -> Result<()> {
    let machine = Machine::of(parse_board("rpi4").map_err(anyhow::Error::msg)?);
    let [.., kernel] = KERNELS else {
        bail!("there is no kernel");
    };
    stage.play(&machine, |session| {
        session.vane_shows("info", r"^nr_cpus +: 4$")?;
        session.vane_shows("dmesg", "on Raspberry Pi 4")?;
        session.vane("create hello")?;
        session.attach("hello")?;
        session.expect(HELLO_LINE, HELLO)?;
        session.detach()?;
        session.vane("destroy hello")?;
        let said = session.vane("doctor")?;
        for line in [
            "  board       Raspberry Pi 4\n",
            "  console     mini-UART at 0xfe215040, interrupt 125\n",
            "  interrupts  GICv2, 4 list registers, 224 interrupts\n",
            "  cpus        4 of 4 run\n",
            "; DMA reaches the first 1024 MiB\n",
            "  disk        volume: SD card, ",
            "  guests      on the disk volume\n",
            "? network     no card: ",
            "? seed        none from the firmware\n",
        ] {
            ensure!(
                said.contains(line),
                "`doctor` does not say {line:?}:\n{said}"
            );
        }
        ensure!(!said.contains("wrong"), "{said}");
        linux_domains(session, kernel)
    })?;
    stage.play_on(&machine, |session| {
        session.vane_within(&format!("create /guests/{}.cfg", kernel.guest), LINUX)?;
        session.attach(kernel.guest)?;
        linux_ready(session, kernel, 1)?;
        session.shell("md5sum -c /mnt/sum")?;
        let runs = session.shell("cat /mnt/runs")?;
        ensure!(runs.lines().count() == 3, "3 domains wrote:\n{runs}");
        session.line("poweroff")?;
        session.prompt(LINUX)
    })
}

/// A card made by `cargo xtask image` boots, with what is on it; what was there before is kept. The firmware, which QEMU
/// has no use for, is a stand-in.
fn rpi4_card(stage: &Stage) -> Result<()> {
    let dir = stage.dir()?;
    let (firmware, card) = (dir.join("firmware"), dir.join("card.img"));
    fs::create_dir_all(&firmware)?;
    let _ = fs::remove_file(&card);
    for name in ["start4.elf", "fixup4.dat"] {
        fs::write(firmware.join(name), name)?;
    }
    let text = |path: &PathBuf| path.to_str().map(str::to_owned).context("no UTF-8");
    let (folder, file) = (text(&firmware)?, text(&card)?);
    let make = [
        "image",
        "--board",
        "rpi4",
        "--firmware",
        &folder,
        "-o",
        &file,
    ];
    let made = stage.xtask(&[&make[..], &["--append", "dom0_mem=64M"]].concat(), "")?;
    ensure!(made.status.success(), "no card was made");
    let again = stage.xtask(&make, "")?;
    ensure!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--force"),
        "a card was written over"
    );
    ensure!(volume::read(&card, "start4.elf")? == b"start4.elf");
    let config = volume::read(&card, "config.txt")?;
    ensure!(String::from_utf8_lossy(&config).contains("\nkernel=kernel8.img\n"));
    let run = ["--board", "rpi4", "--image", &file, "--timeout", "120"];
    let run = [&run[..], &["--exec", "list", "--exec", "create hello"]].concat();
    let output = stage.xtask_run(&run, "")?;
    let shown = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success()
            && shown.contains("Domain-0                                     0    64 ")
            && shown.contains("(hello) created"),
        "the card does not do what it should:\n{shown}"
    );
    Ok(fs::remove_file(card)?)
}

/// Power-off, reboot and crash, from inside and from dom0, end as the config says.
fn life_cycle(stage: &Stage) -> Result<()> {
    let kernel = &KERNELS[0];
    stage.play(&machine(3, 2), |session| {
        let id = |session: &mut Session| {
            Ok::<_, anyhow::Error>(session.vane("domid linux")?.trim().to_owned())
        };
        session.vane("create /guests/linux.cfg vcpus=2")?;
        let first = id(session)?;
        session.attach("linux")?;
        linux_ready(session, kernel, 2)?;
        session.line("reboot")?;
        session.prompt(LINUX)?;
        restarted(session, "linux", 2)?;
        session.attach("linux")?;
        linux_ready(session, kernel, 2)?;
        session.detach()?;
        let second = id(session)?;
        ensure!(
            first != second,
            "the domain id is {first} before and after a reboot"
        );
        session.vane_within("reboot linux", LINUX)?;
        restarted(session, "linux", 3)?;
        session.attach("linux")?;
        linux_ready(session, kernel, 2)?;
        session.detach()?;
        session.vane("pause linux")?;
        session.vane_shows("list linux", "^linux .* -.p--- ")?;
        session.vane("unpause linux")?;
        session.vane_within("shutdown -w linux", LINUX)?;
        ended(session, "linux")?;
        // Linux on Arm has no crash call: with panic=1 it asks for a reboot, which ends as on_reboot says.
        for (number, action) in [(4, "destroy"), (5, "preserve"), (6, "restart")] {
            session.vane(&format!("create /guests/linux.cfg on_reboot=\"{action}\""))?;
            session.attach("linux")?;
            linux_ready(session, kernel, 1)?;
            session.line("echo c >/proc/sysrq-trigger")?;
            match action {
                "destroy" => {
                    session.prompt(LINUX)?;
                    ended(session, "linux")?;
                }
                "preserve" => {
                    session.expect("kept as it is", LINUX)?;
                    session.detach()?;
                    session.vane_shows("list linux", "^linux .* ...s.. ")?;
                    session.vane("destroy linux")?;
                }
                _ => {
                    session.prompt(LINUX)?;
                    restarted(session, "linux", number + 1)?;
                    session.vane("destroy linux")?;
                }
            }
        }
        Ok(())
    })
}

/// Waits until a guest that ended has been taken down.
fn ended(session: &mut Session, guest: &str) -> Result<()> {
    wait_until(session, LINUX, |s| {
        Ok(!s
            .vane("list")?
            .lines()
            .any(|l| l.starts_with(&format!("{guest} "))))
    })
}

/// Waits until a guest that restarts runs as domain `id`.
fn restarted(session: &mut Session, guest: &str, id: u32) -> Result<()> {
    session.expect(&format!("started anew as domain {id}"), LINUX)?;
    session
        .vane_shows(&format!("domid {guest}"), &format!("^{id}$"))
        .map(drop)
}

fn wait_until(
    session: &mut Session,
    timeout: Duration,
    mut done: impl FnMut(&mut Session) -> Result<bool>,
) -> Result<()> {
    let begin = Instant::now();
    while !done(session)? {
        ensure!(
            begin.elapsed() < timeout,
            "not so after {:.0} s",
            timeout.as_secs_f32()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// The verbs on a running Linux.
fn verbs(stage: &Stage) -> Result<()> {
    let kernel = &KERNELS[0];
    stage.play(&machine(2, 2), |session| {
        session.vane("create /guests/linux.cfg vcpus=2")?;
        session.attach("linux")?;
        linux_ready(session, kernel, 2)?;
        session.detach()?;
        session.vane_shows("vcpu-list linux", r"^linux +1 +0 ")?;
        session.vane_shows("vcpu-list linux", r"^linux +1 +1 ")?;
        session.vane_shows("list -l linux", "linux")?;
        session.vane_shows("--json list", r#""name": *"linux""#).or_else(|_| {
            session.vane_shows("list --json", r#""name": *"linux""#)
        })?;
        session.vane_shows("uptime", r"^linux +1 ")?;
        session.vane_shows("unpause linux", "is not paused")?;
        session.vane("vcpu-pin linux 1 0")?;
        session.vane_shows("vcpu-list linux", r"^linux +1 +1 .* 0 / all$")?;
        session.vane("vcpu-pin linux all all")?;
        session.vane("sched-credit2 -d linux -w 512")?;
        session.vane_shows("sched-credit2", r"^linux +1 +512$")?;
        session.vane("sched-credit2 -d linux -w 256")?;
        let long = session.json("list -l linux")?;
        ensure!(
            long[0]["vif"][0]["mac"].is_string() && long[0]["memory_given_kib"].is_u64(),
            "`list -l linux`: {long}"
        );
        session.vane("sysrq linux h")?;
        session.attach("linux")?;
        session.expect("sysrq: HELP", LINUX)?;
        session.detach()?;
        session.vane_shows("domid linux", "^1$")?;
        session.vane_shows("domname 1", "^linux$")?;
        session.vane("rename linux tux")?;
        session.vane_shows("list", "^tux +1 ")?;
        session.vane("rename tux linux")?;
        // It has two queues, of which the first one is told.
        session.vane_shows("block-list linux", r"^51712 +0 +1 +4 +[1-9]\d* +[1-9]\d* ")?;
        session.vane_shows("xenstore-ls /local/domain/1", "name = \"linux\"")?;
        session.vane_shows("xenstore-read /local/domain/1/name", "^linux$")?;
        session.vane("xenstore-write /local/domain/1/data/test something")?;
        session.vane_shows("xenstore-read /local/domain/1/data/test", "^something$")?;
        session.vane("xenstore-rm /local/domain/1/data/test")?;
        session.vane_shows("xenstore-list /local/domain/1", "^device$")?;

        session.vane("vcpu-set linux 1")?;
        session.attach("linux")?;
        session.line("")?;
        session.shell("i=0; while [ $(nproc) != 1 ] && [ $i -lt 100 ]; do i=$((i+1)); sleep 0.1; done; [ $(nproc) = 1 ]")?;
        session.detach()?;
        // The guest's balloon gives memory back, and takes it again.
        let free = |session: &mut Session| -> Result<u64> {
            let info = session.json("info --json")?;
            info["free_pages"].as_u64().context("no free_pages")
        };
        let before = free(session)?;
        for mib in [200u64, 256] {
            session.vane(&format!("mem-set linux {mib}"))?;
            wait_until(session, LINUX, |session| {
                Ok(session.json("list linux --json")?[0]["memory_mib"] == mib)
            })?;
            let now = free(session)?;
            // Blocks that the balloon splits need page tables, some pages in all.
            let given = before + (256 - mib) * 256;
            ensure!(
                now <= given && now + 128 >= given,
                "with {mib} MiB {now} pages are free, not about {given}"
            );
        }
        session.vane_shows("mem-set linux 300", "maxmem")?;

        // A second disk comes and goes.
        for _ in 0..20 {
            second_disk(session)?;
        }
        session.vane_shows("block-detach linux xvdb", "no disk")?;
        session.vane("destroy linux")?;
        gone(session, "linux")
    })
}

/// Linux with `maxmem` above `memory` has its memory, to the MiB, and grows and shrinks as it is told.
fn maxmem(stage: &Stage) -> Result<()> {
    let guests = stage.fresh_guests()?;
    for kernel in KERNELS {
        let config = fs::read_to_string(
            stage
                .project
                .path("guests")
                .join(format!("{}.cfg", kernel.guest)),
        )?;
        for (memory, most) in [(256, 320), (256, 700)] {
            let text = config.replace(
                "memory = 256",
                &format!("memory = {memory}\nmaxmem = {most}"),
            );
            fs::write(guests.join(format!("{}-{most}.cfg", kernel.guest)), text)?;
        }
    }
    stage.play_on(&machine(3, 2), |session| {
        for kernel in KERNELS {
            let guest = kernel.guest;
            for most in [320, 700] {
                session.vane(&format!("create /guests/{guest}-{most}.cfg"))?;
                session.attach(guest)?;
                linux_ready(session, kernel, 1)?;
                session.detach()?;
                for mib in [0, most, 200, 300, 256] {
                    if mib != 0 {
                        session.vane(&format!("mem-set {guest} {mib}"))?;
                    }
                    let wanted = if mib == 0 { 256 } else { mib };
                    wait_until(session, LINUX, |session| {
                        let list = session.json(&format!("list --json {guest}"))?;
                        // The pages that it shares with the back-ends are less than a MiB.
                        Ok(list[0]["memory_mib"] == wanted)
                    })
                    .with_context(|| format!("{guest}, maxmem {most}, mem-set {mib}"))?;
                }
                session.vane(&format!("destroy {guest}"))?;
            }
        }
        session.vane_shows(
            "create /guests/linux-700.cfg memory=100 maxmem=5000",
            r"command line: .* of memory are needed \(5000 MiB and its page tables, as a guest begins with all that it may have",
        )?;
        Ok(())
    })
}

/// Attaches a second disk to the running Linux, uses it, and detaches it.
fn second_disk(session: &mut Session) -> Result<()> {
    session.vane("block-attach linux /guests/linux612-disk.img,raw,xvdb,w")?;
    session.attach("linux")?;
    session.line("")?;
    session.shell("i=0; while [ ! -b /dev/xvdb ] && [ $i -lt 100 ]; do i=$((i+1)); sleep 0.1; done; mount -t ext4 /dev/xvdb /tmp && grep -q Paravane /tmp/README && date >/tmp/date && umount /tmp")?;
    session.detach()?;
    session.vane("block-detach linux xvdb")?;
    session.attach("linux")?;
    session.line("")?;
    session.shell(GONE_XVDB)?;
    session.detach()
}

const GONE_XVDB: &str = "i=0; while [ -b /dev/xvdb ] && [ $i -lt 100 ]; do i=$((i+1)); sleep 0.1; done; [ ! -b /dev/xvdb ]";

/// Sectors of the faulty disk whose reads and whose writes fail.
const BAD_READ: u64 = 2048;
const BAD_WRITE: u64 = 4096;

/// Whole disks for guests: written, read-only, discarded, failing, and full.
fn disks(stage: &Stage) -> Result<()> {
    const SIZE: u64 = 16 << 20;
    let dir = stage.dir()?;
    let plain = dir.join("plain.img");
    fs::write(&plain, vec![0xa5; SIZE as usize])?;
    let read_only = dir.join("read-only.img");
    guests::make_disk(stage.project, &read_only, "readonly")?;
    let failing = dir.join("failing.img");
    fs::write(&failing, vec![0x5a; SIZE as usize])?;
    let before = fs::read(&read_only)?;
    let mut used = 0;
    let machine = Machine {
        disks: vec![
            Disk {
                file: plain.clone(),
                ..Disk::default()
            },
            Disk {
                file: read_only.clone(),
                read_only: true,
                ..Disk::default()
            },
            Disk {
                file: failing,
                faults: vec![
                    Fault {
                        write: false,
                        sector: Some(BAD_READ),
                        errno: 5,
                    },
                    Fault {
                        write: true,
                        sector: Some(BAD_WRITE),
                        errno: 28,
                    },
                ],
                ..Disk::default()
            },
        ],
        ..machine(3, 2)
    };
    let guests = stage.fresh_guests()?;
    let config = fs::read_to_string(stage.project.path("guests").join("linux.cfg"))?;
    for (name, disks) in [
        ("written.cfg", "\"/dev/disk2,raw,xvdc,w\""),
        ("missing.cfg", "\"/dev/disk4,raw,xvdc,w\""),
        (
            "disks.cfg",
            "\"/dev/disk1,raw,xvdb,w\", \"/dev/disk2,raw,xvdc,r\", \"/dev/disk3,raw,xvdd,w\"",
        ),
    ] {
        fs::write(guests.join(name), format!("{config}disk += [ {disks} ]\n"))?;
    }
    let kernel = &KERNELS[0];
    stage.play_on(&machine, |session| {
        let clean = resources(session)?;
        session.vane_shows(
            "create written",
            r"/written.cfg:\d+: disk /dev/disk2: it cannot be written; give it access r$",
        )?;
        session.vane_shows(
            "create missing",
            r"/missing.cfg:\d+: .*/dev/disk4: there is no such file; did you mean .*/dev/disk1",
        )?;
        unchanged(session, &clean)?;
        session.vane("create disks")?;
        session.attach("linux")?;
        linux_ready(session, kernel, 1)?;

        // Written and read, past the guest's cache. BusyBox's `yes` and `head` take bytes one by one: not many.
        session.shell("yes paravane | head -c 65536 >/tmp/a; for i in $(seq 64); do cat /tmp/a; done >/tmp/p; dd if=/tmp/p of=/dev/xvdb bs=1M conv=fsync && echo 3 >/proc/sys/vm/drop_caches && dd if=/dev/xvdb of=/tmp/q bs=1M count=4 && cmp /tmp/q /tmp/p")?;
        // Read-only for the guest's kernel, whatever it tries.
        session.shell("mount -t ext4 -o ro /dev/xvdc /root && grep -q Paravane /root/README && umount /root")?;
        session.shell("! dd if=/dev/zero of=/dev/xvdc bs=4k count=1")?;

        // An error of the disk is an error in the guest, for that request and no other.
        session.shell(&format!("dd if=/dev/xvdd of=/dev/null bs=512 skip={} count=8 iflag=direct", BAD_READ - 8))?;
        session.shell(&format!("! dd if=/dev/xvdd of=/dev/null bs=512 skip={BAD_READ} count=1 iflag=direct"))?;
        session.shell(&format!("dmesg | grep -q 'I/O error, dev xvdd, sector {BAD_READ}'"))?;
        session.shell(&format!("! dd if=/dev/zero of=/dev/xvdd bs=512 seek={BAD_WRITE} count=1 conv=fsync"))?;
        session.shell(&format!("dmesg | grep -q 'I/O error, dev xvdd, sector {BAD_WRITE}'"))?;
        session.shell(&format!("dd if=/dev/zero of=/dev/xvdd bs=512 seek={} count=8 conv=fsync", BAD_WRITE + 8))?;
        session.shell(&format!("dd if=/dev/xvdd of=/dev/null bs=512 skip={} count=8 iflag=direct", BAD_READ + 8))?;

        // Discard: the file system's on a file of the volume, and a whole disk's, which then reads as zeros.
        session.shell("fstrim -v /mnt")?;
        used = fs::metadata(&plain)?.blocks();
        session.shell("blkdiscard /dev/xvdb && echo 3 >/proc/sys/vm/drop_caches && md5sum </dev/xvdb | grep -q '^2c7ab85a893283e98c931e9511add182 '")?;

        // A file system without room is the guest's own affair.
        session.shell("! dd if=/dev/zero of=/mnt/fill bs=64k 2>/tmp/e; grep -q 'No space left' /tmp/e && rm /mnt/fill && sync")?;
        session.detach()?;

        // Not offered where the configuration says so.
        session.vane("block-detach linux xvdb")?;
        session.attach("linux")?;
        session.line("")?;
        session.shell(GONE_XVDB)?;
        session.detach()?;
        session.vane("block-attach linux /dev/disk1,raw,xvdb,w,no-discard")?;
        session.attach("linux")?;
        session.line("")?;
        session.shell("i=0; while [ ! -b /dev/xvdb ] && [ $i -lt 100 ]; do i=$((i+1)); sleep 0.1; done; ! blkdiscard /dev/xvdb")?;
        session.line("poweroff")?;
        session.prompt(LINUX)?;
        ended(session, "linux")
    })?;
    let left = fs::metadata(&plain)?.blocks();
    ensure!(
        left < used / 4,
        "of {used} blocks of the discarded disk's file {left} are still in use"
    );
    ensure!(
        fs::read(&plain)?.iter().all(|byte| *byte == 0),
        "what was discarded is still in the file"
    );
    ensure!(
        fs::read(&read_only)? == before,
        "the read-only disk's file changed"
    );
    Ok(())
}

/// No room: on the host for a guest's writes, and on the host for the volume itself.
fn full_volume(stage: &Stage) -> Result<()> {
    let full = Machine {
        volume_faults: vec![Fault {
            write: true,
            sector: None,
            errno: 28,
        }],
        ..machine(3, 2)
    };
    stage.play(&full, |session| {
        // The first one may leave what is made once and kept.
        session.vane("create linux")?;
        session.vane("destroy linux")?;
        let clean = resources(session)?;
        session.vane("create linux")?;
        session.attach("linux")?;
        session.expect("I/O error, dev xvda, sector .*WRITE", LINUX)?;
        session.expect(
            "paravane-guest: ready: .*, /dev/xvda cannot be mounted$",
            LINUX,
        )?;
        session.expect("guest:.*# ", LINUX)?;
        session.shell("! dd if=/dev/zero of=/dev/xvda bs=4k seek=1000 count=1 conv=fsync")?;
        session.shell("mount -t ext4 -o ro /dev/xvda /mnt && grep -q Paravane /mnt/README")?;
        session.detach()?;
        session.vane("create hello")?;
        session.attach("hello")?;
        session.expect(HELLO_LINE, HELLO)?;
        session.detach()?;
        session.vane("destroy linux hello")?;
        unchanged(session, &clean)
    })?;

    // Files may grow no larger than this: the volume cannot be made. It is said, and no torso stays.
    let guests = stage.dir()?.join("own");
    let _ = fs::remove_dir_all(&guests);
    fs::create_dir_all(&guests)?;
    fs::write(guests.join("some.img"), vec![1; 1 << 20])?;
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 100000; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe()?)
        .args(["run", "--exec", "list", "--guests"])
        .arg(&guests)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1)
            && errors.contains("volume.img")
            && errors.contains("File too large"),
        "without room for the volume: {}, and\n{errors}",
        output.status
    );
    ensure!(
        !stage.project.path("run/volume.img").exists(),
        "an image that is not whole was left behind"
    );
    let output = stage.xtask_run(&["--timeout", "60", "--exec", "list"], "")?;
    ensure!(
        output.status.success(),
        "with room again: {}",
        output.status
    );
    Ok(())
}

/// What a guest wrote is in the host's file after the run, and there for the next one.
fn disk_comes_back(stage: &Stage) -> Result<()> {
    let kernel = &KERNELS[0];
    let guests = stage.fresh_guests()?;
    let before = fs::read(guests.join("linux-disk.img"))?;
    for run in 1..=2 {
        stage.play_on(&machine(3, 2), |session| {
            session.vane("create /guests/linux.cfg")?;
            session.attach("linux")?;
            linux_ready(session, kernel, 1)?;
            if run == 1 {
                session.shell("echo kept-by-paravane >/mnt/kept")?;
            } else {
                session.shell("grep -q kept-by-paravane /mnt/kept")?;
            }
            session.line("poweroff")?;
            session.prompt(LINUX)
        })?;
    }
    let after = fs::read(guests.join("linux-disk.img"))?;
    ensure!(
        before.len() == after.len() && before != after,
        "the host's file is as it was"
    );
    let text = b"kept-by-paravane";
    ensure!(
        after.windows(text.len()).any(|window| window == text),
        "what was written is not in the host's file"
    );
    Ok(())
}

/// Two Linux guests and two Rust guests on two CPUs, all of them answering.
fn four_guests(stage: &Stage) -> Result<()> {
    stage.play(&machine(3, 2), |session| {
        session.vane("create /guests/hello.cfg")?;
        session.vane("create /guests/hello.cfg name=\"hello2\"")?;
        for kernel in KERNELS {
            session.vane(&format!("create /guests/{}.cfg vcpus=2", kernel.guest))?;
        }
        for kernel in KERNELS {
            session.attach(kernel.guest)?;
            linux_ready(session, kernel, 2)?;
            session.detach()?;
        }
        for _ in 0..3 {
            for kernel in KERNELS {
                session.attach(kernel.guest)?;
                session.line("")?;
                session.shell("echo $((6 * 7)) | grep 42")?;
                session.detach()?;
            }
            for guest in ["hello", "hello2"] {
                session.attach(guest)?;
                session.line("")?;
                session.expect(&format!("^{HELLO_PROMPT}$"), HELLO)?;
                session.detach()?;
            }
        }
        for guest in ["linux", "hello", "linux612", "hello2"] {
            session.vane(&format!("destroy {guest}"))?;
            gone(session, guest)?;
        }
        Ok(())
    })
}

/// Waits for a Linux guest without a disk, and gives its network interface an address.
fn linux_gets_address(session: &mut Session, guest: &str, address: &str) -> Result<()> {
    session.attach(guest)?;
    session.expect(r"^paravane-guest: ready: Linux .*$", LINUX)?;
    session.expect("guest:.*# ", LINUX)?;
    session.shell(&format!(
        "ip link set lo up && ip link set eth0 up && ip address add {address}/24 dev eth0"
    ))?;
    session.detach()
}

/// What the control domain holds of guests.
fn held(session: &mut Session) -> Result<String> {
    let info = session.json("info --json")?;
    let [ports, pages] = ["control_event_channels", "control_mapped_pages"].map(|key| &info[key]);
    Ok(format!("{ports} ports, {pages} pages"))
}

/// Two Linux guests on the bridge: ICMP and TCP both ways, an interface that goes and another that comes while they
/// run, an address that is not a guest's own, and nothing left of either in the end.
fn network(stage: &Stage) -> Result<()> {
    stage.play(&machine(3, 1), |session| {
        let before = held(session)?;
        session.vane_shows("bridge-list", "^xenbr0 +-$")?;
        session.vane("create /guests/linux.cfg disk=[] \"vif=['mac=00:16:3e:00:00:01']\"")?;
        session.vane("create /guests/linux612.cfg disk=[] \"vif=['']\"")?;
        for (kernel, address) in KERNELS.iter().zip(["10.0.0.1", "10.0.0.2"]) {
            linux_gets_address(session, kernel.guest, address)?;
        }
        let list = session.json("network-list linux linux612 --json")?;
        ensure!(
            list[0]["state"] == 4 && list[1]["state"] == 4,
            "`network-list`: {list}"
        );
        let derived = list[1]["mac"].as_str().unwrap_or_default();
        ensure!(derived.starts_with("00:16:3e:"), "`network-list`: {list}");

        // What goes one way must come back, in packets small and large.
        session.attach("linux")?;
        session.shell("ping -c 3 -W 5 10.0.0.2")?;
        session.shell("ping -c 3 -W 5 -s 1472 10.0.0.2")?;
        session.shell("grep -q 00:16:3e:00:00:01 /sys/class/net/eth0/address")?;
        session.detach()?;

        // A megabyte by TCP, whose checksums are blank, arrives as it was sent.
        session.attach("linux612")?;
        session.shell("sleep 60 | nc -l -p 5000 >/tmp/got & sleep 1")?;
        session.detach()?;
        session.attach("linux")?;
        session.shell("dd if=/dev/urandom of=/tmp/data bs=64k count=16")?;
        session.shell("nc 10.0.0.2 5000 </tmp/data")?;
        let sent = session.shell("md5sum </tmp/data")?;
        session.detach()?;
        session.attach("linux612")?;
        let got = session.shell("md5sum </tmp/got")?;
        let sum = |text: &str| {
            text.split_whitespace()
                .find(|w| w.len() == 32)
                .map(str::to_owned)
        };
        ensure!(
            sum(&sent).is_some() && sum(&sent) == sum(&got),
            "sent {sent}, got {got}"
        );
        session.detach()?;
        let bridges = session.json("bridge-list --json")?;
        let port = &bridges[0]["ports"][1];
        ensure!(
            port["macs"][0] == derived && port["out"]["bytes"].as_u64() > Some(1 << 20),
            "`bridge-list`: {bridges}"
        );
        // What is written in large pieces goes in frames longer than the wire's: both kernels leave the splitting to the
        // last.
        let out = |bridges: &serde_json::Value| {
            let out = &bridges[0]["ports"][1]["out"];
            (
                out["frames"].as_u64().unwrap_or(0),
                out["bytes"].as_u64().unwrap_or(0),
            )
        };
        let before_large = out(&bridges);
        session.attach("linux")?;
        session.shell("httpd -h /tmp")?;
        session.detach()?;
        session.attach("linux612")?;
        session.shell("wget -q -O /tmp/again http://10.0.0.1/data && cmp /tmp/got /tmp/again")?;
        session.detach()?;
        let bridges = session.json("bridge-list --json")?;
        let after_large = out(&bridges);
        let (frames, bytes) = (
            after_large.0 - before_large.0,
            after_large.1 - before_large.1,
        );
        ensure!(
            bytes > 1 << 20 && bytes > frames * 1514,
            "{bytes} bytes in {frames} frames; `bridge-list`: {bridges}"
        );

        // Another interface, which may use 10.0.0.3 only.
        session.vane("network-detach linux612 0")?;
        session.attach("linux612")?;
        session.shell("until [ -z \"$(ls /sys/bus/xen/devices)\" ]; do sleep 1; done")?;
        session.detach()?;
        session.vane("network-attach linux612 ip=10.0.0.3 rate=10Mb/s")?;
        session.attach("linux612")?;
        let up = "until ip link set eth0 up; do sleep 1; done; ip address add";
        session.shell(&format!("{up} 10.0.0.3/24 dev eth0"))?;
        session.shell("ping -c 2 -W 5 10.0.0.1")?;
        session.shell("ip address flush dev eth0; ip address add 10.0.0.4/24 dev eth0")?;
        session.shell("! ping -c 2 -W 2 10.0.0.1")?;
        session.detach()?;
        let bridges = session.json("bridge-list --json")?;
        let refused = &bridges[0]["ports"][1]["in"]["refused"];
        ensure!(refused.as_u64() > Some(0), "`bridge-list`: {bridges}");

        for kernel in KERNELS {
            session.vane(&format!("destroy {}", kernel.guest))?;
            gone(session, kernel.guest)?;
        }
        let after = held(session)?;
        ensure!(after == before, "{before} before, {after} after");
        session.vane_shows("bridge-list", "^xenbr0 +-$").map(drop)
    })
}

/// What must be as it was when domains have come and gone.
pub struct Resources {
    /// Free pages, the control domain's event channels and mapped pages, and all of xenstore: to the last one.
    exact: String,
    /// What the control domain has taken of its heap, in KiB.
    heap: u64,
}

/// How much more of its heap the control domain may use after many domains than before, in KiB: the prompt remembers
/// what was typed. Each domain's console alone would leave 64 KiB.
const HEAP_SLACK: u64 = 48;

pub fn resources(session: &mut Session) -> Result<Resources> {
    let info = session.json("info --json")?;
    let number = |key: &str| {
        info[key]
            .as_u64()
            .with_context(|| format!("`info` shows no {key}: {info}"))
    };
    let mut exact = String::new();
    for key in [
        "free_memory",
        "free_pages",
        "control_event_channels",
        "control_mapped_pages",
    ] {
        exact += &format!("{key}: {}\n", number(key)?);
    }
    exact += &session.vane("xenstore-ls /")?;
    Ok(Resources {
        exact,
        heap: number("control_heap_used_kib")?,
    })
}

pub fn unchanged(session: &mut Session, before: &Resources) -> Result<()> {
    let after = resources(session)?;
    ensure!(
        before.exact == after.exact,
        "not as it was; before:\n{}\nafter:\n{}",
        before.exact,
        after.exact
    );
    Ok(())
}

/// The same, and the control domain's heap is as it was too, once all that it keeps for later is there.
fn unchanged_with_heap(session: &mut Session, before: &Resources) -> Result<()> {
    unchanged(session, before)?;
    let after = resources(session)?;
    ensure!(
        after.heap <= before.heap + HEAP_SLACK,
        "the control domain used {} KiB of its heap before, and {} KiB after",
        before.heap,
        after.heap
    );
    Ok(())
}

/// 200 Rust guests come and go, and leave nothing.
fn create_destroy_hello(stage: &Stage) -> Result<()> {
    stage.play(&machine(3, 2), |session| {
        // The first one may leave what is made once and kept.
        session.vane("create /guests/hello.cfg")?;
        session.vane("destroy hello")?;
        let before = resources(session)?;
        for _ in 0..200 {
            session.vane("create /guests/hello.cfg")?;
            session.vane("destroy hello")?;
        }
        unchanged_with_heap(session, &before)
    })
}

/// 10 Linux guests come and go, and leave nothing: half of them in the midst of booting.
fn create_destroy_linux(stage: &Stage) -> Result<()> {
    stage.play(&machine(3, 2), |session| {
        session.vane("create /guests/linux.cfg")?;
        session.vane("destroy linux")?;
        let before = resources(session)?;
        for round in 0..10u64 {
            session.vane("create /guests/linux.cfg vcpus=2")?;
            if round % 2 == 0 {
                session.attach("linux")?;
                linux_ready(session, &KERNELS[0], 2)?;
                session.detach()?;
            } else {
                std::thread::sleep(Duration::from_secs(round));
            }
            session.vane("destroy linux")?;
        }
        unchanged_with_heap(session, &before)
    })
}

/// Whatever a guest does ends that guest at worst, with a report that says what and where, and a guest
/// beside it notices nothing.
fn guest_faults(stage: &Stage) -> Result<()> {
    // What it does, what the hypervisor or the guest's own handler reports, and at which address.
    let faults = [
        (
            "unmapped",
            "touched what it does not have: address 0x7ffffffff8 .*pc 0x",
        ),
        (
            "pair",
            r"does not describe \(ISV=0\): address 0x3001000 .*pc 0x",
        ),
        ("undefined", r"^\(d\d+\) fault: unknown instruction"),
        (
            "null",
            r"^\(d\d+\) fault: data abort, esr 0x[0-9a-f]+ far 0x0$",
        ),
        (
            "text",
            r"^\(d\d+\) fault: data abort, esr 0x9600004f far 0x40000000$",
        ),
        (
            "data",
            r"^\(d\d+\) fault: instruction abort, esr 0x8600000f far 0x40",
        ),
        (
            "wild",
            r"its exception vector aborts\n.*pc 0000007ffffff200 pstate [0-9a-f]+ esr 82",
        ),
    ];
    for gic in [2, 3] {
        stage.play(&machine(gic, 2), |session| {
            session.vane("create /guests/hello.cfg name=\"bystander\"")?;
            session.vane_shows("domid bystander", "^1$")?;
            for (word, report) in faults {
                session.vane("create /guests/hello.cfg on_crash=\"destroy\"")?;
                session.attach("hello")?;
                session.expect(&format!("^{HELLO_PROMPT}$"), HELLO)?;
                session.line(&format!("crash {word}"))?;
                session.prompt(HELLO)?;
                ended(session, "hello")?;
                session.vane_shows("dmesg", report)?;
            }
            session.attach("bystander")?;
            session.line("still here")?;
            session.expect("^you said: still here$", HELLO)?;
            session.detach()?;
            session.vane_shows("domid bystander", "^1$").map(drop)
        })?;
    }
    Ok(())
}

/// Every kind of mistake gets a clear error, leaves nothing behind and the prompt alive.
fn bad_input(stage: &Stage) -> Result<()> {
    let guests = stage.fresh_guests()?;
    let demo = stage.project.path("guests");
    let hello = "kernel = \"/guests/hello.bin\"\nmemory = 8\n";
    fs::write(guests.join("no-image.bin"), vec![0x5a; 8192])?;
    fs::write(guests.join("empty.bin"), "")?;
    let image = fs::read(demo.join("vmlinuz-6.1"))?;
    fs::write(
        guests.join("short.bin"),
        image.get(..64 << 10).context("a short kernel")?,
    )?;
    let initrd = fs::read(demo.join("initrd-6.1.cpio.gz"))?;
    fs::write(
        guests.join("short.cpio.gz"),
        initrd.get(..initrd.len() / 2).unwrap_or_default(),
    )?;
    // File, its text, and what the answer must show.
    let cases: &[(&str, String, &str)] = &[
        (
            "unclosed",
            format!("name = \"x\n{hello}"),
            "unclosed.cfg.*1",
        ),
        (
            "no-equals",
            format!("name \"x\"\n{hello}"),
            "no-equals.cfg.*1",
        ),
        (
            "bad-list",
            format!("name = \"x\"\n{hello}disk = [ \"format=raw\"\n"),
            r"bad-list.cfg.*\d",
        ),
        (
            "bad-number",
            "name = \"x\"\nkernel = \"/guests/hello.bin\"\nmemory = \"lots\"\n".into(),
            "bad-number.cfg.*3",
        ),
        (
            "bad-vcpus",
            format!("name = \"x\"\n{hello}vcpus = 0\n"),
            "bad-vcpus.cfg.*4",
        ),
        (
            "bad-action",
            format!("name = \"x\"\n{hello}on_crash = \"explode\"\n"),
            "bad-action.cfg.*4",
        ),
        (
            "bad-disk",
            format!(
                "name = \"x\"\n{hello}disk = [ \"format=raw,vdev=sillyname,target=/guests/linux-disk.img\" ]\n"
            ),
            "bad-disk.cfg.*4",
        ),
        (
            "no-kernel",
            "name = \"x\"\nmemory = 8\n".into(),
            "(?i)kernel",
        ),
        ("no-name", hello.to_owned(), "(?i)name"),
        (
            "missing-kernel",
            "name = \"x\"\nkernel = \"/guests/nowhere.bin\"\nmemory = 8\n".into(),
            "nowhere.bin",
        ),
        (
            "missing-disk",
            format!(
                "name = \"x\"\n{hello}disk = [ \"format=raw,vdev=xvda,target=/guests/nowhere.img\" ]\n"
            ),
            "nowhere.img",
        ),
        (
            "no-image",
            "name = \"x\"\nkernel = \"/guests/no-image.bin\"\nmemory = 64\n".into(),
            "(?i)image",
        ),
        (
            "empty",
            "name = \"x\"\nkernel = \"/guests/empty.bin\"\nmemory = 64\n".into(),
            "(?i)image|empty",
        ),
        (
            "short",
            "name = \"x\"\nkernel = \"/guests/short.bin\"\nmemory = 128\n".into(),
            "(?i)truncated|short|image",
        ),
        (
            "too-much",
            "name = \"x\"\nkernel = \"/guests/hello.bin\"\nmemory = 100000\n".into(),
            "(?i)memory",
        ),
        (
            "too-small",
            "name = \"x\"\nkernel = \"/guests/vmlinuz-6.1\"\nmemory = 16\n".into(),
            "(?i)memory|fit",
        ),
    ];
    for (name, text, _) in cases {
        fs::write(guests.join(format!("{name}.cfg")), text)?;
    }
    let config = fs::read_to_string(demo.join("linux.cfg"))?;
    fs::write(
        guests.join("short-ramdisk.cfg"),
        config.replace("initrd-6.1.cpio.gz", "short.cpio.gz"),
    )?;
    stage.play_on(&machine(3, 2), |session| {
        session.vane("create /guests/hello.cfg")?;
        session.vane("destroy hello")?;
        let before = resources(session)?;
        for (name, _, shows) in cases {
            session.vane_shows(&format!("create /guests/{name}.cfg"), shows)?;
            let list = session.vane("list")?;
            ensure!(
                list.lines().filter(|line| !line.is_empty()).count() == 2,
                "after {name}.cfg there is:\n{list}"
            );
        }
        session.vane_shows("create /guests/none.cfg", "none.cfg")?;
        unchanged(session, &before)?;
        // Only the kernel can find out that its ramdisk is truncated: it panics, and the domain ends as its config says.
        session.vane("create /guests/short-ramdisk.cfg on_reboot=\"destroy\"")?;
        wait_until(session, LINUX, |session| {
            Ok(!session.vane("list")?.contains("linux"))
        })?;
        session.vane("create /guests/hello.cfg")?;
        session.vane_shows(
            "create /guests/hello.cfg",
            "(?i)hello.*(exists|in use|already|taken)",
        )?;
        session.vane("destroy hello")?;
        unchanged(session, &before)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_waits_are_within_bounds() {
        let all = all();
        let mut names: Vec<_> = all.iter().map(|scenario| &scenario.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|scenario| scenario.bound > COMMAND));
    }
}
