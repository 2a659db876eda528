//! What outcomes mean for the breakers of a subscription or host. A crash here costs what one in settle
//! costs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    attempted::Attempted,
    breaker::{About, CHANNEL, Change, News},
    parts::{Base, Sending, Waiting},
};
use crate::{delivery::Outcome, subscription::Index};

/// Shortest time between two notifications of other relays.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// Whether a subscription is the version that this delivery was sent for: neither changed nor resumed since.
/// What was answered before says nothing about the present one.
pub(super) fn is_current(index: &Index, one: &Attempted) -> bool {
    let then = &one.job.delivery.subscription;
    index
        .get(then.row.id)
        .is_some_and(|now| Arc::ptr_eq(now, then) || now.row.version() == then.row.version())
}

/// Whether a subscription still sends where this delivery was sent.
fn is_same_destination(index: &Index, one: &Attempted) -> bool {
    let then = &one.job.delivery.subscription;
    index.get(then.row.id).is_some_and(|now| {
        Arc::ptr_eq(now, then) || (&now.row.sink, &now.row.config) == (&then.row.sink, &then.row.config)
    })
}

/// Records for the breakers what an attempt tells of its destination.
pub(super) fn record(base: &Base, sending: &Sending, waiting: &Waiting, one: &Attempted) {
    let delivery = &one.job.delivery;
    let id = delivery.subscription.row.id;
    if one.decides
        && let Some(host) = delivery.subscription.outlet.destination()
        && (one.report.outcome == Outcome::Delivered || is_same_destination(&base.index.load(), one))
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
                    begin_slowly(&base.index.load(), sending, &about);
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

/// What waits behind a breaker that has closed must not flood its destination.
fn begin_slowly(index: &Index, sending: &Sending, about: &About) {
    let now = Instant::now();
    match about {
        About::Subscription(id) => sending.dispatch.begin_slowly(*id, now),
        About::Host(host) => index
            .iter()
            .filter(|one| one.outlet.destination() == Some(host))
            .for_each(|one| sending.dispatch.begin_slowly(one.row.id, now)),
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
