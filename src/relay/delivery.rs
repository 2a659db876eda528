//! A delivery: one event owed to one subscription, leased to this relay.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{event::Event, subscription::Subscription};

/// Where it is recorded that a delivery is owed, and the token of its lease. A verdict under another token
/// changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Id of its row in `outbox.pages`; `None` for a row of `outbox.deliveries`.
    pub(crate) page: Option<i64>,
    /// Number of the pair in its page, or id of the row in `outbox.deliveries`.
    pub(crate) number: i64,
    /// Token of the lease.
    pub(crate) token: Uuid,
}

/// One event owed to one subscription, leased to this relay.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) place: Place,
    pub(crate) event: Arc<Event>,
    pub(crate) subscription: Arc<Subscription>,
    /// Time from which `retry.max_age` counts, by the database's clock.
    pub(crate) owed_since: DateTime<Utc>,
    /// Start of this attempt, by the database's clock.
    pub(crate) attempted_at: DateTime<Utc>,
    /// Number of this attempt, from 1.
    pub(crate) attempt: u32,
    /// Number of earlier claims that ended without a verdict.
    pub(crate) unfinished: u32,
}
