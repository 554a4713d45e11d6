//! Brings up the ways to a device.

use crate::block::attach::AttachRequest;
use crate::block::paths::{ActivePath, ready};
use crate::error::{Class, Error, Result, in_a_line};
use crate::kinds::block::model::{DevicePath, Endpoint};
use crate::servers::portals;

/// A way that did not come up, and why.
type Failed<'w> = (&'w DevicePath, Error);

/// A way whose server does not answer, and what was seen of that.
type Silent<'w> = (&'w DevicePath, String);

impl AttachRequest<'_> {
    /// Brings up the ways that are not, all at once. One is enough.
    pub(super) fn bring_up(&self, up: &[ActivePath]) -> Result<()> {
        let missing: Vec<&DevicePath> = self
            .device
            .paths
            .iter()
            .filter(|way| !up.iter().any(|up| up.marks == way.marks))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let name = ready(self.session, self.device, self.host_name)?;
        let mut came = missing.len() < self.device.paths.len();
        let (answer, silent) = self.who_answers(missing, came)?;
        let what = |way: &DevicePath| format!("cannot attach {} at {}", self.device.name, way.name);
        let mut failed = self.try_all(&answer, name.as_deref())?;
        came |= failed.len() < answer.len();
        if came {
            let without =
                |(way, cause): &Silent<'_>| Error::mount(what(way)).because(cause.as_str());
            failed.extend(silent.iter().map(|silent| (silent.0, without(silent))));
        } else {
            // They may be reached all the same.
            let silent: Vec<&DevicePath> = silent.iter().map(|(way, _)| *way).collect();
            let more = self.try_all(&silent, name.as_deref())?;
            came = more.len() < silent.len();
            failed.extend(more);
        }
        if came {
            for (way, error) in failed {
                let way = &way.name;
                tracing::warn!("{} goes without {way}: {error}", self.device.name);
            }
            return Ok(());
        }
        if failed.len() == 1 {
            return Err(failed.remove(0).1);
        }
        let hint = failed
            .iter()
            .find_map(|(_, error)| error.hint_text().map(str::to_owned));
        let lines = failed.iter().map(|(way, error)| {
            let seen = silent.iter().find(|(silent, _)| silent.name == way.name);
            let seen = seen.map_or("answers", |(_, cause)| cause);
            format!("{}: {seen}; {}", way.name, in_a_line(error))
        });
        let error = Error::mount(format!("cannot attach {}", self.device.name))
            .because("no way to it came up")
            .log(lines.collect());
        Err(match hint {
            Some(hint) => error.hint(hint),
            None => error,
        })
    }

    /// The ways whose server answers, or may, and those whose server does not. Of these, the ones that were dead a moment ago
    /// are not asked again where the device is there without them.
    fn who_answers<'w>(
        &self,
        ways: Vec<&'w DevicePath>,
        there: bool,
    ) -> Result<(Vec<&'w DevicePath>, Vec<Silent<'w>>)> {
        if ways.len() == 1 && !there {
            return Ok((ways, Vec::new()));
        }
        let at: Vec<Option<&Endpoint>> = ways.iter().map(|way| way.endpoint.as_ref()).collect();
        let (host, go_on) = (&self.session.host, self.interrupts);
        let causes = portals::silent(&at, there, host, self.deadline, go_on)?;
        let (mut answer, mut silent) = (Vec::new(), Vec::new());
        for (way, cause) in ways.into_iter().zip(causes) {
            match cause {
                None => answer.push(way),
                Some(cause) => silent.push((way, cause)),
            }
        }
        Ok((answer, silent))
    }

    /// Brings these up, all at once; those that did not come, and why.
    fn try_all<'w>(&self, ways: &[&'w DevicePath], name: Option<&str>) -> Result<Vec<Failed<'w>>> {
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = ways
                .iter()
                .map(|way| scope.spawn(move || self.steps(way, name)))
                .collect();
            let ended = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
            ended
                .map(|ended| ended.unwrap_or_else(|_| Err(Error::system("a thread died"))))
                .collect()
        });
        let mut failed: Vec<Failed<'w>> = ways
            .iter()
            .zip(results)
            .filter_map(|(way, result)| Some((*way, result.err()?)))
            .collect();
        let stopped = |(_, error): &Failed<'_>| error.class() == Class::Interrupted;
        match failed.iter().position(stopped) {
            Some(at) => Err(failed.swap_remove(at).1),
            None => Ok(failed),
        }
    }
}
