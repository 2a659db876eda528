//! How many attempts of each subscription succeeded and failed: since the relay started, and lately.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::delivery::SubscriptionId;

/// Minutes that count as lately, with the one that has begun.
const MINUTES: u64 = 15;

/// Attempts of each subscription.
#[derive(Debug)]
pub(in crate::relay) struct Tallies {
    started: Instant,
    of: Mutex<HashMap<SubscriptionId, Tally>>,
}

#[derive(Debug, Default)]
struct Tally {
    delivered: i64,
    failed: i64,
    /// Successes in the minutes since the start, each at its number modulo their count.
    minutes: [i64; MINUTES as usize],
    /// Number of the last minute that was counted.
    newest: u64,
    succeeded: Option<Instant>,
    /// First failure after the last success.
    failing: Option<Instant>,
    failed_at: Option<Instant>,
}

/// How long ago attempts of one subscription succeeded and failed; none where there was none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::relay) struct Health {
    /// The last success.
    pub(in crate::relay) succeeded: Option<Duration>,
    /// The first failure after it.
    pub(in crate::relay) failing: Option<Duration>,
    /// The last failure.
    pub(in crate::relay) failed: Option<Duration>,
}

/// Attempts of one subscription.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::relay) struct Counts {
    /// Those that succeeded since the relay started.
    pub(in crate::relay) delivered: i64,
    /// Those that failed since the relay started.
    pub(in crate::relay) failed: i64,
    /// Those that succeeded in the last 15 minutes.
    pub(in crate::relay) delivered_lately: i64,
}

impl Default for Tallies {
    fn default() -> Self {
        Self { started: Instant::now(), of: Mutex::default() }
    }
}

impl Tallies {
    pub(super) fn add(&self, subscription: SubscriptionId, delivered: bool) {
        let minute = self.minute();
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = of.entry(subscription).or_default();
        let now = Instant::now();
        if !delivered {
            tally.failing.get_or_insert(now);
            tally.failed_at = Some(now);
            tally.failed += 1;
            return;
        }
        tally.succeeded = Some(now);
        tally.failing = None;
        tally.forget(minute);
        tally.delivered += 1;
        tally.minutes[(minute % MINUTES) as usize] += 1;
    }

    pub(in crate::relay) fn all(&self) -> HashMap<SubscriptionId, Counts> {
        let minute = self.minute();
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        of.iter_mut()
            .map(|(id, tally)| {
                tally.forget(minute);
                let delivered_lately = tally.minutes.iter().sum();
                (*id, Counts { delivered: tally.delivered, failed: tally.failed, delivered_lately })
            })
            .collect()
    }

    pub(in crate::relay) fn health(&self) -> Vec<(SubscriptionId, Health)> {
        let of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let ago = |at: Option<Instant>| at.map(|at| at.elapsed());
        of.iter()
            .map(|(id, tally)| {
                let [succeeded, failing, failed] = [tally.succeeded, tally.failing, tally.failed_at].map(ago);
                (*id, Health { succeeded, failing, failed })
            })
            .collect()
    }

    /// Minutes since the start.
    fn minute(&self) -> u64 {
        self.started.elapsed().as_secs() / 60
    }
}

impl Tally {
    /// Forgets minutes that are too long ago.
    fn forget(&mut self, now: u64) {
        for minute in (self.newest + 1..=now).take(MINUTES as usize) {
            self.minutes[(minute % MINUTES) as usize] = 0;
        }
        self.newest = self.newest.max(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_succeeded_counts_as_lately_for_a_quarter_of_an_hour() {
        let (tallies, id) = (Tallies::default(), SubscriptionId(7));
        let counts = || tallies.all()[&id];
        tallies.add(id, true);
        tallies.add(id, false);
        assert_eq!(counts(), Counts { delivered: 1, failed: 1, delivered_lately: 1 });
        tokio::time::advance(Duration::from_secs(14 * 60)).await;
        tallies.add(id, true);
        assert_eq!(counts().delivered_lately, 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(counts().delivered_lately, 1);
        tokio::time::advance(Duration::from_secs(13 * 60)).await;
        assert_eq!(counts().delivered_lately, 1);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(counts(), Counts { delivered: 2, failed: 1, delivered_lately: 0 });
        tallies.add(id, true);
        tokio::time::advance(Duration::from_secs(600 * 60)).await;
        assert_eq!(counts(), Counts { delivered: 3, failed: 1, delivered_lately: 0 });
    }
}
