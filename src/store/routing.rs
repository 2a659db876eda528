//! One routing step: events are read, then one statement moves the cursor and writes the deliveries. Nothing
//! is locked in between: when another relay was faster, the second statement does nothing.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    connection::{Pin, Reserved, Store},
    cursor::{Advance, Cursor, Low, Reached, Window},
    error::Error,
    events::{NewEvent, read_new_events},
    statement::first,
};
use crate::{
    delivery::{PageId, SubscriptionId, ranges::Ranges},
    event::Position,
};

/// What a step asks for.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// How many events at most.
    pub events: usize,
    /// Whether payloads are wanted.
    pub with_payloads: bool,
    /// How many positions one statement looks at, however few events it finds there.
    pub positions: i64,
    /// Whether new events are read through a window at once, because a statement that looks for all of them
    /// took too long.
    pub through_window: bool,
}

/// What a step read.
#[derive(Debug)]
pub struct Read {
    /// New events in the order of positions.
    pub events: Vec<NewEvent>,
    /// Value of `outbox.generation` in the snapshot in which the events were read.
    pub generation: i64,
    /// Time of the newest pause that a destination asked for, in that snapshot.
    pub newest_pause: Option<DateTime<Utc>>,
    /// Whether reading was slow although all new events fit one page. The cursor should then move past the
    /// rows that were in the way.
    pub was_slow: bool,
    pub(super) reached: Reached,
    /// Highest position that was drawn from the sequence before the events were read.
    drawn: Position,
    /// The connection that was open when they were read and on which the cursor is moved. None with a pooler.
    pin: Option<Pin>,
}

/// A new row of `outbox.deliveries`, for an event that has a due time of its own.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// Position of the event.
    pub position: Position,
    /// Time of the event.
    pub created_at: DateTime<Utc>,
    /// Subscription id.
    pub subscription: SubscriptionId,
    /// Earliest time of the first attempt.
    pub deliver_after: Option<DateTime<Utc>>,
    /// Priority of the event.
    pub priority: i32,
}

/// A page that this relay leases and delivers now.
#[derive(Debug, Clone, Default)]
pub struct NewPage {
    /// Ids of subscriptions in ascending order, and the positions for each.
    pub entries: Vec<(SubscriptionId, Ranges)>,
}

/// What one step writes.
#[derive(Debug, Default)]
pub struct Routed {
    /// Pages that this relay delivers now.
    pub pages: Vec<NewPage>,
    /// New rows of `outbox.backlog`: subscription ids and positions.
    pub waiting: Vec<(SubscriptionId, Ranges)>,
    /// New rows of `outbox.deliveries`.
    pub timed: Vec<NewDelivery>,
}

/// A read that takes longer probably met many index entries of rows it may not see.
const SLOW_READ: Duration = Duration::from_millis(50);

