//! Description of a block device as data: its paths, the commands that attach and detach it, and
//! its directories in sysfs. Terms as in multipath: a path is a route of I/O to the disk.

use crate::host::hostname::HostName;
use crate::host::modules::Module;
use crate::host::service::Service;
use crate::kinds::model::{Diagnostics, SecretParam};

/// Block device to attach.
#[derive(Clone, Debug)]
pub struct Device {
    /// Name of the device; two requests with the same name share one device.
    pub name: String,
    /// Name of the session with a target, or of the map of an image, which several devices may
    /// share. The session ends with its last device.
    pub session_key: String,
    /// Kernel modules that the device needs. The first one makes the directories in sysfs.
    pub modules: &'static [Module],
    /// Daemon that the commands need.
    pub service: Option<&'static Service>,
    /// File with the name of this host at the servers, such as the iSCSI initiator name.
    pub host_name: Option<HostName>,
    /// Paths to the device, such as portals. One active path is enough.
    pub paths: Vec<DevicePath>,
    /// Directories and files of the device in sysfs.
    pub sysfs: SysfsLayout,
    /// Ends one active path: logs out of a session, or unmaps an image.
    pub detach_path: Command,
    /// Commands to run when no path is active any more.
    pub cleanup: Vec<Command>,
    /// Options for the attachment. They are not passed to the file system.
    pub options: &'static [&'static str],
    /// Names of the secrets that the attachment takes.
    pub secrets: &'static [&'static str],
    /// Rules to read the output of the commands and to find a hint in it.
    pub diagnostics: Diagnostics,
}

/// Path to a device. For iSCSI: a portal.
#[derive(Clone, Debug)]
pub struct DevicePath {
    /// Name in messages, such as `192.0.2.1:3260`.
    pub name: String,
    /// Contents of the files [`SysfsLayout::key_attributes`] while this path is active.
    pub key: Vec<String>,
    /// Server to probe before the steps; none if the program itself finds a server.
    pub endpoint: Option<Endpoint>,
    /// Steps that make the path active.
    pub steps: Vec<Step>,
}

/// Address of a server, and the request that makes it answer.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Bytes to send after connecting.
    pub probe_request: &'static [u8],
}

/// Step of attaching a path.
#[derive(Clone, Debug)]
pub enum Step {
    /// Runs a program.
    Run(Command),
    /// Writes settings into a file that a program has made. Secrets go there, not into arguments.
    Set {
        /// Paths at which the file may be; `*` stands for any name.
        files: Vec<String>,
        /// Lines `KEY = VALUE`.
        settings: Vec<(&'static str, Value)>,
    },
}

/// Value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Fixed text.
    Text(String),
    /// Secret with this key.
    Secret(&'static str),
    /// Name of this host at the servers.
    HostName,
}

/// Command line of a program, and the conditions under which it has succeeded.
#[derive(Clone, Debug)]
pub struct Command {
    /// Name of the program.
    pub program: &'static str,
    /// Arguments; in [`Device::detach_path`], [`PATH_NUMBER`] stands for the number of the path.
    pub args: Vec<String>,
    /// Exit codes that count as success, besides 0.
    pub accepted_codes: &'static [i32],
    /// Check of the output after a success.
    pub output_check: Option<OutputCheck>,
    /// Secret that the program takes, if the request has it.
    pub secret: Option<SecretParam>,
}

/// Check that a program's output contains a text.
#[derive(Clone, Debug)]
pub struct OutputCheck {
    /// Text that the output must contain.
    pub wanted: String,
    /// Fails with the reason if the output does not contain the text.
    pub verify: fn(output: &str, wanted: &str) -> std::result::Result<(), String>,
}

/// Placeholder for the number of a path among a command's arguments.
pub const PATH_NUMBER: &str = "\0path";

/// Directories and files of a device in sysfs. `*` in a name stands for any text.
#[derive(Clone, Debug)]
pub struct SysfsLayout {
    /// Directories of active paths of any device, below `/sys`. For iSCSI: sessions.
    pub path_dirs: &'static str,
    /// Files in a path's directory, with the contents that mark a path of this device.
    pub attributes: Vec<(&'static str, String)>,
    /// Files in a path's directory that distinguish the paths, in the order of
    /// [`DevicePath::key`].
    pub key_attributes: &'static [&'static str],
    /// File, relative to a path's directory, and the text to write so that the kernel scans for
    /// the disk.
    pub scan: Option<(&'static str, String)>,
    /// Directory, relative to a path's directory, that has the disk's name.
    pub disk: String,
    /// Directories of all disks of a path. Other programs may use disks that spc does not.
    pub all_disks: &'static str,
    /// File in a disk's directory that removes the disk when 1 is written to it; none if the disk
    /// disappears with its path.
    pub delete: Option<&'static str>,
    /// Source of the volume's identity.
    pub identity: Identity,
    /// Limit after which a lost path fails its I/O.
    pub recovery_timeout: Option<RecoveryTimeout>,
}

/// Limit after which a lost path fails its I/O, in seconds. New paths start with the short one, so
/// that a path that is lost during the scan does not delay the others.
#[derive(Clone, Copy, Debug)]
pub struct RecoveryTimeout {
    /// File in the path's directory.
    pub file: &'static str,
    /// Value for new paths, and where multipath can use another path.
    pub short: &'static str,
    /// Value for a single path.
    pub normal: &'static str,
}

/// Source of the identity of the volume behind a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Vital product data of a SCSI disk, page 83h, both as the disk returns it now and as the
    /// kernel has it from the scan.
    Scsi,
    /// Files in the path's directory.
    Files(&'static [&'static str]),
}
