//! One of several servers: which are asked, in which order, and what is done when the one that answered does not give the
//! mount after all.
//!
//! - [`file`]: they may be in a file.
//! - [`order`]: random, unless told otherwise.
//! - [`names`]: a name with several addresses is several servers.
//! - [`probe`]: the first that answers is taken; dead ones do not cost their time one after the other.
//! - [`dead`]: who did not answer is asked last for a while.
//! - [`watch`]: whether it still answers while a helper is at work.
//! - [`places`]: where all are used, which of them answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use crate::error::{Class, Error, Reason, Result, in_a_line};
use crate::host::Host;
use crate::kinds::servers::{self, ServerSet};
use crate::mount::Plan;
use crate::mount::deadline::Deadline;
use crate::process::cancel::CancelToken;
use crate::process::interrupts::Interrupts;
use crate::servers::keepalive::Watch;
use crate::servers::order::Order;
use crate::servers::probe::{self, ProbeResult};
use crate::servers::server::Server;
use crate::servers::{dead_cache, resolve};

/// The most that is waited for the helper at a server that answers, while there are others to try.
const TURN: Duration = Duration::from_secs(20);

/// The most for one that does not answer at its port. It may be reached in another way, or a firewall may be at work.
const LAST_HOPE: Duration = Duration::from_secs(10);

/// Servers of which one is to be chosen.
pub struct ServerChoice {
    /// They, in the order in which they are asked.
    pub servers: Vec<Server>,
    /// Where the order comes from.
    pub order: Order,
    /// The port at which they are asked.
    pub port: u16,
    several: ServerSet,
}

impl ServerChoice {
    /// The servers of a plan, if there is a choice between several.
    ///
    /// # Errors
    /// A signal stops us.
    pub fn new(
        plan: &Plan,
        host: &Host,
        deadline: Instant,
        interrupts: &Interrupts,
    ) -> Result<Option<Self>> {
        let Some(several) = plan.server_set.clone() else {
            return Ok(None);
        };
        let names: Vec<&str> = several
            .servers
            .iter()
            .map(|s| servers::host_of(s))
            .collect();
        if let [one] = names[..]
            && one.parse::<IpAddr>().is_ok()
        {
            return Ok(None);
        }
        let order = Order::from_options(&plan.request.options)?;
        let port = several.port(&plan.request.options);
        let addresses = resolve::addresses(&names, deadline, interrupts)?;
        let mut servers: Vec<Server> = Vec::new();
        for (name, mut addresses) in several.servers.iter().zip(addresses) {
            if order != Order::Given {
                // The resolver has an order of its own, which changes.
                addresses.sort();
            }
            let one_of = addresses.len() > 1;
            let mut add = |address: Option<IpAddr>| {
                let peer = address.map(|address| SocketAddr::new(address, port));
                if peer.is_none() || servers.iter().all(|server| server.peer != peer) {
                    servers.push(Server {
                        name: name.clone(),
                        address: address.filter(|_| one_of),
                        peer,
                        dead: None,
                        seen: ProbeResult::Unasked,
                        told: None,
                    });
                }
            };
            if addresses.is_empty() {
                add(None);
            }
            addresses.into_iter().map(Some).for_each(&mut add);
        }
        if servers.len() < 2 {
            return Ok(None);
        }
        order.arrange(&mut servers)?;
        let peers: Vec<SocketAddr> = servers.iter().filter_map(|server| server.peer).collect();
        let mut ages = dead_cache::known(host, &peers).into_iter();
        for server in servers.iter_mut().filter(|server| server.peer.is_some()) {
            server.dead = ages.next().flatten();
        }
        servers.sort_by_key(|server| server.dead.is_some());
        Ok(Some(Self {
            servers,
            order,
            port,
            several,
        }))
    }

    /// Has the plan lead to one of them; the others are named behind it where the helper takes them.
    ///
    /// # Errors
    /// The kind's own rules refuse it.
    pub fn lead(&self, at: usize, plan: &mut Plan, host: &Host) -> Result<()> {
        let reach = self.several.answering.reach;
        let text = |server: &Server| match (server.address, reach) {
            (Some(address), None) => servers::at_host(&server.name, &address.to_string()),
            _ => server.name.clone(),
        };
        let mut names = vec![text(&self.servers[at])];
        if self.several.answering.backups {
            let others = self.servers.iter().enumerate();
            let others = others.filter(|(other, _)| *other != at);
            let mut others: Vec<&Server> = others.map(|(_, server)| server).collect();
            // It tries them in this order.
            others.sort_by_key(|server| server.seen.rank());
            names.extend(others.into_iter().map(text));
        }
        let mut more = Vec::new();
        if let (Some(address), Some(reach)) = (self.servers[at].address, reach) {
            let name = servers::host_of(&self.servers[at].name);
            more = reach(name, &address.to_string(), self.port);
        }
        plan.toward(&self.several, &names, &more, host)
    }

