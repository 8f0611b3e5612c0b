// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PV console (`io/console.h`).
//!
//! ```
//! use core::fmt::Write;
//! use pv_frontends::{Error, Platform, console::Console};
//!
//! fn hello<P: Platform>(platform: P) -> Result<(), Error> {
//!     let mut console = Console::open(platform)?;
//!     // Text: "\n" is sent as "\r\n".
//!     let _ = writeln!(console, "Hello!");
//!     // Bytes as they are. Nothing waits:
//!     let mut line = [0; 80];
//!     let n = console.try_read(&mut line)?;
//!     // Waits for room until the deadline.
//!     console.write_all(&line[..n], u64::MAX)
//! }
//! ```
//!
//! Needs no allocator. The crate's feature `embedded-io` adds that crate's traits, `log` a `LogSink`.

use crate::platform::attach;
use crate::{Error, Platform};
use core::cell::Cell;
use core::fmt;
use guest_abi::hvm::Param;
use guest_abi::io::console::{IN, OUT};
use guest_abi::mem::SharedMem;
use guest_abi::{Hypercall, Port, calls};

/// How long a write without a deadline of its own waits for room, unless set otherwise: a second.
pub const WRITE_TIMEOUT_NS: u64 = 1_000_000_000;

/// The domain's console.
pub struct Console<P: Platform> {
    platform: P,
    page: P::Pages,
    port: Port,
    write_timeout: Cell<u64>,
    read_timeout: Cell<u64>,
}

opaque!(Console<P>);

impl<P: Platform> Console<P> {
    /// Takes up the console that the toolstack prepared (`HVM_PARAM_CONSOLE_PFN`, `_EVTCHN`).
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a hypervisor or a console; [`Error::NoMemory`] when the page cannot be mapped.
    pub fn open(platform: P) -> Result<Self, Error> {
        let (page, port) = attach(&platform, Param::ConsolePfn, Param::ConsoleEvtchn)?;
        Ok(Self {
            platform,
            page,
            port,
            write_timeout: Cell::new(WRITE_TIMEOUT_NS),
            read_timeout: Cell::new(u64::MAX),
        })
    }

    /// The event channel that fires when there is input, or room for output.
    pub fn port(&self) -> Port {
        self.port
    }

    /// The platform.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// To be called after the domain came back from a suspension: the ring may be another one.
    ///
    /// # Errors
    /// As [`Console::open`].
    pub fn resume(&mut self) -> Result<(), Error> {
        let (page, port) = attach(&self.platform, Param::ConsolePfn, Param::ConsoleEvtchn)?;
        self.page = page;
        self.port = port;
        Ok(())
    }

    /// How long `fmt::Write` and `embedded_io::Write` wait for room, in nanoseconds; what finds none then is
    /// dropped by the one and an error of the other. `u64::MAX` is for ever.
    pub fn set_write_timeout(&self, nanoseconds: u64) {
        self.write_timeout.set(nanoseconds);
    }

    /// How long `embedded_io::Read` waits for input, in nanoseconds; for ever unless set, as that trait expects.
    pub fn set_read_timeout(&self, nanoseconds: u64) {
        self.read_timeout.set(nanoseconds);
    }

    fn send(&self) {
        let _ = calls::event::send(self.platform.xen(), self.port);
    }

    fn after(&self, timeout: u64) -> u64 {
        self.platform.now().saturating_add(timeout)
    }

    /// Takes what was typed, as much as is there and fits. Returns how many bytes.
    ///
    /// # Errors
    /// [`Error::Protocol`] while the ring's indexes are impossible.
    pub fn try_read(&self, to: &mut [u8]) -> Result<usize, Error> {
        let n = IN.read(&self.page, to)?;
        if n > 0 {
            self.send();
        }
        Ok(n)
    }

    /// Prints bytes, as many as there is room for. Returns how many.
    ///
    /// # Errors
    /// [`Error::Protocol`] while the ring's indexes are impossible.
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, Error> {
        let n = OUT.write(&self.page, bytes)?;
        if n > 0 {
            self.send();
        }
        Ok(n)
    }

    /// How many bytes wait to be read.
    ///
    /// # Errors
    /// [`Error::Protocol`] while the ring's indexes are impossible.
    pub fn readable(&self) -> Result<usize, Error> {
        Ok(IN.available(&self.page)? as usize)
    }

    /// How many bytes can be written at once.
    ///
    /// # Errors
    /// [`Error::Protocol`] while the ring's indexes are impossible.
    pub fn writable(&self) -> Result<usize, Error> {
        Ok(OUT.free(&self.page)? as usize)
    }

    /// Repeats `work` until it gives a value.
    fn until<T>(
        &self,
        deadline: u64,
        mut work: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        loop {
            if let Some(t) = work()? {
                return Ok(t);
            }
            if self.platform.now() >= deadline {
                return Err(Error::TimedOut);
            }
            self.platform.wait(deadline);
        }
    }

    /// Waits for input, and takes as much as is there and fits. Returns how many bytes, 0 only for an empty `to`.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as [`Console::try_read`].
    pub fn read(&self, to: &mut [u8], deadline: u64) -> Result<usize, Error> {
        if to.is_empty() {
            return Ok(0);
        }
        self.until(deadline, || Ok(Some(self.try_read(to)?).filter(|n| *n > 0)))
    }

    /// Prints all bytes; waits for room where there is none.
    ///
    /// # Errors
    /// [`Error::TimedOut`], with part of it printed; as [`Console::try_write`].
    pub fn write_all(&self, mut bytes: &[u8], deadline: u64) -> Result<(), Error> {
        self.until(deadline, || {
            let n = self.try_write(bytes)?;
            bytes = bytes.get(n..).unwrap_or_default();
            Ok(bytes.is_empty().then_some(()))
        })
    }

