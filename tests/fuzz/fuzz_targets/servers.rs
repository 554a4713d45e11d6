//! Lists of servers: a source built from a list names servers of that list only.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spc::kinds::{self, names, servers};
use spc::options::Options;

fuzz_target!(|text: &str| {
    let _ = servers::parse_file(text);
    let _ = servers::first_server(text);
    let (list, path) = text.split_once('\n').unwrap_or((text, "path"));
    for fs_type in names() {
        if let Some(server_set) = kinds::server_set(fs_type, path, &Options::default()) {
            server_set.source(&server_set.servers);
            server_set.port(&Options::default());
        }
    }
    let Ok(list) = servers::parse_list(list) else {
        return;
    };
    for server in &list {
        assert!(!server.starts_with('-'), "an option: {server}");
        let host = servers::host_of(server);
        assert!(server.contains(host) && servers::with_host(server, host).contains(host));
    }
    // A path without the leading slash could be a source with servers of its own.
    let path = format!("/{}", path.trim_start_matches(['/', '\\']));
    for fs_type in names() {
        let Ok(source) = kinds::with_servers(fs_type, &path, &list) else {
            continue;
        };
        let Some(server_set) = kinds::server_set(fs_type, &source, &Options::default()) else {
            continue;
        };
        for server in &server_set.servers {
            let host = servers::host_of(server);
            let named = |named: &String| servers::host_of(named) == host;
            assert!(list.iter().any(named), "{fs_type} {source}: {server}");
        }
        // The first server's user becomes that of all servers; a second pass changes nothing.
        let source = server_set.source(&server_set.servers);
        let again = kinds::server_set(fs_type, &source, &Options::default());
        let again = again.map(|again| again.source(&again.servers));
        assert_eq!(again.as_ref(), Some(&source), "{fs_type}");
    }
});
