//! Rows of `outbox.starts`: subscriptions that also want events from before they were made. The log is read
//! part by part; each part is written in the commit that moves on behind it.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, Row as _};

use super::{
    connection::Store,
    error::Error,
    events::{NewEvent, read_new_events},
    statement::{by_name, first},
};
use crate::{
    delivery::{SubscriptionId, ranges::Ranges},
    event::Position,
};

/// How far a subscription has got with events from before it was made, or a replay with its events.
#[derive(Debug, Clone, Default, FromRow)]
pub struct Start {
    /// Subscription id.
    pub subscription_id: SubscriptionId,
    /// Earliest time of the events it wants; none: all.
    since: Option<DateTime<Utc>>,
    /// The cursor's snapshot when a routing step first knew the subscription; none until then.
    settled: Option<String>,
    /// The end of the cursor's window at that step.
    window_end: Option<String>,
    /// Position up to which that window was routed.
    page_after: Option<Position>,
    /// Position above all events from before that step.
    until: Option<Position>,
    /// Position up to which the log was read for it.
    pub(super) position: Position,
}

/// A part of the log.
#[derive(Debug)]
pub struct Past {
    /// Events of this part that are past, in the order of positions.
    pub events: Vec<NewEvent>,
    /// Position up to which every event was looked at.
    pub reached: Position,
}

impl Start {
    /// Whether a routing step has fixed which events are from before the subscription.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.settled.is_some()
    }

    /// Whether the log was read to its end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.until.is_some_and(|until| self.position >= until)
    }
}

impl Store {
    /// Reads how far these subscriptions have got. Subscriptions that have all past events are left out.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_starts(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<Start>, Error> {
        self.statement("loading starts", sql!("relay/load_starts")).bind(subscriptions).rows(by_name).await
    }

    /// Reads the next part of the log: at most `events` events are looked at, and at most `positions`
    /// positions, of which those of transactions that were rolled back have no event.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_past(
        &self,
        start: &Start,
        events: i64,
        positions: i64,
        with_payloads: bool,
    ) -> Result<Past, Error> {
        let ahead = Position(start.position.0.saturating_add(positions));
        let until = start.until.map_or(ahead, |until| until.min(ahead));
        self.statement("reading past events", sql!("relay/read_past"))
            .bind(start.position)
            .bind(until)
            .bind(&start.settled)
            .bind(&start.window_end)
            .bind(start.page_after)
            .bind(start.since)
            .bind(events)
            .bind(with_payloads)
            .all(|rows| {
                let row = first(rows)?;
                let is_full = row.try_get::<i64, _>("looked_at")? >= events;
                let last: Option<Position> = row.try_get("reached")?;
                let reached = last.filter(|_| is_full).unwrap_or(until);
                Ok(Past { events: read_new_events(rows)?, reached })
            })
            .await
    }

    /// Writes the wanted events of a part and moves on behind it. Returns false when another relay was
    /// faster: then nothing was written.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn insert_past(&self, start: &Start, past: &Past, wanted: &[&NewEvent]) -> Result<bool, Error> {
        let (timed, plain): (Vec<&NewEvent>, Vec<&NewEvent>) =
            wanted.iter().partition(|new| new.deliver_after.is_some() || new.priority > 0);
        let positions: Ranges = plain.iter().map(|new| new.event.position).collect();
        let times = || plain.iter().map(|new| new.event.created_at);
        self.statement("recording what is owed of past events", sql!("relay/insert_past"))
            .bind(start.subscription_id)
            .bind(start.position)
            .bind(past.reached)
            .bind((!plain.is_empty()).then(|| positions.to_string()))
            .bind(times().min())
            .bind(times().max())
            .bind_each(&timed, |new| new.event.position)
            .bind_each(&timed, |new| new.event.created_at)
            .bind_each(&timed, |new| new.deliver_after)
            .bind_each(&timed, |new| new.priority)
            .any()
            .await
    }

    /// Deletes the row of a subscription that has all past events, unless another relay was faster.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn end_start(&self, start: &Start) -> Result<(), Error> {
        self.statement("ending a start", sql!("relay/end_start"))
            .bind(start.subscription_id)
            .bind(start.position)
            .execute()
            .await
    }

    /// Counts what is outstanding for a subscription, without the pages that relays hold and without
    /// deliveries that fell due before `since`. Counting stops at about `enough`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn count_owed(
        &self,
        subscription: SubscriptionId,
        since: Option<DateTime<Utc>>,
        enough: i64,
    ) -> Result<i64, Error> {
        self.statement("counting what is owed", sql!("relay/count_owed"))
            .bind(subscription)
            .bind(enough)
            .bind(since)
            .row(|row| row.try_get(0))
            .await
    }
}
