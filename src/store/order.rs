//! Ordered subscriptions: which relay delivers them, and claims in the order of their keys.

use std::{collections::HashMap, time::Duration};

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    connection::{Reserved, Store},
    deliveries::{Claim, Claimed},
    error::Error,
    pages::{BacklogClaim, FromBacklog},
    statement::by_name,
};
use crate::delivery::SubscriptionId;

/// What waits for an ordered subscription that a relay begins to deliver.
#[derive(Debug)]
pub struct Opened {
    /// Whether nothing of it is in the hands of another relay. Only then may it be delivered.
    pub is_free: bool,
    /// Keys with rows in `outbox.deliveries`, and parked ones.
    pub keys: Vec<String>,
    /// How many of these rows were made due.
    pub promoted: i64,
    /// How many rows of the backlog were marked as those of an ordered subscription.
    pub marked: i64,
}

/// What a claim of rows of ordered subscriptions found.
#[derive(Debug, Default)]
pub struct Keyed {
    /// What was leased: of each key the next rows, in the order of positions.
    pub claimed: Vec<Claimed>,
    /// Keys that were asked for of which nothing was leased, and whether they have rows.
    pub without: Vec<(SubscriptionId, String, bool)>,
    /// The subscriptions whose due rows were looked at, and how many were due, up to the number asked for.
    pub looked_at: HashMap<SubscriptionId, usize>,
}

