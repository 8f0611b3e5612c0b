// SPDX-License-Identifier: MIT OR Apache-2.0
// The Image header, the way from the loader into Rust, and the exception vectors.

// The header of Documentation/arch/arm64/booting.rst: 64 bytes.
    .section .head, "ax"
    .global _start
_start:
    b       entry
    .long   0
    .quad   0                       // text_offset
    .quad   __image_size
    .quad   0xa                     // little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

// EL1h, MMU off, x0 = device tree. Turns the MMU and the caches on over an identity map that
// holds no more than the image and the device tree, so that nothing but that one table is ever
// written past the caches; everything else follows with them on.
entry:
    msr     daifset, #0xf
    mov     x19, x0
    mrs     x28, cntvct_el0
    adrp    x20, __boot_table
    add     x20, x20, :lo12:__boot_table
    add     x1, x20, #4096
    // The table is written past the caches. A line that somebody left dirty over it would be written
    // back some day, and no invalidation after the writes keeps it from that: under a stage 2 DC IVAC
    // cleans first (Arm ARM, HCR_EL2.VM). So such lines go before.
    bl      drop_lines
    mov     x0, x20
1:  stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    1b
    // Blocks of 1 GiB: attribute 0 (normal, write-back), inner shareable, accessed, of ASID 0 only
    // (the tables that follow are in force under ASID 1, and never meet these in a TLB).
    mov     x2, #0xf01
    adr     x3, _start
    bl      map_gib
    adrp    x3, __image_end
    bl      map_gib
    mov     x3, x19
    bl      map_gib
    // Nobody wrote there through the caches since: what speculation brought in meanwhile is clean, and
    // must not hide what was just written.
    bl      drop_lines

    mov     x0, #0x04ff             // attribute 0 normal write-back, 1 device nGnRE
    msr     mair_el1, x0
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf            // physical address bits
    cmp     x1, #5
    mov     x2, #5
    csel    x1, x1, x2, lo
    ldr     x0, =0x803519           // 39-bit addresses from TTBR0 alone, 4 KiB, cacheable walks
    orr     x0, x0, x1, lsl #32
    msr     tcr_el1, x0
    msr     ttbr0_el1, x20
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x0, =0x30d01805         // MMU, data and instruction caches
    msr     sctlr_el1, x0
    isb

    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __bss_end
    add     x1, x1, :lo12:__bss_end
3:  cmp     x0, x1
    b.hs    4f
    stp     xzr, xzr, [x0], #16
    b       3b

4:  adr     x9, _start
    adrp    x0, __rela_start
    add     x0, x0, :lo12:__rela_start
    adrp    x1, __rela_end
    add     x1, x1, :lo12:__rela_end
5:  cmp     x0, x1
    b.hs    7f
    ldp     x2, x3, [x0], #16       // offset, type
    ldr     x4, [x0], #8            // addend
    cmp     w3, #1027               // R_AARCH64_RELATIVE
    b.ne    6f
    add     x4, x4, x9
    str     x4, [x9, x2]
    b       5b
6:  cbz     w3, 5b                  // R_AARCH64_NONE
    b       .                       // a relocation that the linker should not have made

7:  dsb     ish
    ic      iallu                   // .rodata and .text may have been relocated
    dsb     ish
    isb
    adrp    x0, __stack_top
    add     x0, x0, :lo12:__stack_top
    mov     sp, x0
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el1, x0
    isb
    mov     x29, #0
    mov     x30, #0
    mov     x0, x19
    mov     x1, x28
    bl      el1_start
    b       .

// The block of 1 GiB that holds x3; x2 = attributes, x20 = table.
map_gib:
    lsr     x4, x3, #30
    orr     x5, x2, x4, lsl #30
    and     x4, x4, #0x1ff
    str     x5, [x20, x4, lsl #3]
    ret

// Cleans and invalidates the table's lines, from x20 to x1. Changes x0.
drop_lines:
    mov     x0, x20
    dsb     sy
2:  dc      civac, x0
    add     x0, x0, #16             // the least line that there is
    cmp     x0, x1
    b.lo    2b
    dsb     sy
    ret

// Interrupts stay masked for ever (a pending one ends a WFI all the same), so that whatever
// arrives here is a fault: it is reported, and that is the end.
    .text
    .balign 2048
vectors:
    .rept 16
    .balign 128
    b       fault
    .endr

fault:
    msr     tpidr_el1, x0
    adrp    x0, __fault_frame
    add     x0, x0, :lo12:__fault_frame
    stp     x1, x2, [x0, #8]
    stp     x3, x4, [x0, #24]
    stp     x5, x6, [x0, #40]
    stp     x7, x8, [x0, #56]
    stp     x9, x10, [x0, #72]
    stp     x11, x12, [x0, #88]
    stp     x13, x14, [x0, #104]
    stp     x15, x16, [x0, #120]
    stp     x17, x18, [x0, #136]
    stp     x19, x20, [x0, #152]
    stp     x21, x22, [x0, #168]
    stp     x23, x24, [x0, #184]
    stp     x25, x26, [x0, #200]
    stp     x27, x28, [x0, #216]
    stp     x29, x30, [x0, #232]
    mrs     x1, tpidr_el1
    str     x1, [x0]
    mov     x1, sp
    str     x1, [x0, #248]
    mrs     x1, elr_el1
    mrs     x2, spsr_el1
    stp     x1, x2, [x0, #256]
    mrs     x1, esr_el1
    mrs     x2, far_el1
    stp     x1, x2, [x0, #272]
    adrp    x1, __stack_top
    add     x1, x1, :lo12:__stack_top
    mov     sp, x1
    bl      el1_fault
    b       .
