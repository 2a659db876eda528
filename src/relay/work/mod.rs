//! The loop of the working stages: route, claim, and when neither finds anything, await work.

mod looks;
mod waits;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    await_work::{Bell, DOORBELL},
    claim::Claims,
    deliver::Deliver,
    parts::{Base, Parts, Sending, Waiting},
    reload::Reload,
    route::{Route, Step},
};
use crate::store::{Error, Kind, retry_waits};

/// Shortest pause between looks while events come fast.
const LINGER: Duration = Duration::from_millis(1);
/// Other relays are woken at most this often when there is more than this one can take.
const RING_OTHERS: Duration = Duration::from_millis(100);

/// An event that waited so long was missed.
const MISSED: Duration = Duration::from_millis(500);

/// How often a relay without room looks whether subscriptions have changed.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// How often it looks for urgent events.
const URGENT_EVERY: Duration = Duration::from_millis(100);
/// How often new events are looked for while a backlog is claimed.
const BESIDE_CLAIMS: Duration = Duration::from_millis(2);
/// A backlog is being drained while the last claim is not older.
const DRAINING: Duration = Duration::from_millis(20);

struct Work {
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    bell: Bell,
    deliver: Arc<Deliver>,
    route: Route,
    reload: Reload,
    claims: Claims,
    /// The claim that is under way. Routing does not wait for it.
    claiming: JoinSet<Result<usize, Error>>,
    /// The bell is ours and one more look has been taken: sleep.
    armed: bool,
    last_nap: Duration,
    looks: u32,
    gentle: Duration,
    next_poll: Instant,
    looked_at_everything: Option<Instant>,
    /// When the look at everything is repeated that began with news, such as a promotion. By then the leases
    /// have ended that were held at that moment; none: it was repeated.
    leases_end: Option<Instant>,
    rang_others: Instant,
    last_claim: Option<Instant>,
    followed: Instant,
    /// The last sleep ended by itself, and not because the bell was rung.
    woke_unrung: bool,
    /// When the relay that attends the bell last missed something.
    attendant_missed: Option<Instant>,
    /// When the bell was last rung, or something found.
    busy: Instant,
}

/// Works until the relay is stopped.
pub(super) async fn work(parts: Parts, bell: Bell, deliver: Arc<Deliver>, shutdown: CancellationToken) {
    let now = Instant::now();
    let mut work = Work {
        route: Route::new(&parts),
        reload: Reload::new(&parts, deliver.clone()),
        claims: Claims::new(&parts, deliver.clone()),
        base: parts.base,
        sending: parts.sending,
        waiting: parts.waiting,
        bell,
        deliver,
        claiming: JoinSet::new(),
        armed: false,
        last_nap: Duration::MAX,
        looks: 0,
        gentle: LINGER,
        next_poll: now,
        looked_at_everything: None,
        leases_end: None,
        rang_others: now,
        last_claim: None,
        followed: now,
        woke_unrung: false,
        attendant_missed: None,
        busy: now,
    };
    let mut waits = retry_waits();
    let mut loaded = false;
    while !shutdown.is_cancelled() {
        let result = async {
            if !loaded {
                work.reload.load().await?;
                work.base.telemetry.started(&work.base.settings.name, work.base.index.load().iter().count());
                loaded = true;
                // Before anything is leased: what is in flight must not wait for a connection later.
                Box::pin(work.base.store.open_to_keep()).await?;
            }
            work.turn(&shutdown).await
        };
        match result.await {
            Ok(()) => {
                waits = retry_waits();
                work.base.telemetry.database_worked("work");
            }
            Err(error) => {
                work.base.telemetry.database_failed("work", &error);
                work.armed = false;
                work.next_poll = Instant::now();
                if error.kind() == Kind::Connection {
                    work.looked_at_everything = None; // a standby may have been promoted meanwhile
                }
                let wait = waits.next().unwrap_or(Duration::from_secs(1));
                // Stopping is the only thing that may cut the wait short.
                let _ = tokio::time::timeout(wait, shutdown.cancelled()).await;
            }
        }
    }
    if let Some(ended) = work.claiming.join_next().await
        && let Err(error) = work.end_claim(ended)
    {
        work.base.telemetry.database_failed("work", &error);
    }
}

