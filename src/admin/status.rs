//! How subscriptions, relays, gateways and the log are now.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;

use super::{
    Error, Operator, ask,
    statement::{rows, value},
};
use crate::store::LogStatus;

pub(super) const READING_STATUS: &str = "reading the status of subscriptions";
pub(super) const READING_LOG: &str = "reading the log";
pub(super) const LISTING_RELAYS: &str = "listing relays";

/// Status of a subscription. `delivered` and `failed` cover the running relays since their start.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct Status {
    /// Name of the subscription.
    pub name: String,
    /// Kind of sink.
    pub sink: String,
    /// Tenant whose events it receives; none for every organization.
    pub organization: Option<String>,
    /// False while an operator has paused it.
    pub active: bool,
    /// State: `pending`, `ok`, `invalid`, `gone` or `disabled`.
    pub state: String,
    /// Why the state is not `ok`.
    pub state_reason: Option<String>,
    /// End of a pause that the destination asked for.
    pub paused_until: Option<DateTime<Utc>>,
    /// Pending deliveries.
    pub backlog: i64,
    /// Pending deliveries that are leased now.
    pub in_flight: i64,
    /// Pending deliveries that wait after a failed attempt.
    pub retrying: i64,
    /// For how many seconds the oldest of them has been owed. What is not due for the first time has no age.
    pub oldest_age_seconds: Option<f64>,
    /// Dead letters that are neither redriven nor discarded.
    pub dead_letters: i64,
    /// Attempts that succeeded, as the relays reported; none if none has.
    pub delivered: Option<i64>,
    /// Attempts that failed, as the relays reported; none if none has.
    pub failed: Option<i64>,
    /// Of the deliveries that succeeded or were given up in the last 15 minutes, and of those that wait for a
    /// retry: the share whose last attempt succeeded, 0 to 1; none if there are none.
    pub success_rate: Option<f64>,
    /// State of the breaker: `closed`, `half_open` or `open`.
    pub breaker: String,
    /// Events not sent because `match` or the filter could not be evaluated.
    pub filter_errors: Option<i64>,
    /// Message of the last of these errors.
    pub last_filter_error: Option<String>,
}

/// A relay that reported within the last minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct RunningRelay {
    /// Name of the relay.
    pub name: String,
    /// Version of its binary.
    pub version: String,
    /// Time of its start.
    pub started_at: DateTime<Utc>,
    /// Time of its last report.
    pub seen_at: DateTime<Utc>,
    /// Most deliveries it may have in flight.
    pub permits: i32,
    /// Deliveries that it has leased and not begun. A kill delays them.
    pub leased_ahead: i32,
    /// Deliveries in flight.
    pub in_flight: i32,
    /// Deliveries that were answered and are not recorded. A kill repeats these and those in flight.
    pub unsettled: i32,
    /// Since when it fails again and again to route or to settle; none while it works.
    pub no_progress_since: Option<DateTime<Utc>>,
    /// The error that it meets.
    pub no_progress_why: Option<String>,
}

/// A process with live clients that reported within the last minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct RunningGateway {
    /// Name of the gateway; that of the relay that it runs beside.
    pub gateway: String,
    /// Version of its binary.
    pub version: String,
    /// Time of its start.
    pub started_at: DateTime<Utc>,
    /// Time of its last report.
    pub seen_at: DateTime<Utc>,
    /// Connections of clients.
    pub connections: i32,
}

impl Operator {
    /// Status of each subscription, those with problems first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn subscription_status(&mut self) -> Result<Vec<Status>, Error> {
        ask(READING_STATUS, rows(sql!("admin/subscription_status")).fetch_all(&mut self.connection)).await
    }

    /// How much of the log is not routed yet.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn log_status(&mut self) -> Result<LogStatus, Error> {
        ask(READING_LOG, rows(sql!("admin/log_status")).fetch_one(&mut self.connection)).await
    }

    /// How much a relay could do now: events that are not routed, and deliveries that are due or in flight.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn count_due(&mut self) -> Result<i64, Error> {
        ask(READING_LOG, value(sql!("admin/count_due")).fetch_one(&mut self.connection)).await
    }

    /// Relays that reported within the last minute, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_relays(&mut self) -> Result<Vec<RunningRelay>, Error> {
        ask(LISTING_RELAYS, rows(sql!("admin/list_relays")).fetch_all(&mut self.connection)).await
    }

    /// Processes with live clients that reported within the last minute.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_gateways(&mut self) -> Result<Vec<RunningGateway>, Error> {
        ask("listing gateways", rows(sql!("admin/list_gateways")).fetch_all(&mut self.connection)).await
    }
}
