//! The newest part of the log in memory, in batches, for all clients.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use chrono::{DateTime, Utc};

use super::selection::{Piece, SelectionId};
use crate::{
    event::{Event, Position},
    sink::body::whole,
    store::{Cursor, Here, Mark, Stamp},
};

/// Batches whose frames are kept: those that clients without delay are sent.
const WITH_FRAMES: usize = 16;
/// Events of which messages are made at once.
const PIECE: usize = 16;
/// Bytes of messages that are kept of a batch, where the ring does not say otherwise, and at least.
const KEPT: usize = 256 * 1_024;
/// Places that are remembered between batches.
const PLACES: usize = 4_096;
/// What an event takes in memory besides its payload, in bytes.
const OVERHEAD: usize = 1_024;

/// An event for live clients.
#[derive(Debug)]
pub(super) struct LiveEvent {
    pub(super) event: Arc<Event>,
    pub(super) deliver_after: Option<DateTime<Utc>>,
    /// Whether the database can read its payload.
    pub(super) is_readable: bool,
    token: OnceLock<Arc<str>>,
    json: OnceLock<String>,
}

impl LiveEvent {
    pub(super) fn new(event: Arc<Event>, deliver_after: Option<DateTime<Utc>>, is_readable: bool) -> Self {
        Self { event, deliver_after, is_readable, token: OnceLock::new(), json: OnceLock::new() }
    }

    /// The event as JSON, unchanged: written once for all clients.
    pub(super) fn json(&self) -> &str {
        self.json.get_or_init(|| self.json_of(&self.event))
    }

    /// The event as JSON, after what a subscription has changed of it.
    pub(super) fn json_of(&self, event: &Event) -> String {
        let mut json = whole(event);
        if let Some(after) = self.deliver_after {
            json.pop();
            let after = after.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            let _ = write!(json, ",\"deliver_after\":\"{after}\"}}");
        }
        json
    }
}

/// A part of the log.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) events: Vec<LiveEvent>,
    pub(super) mark: Arc<Mark>,
    /// Time of its last event; if there is none, when it was read. By the database's clock.
    pub(super) at: DateTime<Utc>,
    /// Writes its tokens.
    pub(super) stamp: Stamp,
    kept: Mutex<Kept>,
    /// Bytes of messages that may be kept.
    most_kept: usize,
}

/// Messages that are kept, by selection and number of the piece.
#[derive(Debug, Default)]
struct Kept {
    pieces: HashMap<(SelectionId, usize), Arc<Piece>>,
    bytes: usize,
}

impl Batch {
    pub(super) fn new(events: Vec<LiveEvent>, mark: Mark, at: DateTime<Utc>, stamp: Stamp) -> Self {
        Self { events, mark: Arc::new(mark), at, stamp, kept: Mutex::default(), most_kept: KEPT }
    }

    /// Bytes in memory, nearly: an event and its JSON.
    pub(super) fn size(&self) -> usize {
        self.events.iter().map(|one| 2 * (one.event.payload.len() + one.event.headers.len()) + OVERHEAD).sum()
    }

    /// The token of an event of this batch.
    pub(super) fn token(&self, one: &LiveEvent) -> Arc<str> {
        let token =
            one.token.get_or_init(|| self.stamp.token(self.at, &self.mark.behind(one.event.position)).into());
        token.clone()
    }

    /// The messages that are kept of the piece with this event.
    pub(super) fn made(&self, id: SelectionId, event: usize) -> Option<Arc<Piece>> {
        self.kept().pieces.get(&(id, event / PIECE)).cloned()
    }

    /// Keeps the messages of a piece for other clients, if there is room.
    pub(super) fn keep(&self, id: SelectionId, event: usize, piece: &Arc<Piece>) {
        let mut kept = self.kept();
        if kept.bytes < self.most_kept && kept.pieces.insert((id, event / PIECE), piece.clone()).is_none() {
            kept.bytes += piece.frames.iter().map(|(_, frame)| frame.text.len()).sum::<usize>();
        }
    }

    /// The events of the piece with this one.
    pub(super) fn piece(&self, event: usize) -> Range<usize> {
        let begin = event / PIECE * PIECE;
        begin..self.events.len().min(begin + PIECE)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a cursor is in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    /// Number of the batch.
    pub(super) batch: u64,
    /// How many of its events are behind the cursor.
    pub(super) index: usize,
}

/// The end of the ring.
pub(super) struct End {
    pub(super) at: At,
    here: Arc<Here>,
    cursor: Arc<Cursor>,
    time: DateTime<Utc>,
}

impl End {
    pub(super) fn of(ring: &Ring, here: &Arc<Here>) -> Self {
        let (cursor, time) = ring.head();
        let at = At { batch: ring.next(), index: 0 };
        Self { at, here: here.clone(), cursor: cursor.clone(), time }
    }

