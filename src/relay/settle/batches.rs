//! What is written about verdicts. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use uuid::Uuid;

use super::super::{
    attempted::Attempted,
    held::{Held, Page},
};
use crate::{
    delivery::{DeliveryId, PageId, SubscriptionId, Verdict, ranges::Ranges},
    store::{Batch, DeadRow, Entry, PageBatch, Pair, PairDead, PairRetry, PairsBack, RetryRow},
};

/// What is written of rows, and the token under which each is written. Nothing is written under a lease that
/// was refused.
pub(super) fn rows_of<'a>(
    decided: impl Iterator<Item = (&'a Attempted, &'a Verdict)>,
) -> (Batch, HashMap<DeliveryId, Uuid>) {
    let mut batch = Batch::default();
    let mut tokens = HashMap::new();
    for (one, verdict) in decided {
        let Held::Row(row) = &one.job.held else { continue };
        let id = row.id;
        // Where its sink has deleted the row itself, there is nothing left to write.
        if row.lease.is_refused() || one.report.settled {
            continue;
        }
        tokens.insert(id, row.lease.token());
        match verdict {
            Verdict::Settled => batch.delivered.push(id),
            Verdict::RetryIn(wait) => {
                let ambiguous = one.report.ambiguous;
                batch.retries.push(RetryRow { id, wait: Some(*wait), counts: one.counts, ambiguous });
            }
            Verdict::Waits => {
                batch.retries.push(RetryRow { id, wait: None, counts: false, ambiguous: false })
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
    batch.tokens = distinct(&tokens);
    (batch, tokens)
}

fn distinct<Id>(tokens: &HashMap<Id, Uuid>) -> Vec<Uuid> {
    let mut distinct: Vec<Uuid> = tokens.values().copied().collect();
    distinct.sort_unstable();
    distinct.dedup();
    distinct
}

/// The key in whose order a pair waits.
fn key_of(one: &Attempted) -> Option<String> {
    one.job.lane.as_deref().map(str::to_owned)
}

/// What is written of pages, and the token under which each is written. A page whose last pairs are among
/// these is deleted, and so are the `finished` ones. Nothing is written under a lease that was refused.
pub(super) fn pages_of<'a>(
    decided: impl Iterator<Item = (&'a Attempted, &'a Verdict)>,
    finished: &[Arc<Page>],
) -> (PageBatch, HashMap<PageId, Uuid>) {
    let mut batch = PageBatch::default();
    let mut is_ours: HashMap<PageId, bool> = HashMap::new();
    let mut tokens = HashMap::new();
    let mut progress: BTreeMap<PageId, (&Arc<Page>, Ranges, u32)> = BTreeMap::new();
    let mut back: HashMap<(PageId, SubscriptionId, chrono::DateTime<chrono::Utc>), PairsBack> =
        HashMap::new();
    for (one, verdict) in decided {
        let Held::Page(page, number) = &one.job.held else { continue };
        // Read once: it must not be refused between two of its pairs.
        if !*is_ours.entry(page.id).or_insert_with(|| !page.lease.is_refused()) {
            continue;
        }
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
                let (owed_since, key) = (delivery.owed_since, key_of(one));
                let repeated = delivery.repeated || one.report.ambiguous;
                let wait = Some(*wait);
                batch.retries.push(PairRetry { pair, owed_since, wait, unfinished: 0, key, repeated });
            }
            Verdict::Waits => {
                let pair = Pair { attempts: pair.attempts - 1, ..pair };
                let (owed_since, key) = (delivery.owed_since, key_of(one));
                let unfinished = i32::from(page.deaths.min(2));
                let repeated = delivery.repeated;
                batch.retries.push(PairRetry { pair, owed_since, wait: None, unfinished, key, repeated });
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
        } else {
            continue;
        }
        tokens.insert(id, page.lease.token());
    }
    for page in finished {
        if !batch.finished.contains(&page.id) && !page.lease.is_refused() {
            batch.finished.push(page.id);
            tokens.insert(page.id, page.lease.token());
        }
    }
    batch.tokens = distinct(&tokens);
    (batch, tokens)
}
