//! Requests to the metrics server, in pieces: each gets one response with a complete head.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use spc::daemon::metrics::Metrics;
use spc::daemon::http::response_to;

fuzz_target!(|question: &[u8]| {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    let metrics = METRICS.get_or_init(|| Metrics::new().expect("no metrics"));
    // The mounts would be looked for, by a process.
    if question.windows(8).any(|part| part == b"/metrics") {
        return;
    }
    let pieces = (1..=question.len()).filter(|end| *end == question.len() || end % 16 == 0);
    for end in pieces {
        if let Some(answer) = response_to(&question[..end], metrics) {
            let head = answer.windows(4).position(|part| part == b"\r\n\r\n");
            assert!(answer.starts_with(b"HTTP/1.1 ") && head.is_some());
            break;
        }
    }
});
