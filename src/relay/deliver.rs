//! Leases to outcomes. No transaction is open; every attempt has a deadline. A crash here costs a repeated delivery for each
//! permit taken.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::FutureExt as _;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::delivery::Delivery;
use super::{
    Shared,
    batcher::{Batcher, InFlight},
    breaker,
    permits::Permit,
    prepare,
};
use crate::{
    delivery::{Outcome, Reason},
    event::Event,
    sink::{Outgoing, Outlet, Report},
    store::Error,
};

/// No attempt may take longer, whatever its sink says.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(60);
/// Bytes kept of an answer, whatever its sink reports.
const LONGEST_ANSWER: usize = 1_024;
/// Claims without a verdict after which a delivery is given up unsent.
const UNFINISHED_AT_MOST: u32 = 3;
/// Deliveries whose last claim ended without a verdict that may be attempted at once.
const SUSPECTS: u32 = 8;

/// Time spent on upcasts and transforms after which other tasks get a turn.
const TURN: Duration = Duration::from_millis(2);

/// A delivery that was leased and is not begun yet.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) delivery: Delivery,
    /// False: the event, or its large payload, is read only now.
    pub(super) payload_read: bool,
    pub(super) permit: Permit,
}

/// A delivery whose attempt has ended.
#[derive(Debug)]
pub(super) struct Attempted {
    pub(super) delivery: Delivery,
    pub(super) report: Report,
    pub(super) took: Duration,
    /// Whether this attempt counts: nothing was tried if not.
    pub(super) counts: bool,
    /// Whether its outcome stands for its batch before the breaker: a batch that fails has failed once.
    pub(super) decides: bool,
    /// Given back when the verdict is committed, by dropping this.
    _permit: Permit,
}

/// The deliver stage.
#[derive(Debug, Clone)]
pub(super) struct Deliver {
    shared: Arc<Shared>,
    attempts: TaskTracker,
    outcomes: mpsc::Sender<Attempted>,
    stop: CancellationToken,
    dropped: CancellationToken,
    suspects: Arc<Semaphore>,
    batcher: Arc<Batcher>,
}

/// Deliveries that are sent together, and what is sent of each.
#[derive(Default)]
struct Prepared {
    in_flight: Vec<InFlight>,
    outgoing: Vec<Outgoing>,
}

/// What stands in for an event that has not been read, or is no longer in the log.
pub(super) fn missing_event(position: i64, created_at: DateTime<Utc>) -> Event {
    Event {
        id: uuid::Uuid::nil(),
        position,
        created_at,
        topic: String::new(),
        key: None,
        payload: String::new(),
        headers: String::new(),
        organization: None,
        source: None,
        user_id: None,
        schema_version: None,
    }
}

impl Deliver {
    pub(super) fn new(
        shared: Arc<Shared>,
        attempts: TaskTracker,
        outcomes: mpsc::Sender<Attempted>,
        stop: CancellationToken,
        dropped: CancellationToken,
    ) -> Self {
        let suspects = Arc::new(Semaphore::new(SUSPECTS as usize));
        Self { shared, attempts, outcomes, stop, dropped, suspects, batcher: Arc::default() }
    }

    /// Starts an attempt for each. `given`: when their leases were given, by our monotonic clock.
    pub(super) async fn begin(&self, mut leased: Vec<Leased>, given: Instant) -> Result<(), Error> {
        if let Err(error) = self.read_payloads(&mut leased).await {
            self.give_back(leased).await;
            return Err(error);
        }
        let mut queues = BTreeSet::new();
        for Leased { delivery, permit, .. } in leased {
            // Already in flight under an older lease of ours: that attempt goes on, and this lease runs out.
            if !self.shared.leases.hold(delivery.id, delivery.lease_token, given) {
                continue;
            }
            // What may have killed a relay does not share its attempt.
            if delivery.unfinished == 0 && delivery.subscription.outlet.batch().is_some() {
                queues.insert(self.batcher.join(InFlight { delivery, permit }));
            } else {
                let this = self.clone();
                self.spawn(async move { this.attempt(vec![InFlight { delivery, permit }]).await });
            }
        }
        for queue in queues {
            // As many senders as the queue may have batches under way; each sends until nothing waits.
            while self.batcher.needs_sender(queue) {
                let this = self.clone();
                self.spawn(async move {
                    while let Some(batch) = this.batcher.next_batch(queue, &this.stop).await {
                        this.attempt(batch).await;
                        this.batcher.sent(queue);
                    }
                });
            }
        }
        Ok(())
    }

