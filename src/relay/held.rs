//! The pages and rows that this relay has leased.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::lease::Lease;
use crate::delivery::{DeliveryId, PageId};

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

    /// The id of the row, if it is leased by one.
    pub(super) fn row_id(&self) -> Option<DeliveryId> {
        self.row().map(|row| row.id)
    }

    /// The row, if it is leased by one.
    pub(super) fn row(&self) -> Option<&Arc<Row>> {
        match self {
            Self::Page(..) => None,
            Self::Row(row) => Some(row),
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

/// What a relay holds of a page that it has taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holding {
    /// Nothing: the page was another's.
    Nothing,
    /// Its pairs, which go on under the new lease.
    GoesOn,
    /// Pairs that it has given up, because a verdict on one was refused.
    GivenUp,
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

    /// Adds a leased row. `None` if it is held under an older lease: what holds it goes on under this one,
    /// unless a verdict was refused under the older.
    pub(super) fn row(&self, id: DeliveryId, lease: Lease) -> Option<Arc<Row>> {
        let mut rows = self.rows();
        if rows.get(&id).is_some_and(|held| held.lease.replace(&lease)) {
            return None;
        }
        let row = Arc::new(Row { id, lease });
        rows.insert(id, row.clone());
        Some(row)
    }

    /// What this relay holds of a page that it has taken over. What holds it goes on under this lease, if it
    /// can.
    pub(super) fn goes_on(&self, id: PageId, lease: &Lease) -> Holding {
        match self.pages().get(&id) {
            None => Holding::Nothing,
            Some(page) if page.lease.replace(lease) => Holding::GoesOn,
            Some(_) => Holding::GivenUp,
        }
    }

    /// Removes a page of which nothing is left.
    pub(super) fn release_page(&self, id: PageId) {
        self.pages().remove(&id);
    }

    /// Removes rows whose verdicts are committed or refused.
    pub(super) fn release_rows<'r>(&self, released: impl IntoIterator<Item = &'r Arc<Row>>) {
        let mut rows = self.rows();
        for row in released {
            // It may be held anew.
            if rows.get(&row.id).is_some_and(|held| Arc::ptr_eq(held, row)) {
                rows.remove(&row.id);
            }
        }
    }

    /// Number of pages and rows.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.pages().len(), self.rows().len())
    }

    pub(super) fn old_pages(&self, age: Duration, now: Instant) -> Vec<Arc<Page>> {
        self.pages().values().filter(|page| page.lease.is_old(age, now)).cloned().collect()
    }

    pub(super) fn old_rows(&self, age: Duration, now: Instant) -> Vec<Arc<Row>> {
        self.rows().values().filter(|row| row.lease.is_old(age, now)).cloned().collect()
    }

    /// Gives up leases that were not renewed for two thirds of their length, before others may take them
    /// over.
    pub(super) fn give_up_overdue(&self, now: Instant, length: Duration) {
        let overdue = |lease: &Lease| now.duration_since(lease.given()) >= length * 2 / 3;
        self.pages()
            .values()
            .map(|page| &page.lease)
            .filter(|lease| overdue(lease))
            .for_each(|lease| lease.give_up());
        self.rows()
            .values()
            .map(|row| &row.lease)
            .filter(|lease| overdue(lease))
            .for_each(|lease| lease.give_up());
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn held(leases: &Leases, token: Uuid) -> Arc<Page> {
        let span = (DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH);
        leases.page(PageId(7), Lease::new(token, Instant::now()), (0, 0), span, 3)
    }

    #[test]
    fn a_page_goes_on_under_a_newer_lease() {
        let (leases, [first, second]) = (Leases::default(), [Uuid::new_v4(), Uuid::new_v4()]);
        let page = held(&leases, first);
        let newer = Lease::new(second, Instant::now());
        assert_eq!(leases.goes_on(PageId(7), &newer), Holding::GoesOn);
        assert_eq!(leases.goes_on(PageId(8), &newer), Holding::Nothing);
        // What was refused under the older token is written again under the newer one.
        assert!(!page.lease.refuse(first));
        assert!(!page.lease.is_refused() && !page.lease.lost().is_cancelled());
        assert_eq!(page.lease.token(), second);
    }

    #[test]
    fn a_page_of_which_a_verdict_was_refused_never_goes_on() {
        let (leases, [first, second]) = (Leases::default(), [Uuid::new_v4(), Uuid::new_v4()]);
        let page = held(&leases, first);
        assert!(page.lease.refuse(first));
        assert!(page.lease.lost().is_cancelled(), "no attempt begins under it");
        assert_eq!(leases.goes_on(PageId(7), &Lease::new(second, Instant::now())), Holding::GivenUp);
        assert_eq!(page.lease.token(), first);
        assert!(leases.old_pages(Duration::ZERO, Instant::now()).is_empty(), "it is not renewed");
    }

    #[test]
    fn a_row_of_which_a_verdict_was_refused_is_held_anew() {
        let (leases, id) = (Leases::default(), DeliveryId(3));
        let [first, second, third] = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
        let row = leases.row(id, Lease::new(first, Instant::now())).unwrap();
        assert!(leases.row(id, Lease::new(second, Instant::now())).is_none(), "its attempt goes on");
        assert_eq!(row.lease.token(), second);
        assert!(row.lease.refuse(second));
        let anew = leases.row(id, Lease::new(third, Instant::now())).unwrap();
        leases.release_rows([&row]);
        assert_eq!(leases.count(), (0, 1), "the new one stays");
        leases.release_rows([&anew]);
        assert_eq!(leases.count(), (0, 0));
    }
}
