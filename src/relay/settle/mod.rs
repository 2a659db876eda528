//! Records verdicts in batches under the lease tokens, two batches at a time. A crash here costs a repeated
//! delivery for each permit taken. While the database is away, outcomes wait here with their permits.

mod aside;
mod batches;
mod inbox;
mod order;
pub(super) mod tallies;
mod write;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use self::{
    aside::Aside,
    inbox::Inbox,
    write::{Writer, Written},
};
use super::{
    AttemptLog,
    attempted::{Attempted, End, in_ascii},
    deliver::Deliver,
    delivery::Delivery,
    follow_up,
    held::{Held, Leases, Page},
    parts::{Base, Counted, Parts, Sending, Waiting},
};
use crate::{
    delivery::{DeliveryId, Outcome, PageId, Verdict, verdict},
    sink::sqlstate::Class,
    store::{AttemptRow, Locked, Settler},
};

/// Pages with nothing left that no batch has deleted, because their last pairs were in two batches at once or
/// were settled by the sink.
#[derive(Debug, Default)]
struct Finished {
    pages: Mutex<Vec<Arc<Page>>>,
}

impl Finished {
    fn push(&self, page: Arc<Page>) {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).push(page);
    }

    fn is_empty(&self) -> bool {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn take(&self) -> Vec<Arc<Page>> {
        std::mem::take(&mut self.pages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One of the two tasks that write verdicts, with the parts it uses.
#[derive(Debug)]
pub(super) struct Settle {
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    counted: Arc<Counted>,
    leases: Arc<Leases>,
    inbox: Arc<Inbox<Attempted>>,
    finished: Arc<Finished>,
    settler: Settler,
    deliver: Weak<Deliver>,
}

impl Settle {
    /// The two settlers of a relay.
    pub(super) fn both(
        parts: &Parts,
        outcomes: mpsc::Receiver<Attempted>,
        deliver: &Arc<Deliver>,
    ) -> [Self; 2] {
        let inbox = Arc::new(Inbox::new(outcomes));
        let finished = Arc::new(Finished::default());
        Settler::ALL.map(|settler| {
            let Parts { base, sending, waiting, counted, leases, .. } = parts.clone();
            let (inbox, finished, deliver) = (inbox.clone(), finished.clone(), Arc::downgrade(deliver));
            Self { base, sending, waiting, counted, leases, inbox, finished, settler, deliver }
        })
    }

    /// Writes verdicts until every sender of outcomes is gone.
    pub(super) async fn settle(self) {
        let mut aside = Aside::default();
        loop {
            let Some(mut attempted) = self.receive(&aside).await else { return };
            // First: once the verdicts are committed, these deliveries may be claimed again.
            self.sending.answers.note(&self.base.index.load(), &self.sending.pauses, &attempted);
            let (free, finished) = aside.take_free(self.writer()).await;
            attempted.extend(free);
            finished.into_iter().for_each(|page| self.finished.push(page));
            while !attempted.is_empty() {
                let (permits, setbacks) = self.settle_batch(attempted, &mut aside).await;
                // Their permits come back only now.
                self.sending.dispatch.settled(permits);
                if let Some(deliver) = self.deliver.upgrade() {
                    deliver.begin();
                }
                self.sending.freed.notify_one();
                attempted = setbacks;
            }
            if !self.finished.is_empty() {
                self.write_verdicts(&[], &mut aside).await;
            }
        }
    }

    /// The next outcomes; none if it is time to look at what was set aside. `None`: every sender is gone, and
    /// nothing waits.
    async fn receive(&self, aside: &Aside) -> Option<Vec<Attempted>> {
        let mut attempted = Vec::new();
        let next = self.inbox.take(&mut attempted, &self.sending.dispatch.scarce);
        let Some(look) = aside.next_look() else { return next.await.then_some(attempted) };
        match tokio::time::timeout_at(look.into(), next).await {
            Ok(true) | Err(_) => {}
            Ok(false) => tokio::time::sleep_until(look.into()).await,
        }
        Some(attempted)
    }

    /// Settles what is not locked, and sets the rest aside. Returns the number of permits that come back, and
    /// what is to be settled because of it.
    async fn settle_batch(&self, attempted: Vec<Attempted>, aside: &mut Aside) -> (u32, Vec<Attempted>) {
        let mut verdicts: Vec<Verdict> = attempted.iter().map(|one| self.decide(one)).collect();
        self.halt(&attempted, &mut verdicts).await;
        let decided: Vec<(&Attempted, &Verdict)> =
            attempted.iter().zip(&verdicts).filter(|(one, _)| !aside.is_locked(one)).collect();
        let (rows, pages) = self.write_verdicts(&decided, aside).await;
        let decided: Vec<(&Attempted, &Verdict)> =
            decided.into_iter().filter(|(one, _)| !aside.is_locked(one)).collect();
        // At once: a retry that is claimed now must not be mistaken for the attempt that has ended.
        self.leases.release_rows(decided.iter().filter_map(|(one, _)| one.job.held.row()));
        let counted: Vec<bool> = decided
            .iter()
            .map(|(one, _)| {
                one.report.settled
                    || match &one.job.held {
                        Held::Row(row) => rows.kept.contains(&row.id),
                        Held::Page(page, _) => pages.kept.contains(&page.id),
                    }
            })
            .collect();
        self.count_down(&decided, &pages.finished);
        self.record_attempts(&decided, &counted).await;
        for ((one, verdict), counted) in decided.iter().zip(&counted) {
            self.announce(one, verdict, *counted);
        }
        let permits = decided.iter().filter(|(one, _)| one.has_permit).count();
        let setbacks = self.go_on(&decided, &counted);
        aside.hold(attempted.into_iter().filter(|one| aside.is_locked(one)).collect(), Vec::new());
        (u32::try_from(permits).unwrap_or(u32::MAX), setbacks)
    }

    fn writer(&self) -> Writer<'_> {
        let (store, telemetry) = (&self.base.store, &self.base.telemetry);
        Writer { store, telemetry, settler: self.settler, lease: self.base.settings.lease }
    }

    /// Writes verdicts, and deletes the finished pages that no batch has deleted. Notes what is locked.
    async fn write_verdicts(
        &self,
        decided: &[(&Attempted, &Verdict)],
        aside: &mut Aside,
    ) -> (Written<DeliveryId>, Written<PageId>) {
        let (finished, writer) = (self.finished.take(), self.writer());
        let (rows, pages) = tokio::join!(writer.rows(decided), writer.pages(decided, &finished));
        aside.note(Locked { deliveries: rows.locked.clone(), pages: pages.locked.clone() });
        let locked = finished.into_iter().filter(|page| aside.is_page_locked(page)).collect();
        aside.hold(Vec::new(), locked);
        (rows, pages)
    }

    fn decide(&self, one: &Attempted) -> Verdict {
        let Attempted { job, report, counts, .. } = one;
        let delivery = &job.delivery;
        if one.end == End::Waits {
            return Verdict::Waits;
        }
        if !counts && matches!(report.outcome, Outcome::Retry { .. }) {
            return Verdict::RetryIn(Duration::ZERO);
        }
        let age = self.base.clock.age(delivery.owed_since);
        // Our own stop never makes a dead letter, not even of a last attempt.
        if matches!(report.outcome.reason(), Some(crate::delivery::Reason::RelayStopped)) {
            return Verdict::RetryIn(Duration::ZERO);
        }
        // What another destination asked for does not bind the present one.
        let outcome = match report.outcome {
            Outcome::Gone if !follow_up::is_current(&self.base.index.load(), one) => {
                return Verdict::RetryIn(Duration::ZERO);
            }
            Outcome::Retry { reason, after: Some(_) }
                if !follow_up::is_current(&self.base.index.load(), one) =>
            {
                Outcome::Retry { reason, after: None }
            }
            ref outcome => outcome.clone(),
        };
        verdict(&outcome, delivery.attempt, age, &delivery.subscription.retry, seed(delivery))
    }

    /// Counts settled pairs. A page with nothing left is deleted with the next batch, if this one did not;
    /// one that was given up never is, because the database may owe what was counted here.
    fn count_down(&self, decided: &[(&Attempted, &Verdict)], finished: &HashSet<PageId>) {
        let mut counts: HashMap<PageId, (&Arc<Page>, u32)> = HashMap::new();
        for (one, _) in decided {
            if let Held::Page(page, _) = &one.job.held {
                counts.entry(page.id).or_insert((page, 0)).1 += 1;
            }
        }
        for (id, (page, count)) in counts {
            if page.settled(count) {
                self.leases.release_page(id);
                if !finished.contains(&id) && !page.lease.is_refused() {
                    self.finished.push(page.clone());
                }
            }
        }
    }

    /// The delivery log is recorded once; it is worth less than the next verdict.
    async fn record_attempts(&self, decided: &[(&Attempted, &Verdict)], counted: &[bool]) {
        let wanted = |one: &Attempted| match self.base.settings.attempt_log {
            AttemptLog::All => one.counts || one.end == End::Superseded,
            AttemptLog::Failures => {
                one.counts && one.report.outcome != Outcome::Delivered || one.end == End::Superseded
            }
            AttemptLog::Off => false,
        };
        let mut rows: Vec<AttemptRow> = decided
            .iter()
            .zip(counted)
            .filter(|((one, _), _)| wanted(one))
            .map(|((one, _), counted)| AttemptRow {
                delivery: one.job.held.row_id(),
                subscription: one.job.delivery.subscription.row.id,
                position: one.job.delivery.position,
                event: one.job.delivery.event_id(),
                attempt: i32::try_from(one.job.delivery.attempt).unwrap_or(i32::MAX),
                took: one.took,
                outcome: match one.end {
                    End::Superseded => "superseded",
                    _ => one.report.outcome.code(),
                },
                reason: one.report.outcome.reason().map(crate::delivery::Reason::code),
                status: one.report.status.map(i32::from),
                answer: one.report.answer.clone(),
                ambiguous: one.report.ambiguous,
                stale: !counted,
                repeated: one.job.delivery.repeated,
            })
            .collect();
        if rows.is_empty() {
            return;
        }
        let mut recorded = self.base.store.record_attempts(&rows, &self.base.settings.name).await;
        if recorded.as_ref().is_err_and(|error| error.class() == Some(Class::Refused)) {
            rows.iter_mut().for_each(|row| in_ascii(&mut row.answer));
            recorded = self.base.store.record_attempts(&rows, &self.base.settings.name).await;
        }
        if let Err(error) = recorded {
            self.base.telemetry.database_failed("settle", &error);
        }
    }

    fn announce(&self, one: &Attempted, verdict: &Verdict, counted: bool) {
        let delivery = &one.job.delivery;
        let id = delivery.subscription.row.id;
        if one.counts {
            self.counted.tallies.add(id, one.report.outcome == Outcome::Delivered);
        }
        if one.end == End::Unwanted {
            return;
        }
        if !counted {
            self.base.telemetry.stale_verdict(delivery);
            return;
        }
        match verdict {
            Verdict::Settled if one.end == End::Superseded => self.base.telemetry.superseded(delivery),
            Verdict::Waits => {}
            Verdict::Settled => {
                self.base.telemetry.settled(delivery, self.base.clock.age(delivery.created_at))
            }
            Verdict::RetryIn(wait) => {
                match &one.job.held {
                    Held::Page(page, _) if !one.counts => {
                        self.waiting.schedule.hold_back(id, page.deaths > 0)
                    }
                    Held::Page(..) | Held::Row(_) => self.waiting.schedule.note(id, Instant::now() + *wait),
                }
                if one.has_permit {
                    self.base.telemetry.retry_scheduled(delivery, *wait);
                }
            }
            Verdict::DeadLetter { reason } => self.base.telemetry.dead_lettered(delivery, *reason),
            Verdict::SubscriptionGone => self.base.telemetry.held(delivery),
        }
    }
}

/// The same delivery always gets the same jitter, and no two the same.
fn seed(delivery: &Delivery) -> u64 {
    let (high, low) = delivery.event_id().unwrap_or_default().as_u64_pair();
    high ^ low
        ^ u64::try_from(delivery.subscription.row.id.0).unwrap_or(0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