    fn spawn(&self, attempt: impl Future<Output = ()> + Send + 'static) {
        self.attempts.spawn(self.dropped.clone().run_until_cancelled_owned(attempt));
    }

    /// Nothing was tried: without this, their leases would run out and count as deaths of this relay.
    async fn give_back(&self, leased: Vec<Leased>) {
        for Leased { delivery, permit, .. } in leased {
            self.end(
                InFlight { delivery, permit },
                not_tried(Reason::LeaseLost),
                Duration::ZERO,
                false,
                true,
            )
            .await;
        }
    }

    async fn read_payloads(&self, leased: &mut [Leased]) -> Result<(), Error> {
        let missing: HashSet<i64> =
            leased.iter().filter(|one| !one.payload_read).map(|one| one.delivery.event.position).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let times = || leased.iter().filter(|one| !one.payload_read).map(|one| one.delivery.event.created_at);
        let span = (times().min().unwrap_or_default(), times().max().unwrap_or_default());
        let positions: Vec<i64> = missing.into_iter().collect();
        let events: HashMap<i64, Arc<Event>> = self
            .shared
            .store
            .load_events(&positions, span)
            .await?
            .into_iter()
            .map(|(at, event)| (at, Arc::new(event)))
            .collect();
        for one in leased.iter_mut().filter(|one| !one.payload_read) {
            let stand_in = &one.delivery.event;
            one.delivery.event = match events.get(&stand_in.position) {
                Some(event) => event.clone(),
                None => Arc::new(missing_event(stand_in.position, stand_in.created_at)),
            };
        }
        Ok(())
    }

    /// One attempt at deliveries of one subscription.
    async fn attempt(&self, in_flight: Vec<InFlight>) {
        // What may have killed a relay is attempted with few of its kind, the second time alone.
        let _few = match in_flight.first().map_or(0, |one| one.delivery.unfinished) {
            0 => None,
            1 => self.suspects.acquire().await.ok(),
            _ => self.suspects.acquire_many(SUSPECTS).await.ok(),
        };
        let ids: Vec<i64> = in_flight.iter().map(|one| one.delivery.id).collect();
        let (lost, given) = self.shared.leases.begin(&ids);
        let mut waiting = in_flight.into_iter().zip(given);
        // All at once, unless upcasts or transforms make much more of them.
        while waiting.len() > 0 {
            let prepared = self.prepare(&mut waiting).await;
            if !prepared.outgoing.is_empty() {
                self.send(prepared, &lost).await;
            }
        }
    }

    /// Makes the next deliveries ready to be sent, as many as fit. Those that are not attempted end here.
    async fn prepare(
        &self,
        waiting: &mut (impl Iterator<Item = (InFlight, Option<Instant>)> + Send),
    ) -> Prepared {
        let mut prepared = Prepared::default();
        let mut bytes = 0;
        let mut turn = Instant::now();
        for (mut one, given) in waiting {
            one.delivery.attempted_at = self.shared.clock.now();
            if let Some((report, counts)) = self.before(&one.delivery, given) {
                self.end(one, report, Duration::ZERO, counts, true).await;
                continue;
            }
            let outgoing = match prepare::outgoing(&self.shared, &one.delivery) {
                Ok(outgoing) => outgoing,
                Err(report) => {
                    self.end(one, report, Duration::ZERO, true, true).await;
                    continue;
                }
            };
            if !Arc::ptr_eq(&outgoing.event, &one.delivery.event) {
                bytes += outgoing.event.payload.len();
            }
            let limit = one.delivery.subscription.outlet.batch().map_or(0, |batch| batch.bytes);
            prepared.outgoing.push(outgoing);
            prepared.in_flight.push(one);
            if bytes > limit {
                break;
            }
            if turn.elapsed() > TURN {
                tokio::task::yield_now().await;
                turn = Instant::now();
            }
        }
        prepared
    }

