//! Where a subscription of a client begins.

use std::{collections::VecDeque, sync::Arc};

use chrono::{DateTime, Utc};

use super::following::{Behind, Place};
use crate::{
    live::{
        gateway::Room,
        message::{Code, Refusal, Subscribe},
        selection::{Frame, Selection},
    },
    store::{Cursor, Here, Token},
};

/// The token of the events of a snapshot: who returns with it begins with a snapshot again.
const SNAPSHOT: &str = "snapshot";

/// Where a subscription begins.
pub(super) struct Start {
    pub(super) place: Place,
    /// Token of the place.
    pub(super) token: String,
    /// Messages that come before those of the log.
    pub(super) first: VecDeque<Frame>,
}

impl Start {
    /// The beginning that a request asks for. `time` is what it says in `since`, if that is a time.
    ///
    /// # Errors
    /// When the token cannot be used, events since then were removed, or the database does not answer.
    pub(super) async fn of(
        room: &Room,
        request: &Subscribe,
        time: Option<DateTime<Utc>>,
        selection: &Selection,
        here: &Here,
    ) -> Result<Self, Refusal> {
        match (request.since.as_deref(), time) {
            _ if request.snapshot => Self::snapshot(room, selection).await,
            (Some(SNAPSHOT), _) => Self::snapshot(room, selection).await,
            (Some(_), Some(time)) if time < here.time() => Self::since(room, time, here).await,
            (Some(token), None) => Self::resume(room, token, here).await,
            _ => Self::now(room, here),
        }
    }

    fn now(room: &Room, here: &Here) -> Result<Self, Refusal> {
        let (at, cursor, time) = room.feed.head()?;
        let token = Token { database: here.database, at: time, cursor: Cursor::clone(&cursor) };
        Ok(Self::at(Place::Ring(at, Behind::Cursor(cursor)), token.to_string()))
    }

    async fn resume(room: &Room, text: &str, here: &Here) -> Result<Self, Refusal> {
        let token = Token::parse(text).map_err(|error| {
            let reason = format!("since: {error}, or a time such as 2026-11-29T15:00:00Z");
            Refusal::new(Code::BadToken, reason)
        })?;
        // The head of the ring is younger than every token of this database.
        let (_, head, _) = room.feed.head()?;
        if token.database != here.database || head.is_before(&token.cursor) {
            let reason = "since: the token is of another database, or the database was set back or replaced; \
                          begin with a snapshot or a time";
            return Err(Refusal::new(Code::OtherDatabase, reason));
        }
        let cursor = Arc::new(token.cursor);
        let place = match room.feed.find(&cursor) {
            Some(at) => Place::Ring(at, Behind::Cursor(cursor)),
            None => {
                // Read now, so that a token which is too old is refused at once.
                room.history.behind(&cursor).await?;
                Place::Log(cursor)
            }
        };
        Ok(Self::at(place, text.to_owned()))
    }

    async fn since(room: &Room, time: DateTime<Utc>, here: &Here) -> Result<Self, Refusal> {
        let cursor = room.cursor_since(time).await?;
        let token = Token { database: here.database, at: time, cursor: cursor.clone() };
        Ok(Self::at(Place::Log(Arc::new(cursor)), token.to_string()))
    }

    async fn snapshot(room: &Room, selection: &Selection) -> Result<Self, Refusal> {
        let (events, cursor) = room.latest(selection).await?;
        let first = events.iter().filter_map(|one| selection.frame_with(one, || SNAPSHOT.into())).collect();
        Ok(Self { first, ..Self::at(Place::Log(Arc::new(cursor)), SNAPSHOT.to_owned()) })
    }

    fn at(place: Place, token: String) -> Self {
        Self { place, token, first: VecDeque::new() }
    }
}

/// The time in `since`, if it is one.
///
/// # Errors
/// When it looks like a time and is none.
pub(super) fn time_of(request: &Subscribe) -> Result<Option<DateTime<Utc>>, Refusal> {
    // No token has a colon.
    let Some(since) = request.since.as_deref().filter(|since| since.contains(':')) else { return Ok(None) };
    let time = DateTime::parse_from_rfc3339(since).map_err(|error| {
        Refusal::new(Code::BadToken, format!("since: {error}; use a time such as 2026-11-29T15:00:00Z"))
    })?;
    Ok(Some(time.to_utc()))
}
