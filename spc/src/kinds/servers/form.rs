//! How kinds write servers and a path into a source.

/// Servers and a path.
type Parts = (Vec<String>, String);

/// How servers and a path make a source.
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

/// `A,B:/VOLUME` or `A:VOLUME`. mount.glusterfs(8) knows no brackets.
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

/// `USER@A,B:PATH`, where a path without a slash is below the user's directory.
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

/// The name or address in a server: without a user before it, and brackets around it.
pub fn host_of(server: &str) -> &str {
    let host = server.rsplit_once('@').map_or(server, |(_, host)| host);
    bare(host)
}

/// A server with another host in the place of its own.
pub fn at_host(server: &str, host: &str) -> String {
    match server.rsplit_once('@') {
        Some((user, _)) => format!("{user}@{host}"),
        None => host.to_owned(),
    }
}

fn split((servers, path): (&str, &str)) -> Option<Parts> {
    let servers: Vec<String> = servers.split(',').map(str::to_owned).collect();
    // What has a slash is a path, with a colon in it.
    let are = servers.iter().any(|server| !server.is_empty())
        && servers.iter().all(|server| !server.contains('/'));
    are.then(|| (servers, path.to_owned()))
}

fn split_colon(source: &str) -> Option<Parts> {
    let at = source.find(":/")?;
    split((&source[..at], &source[at + 1..]))
}

/// A user before the first server is the user at the others, unless they have their own.
fn split_login(source: &str) -> Option<Parts> {
    let mut inside = false;
    let end = source.find(|c| {
        inside = c == '[' || (inside && c != ']');
        c == ':' && !inside
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

/// An address with colons of its own is written in brackets.
fn bracketed(server: &str) -> String {
    let host = host_of(server);
    match host.matches(':').count() {
        0 | 1 => server.to_owned(),
        _ if server.contains(']') => server.to_owned(),
        _ => at_host(server, &format!("[{host}]")),
    }
}

/// Without the brackets around an address and nothing else.
pub(super) fn bare(server: &str) -> &str {
    let inside = server.strip_prefix('[').and_then(|s| s.strip_suffix(']'));
    inside.unwrap_or(server)
}
