//! Claiming, loading, settling, renewing, and what maintenance reads and writes about deliveries.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, FromRow, PgConnection, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    connection::{Slot, Store},
    error::Error,
};
use crate::event::Event;

/// What to claim for one subscription.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// For whom.
    pub subscription: i64,
    /// At most so many.
    pub room: u32,
    /// Look at due times from here on.
    pub since: Option<DateTime<Utc>>,
}

/// A claimed row.
#[derive(Debug, Clone, FromRow)]
pub struct Claimed {
    /// Row of `outbox.deliveries`.
    pub id: i64,
    /// To whom.
    pub subscription_id: i64,
    /// The event.
    pub position: i64,
    /// The event's time.
    pub created_at: DateTime<Utc>,
    /// Since when it has been owed; not before it may be delivered.
    pub owed_since: DateTime<Utc>,
    /// This attempt included.
    pub attempt: i32,
    /// Claims before this one that ended without a verdict.
    pub unfinished: i32,
}

/// A subscription with outstanding deliveries.
#[derive(Debug, Clone, FromRow)]
pub struct DueSubscription {
    /// Which.
    pub subscription_id: i64,
    /// Seconds until its first delivery is due; negative: it is due.
    pub due_in: f64,
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// When the delivery fell due that was redriven last, if no relay has tried it yet.
    pub asked_due_at: Option<DateTime<Utc>>,
}

/// A delivery that is given up.
#[derive(Debug, Clone)]
pub struct DeadRow {
    /// Row of `outbox.deliveries`.
    pub id: i64,
    /// Why.
    pub reason: &'static str,
    /// The last answer's status code.
    pub status: Option<i32>,
    /// The last answer.
    pub answer: Option<String>,
}

/// A row for `outbox.attempts`.
#[derive(Debug, Clone)]
pub struct AttemptRow {
    /// Row of `outbox.deliveries`; none: it never had one.
    pub delivery: Option<i64>,
    /// To whom.
    pub subscription: i64,
    /// The event.
    pub position: i64,
    /// The event's id.
    pub event: Uuid,
    /// Which attempt.
    pub attempt: i32,
    /// How long it took.
    pub took: Duration,
    /// Code of the outcome.
    pub outcome: &'static str,
    /// Code of the reason.
    pub reason: Option<&'static str>,
    /// The answer's status code.
    pub status: Option<i32>,
    /// The answer.
    pub answer: Option<String>,
    /// The destination may have acted.
    pub ambiguous: bool,
    /// The verdict changed nothing.
    pub stale: bool,
}

/// What is outstanding for a subscription.
#[derive(Debug, Clone, FromRow)]
pub struct Backlog {
    /// Which.
    pub subscription_id: i64,
    /// Its name.
    pub name: String,
    /// Rows; counting stops at 100,000.
    pub outstanding: i64,
    /// Age of the oldest event, in seconds.
    pub oldest_age: Option<f64>,
}

/// Verdicts of one batch, ready to be written.
#[derive(Debug, Default)]
pub struct Batch {
    /// Delivered.
    pub delivered: Vec<i64>,
    /// Again after so many seconds; whether the attempt counts.
    pub retries: Vec<(i64, f64, bool)>,
    /// Given up.
    pub dead: Vec<DeadRow>,
    /// Held, for the destination is gone.
    pub gone: Vec<i64>,
    /// The tokens under which all of them are leased.
    pub tokens: Vec<Uuid>,
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.delivered.is_empty() && self.retries.is_empty() && self.dead.is_empty() && self.gone.is_empty()
    }
}

