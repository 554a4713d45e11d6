//! Imports run down the floors of `spc/src`. No files of `spc/src` or `shim/src` import each other
//! in a circle.
//!
//! A room is a directory or file directly below `spc/src`. ARCHITECTURE.md draws the floors.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it cannot read")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms of `spc/src`, lowest floor first. Rooms on one floor do not import each other.
const FLOORS: &[&[&str]] = &[
    &["error", "sys"],
    &["log", "process"],
    &["host"],
    &["options", "state"],
    &["client", "kinds", "liveness"],
    &["helper"],
    &["servers"],
    &["block"],
    &["recovery"],
    &["mount", "unmount"],
    &["repair"],
    &["daemon", "doctor", "install", "volume"],
    &["provision"],
    &["frontends"],
];

/// Paths that a room must not name: `kinds/` is data and pure functions.
const FORBIDDEN: &[(&str, &[&str])] = &[(
    "kinds",
    &[
        "rustix",
        "nix",
        "libc",
        "std::env",
        "std::fs",
        "std::io",
        "std::net::TcpStream",
        "std::net::UdpSocket",
        "std::os::fd",
        "std::process",
        "std::thread",
        "crate::process",
        "crate::sys",
    ],
)];

/// Largest share of the code, in percent, that one room may hold.
const LARGEST_ROOM: usize = 15;

/// A module as its path below the crate root; the root itself is empty.
type Module = Vec<String>;

/// The source files of one crate by module.
struct Crate {
    files: BTreeMap<Module, Source>,
}

/// One source file, without comments and unit tests.
struct Source {
    name: String,
    code: String,
    lines: usize,
    /// Names that the file declares by `mod NAME;`.
    children: BTreeSet<String>,
    /// Names that the file re-exports by `pub use`, and the paths behind them.
    reexports: BTreeMap<String, Module>,
    /// Absolute paths that the file names outside of `pub use`.
    paths: BTreeSet<Module>,
}

impl Crate {
    fn read(src: &Path) -> Self {
        let mut paths = Vec::new();
        rust_files(src, &mut paths);
        let files = paths
            .iter()
            .map(|path| {
                let name = path.strip_prefix(src).unwrap();
                let module = module_of(name);
                let text = fs::read_to_string(path).unwrap();
                (
                    module.clone(),
                    Source::new(&name.to_string_lossy(), &module, &text),
                )
            })
            .collect();
        Self { files }
    }

    /// Returns the module that holds what a path names, following re-exports.
    fn home(&self, path: &Module) -> Option<&Module> {
        let mut path = path.clone();
        // A re-export may lead to another one.
        for _ in 0..8 {
            let end = (1..=path.len())
                .rev()
                .find(|end| self.files.contains_key(&path[..*end]))?;
            let (module, source) = self.files.get_key_value(&path[..end])?;
            match path
                .get(end)
                .and_then(|item| Some((item, source.reexports.get(item)?)))
            {
                Some((_, to)) => {
                    let mut next = to.clone();
                    next.extend_from_slice(&path[end + 1..]);
                    path = next;
                }
                None => return Some(module),
            }
        }
        None
    }

    /// Returns the modules that a module imports.
    fn imports(&self, module: &Module) -> BTreeSet<&Module> {
        let paths = self.files[module].paths.iter();
        let homes = paths.filter_map(|path| self.home(path));
        homes.filter(|home| *home != module).collect()
    }

    fn name(&self, module: &Module) -> &str {
        &self.files[module].name
    }
}

impl Source {
    fn new(name: &str, module: &Module, text: &str) -> Self {
        let code = code_of(text);
        let children: BTreeSet<String> = code
            .lines()
            .filter_map(|line| {
                let word = line.split_whitespace().next_back()?;
                let is_declaration = line.trim_end().ends_with(';')
                    && line.split_whitespace().rev().nth(1) == Some("mod");
                is_declaration.then(|| word.trim_end_matches(';').to_owned())
            })
            .collect();
        let mut source = Self {
            name: name.to_owned(),
            lines: text.lines().count(),
            children,
            reexports: BTreeMap::new(),
            paths: BTreeSet::new(),
            code,
        };
        source.read_paths(module);
        source
    }

