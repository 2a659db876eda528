//! Reads the log for live clients, with cursors that are not stored.

use std::{sync::Arc, time::Instant};

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use sqlx::Row as _;

use super::token::Stamp;
use super::{
    connection::{Reserved, Store},
    cursor::{Cursor, Low, NOT_STORED, Window, parts},
    error::Error,
    events::NewEvent,
    live::{Forgotten, Snapshot},
    mark::Mark,
    routing::{Page, Read},
};
use crate::event::Position;

/// A lower bound that is so far behind is replaced: reading would look at all positions since.
const STALE: i64 = 10_000;
/// A snapshot in which nothing is visible: the cursor begins at its lower bound.
const SINCE_A_TIME: &str = "3:3:";
/// On which connection a gateway looks which database this is, reports, and loads channels. None of it waits
/// for a read of the log. A gateway moves no cursor.
pub(super) const UPKEEP: Reserved = Reserved::AdvanceCursor;
/// What is behind the newest part is read on a connection of its own: a gateway claims nothing.
const BEHIND: Reserved = Reserved::Claim;
/// Positions that one statement looks at, however few events it finds there.
const POSITIONS: i64 = 100_000;

/// Where a gateway is, as of one statement.
#[derive(Debug, Clone)]
pub struct Here {
    /// When it was so, by the clock of this process.
    looked: Instant,
    /// Names the database and its timeline: a cursor of another one means nothing here.
    pub database: u32,
    /// Writes and reads tokens of this database.
    pub stamp: Stamp,
    /// Time of the database.
    pub now: DateTime<Utc>,
    /// Value of `outbox.generation`.
    pub generation: i64,
    /// Behind all events that are visible now.
    pub cursor: Cursor,
}

/// A part of the log: what comes behind one cursor, up to another.
#[derive(Debug)]
pub struct Stretch {
    /// Its events in the order of positions.
    pub events: Vec<NewEvent>,
    /// Value of `outbox.generation` in the snapshot in which it was read.
    pub generation: i64,
    /// Its two ends.
    pub mark: Mark,
}

impl Store {
    /// Looks where the log ends now, and which database this is.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn look_around(&self) -> Result<Here, Error> {
        let (mut here, drawn) = self.look_at_end().await?;
        let low = here.cursor.low.as_ref().map(|low| low.position).unwrap_or_default();
        // Routing has not moved for long. The bound is not necessary, and a standby gives none.
        if drawn.0 - low.0 > STALE
            && let Ok(xid) = self.take_xid().await
        {
            here.cursor.low = Some(Low { position: drawn, xid });
        }
        Ok(here)
    }

    async fn take_xid(&self) -> Result<String, Error> {
        self.statement("bounding positions", sql!("live/take_xid")).row(|row| row.try_get(0)).await
    }

    async fn look_at_end(&self) -> Result<(Here, Position), Error> {
        self.statement("looking at the end of the log", sql!("live/look_around"))
            .on(UPKEEP)
            .row(|row| {
                let (system, oid): (i64, i64) =
                    (row.try_get("system_identifier")?, row.try_get("database_oid")?);
                let timeline: i32 = row.try_get("timeline")?;
                let low = Low { position: row.try_get("low")?, xid: row.try_get("low_xid")? };
                let database = fingerprint(system, oid, timeline);
                let key: Vec<u8> = row.try_get("token_key")?;
                let drawn = row.try_get("drawn")?;
                let here = Here {
                    looked: Instant::now(),
                    database,
                    stamp: Stamp::new(database, &key),
                    now: row.try_get("now")?,
                    generation: row.try_get("generation")?,
                    cursor: Cursor::at(row.try_get("snapshot")?, low),
                };
                Ok((here, drawn))
            })
            .await
    }

    /// Reads what is visible now and was not at the cursor: at most so many events, then what is left is a
    /// window. Large payloads are left out, or all.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_on(
        &self,
        cursor: &Arc<Cursor>,
        events: usize,
        with_payloads: bool,
        here: &Here,
    ) -> Result<Stretch, Error> {
        let page = Page { events, with_payloads, positions: POSITIONS, through_window: false };
        let read = self.read_what_is_new(cursor, page).await?;
        Ok(Stretch::new(cursor, read.unwrap_or_else(|| unreachable!("its cursor is not stored")), here))
    }

    /// Reads what is visible at `end` and was not at the cursor, page by page. `end` is a later snapshot than
    /// that of the cursor.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_until(
        &self,
        cursor: &Arc<Cursor>,
        end: &Cursor,
        events: usize,
        with_payloads: bool,
        here: &Here,
    ) -> Result<Stretch, Error> {
        let page = Page { events, with_payloads, positions: POSITIONS, through_window: true };
        let window = match cursor.window.clone() {
            Some(window) => window,
            None => Window { end: end.settled.clone(), ..self.open_window(cursor, BEHIND).await? },
        };
        let read = self.read_page(cursor, window, page, None, BEHIND).await?;
        Ok(Stretch::new(cursor, read.unwrap_or_else(|| unreachable!("its cursor is not stored")), here))
    }

    /// A cursor before the first event that was written at this time or later. Events around it may be
    /// earlier: positions follow the clock only nearly.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn cursor_since(&self, time: DateTime<Utc>) -> Result<Cursor, Error> {
        let time = time - chrono::TimeDelta::minutes(1);
        let drawn = self.drawn().await?;
        let (mut from, mut until) = (Position(0), Position(drawn.0.saturating_add(1)));
        while from < until {
            let middle = Position(from.0 + (until.0 - from.0) / 2);
            match self.peek(middle).await? {
                Some((position, written)) if position < until && written < time => {
                    from = Position(position.0 + 1);
                }
                _ => until = middle,
            }
        }
        // Below the first normal transaction id, so that no transaction counts as read.
        let low = Low { position: Position(from.0 - 1), xid: "2".to_owned() };
        Ok(Cursor::at(SINCE_A_TIME.to_owned(), low))
    }

    async fn peek(&self, position: Position) -> Result<Option<(Position, DateTime<Utc>)>, Error> {
        self.statement("looking for a time in the log", sql!("live/peek"))
            .on(BEHIND)
            .bind(position)
            .all(|rows| {
                rows.first().map(|row| Ok((row.try_get("position")?, row.try_get("created_at")?))).transpose()
            })
            .await
    }

    async fn drawn(&self) -> Result<Position, Error> {
        self.statement("looking at the end of the log", sql!("live/drawn")).row(|row| row.try_get(0)).await
    }
}

