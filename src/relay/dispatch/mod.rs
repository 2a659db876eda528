//! What this relay holds and has not begun, and which delivery begins next.
//!
//! Three numbers: *leased ahead* waits here and costs a killed relay no copy; *in flight* has begun;
//! *unsettled* has been answered and is not recorded. Permits bound the last two together, which is what a
//! kill can repeat; leased ahead is bounded in count and bytes. Each subscription has a queue of what waits
//! for it, and a window that it earns with answers.

mod job;
mod queue;
mod room;
mod shares;
mod suspects;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

pub(super) use self::job::{Attempt, Ended, Job};
use self::{queue::Queue, shares::Limits, suspects::Suspects};
use super::{concurrency::Answer, fair::Fair};
use crate::subscription::Subscription;

/// What has waited here this long, and not for its turn, goes back to the database.
const TOO_OLD: Duration = Duration::from_secs(2);

/// What may begin now.
#[derive(Debug, Default)]
pub(super) struct Begin {
    pub(super) begun: Vec<Attempt>,
    /// When to look again because a batch is full or has waited long enough.
    pub(super) later: Option<Instant>,
}

/// Whether a subscription as a whole can be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Free,
    /// One delivery may be tried.
    Probe,
    Blocked,
}

/// The three numbers, for reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) ahead: usize,
    pub(super) ahead_bytes: usize,
    pub(super) in_flight: u32,
    pub(super) unsettled: u32,
}

/// All queues of a relay.
#[derive(Debug)]
pub(super) struct Dispatch {
    state: Mutex<State>,
    limits: Limits,
    /// Rings when more may be leased after room was denied.
    pub(super) room: Notify,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<i64, Queue>,
    /// A number for each organization.
    organizations: HashMap<Option<String>, u32>,
    fair: Fair,
    /// Subscriptions for which no permit was left. They take part in the turns again when permits come back.
    parked: Vec<i64>,
    suspects: Suspects,
    numbers: Numbers,
    /// In flight for subscriptions that had not answered lately.
    unproven: u32,
    /// Room was denied to some subscription.
    denied: bool,
    stopped: bool,
    /// Subscriptions that may be sent to.
    sharers: usize,
}