    /// Asks those who were not, until one answers.
    fn look(&mut self, left: &[usize], host: &Host, cancel: CancelToken<'_>) -> Result<()> {
        let unasked: Vec<usize> = left
            .iter()
            .copied()
            .filter(|at| self.servers[*at].seen.rank() == ProbeResult::Unasked.rank())
            .collect();
        let peers: Vec<_> = unasked.iter().map(|at| self.servers[*at].peer).collect();
        let seen = probe::probe(&peers, self.several.answering.probe_request, false, cancel)?;
        let (mut dead, mut alive) = (Vec::new(), Vec::new());
        for (at, seen) in unasked.into_iter().zip(seen) {
            let server = &mut self.servers[at];
            server.seen = seen;
            dead.extend(server.peer.filter(|_| server.seen.is_dead()));
            let back = server.seen == ProbeResult::Answers && server.dead.take().is_some();
            alive.extend(server.peer.filter(|_| back));
            tracing::debug!(server = %server.shown(), seen = %server.seen.words(self.port), "asked");
        }
        dead_cache::note(host, dead, alive);
        Ok(())
    }

    /// How long the helper may take at a server, when so many others wait for their turn.
    fn budget<'a>(
        &self,
        at: usize,
        others: usize,
        deadline: &'a Deadline,
        last: bool,
    ) -> AttemptBudget<'a> {
        let count = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
        let share = deadline.left() / count;
        let answers = self.servers[at].seen.rank() <= ProbeResult::Unasked.rank();
        let most = match answers {
            true if last => share,
            true => share.min(TURN),
            false => share.min(LAST_HOPE),
        };
        AttemptBudget {
            most,
            last: last && others == 0,
            deadline,
            begun: None,
        }
    }

    /// What looks after a server that answered, while the others wait for their turn.
    fn watch(&self, at: usize, others: &[usize]) -> Option<Watch> {
        let usable = |at: &&usize| !matches!(self.servers[**at].seen, ProbeResult::Fails(_));
        let peers = others.iter().filter(usable);
        let others: Vec<_> = peers.filter_map(|at| self.servers[*at].peer).collect();
        let server = &self.servers[at];
        (server.seen == ProbeResult::Answers && !others.is_empty()).then_some(Watch {
            server: server.peer?,
            others,
            hello: self.several.answering.probe_request,
        })
    }

    fn failed(&self, source: &str, last: Option<&Error>) -> Error {
        let count = self.servers.len();
        let line = |server: &Server| {
            let seen = server.seen.words(self.port);
            let told = server.told.as_deref().unwrap_or("not tried");
            format!("{}: {seen}; {told}", server.shown())
        };
        let error = Error::mount(format!("cannot mount {source}"))
            .because(format!("none of {count} servers gave it"))
            .log(self.servers.iter().map(line).collect());
        let Some(last) = last else { return error };
        let error = error.reason_is(last.reason());
        match last.hint_text() {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// What one attempt may take of the time for all of them.
#[derive(Clone, Copy, Debug)]
pub struct AttemptBudget<'a> {
    most: Duration,
    /// It leaves nothing for others.
    last: bool,
    deadline: &'a Deadline,
    /// Who wants to know when the helper begins.
    begun: Option<&'a Sender<()>>,
}

impl AttemptBudget<'_> {
    /// The end of a helper that begins now.
    pub fn until(&self) -> Instant {
        if let Some(begun) = self.begun {
            // Nobody may be there to hear it.
            let _ = begun.send(());
        }
        Instant::now() + self.deadline.left().min(self.most)
    }

    /// Takes a turn among helpers, which is given until when to wait for it.
    ///
    /// # Errors
    /// What it says.
    pub fn turn<T>(&self, take: impl FnOnce(Instant) -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let patience = self.deadline.patience();
        let taken = take(
            begun
                + if self.last {
                    patience
                } else {
                    patience.min(self.most)
                },
        );
        self.deadline.waited(begun.elapsed());
        taken
    }

    /// Whether the wait for a turn was a part of the time.
    pub fn counts_turns(&self) -> bool {
        self.deadline.counts_turns()
    }
}

