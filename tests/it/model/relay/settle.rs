//! Verdicts of a relay, in batches, written until it is known that they are written.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use pgoutbox::{
    Outcome, Reason,
    delivery::{DeliveryId, PageId, Verdict, ranges::Ranges, verdict},
    event::Position,
    relay::decisions::{Fate, Place},
    store::{Batch, DeadRow, Entry, PageBatch, Pair, PairDead, PairRetry, PairsBack, RetryRow},
};

use super::{
    super::{
        database::{Database, date},
        defect::Defect,
        world::{Unanswered, Who, World},
    },
    Ended, Held, Job, PageHeld, Passage,
    keep::write_apart,
    route::target,
};

/// Verdicts that are being written.
struct Writing {
    decided: Vec<(Ended, Verdict)>,
    permits: usize,
    pages: Rc<PageBatch>,
    rows: Rc<Batch>,
    /// An answer was lost: what is missing then was written before.
    is_unknown: bool,
    kept_pages: Option<BTreeSet<PageId>>,
    kept_rows: Option<BTreeSet<DeliveryId>>,
}

impl World {
    /// Writes what is unsettled, two batches at a time.
    pub(super) fn settle(&mut self, who: Who) {
        let memory = self.memory(who);
        if memory.settling >= 2 || memory.unsettled.is_empty() && memory.finished.is_empty() {
            return;
        }
        memory.settling += 1;
        let attempted = std::mem::take(&mut memory.unsettled);
        let finished = std::mem::take(&mut memory.finished);
        let decided: Vec<(Ended, Verdict)> =
            attempted.into_iter().map(|one| (one.clone(), self.decide(who, &one))).collect();
        let permits = decided.iter().filter(|(one, _)| one.has_permit).count();
        self.memory(who).settling_permits += permits;
        let pages = Rc::new(self.pages_of(&decided, &finished));
        let rows = Rc::new(rows_of(&decided));
        let writing =
            Writing { decided, permits, pages, rows, is_unknown: false, kept_pages: None, kept_rows: None };
        self.write_pages(who, writing);
    }

    fn decide(&mut self, who: Who, one: &Ended) -> Verdict {
        let job = &one.job;
        match job.passage {
            Passage::Aside => return Verdict::Waits,
            Passage::Superseded => return Verdict::Settled,
            Passage::Free | Passage::Passed | Passage::Back => {}
        }
        if matches!(one.outcome, Outcome::Retry { .. }) && !one.counts
            || one.outcome.reason() == Some(Reason::RelayStopped)
        {
            return Verdict::RetryIn(Duration::ZERO);
        }
        let policy = self.memory(who).index.get(&job.subscription).map(|one| one.retry.clone());
        let policy = policy.unwrap_or_default();
        let age = (date(self.now()) - job.owed_since).to_std().unwrap_or_default();
        let attempt = if self.has(Defect::AttemptsNotCounted) { 1 } else { job.attempt };
        let seed = job.event.as_ref().map_or(0, |event| event.id.as_u64_pair().1);
        verdict(&one.outcome, attempt, age, &policy, seed)
    }

    fn write_pages(&mut self, who: Who, mut writing: Writing) {
        if writing.pages.is_empty() {
            writing.is_unknown = false;
            return self.write_rows(who, writing);
        }
        let batch = writing.pages.clone();
        let splits = self.has(Defect::RetryInACommitOfItsOwn) && !batch.retries.is_empty();
        let run = move |database: &mut Database| {
            if !splits {
                return database.settle_pages(&batch);
            }
            // What is retried is written after what removes it, and may get lost in between.
            let first = PageBatch {
                progress: batch.progress.clone(),
                finished: batch.finished.clone(),
                tokens: batch.tokens.clone(),
                dead: batch.dead.clone(),
                back: batch.back.clone(),
                retries: Vec::new(),
            };
            database.settle_pages(&first)
        };
        self.statement(who, run, move |world, answer| match answer {
            Ok(kept) => {
                let kept = (!writing.is_unknown).then(|| kept.into_iter().collect());
                if splits {
                    world.write_retries_apart(who, &writing);
                }
                writing.kept_pages = kept;
                writing.is_unknown = false;
                world.write_rows(who, writing);
            }
            Err(Unanswered) if world.has(Defect::OutcomesForgottenOnError) => world.forget(who, writing),
            Err(Unanswered) => {
                writing.is_unknown = true;
                world.after_at(who, 100, move |world| world.write_pages(who, writing));
            }
        });
    }

    /// Writes retries of pages that are gone already.
    fn write_retries_apart(&mut self, who: Who, writing: &Writing) {
        let batch = writing.pages.clone();
        let run = move |database: &mut Database| {
            let retries = batch.retries.clone();
            write_apart(database, &PageBatch { retries, ..PageBatch::default() });
        };
        self.statement(who, run, |_, _| {});
    }