impl Dispatch {
    pub(super) fn new(permits: u32, per_subscription: u32) -> Self {
        Self { state: Mutex::default(), limits: Limits::new(permits, per_subscription), room: Notify::new() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn numbers(&self) -> Numbers {
        self.state().numbers
    }

    pub(super) fn free_permits(&self) -> u32 {
        self.state().free(&self.limits)
    }

    /// Sets how many subscriptions may be sent to.
    pub(super) fn share_among(&self, subscriptions: usize) {
        self.state().sharers = subscriptions;
    }

    fn width(&self, queue: &Queue) -> u32 {
        queue.window.width().min(self.ceiling(&queue.subscription))
    }

    fn ceiling(&self, subscription: &Subscription) -> u32 {
        subscription.own_limit().unwrap_or(self.limits.per_subscription).min(self.limits.permits)
    }

    /// Deliveries that this relay holds now.
    pub(super) fn add(&self, jobs: impl IntoIterator<Item = Job>) {
        let now = Instant::now();
        let mut guard = self.state();
        let state = &mut *guard;
        for job in jobs {
            state.numbers.ahead += 1;
            state.numbers.ahead_bytes += job.bytes;
            if job.blame() > 0 {
                state.suspects.add(job);
                continue;
            }
            let id = job.delivery.subscription.row.id;
            let queue = state.queues.entry(id).or_insert_with(|| {
                let subscription = job.delivery.subscription.clone();
                let organization = number(&mut state.organizations, subscription.row.organization.as_ref());
                let ceiling = self.ceiling(&subscription);
                Queue::new(subscription, organization, ceiling, now)
            });
            queue.since.get_or_insert(job.queued);
            if job.is_urgent {
                queue.rows.push_back(job);
            } else {
                queue.queue.push_back(job);
            }
            if !queue.listed {
                queue.listed = true;
                state.fair.add(queue.organization, id);
            }
        }
    }

    /// Takes out what may begin now. `way` tells whether a subscription can be sent to.
    pub(super) fn begin(&self, now: Instant, way: &dyn Fn(&Subscription) -> Way) -> Begin {
        let mut begin = Begin::default();
        let mut guard = self.state();
        let state = &mut *guard;
        if state.stopped {
            return begin;
        }
        self.begin_suspects(state, now, way, &mut begin);
        while let Some(id) = state.fair.current() {
            if state.free(&self.limits) == 0 {
                break;
            }
            match self.begin_next(state, id, now, way) {
                Next::Begins(attempt) => {
                    state.fair.spend(attempt.jobs.len());
                    begin.begun.push(attempt);
                }
                Next::Waits => state.fair.set_aside(),
                Next::Parks => {
                    state.parked.push(id);
                    state.fair.set_aside();
                }
                Next::Gathers(until) => {
                    begin.later = Some(begin.later.map_or(until, |then| then.min(until)));
                    state.fair.set_aside();
                }
            }
        }
        begin
    }

    /// What the subscription whose turn it is begins.
    fn begin_next(
        &self,
        state: &mut State,
        id: i64,
        now: Instant,
        way: &dyn Fn(&Subscription) -> Way,
    ) -> Next {
        let free = state.free(&self.limits);
        let is_alone = state.sharers <= 1;
        let Some(queue) = state.queues.get_mut(&id) else { return Next::Waits };
        let known = queue.is_known(now);
        if !known && queue.unproven < queue.in_flight {
            // It has answered before and does not now.
            state.unproven += queue.in_flight - queue.unproven;
            queue.unproven = queue.in_flight;
        }
        let batch = queue.batch();
        let own_room = match batch {
            Some(batch) if queue.batches >= batch.in_flight.max(1) => 0,
            Some(batch) => batch.max,
            None => self.width(queue).saturating_sub(queue.in_flight) as usize,
        };
        // Any way out but `Begins` takes it out of the turns.
        queue.listed = false;
        if queue.waiting() == 0 || own_room == 0 {
            return Next::Waits;
        }
        let shared_room = if known {
            self.limits.for_known(free, queue.in_flight, is_alone)
        } else {
            let batch = batch.map(|batch| u32::try_from(batch.max).unwrap_or(u32::MAX));
            self.limits.for_unknown(free, queue.in_flight, batch, state.unproven, is_alone)
        };
        if shared_room == 0 {
            return Next::Parks;
        }
        let most = match way(&queue.subscription) {
            Way::Free => own_room.min(shared_room as usize),
            Way::Probe if queue.in_flight == 0 => 1,
            // What it has leased ahead goes back when it gets old.
            Way::Probe | Way::Blocked => return Next::Waits,
        };
        let jobs = match batch {
            None => queue.take_one().into_iter().collect(),
            Some(batch) => match queue.take_batch(&batch, most, now) {
                Ok(jobs) => jobs,
                Err(until) => return Next::Gathers(until),
            },
        };
        let count = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        if count == 0 {
            return Next::Waits;
        }
        queue.listed = true;
        queue.in_flight += count;
        queue.batches += 1;
        queue.waits_since.get_or_insert(now);
        queue.window.begin(queue.in_flight, now);
        if !known {
            queue.unproven += count;
            state.unproven += count;
        }
        state.numbers.in_flight += count;
        state.numbers.ahead -= jobs.len();
        state.numbers.ahead_bytes -= jobs.iter().map(|job| job.bytes).sum::<usize>();
        if state.denied {
            let has_drained = queue.denied && queue.waiting() <= queue.most_ahead(now) / 2;
            if has_drained || state.numbers.ahead <= self.limits.most_ahead * 3 / 4 {
                queue.denied = false;
                state.denied = false;
                self.room.notify_one();
            }
        }
        Next::Begins(Attempt { subscription: queue.subscription.clone(), jobs, began: now, suspect: None })
    }

    fn begin_suspects(
        &self,
        state: &mut State,
        now: Instant,
        way: &dyn Fn(&Subscription) -> Way,
        begin: &mut Begin,
    ) {
        for _ in 0..state.suspects.count() {
            if state.free(&self.limits) == 0 {
                return;
            }
            let may_send = |job: &Job| way(&job.delivery.subscription) != Way::Blocked;
            let Some((job, suspect)) = state.suspects.next(may_send) else { continue };
            state.numbers.in_flight += 1;
            state.numbers.ahead -= 1;
            state.numbers.ahead_bytes -= job.bytes;
            let subscription = match state.queues.get(&job.delivery.subscription.row.id) {
                Some(queue) => queue.subscription.clone(),
                None => job.delivery.subscription.clone(),
            };
            begin.begun.push(Attempt { subscription, jobs: vec![job], began: now, suspect: Some(suspect) });
        }
    }

    /// An attempt has ended: its deliveries are unsettled now. `answer` is what it tells of the destination's
    /// room.
    pub(super) fn ended(&self, attempt: &Ended, answer: Option<Answer>, now: Instant) {
        let mut guard = self.state();
        let state = &mut *guard;
        let count = attempt.count;
        state.numbers.in_flight -= count;
        state.numbers.unsettled += count;
        if let Some(suspect) = attempt.suspect {
            state.suspects.ended(suspect);
            return;
        }
        let Some(queue) = state.queues.get_mut(&attempt.subscription) else { return };
        queue.in_flight -= count;
        queue.batches = queue.batches.saturating_sub(1);
        queue.waits_since = (queue.in_flight > 0).then_some(now);
        if let Some(answer) = answer {
            queue.window.end(answer, attempt.began, now);
        }
        let proven = if answer == Some(Answer::Success) || queue.in_flight == 0 {
            queue.unproven
        } else {
            queue.unproven.min(count)
        };
        queue.unproven -= proven;
        state.unproven -= proven;
        if queue.denied && queue.waiting() == 0 {
            queue.denied = false;
            self.room.notify_one();
        }
        relist(state, attempt.subscription);
    }

    /// So many deliveries are recorded: their permits come back.
    pub(super) fn settled(&self, count: u32) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.numbers.unsettled = state.numbers.unsettled.saturating_sub(count);
        for id in std::mem::take(&mut state.parked) {
            relist(state, id);
        }
        if state.denied {
            self.room.notify_one();
        }
    }

    /// Whatever kept subscriptions from beginning may be gone.
    pub(super) fn look_again(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        let waiting: Vec<i64> = state
            .queues
            .iter()
            .filter(|(_, queue)| !queue.listed && queue.waiting() > 0)
            .map(|(id, _)| *id)
            .collect();
        state.parked.clear();
        waiting.into_iter().for_each(|id| relist(state, id));
    }

    /// Takes out what has waited too long, and what waits for subscriptions that are `blocked`.
    pub(super) fn take_back(&self, now: Instant, blocked: &dyn Fn(&Subscription) -> bool) -> Vec<Job> {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut back = Vec::new();
        for queue in state.queues.values_mut().filter(|queue| queue.waiting() > 0) {
            if blocked(&queue.subscription) {
                back.extend(queue.drain());
                continue;
            }
            // A subscription in the turns waits for nothing else.
            let is_old = |job: &Job| !queue.listed && now.duration_since(job.queued) >= TOO_OLD;
            while queue.queue.front().is_some_and(is_old) {
                back.extend(queue.queue.pop_front());
            }
        }
        state.took_back(&back);
        if !back.is_empty() {
            self.room.notify_one();
        }
        back
    }

    /// Ends all beginning. Returns what has not begun.
    pub(super) fn stop(&self) -> Vec<Job> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.stopped = true;
        let mut back: Vec<Job> = state.suspects.drain().collect();
        for queue in state.queues.values_mut() {
            back.extend(queue.drain());
        }
        state.took_back(&back);
        back
    }

