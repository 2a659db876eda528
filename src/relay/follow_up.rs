//! What outcomes mean for a whole subscription or host: pauses that a destination asked for, answers of 410,
//! breakers. A crash here costs what one in settle costs.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    attempted::Attempted,
    breaker::{About, CHANNEL, Change, News, Unsent},
    telemetry::Telemetry,
};
use crate::{
    delivery::{LONGEST_PAUSE, Outcome, SubscriptionId},
    store::{AskedPause, StateChange, Store, SubscriptionState},
};

/// Shortest time between two notifications of other relays.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// Whether a subscription still sends where this delivery was sent. What another destination answered says
/// nothing about the present one.
pub(super) fn is_current(shared: &Shared, one: &Attempted) -> bool {
    let then = &one.job.delivery.subscription;
    shared.index.load().get(then.row.id).is_some_and(|now| {
        Arc::ptr_eq(now, then) || (&now.row.sink, &now.row.config) == (&then.row.sink, &then.row.config)
    })
}

/// The longest pauses that present destinations asked for. Those below a second are ignored.
fn pauses(shared: &Shared, attempted: &[Attempted]) -> Vec<AskedPause> {
    let mut pauses: BTreeMap<SubscriptionId, AskedPause> = BTreeMap::new();
    for one in attempted {
        if let Outcome::Retry { after: Some(after), .. } = one.report.outcome
            && is_current(shared, one)
        {
            let row = &one.job.delivery.subscription.row;
            let length = after.min(LONGEST_PAUSE);
            let asked = || AskedPause { id: row.id, length, destination: row.destination() };
            let pause = pauses.entry(row.id).or_insert_with(asked);
            pause.length = pause.length.max(length);
        }
    }
    pauses.into_values().filter(|pause| pause.length >= Duration::from_secs(1)).collect()
}

/// Starts the pauses in this relay.
pub(super) fn pause(shared: &Shared, attempted: &[Attempted]) {
    for pause in pauses(shared, attempted) {
        shared.pauses.pause(pause.id, pause.length, Instant::now());
    }
}

/// Writes all pauses in one statement, so that other relays apply them.
pub(super) async fn record_pauses(shared: &Shared, attempted: &[Attempted]) {
    let pauses = pauses(shared, attempted);
    if pauses.is_empty() {
        return;
    }
    match shared.store.postpone_subscriptions(&pauses).await {
        Ok(recorded) => {
            for pause in pauses.iter().filter(|pause| recorded.contains(&pause.id)) {
                shared.telemetry.subscription_paused(&name(shared, pause.id), pause.length);
            }
        }
        Err(error) => shared.telemetry.database_failed("settle", &error),
    }
}

fn name(shared: &Shared, id: SubscriptionId) -> String {
    shared.index.load().get(id).map(|subscription| subscription.row.name.clone()).unwrap_or_default()
}

/// Records the subscriptions whose destinations are gone. Returns whether it could be recorded.
pub(super) async fn record_gone(shared: &Shared, attempted: &[Attempted]) -> bool {
    const REASON: &str = "the destination answered 410 Gone; outbox.resume() sends again";
    let gone: BTreeMap<SubscriptionId, StateChange> = attempted
        .iter()
        .filter(|one| one.report.outcome == Outcome::Gone && is_current(shared, one))
        .map(|one| {
            let row = &one.job.delivery.subscription.row;
            let change = StateChange {
                id: row.id,
                from: SubscriptionState::Ok,
                to: SubscriptionState::Gone,
                reason: Some(REASON.to_owned()),
                destination: Some(row.destination()),
            };
            (row.id, change)
        })
        .collect();
    let changes: Vec<StateChange> = gone.into_values().collect();
    match shared.store.set_subscription_states(&changes).await {
        Ok(recorded) => {
            for id in recorded {
                shared.telemetry.subscription_changed(&name(shared, id), SubscriptionState::Gone, REASON);
            }
            true
        }
        Err(error) => {
            shared.telemetry.database_failed("settle", &error);
            false
        }
    }
}

/// Records for the breakers what an attempt tells of its destination.
pub(super) fn record(shared: &Shared, one: &Attempted) {
    let delivery = &one.job.delivery;
    let id = delivery.subscription.row.id;
    if one.decides
        && let Some(host) = delivery.subscription.outlet.destination()
        && (one.report.outcome == Outcome::Delivered || is_current(shared, one))
    {
        for (about, change) in shared.breakers.record(id, host, &one.report.outcome, Instant::now()) {
            match change {
                Change::None => {}
                Change::Opened(wait) => {
                    shared.telemetry.breaker_changed(host, true, wait);
                    shared.news.add(about, News::Failed);
                }
                Change::Closed => {
                    shared.telemetry.breaker_changed(host, false, Duration::ZERO);
                    serve_again(shared, &about);
                    shared.news.add(about, News::Works);
                }
            }
        }
    }
}

/// Applies what another relay tells of a probe. Returns whether there may be something to claim now.
pub(super) fn hear(shared: &Shared, payload: &str) -> bool {
    let Some((about, news)) = shared.news.read(payload) else { return false };
    let may_probe = shared.breakers.hear(&about, news, Instant::now());
    if may_probe {
        serve_again(shared, &about);
    }
    may_probe
}

/// Tells other relays of probes, until this one has drained.
pub(super) async fn tell(store: &Store, telemetry: &Telemetry, news: &Unsent, drained: CancellationToken) {
    let mut pace = tokio::time::interval(TELL_EVERY);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = news.some.notified() => {}
            () = drained.cancelled() => return,
        }
        pace.tick().await;
        if let Err(error) = store.notify(CHANNEL, &news.take()).await {
            telemetry.database_failed("breakers", &error);
        }
    }
}

/// Claims again for every subscription behind a breaker that has closed, or that lets a probe through.
fn serve_again(shared: &Shared, about: &About) {
    match about {
        About::Subscription(id) => {
            shared.schedule.fall_behind(*id);
            shared.schedule.hold_back(*id, false);
        }
        About::Host(host) => {
            for subscription in
                shared.index.load().iter().filter(|one| one.outlet.destination() == Some(host))
            {
                shared.schedule.fall_behind(subscription.row.id);
                shared.schedule.hold_back(subscription.row.id, false);
            }
        }
    }
    shared.dispatch.look_again();
}
