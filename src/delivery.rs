//! A delivery: one event owed to one subscription, reserved for this relay by a lease.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{event::Event, subscription::Subscription};

/// One event owed to one subscription, leased to this relay.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Row of `outbox.deliveries`.
    pub id: i64,
    /// What is delivered.
    pub event: Arc<Event>,
    /// To whom.
    pub subscription: Arc<Subscription>,
    /// Since when it has been owed, by the database's clock: what `retry.max_age` counts from.
    pub owed_since: DateTime<Utc>,
    /// When this attempt began, by the database's clock.
    pub attempted_at: DateTime<Utc>,
    /// Which attempt this is; 1 is the first.
    pub attempt: u32,
    /// Under which the row is leased; a verdict under another token changes nothing.
    pub lease_token: Uuid,
    /// Earlier claims that ended without a verdict: relays that died with it in flight.
    pub unfinished: u32,
}
