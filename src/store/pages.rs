//! Pages and the backlog: what is owed as ranges of positions.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    connection::{Slot, Store},
    error::Error,
};
use crate::delivery::ranges::Ranges;

/// What to claim of the backlog of one subscription.
#[derive(Debug, Clone, Copy)]
pub struct BacklogClaim {
    /// For whom.
    pub subscription: i64,
    /// At most so many positions.
    pub wanted: usize,
    /// Look from this id on.
    pub since: i64,
    /// In a page of its own.
    pub own_page: bool,
}

/// Positions owed to one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// To whom.
    pub subscription: i64,
    /// What.
    pub positions: Ranges,
    /// Since when.
    pub owed_since: DateTime<Utc>,
}

/// A page that was claimed or taken over.
#[derive(Debug, Clone)]
pub struct LeasedPage {
    /// Its row.
    pub id: i64,
    /// Relays that died while they held its pairs,
    pub deaths: i16,
    /// of these, one pair alone.
    pub alone: i16,
    /// The span of the events' times.
    pub span: (DateTime<Utc>, DateTime<Utc>),
    /// What it owes.
    pub entries: Vec<Entry>,
    /// The numbers of the pairs that are settled.
    pub done: Ranges,
}

/// A subscription with something in the backlog.
#[derive(Debug, Clone, Copy)]
pub struct InBacklog {
    /// Which.
    pub subscription: i64,
    /// Whether relays died with it.
    pub is_suspect: bool,
    /// The newest id in the backlog at all.
    pub newest: i64,
}

/// A pair of a page.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// The page.
    pub page: i64,
    /// Its number there.
    pub number: i32,
    /// To whom.
    pub subscription: i64,
    /// The event.
    pub position: i64,
    /// The event's time.
    pub created_at: DateTime<Utc>,
    /// Attempts made.
    pub attempts: i32,
}

/// A pair that is tried again.
#[derive(Debug, Clone)]
pub struct PairRetry {
    /// Which.
    pub pair: Pair,
    /// Since when it has been owed.
    pub owed_since: DateTime<Utc>,
    /// After so many seconds.
    pub wait: f64,
    /// Attempts that ended without a verdict.
    pub unfinished: i32,
}

/// A pair that is given up.
#[derive(Debug, Clone)]
pub struct PairDead {
    /// Which.
    pub pair: Pair,
    /// Why.
    pub reason: &'static str,
    /// The last answer's status code.
    pub status: Option<i32>,
    /// The last answer.
    pub answer: Option<String>,
}

/// Pairs of a page that go to the backlog.
#[derive(Debug, Clone)]
pub struct PairsBack {
    /// The page.
    pub page: i64,
    /// Their numbers there.
    pub numbers: Ranges,
    /// What is owed.
    pub entry: Entry,
    /// The span of the events' times.
    pub span: (DateTime<Utc>, DateTime<Utc>),
    /// Relays that died while they held them,
    pub deaths: i16,
    /// of these, one alone.
    pub alone: i16,
}

/// What is to be written of several pages.
#[derive(Debug, Default)]
pub struct PageBatch {
    /// The numbers of pairs that are settled now.
    pub progress: Vec<(i64, Ranges)>,
    /// Pages with nothing left.
    pub finished: Vec<i64>,
    /// The tokens under which all of them are leased.
    pub tokens: Vec<Uuid>,
    /// To be tried again.
    pub retries: Vec<PairRetry>,
    /// Given up.
    pub dead: Vec<PairDead>,
    /// For later, as a whole.
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
    /// Moves the oldest of what waits as a whole into pages of ours.
    ///
    /// # Errors
    /// Those of the database. Whether the claim took place may then be unknown: its leases, if any, run out by themselves.
    pub async fn claim_backlog(
        &self,
        claims: &[BacklogClaim],
        suspects: bool,
        token: Uuid,
        lease: Duration,
    ) -> Result<Vec<LeasedPage>, Error> {
        self.limited("claiming from the backlog", async {
            let mut session = self.session(Slot::Claim).await?;
            let rows = sqlx::query(sql!("relay/claim_backlog"))
                .bind(claims.iter().map(|claim| claim.subscription).collect::<Vec<_>>())
                .bind(
                    claims
                        .iter()
                        .map(|claim| i64::try_from(claim.wanted).unwrap_or(i64::MAX))
                        .collect::<Vec<_>>(),
                )
                .bind(claims.iter().map(|claim| claim.since).collect::<Vec<_>>())
                .bind(claims.iter().map(|claim| claim.own_page).collect::<Vec<_>>())
                .bind(suspects)
                .bind(token)
                .bind(lease.as_secs_f64())
                .bind(self.relay())
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            rows.iter().map(read_page).collect()
        })
        .await
    }

