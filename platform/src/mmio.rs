// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device registers.
//!
//! Every access is one plain `ldr`/`str` of its size with a base register and nothing else.
//! Compilers may turn a volatile access into a form with write-back, for which the processor
//! gives no syndrome when the access traps to a hypervisor; these drivers also run in dom0, where
//! some devices are emulated, so the instruction is written out.

/// A block of device registers, by the virtual address at which it is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Mmio {
    base: usize,
}

macro_rules! access {
    ($read:ident, $write:ident, $t:ty, $load:literal, $store:literal) => {
        /// Reads the register at byte offset `off`.
        #[inline(always)]
        #[must_use]
        pub fn $read(self, off: usize) -> $t {
            let addr = self.base.wrapping_add(off);
            #[cfg(target_arch = "aarch64")]
            {
                let v: $t;
                // SAFETY: `new`'s caller promised that the block is mapped as device memory and
                // that reading its registers breaks no memory safety; drivers use offsets inside.
                unsafe {
                    core::arch::asm!($load, v = out(reg) v, a = in(reg) addr,
                        options(nostack, preserves_flags));
                }
                v
            }
            #[cfg(not(target_arch = "aarch64"))]
            // SAFETY: as above; on the host the block is a buffer owned by the test.
            unsafe {
                (addr as *const $t).read_volatile()
            }
        }

        /// Writes the register at byte offset `off`.
        #[inline(always)]
        pub fn $write(self, off: usize, v: $t) {
            let addr = self.base.wrapping_add(off);
            #[cfg(target_arch = "aarch64")]
            // SAFETY: `new`'s caller promised that the block is mapped as device memory and that
            // writing its registers breaks no memory safety; drivers use offsets inside.
            unsafe {
                core::arch::asm!($store, v = in(reg) v, a = in(reg) addr,
                    options(nostack, preserves_flags));
            }
            #[cfg(not(target_arch = "aarch64"))]
            // SAFETY: as above; on the host the block is a buffer owned by the test.
            unsafe {
                (addr as *mut $t).write_volatile(v)
            }
        }
    };
}

impl Mmio {
    /// The block at virtual address `base`.
    ///
    /// # Safety
    /// For as long as this value or a copy of it is used, `base` must be mapped readable and
    /// writable as device memory over the whole block of the device that it is used for, and
    /// the device must not be told by anybody else to overwrite memory.
    #[must_use]
    pub const unsafe fn new(base: usize) -> Self {
        Self { base }
    }

    /// The block `off` bytes further on, within the same mapping.
    #[inline]
    #[must_use]
    pub const fn at(self, off: usize) -> Self {
        Self {
            base: self.base.wrapping_add(off),
        }
    }

    /// The virtual address of the block.
    #[inline]
    #[must_use]
    pub const fn base(self) -> usize {
        self.base
    }

    access!(read32, write32, u32, "ldr {v:w}, [{a}]", "str {v:w}, [{a}]");
    access!(read64, write64, u64, "ldr {v:x}, [{a}]", "str {v:x}, [{a}]");
}
