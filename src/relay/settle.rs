//! Records verdicts in batches under the lease tokens, two batches at a time. A crash here costs a repeated
//! delivery for each permit taken. While the database is away, outcomes wait here with their permits.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    AttemptLog, Shared,
    attempted::Attempted,
    await_work::backon_waits,
    deliver::Deliver,
    delivery::Delivery,
    follow_up,
    held::{Held, Page},
};
use crate::{
    delivery::{DeliveryId, Outcome, PageId, SubscriptionId, Verdict, ranges::Ranges, verdict},
    store::{
        AttemptRow, Batch, DeadRow, Entry, Error, Kind, PageBatch, Pair, PairDead, PairRetry, PairsBack,
        RetryRow, Settler,
    },
};

/// Verdicts in one commit.
const AT_ONCE: usize = 1_000;

/// Attempts of each subscription since the relay started: delivered, failed.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    counts: Mutex<HashMap<SubscriptionId, (i64, i64)>>,
}

impl Tallies {
    fn add(&self, subscription: SubscriptionId, delivered: bool) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(subscription).or_default();
        if delivered {
            count.0 += 1;
        } else {
            count.1 += 1;
        }
    }

    pub(super) fn all(&self) -> HashMap<SubscriptionId, (i64, i64)> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Pages with nothing left that no batch has deleted, because their last pairs were in two batches at once or
/// were settled by the sink.
#[derive(Debug, Default)]
pub(super) struct Finished {
    pages: Mutex<Vec<Arc<Page>>>,
}

