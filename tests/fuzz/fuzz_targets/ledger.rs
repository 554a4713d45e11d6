//! Records: a record that was parsed is the same after it was written and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spc::state::Record;
use spc::state::attachments::Attachment;

fuzz_target!(|data: &[u8]| {
    if let Ok(record) = serde_json::from_slice::<Record>(data) {
        record.age();
        record.is_of_this_boot();
        let text = serde_json::to_vec(&record).expect("it cannot be written");
        let again: Record = serde_json::from_slice(&text).expect("it cannot be read again");
        assert_eq!(serde_json::to_vec(&again).expect("again"), text);
    }
    if let Ok(attachment) = serde_json::from_slice::<Attachment>(data) {
        let text = serde_json::to_vec(&attachment).expect("it cannot be written");
        assert_eq!(
            serde_json::from_slice::<Attachment>(&text).expect("it cannot be read again"),
            attachment
        );
    }
});
