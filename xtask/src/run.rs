// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask run`: set up, build, and leave the person (or the script) at the `vane>` prompt.

use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::build;
use crate::debian::{self, Debian};
use crate::image;
use crate::machine::{
    BOARDS, Board, Disk, Machine, parse_board, parse_disk, parse_memory, parse_model, warn_of_words,
};
use crate::net::{Choice, parse_net};
use crate::project::Project;
use crate::setup;
use crate::volume::Volume;

#[derive(clap::Args)]
pub struct Args {
    /// The board
    #[arg(long, value_parser = parse_board, default_value = BOARDS[0].name)]
    board: &'static Board,
    /// The model of its CPUs, of QEMU's: cortex-a72, cortex-a53, cortex-a57, cortex-a76, cortex-a710, neoverse-n1,
    /// neoverse-v1 or max (all that QEMU knows) [default: cortex-a72; rpi4 has no other]
    #[arg(long, value_parser = parse_model, value_name = "MODEL")]
    cpu: Option<&'static str>,
    /// The version of its interrupt controller: 2 or 3
    #[arg(long)]
    gic: Option<u32>,
    /// How many CPUs the machine has [default: 2; rpi4 has 4]
    #[arg(long)]
    cpus: Option<u32>,
    /// How much memory the machine has, as 4G or 2048M [default: 4G; rpi4 has 2G]
    #[arg(long, value_parser = parse_memory, value_name = "SIZE")]
    memory: Option<u64>,
    /// A folder copied to dom0's volume as /guests, beside the demo guests; changed files are written back at the end
    #[arg(long, value_name = "DIR")]
    guests: Option<PathBuf>,
    /// Run a card made by `cargo xtask image`, with the hypervisor, dom0 and guests that are on it; what they write stays
    /// there
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guests", "dev"])]
    image: Option<PathBuf>,
    /// A guest on a disk of its own, made at first use; what it writes stays. `debian`: Debian 12 with systemd, apt and an
    /// ssh server, which port 2222 of this host leads to if no --net is given
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    demo: Option<Demo>,
    /// A further raw disk for dom0
    #[arg(long, value_parser = parse_disk, value_name = "FILE[,ro]")]
    disk: Vec<Disk>,
    /// What the machine's network card is connected with: `user` (QEMU's own network, out to the world),
    /// `user,hostfwd=tcp|udp:[HOST]:PORT-[ADDRESS]:PORT` (a port of this host that leads into it; on the loopback
    /// interface if no HOST is given), `tap=NAME`, `socket,listen=[HOST]:PORT`, `socket,connect=HOST:PORT`,
    /// `socket,mcast=GROUP:PORT[,localaddr=ADDRESS]`, each with `,mac=ADDRESS` if it is not to be chosen from this host and folder; or `none`: no card [default: user; rpi4 has none]
    #[arg(long, value_parser = parse_net, value_name = "NETWORK")]
    net: Option<Choice>,
    /// Run a command of the prompt without a person, print its output and power off; repeatable
    #[arg(long, value_name = "COMMAND")]
    exec: Vec<String>,
    /// Stop the machine after this many seconds, with exit status 124
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Wait for a debugger on port 1234 before the first instruction
    #[arg(long)]
    gdb: bool,
    /// More for the hypervisor's command line
    #[arg(long, value_name = "WORDS")]
    append: Vec<String>,
    /// Build without optimisation
    #[arg(long)]
    dev: bool,
    /// QEMU's -icount: let virtual time follow instructions
    #[arg(long, hide = true, value_name = "OPTIONS")]
    icount: Option<String>,
}

/// A guest of `--demo`.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Demo {
    Debian,
}

/// The port of this host that leads to the Debian guest's ssh server.
const SSH: u16 = 2222;

/// The exit status when `--timeout` ended the run, as of timeout(1).
const TIMED_OUT: u8 = 124;

