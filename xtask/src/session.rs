// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine whose terminal a test drives: it types, and waits with a deadline for what must be shown.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;

use crate::run::Running;

/// dom0's prompt.
pub const PROMPT: &str = "vane> ";
/// How long a command of the prompt may take that says nothing else.
pub const COMMAND: Duration = Duration::from_secs(30);
/// What ends `vane console`: Ctrl-].
pub const DETACH: &str = "\x1d";

/// A running machine and what it has shown.
pub struct Session {
    running: Running,
    input: ChildStdin,
    received: Receiver<Vec<u8>>,
    screen: Screen,
    /// Everything before this position of the screen's text was waited for.
    seen: usize,
    /// Commands that were given to guests' shells.
    commands: u32,
    /// No wait goes beyond this.
    deadline: Instant,
}

impl Session {
    /// Starts QEMU; all that it shows goes to `log` as well. Nothing is waited for beyond `bound`.
    pub fn start(mut qemu: Command, log: &Path, bound: Duration) -> Result<Self> {
        let mut log = File::options().create(true).append(true).open(log)?;
        writeln!(log, "$ {}", crate::process::show(&qemu))?;
        let errors = log.try_clone()?;
        let mut running = Running::start(
            qemu.stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(errors),
        )?;
        let input = running.input.take().context("no standard input")?;
        let mut output = running.output.take().context("no standard output")?;
        let (sender, received) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                let _ = log.write_all(&buffer[..n]);
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let deadline = Instant::now() + bound;
        Ok(Self {
            running,
            input,
            received,
            screen: Screen::default(),
            seen: 0,
            commands: 0,
            deadline,
        })
    }

