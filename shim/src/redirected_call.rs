//! State of an intercepted call: its arguments, its destination, its progress and its result.

use core::ffi::c_int;

use spc_shim_config::Config;

use crate::call::Call;
use crate::descriptors::Source;
use crate::namespace;
use crate::outcome::{Decision, Destination, Step};
use crate::policy::{Change, Reason};
use crate::scratch::Buffers;
use crate::symbol::Symbol;
use crate::sys::{Errno, Result};

/// State of one call, shared by the caller and the child that redirects the call.
pub struct RedirectedCall<'a> {
    /// Settings of this process.
    pub config: &'a Config,
    /// Symbol that the caller called.
    pub symbol: Symbol,
    /// The call with the caller's arguments, which those of the redirected call replace.
    pub intercepted: Call,
    /// Paths and other texts of this call.
    pub buffers: Buffers<'a>,
    /// Effect of the call on a mount table.
    pub change: Change,
    /// Mount that the call attaches, copies or changes.
    pub source: Source,
    /// Reason for which the call goes to the host whatever its target, if there is one.
    pub demanded: Option<Reason>,
    /// Directory of redirect files, opened in the caller's namespace, if the target is a
    /// placeholder with a redirect; otherwise -1.
    pub redirects_dir: c_int,
    /// Destination, as far as the target determines it.
    pub destination: Destination,
    /// Outcome.
    pub decision: Decision,
    /// Reason for the destination.
    pub reason: Reason,
    /// Step reached so far. It is kept here, so that an error is an errno alone.
    pub step: Step,
    /// Result of the call.
    pub result: Result<usize>,
    /// Id of the new mount on the host, or 0.
    pub mount_id: u64,
}

impl<'a> RedirectedCall<'a> {
    /// Creates the state of a call about which nothing is known yet.
    pub fn new(config: &'a Config, intercepted: Call, buffers: Buffers<'a>) -> Self {
        Self {
            config,
            symbol: intercepted.symbol,
            intercepted,
            buffers,
            change: Change::Handle,
            source: Source::NONE,
            demanded: None,
            redirects_dir: -1,
            destination: Destination::Local,
            decision: Decision::Local,
            reason: Reason::None,
            step: Step::Settings,
            result: Ok(0),
            mount_id: 0,
        }
    }

    /// Records that the call failed at this step.
    #[inline(never)]
    pub fn fail(&mut self, step: Step, error: Errno) {
        self.decision = Decision::Failed;
        self.step = step;
        self.result = Err(error);
    }

    /// Whether the target is a directory that only its owner may use, as a placeholder is.
    #[inline(never)]
    pub fn has_private_target(&self) -> bool {
        let private = libc::S_IFDIR | libc::S_IRWXU;
        let stat = self.intercepted.target().statx(0);
        stat.is_ok_and(|stat| stat.mode == private)
    }

    /// Enters the host's mount namespace. Paths resolve on the host from here on.
    #[inline(never)]
    pub fn enter_host(&mut self) -> Result<()> {
        namespace::enter_host(self.config, self.buffers.path, &mut self.step)
    }
}
