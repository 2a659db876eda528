//! One subscription of a client: where it is, and what comes next.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;

use super::start::Start;
use crate::{
    event::Position,
    live::{
        feed::Found,
        gateway::Room,
        message::{Ack, Code, Refusal, Subscribe},
        ring::{At, Batch},
        selection::{Format, Frame, Selection, Turns},
    },
    store::{Cursor, Mark},
};

/// Bytes of messages that a client is given at once, and one message.
const CHUNK: usize = 64 * 1024;
/// Making messages of a client is interrupted after this, so that others have their turn.
const LONGEST: Duration = Duration::from_millis(1);
/// Pause before the log is read again after a failure.
const AGAIN: Duration = Duration::from_millis(500);

/// A subscription of a client.
#[derive(Debug)]
pub(super) struct Following {
    pub(super) format: Format,
    pub(super) request: Subscribe,
    pub(super) selection: Arc<Selection>,
    /// At which generation its channel was read; none: it follows topics.
    pub(super) generation: Option<i64>,
    first: VecDeque<Frame>,
    /// Memory of those messages.
    room_for_first: Option<OwnedSemaphorePermit>,
    place: Place,
    /// Whether it has been sent everything once.
    was_caught_up: bool,
    is_caught_up: bool,
    /// Since when it is behind the ring; none: it is not, or has not caught up yet.
    lags_since: Option<Instant>,
    unacked: Option<Unacked>,
}

#[derive(Debug)]
struct Unacked {
    most: usize,
    tokens: VecDeque<Arc<str>>,
}

/// Where a subscription is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In the ring, and the same as a cursor, for when the ring drops it.
    Ring(At, Behind),
    /// In the log. And where in a page of it, as long as others keep that.
    Log(Arc<Cursor>, Option<(Weak<Batch>, usize)>),
}

/// A cursor, which is made when it is needed.
#[derive(Debug, Clone)]
pub(super) enum Behind {
    Cursor(Arc<Cursor>),
    Event(Arc<Mark>, Position),
}

/// What comes next for a subscription.
pub(super) enum Step {
    /// These messages, perhaps none.
    Frames(Vec<Frame>),
    /// Nothing yet: it has been sent everything, or waits for acks.
    Wait,
    /// It ends, for this reason.
    Gone(Refusal),
    /// The client reads too slowly.
    Lagged,
}

impl Behind {
    fn cursor(&self) -> Arc<Cursor> {
        match self {
            Self::Cursor(cursor) => cursor.clone(),
            Self::Event(mark, position) => Arc::new(mark.behind(*position)),
        }
    }
}

impl Following {
    pub(super) fn new(
        format: Format,
        request: Subscribe,
        (selection, generation): (Arc<Selection>, Option<i64>),
        start: Start,
    ) -> Self {
        let unacked = request.max_unacked.map(|most| Unacked {
            most: usize::try_from(most).unwrap_or(usize::MAX).max(1),
            tokens: VecDeque::new(),
        });
        Self {
            format,
            request,
            selection,
            generation,
            first: start.first,
            room_for_first: start.room_for_first,
            place: start.place,
            was_caught_up: false,
            is_caught_up: false,
            lags_since: None,
            unacked,
        }
    }

    /// What comes next. Nothing is lost when it is not awaited to its end.
    pub(super) async fn step(&mut self, room: &Room) -> Step {
        if self.room_for_events() == 0 {
            return Step::Wait;
        }
        if !self.first.is_empty() {
            return Step::Frames(self.take_first());
        }
        // A place in the log may be in the ring by now.
        if let Place::Log(cursor, None) = &self.place
            && let Some(at) = room.feed.find(cursor)
        {
            self.place = Place::Ring(at, Behind::Cursor(cursor.clone()));
        }
        match self.place.clone() {
            Place::Ring(at, behind) => self.step_in_ring(room, at, &behind).await,
            Place::Log(cursor, within) => self.step_in_log(room, &cursor, within).await,
        }
    }

    /// Whether it has been sent everything up to this place of the ring.
    pub(super) fn is_at(&self, end: At) -> bool {
        self.is_caught_up && matches!(&self.place, Place::Ring(at, _) if *at == end)
    }

    /// Notes that events are handled, up to the one with this token.
    ///
    /// # Errors
    /// When none of its events has this token.
    pub(super) fn ack(&mut self, ack: &Ack) -> Result<(), Refusal> {
        let Some(unacked) = &mut self.unacked else { return Ok(()) };
        let known = unacked.tokens.iter().rposition(|token| **token == *ack.token);
        let handled = known.ok_or_else(|| {
            Refusal::new(Code::BadToken, "token: no event that waits for its ack has this token")
        })?;
        unacked.tokens.drain(..=handled);
        Ok(())
    }