    /// The attempt itself.
    async fn send(&self, prepared: Prepared, lost: &Notify) {
        let Prepared { in_flight, outgoing } = prepared;
        let Some(first) = in_flight.first() else { return };
        let began = Instant::now();
        let reports = tokio::select! {
            reports = send(&first.delivery.subscription.outlet, &outgoing) => reports,
            () = lost.notified() => all(&outgoing, &cut_off(Reason::LeaseLost)),
            () = self.stop.cancelled() => all(&outgoing, &cut_off(Reason::RelayStopped)),
        };
        let took = began.elapsed();
        let deciding = breaker::clearest(reports.iter().map(|report| &report.outcome));
        for (at, (one, report)) in in_flight.into_iter().zip(reports).enumerate() {
            self.end(one, report, took, true, deciding == Some(at)).await;
        }
    }

    /// Why a delivery is not attempted at all, and whether that counts as an attempt.
    fn before(&self, delivery: &Delivery, given: Option<Instant>) -> Option<(Report, bool)> {
        if delivery.event.id.is_nil() && delivery.event.topic.is_empty() {
            return Some((Outcome::Rejected { reason: Reason::EventUnreadable }.into(), true));
        }
        if delivery.unfinished >= UNFINISHED_AT_MOST {
            return Some((Outcome::Rejected { reason: Reason::RelayKilled }.into(), false));
        }
        if self.stop.is_cancelled() {
            return Some((not_tried(Reason::RelayStopped), false));
        }
        // Others may take it over soon: too late to begin.
        if delivery.unfinished == 0
            && given.is_none_or(|given| given.elapsed() >= self.shared.settings.lease * 2 / 3)
        {
            return Some((not_tried(Reason::LeaseLost), false));
        }
        None
    }

    async fn end(&self, in_flight: InFlight, report: Report, took: Duration, counts: bool, decides: bool) {
        let InFlight { delivery, permit } = in_flight;
        let report = Report { answer: report.answer.map(storable), ..report };
        if counts {
            self.shared.telemetry.attempted(&delivery, &report, took);
        }
        let subscription = &delivery.subscription;
        if decides
            && let Some(destination) = subscription.outlet.destination()
            && self.shared.breakers.probe_again(destination, &report.outcome, Instant::now())
        {
            self.shared.schedule.fall_behind(subscription.row.id);
        }
        // Settling outlives the attempts; there is room, for the queue is as long as there are permits.
        let _ =
            self.outcomes.send(Attempted { delivery, report, took, counts, decides, _permit: permit }).await;
    }
}

/// The sink's attempt, with its deadline, its panics, and a report for each whatever it says.
async fn send(outlet: &Outlet, deliveries: &[Outgoing]) -> Vec<Report> {
    let deadline = outlet.deadline().min(LONGEST_ATTEMPT);
    let retry = |reason| Report::from(Outcome::Retry { reason, after: None });
    match tokio::time::timeout(deadline, AssertUnwindSafe(outlet.send(deliveries)).catch_unwind()).await {
        Ok(Ok(reports)) if reports.len() == deliveries.len() => reports,
        Ok(Ok(reports)) => {
            tracing::error!(
                sink = outlet.kind(),
                deliveries = deliveries.len(),
                reports = reports.len(),
                "a sink did not report on each delivery"
            );
            all(deliveries, &retry(Reason::SinkBroken).ambiguous())
        }
        Ok(Err(_)) => all(deliveries, &retry(Reason::SinkPanicked)),
        Err(_) => all(deliveries, &cut_off(Reason::Timeout)),
    }
}

fn all(deliveries: &[Outgoing], report: &Report) -> Vec<Report> {
    vec![report.clone(); deliveries.len()]
}

/// At most 1 KiB, and without the one character PostgreSQL cannot store: an answer it refuses would hold up every verdict.
fn storable(answer: String) -> String {
    let mut answer = if answer.contains('\0') { answer.replace('\0', "\\0") } else { answer };
    answer.truncate(answer.floor_char_boundary(LONGEST_ANSWER));
    answer
}

/// An attempt that was not made.
fn not_tried(reason: Reason) -> Report {
    Outcome::Retry { reason, after: None }.into()
}

/// An attempt that was ended from outside: the destination may have it.
fn cut_off(reason: Reason) -> Report {
    Report { ambiguous: true, ..Outcome::Retry { reason, after: None }.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_postgresql_would_refuse_is_made_storable() {
        assert_eq!(storable("a\0b".to_owned()), "a\\0b");
        assert_eq!(storable("ä".repeat(2_000)).len(), LONGEST_ANSWER);
        assert_eq!(storable("short".to_owned()), "short");
    }
}
