// SPDX-License-Identifier: MIT OR Apache-2.0
//! The UART behind [`hv_core::console::Output`], and the log of the `log` crate on it. Until its interrupt is on, and
//! after a panic, the UART is waited for; else never.

use core::fmt::Write;
use hv_core::console::{Output, Speaker};
use platform::dt::UartInfo;
use platform::lock::Lock;
use platform::uart::Uart;

static PORT: Lock<Port> = Lock::new(Port {
    uart: None,
    out: Output::NEW,
    by_interrupt: false,
    sending: false,
});

struct Port {
    uart: Option<Uart>,
    out: Output,
    /// Else there is no interrupt, and all is sent at once.
    by_interrupt: bool,
    /// The interrupt for sending is on.
    sending: bool,
}

impl Port {
    fn put(&mut self, from: Speaker, bytes: &[u8]) -> usize {
        let taken = self.out.write(from, bytes);
        // An interrupt that is no longer taken, as in a panic, is not waited for.
        if !self.by_interrupt || !self.sending {
            self.send();
        }
        taken
    }

    /// Sends what the UART can take, and asks for its interrupt if there is more.
    fn send(&mut self) {
        let Some(uart) = self.uart else {
            while self.out.pop().is_some() {}
            return;
        };
        if !self.by_interrupt {
            while let Some(b) = self.out.pop() {
                if !uart.put(b) {
                    return;
                }
            }
            return;
        }
        let _ = (0..Uart::FIFO).all(|_| uart.feed(|| self.out.pop()));
        let more = !self.out.is_empty();
        if more != self.sending {
            self.sending = more;
            uart.interrupts(true, more);
        }
    }
}

/// Starts output.
///
/// # Safety
/// `info` describes a UART whose registers are mapped at their physical address, as Device memory.
pub unsafe fn init(info: &UartInfo) {
    // SAFETY: the contract above.
    let uart = unsafe { Uart::new(info, info.regs.base as usize) };
    uart.init();
    PORT.lock().uart = Some(uart);
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
}

/// The UART's interrupt is taken from here on.
pub fn by_interrupt() {
    let mut p = PORT.lock();
    p.by_interrupt = true;
    if let Some(uart) = p.uart {
        uart.interrupts(true, false);
    }
}

/// As [`Output::write`]; the first bytes go to the UART at once if that is idle.
pub fn put(from: Speaker, bytes: &[u8]) -> usize {
    PORT.lock().put(from, bytes)
}

/// As [`Output::read_log`].
pub fn read_log(from: u64, buf: &mut [u8]) -> (usize, u64) {
    PORT.lock().out.read_log(from, buf)
}

/// What was shown last; waits for nobody.
pub fn last(buf: &mut [u8]) -> &[u8] {
    // SAFETY: as for `panic_print`.
    unsafe { PORT.force_unlock() };
    let n = PORT.lock().out.last(buf);
    &buf[..n]
}

/// Forgets the log.
pub fn clear_log() {
    PORT.lock().out.clear_log();
}

/// The UART's interrupt: sends more, and gives bytes that came in. What there is no room for raises it again.
pub fn interrupt(typed: &mut [u8]) -> usize {
    let mut p = PORT.lock();
    let Some(uart) = p.uart else { return 0 };
    uart.ack_interrupt();
    p.send();
    let lost = if p.sending { 0 } else { p.out.take_lost() };
    drop(p);
    if lost != 0 {
        log::warn!("{lost} lines are in dmesg alone, or were guests': there was no room for them");
    }
    let mut n = 0;
    for place in typed {
        let Some(b) = uart.get() else { break };
        *place = b;
        n += 1;
    }
    n
}

/// Sends all that waits, and waits until it has left.
pub fn flush() {
    let mut p = PORT.lock();
    p.by_interrupt = false;
    p.send();
    if let Some(uart) = p.uart {
        uart.flush();
    }
}

/// A line of the log, put together so that no other CPU's comes into it. A longer one is printed in pieces.
struct Line {
    text: [u8; 160],
    len: usize,
}

impl Line {
    fn send(&mut self) {
        put(Speaker::Hypervisor, &self.text[..self.len]);
        self.len = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        for &b in s.as_bytes() {
            if self.len == self.text.len() {
                self.send();
            }
            self.text[self.len] = b;
            self.len += 1;
        }
        Ok(())
    }
}

struct Logger;
impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, r: &log::Record<'_>) {
        print(format_args!("(PV) {}\n", r.args()));
    }
    fn flush(&self) {}
}

fn print(args: core::fmt::Arguments<'_>) {
    let mut line = Line {
        text: [0; 160],
        len: 0,
    };
    let _ = line.write_fmt(args);
    line.send();
}

/// For a panic: prints without waiting for whoever holds the lock, and does not return before it has been sent.
pub fn panic_print(args: core::fmt::Arguments<'_>) {
    // SAFETY: the machine is about to stop; a garbled line is better than none, and whatever is
    // in the ring while another CPU changes it, its indexes are checked at each use.
    unsafe { PORT.force_unlock() };
    PORT.lock().by_interrupt = false;
    print(args);
}
