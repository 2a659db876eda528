//! Breakers of two kinds. The breaker of a host is about its name, connections and TLS; the breaker of a
//! subscription is about its answers and time-outs. A breaker opens after failures, lets one probe through,
//! and closes on success. While it is open nothing is claimed, so an outage uses up no attempts.

mod evidence;
mod news;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use self::evidence::{Evidence, is_timeout};
pub(super) use self::{
    evidence::clearest,
    news::{CHANNEL, News, Unsent},
};
use crate::{
    delivery::{Outcome, SubscriptionId},
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
/// Time after which a probe without a report counts as lost.
const PROBE_LOST: Duration = Duration::from_secs(90);
/// How often in a row a relay leaves a probe to another relay. Then it probes itself: the other's network may
/// be the cause.
const LEFT_TO_OTHERS: u32 = 2;

/// What the breakers of a delivery let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Closed,
    /// Nothing until this instant.
    Open(Instant),
    /// One delivery, as a probe.
    Probe,
}

/// How recording an attempt changed a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    /// Opened for this time.
    Opened(Duration),
    Closed,
}

/// The destination of a breaker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum About {
    /// A host, or its equivalent at a sink without hosts.
    Host(Arc<str>),
    Subscription(SubscriptionId),
}

/// All breakers of a relay.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    breakers: Mutex<HashMap<About, Breaker>>,
    /// By which share each stays open longer, so that relays that saw the same do not probe at one time.
    spread: f64,
    /// Number of breakers: usually zero, which needs no lock.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Breaker {
    state: State,
    failures_in_a_row: u32,
    window_began: Instant,
    attempts: u32,
    failures: u32,
    spread: f64,
    /// Probes in a row that were left to other relays.
    left_to_others: u32,
    /// When it opened, or its last probe failed.
    opened: Instant,
}

#[derive(Debug)]
enum State {
    Closed,
    Open {
        until: Instant,
        length: Duration,
    },
    Probing {
        since: Instant,
        length: Duration,
    },
    /// Another relay probes.
    OthersProbe {
        since: Instant,
        length: Duration,
    },
}

impl Breakers {
    /// Breakers that stay open longer than others by a share from 0 to 1.
    pub(crate) fn new(spread: f64) -> Self {
        Self { spread, ..Self::default() }
    }

    fn breakers(&self) -> std::sync::MutexGuard<'_, HashMap<About, Breaker>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may be sent to a subscription now. Does not begin a probe.
    pub(crate) fn gate(&self, subscription: SubscriptionId, host: &Arc<str>, now: Instant) -> Gate {
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

    /// Begins a probe where one is due. Nothing else is let through until it reports. Returns what is probed.
    pub(crate) fn begin_probe(
        &self,
        subscription: SubscriptionId,
        host: &Arc<str>,
        now: Instant,
    ) -> Vec<About> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut breakers = self.breakers();
        let mut probed = Vec::new();
        for about in both(subscription, host) {
            if let Some(breaker) = breakers.get_mut(&about)
                && let Some(length) = breaker.length()
            {
                breaker.state = State::Probing { since: now, length };
                breaker.left_to_others = 0;
                probed.push(about);
            }
        }
        probed
    }

