//! Canary with a deliberate bug, which only a fuzzer that sees the compared bytes finds. If the bug
//! is not found, the results of the other targets mean nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert!(
        !data.starts_with(b"found\xff\x01!"),
        "the bug of the canary"
    );
});