/// Makes attempts at a mount until one succeeds: at the first server that answers, then at the others. Each attempt gets the
/// plan that leads to its server, and its share of the time.
///
/// # Errors
/// That of the attempt if there is one server, or it is no server's fault; otherwise what came of each server.
pub fn mount<T>(
    plan: &mut Plan,
    host: &Host,
    deadline: &Deadline,
    interrupts: &Interrupts,
    mut attempt: impl FnMut(&Plan, AttemptBudget<'_>) -> Result<T>,
) -> Result<T> {
    let Some(mut choice) = ServerChoice::new(plan, host, deadline.at(), interrupts)? else {
        let (most, last) = (Duration::MAX, true);
        return attempt(
            plan,
            AttemptBudget {
                most,
                last,
                deadline,
                begun: None,
            },
        );
    };
    let mut left: Vec<usize> = (0..choice.servers.len()).collect();
    // Who answered, and then did nothing in the time that was its share.
    let (mut slow, mut again, mut last) = (Vec::new(), false, None);
    while !left.is_empty() && !deadline.left().is_zero() {
        choice.look(&left, host, interrupts.until(deadline.at()))?;
        left.sort_by_key(|at| choice.servers[*at].seen.rank());
        let at = left.remove(0);
        choice.lead(at, plan, host)?;
        let only = left.is_empty() && slow.is_empty();
        let share = choice.budget(at, left.len(), deadline, again || only);
        let done = match choice.watch(at, &left) {
            Some(watch) => watch.during(interrupts, |begun| {
                let begun = Some(begun);
                attempt(plan, AttemptBudget { begun, ..share })
            }),
            None => attempt(plan, share),
        };
        let error = match done {
            Ok(done) => return Ok(done),
            Err(error) if !may_be_the_servers(&error) => return Err(error),
            Err(error) => error,
        };
        let late = matches!(error.reason(), Reason::Timeout | Reason::NoAnswer);
        let server = &mut choice.servers[at];
        server.told = Some(in_a_line(&error));
        tracing::info!(server = %server.shown(), %error, "goes on to the next server");
        if late {
            dead_cache::note(host, server.peer.into_iter().collect(), Vec::new());
        }
        if late || error.reason() == Reason::Queue {
            if server.seen == ProbeResult::Answers && !again {
                slow.push(at);
            }
        } else if choice.several.answering.backups {
            // The helper has tried these itself.
            left.retain(|at| choice.servers[*at].seen.rank() <= ProbeResult::Silent.rank());
        }
        last = Some(error);
        if left.is_empty() && !again {
            (left, again) = (std::mem::take(&mut slow), true);
        }
    }
    Err(choice.failed(&plan.request.source, last.as_ref()))
}

/// Whether another server may do better.
fn may_be_the_servers(error: &Error) -> bool {
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

    fn choice(seen: &[ProbeResult]) -> ServerChoice {
        let several = kinds::server_set("nfs", "a,b,c:/x", &Options::default()).unwrap();
        let servers = several.servers.iter().zip(seen).map(|(name, seen)| Server {
            name: name.clone(),
            address: None,
            peer: None,
            dead: None,
            seen: seen.clone(),
            told: None,
        });
        ServerChoice {
            servers: servers.collect(),
            order: Order::Given,
            port: 2049,
            several,
        }
    }

    #[test]
    fn no_server_takes_the_time_of_the_others() {
        let choice = choice(&[
            ProbeResult::Answers,
            ProbeResult::Unasked,
            ProbeResult::Fails("no".into()),
        ]);
        let most = |at, others, seconds, last| {
            let deadline = Deadline::new(Some(Duration::from_secs(seconds)));
            choice
                .budget(at, others, &deadline, last)
                .most
                .as_secs_f32()
                .round()
        };
        assert_eq!(most(0, 2, 120, false), 20.0);
        assert_eq!(most(0, 2, 30, false), 10.0);
        assert_eq!(most(1, 0, 120, false), 20.0);
        assert_eq!(most(0, 0, 120, true), 120.0);
        assert_eq!(most(2, 0, 120, true), 10.0);
    }

    #[test]
    fn the_error_has_a_line_for_each_server() {
        let time = Duration::from_secs(3);
        let mut choice = choice(&[
            ProbeResult::Answers,
            ProbeResult::Asked(time),
            ProbeResult::Silent,
        ]);
        let error = Error::mount("mount.nfs failed")
            .because("exit status 32")
            .log(vec!["trying".into(), "access denied".into()])
            .hint("look there");
        choice.servers[0].told = Some(in_a_line(&error));
        let text = choice.failed("a,b,c:/x", Some(&error)).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "cannot mount a,b,c:/x: none of 3 servers gave it",
                "  a: answers at port 2049; mount.nfs failed: exit status 32: access denied",
                "  b: no answer at port 2049 within 3.0 s; not tried",
                "  c: takes connections at port 2049, but says nothing; not tried",
                "hint: look there",
            ]
        );
    }

    #[test]
    fn only_what_may_be_a_servers_fault_leads_to_the_next() {
        let mount = |reason| may_be_the_servers(&Error::mount("x").reason_is(reason));
        assert!(mount(Reason::Helper) && mount(Reason::Timeout));
        assert!(!mount(Reason::Occupied) && !mount(Reason::Interrupted));
        assert!(!may_be_the_servers(&Error::usage("x")));
    }
}
