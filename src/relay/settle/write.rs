//! Writes verdicts. What somebody else has locked is left out, so that it does not delay the others.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    super::{
        attempted::{Attempted, in_ascii},
        crash,
        held::{Held, Page},
        lease::Lease,
        telemetry::Telemetry,
    },
    batches::{pages_of, rows_of},
};
use crate::{
    delivery::{DeliveryId, PageId, Verdict},
    sink::sqlstate::Class,
    store::{Error, Kind, Settler, Store, retry_waits},
};

/// What became of rows or pages that were written.
#[derive(Debug)]
pub(super) struct Written<Id> {
    /// Those whose lease was still ours.
    pub(super) kept: HashSet<Id>,
    /// Those that were not written, because somebody has locked them.
    pub(super) locked: HashSet<Id>,
    /// Pages that were deleted.
    pub(super) finished: HashSet<PageId>,
}

impl<Id> Default for Written<Id> {
    fn default() -> Self {
        Self { kept: HashSet::new(), locked: HashSet::new(), finished: HashSet::new() }
    }
}

/// Why a batch was not written.
enum Obstacle {
    /// It failed, and is written again.
    Failed,
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
    /// Length of leases.
    pub(super) lease: Duration,
}

impl Writer<'_> {
    /// Writes the verdicts on rows. Ends the leases of those that were refused.
    pub(super) async fn rows(&self, decided: &[(&Attempted, &Verdict)]) -> Written<DeliveryId> {
        let mut written = Written::default();
        let (mut trial, mut answers) = (Trial::default(), Answers::Whole);
        loop {
            let is_left = |id: DeliveryId| !written.kept.contains(&id) && !written.locked.contains(&id);
            let (mut batch, tokens) = rows_of(
                decided.iter().copied().filter(|(one, _)| one.job.held.row_id().is_some_and(is_left)),
            );
            batch.dead.iter_mut().for_each(|dead| answers.shape(&mut dead.answer));
            if batch.is_empty() {
                return written;
            }
            match self.once(&mut trial, answers, self.store.settle_deliveries(&batch)).await {
                Ok(kept) => {
                    written.kept.extend(kept);
                    for (one, _) in decided {
                        if let Held::Row(row) = &one.job.held
                            && let Some(token) = tokens.get(&row.id)
                            && !written.kept.contains(&row.id)
                            && self.is_missing(&trial, &row.lease, *token, true)
                        {
                            written.kept.insert(row.id);
                        }
                    }
                }
                Err(Obstacle::Failed) => {}
                Err(Obstacle::Refused) => answers = answers.simpler(),
                Err(Obstacle::Locked) => {
                    let ids: Vec<DeliveryId> = tokens.into_keys().collect();
                    let found = self.store.find_locked(&ids, &[], self.settler).await;
                    written.locked.extend(self.noted(found.map(|locked| locked.deliveries)));
                }
            }
        }
    }

    /// Writes the verdicts on pairs of pages, and deletes pages with nothing left. Ends the leases of pages
    /// of which verdicts were refused.
    pub(super) async fn pages(
        &self,
        decided: &[(&Attempted, &Verdict)],
        finished: &[Arc<Page>],
    ) -> Written<PageId> {
        let mut written = Written::default();
        let (mut trial, mut answers) = (Trial::default(), Answers::Whole);
        loop {
            let is_left = |id: &PageId| !written.kept.contains(id) && !written.locked.contains(id);
            let finished: Vec<Arc<Page>> =
                finished.iter().filter(|page| is_left(&page.id)).cloned().collect();
            let decided_now = || {
                decided
                    .iter()
                    .copied()
                    .filter(|(one, _)| one.job.held.page_id().is_some_and(|id| is_left(&id)))
            };
            let (mut batch, tokens) = pages_of(decided_now(), &finished);
            batch.dead.iter_mut().for_each(|dead| answers.shape(&mut dead.answer));
            if batch.is_empty() {
                return written;
            }
            match self.once(&mut trial, answers, self.store.settle_pages(&batch, self.settler)).await {
                Ok(kept) => {
                    let kept: HashSet<PageId> = kept.into_iter().collect();
                    let deleted: HashSet<PageId> = batch.finished.into_iter().collect();
                    let of_decided = decided_now().filter_map(|(one, _)| match &one.job.held {
                        Held::Page(page, _) => Some(page),
                        Held::Row(_) => None,
                    });
                    // Each once: what is refused must not be asked about again.
                    let pages: HashMap<PageId, &Arc<Page>> =
                        of_decided.chain(&finished).map(|page| (page.id, page)).collect();
                    let mut all = kept.clone();
                    for (id, token) in tokens {
                        let is_missing = !kept.contains(&id);
                        if is_missing
                            && pages.get(&id).is_some_and(|page| {
                                self.is_missing(&trial, &page.lease, token, deleted.contains(&id))
                            })
                        {
                            all.insert(id);
                        }
                    }
                    written.finished.extend(deleted.intersection(&all));
                    written.kept.extend(all);
                }
                Err(Obstacle::Failed) => {}
                Err(Obstacle::Refused) => answers = answers.simpler(),
                Err(Obstacle::Locked) => {
                    let ids: Vec<PageId> = tokens.into_keys().collect();
                    let found = self.store.find_locked(&[], &ids, self.settler).await;
                    written.locked.extend(self.noted(found.map(|locked| locked.pages)));
                }
            }
        }
    }

    /// What was written under this token is not in the answer. Returns whether it was written nevertheless:
    /// the answer to an earlier trial was lost, that trial may have removed it, and nobody else can have it.
    /// If not, it was refused, and its lease ends; unless it goes on under a newer token, under which it is
    /// written again.
    fn is_missing(&self, trial: &Trial, lease: &Lease, token: Uuid, may_be_gone: bool) -> bool {
        if trial.is_unknown && may_be_gone && lease.still_runs(self.lease) {
            return true;
        }
        lease.refuse(token);
        false
    }

    fn noted<Id>(&self, found: Result<HashSet<Id>, Error>) -> HashSet<Id> {
        found.unwrap_or_else(|error| {
            self.telemetry.database_failed("settle", &error);
            HashSet::new()
        })
    }

    /// Writes once. Waits a little when that fails.
    async fn once<Id>(
        &self,
        trial: &mut Trial,
        answers: Answers,
        write: impl Future<Output = Result<Vec<Id>, Error>>,
    ) -> Result<Vec<Id>, Obstacle> {
        crash::point(crash::Point::Settling);
        let error = match write.await {
            Ok(written) => {
                crash::point(crash::Point::Settled);
                self.telemetry.database_worked("settle");
                return Ok(written);
            }
            Err(error) => error,
        };
        self.telemetry.database_failed("settle", &error);
        match error.class() {
            Some(Class::Locked) => return Err(Obstacle::Locked),
            Some(Class::Refused) if answers != Answers::None => return Err(Obstacle::Refused),
            _ => {}
        }
        trial.is_unknown |= error.kind() == Kind::Connection;
        let wait = trial.waits.next().unwrap_or(Duration::from_secs(1));
        tokio::time::sleep_until((Instant::now() + wait).into()).await;
        Err(Obstacle::Failed)
    }
}

/// The trials to write something.
struct Trial {
    /// The answer to one of them was lost: it may have been written.
    is_unknown: bool,
    /// How long to wait after each that failed.
    waits: Box<dyn Iterator<Item = Duration> + Send>,
}

impl Default for Trial {
    fn default() -> Self {
        Self { is_unknown: false, waits: Box::new(retry_waits()) }
    }
}
