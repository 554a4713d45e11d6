//! Arguments of the frontends: no secret stays in the command line, and accepted arguments give a
//! valid request. The first byte selects the frontend.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::{Args, CommandFactory, FromArgMatches, Parser};
use libfuzzer_sys::fuzz_target;
use spc::frontends::cli::Cli;
use spc::frontends::kubelet::mounter::Mounter;
use spc::frontends::mount_helper::{MountHelper, UmountHelper};
use spc::frontends::secret_args::Arguments;
use spc::options::secrets::is_secret;

fuzz_target!(|data: &[u8]| {
    let Some((selector, words)) = data.split_first() else {
        return;
    };
    let words = words.split(|byte| *byte == b'\n');
    let words = [&b"spc"[..]].into_iter().chain(words);
    let all: Vec<OsString> = words
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    let (arguments, shown) = Arguments::from_args(all.clone());
    assert_eq!(shown.len(), all.len());
    for (shown, word) in shown.iter().zip(&all) {
        assert!(shown.len() <= word.len(), "it would not fit in its place");
        if arguments.hold_secrets() {
            continue;
        }
        assert_eq!(shown, word.as_encoded_bytes());
    }
    let request = match selector % 4 {
        0 => MountHelper::try_parse_from(&all)
            .ok()
            // `N` may set the mount namespace, a file of this machine.
            .filter(|_| {
                !all.iter()
                    .any(|word| word.as_encoded_bytes().contains(&b'N'))
            })
            .and_then(|helper| helper.request("spc").ok()),
        1 => {
            let command = Mounter::augment_args(clap::Command::new("mounter"));
            let matches = command.try_get_matches_from(&all).ok();
            let mounter = matches.and_then(|matches| Mounter::from_arg_matches(&matches).ok());
            mounter
                .and_then(|mounter| mounter.request().ok())
                .map(|(request, _)| request)
        }
        2 => {
            let _ = UmountHelper::try_parse_from(&all);
            None
        }
        _ => {
            let _ = Cli::command().try_get_matches_from(&all);
            None
        }
    };
    let Some(request) = request else { return };
    assert!(!request.fs_type.is_empty() && !request.source.is_empty());
    for (key, value) in request.options.iter() {
        assert!(value.is_none() || !is_secret(key), "{key}");
    }
    for key in request.secrets.keys() {
        assert!(arguments.hold_secrets(), "{key} can be seen");
    }
});
