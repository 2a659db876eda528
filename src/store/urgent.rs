//! Urgent events that are routed before their turn: read, and recorded in `outbox.routed_early`.

use chrono::{DateTime, Utc};
use sqlx::Row as _;

use super::{
    connection::{Reserved, Store},
    cursor::{Cursor, parts},
    error::Error,
    events::{NewEvent, read_new_events},
    routing::NewDelivery,
    statement::first,
};

/// A snapshot in which every urgent event is routed.
#[derive(Debug, Clone)]
pub struct Looked {
    xmax: String,
    xip: Vec<String>,
}

/// Urgent events that no relay has routed.
#[derive(Debug)]
pub struct Urgent {
    /// The events.
    pub events: Vec<NewEvent>,
    /// Value of `outbox.generation` when they were read.
    pub generation: i64,
    /// Time of the newest pause that a destination asked for, at that time.
    pub newest_pause: Option<DateTime<Utc>>,
    /// Where to look from once these are routed; none: there may be more of them.
    pub looked: Option<Looked>,
}

impl Store {
    /// Reads urgent events that routing has not come to and that were not routed early: those that `looked`
    /// does not know, or the cursor. Returns none when another relay has moved the cursor.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_urgent(
        &self,
        cursor: &Cursor,
        looked: Option<&Looked>,
        most: usize,
        with_payloads: bool,
    ) -> Result<Option<Urgent>, Error> {
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let window = cursor.window.as_ref();
        self.statement("reading urgent events", sql!("relay/read_urgent"))
            .on(Reserved::ReadEvents)
            .bind(looked.map_or(&cursor.settled_xmax, |looked| &looked.xmax))
            .bind(looked.map_or(&cursor.settled_xip, |looked| &looked.xip))
            .bind(limit)
            .bind(with_payloads)
            .bind(cursor.step)
            .bind(&cursor.settled)
            .bind(window.map(|window| &window.end))
            .bind(window.map(|window| window.page_after))
            .all(|rows| {
                let row = first(rows)?;
                if row.try_get::<Option<i64>, _>("step")? != Some(cursor.step) {
                    return Ok(None);
                }
                let events = read_new_events(rows)?;
                let (xmax, xip) = parts(row.try_get("snapshot")?);
                let looked = (events.len() < most).then_some(Looked { xmax, xip });
                Ok(Some(Urgent {
                    events,
                    generation: row.try_get("generation")?,
                    newest_pause: row.try_get("newest_pause")?,
                    looked,
                }))
            })
            .await
    }

    /// Routes urgent events before their turn. Returns the cursor as it is now; none when another relay has
    /// moved it: then nothing was written.
    ///
    /// # Errors
    /// Those of the database. The step may be committed nevertheless.
    pub async fn route_early(
        &self,
        cursor: &Cursor,
        events: &[NewEvent],
        deliveries: &[NewDelivery],
    ) -> Result<Option<Cursor>, Error> {
        let step: Option<i64> = self
            .statement("routing urgent events", sql!("relay/route_early"))
            .on(Reserved::AdvanceCursor)
            .bind(cursor.step)
            .bind_each(events, |new| new.event.position)
            .bind_each(events, |new| new.event.created_at)
            .bind_each(deliveries, |new| new.position)
            .bind_each(deliveries, |new| new.created_at)
            .bind_each(deliveries, |new| new.subscription)
            .bind_each(deliveries, |new| new.deliver_after)
            .bind_each(deliveries, |new| new.priority)
            .all(|rows| rows.first().map(|row| row.try_get("step")).transpose())
            .await?;
        let Some(step) = step else { return Ok(None) };
        self.guard.saw_step(step);
        Ok(Some(Cursor { step, ..cursor.clone() }))
    }
}
