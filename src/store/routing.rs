//! One routing step: the cursor is locked, events are read, deliveries inserted and the cursor moved, in one transaction.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::{Postgres, Row as _, Transaction, postgres::PgRow};
use uuid::Uuid;

use super::{
    connection::{Lane, Store},
    error::Error,
};
use crate::event::Event;

/// The cursor as a step finds it.
#[derive(Debug, Clone)]
pub struct Cursor {
    /// Grows with each step.
    pub step: i64,
    settled: String,
    settled_xmax: String,
    settled_xip: Vec<String>,
    low: i64,
    window: Option<Window>,
    drawn: i64,
}

/// New events that are more than a page: routed page by page up to a snapshot.
#[derive(Debug, Clone)]
pub struct Window {
    end: String,
    low: i64,
    page_after: i64,
    page_until: i64,
}

/// An event as routing sees it.
#[derive(Debug)]
pub struct NewEvent {
    /// The event; its payload is empty when `payload_read` is false.
    pub event: Event,
    /// Whether the payload came along.
    pub payload_read: bool,
    /// 0 to 1000.
    pub priority: i32,
    /// Not before.
    pub deliver_after: Option<DateTime<Utc>>,
}

/// What a step read.
#[derive(Debug)]
pub struct Read {
    /// In the order of positions.
    pub events: Vec<NewEvent>,
    /// `outbox.generation` in the snapshot in which the events were read.
    pub generation: i64,
    /// Reading took long although little or nothing was found: the cursor should move past what it stumbled over.
    pub was_slow: bool,
    reached: Reached,
}

#[derive(Debug, Clone)]
enum Reached {
    /// Everything visible in this snapshot.
    Everything { snapshot: String },
    /// A page of a window; `last` when there is no further one.
    Page { window: Window, last: bool },
}

/// A row for `outbox.deliveries`.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// The event's position.
    pub position: i64,
    /// The event's time.
    pub created_at: DateTime<Utc>,
    /// To whom.
    pub subscription: i64,
    /// Sent by this relay at once.
    pub leased: bool,
    /// Not before.
    pub deliver_after: Option<DateTime<Utc>>,
    /// The event's priority.
    pub priority: i32,
}

/// How far a step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// All that was read is routed.
    All,
    /// Routed up to this position; the rest stays in the log for the next step.
    UpTo(i64),
}

/// A routing step under way: it holds the cursor's lock.
pub struct Routing<'a> {
    store: &'a Store,
    transaction: Transaction<'static, Postgres>,
    /// The cursor it found.
    pub cursor: Cursor,
    /// When the transaction began, by the relay's monotonic clock: leases given in it end no earlier than this plus their length.
    pub began: Instant,
}

impl std::fmt::Debug for Routing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routing").field("cursor", &self.cursor).finish_non_exhaustive()
    }
}

/// A read that takes longer than this has met many rows it may not see.
const SLOW_READ: Duration = Duration::from_millis(50);

impl Store {
    /// Locks the cursor. `None`: another relay is routing. `known_step` is the step last seen, 0 at first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn take_cursor(&self, known_step: i64) -> Result<Option<Routing<'_>>, Error> {
        self.limited("taking the cursor", async {
            let began = Instant::now();
            let mut transaction = self.begin(Lane::Work).await?;
            let row = sqlx::query(include_str!("../../sql/take_cursor.sql"))
                .bind(known_step)
                .persistent(self.is_persistent())
                .fetch_optional(&mut *transaction)
                .await?;
            let Some(row) = row else { return Ok(None) };
            Ok(Some(Routing { store: self, transaction, cursor: read_cursor(&row)?, began }))
        })
        .await
    }
}

