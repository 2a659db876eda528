//! Event types: what changed is read, and whether this relay can use a type is written.

use sqlx::{FromRow, Row as _};

use super::{connection::Store, error::Error, statement::first};
use crate::event::types::Row;

/// The event types that changed since the last load.
#[derive(Debug)]
pub struct LoadedTypes {
    /// Rows that changed.
    pub rows: Vec<Row>,
    /// Ids of all rows, changed or not.
    pub ids: Vec<i64>,
}

impl Store {
    /// Reads the event types that changed since the snapshot of an earlier load of subscriptions; without a
    /// snapshot, all.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_event_types(&self, since: Option<&str>) -> Result<LoadedTypes, Error> {
        self.statement("loading event types", sql!("relay/load_event_types"))
            .bind(since)
            .all(|rows| {
                let mut loaded = LoadedTypes { rows: Vec::new(), ids: first(rows)?.try_get("ids")? };
                for row in rows {
                    if row.try_get::<Option<i64>, _>("id")?.is_some() {
                        loaded.rows.push(Row::from_row(row)?);
                    }
                }
                Ok(loaded)
            })
            .await
    }

    /// Records why an event type cannot be used; without a problem, that it can. Returns false when this was
    /// recorded already, or when the type was changed since it was read.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn set_event_type_state(&self, row: &Row, problem: Option<&str>) -> Result<bool, Error> {
        self.statement("recording the state of an event type", sql!("relay/set_event_type_state"))
            .bind(row.id)
            .bind(problem)
            .bind(&row.topic)
            .bind(row.version)
            .bind(&row.schema)
            .bind(&row.upcast)
            .any()
            .await
    }
}