pub fn main(project: &Project, args: &Args) -> Result<ExitCode> {
    let usual = Machine::of(args.board);
    let mut machine = Machine {
        model: args.cpu.or(usual.model),
        gic: args.gic.unwrap_or(usual.gic),
        cpus: args.cpus.unwrap_or(usual.cpus),
        memory: args.memory.unwrap_or(usual.memory),
        disks: args.disk.clone(),
        net: match &args.net {
            Some(net) => net.clone().map(|n| n.with_address(&project.root)),
            None if args.board.card => None,
            None if args.demo.is_some() => {
                let net = format!("user,hostfwd=tcp::{SSH}-{}:22", debian::ADDRESS);
                parse_net(&net).map_err(anyhow::Error::msg)?
            }
            None => parse_net("user").map_err(anyhow::Error::msg)?,
        },
        append: args.append.clone(),
        resets: false,
        gdb: args.gdb,
        icount: args.icount.clone(),
        ..usual
    };
    if !args.exec.is_empty() {
        machine.append.push(exec_word(&args.exec)?);
    }
    machine.check()?;
    ensure!(
        args.demo.is_none() || !args.board.card,
        "{} has no place for the disk of --demo",
        args.board.name
    );
    warn_of_words(&machine.append);
    setup::ensure(project, args.board)?;
    if let Some(image) = &args.image {
        return run_card(project, args, machine, image);
    }
    let built = build::build(
        project,
        &build::Args {
            dev: args.dev,
            quiet: true,
        },
    )?;
    let volume = Volume::lock(&project.dir("run")?)?;
    let demo = project.path("guests");
    let mut folders = vec![demo.as_path()];
    let extra = project.path("run/demo");
    if args.demo.is_some() {
        let debian = Debian::ensure(project, &built)?;
        // What the guest writes stays in a copy.
        let file = project.path("run/debian.img");
        if !file.is_file() {
            debian.copy_disk(&file)?;
        }
        machine.disks.push(Disk {
            file,
            ..Disk::default()
        });
        debian.guests(project, &extra, machine.disks.len())?;
        folders.push(extra.as_path());
        eprintln!("`create -c debian` starts it; root has no password on its console.");
        if args.net.is_none() && debian.key().is_file() {
            eprintln!(
                "From here: ssh -p {SSH} -i {} root@localhost",
                project.show(&debian.key())
            );
        }
    }
    folders.extend(args.guests.as_deref());
    volume.sync(&folders)?;
    let mut qemu = machine.qemu(&built, volume.image())?;
    if args.gdb {
        eprintln!(
            "The machine waits for a debugger:\n  gdb-multiarch {} -ex 'target remote :1234'",
            project.show(&built.hypervisor_elf)
        );
    }
    volume.begin_use()?;
    let timeout = args.timeout.map(Duration::from_secs);
    let result = if args.exec.is_empty() {
        interactive(&mut qemu, timeout)
    } else {
        scripted(&mut qemu, timeout)
    };
    let written = volume.write_back();
    let code = result?;
    for file in written? {
        if !file.starts_with(project.path("guests")) {
            eprintln!("written back: {}", file.display());
        }
    }
    Ok(code)
}

/// Runs a card: QEMU has no firmware for it, so what that would load is taken from the card here.
fn run_card(project: &Project, args: &Args, mut machine: Machine, file: &Path) -> Result<ExitCode> {
    let card = image::unpack(project, file, args.board)?;
    if !card.append.is_empty() {
        machine.append.insert(0, card.append);
    }
    let mut qemu = machine.qemu(&card.built, file)?;
    let timeout = args.timeout.map(Duration::from_secs);
    if args.exec.is_empty() {
        interactive(&mut qemu, timeout)
    } else {
        scripted(&mut qemu, timeout)
    }
}