impl Work {
    async fn turn(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        if self.bell.missed.swap(false, Ordering::AcqRel)
            || self.waiting.everything_is_new.load(Ordering::Acquire)
        {
            self.next_poll = Instant::now();
        }
        if self.next_poll > Instant::now() + self.poll().mul_f64(1.1) && !self.may_rest() {
            self.next_poll = Instant::now() + self.poll(); // the rest is over
        }
        self.reload.load_all_if_asked().await?;
        if Instant::now() >= self.next_poll {
            self.look_for_due().await?;
        }
        if self.waiting.relay_ended.load(Ordering::Acquire) {
            self.reload.follow_states().await?;
        }
        // Beside each other: neither waits for the other's statements.
        self.begin_claim();
        let step = self.route.route(&mut self.reload, &self.deliver).await;
        // Also when routing fails: the next claim begins when this one is known to have ended.
        let claimed = self.claimed()?;
        let step = step?;
        let progress = claimed > 0 || matches!(step, Step::Routed { .. });
        if let Step::Routed { age, .. } = step
            && self.woke_unrung
            && age > MISSED
        {
            self.attendant_missed = Some(Instant::now());
        }
        if progress {
            self.stay_awake();
            if let Step::Routed { waiting: true, .. } = step {
                self.ring_others().await;
            }
            return Ok(());
        }
        let is_draining = self.last_claim.is_some_and(|then| then.elapsed() < DRAINING)
            && self.waiting.schedule.count_behind() > 0;
        match step {
            Step::Nothing | Step::NoRoom | Step::OthersRoute if !self.claiming.is_empty() => {
                self.await_claim(shutdown).await?;
            }
            Step::Nothing if is_draining => {
                // A backlog of rows: its next part is claimed as soon as permits come back.
                self.await_room(BESIDE_CLAIMS, shutdown).await;
            }
            Step::NoRoom => {
                self.stay_awake();
                self.follow_changes().await?;
                // What is new waits in the log, and publishers do not ring while this relay is awake.
                self.ring_others().await;
                self.await_room(URGENT_EVERY, shutdown).await;
            }
            Step::OthersRoute => self.wait(Duration::from_millis(5), shutdown).await,
            Step::Nothing | Step::Routed { .. } => self.await_work(shutdown).await,
        }
        Ok(())
    }

    /// Claims what is due, unless a claim is under way.
    fn begin_claim(&mut self) {
        if !self.claiming.is_empty() {
            return;
        }
        let due = self.waiting.schedule.take_due(Instant::now());
        if !due.all.is_empty() {
            let claims = self.claims.clone();
            self.claiming.spawn(async move { claims.claim(&due).await });
        }
    }

    /// The number of deliveries of a claim that has ended; 0 if none has.
    fn claimed(&mut self) -> Result<usize, Error> {
        self.claiming.try_join_next().map_or(Ok(0), |ended| self.end_claim(ended))
    }

    fn end_claim(&mut self, ended: Result<Result<usize, Error>, JoinError>) -> Result<usize, Error> {
        let claimed = match ended {
            Ok(claimed) => claimed?,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => 0, // the runtime is shutting down
        };
        if claimed > 0 {
            self.last_claim = Some(Instant::now());
        }
        Ok(claimed)
    }

    /// Waits a little for the claim that is under way.
    async fn await_claim(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let next_look = Instant::now() + BESIDE_CLAIMS;
        let ended = tokio::select! {
            Some(ended) = self.claiming.join_next() => ended,
            () = self.bell.rung.notified() => return Ok(()),
            () = tokio::time::sleep_until(next_look.into()) => return Ok(()),
            () = shutdown.cancelled() => return Ok(()),
        };
        self.end_claim(ended).map(drop)
    }

    /// Found something: publishers need not ring.
    fn stay_awake(&mut self) {
        self.busy = Instant::now();
        self.looks = 0;
        self.gentle = LINGER;
        if std::mem::take(&mut self.armed) {
            self.bell.woke();
            self.base.telemetry.woke();
        }
    }

    /// Routing notices changes of subscriptions; while it has no room, this does.
    async fn follow_changes(&mut self) -> Result<(), Error> {
        if self.followed.elapsed() >= FOLLOW_EVERY {
            self.reload_if_changed().await?;
        }
        Ok(())
    }

    async fn reload_if_changed(&mut self) -> Result<(), Error> {
        self.followed = Instant::now();
        if self.base.store.read_generation().await? != self.base.index.load().generation {
            self.reload.load().await?;
        }
        Ok(())
    }

    async fn ring_others(&mut self) {
        if self.rang_others.elapsed() >= RING_OTHERS {
            self.rang_others = Instant::now();
            self.base.news.are_there(); // this relay does not read what is new now
            if let Err(error) = self.base.store.ring(DOORBELL).await {
                self.base.telemetry.database_failed("await_work", &error);
            }
        }
    }
}
