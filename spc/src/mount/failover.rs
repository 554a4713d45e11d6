//! Failover: mounts from one of several servers, and from the next one when an attempt fails.
//!
//! - A source or a file lists the servers; a name with several addresses counts as several servers.
//! - [`order`](crate::servers::order): the order is random unless an option sets it.
//! - [`dead_cache`]: servers that failed a probe within the last minute are tried last.
//! - [`probe`]: the first server that responds is tried first.
//! - [`keepalive`](crate::servers::keepalive): the server is watched while the helper runs.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use crate::error::{Class, Error, Reason, Result, one_line};
use crate::host::Host;
use crate::kinds::servers::{self, ServerSet};
use crate::mount::Plan;
use crate::mount::deadline::Deadline;
use crate::process::cancel::CancelToken;
use crate::process::interrupts::Interrupts;
use crate::servers::dead_cache;
use crate::servers::keepalive::Watch;
use crate::servers::order::Order;
use crate::servers::probe::{self, ProbeResult};
use crate::servers::resolve::{self, MAX_SERVERS};
use crate::servers::server::Server;

/// Time limit for a helper at a server that responded, while there are others to try.
const RESPONSIVE_LIMIT: Duration = Duration::from_secs(20);

/// Time limit for a helper at a server that failed the probe. A firewall may block the probe, but
/// not the helper.
const UNRESPONSIVE_LIMIT: Duration = Duration::from_secs(10);

/// Servers of which spc chooses one.
pub struct ServerChoice {
    /// Servers in the order in which they are probed.
    pub servers: Vec<Server>,
    /// Origin of this order.
    pub order: Order,
    /// Port that is probed.
    pub port: u16,
    server_set: ServerSet,
}