    fn read_paths(&mut self, module: &Module) {
        let mut rest = String::new();
        for statement in self.code.split_inclusive(';') {
            let begins = statement.rfind("use ").filter(|at| {
                let before = statement[..*at].chars().next_back();
                before.is_none_or(char::is_whitespace) && statement.ends_with(';')
            });
            let Some(at) = begins else {
                rest.push_str(statement);
                continue;
            };
            let (before, tree) = (&statement[..at], &statement[at + 4..statement.len() - 1]);
            let is_public = before.lines().last().unwrap_or("").contains("pub");
            let mut paths = Vec::new();
            expand(&[], tree, &mut paths);
            for path in paths {
                let Some(absolute) = self.absolute(module, &path) else {
                    continue;
                };
                if is_public {
                    let name = absolute.last().cloned().unwrap_or_default();
                    self.reexports.insert(name, absolute);
                } else {
                    self.paths.insert(absolute);
                }
            }
            rest.push_str(before);
        }
        for path in inline_paths(&rest) {
            if let Some(absolute) = self.absolute(module, &path) {
                self.paths.insert(absolute);
            }
        }
    }

    /// Resolves a path as written in a module; none for other crates.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Module> {
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" | "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let mut absolute = module[..module.len().checked_sub(ups)?].to_vec();
                let parts = path
                    .iter()
                    .skip_while(|part| ["self", "super"].contains(&part.as_str()));
                absolute.extend(parts.cloned());
                Some(absolute)
            }
            child if self.children.contains(child) => {
                let mut absolute = module.clone();
                absolute.extend_from_slice(path);
                Some(absolute)
            }
            _ => None,
        }
    }
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn module_of(file: &Path) -> Module {
    let file = file.with_extension("");
    let mut module: Module = file
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if module
        .last()
        .is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str()))
    {
        module.pop();
    }
    module
}

/// Drops comments, unit tests, and visibilities such as `pub(in crate::kinds)`.
fn code_of(text: &str) -> String {
    let tests = ["", "pub ", "pub(crate) "]
        .iter()
        .find_map(|scope| text.find(&format!("\n#[cfg(test)]\n{scope}mod tests {{")));
    let code = &text[..tests.unwrap_or(text.len())];
    let lines = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""));
    let mut code = lines.collect::<Vec<_>>().join("\n");
    while let Some(start) = code.find("pub(in ") {
        let end = start + code[start..].find(')').unwrap();
        code.replace_range(start..=end, "pub");
    }
    code
}

/// Expands a tree of `use` into its paths.
fn expand(prefix: &[String], tree: &str, paths: &mut Vec<Vec<String>>) {
    let mut depth = 0;
    let parts = tree.split(|c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
        let (path, inner) = match part.split_once('{') {
            Some((path, inner)) => (path, Some(inner.trim_end().trim_end_matches('}'))),
            None => (part.split(" as ").next().unwrap_or(part), None),
        };
        let mut whole = prefix.to_vec();
        let names = path.split("::").map(str::trim);
        whole.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        match inner {
            Some(inner) => expand(&whole, inner, paths),
            None => {
                if whole.len() > 1 && whole.last().is_some_and(|last| last == "self") {
                    whole.pop();
                }
                paths.push(whole);
            }
        }
    }
}

/// Finds paths such as `crate::host::Host` in code.
fn inline_paths(code: &str) -> Vec<Vec<String>> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    code.split(|c| !is_part(c))
        .filter(|word| word.contains("::"))
        .map(|word| word.split("::").map(str::to_owned).collect())
        .collect()
}