    fn write_rows(&mut self, who: Who, mut writing: Writing) {
        if writing.rows.is_empty() {
            return self.written(who, writing);
        }
        let batch = writing.rows.clone();
        self.statement(
            who,
            move |database| database.settle_rows(&batch),
            move |world, answer| match answer {
                Ok(kept) => {
                    writing.kept_rows = (!writing.is_unknown).then(|| kept.into_iter().collect());
                    world.written(who, writing);
                }
                Err(Unanswered) if world.has(Defect::OutcomesForgottenOnError) => world.forget(who, writing),
                Err(Unanswered) => {
                    writing.is_unknown = true;
                    world.after_at(who, 100, move |world| world.write_rows(who, writing));
                }
            },
        );
    }

    /// Verdicts are committed.
    fn written(&mut self, who: Who, writing: Writing) {
        let Writing { decided, permits, pages, kept_pages, kept_rows, .. } = writing;
        let finished: BTreeSet<PageId> = pages.finished.iter().copied().collect();
        let memory = self.memory(who);
        memory.settling -= 1;
        memory.settling_permits -= permits;
        let mut counts: BTreeMap<i64, (Rc<PageHeld>, usize)> = BTreeMap::new();
        let mut fates = Vec::with_capacity(decided.len());
        for (one, verdict) in decided {
            let is_kept = match &one.job.held {
                Held::Row(row) => {
                    if memory.rows.get(&row.id).is_some_and(|held| Rc::ptr_eq(held, row)) {
                        memory.rows.remove(&row.id);
                    }
                    kept_rows.as_ref().is_none_or(|kept| kept.contains(&DeliveryId(row.id)))
                }
                Held::Page(page, _) => {
                    counts.entry(page.id).or_insert_with(|| (page.clone(), 0)).1 += 1;
                    kept_pages.as_ref().is_none_or(|kept| kept.contains(&PageId(page.id)))
                }
            };
            if !is_kept {
                // What is left under this lease is given up for good.
                one.job.held.lease().is_lost.set(true);
            }
            fates.push((one, verdict, is_kept));
        }
        for (page, count) in counts.into_values() {
            page.left.set(page.left.get().saturating_sub(count));
            if page.left.get() == 0 {
                if memory.pages.get(&page.id).is_some_and(|held| Rc::ptr_eq(held, &page)) {
                    memory.pages.remove(&page.id);
                }
                if !finished.contains(&PageId(page.id)) && !page.lease.is_lost.get() {
                    memory.finished.push(page);
                }
            }
        }
        self.go_on(who, fates);
        self.begin(who);
        self.settle(who);
        self.route(who);
    }

    /// Tells the gates, and sees to what is due again.
    fn go_on(&mut self, who: Who, fates: Vec<(Ended, Verdict, bool)>) {
        let told_before = self.has(Defect::KeyGoesOnWithTheAnswer);
        let mut claims = false;
        for (one, verdict, is_kept) in fates {
            if let Verdict::RetryIn(wait) = verdict {
                let wait = i64::try_from(wait.as_millis()).unwrap_or(0);
                self.after_at(who, wait + 5, move |world| world.claim(who));
                claims = true;
            }
            let fate = fate(&one, &verdict, is_kept);
            let job = &one.job;
            match (job.passage, job.lane.clone()) {
                (Passage::Passed, Some(_)) if told_before && one.counts => {}
                (Passage::Passed, Some(lane)) => self.tell_gate(who, job, &lane, fate),
                (Passage::Aside, Some(lane)) => self.tell_written(who, job.subscription, &lane),
                (Passage::Back, _) => self.tell_returned(who, job.subscription),
                _ => {}
            }
        }
        if claims {
            self.claim(who);
        }
    }

    /// Only a defect forgets outcomes.
    fn forget(&mut self, who: Who, writing: Writing) {
        let memory = self.memory(who);
        memory.settling -= 1;
        memory.settling_permits -= writing.permits;
        for (one, _) in writing.decided {
            one.job.held.lease().is_lost.set(true);
            match &one.job.held {
                Held::Page(page, _) => _ = memory.pages.remove(&page.id),
                Held::Row(row) => _ = memory.rows.remove(&row.id),
            }
        }
        self.begin(who);
    }

