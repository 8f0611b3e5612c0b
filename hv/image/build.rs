// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links the bare-metal image by its linker script, as a static position-independent executable.
fn main() {
    println!("cargo:rerun-if-changed=image.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for arg in [
            &format!("-T{dir}/image.ld"),
            "-pie",
            "--no-dynamic-linker",
            "-znotext",
            "-znorelro",
            "--pack-dyn-relocs=relr",
            "-zmax-page-size=4096",
        ] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
    }
}