impl ServerChoice {
    /// Returns the servers of a plan, or `None` if there is only one.
    ///
    /// # Errors
    /// A termination signal arrives, or the option for the order is invalid.
    pub fn new(
        plan: &Plan,
        host: &Host,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<Option<Self>> {
        let Some(server_set) = plan.server_set.clone() else {
            return Ok(None);
        };
        let names = server_set.servers.iter();
        let names: Vec<&str> = names.map(|name| servers::host_of(name)).collect();
        if let [name] = names[..]
            && name.parse::<IpAddr>().is_ok()
        {
            return Ok(None);
        }
        let order = Order::from_options(&plan.request.options)?;
        let port = server_set.port(&plan.request.options);
        let mut addresses = resolve::addresses(&names, deadline, interrupts)?;
        if order != Order::Given {
            // The resolver returns addresses in changing order, and a seed must give the same
            // order each time.
            addresses.iter_mut().for_each(|addresses| addresses.sort());
        }
        for addresses in &mut addresses {
            addresses.truncate(MAX_SERVERS);
        }
        let mut servers = servers_at(&server_set.servers, addresses, port);
        if servers.len() < 2 {
            return Ok(None);
        }
        order.arrange(&mut servers)?;
        move_dead_last(&mut servers, host);
        servers.truncate(MAX_SERVERS);
        Ok(Some(Self {
            servers,
            order,
            port,
            server_set,
        }))
    }

    /// Changes a plan so that it mounts from one server. If the helper takes backup servers, the
    /// others follow, best first.
    ///
    /// # Errors
    /// The rules of the kind refuse the source or the options.
    pub fn select(&self, index: usize, plan: &mut Plan, host: &Host) -> Result<()> {
        let server = &self.servers[index];
        let mut names = vec![self.name_in_source(server)];
        if self.server_set.probe.takes_backups {
            let others = self.servers.iter().enumerate();
            let others = others.filter(|(other, _)| *other != index);
            let mut others: Vec<&Server> = others.map(|(_, server)| server).collect();
            others.sort_by_key(|server| server.probe.rank());
            names.extend(others.into_iter().map(|other| self.name_in_source(other)));
        }
        let address_options = match (server.address, self.server_set.probe.address_options) {
            (Some(address), Some(options)) => {
                let name = servers::host_of(&server.name);
                options(name, &address.to_string(), self.port)
            }
            _ => Vec::new(),
        };
        plan.use_servers(&self.server_set, &names, &address_options, host)
    }

    /// Returns a server's name for the source. Its address replaces the name, unless options
    /// select the address.
    fn name_in_source(&self, server: &Server) -> String {
        match (server.address, self.server_set.probe.address_options) {
            (Some(address), None) => servers::with_host(&server.name, &address.to_string()),
            _ => server.name.clone(),
        }
    }

    /// Probes those of the remaining servers that were not probed yet, until one responds.
    fn probe(&mut self, remaining: &[usize], host: &Host, cancel: CancelToken<'_>) -> Result<()> {
        let unprobed: Vec<usize> = remaining
            .iter()
            .copied()
            .filter(|index| self.rank(*index) == ProbeResult::NotProbed.rank())
            .collect();
        let peers: Vec<_> = unprobed
            .iter()
            .map(|index| self.servers[*index].peer)
            .collect();
        let request = self.server_set.probe.probe_request;
        let results = probe::probe_until_first(&peers, request, cancel)?;
        let (mut dead, mut alive) = (Vec::new(), Vec::new());
        for (index, result) in unprobed.into_iter().zip(results) {
            let server = &mut self.servers[index];
            server.probe = result;
            dead.extend(server.peer.filter(|_| server.probe.is_dead()));
            let recovered =
                server.probe == ProbeResult::Responds && server.failed_ago.take().is_some();
            alive.extend(server.peer.filter(|_| recovered));
            tracing::debug!(
                server = %server.display_name(),
                seen = %server.probe.description(self.port),
                "probed a server"
            );
        }
        dead_cache::update(host, dead, alive);
        Ok(())
    }

    fn rank(&self, index: usize) -> u8 {
        self.servers[index].probe.rank()
    }

    /// Returns the time for an attempt at a server, after which the other candidates are tried.
    fn budget<'a>(
        &self,
        index: usize,
        candidates: &Candidates,
        deadline: &'a Deadline,
    ) -> AttemptBudget<'a> {
        let others = candidates.remaining.len();
        let attempts = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
        let share = deadline.remaining() / attempts;
        let last_chance = candidates.is_last_chance();
        let limit = if self.rank(index) > ProbeResult::NotProbed.rank() {
            share.min(UNRESPONSIVE_LIMIT)
        } else if last_chance {
            share
        } else {
            share.min(RESPONSIVE_LIMIT)
        };
        AttemptBudget {
            limit,
            is_last: last_chance && others == 0,
            deadline,
            started: None,
        }
    }

    /// Returns the watch over a server that responded, if there are others to change to.
    fn watch(&self, index: usize, others: &[usize]) -> Option<Watch> {
        let others = others.iter().map(|other| &self.servers[*other]);
        let usable = others.filter(|server| !matches!(server.probe, ProbeResult::Failed(_)));
        let others: Vec<_> = usable.filter_map(|server| server.peer).collect();
        let server = &self.servers[index];
        (server.probe == ProbeResult::Responds && !others.is_empty()).then_some(Watch {
            server: server.peer?,
            others,
            probe_request: self.server_set.probe.probe_request,
        })
    }

    /// Keeps the error of an attempt for the summary, and logs it.
    fn record_failure(&mut self, index: usize, error: &Error, host: &Host) {
        let server = &mut self.servers[index];
        server.last_error = Some(one_line(error));
        tracing::info!(server = %server.display_name(), %error, "trying the next server");
        if is_late(error) {
            dead_cache::update(host, server.peer.into_iter().collect(), Vec::new());
        }
    }

    /// Returns the error after all servers have failed, with a line for each server.
    fn failed(&self, source: &str, last: Option<&Error>) -> Error {
        let count = self.servers.len();
        let line = |server: &Server| {
            let probe = server.probe.description(self.port);
            let last_error = server.last_error.as_deref().unwrap_or("not tried");
            format!("{}: {probe}; {last_error}", server.display_name())
        };
        let error = Error::mount(format!("cannot mount {source}"))
            .because(format!("all {count} servers failed"))
            .log(self.servers.iter().map(line).collect());
        let Some(last) = last else { return error };
        let error = error.reason_is(last.reason());
        match last.hint_text() {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Returns a server for each address of each name. A name that cannot be resolved counts as one
/// server, and an address that several names share counts once.
fn servers_at(names: &[String], addresses: Vec<Vec<IpAddr>>, port: u16) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for (name, addresses) in names.iter().zip(addresses) {
        let has_several = addresses.len() > 1;
        let mut add = |address: Option<IpAddr>| {
            let peer = address.map(|address| SocketAddr::new(address, port));
            if peer.is_none() || servers.iter().all(|server| server.peer != peer) {
                servers.push(Server {
                    name: name.clone(),
                    address: address.filter(|_| has_several),
                    peer,
                    failed_ago: None,
                    probe: ProbeResult::NotProbed,
                    last_error: None,
                });
            }
        };
        if addresses.is_empty() {
            add(None);
        }
        addresses.into_iter().map(Some).for_each(&mut add);
    }
    servers
}

/// Moves servers in the cache of dead servers behind the others.
fn move_dead_last(servers: &mut [Server], host: &Host) {
    let peers: Vec<SocketAddr> = servers.iter().filter_map(|server| server.peer).collect();
    let mut ages = dead_cache::ages(host, &peers).into_iter();
    for server in servers.iter_mut().filter(|server| server.peer.is_some()) {
        server.failed_ago = ages.next().flatten();
    }
    servers.sort_by_key(|server| server.failed_ago.is_some());
}

/// Time that one attempt may take of the time for the whole mount.
#[derive(Clone, Copy, Debug)]
pub struct AttemptBudget<'a> {
    limit: Duration,
    /// No attempt follows, so the attempt may use all of the remaining time.
    is_last: bool,
    deadline: &'a Deadline,
    /// Receives a message when the helper starts.
    started: Option<&'a Sender<()>>,
}

