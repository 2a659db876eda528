//! A delivery: one event owed to one subscription, reserved for this relay by a lease.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{event::Event, subscription::Subscription};

/// One event owed to one subscription, leased to this relay.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    /// Row of `outbox.deliveries`.
    pub(crate) id: i64,
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
    /// The token of its lease; a verdict under another token changes nothing.
    pub(crate) lease_token: Uuid,
    /// Earlier claims that ended without a verdict: relays that died with it in flight.
    pub(crate) unfinished: u32,
}