    /// Waits until the other end has taken all that was printed: before a shutdown.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; as [`Console::try_write`].
    pub fn flush(&self, deadline: u64) -> Result<(), Error> {
        let all = OUT.size as usize;
        self.until(deadline, || Ok((self.writable()? == all).then_some(())))
    }

    /// The console for when nothing else works: see [`Emergency`].
    pub fn emergency(&self) -> Emergency<'_, P::Pages, P::Xen> {
        Emergency::new(&self.page, self.platform.xen(), self.port)
    }
}

/// Text: each `\n` is sent as `\r\n`. What finds no room within the write timeout, or no console at the other
/// end, is dropped without an error, so that `writeln!` does not need one.
impl<P: Platform> fmt::Write for Console<P> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let deadline = self.after(self.write_timeout.get());
        let _ = lines(s, |part| self.write_all(part, deadline));
        Ok(())
    }
}

/// Calls `write` with the pieces of a text whose ends of lines are the terminal's.
fn lines<E>(s: &str, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    for (i, line) in s.split('\n').enumerate() {
        if i > 0 {
            write(b"\r\n")?;
        }
        if !line.is_empty() {
            write(line.as_bytes())?;
        }
    }
    Ok(())
}

/// How often [`Emergency`] looks for room before it drops the rest.
pub const EMERGENCY_TRIES: u32 = 1 << 16;

/// The console for a panic, a fault, or code that runs with interrupts off: it takes no lock, allocates nothing,
/// needs no clock and no interrupt, and ends. It yields the CPU while there is no room, [`EMERGENCY_TRIES`]
/// times in all; then, or when the ring makes no sense, it goes on on the hypervisor's own console (which may
/// drop it, too).
///
/// It can be made of a page and port that were put aside, when a [`Console`] cannot be reached; a write that it
/// interrupted may lose bytes.
pub struct Emergency<'c, M: SharedMem, H: Hypercall> {
    page: &'c M,
    xen: &'c H,
    port: Port,
    tries: u32,
}

impl<'c, M: SharedMem, H: Hypercall> Emergency<'c, M, H> {
    /// Of the console's page and port.
    pub fn new(page: &'c M, xen: &'c H, port: Port) -> Self {
        Self {
            page,
            xen,
            port,
            tries: EMERGENCY_TRIES,
        }
    }

    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.tries > 0 {
            let Ok(n) = OUT.write(self.page, bytes) else {
                self.tries = 0;
                break;
            };
            if n > 0 {
                let _ = calls::event::send(self.xen, self.port);
            } else {
                self.tries -= 1;
                let _ = calls::sched::yield_now(self.xen);
            }
            bytes = bytes.get(n..).unwrap_or_default();
        }
        if !bytes.is_empty() {
            let _ = calls::console::write(self.xen, bytes);
        }
    }
}

impl<M: SharedMem, H: Hypercall> fmt::Write for Emergency<'_, M, H> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let _ = lines(s, |part| {
            self.write(part);
            Ok::<(), ()>(())
        });
        Ok(())
    }
}

#[cfg(feature = "embedded-io")]
mod io {
    use super::{Console, Error, Platform};
    use embedded_io::{ErrorType, Read, ReadReady, Write, WriteReady};

    impl<P: Platform> ErrorType for Console<P> {
        type Error = Error;
    }

    impl<P: Platform> Read for Console<P> {
        fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
            Console::read(self, buf, self.after(self.read_timeout.get()))
        }
    }

    impl<P: Platform> ReadReady for Console<P> {
        fn read_ready(&mut self) -> Result<bool, Error> {
            Ok(self.readable()? > 0)
        }
    }

    impl<P: Platform> Write for Console<P> {
        fn write(&mut self, buf: &[u8]) -> Result<usize, Error> {
            if buf.is_empty() {
                return Ok(0);
            }
            let deadline = self.after(self.write_timeout.get());
            self.until(deadline, || {
                Ok(Some(self.try_write(buf)?).filter(|n| *n > 0))
            })
        }
        fn flush(&mut self) -> Result<(), Error> {
            Console::flush(self, self.after(self.write_timeout.get()))
        }
    }

    impl<P: Platform> WriteReady for Console<P> {
        fn write_ready(&mut self) -> Result<bool, Error> {
            Ok(self.writable()? > 0)
        }
    }
}

/// A sink for the `log` crate: formats each record as a line and hands it to a function of the kernel's, which
/// has the console behind a lock of its own.
///
/// ```
/// # use core::fmt;
/// use pv_frontends::console::LogSink;
///
/// fn print(line: fmt::Arguments<'_>) {
///     // CONSOLE.lock().write_fmt(line)
/// #   let _ = line;
/// }
/// static LOG: LogSink = LogSink::new(print);
///
/// log::set_logger(&LOG).unwrap();
/// log::set_max_level(log::LevelFilter::Info);
/// log::info!("the kernel starts");
/// ```
#[cfg(feature = "log")]
#[derive(Clone, Copy, Debug)]
pub struct LogSink {
    print: fn(fmt::Arguments<'_>),
}

#[cfg(feature = "log")]
impl LogSink {
    /// Prints lines, each with its `\n`, by `print`.
    #[must_use]
    pub const fn new(print: fn(fmt::Arguments<'_>)) -> Self {
        Self { print }
    }
}

#[cfg(feature = "log")]
impl log::Log for LogSink {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let (level, target) = (record.level(), record.target());
            (self.print)(format_args!("{level:<5} {target}: {}\n", record.args()));
        }
    }
    fn flush(&self) {}
}
