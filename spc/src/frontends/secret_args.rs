//! Our own arguments, which every process of the container can read: a secret among them is
//! overwritten before anything else happens.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use crate::frontends::kubelet::flexvolume::volume::SECRET;
use crate::options::secrets::{MASK, is_secret};

/// The arguments, of which `/proc/PID/cmdline` does not show the secrets any more.
pub struct Arguments {
    /// The arguments as they were given.
    pub all: Vec<OsString>,
    /// The values among them that are secrets.
    values: Vec<Vec<u8>>,
    /// Why others can still see them.
    pub seen: Option<std::io::Error>,
}

impl Arguments {
    /// Takes them, and overwrites the secrets where the kernel shows them.
    pub fn take() -> Self {
        // The standard library reads them anew each time.
        let (mut arguments, masked) = Self::of(std::env::args_os().collect());
        if arguments.hold_secrets() {
            arguments.seen = overwrite(&arguments.all, &masked).err();
        }
        arguments
    }

    /// Finds the secrets among these, and how they may be shown.
    pub fn of(all: Vec<OsString>) -> (Self, Vec<Vec<u8>>) {
        let mut values = Vec::new();
        let shown = all.iter().enumerate().map(|(at, arg)| {
            let before = at.checked_sub(1).and_then(|at| all.get(at));
            let named = before.is_some_and(|before| before == "--secret");
            masked(arg, named, &mut values)
        });
        let shown = shown.collect();
        let arguments = Self {
            all,
            values,
            seen: None,
        };
        (arguments, shown)
    }

    /// Whether there are secrets among them.
    pub fn hold_secrets(&self) -> bool {
        !self.values.is_empty()
    }

    /// A text, such as an error about the arguments, with the secrets masked.
    pub fn mask(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, value| {
            text.replace(&*String::from_utf8_lossy(value), MASK)
        })
    }
}

/// An argument with `***` for each secret in it. An argument may be an option's list, with or without the
/// option before it; what `--secret` has (`named`) only names one, if it is as it should be.
fn masked(arg: &OsStr, named: bool, values: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let bytes = arg.as_bytes();
    if bytes.starts_with(b"{") {
        return masked_object(bytes, values);
    }
    let (option, list) = match bytes {
        [b'-', b'-', ..] => match bytes.iter().position(|b| *b == b'=') {
            Some(at) => bytes.split_at(at + 1),
            None => return bytes.to_vec(),
        },
        // `-o` may be the last of several letters, and its list may follow without a space.
        [b'-', ..] => match bytes.iter().position(|b| *b == b'o') {
            Some(at) if bytes.get(at + 1) == Some(&b'=') => bytes.split_at(at + 2),
            Some(at) => bytes.split_at(at + 1),
            None => return bytes.to_vec(),
        },
        _ => bytes.split_at(0),
    };
    let named = named || option == b"--secret=";
    let mut masked = option.to_vec();
    for (at, item) in items(list).enumerate() {
        if at > 0 {
            masked.push(b',');
        }
        let equals = item.iter().position(|b| *b == b'=');
        let (key, value) = item.split_at(equals.map_or(item.len(), |at| at + 1));
        let name = String::from_utf8_lossy(&key[..key.len().saturating_sub(1)]);
        let harmless = [&b"file:"[..], b"env:"]
            .iter()
            .any(|p| value.starts_with(p))
            || value == b"stdin";
        let secret = match named {
            true => !harmless,
            false => is_secret(&name),
        };
        masked.extend(key);
        if secret && !value.is_empty() {
            values.push(value.to_vec());
            masked.extend(&MASK.as_bytes()[..MASK.len().min(value.len())]);
        } else {
            masked.extend(value);
        }
    }
    masked
}

/// What kubelet says of a volume, with stars for the secrets of the pod: it stays as long as it was.
fn masked_object(bytes: &[u8], values: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(bytes) else {
        // Whatever it is, half a secret may be in it.
        values.push(bytes.to_vec());
        return MASK.as_bytes()[..MASK.len().min(bytes.len())].to_vec();
    };
    let mut masked = bytes.to_vec();
    for (key, value) in object {
        let value = value.as_str().unwrap_or_default().as_bytes();
        if !key.starts_with(SECRET) || value.is_empty() {
            continue;
        }
        values.push(value.to_vec());
        let mut at = 0;
        while let Some(found) = masked[at..].windows(value.len()).position(|w| w == value) {
            masked[at + found..at + found + value.len()].fill(b'*');
            at += found + value.len();
        }
        if at == 0 {
            // It is written in another way.
            return MASK.as_bytes().to_vec();
        }
    }
    masked
}

