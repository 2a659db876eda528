//! One routing step: events are read, and then the cursor is moved and their deliveries inserted in one statement. Nothing
//! is locked in between; a relay that was overtaken learns it from the second statement, which then does nothing.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    connection::{Slot, Store},
    cursor::{Cursor, Low, Window},
    error::Error,
};
use crate::{delivery::ranges::Ranges, event::Event};

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
    pub(super) reached: Reached,
    /// Drawn by the time of reading.
    drawn: i64,
}

#[derive(Debug, Clone)]
pub(super) enum Reached {
    /// Everything visible in this snapshot.
    Everything { snapshot: String },
    /// A page of a window; `last` when there is no further one.
    Page { window: Window, last: bool },
}

/// A row for `outbox.deliveries`: what has a due time of its own.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// The event's position.
    pub position: i64,
    /// The event's time.
    pub created_at: DateTime<Utc>,
    /// To whom.
    pub subscription: i64,
    /// Not before.
    pub deliver_after: Option<DateTime<Utc>>,
    /// The event's priority.
    pub priority: i32,
}

/// A page that this relay delivers at once.
#[derive(Debug, Clone, Default)]
pub struct NewPage {
    /// Subscriptions, ascending, and what each is owed.
    pub entries: Vec<(i64, Ranges)>,
}

/// What one step writes.
#[derive(Debug, Default)]
pub struct Routed {
    /// Delivered by this relay at once.
    pub pages: Vec<NewPage>,
    /// What waits as a whole: for whom, and what.
    pub waiting: Vec<(i64, Ranges)>,
    /// What has a due time of its own.
    pub timed: Vec<NewDelivery>,
}

/// How far a step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// All that was read is routed.
    All,
    /// Routed up to this position; the rest stays in the log for the next step.
    UpTo(i64),
}

/// A read that takes longer than this has met many rows it may not see.
const SLOW_READ: Duration = Duration::from_millis(50);

