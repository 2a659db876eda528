//! Verdicts on rows and pages that somebody else has locked: they wait here until the lock is released.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{attempted::Attempted, held::Page},
    write::Writer,
};
use crate::store::Locked;

/// How often is looked whether a lock was released.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What one settler has set aside.
#[derive(Debug, Default)]
pub(super) struct Aside {
    attempted: Vec<Attempted>,
    finished: Vec<Arc<Page>>,
    locked: Locked,
    next_look: Option<Instant>,
}

impl Aside {
    /// When to look again; `None`: nothing waits.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    pub(super) fn is_locked(&self, one: &Attempted) -> bool {
        one.job.held.row_id().is_some_and(|id| self.locked.deliveries.contains(&id))
            || one.job.held.page_id().is_some_and(|id| self.locked.pages.contains(&id))
    }

    pub(super) fn is_page_locked(&self, page: &Page) -> bool {
        self.locked.pages.contains(&page.id)
    }

    /// Remembers what is locked.
    pub(super) fn note(&mut self, locked: Locked) {
        self.locked.deliveries.extend(locked.deliveries);
        self.locked.pages.extend(locked.pages);
    }

    /// Sets verdicts and pages aside that are locked.
    pub(super) fn hold(&mut self, attempted: Vec<Attempted>, finished: Vec<Arc<Page>>) {
        if !attempted.is_empty() || !finished.is_empty() {
            self.next_look.get_or_insert_with(|| Instant::now() + LOOK_EVERY);
        }
        self.attempted.extend(attempted);
        self.finished.extend(finished);
    }

    /// Returns what is no longer locked, if it is time to look.
    pub(super) async fn take_free(&mut self, writer: Writer<'_>) -> (Vec<Attempted>, Vec<Arc<Page>>) {
        if self.next_look.is_none_or(|next| next > Instant::now()) {
            return Default::default();
        }
        let (deliveries, pages): (Vec<_>, Vec<_>) =
            (self.locked.deliveries.iter().copied().collect(), self.locked.pages.iter().copied().collect());
        match writer.store.find_locked(&deliveries, &pages, writer.settler).await {
            Ok(locked) => self.locked = locked,
            Err(error) => writer.telemetry.database_failed("settle", &error),
        }
        let (locked, free) =
            std::mem::take(&mut self.attempted).into_iter().partition(|one| self.is_locked(one));
        let (locked_pages, free_pages) =
            std::mem::take(&mut self.finished).into_iter().partition(|page| self.is_page_locked(page));
        self.next_look = None;
        self.hold(locked, locked_pages);
        (free, free_pages)
    }
}
