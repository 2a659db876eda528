//! A delivery: one event owed to one subscription, reserved for this relay by a lease.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{event::Event, subscription::Subscription};

/// Where it is recorded that a delivery is owed, and the token of its lease. A verdict under another token
/// changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// A row of `outbox.pages`; none: a row of `outbox.deliveries`.
    pub(crate) page: Option<i64>,
    /// Number of the pair in its page, or the row.
    pub(crate) number: i64,
    /// The token of its lease.
    pub(crate) token: Uuid,
}

/// One event owed to one subscription, leased to this relay.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    /// Where it is recorded that it is owed.
    pub(crate) place: Place,
    /// The event.
    pub(crate) event: Arc<Event>,
    /// The subscription that it is owed to.
    pub(crate) subscription: Arc<Subscription>,
    /// Since when it has been owed, by the database's clock: what `retry.max_age` counts from.
    pub(crate) owed_since: DateTime<Utc>,
    /// When this attempt began, by the database's clock.
    pub(crate) attempted_at: DateTime<Utc>,
    /// Number of this attempt; 1 is the first.
    pub(crate) attempt: u32,
    /// Earlier claims that ended without a verdict: relays that died with it in flight.
    pub(crate) unfinished: u32,
}