impl Store {
    /// Leases ordered subscriptions that no relay has leased, and returns them.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn acquire_order(
        &self,
        subscriptions: &[SubscriptionId],
        token: Uuid,
        lease: Duration,
    ) -> Result<Vec<SubscriptionId>, Error> {
        self.statement("leasing ordered subscriptions", sql!("relay/acquire_order"))
            .on(Reserved::Claim)
            .bind(subscriptions)
            .bind(token)
            .bind(lease.as_secs_f64())
            .bind(self.relay())
            .rows(|row| row.try_get(0))
            .await
    }

    /// Whether an ordered subscription that this relay has leased may be delivered, and its keys with waiting
    /// rows. Makes the first row of each key due. `is_open`: this relay delivers it already. `marks`: a
    /// routing statement that began before the subscription became an ordered one may have written to its
    /// backlog.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn open_order(
        &self,
        subscription: SubscriptionId,
        token: Uuid,
        is_open: bool,
        marks: bool,
    ) -> Result<Opened, Error> {
        self.statement("opening an ordered subscription", sql!("relay/open_order"))
            .on(Reserved::Claim)
            .bind(subscription)
            .bind(token)
            .bind(is_open)
            .bind(marks)
            .row(|row| {
                Ok(Opened {
                    is_free: row.try_get("is_free")?,
                    keys: row.try_get("keys")?,
                    promoted: row.try_get("promoted")?,
                    marked: row.try_get("marked")?,
                })
            })
            .await
    }

    /// Extends the leases of ordered subscriptions. Returns those that this relay still has.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn renew_order(
        &self,
        subscriptions: &[SubscriptionId],
        tokens: &[Uuid],
        lease: Duration,
    ) -> Result<Vec<SubscriptionId>, Error> {
        self.statement("renewing leases of ordered subscriptions", sql!("relay/renew_order"))
            .on(Reserved::Renew)
            .bind(subscriptions)
            .bind(tokens)
            .bind(lease.as_secs_f64())
            .rows(|row| row.try_get(0))
            .await
    }

    /// Ends the leases of ordered subscriptions.
    ///
    /// # Errors
    /// Those of the database. The leases then end by themselves.
    pub async fn release_order(
        &self,
        subscriptions: &[SubscriptionId],
        tokens: &[Uuid],
    ) -> Result<(), Error> {
        self.statement("releasing ordered subscriptions", sql!("relay/release_order"))
            .on(Reserved::Renew)
            .bind(subscriptions)
            .bind(tokens)
            .execute()
            .await
    }

    /// Moves the first positions of the backlog of ordered subscriptions into pages that this relay leases.
    /// `order`: the tokens under which the subscriptions are leased.
    ///
    /// # Errors
    /// Those of the database. One of kind [`Kind::Connection`](super::Kind): the claim may have
    /// taken place nevertheless.
    pub async fn claim_ordered(
        &self,
        claims: &[BacklogClaim],
        order: &[Uuid],
        token: Uuid,
        lease: Duration,
    ) -> Result<FromBacklog, Error> {
        self.statement("claiming from the backlog in order", sql!("relay/claim_ordered"))
            .on(Reserved::Claim)
            .bind_each(claims, |claim| claim.subscription)
            .bind_each(claims, |claim| i64::try_from(claim.wanted).unwrap_or(i64::MAX))
            .bind(order)
            .bind(token)
            .bind(lease.as_secs_f64())
            .bind(self.relay())
            .all(FromBacklog::read)
            .await
    }

    /// Leases rows of ordered subscriptions: what is due, and the next rows of the keys that are asked for,
    /// at most `run` of each key. `order`: the tokens under which the subscriptions are leased.
    ///
    /// # Errors
    /// Those of the database. One of kind [`Kind::Connection`](super::Kind): the claim may have
    /// taken place nevertheless.
    pub async fn claim_keyed(
        &self,
        claims: &[Claim],
        keys: &[(SubscriptionId, String)],
        run: usize,
        (order, token): (&[Uuid], Uuid),
        lease: Duration,
    ) -> Result<Keyed, Error> {
        self.statement("claiming deliveries in order", sql!("relay/claim_keyed"))
            .on(Reserved::Claim)
            .bind_each(claims, |claim| claim.subscription)
            .bind_each(claims, |claim| i32::try_from(claim.room).unwrap_or(i32::MAX))
            .bind_each(claims, |claim| claim.since)
            .bind_each(keys, |(subscription, _)| *subscription)
            .bind_each(keys, |(_, key)| key.as_str())
            .bind(i64::try_from(run).unwrap_or(1))
            .bind(order)
            .bind(token)
            .bind(lease.as_secs_f64())
            .all(|rows| {
                let mut keyed = Keyed::default();
                for row in rows {
                    keyed.add(row)?;
                }
                keyed.claimed.sort_unstable_by_key(|row| row.position);
                Ok(keyed)
            })
            .await
    }

    /// Makes due what waits in the order of a key although its subscription has no order any more.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn free_unordered(&self) -> Result<(), Error> {
        self.statement("looking for keys without an order", sql!("relay/free_unordered")).execute().await
    }

    /// Pauses these subscriptions, each with a reason, if a dead letter halts them. Returns those that are
    /// paused now; one that somebody has locked is not.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn halt_subscriptions(
        &self,
        subscriptions: &[(SubscriptionId, String)],
    ) -> Result<Vec<SubscriptionId>, Error> {
        self.statement("pausing a subscription", sql!("relay/halt_subscriptions"))
            .bind_each(subscriptions, |(id, _)| *id)
            .bind_each(subscriptions, |(_, why)| why.as_str())
            .rows(|row| row.try_get(0))
            .await
    }
}

impl Keyed {
    fn add(&mut self, row: &PgRow) -> Result<(), sqlx::Error> {
        if row.try_get::<Option<i64>, _>("id")?.is_some() {
            self.claimed.push(by_name(row)?);
        } else if let Some(key) = row.try_get("key")? {
            let has_rows = row.try_get::<i32, _>("remaining")? > 0;
            self.without.push((row.try_get("subscription_id")?, key, has_rows));
        } else {
            let due = usize::try_from(row.try_get::<i32, _>("remaining")?).unwrap_or(0);
            self.looked_at.insert(row.try_get("subscription_id")?, due);
        }
        Ok(())
    }
}
