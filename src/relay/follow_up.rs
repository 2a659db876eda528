//! What outcomes mean for a whole subscription or host: pauses that a destination asked for, answers of 410,
//! breakers. A crash here costs what one in settle costs.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    attempted::Attempted,
    breaker::{About, CHANNEL, Change, News},
    parts::{Base, Sending, Waiting},
    pauses::Pauses,
};
use crate::{
    delivery::{LONGEST_PAUSE, Outcome, SubscriptionId},
    store::{AskedPause, StateChange, SubscriptionState},
    subscription::Index,
};

/// Shortest time between two notifications of other relays.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// Whether a subscription still sends where this delivery was sent. What another destination answered says
/// nothing about the present one.
pub(super) fn is_current(index: &Index, one: &Attempted) -> bool {
    let then = &one.job.delivery.subscription;
    index.get(then.row.id).is_some_and(|now| {
        Arc::ptr_eq(now, then) || (&now.row.sink, &now.row.config) == (&then.row.sink, &then.row.config)
    })
}

/// The longest pauses that present destinations asked for. Those below a second are ignored.
fn pauses(index: &Index, attempted: &[Attempted]) -> Vec<AskedPause> {
    let mut pauses: BTreeMap<SubscriptionId, AskedPause> = BTreeMap::new();
    for one in attempted {
        if let Outcome::Retry { after: Some(after), .. } = one.report.outcome
            && is_current(index, one)
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
pub(super) fn pause(paused: &Pauses, index: &Index, attempted: &[Attempted]) {
    for pause in pauses(index, attempted) {
        paused.pause(pause.id, pause.length, Instant::now());
    }
}

/// Writes all pauses in one statement, so that other relays apply them.
pub(super) async fn record_pauses(base: &Base, attempted: &[Attempted]) {
    let pauses = pauses(&base.index.load(), attempted);
    if pauses.is_empty() {
        return;
    }
    match base.store.postpone_subscriptions(&pauses).await {
        Ok(recorded) => {
            for pause in pauses.iter().filter(|pause| recorded.contains(&pause.id)) {
                base.telemetry.subscription_paused(&name(base, pause.id), pause.length);
            }
        }
        Err(error) => base.telemetry.database_failed("settle", &error),
    }
}

fn name(base: &Base, id: SubscriptionId) -> String {
    base.index.load().get(id).map(|subscription| subscription.row.name.clone()).unwrap_or_default()
}

/// Records the subscriptions whose destinations are gone. Returns whether it could be recorded.
pub(super) async fn record_gone(base: &Base, attempted: &[Attempted]) -> bool {
    const REASON: &str = "the destination answered 410 Gone; outbox.resume() sends again";
    let index = base.index.load_full();
    let gone: BTreeMap<SubscriptionId, StateChange> = attempted
        .iter()
        .filter(|one| one.report.outcome == Outcome::Gone && is_current(&index, one))
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
    match base.store.set_subscription_states(&changes).await {
        Ok(recorded) => {
            for id in recorded {
                base.telemetry.subscription_changed(&name(base, id), SubscriptionState::Gone, REASON);
            }
            true
        }
        Err(error) => {
            base.telemetry.database_failed("settle", &error);
            false
        }
    }
}

/// Records for the breakers what an attempt tells of its destination.
pub(super) fn record(base: &Base, sending: &Sending, waiting: &Waiting, one: &Attempted) {
    let delivery = &one.job.delivery;
    let id = delivery.subscription.row.id;
    if one.decides
        && let Some(host) = delivery.subscription.outlet.destination()
        && (one.report.outcome == Outcome::Delivered || is_current(&base.index.load(), one))
    {
        for (about, change) in sending.breakers.record(id, host, &one.report.outcome, Instant::now()) {
            match change {
                Change::None => {}
                Change::Opened(wait) => {
                    base.telemetry.breaker_changed(host, true, wait);
                    sending.news.add(about, News::Failed);
                }
                Change::Closed => {
                    base.telemetry.breaker_changed(host, false, Duration::ZERO);
                    serve_again(&base.index.load(), sending, waiting, &about);
                    sending.news.add(about, News::Works);
                }
            }
        }
    }
}

/// Applies what another relay tells of a probe. Returns whether there may be something to claim now.
pub(super) fn hear(index: &Index, sending: &Sending, waiting: &Waiting, payload: &str) -> bool {
    let Some((about, news)) = sending.news.read(payload) else { return false };
    let may_probe = sending.breakers.hear(&about, news, Instant::now());
    if may_probe {
        serve_again(index, sending, waiting, &about);
    }
    may_probe
}

/// Tells other relays of probes, until this one has drained.
pub(super) async fn tell(base: Arc<Base>, sending: Arc<Sending>, drained: CancellationToken) {
    let news = &sending.news;
    let mut pace = tokio::time::interval(TELL_EVERY);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = news.some.notified() => {}
            () = drained.cancelled() => return,
        }
        pace.tick().await;
        if let Err(error) = base.store.notify(CHANNEL, &news.take()).await {
            base.telemetry.database_failed("breakers", &error);
        }
    }
}

/// Claims again for every subscription behind a breaker that has closed, or that lets a probe through.
fn serve_again(index: &Index, sending: &Sending, waiting: &Waiting, about: &About) {
    match about {
        About::Subscription(id) => {
            waiting.schedule.fall_behind(*id);
            waiting.schedule.hold_back(*id, false);
        }
        About::Host(host) => {
            for subscription in index.iter().filter(|one| one.outlet.destination() == Some(host)) {
                waiting.schedule.fall_behind(subscription.row.id);
                waiting.schedule.hold_back(subscription.row.id, false);
            }
        }
    }
    sending.dispatch.look_again();
}
