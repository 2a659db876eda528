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
    /// A verdict was refused: nothing more is written under this lease, and no newer one goes on with it.
    refused: bool,
}

impl Lease {
    pub(super) fn new(token: Uuid, given: Instant) -> Self {
        let state = LeaseState { token, given, refused: false };
        Self { state: Mutex::new(state), lost: CancellationToken::new() }
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

    /// Renewed under this token by a statement that was sent at `given`.
    fn renewed(&self, token: Uuid, given: Instant) {
        let mut state = self.state();
        if state.token == token {
            state.given = given;
        }
    }

    /// Another has it, unless it goes on under a newer token meanwhile.
    fn taken(&self, token: Uuid) {
        if self.state().token == token {
            self.lost.cancel();
        }
    }

    /// Whether it is to be renewed: it was given or renewed so long ago, and not refused.
    fn is_old(&self, age: Duration, now: Instant) -> bool {
        let state = self.state();
        !state.refused && now.duration_since(state.given) >= age
    }

    /// Goes on under the token of a newer lease, unless a verdict was refused. Returns whether it goes on.
    fn replace(&self, newer: &Self) -> bool {
        let newer = *newer.state();
        let mut state = self.state();
        if state.refused {
            return false;
        }
        *state = newer;
        true
    }

    /// A verdict under this token was refused: the database has this lease no more, and what it was for may
    /// be in other hands. Ends it for good. Returns false if it goes on under a newer token meanwhile: the
    /// verdict is then written again under that.
    pub(super) fn refuse(&self, token: Uuid) -> bool {
        let mut state = self.state();
        if state.token != token {
            return false;
        }
        state.refused = true;
        self.lost.cancel();
        true
    }

    /// Whether a verdict was refused.
    pub(super) fn is_refused(&self) -> bool {
        self.state().refused
    }

    /// Whether the database cannot have ended it yet, with this length.
    pub(super) fn still_runs(&self, length: Duration) -> bool {
        self.given().elapsed() < length
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

    fn old_pages(&self, age: Duration, now: Instant) -> Vec<Arc<Page>> {
        self.pages().values().filter(|page| page.lease.is_old(age, now)).cloned().collect()
    }

    fn old_rows(&self, age: Duration, now: Instant) -> Vec<Arc<Row>> {
        self.rows().values().filter(|row| row.lease.is_old(age, now)).cloned().collect()
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

/// A lease that is to be renewed: whose, its token, and itself.
type Asked<'l, Id> = (Id, Uuid, &'l Lease);

/// Applies the answer to a renewal. It has the leases that are still ours, and whether each was renewed; one
/// whose row is locked is renewed later.
fn renewed<Id: Copy + Eq + Hash>(asked: &[Asked<'_, Id>], ours: &[(Id, bool)], given: Instant) {
    let ours: HashMap<Id, bool> = ours.iter().copied().collect();
    for (id, token, lease) in asked {
        match ours.get(id) {
            Some(true) => lease.renewed(*token, given),
            Some(false) => {}
            None => lease.taken(*token),
        }
    }
}

/// The ids of these leases, and their tokens.
fn asked_for<Id: Copy>(asked: &[Asked<'_, Id>]) -> (Vec<Id>, Vec<Uuid>) {
    let mut tokens: Vec<Uuid> = asked.iter().map(|(_, token, _)| *token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    (asked.iter().map(|(id, ..)| *id).collect(), tokens)
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
            let part: Vec<_> = part.iter().map(|page| (page.id, page.lease.token(), &page.lease)).collect();
            let (ids, tokens) = asked_for(&part);
            let asked = Instant::now();
            match tokio::time::timeout(limit, store.renew_pages(&ids, &tokens, length)).await {
                Ok(Ok(ours)) => renewed(&part, &ours, asked),
                Ok(Err(error)) => telemetry.database_failed("renew", &error),
                Err(late) => telemetry.database_failed("renew", &late),
            }
            leases.give_up_overdue(Instant::now(), length);
        }
        for part in leases.old_rows(age, Instant::now()).chunks(RENEW_AT_ONCE) {
            let part: Vec<_> = part.iter().map(|row| (row.id, row.lease.token(), &row.lease)).collect();
            let (ids, tokens) = asked_for(&part);
            let asked = Instant::now();
            match tokio::time::timeout(limit, store.renew_leases(&ids, &tokens, length)).await {
                Ok(Ok(ours)) => renewed(&part, &ours, asked),
                Ok(Err(error)) => telemetry.database_failed("renew", &error),
                Err(late) => telemetry.database_failed("renew", &late),
            }
            leases.give_up_overdue(Instant::now(), length);
        }
        leases.give_up_overdue(Instant::now(), length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(10);

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

    #[test]
    fn an_answer_to_an_older_renewal_says_nothing_of_a_newer_lease() {
        let [first, second] = [Uuid::new_v4(), Uuid::new_v4()];
        let asked = Instant::now();
        let lease = Lease::new(first, asked);
        let newer = Instant::now();
        assert!(lease.replace(&Lease::new(second, newer)));
        renewed(&[(PageId(7), first, &lease)], &[], asked);
        assert!(!lease.lost().is_cancelled());
        renewed(&[(PageId(7), first, &lease)], &[(PageId(7), true)], asked);
        assert_eq!(lease.given(), newer);
        renewed(&[(PageId(7), second, &lease)], &[], asked);
        assert!(lease.lost().is_cancelled());
        assert!(lease.still_runs(LENGTH) && !lease.still_runs(Duration::ZERO));
    }
}