impl<'a> AttemptBudget<'a> {
    /// Returns a budget of all the time until the deadline.
    fn whole(deadline: &'a Deadline) -> Self {
        Self {
            limit: Duration::MAX,
            is_last: true,
            deadline,
            started: None,
        }
    }
}

impl AttemptBudget<'_> {
    /// Announces that the helper starts now, and returns the helper's deadline.
    pub fn start_helper(&self) -> Instant {
        if let Some(started) = self.started {
            // Fails if the thread that watches the server could not be started.
            let _ = started.send(());
        }
        Instant::now() + self.deadline.remaining().min(self.limit)
    }

    /// Calls `acquire` with the deadline for the wait in the queue for a helper slot.
    ///
    /// # Errors
    /// Errors of `acquire`.
    pub fn wait_for_slot<T>(&self, acquire: impl FnOnce(Instant) -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let queue_limit = self.deadline.queue_limit();
        let limit = if self.is_last {
            queue_limit
        } else {
            queue_limit.min(self.limit)
        };
        let acquired = acquire(started + limit);
        self.deadline.add_slot_wait(started.elapsed());
        acquired
    }

    /// Returns whether time in the queue counts.
    pub fn counts_slot_wait(&self) -> bool {
        self.deadline.counts_slot_wait()
    }
}

/// Servers that are still to be tried, by their index.
struct Candidates {
    remaining: Vec<usize>,
    /// Servers that responded to the probe, but exceeded their share of the time.
    slow: Vec<usize>,
    /// The slow servers are tried once more, after all others.
    second_pass: bool,
}

impl Candidates {
    fn all(choice: &ServerChoice) -> Self {
        Self {
            remaining: (0..choice.servers.len()).collect(),
            slow: Vec::new(),
            second_pass: false,
        }
    }

    /// Removes and returns the candidate with the best probe result.
    fn take_best(&mut self, choice: &ServerChoice) -> usize {
        self.remaining.sort_by_key(|index| choice.rank(*index));
        self.remaining.remove(0)
    }

    /// Returns whether the server that was taken last is not tried again.
    fn is_last_chance(&self) -> bool {
        self.second_pass || (self.remaining.is_empty() && self.slow.is_empty())
    }

    /// Updates the candidates after a failed attempt at a server.
    fn attempt_failed(&mut self, index: usize, error: &Error, choice: &ServerChoice) {
        if is_late(error) || error.reason() == Reason::Queue {
            if choice.servers[index].probe == ProbeResult::Responds && !self.second_pass {
                self.slow.push(index);
            }
        } else if choice.server_set.probe.takes_backups {
            // The helper has tried the dead servers as its backups.
            self.remaining
                .retain(|index| choice.rank(*index) <= ProbeResult::NoReply.rank());
        }
        if self.remaining.is_empty() && !self.second_pass {
            self.remaining = std::mem::take(&mut self.slow);
            self.second_pass = true;
        }
    }
}