impl Stretch {
    fn new(cursor: &Arc<Cursor>, read: Read, here: &Here) -> Self {
        let last = read.events.last().map(|last| last.event.position);
        let low = here.cursor.low.clone().unwrap_or_else(Low::none);
        let mark = Mark::new(cursor.clone(), read.reached, last, low);
        Self { events: read.events, generation: read.generation, mark }
    }
}

impl Here {
    /// Time of the database now, as far as this process knows.
    #[must_use]
    pub fn time(&self) -> DateTime<Utc> {
        self.now + self.looked.elapsed()
    }
}

impl Snapshot {
    /// The cursor behind all that the snapshot shows.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor::at(self.snapshot.clone(), Low { position: self.low, xid: self.low_xid.clone() })
    }
}

impl Low {
    /// Holds for every database.
    pub(super) fn none() -> Self {
        Self { position: Position(0), xid: "0".to_owned() }
    }
}

impl Cursor {
    /// A cursor behind all that is visible in a snapshot. It is of no stored row.
    pub(super) fn at(snapshot: String, low: Low) -> Self {
        let (settled_xmax, settled_xip) = parts(&snapshot);
        Self { step: NOT_STORED, settled: snapshot, settled_xmax, settled_xip, low: Some(low), window: None }
    }

    /// A cursor for tests, behind a snapshot.
    #[cfg(test)]
    pub(crate) fn sample(snapshot: &str) -> Self {
        Self::at(snapshot.to_owned(), Low { position: Position(3), xid: "90".to_owned() })
    }

    /// Whether it is of an older state of the same database than another one. A window counts with its end.
    #[must_use]
    pub fn is_before(&self, other: &Self) -> bool {
        self.reaches() < other.reaches()
    }

    /// Whether an event that it has not passed may have been removed.
    #[must_use]
    pub fn may_lack(&self, removed: &Forgotten) -> bool {
        if self.settled == SINCE_A_TIME {
            // Positions say how far it is: events below its lower bound do not concern it.
            let passed = self.window.as_ref().map(|window| window.page_after);
            return removed.position
                > passed.or(self.low.as_ref().map(|low| low.position)).unwrap_or_default();
        }
        let Some(xid) = &removed.xid else { return false };
        let oldest = self.settled.split(':').next().unwrap_or_default();
        number(xid) >= number(oldest)
    }

    /// The first transaction id that the newest of its snapshots had not assigned.
    fn reaches(&self) -> u64 {
        match &self.window {
            Some(window) => number(&parts(&window.end).0),
            None => number(&self.settled_xmax),
        }
    }

    /// Fills in the lower bounds that a step of routing would get when it is committed.
    pub(super) fn with_low(self, low: &Low) -> Self {
        let window =
            self.window.map(|window| Window { low: window.low.or_else(|| Some(low.clone())), ..window });
        Self { step: NOT_STORED, low: self.low.or_else(|| Some(low.clone())), window, ..self }
    }
}

/// A short name of a database and its timeline.
fn fingerprint(system: i64, oid: i64, timeline: i32) -> u32 {
    let mut hash = Sha256::new();
    hash.update(system.to_le_bytes());
    hash.update(oid.to_le_bytes());
    hash.update(timeline.to_le_bytes());
    let hash = hash.finalize();
    u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])
}

fn number(xid: &str) -> u64 {
    xid.parse().unwrap_or_default()
}
