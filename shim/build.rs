//! Link options that keep the library small and free of what it does not use.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link.ld");
    let script = format!("-Wl,-T,{}/link.ld", env!("CARGO_MANIFEST_DIR"));
    let options = [
        // The start files register frames and clone tables that nobody here has.
        "-nostartfiles",
        "-Wl,--strip-all",
        "-Wl,-z,noseparate-code",
        "-Wl,-z,norelro",
        // There is nothing to bind lazily; to say so takes two entries.
        "-Wl,-z,lazy",
        "-Wl,--no-eh-frame-hdr",
        "-Wl,--build-id=none",
        &script,
    ];
    for option in options {
        println!("cargo::rustc-cdylib-link-arg={option}");
    }
}
