//! Leases what waits in the database: due rows and parts of the backlog.
//! A crash here costs the wait of one lease.

use std::{
    collections::HashMap,
    ops::Bound,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    breaker::Gate,
    claim_in_order::InOrder,
    crash,
    deliver::Deliver,
    dispatch::Job,
    doubt::Doubt,
    held::Leases,
    lease::Lease,
    parts::{Base, Parts, Sending, Waiting},
    payloads::read_events,
    schedule::Due,
    sweep,
};
use crate::{
    delivery::{Reason, SubscriptionId, ranges::Ranges},
    event::Position,
    store::{BacklogClaim, Claim, Claimed, Error, FromBacklog, LeasedPage, PageBatch, Settler},
    subscription::Subscription,
};

/// Subscriptions asked for in one statement at most.
pub(super) const SUBSCRIPTIONS_AT_ONCE: usize = 500;
/// Rows of the backlog that a claim takes for each subscription. After so many there may be more.
pub(super) const ROWS_AT_ONCE: usize = 64;
/// When to ask again for a subscription that had no room.
pub(super) const NO_ROOM: Duration = Duration::from_millis(20);
/// How much later than its due time a row may become visible: the longest a statement of a relay can take.
pub(super) const LATE: Duration = Duration::from_secs(15);
/// Payloads up to so many bytes are read with a claim; larger ones when their attempts begin.
pub(super) const SMALL: i32 = 16_384;

/// The claim stage.
#[derive(Debug, Clone)]
pub(super) struct Claims {
    pub(super) base: Arc<Base>,
    pub(super) sending: Arc<Sending>,
    pub(super) waiting: Arc<Waiting>,
    pub(super) leases: Arc<Leases>,
    pub(super) deliver: Arc<Deliver>,
}

impl Claims {
    pub(super) fn new(parts: &Parts, deliver: Arc<Deliver>) -> Self {
        let Parts { base, sending, waiting, leases, .. } = parts.clone();
        Self { base, sending, waiting, leases, deliver }
    }

    /// Claims for each of these subscriptions that has room. Returns the number of deliveries.
    pub(super) async fn claim(&self, due: &Due) -> Result<usize, Error> {
        let claimed = self.claim_all(due).await;
        if claimed.is_err() {
            // Some of it was not tried.
            due.rows.iter().for_each(|id| self.waiting.schedule.fall_behind(*id));
        }
        claimed
    }

    async fn claim_all(&self, due: &Due) -> Result<usize, Error> {
        let index = self.base.index.load_full();
        let now = Instant::now();
        let mut rows: Vec<(Claim, Arc<Subscription>)> = Vec::new();
        let mut backlog: Vec<BacklogClaim> = Vec::new();
        let mut suspects: Vec<BacklogClaim> = Vec::new();
        let mut in_order = InOrder::default();
        let mut budget = self.sending.dispatch.budget();
        let turn = SubscriptionId(self.waiting.bounds.turn.load(Ordering::Acquire));
        // A share for each, so that what is asked for speculatively does not spend all of it.
        let share = (budget.left() / due.all.len()).max(1);
        let is_alone = self.waiting.bounds.suspects_alone.load(Ordering::Acquire);
        let in_turn =
            due.all.range((Bound::Excluded(turn), Bound::Unbounded)).chain(due.all.range(..=turn)).copied();
        for id in in_turn {
            if budget.is_spent() {
                // Its turn comes with the next claim.
                if due.rows.contains(&id) {
                    self.waiting.schedule.fall_behind(id);
                }
                continue;
            }
            self.waiting.bounds.turn.store(id.0, Ordering::Release);
            let Some(subscription) = index.get(id) else {
                self.waiting.schedule.catch_up(id);
                self.waiting.schedule.let_go(id, false);
                self.waiting.schedule.let_go(id, true);
                continue;
            };
            let Some(most) = self.room(subscription) else { continue };
            let is_ordered = subscription.is_ordered();
            if is_ordered && !self.may_claim_in_order(subscription).await {
                continue;
            }
            let to_begin =
                self.sending.dispatch.room_to_begin(subscription, now, &budget).min(most).min(share);
            // A breaker's probe is what was redriven, if something was.
            let asked = if most == 1 { self.waiting.schedule.take_asked(id) } else { None };
            if !due.rows.contains(&id) {
                // It has only a backlog.
            } else if to_begin > 0 {
                budget.spend(to_begin);
                let room = u32::try_from(to_begin).unwrap_or(u32::MAX);
                let since = asked.or(self.waiting.schedule.since(id));
                let rows = if is_ordered { &mut in_order.rows } else { &mut rows };
                rows.push((Claim { subscription: id, room, since }, subscription.clone()));
            } else if !self.waiting.schedule.is_behind(id) {
                self.waiting.schedule.note(id, now + NO_ROOM);
            }
            let (waits, has_suspects) = self.waiting.schedule.waits(id);
            let own_page = subscription.outlet.settles();
            if is_ordered {
                // Its suspects are the first of its backlog.
                let wanted = if has_suspects && is_alone && self.sending.dispatch.has_suspects() {
                    0
                } else if waits || has_suspects {
                    self.sending.dispatch.room_behind(subscription, now, &budget).min(most).min(share)
                } else {
                    0
                };
                if wanted > 0 {
                    budget.spend(wanted);
                    in_order.backlog.push(BacklogClaim { subscription: id, wanted, since: 0, own_page });
                }
                continue;
            }
            if has_suspects {
                let wanted = match is_alone {
                    true if self.sending.dispatch.has_suspects() || !suspects.is_empty() => 0,
                    true => 1,
                    false => to_begin.max(self.sending.dispatch.room_for_suspects(id)).min(most),
                };
                if wanted > 0 {
                    suspects.push(BacklogClaim { subscription: id, wanted, since: 0, own_page });
                }
            }
            if waits {
                let wanted =
                    self.sending.dispatch.room_behind(subscription, now, &budget).min(most).min(share);
                if wanted > 0 {
                    budget.spend(wanted);
                    backlog.push(BacklogClaim { subscription: id, wanted, since: 0, own_page });
                }
            }
        }
        let mut taken = 0;
        for part in suspects.chunks(SUBSCRIPTIONS_AT_ONCE) {
            taken += self.claim_backlog(part, true).await?;
        }
        for part in rows.chunks(SUBSCRIPTIONS_AT_ONCE) {
            taken += self.claim_rows(part).await?;
        }
        for part in backlog.chunks(SUBSCRIPTIONS_AT_ONCE) {
            taken += self.claim_backlog(part, false).await?;
        }
        Ok(taken + self.claim_in_order(in_order).await?)
    }

