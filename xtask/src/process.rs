// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running other programs, with progress on the terminal and a readable error when they fail.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Finds a program on `PATH` or where Debian keeps administrators' programs.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// A command line as one would type it.
pub fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .map(|word| {
            if word.is_empty() || word.contains([' ', '\'', '"', '$', '*', ';', '&', '(']) {
                format!("'{}'", word.replace('\'', r"'\''"))
            } else {
                word.into_owned()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command and returns its standard output; its standard error is in the error if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let line = show(command);
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {line}"))?;
    if !out.status.success() {
        bail!(
            "{line}: {}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs a command with this terminal's output; fails if it does.
pub fn inherit(command: &mut Command) -> Result<()> {
    let line = show(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Runs a long command under a spinner that shows its last line; its whole output is in the error if it fails.
pub fn with_spinner(message: &str, command: &mut Command) -> Result<()> {
    let line = show(command);
    let bar = spinner(message);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {line}"))?;
    let stderr = child.stderr.take().context("no standard error")?;
    let stdout = child.stdout.take().context("no standard output")?;
    let errors = thread::spawn(move || {
        BufReader::new(stderr)
            .lines()
            .map_while(Result::ok)
            .collect::<Vec<_>>()
    });
    let mut lines = Vec::new();
    for text in BufReader::new(stdout).lines().map_while(Result::ok) {
        let short: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
        bar.set_message(format!("{message}: {short}"));
        lines.push(text);
    }
    let status = child.wait()?;
    lines.extend(errors.join().unwrap_or_default());
    finish(&bar, message, status.success());
    if !status.success() {
        let tail = lines.len().saturating_sub(30);
        bail!(
            "{line}: {status}\n{}",
            lines.get(tail..).unwrap_or_default().join("\n")
        );
    }
    Ok(())
}

/// Runs a download into `dir` under a bar that follows the bytes that have arrived there, of `total`.
pub fn with_download_bar(
    message: &str,
    dir: &Path,
    total: u64,
    command: &mut Command,
) -> Result<()> {
    let line = show(command);
    let bar = ProgressBar::new(total);
    bar.set_style(ProgressStyle::with_template(
        "  {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}",
    )?);
    bar.set_message(message.to_owned());
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {line}"))?;
    let waiter = thread::spawn(move || child.wait_with_output());
    while !waiter.is_finished() {
        bar.set_position(bytes_in(dir).min(total));
        thread::sleep(Duration::from_millis(50));
    }
    let out = waiter
        .join()
        .ok()
        .context("the waiting thread ended early")??;
    finish(&bar, message, out.status.success());
    if !out.status.success() {
        bail!(
            "{line}: {}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr).trim_end()
        );
    }
    Ok(())
}

/// A spinner on the terminal; without one, the message is printed once.
pub fn spinner(message: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.set_message(message.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    if !std::io::stderr().is_terminal() {
        eprintln!("  {message} ...");
    }
    bar
}

/// Replaces the bar by one lasting line.
pub fn finish(bar: &ProgressBar, message: &str, good: bool) {
    let seconds = bar.elapsed().as_secs_f32();
    bar.finish_and_clear();
    eprintln!(
        "  {message}: {} ({seconds:.1} s)",
        if good { "done" } else { "failed" }
    );
}

fn bytes_in(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_in(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
