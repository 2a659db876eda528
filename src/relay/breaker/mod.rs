//! Breakers of two kinds. The breaker of a host is about its name, connections and TLS; the breaker of a
//! subscription is about its answers and time-outs. A breaker opens after failures, lets one probe through,
//! and closes on success. While it is open nothing is claimed, so an outage uses up no attempts.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    delivery::{Outcome, Reason},
    store::BreakerState,
};

/// Failures in a row that open it.
const IN_A_ROW: u32 = 20;
/// Attempts within [`WITHIN`] from which on the share of failures counts.
const AT_LEAST: u32 = 20;
/// Time in which attempts are counted.
const WITHIN: Duration = Duration::from_secs(60);
/// Share of failures that opens it.
const SHARE: f64 = 0.7;
/// How long it stays open at first. It doubles with each failed probe.
const OPEN_FOR: Duration = Duration::from_secs(2);
/// Longest time that it stays open.
const OPEN_AT_MOST: Duration = Duration::from_secs(300);
/// A probe that was let through and never reported back counts as lost after this time.
const PROBE_LOST: Duration = Duration::from_secs(90);

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Closed,
    /// Nothing before this instant.
    Open(Instant),
    /// One delivery may be tried.
    Probe,
}

/// What recording an attempt changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    Opened(Duration),
    Closed,
}

/// What a breaker is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum About {
    /// A host, or what stands for one.
    Host(Arc<str>),
    /// A subscription.
    Subscription(i64),
}

/// All breakers of a relay.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    breakers: Mutex<HashMap<About, Breaker>>,
    /// How many there are: mostly none, and then nothing needs to be looked up.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Breaker {
    state: State,
    failures_in_a_row: u32,
    window_began: Instant,
    attempts: u32,
    failures: u32,
}

#[derive(Debug)]
enum State {
    Closed,
    Open { until: Instant, length: Duration },
    Probing { since: Instant, length: Duration },
}

impl Breakers {
    fn breakers(&self) -> std::sync::MutexGuard<'_, HashMap<About, Breaker>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may be sent to a subscription now. Does not take the probe.
    pub(crate) fn gate(&self, subscription: i64, host: &Arc<str>, now: Instant) -> Gate {
        if self.count.load(Ordering::Acquire) == 0 {
            return Gate::Closed;
        }
        let breakers = self.breakers();
        let gates = both(subscription, host)
            .map(|about| breakers.get(&about).map_or(Gate::Closed, |breaker| breaker.gate(now)));
        match gates {
            [Gate::Open(one), Gate::Open(other)] => Gate::Open(one.max(other)),
            [Gate::Open(until), _] | [_, Gate::Open(until)] => Gate::Open(until),
            [Gate::Probe, _] | [_, Gate::Probe] => Gate::Probe,
            [Gate::Closed, Gate::Closed] => Gate::Closed,
        }
    }