impl Routing<'_> {
    /// Reads at most `limit` new events, opening a window when there are more.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_events(&mut self, limit: usize, with_payloads: bool) -> Result<Read, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX).max(1);
        let started = Instant::now();
        let window = match self.cursor.window.clone() {
            Some(window) => window,
            None => {
                let (mut events, snapshot, generation) = self.read_new(limit + 1, with_payloads).await?;
                if i64::try_from(events.len()).unwrap_or(i64::MAX) <= limit {
                    events.sort_unstable_by_key(|new| new.event.position);
                    let was_slow = started.elapsed() > SLOW_READ;
                    return Ok(Read { events, generation, was_slow, reached: Reached::Everything { snapshot } });
                }
                self.open_window().await?
            }
        };
        let (events, generation) = self.read_page(&window, limit, with_payloads).await?;
        let last = i64::try_from(events.len()).unwrap_or(i64::MAX) < limit;
        Ok(Read { events, generation, was_slow: false, reached: Reached::Page { window, last } })
    }

    async fn read_new(&mut self, limit: i64, with_payloads: bool) -> Result<(Vec<NewEvent>, String, i64), Error> {
        let Self { store, transaction, cursor, .. } = self;
        let rows = store
            .limited("reading new events", async {
                sqlx::query(include_str!("../../sql/read_events.sql"))
                    .bind(&cursor.settled_xmax)
                    .bind(&cursor.settled_xip)
                    .bind(limit)
                    .bind(with_payloads)
                    .persistent(store.is_persistent())
                    .fetch_all(&mut **transaction)
                    .await
            })
            .await?;
        let decode = |error| Error::database("decoding new events", error);
        let first = rows.first().ok_or_else(|| Error::unsuitable("reading new events", "no row came back"))?;
        let snapshot = first.try_get(0).map_err(decode)?;
        let generation = first.try_get(1).map_err(decode)?;
        Ok((read_events(&rows).map_err(decode)?, snapshot, generation))
    }

    async fn open_window(&mut self) -> Result<Window, Error> {
        let Self { store, transaction, cursor, .. } = self;
        store
            .limited("opening a window", async {
                let row = sqlx::query(include_str!("../../sql/open_window.sql"))
                    .bind(cursor.low)
                    .bind(&cursor.settled_xip)
                    .persistent(store.is_persistent())
                    .fetch_one(&mut **transaction)
                    .await?;
                Ok(Window {
                    end: row.try_get("window_end")?,
                    low: cursor.drawn,
                    page_after: row.try_get("page_after")?,
                    page_until: row.try_get("page_until")?,
                })
            })
            .await
    }

    async fn read_page(&mut self, window: &Window, limit: i64, with_payloads: bool) -> Result<(Vec<NewEvent>, i64), Error> {
        let Self { store, transaction, cursor, .. } = self;
        let rows = store
            .limited("reading a page of events", async {
                sqlx::query(include_str!("../../sql/read_page.sql"))
                    .bind(&cursor.settled)
                    .bind(&window.end)
                    .bind(window.page_after)
                    .bind(window.page_until)
                    .bind(limit)
                    .bind(with_payloads)
                    .persistent(store.is_persistent())
                    .fetch_all(&mut **transaction)
                    .await
            })
            .await?;
        let decode = |error| Error::database("decoding a page of events", error);
        let first = rows.first().ok_or_else(|| Error::unsuitable("reading a page of events", "no row came back"))?;
        let generation = first.try_get(1).map_err(decode)?;
        Ok((read_events(&rows).map_err(decode)?, generation))
    }

    /// Inserts what was matched, moves the cursor and commits. Returns the ids of the leased deliveries, in their order.
    ///
    /// # Errors
    /// Those of the database. Whether the commit took place may then be unknown: its leases, if any, run out by themselves.
    pub async fn commit(
        mut self,
        read: &Read,
        advance: Advance,
        deliveries: &[NewDelivery],
        token: Uuid,
        lease: Duration,
    ) -> Result<Vec<i64>, Error> {
        let store = self.store;
        let (settled, low, window) = self.next_cursor(read, advance);
        store
            .limited("committing a routing step", async move {
                let ids = insert_deliveries(&mut self.transaction, deliveries, token, lease, store.is_persistent()).await?;
                sqlx::query(include_str!("../../sql/advance_cursor.sql"))
                    .bind(self.cursor.step)
                    .bind(settled)
                    .bind(low)
                    .bind(window.as_ref().map(|window| &window.end))
                    .bind(window.as_ref().map(|window| window.low))
                    .bind(window.as_ref().map(|window| window.page_after))
                    .bind(window.as_ref().map(|window| window.page_until))
                    .persistent(store.is_persistent())
                    .execute(&mut *self.transaction)
                    .await?;
                self.transaction.commit().await?;
                Ok(ids)
            })
            .await
    }

    fn next_cursor(&self, read: &Read, advance: Advance) -> (String, i64, Option<Window>) {
        match (&read.reached, advance) {
            (Reached::Everything { snapshot }, Advance::All) => (snapshot.clone(), self.cursor.drawn, None),
            (Reached::Everything { snapshot }, Advance::UpTo(position)) => {
                // All new events were read, but not all routed: those left are a window, known to its last event.
                let page_until = read.events.last().map_or(position, |last| last.event.position);
                let window = Window { end: snapshot.clone(), low: self.cursor.drawn, page_after: position, page_until };
                (self.cursor.settled.clone(), self.cursor.low, Some(window))
            }
            (Reached::Page { window, last: true }, Advance::All) => (window.end.clone(), window.low, None),
            (Reached::Page { window, last: false }, Advance::All) => {
                let page_after = read.events.last().map_or(window.page_until, |last| last.event.position);
                (self.cursor.settled.clone(), self.cursor.low, Some(Window { page_after, ..window.clone() }))
            }
            (Reached::Page { window, .. }, Advance::UpTo(position)) => {
                (self.cursor.settled.clone(), self.cursor.low, Some(Window { page_after: position, ..window.clone() }))
            }
        }
    }
}