    /// How many to ask for at most; `None`: nothing may be sent now, and the schedule knows when to ask
    /// again.
    fn room(&self, subscription: &Subscription) -> Option<usize> {
        let id = subscription.row.id;
        let now = Instant::now();
        let later = |until: Option<Instant>| {
            self.waiting.schedule.catch_up(id);
            // What waits in the backlog is found again with the rows.
            if let Some(until) = until {
                self.waiting.schedule.note(id, until);
            }
        };
        if !subscription.may_send() {
            later(None); // resuming it reloads it, and that puts it back on the schedule
            self.waiting.schedule.let_go(id, false);
            self.waiting.schedule.let_go(id, true);
            return None;
        }
        if let Some(until) = self.sending.pauses.until(id, now) {
            later(Some(until));
            return None;
        }
        if let Some(until) = self.sending.dispatch.paces.until(id, now) {
            later(Some(until));
            return None;
        }
        let gate = subscription
            .outlet
            .destination()
            .map_or(Gate::Closed, |host| self.sending.breakers.gate(id, host, now));
        match gate {
            Gate::Closed => Some(usize::MAX),
            Gate::Probe => Some(1),
            Gate::Open(until) => {
                later(Some(until));
                None
            }
        }
    }

    async fn claim_rows(&self, wanted: &[(Claim, Arc<Subscription>)]) -> Result<usize, Error> {
        let claims: Vec<Claim> = wanted.iter().map(|(claim, _)| *claim).collect();
        let token = Uuid::new_v4();
        let began = Instant::now();
        let started = self.base.clock.now();
        let claimed = self.base.store.claim_deliveries(&claims, token, self.base.settings.lease).await;
        if claims.iter().any(|claim| claim.since.is_none()) {
            sweep::looked(&self.base, &self.waiting, began, &claimed);
        }
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                let subscriptions = claims.iter().map(|claim| claim.subscription).collect();
                let doubt = || Doubt { token, subscriptions, order: Vec::new(), began };
                self.waiting.doubts.note(&error, doubt);
                claims.iter().for_each(|claim| self.waiting.schedule.fall_behind(claim.subscription));
                return Err(error);
            }
        };
        if !claimed.is_empty() {
            crash::point(crash::Point::Claimed);
        }
        let mut by_subscription: HashMap<SubscriptionId, Vec<Claimed>> = HashMap::new();
        for row in claimed {
            by_subscription.entry(row.subscription_id).or_default().push(row);
        }
        let mut jobs = Vec::new();
        let mut expired = 0;
        for (claim, subscription) in wanted {
            let rows = by_subscription.remove(&claim.subscription).unwrap_or_default();
            // What committed late is within the margin.
            self.waiting.schedule.rows_claimed(claim, rows.len(), started - LATE);
            for row in rows {
                expired += usize::from(row.unfinished > 0);
                // What is already in flight under an older lease of ours goes on under this one.
                if let Some(held) = self.leases.row(row.id, Lease::new(token, began)) {
                    jobs.push(Job::of_row(&row, subscription.clone(), held));
                }
            }
        }
        self.hold(jobs, expired).await
    }

    async fn claim_backlog(&self, claims: &[BacklogClaim], suspects: bool) -> Result<usize, Error> {
        let token = Uuid::new_v4();
        let began = Instant::now();
        let lease = self.base.settings.lease;
        let FromBacklog { pages, stays } =
            match self.base.store.claim_backlog(claims, suspects, token, lease).await {
                Ok(claimed) => claimed,
                Err(error) => {
                    let (subscriptions, order) = (Vec::new(), Vec::new());
                    self.waiting.doubts.note(&error, || Doubt { token, subscriptions, order, began });
                    claims
                        .iter()
                        .for_each(|claim| self.waiting.schedule.hold_back(claim.subscription, suspects));
                    return Err(error);
                }
            };
        if !pages.is_empty() {
            crash::point(crash::Point::Claimed);
        }
        let mut got: HashMap<SubscriptionId, (usize, usize)> = HashMap::new();
        for entry in pages.iter().flat_map(|page| &page.entries) {
            let count = got.entry(entry.subscription).or_default();
            count.0 += 1;
            count.1 += entry.positions.len();
        }
        let mut cancelled = PageBatch { tokens: vec![token], ..PageBatch::default() };
        let mut jobs = self.jobs_of(pages, (token, began), &mut cancelled);
        self.cancel(&cancelled).await;
        for claim in claims {
            let id = claim.subscription;
            let (rows, positions) = got.get(&id).copied().unwrap_or_default();
            let took_all_wanted = positions >= claim.wanted || rows >= ROWS_AT_ONCE.min(claim.wanted);
            let (stays, now) = (stays.contains(&id), Instant::now());
            if self.waiting.schedule.backlog_claimed(id, suspects, took_all_wanted, stays, now) {
                // The routing step beside this claim may have found no room because of it.
                self.sending.dispatch.room.notify_one();
            }
        }
        if suspects {
            let back = self.keep_one_suspect(&mut jobs);
            self.deliver.give_back(back, Reason::LeaseLost).await;
        }
        let expired = if suspects { jobs.len() } else { 0 };
        self.hold(jobs, expired).await
    }

    /// After two deaths a relay holds one suspect that has not begun: the next death is blamed on few.
    /// Returns the other suspects.
    pub(super) fn keep_one_suspect(&self, jobs: &mut Vec<Job>) -> Vec<Job> {
        let is_alone = jobs.iter().any(|job| job.blame() > 0);
        self.waiting.bounds.suspects_alone.store(is_alone, Ordering::Release);
        let mut has_one = false;
        let mut is_another = |job: &Job| job.is_suspect() && std::mem::replace(&mut has_one, true);
        jobs.extract_if(.., |job| is_alone && is_another(job)).collect()
    }

    /// What this relay holds of pages that it has claimed. Adds to `cancelled` what belongs to subscriptions
    /// that were deleted.
    pub(super) fn jobs_of(
        &self,
        pages: Vec<LeasedPage>,
        (token, began): (Uuid, Instant),
        cancelled: &mut PageBatch,
    ) -> Vec<Job> {
        let index = self.base.index.load_full();
        let mut jobs = Vec::new();
        for page in pages {
            let pairs = page.entries.iter().map(|entry| entry.positions.len()).sum();
            let held = self.leases.page(
                page.id,
                Lease::new(token, began),
                (page.deaths, page.alone),
                page.span,
                pairs,
            );
            let (mut number, mut unwanted) = (0i32, Ranges::default());
            for entry in page.entries {
                let subscription = index.get(entry.subscription);
                for position in entry.positions.iter() {
                    match subscription {
                        Some(subscription) => {
                            jobs.push(Job::of_pair(
                                &held,
                                number,
                                Position(position),
                                entry.owed_since,
                                subscription.clone(),
                            ));
                        }
                        // Deleted meanwhile: nothing is owed.
                        None => unwanted.insert(number),
                    }
                    number += 1;
                }
            }
            if !unwanted.is_empty() {
                if held.settled(u32::try_from(unwanted.len()).unwrap_or(u32::MAX)) {
                    self.leases.release_page(page.id);
                    cancelled.finished.push(page.id);
                } else {
                    cancelled.progress.push((page.id, unwanted));
                }
            }
        }
        jobs
    }

    /// Records that nothing is owed of these pairs. If that fails, what is left of their pages is delivered
    /// nevertheless, and they are deleted with it.
    pub(super) async fn cancel(&self, cancelled: &PageBatch) {
        if !cancelled.is_empty()
            && let Err(error) = self.base.store.settle_pages(cancelled, Settler::First).await
        {
            self.base.telemetry.database_failed("claim", &error);
        }
    }

    /// Reads the events of what was claimed, and holds it. If they cannot be read, all of it is given back.
    async fn hold(&self, mut jobs: Vec<Job>, expired: usize) -> Result<usize, Error> {
        if jobs.is_empty() {
            return Ok(0);
        }
        let count = jobs.len();
        self.base.telemetry.claimed(count, expired);
        if let Err(error) = read_events(&self.base.store, &mut jobs, SMALL).await {
            self.deliver.give_back(jobs, Reason::LeaseLost).await;
            return Err(error);
        }
        for job in &mut jobs {
            job.bytes = job.delivery.event().map_or(0, |event| event.payload.len() + event.headers.len());
        }
        self.deliver.take(jobs);
        Ok(count)
    }
}
