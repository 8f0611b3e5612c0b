// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;

fn scene(vcpu: u64) -> Scene {
    Scene {
        own: 5,
        peer: 1,
        vcpus: 4,
        vcpu,
        arena: 0x4040_0000,
        ram: 0x4000_0000,
        window: 0x3800_0000,
        gicd: 0x300_1000,
        gicx: 0x302_0000,
        v3: true,
        uart: 0x2200_0000,
        entry: 0x4000_1000,
        context: (0x4000_2000, 64),
    }
}

#[test]
fn a_seed_is_a_program() {
    for number in 0..20_000 {
        let s = scene(1);
        assert_eq!(operation(7, 1, number, &s), operation(7, 1, number, &s));
    }
    let same =
        (0..1000).filter(|n| operation(7, 1, *n, &scene(1)) == operation(8, 1, *n, &scene(1)));
    assert!(same.count() < 100);
}

/// Every kind of call and of operation is there, soon.
#[test]
fn nothing_is_left_out() {
    let mut calls = [0u32; 64];
    let (mut ops, mut ends, mut top, mut levels) = ([0u32; 8], 0, 0, [0u32; 4]);
    for number in 0..400_000 {
        let s = scene(number % 4);
        match operation(3, s.vcpu as u32, number, &s) {
            Op::Call(call) => {
                ops[0] += 1;
                if let Some(n) = calls.get_mut(call.nr as usize) {
                    *n += 1;
                }
                if call.x.iter().any(|x| *x >= 0xffff_ffff_ffff_f000) {
                    top += 1;
                }
                if call.nr == 29 && call.x[0] == 2 {
                    ends += 1;
                }
                assert!(call.blob.at.is_multiple_of(8));
                let args = s.page(layout::ARGS)..s.page(layout::SHARED) + PAGE;
                assert!(args.contains(&call.blob.at), "{call:x?}");
            }
            Op::Load { .. } => ops[1] += 1,
            Op::Store { .. } => ops[2] += 1,
            Op::Scribble { at, .. } => {
                ops[3] += 1;
                assert!(at.is_multiple_of(8), "{at:#x}");
            }
            Op::Run(run) => {
                ops[4] += 1;
                levels[run.level as usize] += 1;
            }
            Op::Smccc { .. } => ops[5] += 1,
            Op::Root(_) => ops[6] += 1,
            Op::Sleep(_) => ops[7] += 1,
        }
    }
    assert!(ops.iter().all(|n| *n > 1000), "{ops:?}");
    assert!(levels.iter().all(|n| *n > 1000), "{levels:?}");
    for nr in [7, 12, 13, 17, 18, 20, 24, 29, 32, 33, 34, 35, 36, 55] {
        assert!(calls[nr] > 100, "{nr}: {calls:?}");
    }
    assert!(top > 1000 && ends > 0, "{top} {ends}");
}

/// What no program of EL1's does to itself: the registers that its way back needs.
#[test]
fn the_way_back_is_kept() {
    for number in 0..400_000 {
        let Op::Run(run) = operation(11, 0, number, &scene(0)) else {
            continue;
        };
        if run.level != Level::El1 {
            continue;
        }
        for word in run.words() {
            let write = word & 0xfff0_0000 == 0xd510_0000;
            let sctlr_ttbr_tcr = [
                0xd518_1000,
                0xd518_2000,
                0xd518_2040,
                0xd518_a200,
                0xd518_c000,
            ];
            assert!(
                !write || !sctlr_ttbr_tcr.contains(&(word & !0x1f)),
                "{word:#x}"
            );
        }
    }
}
