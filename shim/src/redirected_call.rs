//! State of an intercepted call: its arguments, its destination, its progress and its result.

use core::ffi::c_int;

use spc_shim_config::Config;

use crate::call::Call;
use crate::namespace;
use crate::outcome::{Decision, Destination, Step};
use crate::policy::{self, Change, Reason};
use crate::scratch::Buffers;
use crate::sys::{self, Errno, Inode, Result};

/// State of one call, shared by the caller and the child that redirects the call.
pub struct RedirectedCall<'a> {
    /// Settings of this process.
    pub config: &'a Config,
    /// The call with the caller's arguments.
    pub intercepted: &'a Call,
    /// Paths and other texts of this call.
    pub buffers: &'a mut Buffers,
    /// Process ID of the caller.
    pub pid: c_int,
    /// Effect of the call on a mount table.
    pub change: Change,
    /// Whether the new mount has a type that the settings redirect.
    pub redirected_type: bool,
    /// Whether the call names its mount by a descriptor of a mount on the host.
    pub fd_on_host: bool,
    /// Directory of redirect files, opened in the caller's namespace, if the target is a
    /// placeholder with a redirect; otherwise -1.
    pub redirects_dir: c_int,
    /// Host directory that the redirect names.
    pub inode: Inode,
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
    pub fn new(config: &'a Config, intercepted: &'a Call, buffers: &'a mut Buffers) -> Self {
        Self {
            config,
            intercepted,
            buffers,
            pid: sys::pid(),
            change: Change::Unmount,
            redirected_type: false,
            fd_on_host: false,
            redirects_dir: -1,
            inode: Inode::default(),
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

    /// Returns the reason for which the call goes to the host whatever its target, if there is one.
    pub fn reason_for_any_target(&self) -> Option<Reason> {
        policy::reason_for_any_target(self.config, self.change, self.redirected_type)
    }

    /// Enters the host's mount namespace. Paths resolve on the host from here on.
    #[inline(never)]
    pub fn enter_host(&mut self) -> Result<()> {
        namespace::enter_host(self.config, &mut self.buffers.path, &mut self.step)
    }
}