    /// Follows a change of subscriptions, so that nothing begins under an old version. Returns what waits for
    /// subscriptions that are deleted or may not be sent to.
    pub(super) fn follow<'i>(&self, current: impl Fn(i64) -> Option<&'i Arc<Subscription>>) -> Vec<Job> {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut back = Vec::new();
        let mut deleted = Vec::new();
        for (id, queue) in &mut state.queues {
            let current = current(*id);
            if let Some(subscription) = current
                && !Arc::ptr_eq(subscription, &queue.subscription)
            {
                queue.subscription = subscription.clone();
                queue.window.set_ceiling(self.ceiling(subscription));
            }
            if current.is_none_or(|subscription| !subscription.may_send()) {
                back.extend(queue.drain());
            }
            if current.is_none() && queue.in_flight == 0 && !queue.listed {
                deleted.push(*id);
            }
        }
        for id in deleted {
            if let Some(queue) = state.queues.remove(&id) {
                state.unproven -= queue.unproven;
            }
        }
        state.took_back(&back);
        back
    }
}

/// What became of a turn.
enum Next {
    Begins(Attempt),
    /// It has nothing to begin, or may not.
    Waits,
    /// No permit is left for it.
    Parks,
    /// Its batch may still grow until then.
    Gathers(Instant),
}

/// The number of an organization, which it keeps.
fn number(organizations: &mut HashMap<Option<String>, u32>, organization: Option<&String>) -> u32 {
    let key = organization.cloned();
    let next = u32::try_from(organizations.len()).unwrap_or(u32::MAX);
    *organizations.entry(key).or_insert(next)
}

/// Lets a subscription for which something waits take part in the turns.
fn relist(state: &mut State, id: i64) {
    if let Some(queue) = state.queues.get_mut(&id)
        && !queue.listed
        && queue.waiting() > 0
    {
        queue.listed = true;
        state.fair.add(queue.organization, id);
    }
}

impl State {
    fn free(&self, limits: &Limits) -> u32 {
        limits.permits.saturating_sub(self.numbers.in_flight + self.numbers.unsettled)
    }

    fn took_back(&mut self, jobs: &[Job]) {
        self.numbers.ahead -= jobs.len();
        self.numbers.ahead_bytes -= jobs.iter().map(|job| job.bytes).sum::<usize>();
    }
}