impl Store {
    /// Reads a page of new events; when there are more, they become a window and its first page is read.
    /// Returns none when another relay has moved the cursor.
    ///
    /// A server that crashes may forget what was committed asynchronously, and give the ids of those
    /// transactions and the positions of their events to others. So the connection that moves the cursor is
    /// opened before: what was read is written by a server that has not crashed since, or not at all.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_events(&self, cursor: &Cursor, page: Page) -> Result<Option<Read>, Error> {
        let pin = self.pin(Reserved::AdvanceCursor).await?;
        let read = self.read_what_is_new(cursor, page).await?;
        Ok(read.map(|read| Read { pin, ..read }))
    }

    /// As [`Store::read_events`], for one who moves no cursor.
    pub(super) async fn read_what_is_new(&self, cursor: &Cursor, page: Page) -> Result<Option<Read>, Error> {
        let started = Instant::now();
        let window = match cursor.window.clone() {
            Some(window) => window,
            None if page.through_window => self.open_window(cursor, Reserved::ReadEvents).await?,
            None => {
                let limit = page.limit();
                let Some(mut read) = self.read_new(cursor, limit + 1, page.with_payloads).await? else {
                    return Ok(None);
                };
                if i64::try_from(read.events.len()).unwrap_or(i64::MAX) <= limit {
                    read.was_slow = started.elapsed() > SLOW_READ;
                    return Ok(Some(read));
                }
                self.open_window(cursor, Reserved::ReadEvents).await?
            }
        };
        self.read_page(cursor, window, page, cursor.stored_step(), Reserved::ReadEvents).await
    }

    async fn read_new(
        &self,
        cursor: &Cursor,
        limit: i64,
        with_payloads: bool,
    ) -> Result<Option<Read>, Error> {
        self.statement("reading new events", sql!("relay/read_events"))
            .on(Reserved::ReadEvents)
            .bind(&cursor.settled_xmax)
            .bind(&cursor.settled_xip)
            .bind(limit)
            .bind(with_payloads)
            .bind(cursor.step)
            .all(|rows| {
                let snapshot = first(rows)?.try_get("snapshot")?;
                read_rows(rows, cursor.stored_step(), Reached::Everything { snapshot })
            })
            .await
    }

    pub(super) async fn open_window(&self, cursor: &Cursor, on: Reserved) -> Result<Window, Error> {
        let low = cursor.low.as_ref();
        self.statement("opening a window", sql!("relay/open_window"))
            .on(on)
            .bind(low.map(|low| low.position))
            .bind(&cursor.settled_xip)
            .bind(&cursor.settled_xmax)
            .bind(low.map(|low| &low.xid))
            .row(|row| {
                Ok(Window {
                    end: row.try_get("window_end")?,
                    low: None,
                    page_after: row.try_get("page_after")?,
                    page_until: row.try_get("page_until")?,
                })
            })
            .await
    }

    /// Reads a page of a window. Returns none when the cursor is no longer at `expected_step`.
    pub(super) async fn read_page(
        &self,
        cursor: &Cursor,
        window: Window,
        page: Page,
        expected_step: Option<i64>,
        on: Reserved,
    ) -> Result<Option<Read>, Error> {
        let low = cursor.low.as_ref();
        // Below `low` only what committed late is looked at.
        let from = low.map_or(window.page_after, |low| low.position.max(window.page_after));
        let until = window.page_until.min(Position(from.0.saturating_add(page.positions)));
        self.statement("reading a page of events", sql!("relay/read_page"))
            .on(on)
            .bind(&cursor.settled)
            .bind(&window.end)
            .bind(window.page_after)
            .bind(until)
            .bind(page.limit())
            .bind(page.with_payloads)
            .bind(expected_step.unwrap_or(0))
            .bind(low.map(|low| low.position))
            .bind(&cursor.settled_xip)
            .bind(&cursor.settled_xmax)
            .bind(low.map(|low| &low.xid))
            .all(|rows| {
                let last = until == window.page_until;
                let mut read = read_rows(rows, expected_step, Reached::Page { window, upto: until, last })?;
                if let Some(Read { events, reached: Reached::Page { upto, last, .. }, .. }) = &mut read
                    && events.len() >= page.events.max(1)
                {
                    // There may be as many above `low` as below.
                    events.truncate(page.events.max(1));
                    *last = false;
                    *upto = events.last().map_or(until, |last| last.event.position);
                }
                Ok(read)
            })
            .await
    }

    /// Reads the next page of a window while the step before it is committed. The page lies between fixed
    /// positions and snapshots, so it does not depend on whether the step succeeds. Returns none when there
    /// is no next page.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_ahead(
        &self,
        cursor: &Cursor,
        read: &Read,
        advance: Advance,
        page: Page,
    ) -> Result<Option<Read>, Error> {
        let next = cursor.next(&read.reached, read.last(), advance);
        let Some(window) = next.window.clone() else { return Ok(None) };
        let ahead = self.read_page(&next, window, page, None, Reserved::ReadEvents).await?;
        // What a window holds was committed before the step that opened it, and is on the disk with that.
        Ok(ahead.map(|ahead| Read { pin: read.pin, ..ahead }))
    }

    /// Moves the cursor and writes what was routed. Returns the cursor as it is now, the ids of the pages in
    /// their order, and since when their events are owed; none when another relay has moved the cursor: then
    /// nothing was written.
    ///
    /// # Errors
    /// Those of the database. The step may be committed nevertheless: its leases then end by themselves.
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
        starting: &[SubscriptionId],
    ) -> Result<Option<(Cursor, Vec<PageId>, DateTime<Utc>)>, Error> {
        let mut next = cursor.next(&read.reached, read.last(), advance);
        let low = next.low.clone();
        let window = next.window.clone();
        let window_low = window.as_ref().and_then(|window| window.low.clone());
        // Each entry with the number of its page.
        let entries: Vec<(i32, &(SubscriptionId, Ranges))> = (0..)
            .zip(&routed.pages)
            .flat_map(|(number, page)| page.entries.iter().map(move |entry| (number, entry)))
            .collect();
        let until = match advance {
            Advance::All => Position(i64::MAX),
            Advance::UpTo(position) => position,
        };
        let passed: Vec<Position> = (read.events.iter())
            .filter(|new| new.routed_early && new.event.position <= until)
            .map(|new| new.event.position)
            .collect();
        let times = || read.events.iter().map(|new| new.event.created_at);
        let Routed { waiting, timed, pages } = routed;
        let step = next.step;
        let advanced = self
            .statement("committing a routing step", sql!("relay/advance_cursor"))
            .on(Reserved::AdvanceCursor)
            .pinned(read.pin)
            .bind(cursor.step)
            .bind(&next.settled)
            .bind(low.as_ref().map(|low| low.position))
            .bind(window.as_ref().map(|window| &window.end))
            .bind(window_low.as_ref().map(|low| low.position))
            .bind(window.as_ref().map(|window| window.page_after))
            .bind(window.as_ref().map(|window| window.page_until))
            .bind_each(&entries, |(number, _)| *number)
            .bind_each(&entries, |(_, entry)| entry.0)
            .bind_each(&entries, |(_, entry)| entry.1.to_string())
            .bind(token)
            .bind(lease.as_secs_f64())
            .bind(self.relay())
            .bind_each(waiting, |(subscription, _)| *subscription)
            .bind_each(waiting, |(_, positions)| positions.to_string())
            .bind(times().min())
            .bind(times().max())
            .bind(read.drawn)
            .bind(low.map(|low| low.xid))
            .bind(window_low.map(|low| low.xid))
            .bind(starting)
            .bind_each(timed, |new| new.position)
            .bind_each(timed, |new| new.created_at)
            .bind_each(timed, |new| new.subscription)
            .bind_each(timed, |new| new.deliver_after)
            .bind_each(timed, |new| new.priority)
            .bind(passed)
            .all(|rows| {
                let Some(row) = rows.first() else { return Ok(None) };
                next.low = Some(Low { position: row.try_get("low")?, xid: row.try_get("low_xid")? });
                if let Some(window) = &mut next.window {
                    let (position, xid) = (row.try_get("window_low")?, row.try_get("window_low_xid")?);
                    window.low = Some(Low { position, xid });
                }
                let mut ids = Vec::with_capacity(rows.len());
                for row in rows {
                    ids.extend(row.try_get::<Option<PageId>, _>("id")?);
                }
                // Ids are drawn in the order of the pages.
                ids.sort_unstable();
                if ids.len() != pages.len() {
                    return Err(sqlx::Error::Protocol("a page of a routing step is missing".to_owned()));
                }
                Ok(Some((next, ids, row.try_get("owed_since")?)))
            })
            .await?;
        if advanced.is_some() {
            self.guard.saw_step(step);
        }
        Ok(advanced)
    }
}

