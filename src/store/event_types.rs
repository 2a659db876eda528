//! Reading event types, and what relays say of them.

use sqlx::{FromRow, Row as _};

use super::{
    connection::{Slot, Store},
    error::Error,
};
use crate::event::types::Row;

/// What changed since the last load.
#[derive(Debug)]
pub struct LoadedTypes {
    /// Changed rows.
    pub rows: Vec<Row>,
    /// The ids of all rows.
    pub ids: Vec<i64>,
}

impl Store {
    /// Reads the event types that changed since the snapshot of an earlier load of subscriptions.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_event_types(&self, since: Option<&str>) -> Result<LoadedTypes, Error> {
        self.limited("loading event types", async {
            let mut session = self.session(Slot::Rest).await?;
            let rows = sqlx::query(sql!("relay/load_event_types"))
                .bind(since)
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let mut loaded = LoadedTypes { rows: Vec::new(), ids: first.try_get("ids")? };
            for row in &rows {
                if row.try_get::<Option<i64>, _>("id")?.is_some() {
                    loaded.rows.push(Row::from_row(row)?);
                }
            }
            Ok(loaded)
        })
        .await
    }

    /// Records why an event type cannot be used, or that it can. Returns whether that was news, and the type still the same.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn set_event_type_state(&self, row: &Row, problem: Option<&str>) -> Result<bool, Error> {
        self.limited("recording the state of an event type", async {
            let mut session = self.session(Slot::Rest).await?;
            let recorded = sqlx::query(sql!("relay/set_event_type_state"))
                .bind(row.id)
                .bind(problem)
                .bind(&row.topic)
                .bind(row.version)
                .bind(&row.schema)
                .bind(&row.upcast)
                .persistent(self.is_persistent())
                .fetch_optional(session.connection())
                .await?;
            session.finish().await?;
            Ok(recorded.is_some())
        })
        .await
    }
}
