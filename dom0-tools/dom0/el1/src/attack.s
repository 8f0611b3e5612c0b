// SPDX-License-Identifier: MIT OR Apache-2.0
// The way into generated instructions and back.

// attack_enter(x0 = attack::Context): runs at its pc with its registers. The next exception, whichever, is the way back:
// x0 = the vector's number. While it runs, the stack pointer of EL1 is the context's address.
    .section .text.attack, "ax"
    .global attack_enter
attack_enter:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mov     x1, sp
    str     x1, [x0, #272]
    adrp    x1, attack_vectors
    add     x1, x1, :lo12:attack_vectors
    msr     vbar_el1, x1
    ldp     x1, x2, [x0, #248]
    ldr     x3, [x0, #264]
    mov     sp, x0
    msr     elr_el1, x1
    msr     spsr_el1, x2
    msr     sp_el0, x3
    isb
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp]
    eret

// Nothing of what ran is kept but what it was that ended it.
    .balign 2048
attack_vectors:
    .set    vector, 0
    .rept   16
    .balign 128
    mov     x0, #vector
    b       attack_leave
    .set    vector, vector + 1
    .endr

attack_leave:
    mrs     x1, esr_el1
    mrs     x2, far_el1
    stp     x1, x2, [sp, #280]
    ldr     x1, [sp, #272]
    mov     sp, x1
    adrp    x1, probe_vectors
    add     x1, x1, :lo12:probe_vectors
    msr     vbar_el1, x1
    msr     tpidr_el0, xzr
    clrex
    isb
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret
