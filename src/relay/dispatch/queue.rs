//! What waits for one subscription, and what it has in flight.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::{
    super::concurrency::Window,
    job::Job,
    shares::{HANDFUL, Wants},
};
use crate::{sink::Batch, subscription::Subscription};

/// Deliveries leased ahead for a subscription whose rate is not known.
const AHEAD_UNKNOWN: usize = 256;
/// A subscription has leased ahead what it takes in this time (seconds).
const AHEAD_FOR: f64 = 0.5;

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) subscription: Arc<Subscription>,
    /// Its organization, as a number for the turns.
    pub(super) organization: u32,
    pub(super) window: Window,
    /// Urgent deliveries, which begin first.
    pub(super) rows: VecDeque<Job>,
    /// Deliveries that are not urgent, which begin after those in `rows`.
    pub(super) queue: VecDeque<Job>,
    /// Deliveries of replays, which begin after all others and leave them some room.
    pub(super) replays: VecDeque<Job>,
    /// Deliveries that wait at its gate, if it is ordered.
    pub(super) gated: usize,
    pub(super) in_flight: u32,
    /// Attempts in flight; of a sink that takes batches each is one batch.
    pub(super) batches: usize,
    /// Deliveries in flight that began while it had not answered lately.
    pub(super) unproven: u32,
    /// Since when something is in flight without an answer.
    pub(super) waits_since: Option<Instant>,
    /// Since when the first delivery of the next batch waits.
    pub(super) since: Option<Instant>,
    /// Whether it takes part in the turns.
    pub(super) listed: bool,
    /// More could not be leased for it: more may be when no more than this many wait.
    pub(super) refill_at: Option<usize>,
    /// More could not begin.
    pub(super) was_full: bool,
}

impl Queue {
    pub(super) fn new(
        subscription: Arc<Subscription>,
        organization: u32,
        ceiling: u32,
        now: Instant,
    ) -> Self {
        Self {
            subscription,
            organization,
            window: Window::new(ceiling, now),
            rows: VecDeque::new(),
            queue: VecDeque::new(),
            gated: 0,
            replays: VecDeque::new(),
            in_flight: 0,
            batches: 0,
            unproven: 0,
            waits_since: None,
            since: None,
            listed: false,
            refill_at: None,
            was_full: false,
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.rows.len() + self.queue.len() + self.replays.len()
    }

    pub(super) fn batch(&self) -> Option<Batch> {
        self.subscription.outlet.batch()
    }

    /// Whether it has answered lately and does not keep deliveries without an answer.
    pub(super) fn is_known(&self, now: Instant) -> bool {
        self.window.is_proven(now) && !self.window.is_silent(self.waits_since, now)
    }

    /// What it may have leased ahead, and has.
    pub(super) fn wants(&self, now: Instant) -> Wants {
        Wants {
            mine: self.queue.len() + self.gated,
            most: self.most_ahead(now),
            is_known: self.is_known(now),
        }
    }

    /// How many deliveries may be leased ahead for it.
    pub(super) fn most_ahead(&self, now: Instant) -> usize {
        if self.window.is_silent(self.waits_since, now) {
            return HANDFUL.saturating_sub(self.in_flight as usize);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float saturates")]
        let earned = (self.window.rate() * AHEAD_FOR) as usize;
        earned.max(first_ahead(&self.subscription))
    }

    /// Whether more may be leased for it again, after that was denied.
    pub(super) fn may_refill(&mut self) -> bool {
        let may = self.refill_at.is_some_and(|at| self.queue.len() + self.gated <= at);
        if may {
            self.refill_at = None;
        }
        may
    }

    /// The delivery that begins next.
    fn first(&self) -> Option<&Job> {
        self.rows.front().or_else(|| self.queue.front()).or_else(|| self.replays.front())
    }

    /// Whether nothing but replays waits.
    pub(super) fn has_only_replays(&self) -> bool {
        self.rows.is_empty() && self.queue.is_empty() && !self.replays.is_empty()
    }

    /// All that waits, taken out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Job> + '_ {
        self.rows.drain(..).chain(self.queue.drain(..)).chain(self.replays.drain(..))
    }

    pub(super) fn take_one(&mut self) -> Option<Job> {
        self.rows.pop_front().or_else(|| self.queue.pop_front()).or_else(|| self.replays.pop_front())
    }

    /// The next batch.
    ///
    /// # Errors
    /// The time until which it may still grow.
    pub(super) fn take_batch(
        &mut self,
        batch: &Batch,
        most: usize,
        now: Instant,
    ) -> Result<Vec<Job>, Instant> {
        // Nobody's last attempt may fail because of another's event.
        let goes_alone = |job: &Job| {
            batch.shares_fate
                && (job.delivery.attempt > 1 || job.delivery.subscription.retry.max_attempts <= 1)
        };
        let limit = batch.max.min(most).max(1);
        let (mut count, mut bytes, mut full) = (0, 0, false);
        let first = self.first().map(|job| job.delivery.replay);
        for job in self.rows.iter().chain(&self.queue).chain(&self.replays) {
            // A batch is of one replay, or of none: its marker is that of all.
            if first != Some(job.delivery.replay) {
                break;
            }
            bytes += job.bytes.max(job.delivery.event().map_or(0, |event| event.payload.len()));
            if count > 0 && (goes_alone(job) || bytes > batch.bytes) {
                full = true;
                break;
            }
            count += 1;
            if count >= limit || goes_alone(job) {
                full = true;
                break;
            }
        }
        let until = self.since.unwrap_or(now) + batch.wait;
        if !full && now < until {
            return Err(until);
        }
        let mut jobs = Vec::with_capacity(count);
        for _ in 0..count {
            jobs.extend(self.take_one());
        }
        self.since = (self.waiting() > 0).then_some(now);
        Ok(jobs)
    }
}

/// Deliveries leased ahead for a subscription that has no queue yet.
pub(super) fn first_ahead(subscription: &Subscription) -> usize {
    let batches = subscription.outlet.batch().map_or(0, |batch| batch.max * (batch.in_flight + 1));
    AHEAD_UNKNOWN.max(batches)
}