/// Returns the groups of modules that import each other in a circle.
fn circles(source: &Crate) -> Vec<BTreeSet<&Module>> {
    let modules: Vec<_> = source.files.keys().filter(|m| !m.is_empty()).collect();
    let reached: BTreeMap<_, _> = modules
        .iter()
        .map(|module| {
            let mut seen = BTreeSet::new();
            let mut next = vec![*module];
            while let Some(one) = next.pop() {
                for import in source.imports(one) {
                    if !import.is_empty() && seen.insert(import) {
                        next.push(import);
                    }
                }
            }
            (*module, seen)
        })
        .collect();
    let mut circles: Vec<BTreeSet<&Module>> = Vec::new();
    for module in &modules {
        let mutual = reached[module].iter().copied();
        let circle: BTreeSet<_> = mutual
            .filter(|other| reached[other].contains(module))
            .collect();
        if circle.contains(module) && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

fn assert_no_circles(source: &Crate) {
    let found: Vec<String> = circles(source)
        .iter()
        .map(|circle| {
            let edges = circle.iter().flat_map(|from| {
                let imports = source.imports(from);
                let inside = imports.into_iter().filter(|to| circle.contains(to));
                inside.map(|to| format!("  {} imports {}", source.name(from), source.name(to)))
            });
            edges.collect::<Vec<_>>().join("\n")
        })
        .collect();
    assert!(
        found.is_empty(),
        "files import each other in a circle:\n{}",
        found.join("\n\n")
    );
}

fn launcher() -> Crate {
    Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

#[test]
fn imports_run_down_the_floors() {
    let source = launcher();
    let floor: BTreeMap<&str, usize> = FLOORS
        .iter()
        .enumerate()
        .flat_map(|(floor, rooms)| rooms.iter().map(move |room| (*room, floor)))
        .collect();
    let floor_of = |module: &Module| {
        *floor
            .get(module[0].as_str())
            .unwrap_or_else(|| panic!("{}: give this room a floor", module[0]))
    };
    let mut bad = Vec::new();
    for module in source.files.keys().filter(|module| !module.is_empty()) {
        for import in source.imports(module) {
            if !import.is_empty() && import[0] != module[0] && floor_of(import) >= floor_of(module)
            {
                bad.push(format!(
                    "{} imports {}",
                    source.name(module),
                    source.name(import)
                ));
            }
        }
    }
    assert!(
        bad.is_empty(),
        "{} imports run up or sideways:\n{}",
        bad.len(),
        bad.join("\n")
    );
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    assert_no_circles(&launcher());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    assert_no_circles(&Crate::read(&root.join("shim/src")));
}

#[test]
fn a_room_names_nothing_that_it_must_not_use() {
    let source = launcher();
    let mut bad = Vec::new();
    for (room, words) in FORBIDDEN {
        let files = source.files.iter();
        for (_, file) in files.filter(|(module, _)| module.first().is_some_and(|r| r == room)) {
            for word in *words {
                let named = file.code.match_indices(word).any(|(at, _)| {
                    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
                    let before = file.code[..at].chars().next_back();
                    let after = file.code[at + word.len()..].chars().next();
                    !before.is_some_and(is_part)
                        && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
                });
                if named {
                    bad.push(format!("{} names {word}", file.name));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn no_room_holds_too_much_of_the_code() {
    let source = launcher();
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for (module, file) in source.files.iter().filter(|(module, _)| !module.is_empty()) {
        *sizes.entry(&module[0]).or_default() += file.lines;
    }
    let all: usize = sizes.values().sum();
    for (room, lines) in sizes {
        let share = lines * 100 / all;
        assert!(
            share <= LARGEST_ROOM,
            "{room}/ holds {share} % of the lines of spc/src; split it"
        );
    }
}

#[test]
fn the_parser_finds_imports() {
    let text = "use crate::a::{self, b::C, d as e};\npub use super::x::Y;\nmod kid;\nfn f() { kid::g(); crate::z::h() } // crate::no\n\n#[cfg(test)]\nmod tests {\n    use crate::no2;\n}\n";
    let module = vec!["room".to_owned(), "file".to_owned()];
    let source = Source::new("room/file.rs", &module, text);
    let paths: Vec<String> = source.paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(
        paths,
        ["a", "a::b::C", "a::d", "room::file::kid::g", "z::h"]
    );
    assert_eq!(source.reexports["Y"].join("::"), "room::x::Y");
}
