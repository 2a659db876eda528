//! A model of the outbox in a database: the log with transactions, the cursor, and what is owed. Each method
//! is a statement of the product, run at once. `model::differential` compares it with PostgreSQL.

mod claims;
mod ordered;
mod routing;
mod settling;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use pgoutbox::{
    delivery::ranges::Ranges,
    event::Event,
    store::{Entry, LeasedPage},
    subscription::Subscription,
};
use uuid::Uuid;

pub(crate) use claims::Found;
pub(crate) use routing::{Cursor, Read};

use super::defect::Defect;

/// Milliseconds of virtual time.
pub(crate) type Millis = i64;

/// The due time of what waits for something else than a time.
pub(crate) const NEVER: Millis = i64::MAX / 4;

/// A moment as the product has it.
pub(crate) fn date(at: Millis) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(at).unwrap_or_default()
}

/// A row of outbox.pages.
#[derive(Debug, Clone)]
pub(crate) struct PageRow {
    pub(crate) token: Uuid,
    pub(crate) due: Millis,
    pub(crate) deaths: i16,
    pub(crate) alone: i16,
    pub(crate) entries: Vec<Entry>,
    pub(crate) done: Ranges,
}

/// A row of outbox.backlog.
#[derive(Debug, Clone)]
pub(crate) struct BacklogRow {
    pub(crate) subscription: i64,
    pub(crate) positions: Ranges,
    pub(crate) owed_since: DateTime<Utc>,
    pub(crate) deaths: i16,
    pub(crate) alone: i16,
    pub(crate) is_ordered: bool,
}

/// A row of outbox.deliveries.
#[derive(Debug, Clone)]
pub(crate) struct DeliveryRow {
    pub(crate) subscription: i64,
    pub(crate) position: i64,
    pub(crate) due: Millis,
    pub(crate) token: Option<Uuid>,
    pub(crate) attempt: i32,
    pub(crate) unfinished: i32,
    pub(crate) repeated: bool,
    pub(crate) key: Option<String>,
    pub(crate) owed_since: DateTime<Utc>,
}

/// A row of outbox.dead_letters.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetter {
    pub(crate) subscription: i64,
    pub(crate) position: i64,
    pub(crate) reason: &'static str,
    pub(crate) attempts: i32,
    pub(crate) event: Option<Uuid>,
    pub(crate) key: Option<String>,
}

/// What a snapshot of the data directory holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Data {
    next_xid: u64,
    /// The newest transaction that has ended.
    ended_xid: u64,
    pub(crate) next_position: i64,
    next_id: i64,
    open: BTreeSet<u64>,
    pub(crate) log: BTreeMap<i64, (u64, Event)>,
    cursor: Option<Cursor>,
    pub(crate) pages: BTreeMap<i64, PageRow>,
    pub(crate) backlog: BTreeMap<i64, BacklogRow>,
    pub(crate) deliveries: BTreeMap<i64, DeliveryRow>,
    pub(crate) dead: BTreeMap<i64, DeadLetter>,
    /// Leases of ordered subscriptions.
    order: BTreeMap<i64, (Uuid, Millis)>,
    pub(crate) subscriptions: BTreeMap<i64, Arc<Subscription>>,
    pub(crate) generation: i64,
}

/// A database server.
#[derive(Debug, Default)]
pub(crate) struct Database {
    pub(crate) data: Data,
    /// What a crash leaves, while something that was committed is not on the disk.
    on_disk: Option<Box<Data>>,
    pub(crate) defect: Option<Defect>,
    /// The clock of the server.
    pub(crate) now: Millis,
    /// How often it has crashed: no connection outlives that.
    pub(crate) crashes: u64,
}

impl Database {
    pub(crate) fn new(defect: Option<Defect>, first_position: i64) -> Self {
        let data = Data {
            next_xid: 100,
            ended_xid: 99,
            next_position: first_position,
            next_id: 1,
            cursor: Some(Cursor::start(0)),
            ..Data::default()
        };
        Self { data, defect, ..Self::default() }
    }

    pub(super) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    pub(super) fn id(&mut self) -> i64 {
        self.data.next_id += 1;
        self.data.next_id - 1
    }

    /// A transaction that writes something.
    pub(crate) fn begin(&mut self) -> u64 {
        let xid = self.data.next_xid;
        self.data.next_xid += 1;
        self.data.open.insert(xid);
        xid
    }

