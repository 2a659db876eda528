//! The cursor and one routing step: `read_events`, `open_window`, `read_page`, `advance_cursor`.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use pgoutbox::{
    delivery::{PageId, ranges::Ranges},
    event::{Event, Position},
    store::{Advance, Entry, NewDelivery, NewEvent, Routed},
};
use uuid::Uuid;

use super::{BacklogRow, Database, DeliveryRow, Millis, PageRow, date};
use crate::model::defect::Defect;

/// Which transactions have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) xmax: u64,
    pub(crate) in_progress: BTreeSet<u64>,
}

impl Snapshot {
    fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && !self.in_progress.contains(&xid)
    }
}

/// Events of transactions with a higher id have higher positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Low {
    position: i64,
    xid: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    end: Snapshot,
    low: Option<Low>,
    after: i64,
    until: i64,
}

/// The row of outbox.cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) step: i64,
    settled: Snapshot,
    low: Option<Low>,
    window: Option<Window>,
}

#[derive(Debug, Clone)]
enum Reached {
    Everything(Snapshot),
    Page { window: Window, upto: i64, last: bool },
}

/// What a step has read.
#[derive(Debug)]
pub(crate) struct Read {
    /// In the order of positions.
    pub(crate) events: Vec<NewEvent>,
    pub(crate) generation: i64,
    reached: Reached,
    drawn: i64,
}

impl Read {
    /// Whether the cursor moves even if no event was read.
    pub(crate) fn is_of_window(&self) -> bool {
        matches!(self.reached, Reached::Page { .. })
    }
}

impl Cursor {
    pub(super) fn start(low: i64) -> Self {
        let settled = Snapshot { xmax: 100, in_progress: BTreeSet::new() };
        Self { step: 1, settled, low: Some(Low { position: low, xid: 99 }), window: None }
    }

    pub(crate) fn has_window(&self) -> bool {
        self.window.is_some()
    }

    /// Whether the cursor has passed an event.
    fn has_routed(&self, xid: u64, position: i64) -> bool {
        let in_window = |window: &Window| window.end.sees(xid) && position <= window.after;
        self.settled.sees(xid) || self.window.as_ref().is_some_and(in_window)
    }

    /// As the method of the product's cursor.
    fn next(&self, read: &Read, advance: Advance) -> Self {
        let last = read.events.last().map(|last| last.event.position.0);
        let (settled, low, window) = match (&read.reached, advance) {
            (Reached::Everything(snapshot), Advance::All) => (snapshot.clone(), None, None),
            (Reached::Everything(snapshot), Advance::UpTo(Position(position))) => {
                let until = last.unwrap_or(position);
                let window = Window { end: snapshot.clone(), low: None, after: position, until };
                (self.settled.clone(), self.low.clone(), Some(window))
            }
            (Reached::Page { window, last: true, .. }, Advance::All) => {
                (window.end.clone(), window.low.clone(), None)
            }
            (Reached::Page { window, upto, .. }, Advance::All) => {
                let window = Window { after: *upto, ..window.clone() };
                (self.settled.clone(), self.low.clone(), Some(window))
            }
            (Reached::Page { window, .. }, Advance::UpTo(Position(position))) => {
                let window = Window { after: position, ..window.clone() };
                (self.settled.clone(), self.low.clone(), Some(window))
            }
        };
        Self { step: self.step + 1, settled, low, window }
    }
}

impl Database {
    fn snapshot(&self) -> Snapshot {
        let xmax = self.data.ended_xid + 1;
        Snapshot { xmax, in_progress: self.data.open.range(..xmax).copied().collect() }
    }

    fn cursor(&self) -> Cursor {
        self.data.cursor.clone().unwrap()
    }

    pub(crate) fn load_cursor(&self) -> Cursor {
        self.cursor()
    }

    /// Committed events that the cursor has not passed.
    pub(crate) fn unrouted(&self) -> Vec<i64> {
        let cursor = self.cursor();
        let is_new = |position: i64, xid: u64| match self.defect {
            Some(Defect::CursorByPosition) => cursor.low.as_ref().is_some_and(|low| position > low.position),
            _ => !self.data.open.contains(&xid) && !cursor.has_routed(xid, position),
        };
        self.data.log.iter().filter(|(at, (xid, _))| is_new(**at, *xid)).map(|(at, _)| *at).collect()
    }

    /// Reads new events, at most so many; none: another relay has moved the cursor. A statement looks at so
    /// many positions of a window.
    pub(crate) fn read_events(&self, cursor: &Cursor, most: usize, positions: i64) -> Option<Read> {
        let window = match cursor.window.clone() {
            Some(window) => window,
            None => {
                if cursor.step != self.cursor().step {
                    return None;
                }
                let events: Vec<NewEvent> = self
                    .data
                    .log
                    .values()
                    .filter(|(xid, event)| self.is_new(cursor, *xid, event.position.0))
                    .map(|(_, event)| new_event(event))
                    .collect();
                if events.len() <= most {
                    let reached = Reached::Everything(self.snapshot());
                    return Some(self.read(events, reached));
                }
                self.open_window(cursor)
            }
        };
        self.read_page(cursor, window, most, positions)
    }

    fn is_new(&self, cursor: &Cursor, xid: u64, position: i64) -> bool {
        let is_committed = !self.data.open.contains(&xid);
        match self.defect {
            Some(Defect::CursorByPosition) => {
                is_committed && cursor.low.as_ref().is_some_and(|low| position > low.position)
            }
            Some(Defect::CursorWithoutTransactionsInProgress) => is_committed && xid >= cursor.settled.xmax,
            Some(Defect::ReadsUncommitted) => !cursor.settled.sees(xid),
            _ => is_committed && !cursor.settled.sees(xid),
        }
    }

