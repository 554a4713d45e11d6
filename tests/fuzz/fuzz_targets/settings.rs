//! Settings of the shim and of the launcher, from a file and from the environment, and the node's
//! list of allowed FlexVolumes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spc::volume::allowlist::Allowed;
use spc_shim_config::Config;

fuzz_target!(|data: &[u8]| {
    if let Ok(mut config) = Config::parse_file(data) {
        for text in [config.redirects()]
            .into_iter()
            .flatten()
            .chain(config.namespaces())
            .chain(config.host_roots())
        {
            assert!(text.len() <= data.len().max(64), "more than there was");
        }
        let (name, value) = data.split_at(data.len() / 2);
        let _ = config.add_env(name, value);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(allowed) = Allowed::parse(text)
    {
        assert!(allowed.options("", "").is_none());
    }
});
