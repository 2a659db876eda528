//! What the demo shows of a subscription.

/// One row of `outbox.subscription_status`.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Status {
    pub(super) name: String,
    pub(super) backlog: i64,
    pub(super) retrying: i64,
    pub(super) dead_letters: i64,
    pub(super) state: String,
    pub(super) breaker: String,
}
