//! What this relay holds and has not begun, and which delivery begins next.
//!
//! Three numbers: *leased ahead* waits here and costs a killed relay no copy; *in flight* has begun;
//! *unsettled* has been answered and is not recorded. Permits bound the last two together, which is what a
//! kill can repeat; leased ahead is bounded in count and bytes. Each subscription has a queue of what waits
//! for it, and a window that it earns with answers.

mod attempt;
mod begin;
mod gate;
mod job;
mod order;
mod queue;
mod ramp;
mod room;
mod shares;
mod suspects;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{delivery::SubscriptionId, subscription::Subscription};
use tokio::sync::Notify;

pub use self::gate::{Epoch, Fate, Gate, Keyed, Ordered, Place, Released};
pub(super) use self::{
    attempt::{Attempt, Ended},
    job::{Job, Passage},
    order::{Committed, Epochs},
};
use self::{queue::Queue, ramp::Ramp, shares::Limits, suspects::Suspects};
use super::{
    concurrency::Answer,
    fair::Fair,
    pace::Paces,
    shared::{Member, Shared},
};

/// What has waited here this long, and not for its turn, goes back to the database.
const TOO_OLD: Duration = Duration::from_secs(2);

/// The three numbers, for reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) ahead: usize,
    pub(super) ahead_bytes: usize,
    pub(super) in_flight: u32,
    pub(super) unsettled: u32,
}

/// Deliveries, and bytes of events, that relays with so many permits may have leased ahead.
pub(super) fn most_ahead(permits: u32) -> (usize, usize) {
    let limits = Limits::new(permits, permits);
    (limits.most_ahead, limits.ahead_bytes)
}

/// All queues of a relay.
#[derive(Debug)]
pub(super) struct Dispatch {
    state: Mutex<State>,
    limits: Limits,
    /// The part of this relay in the limits of several.
    member: Option<Member>,
    /// The rates of limited subscriptions.
    pub(super) paces: Paces,
    /// Rings when more may be leased after room was denied.
    pub(super) room: Notify,
    /// Rings when few permits are left.
    pub(super) scarce: Notify,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<SubscriptionId, Queue>,
    /// Of ordered subscriptions.
    gates: HashMap<SubscriptionId, Gate<Job>>,
    /// A number for each organization.
    organizations: HashMap<Option<String>, u32>,
    fair: Fair,
    /// Subscriptions for which no permit was left. They take part in the turns again when permits come back.
    parked: Vec<SubscriptionId>,
    suspects: Suspects,
    /// Subscriptions that begin again after an outage.
    ramps: HashMap<SubscriptionId, Ramp>,
    numbers: Numbers,
    /// In flight for subscriptions that had not answered lately.
    unproven: u32,
    /// More could not be leased because of what all subscriptions have leased together.
    is_crowded: bool,
    /// More could not begin for some subscription.
    was_full: bool,
    stopped: bool,
    /// Subscriptions that may be sent to.
    sharers: usize,
}

impl Dispatch {
    /// `shared`: the limits of several relays, if there are any.
    pub(super) fn new(permits: u32, per_subscription: u32, shared: Option<&Arc<Shared>>) -> Self {
        let limits = Limits::new(permits, per_subscription);
        let (paces, member) = (Paces::default(), shared.map(Shared::join));
        Self { state: Mutex::default(), limits, member, paces, room: Notify::new(), scarce: Notify::new() }
    }

    /// The limits, as the other relays leave them now.
    fn limits_now(&self, state: &State) -> Limits {
        let Some(member) = &self.member else { return self.limits };
        let (ahead, bytes) = member.leased(state.numbers.ahead, state.numbers.ahead_bytes);
        let limits = self.limits;
        Limits {
            most_ahead: limits.most_ahead.min(ahead),
            ahead_bytes: limits.ahead_bytes.min(bytes),
            ..limits
        }
    }

    /// Permits of all relays for up to `wanted` deliveries that begin.
    fn take_shared(&self, wanted: u32) -> u32 {
        self.member.as_ref().map_or(wanted, |member| member.take(wanted))
    }

    fn give_shared(&self, count: u32) {
        if let Some(member) = &self.member
            && count > 0
        {
            member.give(count);
        }
    }

    /// Waits until permits may be there that another relay had.
    pub(super) async fn shared_freed(&self) {
        match &self.member {
            Some(member) => member.freed().await,
            None => std::future::pending().await,
        }
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
        let mut guard = self.state();
        let state = &mut *guard;
        for job in jobs {
            state.numbers.ahead += 1;
            state.numbers.ahead_bytes += job.bytes;
            self.enqueue(state, job, false);
        }
    }

