//! What every command works with.

use std::sync::Arc;

use crate::error::Result;
use crate::host::redirect::{self, Redirect};
use crate::host::runs_in::{RunsIn, current};
use crate::host::{Host, Settings};
use crate::state::{Ledger, Record};

/// What every command works with.
pub struct Session {
    /// The host's namespace, entered.
    pub host: Arc<Host>,
    /// The host's ledger.
    pub ledger: Ledger,
    /// Where this process runs.
    pub runs_in: RunsIn,
}

impl Session {
    /// Reads the settings and enters the host's namespace.
    ///
    /// # Errors
    /// Settings are broken, or the host cannot be entered.
    pub fn open() -> Result<Self> {
        let host = Arc::new(Host::open(Settings::read()?)?);
        Ok(Self {
            ledger: Ledger::new(Arc::clone(&host)),
            runs_in: current(),
            host,
        })
    }

    /// The claim of a recorded mount, wherever that was made.
    pub fn redirect(&self, record: &Record) -> Redirect {
        let redirects = match &record.root {
            Some(root) if self.runs_in != RunsIn::ClientRoot(root.clone()) => {
                redirect::of_client(&self.host, root)
            }
            _ => self.host.settings().redirects(),
        };
        Redirect::named(&redirects, &record.id)
    }
}
