//! Rows of `outbox.pages` and `outbox.backlog`: deliveries as ranges of positions.
//!
//! A *pair* is an event and a subscription that receives it: one delivery of a page. The pairs of a page are
//! numbered from 0, entry by entry, each in the order of positions.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    connection::{Reserved, Settler, Store},
    error::Error,
};
use crate::{
    delivery::{PageId, SubscriptionId, ranges::Ranges},
    event::Position,
};

/// How much of the backlog of one subscription is wanted by a claim.
#[derive(Debug, Clone, Copy)]
pub struct BacklogClaim {
    /// Subscription id.
    pub subscription: SubscriptionId,
    /// Largest number of positions to claim.
    pub wanted: usize,
    /// Smallest row id of `outbox.backlog` to look at.
    pub since: i64,
    /// Whether the positions go into a page of their own, without those of other subscriptions.
    pub own_page: bool,
}

/// Events that are outstanding for one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Subscription id.
    pub subscription: SubscriptionId,
    /// Positions of the events.
    pub positions: Ranges,
    /// Time from which they could be delivered.
    pub owed_since: DateTime<Utc>,
}

/// A page that was claimed or taken over.
#[derive(Debug, Clone)]
pub struct LeasedPage {
    /// Row of `outbox.pages`.
    pub id: PageId,
    /// Number of relays that died while they held its pairs.
    pub deaths: i16,
    /// Number of relays among them that held a single pair.
    pub alone: i16,
    /// The first and the last time of its events.
    pub span: (DateTime<Utc>, DateTime<Utc>),
    /// Its pairs, by subscription.
    pub entries: Vec<Entry>,
    /// Numbers of the pairs that are settled.
    pub done: Ranges,
}

/// What a claim from the backlog found.
#[derive(Debug, Default)]
pub struct FromBacklog {
    /// What was leased; for ordered subscriptions in the order of positions.
    pub pages: Vec<LeasedPage>,
    /// The subscriptions of which something stays that may be claimed next, such as what somebody had locked.
    /// Without an order those with fewer rows than were asked for.
    pub stays: HashSet<SubscriptionId>,
}

impl FromBacklog {
    pub(super) fn read(rows: &[PgRow]) -> Result<Self, sqlx::Error> {
        let mut found = Self::default();
        for row in rows {
            match row.try_get("stays")? {
                Some(subscription) => drop(found.stays.insert(subscription)),
                None => found.pages.push(read_page(row)?),
            }
        }
        Ok(found)
    }
}

/// A subscription with rows in `outbox.backlog`.
#[derive(Debug, Clone, Copy)]
pub struct InBacklog {
    /// Subscription id.
    pub subscription: SubscriptionId,
    /// Whether a relay died while it held these rows. A subscription may have rows of both sorts.
    pub is_suspect: bool,
    /// Largest row id of the whole backlog.
    pub newest: i64,
}

/// A pair of a page.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// Row of `outbox.pages`.
    pub page: PageId,
    /// Number of the pair in its page.
    pub number: i32,
    /// Subscription id.
    pub subscription: SubscriptionId,
    /// Position of the event.
    pub position: Position,
    /// Time of the event.
    pub created_at: DateTime<Utc>,
    /// Number of attempts made.
    pub attempts: i32,
}

/// A pair that is attempted again: it becomes a row of `outbox.deliveries`.
#[derive(Debug, Clone)]
pub struct PairRetry {
    /// The pair.
    pub pair: Pair,
    /// Time from which the event could be delivered.
    pub owed_since: DateTime<Utc>,
    /// Time until it is due; none: it waits until it is the first of its key.
    pub wait: Option<Duration>,
    /// Number of claims that ended without a verdict.
    pub unfinished: i32,
    /// Key of the event, where it waits in the order of its key.
    pub key: Option<String>,
    /// Whether an attempt so far may have reached the destination.
    pub repeated: bool,
}

/// A pair that becomes a dead letter.
#[derive(Debug, Clone)]
pub struct PairDead {
    /// The pair.
    pub pair: Pair,
    /// Code of the reason.
    pub reason: &'static str,
    /// Status code of the last answer.
    pub status: Option<i32>,
    /// Text of the last answer.
    pub answer: Option<String>,
}

