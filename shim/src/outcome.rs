//! Where a call goes, how far it comes, and what becomes of it.

/// What became of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Decision {
    /// The caller has to make the real call itself.
    Passed,
    /// Done on the host.
    Carried,
    /// Meant for the host, and not done at all.
    Failed,
}

/// How far a call came.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Reading the settings. The report's word for no step comes before.
    Settings = 1,
    /// Finding out what the target is.
    Target,
    /// Finding the host's namespace.
    Namespace,
    /// Entering it.
    Setns,
    /// Holding the target there.
    Pin,
    /// The real call, or the child that makes it.
    Call,
    /// Seeing the new mount at the target.
    Proof,
}

/// Where a call goes, as far as its target tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Pass,
    Carry,
    /// An unmount of what may be mounted in the caller's view, and if not, on the host.
    Look,
    /// An unmount by a path that means the host's.
    LookFirst,
}
