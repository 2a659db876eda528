//! Events of the log: list and show them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;
use uuid::Uuid;

use super::statement::{rows, value};
use super::{Error, Operator, ask};
use crate::event::{Event, JsonText, Position};

/// How many of the newest events are looked at for a list.
pub const LOOKED_AT: i32 = 100_000;

/// An event of the log, without its headers and payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct LoggedEvent {
    /// Public id of the event: a UUID.
    pub event_id: Uuid,
    /// Place in the log.
    pub position: Position,
    /// Dotted name, such as `shop.orders.create`.
    pub topic: String,
    /// What the event is about, such as the id of an order; none if the publisher gave none.
    pub key: Option<String>,
    /// Tenant that the event belongs to; none for events outside any tenant.
    pub organization: Option<String>,
    /// Name of the application that published it.
    pub source: Option<String>,
    /// User who caused it.
    pub user_id: Option<String>,
    /// Version of the payload's schema.
    pub schema_version: Option<i32>,
    /// Priority from 0 to 1000.
    pub priority: i32,
    /// Time of the insert, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// Earliest delivery.
    pub deliver_after: Option<DateTime<Utc>>,
}

/// An event of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct WholeEvent {
    /// The event without its headers and payload.
    #[sqlx(flatten)]
    #[serde(flatten)]
    pub event: LoggedEvent,
    /// Headers: an object of strings.
    #[sqlx(json)]
    pub headers: JsonText,
    /// Payload: any JSON, of at most 256 KiB.
    #[sqlx(json)]
    pub payload: JsonText,
}

/// Selects events; the default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only events whose topic matches this pattern, such as `shop.orders.*`.
    pub topic: Option<String>,
    /// Only events with exactly this key.
    pub key: Option<String>,
    /// Only events of this tenant.
    pub organization: Option<String>,
    /// Only events that were inserted at this time or later.
    pub since: Option<DateTime<Utc>>,
}

impl Operator {
    /// Recent events, newest first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn recent_events(&mut self, count: i64) -> Result<Vec<Event>, Error> {
        ask(
            "reading the newest events",
            rows(sql!("admin/recent_events")).bind(count).fetch_all(&mut self.connection),
        )
        .await
    }

    /// Lists matching events among the newest 100,000, or the newest before a position, newest first.
    ///
    /// # Errors
    /// [`Error::Refused`] when the topic is no pattern; and those of the database.
    pub async fn list_events(
        &mut self,
        filter: &EventFilter,
        before: Option<Position>,
        max_rows: i32,
    ) -> Result<Vec<LoggedEvent>, Error> {
        let query = rows(sql!("admin/list_events"))
            .bind(&filter.topic)
            .bind(&filter.key)
            .bind(&filter.organization)
            .bind(filter.since)
            .bind(i64::from(max_rows))
            .bind(i64::from(LOOKED_AT))
            .bind(before);
        ask("listing events", query.fetch_all(&mut self.connection)).await
    }

    /// The last position that [`Operator::list_events`] looks at; none if it looks at all that there are.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn skim_events(&mut self, before: Option<Position>) -> Result<Option<Position>, Error> {
        let query = value(sql!("admin/skim_events")).bind(i64::from(LOOKED_AT)).bind(before);
        ask("listing events", query.fetch_optional(&mut self.connection)).await
    }

    /// The event with this id, if the log still has it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn show_event(&mut self, id: Uuid) -> Result<Option<WholeEvent>, Error> {
        let Some((position, created_at)) = self.find_event(id).await? else { return Ok(None) };
        let query = rows(sql!("admin/show_event")).bind(position).bind(created_at);
        ask("reading an event", query.fetch_optional(&mut self.connection)).await
    }

    /// Position and time of an event, if the log still has it.
    pub(super) async fn find_event(&mut self, id: Uuid) -> Result<Option<(i64, DateTime<Utc>)>, Error> {
        let query = rows(sql!("admin/find_event")).bind(id);
        ask("looking for an event", query.fetch_optional(&mut self.connection)).await
    }
}
