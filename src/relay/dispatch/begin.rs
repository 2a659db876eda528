//! Which deliveries begin now: suspects first, then each subscription in its turn.

use std::time::Instant;

use super::{
    super::way::Way,
    Dispatch, State,
    attempt::Attempt,
    job::Job,
    shares::{HANDFUL, for_live_events},
};
use crate::{delivery::SubscriptionId, subscription::Subscription};

/// What may begin now.
#[derive(Debug, Default)]
pub(crate) struct Begin {
    pub(crate) begun: Vec<Attempt>,
    /// When to look again because a batch is full or has waited long enough.
    pub(crate) later: Option<Instant>,
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

impl Dispatch {
    /// Takes out what may begin now. `way` tells whether a subscription can be sent to.
    pub(crate) fn begin(&self, now: Instant, way: &dyn Fn(&Subscription) -> Way) -> Begin {
        let mut begin = Begin::default();
        let mut guard = self.state();
        let state = &mut *guard;
        if state.stopped {
            return begin;
        }
        if let Some(member) = &self.member {
            member.wants_nothing(); // what is denied below says so again
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
        id: SubscriptionId,
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
        // Live events find room beside a replay.
        let all = batch.map_or(self.width(queue), |batch| u32::try_from(batch.in_flight).unwrap_or(u32::MAX));
        let reserve = if queue.has_only_replays() { for_live_events(all) } else { 0 };
        // What a dead relay had sent does not wait until what hangs here has timed out.
        let is_suspect = queue.rows.front().is_some_and(Job::is_suspect);
        let in_flight = queue.in_flight.saturating_sub(if is_suspect { HANDFUL as u32 } else { 0 });
        let own_room = match batch {
            Some(batch) if queue.batches + reserve as usize >= batch.in_flight.max(1) => 0,
            Some(batch) => batch.max,
            None => self.width(queue).saturating_sub(in_flight + reserve) as usize,
        };
        // Any way out but `Begins` takes it out of the turns.
        queue.listed = false;
        if queue.waiting() == 0 || own_room == 0 {
            return Next::Waits;
        }
        let shared_room = if known {
            self.limits.for_known(free, in_flight, is_alone)
        } else {
            let batch = batch.map(|batch| u32::try_from(batch.max).unwrap_or(u32::MAX));
            self.limits.for_unknown(free, in_flight, batch, state.unproven, is_alone)
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
        let most = match state.ramps.get_mut(&id).filter(|ramp| !ramp.is_over(now)) {
            Some(ramp) if ramp.ready(now) == 0 => {
                ramp.awaited = true;
                self.paces.changed.notify_one();
                return Next::Waits;
            }
            Some(ramp) => most.min(ramp.ready(now)),
            None => most,
        };
        // A subscription for which there are no slots is woken when there are.
        let demand = if queue.refill_at.is_some() { usize::MAX } else { queue.waiting() };
        let slots = self.paces.ready(id, u32::try_from(demand).unwrap_or(u32::MAX), now);
        if slots == 0 {
            return Next::Waits;
        }
        let most = most.min(slots as usize);
        let wanted = if batch.is_some() { u32::try_from(most).unwrap_or(u32::MAX) } else { 1 };
        let granted = self.take_shared(wanted);
        if granted == 0 {
            return Next::Parks;
        }
        let most = most.min(granted as usize);
        let jobs = match batch {
            None => queue.take_one().into_iter().collect(),
            Some(batch) => match queue.take_batch(&batch, most, now) {
                Ok(jobs) => jobs,
                Err(until) => {
                    self.give_shared(granted);
                    return Next::Gathers(until);
                }
            },
        };
        let count = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        self.give_shared(granted - count);
        if count == 0 {
            return Next::Waits;
        }
        self.paces.spend(id, count);
        if let Some(ramp) = state.ramps.get_mut(&id) {
            ramp.begin(count);
        }
        queue.listed = true;
        queue.in_flight += count;
        queue.batches += 1;
        queue.waits_since.get_or_insert(now);
        queue.window.begin(queue.in_flight, now);
        if reserve > 0 {
            queue.window.keep_free(queue.in_flight, reserve);
        }
        if !known {
            queue.unproven += count;
            state.unproven += count;
        }
        state.numbers.in_flight += count;
        state.numbers.ahead -= jobs.len();
        state.numbers.ahead_bytes -= jobs.iter().map(|job| job.bytes).sum::<usize>();
        let may_refill = queue.may_refill();
        let subscription = queue.subscription.clone();
        let is_less_crowded = state.is_crowded && {
            let limits = self.limits_now(state);
            state.numbers.ahead <= limits.most_ahead * 3 / 4
                && state.numbers.ahead_bytes <= limits.ahead_bytes / 16 * 15
        };
        if may_refill || is_less_crowded {
            state.is_crowded &= !is_less_crowded;
            self.room.notify_one();
        }
        Next::Begins(Attempt { subscription, jobs, began: now, suspect: None })
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
            let may_send = |job: &Job| {
                way(&job.delivery.subscription) != Way::Blocked
                    && self.paces.ready(job.delivery.subscription.row.id, 1, now) > 0
            };
            if self.take_shared(1) == 0 {
                return;
            }
            let Some((job, suspect)) = state.suspects.next(may_send) else {
                self.give_shared(1);
                continue;
            };
            self.paces.spend(job.delivery.subscription.row.id, 1);
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
}