    fn read(&self, mut events: Vec<NewEvent>, reached: Reached) -> Read {
        events.sort_unstable_by_key(|new| new.event.position);
        Read { events, generation: self.data.generation, reached, drawn: self.data.next_position - 2 }
    }

    /// Transactions of which the cursor has seen nothing, and that may have positions below its lower bound.
    fn late(&self, cursor: &Cursor) -> BTreeSet<u64> {
        let newer = cursor.settled.xmax..=cursor.low.as_ref().map_or(0, |low| low.xid);
        cursor.settled.in_progress.iter().copied().chain(newer).collect()
    }

    fn open_window(&self, cursor: &Cursor) -> Window {
        let end = self.snapshot();
        let late = self.late(cursor);
        let first = self
            .data
            .log
            .iter()
            .filter(|(_, (xid, _))| late.contains(xid) && end.sees(*xid) && !self.data.open.contains(xid))
            .map(|(at, _)| at - 1)
            .next();
        let low = cursor.low.as_ref().map(|low| low.position);
        let after = low.into_iter().chain(first).min().unwrap_or_default();
        Window { end, low: None, after, until: self.data.next_position - 1 }
    }

    fn read_page(&self, cursor: &Cursor, window: Window, most: usize, positions: i64) -> Option<Read> {
        if cursor.step != self.cursor().step {
            return None;
        }
        let low = cursor.low.as_ref().map_or(i64::MIN, |low| low.position);
        let from = low.max(window.after);
        let until = window.until.min(from.saturating_add(positions));
        let is_there = |xid: &u64| window.end.sees(*xid) && !self.data.open.contains(xid);
        let mut events: Vec<NewEvent> = self
            .data
            .log
            .range(from + 1..(until + 1).max(from + 1))
            .filter(|(_, (xid, _))| is_there(xid) && !cursor.settled.sees(*xid))
            .take(most)
            .map(|(_, (_, event))| new_event(event))
            .collect();
        if window.after < low && !self.has(Defect::WindowSkipsLateCommits) {
            let late = self.late(cursor);
            let below = self.data.log.range(window.after + 1..(until.min(low) + 1).max(window.after + 1));
            let below = below.filter(|(_, (xid, _))| late.contains(xid) && is_there(xid)).take(most);
            events.extend(below.map(|(_, (_, event))| new_event(event)));
        }
        events.sort_unstable_by_key(|new| new.event.position);
        let (mut upto, mut last) = (until, until == window.until);
        if events.len() >= most {
            events.truncate(most);
            last = false;
            upto = events.last().map_or(until, |last| last.event.position.0);
        }
        Some(self.read(events, Reached::Page { window, upto, last }))
    }

    /// Moves the cursor and writes what was routed; none: another relay has moved it.
    pub(crate) fn advance_cursor(
        &mut self,
        cursor: &Cursor,
        read: &Read,
        advance: Advance,
        routed: &Routed,
        (token, lease): (Uuid, Millis),
    ) -> Option<(Cursor, Vec<PageId>, DateTime<Utc>)> {
        if cursor.step != self.cursor().step && !self.has(Defect::CursorWithoutCompareAndSet) {
            return None;
        }
        let xid = self.write_of_claim();
        let mut next = cursor.next(read, advance);
        let bound = match self.has(Defect::LowerBoundByEndOfSnapshot) {
            true => self.cursor().settled.xmax.saturating_sub(1),
            false => xid,
        };
        let low = Low { position: read.drawn, xid: bound };
        next.low.get_or_insert_with(|| low.clone());
        if let Some(window) = &mut next.window {
            window.low.get_or_insert(low);
        }
        self.data.cursor = Some(next.clone());
        let mut ids = Vec::with_capacity(routed.pages.len());
        for page in &routed.pages {
            let owed_since = date(self.now);
            let entry = |(subscription, positions): &(_, Ranges)| Entry {
                subscription: *subscription,
                positions: positions.clone(),
                owed_since,
            };
            let row = PageRow {
                token,
                due: self.now + lease,
                deaths: 0,
                alone: 0,
                entries: page.entries.iter().map(entry).collect(),
                done: Ranges::default(),
            };
            ids.push(self.lease_page(row).id);
        }
        for (subscription, positions) in &routed.waiting {
            let is_ordered = self.is_ordered(subscription.0);
            let (id, owed_since) = (self.id(), date(self.now));
            let (subscription, positions) = (subscription.0, positions.clone());
            let row = BacklogRow { subscription, positions, owed_since, deaths: 0, alone: 0, is_ordered };
            self.data.backlog.insert(id, row);
        }
        for new in &routed.timed {
            self.insert_timed(new);
        }
        Some((next, ids, date(self.now)))
    }

    fn insert_timed(&mut self, new: &NewDelivery) {
        let after = new.deliver_after.map_or(Millis::MIN, |then| then.timestamp_millis());
        let (id, now) = (self.id(), self.now);
        let row = DeliveryRow {
            subscription: new.subscription.0,
            position: new.position.0,
            due: after.max(now - i64::from(new.priority) * 60_000),
            token: None,
            attempt: 0,
            unfinished: 0,
            repeated: false,
            key: None,
            owed_since: date(after.max(now)),
        };
        self.data.deliveries.insert(id, row);
    }
}

fn new_event(event: &Event) -> NewEvent {
    NewEvent {
        event: event.clone(),
        payload_read: true,
        priority: 0,
        deliver_after: None,
        routed_early: false,
    }
}
