// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fuzz targets (`fuzz/`) on a bounded number of arbitrary inputs.

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn netback(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        bodies::netback(&data);
    }

    #[test]
    fn blkback(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        bodies::blkback(&data);
    }
}
