//! Outcomes to verdicts, written in batches under the lease tokens. A crash here costs a repeated delivery for each permit
//! taken. Outcomes outlive a lost connection: they wait here, with their permits, and are written before anything new is
//! claimed for those permits.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{Shared, await_work::backon_waits, breaker::Change, deliver::Attempted};
use super::{delivery::Delivery, settings::AttemptLog};
use crate::{
    delivery::{LONGEST_PAUSE, Outcome, Verdict, verdict},
    store::{AttemptRow, Batch, DeadRow, Kind, SubscriptionState},
};

/// Verdicts written in one commit at most.
const AT_ONCE: usize = 500;

/// Attempts per subscription since the relay started: delivered, failed.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    counts: Mutex<HashMap<i64, (i64, i64)>>,
}

impl Tallies {
    fn add(&self, subscription: i64, delivered: bool) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(subscription).or_default();
        if delivered {
            count.0 += 1;
        } else {
            count.1 += 1;
        }
    }

    pub(super) fn all(&self) -> HashMap<i64, (i64, i64)> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes verdicts until every sender of outcomes is gone.
pub(super) async fn settle(shared: Arc<Shared>, mut outcomes: mpsc::Receiver<Attempted>) {
    let mut attempted = Vec::with_capacity(AT_ONCE);
    while outcomes.recv_many(&mut attempted, AT_ONCE).await > 0 {
        settle_batch(&shared, &attempted).await;
        // Their permits come back only now.
        attempted.clear();
    }
}

async fn settle_batch(shared: &Shared, attempted: &[Attempted]) {
    let verdicts: Vec<Verdict> = attempted.iter().map(|one| decide(shared, one)).collect();
    let batch = batch(attempted, &verdicts);
    // First what concerns the whole subscription: once the verdicts are committed, its deliveries may be claimed again.
    let recorded = follow_up(shared, attempted).await;
    let mut settled: HashSet<i64> =
        attempted.iter().filter(|one| one.report.settled).map(|one| one.delivery.id).collect();
    if settled.len() < attempted.len() {
        settled.extend(persist(shared, attempted, &batch).await);
    }
    // At once: what is due again may be claimed from here on, and must not be taken for an attempt still under way.
    shared.leases.release(attempted.iter().map(|one| one.delivery.id));
    record_attempts(shared, attempted, &settled).await;
    for (one, verdict) in attempted.iter().zip(&verdicts) {
        let counted = settled.contains(&one.delivery.id);
        announce(shared, one, verdict, counted);
    }
    if !recorded {
        follow_up(shared, attempted).await;
    }
}

fn decide(shared: &Shared, one: &Attempted) -> Verdict {
    let Attempted { delivery, report, counts, .. } = one;
    if !counts && matches!(report.outcome, Outcome::Retry { .. }) {
        return Verdict::RetryIn(Duration::ZERO);
    }
    let age = shared.clock.age(delivery.owed_since);
    if matches!(report.outcome.reason(), Some(crate::delivery::Reason::RelayStopped))
        && delivery.attempt < delivery.subscription.retry.max_attempts
    {
        return Verdict::RetryIn(Duration::ZERO);
    }
    verdict(&report.outcome, delivery.attempt, age, &delivery.subscription.retry, seed(delivery))
}