    /// Types.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.input
            .write_all(text.as_bytes())
            .context("the machine has ended")
    }

    /// Types a line.
    pub fn line(&mut self, text: &str) -> Result<()> {
        self.send(&format!("{text}\r"))
    }

    /// Waits until `pattern` is shown after what was waited for before; returns what it matched.
    /// In it `^` and `$` are a line's begin and end.
    pub fn expect(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        let regex = Regex::new(&format!("(?m){pattern}"))?;
        let deadline = self.deadline.min(Instant::now() + timeout);
        loop {
            let text = self.screen.text.get(self.seen..).unwrap_or_default();
            if let Some(found) = regex.find(text) {
                let matched = found.as_str().to_owned();
                self.seen += found.end();
                return Ok(matched);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.received.recv_timeout(left) {
                Ok(bytes) => {
                    self.screen.put(&bytes);
                    // What was seen may have been overwritten.
                    self.seen = self.seen.min(self.screen.text.len());
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "nothing matched /{pattern}/ in {:.0} s; at last:\n{}",
                        timeout.as_secs_f32(),
                        self.tail()
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(
                        "the machine ended before /{pattern}/ was shown; at last:\n{}",
                        self.tail()
                    )
                }
            }
        }
    }

    /// What is shown next, in whole lines, as far as it comes within the time.
    pub fn text(&mut self, time: Duration) -> Result<String> {
        let end = self.deadline.min(Instant::now() + time);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.received.recv_timeout(left) {
                Ok(bytes) => {
                    self.screen.put(&bytes);
                    self.seen = self.seen.min(self.screen.text.len());
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the machine ended; at last:\n{}", self.tail())
                }
            }
            if Instant::now() >= end {
                break;
            }
        }
        let shown = self.screen.text.get(self.seen..).unwrap_or_default();
        let whole = shown.rfind('\n').map_or(0, |at| at + 1);
        let text = shown.get(..whole).unwrap_or_default().to_owned();
        self.seen += whole;
        Ok(text)
    }

    /// Waits for dom0's prompt.
    pub fn prompt(&mut self, timeout: Duration) -> Result<()> {
        self.expect(&format!("^{PROMPT}$"), timeout).map(drop)
    }

    /// Types a line at the prompt and waits until it is shown there. A line editor may have drawn it anew.
    fn enter(&mut self, command: &str) -> Result<()> {
        self.rewind_line();
        self.line(command)?;
        self.expect(&format!("^{PROMPT}{}\\n", regex::escape(command)), COMMAND)
            .map(drop)
    }

    /// Makes the line that is shown last count as not yet seen.
    pub fn rewind_line(&mut self) {
        self.seen = self.seen.min(self.screen.line_begin());
    }

    /// Runs a command of the prompt, and returns what it printed.
    pub fn vane(&mut self, command: &str) -> Result<String> {
        self.vane_within(command, COMMAND)
    }

    /// The same for a command that may take long.
    pub fn vane_within(&mut self, command: &str, timeout: Duration) -> Result<String> {
        self.enter(command)?;
        let output = self.expect(&format!(r"(?s)\A.*?^{PROMPT}$"), timeout)?;
        Ok(output.strip_suffix(PROMPT).unwrap_or(&output).to_owned())
    }

    /// Presses keys at the prompt and then Return. The line that is shown in the end must be `line`; returns what it
    /// printed.
    pub fn keys(&mut self, keys: &str, line: &str) -> Result<String> {
        self.rewind_line();
        self.line(keys)?;
        self.expect(&format!("^{PROMPT}{} ?\\n", regex::escape(line)), COMMAND)?;
        let output = self.expect(&format!(r"(?s)\A.*?^{PROMPT}$"), COMMAND)?;
        Ok(output.strip_suffix(PROMPT).unwrap_or(&output).to_owned())
    }

    /// Runs a command that prints JSON.
    pub fn json(&mut self, command: &str) -> Result<serde_json::Value> {
        let output = self.vane(command)?;
        serde_json::from_str(&output)
            .with_context(|| format!("`{command}` does not print JSON but:\n{output}"))
    }

    /// Runs a command that must print what matches `pattern`.
    pub fn vane_shows(&mut self, command: &str, pattern: &str) -> Result<String> {
        let output = self.vane(command)?;
        ensure!(
            Regex::new(&format!("(?m){pattern}"))?.is_match(&output),
            "`{command}` does not show /{pattern}/ but:\n{output}"
        );
        Ok(output)
    }

    /// Attaches to a guest's console.
    pub fn attach(&mut self, guest: &str) -> Result<()> {
        self.enter(&format!("console {guest}"))
    }

    /// Leaves a guest's console.
    pub fn detach(&mut self) -> Result<()> {
        self.send(DETACH)?;
        self.prompt(COMMAND)
    }

    /// Runs a command in the attached Linux guest's shell; returns what it printed, and fails if its status is not zero.
    pub fn shell(&mut self, command: &str) -> Result<String> {
        self.shell_within(command, COMMAND)
    }

    /// The same for a command that may take long.
    pub fn shell_within(&mut self, command: &str, timeout: Duration) -> Result<String> {
        // The marks are this command's own, as a console that is attached to shows again what came before, and are not
        // in the line as it is typed. The kernel's messages may come between a mark and its line's end.
        self.commands += 1;
        let n = self.commands;
        self.line(&format!(
            "echo be\"\"gin-{n}; {command}; echo st\"\"atus-{n}=$?"
        ))?;
        let output = self.expect(&format!(r"(?s)begin-{n}\b.*?status-{n}=\d+\D"), timeout)?;
        let (output, status) = output
            .rsplit_once(&format!("status-{n}="))
            .unwrap_or((&output, ""));
        let output = output.trim_start_matches(&format!("begin-{n}"));
        let status = status.trim_end_matches(|c: char| !c.is_ascii_digit());
        ensure!(
            status == "0",
            "in the guest, `{command}` ended with status {status}:\n{output}"
        );
        Ok(output.trim_start_matches('\n').to_owned())
    }

    /// Whether the machine has ended.
    pub fn is_over(&mut self) -> bool {
        self.running.is_over()
    }

    /// Waits until the machine has powered itself off.
    pub fn ended(mut self, timeout: Duration) -> Result<()> {
        let left = self
            .deadline
            .saturating_duration_since(Instant::now())
            .min(timeout);
        let (log_end, running) = (self.tail(), &mut self.running);
        let deadline = Instant::now() + left;
        while Instant::now() < deadline {
            if running.is_over() {
                let status = running.end()?;
                ensure!(status.success(), "QEMU: {status}");
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "the machine did not power off in {:.0} s; at last:\n{log_end}",
            timeout.as_secs_f32()
        )
    }

    /// The CPU time that QEMU has used so far, all its threads together.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.running.pid()))?;
        // Fields 14 and 15 (user and system time in hundredths), counted behind the name in parentheses.
        let fields: Vec<u64> = stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .split(' ')
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let ticks: u64 = fields.get(11..13).unwrap_or_default().iter().sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    fn tail(&self) -> String {
        let lines: Vec<&str> = self.screen.text.lines().collect();
        let from = lines.len().saturating_sub(25);
        lines
            .get(from..)
            .unwrap_or_default()
            .iter()
            .map(|line| format!("    | {line}\n"))
            .collect()
    }
}

/// What a terminal shows of the bytes that it got, without colours and cursor movement: a line that is written
/// again from its begin (as a line editor does) is there once, as it was at last.
#[derive(Default)]
struct Screen {
    text: String,
    state: State,
    /// The begin of a UTF-8 character whose rest is still to come.
    partial: Vec<u8>,
}

