// Image header, CPU start, exception vectors, and the way into and out of a guest.
// The layout of a vcpu's register file is `VcpuRegs` in vcpu.rs; offsets are checked there.

    .section .text.head, "ax"
    .global _head
_head:
    b       _start
    nop
    .quad   0                           // text_offset
    .quad   _image_end - _head          // image_size, .bss included
    .quad   0xa                         // little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

// EL2 as the rest expects it, whatever firmware left: the layout of EL2's registers that goes with HCR_EL2.E2H = 0 (a CPU
// where that cannot be written is found out later), MMU and caches off, its own stack pointer. Changes x2.
    .macro  known_el2
    mov     x2, #1 << 31                // HCR_EL2: RW alone
    msr     hcr_el2, x2
    isb
    mov     x2, #0x0830                 // SCTLR_EL2: its RES1 bits
    movk    x2, #0x30c5, lsl #16
    msr     sctlr_el2, x2
    isb
    msr     spsel, #1
    .endm

// x0 = device tree
_start:
    mov     x20, x0
    msr     daifset, #0xf
    mrs     x1, currentel
    cmp     x1, #2 << 2
    b.ne    11f                         // hv_boot says so
    known_el2
11:
    adrp    x21, _head
    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __bss_end
    add     x1, x1, :lo12:__bss_end
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       1b
2:  // Position as loaded: apply the relative relocations. Most are in the packed table: an even
    // word is the offset of a place, an odd one has a bit for each of the 63 words behind the last
    // place.
    adrp    x0, __relr_start
    add     x0, x0, :lo12:__relr_start
    adrp    x1, __relr_end
    add     x1, x1, :lo12:__relr_end
5:  cmp     x0, x1
    b.hs    9f
    ldr     x3, [x0], #8
    tbnz    x3, #0, 6f
    add     x2, x21, x3
    ldr     x4, [x2]
    add     x4, x4, x21
    str     x4, [x2], #8
    b       5b
6:  mov     x5, x2
    lsr     x3, x3, #1
7:  cbz     x3, 8f
    tbz     x3, #0, 10f
    ldr     x4, [x5]
    add     x4, x4, x21
    str     x4, [x5]
10: add     x5, x5, #8
    lsr     x3, x3, #1
    b       7b
8:  add     x2, x2, #63 * 8
    b       5b
9:  // The others, R_AARCH64_RELATIVE (1027).
    adrp    x0, __rela_start
    add     x0, x0, :lo12:__rela_start
    adrp    x1, __rela_end
    add     x1, x1, :lo12:__rela_end
3:  cmp     x0, x1
    b.hs    4f
    ldp     x2, x3, [x0], #16
    ldr     x4, [x0], #8
    cmp     w3, #1027
    b.ne    3b
    add     x4, x4, x21
    str     x4, [x2, x21]
    b       3b
4:  // What was written stands in memory; lines that a loader left in the caches must not hide it once they are on.
    adrp    x0, __text_end
    add     x0, x0, :lo12:__text_end
    adrp    x1, _image_end
    add     x1, x1, :lo12:_image_end
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x3, x3, x2
    dsb     sy
12: dc      ivac, x0
    add     x0, x0, x3
    cmp     x0, x1
    b.lo    12b
    dsb     sy
    adrp    x0, BOOT_STACK
    add     x0, x0, :lo12:BOOT_STACK
    add     x0, x0, #0x40000
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x20
    bl      hv_boot
    b       .

// Other CPUs, MMU off. Each finds its own SecondaryStart { ttbr, tcr, mair, sctlr, stack, cpu, mpidr }
// by its affinity: firmware that keeps CPUs in a spin table hands nothing over.
    .global _secondary
_secondary:
    msr     daifset, #0xf
    known_el2
    mrs     x2, hcr_el2
    tbnz    x2, #34, 2f                 // E2H cannot be cleared: not like the first CPU
    mrs     x1, mpidr_el1
    ubfx    x2, x1, #32, #8
    and     x1, x1, #0xffffff
    orr     x1, x1, x2, lsl #32
    adrp    x0, SECONDARIES
    add     x0, x0, :lo12:SECONDARIES
    mov     x3, #8                      // as many as MAX_CPUS
