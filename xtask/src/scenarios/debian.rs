// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that nobody here wrote.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{LINUX, Skip, Stage, ended, machine};
use crate::apt::Apt;
use crate::debian::{self, Debian, GUEST};
use crate::machine::{Disk, Machine};
use crate::net::{Forward, Link, Net};
use crate::process::{output, which};
use crate::world;

/// From `create` to the login, emulated and with others beside it.
const BOOT: Duration = Duration::from_secs(300);

/// Debian boots with systemd from a GPT partition of its disk, no unit fails, it is reached by ssh through a port of the
/// host's, knows that it is a guest of Xen's, and powers off.
pub(super) fn debian(stage: &Stage) -> Result<()> {
    let skip = |why: &str| Err(Skip(why.to_owned()).into());
    if Apt::find().is_none() {
        return skip("the guest is made from Debian's packages, by apt on Debian 12");
    }
    if std::env::var_os("PARAVANE_DEBIAN").is_none() {
        return skip("the guest takes minutes to be made: for whoever sets PARAVANE_DEBIAN");
    }
    let Some(ssh) = which("ssh").filter(|_| which("ssh-keygen").is_some()) else {
        return skip("there is no ssh (Debian: openssh-client)");
    };
    let debian = Debian::ensure(stage.project, stage.built)?;
    let folder = stage.fresh_guests()?;
    debian.guests(stage.project, &folder, 1)?;
    let disk = stage.dir()?.join("debian.img");
    debian.copy_disk(&disk)?;
    let host = world::free_port()?;
    let forward = Forward {
        udp: false,
        host,
        to: Some(debian::ADDRESS),
        to_port: 22,
    };
    let machine = Machine {
        disks: vec![Disk {
            file: disk.clone(),
            ..Disk::default()
        }],
        net: Some(Net {
            link: Link::User(vec![forward]),
            mac: None,
        }),
        ..machine(3, 2)
    };
    let remote = |command: &str| -> Result<String> {
        output(
            Command::new(&ssh)
                .args([
                    "-F",
                    "none",
                    "-o",
                    "BatchMode=yes",
                    "-o",
                    "ConnectTimeout=60",
                ])
                .args([
                    "-o",
                    "StrictHostKeyChecking=no",
                    "-o",
                    "UserKnownHostsFile=/dev/null",
                ])
                .args(["-o", "LogLevel=ERROR", "-p", &host.port().to_string(), "-i"])
                .arg(debian.key())
                .args(["root@127.0.0.1", command]),
        )
        .with_context(|| format!("ssh: {command}"))
    };
    stage.play_on(&machine, |session| {
        session.vane_within(&format!("create {GUEST}"), LINUX)?;
        session.attach(GUEST)?;
        session.expect("^debian login: ?$", BOOT)?;
        session.line("root")?;
        session.expect("root@debian:~# ?$", BOOT)?;
        let state = session.shell_within("systemctl is-system-running --wait; true", BOOT)?;
        let failed = session.shell_within("systemctl --failed --no-legend --plain", BOOT)?;
        ensure!(
            state.lines().any(|line| line == "running") && failed.trim().is_empty(),
            "the system is {state}\n{failed}"
        );
        for (command, wanted) in [
            ("systemd-detect-virt", "xen"),
            ("findmnt -n -o SOURCE /", "/dev/xvda1"),
            ("blkid -p -s PTTYPE -o value /dev/xvda", "gpt"),
            ("dpkg --print-architecture", "arm64"),
            ("dpkg --audit && apt-get -qq check && echo sound", "sound"),
        ] {
            let said = remote(command)?;
            ensure!(said.trim() == wanted, "`{command}` says {said}");
        }
        session.line("poweroff")?;
        session.prompt(BOOT)?;
        ended(session, GUEST)
    })?;
    Ok(std::fs::remove_file(disk)?)
}
