//! Volumes of the node that its administrator allows to pods: one line each in a file on the node.
//!
//! A line is `allow TYPE SOURCE [OPTIONS]`, with octal escapes such as `\040` for a space. Empty
//! lines and lines that begin with `#` are ignored.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;

use crate::error::{Error, Result};
use crate::host::{Host, mountinfo};
use crate::options::Options;

/// Path of the file on the node.
pub const FILE: &str = "/etc/spc/flexvolume.conf";

/// Files of this size, in bytes, or larger are refused.
const MAX_SIZE: u64 = 1024 * 1024;

/// Allowed volumes; none by default.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Allowed(Vec<Line>);

/// Allowed volume, with the options that the node adds to those of the pod.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    fs_type: String,
    source: String,
    options: Options,
}

impl Allowed {
    /// Reads the file on the host. A missing file allows nothing.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or users other than root may write it.
    pub fn read(host: &Host) -> Result<Self> {
        let read = || -> std::io::Result<Option<String>> {
            let file = match std::fs::File::open(FILE) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let meta = file.metadata()?;
            if !only_root_writes(meta.uid(), meta.mode()) {
                return Err(std::io::Error::other(
                    "users other than root may write it: chown 0:0 and chmod 644",
                ));
            }
            let mut text = String::new();
            // A truncated line could allow another volume.
            if file.take(MAX_SIZE).read_to_string(&mut text)? as u64 == MAX_SIZE {
                return Err(std::io::ErrorKind::FileTooLarge.into());
            }
            Ok(Some(text))
        };
        let text = host
            .run("reading the volumes allowed to pods", read)?
            .map_err(|e| Error::system(format!("cannot read {FILE} on the node")).because(e))?;
        Self::parse(&text.unwrap_or_default())
    }

    /// Parses the text of the file.
    ///
    /// # Errors
    /// A line is invalid; the error names its number, and does not repeat its text.
    pub fn parse(text: &str) -> Result<Self> {
        let line = |(number, line): (usize, &str)| {
            let bad = |why: &str| {
                Error::system(format!("broken settings: {FILE} line {}", number + 1))
                    .because(why)
                    .hint("a line is `allow TYPE SOURCE [OPTIONS]`, with \\040 for a space")
            };
            let words: Vec<&str> = line.split_whitespace().collect();
            let options = match words[..] {
                [] => return None,
                [word, ..] if word.starts_with('#') => return None,
                ["allow", _, _] => Ok(Options::default()),
                ["allow", _, _, list] => Options::parse([list]).map_err(|_| bad("bad options")),
                _ => Err(bad("not an allow line with type, source and options")),
            };
            let text = |word: &str| {
                String::from_utf8(mountinfo::unescape(word.as_bytes()))
                    .map_err(|_| bad("not UTF-8"))
            };
            Some(options.and_then(|options| {
                Ok(Line {
                    fs_type: words[1].to_owned(),
                    source: text(words[2])?,
                    options,
                })
            }))
        };
        let lines = text.lines().enumerate().filter_map(line);
        Ok(Self(lines.collect::<Result<_>>()?))
    }

    /// Returns the node's options for a volume, if the volume is allowed.
    ///
    /// The full source is compared, because a directory below an allowed one could be a symbolic
    /// link that a pod created.
    pub fn options(&self, fs_type: &str, source: &str) -> Option<&Options> {
        let matches = |line: &&Line| line.fs_type == fs_type && line.source == source;
        self.0.iter().find(matches).map(|line| &line.options)
    }
}

/// Returns whether only root can write a file with this owner and mode.
fn only_root_writes(owner: u32, mode: u32) -> bool {
    owner == 0 && mode & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        for (owner, mode, accepted) in [
            (0, 0o100_644, true),
            (0, 0o100_600, true),
            (0, 0o100_664, false),
            (0, 0o100_646, false),
            (1000, 0o100_644, false),
        ] {
            assert_eq!(only_root_writes(owner, mode), accepted, "{owner} {mode:o}");
        }
    }

    #[test]
    fn a_line_allows_exactly_one_volume() {
        let text = "# of the node\n\nallow bind /srv/a\\040b\n\
            allow\toverlay  merged   lowerdir=/srv/l,upperdir=/srv/u,workdir=/srv/w\n";
        let allowed = Allowed::parse(text).unwrap();
        let options = |fs_type: &str, source: &str| {
            let found = allowed.options(fs_type, source);
            found.map(ToString::to_string)
        };
        assert_eq!(options("bind", "/srv/a b").as_deref(), Some(""));
        assert_eq!(
            options("overlay", "merged").as_deref(),
            Some("lowerdir=/srv/l,upperdir=/srv/u,workdir=/srv/w")
        );
        for (fs_type, source) in [
            ("bind", "/srv/a b/c"),
            ("bind", "/srv"),
            ("bind", "merged"),
            ("fuse.bindfs", "/srv/a b"),
        ] {
            assert_eq!(options(fs_type, source), None, "{fs_type} {source}");
        }
        assert_eq!(Allowed::parse("").unwrap(), Allowed::default());
    }

    #[test]
    fn invalid_lines_are_refused() {
        for bad in [
            "allow bind",
            "deny bind /srv",
            "allow bind /srv ro more",
            "allow cifs //h/s password=hunter2",
            "allow bind \\377",
        ] {
            let error = Allowed::parse(&format!("# one\n{bad}\n")).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("line 2") && !text.contains("hunter2"),
                "{text}"
            );
        }
    }
}
