//! What whoever runs a node lets its pods have of the node: a file there, with a line for each volume.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;

use crate::error::{Error, Result};
use crate::host::{Host, mountinfo};
use crate::options::Options;

/// The file, on the node.
pub const FILE: &str = "/etc/spc/flexvolume.conf";

/// The most of it that is read.
const LONGEST: u64 = 1024 * 1024;

/// The volumes that are allowed; none if nobody says so.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Allowed(Vec<Line>);

/// One that is: this source as this type, with these options and no other that reach anything.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    fs_type: String,
    source: String,
    options: Options,
}

impl Allowed {
    /// Reads the file of the host.
    ///
    /// # Errors
    /// It cannot be read or understood, or somebody other than root may write it.
    pub fn read(host: &Host) -> Result<Self> {
        let read = || -> std::io::Result<Option<String>> {
            let file = match std::fs::File::open(FILE) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let meta = file.metadata()?;
            if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
                return Err(std::io::Error::other(
                    "not root alone may write it: chown 0:0 and chmod 644",
                ));
            }
            let mut text = String::new();
            file.take(LONGEST).read_to_string(&mut text)?;
            Ok(Some(text))
        };
        let text = host
            .run("reading what pods may have", read)?
            .map_err(|e| Error::system(format!("cannot read {FILE} of the node")).because(e))?;
        Self::parse(&text.unwrap_or_default())
    }

    /// Reads the lines.
    ///
    /// # Errors
    /// One is not understood.
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
                _ => Err(bad("not allow with a type, a source and options")),
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

    /// The options that a volume is mounted with, if it is allowed. It is the whole source that is compared: a directory
    /// below another might be a link that a pod has made.
    pub fn options(&self, fs_type: &str, source: &str) -> Option<&Options> {
        let is = |line: &&Line| line.fs_type == fs_type && line.source == source;
        self.0.iter().find(is).map(|line| &line.options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_allows_one_volume() {
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
    fn what_is_not_understood_is_refused() {
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
