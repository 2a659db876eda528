//! One breaker per destination and relay: opens after failures, lets one probe through, closes on success. While it is open
//! nothing is claimed for it, so an outage burns no attempt.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    delivery::{Outcome, Reason},
    store::BreakerState,
};

/// Opens after so many failures in a row,
const IN_A_ROW: u32 = 20;
/// or when of at least so many attempts
const AT_LEAST: u32 = 20;
/// within this time
const WITHIN: Duration = Duration::from_secs(60);
/// this share failed.
const SHARE: f64 = 0.7;
/// How long it stays open at first: a deploy takes seconds, and a probe is one request; doubles with each failed probe
const OPEN_FOR: Duration = Duration::from_secs(2);
/// up to this.
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

/// All breakers of a relay.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    breakers: Mutex<HashMap<Arc<str>, Breaker>>,
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
    fn breakers(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Breaker>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may be sent now. Does not take the probe.
    pub(crate) fn gate(&self, destination: &str, now: Instant) -> Gate {
        self.breakers().get(destination).map_or(Gate::Closed, |breaker| breaker.gate(now))
    }

    /// The probe is under way: nothing else is sent until it reports.
    pub(crate) fn begin_probe(&self, destination: &str, now: Instant) {
        if let Some(breaker) = self.breakers().get_mut(destination)
            && let State::Open { length, .. } | State::Probing { length, .. } = breaker.state
        {
            breaker.state = State::Probing { since: now, length };
        }
    }

    /// Records what became of an attempt.
    pub(crate) fn record(&self, destination: &Arc<str>, outcome: &Outcome, now: Instant) -> Change {
        let mut breakers = self.breakers();
        let failed = match Evidence::of(outcome) {
            Evidence::Failed => true,
            Evidence::Works => false,
            // About one event only; but a probe asks no more than whether somebody answers.
            Evidence::Answers
                if breakers
                    .get(destination)
                    .is_some_and(|breaker| matches!(breaker.state, State::Probing { .. })) =>
            {
                false
            }
            Evidence::Answers | Evidence::Nothing => return Change::None,
        };
        if !failed && !breakers.contains_key(destination) {
            return Change::None;
        }
        breakers.entry(destination.clone()).or_insert_with(|| Breaker::new(now)).record(failed, now)
    }

    /// Lets the next probe through at once where an attempt says nothing of its destination and may have been the probe.
    /// Returns whether it did.
    pub(crate) fn probe_again(&self, destination: &str, outcome: &Outcome, now: Instant) -> bool {
        match self.breakers().get_mut(destination) {
            Some(breaker) if Evidence::of(outcome) == Evidence::Nothing => match breaker.state {
                State::Probing { length, .. } => {
                    breaker.state = State::Open { until: now, length };
                    true
                }
                State::Closed | State::Open { .. } => false,
            },
            _ => false,
        }
    }

    /// Breakers that are not closed, by destination.
    pub(crate) fn open(&self) -> HashMap<Arc<str>, BreakerState> {
        self.breakers()
            .iter()
            .filter_map(|(destination, breaker)| match breaker.state {
                State::Closed => None,
                State::Open { .. } => Some((destination.clone(), BreakerState::Open)),
                State::Probing { .. } => Some((destination.clone(), BreakerState::HalfOpen)),
            })
            .collect()
    }

    /// Forgets destinations that no subscription has any more.
    pub(crate) fn keep_only(&self, wanted: impl Fn(&str) -> bool) {
        self.breakers().retain(|destination, _| wanted(destination));
    }
}

/// What an outcome says about its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
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
                Reason::DnsFailed
                | Reason::ConnectFailed
                | Reason::TlsFailed
                | Reason::ForbiddenAddress
                | Reason::Timeout
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

/// Which of these outcomes says most about their destination: the first that says whether it works, or else that it answers.
pub(super) fn clearest<'o>(outcomes: impl Iterator<Item = &'o Outcome>) -> Option<usize> {
    let unclear = |outcome: &Outcome| match Evidence::of(outcome) {
        Evidence::Failed | Evidence::Works => 0,
        Evidence::Answers => 1,
        Evidence::Nothing => 2,
    };
    outcomes.enumerate().min_by_key(|(_, outcome)| unclear(outcome)).map(|(at, _)| at)
}

