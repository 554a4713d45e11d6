//! Every import runs down: a room may use only rooms on lower floors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms of `spc/src`, lowest floor first. Rooms on one floor do not import each other.
const FLOORS: &[&[&str]] = &[
    &["error"],
    &["sys", "log"],
    &["host"],
    &["events", "options", "state"],
    &["client", "kinds", "liveness"],
    &["mount"],
    &["health", "install"],
    &["doors"],
];

/// Imports that break the rule today. The list may only get shorter.
const KNOWN: &[(&str, &str)] = &[];

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// The rooms that a source text names as `crate::ROOM`, without its comments and its unit tests.
fn rooms_used(text: &str) -> Vec<String> {
    let tests = ["mod tests", "pub mod tests", "pub(crate) mod tests"]
        .iter()
        .find_map(|module| text.find(&format!("\n#[cfg(test)]\n{module}")));
    let code = &text[..tests.unwrap_or(text.len())];
    let mut rooms = Vec::new();
    for line in code.lines() {
        let line = line.split("//").next().unwrap_or("");
        for rest in line.split("crate::").skip(1) {
            let room: String = rest
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if !room.is_empty() && !rooms.contains(&room) {
                rooms.push(room);
            }
        }
    }
    rooms
}

#[test]
fn every_import_runs_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let floor: BTreeMap<&str, usize> = FLOORS
        .iter()
        .enumerate()
        .flat_map(|(floor, rooms)| rooms.iter().map(move |room| (*room, floor)))
        .collect();
    let mut files = Vec::new();
    rust_files(&src, &mut files).unwrap();
    files.sort();
    let mut up = Vec::new();
    for file in &files {
        let relative = file.strip_prefix(&src).unwrap();
        let first = relative.iter().next().unwrap().to_string_lossy();
        let own = first.trim_end_matches(".rs");
        if own == "main" || own == "lib" {
            continue;
        }
        let here = *floor
            .get(own)
            .unwrap_or_else(|| panic!("{own}: give this room a floor"));
        for room in rooms_used(&fs::read_to_string(file).unwrap()) {
            let Some(there) = floor.get(room.as_str()) else {
                continue;
            };
            let name = relative.to_string_lossy().into_owned();
            let known = KNOWN.contains(&(name.as_str(), room.as_str()));
            if room != own && *there >= here && !known {
                up.push(format!("{name} uses crate::{room}"));
            }
        }
    }
    assert!(
        up.is_empty(),
        "{} imports run up or sideways:\n{}",
        up.len(),
        up.join("\n")
    );
}
