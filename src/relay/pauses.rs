//! Pauses that destinations asked for. This relay keeps them from the answer on; the other relays learn of
//! them from the database.

use crate::delivery::SubscriptionId;
use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// The ends of pauses, by subscription.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    until: Mutex<HashMap<SubscriptionId, Instant>>,
    /// Number of entries: usually zero, which needs no lock.
    count: AtomicUsize,
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
