//! The slots of one rate that this relay has reserved, and who waits for more. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use crate::{
    delivery::{SubscriptionId, rate::Rate},
    store::SlotsReserved,
};

/// Slots are reserved for so long ahead (seconds), as in `reserve_slots.sql`.
const AHEAD: f64 = 1.0;
/// A slot is used within this time of its own time or of its reservation (seconds).
const KEPT: f64 = 0.5;
/// Shortest time between two rounds of a rate: at high rates several deliveries begin in each.
const ROUND: Duration = Duration::from_millis(5);
/// When to ask again after a statement that failed or met another relay.
const AGAIN: Duration = Duration::from_millis(100);
/// Nothing is leased for a rate of which no slot is free for so long.
const CLOSED: Duration = Duration::from_millis(500);

/// One rate.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    run: Option<Run>,
    /// Who waits for slots, and with how many deliveries.
    waiting: BTreeMap<SubscriptionId, u32>,
    /// Who began last: the others are woken before it.
    last: SubscriptionId,
    /// The last time that somebody was woken.
    woke: Option<Instant>,
    asking: bool,
    /// No slot is free before.
    not_before: Option<Instant>,
    /// The first slot that was free after the last reservation.
    left: Option<DateTime<Utc>>,
    /// No other relay has reserved slots between the last two reservations of this one.
    is_alone: bool,
}

/// Slots that were reserved together.
#[derive(Debug)]
struct Run {
    /// Time of the first slot, no earlier than the database says.
    first: Instant,
    /// The same, no later than the database says.
    first_at_least: Instant,
    /// When they were asked for.
    asked: Instant,
    count: u32,
    /// Number of slots that are used or lost.
    used: u32,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            run: None,
            waiting: BTreeMap::new(),
            last: SubscriptionId(0),
            woke: None,
            asking: false,
            not_before: None,
            left: None,
            is_alone: false,
        }
    }

    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    /// Number of slots that can be used now.
    pub(super) fn ready(&mut self, now: Instant) -> u32 {
        let spacing = self.rate.spacing;
        self.run.as_mut().map_or(0, |run| run.ready(spacing, now))
    }

    /// So many slots are used.
    pub(super) fn spend(&mut self, id: SubscriptionId, count: u32) {
        self.last = id;
        if let Some(run) = &mut self.run {
            run.used = run.used.saturating_add(count).min(run.count);
        }
    }

    /// A subscription waits with so many deliveries.
    pub(super) fn await_slots(&mut self, id: SubscriptionId, count: u32) {
        self.waiting.insert(id, count);
    }

    /// When somebody can be woken or more slots are to be reserved; none while nobody waits, or while an
    /// answer is awaited.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.waiting.is_empty() {
            return None;
        }
        match &self.run {
            Some(run) if run.used < run.count => {
                let slot = run.time(self.rate.spacing, run.used);
                Some(self.woke.map_or(slot, |woke| slot.max(woke + ROUND)))
            }
            _ if self.asking => None,
            _ => Some(self.not_before.unwrap_or(run_out(self.run.as_ref()))),
        }
    }

    /// Who can begin now, the one that began last at the end.
    pub(super) fn wake(&mut self, now: Instant) -> Vec<SubscriptionId> {
        if self.waiting.is_empty() || self.woke.is_some_and(|woke| now < woke + ROUND) || self.ready(now) == 0
        {
            return Vec::new();
        }
        self.woke = Some(now);
        let mut waiting = std::mem::take(&mut self.waiting);
        let after = waiting.split_off(&SubscriptionId(self.last.0.saturating_add(1)));
        after.into_keys().chain(waiting.into_keys()).collect()
    }

    /// How many slots to reserve now, if any.
    pub(super) fn ask(&mut self, others: u32, now: Instant) -> Option<u32> {
        let has_slots = self.ready(now) > 0 || self.run.as_ref().is_some_and(|run| run.used < run.count);
        let is_closed = self.not_before.is_some_and(|then| now < then);
        if self.waiting.is_empty() || self.asking || has_slots || is_closed {
            return None;
        }
        self.asking = true;
        let waiting: u64 = self.waiting.values().map(|count| u64::from(*count)).sum();
        let wanted = u32::try_from(waiting).unwrap_or(u32::MAX).min(self.share(others, AHEAD));
        // Some more: those that come next would ask again.
        Some(wanted.max(self.share(others, KEPT)))
    }

    /// What this relay may send in so many seconds; at least 1.
    fn share(&self, others: u32, seconds: f64) -> u32 {
        let relays = if self.is_alone { 1.0 } else { f64::from(others) + 1.0 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float saturates")]
        let share = (self.rate.per_second() * seconds / relays) as u32;
        share.max(1)
    }

    /// What was reserved of what was asked for at `asked`.
    pub(super) fn answer(&mut self, answer: &SlotsReserved, asked: Instant, now: Instant) {
        self.asking = false;
        self.not_before = None;
        let Some(first) = answer.first else {
            self.not_before = Some(now + AGAIN);
            return;
        };
        self.is_alone = answer.free_before.is_some() && answer.free_before == self.left;
        if answer.reserved == 0 {
            self.not_before = Some(moved(now, first - AHEAD));
            return;
        }
        self.left = answer.free_now;
        self.run = Some(Run {
            first: moved(now, first),
            first_at_least: moved(asked, first),
            asked,
            count: answer.reserved,
            used: 0,
        });
    }

    /// How many deliveries may be leased ahead for a subscription.
    pub(super) fn ahead(&self, id: SubscriptionId, others: u32, now: Instant) -> usize {
        if self.closed_until(now).is_some() {
            return 0;
        }
        let all = self.share(others, AHEAD) as usize;
        let waiting = self.waiting.len().max(1);
        if waiting > 2 * all && !self.waiting.contains_key(&id) {
            return 0; // its turn comes when others have had theirs
        }
        (all / waiting).max(1)
    }

    /// Until when nothing is leased, because no slot is free until a moment later.
    pub(super) fn closed_until(&self, now: Instant) -> Option<Instant> {
        self.not_before?.checked_sub(CLOSED).filter(|until| *until > now)
    }
}

impl Run {
    fn time(&self, spacing: f64, number: u32) -> Instant {
        self.first + Duration::from_secs_f64(f64::from(number) * spacing)
    }

    fn ready(&mut self, spacing: f64, now: Instant) -> u32 {
        // What is too old to be used. Nothing is, for a moment after the reservation.
        if now.saturating_duration_since(self.asked).as_secs_f64() > KEPT {
            let old = now.saturating_duration_since(self.first_at_least).as_secs_f64() - KEPT;
            self.used = self.used.max(whole((old / spacing).ceil())).min(self.count);
        }
        let Some(age) = now.checked_duration_since(self.first) else { return 0 };
        whole(age.as_secs_f64() / spacing).saturating_add(1).min(self.count).saturating_sub(self.used)
    }
}

/// The time at which a run was used up, or any time in the past.
fn run_out(run: Option<&Run>) -> Instant {
    run.map_or_else(Instant::now, |run| run.asked)
}

fn moved(from: Instant, seconds: f64) -> Instant {
    let length = Duration::try_from_secs_f64(seconds.abs()).unwrap_or(Duration::from_secs(86_400));
    if seconds < 0.0 { from.checked_sub(length).unwrap_or(from) } else { from + length }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float saturates")]
fn whole(number: f64) -> u32 {
    number as u32
}