impl Breaker {
    fn new(now: Instant) -> Self {
        Self { state: State::Closed, failures_in_a_row: 0, window_began: now, attempts: 0, failures: 0 }
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
mod tests {
    use super::*;

    const FAILED: Outcome = Outcome::Retry { reason: Reason::ServerError, after: None };

    fn tripped(breakers: &Breakers, there: &Arc<str>, now: Instant) {
        for _ in 0..IN_A_ROW {
            breakers.record(there, &FAILED, now);
        }
    }

    #[test]
    fn it_opens_after_twenty_failures_in_a_row_and_not_before() {
        let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
        for _ in 1..IN_A_ROW {
            assert_eq!(breakers.record(&there, &FAILED, now), Change::None);
        }
        assert_eq!(breakers.gate(&there, now), Gate::Closed);
        assert_eq!(breakers.record(&there, &FAILED, now), Change::Opened(OPEN_FOR));
        assert_eq!(breakers.gate(&there, now), Gate::Open(now + OPEN_FOR));
        assert_eq!(breakers.gate("https://b", now), Gate::Closed);
    }

    #[test]
    fn it_opens_when_most_of_a_minute_failed() {
        let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
        let mut opened = false;
        for round in 0..40 {
            let outcome = if round % 5 == 4 { Outcome::Delivered } else { FAILED };
            opened |= matches!(breakers.record(&there, &outcome, now), Change::Opened(_));
        }
        assert!(opened);
    }

    #[test]
    fn one_probe_goes_through_and_decides() {
        let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
        tripped(&breakers, &there, now);
        let later = now + OPEN_FOR;
        assert_eq!(breakers.gate(&there, later), Gate::Probe);
        breakers.begin_probe(&there, later);
        assert!(matches!(breakers.gate(&there, later), Gate::Open(_)), "only one");
        assert_eq!(breakers.record(&there, &FAILED, later), Change::Opened(OPEN_FOR * 2));
        let later = later + OPEN_FOR * 2;
        breakers.begin_probe(&there, later);
        assert_eq!(breakers.record(&there, &Outcome::Delivered, later), Change::Closed);
        assert_eq!(breakers.gate(&there, later), Gate::Closed);
    }

    #[test]
    fn a_probe_that_is_answered_closes_it_whatever_the_answer_is() {
        let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
        let answer = Outcome::Retry { reason: Reason::FunctionFailed, after: None };
        tripped(&breakers, &there, now);
        assert_eq!(breakers.record(&there, &answer, now), Change::None, "a straggler");
        breakers.begin_probe(&there, now + OPEN_FOR);
        assert_eq!(breakers.record(&there, &answer, now + OPEN_FOR), Change::Closed);
    }

    #[test]
    fn a_probe_that_says_nothing_makes_way_for_the_next_at_once() {
        let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
        let nothing = Outcome::Rejected { reason: Reason::TransformFailed };
        tripped(&breakers, &there, now);
        assert!(!breakers.probe_again(&there, &nothing, now), "a straggler");
        let later = now + OPEN_FOR;
        breakers.begin_probe(&there, later);
        assert!(!breakers.probe_again(&there, &FAILED, later), "it is recorded");
        assert!(breakers.probe_again(&there, &nothing, later));
        assert_eq!(breakers.gate(&there, later), Gate::Probe);
        breakers.begin_probe(&there, later);
        assert_eq!(
            breakers.record(&there, &FAILED, later),
            Change::Opened(OPEN_FOR * 2),
            "it has forgotten nothing"
        );
    }

    #[test]
    fn of_a_batch_the_outcome_counts_that_says_most() {
        let of = |reason| Outcome::Retry { reason, after: None };
        let (nothing, answers) = (of(Reason::TemplateFailed), of(Reason::Refused));
        assert_eq!(clearest([&nothing, &answers, &FAILED, &Outcome::Delivered].into_iter()), Some(2));
        assert_eq!(clearest([&nothing, &answers, &answers].into_iter()), Some(1));
        assert_eq!(clearest([&nothing, &nothing].into_iter()), Some(0));
    }

    #[test]
    fn it_never_stays_open_longer_than_five_minutes() {
        let (breakers, there, mut now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
        tripped(&breakers, &there, now);
        for _ in 0..10 {
            let Gate::Open(until) = breakers.gate(&there, now) else { panic!("open") };
            assert!(until - now <= OPEN_AT_MOST);
            now = until;
            breakers.begin_probe(&there, now);
            breakers.record(&there, &FAILED, now);
        }
    }

    #[test]
    fn an_answer_about_one_event_does_not_open_it() {
        let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
        for _ in 0..100 {
            breakers.record(&there, &Outcome::Retry { reason: Reason::ClientError, after: None }, now);
        }
        assert_eq!(breakers.gate(&there, now), Gate::Closed);
    }
}
