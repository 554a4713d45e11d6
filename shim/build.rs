//! Link options that keep the library small.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link.ld");
    let script = format!("-Wl,-T,{}/link.ld", env!("CARGO_MANIFEST_DIR"));
    let options = [
        // The start files register unwind and transactional memory tables, which this library
        // lacks.
        "-nostartfiles",
        "-Wl,--strip-all",
        "-Wl,-z,noseparate-code",
        "-Wl,-z,norelro",
        // No function is bound lazily, but `-z now` would add two entries to the dynamic section.
        "-Wl,-z,lazy",
        "-Wl,--no-eh-frame-hdr",
        "-Wl,--build-id=none",
        // One entry of the dynamic section instead of a section with a relocated pointer.
        "-Wl,-init=spc_shim_init",
        &script,
    ];
    for option in options {
        println!("cargo::rustc-cdylib-link-arg={option}");
    }
}
