//! What every command works with.

use std::sync::Arc;

use crate::error::Result;
use crate::host::redirect::{self, Claim};
use crate::host::runs_in::{Place, place};
use crate::host::{Host, Settings};
use crate::state::{Ledger, Record};

/// What every command works with.
pub struct Session {
    /// Settings of shim and launcher.
    pub settings: Settings,
    /// The host's namespace, entered.
    pub host: Arc<Host>,
    /// The host's ledger.
    pub ledger: Ledger,
    /// Where this process runs.
    pub place: Place,
}

impl Session {
    /// Reads the settings and enters the host's namespace.
    ///
    /// # Errors
    /// Settings are broken, or the host cannot be entered.
    pub fn open() -> Result<Self> {
        let settings = Settings::read()?;
        let host = Arc::new(Host::open(&settings)?);
        Ok(Self {
            settings,
            ledger: Ledger::of(Arc::clone(&host)),
            place: place(),
            host,
        })
    }

    /// The claim of a recorded mount, wherever that was made.
    pub fn claim(&self, record: &Record) -> Claim {
        let claims = match &record.root {
            Some(root) if self.place != Place::Client(root.clone()) => {
                redirect::of_client(&self.host, root)
            }
            _ => self.settings.claims(),
        };
        Claim::named(&claims, &record.id)
    }
}
