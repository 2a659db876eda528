//! Makes the attempts. No transaction is open meanwhile, and every attempt has a deadline. A crash here costs
//! a repeated delivery for each permit taken.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    attempted::{
        Attempted, End, all, answer, before, cut_off, lacks_resources, not_tried, storable, unbegun,
    },
    breaker::{self, Gate, News},
    concurrency::Answer,
    dispatch::{Attempt, Epochs, Job},
    follow_up,
    parts::{Base, Counted, Parts, Sending, Waiting},
    payloads, prepare,
    send::{any_lost, send},
    watch::Watch,
};
use crate::{
    delivery::{Outcome, Reason},
    event::{Event, filter::Facts},
    sink::{Outgoing, Report},
    store::Error,
    subscription::{Subscription, Wanted},
};

/// Name of this stage.
const NAME: &str = "deliver";
/// The largest payload there is (bytes).
const LARGEST: i32 = 262_144;
/// A larger payload (bytes) is evaluated on a thread of its own.
const SMALL: usize = 16_384;
/// How long a subscription waits when this relay lacks something for an attempt.
const WAIT_FOR_RESOURCES: Duration = Duration::from_secs(1);
/// After so long with upcasts and transforms other tasks get a turn.
const TURN: Duration = Duration::from_millis(2);

/// The deliver stage.
#[derive(Debug, Clone)]
pub(super) struct Deliver {
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    counted: Arc<Counted>,
    attempts: TaskTracker,
    outcomes: mpsc::Sender<Attempted>,
    stop: CancellationToken,
    watch: Watch,
    /// Evaluations of large payloads.
    evaluations: Arc<Semaphore>,
}

/// Jobs that are sent together.
#[derive(Default)]
struct Prepared {
    jobs: Vec<Job>,
    outgoing: Vec<Outgoing>,
}

impl Deliver {
    pub(super) fn new(
        parts: &Parts,
        attempts: TaskTracker,
        outcomes: mpsc::Sender<Attempted>,
        stop: CancellationToken,
        watch: Watch,
    ) -> Self {
        let Parts { base, sending, waiting, counted, .. } = parts.clone();
        let evaluations = Arc::new(Semaphore::new(1));
        Self { base, sending, waiting, counted, attempts, outcomes, stop, watch, evaluations }
    }

