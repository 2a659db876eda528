//! One client: what it follows, and what comes next. It is asked for the next messages when the last are
//! taken, so nothing is queued for a client that reads slowly.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use super::{
    caller::Caller,
    counted::{Counted, Transport},
    feed::{Client, Found, Progress},
    gateway::Room,
    message::{Ack, Code, Refusal, Subscribe},
    places::Place as Seat,
    ring::{At, Batch, PIECE},
    selection::{Format, Frame, Selection},
};
use crate::{
    event::Position,
    store::{Cursor, Mark, Token},
};

/// Bytes of messages that a client is given at once, and one message.
const CHUNK: usize = 64 * 1024;
/// Making messages of a client is interrupted after this, so that others have their turn.
const LONGEST: Duration = Duration::from_millis(1);
/// The token of the events of a snapshot: who returns with it begins with a snapshot again.
pub(super) const SNAPSHOT: &str = "snapshot";

/// A connected client.
#[derive(Debug)]
pub struct Session {
    room: Arc<Room>,
    caller: Caller,
    progress: watch::Receiver<Progress>,
    epoch: Option<u64>,
    following: Vec<Following>,
    turn: usize,
    counted: Counted,
    /// Whether the last call brought messages, and others have their turn first.
    has_had_turn: bool,
    _client: Client,
    _seat: Seat,
}

/// What comes next for a client.
#[derive(Debug)]
pub enum Next {
    /// These messages.
    Frames(Vec<Frame>),
    /// Nothing more: the connection is to be closed.
    Ended(Ended),
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The gateway stops: come back.
    Stopping,
    /// The client read too slowly: come back with the last token.
    Lagged,
    /// The client's JWT has expired: come back with a new one.
    Expired,
    /// The database was replaced or set back: tokens of before mean nothing.
    OtherDatabase,
}

/// A subscription of a client.
#[derive(Debug)]
struct Following {
    format: Format,
    selection: Arc<Selection>,
    request: Subscribe,
    /// At which generation a channel was read.
    generation: Option<i64>,
    /// Messages that come before those of the log.
    first: VecDeque<Frame>,
    place: Place,
    /// Whether it has been sent everything once.
    was_caught_up: bool,
    is_caught_up: bool,
    unacked: Option<Unacked>,
}

#[derive(Debug)]
struct Unacked {
    most: usize,
    tokens: VecDeque<Arc<str>>,
}

/// Where a subscription is.
#[derive(Debug, Clone)]
enum Place {
    /// In the ring, and the same as a cursor, for when the ring drops it.
    Ring(At, Behind),
    /// In the log.
    Log(Arc<Cursor>),
}

/// A cursor, which is made when it is needed.
#[derive(Debug, Clone)]
enum Behind {
    Cursor(Arc<Cursor>),
    Event(Arc<Mark>, Position),
}

impl Behind {
    fn cursor(&self) -> Arc<Cursor> {
        match self {
            Self::Cursor(cursor) => cursor.clone(),
            Self::Event(mark, position) => Arc::new(mark.behind(*position)),
        }
    }
}

/// Where a subscription begins.
struct Start {
    place: Place,
    token: String,
    since: Option<DateTime<Utc>>,
    first: VecDeque<Frame>,
}

impl Session {
    pub(super) fn new(room: Arc<Room>, caller: Caller, seat: Seat, transport: Transport) -> Self {
        let counted = Counted::new(room.telemetry.clone(), transport);
        let (progress, client) = (room.feed.progress(), room.feed.join());
        Self {
            room,
            caller,
            progress,
            epoch: None,
            following: Vec::new(),
            turn: 0,
            counted,
            has_had_turn: false,
            _client: client,
            _seat: seat,
        }
    }

    /// Follows events. Returns the first message about it.
    ///
    /// # Errors
    /// What is wrong with the request, or that the client may not see what it asks for.
    pub async fn subscribe(&mut self, format: Format, request: Subscribe) -> Result<Frame, Refusal> {
        self.check(&format, &request)?;
        // What was committed before the request does not count as new, and the token can be judged.
        let here = self.room.feed.catch_up().await?;
        let epoch = self.progress.borrow().epoch;
        if *self.epoch.get_or_insert(epoch) != epoch {
            return Err(super::feed::unavailable());
        }
        let time = since_time(&request)?;
        let (selection, generation) = self.room.select(&self.caller, &format, &request, time)?;
        let start = match request.since.as_deref() {
            _ if request.snapshot => self.snapshot(&selection).await?,
            Some(SNAPSHOT) => self.snapshot(&selection).await?,
            Some(_) if time.is_some_and(|time| time >= here.now) => self.from_now(&here)?,
            Some(_) if time.is_some() => self.since(time, &here).await?,
            Some(token) => self.resume(token, &here).await?,
            None => self.from_now(&here)?,
        };
        debug_assert!(start.since.is_none() || time.is_some(), "a time is part of what is selected");
        let unacked =
            request.max_unacked.map(|most| Unacked { most: most.max(1) as usize, tokens: VecDeque::new() });
        let frame = format.say("subscribed", Some(&start.token), &[]);
        self.following.push(Following {
            format,
            selection,
            request,
            generation,
            first: start.first,
            place: start.place,
            was_caught_up: false,
            is_caught_up: false,
            unacked,
        });
        Ok(frame)
    }