    /// Puts a delivery that is counted into the queue of its subscription: first, if it has waited for its
    /// turn at a gate.
    fn enqueue(&self, state: &mut State, job: Job, has_waited: bool) {
        if job.blame() > 0 {
            state.suspects.add(job);
            return;
        }
        let id = job.delivery.subscription.row.id;
        let queue = state.queues.entry(id).or_insert_with(|| {
            let subscription = job.delivery.subscription.clone();
            let organization = number(&mut state.organizations, subscription.row.organization.as_ref());
            let ceiling = self.ceiling(&subscription);
            Queue::new(subscription, organization, ceiling, Instant::now())
        });
        queue.since.get_or_insert(job.queued);
        if job.is_suspect() {
            queue.rows.push_front(job);
        } else if job.is_urgent {
            queue.rows.push_back(job);
        } else if job.delivery.replay.is_some() {
            queue.replays.push_back(job);
        } else if has_waited {
            queue.queue.push_front(job);
        } else {
            queue.queue.push_back(job);
        }
        if !queue.listed {
            queue.listed = true;
            state.fair.add(queue.organization, id);
        }
    }

    /// An attempt has ended: its deliveries are unsettled now. `answer` is what it tells of the destination's
    /// room.
    pub(super) fn ended(&self, attempt: &Ended, answer: Option<Answer>, now: Instant) {
        let mut guard = self.state();
        let state = &mut *guard;
        let count = attempt.count;
        self.give_shared(count);
        state.numbers.in_flight -= count;
        state.numbers.unsettled += count;
        // A key goes on when its verdict is committed. That hurries when nothing else can begin.
        let holds_up = state.gates.get(&attempt.subscription).is_some_and(|gate| gate.waiting() > 0)
            && state.queues.get(&attempt.subscription).is_none_or(|queue| queue.waiting() == 0);
        if holds_up || state.free(&self.limits) <= self.limits.permits / 4 {
            self.scarce.notify_one();
        }
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
        let is_idle = queue.waiting() == 0 && std::mem::take(&mut queue.was_full);
        if queue.may_refill() || is_idle {
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
        if std::mem::take(&mut state.was_full) {
            self.room.notify_one();
        }
    }

    /// Whatever kept subscriptions from beginning may be gone.
    pub(super) fn look_again(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        let _ = self.limits_now(state); // the others learn what is leased here
        let waiting: Vec<SubscriptionId> = state
            .queues
            .iter()
            .filter(|(_, queue)| !queue.listed && queue.waiting() > 0)
            .map(|(id, _)| *id)
            .collect();
        state.parked.clear();
        waiting.into_iter().for_each(|id| relist(state, id));
    }

    /// There are slots for these subscriptions.
    pub(super) fn wake(&self, woken: &[SubscriptionId]) {
        let mut state = self.state();
        woken.iter().for_each(|id| relist(&mut state, *id));
    }

    /// When a subscription that begins slowly can begin the next.
    pub(super) fn next_of_ramps(&self) -> Option<Instant> {
        let state = self.state();
        state.ramps.values().filter(|ramp| ramp.awaited).map(Ramp::next).min()
    }

    /// The subscriptions that begin slowly and can begin one now.
    pub(super) fn woken_by_ramps(&self, now: Instant) -> Vec<SubscriptionId> {
        let mut state = self.state();
        let ready = state.ramps.iter_mut().filter(|(_, ramp)| ramp.awaited && ramp.next() <= now);
        ready
            .map(|(id, ramp)| {
                ramp.awaited = false;
                *id
            })
            .collect()
    }

    /// An outage of a subscription's destination is over: it begins as if it had never answered.
    pub(super) fn begin_slowly(&self, id: SubscriptionId, now: Instant) {
        let mut state = self.state();
        state.ramps.retain(|_, ramp| !ramp.is_over(now));
        state.ramps.insert(id, Ramp::new(now));
        if let Some(queue) = state.queues.get_mut(&id) {
            queue.window.begin_again(now);
        }
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
        let gates: Vec<SubscriptionId> = state.gates.keys().copied().collect();
        drop(guard);
        back.extend(gates.into_iter().flat_map(|id| self.close_gate(id).0));
        back
    }

    /// Follows a change of subscriptions, so that nothing begins under an old version. Returns what waits for
    /// subscriptions that are deleted or may not be sent to.
    pub(super) fn follow<'i>(
        &self,
        current: impl Fn(SubscriptionId) -> Option<&'i Arc<Subscription>>,
    ) -> Vec<Job> {
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

/// The number of an organization, which it keeps.
fn number(organizations: &mut HashMap<Option<String>, u32>, organization: Option<&String>) -> u32 {
    let key = organization.cloned();
    let next = u32::try_from(organizations.len()).unwrap_or(u32::MAX);
    *organizations.entry(key).or_insert(next)
}

/// Lets a subscription for which something waits take part in the turns.
fn relist(state: &mut State, id: SubscriptionId) {
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
