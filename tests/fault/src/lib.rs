//! Injects faults into libc calls, below the shim.
