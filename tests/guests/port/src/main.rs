// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel of docs/PORTING.md, which shows the parts between the marks `[name]` and `[/name]`. `el1` stands for
//! what a kernel has before it is ported.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(not(feature = "disk"), allow(dead_code))]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
el1::entry!(guest::main);

#[cfg(target_os = "none")]
mod kernel;

#[cfg(target_os = "none")]
mod guest {
    use crate::kernel::Kernel;
    use el1::Machine;
    use guest_abi::{calls, sched::ShutdownReason};
    use pv_frontends::{Error, Platform};

    pub fn main(machine: Machine) -> ! {
        let kernel = Kernel::new(&machine);
        if let Err(e) = steps(&kernel) {
            el1::println!("port: {e}");
        }
        let _ = calls::sched::shutdown(kernel.xen(), ShutdownReason::Poweroff);
        loop {
            el1::cpu::idle();
        }
    }

    #[cfg(not(feature = "console"))]
    fn steps(kernel: &Kernel) -> Result<(), Error> {
        calls::console::write(kernel.xen(), b"port: nothing\n").map_err(Error::Xen)
    }

    #[cfg(feature = "console")]
    fn steps(kernel: &Kernel) -> Result<(), Error> {
        // [console]
        use core::fmt::Write;
        use pv_frontends::console::Console;

        let mut console = Console::open(kernel)?;
        let _ = writeln!(console, "port: a console");
        // [/console]
        #[cfg(feature = "xenstore")]
        store(kernel, &mut console)?;
        // [flush]
        console.flush(kernel.now() + 1_000_000_000)
        // [/flush]
    }

    #[cfg(feature = "xenstore")]
    fn store(
        kernel: &Kernel,
        console: &mut pv_frontends::console::Console<&Kernel>,
    ) -> Result<(), Error> {
        use core::fmt::Write;
        // [xenstore]
        use pv_frontends::xenstore::Xenstore;

        let xs = Xenstore::open(kernel)?;
        let store = xs.by(kernel.now() + 5_000_000_000);
        let name = store.read_text("name")?;
        store.write("data/greeting", b"hello")?;
        let _ = writeln!(console, "port: {name} is my name");
        // [/xenstore]
        #[cfg(feature = "disk")]
        {
            // [disk]
            use pv_frontends::blk::{Config, Disk};
            use pv_frontends::xenbus;

            kernel.start_grants()?;
            let store = xs.by(kernel.now() + 10_000_000_000);
            let ids = store.run(xenbus::devices(&store.access(), "vbd"))?;
            let id = *ids.first().ok_or(Error::NoDevice)?;
            let disk = store.run(Disk::open(store.access(), id, Config::default()))?;
            let mut sector = [0; 512];
            disk.by(store.deadline()).read(0, &mut sector)?;
            let words = sector[..16].escape_ascii();
            let _ = writeln!(console, "port: the disk begins with {words}");
            store.run(disk.close())?;
            // [/disk]
            #[cfg(feature = "net")]
            {
                // [net]
                use pv_frontends::net::{self, Vif};

                let ids = store.run(xenbus::devices(&store.access(), "vif"))?;
                let id = *ids.first().ok_or(Error::NoDevice)?;
                let vif = store.run(Vif::open(store.access(), id, net::Config::default()))?;
                let mut frame = [0; 1518];
                frame[..6].fill(0xff);
                frame[6..12].copy_from_slice(&vif.info().mac);
                frame[12..14].copy_from_slice(&[0x88, 0xb5]);
                let net = vif.by(store.deadline());
                net.send(&frame[..60])?;
                let got = net.recv(&mut frame)?;
                let _ = writeln!(console, "port: a frame of {} bytes came", got.len);
                store.run(vif.close())?;
                // [/net]
            }
        }
        Ok(())
    }
}
