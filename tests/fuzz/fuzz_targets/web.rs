//! Requests to the metrics server, in pieces: each gets one response with a complete head.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use spc::daemon::http::response_to;
use spc::daemon::metrics::Metrics;

fuzz_target!(|request: &[u8]| {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    let metrics = METRICS.get_or_init(|| Metrics::new().expect("no metrics"));
    // Such a request starts a process that lists the mounts.
    if request.windows(8).any(|part| part == b"/metrics") {
        return;
    }
    let pieces = (1..=request.len()).filter(|end| *end == request.len() || end % 16 == 0);
    for end in pieces {
        if let Some(response) = response_to(&request[..end], metrics) {
            let head = response.windows(4).position(|part| part == b"\r\n\r\n");
            assert!(response.starts_with(b"HTTP/1.1 ") && head.is_some());
            break;
        }
    }
});
