//! Where a subscription of a client begins.

use std::{collections::VecDeque, sync::Arc};

use chrono::{DateTime, Utc};
use tokio::sync::OwnedSemaphorePermit;

use super::following::{Behind, Place};
use crate::{
    live::{
        feed,
        gateway::Room,
        message::{Code, Refusal, Subscribe},
        selection::{Frame, Selection},
    },
    store::{BadToken, Here},
};

/// The token of a snapshot: who returns with it begins with a snapshot again. Those of its events have their
/// numbers behind it.
const SNAPSHOT: &str = "snapshot";

/// Where a subscription begins.
pub(super) struct Start {
    pub(super) place: Place,
    /// Token of the place.
    pub(super) token: String,
    /// Messages that come before those of the log.
    pub(super) first: VecDeque<Frame>,
    /// Memory of those messages.
    pub(super) room_for_first: Option<OwnedSemaphorePermit>,
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
        selection: &Arc<Selection>,
        here: &Here,
    ) -> Result<Self, Refusal> {
        match (request.since.as_deref(), time) {
            _ if request.snapshot => Self::snapshot(room, selection).await,
            (Some(since), _) if is_of_snapshot(since) => Self::snapshot(room, selection).await,
            (Some(_), Some(time)) if time < here.time() => Self::since(room, time, here).await,
            (Some(token), None) => Self::resume(room, token, here).await,
            _ => Self::now(room, here),
        }
    }

    fn now(room: &Room, here: &Here) -> Result<Self, Refusal> {
        let (at, cursor, time) = room.feed.head()?;
        let token = here.stamp.token(time, &cursor);
        Ok(Self::at(Place::Ring(at, Behind::Cursor(cursor)), token))
    }

    async fn resume(room: &Room, text: &str, here: &Here) -> Result<Self, Refusal> {
        let other = || {
            let reason = format!("since: {}; begin with a snapshot or a time", BadToken::OtherDatabase);
            Refusal::new(Code::OtherDatabase, reason)
        };
        let token = here.stamp.read(text).map_err(|error| match error {
            BadToken::OtherDatabase => other(),
            BadToken::Unknown => {
                let reason = format!("since: {error}, or a time such as 2026-11-29T15:00:00Z");
                Refusal::new(Code::BadToken, reason)
            }
        })?;
        // The head of the ring is younger than every token of this database.
        let (_, head, _) = room.feed.head()?;
        if head.is_before(&token.cursor) {
            return Err(other());
        }
        let cursor = Arc::new(token.cursor);
        let place = match room.feed.find(&cursor) {
            Some(at) => Place::Ring(at, Behind::Cursor(cursor)),
            None => {
                // Read now, so that a token which is too old is refused at once.
                room.history.behind(&cursor).await?;
                Place::Log(cursor, None)
            }
        };
        Ok(Self::at(place, text.to_owned()))
    }

    async fn since(room: &Room, time: DateTime<Utc>, here: &Here) -> Result<Self, Refusal> {
        let cursor = room.cursor_since(time).await?;
        let token = here.stamp.token(time, &cursor);
        Ok(Self::at(Place::Log(Arc::new(cursor), None), token))
    }

    async fn snapshot(room: &Room, selection: &Arc<Selection>) -> Result<Self, Refusal> {
        let (events, cursor) = room.latest(selection).await?;
        let bytes: usize = events.iter().map(|one| 2 * one.event.payload.len() + 1_024).sum();
        let held = room.room_for_snapshot(bytes).await?;
        // A filter may take long: not on a thread of the runtime.
        let selection = selection.clone();
        let making = move || {
            let number = |number: usize| Arc::from(format!("{SNAPSHOT}.{number}"));
            let frames = events.iter().enumerate();
            frames.filter_map(|(index, one)| selection.frame_with(one, || number(index))).collect()
        };
        let first = tokio::task::spawn_blocking(making).await.map_err(|_| feed::unavailable())?;
        let start = Self::at(Place::Log(Arc::new(cursor), None), SNAPSHOT.to_owned());
        Ok(Self { first, room_for_first: Some(held), ..start })
    }

    fn at(place: Place, token: String) -> Self {
        Self { place, token, first: VecDeque::new(), room_for_first: None }
    }
}

/// Whether a token is of a snapshot.
fn is_of_snapshot(token: &str) -> bool {
    token.strip_prefix(SNAPSHOT).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
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