    fn pages_of(&self, decided: &[(Ended, Verdict)], finished: &[Rc<PageHeld>]) -> PageBatch {
        let as_a_whole = self.has(Defect::PageSettledAsAWhole);
        let mut batch = PageBatch::default();
        let mut progress: BTreeMap<i64, (Rc<PageHeld>, Ranges, usize)> = BTreeMap::new();
        let mut back: BTreeMap<(i64, i64, i64), PairsBack> = BTreeMap::new();
        for (one, verdict) in decided {
            let Held::Page(page, number) = &one.job.held else { continue };
            let entry = progress.entry(page.id).or_insert_with(|| (page.clone(), Ranges::default(), 0));
            entry.1.insert(i64::from(*number));
            entry.2 += 1;
            let pair = pair_of(&one.job, page, *number);
            match verdict {
                Verdict::Settled => {}
                Verdict::RetryIn(_) | Verdict::Waits if one.counts || *verdict == Verdict::Waits => {
                    batch.retries.push(retry_of(one, verdict, page, pair));
                }
                Verdict::DeadLetter { reason } => {
                    batch.dead.push(PairDead { pair, reason: reason.code(), status: None, answer: None });
                }
                Verdict::RetryIn(_) | Verdict::Waits | Verdict::SubscriptionGone => {
                    let since = one.job.owed_since.timestamp_millis();
                    let back = back
                        .entry((page.id, one.job.subscription, since))
                        .or_insert_with(|| back_of(&one.job, page));
                    back.numbers.insert(i64::from(*number));
                    back.entry.positions.insert(one.job.position);
                }
            }
        }
        batch.back = back.into_values().collect();
        for (id, (page, numbers, count)) in progress {
            if page.left.get() == count || as_a_whole {
                batch.finished.push(PageId(id));
            } else {
                batch.progress.push((PageId(id), numbers));
            }
            batch.tokens.push(page.lease.token.get());
        }
        for page in finished {
            batch.finished.push(PageId(page.id));
            batch.tokens.push(page.lease.token.get());
        }
        batch
    }
}

fn pair_of(job: &Job, page: &PageHeld, number: i32) -> Pair {
    Pair {
        page: PageId(page.id),
        number,
        subscription: target(job.subscription),
        position: Position(job.position),
        created_at: date(0),
        attempts: i32::try_from(job.attempt).unwrap_or(i32::MAX),
    }
}

fn retry_of(one: &Ended, verdict: &Verdict, page: &PageHeld, pair: Pair) -> PairRetry {
    let key = one.job.lane.as_deref().map(str::to_owned);
    let owed_since = one.job.owed_since;
    match verdict {
        Verdict::RetryIn(wait) => {
            let repeated = one.job.repeated || one.ambiguous;
            PairRetry { pair, owed_since, wait: Some(*wait), unfinished: 0, key, repeated }
        }
        _ => {
            let pair = Pair { attempts: pair.attempts - 1, ..pair };
            let unfinished = i32::from(page.deaths.min(2));
            PairRetry { pair, owed_since, wait: None, unfinished, key, repeated: one.job.repeated }
        }
    }
}

fn back_of(job: &Job, page: &PageHeld) -> PairsBack {
    PairsBack {
        page: PageId(page.id),
        numbers: Ranges::default(),
        entry: Entry {
            subscription: target(job.subscription),
            positions: Ranges::default(),
            owed_since: job.owed_since,
        },
        span: (date(0), date(0)),
        deaths: page.deaths,
        alone: page.alone,
    }
}

fn rows_of(decided: &[(Ended, Verdict)]) -> Batch {
    let mut batch = Batch::default();
    for (one, verdict) in decided {
        let Held::Row(row) = &one.job.held else { continue };
        let id = DeliveryId(row.id);
        batch.tokens.push(row.lease.token.get());
        match verdict {
            Verdict::Settled => batch.delivered.push(id),
            Verdict::RetryIn(wait) => {
                let (counts, ambiguous) = (one.counts, one.ambiguous);
                batch.retries.push(RetryRow { id, wait: Some(*wait), counts, ambiguous });
            }
            Verdict::Waits => {
                batch.retries.push(RetryRow { id, wait: None, counts: false, ambiguous: false });
            }
            Verdict::DeadLetter { reason } => {
                batch.dead.push(DeadRow { id, reason: reason.code(), status: None, answer: None });
            }
            Verdict::SubscriptionGone => batch.gone.push(id),
        }
    }
    batch
}

/// As the product's settler says it.
fn fate(one: &Ended, verdict: &Verdict, is_kept: bool) -> Fate {
    match verdict {
        _ if !is_kept => Fate::Lost,
        Verdict::Settled | Verdict::DeadLetter { .. } | Verdict::Waits => Fate::Done,
        Verdict::RetryIn(_) if one.counts || one.job.place != Place::Backlog => Fate::Retried,
        Verdict::RetryIn(_) | Verdict::SubscriptionGone => Fate::Returned,
    }
}
