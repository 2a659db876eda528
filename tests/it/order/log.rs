//! A sink that records when attempts begin and end, by key, and a check of their order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use pgoutbox::{
    delivery::{Outcome, Reason},
    sink::{Outgoing, Problem, Report, Sink},
};
use tokio::sync::{Notify, RwLock};

use crate::support::Database;

/// An attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attempt {
    pub(super) subscription: String,
    pub(super) key: Option<String>,
    pub(super) position: i64,
    pub(super) number: u32,
}

/// What happened to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Began,
    Delivered,
    Failed,
    /// Its relay was ended.
    CutOff,
}

type Answer = Arc<dyn Fn(&Attempt) -> bool + Send + Sync>;

/// Attempts of all relays, in the order in which they began and ended.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    entries: Arc<Mutex<Vec<(Attempt, What)>>>,
    different: Arc<Mutex<BTreeSet<(String, i64)>>>,
    changed: Arc<Notify>,
}

/// The sink `by_key`.
#[derive(Clone)]
pub(super) struct ByKey {
    log: Log,
    answer: Answer,
    takes: Duration,
    /// A key whose attempts wait while this is locked exclusively.
    behind: Option<(&'static str, Arc<RwLock<()>>)>,
}

impl std::fmt::Debug for ByKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByKey").finish_non_exhaustive()
    }
}

impl Log {
    /// A sink that delivers an attempt if `answer` says so.
    pub(super) fn sink(&self, answer: impl Fn(&Attempt) -> bool + Send + Sync + 'static) -> ByKey {
        ByKey { log: self.clone(), answer: Arc::new(answer), takes: Duration::ZERO, behind: None }
    }

    fn add(&self, attempt: &Attempt, what: What) {
        if what == What::Delivered {
            self.different.lock().unwrap().insert((attempt.subscription.clone(), attempt.position));
        }
        self.entries.lock().unwrap().push((attempt.clone(), what));
        self.changed.notify_waiters();
    }

    /// Keys and positions in the order of delivery.
    pub(super) fn delivered(&self) -> Vec<(String, i64)> {
        let entries = self.entries.lock().unwrap();
        let delivered = entries.iter().filter(|(_, what)| *what == What::Delivered);
        delivered.map(|(one, _)| (one.key.clone().unwrap_or_default(), one.position)).collect()
    }

    /// The subscriptions of all attempts, in the order in which they began.
    pub(super) fn began(&self) -> Vec<String> {
        let entries = self.entries.lock().unwrap();
        let began = entries.iter().filter(|(_, what)| *what == What::Began);
        began.map(|(one, _)| one.subscription.clone()).collect()
    }

    /// Waits until so many different deliveries succeeded, at most 30 s for each next attempt.
    pub(super) async fn wait_for(&self, count: usize) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = self.count();
            if now >= count {
                return;
            }
            if tokio::time::timeout(Duration::from_secs(30), changed).await.is_err() {
                panic!("{now} of {count}, and nothing for 30 s");
            }
        }
    }

    fn count(&self) -> usize {
        self.different.lock().unwrap().len()
    }

    /// Checks the order of each key, of which every event was delivered: one attempt at a time, none before
    /// all earlier events were delivered, and none after a later one was. Returns the number of attempts.
    pub(super) async fn check(&self, database: &Database) -> usize {
        let events: Vec<(i64, String)> =
            sqlx::query_as("select position, key from outbox.events where key is not null order by position")
                .fetch_all(&database.pool)
                .await
                .unwrap();
        let mut of_key: BTreeMap<&str, BTreeSet<i64>> = BTreeMap::new();
        for (position, key) in &events {
            of_key.entry(key).or_default().insert(*position);
        }
        let entries = self.entries.lock().unwrap();
        // By subscription and key: what was delivered, and what is in flight.
        let mut done: BTreeMap<(&str, &str), BTreeSet<i64>> = BTreeMap::new();
        let mut in_flight: BTreeMap<(&str, &str), &Attempt> = BTreeMap::new();
        for (attempt, what) in entries.iter() {
            let Some(key) = attempt.key.as_deref() else { continue };
            let lane = (attempt.subscription.as_str(), key);
            let done = done.entry(lane).or_default();
            match what {
                What::Began => {
                    assert_eq!(in_flight.insert(lane, attempt), None, "two in flight: {attempt:?}");
                    let earlier = of_key[key].range(..attempt.position);
                    let missing: Vec<_> = earlier.filter(|position| !done.contains(position)).collect();
                    assert!(missing.is_empty(), "before the events at {missing:?}: {attempt:?}");
                    let later: Vec<_> = done.range(attempt.position + 1..).collect();
                    assert!(later.is_empty(), "after the events at {later:?}: {attempt:?}");
                }
                What::Delivered | What::Failed | What::CutOff => {
                    assert_eq!(in_flight.remove(&lane), Some(attempt));
                    if *what == What::Delivered {
                        done.insert(attempt.position);
                    }
                }
            }
        }
        for ((subscription, key), done) in done {
            assert_eq!(done, of_key[key], "{subscription}, key {key}");
        }
        entries.iter().filter(|(_, what)| *what == What::Began).count()
    }
}

impl ByKey {
    /// Each attempt takes so long.
    pub(super) fn taking(self, takes: Duration) -> Self {
        Self { takes, ..self }
    }

    /// Attempts of this key wait while the gate is locked exclusively.
    pub(super) fn behind(self, key: &'static str, gate: Arc<RwLock<()>>) -> Self {
        Self { behind: Some((key, gate)), ..self }
    }
}

/// An attempt in flight. What is dropped unfinished was cut off.
struct InFlight {
    log: Log,
    attempt: Attempt,
    ended: Option<What>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.log.add(&self.attempt, self.ended.unwrap_or(What::CutOff));
    }
}

impl Sink for ByKey {
    const KIND: &'static str = "by_key";
    type Target = ();

    fn target(&self, _: &serde_json::Value) -> Result<(), Problem> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        None
    }

    async fn send(&self, (): &(), delivery: &Outgoing) -> Report {
        let attempt = Attempt {
            subscription: delivery.subscription.to_string(),
            key: delivery.event.key.clone(),
            position: delivery.event.position.0,
            number: delivery.attempt,
        };
        self.log.add(&attempt, What::Began);
        let mut in_flight = InFlight { log: self.log.clone(), attempt, ended: None };
        if let Some((key, gate)) = &self.behind
            && in_flight.attempt.key.as_deref() == Some(*key)
        {
            drop(gate.read().await);
        }
        if !self.takes.is_zero() {
            crate::support::pause(self.takes).await;
        }
        let delivered = (self.answer)(&in_flight.attempt);
        in_flight.ended = Some(if delivered { What::Delivered } else { What::Failed });
        if delivered {
            Outcome::Delivered.into()
        } else {
            Outcome::Retry { reason: Reason::Refused, after: None }.into()
        }
    }

    fn deadline(&self, (): &()) -> Duration {
        Duration::from_secs(15)
    }
}
