//! Events from before a subscription was made: read part by part, and owed to it in the commit that moves on.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, Row as _, postgres::PgRow};

use super::{
    connection::{Slot, Store},
    error::Error,
    routing::NewEvent,
};
use crate::{delivery::ranges::Ranges, event::Event};

/// How far a subscription is with events from before it was made.
#[derive(Debug, Clone, FromRow)]
pub struct Start {
    /// Which.
    pub subscription_id: i64,
    since: Option<DateTime<Utc>>,
    /// None until a routing step has fixed what lies before it.
    settled: Option<String>,
    window_end: Option<String>,
    page_after: Option<i64>,
    until: Option<i64>,
    position: i64,
}

/// A part of the log.
#[derive(Debug)]
pub struct Past {
    /// What of it lies before the subscription, in the order of positions.
    pub events: Vec<NewEvent>,
    /// How far it reaches; none when nothing is left.
    reached: Option<i64>,
}

impl Past {
    /// Whether the log has been worked through.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.reached.is_none()
    }
}

impl Start {
    /// Whether it is known what lies before.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.settled.is_some()
    }
}

impl Store {
    /// How far these subscriptions are; one that is done is not among them.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_starts(&self, subscriptions: &[i64]) -> Result<Vec<Start>, Error> {
        self.limited("loading starts", async {
            let mut session = self.session(Slot::Rest).await?;
            let starts = sqlx::query_as(sql!("relay/load_starts"))
                .bind(subscriptions)
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            Ok(starts)
        })
        .await
    }

    /// Looks at the next so many events of the log.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_past(&self, start: &Start, limit: i64, with_payloads: bool) -> Result<Past, Error> {
        self.limited("reading past events", async {
            let mut session = self.session(Slot::Rest).await?;
            let rows = sqlx::query(sql!("relay/read_past"))
                .bind(start.position)
                .bind(start.until)
                .bind(&start.settled)
                .bind(&start.window_end)
                .bind(start.page_after)
                .bind(start.since)
                .bind(limit)
                .bind(with_payloads)
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let events =
                rows.iter().filter_map(|row| read_event(row).transpose()).collect::<Result<_, _>>()?;
            Ok(Past { events, reached: first.try_get("reached")? })
        })
        .await
    }

    /// Owes the wanted events of a part, and moves on behind it. Returns whether this was done: another relay may have been
    /// faster.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn insert_past(&self, start: &Start, past: &Past, wanted: &[&NewEvent]) -> Result<bool, Error> {
        let (timed, plain): (Vec<&NewEvent>, Vec<&NewEvent>) =
            wanted.iter().partition(|new| new.deliver_after.is_some() || new.priority > 0);
        self.limited("recording what is owed of past events", async {
            let mut session = self.session(Slot::Rest).await?;
            let moved = sqlx::query(sql!("relay/insert_past"))
                .bind(start.subscription_id)
                .bind(start.position)
                .bind(past.reached)
                .bind(
                    (!plain.is_empty())
                        .then(|| plain.iter().map(|new| new.event.position).collect::<Ranges>().to_string()),
                )
                .bind(plain.iter().map(|new| new.event.created_at).min())
                .bind(plain.iter().map(|new| new.event.created_at).max())
                .bind(timed.iter().map(|new| new.event.position).collect::<Vec<_>>())
                .bind(timed.iter().map(|new| new.event.created_at).collect::<Vec<_>>())
                .bind(timed.iter().map(|new| new.deliver_after).collect::<Vec<_>>())
                .bind(timed.iter().map(|new| new.priority).collect::<Vec<_>>())
                .persistent(self.is_persistent())
                .fetch_optional(session.connection())
                .await?;
            session.finish().await?;
            Ok(moved.is_some())
        })
        .await
    }

    /// The log has been worked through.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn end_start(&self, start: &Start) -> Result<(), Error> {
        self.limited("ending a start", async {
            let mut session = self.session(Slot::Rest).await?;
            sqlx::query(sql!("relay/end_start"))
                .bind(start.subscription_id)
                .bind(start.position)
                .persistent(self.is_persistent())
                .execute(session.connection())
                .await?;
            session.finish().await
        })
        .await
    }

    /// How much a subscription is owed, counted up to `enough`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn count_owed(&self, subscription: i64, enough: i64) -> Result<i64, Error> {
        self.limited("counting what is owed", async {
            let mut session = self.session(Slot::Rest).await?;
            let owed = sqlx::query_scalar(sql!("relay/count_owed"))
                .bind(subscription)
                .bind(enough)
                .persistent(self.is_persistent())
                .fetch_one(session.connection())
                .await?;
            session.finish().await?;
            Ok(owed)
        })
        .await
    }
}

fn read_event(row: &PgRow) -> Result<Option<NewEvent>, sqlx::Error> {
    // A row without an event carries only how far the statement looked.
    let Some(position) = row.try_get("position")? else { return Ok(None) };
    let payload: Option<String> = row.try_get("payload")?;
    Ok(Some(NewEvent {
        payload_read: payload.is_some(),
        event: Event {
            position,
            created_at: row.try_get("created_at")?,
            id: row.try_get("id")?,
            topic: row.try_get("topic")?,
            key: row.try_get("key")?,
            organization: row.try_get("organization")?,
            source: row.try_get("source")?,
            user_id: row.try_get("user_id")?,
            schema_version: row.try_get("schema_version")?,
            headers: row.try_get("headers")?,
            payload: payload.unwrap_or_default(),
        },
        priority: row.try_get("priority")?,
        deliver_after: row.try_get("deliver_after")?,
    }))
}
