//! Backends that calls use, and backends that may still be mounted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time after its last call when a backend is unmounted.
const IDLE_TIME: Duration = Duration::from_secs(20);

/// Backends that may be mounted.
#[derive(Default)]
pub struct BackendUse {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Backends that may be mounted, by name.
    backends: HashMap<String, Use>,
    /// Whether no further call may begin.
    stopped: bool,
}

/// Use of one backend.
#[derive(Clone, Copy)]
struct Use {
    /// Number of calls that run now.
    calls: usize,
    /// Time at which a call last began or ended.
    last: Instant,
}

/// Use of a backend by a call. The use ends when this is dropped.
pub struct InUse {
    used: Arc<BackendUse>,
    name: String,
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(found) = self.used.state().backends.get_mut(&self.name) {
            found.calls = found.calls.saturating_sub(1);
            found.last = Instant::now();
        }
    }
}

impl BackendUse {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a backend that may be mounted, or starts its idle time again.
    pub fn touch(&self, name: &str) {
        let mut state = self.state();
        let last = Instant::now();
        let new = Use { calls: 0, last };
        state.backends.entry(name.to_owned()).or_insert(new).last = last;
    }

    /// Begins the use of a backend by a call. Returns none after [`BackendUse::stop`].
    pub fn begin(self: &Arc<Self>, name: &str) -> Option<InUse> {
        self.touch(name);
        let mut state = self.state();
        if state.stopped {
            return None;
        }
        state.backends.get_mut(name)?.calls += 1;
        Some(InUse {
            used: Arc::clone(self),
            name: name.to_owned(),
        })
    }

    /// Returns the backends that no call has used for the idle time.
    pub fn idle(&self, now: Instant) -> Vec<String> {
        let state = self.state();
        let is_idle = |used: &Use| used.calls == 0 && now.duration_since(used.last) >= IDLE_TIME;
        let idle = state.backends.iter().filter(|(_, used)| is_idle(used));
        idle.map(|(name, _)| name.clone()).collect()
    }

    /// Removes a backend that was unmounted, unless a call has used it meanwhile.
    pub fn remove_if_idle(&self, name: &str) {
        let mut state = self.state();
        let is_idle = |used: &Use| used.calls == 0 && used.last.elapsed() >= IDLE_TIME;
        if state.backends.get(name).is_some_and(is_idle) {
            state.backends.remove(name);
        }
    }

    /// Returns all backends that may be mounted, and lets no further call begin.
    pub fn stop(&self) -> Vec<String> {
        let mut state = self.state();
        state.stopped = true;
        state.backends.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_idle_when_no_call_has_used_it_for_a_while() {
        let used = Arc::new(BackendUse::default());
        let later = || Instant::now() + IDLE_TIME;
        used.touch("left");
        let call = used.begin("data").unwrap();
        assert_eq!(used.idle(later()), ["left"]);
        assert!(used.idle(Instant::now()).is_empty());
        drop(call);
        assert_eq!(used.idle(later()).len(), 2);
        // The call ended just now.
        used.remove_if_idle("data");
        assert_eq!(used.stop().len(), 2);
        assert!(used.begin("data").is_none());
    }
}
