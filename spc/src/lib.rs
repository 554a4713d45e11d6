//! The launcher: plans a mount, runs its helper, proves and records the result.
