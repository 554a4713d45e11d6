//! Parses the arguments of a FlexVolume call.

use crate::error::{Error, Result};
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::frontends::kubelet::flexvolume::volume;
use crate::install::kubelet::NO_FSGROUP;

/// Parsed call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call<'a> {
    /// Call whose reply needs no worker.
    Answered(Reply),
    /// `mount DIR JSON`.
    Mount { dir: &'a str, json: &'a str },
    /// `unmount DIR`.
    Unmount { dir: &'a str },
    /// `expandfs JSON DEVICE DIR NEW OLD`.
    ExpandFs { dir: &'a str, size: u64 },
}

impl<'a> Call<'a> {
    /// Parses a call of the driver that has this name. The position of the JSON in some unsupported
    /// calls differs between versions of kubelet, so their arguments are not read.
    pub(crate) fn parse(driver: &str, words: &[&'a str]) -> Result<Self> {
        let not_supported = |why: &str| Ok(Call::Answered(Reply::not_supported(why)));
        match words {
            ["init"] => Ok(Call::Answered(Reply::capabilities(driver != NO_FSGROUP))),
            ["getvolumename", json] => Ok(Call::Answered(Reply::named(volume::name(json)?))),
            ["mount", dir, json] => Ok(Call::Mount { dir, json }),
            ["unmount", dir] => Ok(Call::Unmount { dir }),
            ["attach", ..] | ["waitforattach", ..] | ["isattached", ..] | ["detach", ..] => {
                not_supported("volumes are on servers, and are not attached to nodes")
            }
            ["mountdevice", ..] | ["unmountdevice", ..] => {
                not_supported("volumes are mounted for each pod, not for a node")
            }
            // After this reply, Kubernetes calls `expandfs` on the node, which checks the size.
            ["expandvolume", ..] => not_supported("volumes are enlarged on their servers"),
            ["expandfs", _, _, dir, new, _] => match new.parse() {
                Ok(size) => Ok(Call::ExpandFs { dir, size }),
                Err(_) => Err(Error::usage(format!("bad size: {}", new.escape_default()))),
            },
            [call @ ("init" | "getvolumename" | "mount" | "unmount" | "expandfs"), ..] => {
                Err(Error::usage(format!("bad arguments of {call}"))
                    .hint("the calls are: init; getvolumename JSON; mount DIR JSON; unmount DIR; expandfs JSON DEVICE DIR NEW OLD"))
            }
            [] => Err(Error::usage("no call is given")
                .hint("the calls of kubelet are: init, mount DIR JSON, unmount DIR, …")),
            [call, ..] => Ok(Call::Answered(Reply::not_supported(format!(
                "no such call: {}",
                call.escape_default()
            )))),
        }
    }
}
