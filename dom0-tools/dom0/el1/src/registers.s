// SPDX-License-Identifier: MIT OR Apache-2.0
// An instruction that reads (MRS) and one that writes (MSR) x0 for every system register there can be: op0 of 2 or 3, and
// each of op1, CRn, CRm and op2, in that order of their bits. A `ret` follows each.

    .section .text.registers, "ax"
    .balign 8
registers_read:
    .set    number, 0
    .rept   32768
    .inst   0xd5300000 | (number << 5)
    ret
    .set    number, number + 1
    .endr
registers_write:
    .set    number, 0
    .rept   32768
    .inst   0xd5100000 | (number << 5)
    ret
    .set    number, number + 1
    .endr