/// Pairs of a page that go back to the backlog.
#[derive(Debug, Clone)]
pub struct PairsBack {
    /// Row of `outbox.pages`.
    pub page: PageId,
    /// Numbers of the pairs in their page.
    pub numbers: Ranges,
    /// Subscription and positions of the pairs.
    pub entry: Entry,
    /// The first and the last time of their events.
    pub span: (DateTime<Utc>, DateTime<Utc>),
    /// Number of relays that died while they held these pairs.
    pub deaths: i16,
    /// Number of relays among them that held a single pair.
    pub alone: i16,
}

/// What is written about several pages in one commit.
#[derive(Debug, Default)]
pub struct PageBatch {
    /// Pages that keep outstanding pairs, and the numbers of the pairs that are settled now.
    pub progress: Vec<(PageId, Ranges)>,
    /// Pages without outstanding pairs, which are deleted.
    pub finished: Vec<PageId>,
    /// Lease tokens of all these pages.
    pub tokens: Vec<Uuid>,
    /// Pairs that are attempted again.
    pub retries: Vec<PairRetry>,
    /// Pairs that become dead letters.
    pub dead: Vec<PairDead>,
    /// Pairs that go back to the backlog.
    pub back: Vec<PairsBack>,
}

impl PageBatch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.progress.is_empty() && self.finished.is_empty()
    }
}

impl Store {
    /// Moves the oldest positions of the backlog into pages that this relay leases.
    ///
    /// # Errors
    /// Those of the database. The claim may have taken place nevertheless: its leases then end by themselves.
    pub async fn claim_backlog(
        &self,
        claims: &[BacklogClaim],
        suspects: bool,
        token: Uuid,
        lease: Duration,
    ) -> Result<FromBacklog, Error> {
        self.statement("claiming from the backlog", sql!("relay/claim_backlog"))
            .on(Reserved::Claim)
            .bind_each(claims, |claim| claim.subscription)
            .bind_each(claims, |claim| i64::try_from(claim.wanted).unwrap_or(i64::MAX))
            .bind_each(claims, |claim| claim.since)
            .bind_each(claims, |claim| claim.own_page)
            .bind(suspects)
            .bind(token)
            .bind(lease.as_secs_f64())
            .bind(self.relay())
            .all(FromBacklog::read)
            .await
    }