    /// Leases pages whose lease has ended.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn take_over_pages(
        &self,
        since: i64,
        limit: i64,
        token: Uuid,
        lease: Duration,
    ) -> Result<Vec<LeasedPage>, Error> {
        self.limited("taking over pages", async {
            let mut session = self.session(Slot::Claim).await?;
            let rows = sqlx::query(sql!("relay/take_over_pages"))
                .bind(since)
                .bind(limit)
                .bind(token)
                .bind(lease.as_secs_f64())
                .bind(self.relay())
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            rows.iter().map(read_page).collect()
        })
        .await
    }

    /// Prolongs leases of pages. Returns those that are still ours, and whether they were prolonged.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn renew_pages(
        &self,
        pages: &[i64],
        tokens: &[Uuid],
        lease: Duration,
    ) -> Result<Vec<(i64, bool)>, Error> {
        self.limited("renewing leases of pages", async {
            let mut session = self.session(Slot::Renew).await?;
            let rows = sqlx::query(sql!("relay/renew_pages"))
                .bind(pages)
                .bind(tokens)
                .bind(lease.as_secs_f64())
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        })
        .await
    }

    /// Which subscriptions have something in the backlog, from an id on or at all.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn find_backlog(&self, since: Option<i64>) -> Result<Vec<InBacklog>, Error> {
        self.limited("looking for a backlog", async {
            let mut session = self.session(Slot::Claim).await?;
            let rows = sqlx::query(sql!("relay/find_backlog"))
                .bind(since)
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            rows.iter()
                .map(|row| {
                    Ok(InBacklog {
                        subscription: row.try_get(0)?,
                        is_suspect: row.try_get(1)?,
                        newest: row.try_get(3)?,
                    })
                })
                .collect()
        })
        .await
    }

    /// Writes what became of pairs of pages, in one commit. Returns the pages that were still ours.
    ///
    /// # Errors
    /// Those of the database. Writing the same batch again is safe.
    pub async fn settle_pages(&self, batch: &PageBatch, lane: usize) -> Result<Vec<i64>, Error> {
        let lane = if lane == 0 { Slot::Settle } else { Slot::SettleToo };
        let pages: Vec<i64> = batch.progress.iter().map(|(page, _)| *page).collect();
        let numbers: Vec<String> = batch.progress.iter().map(|(_, numbers)| numbers.to_string()).collect();
        self.limited("settling pages", async {
            let mut session = self.session(lane).await?;
            let plain = batch.retries.is_empty() && batch.dead.is_empty() && batch.back.is_empty();
            let rows = if plain {
                sqlx::query(sql!("relay/settle_pages"))
                    .bind(&pages)
                    .bind(&numbers)
                    .bind(&batch.finished)
                    .bind(&batch.tokens)
                    .persistent(self.is_persistent())
                    .fetch_all(session.connection())
                    .await?
            } else {
                let (retries, dead, back) = (&batch.retries, &batch.dead, &batch.back);
                sqlx::query(sql!("relay/settle_parts"))
                    .bind(&pages)
                    .bind(&numbers)
                    .bind(&batch.finished)
                    .bind(&batch.tokens)
                    .bind(retries.iter().map(|one| one.pair.page).collect::<Vec<_>>())
                    .bind(retries.iter().map(|one| one.pair.number).collect::<Vec<_>>())
                    .bind(retries.iter().map(|one| one.pair.subscription).collect::<Vec<_>>())
                    .bind(retries.iter().map(|one| one.pair.position).collect::<Vec<_>>())
                    .bind(retries.iter().map(|one| one.pair.created_at).collect::<Vec<_>>())
                    .bind(retries.iter().map(|one| one.owed_since).collect::<Vec<_>>())
                    .bind(retries.iter().map(|one| one.pair.attempts).collect::<Vec<_>>())
                    .bind(retries.iter().map(|one| one.wait).collect::<Vec<_>>())
                    .bind(retries.iter().map(|one| one.unfinished).collect::<Vec<_>>())
                    .bind(dead.iter().map(|one| one.pair.page).collect::<Vec<_>>())
                    .bind(dead.iter().map(|one| one.pair.number).collect::<Vec<_>>())
                    .bind(dead.iter().map(|one| one.pair.subscription).collect::<Vec<_>>())
                    .bind(dead.iter().map(|one| one.pair.position).collect::<Vec<_>>())
                    .bind(dead.iter().map(|one| one.pair.created_at).collect::<Vec<_>>())
                    .bind(dead.iter().map(|one| one.pair.attempts).collect::<Vec<_>>())
                    .bind(dead.iter().map(|one| one.reason).collect::<Vec<_>>())
                    .bind(dead.iter().map(|one| one.status).collect::<Vec<_>>())
                    .bind(dead.iter().map(|one| one.answer.as_deref()).collect::<Vec<_>>())
                    .bind(back.iter().map(|one| one.page).collect::<Vec<_>>())
                    .bind(back.iter().map(|one| one.numbers.to_string()).collect::<Vec<_>>())
                    .bind(back.iter().map(|one| one.entry.subscription).collect::<Vec<_>>())
                    .bind(back.iter().map(|one| one.entry.positions.to_string()).collect::<Vec<_>>())
                    .bind(back.iter().map(|one| one.entry.owed_since).collect::<Vec<_>>())
                    .bind(back.iter().map(|one| one.span.0).collect::<Vec<_>>())
                    .bind(back.iter().map(|one| one.span.1).collect::<Vec<_>>())
                    .bind(back.iter().map(|one| one.deaths).collect::<Vec<_>>())
                    .bind(back.iter().map(|one| one.alone).collect::<Vec<_>>())
                    .persistent(self.is_persistent())
                    .fetch_all(session.connection())
                    .await?
            };
            session.finish().await?;
            rows.iter().map(|row| row.try_get(0)).collect()
        })
        .await
    }
}

fn read_page(row: &PgRow) -> Result<LeasedPage, sqlx::Error> {
    let unreadable = |error| sqlx::Error::Decode(Box::new(error));
    let read = |text: &str| text.parse::<Ranges>().map_err(unreadable);
    let subscriptions: Vec<i64> = row.try_get("subscriptions")?;
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
