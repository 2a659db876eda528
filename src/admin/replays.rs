//! Replays: start, list, pause, resume and cancel them, and count what one would send.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;
use uuid::Uuid;

use super::statement::{rows, value};
use super::{Error, Operator, ask};
use crate::{
    event::{Event, Position},
    subscription::{Subscription, Wanted},
};

/// Events read at once to count what a replay would send.
const PART: i64 = 500;

/// A replay: events of the log that are sent again to a subscription.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct Replay {
    /// Id of the replay; deliveries carry it in the header `pgoutbox-replay`.
    pub id: i64,
    /// Name of the subscription.
    pub subscription: String,
    /// The most deliveries in a time, such as `50/s`; none: no limit.
    pub rate: Option<String>,
    /// State: `running`, `paused`, `done` or `cancelled`.
    pub state: String,
    /// The only event; none: all events.
    pub event_id: Option<Uuid>,
    /// Time of the first event.
    pub since: DateTime<Utc>,
    /// Time before which its events were published; none: up to the start.
    pub until: Option<DateTime<Utc>>,
    /// Topic pattern; none: all topics.
    pub topic: Option<String>,
    /// How much of the log was read, from 0 to 1.
    pub progress: f64,
    /// Events of the time and the topic that were looked at.
    pub seen: i64,
    /// Deliveries that are neither outstanding nor dead letters.
    pub sent: i64,
    /// Deliveries that are queued, in flight or wait for a retry.
    pub waiting: i64,
    /// Dead letters of it that are neither redriven nor discarded.
    pub failed: i64,
    /// Login that started it.
    pub started_by: String,
    /// Time of its start.
    pub started_at: DateTime<Utc>,
    /// Time when it was done or cancelled.
    pub ended_at: Option<DateTime<Utc>>,
}

/// Which events a replay sends again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayOrder {
    /// Name of the subscription.
    pub subscription: String,
    /// Time of the first event; may be none if `event` is not.
    pub since: Option<DateTime<Utc>>,
    /// Time before which the events were published; none: up to now.
    pub until: Option<DateTime<Utc>>,
    /// Topic pattern.
    pub topic: Option<String>,
    /// Public id of the only event.
    pub event: Option<Uuid>,
    /// The most deliveries in a time, such as `50/s`.
    pub rate: Option<String>,
}

/// What a replay would send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct ReplayCount {
    /// Events that the subscription wants as it is now.
    pub would_replay: i64,
    /// Events of the time and the topic.
    pub seen: i64,
    /// Of these, events for which a condition cannot be evaluated. They are not sent.
    pub filter_errors: i64,
}

/// The part of the log that a replay reads.
#[derive(Debug, FromRow)]
struct Span {
    position: Position,
    until_position: Position,
    since: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
    settled: String,
    window_end: Option<String>,
    page_after: Option<Position>,
}

impl Operator {
    /// Starts a replay and returns its id. Relays do the work.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription, a time, topic, event or rate is refused, or ten
    /// replays of the subscription have not ended.
    pub async fn start_replay(&mut self, order: &ReplayOrder) -> Result<i64, Error> {
        let query = value(sql!("admin/start_replay"))
            .bind(&order.subscription)
            .bind(order.since)
            .bind(order.until)
            .bind(&order.topic)
            .bind(order.event)
            .bind(&order.rate);
        ask("starting a replay", query.fetch_one(&mut self.connection)).await
    }

    /// Counts what a replay would send to this subscription, whose conditions are evaluated as a relay does.
    /// Nothing is sent or changed.
    ///
    /// # Errors
    /// Those of [`Operator::start_replay`].
    pub async fn count_replay(
        &mut self,
        order: &ReplayOrder,
        subscription: &Subscription,
    ) -> Result<ReplayCount, Error> {
        let mut span = self.plan_replay(order).await?;
        let mut count = ReplayCount::default();
        loop {
            let events = self.read_replay(&span, order.topic.as_deref()).await?;
            let Some(last) = events.last() else { return Ok(count) };
            span.position = last.position;
            for event in &events {
                count.seen += 1;
                match subscription.explain(event) {
                    Wanted::Yes => count.would_replay += 1,
                    Wanted::Failed(_) => count.filter_errors += 1,
                    Wanted::No(_) => {}
                }
            }
        }
    }

    async fn plan_replay(&mut self, order: &ReplayOrder) -> Result<Span, Error> {
        let query = rows(sql!("admin/plan_replay"))
            .bind(&order.subscription)
            .bind(order.since)
            .bind(order.until)
            .bind(&order.topic)
            .bind(order.event)
            .bind(&order.rate);
        ask("planning a replay", query.fetch_one(&mut self.connection)).await
    }

    async fn read_replay(&mut self, span: &Span, topic: Option<&str>) -> Result<Vec<Event>, Error> {
        let query = rows(sql!("admin/read_replay"))
            .bind(span.position)
            .bind(span.until_position)
            .bind(span.since)
            .bind(span.until)
            .bind(&span.settled)
            .bind(&span.window_end)
            .bind(span.page_after)
            .bind(topic)
            .bind(PART);
        ask("reading the events of a replay", query.fetch_all(&mut self.connection)).await
    }

    /// Lists replays, newest first: those of a subscription, or of all; the one with this id; or those before
    /// an id.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_replays(
        &mut self,
        subscription: Option<&str>,
        id: Option<i64>,
        before: Option<i64>,
        max_rows: i32,
    ) -> Result<Vec<Replay>, Error> {
        let query = rows(sql!("admin/list_replays")).bind(subscription).bind(id);
        let query = query.bind(i64::from(max_rows)).bind(before);
        ask("listing replays", query.fetch_all(&mut self.connection)).await
    }

    /// Pauses a replay. Returns whether this changed anything.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such replay.
    pub async fn pause_replay(&mut self, id: i64) -> Result<bool, Error> {
        let query = value(sql!("admin/pause_replay")).bind(id);
        ask("pausing a replay", query.fetch_one(&mut self.connection)).await
    }

    /// Goes on with a paused replay. Returns whether this changed anything.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such replay.
    pub async fn resume_replay(&mut self, id: i64) -> Result<bool, Error> {
        let query = value(sql!("admin/resume_replay")).bind(id);
        ask("resuming a replay", query.fetch_one(&mut self.connection)).await
    }

    /// Ends a replay: what waits of it is never sent. Returns whether this changed anything.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such replay.
    pub async fn cancel_replay(&mut self, id: i64) -> Result<bool, Error> {
        let query = value(sql!("admin/cancel_replay")).bind(id);
        ask("cancelling a replay", query.fetch_one(&mut self.connection)).await
    }
}
