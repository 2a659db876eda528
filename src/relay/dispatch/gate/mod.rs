//! The gate of an ordered subscription: of each key one delivery goes on at a time, and the next when its
//! verdict is committed. Pure.
//!
//! What waits in outbox.deliveries for a key comes before all of its other deliveries: while there is such a
//! row, what arrives from the backlog becomes a row, too. What goes back to the backlog makes everything
//! behind it go back, also what a claim brings that began before that was committed.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use crate::event::Position;

/// A delivery as a gate sees it.
pub trait Ordered {
    /// Position of its event.
    fn position(&self) -> Position;
    /// Where it waited.
    fn place(&self) -> Place;
}

/// Where a delivery waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the backlog.
    Backlog,
    /// In a row, in the order of its key.
    InOrder,
    /// In a row with a due time of its own: it is not in the order, but of its key nothing else is in flight.
    Timed,
}

/// What became of a delivery that had passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing more is owed.
    Done,
    /// It is a row that is due later.
    Retried,
    /// It is a dead letter, and its key is parked.
    Parked,
    /// It is back in the backlog, or a row that is due.
    Returned,
    /// Its lease was lost.
    Lost,
}

/// What a gate lets go.
#[derive(Debug)]
pub struct Released<J> {
    /// These may begin.
    pub pass: Vec<J>,
    /// These become rows that wait for their turn.
    pub aside: Vec<J>,
    /// These go back to where they waited.
    pub back: Vec<J>,
    /// These are superseded by newer ones.
    pub superseded: Vec<J>,
}

impl<J> Default for Released<J> {
    fn default() -> Self {
        Self { pass: Vec::new(), aside: Vec::new(), back: Vec::new(), superseded: Vec::new() }
    }
}

/// What a gate had seen when a claim began: what the claim brings may not know of what came after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Epoch {
    /// How many times something came back to the backlog.
    returned: u64,
    /// How many deliveries became rows that wait for their turn.
    written: u64,
}

/// A delivery and its key.
pub type Keyed<J> = (Option<Arc<str>>, J);

/// The deliveries of one subscription, by key.
#[derive(Debug)]
pub struct Gate<J> {
    lanes: HashMap<Arc<str>, Lane<J>>,
    /// Deliveries that wait in all lanes.
    waiting: usize,
    /// Deliveries on their way back that have not passed.
    returning: usize,
    epoch: Epoch,
    /// Keys whose next rows are to be claimed.
    wanted: BTreeSet<Arc<str>>,
    /// Whether this relay may deliver the subscription.
    is_open: bool,
    /// Whether only the newest waiting delivery of a key is sent.
    coalesces: bool,
}

/// The deliveries of one key.
#[derive(Debug)]
struct Lane<J> {
    /// Whether one has passed and is not settled.
    has_passed: bool,
    /// In the order in which they pass.
    waiting: VecDeque<J>,
    /// Whether the key may have rows in outbox.deliveries, or is parked.
    has_rows: bool,
    /// Deliveries on their way to outbox.deliveries.
    writing: usize,
    /// Superseded deliveries that are not settled.
    superseding: usize,
    /// Whether rows may be left that nothing makes due but a claim.
    asks: bool,
    /// What had been written when its last delivery became a row.
    written: u64,
}

impl<J> Default for Lane<J> {
    fn default() -> Self {
        Self {
            has_passed: false,
            waiting: VecDeque::new(),
            has_rows: false,
            writing: 0,
            superseding: 0,
            asks: false,
            written: 0,
        }
    }
}

impl<J> Lane<J> {
    fn is_idle(&self) -> bool {
        !self.has_passed && self.waiting.is_empty() && self.writing == 0 && self.superseding == 0
    }
}

impl<J: Ordered> Gate<J> {
    /// A gate for a subscription of which nothing is in any relay's hands. `keys` have rows or are parked.
    pub fn new(keys: impl IntoIterator<Item = Arc<str>>, coalesces: bool) -> Self {
        let with_rows = |key| (key, Lane { has_rows: true, ..Lane::default() });
        Self {
            lanes: keys.into_iter().map(with_rows).collect(),
            waiting: 0,
            returning: 0,
            epoch: Epoch::default(),
            wanted: BTreeSet::new(),
            is_open: true,
            coalesces,
        }
    }