1:  ldr     x2, [x0, #48]
    cmp     x1, x2
    b.eq    3f
    add     x0, x0, #56
    subs    x3, x3, #1
    b.ne    1b
2:  wfe                                 // nobody asked for this one
    b       2b
3:  ldp     x1, x2, [x0]
    ldp     x3, x4, [x0, #16]
    ldp     x5, x6, [x0, #32]
    msr     ttbr0_el2, x1
    msr     tcr_el2, x2
    msr     mair_el2, x3
    tlbi    alle2
    dsb     sy
    isb
    msr     sctlr_el2, x4
    isb
    mov     sp, x5
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x6
    bl      hv_secondary
    b       .

// Takes an SError that is pending. Gives its syndrome, or 0.
    .global hv_take_serror
hv_take_serror:
    mov     x0, xzr
    msr     daifclr, #4
    isb
    msr     daifset, #4
    ret

hv_bad:
    mrs     x1, esr_el2
    mrs     x2, elr_el2
    mrs     x3, far_el2
    mov     x4, x29
    mov     x5, sp
    // The stack may be used up: the report has its own. One CPU makes it, and only once.
    adrp    x6, EMERGENCY_TAKEN
    add     x6, x6, :lo12:EMERGENCY_TAKEN
    mov     w7, #1
1:  ldaxr   w8, [x6]
    cbnz    w8, 2f
    stxr    w8, w7, [x6]
    cbnz    w8, 1b
    adrp    x6, EMERGENCY_TAKEN         // it grows down to the guard above the boot stack
    mov     sp, x6
    b       hv_exception
2:  wfi
    b       2b

// Saves what a Rust call may clobber; leaves x0 = the vcpu's register file.
    .macro  save_volatile
    stp     x0, x1, [sp, #-16]!
    mrs     x0, tpidr_el2
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    str     x18, [x0, #144]
    stp     x29, x30, [x0, #232]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    .endm
    .macro  save_rest
    stp     x19, x20, [x0, #152]
    stp     x21, x22, [x0, #168]
    stp     x23, x24, [x0, #184]
    stp     x25, x26, [x0, #200]
    stp     x27, x28, [x0, #216]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #248]
    .endm
    .macro  restore_volatile
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldr     x18, [x0, #144]
    ldp     x29, x30, [x0, #232]
    ldp     x0, x1, [x0]
    .endm

lower_sync:
    save_volatile
    mrs     x1, esr_el2
    lsr     x2, x1, #26
    cmp     x2, #0x16                   // HVC from AArch64
    b.ne    1f
    bl      hv_hvc                      // x0: 0 = straight back, else for hv_after_hvc
    cbnz    x0, 2f
    mrs     x0, tpidr_el2
    restore_volatile
    eret
    dsb     nsh
    isb
1:  save_rest
    bl      hv_sync
    b       hv_enter
2:  mov     x1, x0
    mrs     x0, tpidr_el2
    save_rest
    bl      hv_after_hvc
    b       hv_enter

lower_irq:
    save_volatile
    save_rest
    bl      hv_irq
    b       hv_enter

lower_serror:
    save_volatile
    save_rest
    bl      hv_serror
    b       hv_enter

// x0 = the register file to enter with
    .global hv_enter
hv_enter:
    ldp     x2, x3, [x0, #248]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x19, x20, [x0, #152]
    ldp     x21, x22, [x0, #168]
    ldp     x23, x24, [x0, #184]
    ldp     x25, x26, [x0, #200]
    ldp     x27, x28, [x0, #216]
    restore_volatile
    eret
    dsb     nsh
    isb

// x0 = register file, x1 = stack top: leaves the start-up stack for the first guest
    .global hv_enter_on
hv_enter_on:
    mov     sp, x1
    b       hv_enter

    .macro  vector target
    .balign 128
    b       \target
    .endm
    .macro  bad number
    .balign 128
    mov     x0, #\number
    b       hv_bad
    .endm

    .section .text.vectors, "ax"
    .balign 2048
    .global hv_vectors
hv_vectors:
    bad     0
    bad     1
    bad     2
    bad     3
    bad     4
    bad     5
    bad     6
    // An SError at EL2: they are masked but in hv_take_serror, which is given the syndrome.
    .balign 128
    mrs     x0, elr_el2
    adr     x1, hv_take_serror
    sub     x0, x0, x1
    cmp     x0, #12
    b.hi    1f
    add     x1, x1, #12
    msr     elr_el2, x1
    mrs     x0, spsr_el2
    orr     x0, x0, #1 << 8             // PSTATE.A
    msr     spsr_el2, x0
    mrs     x0, esr_el2
    eret
    dsb     nsh
    isb
1:  mov     x0, #7
    b       hv_bad
    vector  lower_sync
    vector  lower_irq
    vector  lower_irq
    vector  lower_serror
    vector  lower_sync
    vector  lower_irq
    vector  lower_irq
    vector  lower_serror

    .section .bss.boot_stack, "aw", @nobits
    .balign 4096
    .skip 4096                          // a guard: nothing is mapped there
    .global BOOT_STACK
BOOT_STACK:
    .skip 0x40000
    .skip 4096                          // a guard too: nothing is mapped there
    .skip 0x3000
EMERGENCY_TAKEN:
    .skip 4096