    async fn step_in_ring(&mut self, room: &Room, at: At, behind: &Behind) -> Step {
        match room.feed.batch(at.batch) {
            Found::Batch(..) if self.is_outdated(room) => Step::Frames(Vec::new()),
            Found::Batch(batch, keep) => {
                let (frames, reached) = self.take(&batch, keep, at.index, &room.slow).await;
                self.place = match last_before(&batch, reached) {
                    Some(position) => {
                        let behind = Behind::Event(batch.mark.clone(), position);
                        Place::Ring(At { index: reached, ..at }, behind)
                    }
                    None => {
                        let behind = Behind::Cursor(batch.mark.after.clone());
                        Place::Ring(At { batch: at.batch + 1, index: 0 }, behind)
                    }
                };
                Step::Frames(frames)
            }
            Found::NotYet(_) if self.is_caught_up => Step::Wait,
            Found::NotYet(end) => {
                // Otherwise the ring is another one by now, which the next turn finds.
                let Some(end) = end.filter(|end| end.at == at) else { return Step::Frames(Vec::new()) };
                (self.is_caught_up, self.was_caught_up, self.lags_since) = (true, true, None);
                Step::Frames(vec![self.format.say("caught_up", Some(&end.token()), &[])])
            }
            Found::Dropped => {
                self.place = Place::Log(behind.cursor(), None);
                self.lags_since.get_or_insert_with(Instant::now);
                self.is_caught_up = false;
                if !self.was_caught_up {
                    return Step::Frames(Vec::new());
                }
                let behind = room.behind().as_secs();
                room.telemetry.live_lagged();
                Step::Frames(vec![self.format.say("lagging", None, &[("behind", behind.into())])])
            }
        }
    }

    async fn step_in_log(
        &mut self,
        room: &Room,
        cursor: &Arc<Cursor>,
        within: Option<(Weak<Batch>, usize)>,
    ) -> Step {
        let lags = self.lags_since.filter(|_| self.was_caught_up).map(|since| since.elapsed());
        if lags.is_some_and(|lags| lags > room.settings.max_lag) {
            return Step::Lagged;
        }
        let kept = within.and_then(|(batch, index)| Some((batch.upgrade()?, index)));
        let (batch, from) = match kept {
            Some(kept) => kept,
            None => match Box::pin(room.history.behind(cursor)).await {
                Ok(batch) => (batch, 0),
                Err(refusal) if refusal.code == Code::Unavailable => {
                    // The database is away. It is asked again after a while; nothing is lost.
                    let _ = tokio::time::timeout(AGAIN, room.leaving().cancelled()).await;
                    return Step::Frames(Vec::new());
                }
                Err(refusal) => return Step::Gone(refusal),
            },
        };
        if self.is_outdated(room) {
            return Step::Frames(Vec::new());
        }
        let (frames, reached) = self.take(&batch, true, from, &room.slow).await;
        self.place = match last_before(&batch, reached) {
            Some(position) => {
                let within = (Arc::downgrade(&batch), reached);
                Place::Log(Arc::new(batch.mark.behind(position)), Some(within))
            }
            None => Place::Log(batch.mark.after.clone(), None),
        };
        Step::Frames(frames)
    }

    /// Whether its channel was changed since it was selected: the next step selects anew.
    fn is_outdated(&self, room: &Room) -> bool {
        self.generation.is_some_and(|generation| room.feed.channels().generation != generation)
    }

    /// How many events it may be sent before the client acknowledges some.
    fn room_for_events(&self) -> usize {
        self.unacked.as_ref().map_or(usize::MAX, |unacked| unacked.most.saturating_sub(unacked.tokens.len()))
    }

    /// Messages of a batch from the event number `from` on, and the number of the first event behind them,
    /// which is greater than `from`.
    async fn take(
        &mut self,
        batch: &Arc<Batch>,
        keep: bool,
        from: usize,
        slow: &Turns,
    ) -> (Vec<Frame>, usize) {
        let (mut some, mut bytes, mut room) = (Vec::new(), 0, self.room_for_events());
        let (mut at, began) = (from, Instant::now());
        loop {
            let piece = self.selection.piece(batch, at, keep, CHUNK, slow).await;
            for (index, frame) in piece.frames.iter().filter(|(index, _)| *index >= at) {
                if bytes >= CHUNK || room == 0 {
                    return self.taken(some, *index);
                }
                bytes += frame.text.len();
                if frame.token.is_some() {
                    room -= 1;
                }
                some.push(frame.clone());
            }
            at = piece.end;
            if at >= batch.events.len() || bytes >= CHUNK || began.elapsed() >= LONGEST {
                return self.taken(some, at);
            }
        }
    }

    fn taken(&mut self, some: Vec<Frame>, reached: usize) -> (Vec<Frame>, usize) {
        for frame in &some {
            self.sent(frame);
        }
        (some, reached)
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
        if self.first.is_empty() {
            self.room_for_first = None;
        }
        some
    }

    fn sent(&mut self, frame: &Frame) {
        if let (Some(unacked), Some(token)) = (&mut self.unacked, &frame.token) {
            unacked.tokens.push_back(token.clone());
        }
    }
}

/// The position of the last of so many events of a batch; none: that is all of it.
fn last_before(batch: &Batch, reached: usize) -> Option<Position> {
    if reached >= batch.events.len() {
        return None;
    }
    // At least one was passed before a part of the batch was left.
    batch.events.get(reached.checked_sub(1)?).map(|one| one.event.position)
}