#[derive(Default, PartialEq)]
enum State {
    #[default]
    Text,
    /// After a carriage return: a line feed makes it a line's end, anything else begins the line again.
    Return,
    Escape,
    /// In a control sequence (ECMA-48: CSI, up to a byte of 0x40 to 0x7e).
    Sequence,
}

impl Screen {
    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (&self.state, byte) {
                (State::Sequence, 0x40..=0x7e) => self.state = State::Text,
                (State::Sequence, _) => {}
                (State::Escape, b'[') => self.state = State::Sequence,
                (State::Escape, _) => self.state = State::Text,
                (State::Return, b'\r') => {}
                (State::Return, b'\n') => {
                    self.text.push('\n');
                    self.state = State::Text;
                }
                (State::Return, _) => {
                    self.text.truncate(self.line_begin());
                    self.state = State::Text;
                    self.byte(*byte);
                }
                (State::Text, _) => self.byte(*byte),
            }
        }
    }

    /// Where the last line begins.
    fn line_begin(&self) -> usize {
        self.text.rfind('\n').map_or(0, |at| at + 1)
    }

    fn byte(&mut self, byte: u8) {
        match byte {
            b'\r' => self.state = State::Return,
            0x1b => self.state = State::Escape,
            8 | 0x7f if !self.text.ends_with('\n') => drop(self.text.pop()),
            b'\n' | b'\t' | 0x20.. => {
                self.partial.push(byte);
                match std::str::from_utf8(&self.partial) {
                    Ok(text) => self.text.push_str(text),
                    Err(error) if error.error_len().is_none() => return,
                    Err(_) => self.text.push('\u{fffd}'),
                }
                self.partial.clear();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(parts: &[&[u8]]) -> String {
        let mut screen = Screen::default();
        for part in parts {
            screen.put(part);
        }
        screen.text
    }

    #[test]
    fn the_screen_shows_what_a_person_sees() {
        assert_eq!(shown(&[b"a\r", b"\nb\n"]), "a\nb\n");
        assert_eq!(
            shown(&[
                b"x\r\n\rvane> l\r\x1b[Kvane> li\r\x1b[2",
                b"Kvane> list\r\nok"
            ]),
            "x\nvane> list\nok"
        );
        assert_eq!(shown(&[b"abd\x08c\x08 \x08d"]), "abd");
        assert_eq!(shown(&[b"\x1b[1;31mred\x1b[0m\x07"]), "red");
        assert_eq!(
            shown(&[
                "é".as_bytes(),
                &"é".as_bytes()[..1],
                &"é".as_bytes()[1..],
                b"\xff."
            ]),
            "éé\u{fffd}."
        );
    }

    /// A shell plays the machine.
    fn session(script: &str, bound: Duration) -> Session {
        let log = std::env::temp_dir().join(format!(
            "paravane-session-{}-{}",
            std::process::id(),
            script.len()
        ));
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        let session = Session::start(shell, &log, bound).unwrap();
        fs::remove_file(log).unwrap();
        session
    }

    const PLAY: &str = r#"
        printf 'vane> '
        while read -r line; do
            line=$(printf %s "$line" | tr -d '\r')
            printf '\rvane> %s\r\n' "$line"
            case "$line" in
                end) exit 0;;
                list) printf 'Name ID\r\nDomain-0 0\r\n';;
                *) printf 'unknown: %s\r\n' "$line";;
            esac
            printf 'vane> '
        done"#;

    /// `read` wants line feeds where a terminal sends carriage returns.
    fn play(session: &mut Session, command: &str) -> Result<String> {
        session.rewind_line();
        session.send(&format!("{command}\n"))?;
        session.expect(&format!("^{PROMPT}{command}\\n"), COMMAND)?;
        let output = session.expect(r"(?s)\A.*?^vane> $", COMMAND)?;
        Ok(output)
    }

    #[test]
    fn a_prompt_is_driven() {
        let mut session = session(PLAY, Duration::from_secs(60));
        session.prompt(COMMAND).unwrap();
        assert_eq!(
            play(&mut session, "list").unwrap(),
            "Name ID\nDomain-0 0\nvane> "
        );
        assert_eq!(play(&mut session, "x").unwrap(), "unknown: x\nvane> ");
        session.send("end\n").unwrap();
        session.ended(COMMAND).unwrap();
    }

    #[test]
    fn every_wait_ends() {
        let mut ended = session("echo gone", Duration::from_secs(60));
        let error = ended.expect("never", COMMAND).unwrap_err().to_string();
        assert!(
            error.contains("ended before") && error.contains("| gone"),
            "{error}"
        );
        let mut silent = session("echo here; sleep 60", Duration::from_millis(300));
        let error = silent.expect("never", COMMAND).unwrap_err().to_string();
        assert!(error.contains("nothing matched"), "{error}");
        assert!(silent.ended(COMMAND).is_err());
    }
}
