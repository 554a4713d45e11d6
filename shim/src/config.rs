//! The settings: `shim.conf`, and what `SPC_*` in the environment adds.
//!
//! Pure: `core` only, no allocation, no I/O, no other module, because the launcher compiles this very file to
//! read the same settings.
//!
//! A key that the file names replaces its built-in value, and may repeat; a key that it does not name keeps
//! the built-in one. What the environment adds comes first, so a namespace given there is tried first. In
//! values `\ooo` (three octal digits, as in mountinfo) stands for a byte, so targets may hold blanks.

/// Where the settings are.
#[allow(dead_code, reason = "the launcher and the shim each use a part")]
pub const FILE: &core::ffi::CStr = c"/etc/spc/shim.conf";

/// Longest file or value list that is accepted.
pub const TEXT_MAX: usize = 16 * 1024;
const ITEMS_MAX: usize = 256;

/// What a setting is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Key {
    Namespace,
    Host,
    Type,
    Target,
    Operation,
    Claims,
    Report,
}

/// In the order of [`Key`]. One text, because a table of texts costs a relocation for each.
const KEYS: &[u8] = b"namespace host type target operation claims report";
const VARIABLES: &[u8] =
    b"SPC_NAMESPACE SPC_HOST SPC_TYPES SPC_TARGETS SPC_OPERATIONS - SPC_REPORT sysimage";
const ALL_KEYS: [Key; 8] = [
    Key::Namespace,
    Key::Host,
    Key::Type,
    Key::Target,
    Key::Operation,
    Key::Claims,
    Key::Report,
    Key::Host,
];
const OPERATIONS: &[u8] = b"remount bind move propagation";

const DEFAULTS: &[u8] = b"namespace /host/proc/1/ns/mnt /proc/1/ns/mnt
host /host
type fuse fuse.* fuseblk nfs nfs4 ceph cifs smb3 9p
claims /spc/targets
report /spc/report.sock";

/// Changes of existing mounts that go to the host only when the settings name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Other flags or options for a mount.
    Remount,
    /// The same tree a second time.
    Bind,
    /// A mount to another place.
    Move,
    /// Shared, private, slave, unbindable.
    Propagation,
}

/// Why settings cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Line of the file, from 1; 0 for the environment.
    pub line: u32,
    /// What is wrong with it.
    pub reason: &'static str,
}

#[derive(Clone, Copy)]
struct Item {
    key: Key,
    from_env: bool,
    start: u16,
    /// Length of the value; for `PATH=HOSTPATH` of the first part.
    len: u16,
    host_len: u16,
}

/// Everything that decides what happens to a call. All zero bytes are a valid value without any setting.
#[repr(C)]
pub struct Config {
    text: [u8; TEXT_MAX],
    used: u16,
    items: [Item; ITEMS_MAX],
    count: u16,
}

impl Config {
    /// No setting at all, not even the built-in ones.
    #[allow(dead_code, reason = "the launcher and the shim each use a part")]
    pub const fn new() -> Self {
        Self {
            text: [0; TEXT_MAX],
            used: 0,
            items: [Item {
                key: Key::Namespace,
                from_env: false,
                start: 0,
                len: 0,
                host_len: 0,
            }; ITEMS_MAX],
            count: 0,
        }
    }

    /// The built-in settings, used when there is no file.
    #[allow(dead_code, reason = "the launcher and the shim each use a part")]
    pub fn defaults() -> Result<Self, Broken> {
        Self::parse_file(b"")
    }

    /// The settings of a file with this text.
    #[allow(dead_code, reason = "the launcher and the shim each use a part")]
    pub fn parse_file(text: &[u8]) -> Result<Self, Broken> {
        let mut config = Self::new();
        config.load(text)?;
        Ok(config)
    }

    /// [`Config::parse_file`] in place, for callers with a small stack; `self` must be without settings.
    pub fn load(&mut self, text: &[u8]) -> Result<(), Broken> {
        self.load_lines(text, false)?;
        self.load_lines(DEFAULTS, true)
    }

    /// `missing`: only the keys that have no value yet.
    fn load_lines(&mut self, mut text: &[u8], missing: bool) -> Result<(), Broken> {
        let mut line = 1;
        loop {
            let end = text.iter().position(|byte| *byte == b'\n');
            let words = text.get(..end.unwrap_or(text.len())).unwrap_or(&[]);
            self.load_line(words, missing)
                .map_err(|reason| Broken { line, reason })?;
            match end.and_then(|end| text.get(end + 1..)) {
                Some(rest) => text = rest,
                None => return Ok(()),
            }
            line += 1;
        }
    }

