// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that reads its first disk whole, prints its size and checksum (CRC-32, as gzip's), and, where it may
//! write, writes the last sector, reads it back and restores it. When the disk is taken away it says so and waits for
//! another one. With `again` on the command line it reads over and over.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
el1::entry!(guest::main);

#[cfg(target_os = "none")]
mod guest {
    use alloc::vec;
    use core::fmt::Write;
    use el1::Machine;
    use guest_abi::sched::ShutdownReason;
    use rt::crc::Crc;
    use rt::pv_frontends::blk::{Config, Disk, Info};
    use rt::pv_frontends::{Error, Platform, xenbus};
    use rt::{Control, Guest, Kernel, Store, disk_name};

    const SECOND: u64 = 1_000_000_000;
    /// How long the other end may take to connect, and for each piece that is read or written.
    const PATIENCE: u64 = 20 * SECOND;
    /// Bytes read at once.
    const PIECE: usize = 1 << 18;

    pub fn main(machine: Machine) -> ! {
        let again = machine.bootargs.split(' ').any(|w| w == "again");
        let mut guest = Guest::new(machine);
        let end = match guest.xenstore() {
            Ok(xs) => run(&mut guest, xs, again),
            Err(e) => Err(e),
        };
        let reason = end.unwrap_or_else(|e| {
            let _ = writeln!(guest.console, "blockcat: xenstore: {e}");
            ShutdownReason::Crash
        });
        let _ = writeln!(guest.console, "blockcat: end: {reason:?}");
        guest.shutdown(reason)
    }

    /// Disk after disk, until the toolstack asks for the end.
    fn run(guest: &mut Guest, xs: &'static Store, again: bool) -> Result<ShutdownReason, Error> {
        let now = || xs.platform().now();
        let mut control = Control::open(xs)?;
        // Fires at once, and when a disk comes or goes.
        let devices = xs.by(now() + PATIENCE).watch("device/vbd")?;
        let _ = writeln!(guest.console, "blockcat: waiting for a disk");
        loop {
            if let Some(reason) = control.asked()? {
                return Ok(reason);
            }
            if devices.try_next()?.is_none() {
                guest.wait(None);
                continue;
            }
            let store = xs.by(now() + PATIENCE);
            let ids = store.run(xenbus::devices(&store.access(), "vbd"))?;
            let Some(&id) = ids.first() else { continue };
            let name = disk_name(id);
            let mut disk = match store.run(Disk::open(store.access(), id, Config::default())) {
                Ok(disk) => disk,
                Err(e) => {
                    let _ = writeln!(guest.console, "blockcat: {name}: cannot be opened: {e}");
                    continue;
                }
            };
            let result = serve(guest, &mut control, &mut disk, &name, again);
            if let Err(e) = &result {
                let _ = writeln!(guest.console, "blockcat: {name}: error: {e}");
            }
            // Lets the other end let go, too.
            let closed = xs.by(now() + PATIENCE).run(disk.close());
            if let Err(e) = closed {
                let _ = writeln!(guest.console, "blockcat: {name}: not closed: {e}");
            }
            match result {
                Ok(reason) => return Ok(reason),
                Err(_) => drop(writeln!(guest.console, "blockcat: waiting for a disk")),
            }
        }
    }

    /// One disk, as long as it works and nobody asks for the end.
    fn serve(
        guest: &mut Guest,
        control: &mut Control,
        disk: &mut Disk<'static, &'static Kernel>,
        name: &str,
        again: bool,
    ) -> Result<ShutdownReason, Error> {
        let info = disk.info();
        let access = if info.read_only {
            "read-only"
        } else {
            "writable"
        };
        let bytes = info.sectors * 512;
        let _ = writeln!(
            guest.console,
            "blockcat: {name}: {bytes} bytes, {access}, requests of {} pages",
            info.segments
        );
        loop {
            let start = guest.kernel.now();
            let crc = checksum(guest.kernel, disk, &info)?;
            let ms = (guest.kernel.now() - start) / 1_000_000;
            let _ = writeln!(
                guest.console,
                "blockcat: {name}: crc32 {crc:08x} of {bytes} bytes in {ms} ms"
            );
            if !again {
                break;
            }
            if let Some(reason) = control.asked()? {
                return Ok(reason);
            }
        }
        if !info.read_only && info.sectors > 0 {
            write_and_read(guest.kernel, disk, &info)?;
            let _ = writeln!(guest.console, "blockcat: {name}: written and read back");
        }
        let _ = writeln!(guest.console, "blockcat: {name}: done");
        loop {
            if let Some(reason) = control.asked()? {
                return Ok(reason);
            }
            disk.handle_event();
            if let Some(e) = disk.failed() {
                return Err(e);
            }
            guest.wait(None);
        }
    }

    fn checksum(
        kernel: &Kernel,
        disk: &Disk<'static, &'static Kernel>,
        info: &Info,
    ) -> Result<u32, Error> {
        let mut piece = vec![0; PIECE];
        let mut crc = Crc::new();
        let mut at = 0;
        while at < info.sectors {
            let sectors = (PIECE as u64 / 512).min(info.sectors - at);
            let part = piece
                .get_mut(..sectors as usize * 512)
                .ok_or(Error::Invalid)?;
            disk.by(kernel.now() + PATIENCE).read(at, part)?;
            crc.add(part);
            at += sectors;
        }
        Ok(crc.value())
    }

    /// Writes the last unit, reads it back, and writes again what was there.
    fn write_and_read(
        kernel: &Kernel,
        disk: &Disk<'static, &'static Kernel>,
        info: &Info,
    ) -> Result<(), Error> {
        let unit = u64::from(info.sector_size / 512).max(1);
        let last = info.sectors / unit * unit - unit;
        let size = unit as usize * 512;
        let (mut old, mut new) = (vec![0; size], vec![0; size]);
        let pattern: alloc::vec::Vec<u8> = (0..size).map(|n| (n * 7 + 3) as u8).collect();
        let disk = disk.by(kernel.now() + PATIENCE);
        disk.read(last, &mut old)?;
        disk.write(last, &pattern)?;
        let read = disk.read(last, &mut new);
        disk.write(last, &old)?;
        match disk.flush() {
            // Not every disk has something to flush.
            Ok(()) | Err(Error::Unsupported) => {}
            Err(e) => return Err(e),
        }
        read?;
        if new != pattern {
            return Err(Error::Failed);
        }
        Ok(())
    }
}
