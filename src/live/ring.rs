//! The newest part of the log in memory, in batches, for all clients.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use chrono::{DateTime, Utc};

use super::selection::{Frames, SelectionId};
use crate::{
    event::{Event, Position},
    sink::body::whole,
    store::{Cursor, Mark, Token},
};

/// Batches whose frames are kept: those that clients without delay are sent.
const WITH_FRAMES: usize = 16;
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
    /// When it was the newest part, by the database's clock.
    pub(super) at: DateTime<Utc>,
    /// Fingerprint of its database.
    pub(super) database: u32,
    frames: Mutex<HashMap<SelectionId, Arc<Frames>>>,
}

impl Batch {
    pub(super) fn new(events: Vec<LiveEvent>, mark: Mark, at: DateTime<Utc>, database: u32) -> Self {
        Self { events, mark: Arc::new(mark), at, database, frames: Mutex::default() }
    }

    /// Bytes in memory, nearly: an event and its JSON.
    pub(super) fn size(&self) -> usize {
        self.events.iter().map(|one| 2 * (one.event.payload.len() + one.event.headers.len()) + OVERHEAD).sum()
    }

    /// The token of an event of this batch.
    pub(super) fn token(&self, one: &LiveEvent) -> Arc<str> {
        let token = one.token.get_or_init(|| {
            let cursor = self.mark.behind(one.event.position);
            Token { database: self.database, at: self.at, cursor }.to_string().into()
        });
        token.clone()
    }

    /// What a selection makes of it: if it is kept, made once for all clients with the same selection.
    pub(super) fn frames(&self, id: SelectionId, keep: bool, make: impl FnOnce() -> Frames) -> Arc<Frames> {
        if let Some(frames) = self.kept().get(&id) {
            return frames.clone();
        }
        // Made without the lock: it takes a while, and two that make the same are no harm.
        let frames = Arc::new(make());
        if keep {
            self.kept().insert(id, frames.clone());
        }
        frames
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<SelectionId, Arc<Frames>>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Cursors without a batch of their own: nothing was new. With the number of the batch behind each.
    places: VecDeque<(Arc<Cursor>, u64)>,
}

impl Ring {
    /// An empty ring that begins at this cursor and keeps at most so many bytes, and one batch.
    pub(super) fn new(head: Arc<Cursor>, at: DateTime<Utc>, most: usize) -> Self {
        let places = VecDeque::from([(head.clone(), 0)]);
        Self { batches: VecDeque::new(), first: 0, size: 0, most, head, head_at: at, places }
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
    pub(super) fn push(&mut self, batch: Batch) {
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
            self.batches[older].kept().clear();
        }
        if self.places.back().is_none_or(|(last, _)| !last.is_same_place(&self.head)) {
            self.places.push_back((self.head.clone(), self.next()));
        }
        while self.places.len() > PLACES || self.places.front().is_some_and(|(_, at)| *at < self.first) {
            self.places.pop_front();
        }
    }

    /// Begins anew at this cursor. Who is elsewhere finds that the next batch was dropped, and reads the log.
    #[cfg(feature = "nats")]
    pub(super) fn jump(&mut self, head: Arc<Cursor>, at: DateTime<Utc>) {
        self.first = self.next() + 1;
        self.batches.clear();
        self.size = 0;
        self.places = VecDeque::from([(head.clone(), self.first)]);
        (self.head, self.head_at) = (head, at);
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
        if let Some((_, batch)) = self.places.iter().rev().find(|(place, _)| place.is_same_place(cursor)) {
            return Some(At { batch: *batch, index: 0 });
        }
        self.batches.iter().enumerate().rev().find_map(|(index, batch)| {
            let position = batch.mark.contains(cursor)?;
            Some(At { batch: self.first + index as u64, index: batch.behind(position) })
        })
    }
}

impl Batch {
    /// How many events are at or before this position.
    pub(super) fn behind(&self, position: Position) -> usize {
        self.events.partition_point(|one| one.event.position <= position)
    }
}