    /// The probe is under way: nothing else is sent until it reports.
    pub(crate) fn begin_probe(&self, subscription: i64, host: &Arc<str>, now: Instant) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut breakers = self.breakers();
        for about in both(subscription, host) {
            if let Some(breaker) = breakers.get_mut(&about)
                && let State::Open { length, .. } | State::Probing { length, .. } = breaker.state
            {
                breaker.state = State::Probing { since: now, length };
            }
        }
    }

    /// Records what became of an attempt.
    pub(crate) fn record(
        &self,
        subscription: i64,
        host: &Arc<str>,
        outcome: &Outcome,
        now: Instant,
    ) -> Vec<(About, Change)> {
        let word = Evidence::of(outcome);
        if word == Evidence::Nothing
            || word != Evidence::FailedHost
                && word != Evidence::Failed
                && self.count.load(Ordering::Acquire) == 0
        {
            return Vec::new();
        }
        let mut breakers = self.breakers();
        let mut changes = Vec::new();
        for about in both(subscription, host) {
            let probes =
                breakers.get(&about).is_some_and(|breaker| matches!(breaker.state, State::Probing { .. }));
            let failed = match (word, &about) {
                (Evidence::FailedHost, About::Host(_)) | (Evidence::Failed, About::Subscription(_)) => true,
                // The host's probe came to nothing; whether it was its fault the next one tells.
                (Evidence::Failed, About::Host(_)) if probes && is_silence(outcome) => true,
                (Evidence::Failed, About::Host(_)) if is_silence(outcome) => continue,
                (Evidence::Works, _) | (Evidence::Failed, About::Host(_)) => false,
                // About one event only; but a probe asks no more than whether somebody answers.
                (Evidence::Answers, _) if probes => false,
                (Evidence::FailedHost, About::Subscription(_)) => {
                    // Says nothing of the subscription: the next one probes.
                    if let Some(breaker) = breakers.get_mut(&about)
                        && let State::Probing { length, .. } = breaker.state
                    {
                        breaker.state = State::Open { until: now, length };
                    }
                    continue;
                }
                (Evidence::Answers | Evidence::Nothing, _) => continue,
            };
            if !failed && !breakers.contains_key(&about) {
                continue;
            }
            let change =
                breakers.entry(about.clone()).or_insert_with(|| Breaker::new(now)).record(failed, now);
            if !failed && breakers.get(&about).is_some_and(Breaker::is_idle) {
                breakers.remove(&about);
            }
            if change != Change::None {
                changes.push((about, change));
            }
        }
        self.count.store(breakers.len(), Ordering::Release);
        changes
    }

    /// Lets the next probe through at once, if an attempt was the probe and tells nothing of its destination.
    /// Returns whether it did.
    pub(crate) fn probe_again(
        &self,
        subscription: i64,
        host: &Arc<str>,
        outcome: &Outcome,
        now: Instant,
    ) -> bool {
        if self.count.load(Ordering::Acquire) == 0 || Evidence::of(outcome) != Evidence::Nothing {
            return false;
        }
        let mut breakers = self.breakers();
        let mut did = false;
        for about in both(subscription, host) {
            if let Some(breaker) = breakers.get_mut(&about)
                && let State::Probing { length, .. } = breaker.state
            {
                breaker.state = State::Open { until: now, length };
                did = true;
            }
        }
        did
    }

    /// Lets a probe through at once: an operator asks for it.
    pub(crate) fn probe_now(&self, subscription: i64, host: &Arc<str>, now: Instant) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut breakers = self.breakers();
        for about in both(subscription, host) {
            if let Some(breaker) = breakers.get_mut(&about)
                && let State::Open { length, .. } = breaker.state
            {
                breaker.state = State::Open { until: now, length };
            }
        }
    }

    /// Breakers that are not closed.
    pub(crate) fn open(&self) -> HashMap<About, BreakerState> {
        self.breakers()
            .iter()
            .filter_map(|(about, breaker)| match breaker.state {
                State::Closed => None,
                State::Open { .. } => Some((about.clone(), BreakerState::Open)),
                State::Probing { .. } => Some((about.clone(), BreakerState::HalfOpen)),
            })
            .collect()
    }

    /// Forgets what no subscription has any more.
    pub(crate) fn keep_only(&self, wanted: impl Fn(&About) -> bool) {
        let mut breakers = self.breakers();
        breakers.retain(|about, _| wanted(about));
        self.count.store(breakers.len(), Ordering::Release);
    }
}

fn both(subscription: i64, host: &Arc<str>) -> [About; 2] {
    [About::Host(host.clone()), About::Subscription(subscription)]
}

/// It may be the host that says nothing, or the program behind it.
fn is_silence(outcome: &Outcome) -> bool {
    matches!(outcome.reason(), Some(Reason::Timeout))
}

/// What an outcome says about its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// Nobody can reach it.
    FailedHost,
    Failed,
    Works,
    /// Somebody answers there; whether well, is about this event.
    Answers,
    Nothing,
}

