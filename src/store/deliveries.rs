//! Rows of `outbox.deliveries`: found, claimed, renewed, settled and cancelled.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{FromRow, Row as _};
use uuid::Uuid;

use super::{
    connection::{Reserved, Settler, Store},
    error::Error,
    statement::{by_name, rows_of_all},
};
use crate::{
    delivery::{DeliveryId, PageId, ReplayId, SubscriptionId},
    event::Position,
};

/// How many deliveries of one subscription are wanted by a claim.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Subscription id.
    pub subscription: SubscriptionId,
    /// Largest number of deliveries to claim.
    pub room: u32,
    /// Earliest due time to look at; none: all.
    pub since: Option<DateTime<Utc>>,
}

/// A delivery that was claimed.
#[derive(Debug, Clone, FromRow)]
pub struct Claimed {
    /// Row of `outbox.deliveries`.
    pub id: DeliveryId,
    /// Subscription that receives it.
    pub subscription_id: SubscriptionId,
    /// Position of the event.
    pub position: Position,
    /// Time of the event.
    pub created_at: DateTime<Utc>,
    /// Time from which the event could be delivered.
    pub owed_since: DateTime<Utc>,
    /// Number of the attempt that this claim is for, from 1.
    pub attempt: i32,
    /// Number of earlier claims that ended without a verdict.
    pub unfinished: i32,
    /// Key of the event, if it waited in the order of its key.
    pub key: Option<String>,
    /// Replay that it is part of.
    pub replay_id: Option<ReplayId>,
    /// Whether an earlier attempt may have reached the destination.
    pub repeated: bool,
}

/// A subscription with outstanding deliveries.
#[derive(Debug, Clone, FromRow)]
pub struct DueSubscription {
    /// Subscription id.
    pub subscription_id: SubscriptionId,
    /// Seconds until its first delivery is due; negative when it is overdue.
    pub due_in: f64,
    /// Time of the database when it looked.
    pub now: DateTime<Utc>,
    /// Due time of its newest delivery that an operator redrove and no relay has claimed yet.
    pub asked_due_at: Option<DateTime<Utc>>,
}

/// A delivery that is attempted again.
#[derive(Debug, Clone, Copy)]
pub struct RetryRow {
    /// Row of `outbox.deliveries`.
    pub id: DeliveryId,
    /// Time until it is due; none: it waits until it is the first of its key.
    pub wait: Option<Duration>,
    /// Whether the last attempt counts towards the limit.
    pub counts: bool,
    /// Whether the last attempt may have reached the destination.
    pub ambiguous: bool,
}

/// A delivery that becomes a dead letter.
#[derive(Debug, Clone)]
pub struct DeadRow {
    /// Row of `outbox.deliveries`.
    pub id: DeliveryId,
    /// Code of the reason.
    pub reason: &'static str,
    /// Status code of the last answer.
    pub status: Option<i32>,
    /// Text of the last answer.
    pub answer: Option<String>,
}

/// Verdicts that are written in one commit.
#[derive(Debug, Default)]
pub struct Batch {
    /// Deliveries that succeeded: rows of `outbox.deliveries`.
    pub delivered: Vec<DeliveryId>,
    /// Deliveries that are attempted again.
    pub retries: Vec<RetryRow>,
    /// Deliveries that become dead letters.
    pub dead: Vec<DeadRow>,
    /// Deliveries that are held because the destination is gone: rows of `outbox.deliveries`.
    pub gone: Vec<DeliveryId>,
    /// Lease tokens of all these deliveries.
    pub tokens: Vec<Uuid>,
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.delivered.is_empty() && self.retries.is_empty() && self.dead.is_empty() && self.gone.is_empty()
    }
}

/// Rows that somebody else has locked.
#[derive(Debug, Default)]
pub struct Locked {
    /// Rows of `outbox.deliveries`.
    pub deliveries: HashSet<DeliveryId>,
    /// Rows of `outbox.pages`.
    pub pages: HashSet<PageId>,
}

/// What was cancelled of what a deleted subscription was owed.
#[derive(Debug, FromRow)]
pub struct Cancelled {
    /// Number of rows.
    pub cancelled: i64,
    /// Latest due time of the deliveries among them.
    pub until: Option<DateTime<Utc>>,
}

/// What a part of a sweep found.
#[derive(Debug, FromRow)]
pub struct Freshened {
    /// Size of the table in blocks.
    pub blocks: i64,
    /// How many deliveries are due now.
    pub moved: i64,
    /// Their subscriptions.
    pub subscriptions: Vec<SubscriptionId>,
}

