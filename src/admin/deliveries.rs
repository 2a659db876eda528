//! Deliveries that wait: filter, list, count, retry and cancel them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, postgres::PgRow};
use uuid::Uuid;

use super::statement::rows;
use super::{Error, Operator, ask};

/// A delivery that no relay holds. Does not include the event's payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct WaitingDelivery {
    /// Name of the subscription.
    pub subscription: String,
    /// Public id of the event; none if the event is no longer in the log.
    pub event_id: Option<Uuid>,
    /// Topic of the event.
    pub topic: Option<String>,
    /// Key of the event.
    pub key: Option<String>,
    /// Tenant of the event.
    pub organization: Option<String>,
    /// Time since which it is owed.
    pub owed_since: DateTime<Utc>,
    /// Time of the next attempt; none: as soon as the subscription can take it.
    pub due_at: Option<DateTime<Utc>>,
    /// Number of attempts.
    pub attempts: i32,
    /// Stable code of the reason why the last attempt failed, as far as the attempt log has it.
    pub reason: Option<String>,
    /// HTTP status of the last answer.
    pub status: Option<i32>,
    /// Beginning of the last answer, escaped.
    pub answer: Option<String>,
}

/// A waiting delivery and where it stands in the order of the log.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct PlacedDelivery {
    /// The delivery.
    #[sqlx(flatten)]
    pub delivery: WaitingDelivery,
    /// Its place.
    #[sqlx(flatten)]
    pub place: DeliveryPlace,
}

/// Where a waiting delivery stands in the order of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, FromRow)]
pub struct DeliveryPlace {
    /// Place of the event in the log.
    pub position: i64,
    /// Id of the subscription.
    pub subscription_id: i64,
    /// Id of the replay that it is part of; 0 if it is of none.
    pub replay_id: i64,
}

/// Selects waiting deliveries; the default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Name of a subscription.
    pub subscription: Option<String>,
    /// Topic pattern.
    pub topic: Option<String>,
    /// Public id of an event.
    pub event: Option<Uuid>,
    /// LIKE pattern for the reason, the answer or the status of the last attempt.
    pub error_like: Option<String>,
}

/// Number of waiting deliveries that match a [`DeliveryFilter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, FromRow)]
pub struct DeliveryCount {
    /// All that match.
    pub matching: i64,
    /// Those that a retry would make due: not asked for already, and not scheduled for later.
    pub retriable: i64,
}

impl Operator {
    /// Lists matching deliveries that wait, those due first at the top.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_deliveries(
        &mut self,
        filter: &DeliveryFilter,
        max_rows: i32,
    ) -> Result<Vec<WaitingDelivery>, Error> {
        let query = filter.bind(rows(sql!("admin/list_deliveries"))).bind(i64::from(max_rows));
        ask("listing deliveries", query.fetch_all(&mut self.connection)).await
    }

    /// A page of matching deliveries that wait, in the order of the log, which stays the same while they are
    /// tried; with `after` those that come after this place.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn page_deliveries(
        &mut self,
        filter: &DeliveryFilter,
        after: Option<DeliveryPlace>,
        max_rows: i32,
    ) -> Result<Vec<PlacedDelivery>, Error> {
        let query = filter.bind(rows(sql!("admin/page_deliveries"))).bind(i64::from(max_rows));
        let query = query
            .bind(after.map(|after| after.position))
            .bind(after.map(|after| after.subscription_id))
            .bind(after.map(|after| after.replay_id));
        ask("listing deliveries", query.fetch_all(&mut self.connection)).await
    }

    /// Counts matching deliveries that wait.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn count_deliveries(&mut self, filter: &DeliveryFilter) -> Result<DeliveryCount, Error> {
        let query = filter.bind(rows(sql!("admin/count_deliveries")));
        ask("counting deliveries", query.fetch_one(&mut self.connection)).await
    }

    /// Makes matching deliveries due that wait. Returns how many; fewer than `max_rows` means that none is
    /// left.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription, the topic is no pattern, or `max_rows` is not 1
    /// to 100000.
    pub async fn retry_deliveries(&mut self, filter: &DeliveryFilter, max_rows: i32) -> Result<i64, Error> {
        let query = filter.bind(rows::<(i64,)>(sql!("admin/retry_deliveries"))).bind(max_rows);
        Ok(ask("retrying deliveries", query.fetch_one(&mut self.connection)).await?.0)
    }

    /// Removes matching deliveries that wait; with `dead_letters` each leaves one. Returns how many; fewer
    /// than `max_rows` means that none is left.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription, the topic is no pattern, or `max_rows` is not 1
    /// to 100000.
    pub async fn cancel_deliveries(
        &mut self,
        filter: &DeliveryFilter,
        max_rows: i32,
        dead_letters: bool,
    ) -> Result<i64, Error> {
        let query = filter.bind(rows::<(i64,)>(sql!("admin/cancel_deliveries")));
        let query = query.bind(max_rows).bind(dead_letters);
        Ok(ask("cancelling deliveries", query.fetch_one(&mut self.connection)).await?.0)
    }
}

type Query<'q, T> = sqlx::query::QueryAs<'q, sqlx::Postgres, T, sqlx::postgres::PgArguments>;

impl DeliveryFilter {
    /// Binds $1 to $4, the same in every statement about waiting deliveries.
    fn bind<'q, T: for<'r> FromRow<'r, PgRow>>(&'q self, query: Query<'q, T>) -> Query<'q, T> {
        query.bind(&self.subscription).bind(&self.topic).bind(self.event).bind(&self.error_like)
    }
}