    fn load_line(&mut self, line: &[u8], missing: bool) -> Result<(), &'static str> {
        let mut words = Words(line);
        let Some(name) = words.next().filter(|name| !name.starts_with(b"#")) else {
            return Ok(());
        };
        let Some(key) = index(KEYS, name).and_then(|at| ALL_KEYS.get(at)) else {
            return Err("unknown key");
        };
        if missing && self.values(*key).next().is_some() {
            return Ok(());
        }
        if self.add_list(*key, words, false)? {
            Ok(())
        } else {
            Err("no value")
        }
    }

    /// Takes one variable of the environment; those that mean nothing here are ignored.
    pub fn add_env(&mut self, name: &[u8], value: &[u8]) -> Result<(), Broken> {
        let Some(key) = index(VARIABLES, name).and_then(|at| ALL_KEYS.get(at)) else {
            return Ok(());
        };
        match key {
            Key::Host => self.add_host(value),
            key => self.add_list(*key, Words(value), true).map(drop),
        }
        .map_err(|reason| Broken { line: 0, reason })
    }

    /// The host's root as the original named it: its `/proc` is the first place to look for the namespace.
    fn add_host(&mut self, value: &[u8]) -> Result<(), &'static str> {
        let value = trim_end_slashes(value);
        if value.is_empty() {
            return Ok(());
        }
        self.add(Key::Host, value, true)?;
        let start = self.used;
        self.store(value)?;
        self.store(b"/proc/1/ns/mnt")?;
        self.push(Item {
            key: Key::Namespace,
            from_env: true,
            start,
            len: self.used - start,
            host_len: 0,
        })
    }

    /// Whether there was any value.
    #[inline(never)]
    fn add_list(
        &mut self,
        key: Key,
        words: Words<'_>,
        from_env: bool,
    ) -> Result<bool, &'static str> {
        let mut any = false;
        for word in words {
            if word.starts_with(b"#") {
                break;
            }
            self.add(key, word, from_env)?;
            any = true;
        }
        Ok(any)
    }

    #[inline(never)]
    fn add(&mut self, key: Key, word: &[u8], from_env: bool) -> Result<(), &'static str> {
        let (value, host) = match word.iter().position(|byte| *byte == b'=') {
            Some(at) if key == Key::Target => (
                word.get(..at).unwrap_or(&[]),
                word.get(at + 1..).unwrap_or(&[]),
            ),
            _ => (word, [].as_slice()),
        };
        let start = self.used;
        self.store_decoded(value)?;
        let middle = self.used;
        self.store_decoded(host)?;
        let item = Item {
            key,
            from_env,
            start,
            len: middle - start,
            host_len: self.used - middle,
        };
        let maps_to_nothing = value.len() != word.len() && host.is_empty();
        let (value, host) = self.item(&item);
        let good = match key {
            Key::Type => {
                let name = value.strip_suffix(b"*").unwrap_or(value);
                !value.is_empty() && !name.contains(&b'*')
            }
            Key::Operation => index(OPERATIONS, value).is_some(),
            Key::Target => is_normal(value) && is_normal(host) && !maps_to_nothing,
            Key::Host => is_normal(value) && value != b"/",
            Key::Namespace | Key::Claims | Key::Report => is_normal(value),
        };
        if !good {
            return Err("bad value");
        }
        self.push(item)
    }

    fn store_decoded(&mut self, word: &[u8]) -> Result<(), &'static str> {
        let mut rest = word;
        while let Some((first, after)) = rest.split_first() {
            if *first != b'\\' {
                self.store(&[*first])?;
                rest = after;
                continue;
            }
            let [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] = after
            else {
                return Err("bad escape");
            };
            let byte = ((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0');
            if byte == 0 {
                return Err("bad escape");
            }
            self.store(&[byte])?;
            rest = after;
        }
        Ok(())
    }

    #[inline(never)]
    fn store(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let start = usize::from(self.used);
        let Some(room) = self.text.get_mut(start..start + bytes.len()) else {
            return Err("too long");
        };
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.used += bytes.len() as u16;
        Ok(())
    }

    fn push(&mut self, item: Item) -> Result<(), &'static str> {
        let Some(slot) = self.items.get_mut(usize::from(self.count)) else {
            return Err("too many values");
        };
        *slot = item;
        self.count += 1;
        Ok(())
    }

    /// The value of an item, and the host's name for it (the same unless the item maps it).
    #[inline(never)]
    fn item(&self, item: &Item) -> (&[u8], &[u8]) {
        let start = usize::from(item.start);
        let middle = start + usize::from(item.len);
        let end = middle + usize::from(item.host_len);
        let value = self.text.get(start..middle).unwrap_or(&[]);
        match self.text.get(middle..end) {
            Some(host) if !host.is_empty() => (value, host),
            _ => (value, value),
        }
    }

    fn items(&self, key: Key) -> Items<'_> {
        Items {
            config: self,
            key,
            env: true,
            at: 0,
        }
    }

    fn values(&self, key: Key) -> impl Iterator<Item = &[u8]> {
        self.items(key).map(|(value, _)| value)
    }

    /// Files that may be the host's mount namespace, in the order to try.
    pub fn namespaces(&self) -> impl Iterator<Item = &[u8]> {
        self.values(Key::Namespace)
    }

    /// Where the host's root may be seen: a path at or below one of these is the same path on the host.
    pub fn hosts(&self) -> impl Iterator<Item = &[u8]> {
        self.values(Key::Host)
    }

    /// Type patterns of new mounts that go to the host; `*` stands only at the end.
    pub fn types(&self) -> impl Iterator<Item = &[u8]> {
        self.values(Key::Type)
    }

    /// Targets that always go to the host, and their path there.
    pub fn targets(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.items(Key::Target)
    }

    /// Whether this operation goes to the host.
    pub fn names(&self, wanted: Operation) -> bool {
        self.values(Key::Operation)
            .any(|value| index(OPERATIONS, value) == Some(wanted as usize))
    }

    /// The directory where the launcher claims targets.
    pub fn claims(&self) -> Option<&[u8]> {
        self.values(Key::Claims).last()
    }

    /// Sockets to report decisions to, the first that takes one.
    pub fn reports(&self) -> impl Iterator<Item = &[u8]> {
        self.values(Key::Report)
    }
}

