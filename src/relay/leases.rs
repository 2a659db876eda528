//! Deliveries in flight and their leases: renewed while the attempt goes on, given up when they cannot be.
//!
//! A crash here costs the wait of one lease: nothing is recorded that is not in the database.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;

/// Leases this old are renewed; with short leases after three tenths of them.
const RENEW_AFTER: Duration = Duration::from_secs(3);
/// How often leases are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Renewed in one statement at most.
const RENEW_AT_ONCE: usize = 1_000;

/// All deliveries in flight, by row.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    held: Mutex<HashMap<i64, Lease>>,
}

#[derive(Debug)]
struct Lease {
    token: Uuid,
    /// When it was last given, by our monotonic clock read before the statement was sent.
    given: Instant,
    /// Rings when it is lost; none while it waits for its batch.
    lost: Option<Arc<Notify>>,
}

impl Lease {
    fn lose(&self) {
        if let Some(lost) = &self.lost {
            lost.notify_one();
        }
    }
}

impl Leases {
    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<i64, Lease>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A delivery is leased. Returns whether it is now; if not, it is in flight already.
    pub(crate) fn hold(&self, delivery: i64, token: Uuid, given: Instant) -> bool {
        match self.held().entry(delivery) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Lease { token, given, lost: None });
                true
            }
        }
    }

    /// Deliveries are attempted together. The first half of the answer rings when the lease of one of them is lost, the second
    /// says when each was given last.
    pub(crate) fn begin(&self, deliveries: &[i64]) -> (Arc<Notify>, Vec<Option<Instant>>) {
        let lost = Arc::new(Notify::new());
        let mut held = self.held();
        let given = deliveries
            .iter()
            .map(|delivery| {
                let lease = held.get_mut(delivery)?;
                lease.lost = Some(lost.clone());
                Some(lease.given)
            })
            .collect();
        (lost, given)
    }

    /// Their verdicts are committed.
    pub(crate) fn release(&self, deliveries: impl IntoIterator<Item = i64>) {
        let mut held = self.held();
        for delivery in deliveries {
            held.remove(&delivery);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.held().len()
    }

    fn older_than(&self, age: Duration, now: Instant) -> Vec<(i64, Uuid)> {
        self.held()
            .iter()
            .filter(|(_, lease)| now.duration_since(lease.given) >= age)
            .map(|(&id, lease)| (id, lease.token))
            .collect()
    }

    fn renewed(&self, asked: &[i64], still_ours: &[i64], given: Instant) {
        let still_ours: std::collections::HashSet<_> = still_ours.iter().collect();
        let mut held = self.held();
        for id in asked {
            if let Some(lease) = held.get_mut(id) {
                if still_ours.contains(id) {
                    lease.given = given;
                } else {
                    lease.lose();
                }
            }
        }
    }

    /// Gives up what has not been renewed for two thirds of a lease: before others may take it over.
    fn give_up_overdue(&self, now: Instant, length: Duration) {
        for lease in self.held().values().filter(|lease| now.duration_since(lease.given) >= length * 2 / 3) {
            lease.lose();
        }
    }
}

/// Renews leases until the relay has drained.
pub(super) async fn renew(shared: Arc<Shared>, drained: CancellationToken) {
    let length = shared.settings.lease;
    let mut look = tokio::time::interval(LOOK_EVERY.min(length / 6));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = drained.cancelled() => return,
        }
        let old = shared.leases.older_than(RENEW_AFTER.min(length * 3 / 10), Instant::now());
        for part in old.chunks(RENEW_AT_ONCE) {
            let ids: Vec<i64> = part.iter().map(|(id, _)| *id).collect();
            let mut tokens: Vec<Uuid> = part.iter().map(|(_, token)| *token).collect();
            tokens.sort_unstable();
            tokens.dedup();
            let asked = Instant::now();
            // A renewal that takes longer than this is worth nothing; the attempts must be stopped in time.
            match tokio::time::timeout(length / 5, shared.store.renew_leases(&ids, &tokens, length)).await {
                Ok(Ok(still_ours)) => shared.leases.renewed(&ids, &still_ours, asked),
                Ok(Err(error)) => shared.telemetry.database_failed("renew", &error),
                Err(late) => shared.telemetry.database_failed("renew", &late),
            }
            shared.leases.give_up_overdue(Instant::now(), length);
        }
        shared.leases.give_up_overdue(Instant::now(), length);
    }
}