impl Read {
    /// Position of the last event that was read.
    fn last(&self) -> Option<Position> {
        self.events.last().map(|last| last.event.position)
    }

    /// Whether more events are known to wait behind those that were read.
    #[must_use]
    pub fn has_more(&self) -> bool {
        matches!(self.reached, Reached::Page { last: false, .. })
    }

    /// Whether this was a page of a window. The cursor must then move even if the page is empty.
    #[must_use]
    pub fn is_of_window(&self) -> bool {
        matches!(self.reached, Reached::Page { .. })
    }
}

impl Page {
    /// Number of events to read, for a statement.
    fn limit(self) -> i64 {
        i64::try_from(self.events).unwrap_or(i64::MAX).max(1)
    }
}

/// Reads the rows of `read_events.sql` and `read_page.sql`. Returns none when the cursor is no longer at
/// `expected_step`.
fn read_rows(
    rows: &[PgRow],
    expected_step: Option<i64>,
    reached: Reached,
) -> Result<Option<Read>, sqlx::Error> {
    let row = first(rows)?;
    if expected_step.is_some() && row.try_get::<Option<i64>, _>("step")? != expected_step {
        return Ok(None);
    }
    let mut events = read_new_events(rows)?;
    if events.iter().any(|new| new.priority > 0) {
        for (row, new) in rows.iter().zip(&mut events) {
            new.routed_early = row.try_get::<Option<bool>, _>("routed_early")?.unwrap_or(false);
        }
    }
    events.sort_unstable_by_key(|new| new.event.position);
    Ok(Some(Read {
        events,
        generation: row.try_get("generation")?,
        newest_pause: row.try_get("newest_pause")?,
        was_slow: false,
        reached,
        drawn: row.try_get("drawn")?,
        pin: None,
    }))
}
