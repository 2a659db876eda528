//! Leases of this relay: of pages, and of rows. They are renewed while something of them is left, and given
//! up when that fails.
//!
//! A crash here costs the wait of one lease: everything is recorded in the database.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::parts::Base;
use crate::delivery::{DeliveryId, PageId};

/// Age at which leases are renewed, or three tenths of a lease that is shorter than ten seconds.
const RENEW_AFTER: Duration = Duration::from_secs(3);
/// How often the ages of leases are checked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Leases renewed in one statement.
const RENEW_AT_ONCE: usize = 1_000;

/// A lease, as far as this relay knows.
#[derive(Debug)]
pub(super) struct Lease {
    state: Mutex<LeaseState>,
    lost: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct LeaseState {
    token: Uuid,
    /// When it was last given or renewed: our monotonic clock before the statement was sent.
    given: Instant,
}

impl Lease {
    pub(super) fn new(token: Uuid, given: Instant) -> Self {
        Self { state: Mutex::new(LeaseState { token, given }), lost: CancellationToken::new() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn token(&self) -> Uuid {
        self.state().token
    }

    pub(super) fn given(&self) -> Instant {
        self.state().given
    }

    fn renewed(&self, given: Instant) {
        self.state().given = given;
    }

    /// Goes on under the token of a newer lease.
    fn replace(&self, newer: &Self) {
        *self.state() = *newer.state();
    }

    /// Cancelled when the lease is lost.
    pub(super) fn lost(&self) -> &CancellationToken {
        &self.lost
    }
}

/// A leased row of `outbox.pages`.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) id: PageId,
    pub(super) lease: Lease,
    /// `deaths`: relays that died while they held its pairs. `alone`: those that held one pair only.
    pub(super) deaths: i16,
    pub(super) alone: i16,
    /// The span of the events' `created_at`.
    pub(super) span: (DateTime<Utc>, DateTime<Utc>),
    /// Pairs that are not settled.
    left: AtomicU32,
}

/// A leased row of `outbox.deliveries`.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: DeliveryId,
    pub(super) lease: Lease,
}

/// The page or row by which a delivery is leased.
#[derive(Debug, Clone)]
pub(super) enum Held {
    /// A page, and the number of the delivery's pair in it.
    Page(Arc<Page>, i32),
    Row(Arc<Row>),
}

impl Held {
    /// The page, if it is leased by one.
    pub(super) fn page_id(&self) -> Option<PageId> {
        match self {
            Self::Page(page, _) => Some(page.id),
            Self::Row(_) => None,
        }
    }

    /// The row, if it is leased by one.
    pub(super) fn row_id(&self) -> Option<DeliveryId> {
        match self {
            Self::Page(..) => None,
            Self::Row(row) => Some(row.id),
        }
    }

    pub(super) fn lease(&self) -> &Lease {
        match self {
            Self::Page(page, _) => &page.lease,
            Self::Row(row) => &row.lease,
        }
    }
}

impl Page {
    pub(super) fn left(&self) -> u32 {
        self.left.load(Ordering::Acquire)
    }

    /// Counts settled pairs. Returns whether all are settled.
    pub(super) fn settled(&self, count: u32) -> bool {
        self.left.fetch_sub(count, Ordering::AcqRel) == count
    }
}

/// The leases that this relay holds.
#[derive(Debug, Default)]
pub(super) struct Leases {
    pages: Mutex<HashMap<PageId, Arc<Page>>>,
    rows: Mutex<HashMap<DeliveryId, Arc<Row>>>,
}

impl Leases {
    fn pages(&self) -> std::sync::MutexGuard<'_, HashMap<PageId, Arc<Page>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rows(&self) -> std::sync::MutexGuard<'_, HashMap<DeliveryId, Arc<Row>>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a leased page with this number of unsettled pairs.
    pub(super) fn page(
        &self,
        id: PageId,
        lease: Lease,
        blame: (i16, i16),
        span: (DateTime<Utc>, DateTime<Utc>),
        pairs: usize,
    ) -> Arc<Page> {
        let left = AtomicU32::new(u32::try_from(pairs).unwrap_or(u32::MAX));
        let page = Arc::new(Page { id, lease, deaths: blame.0, alone: blame.1, span, left });
        self.pages().insert(id, page.clone());
        page
    }

    /// Adds a leased row. `None` if it is held under an older lease: what holds it goes on under this one.
    pub(super) fn row(&self, id: DeliveryId, lease: Lease) -> Option<Arc<Row>> {
        match self.rows().entry(id) {
            std::collections::hash_map::Entry::Occupied(held) => {
                held.get().lease.replace(&lease);
                None
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                Some(entry.insert(Arc::new(Row { id, lease })).clone())
            }
        }
    }

