// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor knows of the machine and the control domain cannot see, in the control domain's device tree:
//! node `/paravane` with `board`, a name, and `facts`, words of 64 bits.

/// The facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The console's kind: 0 there is none, 1 PL011, 2 mini-UART.
    pub uart: u64,
    /// Its address.
    pub uart_base: u64,
    /// Its interrupt's INTID; 0: it has none.
    pub uart_intid: u64,
    /// List registers of the interrupt controller.
    pub list_registers: u64,
    /// Its interrupts: INTIDs are below this.
    pub interrupts: u64,
    /// CPUs that the firmware's device tree has and the hypervisor has room for, and those beyond.
    pub cpus: u64,
    /// CPUs of the firmware's device tree that the hypervisor has no room for.
    pub cpus_left_out: u64,
    /// DMA reaches addresses below this; 0: all memory.
    pub dma_limit: u64,
    /// Bytes of the random seed that the firmware gave.
    pub seed: u64,
    /// How the run before ended: 0 as it should, or it is not known; else 256 and the control domain's reason
    /// (`SHUTDOWN_*`), or 255 for the hypervisor itself.
    pub last_end: u64,
    /// How many runs ended like that, one after the other.
    pub crashes: u64,
}

/// The node's name, and the properties'.
pub(crate) const NODE: &str = "paravane";
pub(crate) const BOARD: &str = "board";
pub(crate) const FACTS: &str = "facts";

impl Facts {
    /// As words.
    #[must_use]
    pub const fn words(&self) -> [u64; 11] {
        [
            self.uart,
            self.uart_base,
            self.uart_intid,
            self.list_registers,
            self.interrupts,
            self.cpus,
            self.cpus_left_out,
            self.dma_limit,
            self.seed,
            self.last_end,
            self.crashes,
        ]
    }

    /// From the property's bytes; `None` if they are not as many.
    #[must_use]
    pub fn read(property: &[u8]) -> Option<Self> {
        let (words, []) = property.as_chunks::<8>() else {
            return None;
        };
        let [
            uart,
            uart_base,
            uart_intid,
            list_registers,
            interrupts,
            cpus,
            cpus_left_out,
            dma_limit,
            seed,
            last_end,
            crashes,
        ] = <[[u8; 8]; 11]>::try_from(words)
            .ok()?
            .map(u64::from_be_bytes);
        Some(Self {
            uart,
            uart_base,
            uart_intid,
            list_registers,
            interrupts,
            cpus,
            cpus_left_out,
            dma_limit,
            seed,
            last_end,
            crashes,
        })
    }
}