    /// Applies what another relay tells of its probe. Returns whether this relay may probe now.
    pub(crate) fn hear(&self, about: &About, news: News, now: Instant) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut breakers = self.breakers();
        let Some(breaker) = breakers.get_mut(about) else { return false };
        match (news, &breaker.state) {
            // What this relay sees itself counts for more.
            (_, State::Closed | State::Probing { .. }) => false,
            (News::Probing, State::Open { length, .. } | State::OthersProbe { length, .. }) => {
                if breaker.left_to_others < LEFT_TO_OTHERS {
                    breaker.left_to_others += 1;
                    breaker.state = State::OthersProbe { since: now, length: *length };
                }
                false
            }
            (News::Failed, State::OthersProbe { length, .. }) => {
                breaker.open((*length * 2).min(OPEN_AT_MOST), now);
                false
            }
            (News::Failed, State::Open { .. }) => false,
            (News::Works, State::Open { length, .. } | State::OthersProbe { length, .. }) => {
                // News cost a destination that is down no more than a probe in the time of the first one.
                let until = (breaker.opened + OPEN_FOR).max(now);
                breaker.state = State::Open { until, length: *length };
                true
            }
        }
    }

    /// Records the outcome of an attempt. Returns the breakers that opened or closed.
    pub(crate) fn record(
        &self,
        subscription: SubscriptionId,
        host: &Arc<str>,
        outcome: &Outcome,
        now: Instant,
    ) -> Vec<(About, Change)> {
        let evidence = Evidence::of(outcome);
        if evidence == Evidence::Nothing
            || evidence != Evidence::FailedHost
                && evidence != Evidence::Failed
                && self.count.load(Ordering::Acquire) == 0
        {
            return Vec::new();
        }
        let mut breakers = self.breakers();
        let mut changes = Vec::new();
        for about in both(subscription, host) {
            let probes =
                breakers.get(&about).is_some_and(|breaker| matches!(breaker.state, State::Probing { .. }));
            let failed = match (evidence, &about) {
                (Evidence::FailedHost, About::Host(_)) | (Evidence::Failed, About::Subscription(_)) => true,
                // A probe of the host timed out: the next one may show whether the host was the cause.
                (Evidence::Failed, About::Host(_)) if probes && is_timeout(outcome) => true,
                (Evidence::Failed, About::Host(_)) if is_timeout(outcome) => continue,
                (Evidence::Works, _) | (Evidence::Failed, About::Host(_)) => false,
                // An answer about one event only. For a probe any answer is a success.
                (Evidence::Answers, _) if probes => false,
                (Evidence::FailedHost, About::Subscription(_)) => {
                    // No evidence about the subscription: let the next probe through.
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
            let change = breakers
                .entry(about.clone())
                .or_insert_with(|| Breaker::new(now, self.spread))
                .record(failed, now);
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
        subscription: SubscriptionId,
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
    pub(crate) fn probe_now(&self, subscription: SubscriptionId, host: &Arc<str>, now: Instant) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut breakers = self.breakers();
        for about in both(subscription, host) {
            if let Some(breaker) = breakers.get_mut(&about)
                && let State::Open { length, .. } | State::OthersProbe { length, .. } = breaker.state
            {
                breaker.state = State::Open { until: now, length };
            }
        }
    }

    /// Breakers that are not closed. One is half-open while the next delivery may be its probe: that may be
    /// long, if there is nothing to deliver.
    pub(crate) fn not_closed(&self, now: Instant) -> HashMap<About, BreakerState> {
        self.breakers()
            .iter()
            .filter_map(|(about, breaker)| match breaker.state {
                State::Closed => None,
                State::Open { until, .. } if now < until => Some((about.clone(), BreakerState::Open)),
                State::Open { .. } | State::Probing { .. } | State::OthersProbe { .. } => {
                    Some((about.clone(), BreakerState::HalfOpen))
                }
            })
            .collect()
    }

    /// Breakers that hold deliveries back now. One that only waits for a delivery to probe with does not.
    pub(crate) fn open(&self, now: Instant) -> Vec<About> {
        let breakers = self.breakers();
        let open = breakers.iter().filter(|(_, breaker)| matches!(breaker.gate(now), Gate::Open(_)));
        open.map(|(about, _)| about.clone()).collect()
    }

    /// Forgets breakers that are not wanted.
    pub(crate) fn keep_only(&self, wanted: impl Fn(&About) -> bool) {
        let mut breakers = self.breakers();
        breakers.retain(|about, _| wanted(about));
        self.count.store(breakers.len(), Ordering::Release);
    }
}

fn both(subscription: SubscriptionId, host: &Arc<str>) -> [About; 2] {
    [About::Host(host.clone()), About::Subscription(subscription)]
}

impl Breaker {
    fn new(now: Instant, spread: f64) -> Self {
        Self {
            spread,
            state: State::Closed,
            failures_in_a_row: 0,
            window_began: now,
            attempts: 0,
            failures: 0,
            left_to_others: 0,
            opened: now,
        }
    }

    /// How long it was opened; `None` while it is closed.
    fn length(&self) -> Option<Duration> {
        match self.state {
            State::Closed => None,
            State::Open { length, .. }
            | State::Probing { length, .. }
            | State::OthersProbe { length, .. } => Some(length),
        }
    }

    /// Whether it is closed and without recent failures, so that it can be removed.
    fn is_idle(&self) -> bool {
        matches!(self.state, State::Closed) && self.failures == 0
    }

    fn gate(&self, now: Instant) -> Gate {
        match self.state {
            State::Closed => Gate::Closed,
            State::Open { until, .. } if now < until => Gate::Open(until),
            State::Open { .. } => Gate::Probe,
            State::Probing { since, .. } | State::OthersProbe { since, .. } if now < since + PROBE_LOST => {
                Gate::Open(since + PROBE_LOST)
            }
            State::Probing { .. } | State::OthersProbe { .. } => Gate::Probe,
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
                *self = Self::new(now, self.spread);
                Change::Closed
            }
            State::Probing { length, .. } => self.open((length * 2).min(OPEN_AT_MOST), now),
            // The attempt was in flight when the breaker opened.
            State::Open { .. } | State::OthersProbe { .. } => Change::None,
        }
    }

    fn open(&mut self, length: Duration, now: Instant) -> Change {
        self.opened = now;
        self.state = State::Open { until: now + length.mul_f64(1.0 + self.spread), length };
        Change::Opened(length)
    }
}

#[cfg(test)]
mod tests;