    /// Holds these, and begins what may begin.
    pub(super) fn take(&self, jobs: Vec<Job>) {
        // What is urgent goes before what waits, not before what can begin now.
        let (urgent, others): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.is_urgent);
        for jobs in [others, urgent] {
            if !jobs.is_empty() {
                self.sending.dispatch.add(jobs);
                self.begin();
            }
        }
    }

    /// Holds these of ordered subscriptions, which were claimed at these epochs, and begins what may begin.
    pub(super) async fn take_in_order(&self, jobs: Vec<Job>, epochs: &Epochs) {
        let setbacks = self.sending.dispatch.arrive(jobs, epochs);
        self.begin();
        self.give_back(setbacks.0, Reason::LeaseLost).await;
    }

    /// Begins what may begin now.
    pub(super) fn begin(&self) {
        for attempt in self.next() {
            self.launch(attempt);
        }
    }

    fn launch(&self, attempt: Attempt) {
        self.spawn(self.clone().run(attempt));
    }

    fn next(&self) -> Vec<Attempt> {
        let now = Instant::now();
        let begin = self.sending.dispatch.begin(now, &|subscription| self.sending.way(subscription, now));
        if let Some(until) = begin.later {
            let this = self.clone();
            self.spawn(async move {
                tokio::time::sleep_until(until.into()).await;
                this.sending.dispatch.look_again();
                this.begin();
            });
        }
        begin.begun
    }

    fn spawn(&self, attempt: impl Future<Output = ()> + Send + 'static) {
        self.attempts.spawn(self.watch.task(NAME, attempt));
    }

    /// One attempt after the other: when one has ended, this goes on with what may begin then.
    async fn run(self, attempt: Attempt) {
        let mut next = Some(attempt);
        while let Some(attempt) = next {
            self.attempt(attempt).await;
            let mut begun = self.next().into_iter();
            next = begun.next();
            for attempt in begun {
                self.launch(attempt);
            }
        }
    }

    /// Gives back what has not begun.
    pub(super) async fn give_back(&self, jobs: Vec<Job>, reason: Reason) {
        for job in jobs {
            self.pass_on(unbegun(job, reason)).await;
        }
    }

    /// Settling outlives the attempts. If it has ended nevertheless, nothing more may be sent.
    async fn pass_on(&self, attempted: Attempted) {
        if self.outcomes.send(attempted).await.is_err() {
            self.watch.fail("settle");
        }
    }

    /// One attempt at deliveries of one subscription.
    async fn attempt(&self, attempt: Attempt) {
        let ended = attempt.to_end();
        let Attempt { subscription, mut jobs, .. } = attempt;
        if let Some(host) = subscription.outlet.destination() {
            let now = Instant::now();
            if self.sending.breakers.gate(subscription.row.id, host, now) == Gate::Probe {
                for about in self.sending.breakers.begin_probe(subscription.row.id, host, now) {
                    self.sending.news.add(about, News::Probing);
                }
            }
        }
        let mut reported = Vec::with_capacity(jobs.len());
        if let Err(error) = self.read_payloads(&mut jobs).await {
            self.base.telemetry.database_failed("deliver", &error);
            reported.extend(jobs.drain(..).map(|job| before(job, not_tried(Reason::LeaseLost), false)));
        }
        let mut answer = None;
        let mut waiting = jobs.into_iter();
        // All at once, unless upcasts or transforms make much more of them.
        while waiting.len() > 0 {
            let prepared = self.prepare(&subscription, &mut waiting, &mut reported).await;
            if !prepared.jobs.is_empty() {
                let said = self.send(&subscription, prepared, &mut reported).await;
                answer = answer.or(said);
            }
        }
        // Before more begins: a breaker that opens now stops it.
        for attempted in reported.iter().filter(|attempted| attempted.decides) {
            follow_up::record(&self.base, &self.sending, &self.waiting, attempted);
        }
        if !reported.iter().any(|attempted| attempted.decides) {
            self.let_another_probe(&subscription, &not_tried(Reason::LeaseLost).outcome);
        }
        self.sending.dispatch.ended(&ended, answer, Instant::now());
        for attempted in reported {
            self.report(attempted).await;
        }
    }

    /// Makes the next deliveries ready to be sent, as many as fit. Those that are not attempted are reported.
    async fn prepare(
        &self,
        subscription: &Arc<Subscription>,
        waiting: &mut std::vec::IntoIter<Job>,
        reported: &mut Vec<Attempted>,
    ) -> Prepared {
        let mut prepared = Prepared::default();
        let mut bytes = 0;
        let mut turn = Instant::now();
        let limit = subscription.outlet.batch().map_or(0, |batch| batch.bytes);
        let attempted_at = self.base.clock.now();
        for mut job in waiting {
            job.delivery.attempted_at = attempted_at;
            if !job.is_checked || !Arc::ptr_eq(&job.delivery.subscription, subscription) {
                job.delivery.subscription = subscription.clone();
                job.is_checked = true;
                // One that cannot be read is reported below.
                if let Some(event) = job.delivery.event()
                    && !self.wants(subscription, event).await
                {
                    let unwanted = before(job, Outcome::Delivered.into(), false);
                    reported.push(Attempted { end: End::Unwanted, decides: false, ..unwanted });
                    continue;
                }
            }
            let Some(event) = job.delivery.event().cloned() else {
                reported.push(before(job, rejected(Reason::EventUnreadable), true));
                continue;
            };
            if let Some(report) = self.refusal(&job) {
                reported.push(before(job, report, false));
                continue;
            }
            match self.outgoing(&job, &event) {
                Ok(outgoing) => {
                    if !Arc::ptr_eq(&outgoing.event, &event) {
                        bytes += outgoing.event.payload.len();
                    }
                    prepared.outgoing.push(outgoing);
                }
                Err(report) => {
                    reported.push(before(job, report, true));
                    continue;
                }
            }
            prepared.jobs.push(job);
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

    /// The attempt itself. Returns what it says of the room at the destination.
    async fn send(
        &self,
        subscription: &Subscription,
        prepared: Prepared,
        reported: &mut Vec<Attempted>,
    ) -> Option<Answer> {
        let Prepared { jobs, outgoing } = prepared;
        // It may have been lost while these were prepared.
        if jobs.iter().any(|job| job.held.lease().lost().is_cancelled()) {
            reported.extend(jobs.into_iter().map(|job| before(job, not_tried(Reason::LeaseLost), false)));
            return None;
        }
        let began = Instant::now();
        let reports = {
            let sending = send(subscription, &outgoing);
            let lost = any_lost(&jobs);
            tokio::select! {
                reports = sending => reports,
                () = lost => all(jobs.len(), &cut_off(Reason::LeaseLost)),
                () = self.stop.cancelled() => all(jobs.len(), &cut_off(Reason::RelayStopped)),
            }
        };
        let took = began.elapsed();
        let deciding = breaker::clearest(reports.iter().map(|report| &report.outcome));
        let answer = deciding.and_then(|at| reports.get(at)).and_then(|report| answer(&report.outcome));
        if let Some(lack) = reports.iter().find(|report| lacks_resources(report)) {
            self.wait_for_resources(subscription, lack.answer.as_deref().unwrap_or_default());
        }
        for (at, (job, report)) in jobs.into_iter().zip(reports).enumerate() {
            let counts = !lacks_resources(&report);
            reported.push(Attempted {
                job,
                report,
                took,
                counts,
                decides: counts && deciding == Some(at),
                end: End::Reported,
                has_permit: true,
            });
        }
        answer
    }

    /// Nothing is sent for a subscription for a moment: what lacks is this relay's own, or granted by a peer
    /// to all of its subscriptions. Others, with connections of their own, go on.
    fn wait_for_resources(&self, subscription: &Subscription, lack: &str) {
        let (id, now) = (subscription.row.id, Instant::now());
        self.base.telemetry.resources_lacked(&subscription.row.name, lack);
        self.sending.pauses.pause(id, WAIT_FOR_RESOURCES, now);
        self.waiting.schedule.note(id, now + WAIT_FOR_RESOURCES);
    }

    /// If an attempt was the probe of a breaker and tells nothing of the destination, the next one probes.
    fn let_another_probe(&self, subscription: &Subscription, outcome: &Outcome) {
        let id = subscription.row.id;
        if let Some(host) = subscription.outlet.destination()
            && self.sending.breakers.probe_again(id, host, outcome, Instant::now())
        {
            self.waiting.schedule.fall_behind(id);
            self.waiting.schedule.hold_back(id, false);
        }
    }

    /// Whether a subscription wants an event as it is now: what it no longer wants is not owed, and large
    /// payloads are evaluated here. Counts conditions that cannot be evaluated.
    async fn wants(&self, subscription: &Arc<Subscription>, event: &Arc<Event>) -> bool {
        if !subscription.wants_plainly(event) {
            return false;
        }
        if !subscription.is_choosy() {
            return true;
        }
        let wanted = if event.payload.len() <= SMALL {
            subscription.evaluate(&Facts::new(event))
        } else {
            // On a thread of its own, one at a time: other deliveries go on meanwhile.
            let Ok(_turn) = self.evaluations.acquire().await else { return true };
            let (subscription, event) = (subscription.clone(), event.clone());
            let evaluated =
                tokio::task::spawn_blocking(move || subscription.evaluate(&Facts::new(&event))).await;
            evaluated.unwrap_or_else(|_| Wanted::Failed("the evaluation panicked".to_owned()))
        };
        match wanted {
            Wanted::Yes => true,
            Wanted::No(_) => false,
            Wanted::Failed(why) => {
                let is_news = self.counted.filter_errors.note(subscription.row.id, &why);
                self.base.telemetry.filter_failed(&subscription.row.name, event, &why, is_news);
                false
            }
        }
    }

    fn outgoing(&self, job: &Job, event: &Arc<Event>) -> Result<Outgoing, Report> {
        let Base { index, telemetry, .. } = &*self.base;
        prepare::outgoing(index.load().types(), telemetry, &self.counted.last_warned, job, event)
    }

    async fn read_payloads(&self, jobs: &mut [Job]) -> Result<(), Error> {
        if jobs.iter().all(|job| job.delivery.content.is_read()) {
            return Ok(());
        }
        // Boxed: it is large, and most attempts do without.
        Box::pin(payloads::read_events(&self.base.store, jobs, LARGEST)).await
    }

    /// Why a delivery is not attempted at all.
    fn refusal(&self, job: &Job) -> Option<Report> {
        if job.is_deadly() {
            return Some(rejected(Reason::RelayKilled));
        }
        if self.stop.is_cancelled() {
            return Some(not_tried(Reason::RelayStopped));
        }
        // Others may take it over soon: too late to begin.
        let lease = job.held.lease();
        if lease.lost().is_cancelled() || lease.given().elapsed() >= self.base.settings.lease * 2 / 3 {
            return Some(not_tried(Reason::LeaseLost));
        }
        None
    }

    async fn report(&self, attempted: Attempted) {
        let report = attempted.report;
        let attempted =
            Attempted { report: Report { answer: report.answer.map(storable), ..report }, ..attempted };
        let Attempted { job: Job { delivery, .. }, report, took, counts, decides, .. } = &attempted;
        if *counts {
            self.base.telemetry.attempted(delivery, report, *took);
        }
        if *decides {
            self.let_another_probe(&delivery.subscription, &report.outcome);
        }
        self.pass_on(attempted).await;
    }
}

/// The report of a delivery that becomes a dead letter without an attempt.
fn rejected(reason: Reason) -> Report {
    Outcome::Rejected { reason }.into()
}
