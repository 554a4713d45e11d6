//! Context of a command: the host, the ledger, and where the command runs.

use std::sync::Arc;

use crate::error::Result;
use crate::host::redirect::{self, Redirect};
use crate::host::runs_in::{RunsIn, current};
use crate::host::{Host, Settings};
use crate::state::{Ledger, Record};

/// Context of a command.
pub struct Session {
    /// Thread in the host's mount namespace.
    pub host: Arc<Host>,
    /// Ledger of the host.
    pub ledger: Ledger,
    /// Where this process runs.
    pub runs_in: RunsIn,
}

impl Session {
    /// Reads the settings and enters the host's namespace.
    ///
    /// # Errors
    /// Fails if the settings are invalid or the host's namespace cannot be entered.
    pub fn open() -> Result<Self> {
        let host = Arc::new(Host::open(Settings::read()?)?);
        Ok(Self {
            ledger: Ledger::new(Arc::clone(&host)),
            runs_in: current(),
            host,
        })
    }

    /// Returns the redirect of a recorded mount, in this container or in the client root file
    /// system that made the mount.
    pub fn redirect(&self, record: &Record) -> Redirect {
        let redirects = match &record.root {
            Some(root) if self.runs_in != RunsIn::ClientRoot(root.clone()) => {
                redirect::client_dir(&self.host, root)
            }
            _ => self.host.settings().redirects(),
        };
        Redirect::with_id(&redirects, &record.id)
    }
}
