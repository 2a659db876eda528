//! A cursor as text that a client keeps: opaque, short, and the same for every relay of the database.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::cursor::{Cursor, Low, NOT_STORED, Window, parts};
use crate::event::Position;

/// The longest token, in characters. A snapshot names each transaction that was in progress.
const LONGEST: usize = 12 * 1024;
/// Bytes of a signature.
const SIGNATURE: usize = 12;

/// Writes and reads the tokens of one database.
#[derive(Clone)]
pub struct Stamp {
    /// Fingerprint of the database.
    pub database: u32,
    key: Arc<[u8]>,
}

/// Where a client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// About when the place was the end of the log, by the database's clock, to the second.
    pub at: DateTime<Utc>,
    /// The place.
    pub cursor: Cursor,
}

/// Why a text is no token that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// No gateway of this database wrote it.
    #[error("is not a token of this outbox; use the last one that you were sent, unchanged")]
    Unknown,
    /// It is of another database, or of this one before it was replaced.
    #[error("the token is of another database, or the database was set back or replaced")]
    OtherDatabase,
}

impl std::fmt::Debug for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stamp").field("database", &self.database).finish_non_exhaustive()
    }
}

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

impl Stamp {
    /// For a database, with the key of its tokens.
    #[must_use]
    pub fn new(database: u32, key: &[u8]) -> Self {
        Self { database, key: key.into() }
    }

    /// The token of a place that was the end of the log at this time.
    #[must_use]
    pub fn token(&self, at: DateTime<Utc>, cursor: &Cursor) -> String {
        let written = Written {
            format: FORMAT,
            database: self.database,
            at: at.timestamp(),
            settled: Snapshot::of(&cursor.settled),
            low: Bound::of(cursor.low.as_ref()),
            window: cursor.window.as_ref().map(Page::of),
        };
        // Nothing of it fails to be written.
        let mut bytes = postcard::to_allocvec(&written).unwrap_or_default();
        let signature = self.signature(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&signature[..SIGNATURE]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token.
    ///
    /// # Errors
    /// When it was not written by a gateway of this database.
    pub fn read(&self, text: &str) -> Result<Token, BadToken> {
        if text.len() > LONGEST {
            return Err(BadToken::Unknown);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadToken::Unknown)?;
        let (bytes, signature) =
            bytes.split_at_checked(bytes.len().saturating_sub(SIGNATURE)).ok_or(BadToken::Unknown)?;
        let (written, rest) = postcard::take_from_bytes::<Written>(bytes).map_err(|_| BadToken::Unknown)?;
        if written.format != FORMAT || !rest.is_empty() {
            return Err(BadToken::Unknown);
        }
        if written.database != self.database {
            return Err(BadToken::OtherDatabase);
        }
        self.signature(bytes).verify_truncated_left(signature).map_err(|_| BadToken::Unknown)?;
        let window = written.window.map(Page::read).transpose()?;
        let settled = written.settled.read()?;
        let (settled_xmax, settled_xip) = parts(&settled);
        let low = Some(written.low.read());
        Ok(Token {
            at: DateTime::from_timestamp(written.at, 0).ok_or(BadToken::Unknown)?,
            cursor: Cursor { step: NOT_STORED, settled, settled_xmax, settled_xip, low, window },
        })
    }

    fn signature(&self, bytes: &[u8]) -> Hmac<Sha256> {
        let mut signature =
            Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of every length");
        signature.update(bytes);
        signature
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
            low: Some(self.low.read()),
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
            let xid = self
                .xmax
                .checked_sub(*below)
                .filter(|xid| *below > 0 && *xid > 0)
                .ok_or(BadToken::Unknown)?;
            // PostgreSQL writes and reads them in ascending order.
            if open.last().is_some_and(|last| *last >= xid) {
                return Err(BadToken::Unknown);
            }
            open.push(xid);
        }
        if self.xmax == 0 || i64::try_from(self.xmax).is_err() {
            return Err(BadToken::Unknown);
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

    fn read(&self) -> Low {
        Low { position: Position(self.position), xid: self.xid.to_string() }
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
            let at = DateTime::from_timestamp(at, 0).unwrap();
            let (stamp, other) = (Stamp::new(7, b"key"), Stamp::new(7, b"another key"));
            let text = stamp.token(at, &cursor);
            prop_assert_eq!(other.read(&text), Err(BadToken::Unknown));
            prop_assert_eq!(Stamp::new(8, b"key").read(&text), Err(BadToken::OtherDatabase));
            prop_assert_eq!(stamp.read(&text), Ok(Token { at, cursor }));
        }

        #[test]
        fn what_is_no_token_is_refused(text in "[A-Za-z0-9_-]{0,80}|.{0,20}") {
            prop_assert!(Stamp::new(7, b"key").read(&text).is_err());
        }
    }

    #[test]
    fn a_token_of_an_idle_database_is_short() {
        let low = Low { position: Position(123_456_789), xid: "98765432".to_owned() };
        let cursor = Cursor::at("98765431:98765433:98765431".to_owned(), low);
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let token = Stamp::new(u32::MAX, b"key").token(at, &cursor);
        assert!(token.len() <= 56, "{token}");
    }
}