/// The values of one key: first those of the environment, then those of the file.
struct Items<'a> {
    config: &'a Config,
    key: Key,
    env: bool,
    at: u16,
}

impl<'a> Iterator for Items<'a> {
    type Item = (&'a [u8], &'a [u8]);

    #[inline(never)]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.at >= self.config.count {
                if !self.env {
                    return None;
                }
                (self.env, self.at) = (false, 0);
                continue;
            }
            let item = self.config.items.get(usize::from(self.at));
            self.at += 1;
            if let Some(item) =
                item.filter(|item| item.key == self.key && item.from_env == self.env)
            {
                return Some(self.config.item(item));
            }
        }
    }
}

/// Where a word stands in a list of words.
#[inline(never)]
fn index(words: &[u8], wanted: &[u8]) -> Option<usize> {
    Words(words).position(|word| word == wanted)
}

struct Words<'a>(&'a [u8]);

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    #[inline(never)]
    fn next(&mut self) -> Option<&'a [u8]> {
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let start = self.0.iter().position(|byte| !blank(byte))?;
        let rest = self.0.get(start..)?;
        let end = rest.iter().position(blank).unwrap_or(rest.len());
        self.0 = rest.get(end..)?;
        rest.get(..end)
    }
}

fn trim_end_slashes(mut path: &[u8]) -> &[u8] {
    while let Some(shorter) = path.strip_suffix(b"/") {
        path = shorter;
    }
    path
}

