//! A delivery: one event owed to one subscription, reserved for this relay by a lease.

use std::{borrow::Cow, sync::Arc};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{event::Event, filter::Facts, subscription::Subscription};

/// One event owed to one subscription, leased to this relay.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Row of `outbox.deliveries`.
    pub id: i64,
    /// What is delivered.
    pub event: Arc<Event>,
    /// What the subscription's transform says to the sink; see [`Delivery::outgoing`].
    pub fields: Option<Arc<serde_json::Map<String, serde_json::Value>>>,
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

impl Delivery {
    /// What is to be sent: this, or what the subscription's transform makes of it.
    ///
    /// # Errors
    /// Why the transform makes nothing of it. The sentence repeats nothing of the event.
    pub fn outgoing(&self) -> Result<Cow<'_, Self>, String> {
        let Some(transform) = &self.subscription.transform else { return Ok(Cow::Borrowed(self)) };
        let changes = transform.apply(&Facts::new(&self.event)).map_err(|why| format!("transform: {why}; in: {}", transform.text()))?;
        let mut event = Event::clone(&self.event);
        event.payload = changes.payload.unwrap_or(event.payload);
        event.headers = changes.headers.unwrap_or(event.headers);
        event.key = changes.key.unwrap_or(event.key);
        Ok(Cow::Owned(Self { event: Arc::new(event), fields: changes.sink.map(Arc::new), ..self.clone() }))
    }
}
