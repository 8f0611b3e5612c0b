// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the machine to the prompt.

use crate::disk::{Disk, File};
use crate::fat::Volume;
use crate::rt::Rt;
use crate::terminal::Terminal;
use alloc::rc::Rc;
use alloc::vec::Vec;
use el1::{Machine, println, time};

/// The program.
pub fn main(machine: Machine) -> ! {
    let rt = Rt::new();
    let term = Terminal::uart(rt);
    rt.spawn(async move {
        let disks: Vec<Rc<Disk>> = machine
            .virtio
            .iter()
            .filter_map(|v| Disk::open(rt, v))
            .collect();
        println!("{} disks, up {} us", disks.len(), time::now_ns() / 1000);
        for d in &disks {
            println!(
                "disk {:?}: {} sectors, ro {}, discard {}",
                d.serial(),
                d.sectors(),
                d.read_only(),
                d.max_discard()
            );
        }
        if let Some(disk) = disks.iter().find(|d| d.serial() == "volume") {
            match Volume::open(disk.clone()) {
                Ok(v) => {
                    for e in v.list("/guests").unwrap_or_default() {
                        println!("{} {} {}", e.name, e.dir, e.size);
                        if e.dir {
                            continue;
                        }
                        let file = File {
                            disk: disk.clone(),
                            place: Rc::new(v.find(&alloc::format!("/guests/{}", e.name)).unwrap()),
                        };
                        let t = time::now_ns();
                        let mut sum = 0u64;
                        let mut at = 0;
                        let mut buf = alloc::vec![0; 1 << 20];
                        loop {
                            let n = file.read_at(at, &mut buf).await.unwrap();
                            if n == 0 {
                                break;
                            }
                            sum += buf[..n].iter().map(|&b| u64::from(b)).sum::<u64>();
                            at += n as u64;
                        }
                        println!(
                            "  read {at} bytes, sum {sum}, {} us, {} extents",
                            (time::now_ns() - t) / 1000,
                            file.place.extents.len()
                        );
                    }
                    disk.flush().await.unwrap();
                }
                Err(e) => println!("volume: {e}"),
            }
        }
        let t = time::now_ns();
        rt.sleep_ms(50).await;
        println!(
            "slept {} us; heap {} of {}",
            (time::now_ns() - t) / 1000,
            el1::heap::used(),
            el1::heap::total()
        );
        term.write("> ");
        loop {
            let b = term.read().await;
            if b == b'q' {
                el1::hvc::psci_off();
            }
            term.write_raw(&[b]);
        }
    });
    rt.run()
}
