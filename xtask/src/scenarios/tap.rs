// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tap interface of this host's, and the cable between it and the machine.

use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Skip;
use crate::process::{output, which};

/// How interfaces of tests are called, before the number of the process.
const NAME: &str = "pvtap";
/// Where the host shows its interfaces.
const INTERFACES: &str = "/sys/class/net";

/// An interface that goes when this is dropped.
pub struct Tap {
    name: String,
    number: u32,
}

impl Tap {
    /// Makes one that is up, with the first address of a network of its own. What a process left that was ended
    /// in the midst is removed. An error of type [`Skip`] says what this host lacks.
    pub fn new() -> Result<Self> {
        let skip = |why: &str| Err(Skip(why.into()).into());
        if !rustix::process::geteuid().is_root() {
            return skip("making a tap interface takes root");
        }
        if which("ip").is_none() {
            return skip("there is no program ip (on Debian: package iproute2)");
        }
        let device = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun");
        if let Err(e) = device {
            return skip(&format!("/dev/net/tun: {e}"));
        }
        for entry in fs::read_dir(INTERFACES)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let process = name.strip_prefix(NAME).and_then(|n| n.parse::<u32>().ok());
            if process.is_some_and(|n| !Path::new(&format!("/proc/{n}")).exists()) {
                remove(&name);
            }
        }
        let number = std::process::id();
        let tap = Self {
            name: format!("{NAME}{number}"),
            number,
        };
        if let Err(e) = ip(&["tuntap", "add", "dev", &tap.name, "mode", "tap"]) {
            let why = format!("{e:#}").replace('\n', " ");
            ensure!(why.contains("not permitted"), "{why}");
            return skip(&why);
        }
        let address = format!("{}/24", tap.address(1));
        ip(&["address", "add", &address, "dev", &tap.name])?;
        ip(&["link", "set", &tap.name, "up"])?;
        Ok(tap)
    }

    /// As the host calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An address of its network, which is one of those that are set apart for tests (RFC 2544, appendix C.2.2).
    pub fn address(&self, host: u8) -> Ipv4Addr {
        let [.., a, b] = self.number.to_be_bytes();
        Ipv4Addr::new(198, 18 + (a & 1), b, host)
    }

    /// One of the host's counters of it.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let file = format!("{INTERFACES}/{}/statistics/{name}", self.name);
        let text = fs::read_to_string(&file).context(file)?;
        Ok(text.trim().parse()?)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    output(Command::new("ip").args(arguments))
}

/// There is nobody to tell when that fails.
fn remove(name: &str) {
    let _ = ip(&["link", "delete", name]);
}

/// Pulls the machine's cable, or puts it back, by QEMU's monitor.
pub fn set_link(monitor: &Path, up: bool) -> Result<()> {
    const READY: &[u8] = b"(qemu) ";
    let mut stream = UnixStream::connect(monitor).context("QEMU's monitor")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let ready = |mut stream: &UnixStream| -> Result<String> {
        let (mut said, mut byte) = (Vec::new(), [0]);
        while !said.ends_with(READY) {
            stream.read_exact(&mut byte)?;
            said.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    ready(&stream)?;
    writeln!(stream, "set_link net {}", if up { "on" } else { "off" })?;
    let said = ready(&stream)?;
    ensure!(!said.contains("Error"), "`set_link`: {said}");
    Ok(())
}