/// The same delivery always gets the same jitter, and no two the same.
fn seed(delivery: &Delivery) -> u64 {
    let (high, low) = delivery.event.id.as_u64_pair();
    high ^ low ^ u64::try_from(delivery.subscription.row.id).unwrap_or(0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn batch(attempted: &[Attempted], verdicts: &[Verdict]) -> Batch {
    let mut batch = Batch::default();
    let mut tokens = HashSet::new();
    for (one, verdict) in attempted.iter().zip(verdicts) {
        let id = one.delivery.id;
        tokens.insert(one.delivery.lease_token);
        match verdict {
            // Its sink has deleted the row itself: there is nothing left to write.
            Verdict::Settled if one.report.settled => {}
            Verdict::Settled => batch.delivered.push(id),
            Verdict::RetryIn(wait) => batch.retries.push((id, wait.as_secs_f64(), one.counts)),
            Verdict::DeadLetter { reason } => {
                batch.dead.push(DeadRow {
                    id,
                    reason: reason.code(),
                    status: one.report.status.map(i32::from),
                    answer: one.report.answer.clone(),
                });
            }
            Verdict::SubscriptionGone => batch.gone.push(id),
        }
    }
    batch.tokens = tokens.into_iter().collect();
    batch
}

/// Writes the batch, again and again while the database is away. Returns the deliveries whose verdict counted.
async fn persist(shared: &Shared, attempted: &[Attempted], batch: &Batch) -> Vec<i64> {
    let mut waits = backon_waits();
    let mut unknown = false;
    loop {
        match shared.store.settle_deliveries(batch).await {
            // After a lost answer the rows may be gone because the first try had worked: nobody else writes under our
            // tokens, so what is missing then is taken for settled.
            Ok(_) if unknown => return attempted.iter().map(|one| one.delivery.id).collect(),
            Ok(settled) => return settled,
            Err(error) => {
                shared.telemetry.database_failed("settle", &error);
                unknown |= error.kind() == Kind::Connection;
                let wait = waits.next().unwrap_or(Duration::from_secs(1));
                tokio::time::sleep_until((Instant::now() + wait).into()).await;
            }
        }
    }
}

/// Written once: the delivery log is worth less than the next verdict.
async fn record_attempts(shared: &Shared, attempted: &[Attempted], settled: &HashSet<i64>) {
    let wanted = |one: &&Attempted| match shared.settings.attempt_log {
        AttemptLog::All => one.counts,
        AttemptLog::Failures => one.counts && one.report.outcome != Outcome::Delivered,
        AttemptLog::Off => false,
    };
    let rows: Vec<AttemptRow> = attempted
        .iter()
        .filter(wanted)
        .map(|one| AttemptRow {
            delivery: one.delivery.id,
            subscription: one.delivery.subscription.row.id,
            position: one.delivery.event.position,
            event: one.delivery.event.id,
            attempt: i32::try_from(one.delivery.attempt).unwrap_or(i32::MAX),
            took: one.took,
            outcome: one.report.outcome.code(),
            reason: one.report.outcome.reason().map(crate::delivery::Reason::code),
            status: one.report.status.map(i32::from),
            answer: one.report.answer.clone(),
            ambiguous: one.report.ambiguous,
            stale: !settled.contains(&one.delivery.id),
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    if let Err(error) = shared.store.record_attempts(&rows, &shared.settings.name).await {
        shared.telemetry.database_failed("settle", &error);
    }
}

fn announce(shared: &Shared, one: &Attempted, verdict: &Verdict, counted: bool) {
    let delivery = &one.delivery;
    if one.counts {
        shared.tallies.add(delivery.subscription.row.id, one.report.outcome == Outcome::Delivered);
    }
    if one.decides
        && let Some(destination) = delivery.subscription.outlet.destination()
    {
        match shared.breakers.record(destination, &one.report.outcome, Instant::now()) {
            Change::None => {}
            Change::Opened(wait) => shared.telemetry.breaker_changed(destination, true, wait),
            Change::Closed => {
                shared.telemetry.breaker_changed(destination, false, Duration::ZERO);
                // What waited behind the breaker may go now.
                shared.schedule.fall_behind(delivery.subscription.row.id);
            }
        }
    }
    if !counted {
        shared.telemetry.stale_verdict(delivery);
        return;
    }
    match verdict {
        Verdict::Settled => shared.telemetry.settled(delivery, shared.clock.age(delivery.event.created_at)),
        Verdict::RetryIn(wait) => {
            shared.schedule.note(delivery.subscription.row.id, Instant::now() + *wait);
            shared.telemetry.retry_scheduled(delivery, *wait);
        }
        Verdict::DeadLetter { reason } => shared.telemetry.dead_lettered(delivery, *reason),
        Verdict::SubscriptionGone => shared.telemetry.held(delivery),
    }
}

/// What an outcome means for the whole subscription. Returns whether all of it was written.
async fn follow_up(shared: &Shared, attempted: &[Attempted]) -> bool {
    let mut recorded = true;
    let mut gone = HashSet::new();
    let mut pauses: HashMap<i64, Duration> = HashMap::new();
    for one in attempted {
        let id = one.delivery.subscription.row.id;
        match one.report.outcome {
            Outcome::Gone => {
                gone.insert(id);
            }
            Outcome::Retry { after: Some(after), .. } => {
                let pause = pauses.entry(id).or_default();
                *pause = (*pause).max(after.min(LONGEST_PAUSE));
            }
            Outcome::Retry { after: None, .. } | Outcome::Delivered | Outcome::Rejected { .. } => {}
        }
    }
    let name = |id: i64| {
        shared.index.load().get(id).map(|subscription| subscription.row.name.clone()).unwrap_or_default()
    };
    for id in gone {
        let reason = "the destination answered 410 Gone; outbox.resume() sends again";
        match shared
            .store
            .set_subscription_state(id, SubscriptionState::Ok, SubscriptionState::Gone, Some(reason))
            .await
        {
            Ok(true) => shared.telemetry.subscription_changed(&name(id), SubscriptionState::Gone, reason),
            Ok(false) => {}
            Err(error) => {
                recorded = false;
                shared.telemetry.database_failed("settle", &error);
            }
        }
    }
    for (id, pause) in pauses.into_iter().filter(|(_, pause)| *pause >= Duration::from_secs(1)) {
        match shared.store.postpone_subscription(id, pause).await {
            Ok(true) => shared.telemetry.subscription_paused(&name(id), pause),
            Ok(false) => {}
            Err(error) => {
                recorded = false;
                shared.telemetry.database_failed("settle", &error);
            }
        }
    }
    recorded
}