/// The word of the command line that carries the commands: `exec=` and base64url (RFC 4648, section 5, not padded)
/// of the commands with a line feed between each two.
fn exec_word(commands: &[String]) -> Result<String> {
    for command in commands {
        ensure!(
            !command.contains(['\n', '\r', '\0']),
            "an --exec command is one line: {command:?}"
        );
    }
    Ok(format!(
        "exec={}",
        base64url(commands.join("\n").as_bytes())
    ))
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for digit in 0..=group.len() {
            out.push(char::from(DIGITS[(word >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    out
}

/// What is typed where standard input ends: leaves a guest's console, ends a line that was begun, and ends the machine once
/// what was typed before is done.
const END_OF_INPUT: &[u8] = b"\x1d\rpoweroff\r";

/// This terminal is the machine's, until the machine powers off. So is a pipe, until that or its end.
fn interactive(qemu: &mut Command, timeout: Option<Duration>) -> Result<ExitCode> {
    let _terminal = Terminal::save();
    let person = std::io::stdin().is_terminal();
    if !person {
        qemu.stdin(Stdio::piped());
    }
    let mut running = Running::start(qemu)?;
    if let Some(input) = running.input.take() {
        thread::spawn(move || type_all(std::io::stdin(), input));
    }
    let (status, timed_out) = running.wait(timeout)?;
    Ok(exit_code(status, timed_out, true))
}

/// Types what comes, and in the end what ends the machine. A machine that ends before is no error here.
fn type_all(mut from: impl Read, mut to: impl Write) -> std::io::Result<()> {
    std::io::copy(&mut from, &mut to)?;
    to.write_all(END_OF_INPUT)?;
    to.flush()
}

/// What the hypervisor's own lines begin with.
const LOG: &[u8] = b"(PV)";

/// The machine runs the commands of its command line. Their output goes to standard output, the hypervisor's log to
/// standard error. At the end dom0 says `exec: ok` or `exec: failed: COMMAND: status N`.
fn scripted(qemu: &mut Command, timeout: Option<Duration>) -> Result<ExitCode> {
    let mut running = Running::start(qemu.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let output = running.output.take().context("no output")?;
    let copier = thread::spawn(move || -> std::io::Result<bool> {
        let mut good = false;
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            line.retain(|byte| *byte != b'\r');
            match line.trim_ascii() {
                b"exec: ok" => good = true,
                text if text.starts_with(LOG) || text.starts_with(b"exec: failed") => {
                    std::io::stderr().write_all(&line)?;
                }
                _ => std::io::stdout().write_all(&line)?,
            }
            line.clear();
        }
        Ok(good)
    });
    let (status, timed_out) = running.wait(timeout)?;
    let good = copier
        .join()
        .ok()
        .context("the reader of the machine's output ended early")??;
    if !good && !timed_out {
        eprintln!("error: a command failed, or the machine ended before the commands did");
    }
    Ok(exit_code(status, timed_out, good))
}

fn exit_code(status: ExitStatus, timed_out: bool, good: bool) -> ExitCode {
    if timed_out {
        eprintln!("\nerror: timed out");
        return ExitCode::from(TIMED_OUT);
    }
    if !status.success() && !interrupted() {
        eprintln!("\nerror: QEMU ended, and not because the machine did: {status}");
    }
    if status.success() && good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The process id of the machine that runs, for the signal handler; zero when there is none.
static RUNNING: AtomicI32 = AtomicI32::new(0);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether this process was asked to end (SIGINT, SIGTERM) while a machine ran.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// A QEMU process, never left behind: it is ended with its owner.
pub struct Running {
    pid: Pid,
    /// Its standard input and output, where they are pipes.
    pub input: Option<std::process::ChildStdin>,
    pub output: Option<std::process::ChildStdout>,
    ended: mpsc::Receiver<std::io::Result<ExitStatus>>,
    /// Its status, once somebody has looked.
    status: Option<ExitStatus>,
}

impl Running {
    /// Starts it. A SIGINT or SIGTERM to this process then ends QEMU, so that what follows a run is still done.
    pub fn start(qemu: &mut Command) -> Result<Self> {
        let line = crate::process::show(qemu);
        let mut child: Child = qemu.spawn().with_context(|| format!("cannot run {line}"))?;
        let pid = Pid::from_child(&child);
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || sender.send(child.wait()));
        RUNNING.store(pid.as_raw_nonzero().get(), Ordering::SeqCst);
        // Set once for all machines of this process: setting it again fails.
        let _ = ctrlc::set_handler(|| {
            INTERRUPTED.store(true, Ordering::SeqCst);
            match Pid::from_raw(RUNNING.load(Ordering::SeqCst)) {
                Some(pid) => drop(kill_process(pid, Signal::TERM)),
                None => std::process::exit(130),
            }
        });
        Ok(Self {
            pid,
            input,
            output,
            ended,
            status: None,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Whether it has ended by itself.
    pub fn is_over(&mut self) -> bool {
        if let Ok(Ok(status)) = self.ended.try_recv() {
            self.set_status(status);
        }
        self.status.is_some()
    }

    /// Waits for its end, or ends it after `timeout`; says whether that was so.
    pub fn wait(mut self, timeout: Option<Duration>) -> Result<(ExitStatus, bool)> {
        let status = match timeout {
            None => self.ended.recv()?,
            Some(timeout) => match self.ended.recv_timeout(timeout) {
                Ok(status) => status,
                Err(RecvTimeoutError::Timeout) => return Ok((self.end()?, true)),
                Err(error) => return Err(error.into()),
            },
        };
        Ok((self.set_status(status?), false))
    }

    /// Ends it if it has not ended: asks, so that QEMU writes what it holds and restores the terminal, then insists.
    pub fn end(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let _ = kill_process(self.pid, Signal::TERM);
        let status = match self.ended.recv_timeout(Duration::from_secs(5)) {
            Ok(status) => status?,
            Err(_) => {
                let _ = kill_process(self.pid, Signal::KILL);
                self.ended.recv()??
            }
        };
        Ok(self.set_status(status))
    }

    fn set_status(&mut self, status: ExitStatus) -> ExitStatus {
        RUNNING.store(0, Ordering::SeqCst);
        self.status = Some(status);
        status
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The terminal's settings, restored at the end however QEMU left them (it makes the terminal raw, and all three
/// standard streams non-blocking, and puts that back only when it ends by itself).
struct Terminal {
    settings: Option<Termios>,
    flags: [Option<rustix::fs::OFlags>; 3],
}

impl Terminal {
    fn streams() -> [BorrowedFd<'static>; 3] {
        [
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
        ]
    }

    fn save() -> Self {
        let streams = Self::streams();
        Self {
            settings: tcgetattr(streams[0]).ok(),
            flags: streams.map(|stream| rustix::fs::fcntl_getfl(stream).ok()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let streams = Self::streams();
        if let Some(settings) = &self.settings {
            let _ = tcsetattr(streams[0], OptionalActions::Now, settings);
        }
        for (stream, flags) in streams.into_iter().zip(self.flags) {
            if let Some(flags) = flags {
                let _ = rustix::fs::fcntl_setfl(stream, flags);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_input_ends_the_machine_after_what_was_typed() {
        let mut typed = Vec::new();
        type_all(&b"list\rinfo"[..], &mut typed).unwrap();
        assert_eq!(typed, b"list\rinfo\x1d\rpoweroff\r");
    }

    #[test]
    fn commands_are_carried_in_one_word() {
        // RFC 4648, section 10, without padding.
        for (text, code) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64url(text.as_bytes()), code);
        }
        assert_eq!(base64url(&[0xfb, 0xff, 0xfe]), "-__-");
        assert_eq!(exec_word(&["a".into(), "b".into()]).unwrap(), "exec=YQpi");
        assert!(exec_word(&["a\nb".into()]).is_err());
    }
}
