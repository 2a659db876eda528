//! Routes new events: one statement records what is owed. A crash here costs the wait of one lease.
//!
//! A step leases to this relay what it can begin soon, in pages. While every subscription keeps up, no more
//! is routed than that, and a backlog stays in the log. A subscription that is full, paused or behind a
//! breaker gets ranges in the backlog and never holds up the others. What can be sent to no subscription is
//! routed as fast as it is read.

mod hold;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    crash,
    deliver::Deliver,
    delivery::{Content, Delivery},
    dispatch::{Job, Passage, Place},
    doubt::Doubt,
    held::{Held, Leases},
    hints,
    lease::Lease,
    matching::MatchCache,
    parts::{Base, Counted, Parts, Sending, Waiting},
    pauses, payloads,
    plan::Plan,
    reload::Reload,
    urgent::Early,
    way::Way,
};
use crate::{
    delivery::{PageId, SubscriptionId},
    event::Event,
    store::{Advance, Cursor, Error, NewDelivery, Read},
    subscription::Subscription,
};

/// Events read in one step: at most.
const PAGE: usize = 1_000;
/// Events read in one step while hardly any is leased.
const LARGE_PAGE: usize = 4_000;
/// Events read in one step when there is little room.
const SMALLEST_PAGE: usize = 64;
/// Positions of a window that one statement looks at, for each event that a step may have at most. What was
/// rolled back leaves positions without events.
const POSITIONS_FOR_EACH: i64 = 50;

/// So many payloads that a page was read without are read together.
const AT_ONCE: usize = 16;
/// The largest payload that is read with a page (bytes).
const SMALL: i32 = 16 * 1024;
/// Steps without payloads after a page that could not be read.
const WITHOUT_PAYLOADS: u32 = 16;
/// So many subscriptions are looked at one by one.
const FEW: usize = 64;

/// Deliveries that one step may lease for a subscription whatever it leases for the others.
const HANDFUL: usize = 8;

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Events were routed. `age`: of the oldest. `waiting`: deliveries went to the backlog that other relays
    /// could take.
    Routed { age: Duration, waiting: bool },
    /// There is nothing new.
    Nothing,
    /// Another relay is routing.
    OthersRoute,
    /// Nobody has room: what is new stays in the log.
    NoRoom,
}

/// The route stage.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) base: Arc<Base>,
    pub(super) sending: Arc<Sending>,
    pub(super) waiting: Arc<Waiting>,
    pub(super) counted: Arc<Counted>,
    leases: Arc<Leases>,
    /// The cursor after the last step; none if another relay has moved it since.
    pub(super) cursor: Option<Cursor>,
    /// Subscriptions with a backfill whose end a step of this relay has fixed.
    pub(super) fixed: HashSet<SubscriptionId>,
    /// The next page, read while the last step was committed.
    pub(super) ahead: Option<Read>,
    pub(super) early: Early,
    /// So many steps are read without payloads, because a page could not be read with them.
    without_payloads: u32,
    /// Events in one step at most: fewer after one that took too long.
    most: usize,
    /// Moving average of the deliveries leased for an event.
    fanout: f64,
    matches: MatchCache,
}

impl Route {
    pub(super) fn new(parts: &Parts) -> Self {
        let Parts { base, sending, waiting, counted, leases, .. } = parts.clone();
        Self {
            base,
            sending,
            waiting,
            counted,
            leases,
            cursor: None,
            fixed: HashSet::new(),
            ahead: None,
            early: Early::default(),
            without_payloads: 0,
            most: LARGE_PAGE,
            fanout: 1.0,
            matches: MatchCache::default(),
        }
    }

    fn way(&self, subscription: &Subscription, now: Instant) -> Way {
        self.sending.way(subscription, now)
    }

    pub(super) fn overtaken(&mut self) -> Step {
        self.matches.forget();
        self.ahead = None;
        Step::OthersRoute // and the cursor is loaded again
    }

    pub(super) async fn route(&mut self, reload: &mut Reload, deliver: &Deliver) -> Result<Step, Error> {
        let step = self.step(reload, deliver).await?;
        self.route_urgent(reload, step).await?;
        Ok(step)
    }

