//! Looks in the database for what waits there: which subscriptions have something due, and what dead relays
//! and deleted subscriptions left.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::{Duration, Instant},
};

use super::{
    breaker::Breakers,
    claim::LATE,
    parts::{Base, Waiting},
    sweep,
};
use chrono::{DateTime, Utc};

use crate::{
    delivery::SubscriptionId,
    store::{Cancelled, Error},
};

/// Deliveries of a deleted subscription that are cancelled in one statement.
const ORPHANS_AT_ONCE: i64 = 5_000;
/// Ids may become visible in another order than they were drawn, within this distance.
const LATE_IDS: i64 = 10_000;
/// Where the next looks begin.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    /// Newest id seen in the backlog.
    backlog: AtomicI64,
    /// Where looks for pages begin, below the lowest one that was there: a snapshot may keep the rows of
    /// those that are gone.
    pub(super) pages: AtomicI64,
    /// The subscription claimed for last: the next claim begins behind it.
    pub(super) turn: AtomicI64,
    /// Whether suspects of two deaths were found: they are claimed one at a time.
    pub(super) suspects_alone: AtomicBool,
}

impl Bounds {
    /// Pages may have any number: the database may be another one.
    pub(super) fn forget_pages(&self) {
        self.pages.store(0, Ordering::Release);
    }
}

/// Finds the subscriptions that have something due.
pub(super) async fn look_for_due(
    base: &Base,
    waiting: &Waiting,
    breakers: &Breakers,
    everything: bool,
    now: Instant,
) -> Result<(), Error> {
    let since = (!everything).then(|| base.clock.now() - base.settings.poll.unwrap_or(LATE) * 2 - LATE);
    let since = since.max(waiting.schedule.floor());
    let began = Instant::now();
    let found = base.store.find_due(since).await;
    if since.is_none() {
        sweep::looked(base, waiting, began, &found);
    }
    for due in found? {
        let index = base.index.load();
        let Some(subscription) = index.get(due.subscription_id) else {
            waiting.schedule.orphan(due.subscription_id);
            continue;
        };
        if let Some(due_at) = due.asked_due_at
            && waiting.schedule.ask(due.subscription_id, due_at)
        {
            waiting.schedule.look_back(due.subscription_id);
            if let Some(host) = subscription.outlet.destination() {
                breakers.probe_now(due.subscription_id, host, now);
            }
        }
        if due.due_in <= 0.0 {
            waiting.schedule.fall_behind(due.subscription_id);
        } else if due.due_in < 3_600.0 {
            waiting.schedule.note(due.subscription_id, now + Duration::from_secs_f64(due.due_in));
        }
    }
    let newest = waiting.bounds.backlog.load(Ordering::Acquire);
    for held in base.store.find_backlog((!everything).then_some(newest - LATE_IDS)).await? {
        waiting.bounds.backlog.fetch_max(held.newest, Ordering::AcqRel);
        if base.index.load().get(held.subscription).is_none() {
            waiting.schedule.orphan(held.subscription);
        } else {
            waiting.schedule.hold_back(held.subscription, held.is_suspect);
        }
    }
    waiting.replays.notify_one();
    for (subscription, since) in waiting.schedule.orphans() {
        cancel_orphans(base, waiting, subscription, since).await?;
    }
    Ok(())
}

/// One that is merely invalid keeps what it is owed: the statement looks for the row.
async fn cancel_orphans(
    base: &Base,
    waiting: &Waiting,
    subscription: SubscriptionId,
    since: Option<DateTime<Utc>>,
) -> Result<(), Error> {
    let Cancelled { cancelled, until } =
        base.store.cancel_orphans(subscription, since, ORPHANS_AT_ONCE).await?;
    match until {
        Some(until) if cancelled >= ORPHANS_AT_ONCE => waiting.schedule.cancelled_until(subscription, until),
        _ if cancelled >= ORPHANS_AT_ONCE => {}
        _ => waiting.schedule.cancelled(subscription),
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
