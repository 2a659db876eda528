//! Due deliveries to leases, as many as there is room for: retries, backlog, and what dead relays left.
//! A crash here costs the wait of one lease.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::delivery::Delivery;
use super::{
    Shared,
    breaker::Gate,
    deliver::{Deliver, Leased, missing_event},
    permits::Permit,
};
use crate::{
    store::{Claim, Claimed, Error},
    subscription::Subscription,
};

/// Claimed for one subscription in one statement at most.
const AT_ONCE: u32 = 500;
/// Subscriptions asked for in one statement at most.
const SUBSCRIPTIONS_AT_ONCE: usize = 500;
/// Deliveries of a deleted subscription that are cancelled in one statement.
const ORPHANS_AT_ONCE: i64 = 5_000;
/// When to ask again for a subscription that had no room.
const NO_ROOM: Duration = Duration::from_millis(20);
/// Rows may become visible so much later than their due time says: the longest a statement of a relay can take.
const LATE: Duration = Duration::from_secs(15);

/// Asks the database which subscriptions have due deliveries, whoever made them.
pub(super) async fn look_for_due(shared: &Shared, everything: bool, now: Instant) -> Result<(), Error> {
    let since = (!everything).then(|| shared.clock.now() - shared.settings.poll.unwrap_or(LATE) * 2 - LATE);
    for due in shared.store.find_due(since).await? {
        if shared.index.load().get(due.subscription_id).is_none() {
            shared.schedule.orphan(due.subscription_id);
        } else if due.due_in <= 0.0 {
            shared.schedule.fall_behind(due.subscription_id);
        } else if due.due_in < 3_600.0 {
            shared.schedule.note(due.subscription_id, now + Duration::from_secs_f64(due.due_in));
        }
    }
    for subscription in shared.schedule.orphans() {
        cancel_orphans(shared, subscription).await?;
    }
    Ok(())
}

/// One that is merely invalid keeps what it is owed: the statement looks for the row.
async fn cancel_orphans(shared: &Shared, subscription: i64) -> Result<(), Error> {
    let cancelled = shared.store.cancel_orphans(subscription, ORPHANS_AT_ONCE).await?;
    if cancelled < ORPHANS_AT_ONCE.unsigned_abs() {
        shared.schedule.cancelled(subscription);
    }
    if cancelled > 0 {
        tracing::info!(
            subscription,
            cancelled,
            "the subscription was deleted: what it was owed is cancelled"
        );
    }
    Ok(())
}

/// Claims for every subscription that has something due and room for it. Returns how many deliveries took off.
pub(super) async fn claim(shared: &Arc<Shared>, deliver: &Deliver) -> Result<usize, Error> {
    let due = shared.schedule.take_due(Instant::now());
    if due.is_empty() {
        return Ok(0);
    }
    let mut wanted: Vec<(Claim, Arc<Subscription>, Vec<Permit>)> = Vec::new();
    for id in due {
        let index = shared.index.load();
        let Some(subscription) = index.get(id) else {
            shared.schedule.catch_up(id);
            continue;
        };
        if let Some(room) = room(shared, subscription) {
            let permits = shared.permits.take(id, subscription.own_limit(), room);
            if permits.is_empty() {
                if !shared.schedule.is_behind(id) {
                    shared.schedule.note(id, Instant::now() + NO_ROOM);
                }
            } else {
                let room = u32::try_from(permits.len()).unwrap_or(u32::MAX);
                wanted.push((
                    Claim { subscription: id, room, since: shared.schedule.since(id) },
                    subscription.clone(),
                    permits,
                ));
            }
        }
    }
    let mut taken = 0;
    while !wanted.is_empty() {
        let part = wanted.split_off(wanted.len().saturating_sub(SUBSCRIPTIONS_AT_ONCE));
        taken += claim_part(shared, deliver, part).await?;
    }
    Ok(taken)
}

/// How many to ask for; `None`: nothing may be sent now, and the schedule knows when to ask again.
fn room(shared: &Shared, subscription: &Subscription) -> Option<u32> {
    let id = subscription.row.id;
    let now = Instant::now();
    if !subscription.may_send() {
        shared.schedule.catch_up(id); // resuming it reloads it, and that puts it back on the schedule
        return None;
    }
    if let Some(pause) =
        subscription.row.paused_until.and_then(|until| (until - shared.clock.now()).to_std().ok())
    {
        shared.schedule.catch_up(id);
        shared.schedule.note(id, now + pause);
        return None;
    }
    let gate = subscription
        .outlet
        .destination()
        .map_or(Gate::Closed, |destination| shared.breakers.gate(destination, now));
    match gate {
        Gate::Closed => Some(AT_ONCE),
        Gate::Probe => Some(1),
        Gate::Open(until) => {
            shared.schedule.catch_up(id);
            shared.schedule.note(id, until);
            None
        }
    }
}

async fn claim_part(
    shared: &Arc<Shared>,
    deliver: &Deliver,
    wanted: Vec<(Claim, Arc<Subscription>, Vec<Permit>)>,
) -> Result<usize, Error> {
    let claims: Vec<Claim> = wanted.iter().map(|(claim, ..)| *claim).collect();
    let token = Uuid::new_v4();
    let began = Instant::now();
    let started = shared.clock.now();
    let claimed = match shared.store.claim_deliveries(&claims, token, shared.settings.lease).await {
        Ok(claimed) => claimed,
        Err(error) => {
            claims.iter().for_each(|claim| shared.schedule.fall_behind(claim.subscription));
            return Err(error);
        }
    };
    let mut by_subscription: HashMap<i64, Vec<Claimed>> = HashMap::new();
    for row in claimed {
        by_subscription.entry(row.subscription_id).or_default().push(row);
    }
    let mut claimed = Vec::new();
    let mut expired = 0;
    for (claim, subscription, mut permits) in wanted {
        let rows = by_subscription.remove(&claim.subscription).unwrap_or_default();
        if rows.len() < permits.len() {
            shared.schedule.catch_up(claim.subscription);
            // Everything due before now has been seen; what committed late is within the margin.
            shared.schedule.look_from(claim.subscription, started - LATE);
        } else {
            shared.schedule.fall_behind(claim.subscription);
        }
        if rows.is_empty() {
            continue;
        }
        if let Some(destination) = subscription.outlet.destination()
            && shared.breakers.gate(destination, began) == Gate::Probe
        {
            shared.breakers.begin_probe(destination, began);
        }
        for row in rows {
            expired += usize::from(row.unfinished > 0);
            if let Some(permit) = permits.pop() {
                claimed.push(leased(&row, subscription.clone(), permit, token));
            }
        }
    }
    if claimed.is_empty() {
        return Ok(0);
    }
    let count = claimed.len();
    shared.telemetry.claimed(count, expired);
    deliver.begin(claimed, began).await?;
    Ok(count)
}

/// A claimed row before its event is read.
fn leased(row: &Claimed, subscription: Arc<Subscription>, permit: Permit, token: Uuid) -> Leased {
    Leased {
        payload_read: false,
        delivery: Delivery {
            id: row.id,
            event: Arc::new(missing_event(row.position, row.created_at)),
            subscription,
            owed_since: row.owed_since,
            attempted_at: row.owed_since,
            attempt: u32::try_from(row.attempt).unwrap_or(u32::MAX),
            lease_token: token,
            unfinished: u32::try_from(row.unfinished).unwrap_or(u32::MAX),
        },
        permit,
    }
}
