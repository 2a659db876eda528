//! How much more may be leased, asked by routing and claiming.

use std::{sync::Arc, time::Instant};

use super::{
    Dispatch, State,
    queue::{Queue, first_ahead},
    shares::{HANDFUL, Taken, Wants},
};
use crate::{delivery::SubscriptionId, subscription::Subscription};

/// Deliveries leased by one claim at most.
const CLAIMED_AT_ONCE: usize = 2_000;

/// Due rows of a subscription that may wait until what is in flight has ended.
const ROWS_AHEAD: usize = 2;

/// How many deliveries one claim may still lease.
#[derive(Debug)]
pub(crate) struct Budget {
    left: usize,
}

impl Budget {
    pub(crate) fn spend(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
    }

    pub(crate) fn left(&self) -> usize {
        self.left
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.left == 0
    }
}

impl Dispatch {
    /// How many more deliveries may be leased ahead for a subscription.
    pub(crate) fn room(&self, subscription: &Arc<Subscription>, now: Instant) -> usize {
        self.room_of(subscription, now, |_| 1)
    }

    /// The same, or 0 while it is less than a quarter of what the subscription may have: statements that
    /// lease a few at a time cost the database more.
    pub(crate) fn room_to_refill(&self, subscription: &Arc<Subscription>, now: Instant) -> usize {
        self.room_of(subscription, now, |all| (all / 4).max(1))
    }

    /// The same, or 0 while it is less than `least` of what the subscription may have.
    fn room_of(
        &self,
        subscription: &Arc<Subscription>,
        now: Instant,
        least: impl Fn(usize) -> usize,
    ) -> usize {
        let by_rate = self.paces.ahead(subscription.row.id, now);
        let mut state = self.state();
        let wants = match state.queues.get(&subscription.row.id) {
            Some(queue) => queue.wants(now),
            None => Wants { mine: 0, most: first_ahead(subscription), is_known: false },
        };
        let wants = Wants { most: wants.most.min(by_rate), ..wants };
        let room = self.limits_now(&state).ahead(wants, state.taken());
        let all = wants.mine + room;
        if room >= least(all) {
            return room;
        }
        state.is_crowded |= all < wants.most;
        if let Some(queue) = state.queues.get_mut(&subscription.row.id) {
            queue.refill_at = Some(all.saturating_sub((all / 4).max(1)));
        }
        0
    }

    /// What one claim may lease for all subscriptions together.
    pub(crate) fn budget(&self) -> Budget {
        Budget { left: self.free_ahead().clamp(HANDFUL, CLAIMED_AT_ONCE) }
    }

    /// How many deliveries of a subscription's backlog may be leased. For a subscription that has not
    /// answered lately: as many as can begin at once.
    pub(crate) fn room_behind(
        &self,
        subscription: &Arc<Subscription>,
        now: Instant,
        budget: &Budget,
    ) -> usize {
        // What its rate allows is leased in a few parts, not one by one.
        let least = if self.paces.limits(subscription.row.id) { 2 } else { usize::MAX };
        let room = self.room_of(subscription, now, |all| (all / least).max(1)).min(budget.left);
        let known = self.state().queues.get(&subscription.row.id).is_some_and(|queue| queue.is_known(now));
        if known || room == 0 { room } else { room.min(self.room_to_begin(subscription, now, budget)) }
    }

    /// How many deliveries of a subscription could begin at once.
    pub(crate) fn room_to_begin(
        &self,
        subscription: &Arc<Subscription>,
        now: Instant,
        budget: &Budget,
    ) -> usize {
        let by_rate = self.paces.ahead(subscription.row.id, now);
        let mut state = self.state();
        let free = state.free(&self.limits) as usize;
        let first = HANDFUL.max(subscription.outlet.batch().map_or(0, |batch| batch.max));
        let Some(queue) = state.queues.get(&subscription.row.id) else {
            return free.max(1).min(first).min(by_rate).min(budget.left);
        };
        let (in_flight, waiting) = (queue.in_flight as usize, queue.rows.len());
        let own = match queue.batch() {
            Some(batch) => batch.max * (batch.in_flight + 1),
            None => self.width(queue) as usize,
        };
        let mut limit = if queue.is_known(now) { own } else { own.min(first) };
        if queue.is_known(now) && !queue.queue.is_empty() {
            // What is due begins before what was leased ahead, and a window that is full stays full.
            limit = limit.max(in_flight) + ROWS_AHEAD;
        }
        let room = limit
            .saturating_sub(in_flight + waiting)
            .min(free.max(usize::from(waiting == 0)))
            .min(by_rate.saturating_sub(waiting))
            .min(budget.left);
        if room == 0 {
            state.was_full = true;
            if let Some(queue) = state.queues.get_mut(&subscription.row.id) {
                queue.was_full = true;
            }
        }
        room
    }

    /// How many more suspects of a subscription may be leased, whatever else it has in flight.
    pub(crate) fn room_for_suspects(&self, subscription: SubscriptionId) -> usize {
        let state = self.state();
        let waiting = |queue: &Queue| queue.rows.iter().filter(|job| job.is_suspect()).count();
        HANDFUL.saturating_sub(state.queues.get(&subscription).map_or(0, waiting))
    }

    /// Whether suspects of two deaths wait here.
    pub(crate) fn has_suspects(&self) -> bool {
        self.state().suspects.count() > 0
    }

    /// How many more deliveries may be leased ahead for all subscriptions together.
    pub(crate) fn free_ahead(&self) -> usize {
        let state = self.state();
        self.limits_now(&state).most_ahead.saturating_sub(state.numbers.ahead)
    }

    /// Whether no more may be leased ahead for any subscription.
    pub(crate) fn is_full(&self) -> bool {
        let mut state = self.state();
        let full = self.limits_now(&state).is_full(state.numbers.ahead, state.numbers.ahead_bytes);
        state.is_crowded |= full;
        full
    }
}

impl State {
    fn taken(&self) -> Taken {
        Taken {
            ahead: self.numbers.ahead,
            ahead_bytes: self.numbers.ahead_bytes,
            sharers: self.sharers.max(1),
        }
    }
}
