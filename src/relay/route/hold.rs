//! How much routing reads, and when it holds: while subscriptions keep up, a backlog stays in the log.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::{
    super::{
        plan::{Plan, Room, Standing, Wanting, plan},
        way::Way,
    },
    FEW, HANDFUL, LARGE_PAGE, PAGE, POSITIONS_FOR_EACH, Route, SMALLEST_PAGE, WITHOUT_PAYLOADS,
};
use crate::{
    delivery::SubscriptionId,
    store::{Error, NewEvent, Page},
    subscription::{Index, Subscription},
};

impl Route {
    /// Whether payloads are read with a page. While hardly any event is leased, because nobody wants them or
    /// they go to the backlog, they are not, and pages are larger.
    pub(super) fn reads_payloads(&self, index: &Index) -> bool {
        self.without_payloads == 0 && (index.needs_payload() || !self.leases_hardly_anything())
    }

    /// What failed with so many events is not tried again unchanged. Payloads are then read for each attempt,
    /// where one that cannot be read costs its own event only.
    pub(super) fn ask_for_less(&mut self, error: &Error, events: usize) {
        if error.asks_for_less() {
            self.without_payloads = WITHOUT_PAYLOADS;
            self.most = (events / 2).max(1);
        }
    }

    pub(super) fn leases_hardly_anything(&self) -> bool {
        self.fanout < 0.05
    }

    /// What to read: as many events as fill the room that is left when `pairs` are leased.
    pub(super) fn page(&self, index: &Index, pairs: usize) -> Page {
        Page {
            events: self.fitting(index, pairs).min(self.most),
            with_payloads: self.reads_payloads(index),
            positions: POSITIONS_FOR_EACH * i64::try_from(self.most).unwrap_or(i64::MAX / POSITIONS_FOR_EACH),
            through_window: self.most < LARGE_PAGE,
        }
    }

    fn fitting(&self, index: &Index, pairs: usize) -> usize {
        if self.leases_hardly_anything() {
            return LARGE_PAGE;
        }
        let dispatch = &self.sending.dispatch;
        let free = dispatch.free_ahead().saturating_sub(pairs);
        let fitting = part(free, self.fanout.max(0.1));
        if index.sendable() > FEW {
            return fitting.clamp(SMALLEST_PAGE, PAGE);
        }
        let now = Instant::now();
        let most = index.iter().filter(|one| one.may_send()).map(|one| dispatch.room(one, now)).max();
        let left = most.unwrap_or(PAGE).saturating_sub(pairs / index.sendable().max(1));
        fitting.min(part(left, self.fanout.clamp(0.1, 1.0))).clamp(SMALLEST_PAGE, PAGE)
    }

    /// Whether routing must wait because no subscription that may be sent to has room for a page.
    pub(super) fn must_hold(&self, index: &Index) -> bool {
        let room =
            |subscription: &Arc<Subscription>, now| self.sending.dispatch.room_to_refill(subscription, now);
        index.sendable() > 0 && self.sending.dispatch.is_full()
            || self.all_are_full(index, &HashMap::new(), room)
    }

    /// Whether no subscription that may be sent to has room. Only then may events stay in the log: otherwise
    /// the backlog of some would stand before the events of others.
    fn all_are_full(
        &self,
        index: &Index,
        standings: &HashMap<SubscriptionId, Standing>,
        room: impl Fn(&Arc<Subscription>, Instant) -> usize,
    ) -> bool {
        // With many subscriptions it is hardly ever so, and not worth the look.
        if index.sendable() == 0 || index.sendable() > FEW {
            return false;
        }
        let now = Instant::now();
        let mut some = false;
        for subscription in index.iter() {
            let (may_send, room) = match standings.get(&subscription.row.id) {
                Some(standing) => (standing.may_send, standing.room),
                None if self.way(subscription, now) != Way::Free => (false, 0),
                None => (true, room(subscription, now)),
            };
            // What waits for a rate waits in the backlog: the log holds what others wait for, too.
            let may_send = may_send && (room > 0 || !self.sending.dispatch.paces.limits(subscription.row.id));
            if may_send && room > 0 {
                return false;
            }
            some |= may_send;
        }
        some
    }

    pub(super) fn plan(&self, index: &Index, events: &[NewEvent]) -> Plan {
        let now = Instant::now();
        let together = self.sending.dispatch.free_ahead();
        let all = together + self.sending.dispatch.numbers().ahead;
        let room = Room { together, each: (all / index.sendable().max(1)).clamp(1, HANDFUL) };
        plan(
            events,
            self.base.clock.now(),
            room,
            |event| {
                let position = event.position;
                let all = |ids: &[SubscriptionId]| ids.iter().filter_map(|id| index.get(*id)).collect();
                if index.is_choosy() {
                    Wanting {
                        wanted_by: all(self.matches.wanted_by(position)),
                        undecided: all(self.matches.undecided(position)),
                    }
                } else {
                    Wanting { wanted_by: index.matching(event), undecided: Vec::new() }
                }
            },
            |subscription| {
                let is_free = self.way(subscription, now) == Way::Free;
                let is_here =
                    !subscription.is_ordered() || self.sending.dispatch.is_gate_open(subscription.row.id);
                let may_send = is_free && is_here;
                let is_held_back = self.waiting.schedule.is_held_back(subscription.row.id);
                let has_room = may_send && !is_held_back;
                let room = if has_room { self.sending.dispatch.room(subscription, now) } else { 0 };
                let mut standing = Standing::new(subscription, may_send, room);
                standing.is_elsewhere = subscription.is_delivered_elsewhere(&self.sending, &self.waiting);
                standing
            },
            |standings| self.all_are_full(index, standings, |one, now| self.sending.dispatch.room(one, now)),
        )
    }
}

/// So many events fill this room.
fn part(room: usize, fanout: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a float saturates, and the result is clamped"
    )]
    let events = (room as f64 / fanout) as usize;
    events
}