    /// Follows no longer. Returns the message that says so.
    ///
    /// # Errors
    /// When there is no such subscription.
    pub fn unsubscribe(&mut self, id: &str) -> Result<Frame, Refusal> {
        let index = self.index(id)?;
        let gone = self.following.remove(index);
        self.turn = 0;
        Ok(gone.format.say("unsubscribed", None, &[]))
    }

    /// Notes that events are handled, up to the one with this token.
    ///
    /// # Errors
    /// When there is no such subscription, or none of its events has this token.
    pub fn ack(&mut self, ack: &Ack) -> Result<(), Refusal> {
        let index = self.index(&ack.id)?;
        let Some(unacked) = &mut self.following[index].unacked else { return Ok(()) };
        let known = unacked.tokens.iter().rposition(|token| **token == *ack.token);
        let handled = known.ok_or_else(|| {
            let reason = "token: no event that waits for its ack has this token";
            Refusal::new(Code::BadToken, reason)
        })?;
        unacked.tokens.drain(..=handled);
        Ok(())
    }

    /// Waits for what comes next. Nothing is lost when it is not awaited to its end.
    pub async fn next(&mut self) -> Next {
        if std::mem::take(&mut self.has_had_turn) {
            tokio::task::yield_now().await;
        }
        loop {
            let epoch = self.progress.borrow_and_update().epoch;
            if self.epoch.is_some_and(|began| began != epoch) {
                return Next::Ended(Ended::OtherDatabase);
            }
            for _ in 0..self.following.len() {
                self.turn = (self.turn + 1) % self.following.len();
                match self.advance(self.turn).await {
                    Ok(Some(frames)) => {
                        self.counted.sent(&frames);
                        self.has_had_turn = true;
                        return Next::Frames(frames);
                    }
                    Ok(None) => {}
                    Err(ended) => return Next::Ended(ended),
                }
                if self.following.is_empty() {
                    break;
                }
            }
            if self.progress.changed().await.is_err() {
                return Next::Ended(Ended::Stopping);
            }
        }
    }

    /// The messages of a heartbeat: subscriptions that have been sent everything get a young token.
    #[must_use]
    pub fn heartbeat(&self) -> Vec<Frame> {
        let (Ok((head, cursor, at)), Ok(here)) = (self.room.feed.head(), self.room.feed.here()) else {
            return Vec::new();
        };
        let token = Token { database: here.database, at, cursor: Cursor::clone(&cursor) }.to_string();
        let at_end = self
            .following
            .iter()
            .filter(|one| one.is_caught_up && matches!(&one.place, Place::Ring(at, _) if *at == head));
        at_end.map(|one| one.format.say("caught_up", Some(&token), &[])).collect()
    }

    /// Counts why the connection is closed; none: for another reason.
    pub fn closed(&self, why: Option<Ended>) {
        self.counted.closed(why);
    }

