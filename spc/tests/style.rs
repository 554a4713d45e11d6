//! Rules of language that a program can check; CONTRIBUTING.md has all of them.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it cannot read")]

use std::fs;
use std::path::{Path, PathBuf};

/// Doc-comment lines that begin with a pronoun, in ten thousand. The number is only ever lowered.
const MOST_PRONOUNS: usize = 13;

/// First words that make a reader look for what they stand for.
const PRONOUNS: [&str; 25] = [
    "It",
    "Its",
    "They",
    "Their",
    "Those",
    "That",
    "This",
    "These",
    "One",
    "Ones",
    "Whoever",
    "Who",
    "What",
    "Whatever",
    "Which",
    "Whichever",
    "Nobody",
    "Somebody",
    "Others",
    "None",
    "We",
    "Our",
    "He",
    "You",
    "Anybody",
];

/// Longest line of a Markdown text, in characters.
const LONGEST_LINE: usize = 100;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || ["generated", "target"].contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

#[test]
fn doc_comments_name_the_thing() {
    let (mut all, mut bad) = (0, Vec::new());
    let mut sources = Vec::new();
    for crate_dir in ["shim", "spc", "tests"] {
        files(&root().join(crate_dir), "rs", &mut sources);
    }
    for file in &sources {
        for (number, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
            let line = line.trim_start();
            let text = line
                .strip_prefix("///")
                .or_else(|| line.strip_prefix("//!"));
            let Some(text) = text else { continue };
            all += 1;
            let first = text.split_whitespace().next().unwrap_or("");
            if PRONOUNS.contains(&first.trim_end_matches([',', ':'])) {
                bad.push(format!("{}:{}: {line}", file.display(), number + 1));
            }
        }
    }
    assert!(all > 1000, "only {all} lines of doc comments found");
    let share = bad.len() * 10_000 / all;
    assert!(
        share <= MOST_PRONOUNS,
        "{} of {all} lines of doc comments begin with a pronoun, {share} in ten thousand; at most {MOST_PRONOUNS} may:\n{}",
        bad.len(),
        bad.join("\n")
    );
}

#[test]
fn lines_of_markdown_fit_a_terminal() {
    let mut texts = Vec::new();
    files(&root(), "md", &mut texts);
    assert!(
        texts.len() > 10,
        "only {} Markdown texts found",
        texts.len()
    );
    let mut long = Vec::new();
    for file in &texts {
        let mut is_generated = false;
        for (number, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
            // scripts/bench writes between these.
            match line {
                l if l.starts_with("<!-- made by") => is_generated = true,
                l if l.starts_with("<!-- end of") => is_generated = false,
                _ => {}
            }
            let is_table = line.trim_start().starts_with('|');
            if !is_generated && !is_table && line.chars().count() > LONGEST_LINE {
                long.push(format!("{}:{}", file.display(), number + 1));
            }
        }
    }
    assert!(
        long.is_empty(),
        "lines longer than {LONGEST_LINE} characters:\n{}",
        long.join("\n")
    );
}
