//! A cursor as text that a client keeps: opaque, short, and the same for every relay of the database.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::cursor::{Cursor, Low, NOT_STORED, Window, parts};
use crate::event::Position;

/// The longest token, in characters. A snapshot names each transaction that was in progress.
const LONGEST: usize = 12 * 1024;
/// Most transactions between a snapshot and the lower bound of its positions. A token is not signed, and
/// each of them is looked at.
const FURTHEST: u64 = 1_000_000;

/// Where a client is, and in which database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Fingerprint of the database.
    pub database: u32,
    /// When the place was the end of the log, by the database's clock, to the second.
    pub at: DateTime<Utc>,
    /// The place.
    pub cursor: Cursor,
}

/// Text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a token of this outbox; use the last one that you were sent, unchanged")]
pub struct BadToken;

/// What is written. The place in a page comes last, so that the tokens of a page have the same beginning.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    format: u8,
    database: u32,
    /// Seconds since 1970.
    at: i64,
    settled: Snapshot,
    low: Bound,
    window: Option<Page>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Page {
    end: Snapshot,
    low: Bound,
    until: i64,
    after: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Snapshot {
    xmax: u64,
    /// How far below `xmax` each transaction in progress is.
    in_progress: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Bound {
    position: i64,
    xid: u64,
}

/// The format that is written and read.
const FORMAT: u8 = 1;

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// When it was not written by [`Token::to_string`], of this or another process.
    pub fn parse(text: &str) -> Result<Self, BadToken> {
        if text.len() > LONGEST {
            return Err(BadToken);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadToken)?;
        let (written, rest) = postcard::take_from_bytes::<Written>(&bytes).map_err(|_| BadToken)?;
        if written.format != FORMAT || !rest.is_empty() {
            return Err(BadToken);
        }
        let window = written.window.map(Page::read).transpose()?;
        let settled = written.settled.read()?;
        let (settled_xmax, settled_xip) = parts(&settled);
        let low = written.low.read(written.settled.xmax)?;
        Ok(Self {
            database: written.database,
            at: DateTime::from_timestamp(written.at, 0).ok_or(BadToken)?,
            cursor: Cursor { step: NOT_STORED, settled, settled_xmax, settled_xip, low: Some(low), window },
        })
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let written = Written {
            format: FORMAT,
            database: self.database,
            at: self.at.timestamp(),
            settled: Snapshot::of(&self.cursor.settled),
            low: Bound::of(self.cursor.low.as_ref()),
            window: self.cursor.window.as_ref().map(Page::of),
        };
        let bytes = postcard::to_allocvec(&written).map_err(|_| std::fmt::Error)?;
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl Page {
    fn of(window: &Window) -> Self {
        Self {
            end: Snapshot::of(&window.end),
            low: Bound::of(window.low.as_ref()),
            until: window.page_until.0,
            after: window.page_after.0,
        }
    }

    fn read(self) -> Result<Window, BadToken> {
        Ok(Window {
            end: self.end.read()?,
            low: Some(self.low.read(self.end.xmax)?),
            page_after: Position(self.after),
            page_until: Position(self.until),
        })
    }
}

impl Snapshot {
    fn of(text: &str) -> Self {
        let (xmax, in_progress) = parts(text);
        let xmax = xmax.parse().unwrap_or_default();
        let below = |xid: &String| xmax - xid.parse::<u64>().unwrap_or_default().min(xmax);
        Self { xmax, in_progress: in_progress.iter().map(below).collect() }
    }

    fn read(&self) -> Result<String, BadToken> {
        let mut open = Vec::with_capacity(self.in_progress.len());
        for below in &self.in_progress {
            let xid = self.xmax.checked_sub(*below).filter(|xid| *below > 0 && *xid > 0).ok_or(BadToken)?;
            // PostgreSQL writes and reads them in ascending order.
            if open.last().is_some_and(|last| *last >= xid) {
                return Err(BadToken);
            }
            open.push(xid);
        }
        if self.xmax == 0 || i64::try_from(self.xmax).is_err() {
            return Err(BadToken);
        }
        let xmin = open.first().copied().unwrap_or(self.xmax);
        let open = open.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        Ok(format!("{xmin}:{}:{open}", self.xmax))
    }
}

impl Bound {
    fn of(low: Option<&Low>) -> Self {
        Self {
            position: low.map_or(0, |low| low.position.0),
            xid: low.and_then(|low| low.xid.parse().ok()).unwrap_or_default(),
        }
    }

    fn read(&self, xmax: u64) -> Result<Low, BadToken> {
        if self.xid.saturating_sub(xmax) > FURTHEST {
            return Err(BadToken);
        }
        Ok(Low { position: Position(self.position), xid: self.xid.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn low() -> impl Strategy<Value = Low> {
        (0..i64::MAX, 0_u64..2_000)
            .prop_map(|(position, xid)| Low { position: Position(position), xid: xid.to_string() })
    }

    fn snapshot() -> impl Strategy<Value = String> {
        (2_000_u64..1 << 60, proptest::collection::btree_set(1_u64..1_900, 0..40)).prop_map(
            |(xmax, below)| {
                let open: Vec<u64> = below.iter().rev().map(|below| xmax - below).collect();
                let xmin = open.first().copied().unwrap_or(xmax);
                let open = open.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
                format!("{xmin}:{xmax}:{open}")
            },
        )
    }

    fn window() -> impl Strategy<Value = Option<Window>> {
        let window = (snapshot(), low(), 0..i64::MAX, 0..i64::MAX).prop_map(|(end, low, after, until)| {
            Window { end, low: Some(low), page_after: Position(after), page_until: Position(until) }
        });
        proptest::option::of(window)
    }

    proptest! {
        #[test]
        fn a_token_gives_back_its_cursor(
            settled in snapshot(), low in low(), window in window(), at in 0_i64..1 << 33,
        ) {
            let (settled_xmax, settled_xip) = parts(&settled);
            let cursor =
                Cursor { step: NOT_STORED, settled, settled_xmax, settled_xip, low: Some(low), window };
            let token = Token { database: 7, at: DateTime::from_timestamp(at, 0).unwrap(), cursor };
            prop_assert_eq!(Token::parse(&token.to_string()), Ok(token));
        }

        #[test]
        fn what_is_no_token_is_refused_and_nothing_else_happens(text in "[A-Za-z0-9_-]{0,80}|.{0,20}") {
            if let Ok(token) = Token::parse(&text) {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }

    #[test]
    fn a_token_of_an_idle_database_is_short() {
        let low = Low { position: Position(123_456_789), xid: "98765432".to_owned() };
        let cursor = Cursor::at("98765431:98765433:98765431".to_owned(), low);
        let token =
            Token { database: u32::MAX, at: DateTime::from_timestamp(1_800_000_000, 0).unwrap(), cursor };
        assert!(token.to_string().len() <= 40, "{token}");
    }
}
