//! What a sink sees of a delivery.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::event::Event;

/// One event as it is to be sent: what event types and the subscription's transform made of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outgoing {
    /// The event.
    pub event: Arc<Event>,
    /// What the subscription's transform says to the sink: its object `sink`.
    pub fields: Option<Arc<serde_json::Map<String, serde_json::Value>>>,
    /// Name of the subscription that it is owed to.
    pub subscription: Arc<str>,
    /// Number of this attempt; 1 is the first.
    pub attempt: u32,
    /// When this attempt began, by the database's clock.
    pub attempted_at: DateTime<Utc>,
    /// The row that a sink deletes which settles its deliveries itself.
    pub(crate) lease: Option<Lease>,
}

/// A row of `outbox.deliveries` and the token under which it is leased.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    pub(crate) delivery: i64,
    pub(crate) token: Uuid,
}

impl Outgoing {
    /// An event as it is, at its first attempt.
    #[must_use]
    pub fn new(event: Arc<Event>, subscription: Arc<str>, attempted_at: DateTime<Utc>) -> Self {
        Self { event, fields: None, subscription, attempt: 1, attempted_at, lease: None }
    }
}
