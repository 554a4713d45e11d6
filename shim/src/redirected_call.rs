//! One call with everything that is found out about it on its way to the host.

use core::ffi::c_int;

use spc_shim_config::Config;

use crate::area::Work;
use crate::call::Call;
use crate::namespace;
use crate::outcome::{Decision, Route, Step};
use crate::policy::{self, Change, Reason};
use crate::sys::{self, Errno, Inode, Result};

/// One call on its way to the host, and what became of it.
pub struct RedirectedCall<'a> {
    pub config: &'a Config,
    pub call: &'a Call,
    pub work: &'a mut Work,
    pub pid: c_int,
    pub change: Change,
    /// The type of the new mount is one for the host.
    pub named: bool,
    /// The descriptor given instead of a path is a mount of the host.
    pub on_host: bool,
    /// The claims directory, opened in the caller's namespace, if the launcher claims the target; or -1.
    pub claims: c_int,
    /// The directory that it is claimed for.
    pub inode: Inode,
    pub route: Route,
    pub decision: Decision,
    pub reason: Reason,
    /// Kept up to date on the way, so that an error needs to bring nothing but its number.
    pub step: Step,
    pub result: Result<usize>,
    /// Id of the new mount on the host, or 0.
    pub mount: u64,
}

impl<'a> RedirectedCall<'a> {
    pub fn new(config: &'a Config, call: &'a Call, work: &'a mut Work) -> Self {
        Self {
            config,
            call,
            work,
            pid: sys::pid(),
            change: Change::Unmount,
            named: false,
            on_host: false,
            claims: -1,
            inode: Inode::default(),
            route: Route::Pass,
            decision: Decision::Passed,
            reason: Reason::None,
            step: Step::Settings,
            result: Ok(0),
            mount: 0,
        }
    }

    #[inline(never)]
    pub fn fail(&mut self, step: Step, error: Errno) {
        self.decision = Decision::Failed;
        self.step = step;
        self.result = Err(error);
    }

    /// Why the call goes to the host whatever its target.
    pub fn demand(&self) -> Option<Reason> {
        policy::demand(self.config, self.change, self.named)
    }

    /// From here on paths are the host's.
    #[inline(never)]
    pub fn enter_host(&mut self) -> Result<()> {
        namespace::enter_host(self.config, &mut self.work.path, &mut self.step)
    }
}