    /// Finds the pages that a claim has leased whose answer was lost.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn find_claimed_pages(&self, token: Uuid) -> Result<Vec<LeasedPage>, Error> {
        self.statement("looking for what a claim has leased", sql!("relay/find_claimed_pages"))
            .on(Reserved::Claim)
            .bind(token)
            .rows(read_page)
            .await
    }

    /// Leases up to `limit` pages whose lease has ended, from the page `since` on.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn take_over_pages(
        &self,
        since: PageId,
        limit: i64,
        token: Uuid,
        lease: Duration,
    ) -> Result<Vec<LeasedPage>, Error> {
        self.statement("taking over pages", sql!("relay/take_over_pages"))
            .on(Reserved::Claim)
            .bind(since)
            .bind(limit)
            .bind(token)
            .bind(lease.as_secs_f64())
            .bind(self.relay())
            .rows(read_page)
            .await
    }

    /// The lowest page from `since` on, and in how long the first lease of a page ends; zero: one has ended.
    /// None: there is no page.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn look_at_pages(&self, since: PageId) -> Result<Option<(PageId, Duration)>, Error> {
        self.statement("looking when leases of pages end", sql!("relay/look_at_pages"))
            .on(Reserved::Claim)
            .bind(since)
            .row(|row| {
                let Some(first) = row.try_get("first")? else { return Ok(None) };
                let ends_in: f64 = row.try_get("ends_in")?;
                Ok(Some((first, Duration::try_from_secs_f64(ends_in).unwrap_or_default())))
            })
            .await
    }

    /// Extends leases of pages. Returns the pages that this relay still holds, and whether each lease was
    /// extended.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn renew_pages(
        &self,
        pages: &[PageId],
        tokens: &[Uuid],
        lease: Duration,
    ) -> Result<Vec<(PageId, bool)>, Error> {
        self.statement("renewing leases of pages", sql!("relay/renew_pages"))
            .on(Reserved::Renew)
            .bind(pages)
            .bind(tokens)
            .bind(lease.as_secs_f64())
            .rows(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .await
    }

    /// Finds the subscriptions with rows in the backlog, from the row id `since` on; without it, in all of
    /// it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn find_backlog(&self, since: Option<i64>) -> Result<Vec<InBacklog>, Error> {
        self.statement("looking for a backlog", sql!("relay/find_backlog"))
            .on(Reserved::Claim)
            .bind(since)
            .rows(|row| {
                Ok(InBacklog {
                    subscription: row.try_get("subscription_id")?,
                    is_suspect: row.try_get("is_suspect")?,
                    newest: row.try_get("newest_id")?,
                })
            })
            .await
    }

    /// Writes verdicts on pairs of pages in one commit, and returns the pages that this relay still held.
    ///
    /// # Errors
    /// Those of the database. Writing the same batch again is safe.
    pub async fn settle_pages(&self, batch: &PageBatch, settler: Settler) -> Result<Vec<PageId>, Error> {
        let PageBatch { progress, finished, tokens, retries, dead, back } = batch;
        let is_plain = retries.is_empty() && dead.is_empty() && back.is_empty();
        let sql = if is_plain { sql!("relay/settle_pages") } else { sql!("relay/settle_parts") };
        let mut statement = self
            .statement("settling pages", sql)
            .on(Reserved::Settle(settler))
            .bind_each(progress, |(page, _)| *page)
            .bind_each(progress, |(_, numbers)| numbers.to_string())
            .bind(finished)
            .bind(tokens);
        if !is_plain {
            statement = statement
                .bind_each(retries, |retry| retry.pair.page)
                .bind_each(retries, |retry| retry.pair.number)
                .bind_each(retries, |retry| retry.pair.subscription)
                .bind_each(retries, |retry| retry.pair.position)
                .bind_each(retries, |retry| retry.pair.created_at)
                .bind_each(retries, |retry| retry.owed_since)
                .bind_each(retries, |retry| retry.pair.attempts)
                .bind_each(retries, |retry| retry.wait.map(|wait| wait.as_secs_f64()))
                .bind_each(retries, |retry| retry.unfinished)
                .bind_each(dead, |dead| dead.pair.page)
                .bind_each(dead, |dead| dead.pair.number)
                .bind_each(dead, |dead| dead.pair.subscription)
                .bind_each(dead, |dead| dead.pair.position)
                .bind_each(dead, |dead| dead.pair.created_at)
                .bind_each(dead, |dead| dead.pair.attempts)
                .bind_each(dead, |dead| dead.reason)
                .bind_each(dead, |dead| dead.status)
                .bind_each(dead, |dead| dead.answer.as_deref())
                .bind_each(back, |part| part.page)
                .bind_each(back, |part| part.numbers.to_string())
                .bind_each(back, |part| part.entry.subscription)
                .bind_each(back, |part| part.entry.positions.to_string())
                .bind_each(back, |part| part.entry.owed_since)
                .bind_each(back, |part| part.span.0)
                .bind_each(back, |part| part.span.1)
                .bind_each(back, |part| part.deaths)
                .bind_each(back, |part| part.alone)
                .bind_each(retries, |retry| retry.key.as_deref())
                .bind_each(retries, |retry| retry.repeated);
        }
        statement.rows(|row| row.try_get(0)).await
    }
}

pub(super) fn read_page(row: &PgRow) -> Result<LeasedPage, sqlx::Error> {
    let unreadable = |error| sqlx::Error::Decode(Box::new(error));
    let read = |text: &str| text.parse::<Ranges>().map_err(unreadable);
    let subscriptions: Vec<SubscriptionId> = row.try_get("subscriptions")?;
    let owed: Vec<String> = row.try_get("owed")?;
    let owed_since: Vec<DateTime<Utc>> = row.try_get("owed_since")?;
    let mut entries = Vec::with_capacity(subscriptions.len());
    for (at, (subscription, positions)) in subscriptions.into_iter().zip(&owed).enumerate() {
        let since = owed_since.get(at).or(owed_since.first()).copied().unwrap_or_default();
        entries.push(Entry { subscription, positions: read(positions)?, owed_since: since });
    }
    Ok(LeasedPage {
        id: row.try_get("id")?,
        deaths: row.try_get("deaths")?,
        alone: row.try_get("alone")?,
        span: (row.try_get("created_from")?, row.try_get("created_until")?),
        entries,
        done: read(row.try_get("done")?)?,
    })
}
