//! Looks in the database for what waits there: which subscriptions have something due, and what dead relays
//! and deleted subscriptions left.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::{Duration, Instant},
};

use super::{Shared, claim::LATE, takeover};
use crate::{delivery::SubscriptionId, store::Error};

/// Deliveries of a deleted subscription that are cancelled in one statement.
const ORPHANS_AT_ONCE: i64 = 5_000;
/// Ids may become visible in another order than they were drawn, within this distance.
const LATE_IDS: i64 = 10_000;
/// Where the next looks begin.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    /// Newest id seen in the backlog.
    backlog: AtomicI64,
    /// Lowest page that may be there.
    pub(super) pages: AtomicI64,
    /// The subscription claimed for last: the next claim begins behind it.
    pub(super) turn: AtomicI64,
    /// Whether suspects of two deaths were found: they are claimed one at a time.
    pub(super) suspects_alone: AtomicBool,
}

/// Finds the subscriptions that have something due, and takes over what dead relays held.
pub(super) async fn look_for_due(shared: &Shared, everything: bool, now: Instant) -> Result<(), Error> {
    takeover::take_over(shared, everything).await?;
    let since = (!everything).then(|| shared.clock.now() - shared.settings.poll.unwrap_or(LATE) * 2 - LATE);
    for due in shared.store.find_due(since).await? {
        let index = shared.index.load();
        let Some(subscription) = index.get(due.subscription_id) else {
            shared.schedule.orphan(due.subscription_id);
            continue;
        };
        if let Some(due_at) = due.asked_due_at
            && shared.schedule.ask(due.subscription_id, due_at)
        {
            shared.schedule.look_back(due.subscription_id);
            if let Some(host) = subscription.outlet.destination() {
                shared.breakers.probe_now(due.subscription_id, host, now);
            }
        }
        if due.due_in <= 0.0 {
            shared.schedule.fall_behind(due.subscription_id);
        } else if due.due_in < 3_600.0 {
            shared.schedule.note(due.subscription_id, now + Duration::from_secs_f64(due.due_in));
        }
    }
    let newest = shared.bounds.backlog.load(Ordering::Acquire);
    for held in shared.store.find_backlog((!everything).then_some(newest - LATE_IDS)).await? {
        shared.bounds.backlog.fetch_max(held.newest, Ordering::AcqRel);
        if shared.index.load().get(held.subscription).is_none() {
            shared.schedule.orphan(held.subscription);
        } else {
            shared.schedule.hold_back(held.subscription, held.is_suspect);
        }
    }
    for subscription in shared.schedule.orphans() {
        cancel_orphans(shared, subscription).await?;
    }
    Ok(())
}

/// One that is merely invalid keeps what it is owed: the statement looks for the row.
async fn cancel_orphans(shared: &Shared, subscription: SubscriptionId) -> Result<(), Error> {
    let cancelled = shared.store.cancel_orphans(subscription, ORPHANS_AT_ONCE).await?;
    if cancelled < ORPHANS_AT_ONCE.unsigned_abs() {
        shared.schedule.cancelled(subscription);
    }
    if cancelled > 0 {
        tracing::info!(
            subscription = subscription.0,
            cancelled,
            "the subscription was deleted: what it was owed is cancelled"
        );
    }
    Ok(())
}
