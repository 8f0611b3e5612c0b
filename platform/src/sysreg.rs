// SPDX-License-Identifier: MIT OR Apache-2.0
//! System registers by name or by encoding (`S3_op1_Cn_Cm_op2`).

/// Reads a system register, as `u64`.
macro_rules! mrs {
    ($name:literal) => {{
        #[cfg(target_arch = "aarch64")]
        {
            let v: u64;
            // SAFETY: reading these registers at EL2 changes nothing that memory safety rests on.
            unsafe {
                core::arch::asm!(concat!("mrs {}, ", $name), out(reg) v,
                    options(nostack, preserves_flags));
            }
            v
        }
        #[cfg(not(target_arch = "aarch64"))]
        0u64
    }};
}

/// Writes a system register from a `u64`.
macro_rules! msr {
    ($name:literal, $v:expr) => {{
        let v: u64 = $v;
        #[cfg(target_arch = "aarch64")]
        // SAFETY: interrupt-controller and timer registers only: none has a say in how memory
        // is reached.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) v,
                options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "aarch64"))]
        let _ = v;
    }};
}

/// Instruction barrier: what was written to system registers counts from here on.
#[inline(always)]
pub(crate) fn isb() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier.
    unsafe {
        core::arch::asm!("isb", options(nostack, preserves_flags));
    }
}

/// Data barrier over the whole system: earlier writes are seen before what follows.
#[inline(always)]
pub(crate) fn dsb_sy() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier.
    unsafe {
        core::arch::asm!("dsb sy", options(nostack, preserves_flags));
    }
}

pub(crate) use {mrs, msr};
