//! The log of attempts.

use std::time::Duration;

use uuid::Uuid;

use super::{connection::Store, error::Error};
use crate::{
    delivery::{DeliveryId, SubscriptionId},
    event::Position,
};

/// A row for `outbox.attempts`.
#[derive(Debug, Clone)]
pub struct AttemptRow {
    /// Row of `outbox.deliveries`; none for a delivery that is part of a page.
    pub delivery: Option<DeliveryId>,
    /// Subscription id.
    pub subscription: SubscriptionId,
    /// Position of the event.
    pub position: Position,
    /// Id of the event; none if it could not be read.
    pub event: Option<Uuid>,
    /// Number of the attempt, from 1.
    pub attempt: i32,
    /// Duration of the attempt.
    pub took: Duration,
    /// Code of the outcome.
    pub outcome: &'static str,
    /// Code of the reason; none when it was delivered.
    pub reason: Option<&'static str>,
    /// Status code of the answer.
    pub status: Option<i32>,
    /// Text of the answer.
    pub answer: Option<String>,
    /// Whether the destination may have received the event although the attempt failed.
    pub ambiguous: bool,
    /// Whether the verdict changed nothing because the lease was lost.
    pub stale: bool,
    /// Whether an earlier attempt may have reached the destination.
    pub repeated: bool,
}

impl Store {
    /// Adds attempts to `outbox.attempts`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn record_attempts(&self, attempts: &[AttemptRow], relay: &str) -> Result<(), Error> {
        self.statement("recording attempts", sql!("relay/record_attempts"))
            .bind_each(attempts, |made| made.delivery)
            .bind_each(attempts, |made| made.subscription)
            .bind_each(attempts, |made| made.position)
            .bind_each(attempts, |made| made.event)
            .bind_each(attempts, |made| made.attempt)
            .bind_each(attempts, |made| made.took.as_secs_f64())
            .bind_each(attempts, |made| made.outcome)
            .bind_each(attempts, |made| made.reason)
            .bind_each(attempts, |made| made.status)
            .bind_each(attempts, |made| made.answer.as_deref())
            .bind_each(attempts, |made| made.ambiguous)
            .bind_each(attempts, |made| made.stale)
            .bind(relay)
            .bind_each(attempts, |made| made.repeated)
            .execute()
            .await
    }
}
