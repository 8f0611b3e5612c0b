// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench --spans`: what larger operations of Debian's Linux guests take, on Paravane and on the real Xen
//! with its Linux dom0. The figures are in docs/spans.json; docs/BENCH.md shows them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use regex::Regex;
use serde_json::{Value, json};

use crate::bench::{show, update_page};
use crate::build::Built;
use crate::cpio::Archive;
use crate::guests::{self, KERNELS};
use crate::project::{Project, read, write_atomic};
use crate::rig::{Domain, Hypervisor, PvDisk, Rig, Served, World};
use crate::world;

/// The guests' first program.
const SPANS: &str = include_str!("../guest/spans");

/// What the guests print, and what it is.
const ROWS: &[(&str, &str)] = &[
    (
        "boot",
        "Linux 6.1 guest, from its kernel's clock to its first program",
    ),
    (
        "ping",
        "ping of 56 bytes between two guests, there and back",
    ),
    (
        "ping_large",
        "ping of 1,400 bytes between two guests, there and back",
    ),
    (
        "pings",
        "ping of 56 bytes between two guests, eight at a time, there and back",
    ),
    ("fetch", "TCP between two guests, a MiB by HTTP"),
    (
        "fetch_beside_taken",
        "the same while a third guest takes 5,000 frames a second",
    ),
    (
        "fetch_beside_full",
        "the same while they are sent to a third guest whose ring is full",
    ),
    (
        "small_writes",
        "TCP between two guests, a KiB in a write of its own",
    ),
    (
        "world_fetch",
        "TCP from the machine's host to a guest, a MiB by HTTP",
    ),
    (
        "world_send",
        "TCP from a guest to the machine's host, a MiB",
    ),
    ("disk_read", "a MiB read from a disk of the machine's"),
    (
        "disk_write",
        "a MiB written to it, and a flush for 16 of them",
    ),
    (
        "create_small",
        "`create` of a Rust guest of 32 MiB, without devices",
    ),
    (
        "create_client",
        "`create` of a Linux guest of 256 MiB with a disk and an interface",
    ),
];

/// Figures in the order of [`ROWS`], in instructions.
type Column = Vec<f64>;

/// Counts, shows, and with `update` writes down.
pub fn main(
    project: &Project,
    built: &Built,
    on: Option<Hypervisor>,
    json: Option<&Path>,
    update: bool,
) -> Result<()> {
    let paravane = measure(project, built, Hypervisor::Paravane)?;
    let xen = match on {
        Some(Hypervisor::Xen) => Some(measure(project, built, Hypervisor::Xen)?),
        _ => written_down(project, "xen"),
    };
    println!("{}", table(&paravane, xen.as_ref()));
    let rows = document(&paravane, xen.as_ref());
    let mut text = serde_json::to_string_pretty(&rows)?;
    text.push('\n');
    if let Some(file) = json {
        write_atomic(file, text.as_bytes())?;
    }
    if update {
        write_atomic(&committed(project), text.as_bytes())?;
        update_page(project, "bench --spans", &table(&paravane, xen.as_ref()))?;
    }
    Ok(())
}

