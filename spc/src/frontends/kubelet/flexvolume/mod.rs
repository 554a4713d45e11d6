//! A FlexVolume driver: kubelet calls it as `PLUGINS/VENDOR~DRIVER/DRIVER CALL ARGUMENTS`, and reads one JSON object from
//! stdout and stderr together; `spc flexvolume CALL ARGUMENTS` is the same.
//!
//! What needs nothing of the host is answered at once: a controller asks that as well, in a container with nothing in it.
//! For the rest a second process does the work and this one waits for it ([`supervise`]): however the worker ends, there
//! is an answer, and nothing that it leaves running has a descriptor that kubelet waits for.

pub mod allowlist;
pub mod call;
mod expand;
pub mod policy;
mod reply;
mod supervisor;
pub mod volume;
mod worker;

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser};

use crate::error::Error;
use crate::frontends::kubelet::flexvolume::call::{Call, understand};
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::frontends::secret_args::Arguments;
use crate::log;

pub use crate::frontends::kubelet::flexvolume::volume::SECRET;

/// The call of kubelet.
#[derive(Debug, Args)]
pub struct Flexvolume {
    /// Do the work of a call, whose JSON comes on stdin
    #[arg(long, hide = true)]
    work: bool,
    /// init, mount, unmount and so on, and what kubelet says with it
    #[arg(
        value_name = "CALL",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

/// Called as a driver.
#[derive(Debug, Parser)]
#[command(name = "flexvolume", disable_help_flag = true)]
struct Driver {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Called as a driver.
pub fn main() -> ExitCode {
    let arguments = Arguments::take();
    log::take_id();
    // It is not clap that may say something here.
    let words = match Driver::command().try_get_matches_from(&arguments.all) {
        Ok(matches) => matches
            .get_many::<String>("words")
            .map(|words| words.cloned().collect())
            .unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    ExitCode::from(answer(&words))
}

/// Answers a call that cannot be looked at; the exit code is as for any other.
pub fn refuse(error: Error) -> ExitCode {
    say(&error.into());
    ExitCode::SUCCESS
}

impl Flexvolume {
    /// Answers the call. The exit code is 0 whatever the answer is: with any other, kubelet would log the arguments, and
    /// the pod's secrets with them.
    pub fn run(&self) -> u8 {
        if self.work {
            say(&worker::run(&self.words));
            return 0;
        }
        answer(&self.words)
    }
}

fn answer(words: &[String]) -> u8 {
    std::panic::set_hook(Box::new(|panic| {
        say(&Reply::failure(format!("spc: {panic}")));
        std::process::exit(0);
    }));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let reply = match understand(&words) {
        Ok(Call::Answered(reply)) => reply,
        Ok(call) => supervisor::run(&call).unwrap_or_else(|error| log::with_id(error).into()),
        Err(error) => error.into(),
    };
    say(&reply);
    0
}

/// One object on stdout. Nobody is left to be told if that fails.
fn say(reply: &Reply) {
    let _ = std::io::stdout().write_all(format!("{}\n", reply.text()).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontends::kubelet::flexvolume::reply::Status;

    fn status(words: &[&str]) -> Status {
        match understand(words) {
            Ok(Call::Answered(reply)) => reply.status,
            Ok(call) => panic!("{call:?}"),
            Err(_) => Status::Failure,
        }
    }

    #[test]
    fn every_call_of_kubelet_is_understood() {
        let json = r#"{"kubernetes.io/fsType":"nfs","source":"h:/x"}"#;
        assert_eq!(status(&["init"]), Status::Success);
        assert_eq!(status(&["getvolumename", json]), Status::Success);
        assert_eq!(
            understand(&["mount", "/d", json]).unwrap(),
            Call::Mount { dir: "/d", json }
        );
        assert_eq!(
            understand(&["unmount", "/d"]).unwrap(),
            Call::Unmount { dir: "/d" }
        );
        assert_eq!(
            understand(&["expandfs", json, "", "/d", "7", "5"]).unwrap(),
            Call::ExpandFs { dir: "/d", size: 7 }
        );
        for call in [
            &["attach", json, "node"][..],
            &["waitforattach", "/dev/x", json],
            &["isattached", json, "node"],
            &["detach", "volume", "node"],
            &["mountdevice", "/d", "", json],
            &["unmountdevice", "/d"],
            &["expandvolume", json, "/d", "7", "5"],
            // Of a kubelet that is newer than this.
            &["refresh", json],
        ] {
            assert_eq!(status(call), Status::NotSupported, "{call:?}");
        }
        for call in [
            &[][..],
            &["mount"],
            &["mount", "/d"],
            &["unmount"],
            &["getvolumename", "x"],
        ] {
            assert_eq!(status(call), Status::Failure, "{call:?}");
        }
    }
}
