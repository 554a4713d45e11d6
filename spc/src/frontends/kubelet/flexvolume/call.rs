//! Parses the arguments of a FlexVolume call.

use crate::error::{Error, Result};
use crate::frontends::kubelet::flexvolume::reply::Reply;
use crate::frontends::kubelet::flexvolume::volume;

/// A call, understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call<'a> {
    /// It is answered already.
    Answered(Reply),
    /// `mount DIR JSON`.
    Mount { dir: &'a str, json: &'a str },
    /// `unmount DIR`.
    Unmount { dir: &'a str },
    /// `expandfs JSON DEVICE DIR NEW OLD`.
    ExpandFs { dir: &'a str, size: u64 },
}

/// What a call asks for; the objects of some come in another place with older kubelets.
pub(crate) fn understand<'a>(words: &[&'a str]) -> Result<Call<'a>> {
    let not = |what: &str| Ok(Call::Answered(Reply::not_supported(what)));
    match words {
        ["init"] => Ok(Call::Answered(Reply::capabilities())),
        ["getvolumename", json] => Ok(Call::Answered(Reply::named(volume::name(json)?))),
        ["mount", dir, json] => Ok(Call::Mount { dir, json }),
        ["unmount", dir] => Ok(Call::Unmount { dir }),
        ["attach", ..] | ["waitforattach", ..] | ["isattached", ..] | ["detach", ..] => {
            not("volumes are not attached to nodes: they are on servers")
        }
        ["mountdevice", ..] | ["unmountdevice", ..] => {
            not("volumes are mounted for each pod, and not for a node")
        }
        // Kubernetes goes on then, and asks the node to grow the file system, which is where the truth is found out.
        ["expandvolume", ..] => not("volumes are made larger on their servers"),
        ["expandfs", _, _, dir, new, _] => match new.parse() {
            Ok(size) => Ok(Call::ExpandFs { dir, size }),
            Err(_) => Err(Error::usage(format!("bad size: {}", new.escape_default()))),
        },
        [call @ ("init" | "getvolumename" | "mount" | "unmount" | "expandfs"), ..] => {
            Err(Error::usage(format!("bad arguments of {call}"))
                .hint("these are kubelet's: init; getvolumename JSON; mount DIR JSON; unmount DIR; expandfs JSON DEVICE DIR NEW OLD"))
        }
        [] => Err(Error::usage("no call is given")
            .hint("kubelet calls a driver as: init, mount DIR JSON, unmount DIR, …")),
        [call, ..] => Ok(Call::Answered(Reply::not_supported(format!(
            "no such call: {}",
            call.escape_default()
        )))),
    }
}