    async fn step(&mut self, reload: &mut Reload, deliver: &Deliver) -> Result<Step, Error> {
        let index = self.base.index.load_full();
        if self.must_hold(&index) {
            return Ok(Step::NoRoom);
        }
        let ahead = self.ahead.take();
        let cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => self.base.store.load_cursor(0).await?,
        };
        let read = match ahead {
            Some(read) => read,
            None => {
                let page = self.page(&index, 0);
                match self.base.store.read_events(&cursor, page).await {
                    Ok(Some(read)) => read,
                    Ok(None) => return Ok(self.overtaken()),
                    Err(error) => {
                        self.ask_for_less(&error, page.events);
                        return Err(error);
                    }
                }
            }
        };
        if !read.events.is_empty() {
            self.base.news.are_there();
        }
        // An event committed after a subscription is always matched against it.
        if read.generation > index.generation {
            reload.load().await?;
        }
        // Nor is an event sent after a pause that was recorded before it.
        if !self.sending.pauses.are_known(read.newest_pause) {
            pauses::load(&self.base, &self.sending, &self.waiting).await?;
        }
        let starting: Vec<SubscriptionId> =
            self.base.index.load().starting().filter(|id| !self.fixed.contains(id)).collect();
        if read.events.is_empty() && !read.is_of_window() && !read.was_slow && starting.is_empty() {
            self.cursor = Some(cursor);
            return Ok(Step::Nothing);
        }
        let index = self.base.index.load_full();
        self.matches.evaluate(&self.base.store, &index, &read.events).await?;
        let early = read.events.iter().filter(|new| new.routed_early);
        early.for_each(|new| self.matches.pass(new.event.position));
        let mut plan = self.plan(&index, &read.events);
        if plan.events == 0 && !read.events.is_empty() {
            self.cursor = Some(cursor);
            return Ok(Step::NoRoom);
        }
        let advance = plan.advance.map_or(Advance::All, Advance::UpTo);
        let more = read.has_more() || advance != Advance::All;
        let leased: usize = plan.leased.iter().map(Vec::len).sum();
        let token = Uuid::new_v4();
        let began = Instant::now();
        let store = &self.base.store;
        let next_page = async {
            if more && advance == Advance::All {
                store.read_ahead(&cursor, &read, advance, self.page(&index, leased)).await
            } else {
                Ok(None)
            }
        };
        let lease = self.base.settings.lease;
        let (advanced, ahead) = tokio::join!(
            store.advance_cursor(&cursor, &read, advance, &plan.routed, token, lease, &starting),
            next_page
        );
        let advanced = advanced.inspect_err(|error| {
            let (subscriptions, order) = (Vec::new(), Vec::new());
            self.waiting.doubts.note(error, || Doubt { token, subscriptions, order, began });
            self.ask_for_less(error, plan.events);
        });
        let Some((next, ids, owed_since)) = advanced? else { return Ok(self.overtaken()) };
        if plan.pairs > 0 {
            crash::point(crash::Point::Routed);
        }
        self.most = LARGE_PAGE.min(self.most * 2);
        self.cursor = Some(next);
        // One that could not be read is read again.
        self.ahead = ahead.unwrap_or_else(|error| {
            self.ask_for_less(&error, plan.events);
            None
        });
        self.without_payloads = self.without_payloads.saturating_sub(1);
        if !starting.is_empty() {
            for id in &starting {
                self.waiting.schedule.hold_back(*id, false); // urgent events that it missed
            }
            self.fixed.extend(starting);
            self.waiting.starts.notify_one();
        }
        let (errors, telemetry) = (&self.counted.filter_errors, &self.base.telemetry);
        self.matches.settle(errors, telemetry, &index, read.events.iter().take(plan.events));
        for id in &plan.held_back {
            self.waiting.schedule.hold_back(*id, false);
        }
        self.note_timed(&plan.routed.timed);
        self.base.telemetry.routed(plan.events, plan.pairs);
        if plan.events > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a page is small")]
            let fanout = leased as f64 / plan.events as f64;
            // What is leased again is noticed at once, a backlog within a few steps.
            self.fanout = if fanout > self.fanout { fanout } else { 0.5 * self.fanout + 0.5 * fanout };
        }
        let oldest = read.events.iter().map(|new| new.event.created_at).min();
        let age = oldest.map_or(Duration::ZERO, |oldest| self.base.clock.age(oldest));
        let step = Step::Routed { age, waiting: plan.waiting };
        let (elsewhere, due_elsewhere) =
            (std::mem::take(&mut plan.elsewhere), self.due_elsewhere(&plan.routed.timed));
        let mut jobs = self.jobs(plan, read, &ids, (token, began), owed_since);
        self.read_small_payloads(&mut jobs).await;
        deliver.take(jobs);
        hints::tell(&self.base, hints::Place::Backlog, &elsewhere).await;
        hints::tell(&self.base, hints::Place::Rows, &due_elsewhere).await;
        Ok(step)
    }

    /// What has a due time of its own is claimed when it is due.
    pub(super) fn note_timed(&self, timed: &[NewDelivery]) {
        for new in timed {
            let wait = new
                .deliver_after
                .and_then(|then| (then - self.base.clock.now()).to_std().ok())
                .unwrap_or_default();
            self.waiting.schedule.note(new.subscription, Instant::now() + wait);
            if new.priority > 0 {
                // priority moves the due time into the past
                self.waiting.schedule.look_back(new.subscription);
            }
        }
    }

    /// The subscriptions of rows that are due at once, which other relays deliver.
    pub(super) fn due_elsewhere(&self, timed: &[NewDelivery]) -> Vec<SubscriptionId> {
        let now = self.base.clock.now();
        let is_due = |new: &&NewDelivery| new.deliver_after.is_none_or(|then| then <= now);
        let due = timed.iter().filter(is_due).map(|new| new.subscription);
        hints::elsewhere(&self.base, &self.sending, &self.waiting, due)
    }

    /// Reads the small payloads of a page that was read without them and of which many are wanted. What is
    /// not read here is read before its attempt.
    async fn read_small_payloads(&self, jobs: &mut [Job]) {
        let unread = jobs.iter().filter(|job| !job.delivery.content.is_read()).count();
        if unread < AT_ONCE {
            return;
        }
        for jobs in jobs.chunks_mut(PAGE) {
            if let Err(error) = payloads::read_events(&self.base.store, jobs, SMALL).await {
                self.base.telemetry.database_failed("route", &error);
                return;
            }
        }
    }

    /// What this relay holds now of a step that is committed.
    fn jobs(
        &self,
        plan: Plan,
        read: Read,
        ids: &[PageId],
        (token, began): (Uuid, Instant),
        owed_since: DateTime<Utc>,
    ) -> Vec<Job> {
        let times = || read.events.iter().map(|new| new.event.created_at);
        let span = (times().min().unwrap_or_default(), times().max().unwrap_or_default());
        let mut uses = vec![0usize; read.events.len()];
        for (_, at) in plan.leased.iter().flatten() {
            uses.get_mut(*at).into_iter().for_each(|uses| *uses += 1);
        }
        let events: Vec<(Arc<Event>, bool, usize, bool)> = read
            .events
            .into_iter()
            .zip(uses)
            .map(|(new, uses)| {
                let bytes = (new.event.payload.len() + new.event.headers.len() + 200) / uses.max(1);
                (Arc::new(new.event), new.payload_read, bytes, new.priority > 0)
            })
            .collect();
        let mut jobs = Vec::with_capacity(plan.leased.iter().map(Vec::len).sum());
        for (id, pairs) in ids.iter().zip(plan.leased) {
            let page = self.leases.page(*id, Lease::new(token, began), (0, 0), span, pairs.len());
            for (number, (subscription, at)) in (0i32..).zip(pairs) {
                let Some((event, payload_read, bytes, is_urgent)) = events.get(at) else { continue };
                jobs.push(Job {
                    delivery: Delivery {
                        position: event.position,
                        created_at: event.created_at,
                        content: Content::new(event.clone(), *payload_read),
                        subscription,
                        owed_since,
                        attempted_at: owed_since,
                        attempt: 1,
                        unfinished: 0,
                        replay: None,
                        repeated: false,
                    },
                    held: Held::Page(page.clone(), number),
                    bytes: *bytes,
                    queued: began,
                    is_urgent: *is_urgent,
                    is_checked: true,
                    lane: None,
                    place: Place::Backlog,
                    passage: Passage::Free,
                });
            }
        }
        jobs
    }
}