    /// Number of deliveries that wait here.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether this relay may deliver the subscription.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether the backlog may be claimed: nothing is on its way back to it.
    pub fn may_claim(&self) -> bool {
        self.is_open && self.returning == 0
    }

    /// A claim that begins now brings deliveries of this epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether nothing of the subscription is in this gate or has passed it.
    pub fn is_empty(&self) -> bool {
        self.returning == 0 && self.lanes.values().all(Lane::is_idle)
    }

    /// Keys whose next rows are to be claimed now, at most so many.
    pub fn take_wanted(&mut self, most: usize) -> Vec<Arc<str>> {
        let taken: Vec<Arc<str>> = self.wanted.iter().take(most).cloned().collect();
        for key in &taken {
            self.wanted.remove(key);
        }
        taken
    }

    /// The next rows of this key are still to be claimed.
    pub fn want(&mut self, key: Arc<str>) {
        self.wanted.insert(key);
    }

    /// Whether rows of some key are to be claimed.
    pub fn has_wanted(&self) -> bool {
        self.is_open && !self.wanted.is_empty()
    }

    /// No row of this key could be claimed: it has none, or its first one is not due.
    pub fn found_none(&mut self, key: &Arc<str>, has_rows: bool, epoch: Epoch) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if has_rows {
            return; // it is due by itself
        }
        if lane.writing > 0 || lane.written > epoch.written {
            lane.asks = true;
        } else {
            lane.has_rows = false;
        }
        let mut none = Released::default();
        self.go_on(key, &mut none);
    }

    /// Takes deliveries that were claimed, each with its key, by a claim that began at this epoch. Those of
    /// the backlog are in the order of its positions.
    pub fn arrive(&mut self, jobs: Vec<Keyed<J>>, epoch: Epoch) -> Released<J> {
        let mut released = Released::default();
        let mut touched = Vec::new();
        let is_in_order = self.may_claim() && self.epoch.returned == epoch.returned;
        for (key, job) in jobs {
            let place = job.place();
            if !self.is_open || place == Place::Backlog && !is_in_order {
                self.returning += 1;
                released.back.push(job);
                continue;
            }
            let Some(key) = key else {
                released.pass.push(job);
                continue;
            };
            let lane = self.lanes.entry(key.clone()).or_default();
            match place {
                Place::Backlog if lane.has_rows => {
                    lane.writing += 1;
                    released.aside.push(job);
                }
                // What is being written, or was since the claim began, may come before it.
                Place::InOrder if lane.writing > 0 || lane.written > epoch.written => {
                    lane.writing += 1;
                    lane.asks = true;
                    released.aside.push(job);
                }
                Place::Backlog => {
                    lane.waiting.push_back(job);
                    self.waiting += 1;
                }
                Place::InOrder => {
                    (lane.has_rows, lane.asks) = (true, true);
                    let at = lane.waiting.partition_point(|other| other.position() < job.position());
                    lane.waiting.insert(at, job);
                    self.waiting += 1;
                }
                Place::Timed => {
                    // Before what waits in the order, which may wait for long.
                    let at = lane.waiting.iter().take_while(|other| other.place() == Place::Timed).count();
                    lane.waiting.insert(at, job);
                    self.waiting += 1;
                }
            }
            touched.push(key);
        }
        touched.dedup();
        for key in touched {
            self.coalesce(&key, &mut released);
            self.go_on(&key, &mut released);
        }
        released
    }

    /// What became of the delivery of this key that had passed is committed.
    pub fn ended(&mut self, key: &Arc<str>, place: Place, fate: Fate) -> Released<J> {
        let mut released = Released::default();
        if fate == Fate::Returned && place == Place::Backlog {
            self.epoch.returned += 1;
        }
        if fate == Fate::Lost {
            self.close(&mut released);
        }
        let Some(lane) = self.lanes.get_mut(key) else { return released };
        lane.has_passed = false;
        match fate {
            Fate::Done | Fate::Lost => {}
            Fate::Retried if place == Place::Timed => {}
            Fate::Retried | Fate::Parked => {
                lane.has_rows = true;
                // It is due by itself, unless a claim has brought it again and it is being written.
                lane.asks &= lane.writing > 0;
                self.set_aside(key, &mut released);
            }
            Fate::Returned if place == Place::InOrder => {
                self.set_aside(key, &mut released);
            }
            Fate::Returned if place == Place::Backlog => {
                let back = std::mem::take(&mut lane.waiting);
                self.waiting -= back.len();
                self.returning += back.len();
                released.back.extend(back);
            }
            Fate::Returned => {}
        }
        self.go_on(key, &mut released);
        released
    }

    /// A delivery of this key is a row now.
    pub fn written(&mut self, key: &Arc<str>) -> Released<J> {
        let mut released = Released::default();
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.writing -= 1;
            self.epoch.written += 1;
            lane.written = self.epoch.written;
        }
        self.go_on(key, &mut released);
        released
    }

    /// A superseded delivery of this key is settled.
    pub fn superseded(&mut self, key: &Arc<str>) -> Released<J> {
        let mut released = Released::default();
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.superseding -= 1;
        }
        self.go_on(key, &mut released);
        released
    }

    /// A delivery that had not passed is where it waited.
    pub fn returned(&mut self) {
        self.returning -= 1;
        self.epoch.returned += 1;
    }

    /// So many deliveries that never arrived are on their way back.
    pub fn returns(&mut self, count: usize) {
        self.returning += count;
    }

    /// This relay may not deliver the subscription any more: what waits here goes back.
    pub fn close(&mut self, released: &mut Released<J>) {
        self.is_open = false;
        for lane in self.lanes.values_mut() {
            released.back.extend(lane.waiting.drain(..));
        }
        self.returning += std::mem::take(&mut self.waiting);
    }

    /// What waits in the order of a key waits in outbox.deliveries.
    fn set_aside(&mut self, key: &Arc<str>, released: &mut Released<J>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let (aside, stay): (VecDeque<J>, VecDeque<J>) =
            std::mem::take(&mut lane.waiting).into_iter().partition(|job| job.place() != Place::Timed);
        self.waiting -= aside.len();
        lane.writing += aside.len();
        // The one that blocks its key may be among them, due again and claimed already.
        lane.asks |= aside.iter().any(|job| job.place() == Place::InOrder);
        lane.waiting = stay;
        released.aside.extend(aside);
    }

    /// Of what waits for a key only the newest is sent. It passes when the others are settled.
    fn coalesce(&mut self, key: &Arc<str>, released: &mut Released<J>) {
        let Some(lane) = self.lanes.get_mut(key).filter(|_| self.coalesces) else { return };
        let newest = lane.waiting.iter().map(Ordered::position).max();
        let (older, newest): (VecDeque<J>, VecDeque<J>) =
            std::mem::take(&mut lane.waiting).into_iter().partition(|job| Some(job.position()) < newest);
        self.waiting -= older.len();
        lane.superseding += older.len();
        lane.waiting = newest;
        released.superseded.extend(older);
    }

    /// Lets the next delivery of a key pass, or asks for its next rows, if nothing is under way.
    fn go_on(&mut self, key: &Arc<str>, released: &mut Released<J>) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if lane.has_passed || lane.superseding > 0 {
            return;
        }
        if let Some(job) = lane.waiting.pop_front() {
            lane.has_passed = true;
            self.waiting -= 1;
            released.pass.push(job);
        } else if lane.writing > 0 {
            // The last of them goes on.
        } else if !lane.has_rows {
            self.lanes.remove(key);
        } else if std::mem::take(&mut lane.asks) {
            self.wanted.insert(key.clone());
        }
    }
}

#[cfg(test)]
mod tests;
