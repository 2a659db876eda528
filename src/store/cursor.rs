//! The routing cursor: the snapshot up to which every event is routed, and the window of newer events that is
//! routed page by page.

use serde::{Deserialize, Serialize};
use sqlx::{Row as _, postgres::PgRow};

use super::{
    connection::{Reserved, Store},
    error::Error,
};
use crate::event::Position;

/// A place in the log: the row of `outbox.cursor` as this relay read or wrote it last, or that of a live
/// client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Number of routing steps so far; [`NOT_STORED`] for a cursor that is no row.
    pub(super) step: i64,
    /// Snapshot; every event visible in it is routed.
    pub(super) settled: String,
    /// End of that snapshot: the first transaction id that it does not know.
    pub(super) settled_xmax: String,
    /// Ids of the transactions that were in progress in that snapshot.
    pub(super) settled_xip: Vec<String>,
    /// Lower bound of the positions of newer transactions; none until the step that sets it is committed.
    pub(super) low: Option<Low>,
    /// The window that is being routed.
    pub(super) window: Option<Window>,
}

/// The step of a cursor that is no row of `outbox.cursor`.
pub(super) const NOT_STORED: i64 = -1;

/// A lower bound: events of transactions with a higher id than `xid` have higher positions than `position`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Low {
    pub(super) position: Position,
    pub(super) xid: String,
}

/// New events that do not fit one page: those visible in the snapshot `end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    pub(super) end: String,
    /// The cursor's `low` after the window; none until the step that opens the window is committed.
    pub(super) low: Option<Low>,
    /// Position up to which the window is routed.
    pub(super) page_after: Position,
    /// No event of the window has a higher position.
    pub(super) page_until: Position,
}

/// Which part of the new events was read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Reached {
    /// Every event visible in this snapshot.
    Everything { snapshot: String },
    /// A page of a window: all its events up to the position `upto`; `last` when it is the last page.
    Page { window: Window, upto: Position, last: bool },
}

/// How far a step moves the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// Past all events that were read.
    All,
    /// Up to this position; the next step reads the events behind it again.
    UpTo(Position),
}

impl Store {
    /// Reads the cursor. `known_step` is a step that was seen before, or 0.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_cursor(&self, known_step: i64) -> Result<Cursor, Error> {
        let cursor = self
            .statement("loading the cursor", sql!("relay/load_cursor"))
            .on(Reserved::ReadEvents)
            .bind(known_step)
            .row(read_cursor)
            .await?;
        self.guard.saw_step(cursor.step);
        Ok(cursor)
    }
}

impl Cursor {
    /// Whether new events are being routed page by page.
    #[must_use]
    pub fn has_window(&self) -> bool {
        self.window.is_some()
    }

    /// The snapshot, as text, whose events are all behind it.
    #[must_use]
    pub fn snapshot(&self) -> &str {
        &self.settled
    }

    /// Whether both are the same place in the log.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        let page =
            |cursor: &Self| cursor.window.as_ref().map(|window| (window.end.clone(), window.page_after));
        self.settled == other.settled && page(self) == page(other)
    }

    /// The step that the stored cursor must still have; none for a cursor that is not stored.
    pub(super) fn stored_step(&self) -> Option<i64> {
        (self.step != NOT_STORED).then_some(self.step)
    }

    /// The cursor after a step; `last` is the position of the last event that was read. Its new lower bounds
    /// are filled in when the step is committed.
    pub(super) fn next(&self, reached: &Reached, last: Option<Position>, advance: Advance) -> Self {
        let here = self.low.clone();
        let (settled, low, window) = match (reached, advance) {
            (Reached::Everything { snapshot }, Advance::All) => (Some(snapshot), None, None),
            (Reached::Everything { snapshot }, Advance::UpTo(position)) => {
                // All new events were read, but not all were routed. The others become a window.
                let page_until = last.unwrap_or(position);
                (
                    None,
                    here,
                    Some(Window { end: snapshot.clone(), low: None, page_after: position, page_until }),
                )
            }
            (Reached::Page { window, last: true, .. }, Advance::All) => {
                (Some(&window.end), window.low.clone(), None)
            }
            (Reached::Page { window, upto, last: false }, Advance::All) => {
                (None, here, Some(Window { page_after: *upto, ..window.clone() }))
            }
            (Reached::Page { window, .. }, Advance::UpTo(position)) => {
                (None, here, Some(Window { page_after: position, ..window.clone() }))
            }
        };
        let (settled_xmax, settled_xip) = match settled {
            Some(snapshot) => parts(snapshot),
            None => (self.settled_xmax.clone(), self.settled_xip.clone()),
        };
        Self {
            step: self.step + 1,
            settled: settled.unwrap_or(&self.settled).clone(),
            settled_xmax,
            settled_xip,
            low,
            window,
        }
    }
}

/// The end of a snapshot `xmin:xmax:xip,xip` and the transactions in progress in it.
pub(super) fn parts(snapshot: &str) -> (String, Vec<String>) {
    let mut parts = snapshot.splitn(3, ':').skip(1);
    let xmax = parts.next().unwrap_or_default().to_owned();
    let xip = parts
        .next()
        .unwrap_or_default()
        .split(',')
        .filter(|xid| !xid.is_empty())
        .map(ToOwned::to_owned)
        .collect();
    (xmax, xip)
}

fn read_cursor(row: &PgRow) -> Result<Cursor, sqlx::Error> {
    let window = match row.try_get::<Option<String>, _>("window_end")? {
        Some(end) => Some(Window {
            end,
            low: Some(Low { position: row.try_get("window_low")?, xid: row.try_get("window_low_xid")? }),
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
        low: Some(Low { position: row.try_get("low")?, xid: row.try_get("low_xid")? }),
        window,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_taken_apart() {
        assert_eq!(
            parts("10:20:10,14,15"),
            ("20".to_owned(), vec!["10".to_owned(), "14".to_owned(), "15".to_owned()])
        );
        assert_eq!(parts("773:773:"), ("773".to_owned(), Vec::new()));
    }
}
