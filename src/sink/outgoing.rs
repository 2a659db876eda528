//! The view of a delivery that a sink gets.

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::about::REPLAY;
use crate::{
    delivery::{DeliveryId, PageId, ReplayId, SubscriptionId},
    event::Event,
};

/// An event to be sent, after upcasts and the subscription's transform.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outgoing {
    /// The event.
    pub event: Arc<Event>,
    /// Fields for the sink: the object `sink` of the subscription's transform.
    pub fields: Option<Arc<serde_json::Map<String, serde_json::Value>>>,
    /// Name of the subscription.
    pub subscription: Arc<str>,
    /// Number of this attempt; 1 is the first.
    pub attempt: u32,
    /// Whether an earlier attempt may have reached the destination: its relay died, or no answer came.
    pub repeated: bool,
    /// Start of this attempt, by the database's clock.
    pub attempted_at: DateTime<Utc>,
    /// What the attempts of this delivery have in common, and no other delivery of the event has; none
    /// outside of a relay.
    pub occasion: Option<Occasion>,
    /// Replay that it is part of: somebody wants the event again.
    pub replay: Option<ReplayId>,
    /// Where it is recorded that it is owed, for a sink that settles its deliveries itself.
    pub(crate) lease: Option<Lease>,
}

/// Why an event is delivered: the same for each attempt, also by another relay, and another one when somebody
/// wants the event again, by another subscription, from the beginning, or by a redrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occasion {
    /// Id of the subscription that wants the event.
    pub subscription: SubscriptionId,
    /// When the event became owed to it, by the database's clock.
    pub since: DateTime<Utc>,
}

impl fmt::Display for Occasion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.subscription.0, self.since.timestamp_micros())
    }
}

/// Where it is recorded that a delivery is owed, and the token under which it is leased.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    pub(crate) place: Place,
    pub(crate) token: Uuid,
}

/// A pair of a page, or a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Pair(PageId, i32),
    Row(DeliveryId),
}

impl Lease {
    pub(crate) fn of_pair(page: PageId, number: i32, token: Uuid) -> Self {
        Self { place: Place::Pair(page, number), token }
    }

    pub(crate) fn of_row(row: DeliveryId, token: Uuid) -> Self {
        Self { place: Place::Row(row), token }
    }
}

impl Outgoing {
    /// An unchanged event at its first attempt.
    #[must_use]
    pub fn new(event: Arc<Event>, subscription: Arc<str>, attempted_at: DateTime<Utc>) -> Self {
        Self {
            event,
            fields: None,
            subscription,
            attempt: 1,
            repeated: false,
            attempted_at,
            occasion: None,
            replay: None,
            lease: None,
        }
    }

    /// The event for destinations that get it as a whole: in a replay with `pgoutbox-replay`, the id of the
    /// replay, among its headers.
    #[must_use]
    pub fn marked(&self) -> Arc<Event> {
        let Some(replay) = self.replay else { return self.event.clone() };
        let mut headers: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&self.event.headers).unwrap_or_default();
        headers.insert(REPLAY.to_owned(), replay.to_string().into());
        let headers = serde_json::Value::Object(headers).to_string();
        Arc::new(Event { headers, ..Event::clone(&self.event) })
    }
}
