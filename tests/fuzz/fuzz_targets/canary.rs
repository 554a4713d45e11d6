//! Has a bug that only who sees what is compared comes upon: if it is not found, the others say nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert!(
        !data.starts_with(b"found\xff\x01!"),
        "the bug of the canary"
    );
});
