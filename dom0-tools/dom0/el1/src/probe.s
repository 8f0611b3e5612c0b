// SPDX-License-Identifier: MIT OR Apache-2.0
// Exception vectors for programs that expect exceptions and take interrupts, and the way of
// another CPU into Rust.

// A fault resumes at TPIDR_EL0 if that is not 0, once, with the syndrome in x17 (and bit 63 set,
// as a syndrome may be 0) and the address in x16.
    .section .text.probe, "ax"
    .balign 2048
    .global probe_vectors
probe_vectors:
    .rept 4
    .balign 128
    b       fault
    .endr
    .balign 128
    b       probe_sync
    .balign 128
    b       probe_irq
    .rept 10
    .balign 128
    b       fault
    .endr

probe_sync:
    msr     tpidr_el1, x0
    mrs     x0, tpidr_el0
    cbz     x0, 1f
    msr     elr_el1, x0
    msr     tpidr_el0, xzr
    mrs     x17, esr_el1
    orr     x17, x17, #0x8000000000000000
    mrs     x16, far_el1
    mrs     x0, tpidr_el1
    eret
1:  mrs     x0, tpidr_el1
    b       fault

// What a Rust function may change is kept on the stack; the handler lets no second one in.
probe_irq:
    stp     x29, x30, [sp, #-176]!
    stp     x0, x1, [sp, #16]
    stp     x2, x3, [sp, #32]
    stp     x4, x5, [sp, #48]
    stp     x6, x7, [sp, #64]
    stp     x8, x9, [sp, #80]
    stp     x10, x11, [sp, #96]
    stp     x12, x13, [sp, #112]
    stp     x14, x15, [sp, #128]
    stp     x16, x17, [sp, #144]
    str     x18, [sp, #160]
    bl      el1_interrupt
    ldr     x18, [sp, #160]
    ldp     x16, x17, [sp, #144]
    ldp     x14, x15, [sp, #128]
    ldp     x12, x13, [sp, #112]
    ldp     x10, x11, [sp, #96]
    ldp     x8, x9, [sp, #80]
    ldp     x6, x7, [sp, #64]
    ldp     x4, x5, [sp, #48]
    ldp     x2, x3, [sp, #32]
    ldp     x0, x1, [sp, #16]
    ldp     x29, x30, [sp], #176
    eret

// Another CPU, MMU off, x0 = probe::Start, which is what its function gets.
    .global probe_cpu
probe_cpu:
    msr     daifset, #0xf
    ldp     x1, x2, [x0]
    ldp     x3, x4, [x0, #16]
    ldp     x5, x6, [x0, #32]
    ldp     x7, x8, [x0, #48]
    msr     ttbr0_el1, x1
    msr     tcr_el1, x2
    msr     mair_el1, x3
    msr     vbar_el1, x5
    msr     ttbr1_el1, x7
    msr     tpidr_el0, xzr
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el1, x4
    isb
    mov     sp, x6
    mov     x29, #0
    mov     x30, #0
    br      x8
