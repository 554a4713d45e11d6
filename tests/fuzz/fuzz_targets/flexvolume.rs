//! Volumes as kubelet describes them: no input gets around the rules for pods.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spc::frontends::kubelet::flexvolume::volume;
use spc::volume::allowlist::Allowed;

const TARGET: &str = "/var/lib/kubelet/pods/1-2/volumes/x~spc/data";

fuzz_target!(|json: &str| {
    let _ = volume::timeout(json);
    let name = volume::name(json);
    if let Ok(name) = &name {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        assert!(name.chars().all(plain) && name.len() < 100, "{name}");
    }
    let Ok(volume) = volume::read(json, &Allowed::default()) else {
        return;
    };
    assert!(name.is_ok(), "a volume without a name");
    assert!(!["bind", "overlay"].contains(&&*volume.fs_type));
    for (key, value) in volume.options.iter() {
        assert!(!spc::kinds::FILE_OPTIONS.contains(&key), "{key}");
        assert!(value.is_none_or(|value| !value.contains([',', '\n', '\0'])));
    }
    let Ok(request) = volume.request(TARGET) else {
        return;
    };
    assert_eq!(request.target.to_str(), Some(TARGET));
    assert!(!request.source.starts_with('-') && !request.over_system_directory);
});
