// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each target on a bounded number of random inputs; and on those that once found something.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn some(target: &str, cases: u32, longest: usize) {
    let mut runner = TestRunner::new(Config::with_cases(cases));
    let bytes = prop::collection::vec(any::<u8>(), 0..longest);
    let result = runner.run(&bytes, |data| {
        fuzz::run(target, &data);
        Ok(())
    });
    if let Err(e) = result {
        panic!("{target}: {e}");
    }
}

#[test]
fn hypercalls() {
    some("hypercalls", 20, 600);
}

#[test]
fn traps() {
    some("traps", 2000, 2000);
}

#[test]
fn device_tree() {
    some("device-tree", 2000, 1000);
}

#[test]
fn image_header() {
    some("image-header", 2000, 200);
}

#[test]
fn xl_config() {
    some("xl-config", 2000, 500);
}

#[test]
fn xenstore() {
    some("xenstore", 1000, 3000);
}

#[test]
fn console() {
    some("console", 2000, 2000);
}

#[test]
fn netback() {
    some("netback", 2000, 2000);
}

#[test]
fn blkback() {
    some("blkback", 2000, 2000);
}

/// Every target is one of these, and one of libFuzzer's.
#[test]
fn no_target_is_forgotten() {
    let manifest = include_str!("../libfuzzer/Cargo.toml");
    let here = include_str!("bounded.rs");
    for (name, _) in fuzz::TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        assert!(here.contains(&format!("some(\"{name}\"")), "{name}");
    }
}
