//! Checks of the built library: size, imports and exports.
//!
//! Run `cargo build --release -p spc-shim`, then `SPC_SHIM_SO=target/release/libspc_shim.so cargo
//! test -p spc-shim`. Without the variable the checks are skipped, or fail if `CI=true`.

use std::collections::BTreeSet;
use std::process::Command;

/// Largest permitted file size in bytes.
const SIZE_MAX: u64 = 16 * 1024;
/// Newest version of glibc that the library may need: the oldest one that supports every
/// architecture of the shim.
const GLIBC_MAX: (u32, u32) = (2, 17);

/// Returns the path of the built library; none to skip the checks.
fn library() -> Option<String> {
    let path = std::env::var("SPC_SHIM_SO").ok();
    if path.is_none() {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        let message = "SPC_SHIM_SO is not set: \
            run cargo build --release -p spc-shim and set it to the path of the library";
        assert!(!ci, "{message}");
        eprintln!("SKIPPED: {message}");
    }
    path
}

/// Returns the output of readelf(1).
fn readelf(path: &str, options: &[&str]) -> String {
    let output = Command::new("readelf")
        .args(options)
        .arg(path)
        .output()
        .unwrap();
    assert!(output.status.success(), "readelf: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the name of each dynamic symbol, and whether the library defines it.
fn symbols(path: &str) -> Vec<(String, bool)> {
    let table = readelf(path, &["--wide", "--dyn-syms", "--use-dynamic"]);
    table
        .lines()
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [number, _, _, _, _, _, section, name, ..] = words[..] else {
                return None;
            };
            number.strip_suffix(':')?.parse::<u32>().ok()?;
            let name = name.split('@').next()?;
            Some((name.to_owned(), section != "UND"))
        })
        .collect()
}

#[test]
fn the_library_is_small_and_needs_only_an_old_glibc() {
    let Some(path) = library() else {
        return;
    };
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size <= SIZE_MAX, "{size} bytes, more than {SIZE_MAX}");
    let dynamic = readelf(&path, &["--wide", "--dynamic"]);
    for line in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
        assert!(line.contains("[libc.so.6]"), "{line}");
    }
    assert!(!dynamic.contains("TEXTREL"), "{dynamic}");
    let versions = readelf(&path, &["--wide", "--version-info"]);
    for version in versions.split("Name: ").skip(1) {
        let version = version.split_whitespace().next().unwrap();
        let (major, minor) = version
            .strip_prefix("GLIBC_")
            .unwrap()
            .split_once('.')
            .unwrap();
        let minor = minor.split('.').next().unwrap();
        let version = (major.parse().unwrap(), minor.parse().unwrap());
        assert!(version <= GLIBC_MAX, "{version:?}");
    }
}

#[test]
fn the_exports_match_the_list_and_nothing_panics() {
    let Some(path) = library() else {
        return;
    };
    let symbols = symbols(&path);
    let exported: BTreeSet<_> = symbols
        .iter()
        .filter(|(_, defined)| *defined)
        .map(|(name, _)| name.as_str())
        .collect();
    let listed: BTreeSet<_> = include_str!("../exports.txt").lines().collect();
    assert_eq!(exported, listed);
    let imported: BTreeSet<_> = symbols
        .iter()
        .filter(|(_, defined)| !*defined)
        .map(|(name, _)| name.as_str())
        .collect();
    assert!(
        imported.contains("__errno_location"),
        "imports not found: {imported:?}"
    );
    // The panic handler calls abort(3). Without that import no code of the library can panic.
    assert!(!imported.contains("abort"), "{imported:?}");
}