    /// The token of who has been sent everything.
    pub(super) fn token(&self) -> String {
        self.here.stamp.token(self.time, &self.cursor)
    }
}

/// The newest batches.
#[derive(Debug)]
pub(super) struct Ring {
    batches: VecDeque<Arc<Batch>>,
    /// Number of the first batch.
    first: u64,
    size: usize,
    most: usize,
    head: Arc<Cursor>,
    head_at: DateTime<Utc>,
    /// Places between batches, in their order: also where nothing was new. With the number of the next batch.
    places: VecDeque<(Arc<Cursor>, u64)>,
    /// The same by their snapshots; of a window, where it begins.
    by_snapshot: HashMap<String, u64>,
}

impl Ring {
    /// An empty ring that begins at this cursor with this number, and keeps at most so many bytes, and one
    /// batch.
    pub(super) fn new(first: u64, head: Arc<Cursor>, at: DateTime<Utc>, most: usize) -> Self {
        let mut ring = Self {
            batches: VecDeque::new(),
            first,
            size: 0,
            most,
            head: head.clone(),
            head_at: at,
            places: VecDeque::new(),
            by_snapshot: HashMap::new(),
        };
        ring.note_place();
        ring
    }

    /// The cursor behind the last batch.
    pub(super) fn head(&self) -> (&Arc<Cursor>, DateTime<Utc>) {
        (&self.head, self.head_at)
    }

    /// Time of the first batch.
    pub(super) fn oldest(&self) -> Option<DateTime<Utc>> {
        self.batches.front().map(|batch| batch.at)
    }

    /// Number of the next batch.
    pub(super) fn next(&self) -> u64 {
        self.first + self.batches.len() as u64
    }

    /// Adds a batch, or only moves the head if it has no events.
    pub(super) fn push(&mut self, mut batch: Batch) {
        batch.most_kept = (self.most / WITH_FRAMES).max(KEPT);
        self.head = batch.mark.after.clone();
        self.head_at = batch.at;
        if !batch.events.is_empty() {
            self.size += batch.size();
            self.batches.push_back(Arc::new(batch));
        }
        while self.size > self.most && self.batches.len() > 1 {
            if let Some(oldest) = self.batches.pop_front() {
                self.size -= oldest.size();
                self.first += 1;
            }
        }
        if let Some(older) = self.batches.len().checked_sub(WITH_FRAMES + 1) {
            *self.batches[older].kept() = Kept::default();
        }
        self.note_place();
    }

    /// Remembers the place behind the last batch, and forgets those whose batches were dropped.
    fn note_place(&mut self) {
        let next = self.next();
        if self.places.back().is_none_or(|(last, _)| !last.is_same_place(&self.head)) {
            self.places.push_back((self.head.clone(), next));
            self.by_snapshot.entry(self.head.snapshot().to_owned()).or_insert(next);
        }
        while self.places.len() > PLACES.max(self.batches.len() + 1)
            || self.places.front().is_some_and(|(_, at)| *at < self.first)
        {
            let Some((gone, _)) = self.places.pop_front() else { break };
            // Other places of the same window may be left.
            match self.places.front().filter(|(left, _)| left.snapshot() == gone.snapshot()) {
                Some((_, at)) => self.by_snapshot.insert(gone.snapshot().to_owned(), *at),
                None => self.by_snapshot.remove(gone.snapshot()),
            };
        }
    }

    /// Begins anew at this cursor. Who is elsewhere finds that the next batch was dropped, and reads the log.
    #[cfg(feature = "nats")]
    pub(super) fn jump(&mut self, head: Arc<Cursor>, at: DateTime<Utc>) {
        self.first = self.next() + 1;
        self.batches.clear();
        self.size = 0;
        self.places.clear();
        self.by_snapshot.clear();
        (self.head, self.head_at) = (head, at);
        self.note_place();
    }

    /// The batch of this number, and whether its frames are kept; none: it was dropped, or is not there yet.
    pub(super) fn get(&self, number: u64) -> Option<(Arc<Batch>, bool)> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let batch = self.batches.get(index)?.clone();
        Some((batch, index + WITH_FRAMES >= self.batches.len()))
    }

    /// Whether the batch of this number was dropped.
    pub(super) fn has_dropped(&self, number: u64) -> bool {
        number < self.first
    }

    /// Where this cursor is; none: the ring does not know.
    pub(super) fn find(&self, cursor: &Cursor) -> Option<At> {
        // The places of one snapshot follow each other: a window is read in several batches.
        let begin = *self.by_snapshot.get(cursor.snapshot())?;
        for number in begin..self.next() {
            let (batch, _) = self.get(number)?;
            if let Some(position) = batch.mark.contains(cursor) {
                return Some(At { batch: number, index: batch.behind(position) });
            }
            if batch.mark.before.snapshot() != cursor.snapshot() {
                break;
            }
        }
        let next = |(place, next): &(Arc<Cursor>, u64)| place.is_same_place(cursor).then_some(*next);
        self.places
            .iter()
            .rev()
            .take_while(|(_, at)| *at >= begin)
            .find_map(next)
            .map(|batch| At { batch, index: 0 })
    }
}

impl Batch {
    /// How many events are at or before this position.
    pub(super) fn behind(&self, position: Position) -> usize {
        self.events.partition_point(|one| one.event.position <= position)
    }
}
