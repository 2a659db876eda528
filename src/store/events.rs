//! Events as statements return them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};
use sqlx::{Row as _, postgres::PgRow};

use super::{connection::Store, error::Error};
use crate::{
    event::{Event, Position},
    sink::sqlstate::Class,
};

/// An event as routing reads it.
#[derive(Debug)]
pub struct NewEvent {
    /// The event; its payload is empty when `payload_read` is false.
    pub event: Event,
    /// Whether the payload was read with it.
    pub payload_read: bool,
    /// From 0 to 1000; one point counts as one minute of waiting.
    pub priority: i32,
    /// Earliest time of its first attempt.
    pub deliver_after: Option<DateTime<Utc>>,
    /// Whether it was routed before its turn, because it is urgent.
    pub routed_early: bool,
}

/// An event as it is read for its deliveries.
#[derive(Debug)]
pub struct LoadedEvent {
    /// The event; its payload is empty when `payload_read` is false.
    pub event: Event,
    /// Whether the payload was read with it.
    pub payload_read: bool,
}

/// Events that were looked for. One that is in neither is not in the log.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Those that were read.
    pub events: HashMap<Position, LoadedEvent>,
    /// Those with a value that the database cannot read.
    pub unreadable: HashSet<Position>,
}

/// Positions of events that could not be read.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    positions: Mutex<HashSet<Position>>,
}

impl Unreadable {
    /// Positions that are kept at most. Those beyond are found each time.
    const KEPT: usize = 10_000;

    fn positions(&self) -> MutexGuard<'_, HashSet<Position>> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all: in a database that was set back, other events may get these positions.
    pub(super) fn forget(&self) {
        self.positions().clear();
    }

    /// Those of these positions that are known.
    fn known(&self, positions: &[Position]) -> HashSet<Position> {
        let known = self.positions();
        if known.is_empty() {
            return HashSet::new();
        }
        positions.iter().filter(|position| known.contains(position)).copied().collect()
    }

    /// Notes an event that failed to be read twice.
    fn note(&self, position: Position, error: &Error) {
        let why = std::error::Error::source(error).map(ToString::to_string);
        tracing::warn!(
            position = position.0,
            why,
            "an event cannot be read: a dead letter for those who want it"
        );
        let mut known = self.positions();
        if known.len() < Self::KEPT {
            known.insert(position);
        }
    }
}

impl Store {
    /// Reads events by their positions, with payloads of at most `largest` bytes. `span` is the first and the
    /// last of their times. A value that the database cannot read costs its own event only.
    ///
    /// # Errors
    /// Those of the database that are not about a value of one event.
    pub async fn load_events(
        &self,
        positions: &[Position],
        span: (DateTime<Utc>, DateTime<Utc>),
        largest: i32,
    ) -> Result<Loaded, Error> {
        let unreadable = self.unreadable.known(positions);
        let left: Vec<Position> =
            positions.iter().filter(|position| !unreadable.contains(position)).copied().collect();
        let mut loaded = Loaded { events: HashMap::new(), unreadable };
        let mut parts = vec![left.as_slice()];
        while let Some(part) = parts.pop() {
            let error = match self.load_some(part, span, largest).await {
                Ok(some) => {
                    loaded.events.extend(some);
                    continue;
                }
                Err(error) if error.is_about_a_value() => error,
                Err(error) => return Err(error),
            };
            let found = match self.find_unreadable(part, span).await {
                // It took too long for so many: look for it in each half.
                Err(error) if error.class() == Some(Class::Canceled) && part.len() > 1 => None,
                found => found?,
            };
            let at = part.iter().position(|position| Some(*position) == found);
            match (at.map(|at| part.split_at(at)), part) {
                (Some((before, [position, after @ ..])), _) => {
                    self.unreadable.note(*position, &error);
                    loaded.unreadable.insert(*position);
                    parts.extend([after, before]);
                }
                // The server can read it, and cannot send it to this relay.
                (_, [position]) => match self.load_some(part, span, largest).await {
                    Ok(some) => loaded.events.extend(some),
                    Err(error) if error.is_about_a_value() => {
                        self.unreadable.note(*position, &error);
                        loaded.unreadable.insert(*position);
                    }
                    Err(error) => return Err(error),
                },
                _ => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
        Ok(loaded)
    }

    /// The first event that the server itself cannot read.
    async fn find_unreadable(
        &self,
        positions: &[Position],
        span: (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<Option<Position>, Error> {
        self.statement("finding an event that cannot be read", sql!("relay/find_unreadable"))
            .bind(positions)
            .bind(span.0)
            .bind(span.1)
            .row(|row| row.try_get(0))
            .await
    }

    async fn load_some(
        &self,
        positions: &[Position],
        span: (DateTime<Utc>, DateTime<Utc>),
        largest: i32,
    ) -> Result<HashMap<Position, LoadedEvent>, Error> {
        self.statement("loading events", sql!("relay/load_events"))
            .bind(positions)
            .bind(span.0)
            .bind(span.1)
            .bind(largest)
            .all(|rows| {
                rows.iter()
                    .filter_map(|row| read_event(row).transpose())
                    .map(|loaded| loaded.map(|loaded| (loaded.event.position, loaded)))
                    .collect()
            })
            .await
    }
}

/// Reads rows of events with a priority and an earliest time, and skips rows without an event.
pub(super) fn read_new_events(rows: &[PgRow]) -> Result<Vec<NewEvent>, sqlx::Error> {
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        let Some(LoadedEvent { event, payload_read }) = read_event(row)? else { continue };
        let (priority, deliver_after) = (row.try_get(11)?, row.try_get(12)?);
        events.push(NewEvent { event, payload_read, priority, deliver_after, routed_early: false });
    }
    Ok(events)
}

/// Reads the event of a row; none: the row has only what every row of its statement has.
///
/// Columns are read by place, not by name, because routing reads every event this way. Statements that return
/// events list these columns first and in this order; a test compares them.
fn read_event(row: &PgRow) -> Result<Option<LoadedEvent>, sqlx::Error> {
    let Some(position) = row.try_get(0)? else { return Ok(None) };
    let payload: Option<String> = row.try_get(10)?;
    Ok(Some(LoadedEvent {
        payload_read: payload.is_some(),
        event: Event {
            position,
            created_at: row.try_get(1)?,
            id: row.try_get(2)?,
            topic: row.try_get(3)?,
            key: row.try_get(4)?,
            organization: row.try_get(5)?,
            source: row.try_get(6)?,
            user_id: row.try_get(7)?,
            schema_version: row.try_get(8)?,
            headers: row.try_get(9)?,
            payload: payload.unwrap_or_default(),
        },
    }))
}