/// Makes attempts at a mount until one succeeds: at the first server that responds, then at the
/// others. Each attempt gets the plan for its server and a budget of time.
///
/// # Errors
/// The error of the attempt, if there is one server or the server is not to blame. Otherwise an
/// error with the result for each server.
pub fn mount<T>(
    plan: &mut Plan,
    host: &Host,
    deadline: &Deadline,
    interrupts: &Interrupts,
    mut attempt: impl FnMut(&Plan, AttemptBudget<'_>) -> Result<T>,
) -> Result<T> {
    let mut attempt = |plan: &Plan, budget: AttemptBudget<'_>| match attempt(plan, budget) {
        Err(error) if error.is_transient() && !deadline.remaining().is_zero() => {
            tracing::info!(%error, "trying once more");
            attempt(plan, budget)
        }
        result => result,
    };
    let Some(mut choice) = ServerChoice::new(plan, host, deadline.at(), interrupts)? else {
        return attempt(plan, AttemptBudget::whole(deadline));
    };
    let mut candidates = Candidates::all(&choice);
    let mut last_error = None;
    while !candidates.remaining.is_empty() && !deadline.remaining().is_zero() {
        let cancel = interrupts.until(deadline.at());
        choice.probe(&candidates.remaining, host, cancel)?;
        let index = candidates.take_best(&choice);
        choice.select(index, plan, host)?;
        let budget = choice.budget(index, &candidates, deadline);
        let result = match choice.watch(index, &candidates.remaining) {
            Some(watch) => watch.during(interrupts, |started| {
                let started = Some(started);
                attempt(plan, AttemptBudget { started, ..budget })
            }),
            None => attempt(plan, budget),
        };
        match result {
            Err(error) if may_be_server_fault(&error) => {
                choice.record_failure(index, &error, host);
                candidates.attempt_failed(index, &error, &choice);
                last_error = Some(error);
            }
            result => return result,
        }
    }
    Err(choice.failed(&plan.request.source, last_error.as_ref()))
}

/// Returns whether an attempt failed because the server or its mount did not respond in time.
fn is_late(error: &Error) -> bool {
    matches!(error.reason(), Reason::Timeout | Reason::NoAnswer)
}

/// Returns whether an attempt at another server may succeed.
fn may_be_server_fault(error: &Error) -> bool {
    let reasons = [
        Reason::Timeout,
        Reason::Queue,
        Reason::Helper,
        Reason::NoAnswer,
        Reason::NoProof,
        Reason::Failed,
    ];
    error.class() == Class::Mount && reasons.contains(&error.reason())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use crate::options::Options;

    fn choice(results: &[ProbeResult]) -> ServerChoice {
        let server_set = kinds::server_set("nfs", "a,b,c:/x", &Options::default()).unwrap();
        let servers = server_set.servers.iter().zip(results);
        let servers = servers.map(|(name, result)| Server {
            name: name.clone(),
            address: None,
            peer: None,
            failed_ago: None,
            probe: result.clone(),
            last_error: None,
        });
        ServerChoice {
            servers: servers.collect(),
            order: Order::Given,
            port: 2049,
            server_set,
        }
    }

    #[test]
    fn budget_leaves_time_for_the_other_servers() {
        let choice = choice(&[
            ProbeResult::Responds,
            ProbeResult::NotProbed,
            ProbeResult::Failed("no".into()),
        ]);
        let limit = |index, others, seconds, second_pass| {
            let deadline = Deadline::new(Some(Duration::from_secs(seconds)));
            let candidates = Candidates {
                remaining: vec![0; others],
                slow: vec![0],
                second_pass,
            };
            let budget = choice.budget(index, &candidates, &deadline);
            budget.limit.as_secs_f32().round()
        };
        assert_eq!(limit(0, 2, 120, false), 20.0);
        assert_eq!(limit(0, 2, 30, false), 10.0);
        assert_eq!(limit(1, 0, 120, false), 20.0);
        assert_eq!(limit(0, 0, 120, true), 120.0);
        assert_eq!(limit(2, 0, 120, true), 10.0);
    }

    #[test]
    fn error_has_a_line_for_each_server() {
        let time = Duration::from_secs(3);
        let mut choice = choice(&[
            ProbeResult::Responds,
            ProbeResult::NoConnection(time),
            ProbeResult::NoReply,
        ]);
        let error = Error::mount("mount.nfs failed")
            .because("exit status 32")
            .log(vec!["trying".into(), "access denied".into()])
            .hint("look there");
        choice.servers[0].last_error = Some(one_line(&error));
        let text = choice.failed("a,b,c:/x", Some(&error)).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "cannot mount a,b,c:/x: all 3 servers failed",
                "  a: answers at port 2049; mount.nfs failed: exit status 32: access denied",
                "  b: no answer at port 2049 within 3.0 s; not tried",
                "  c: accepts connections at port 2049, but does not reply; not tried",
                "hint: look there",
            ]
        );
    }

    #[test]
    fn next_server_is_tried_only_after_a_servers_fault() {
        let mount = |reason| may_be_server_fault(&Error::mount("x").reason_is(reason));
        assert!(mount(Reason::Helper) && mount(Reason::Timeout));
        assert!(!mount(Reason::Occupied) && !mount(Reason::Interrupted));
        assert!(!may_be_server_fault(&Error::usage("x")));
    }
}
