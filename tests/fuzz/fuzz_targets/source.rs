//! Sources and options of every kind: the options of a helper contain no secret.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spc::kinds;
use spc::kinds::model::{KindInput, MountMethod, TARGET};
use spc::options::Options;

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(3, '\n');
    let (fs_type, source) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let _ = kinds::infer(source);
    let Ok((options, secrets)) = Options::parse_with_secrets([lines.next().unwrap_or("")]) else {
        return;
    };
    // The frontends refuse such a source.
    if source.is_empty() || source.starts_with('-') {
        return;
    }
    let input = KindInput {
        fs_type,
        source,
        options: &options,
        secrets: &secrets,
        log_name: "mnt-data",
        kernel_lacks: &|_| None,
    };
    let Ok(resolved) = kinds::resolve(&input) else {
        return;
    };
    if let MountMethod::Helper(helper) = &resolved.method {
        assert!(!helper.programs.is_empty());
        assert!(helper.args.iter().any(|arg| arg == TARGET) || helper.args.is_empty());
        for key in secrets.keys() {
            assert_eq!(helper.options.value(key), None, "{key}");
        }
    }
});