    /// Whether a page is held under an older lease: what holds it goes on under this one.
    pub(super) fn goes_on(&self, id: PageId, lease: &Lease) -> bool {
        self.pages().get(&id).inspect(|page| page.lease.replace(lease)).is_some()
    }

    /// Removes a page of which nothing is left.
    pub(super) fn release_page(&self, id: PageId) {
        self.pages().remove(&id);
    }

    /// Removes rows whose verdicts are committed.
    pub(super) fn release_rows(&self, ids: impl IntoIterator<Item = DeliveryId>) {
        let mut rows = self.rows();
        for id in ids {
            rows.remove(&id);
        }
    }

    /// Number of pages and rows.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.pages().len(), self.rows().len())
    }

    fn old_pages(&self, age: Duration, now: Instant) -> Vec<Arc<Page>> {
        self.pages().values().filter(|page| now.duration_since(page.lease.given()) >= age).cloned().collect()
    }

    fn old_rows(&self, age: Duration, now: Instant) -> Vec<Arc<Row>> {
        self.rows().values().filter(|row| now.duration_since(row.lease.given()) >= age).cloned().collect()
    }

    /// Gives up leases that were not renewed for two thirds of their length, before others may take them
    /// over.
    fn give_up_overdue(&self, now: Instant, length: Duration) {
        let overdue = |lease: &Lease| now.duration_since(lease.given()) >= length * 2 / 3;
        self.pages()
            .values()
            .map(|page| &page.lease)
            .filter(|lease| overdue(lease))
            .for_each(|lease| lease.lost.cancel());
        self.rows()
            .values()
            .map(|row| &row.lease)
            .filter(|lease| overdue(lease))
            .for_each(|lease| lease.lost.cancel());
    }
}

/// Applies the answer to a renewal. It has the leases that are still ours, and whether each was renewed; one
/// whose row is locked is renewed later.
fn renewed<'l, Id: Copy + Eq + Hash>(
    asked: impl Iterator<Item = (Id, &'l Lease)>,
    ours: &[(Id, bool)],
    given: Instant,
) {
    let ours: HashMap<Id, bool> = ours.iter().copied().collect();
    for (id, lease) in asked {
        match ours.get(&id) {
            Some(true) => lease.renewed(given),
            Some(false) => {}
            None => lease.lost.cancel(),
        }
    }
}

fn tokens<'l>(leases: impl Iterator<Item = &'l Lease>) -> Vec<Uuid> {
    let mut tokens: Vec<Uuid> = leases.map(Lease::token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// Renews leases until the relay has drained.
pub(super) async fn renew(base: Arc<Base>, leases: Arc<Leases>, drained: CancellationToken) {
    let Base { store, telemetry, settings, .. } = &*base;
    let length = settings.lease;
    let mut look = tokio::time::interval(LOOK_EVERY.min(length / 6));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Attempts must be stopped in time when a renewal takes long.
    let limit = length / 5;
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = drained.cancelled() => return,
        }
        let age = RENEW_AFTER.min(length * 3 / 10);
        for part in leases.old_pages(age, Instant::now()).chunks(RENEW_AT_ONCE) {
            let ids: Vec<PageId> = part.iter().map(|page| page.id).collect();
            let asked = Instant::now();
            match tokio::time::timeout(
                limit,
                store.renew_pages(&ids, &tokens(part.iter().map(|page| &page.lease)), length),
            )
            .await
            {
                Ok(Ok(ours)) => renewed(part.iter().map(|page| (page.id, &page.lease)), &ours, asked),
                Ok(Err(error)) => telemetry.database_failed("renew", &error),
                Err(late) => telemetry.database_failed("renew", &late),
            }
            leases.give_up_overdue(Instant::now(), length);
        }
        for part in leases.old_rows(age, Instant::now()).chunks(RENEW_AT_ONCE) {
            let ids: Vec<DeliveryId> = part.iter().map(|row| row.id).collect();
            let asked = Instant::now();
            match tokio::time::timeout(
                limit,
                store.renew_leases(&ids, &tokens(part.iter().map(|row| &row.lease)), length),
            )
            .await
            {
                Ok(Ok(ours)) => renewed(part.iter().map(|row| (row.id, &row.lease)), &ours, asked),
                Ok(Err(error)) => telemetry.database_failed("renew", &error),
                Err(late) => telemetry.database_failed("renew", &late),
            }
            leases.give_up_overdue(Instant::now(), length);
        }
        leases.give_up_overdue(Instant::now(), length);
    }
}
