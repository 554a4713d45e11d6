//! Checks of requests before any work: required fields in the order of the CSI specification,
//! sizes, and capabilities.

use std::collections::{BTreeMap, HashMap};

use tonic::Status;

use crate::frontends::csi::driver::Driver;
use crate::frontends::csi::job::{Call, Description};
use crate::frontends::csi::proto::csi::volume_capability::access_mode::Mode;
use crate::frontends::csi::proto::csi::volume_capability::{AccessType, MountVolume};
use crate::frontends::csi::proto::csi::{
    CapacityRange, CreateVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    VolumeCapability,
};

/// Largest size of a string in bytes, as the CSI specification says.
const MAX_STRING: usize = 128;

/// Largest size of a map or list in bytes, as the CSI specification says.
const MAX_MAP: usize = 4096;

/// Longest path in bytes (PATH_MAX).
const MAX_PATH: usize = 4096;

/// Key of the volume context with which kubelet marks an inline volume.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

type Result<T> = std::result::Result<T, Status>;

/// Checks the id of a volume.
///
/// # Errors
/// The id is missing or too long.
pub fn volume_id(id: &str) -> Result<String> {
    text("volume_id", id, MAX_STRING)
}

/// Checks a path.
///
/// # Errors
/// The path is missing or too long.
pub fn path(field: &str, path: &str) -> Result<String> {
    text(field, path, MAX_PATH)
}

/// Checks a required string of at most `longest` bytes.
fn text(field: &str, given: &str, longest: usize) -> Result<String> {
    if given.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is missing")));
    }
    if given.len() > longest || given.contains('\0') {
        return Err(Status::invalid_argument(format!(
            "{field} is longer than {longest} bytes, or holds a NUL byte"
        )));
    }
    Ok(given.to_owned())
}

/// Returns the call for a request to stage a volume.
///
/// # Errors
/// A field is missing or invalid, or the driver lacks the capability.
pub fn stage(driver: Driver, request: NodeStageVolumeRequest) -> Result<(String, Call)> {
    let id = volume_id(&request.volume_id)?;
    let target = path("staging_target_path", &request.staging_target_path)?;
    let capability = capability(driver, request.volume_capability)?;
    let context = request.volume_context;
    let volume = description(capability, context, request.secrets, false)?;
    Ok((id, Call::Stage { target, volume }))
}

/// Returns the call for a request to publish a volume.
///
/// # Errors
/// A field is missing or invalid, or the driver lacks the capability.
pub fn publish(driver: Driver, request: NodePublishVolumeRequest) -> Result<(String, Call)> {
    let id = volume_id(&request.volume_id)?;
    let target = path("target_path", &request.target_path)?;
    let capability = capability(driver, request.volume_capability)?;
    let context = request.volume_context;
    // kubelet replaces a key of this name that the author of the pod wrote.
    if context.get(EPHEMERAL).is_some_and(|value| value == "true") {
        if driver == Driver::Disk {
            return Err(Status::failed_precondition(
                "disks are not for inline volumes: name them in a PersistentVolume",
            ));
        }
        let volume = description(capability, context, request.secrets, request.readonly)?;
        return Ok((id, Call::Inline { target, volume }));
    }
    if request.staging_target_path.is_empty() {
        return Err(Status::failed_precondition(
            "staging_target_path is missing: a volume is staged before it is published",
        ));
    }
    let staged_at = path("staging_target_path", &request.staging_target_path)?;
    description(capability.clone(), context, request.secrets, false)?;
    let call = Call::Publish {
        staged_at,
        target,
        access: capability.mode.as_str_name().to_owned(),
        read_only: request.readonly || capability.is_read_only(),
    };
    Ok((id, call))
}

/// Checks a request to create a volume. Returns the wanted size in bytes; 0 for any.
///
/// # Errors
/// A field is missing or invalid, or asks for a feature that the controller does not have.
pub fn create(request: &CreateVolumeRequest) -> Result<u64> {
    text("name", &request.name, MAX_STRING)?;
    check_capabilities(&request.volume_capabilities)
        .map_err(|status| Status::invalid_argument(status.message()))?;
    check_size("parameters", &request.parameters)?;
    if request.volume_content_source.is_some() {
        return Err(Status::invalid_argument(
            "volumes begin empty: neither a snapshot nor another volume is copied (dataSource)",
        ));
    }
    if !request.secrets.is_empty() {
        return Err(Status::invalid_argument(
            "a secret of the StorageClass is not used (provisioner-secret-name): secrets belong to \
             the backend",
        ));
    }
    if !request.mutable_parameters.is_empty() {
        return Err(Status::invalid_argument(
            "parameters of a VolumeAttributesClass are not supported",
        ));
    }
    size(request.capacity_range)
}

/// Returns the wanted size of a volume in bytes; 0 for any.
///
/// # Errors
/// A number is negative, or the required size is larger than the limit.
pub fn size(range: Option<CapacityRange>) -> Result<u64> {
    let range = range.unwrap_or_default();
    let number = |bytes: i64| {
        u64::try_from(bytes)
            .map_err(|_| Status::invalid_argument("a number of capacity_range is negative"))
    };
    let (required, limit) = (number(range.required_bytes)?, number(range.limit_bytes)?);
    match (required, limit) {
        (required, limit) if limit > 0 && required > limit => Err(Status::out_of_range(
            "required_bytes is larger than limit_bytes",
        )),
        (0, limit) => Ok(limit),
        (required, _) => Ok(required),
    }
}

