//! Gauges, the report of this relay, the clock. A crash here costs nothing.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    breaker::About,
    parts::{Base, Counted, Sending, Waiting},
    set_back::SetBack,
    sweep::Sweeps,
    trouble,
};
use crate::{
    delivery::SubscriptionId,
    store::{Others, RelayReport, SubscriptionReport},
};

/// How often the relay reports what it did.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// In how many rounds the backlog is measured and the clock compared once.
const MEASURE_ROUNDS: u32 = 3;

/// Maintains until the relay is stopped.
pub(super) async fn maintain(
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    counted: Arc<Counted>,
    shutdown: CancellationToken,
) {
    let mut relays = 0;
    let started = Instant::now();
    let mut rounds = tokio::time::interval(REPORT_EVERY);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0u32;
    let mut sweeps = Sweeps::default();
    let mut set_back = SetBack::new();
    let mut reported: HashMap<SubscriptionId, SubscriptionReport> = HashMap::new();
    // What a relay of this name reported before it was killed is true no longer.
    if let Err(error) = base.store.leave_relay(&base.settings.name).await {
        base.telemetry.database_failed("maintain", &error);
    }
    loop {
        tokio::select! {
            _ = rounds.tick() => {}
            promotion = base.store.promoted() => {
                base.telemetry.promoted(promotion);
                waiting.look_at_everything();
                continue;
            }
            () = shutdown.cancelled() => return,
        }
        let numbers = sending.dispatch.numbers();
        let open = sending.breakers.open(Instant::now()).len();
        base.telemetry.permits_measured(sending.dispatch.free_permits(), open);
        base.telemetry.held_measured(numbers.ahead, numbers.in_flight, numbers.unsettled);
        let expected = base.clock.now();
        match report(&base, &sending, &counted, started, &mut reported).await {
            Ok(Others { relays: now, gateways, now: at }) => {
                if set_back.reported(at, expected) {
                    inspect(&base).await;
                }
                base.news.count_gateways(gateways);
                if now < relays {
                    waiting.relay_ended.store(true, Ordering::Release);
                    waiting.look_at_everything();
                }
                waiting.other_relays.set(now);
                if now > relays {
                    waiting.relay_started.notify_one();
                    sending.pauses.recorded.notify_one();
                }
                relays = now;
                sending.dispatch.paces.share_with(u32::try_from(now).unwrap_or(0));
            }
            Err(error) => base.telemetry.database_failed("maintain", &error),
        }
        if let Err(error) = set_back.follow_up(&base, &waiting).await {
            base.telemetry.database_failed("maintain", &error);
        }
        if let Err(error) = trouble::judge(&base, &counted).await {
            base.telemetry.database_failed("maintain", &error);
        }
        if let Err(error) = sweeps.sweep(&base, &waiting, &shutdown).await {
            base.telemetry.database_failed("maintain", &error);
        }
        if round.is_multiple_of(MEASURE_ROUNDS) {
            match base.store.measure_backlog(waiting.schedule.floor()).await {
                Ok(rows) => {
                    base.telemetry.backlog_measured(&rows);
                    if let Err(error) = trouble::alert(&base, &rows).await {
                        base.telemetry.database_failed("maintain", &error);
                    }
                }
                Err(error) => base.telemetry.database_failed("maintain", &error),
            }
            if let Err(error) = base.store.free_unordered().await {
                base.telemetry.database_failed("maintain", &error);
            }
            match base.store.measure_log().await {
                Ok(log) => base.telemetry.log_measured(&log),
                Err(error) => base.telemetry.database_failed("maintain", &error),
            }
            inspect(&base).await;
        }
        round = round.wrapping_add(1);
    }
}

/// Compares the clocks, and looks whether the database can be used.
async fn inspect(base: &Base) {
    match base.store.inspect().await {
        Ok(ahead) => base.clock.set(ahead),
        Err(error) => base.telemetry.database_failed("maintain", &error),
    }
}

/// Tells the database that this relay lives, and of the subscriptions whose figures changed. Returns which
/// others do.
async fn report(
    base: &Base,
    sending: &Sending,
    counted: &Counted,
    started: Instant,
    reported: &mut HashMap<SubscriptionId, SubscriptionReport>,
) -> Result<Others, crate::store::Error> {
    let breakers = sending.breakers.not_closed(Instant::now());
    let index = base.index.load();
    let (tallies, filter_errors) = (counted.tallies.all(), counted.filter_errors.report());
    let ids: BTreeSet<SubscriptionId> = tallies.keys().chain(filter_errors.keys()).copied().collect();
    let figures: Vec<SubscriptionReport> = ids
        .into_iter()
        .filter_map(|id| {
            let counts = tallies.get(&id).copied().unwrap_or_default();
            let host = index.get(id)?.outlet.destination().cloned();
            let of_host = host.and_then(|host| breakers.get(&About::Host(host))).copied();
            let breaker = breakers.get(&About::Subscription(id)).copied().or(of_host).unwrap_or_default();
            let (filter_errors, last_filter_error) = filter_errors.get(&id).cloned().unzip();
            let figures = SubscriptionReport {
                id,
                delivered: counts.delivered,
                failed: counts.failed,
                delivered_lately: counts.delivered_lately,
                breaker,
                filter_errors: filter_errors.unwrap_or_default(),
                last_filter_error,
            };
            (reported.get(&id) != Some(&figures)).then_some(figures)
        })
        .collect();
    let numbers = sending.dispatch.numbers();
    let (no_progress_for, no_progress_why) = base.telemetry.stuck(base.settings.lease).unzip();
    let report = RelayReport {
        no_progress_for,
        no_progress_why,
        relay: base.settings.name.clone(),
        uptime: started.elapsed(),
        permits: i32::try_from(base.settings.permits).unwrap_or(i32::MAX),
        in_flight: i32::try_from(numbers.in_flight).unwrap_or(i32::MAX),
        leased_ahead: i32::try_from(numbers.ahead).unwrap_or(i32::MAX),
        unsettled: i32::try_from(numbers.unsettled).unwrap_or(i32::MAX),
        subscriptions: figures,
    };
    let others = base.store.report_relay(&report).await?;
    reported.extend(report.subscriptions.into_iter().map(|figures| (figures.id, figures)));
    Ok(others)
}
