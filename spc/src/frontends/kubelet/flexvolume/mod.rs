//! FlexVolume driver.
//!
//! kubelet calls `PLUGINS/VENDOR~DRIVER/DRIVER CALL ARGUMENTS`, and reads one JSON object from
//! stdout and stderr together. `spc flexvolume CALL ARGUMENTS` does the same.
//!
//! Calls that need nothing from the host are answered at once, since a controller makes them in an
//! empty container. For other calls, this process starts a worker process and waits for it
//! (`supervisor`). So kubelet gets a reply however the worker ends, and no process that the worker
//! leaves running holds a descriptor that kubelet waits for.

pub mod call;
mod expand;
mod reply;
mod supervisor;
pub mod volume;
mod worker;

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser};

use crate::error::Error;
use crate::frontends::kubelet::flexvolume::call::Call;
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::frontends::secret_args::Arguments;
use crate::log;

pub use crate::frontends::kubelet::flexvolume::volume::SECRET;

/// Arguments of `spc flexvolume`.
#[derive(Debug, Args)]
pub struct Flexvolume {
    /// Run as the worker of a call, with the JSON on standard input
    #[arg(long, hide = true)]
    work: bool,
    /// Name of the call (init, mount, unmount, …) and its arguments
    #[arg(
        value_name = "CALL",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

/// Arguments of the driver called by its own name.
#[derive(Debug, Parser)]
#[command(name = "flexvolume", disable_help_flag = true)]
struct Driver {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Runs the driver called by its own name.
pub fn main() -> ExitCode {
    let arguments = Arguments::take();
    log::init_request();
    // clap must not print its own messages, since kubelet expects JSON.
    let words = match Driver::command().try_get_matches_from(&arguments.all) {
        Ok(matches) => matches
            .get_many::<String>("words")
            .map(|words| words.cloned().collect())
            .unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let driver = arguments.all.first().map(Path::new);
    let driver = driver.and_then(Path::file_name).and_then(OsStr::to_str);
    ExitCode::from(answer(driver.unwrap_or_default(), &words))
}

/// Replies with an error that precedes the parsing of the call. The exit code is 0, as for any call.
pub fn refuse(error: Error) -> ExitCode {
    print(&error.into());
    ExitCode::SUCCESS
}

impl Flexvolume {
    /// Whether this process is the worker of a call.
    pub fn is_worker(&self) -> bool {
        self.work
    }

    /// Replies to the call, and returns the exit code.
    ///
    /// The exit code is always 0. With another one, kubelet would log the arguments, including the
    /// secrets of the pod.
    pub fn run(&self) -> u8 {
        if self.work {
            print(&worker::run(&self.words));
            return 0;
        }
        answer("spc", &self.words)
    }
}

/// Replies to a call of the driver that has this name, also if spc panics, and returns exit code 0.
fn answer(driver: &str, words: &[String]) -> u8 {
    std::panic::set_hook(Box::new(|panic| {
        print(&Reply::failure(format!("spc: {panic}")));
        std::process::exit(0);
    }));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let reply = match Call::parse(driver, &words) {
        Ok(Call::Answered(reply)) => reply,
        Ok(call) => supervisor::run(&call).unwrap_or_else(|error| log::with_request(error).into()),
        Err(error) => error.into(),
    };
    print(&reply);
    0
}

/// Prints a reply on one line. A failure to write cannot be reported to anybody.
fn print(reply: &Reply) {
    let _ = std::io::stdout().write_all(format!("{}\n", reply.text()).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontends::kubelet::flexvolume::reply::Status;

    fn status(words: &[&str]) -> Status {
        match Call::parse("spc", words) {
            Ok(Call::Answered(reply)) => reply.status,
            Ok(call) => panic!("{call:?}"),
            Err(_) => Status::Failure,
        }
    }

    #[test]
    fn calls_of_kubelet_are_parsed() {
        let json = r#"{"kubernetes.io/fsType":"nfs","source":"h:/x"}"#;
        assert_eq!(status(&["init"]), Status::Success);
        for (driver, fs_group) in [("spc", true), ("no-fsgroup", false)] {
            let reply = Call::Answered(Reply::capabilities(fs_group));
            assert_eq!(Call::parse(driver, &["init"]).unwrap(), reply, "{driver}");
        }
        assert_eq!(status(&["getvolumename", json]), Status::Success);
        assert_eq!(
            Call::parse("spc", &["mount", "/d", json]).unwrap(),
            Call::Mount { dir: "/d", json }
        );
        assert_eq!(
            Call::parse("spc", &["unmount", "/d"]).unwrap(),
            Call::Unmount { dir: "/d" }
        );
        assert_eq!(
            Call::parse("spc", &["expandfs", json, "", "/d", "7", "5"]).unwrap(),
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
            // A call of a later kubelet.
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
