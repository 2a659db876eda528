//! Trouble of subscriptions that is announced: failing for too long, and backlogs that are too old.

use std::time::Duration;

use sqlx::Row as _;

use super::{connection::Store, error::Error};
use crate::delivery::SubscriptionId;

/// How the attempts of a subscription with `retry.disable_after` went in one relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthReport {
    /// Subscription id.
    pub id: SubscriptionId,
    /// Time since the last success; none if there was none.
    pub succeeded: Option<Duration>,
    /// Time since the first failure after it; none if there was none.
    pub failing: Option<Duration>,
    /// Time since the last failure; none if there was none.
    pub failed: Option<Duration>,
    /// `retry.disable_after`.
    pub disable_after: Duration,
}

impl Store {
    /// Records how attempts went, and disables subscriptions that have failed for too long. Returns those,
    /// with the reason.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn judge_failing(
        &self,
        reports: &[HealthReport],
    ) -> Result<Vec<(SubscriptionId, String)>, Error> {
        self.statement("judging failing subscriptions", sql!("relay/judge_failing"))
            .bind_each(reports, |one| one.id)
            .bind_each(reports, |one| one.succeeded.map(|time| time.as_secs_f64()))
            .bind_each(reports, |one| one.failing.map(|time| time.as_secs_f64()))
            .bind_each(reports, |one| one.failed.map(|time| time.as_secs_f64()))
            .bind_each(reports, |one| one.disable_after.as_secs_f64())
            .rows(|row| Ok((row.try_get("id")?, row.try_get("state_reason")?)))
            .await
    }

    /// Publishes which backlogs have become too old, and which are no longer. `ages` says for how many
    /// seconds the oldest event of a subscription has been owed.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn note_backlogs(&self, ages: &[(SubscriptionId, f64)], limit: Duration) -> Result<(), Error> {
        self.statement("noting backlogs", sql!("relay/note_backlogs"))
            .bind_each(ages, |(id, _)| *id)
            .bind_each(ages, |(_, age)| *age)
            .bind(limit.as_secs_f64())
            .execute()
            .await
    }
}