    /// How many subscriptions it has.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.following.len()
    }

    fn index(&self, id: &str) -> Result<usize, Refusal> {
        let found = self.following.iter().position(|one| one.request.id == id);
        found.ok_or_else(|| Refusal::new(Code::UnknownId, format!("id: there is no subscription {id:?}")))
    }

    fn check(&self, format: &Format, request: &Subscribe) -> Result<(), Refusal> {
        let bad = |reason: &str| Err(Refusal::new(Code::BadMessage, reason));
        if matches!(format, Format::Message { .. }) {
            let length = request.id.chars().count();
            if !(1..=64).contains(&length) || request.id.chars().any(char::is_control) {
                return bad("id: use 1 to 64 characters");
            }
        }
        if self.following.iter().any(|one| one.request.id == request.id) {
            let reason = format!("id: there is a subscription {:?}; unsubscribe it first", request.id);
            return Err(Refusal::new(Code::DuplicateId, reason));
        }
        let most = self.room.settings.max_subscriptions;
        if self.following.len() >= most {
            let reason = format!("a connection may have {most} subscriptions (realtime.max_subscriptions)");
            return Err(Refusal::new(Code::TooManySubscriptions, reason));
        }
        match (&request.topics, &request.channel) {
            (None, None) => return bad("topics: name the topics, or a channel"),
            (Some(_), Some(_)) => return bad("channel: name either topics or a channel"),
            (None, Some(_)) if request.keys.is_some() || request.filter.is_some() => {
                return bad("channel: a channel has its own keys and filter; leave keys and filter out");
            }
            _ => {}
        }
        if request.snapshot && request.since.is_some() {
            return bad("snapshot: use either since or snapshot");
        }
        Ok(())
    }

    fn from_now(&self, here: &crate::store::Here) -> Result<Start, Refusal> {
        let (at, cursor, time) = self.room.feed.head()?;
        let token = Token { database: here.database, at: time, cursor: Cursor::clone(&cursor) }.to_string();
        Ok(Start {
            place: Place::Ring(at, Behind::Cursor(cursor)),
            token,
            since: None,
            first: VecDeque::new(),
        })
    }

    async fn resume(&self, text: &str, here: &crate::store::Here) -> Result<Start, Refusal> {
        let token = Token::parse(text).map_err(|error| {
            Refusal::new(Code::BadToken, format!("since: {error}, or a time such as 2026-11-29T15:00:00Z"))
        })?;
        Room::judge(&token, here, &self.room.feed.head()?.1)?;
        let cursor = Arc::new(token.cursor);
        let place = match self.room.feed.find(&cursor) {
            Some(at) => Place::Ring(at, Behind::Cursor(cursor)),
            None => {
                // Read now, so that a token which is too old is refused at once.
                self.room.history.behind(&cursor).await?;
                Place::Log(cursor)
            }
        };
        Ok(Start { place, token: text.to_owned(), since: None, first: VecDeque::new() })
    }

    async fn since(&self, time: Option<DateTime<Utc>>, here: &crate::store::Here) -> Result<Start, Refusal> {
        let time = time.unwrap_or(here.now);
        let cursor = self.room.cursor_since(time).await?;
        let token = Token { database: here.database, at: time, cursor: cursor.clone() }.to_string();
        Ok(Start { place: Place::Log(Arc::new(cursor)), token, since: Some(time), first: VecDeque::new() })
    }

    async fn snapshot(&self, selection: &Selection) -> Result<Start, Refusal> {
        let (events, cursor) = self.room.latest(selection).await?;
        let first = events.iter().filter_map(|one| selection.frame_with(one, || SNAPSHOT.into())).collect();
        let token = SNAPSHOT.to_owned();
        Ok(Start { place: Place::Log(Arc::new(cursor)), token, since: None, first })
    }

    /// The next messages of a subscription; none: it has been sent everything, or waits for acks.
    async fn advance(&mut self, index: usize) -> Result<Option<Vec<Frame>>, Ended> {
        if let Some(frame) = self.follow_channel(index) {
            return Ok(Some(vec![frame]));
        }
        let one = &mut self.following[index];
        if one.room_for_events() == 0 {
            return Ok(None);
        }
        if !one.first.is_empty() {
            return Ok(Some(one.take_first()));
        }
        // A place in the log may be in the ring by now.
        if let Place::Log(cursor) = &one.place
            && let Some(at) = self.room.feed.find(cursor)
        {
            one.place = Place::Ring(at, Behind::Cursor(cursor.clone()));
        }
        let cursor = match &one.place {
            Place::Log(cursor) => cursor.clone(),
            Place::Ring(at, behind) => match self.room.feed.batch(at.batch) {
                Found::Batch(batch, keep) => {
                    let (from, at) = (at.index, *at);
                    let (some, reached) = one.take(&batch, from, keep);
                    one.place = if reached >= batch.events.len() {
                        let next = At { batch: at.batch + 1, index: 0 };
                        Place::Ring(next, Behind::Cursor(batch.mark.after.clone()))
                    } else {
                        let position = batch.events[reached.saturating_sub(1)].event.position;
                        Place::Ring(At { index: reached, ..at }, Behind::Event(batch.mark.clone(), position))
                    };
                    return Ok(Some(some));
                }
                Found::NotYet if one.is_caught_up => return Ok(None),
                Found::NotYet => {
                    (one.is_caught_up, one.was_caught_up) = (true, true);
                    let token = self.room.token(&behind.cursor());
                    return Ok(Some(vec![one.format.say("caught_up", token.as_deref(), &[])]));
                }
                Found::Dropped => {
                    let cursor = behind.cursor();
                    one.place = Place::Log(cursor);
                    one.is_caught_up = false;
                    if !one.was_caught_up {
                        return Ok(Some(Vec::new()));
                    }
                    let behind = self.room.behind();
                    self.room.telemetry.live_lagged();
                    return Ok(Some(vec![one.format.say(
                        "lagging",
                        None,
                        &[("behind", behind.as_secs().into())],
                    )]));
                }
            },
        };
        let batch = match Box::pin(self.room.history.behind(&cursor)).await {
            Ok(batch) => batch,
            Err(refusal) if refusal.code == Code::Unavailable => {
                // The database is away. It is asked again after a while; nothing is lost.
                tokio::time::sleep(AGAIN).await;
                return Ok(Some(Vec::new()));
            }
            Err(refusal) => {
                let gone = self.following.remove(index);
                self.turn = 0;
                return Ok(Some(vec![gone.format.error(&refusal)]));
            }
        };
        let one = &mut self.following[index];
        if one.was_caught_up
            && batch.events.first().is_some_and(|first| self.room.is_too_old(first.event.created_at))
        {
            return Err(Ended::Lagged);
        }
        let (some, reached) = one.take(&batch, 0, true);
        one.place = Place::Log(if reached >= batch.events.len() {
            batch.mark.after.clone()
        } else {
            Arc::new(batch.mark.behind(batch.events[reached.saturating_sub(1)].event.position))
        });
        Ok(Some(some))
    }

    /// Selects anew if a channel was changed; a message if it is not there any more, or paused.
    fn follow_channel(&mut self, index: usize) -> Option<Frame> {
        let one = &self.following[index];
        let generation = one.generation?;
        if self.room.feed.channels().generation == generation {
            return None;
        }
        match self.room.select(&self.caller, &one.format, &one.request, None) {
            Ok((selection, generation)) => {
                let one = &mut self.following[index];
                (one.selection, one.generation) = (selection, generation);
                None
            }
            Err(refusal) => {
                let gone = self.following.remove(index);
                self.turn = 0;
                Some(gone.format.error(&refusal))
            }
        }
    }
}

