// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links as an arm64 Image: a static PIE by the bare-metal layer's linker script.

fn main() {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../dom0-tools/dom0/el1/image.ld"
    );
    println!("cargo:rerun-if-changed={script}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg=-T{script}");
        for arg in [
            "-pie",
            "--no-dynamic-linker",
            "-znotext",
            "-znorelro",
            "-zmax-page-size=4096",
        ] {
            println!("cargo:rustc-link-arg={arg}");
        }
    }
}
