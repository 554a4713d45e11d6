//! The program's own arguments, with secrets overwritten.
//!
//! Every process in the same PID namespace can read the arguments of another one. spc therefore
//! overwrites secrets among its arguments before it does anything else.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use crate::frontends::kubelet::flexvolume::volume::SECRET;
use crate::options::secrets::{MASK, is_secret, mask_value};

/// Arguments whose secrets `/proc/PID/cmdline` no longer shows.
pub struct Arguments {
    /// Arguments as given, with secrets.
    pub all: Vec<OsString>,
    /// Values in the arguments that are secrets.
    values: Vec<Vec<u8>>,
    /// Error for which `/proc/PID/cmdline` still shows the secrets.
    pub visible: Option<std::io::Error>,
}

impl Arguments {
    /// Reads the program's arguments, and overwrites secrets in the memory that
    /// `/proc/PID/cmdline` shows.
    pub fn take() -> Self {
        // The standard library copies them from that memory at each call.
        let (mut arguments, masked) = Self::from_args(std::env::args_os().collect());
        if arguments.hold_secrets() {
            arguments.visible = overwrite(&arguments.all, &masked).err();
        }
        arguments
    }

    /// Finds the secrets among `all`. The second value has the arguments with secrets masked.
    pub fn from_args(all: Vec<OsString>) -> (Self, Vec<Vec<u8>>) {
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
            visible: None,
        };
        (arguments, shown)
    }

    /// Whether an argument holds a secret.
    pub fn hold_secrets(&self) -> bool {
        !self.values.is_empty()
    }

    /// Returns a text, such as an error about the arguments, with secrets masked.
    pub fn mask(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, value| {
            mask_value(&text, &String::from_utf8_lossy(value))
        })
    }
}

/// Returns an argument with `***` for each secret in it, and adds the secrets to `values`.
///
/// An argument may be a list of options, an option with such a list, or kubelet's JSON object.
/// `named` marks the value of `--secret`, which should only name the source of a secret.
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

/// Returns kubelet's JSON object of a volume with stars for the values of the pod's secret.
///
/// The length does not change, unless a secret is written with escapes: then all of it is masked.
fn masked_object(bytes: &[u8], values: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(bytes) else {
        // A damaged object may hold a part of a secret.
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
            // JSON escapes hide the value from the search.
            return MASK.as_bytes().to_vec();
        }
    }
    masked
}

/// Splits a comma-separated list. A comma inside double quotes or after a backslash does not
/// separate.
fn items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    list.split(move |byte| {
        quoted ^= *byte == b'"';
        let is_escaped = std::mem::replace(&mut escaped, *byte == b'\\');
        *byte == b',' && !quoted && !is_escaped
    })
}

/// Overwrites the program's arguments in memory with the masked ones, padded with NULs.
///
/// Fields 48 and 49 of `/proc/self/stat` (`arg_start`, `arg_end`, proc_pid_stat(5)) give the memory.
fn overwrite(all: &[OsString], masked: &[Vec<u8>]) -> std::io::Result<()> {
    let mut text = String::new();
    File::open("/proc/self/stat")?.read_to_string(&mut text)?;
    // Field 2, the program's name in brackets, may hold any character. Field 3 follows it.
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
    // Another length means that the memory holds something else.
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
    fn secrets_in_options_are_masked() {
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
            (r"pass=a\,b,c", "pass=***,c", r"a\,b"),
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
    fn source_of_a_named_secret_is_not_masked() {
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
    fn secrets_in_the_object_of_kubelet_are_masked() {
        let object = r#"{"a":"aHVudGVy","kubernetes.io/secret/key":"aHVudGVy","kubernetes.io/secret/no":""}"#;
        let mut values = Vec::new();
        let shown = masked(OsStr::new(object), false, &mut values);
        assert_eq!(shown.len(), object.len());
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
    fn errors_about_arguments_are_masked() {
        let arguments = Arguments {
            all: Vec::new(),
            values: vec![b"hunter2".to_vec()],
            visible: None,
        };
        assert_eq!(arguments.mask("bad: 'pass=hunter2'"), "bad: 'pass=***'");
        let all = [OsString::from("not ours")];
        assert!(overwrite(&all, &[Vec::new()]).is_err());
    }
}