/// Pause before the log is read again after a failure.
const AGAIN: Duration = Duration::from_millis(500);

impl Following {
    /// How many events it may be sent before the client acknowledges some.
    fn room_for_events(&self) -> usize {
        self.unacked.as_ref().map_or(usize::MAX, |unacked| unacked.most.saturating_sub(unacked.tokens.len()))
    }

    /// Messages of a batch from the event number `from` on, and the number of the first event behind them.
    fn take(&mut self, batch: &Batch, from: usize, keep: bool) -> (Vec<Frame>, usize) {
        let (mut some, mut bytes, mut room) = (Vec::new(), 0, self.room_for_events());
        let (mut at, began) = (from, Instant::now());
        while at < batch.events.len() && began.elapsed() < LONGEST {
            let piece = at / PIECE;
            for (index, frame) in batch.frames(&self.selection, piece, keep).iter() {
                if *index < at {
                    continue;
                }
                if bytes >= CHUNK || room == 0 {
                    return (some, *index);
                }
                bytes += frame.text.len();
                if frame.token.is_some() {
                    room -= 1;
                }
                self.sent(frame);
                some.push(frame.clone());
            }
            at = (piece + 1) * PIECE;
        }
        (some, at.min(batch.events.len()))
    }

    fn take_first(&mut self) -> Vec<Frame> {
        let (mut some, mut bytes) = (Vec::new(), 0);
        while bytes < CHUNK
            && self.room_for_events() > 0
            && let Some(frame) = self.first.pop_front()
        {
            bytes += frame.text.len();
            self.sent(&frame);
            some.push(frame);
        }
        some
    }

    fn sent(&mut self, frame: &Frame) {
        if let (Some(unacked), Some(token)) = (&mut self.unacked, &frame.token) {
            unacked.tokens.push_back(token.clone());
        }
    }
}

/// The time in `since`, if it is one.
fn since_time(request: &Subscribe) -> Result<Option<DateTime<Utc>>, Refusal> {
    let Some(since) = request.since.as_deref().filter(|since| since.contains(':')) else { return Ok(None) };
    let time = DateTime::parse_from_rfc3339(since).map_err(|error| {
        Refusal::new(Code::BadToken, format!("since: {error}; use a time such as 2026-11-29T15:00:00Z"))
    })?;
    Ok(Some(time.to_utc()))
}