impl Store {
    /// Which subscriptions have deliveries, and when their first is due.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn find_due(&self, since: Option<DateTime<Utc>>) -> Result<Vec<DueSubscription>, Error> {
        self.limited("looking for due deliveries", async {
            let mut session = self.session(Slot::Claim).await?;
            let rows = sqlx::query(sql!("relay/find_due"))
                .bind(since)
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            rows.iter().map(DueSubscription::from_row).collect()
        })
        .await
    }

    /// Leases due deliveries.
    ///
    /// # Errors
    /// Those of the database. Whether the claim took place may then be unknown: its leases, if any, run out by themselves.
    pub async fn claim_deliveries(
        &self,
        claims: &[Claim],
        token: Uuid,
        lease: Duration,
    ) -> Result<Vec<Claimed>, Error> {
        self.limited("claiming deliveries", async {
            let mut session = self.session(Slot::Claim).await?;
            let rows = sqlx::query(sql!("relay/claim_deliveries"))
                .bind(claims.iter().map(|claim| claim.subscription).collect::<Vec<_>>())
                .bind(
                    claims
                        .iter()
                        .map(|claim| i32::try_from(claim.room).unwrap_or(i32::MAX))
                        .collect::<Vec<_>>(),
                )
                .bind(claims.iter().map(|claim| claim.since).collect::<Vec<_>>())
                .bind(token)
                .bind(lease.as_secs_f64())
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            rows.iter().map(Claimed::from_row).collect()
        })
        .await
    }

    /// Events by position, and whether their payloads are with them: those of at most so many bytes. `span`: the first and last of
    /// their times.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_events(
        &self,
        positions: &[i64],
        span: (DateTime<Utc>, DateTime<Utc>),
        largest: i32,
    ) -> Result<HashMap<i64, (Event, bool)>, Error> {
        self.limited("loading events", async {
            let mut session = self.session(Slot::Rest).await?;
            let rows = sqlx::query(sql!("relay/load_events"))
                .bind(positions)
                .bind(span.0)
                .bind(span.1)
                .bind(largest)
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            rows.iter()
                .map(|row| read_event(row).map(|(event, read)| (event.position, (event, read))))
                .collect()
        })
        .await
    }

    /// Writes a batch of verdicts in one commit and returns the deliveries whose verdict counted.
    ///
    /// # Errors
    /// Those of the database. Writing the same batch again is safe.
    pub async fn settle_deliveries(&self, batch: &Batch) -> Result<Vec<i64>, Error> {
        self.limited("settling deliveries", async {
            let kinds = [
                !batch.delivered.is_empty(),
                !batch.retries.is_empty(),
                !batch.dead.is_empty(),
                !batch.gone.is_empty(),
            ];
            if kinds.iter().filter(|&&some| some).count() <= 1 {
                let mut session = self.session(Slot::Settle).await?;
                let settled = self.settle_on(session.connection(), batch).await?;
                session.finish().await?;
                Ok(settled)
            } else {
                let mut session = self.session(Slot::Settle).await?;
                let mut transaction = session.connection().begin().await?;
                let settled = self.settle_on(&mut transaction, batch).await?;
                transaction.commit().await?;
                session.finish().await?;
                Ok(settled)
            }
        })
        .await
    }

    async fn settle_on(&self, connection: &mut PgConnection, batch: &Batch) -> Result<Vec<i64>, sqlx::Error> {
        let mut settled = Vec::with_capacity(batch.delivered.len());
        let persistent = self.is_persistent();
        if !batch.delivered.is_empty() {
            let rows = sqlx::query(sql!("relay/settle_delivered"))
                .bind(&batch.delivered)
                .bind(&batch.tokens)
                .persistent(persistent)
                .fetch_all(&mut *connection)
                .await?;
            collect_ids(&rows, &mut settled)?;
        }
        if !batch.retries.is_empty() {
            let rows = sqlx::query(sql!("relay/settle_retries"))
                .bind(batch.retries.iter().map(|retry| retry.0).collect::<Vec<_>>())
                .bind(&batch.tokens)
                .bind(batch.retries.iter().map(|retry| retry.1).collect::<Vec<_>>())
                .bind(batch.retries.iter().map(|retry| retry.2).collect::<Vec<_>>())
                .persistent(persistent)
                .fetch_all(&mut *connection)
                .await?;
            collect_ids(&rows, &mut settled)?;
        }
        if !batch.dead.is_empty() {
            let rows = sqlx::query(sql!("relay/settle_dead"))
                .bind(batch.dead.iter().map(|dead| dead.id).collect::<Vec<_>>())
                .bind(&batch.tokens)
                .bind(batch.dead.iter().map(|dead| dead.reason).collect::<Vec<_>>())
                .bind(batch.dead.iter().map(|dead| dead.status).collect::<Vec<_>>())
                .bind(batch.dead.iter().map(|dead| dead.answer.as_deref()).collect::<Vec<_>>())
                .persistent(persistent)
                .fetch_all(&mut *connection)
                .await?;
            collect_ids(&rows, &mut settled)?;
        }
        if !batch.gone.is_empty() {
            let rows = sqlx::query(sql!("relay/settle_gone"))
                .bind(&batch.gone)
                .bind(&batch.tokens)
                .persistent(persistent)
                .fetch_all(&mut *connection)
                .await?;
            collect_ids(&rows, &mut settled)?;
        }
        Ok(settled)
    }

    /// Adds to the delivery log.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn record_attempts(&self, attempts: &[AttemptRow], relay: &str) -> Result<(), Error> {
        self.limited("recording attempts", async {
            let mut session = self.session(Slot::Rest).await?;
            sqlx::query(sql!("relay/record_attempts"))
                .bind(attempts.iter().map(|made| made.delivery).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.subscription).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.position).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.event).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.attempt).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.took.as_secs_f64()).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.outcome).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.reason).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.status).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.answer.as_deref()).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.ambiguous).collect::<Vec<_>>())
                .bind(attempts.iter().map(|made| made.stale).collect::<Vec<_>>())
                .bind(relay)
                .persistent(self.is_persistent())
                .execute(session.connection())
                .await?;
            session.finish().await
        })
        .await
    }

    /// Prolongs leases. Returns the deliveries that are still ours, and whether their leases were prolonged.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn renew_leases(
        &self,
        deliveries: &[i64],
        tokens: &[Uuid],
        lease: Duration,
    ) -> Result<Vec<(i64, bool)>, Error> {
        self.limited("renewing leases", async {
            let mut session = self.session(Slot::Renew).await?;
            let rows = sqlx::query(sql!("relay/renew_leases"))
                .bind(deliveries)
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

    /// Cancels up to `limit` deliveries of a subscription that no longer exists and returns how many.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn cancel_orphans(&self, subscription: i64, limit: i64) -> Result<u64, Error> {
        self.limited("cancelling deliveries of a deleted subscription", async {
            let mut session = self.session(Slot::Rest).await?;
            let done: i64 = sqlx::query_scalar(sql!("relay/cancel_orphans"))
                .bind(limit)
                .bind(subscription)
                .persistent(self.is_persistent())
                .fetch_one(session.connection())
                .await?;
            session.finish().await?;
            Ok(done.unsigned_abs())
        })
        .await
    }

    /// What is outstanding, per subscription.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn measure_backlog(&self) -> Result<Vec<Backlog>, Error> {
        self.limited("measuring the backlog", async {
            let mut session = self.session(Slot::Rest).await?;
            let rows = sqlx::query(sql!("relay/measure_backlog"))
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            rows.iter().map(Backlog::from_row).collect()
        })
        .await
    }

    /// Rings a channel, to wake other relays or to hear oneself.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn ring(&self, channel: &str) -> Result<(), Error> {
        self.limited("ringing the doorbell", async {
            let mut session = self.session(Slot::Rest).await?;
            sqlx::query("select pg_notify($1, '')")
                .bind(channel)
                .persistent(self.is_persistent())
                .execute(session.connection())
                .await?;
            session.finish().await
        })
        .await
    }
}

fn collect_ids(rows: &[PgRow], into: &mut Vec<i64>) -> Result<(), sqlx::Error> {
    for row in rows {
        into.push(row.try_get(0)?);
    }
    Ok(())
}

/// The order is that of `load_events.sql`.
fn read_event(row: &PgRow) -> Result<(Event, bool), sqlx::Error> {
    let payload: Option<String> = row.try_get(10)?;
    let read = payload.is_some();
    let event = Event {
        position: row.try_get(0)?,
        created_at: row.try_get(1)?,
        id: row.try_get(2)?,
        topic: row.try_get(3)?,
        key: row.try_get(4)?,
        organization: row.try_get(5)?,
        source: row.try_get(6)?,
        user_id: row.try_get(7)?,
        schema_version: row.try_get(8)?,
        headers: row.try_get(9)?,
        payload: payload.unwrap_or_default(),
    };
    Ok((event, read))
}
