//! Link options that keep the library small and free of what it does not use.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // No start files: they register frames and clone tables that nobody here has.
    for argument in ["-nostartfiles", "-Wl,--strip-all", "-Wl,-z,noseparate-code"] {
        println!("cargo::rustc-cdylib-link-arg={argument}");
    }
}
