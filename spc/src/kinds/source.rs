//! How well the form of a source fits each type. Pure text.
//!
//! `host:/path` is NFS and `//host/share` is SMB, as in mount(8). Besides these, a type is inferred
//! only from forms that no other type has.

/// How well the form of a source fits a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// The type has no such sources.
    No,
    /// The type has such sources; another type is as likely.
    Possible,
    /// The type is inferred; `-t` is needed for the other types that have such sources.
    Preferred,
    /// No other type has such sources.
    Certain,
}

/// Fits no source, for types that are never inferred.
pub fn none(_: &str) -> Fit {
    Fit::No
}

/// `HOST:/PATH`.
pub fn nfs(source: &str) -> Fit {
    match host(source) {
        Some((_, rest)) if is_path(rest) => Fit::Preferred,
        _ => Fit::No,
    }
}

/// `HOST[,HOST…]:/VOLUME[/DIR]`.
pub fn glusterfs(source: &str) -> Fit {
    let mut rest = source;
    while let Some((_, after)) = host(rest) {
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if is_path(after) && after.len() > 2 => return Fit::Possible,
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
    // Monitors with the versions of their protocols.
    if (source.starts_with("[v2:") || source.starts_with("[v1:")) && source.contains("]:/") {
        return Fit::Certain;
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
            None if is_path(after) => return Fit::Possible,
            None => break,
        }
    }
    Fit::No
}

/// `//HOST/SHARE[/DIR]` or `\\HOST\SHARE[\DIR]`.
pub fn cifs(source: &str) -> Fit {
    let inside = source.strip_prefix("//");
    let inside = inside.or_else(|| source.strip_prefix(r"\\"));
    match inside.and_then(|inside| inside.split_once(['/', '\\'])) {
        Some((host, share)) if !host.is_empty() && !share.is_empty() => Fit::Certain,
        _ => Fit::No,
    }
}

/// `USER@HOST:[DIR]`. Without a user the source is one of NFS.
pub fn sshfs(source: &str) -> Fit {
    let before = source
        .split_once(['[', ':', '/'])
        .map_or(source, |(b, _)| b);
    // The last `@` counts: the name of a domain user contains one.
    let Some(at) = before.rfind('@').filter(|at| *at > 0) else {
        return Fit::No;
    };
    match host(&source[at + 1..]) {
        Some((_, rest)) if rest.starts_with(':') && !rest.starts_with("://") => Fit::Certain,
        _ => Fit::No,
    }
}

/// Splits off the host name or address at the beginning. An IPv6 address is in brackets.
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

/// `:/PATH`, but not `://`, which belongs to a URL.
fn is_path(text: &str) -> bool {
    text.starts_with(":/") && !text.starts_with("://")
}
