//! Rows of `outbox.relays` and `outbox.relay_subscriptions`: what a relay reports about itself.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row as _;

use super::{connection::Store, error::Error};
use crate::delivery::SubscriptionId;

/// The report of a relay.
#[derive(Debug, Clone, Default)]
pub struct RelayReport {
    /// Name of the relay.
    pub relay: String,
    /// Time since it started.
    pub uptime: Duration,
    /// Number of its permits, free or not.
    pub permits: i32,
    /// Number of deliveries in flight.
    pub in_flight: i32,
    /// Deliveries leased and not begun.
    pub leased_ahead: i32,
    /// Deliveries answered and not recorded.
    pub unsettled: i32,
    /// For how long it has failed again and again to route or to settle; none while it works.
    pub no_progress_for: Option<Duration>,
    /// The error that it meets.
    pub no_progress_why: Option<String>,
    /// Subscriptions whose numbers changed since the last report.
    pub subscriptions: Vec<SubscriptionReport>,
}

/// Whether a breaker lets attempts through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BreakerState {
    /// All attempts are let through.
    #[default]
    Closed,
    /// A single attempt is let through as a probe.
    HalfOpen,
    /// No attempt is let through.
    Open,
}

impl BreakerState {
    /// The word that is stored and shown.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// What a relay did for one subscription since it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionReport {
    /// Subscription id.
    pub id: SubscriptionId,
    /// Number of attempts that succeeded.
    pub delivered: i64,
    /// Number of attempts that failed.
    pub failed: i64,
    /// Number of attempts that succeeded in the last 15 minutes.
    pub delivered_lately: i64,
    /// State of its breaker.
    pub breaker: BreakerState,
    /// Number of events that were not sent because its match or filter could not be evaluated.
    pub filter_errors: i64,
    /// Text of the last of these errors.
    pub last_filter_error: Option<String>,
}

/// Which other processes reported lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Others {
    /// Number of other relays, within 30 s.
    pub relays: i64,
    /// Number of gateways with another name than the relay, within 15 s.
    pub gateways: i64,
    /// Time of the database.
    pub now: DateTime<Utc>,
}

impl Store {
    /// Records that this relay runs, and what it did. Returns which others did lately.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn report_relay(&self, report: &RelayReport) -> Result<Others, Error> {
        let subscriptions = &report.subscriptions;
        let (seen_at, others) = self
            .statement("reporting this relay", sql!("relay/report_relay"))
            .bind(&report.relay)
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(report.uptime.as_secs_f64())
            .bind(report.permits)
            .bind(report.in_flight)
            .bind_each(subscriptions, |one| one.id)
            .bind_each(subscriptions, |one| one.delivered)
            .bind_each(subscriptions, |one| one.failed)
            .bind_each(subscriptions, |one| one.breaker.code())
            .bind_each(subscriptions, |one| one.filter_errors)
            .bind_each(subscriptions, |one| one.last_filter_error.as_deref())
            .bind(report.leased_ahead)
            .bind(report.unsettled)
            .bind(report.no_progress_for.map(|length| length.as_secs_f64()))
            .bind(report.no_progress_why.as_deref())
            .bind_each(subscriptions, |one| one.delivered_lately)
            .row(|row| {
                let (relays, gateways) = (row.try_get("others")?, row.try_get("gateways")?);
                Ok((row.try_get("seen_at")?, Others { relays, gateways, now: row.try_get("now")? }))
            })
            .await?;
        self.guard.saw_report(seen_at);
        Ok(others)
    }

    /// Ends the leases that lie further ahead than this, which is longer than any relay leases: the clock of
    /// the server was set back. Returns how many there were. With `rows` all deliveries are read, too.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn free_far_leases(&self, longest: Duration, rows: bool) -> Result<i64, Error> {
        self.statement("ending leases from before the clock was set", sql!("relay/free_far_leases"))
            .bind(longest.as_secs_f64())
            .bind(rows)
            .row(|row| row.try_get("freed"))
            .await
    }

    /// Removes this relay from `outbox.relays`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn leave_relay(&self, relay: &str) -> Result<(), Error> {
        self.statement("taking this relay off the list", sql!("relay/leave_relay"))
            .bind(relay)
            .execute()
            .await
    }
}
