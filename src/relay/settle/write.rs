//! Writes verdicts. What somebody else has locked is left out, so that it does not delay the others.

use std::{
    collections::HashSet,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        attempted::{Attempted, in_ascii},
        await_work::backon_waits,
        held::Page,
        telemetry::Telemetry,
    },
    batches::{pages_of, rows_of},
};
use crate::{
    delivery::{DeliveryId, PageId, Verdict},
    sink::sqlstate::Class,
    store::{Error, Kind, Settler, Store},
};

/// What became of rows or pages that were written.
#[derive(Debug, Default)]
pub(super) struct Written<Id> {
    /// Those whose lease was still ours; `None`: all of them count.
    pub(super) kept: Option<HashSet<Id>>,
    /// Those that were not written, because somebody has locked them.
    pub(super) locked: HashSet<Id>,
    /// Pages that were deleted.
    pub(super) finished: HashSet<PageId>,
}

/// Why a batch was not written.
enum Obstacle {
    /// A lock was not released in time.
    Locked,
    /// The database refuses a value.
    Refused,
}

/// What is written of answers: the database may not be able to hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Whole,
    InAscii,
    None,
}

impl Answers {
    fn simpler(self) -> Self {
        match self {
            Self::Whole => Self::InAscii,
            Self::InAscii | Self::None => Self::None,
        }
    }

    fn shape(self, answer: &mut Option<String>) {
        match self {
            Self::Whole => {}
            Self::InAscii => in_ascii(answer),
            Self::None => *answer = None,
        }
    }
}

/// Writes what one settler decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writer<'s> {
    pub(super) store: &'s Store,
    pub(super) telemetry: &'s Telemetry,
    pub(super) settler: Settler,
}

impl Writer<'_> {
    /// Writes the verdicts on rows.
    pub(super) async fn rows(&self, decided: &[(&Attempted, &Verdict)]) -> Written<DeliveryId> {
        let mut written = Written { kept: Some(HashSet::new()), ..Written::default() };
        let (mut unknown, mut answers) = (false, Answers::Whole);
        loop {
            let is_free =
                |one: &Attempted| one.job.held.row_id().is_some_and(|id| !written.locked.contains(&id));
            let mut batch = rows_of(decided.iter().copied().filter(|(one, _)| is_free(one)));
            batch.dead.iter_mut().for_each(|dead| answers.shape(&mut dead.answer));
            if batch.is_empty() {
                return written;
            }
            match self.persist(&mut unknown, answers, || self.store.settle_deliveries(&batch)).await {
                Ok(kept) => return Written { kept, ..written },
                Err(Obstacle::Refused) => answers = answers.simpler(),
                Err(Obstacle::Locked) => {
                    let ids: Vec<DeliveryId> = decided
                        .iter()
                        .filter(|(one, _)| is_free(one))
                        .filter_map(|(one, _)| one.job.held.row_id())
                        .collect();
                    let found = self.store.find_locked(&ids, &[], self.settler).await;
                    written.locked.extend(self.noted(found.map(|locked| locked.deliveries)));
                }
            }
        }
    }

    /// Writes the verdicts on pairs of pages, and deletes pages with nothing left.
    pub(super) async fn pages(
        &self,
        decided: &[(&Attempted, &Verdict)],
        finished: &[Arc<Page>],
    ) -> Written<PageId> {
        let mut written = Written { kept: Some(HashSet::new()), ..Written::default() };
        let (mut unknown, mut answers) = (false, Answers::Whole);
        loop {
            let is_free =
                |one: &Attempted| one.job.held.page_id().is_some_and(|id| !written.locked.contains(&id));
            let finished: Vec<Arc<Page>> =
                finished.iter().filter(|page| !written.locked.contains(&page.id)).cloned().collect();
            let mut batch = pages_of(decided.iter().copied().filter(|(one, _)| is_free(one)), &finished);
            batch.dead.iter_mut().for_each(|dead| answers.shape(&mut dead.answer));
            if batch.is_empty() {
                return written;
            }
            match self.persist(&mut unknown, answers, || self.store.settle_pages(&batch, self.settler)).await
            {
                Ok(kept) => {
                    return Written { kept, finished: batch.finished.into_iter().collect(), ..written };
                }
                Err(Obstacle::Refused) => answers = answers.simpler(),
                Err(Obstacle::Locked) => {
                    let ids: Vec<PageId> =
                        batch.progress.iter().map(|(id, _)| *id).chain(batch.finished).collect();
                    let found = self.store.find_locked(&[], &ids, self.settler).await;
                    written.locked.extend(self.noted(found.map(|locked| locked.pages)));
                }
            }
        }
    }

    fn noted<Id>(&self, found: Result<HashSet<Id>, Error>) -> HashSet<Id> {
        found.unwrap_or_else(|error| {
            self.telemetry.database_failed("settle", &error);
            HashSet::new()
        })
    }

    /// Writes until it succeeds, meets a lock, or is refused for its answers. `None` after a lost answer:
    /// rows that are missing then were settled by the first try, because no other relay writes under our
    /// tokens.
    async fn persist<Id: Eq + Hash, W: Future<Output = Result<Vec<Id>, Error>>>(
        &self,
        unknown: &mut bool,
        answers: Answers,
        write: impl Fn() -> W,
    ) -> Result<Option<HashSet<Id>>, Obstacle> {
        let mut waits = backon_waits();
        loop {
            let written = write().await;
            if written.is_ok() {
                self.telemetry.database_worked("settle");
            }
            match written {
                Ok(_) if *unknown => return Ok(None),
                Ok(settled) => return Ok(Some(settled.into_iter().collect())),
                Err(error) => {
                    self.telemetry.database_failed("settle", &error);
                    match error.class() {
                        Some(Class::Locked) => return Err(Obstacle::Locked),
                        Some(Class::Refused) if answers != Answers::None => return Err(Obstacle::Refused),
                        _ => {}
                    }
                    *unknown |= error.kind() == Kind::Connection;
                    let wait = waits.next().unwrap_or(Duration::from_secs(1));
                    tokio::time::sleep_until((Instant::now() + wait).into()).await;
                }
            }
        }
    }
}
