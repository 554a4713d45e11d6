//! Brings up the paths to a device.

use crate::block::attach::AttachRequest;
use crate::block::paths::{ActivePath, prepare_programs};
use crate::error::{Class, Error, Result, one_line};
use crate::kinds::block::model::{DevicePath, Endpoint};
use crate::servers::portals;

/// Path that did not come up, with its error.
type Failed<'w> = (&'w DevicePath, Error);

/// Path whose server did not respond to the probe, with the cause.
type Unresponsive<'w> = (&'w DevicePath, String);

impl AttachRequest<'_> {
    /// Brings up the missing paths concurrently. A single path is enough.
    ///
    /// # Errors
    /// Fails if no path is up, with the errors of all paths.
    pub(super) fn bring_up(&self, active: &[ActivePath]) -> Result<()> {
        let missing: Vec<&DevicePath> = self
            .device
            .paths
            .iter()
            .filter(|path| !active.iter().any(|active| active.key == path.key))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let host_name = prepare_programs(self.session, self.device, self.host_name)?;
        let mut any_up = missing.len() < self.device.paths.len();
        let (responsive, unresponsive) = self.probe_portals(missing, any_up)?;
        let context =
            |path: &DevicePath| format!("cannot attach {} at {}", self.device.name, path.name);
        let mut failed = self.try_all(&responsive, host_name.as_deref())?;
        any_up |= failed.len() < responsive.len();
        if any_up {
            let error = |(path, cause): &Unresponsive<'_>| {
                Error::mount(context(path)).because(cause.as_str())
            };
            failed.extend(
                unresponsive
                    .iter()
                    .map(|skipped| (skipped.0, error(skipped))),
            );
        } else {
            // A server may refuse the probe and still accept a login.
            let paths: Vec<&DevicePath> = unresponsive.iter().map(|(path, _)| *path).collect();
            let more = self.try_all(&paths, host_name.as_deref())?;
            any_up = more.len() < paths.len();
            failed.extend(more);
        }
        if any_up {
            for (path, error) in failed {
                let path = &path.name;
                tracing::warn!("{} is attached without {path}: {error}", self.device.name);
            }
            return Ok(());
        }
        if failed.len() == 1 {
            return Err(failed.remove(0).1);
        }
        let hint = failed
            .iter()
            .find_map(|(_, error)| error.hint_text().map(str::to_owned));
        let lines = failed.iter().map(|(path, error)| {
            let probed = unresponsive
                .iter()
                .find(|(skipped, _)| skipped.name == path.name);
            let probed = probed.map_or("answers", |(_, cause)| cause);
            format!("{}: {probed}; {}", path.name, one_line(error))
        });
        let error = Error::mount(format!("cannot attach {}", self.device.name))
            .because("no path to it came up")
            .log(lines.collect());
        Err(match hint {
            Some(hint) => error.hint(hint),
            None => error,
        })
    }

    /// Probes the servers of the paths. Returns the paths whose server responds or cannot be
    /// probed, and the others. If another path is up, servers that failed a moment ago are not
    /// probed again.
    fn probe_portals<'p>(
        &self,
        paths: Vec<&'p DevicePath>,
        any_up: bool,
    ) -> Result<(Vec<&'p DevicePath>, Vec<Unresponsive<'p>>)> {
        if paths.len() == 1 && !any_up {
            return Ok((paths, Vec::new()));
        }
        let endpoints: Vec<Option<&Endpoint>> =
            paths.iter().map(|path| path.endpoint.as_ref()).collect();
        let (host, interrupts) = (&self.session.host, self.interrupts);
        let causes =
            portals::find_unresponsive(&endpoints, any_up, host, self.deadline, interrupts)?;
        let (mut responsive, mut unresponsive) = (Vec::new(), Vec::new());
        for (path, cause) in paths.into_iter().zip(causes) {
            match cause {
                None => responsive.push(path),
                Some(cause) => unresponsive.push((path, cause)),
            }
        }
        Ok((responsive, unresponsive))
    }

    /// Brings up paths concurrently. Returns the paths that did not come up.
    fn try_all<'p>(
        &self,
        paths: &[&'p DevicePath],
        host_name: Option<&str>,
    ) -> Result<Vec<Failed<'p>>> {
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = paths
                .iter()
                .map(|path| scope.spawn(move || self.run_steps(path, host_name)))
                .collect();
            let results = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
            results
                .map(|joined| joined.unwrap_or_else(|_| Err(Error::system("a thread panicked"))))
                .collect()
        });
        let mut failed: Vec<Failed<'p>> = paths
            .iter()
            .zip(results)
            .filter_map(|(path, result)| Some((*path, result.err()?)))
            .collect();
        let is_interrupted = |(_, error): &Failed<'_>| error.class() == Class::Interrupted;
        match failed.iter().position(is_interrupted) {
            Some(at) => Err(failed.swap_remove(at).1),
            None => Ok(failed),
        }
    }
}
