//! Destination, progress and outcome of an intercepted call.

/// Destination of a call, as far as its target determines it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The container: the caller makes the real call.
    Local,
    /// The host.
    Host,
    /// An unmount: the container if the target is a mount point there, otherwise the host if a
    /// mount of a redirected type is at the same path.
    LocalThenHost,
    /// An unmount by a path below the host's root: the host if a mount of a redirected type is
    /// there, otherwise the container.
    HostThenLocal,
}

/// Outcome of a call. Reports name each with the word at its number in `DECISIONS`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Decision {
    /// Left to the caller, which makes the real call in the container.
    Local,
    /// Made on the host.
    Redirected,
    /// Meant for the host and not made at all.
    Failed,
}

/// Step that a call has reached. Reports name each with the word at its number in `STEPS`, where
/// word 0 stands for no step.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Read the settings.
    Settings = 1,
    /// Resolve the target.
    Target,
    /// Find the host's mount namespace.
    Namespace,
    /// Enter that namespace with setns(2).
    Setns,
    /// Pin the target on the host with an `O_PATH` descriptor.
    Pin,
    /// Start the child, or make the real call in it.
    Call,
    /// Find the new mount at the target.
    Proof,
}
