//! Lists and writes event types.

use serde::Serialize;

use super::statement::{rows, value};
use super::{Error, Operator, ask};
use crate::event::{JsonText, types::Row};

/// The columns of an event type that are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct ShownEventType {
    /// Id of the event type.
    pub id: i64,
    /// Topic pattern of the events.
    pub topic: String,
    /// Schema version, from 1. An event without one has version 1.
    pub version: i32,
    /// JSON Schema.
    #[cfg_attr(feature = "cli", schema(value_type = JsonText))]
    pub schema: Option<JsonText>,
    /// What happens to a payload that does not fit: `reject` or `warn`.
    pub mode: String,
    /// Free text for people.
    pub description: Option<String>,
    /// CEL expression that makes the payload of the next version, if there is one.
    pub upcast: Option<String>,
    /// Why a relay cannot use it.
    pub state_reason: Option<String>,
}

impl From<Row> for ShownEventType {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            topic: row.topic,
            version: row.version,
            schema: serde_json::from_str(&row.schema).ok(),
            mode: row.mode,
            description: row.description,
            upcast: row.upcast,
            state_reason: row.state_reason,
        }
    }
}

impl Operator {
    /// Event types, by topic and version; with `after` those after this topic and version.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_event_types(
        &mut self,
        after: Option<(&str, i32)>,
        max_rows: i32,
    ) -> Result<Vec<Row>, Error> {
        let (topic, version) = after.unzip();
        let query = rows(sql!("admin/list_event_types")).bind(topic).bind(version);
        let query = query.bind(i64::from(max_rows));
        ask("listing event types", query.fetch_all(&mut self.connection)).await
    }

    /// Creates or changes the event type of a topic pattern and version, and returns its id. Ignores `id` and
    /// `state_reason` of the row.
    ///
    /// # Errors
    /// [`Error::Refused`] when the database refuses a field.
    pub async fn set_event_type(&mut self, row: &Row) -> Result<i64, Error> {
        let query = value(sql!("admin/set_event_type"))
            .bind(&row.topic)
            .bind(row.version)
            .bind(&row.schema)
            .bind(&row.mode)
            .bind(&row.description)
            .bind(&row.upcast);
        ask("writing an event type", query.fetch_one(&mut self.connection)).await
    }
}
