//! Which type a source is of, by the way it is written. Pure text; what mount(8) infers is inferred
//! here as well (`host:/path` is NFS, `//host/share` SMB), and beyond that only what has one meaning.

/// How well a source fits a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It cannot be one of its sources.
    No,
    /// It may be one, as well as one of another type.
    Could,
    /// It may be another type's, but whoever writes it so without a type means this one.
    Usual,
    /// It is written as no other type's is.
    Certain,
}

/// No source tells.
pub fn none(_: &str) -> Fit {
    Fit::No
}

/// `HOST:/PATH`.
pub fn nfs(source: &str) -> Fit {
    match host(source) {
        Some((_, rest)) if is_path(rest) => Fit::Usual,
        _ => Fit::No,
    }
}

/// `HOST[,HOST…]:/VOLUME[/DIR]`.
pub fn glusterfs(source: &str) -> Fit {
    let mut rest = source;
    while let Some((_, after)) = host(rest) {
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if is_path(after) && after.len() > 2 => return Fit::Could,
            None => break,
        }
    }
    Fit::No
}

/// `MONITOR[:PORT][,…]:/PATH`, or `NAME@[FSID].FILESYSTEM=/PATH`.
pub fn ceph(source: &str) -> Fit {
    if let Some((name, rest)) = source.split_once('@')
        && let Some((cluster, path)) = rest.split_once('=')
        && let Some((fsid, file_system)) = cluster.split_once('.')
    {
        let fits = is_name(name) && is_name(file_system) && path.starts_with('/');
        let fits = fits && (fsid.is_empty() || is_name(fsid));
        return if fits { Fit::Certain } else { Fit::No };
    }
    let (mut rest, mut ports) = (source, false);
    while let Some((_, mut after)) = host(rest) {
        let digits = after.strip_prefix(':').unwrap_or_default();
        let digits = digits.len()
            - digits
                .trim_start_matches(|c: char| c.is_ascii_digit())
                .len();
        if digits > 0 {
            ports = true;
            after = &after[digits + 1..];
        }
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if is_path(after) && ports => return Fit::Certain,
            None if is_path(after) => return Fit::Could,
            None => break,
        }
    }
    Fit::No
}

/// `//HOST/SHARE[/DIR]`, also with backslashes.
pub fn cifs(source: &str) -> Fit {
    let inside = source.strip_prefix("//");
    let inside = inside.or_else(|| source.strip_prefix(r"\\"));
    match inside.and_then(|inside| inside.split_once(['/', '\\'])) {
        Some((host, share)) if !host.is_empty() && !share.is_empty() => Fit::Certain,
        _ => Fit::No,
    }
}

/// `USER@HOST:[DIR]`; without a user it is NFS's.
pub fn sshfs(source: &str) -> Fit {
    let before = source
        .split_once(['[', ':', '/'])
        .map_or(source, |(b, _)| b);
    // A user of a domain has an `@` in its name.
    let Some(at) = before.rfind('@').filter(|at| *at > 0) else {
        return Fit::No;
    };
    match host(&source[at + 1..]) {
        Some((_, rest)) if rest.starts_with(':') && !rest.starts_with("://") => Fit::Certain,
        _ => Fit::No,
    }
}

/// A host's name or address at the beginning, and what follows it. An IPv6 address is in brackets.
fn host(source: &str) -> Option<(&str, &str)> {
    if let Some(inside) = source.strip_prefix('[') {
        let (address, rest) = inside.split_once(']')?;
        let (numbers, _zone) = address.split_once('%').unwrap_or((address, ""));
        let number = |c: char| c.is_ascii_hexdigit() || ":.".contains(c);
        let is_address = numbers.contains(':') && numbers.chars().all(number);
        return is_address.then_some((address, rest));
    }
    let end = source.find([':', ',']).unwrap_or(source.len());
    let (name, rest) = source.split_at(end);
    is_name(name).then_some((name, rest))
}

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.is_empty() && text.chars().all(plain) && !text.starts_with(['-', '.'])
}

/// `:/PATH`; `://` belongs to a URL.
fn is_path(text: &str) -> bool {
    text.starts_with(":/") && !text.starts_with("://")
}
