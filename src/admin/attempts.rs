//! The attempt log: lists attempts.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use uuid::Uuid;

use super::statement::rows;
use super::{Error, Operator, ask};

/// An attempt of a delivery.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct LoggedAttempt {
    /// Name of the subscription; none if it was deleted.
    pub subscription: Option<String>,
    /// Public id of the event; none if it could not be read.
    pub event_id: Option<Uuid>,
    /// Place of the event in the log.
    pub position: i64,
    /// When the attempt was recorded.
    pub at: DateTime<Utc>,
    /// Number of the attempt, from 1.
    pub attempt: i32,
    /// What it came to, such as `delivered` or `retry`.
    pub outcome: String,
    /// Stable code of the reason, if it failed.
    pub reason: Option<String>,
    /// HTTP status of the answer.
    pub status: Option<i32>,
    /// Beginning of the answer, escaped.
    pub answer: Option<String>,
    /// Its duration in seconds.
    pub seconds: f64,
    /// Whether the destination may have the event although the attempt failed.
    pub ambiguous: bool,
    /// Whether the lease was lost meanwhile, so that it changed nothing.
    pub stale: bool,
    /// Whether an earlier attempt may have reached the destination, so that it got the event twice.
    pub repeated: bool,
    /// Name of the relay.
    pub relay: String,
}

/// Where an attempt stands in the list of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptPlace {
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// Place of the event in the log.
    pub position: i64,
    /// Its number.
    pub attempt: i32,
    /// Name of the subscription; none if it was deleted.
    pub subscription: Option<String>,
}

/// Selects attempts; the default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttemptFilter {
    /// Name of a subscription.
    pub subscription: Option<String>,
    /// Public id of an event.
    pub event: Option<Uuid>,
    /// LIKE pattern for the reason, the answer or the status.
    pub error_like: Option<String>,
    /// Only attempts that were recorded at this time or later.
    pub since: Option<DateTime<Utc>>,
}

impl Operator {
    /// Lists matching attempts, newest first; with `after` those that come after this one.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_attempts(
        &mut self,
        filter: &AttemptFilter,
        after: Option<&AttemptPlace>,
        max_rows: i32,
    ) -> Result<Vec<LoggedAttempt>, Error> {
        let found = match filter.event {
            Some(id) => self.find_event(id).await?,
            None => None,
        };
        let (position, published_at) = found.unzip();
        let query = rows(sql!("admin/list_attempts"))
            .bind(&filter.subscription)
            .bind(filter.event)
            .bind(position)
            .bind(&filter.error_like)
            .bind(filter.since.max(published_at))
            .bind(i64::from(max_rows))
            .bind(after.map(|after| after.at))
            .bind(after.map(|after| after.position))
            .bind(after.map(|after| after.attempt))
            .bind(after.map(|after| after.subscription.as_deref().unwrap_or_default()));
        ask("listing attempts", query.fetch_all(&mut self.connection)).await
    }
}
