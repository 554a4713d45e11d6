//! Mount options: a comma-separated list, as in mount(8).

use std::fmt;

use crate::error::{Error, Result};
use crate::options::generic::{self, Attributes, Effect};
use crate::options::secrets::{Secrets, is_secret};

/// List of options in the order given. Contains no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<String>);

impl Options {
    /// Parses comma-separated lists without secrets. A comma inside double quotes or after a
    /// backslash belongs to the value; the backslash stays.
    ///
    /// # Errors
    /// Fails if a quote is not closed, if an option is a secret, holds a NUL byte or ends with a
    /// backslash.
    pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let (options, secrets) = Self::parse_with_secrets(lists)?;
        match secrets.keys().next() {
            Some(key) => Err(secret(key)),
            None => Ok(options),
        }
    }

    /// Parses comma-separated lists, and returns the options and the secrets separately.
    ///
    /// # Errors
    /// Fails if a quote is not closed, if an option holds a NUL byte or ends with a backslash, or if
    /// a secret is given twice.
    pub fn parse_with_secrets<'a>(
        lists: impl IntoIterator<Item = &'a str>,
    ) -> Result<(Self, Secrets)> {
        let mut all = Self::default();
        let mut secrets = Secrets::default();
        let mut add = |option: String| match split(&option) {
            (key, Some(value)) if is_secret(key) => {
                secrets.add_value(key, unquoted(value).to_owned())
            }
            _ => all.push(option),
        };
        for list in lists {
            let mut quoted = false;
            let mut option = String::new();
            let mut escaped = false;
            for c in list.chars() {
                let is_escaped = std::mem::replace(&mut escaped, c == '\\');
                match c {
                    '"' => {
                        quoted = !quoted;
                        option.push(c);
                    }
                    ',' if !quoted && !is_escaped => add(std::mem::take(&mut option))?,
                    _ => option.push(c),
                }
            }
            if quoted {
                return Err(Error::usage("bad options: a quote is not closed")
                    .hint("give a secret with quotes or commas by --secret"));
            }
            add(option)?;
        }
        Ok((all, secrets))
    }

    /// Adds one option; an empty one is dropped.
    ///
    /// # Errors
    /// Fails if the option is a secret, which would be visible in argv, if it holds a NUL byte or ends
    /// with a backslash.
    pub fn push(&mut self, option: String) -> Result<()> {
        let (key, value) = split(&option);
        if value.is_some() && is_secret(key) {
            return Err(secret(key));
        }
        if option.contains('\0') {
            return Err(Error::usage(format!(
                "bad option {key}: it holds a NUL byte"
            )));
        }
        // In a list it would take the comma after it for its own.
        if option.ends_with('\\') {
            return Err(Error::usage(format!(
                "bad option {key}: it ends with a backslash"
            )));
        }
        if !option.is_empty() {
            self.0.push(option);
        }
        Ok(())
    }

    /// Appends the options of another list.
    pub fn extend(&mut self, more: &Self) {
        self.0.extend_from_slice(&more.0);
    }

    /// Returns whether the list has exactly this option; a key alone does not match `key=value`.
    pub fn has(&self, option: &str) -> bool {
        self.0.iter().any(|o| o == option)
    }

    /// Returns whether the list has this key, with or without a value.
    pub fn has_key(&self, key: &str) -> bool {
        self.iter().any(|(given, _)| given == key)
    }

    /// Returns the value of the last `key=value`, without quotes around it.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).next_back()
    }

    /// Returns the values of all `key=value`, without quotes around them.
    pub fn values(&self, key: &str) -> impl DoubleEndedIterator<Item = &str> {
        let values = self.iter().filter(move |(given, _)| *given == key);
        values.filter_map(|(_, value)| value)
    }

    /// Sets the value of every `key=…` in the list.
    pub fn replace(&mut self, key: &str, value: &str) {
        for option in &mut self.0 {
            if matches!(split(option), (k, Some(_)) if k == key) {
                *option = format!("{key}={value}");
            }
        }
    }

    /// Returns keys and values, without quotes around a value.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, Option<&str>)> {
        self.0.iter().map(|option| {
            let (key, value) = split(option);
            (key, value.map(unquoted))
        })
    }

    /// Checks the options of spc (`x-spc.…`) and of mount(8) (`X-mount.…`).
    ///
    /// # Errors
    /// Fails for an unknown option, and for one with a value that it does not take or without one
    /// that it needs.
    pub fn check_own(&self) -> Result<()> {
        self.iter()
            .try_for_each(|(key, value)| generic::check(key, value))
    }

    /// Returns the attributes of the mount that the options ask for.
    pub fn attributes(&self) -> Attributes {
        let mut attributes = Attributes::default();
        for (key, value) in self.iter() {
            attributes.apply(key, value);
        }
        attributes
    }

    /// Returns whether the file system is read-only: the last one of `ro` and `rw` counts.
    pub fn read_only(&self) -> bool {
        let layers = self.iter().rev().filter(|(_, value)| *value != Some("vfs"));
        let mut effects = layers.filter_map(|(key, value)| generic::effect(key, value));
        effects.find_map(|effect| match effect {
            Effect::ReadOnly(read_only) => Some(read_only),
            _ => None,
        }) == Some(true)
    }

    /// Returns the options for a helper or the kernel: without those that only mount(8), systemd or
    /// spc read, with `ro` first if the mount is read-only.
    #[must_use]
    pub fn for_file_system(&self) -> Self {
        let mut kept: Vec<String> = Vec::new();
        let mut read_only = false;
        for option in &self.0 {
            let (key, value) = split(option);
            match generic::effect(key, value.map(unquoted)) {
                Some(Effect::ReadOnly(ro)) => read_only = ro,
                Some(Effect::Attributes { .. }) => kept.push(key.into()),
                Some(Effect::TakesBack(earlier)) => kept.retain(|option| option != earlier),
                Some(Effect::Implies(implied)) => {
                    kept.extend(implied.iter().map(|&option| option.to_owned()));
                }
                Some(Effect::Comment) => {}
                Some(Effect::Superblock) | None => kept.push(option.clone()),
            }
        }
        if read_only {
            kept.insert(0, "ro".into());
        }
        Self(kept)
    }

    /// Returns the options that the kernel takes for the file system itself, without those for the
    /// mount. A value has no quotes around it.
    pub fn for_superblock(&self) -> Vec<(&str, Option<&str>)> {
        let mine = |&(key, value): &(&str, Option<&str>)| {
            // mount(8) keeps `user=NAME` to itself.
            key != "user" && matches!(generic::effect(key, value), None | Some(Effect::Superblock))
        };
        self.iter().filter(mine).collect()
    }

    /// Returns the options whose keys are not in `keys`.
    #[must_use]
    pub fn without(&self, keys: &[&str]) -> Self {
        let kept = self.0.iter().filter(|o| !keys.contains(&split(o).0));
        Self(kept.cloned().collect())
    }

    /// Returns the options that make a mount what it is in sorted order, to compare two requests.
    #[must_use]
    pub fn sorted(&self) -> Self {
        let mut sorted = self.for_file_system().0;
        let distinguishing = self.0.iter().filter(|o| generic::distinguishes(split(o).0));
        sorted.extend(distinguishing.cloned());
        sorted.sort();
        Self(sorted)
    }

    /// Returns whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

