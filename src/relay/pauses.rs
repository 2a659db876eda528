//! Pauses that destinations asked for. This relay keeps them from the answer on; the other relays learn of
//! them from the database.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::parts::{Base, Sending, Waiting};
use crate::{
    delivery::SubscriptionId,
    store::{Error, LoadedPauses},
};

/// Channel on which relays tell each other that there are new pauses.
pub(super) const CHANNEL: &str = "outbox_pauses";
/// How often pauses are read although no relay has notified of any.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The same while no other relay runs that could record any.
const LOOK_ALONE: Duration = Duration::from_secs(60);
/// Shortest time between two looks.
const PACE: Duration = Duration::from_millis(100);

/// The ends of pauses, by subscription.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    until: Mutex<HashMap<SubscriptionId, Instant>>,
    /// Number of entries: usually zero, which needs no lock.
    count: AtomicUsize,
    /// When the newest that is known was recorded.
    newest: Mutex<Option<DateTime<Utc>>>,
    /// Notified when another relay has recorded some, or begins.
    pub(super) recorded: Notify,
}

impl Pauses {
    /// Pauses a subscription. A longer pause stays.
    pub(super) fn pause(&self, subscription: SubscriptionId, length: Duration, now: Instant) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.retain(|_, until| *until > now);
        let end = until.entry(subscription).or_insert(now);
        *end = (*end).max(now + length);
        self.count.store(until.len(), Ordering::Release);
    }

    /// Ends a pause.
    pub(super) fn end(&self, subscription: SubscriptionId) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.remove(&subscription);
        self.count.store(until.len(), Ordering::Release);
    }

    /// Whether all that were recorded until then are known.
    pub(super) fn are_known(&self, newest: Option<DateTime<Utc>>) -> bool {
        newest <= *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a subscription is paused.
    pub(super) fn is_paused(&self, subscription: SubscriptionId, now: Instant) -> bool {
        self.until(subscription, now).is_some()
    }

    /// End of a subscription's pause.
    pub(super) fn until(&self, subscription: SubscriptionId, now: Instant) -> Option<Instant> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&subscription)
            .copied()
            .filter(|until| *until > now)
    }
}

/// Follows what other relays have recorded, until the relay is stopped.
pub(super) async fn follow(
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    shutdown: CancellationToken,
) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shutdown.is_cancelled() {
        pace.tick().await;
        let is_alone = waiting.other_relays.are_none();
        let longest = match load(&base, &sending, &waiting).await {
            Ok(true) if is_alone => LOOK_ALONE,
            Ok(true) => LOOK_EVERY,
            Ok(false) => continue,
            Err(error) => {
                base.telemetry.database_failed("pauses", &error);
                LOOK_EVERY
            }
        };
        tokio::select! {
            () = sending.pauses.recorded.notified() => {}
            () = tokio::time::sleep_until((Instant::now() + longest).into()) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Reads what is recorded. Returns false if subscriptions have changed meanwhile: then some may have been
/// resumed, and nothing was learned.
///
/// # Errors
/// Those of the database.
pub(super) async fn load(base: &Base, sending: &Sending, waiting: &Waiting) -> Result<bool, Error> {
    let LoadedPauses { pauses, generation, newest } = base.store.load_pauses().await?;
    let has_changed = || base.index.load().generation > generation;
    if has_changed() {
        return Ok(false);
    }
    let now = Instant::now();
    for (id, left) in &pauses {
        sending.pauses.pause(*id, *left, now);
        // A claim that found nothing because of the pause proves nothing about what waits.
        waiting.schedule.look_back(*id);
        waiting.schedule.note(*id, now + *left);
        waiting.schedule.hold_back_until(*id, false, now + *left);
    }
    if has_changed() {
        pauses.iter().for_each(|(id, _)| sending.pauses.end(*id));
        return Ok(false);
    }
    *sending.pauses.newest.lock().unwrap_or_else(PoisonError::into_inner) = newest;
    Ok(true)
}
