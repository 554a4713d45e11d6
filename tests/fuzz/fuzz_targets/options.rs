//! Option lists: no secret stays among the options, and a list that was printed is parsed as the
//! same list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spc::options::Options;
use spc::options::secrets::is_secret;

fuzz_target!(|list: &str| {
    let Ok((options, secrets)) = Options::parse_with_secrets([list]) else {
        return;
    };
    for (key, value) in options.iter() {
        assert!(
            value.is_none() || !is_secret(key),
            "a secret is left: {key}"
        );
    }
    let shown = options.to_string();
    let again = Options::parse([shown.as_str()]).expect("what was shown cannot be read");
    assert_eq!(again, options);
    assert_eq!(again.sorted(), options.sorted());
    assert_eq!(again.read_only(), options.for_file_system().read_only());
    for key in secrets.keys() {
        assert!(secrets.get(key).is_some());
    }
});