fn secret(key: &str) -> Error {
    Error::usage(format!(
        "bad option {key}=: a secret in an option is visible to everyone who lists processes"
    ))
    .hint(format!("give it by --secret {key}=file:PATH"))
}

fn unquoted(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|v| v.strip_suffix('"'))
        .unwrap_or(value)
}

fn split(option: &str) -> (&str, Option<&str>) {
    match option.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (option, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Options {
        Options::parse([list]).unwrap()
    }

    #[test]
    fn a_comma_in_quotes_does_not_split_an_option() {
        let options = parse(r#"ro,context="a:b,c",size=1m"#);
        assert_eq!(options.value("context"), Some("a:b,c"));
        assert_eq!(options.to_string(), r#"ro,context="a:b,c",size=1m"#);
        assert!(Options::parse([r#"a="b"#]).is_err());
        let escaped = parse(r"lowerdir=/a/co\,mma:/b,ro");
        assert_eq!(escaped.value("lowerdir"), Some(r"/a/co\,mma:/b"));
        assert!(escaped.read_only());
        assert!(Options::parse([r"a=b\", "ro"]).is_err());
    }

    #[test]
    fn options_are_replaced_and_left_out_by_their_keys() {
        let mut options = parse("user=a,ro,user=b,users=c,user");
        options.extend(&parse("size=1m"));
        options.replace("user", "z");
        let shown = "user=z,ro,user=z,users=c,user,size=1m";
        assert_eq!(options.to_string(), shown);
        let rest = options.without(&["user", "ro"]);
        assert_eq!(rest.to_string(), "users=c,size=1m");
        assert!(!options.is_empty() && parse(",").is_empty());
    }

    #[test]
    fn options_for_fstab_are_not_passed_to_the_file_system() {
        let options = parse("defaults,_netdev,x-mount.mkdir=0700,noatime,,rw,log-level=INFO");
        assert_eq!(
            options.for_file_system().to_string(),
            "noatime,log-level=INFO"
        );
        assert_eq!(options.value("x-mount.mkdir"), Some("0700"));
    }

    #[test]
    fn a_helper_gets_what_an_option_implies_and_no_comment() {
        for (list, helper) in [
            ("user", "noexec,nosuid,nodev"),
            ("user,exec", "noexec,nosuid,nodev,exec"),
            ("user=alice,users", "user=alice,noexec,nosuid,nodev"),
            ("nousers,noowner,silent,loud,iversion,nofail", ""),
            ("nosymfollow,symfollow,strictatime,nostrictatime", ""),
            ("ro=vfs,nosuid=recursive,sync", "ro,nosuid,sync"),
            ("comment=a,helper=b,auto=c", "auto=c"),
        ] {
            assert_eq!(parse(list).for_file_system().to_string(), helper, "{list}");
        }
        let kernel = parse("user=alice,noatime,ro,size=\"1m\",sync");
        assert_eq!(
            kernel.for_superblock(),
            [("size", Some("1m")), ("sync", None)]
        );
    }

    #[test]
    fn the_last_of_ro_and_rw_counts() {
        assert!(!parse("ro=vfs").read_only() && parse("rw,ro=fs").read_only());
        assert!(parse("rw,ro").read_only());
        assert!(!parse("ro,rw").read_only());
        assert_eq!(parse("ro,a,rw").for_file_system().to_string(), "a");
        assert_eq!(parse("a,ro").for_file_system().to_string(), "ro,a");
    }

    #[test]
    fn requests_with_options_in_another_order_are_equal() {
        assert_eq!(parse("b,a,rw").sorted(), parse("a,b").sorted());
        assert_ne!(parse("a").sorted(), parse("a,ro").sorted());
        assert_ne!(parse("a").sorted(), parse("a,X-mount.subdir=b").sorted());
        assert_eq!(parse("a").sorted(), parse("a,X-mount.mkdir").sorted());
    }

    #[test]
    fn secrets_are_removed_from_options_and_errors() {
        let list = r#"user=me,password="hunter,2",ro,node.session.auth.password=x,key"#;
        let (options, secrets) = Options::parse_with_secrets([list]).unwrap();
        assert_eq!(options.to_string(), "user=me,ro,key");
        assert_eq!(secrets.get("password").unwrap().expose(), "hunter,2");
        assert!(secrets.has("node.session.auth.password"));
        assert!(Options::parse_with_secrets(["pass=a,pass=b"]).is_err());

        let mut options = Options::default();
        let kept = options.push("secret=hunter2".into()).unwrap_err();
        let given = Options::parse(["user=me,password=hunter2"]).unwrap_err();
        for error in [kept.to_string(), given.to_string()] {
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
