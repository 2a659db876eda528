//! How much waits: for each subscription, and in the log.

use chrono::{DateTime, Utc};
use sqlx::FromRow;

use super::{connection::Store, error::Error, statement::by_name};
use crate::delivery::SubscriptionId;

/// What is outstanding for one subscription.
#[derive(Debug, Clone, FromRow)]
pub struct Backlog {
    /// Subscription id.
    pub subscription_id: SubscriptionId,
    /// Name of the subscription.
    pub name: String,
    /// Number of outstanding deliveries. At most 100,000 rows of `outbox.deliveries` and 10,000 rows of
    /// `outbox.backlog` are counted.
    pub outstanding: i64,
    /// For how many seconds the oldest of them has been owed; none when nothing is due.
    pub oldest_age: Option<f64>,
}

/// Events of the log that are not routed.
#[derive(Debug, Clone, PartialEq, serde::Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct LogStatus {
    /// Their number; counting stops at 100,000.
    pub unrouted: i64,
    /// Age of the oldest in seconds; none if there is none.
    pub oldest_age_seconds: Option<f64>,
}

impl Store {
    /// Measures what is outstanding for each subscription, without deliveries that fell due before `since`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn measure_backlog(&self, since: Option<DateTime<Utc>>) -> Result<Vec<Backlog>, Error> {
        self.statement("measuring the backlog", sql!("relay/measure_backlog")).bind(since).rows(by_name).await
    }

    /// Measures what is in the log and not routed.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn measure_log(&self) -> Result<LogStatus, Error> {
        self.statement("measuring the log", sql!("relay/measure_log")).row(by_name).await
    }
}