impl Store {
    /// Reads at most `limit` new events, opening a window when there are more. `None`: another relay has moved the cursor.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_events(
        &self,
        cursor: &Cursor,
        limit: usize,
        with_payloads: bool,
    ) -> Result<Option<Read>, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX).max(1);
        let started = Instant::now();
        let window = match cursor.window.clone() {
            Some(window) => window,
            None => {
                let Some(mut read) = self.read_new(cursor, limit + 1, with_payloads).await? else {
                    return Ok(None);
                };
                if i64::try_from(read.events.len()).unwrap_or(i64::MAX) <= limit {
                    read.events.sort_unstable_by_key(|new| new.event.position);
                    read.was_slow = started.elapsed() > SLOW_READ;
                    return Ok(Some(read));
                }
                self.open_window(cursor).await?
            }
        };
        self.read_page(cursor, window, limit, with_payloads).await
    }

    async fn read_new(
        &self,
        cursor: &Cursor,
        limit: i64,
        with_payloads: bool,
    ) -> Result<Option<Read>, Error> {
        self.limited("reading new events", async {
            let mut session = self.session(Slot::Read).await?;
            let rows = sqlx::query(sql!("relay/read_events"))
                .bind(&cursor.settled_xmax)
                .bind(&cursor.settled_xip)
                .bind(limit)
                .bind(with_payloads)
                .bind(cursor.step)
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let reached = Reached::Everything { snapshot: first.try_get(0)? };
            read_rows(&rows, Some(cursor.step), reached)
        })
        .await
    }

    async fn open_window(&self, cursor: &Cursor) -> Result<Window, Error> {
        self.limited("opening a window", async {
            let mut session = self.session(Slot::Read).await?;
            let row = sqlx::query(sql!("relay/open_window"))
                .bind(cursor.low.as_ref().map(|low| low.position))
                .bind(&cursor.settled_xip)
                .bind(&cursor.settled_xmax)
                .bind(cursor.low.as_ref().map(|low| &low.xid))
                .persistent(self.is_persistent())
                .fetch_one(session.connection())
                .await?;
            session.finish().await?;
            Ok(Window {
                end: row.try_get("window_end")?,
                low: None,
                page_after: row.try_get("page_after")?,
                page_until: row.try_get("page_until")?,
            })
        })
        .await
    }

    async fn read_page(
        &self,
        cursor: &Cursor,
        window: Window,
        limit: i64,
        with_payloads: bool,
    ) -> Result<Option<Read>, Error> {
        self.page_of(cursor, window, limit, with_payloads, true).await
    }

    /// `checks`: only if the cursor is still where it was.
    async fn page_of(
        &self,
        cursor: &Cursor,
        window: Window,
        limit: i64,
        with_payloads: bool,
        checks: bool,
    ) -> Result<Option<Read>, Error> {
        self.limited("reading a page of events", async {
            let mut session = self.session(Slot::Read).await?;
            let rows = sqlx::query(sql!("relay/read_page"))
                .bind(&cursor.settled)
                .bind(&window.end)
                .bind(window.page_after)
                .bind(window.page_until)
                .bind(limit)
                .bind(with_payloads)
                .bind(if checks { cursor.step } else { 0 })
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            let mut read =
                read_rows(&rows, checks.then_some(cursor.step), Reached::Page { window, last: false })?;
            if let Some(Read { events, reached: Reached::Page { last, .. }, .. }) = &mut read {
                *last = i64::try_from(events.len()).unwrap_or(i64::MAX) < limit;
            }
            Ok(read)
        })
        .await
    }

    /// The page of a window that follows a step, read while that step is being committed: it lies between fixed positions and
    /// snapshots, so it does not depend on whether the step succeeds. `None`: there is no window behind it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_ahead(
        &self,
        cursor: &Cursor,
        read: &Read,
        advance: Advance,
        limit: usize,
        with_payloads: bool,
    ) -> Result<Option<Read>, Error> {
        let next = cursor.next(read, advance);
        let Some(window) = next.window.clone() else { return Ok(None) };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX).max(1);
        self.page_of(&next, window, limit, with_payloads, false).await
    }

    /// Moves the cursor and records what was matched. Returns where routing stands now and the ids of the pages, in their order;
    /// `None` when another relay had moved the cursor: then nothing was done.
    ///
    /// # Errors
    /// Those of the database. Whether it was done may then be unknown: its leases, if any, run out by themselves.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are what one statement takes; a type for them would be used once"
    )]
    pub async fn advance_cursor(
        &self,
        cursor: &Cursor,
        read: &Read,
        advance: Advance,
        routed: &Routed,
        token: Uuid,
        lease: Duration,
        starting: &[i64],
    ) -> Result<Option<(Cursor, Vec<i64>)>, Error> {
        let mut next = cursor.next(read, advance);
        let low = next.low.clone();
        let window = next.window.clone();
        let window_low = window.as_ref().and_then(|window| window.low.clone());
        let entries = || {
            (0i32..)
                .zip(&routed.pages)
                .flat_map(|(number, page)| page.entries.iter().map(move |entry| (number, entry)))
        };
        let times = || read.events.iter().map(|new| new.event.created_at);
        self.limited("committing a routing step", async {
            let mut session = self.session(Slot::Work).await?;
            let rows = sqlx::query(sql!("relay/advance_cursor"))
                .bind(cursor.step)
                .bind(&next.settled)
                .bind(low.as_ref().map(|low| low.position))
                .bind(window.as_ref().map(|window| &window.end))
                .bind(window_low.as_ref().map(|low| low.position))
                .bind(window.as_ref().map(|window| window.page_after))
                .bind(window.as_ref().map(|window| window.page_until))
                .bind(entries().map(|(number, _)| number).collect::<Vec<_>>())
                .bind(entries().map(|(_, entry)| entry.0).collect::<Vec<_>>())
                .bind(entries().map(|(_, entry)| entry.1.to_string()).collect::<Vec<_>>())
                .bind(token)
                .bind(lease.as_secs_f64())
                .bind(self.relay())
                .bind(routed.waiting.iter().map(|entry| entry.0).collect::<Vec<_>>())
                .bind(routed.waiting.iter().map(|entry| entry.1.to_string()).collect::<Vec<_>>())
                .bind(times().min())
                .bind(times().max())
                .bind(read.drawn)
                .bind(low.map(|low| low.xid))
                .bind(window_low.map(|low| low.xid))
                .bind(starting)
                .bind(routed.timed.iter().map(|new| new.position).collect::<Vec<_>>())
                .bind(routed.timed.iter().map(|new| new.created_at).collect::<Vec<_>>())
                .bind(routed.timed.iter().map(|new| new.subscription).collect::<Vec<_>>())
                .bind(routed.timed.iter().map(|new| new.deliver_after).collect::<Vec<_>>())
                .bind(routed.timed.iter().map(|new| new.priority).collect::<Vec<_>>())
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            let Some(first) = rows.first() else { return Ok(None) };
            next.low = Some(Low { position: first.try_get(1)?, xid: first.try_get(2)? });
            if let Some(window) = &mut next.window {
                window.low = Some(Low { position: first.try_get(3)?, xid: first.try_get(4)? });
            }
            let mut pages = Vec::with_capacity(rows.len());
            for row in &rows {
                pages.extend(row.try_get::<Option<i64>, _>(0)?);
            }
            // Ids are drawn in the order of the pages.
            pages.sort_unstable();
            if pages.len() != routed.pages.len() {
                return Err(sqlx::Error::Protocol("a page of a routing step is missing".to_owned()));
            }
            Ok(Some((next, pages)))
        })
        .await
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

/// What a statement read, or `None` when the cursor had moved by then. By place, not by name: this is the busiest loop of the
/// relay. The order is that of `read_events.sql` and `read_page.sql`.
fn read_rows(rows: &[PgRow], step: Option<i64>, reached: Reached) -> Result<Option<Read>, sqlx::Error> {
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    if step.is_some() && first.try_get::<Option<i64>, _>(15)? != step {
        return Ok(None);
    }
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        // A row without an event carries only what every row carries.
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
    Ok(Some(Read {
        events,
        generation: first.try_get(1)?,
        was_slow: false,
        reached,
        drawn: first.try_get(16)?,
    }))
}
