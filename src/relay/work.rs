//! The loop of the working stages: route, claim, and when neither finds anything, await work.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    await_work::{Bell, DOORBELL, MaySleep},
    claim::Claims,
    deliver::Deliver,
    doubt, due,
    parts::{Base, Parts, Sending, Waiting},
    reload::Reload,
    route::{Route, Step},
    takeover,
};
use crate::store::{Error, retry_waits};

/// After a sleep shorter than this, events come so fast that the next sleep is not worth the bell.
const SHORT_NAP: Duration = Duration::from_millis(10);
/// Pause before the relay then looks again.
const LINGER: Duration = Duration::from_millis(1);
/// How often it then looks without finding anything before it sleeps.
const LOOKS: u32 = 12;
/// The longest pause between looks while a publisher that did not ring is under way.
const GENTLE: Duration = Duration::from_millis(20);
/// How often due deliveries are looked for without a poll: nobody rings when the lease of a dead relay ends.
const DUE_WITHOUT_POLL: Duration = Duration::from_secs(10);
/// How often scans for due deliveries look at everything, without their bounds.
const LOOK_AT_EVERYTHING: Duration = Duration::from_secs(60);
/// Other relays are woken at most this often when there is more than this one can take.
const RING_OTHERS: Duration = Duration::from_millis(100);

/// How often a relay that does not attend the bell looks whether the one that does has missed something.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// An event that waited so long was missed.
const MISSED: Duration = Duration::from_millis(500);
/// How long a relay then looks for itself.
const DISTRUST: Duration = Duration::from_secs(10);

/// Time between looks for due deliveries when nothing has happened for a while and this relay is alone: what
/// others make due they ring for.
const RESTING: Duration = Duration::from_secs(60);
/// Shortest time without work before a relay rests. It is twice the lease at least, so that what a relay held
/// that was killed before has fallen due.
const REST_AFTER: Duration = Duration::from_secs(5);
/// A shorter poll is kept also at rest.
const SHORT_POLL: Duration = Duration::from_secs(1);

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
        if self.bell.missed.swap(false, Ordering::AcqRel) {
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

    /// Waits until permits come back, but not longer than `longest`.
    async fn await_room(&self, longest: Duration, shutdown: &CancellationToken) {
        let latest = tokio::time::Instant::now() + longest;
        tokio::select! {
            () = self.sending.dispatch.room.notified() => {}
            () = self.sending.freed.notified(), if self.waiting.schedule.count_behind() > 0 => {}
            () = self.until_due() => {}
            () = tokio::time::sleep_until(latest) => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Waits until something is due, or permits come back for which something waits. Returns whether
    /// something is due.
    async fn until_due_or_room(&self) -> bool {
        loop {
            tokio::select! {
                () = self.until_due() => return true,
                () = self.sending.freed.notified() => {
                    if self.waiting.schedule.count_behind() > 0 {
                        return false;
                    }
                }
            }
        }
    }

    async fn until_due(&self) {
        loop {
            let due = self.waiting.schedule.next().map_or(self.next_poll, |due| due.min(self.next_poll));
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => return,
                () = self.waiting.schedule.sooner.notified() => {}
                () = self.base.reload.news.notified() => return,
                () = self.waiting.relay_started.notified() => return,
            }
        }
    }

    async fn await_work(&mut self, shutdown: &CancellationToken) {
        if self.last_nap < SHORT_NAP && self.looks < LOOKS {
            self.looks += 1;
            self.wait(LINGER, shutdown).await;
            return;
        }
        match self.bell.may_sleep().await {
            MaySleep::Yes if !self.armed => self.armed = true, // one more look
            MaySleep::Yes | MaySleep::NoBell => self.sleep(None, shutdown).await,
            // It may be frozen while it is awake: then nobody rings.
            MaySleep::OthersWatch if self.attendant_missed.is_some_and(|then| then.elapsed() < DISTRUST) => {
                self.wait_gently(shutdown).await;
            }
            MaySleep::OthersWatch => self.sleep(Some(WATCH_EVERY), shutdown).await,
            MaySleep::NotYet => self.wait_gently(shutdown).await,
        }
    }

    async fn wait_gently(&mut self, shutdown: &CancellationToken) {
        let pause = self.gentle;
        self.gentle = (self.gentle * 2).min(GENTLE);
        self.wait(pause, shutdown).await;
    }

    /// Sleeps until the bell is rung or something is due, but not longer than `longest`.
    async fn sleep(&mut self, longest: Option<Duration>, shutdown: &CancellationToken) {
        self.base.telemetry.slept();
        self.woke_unrung = false;
        let began = Instant::now();
        tokio::select! {
            () = self.bell.rung.notified() => {
                self.busy = Instant::now();
                self.last_nap = began.elapsed();
                self.looks = 0;
                self.gentle = LINGER;
                if std::mem::take(&mut self.armed) {
                    self.bell.woke();
                }
            }
            is_due = self.until_due_or_room() => {
                if is_due {
                    self.last_nap = Duration::MAX;
                }
            }
            () = after(longest) => self.woke_unrung = true,
            () = shutdown.cancelled() => {}
        }
        self.base.telemetry.woke();
    }

    async fn wait(&self, pause: Duration, shutdown: &CancellationToken) {
        tokio::select! {
            () = self.bell.rung.notified() => {}
            () = tokio::time::sleep_until((Instant::now() + pause).into()) => {}
            () = self.until_due() => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// The fallback poll: which subscriptions have due deliveries, whoever made them.
    async fn look_for_due(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let everything = self.waiting.look_at_everything.swap(false, Ordering::AcqRel)
            || self.looked_at_everything.is_none_or(|then| now.duration_since(then) >= LOOK_AT_EVERYTHING);
        if everything {
            self.looked_at_everything = None; // if this fails, the next look is at everything, too
            self.waiting.schedule.look_at_everything();
        }
        // Who changes a subscription and then redrives expects the change to count.
        self.reload_if_changed().await?;
        self.reload.follow_states().await?;
        doubt::resolve(&self.base, &self.waiting).await?;
        takeover::take_over(&self.base, &self.waiting, &self.claims.leases, everything).await?;
        due::look_for_due(&self.base, &self.waiting, &self.sending.breakers, everything, now).await?;
        if everything {
            self.looked_at_everything = Some(now);
        }
        let poll = if self.may_rest() { self.poll().max(RESTING) } else { self.poll() };
        // Relays that started together should not poll together.
        self.next_poll = now + poll.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        Ok(())
    }

    fn poll(&self) -> Duration {
        self.base.settings.poll.unwrap_or(DUE_WITHOUT_POLL)
    }

    /// Whether it is enough to look seldom: nothing waits, the bell is heard, and there is no other relay
    /// whose leases could end.
    fn may_rest(&self) -> bool {
        self.armed
            && self.poll() >= SHORT_POLL
            && self.busy.elapsed() >= REST_AFTER.max(self.base.settings.lease * 2)
            && self.waiting.other_relays.load(Ordering::Acquire) == 0
            && self.waiting.schedule.next().is_none()
            && self.waiting.schedule.count_behind() == 0
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

/// Ends after this time; without a time never.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep_until((Instant::now() + time).into()).await,
        None => std::future::pending().await,
    }
}
