//! Events as they are stored in the log, and drafts as an application writes them.

pub mod filter;
pub(crate) mod harmless;
mod json_text;
pub mod topic;
pub mod types;

pub use self::json_text::JsonText;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Postgres, postgres::PgArguments, query::QueryScalar};
use uuid::Uuid;

id! {
    /// Place of an event in the log. Grows, with gaps. Not an identity: a restored database may use it again.
    Position
}

/// An event as it is stored in the log. Receivers identify it by its [`id`](Event::id).
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Event {
    /// Public id: UUID version 7, or the publisher's own UUID. The same on every attempt.
    pub id: Uuid,
    /// Where it stands in the log.
    pub position: Position,
    /// Time of the insert, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// Dotted name, such as `public.orders.create`.
    pub topic: String,
    /// Identifies what the event is about, such as an order.
    pub key: Option<String>,
    /// Payload: JSON exactly as PostgreSQL writes it.
    pub payload: String,
    /// Headers: a JSON object of strings, as text.
    pub headers: String,
    /// Tenant the event belongs to; none for events outside any tenant.
    pub organization: Option<String>,
    /// Name of the application that published it.
    pub source: Option<String>,
    /// User who caused it.
    pub user_id: Option<String>,
    /// Version of the payload's schema; none counts as 1.
    pub schema_version: Option<i32>,
}

impl Event {
    /// Makes a draft. Its event is sent after [`Draft::publish`] and the commit of that transaction.
    ///
    /// # Errors
    /// When the payload cannot be written as JSON.
    #[expect(
        clippy::new_ret_no_self,
        reason = "an event exists only once it is committed; before that it is a draft"
    )]
    pub fn new(topic: impl Into<String>, payload: impl Serialize) -> Result<Draft, serde_json::Error> {
        Ok(Draft { topic: topic.into(), payload: serde_json::to_string(&payload)?, ..Draft::default() })
    }

    /// An event for tests.
    #[cfg(test)]
    pub(crate) fn sample(position: i64) -> Self {
        Self {
            id: Uuid::nil(),
            position: Position(position),
            created_at: DateTime::UNIX_EPOCH,
            topic: "shop.orders.create".to_owned(),
            key: None,
            payload: "{}".to_owned(),
            headers: "{}".to_owned(),
            organization: None,
            source: None,
            user_id: None,
            schema_version: None,
        }
    }

    /// Deserializes the payload.
    ///
    /// # Errors
    /// When the payload does not fit the type.
    pub fn payload<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.payload)
    }
}

/// An event that is not committed yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    topic: String,
    payload: String,
    key: Option<String>,
    headers: serde_json::Map<String, serde_json::Value>,
    organization: Option<String>,
    id: Option<Uuid>,
    priority: i32,
    deliver_after: Option<DateTime<Utc>>,
    source: Option<String>,
    user_id: Option<String>,
    schema_version: Option<i32>,
}

impl Draft {
    /// Identifies what the event is about, such as an order; at most 512 characters.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header: a lower-case name of at most 64 characters, a value without control characters.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), serde_json::Value::String(value.into()));
        self
    }

    /// Tenant of the event. Only its subscriptions and those for all organizations receive it.
    #[must_use]
    pub fn organization(mut self, organization: impl Into<String>) -> Self {
        self.organization = Some(organization.into());
        self
    }

    /// Makes publishing idempotent: the same id published twice is one event.
    #[must_use]
    pub fn id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    /// Priority from 0 (default) to 1000. In a backlog each point counts as one minute of waiting.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Earliest time of delivery.
    #[must_use]
    pub fn deliver_after(mut self, instant: DateTime<Utc>) -> Self {
        self.deliver_after = Some(instant);
        self
    }

    /// Name of the application that publishes the event; at most 255 characters.
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// User who caused it; at most 255 characters.
    #[must_use]
    pub fn user_id(mut self, user_id: impl Into<String>) -> Self {
        self.user_id = Some(user_id.into());
        self
    }

    /// Version of the payload's schema; none counts as 1.
    #[must_use]
    pub fn schema_version(mut self, version: i32) -> Self {
        self.schema_version = Some(version);
        self
    }

    /// Writes the event in the caller's transaction and returns its id: `draft.publish(&mut tx).await?`.
    /// Nothing is sent unless the transaction commits.
    ///
    /// # Errors
    /// Those of the database: a malformed topic or header, a payload above 256 KiB, a lost connection.
    pub async fn publish(&self, transaction: &mut PgConnection) -> Result<Uuid, sqlx::Error> {
        self.statement().fetch_one(transaction).await
    }

    /// The statement that publishes it.
    pub(crate) fn statement(&self) -> QueryScalar<'_, Postgres, Uuid, PgArguments> {
        sqlx::query_scalar(
            "select outbox.publish($1, $2::text::jsonb, key => $3, headers => $4::text::jsonb, \
             organization => $5, id => $6, priority => $7, deliver_after => $8, source => $9, \
             user_id => $10, schema_version => $11)",
        )
        .bind(&self.topic)
        .bind(&self.payload)
        .bind(&self.key)
        .bind(serde_json::Value::Object(self.headers.clone()).to_string())
        .bind(&self.organization)
        .bind(self.id)
        .bind(self.priority)
        .bind(self.deliver_after)
        .bind(&self.source)
        .bind(&self.user_id)
        .bind(self.schema_version)
    }
}