impl Store {
    /// Finds the subscriptions with outstanding deliveries, and when the first delivery of each is due. With
    /// `since`, deliveries due before it are not looked at.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn find_due(&self, since: Option<DateTime<Utc>>) -> Result<Vec<DueSubscription>, Error> {
        self.statement("looking for due deliveries", sql!("relay/find_due"))
            .on(Reserved::Claim)
            .bind(since)
            .rows(by_name)
            .await
    }

    /// Leases due deliveries.
    ///
    /// # Errors
    /// Those of the database. The claim may have taken place nevertheless: its leases then end by themselves.
    pub async fn claim_deliveries(
        &self,
        claims: &[Claim],
        token: Uuid,
        lease: Duration,
    ) -> Result<Vec<Claimed>, Error> {
        self.statement("claiming deliveries", sql!("relay/claim_deliveries"))
            .on(Reserved::Claim)
            .bind_each(claims, |claim| claim.subscription)
            .bind_each(claims, |claim| i32::try_from(claim.room).unwrap_or(i32::MAX))
            .bind_each(claims, |claim| claim.since)
            .bind(token)
            .bind(lease.as_secs_f64())
            .rows(by_name)
            .await
    }

    /// Finds the deliveries that a claim has leased whose answer was lost.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn find_claimed_rows(
        &self,
        subscriptions: &[SubscriptionId],
        token: Uuid,
        lease: Duration,
    ) -> Result<Vec<DeliveryId>, Error> {
        self.statement("looking for what a claim has leased", sql!("relay/find_claimed_rows"))
            .on(Reserved::Claim)
            .bind(subscriptions)
            .bind(token)
            .bind(lease.as_secs_f64())
            .rows(|row| row.try_get(0))
            .await
    }

    /// Writes a batch of verdicts in one commit, and returns the deliveries whose verdict counted.
    ///
    /// # Errors
    /// Those of the database. Writing the same batch again is safe.
    pub async fn settle_deliveries(&self, batch: &Batch) -> Result<Vec<DeliveryId>, Error> {
        let statement = |sql| self.statement("settling deliveries", sql).on(Reserved::Settle(Settler::First));
        let Batch { delivered, retries, dead, gone, tokens } = batch;
        let mut statements = Vec::new();
        if !delivered.is_empty() {
            statements.push(statement(sql!("relay/settle_delivered")).bind(delivered).bind(tokens));
        }
        if !retries.is_empty() {
            statements.push(
                statement(sql!("relay/settle_retries"))
                    .bind_each(retries, |retry| retry.id)
                    .bind(tokens)
                    .bind_each(retries, |retry| retry.wait.map(|wait| wait.as_secs_f64()))
                    .bind_each(retries, |retry| retry.counts)
                    .bind_each(retries, |retry| retry.ambiguous),
            );
        }
        if !dead.is_empty() {
            statements.push(
                statement(sql!("relay/settle_dead"))
                    .bind_each(dead, |dead| dead.id)
                    .bind(tokens)
                    .bind_each(dead, |dead| dead.reason)
                    .bind_each(dead, |dead| dead.status)
                    .bind_each(dead, |dead| dead.answer.as_deref()),
            );
        }
        if !gone.is_empty() {
            statements.push(statement(sql!("relay/settle_gone")).bind(gone).bind(tokens));
        }
        rows_of_all(statements, |row| row.try_get(0)).await
    }

    /// Extends leases. Returns the deliveries that this relay still holds, and whether each lease was
    /// extended.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn renew_leases(
        &self,
        deliveries: &[DeliveryId],
        tokens: &[Uuid],
        lease: Duration,
    ) -> Result<Vec<(DeliveryId, bool)>, Error> {
        self.statement("renewing leases", sql!("relay/renew_leases"))
            .on(Reserved::Renew)
            .bind(deliveries)
            .bind(tokens)
            .bind(lease.as_secs_f64())
            .rows(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .await
    }

    /// Finds which of these deliveries and pages somebody else has locked.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn find_locked(
        &self,
        deliveries: &[DeliveryId],
        pages: &[PageId],
        settler: Settler,
    ) -> Result<Locked, Error> {
        self.statement("looking for locked rows", sql!("relay/find_locked"))
            .on(Reserved::Settle(settler))
            .bind(deliveries)
            .bind(pages)
            .all(|rows| {
                let mut locked = Locked::default();
                for row in rows {
                    locked.deliveries.extend(row.try_get::<Option<DeliveryId>, _>("delivery_id")?);
                    locked.pages.extend(row.try_get::<Option<PageId>, _>("page_id")?);
                }
                Ok(locked)
            })
            .await
    }

    /// Deletes deliveries and parts of the backlog of a subscription that no longer exists, up to `limit`
    /// rows of each, the deliveries in the order of due times from `since` on.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn cancel_orphans(
        &self,
        subscription: SubscriptionId,
        since: Option<DateTime<Utc>>,
        limit: i64,
    ) -> Result<Cancelled, Error> {
        self.statement("cancelling deliveries of a deleted subscription", sql!("relay/cancel_orphans"))
            .bind(limit)
            .bind(subscription)
            .bind(since)
            .row(by_name)
            .await
    }

    /// Makes up to `limit` deliveries that fell due before `since` due now, of those in `blocks` blocks of
    /// the table from the block `first` on.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn freshen_due(
        &self,
        first: i64,
        blocks: i64,
        since: DateTime<Utc>,
        limit: i64,
    ) -> Result<Freshened, Error> {
        self.statement("sweeping for due deliveries", sql!("relay/freshen_due"))
            .bind(first)
            .bind(blocks)
            .bind(since)
            .bind(limit)
            .row(by_name)
            .await
    }
}