/// Checks that a directory on a share has all capabilities.
///
/// # Errors
/// A capability is missing or invalid (INVALID_ARGUMENT), or not supported (FAILED_PRECONDITION).
pub fn check_capabilities(all: &[VolumeCapability]) -> Result<()> {
    if all.is_empty() {
        return Err(Status::invalid_argument("volume_capabilities is missing"));
    }
    let check = |one: &VolumeCapability| capability(Driver::Share, Some(one.clone())).map(drop);
    all.iter().try_for_each(check)
}

/// Checks that no capability names another type than that of the backend.
///
/// # Errors
/// A capability names another type.
pub fn check_types(all: &[VolumeCapability], backend_type: &str) -> Result<()> {
    for one in all {
        if let Some(AccessType::Mount(mount)) = &one.access_type
            && !mount.fs_type.is_empty()
            && mount.fs_type != backend_type
        {
            return Err(Status::invalid_argument(format!(
                "the backend has the type {backend_type}, and the StorageClass another one \
                 (csi.storage.k8s.io/fstype)"
            )));
        }
    }
    Ok(())
}

/// Checked capability.
#[derive(Clone)]
struct Capability {
    mount: MountVolume,
    mode: Mode,
}

impl Capability {
    fn is_read_only(&self) -> bool {
        matches!(
            self.mode,
            Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly
        )
    }
}

/// Checks a capability of a volume of this driver.
fn capability(driver: Driver, given: Option<VolumeCapability>) -> Result<Capability> {
    let missing = |what: &str| Status::invalid_argument(format!("{what} is missing"));
    let given = given.ok_or_else(|| missing("volume_capability"))?;
    let mount = match given.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => {
            return Err(Status::failed_precondition(
                "volumes are directories: device files (volumeMode: Block) are not supported",
            ));
        }
        None => return Err(missing("access_type of volume_capability")),
    };
    let mode = match given.access_mode.map(|mode| mode.mode()) {
        None | Some(Mode::Unknown) => return Err(missing("access_mode of volume_capability")),
        Some(Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)
            if driver == Driver::Disk =>
        {
            return Err(Status::failed_precondition(
                "a disk cannot be written from several nodes: use ReadWriteOnce or ReadOnlyMany",
            ));
        }
        Some(mode) => mode,
    };
    for text in [&mount.fs_type, &mount.volume_mount_group] {
        if text.len() > MAX_STRING {
            return Err(Status::invalid_argument(format!(
                "a string of volume_capability is longer than {MAX_STRING} bytes"
            )));
        }
    }
    if mount.mount_flags.iter().map(String::len).sum::<usize>() > MAX_MAP {
        return Err(Status::invalid_argument(format!(
            "mount_flags are longer than {MAX_MAP} bytes"
        )));
    }
    if driver != Driver::Mapped && !mount.volume_mount_group.is_empty() {
        return Err(Status::failed_precondition(
            "this driver sets no group of files (volume_mount_group)",
        ));
    }
    Ok(Capability { mount, mode })
}

/// Checks the size of a map.
fn check_size(name: &str, map: &HashMap<String, String>) -> Result<()> {
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_MAP {
        return Err(Status::invalid_argument(format!(
            "{name} is longer than {MAX_MAP} bytes"
        )));
    }
    Ok(())
}

/// Returns the description of a volume, without the keys that Kubernetes adds.
fn description(
    capability: Capability,
    context: HashMap<String, String>,
    secrets: HashMap<String, String>,
    read_only: bool,
) -> Result<Description> {
    check_size("volume_context", &context)?;
    check_size("secrets", &secrets)?;
    let one_line = |(key, value): (String, String)| {
        let line = value.strip_suffix('\n').unwrap_or(&value);
        if line.contains(['\n', '\0']) {
            let key = key.escape_default();
            return Err(Status::invalid_argument(format!(
                "bad secret {key}: it holds a line break or a NUL byte"
            )));
        }
        let line = line.to_owned();
        Ok((key, line))
    };
    let read_only = read_only || capability.is_read_only();
    let Capability { mount, mode } = capability;
    let optional = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Description {
        fs_type: optional(mount.fs_type),
        attributes: context
            .into_iter()
            .filter(|(key, _)| !is_reserved(key))
            .collect(),
        mount_options: mount.mount_flags,
        secrets: secrets
            .into_iter()
            .map(one_line)
            .collect::<Result<BTreeMap<_, _>>>()?,
        access: mode.as_str_name().to_owned(),
        read_only,
        group: optional(mount.volume_mount_group),
    })
}

/// Returns whether a key of the volume context has a domain that is reserved for Kubernetes.
fn is_reserved(key: &str) -> bool {
    key.split_once('/').is_some_and(|(domain, _)| {
        ["k8s.io", "kubernetes.io"].iter().any(|system| {
            domain
                .strip_suffix(system)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_kubernetes_are_known_by_their_domain() {
        for (key, system) in [
            ("csi.storage.k8s.io/pod.name", true),
            ("storage.kubernetes.io/csiProvisionerIdentity", true),
            ("k8s.io/x", true),
            ("evilk8s.io/x", false),
            ("k8s.io.example.org/x", false),
            ("source", false),
            ("k8s.io", false),
        ] {
            assert_eq!(is_reserved(key), system, "{key}");
        }
    }
}
