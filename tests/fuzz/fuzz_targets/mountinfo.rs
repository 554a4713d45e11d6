//! Lines of mountinfo: no line makes the parser panic, and a line as the kernel writes it is parsed
//! without loss.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spc::host::mountinfo::{Entry, unescape};

/// Escapes a name as the kernel does.
fn escaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in name {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend(format!("\\{byte:03o}").bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

fuzz_target!(|data: &[u8]| {
    for line in data.split(|byte| *byte == b'\n') {
        if let Some(entry) = Entry::parse(line) {
            entry.is_fuse();
        }
    }
    assert_eq!(unescape(&escaped(data)), data);
    if data.is_empty() {
        return;
    }
    let name = escaped(data);
    let line = [
        b"36 35 98:0 / /",
        &name[..],
        b" rw - fuse.x ",
        &name[..],
        b" rw",
    ]
    .concat();
    let entry = Entry::parse(&line).expect("a line of the kernel");
    assert_eq!(entry.source, String::from_utf8_lossy(data));
    assert_eq!(entry.target.as_os_str().as_encoded_bytes()[1..], *data);
});
