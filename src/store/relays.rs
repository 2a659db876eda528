//! What a relay says of itself.

use std::time::Duration;

use super::{
    connection::{Slot, Store},
    error::Error,
};

/// What a relay says of itself.
#[derive(Debug, Clone, Default)]
pub struct RelayReport {
    /// Its name.
    pub relay: String,
    /// How long it has run.
    pub uptime: Duration,
    /// All its permits.
    pub permits: i32,
    /// Deliveries in flight.
    pub in_flight: i32,
    /// Those whose figures changed.
    pub subscriptions: Vec<SubscriptionReport>,
}

/// Whether a breaker lets attempts through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BreakerState {
    /// It does.
    #[default]
    Closed,
    /// One probe is under way.
    HalfOpen,
    /// It does not.
    Open,
}

impl BreakerState {
    /// As it is stored and shown.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// What a relay did for a subscription since it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionReport {
    /// Which one.
    pub id: i64,
    /// Attempts that succeeded.
    pub delivered: i64,
    /// Attempts that failed.
    pub failed: i64,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Events it was not sent because its match or filter could not be evaluated.
    pub filter_errors: i64,
    /// Why the last of them could not.
    pub last_filter_error: Option<String>,
}

impl Store {
    /// Says that this relay lives and what it did.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn report_relay(&self, report: &RelayReport) -> Result<(), Error> {
        self.limited("reporting this relay", async {
            let mut session = self.session(Slot::Rest).await?;
            sqlx::query(sql!("relay/report_relay"))
                .bind(&report.relay)
                .bind(env!("CARGO_PKG_VERSION"))
                .bind(report.uptime.as_secs_f64())
                .bind(report.permits)
                .bind(report.in_flight)
                .bind(report.subscriptions.iter().map(|did| did.id).collect::<Vec<_>>())
                .bind(report.subscriptions.iter().map(|did| did.delivered).collect::<Vec<_>>())
                .bind(report.subscriptions.iter().map(|did| did.failed).collect::<Vec<_>>())
                .bind(report.subscriptions.iter().map(|did| did.breaker.code()).collect::<Vec<_>>())
                .bind(report.subscriptions.iter().map(|did| did.filter_errors).collect::<Vec<_>>())
                .bind(
                    report
                        .subscriptions
                        .iter()
                        .map(|did| did.last_filter_error.as_deref())
                        .collect::<Vec<_>>(),
                )
                .persistent(self.is_persistent())
                .execute(session.connection())
                .await?;
            session.finish().await
        })
        .await
    }

    /// Takes this relay off the list of those that run.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn leave_relay(&self, relay: &str) -> Result<(), Error> {
        self.limited("taking this relay off the list", async {
            let mut session = self.session(Slot::Rest).await?;
            sqlx::query(sql!("relay/leave_relay"))
                .bind(relay)
                .persistent(self.is_persistent())
                .execute(session.connection())
                .await?;
            session.finish().await
        })
        .await
    }
}