impl Finished {
    fn push(&self, page: Arc<Page>) {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).push(page);
    }

    fn is_empty(&self) -> bool {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn take(&self) -> Vec<Arc<Page>> {
        std::mem::take(&mut self.pages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The outcomes, shared by the two settlers.
pub(super) type Inbox = Arc<tokio::sync::Mutex<mpsc::Receiver<Attempted>>>;

/// Writes verdicts until every sender of outcomes is gone.
pub(super) async fn settle(
    shared: Arc<Shared>,
    inbox: Inbox,
    settler: Settler,
    deliver: std::sync::Weak<Deliver>,
) {
    let mut attempted = Vec::with_capacity(AT_ONCE);
    loop {
        let received = {
            let mut inbox = inbox.lock().await;
            inbox.recv_many(&mut attempted, AT_ONCE).await
        };
        if received == 0 {
            return;
        }
        settle_batch(&shared, &attempted, settler).await;
        let permits = attempted.iter().filter(|one| one.has_permit).count();
        attempted.clear();
        // Their permits come back only now.
        shared.dispatch.settled(u32::try_from(permits).unwrap_or(u32::MAX));
        if let Some(deliver) = deliver.upgrade() {
            deliver.begin();
        }
        shared.freed.notify_one();
        if !shared.finished.is_empty() {
            delete_finished(&shared, settler).await;
        }
    }
}

async fn settle_batch(shared: &Shared, attempted: &[Attempted], settler: Settler) {
    let verdicts: Vec<Verdict> = attempted.iter().map(|one| decide(shared, one)).collect();
    follow_up::pause(shared, attempted);
    // First the answers of 410: once the verdicts are committed, these deliveries may be claimed again.
    let recorded = follow_up::record_gone(shared, attempted).await;
    let rows = rows_of(attempted, &verdicts);
    let pages = pages_of(shared, attempted, &verdicts);
    let (kept_rows, kept_pages) =
        tokio::join!(persist_rows(shared, &rows), persist_pages(shared, &pages, settler));
    // At once: a retry that is claimed now must not be mistaken for the attempt that has ended.
    shared.leases.release_rows(attempted.iter().filter_map(|one| match &one.job.held {
        Held::Row(row) => Some(row.id),
        Held::Page(..) => None,
    }));
    let counted: Vec<bool> = attempted
        .iter()
        .map(|one| {
            one.report.settled
                || match &one.job.held {
                    Held::Row(row) => kept_rows.as_ref().is_none_or(|kept| kept.contains(&row.id)),
                    Held::Page(page, _) => kept_pages.as_ref().is_none_or(|kept| kept.contains(&page.id)),
                }
        })
        .collect();
    count_down(shared, attempted, &pages);
    record_attempts(shared, attempted, &counted).await;
    for ((one, verdict), counted) in attempted.iter().zip(&verdicts).zip(&counted) {
        announce(shared, one, verdict, *counted);
    }
    follow_up::record_pauses(shared, attempted).await;
    if !recorded {
        follow_up::record_gone(shared, attempted).await;
    }
}

fn decide(shared: &Shared, one: &Attempted) -> Verdict {
    let Attempted { job, report, counts, .. } = one;
    let delivery = &job.delivery;
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
    let (high, low) = delivery.event_id().unwrap_or_default().as_u64_pair();
    high ^ low
        ^ u64::try_from(delivery.subscription.row.id.0).unwrap_or(0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// What is written of rows.
fn rows_of(attempted: &[Attempted], verdicts: &[Verdict]) -> Batch {
    let mut batch = Batch::default();
    let mut tokens = HashSet::new();
    for (one, verdict) in attempted.iter().zip(verdicts) {
        let Held::Row(row) = &one.job.held else { continue };
        let id = row.id;
        tokens.insert(row.lease.token);
        match verdict {
            // Its sink has deleted the row itself: there is nothing left to write.
            Verdict::Settled if one.report.settled => {}
            Verdict::Settled => batch.delivered.push(id),
            Verdict::RetryIn(wait) => {
                batch.retries.push(RetryRow { id, wait: *wait, counts: one.counts });
            }
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

/// What is written of pages. A page whose last pairs are among these is deleted.
fn pages_of(shared: &Shared, attempted: &[Attempted], verdicts: &[Verdict]) -> PageBatch {
    let mut batch = PageBatch::default();
    let mut progress: BTreeMap<PageId, (&Arc<Page>, Ranges, u32)> = BTreeMap::new();
    let mut back: HashMap<(PageId, SubscriptionId, chrono::DateTime<chrono::Utc>), PairsBack> =
        HashMap::new();
    for (one, verdict) in attempted.iter().zip(verdicts) {
        let Held::Page(page, number) = &one.job.held else { continue };
        let entry = progress.entry(page.id).or_insert_with(|| (page, Ranges::default(), 0));
        entry.2 += 1;
        if one.report.settled {
            continue; // its sink has recorded it itself
        }
        entry.1.insert(i64::from(*number));
        let delivery = &one.job.delivery;
        let pair = Pair {
            page: page.id,
            number: *number,
            subscription: delivery.subscription.row.id,
            position: delivery.position,
            created_at: delivery.created_at,
            attempts: i32::try_from(delivery.attempt).unwrap_or(i32::MAX),
        };
        match verdict {
            Verdict::Settled => {}
            Verdict::RetryIn(wait) if one.counts => {
                batch.retries.push(PairRetry {
                    pair,
                    owed_since: delivery.owed_since,
                    wait: *wait,
                    unfinished: 0,
                });
            }
            Verdict::RetryIn(_) | Verdict::SubscriptionGone => {
                let key = (page.id, pair.subscription, delivery.owed_since);
                let back = back.entry(key).or_insert_with(|| PairsBack {
                    page: page.id,
                    numbers: Ranges::default(),
                    entry: Entry {
                        subscription: pair.subscription,
                        positions: Ranges::default(),
                        owed_since: delivery.owed_since,
                    },
                    span: page.span,
                    deaths: page.deaths,
                    alone: page.alone,
                });
                back.numbers.insert(i64::from(*number));
                back.entry.positions.insert(pair.position.0);
            }
            Verdict::DeadLetter { reason } => batch.dead.push(PairDead {
                pair,
                reason: reason.code(),
                status: one.report.status.map(i32::from),
                answer: one.report.answer.clone(),
            }),
        }
    }
    batch.back = back.into_values().collect();
    for (id, (page, numbers, count)) in progress {
        if page.left() == count {
            batch.finished.push(id);
        } else if !numbers.is_empty() {
            batch.progress.push((id, numbers));
        }
        batch.tokens.push(page.lease.token);
    }
    for page in shared.finished.take() {
        if !batch.finished.contains(&page.id) {
            batch.finished.push(page.id);
            batch.tokens.push(page.lease.token);
        }
    }
    batch.tokens.sort_unstable();
    batch.tokens.dedup();
    batch
}

/// Counts settled pairs. A page with nothing left is deleted with the next batch, if this one did not.
fn count_down(shared: &Shared, attempted: &[Attempted], written: &PageBatch) {
    let mut counts: HashMap<PageId, (&Arc<Page>, u32)> = HashMap::new();
    for one in attempted {
        if let Held::Page(page, _) = &one.job.held {
            counts.entry(page.id).or_insert((page, 0)).1 += 1;
        }
    }
    for (id, (page, count)) in counts {
        if page.settled(count) {
            shared.leases.release_page(id);
            if !written.finished.contains(&id) {
                shared.finished.push(page.clone());
            }
        }
    }
}

/// Writes the verdicts on rows. `None`: all of them count.
async fn persist_rows(shared: &Shared, batch: &Batch) -> Option<HashSet<DeliveryId>> {
    if batch.is_empty() {
        return Some(HashSet::new());
    }
    persist(shared, || shared.store.settle_deliveries(batch)).await
}

async fn persist_pages(shared: &Shared, batch: &PageBatch, settler: Settler) -> Option<HashSet<PageId>> {
    if batch.is_empty() {
        return Some(HashSet::new());
    }
    persist(shared, || shared.store.settle_pages(batch, settler)).await
}

/// Writes until it succeeds. `None` after a lost answer: rows that are missing then were settled by the first
/// try, because no other relay writes under our tokens.
async fn persist<Id: Eq + Hash, W: Future<Output = Result<Vec<Id>, Error>>>(
    shared: &Shared,
    write: impl Fn() -> W,
) -> Option<HashSet<Id>> {
    let mut waits = backon_waits();
    let mut unknown = false;
    loop {
        match write().await {
            Ok(_) if unknown => return None,
            Ok(settled) => return Some(settled.into_iter().collect()),
            Err(error) => {
                shared.telemetry.database_failed("settle", &error);
                unknown |= error.kind() == Kind::Connection;
                let wait = waits.next().unwrap_or(Duration::from_secs(1));
                tokio::time::sleep_until((Instant::now() + wait).into()).await;
            }
        }
    }
}

/// The delivery log is recorded once; it is worth less than the next verdict.
async fn record_attempts(shared: &Shared, attempted: &[Attempted], counted: &[bool]) {
    let wanted = |one: &Attempted| match shared.settings.attempt_log {
        AttemptLog::All => one.counts,
        AttemptLog::Failures => one.counts && one.report.outcome != Outcome::Delivered,
        AttemptLog::Off => false,
    };
    let rows: Vec<AttemptRow> = attempted
        .iter()
        .zip(counted)
        .filter(|(one, _)| wanted(one))
        .map(|(one, counted)| AttemptRow {
            delivery: match &one.job.held {
                Held::Row(row) => Some(row.id),
                Held::Page(..) => None,
            },
            subscription: one.job.delivery.subscription.row.id,
            position: one.job.delivery.position,
            event: one.job.delivery.event_id(),
            attempt: i32::try_from(one.job.delivery.attempt).unwrap_or(i32::MAX),
            took: one.took,
            outcome: one.report.outcome.code(),
            reason: one.report.outcome.reason().map(crate::delivery::Reason::code),
            status: one.report.status.map(i32::from),
            answer: one.report.answer.clone(),
            ambiguous: one.report.ambiguous,
            stale: !counted,
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
    let delivery = &one.job.delivery;
    let id = delivery.subscription.row.id;
    if one.counts {
        shared.tallies.add(id, one.report.outcome == Outcome::Delivered);
    }
    if one.unwanted {
        return;
    }
    if !counted {
        shared.telemetry.stale_verdict(delivery);
        return;
    }
    match verdict {
        Verdict::Settled => shared.telemetry.settled(delivery, shared.clock.age(delivery.created_at)),
        Verdict::RetryIn(wait) => {
            match &one.job.held {
                Held::Page(page, _) if !one.counts => shared.schedule.hold_back(id, page.deaths > 0),
                Held::Page(..) | Held::Row(_) => shared.schedule.note(id, Instant::now() + *wait),
            }
            if one.has_permit {
                shared.telemetry.retry_scheduled(delivery, *wait);
            }
        }
        Verdict::DeadLetter { reason } => shared.telemetry.dead_lettered(delivery, *reason),
        Verdict::SubscriptionGone => shared.telemetry.held(delivery),
    }
}

/// Deletes the finished pages that no batch deletes.
async fn delete_finished(shared: &Shared, settler: Settler) {
    let batch = pages_of(shared, &[], &[]);
    persist_pages(shared, &batch, settler).await;
}