/// Absolute, and without `.`, `..`, doubled or trailing slashes: comparable byte by byte.
fn is_normal(path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(b"/") else {
        return false;
    };
    rest.is_empty()
        || rest
            .split(|byte| *byte == b'/')
            .all(|name| !matches!(name, b"" | b"." | b".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
        values
            .map(|value| String::from_utf8_lossy(value).into_owned())
            .collect()
    }

    fn broken(text: &str) -> (u32, &'static str) {
        let Err(broken) = Config::parse_file(text.as_bytes()) else {
            panic!("accepted: {text}");
        };
        (broken.line, broken.reason)
    }

    #[test]
    fn no_file_means_the_built_in_values() {
        let config = Config::defaults().unwrap();
        assert_eq!(
            strings(config.namespaces()),
            ["/host/proc/1/ns/mnt", "/proc/1/ns/mnt"]
        );
        assert_eq!(strings(config.hosts()), ["/host"]);
        assert_eq!(
            strings(config.types()).join(" "),
            "fuse fuse.* fuseblk nfs nfs4 ceph cifs smb3 9p"
        );
        assert_eq!(config.targets().count(), 0);
        assert_eq!(config.claims(), Some(&b"/spc/targets"[..]));
        assert_eq!(strings(config.reports()), ["/spc/report.sock"]);
        assert!(!config.names(Operation::Bind));
    }

    #[test]
    fn a_named_key_replaces_and_adds_up() {
        let config = Config::parse_file(
            b"# all of it\n\n type\tfuse.glusterfs # only this\ntype nfs\noperation move bind\n\
              target /data /srv/x=/mnt/x /a\\040b\n",
        )
        .unwrap();
        assert_eq!(strings(config.types()), ["fuse.glusterfs", "nfs"]);
        assert_eq!(strings(config.hosts()), ["/host"]);
        let targets: Vec<_> = config.targets().collect();
        assert_eq!(
            targets,
            [
                (&b"/data"[..], &b"/data"[..]),
                (b"/srv/x", b"/mnt/x"),
                (b"/a b", b"/a b"),
            ]
        );
        assert!(config.names(Operation::Move) && config.names(Operation::Bind));
        assert!(!config.names(Operation::Remount) && !config.names(Operation::Propagation));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_line() {
        assert_eq!(broken("host /host\ntpye fuse\n"), (2, "unknown key"));
        assert_eq!(broken("type\n"), (1, "no value"));
        assert_eq!(broken("type # none\n"), (1, "no value"));
        assert_eq!(broken("type f*se"), (1, "bad value"));
        assert_eq!(broken("operation umount"), (1, "bad value"));
        assert_eq!(broken("host relative"), (1, "bad value"));
        assert_eq!(broken("host /"), (1, "bad value"));
        assert_eq!(broken("target /a/../b"), (1, "bad value"));
        assert_eq!(broken("target /a="), (1, "bad value"));
        assert_eq!(broken("target /a/"), (1, "bad value"));
        assert_eq!(broken("target /a\\"), (1, "bad escape"));
        assert_eq!(broken("target /a\\000"), (1, "bad escape"));
        assert_eq!(
            broken(&format!("target /{}", "x".repeat(TEXT_MAX))),
            (1, "too long")
        );
        assert_eq!(
            broken(&"type fuse\n".repeat(ITEMS_MAX + 1)),
            (ITEMS_MAX as u32 + 1, "too many values")
        );
    }

    #[test]
    fn the_environment_adds_and_comes_first() {
        let mut config = Config::defaults().unwrap();
        config.add_env(b"SPC_NAMESPACE", b"/a /b").unwrap();
        config.add_env(b"sysimage", b"/image/").unwrap();
        config.add_env(b"SPC_TYPES", b"tmpfs ext*").unwrap();
        config.add_env(b"SPC_TARGETS", b"/data=/mnt").unwrap();
        config.add_env(b"SPC_OPERATIONS", b" propagation ").unwrap();
        config.add_env(b"SPC_REPORT", b"/r").unwrap();
        config.add_env(b"PATH", b"\\").unwrap();
        assert_eq!(
            strings(config.namespaces()),
            [
                "/a",
                "/b",
                "/image/proc/1/ns/mnt",
                "/host/proc/1/ns/mnt",
                "/proc/1/ns/mnt"
            ]
        );
        assert_eq!(strings(config.hosts()), ["/image", "/host"]);
        assert_eq!(strings(config.reports()), ["/r", "/spc/report.sock"]);
        assert_eq!(strings(config.types().take(2)), ["tmpfs", "ext*"]);
        assert_eq!(config.targets().count(), 1);
        assert!(config.names(Operation::Propagation));
        let bad = config.add_env(b"SPC_TARGETS", b"relative").unwrap_err();
        assert_eq!((bad.line, bad.reason), (0, "bad value"));
        config.add_env(b"SPC_HOST", b"/").unwrap();
    }

    #[test]
    fn mapped_zero_bytes_are_a_config() {
        let empty = Config::new();
        assert_eq!(empty.namespaces().count() + empty.types().count(), 0);
        assert_eq!(empty.used, 0);
        assert_eq!(empty.count, 0);
    }
}