/// The items of a comma list; a comma inside double quotes belongs to its item.
fn items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    list.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
}

/// Writes over the arguments, each in its place, filled up with NULs.
fn overwrite(all: &[OsString], masked: &[Vec<u8>]) -> std::io::Result<()> {
    let mut text = String::new();
    File::open("/proc/self/stat")?.read_to_string(&mut text)?;
    // The program's name, in brackets, may hold anything; state follows it as field 3.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = |number: usize| -> Option<u64> {
        fields
            .split_ascii_whitespace()
            .nth(number - 3)?
            .parse()
            .ok()
    };
    let (Some(start), Some(end)) = (field(48), field(49)) else {
        return Err(std::io::ErrorKind::InvalidData.into());
    };
    let mut area = Vec::new();
    for (arg, masked) in all.iter().zip(masked) {
        let from = area.len();
        area.extend(masked);
        area.resize(from + arg.len() + 1, 0);
    }
    // Whatever else is there is not ours to change.
    if start == 0 || end.checked_sub(start) != u64::try_from(area.len()).ok() {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&area, start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_found_wherever_options_stand() {
        for (arg, shown, secret) in [
            (
                "user=me,password=hunter2,ro",
                "user=me,password=***,ro",
                "hunter2",
            ),
            ("-opassword=x", "-opassword=*", "x"),
            ("-rosecret=hunter2", "-rosecret=***", "hunter2"),
            ("--options=a,key=hunter2", "--options=a,key=***", "hunter2"),
            ("--optoins=key=hunter2", "--optoins=key=***", "hunter2"),
            (r#"pass="a,b",c"#, "pass=***,c", r#""a,b""#),
            ("-o=pass=hunter2", "-o=pass=***", "hunter2"),
        ] {
            let mut values = Vec::new();
            let masked = masked(OsStr::new(arg), false, &mut values);
            assert_eq!(String::from_utf8(masked).unwrap(), shown);
            assert_eq!(values, [secret.as_bytes()], "{arg}");
        }
        for plain in [
            "-t",
            "cifs",
            "//h/s",
            "h:/a=b",
            "ro,keyring=/f",
            "password=",
            "-o",
            "key",
            "--secret",
        ] {
            let mut values = Vec::new();
            assert_eq!(
                masked(OsStr::new(plain), false, &mut values),
                plain.as_bytes()
            );
            assert!(values.is_empty(), "{plain}");
        }
    }

    #[test]
    fn where_a_secret_is_may_be_seen() {
        for (arg, shown) in [
            ("password=file:/f", "password=file:/f"),
            ("password=stdin", "password=stdin"),
            ("password=hunter2", "password=***"),
        ] {
            let mut values = Vec::new();
            assert_eq!(masked(OsStr::new(arg), true, &mut values), shown.as_bytes());
        }
        let mut values = Vec::new();
        let arg = OsStr::new("--secret=password=env:P");
        assert_eq!(masked(arg, false, &mut values), arg.as_bytes());
        assert!(values.is_empty());
    }

    #[test]
    fn secrets_of_a_pod_are_found_in_what_kubelet_says() {
        let said = r#"{"a":"aHVudGVy","kubernetes.io/secret/key":"aHVudGVy","kubernetes.io/secret/no":""}"#;
        let mut values = Vec::new();
        let shown = masked(OsStr::new(said), false, &mut values);
        assert_eq!(shown.len(), said.len());
        assert!(!String::from_utf8(shown).unwrap().contains("aHVudGVy"));
        assert_eq!(values, [b"aHVudGVy"]);
        for other in [
            r#"{"kubernetes.io/secret/key":"\u0061Vu"}"#,
            r#"{"kubernetes.io/secret/key":"a"#,
        ] {
            let mut values = Vec::new();
            let shown = masked(OsStr::new(other), false, &mut values);
            assert_eq!(shown, b"***", "{other}");
            assert!(!values.is_empty());
        }
        let plain = r#"{"source":"h:/x"}"#;
        let mut values = Vec::new();
        assert_eq!(
            masked(OsStr::new(plain), false, &mut values),
            plain.as_bytes()
        );
        assert!(values.is_empty());
    }

    #[test]
    fn an_error_about_arguments_is_masked() {
        let arguments = Arguments {
            all: Vec::new(),
            values: vec![b"hunter2".to_vec()],
            seen: None,
        };
        assert_eq!(arguments.mask("bad: 'pass=hunter2'"), "bad: 'pass=***'");
        let all = [OsString::from("not ours")];
        assert!(overwrite(&all, &[Vec::new()]).is_err());
    }
}