impl Read {
    /// More events are known to wait behind what was read.
    #[must_use]
    pub fn has_more(&self) -> bool {
        matches!(self.reached, Reached::Page { last: false, .. })
    }

    /// A window ended although its page was empty: the cursor must move all the same.
    #[must_use]
    pub fn closes_window(&self) -> bool {
        matches!(self.reached, Reached::Page { last: true, .. })
    }
}

async fn insert_deliveries(
    transaction: &mut Transaction<'static, Postgres>,
    deliveries: &[NewDelivery],
    token: Uuid,
    lease: Duration,
    persistent: bool,
) -> Result<Vec<i64>, sqlx::Error> {
    if deliveries.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(include_str!("../../sql/insert_deliveries.sql"))
        .bind(deliveries.iter().map(|new| new.position).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|new| new.created_at).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|new| new.subscription).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|new| new.leased).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|new| new.deliver_after).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|new| new.priority).collect::<Vec<_>>())
        .bind(token)
        .bind(lease.as_secs_f64())
        .persistent(persistent)
        .fetch_all(&mut **transaction)
        .await?;
    let mut leased = Vec::with_capacity(deliveries.len());
    for (row, new) in rows.iter().zip(deliveries) {
        let place: (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
        if place != (new.position, new.subscription) {
            return Err(sqlx::Error::Protocol("inserted deliveries came back in another order".to_owned()));
        }
        if new.leased {
            leased.push(row.try_get(0)?);
        }
    }
    Ok(leased)
}

fn read_cursor(row: &PgRow) -> Result<Cursor, sqlx::Error> {
    let window = match row.try_get::<Option<String>, _>("window_end")? {
        Some(end) => Some(Window {
            end,
            low: row.try_get("window_low")?,
            page_after: row.try_get("page_after")?,
            page_until: row.try_get("page_until")?,
        }),
        None => None,
    };
    Ok(Cursor {
        step: row.try_get("step")?,
        settled: row.try_get("settled")?,
        settled_xmax: row.try_get("settled_xmax")?,
        settled_xip: row.try_get("settled_xip")?,
        low: row.try_get("low")?,
        window,
        drawn: row.try_get("drawn")?,
    })
}

/// By place, not by name: this is the busiest loop of the relay. The order is that of `read_events.sql` and `read_page.sql`.
fn read_events(rows: &[PgRow]) -> Result<Vec<NewEvent>, sqlx::Error> {
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        // A row without an event carries only the snapshot.
        let Some(position) = row.try_get::<Option<i64>, _>(2)? else { continue };
        let payload: Option<String> = row.try_get(14)?;
        events.push(NewEvent {
            payload_read: payload.is_some(),
            event: Event {
                position,
                created_at: row.try_get(3)?,
                id: row.try_get(4)?,
                topic: row.try_get(5)?,
                key: row.try_get(6)?,
                organization: row.try_get(7)?,
                source: row.try_get(10)?,
                user_id: row.try_get(11)?,
                schema_version: row.try_get(12)?,
                headers: row.try_get(13)?,
                payload: payload.unwrap_or_default(),
            },
            priority: row.try_get(8)?,
            deliver_after: row.try_get(9)?,
        });
    }
    Ok(events)
}