impl Evidence {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Delivered | Outcome::Gone => Self::Works,
            Outcome::Rejected { reason } | Outcome::Retry { reason, .. } => match reason {
                Reason::DnsFailed | Reason::ConnectFailed | Reason::TlsFailed | Reason::ForbiddenAddress => {
                    Self::FailedHost
                }
                Reason::Timeout
                | Reason::BrokenAnswer
                | Reason::ServerError
                | Reason::AccessDenied
                | Reason::DestinationFull
                | Reason::RateLimited => Self::Failed,
                Reason::ClientError | Reason::NotAcknowledged => Self::Works,
                Reason::Redirect
                | Reason::Gone
                | Reason::TargetMissing
                | Reason::Unroutable
                | Reason::Refused
                | Reason::FunctionFailed
                | Reason::HandlerFailed => Self::Answers,
                // The sink may find out by itself that a body is too large or a payload unusable.
                Reason::BodyTooLarge
                | Reason::PayloadUnusable
                | Reason::TransformFailed
                | Reason::SchemaMismatch
                | Reason::UpcastFailed
                | Reason::TemplateFailed
                | Reason::SinkPanicked
                | Reason::SinkBroken
                | Reason::LeaseLost
                | Reason::RelayStopped
                | Reason::RelayKilled
                | Reason::Expired
                | Reason::EventUnreadable => Self::Nothing,
            },
        }
    }
}

/// The outcome that tells most of the destination: the first that tells whether it works, else whether it
/// answers.
pub(super) fn clearest<'o>(outcomes: impl Iterator<Item = &'o Outcome>) -> Option<usize> {
    let unclear = |outcome: &Outcome| match Evidence::of(outcome) {
        Evidence::FailedHost | Evidence::Failed | Evidence::Works => 0,
        Evidence::Answers => 1,
        Evidence::Nothing => 2,
    };
    outcomes.enumerate().min_by_key(|(_, outcome)| unclear(outcome)).map(|(at, _)| at)
}

impl Breaker {
    fn new(now: Instant) -> Self {
        Self { state: State::Closed, failures_in_a_row: 0, window_began: now, attempts: 0, failures: 0 }
    }

    /// Closed, and nothing failed of late: as if there were none.
    fn is_idle(&self) -> bool {
        matches!(self.state, State::Closed) && self.failures == 0
    }

    fn gate(&self, now: Instant) -> Gate {
        match self.state {
            State::Closed => Gate::Closed,
            State::Open { until, .. } if now < until => Gate::Open(until),
            State::Open { .. } => Gate::Probe,
            State::Probing { since, .. } if now < since + PROBE_LOST => Gate::Open(since + PROBE_LOST),
            State::Probing { .. } => Gate::Probe,
        }
    }

    fn record(&mut self, failed: bool, now: Instant) -> Change {
        match self.state {
            State::Closed => {
                if now.duration_since(self.window_began) > WITHIN {
                    (self.window_began, self.attempts, self.failures) = (now, 0, 0);
                }
                self.attempts += 1;
                if !failed {
                    self.failures_in_a_row = 0;
                    return Change::None;
                }
                self.failures += 1;
                self.failures_in_a_row += 1;
                let many =
                    self.attempts >= AT_LEAST && f64::from(self.failures) >= SHARE * f64::from(self.attempts);
                if self.failures_in_a_row >= IN_A_ROW || many {
                    self.open(OPEN_FOR, now)
                } else {
                    Change::None
                }
            }
            State::Probing { .. } if !failed => {
                *self = Self::new(now);
                Change::Closed
            }
            State::Probing { length, .. } => self.open((length * 2).min(OPEN_AT_MOST), now),
            // Stragglers that were in flight when it opened decide nothing.
            State::Open { .. } => Change::None,
        }
    }

    fn open(&mut self, length: Duration, now: Instant) -> Change {
        self.state = State::Open { until: now + length, length };
        Change::Opened(length)
    }
}

#[cfg(test)]
mod tests;