fn measure(project: &Project, built: &Built, on: Hypervisor) -> Result<Column> {
    let name = on.name();
    let kernel = &KERNELS[0];
    let image = guests::image(project, kernel);
    let ramdisk = project.dir("bench")?.join("spans.cpio.gz");
    let mut files = Archive::default();
    files.file("spans", 0o755, SPANS.as_bytes());
    // The kernel unpacks one archive after the other.
    let mut both = read(&guests::ramdisk(project, kernel))?;
    both.extend(guests::gzip(&files.finish())?);
    write_atomic(&ramdisk, &both)?;
    let http = world::serve_files(vec![("/file".into(), vec![0; 16 << 20])])?;
    let sink = world::serve_sink()?;
    let counter = world::serve_counter()?;
    let of_world = format!("http={http} sink={sink} counter={}", counter.url());
    let disk = project.dir("bench")?.join("spans-disk.img");
    write_atomic(&disk, &vec![0; 16 << 20])?;
    let [boot, client, server] = ["boot", "client", "server"]
        .map(|role| format!("console=hvc0 quiet rdinit=/spans role={role} {of_world}"));
    let linux = |name, command_line, macs, disks| Served {
        domain: Domain {
            name,
            image: &image,
            command_line,
            vcpus: 1,
            memory: 256,
        },
        ramdisk: Some(&ramdisk),
        disks,
        macs,
    };
    let rust = |name, image, command_line, macs| Served {
        domain: Domain {
            name,
            image,
            command_line,
            vcpus: 1,
            memory: 32,
        },
        ramdisk: None,
        disks: &[],
        macs,
    };
    let [httpd, hello] = ["httpd.bin", "hello.bin"].map(|name| project.path("guests").join(name));
    let own = [PvDisk {
        vdev: "xvda",
        file: None,
        read_only: false,
    }];
    let (first, second) = (["00:16:3e:00:00:01"], ["00:16:3e:00:00:02"]);
    let third = ["00:16:3e:00:00:03"];
    let mut text = String::new();
    for (guests, world) in [
        (vec![linux("boot", &boot, &[], &[])], None),
        (
            vec![
                linux("client", &client, &first, &own),
                linux("server", &server, &second, &[]),
                rust("third", &httpd, "ip=10.0.0.3/24 stall", &third),
                rust("small", &hello, "", &[]),
            ],
            Some(World {
                disk: &disk,
                counter,
            }),
        ),
    ] {
        let role = guests[0].domain.name;
        println!("counting on {name}: {role} ...");
        std::io::stdout().flush()?;
        let rig = Rig {
            project,
            built,
            gic: 2,
            cpus: 1,
            icount: true,
            world,
            log: project.dir("bench")?.join(format!("{name}-{role}.log")),
            bound: Duration::from_secs(1200),
        };
        text += &rig
            .start_served(on, &guests)?
            .report(&rig, "spans", "failed")?;
    }
    rows(&text)
}

/// The figures from what the guests printed.
fn rows(text: &str) -> Result<Column> {
    let pattern = Regex::new(r"span (\w+) (\d+) (\d+)")?;
    let found: Vec<_> = pattern
        .captures_iter(text)
        .map(|c| c.extract::<3>().1)
        .collect();
    ROWS.iter()
        .map(|(key, _)| {
            let [_, took, times] = found
                .iter()
                .find(|row| row[0] == *key)
                .with_context(|| format!("the guests have no row {key}"))?;
            // Where it is the guest's clock, a nanosecond is an instruction.
            Ok(took.parse::<f64>()? / times.parse::<f64>()?)
        })
        .collect()
}

fn table(paravane: &Column, xen: Option<&Column>) -> String {
    let mut text =
        "| span | Paravane | Xen 4.17 | Paravane / Xen |\n|---|---:|---:|---:|\n".to_owned();
    for (i, (_, label)) in ROWS.iter().enumerate() {
        let own = paravane.get(i).copied().unwrap_or(f64::NAN);
        let theirs = xen.and_then(|xen| xen.get(i).copied());
        let (theirs, ratio) = match theirs {
            Some(v) if v > 0.0 => (show(v), format!("{:.2}", own / v)),
            _ => ("-".to_owned(), "-".to_owned()),
        };
        text += &format!("| {label} | {} | {theirs} | {ratio} |\n", show(own));
    }
    text
}

fn document(paravane: &Column, xen: Option<&Column>) -> Value {
    let rows: Vec<_> = ROWS
        .iter()
        .enumerate()
        .map(|(i, (_, label))| {
            json!({
                "op": label,
                "paravane": paravane.get(i).map(|v| v.round()),
                "xen": xen.and_then(|xen| xen.get(i)).map(|v| v.round()),
            })
        })
        .collect();
    json!({ "rows": rows })
}

fn committed(project: &Project) -> PathBuf {
    project.root.join("docs/spans.json")
}

/// A column of what is written down, if it has every row.
fn written_down(project: &Project, column: &str) -> Option<Column> {
    let value: Value = serde_json::from_slice(&fs::read(committed(project)).ok()?).ok()?;
    let rows = value["rows"].as_array()?;
    ROWS.iter()
        .map(|(_, label)| rows.iter().find(|row| row["op"] == *label)?[column].as_f64())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read() {
        let mut text = String::new();
        for (key, _) in ROWS {
            text += &format!("[    1.0] span\r\nspan {key} 5000 10\r\n");
        }
        assert_eq!(rows(&text).unwrap(), vec![500.0; ROWS.len()]);
        assert!(rows("span boot 1 1").is_err());
        let table = table(&vec![5000.0; ROWS.len()], Some(&vec![10_000.0; ROWS.len()]));
        assert_eq!(
            table.matches("| 5,000 | 10,000 | 0.50 |").count(),
            ROWS.len()
        );
    }
}
