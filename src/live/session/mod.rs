//! One client: what it follows, and what comes next. It is asked for the next messages when the last are
//! taken, so nothing is queued for a client that reads slowly.

mod following;
mod start;

use std::sync::Arc;

use tokio::sync::watch;

use self::{
    following::{Following, Step},
    start::{Start, time_of},
};
use super::{
    caller::Caller,
    counted::{Closed, Counted, Transport},
    feed::{self, Client, Progress},
    gateway::Room,
    message::{Ack, Code, Refusal, Subscribe},
    places::Place,
    selection::{Format, Frame},
};

/// Most events that may wait for their acks; their tokens are kept.
const MOST_UNACKED: u32 = 10_000;

/// A connected client.
#[derive(Debug)]
pub struct Session {
    room: Arc<Room>,
    caller: Caller,
    progress: watch::Receiver<Progress>,
    /// The epoch of the feed in which it subscribed first.
    epoch: Option<u64>,
    following: Vec<Following>,
    /// The subscription that was asked last.
    turn: usize,
    /// Whether the last call brought messages, and others have their turn first.
    has_had_turn: bool,
    counted: Counted,
    _client: Client,
    _place: Place,
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
    /// The database was replaced or set back: tokens of before mean nothing.
    OtherDatabase,
}

impl Session {
    pub(super) fn new(room: Arc<Room>, caller: Caller, place: Place, transport: Transport) -> Self {
        let counted = Counted::new(room.telemetry.clone(), transport);
        let (progress, client) = (room.feed.progress(), room.feed.join());
        Self {
            room,
            caller,
            progress,
            epoch: None,
            following: Vec::new(),
            turn: 0,
            has_had_turn: false,
            counted,
            _client: client,
            _place: place,
        }
    }

    /// Follows events. Returns the first message about it.
    ///
    /// # Errors
    /// What is wrong with the request, or that the client may not see what it asks for.
    pub async fn subscribe(&mut self, format: Format, request: Subscribe) -> Result<Frame, Refusal> {
        self.check(&format, &request)?;
        // Before the database is asked for something.
        self.room.permits(&self.caller, &request)?;
        let time = time_of(&request)?;
        // What was committed before the request does not count as new, and the token can be judged.
        let here = self.room.feed.catch_up().await?;
        let epoch = self.progress.borrow().epoch;
        if *self.epoch.get_or_insert(epoch) != epoch {
            return Err(feed::unavailable());
        }
        let selected = self.room.select(&self.caller, &format, &request, time)?;
        let start = Start::of(&self.room, &request, time, &selected.0, &here).await?;
        let frame = format.say("subscribed", Some(&start.token), &[]);
        self.following.push(Following::new(format, request, selected, start));
        Ok(frame)
    }

    /// Follows no longer. Returns the message that says so.
    ///
    /// # Errors
    /// When there is no such subscription.
    pub fn unsubscribe(&mut self, id: &str) -> Result<Frame, Refusal> {
        let index = self.index(id)?;
        Ok(self.remove(index).format.say("unsubscribed", None, &[]))
    }

    /// Notes that events are handled, up to the one with this token.
    ///
    /// # Errors
    /// When there is no such subscription, or none of its events has this token.
    pub fn ack(&mut self, ack: &Ack) -> Result<(), Refusal> {
        let index = self.index(&ack.id)?;
        self.following[index].ack(ack)
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
                let (index, room) = (self.turn, &self.room);
                if let Err(refusal) = follow_channel(room, &self.caller, &mut self.following[index]) {
                    return Next::Frames(vec![self.remove(index).format.error(&refusal)]);
                }
                match self.following[index].step(room).await {
                    Step::Frames(frames) => {
                        self.counted.sent(&frames);
                        self.has_had_turn = true;
                        return Next::Frames(frames);
                    }
                    Step::Wait => {}
                    Step::Gone(refusal) => {
                        return Next::Frames(vec![self.remove(index).format.error(&refusal)]);
                    }
                    Step::Lagged => return Next::Ended(Ended::Lagged),
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
        let Some(end) = self.room.feed.end() else { return Vec::new() };
        let token = end.token();
        let at_end = self.following.iter().filter(|one| one.is_at(end.at));
        at_end.map(|one| one.format.say("caught_up", Some(&token), &[])).collect()
    }

    /// Counts why the connection is closed.
    pub fn closed(&self, why: Closed) {
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

    fn remove(&mut self, index: usize) -> Following {
        self.turn = 0;
        self.following.remove(index)
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
        let most = self.room.settings().max_subscriptions;
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
        if request.max_unacked.is_some_and(|most| !(1..=MOST_UNACKED).contains(&most)) {
            return bad("max_unacked: use 1 to 10000");
        }
        if request.snapshot && request.since.is_some() {
            return bad("snapshot: use either since or snapshot");
        }
        Ok(())
    }
}

/// Selects anew if a channel was changed.
///
/// # Errors
/// When it is not there any more, paused, or of another organization.
fn follow_channel(room: &Room, caller: &Caller, one: &mut Following) -> Result<(), Refusal> {
    let Some(generation) = one.generation else { return Ok(()) };
    if room.feed.channels().generation != generation {
        let time = time_of(&one.request)?;
        (one.selection, one.generation) = room.select(caller, &one.format, &one.request, time)?;
    }
    Ok(())
}
