//! The view of a delivery that a sink gets.

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    delivery::{DeliveryId, PageId, ReplayId, SubscriptionId},
    event::Event,
};

/// Name of the header that marks a replayed delivery.
const REPLAY: &str = "pgoutbox-replay";

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
            attempted_at,
            occasion: None,
            replay: None,
            lease: None,
        }
    }

    /// Headers that say how it is delivered, beside those of the event: `pgoutbox-replay`, the id of the
    /// replay. No publisher's header may have the name of one.
    #[must_use]
    pub fn marks(&self) -> Vec<(&'static str, String)> {
        self.replay.map(|replay| (REPLAY, replay.to_string())).into_iter().collect()
    }

    /// The event with these marks among its headers, for destinations that get it as a whole.
    #[must_use]
    pub fn marked(&self) -> Arc<Event> {
        let marks = self.marks();
        if marks.is_empty() {
            return self.event.clone();
        }
        let mut headers: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&self.event.headers).unwrap_or_default();
        headers.extend(marks.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
        let headers = serde_json::Value::Object(headers).to_string();
        Arc::new(Event { headers, ..Event::clone(&self.event) })
    }
}