    /// A statement that writes is a transaction of its own, which is on the disk when it is answered.
    pub(super) fn write(&mut self) -> u64 {
        let xid = self.begin();
        self.end(xid);
        self.on_disk = None;
        xid
    }

    /// As [`Database::write`], for what may be committed asynchronously by mistake.
    pub(super) fn write_of_claim(&mut self) -> u64 {
        if self.has(Defect::AsynchronousClaim) {
            self.keep_disk();
            let xid = self.begin();
            self.end(xid);
            return xid;
        }
        self.write()
    }

    fn end(&mut self, xid: u64) {
        self.data.open.remove(&xid);
        self.data.ended_xid = self.data.ended_xid.max(xid);
    }

    fn keep_disk(&mut self) {
        if self.on_disk.is_none() {
            self.on_disk = Some(Box::new(self.data.clone()));
        }
    }

    /// Draws the next position.
    pub(crate) fn draw(&mut self) -> i64 {
        self.data.next_position += 1;
        self.data.next_position - 1
    }

    /// Writes an event in an open transaction.
    pub(crate) fn insert(&mut self, xid: u64, event: Event) {
        self.data.log.insert(event.position.0, (xid, event));
    }

    /// Returns whether it was committed: a crash may have ended it.
    pub(crate) fn commit(&mut self, xid: u64, is_synchronous: bool) -> bool {
        if !self.data.open.contains(&xid) {
            return false;
        }
        if is_synchronous {
            self.end(xid);
            self.on_disk = None;
        } else {
            self.keep_disk();
            self.end(xid);
        }
        true
    }

    pub(crate) fn rollback(&mut self, xid: u64) {
        if self.data.open.contains(&xid) {
            self.end(xid);
            self.data.log.retain(|_, (of, _)| *of != xid);
        }
    }

    /// What was committed asynchronously is on the disk.
    pub(crate) fn flush(&mut self) {
        self.on_disk = None;
    }

    /// The server ends without a word, and recovers what is on the disk.
    pub(crate) fn crash(&mut self) {
        if let Some(left) = self.on_disk.take() {
            self.data = *left;
        }
        self.crashes += 1;
        for xid in std::mem::take(&mut self.data.open) {
            self.data.ended_xid = self.data.ended_xid.max(xid);
            self.data.log.retain(|_, (of, _)| *of != xid);
        }
    }

    /// A committed event.
    pub(crate) fn event(&self, position: i64) -> Option<&Event> {
        let (xid, event) = self.data.log.get(&position)?;
        (!self.data.open.contains(xid)).then_some(event)
    }

    /// Adds or replaces a subscription.
    pub(crate) fn subscribe(&mut self, subscription: Arc<Subscription>) {
        self.write();
        self.data.generation += 1;
        self.data.subscriptions.insert(subscription.row.id.0, subscription);
    }

    pub(super) fn is_sent_to(&self, id: i64, is_ordered: bool) -> bool {
        self.data.subscriptions.get(&id).is_some_and(|one| {
            (one.row.active || self.has(Defect::PausedIsSent)) && is_keyed(one) == is_ordered
        })
    }

    fn is_ordered(&self, id: i64) -> bool {
        self.data.subscriptions.get(&id).is_some_and(|one| is_keyed(one))
    }

    pub(super) fn lease_page(&mut self, row: PageRow) -> LeasedPage {
        let id = self.id();
        let page = leased(id, &row);
        self.data.pages.insert(id, row);
        page
    }

    /// Whether anything is outstanding.
    pub(crate) fn owes_nothing(&self) -> bool {
        let Data { pages, backlog, deliveries, .. } = &self.data;
        pages.is_empty() && backlog.is_empty() && deliveries.is_empty()
    }
}

/// Whether the events of a key keep their order.
pub(crate) fn is_keyed(subscription: &Subscription) -> bool {
    subscription.row.ordering == pgoutbox::store::Ordering::Key
}

/// A row as a claim or takeover returns it.
pub(super) fn leased(id: i64, row: &PageRow) -> LeasedPage {
    LeasedPage {
        id: pgoutbox::delivery::PageId(id),
        deaths: row.deaths,
        alone: row.alone,
        span: (date(0), date(0)),
        entries: row.entries.clone(),
        done: row.done.clone(),
    }
}

/// The numbers of a set that another has not.
pub(crate) fn without(all: &Ranges, removed: &Ranges) -> Ranges {
    all.iter().filter(|number| !removed.contains(*number)).collect()
}
