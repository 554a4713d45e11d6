//! Forms in which kinds write servers and a path into a source.

/// Servers and a path.
type Parts = (Vec<String>, String);

/// Form of a source: takes it apart into servers and a path, and writes it from them.
#[derive(Clone, Copy)]
pub(in crate::kinds) struct Form {
    pub(in crate::kinds) split: fn(&str) -> Option<Parts>,
    pub(in crate::kinds) join: fn(&[String], &str) -> String,
}

/// `A,B:/PATH`.
pub(in crate::kinds) const COLON: Form = Form {
    split: split_colon,
    join: |servers, path| format!("{}:{}", list(servers, bracketed), absolute(path)),
};

/// `A,B:/VOLUME` or `A:VOLUME`. mount.glusterfs(8) does not accept brackets around an address.
pub(in crate::kinds) const VOLUME: Form = Form {
    split: |source| split_colon(source).or_else(|| split(source.rsplit_once(':')?)),
    join: |servers, path| {
        let servers = list(servers, |server| bare(server).to_owned());
        format!("{servers}:{}", absolute(path))
    },
};

/// `//A,B/PATH`.
pub(in crate::kinds) const SLASHES: Form = Form {
    split: |source| {
        let plain = source.replace('\\', "/");
        split(plain.strip_prefix("//")?.split_once('/')?)
    },
    join: |servers, path| format!("//{}/{}", servers.join(","), path.trim_start_matches('/')),
};

/// `USER@A,B:PATH`, where a path without a slash is relative to the user's home directory.
pub(in crate::kinds) const LOGIN: Form = Form {
    split: split_login,
    join: |servers, path| format!("{}:{path}", list(servers, bracketed)),
};

/// `iscsi:A,B/IQN/LUN`.
pub(in crate::kinds) const PORTALS: Form = Form {
    split: |source| split(source.strip_prefix("iscsi:")?.split_once('/')?),
    join: |servers, path| {
        let path = path.trim_start_matches('/');
        format!("iscsi:{}/{path}", servers.join(","))
    },
};

/// Name or address in a server, without a user before it and brackets around it. A port stays.
pub fn host_of(server: &str) -> &str {
    let host = server.rsplit_once('@').map_or(server, |(_, host)| host);
    bare(host)
}

/// Replaces the host of a server and keeps its user. Brackets and port are dropped.
pub fn with_host(server: &str, host: &str) -> String {
    match server.rsplit_once('@') {
        Some((user, _)) => format!("{user}@{host}"),
        None => host.to_owned(),
    }
}

fn split((servers, path): (&str, &str)) -> Option<Parts> {
    let servers: Vec<String> = servers.split(',').map(str::to_owned).collect();
    // Text with a slash before the separator is a path that contains the separator.
    let valid = servers.iter().any(|server| !server.is_empty())
        && servers.iter().all(|server| !server.contains('/'));
    valid.then(|| (servers, path.to_owned()))
}

fn split_colon(source: &str) -> Option<Parts> {
    let at = source.find(":/")?;
    split((&source[..at], &source[at + 1..]))
}

/// Splits a source of [`LOGIN`]. Servers without a user get the user of the first server.
fn split_login(source: &str) -> Option<Parts> {
    let mut in_brackets = false;
    let end = source.find(|c| {
        in_brackets = c == '[' || (in_brackets && c != ']');
        c == ':' && !in_brackets
    })?;
    let (mut servers, path) = split((&source[..end], &source[end + 1..]))?;
    if let Some((user, _)) = servers[0].rsplit_once('@') {
        let user = user.to_owned();
        for server in servers.iter_mut().filter(|server| !server.contains('@')) {
            *server = format!("{user}@{server}");
        }
    }
    Some((servers, path))
}

fn list(servers: &[String], write: fn(&str) -> String) -> String {
    let servers: Vec<_> = servers.iter().map(|server| write(server)).collect();
    servers.join(",")
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

/// Puts brackets around an IPv6 address.
fn bracketed(server: &str) -> String {
    let host = host_of(server);
    match host.matches(':').count() {
        0 | 1 => server.to_owned(),
        _ if server.contains(']') => server.to_owned(),
        _ => with_host(server, &format!("[{host}]")),
    }
}

/// Removes brackets, unless there is a port after them.
pub(super) fn bare(server: &str) -> &str {
    let inner = server.strip_prefix('[').and_then(|s| s.strip_suffix(']'));
    inner.unwrap_or(server)
}
