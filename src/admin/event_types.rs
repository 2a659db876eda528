//! Lists and writes event types.

use super::statement::{rows, value};
use super::{Error, Operator, ask};
use crate::event::types::Row;

impl Operator {
    /// All event types, by topic and version.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_event_types(&mut self) -> Result<Vec<Row>, Error> {
        let query = rows(sql!("admin/list_event_types"));
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
