//! Leases what waits in the database for ordered subscriptions, in the order of their keys.
//! A crash here costs the wait of one lease.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    claim::{Claims, LATE, SMALL, SUBSCRIPTIONS_AT_ONCE},
    crash,
    dispatch::{Epochs, Job},
    doubt::Doubt,
    lease::Lease,
    payloads::read_events,
    schedule::KeyedRows,
};
use crate::{
    delivery::{Reason, SubscriptionId},
    store::{BacklogClaim, Claim, Error, FromBacklog, PageBatch},
    subscription::Subscription,
};

/// Rows of one key that a claim leases at most.
const LONGEST_RUN: usize = 32;
/// Keys of a subscription whose next rows are claimed in one statement.
const KEYS_AT_ONCE: usize = 64;
/// When to ask again for a subscription after a failed statement.
const FAILED: Duration = Duration::from_secs(1);
/// Rows that one claim leases at most, unless more keys have one each.
const ROWS_IN_ALL: usize = 2_048;

/// What is claimed for ordered subscriptions.
#[derive(Debug, Default)]
pub(super) struct InOrder {
    pub(super) rows: Vec<(Claim, Arc<Subscription>)>,
    pub(super) backlog: Vec<BacklogClaim>,
}

impl Claims {
    /// Whether this relay may claim for an ordered subscription; if not, the schedule knows when to ask
    /// again.
    pub(super) async fn may_claim_in_order(&self, subscription: &Subscription) -> bool {
        let id = subscription.row.id;
        if self.sending.dispatch.is_gate_open(id) {
            return true;
        }
        match self.waiting.order.begin(&self.base, &self.sending, &self.waiting.schedule, subscription).await
        {
            Ok(Ok(())) => {
                // Others have delivered it: what they left is not known here.
                self.waiting.schedule.look_back(id);
                self.waiting.schedule.hold_back(id, false);
                self.waiting.schedule.hold_back(id, true);
                self.waiting.schedule.note(id, Instant::now());
                true
            }
            Err(error) => {
                // The others go on.
                self.base.telemetry.database_failed("claim", &error);
                self.waiting.schedule.note(id, Instant::now() + FAILED);
                false
            }
            Ok(Err(until)) => {
                self.waiting.schedule.catch_up(id);
                if self.waiting.order.is_leased(id) {
                    // What waits in the backlog is found again with the rows.
                    self.waiting.schedule.note(id, until);
                } else {
                    // Another relay delivers it. `order::keep` asks again.
                    self.waiting.schedule.let_go(id, false);
                    self.waiting.schedule.let_go(id, true);
                }
                false
            }
        }
    }

    /// Claims for ordered subscriptions. Returns the number of deliveries.
    pub(super) async fn claim_in_order(&self, claims: InOrder) -> Result<usize, Error> {
        let mut taken = 0;
        for part in claims.rows.chunks(SUBSCRIPTIONS_AT_ONCE) {
            taken += self.claim_keyed(part).await?;
        }
        for part in claims.backlog.chunks(SUBSCRIPTIONS_AT_ONCE) {
            taken += self.claim_ordered(part).await?;
        }
        Ok(taken)
    }

    async fn claim_keyed(&self, wanted: &[(Claim, Arc<Subscription>)]) -> Result<usize, Error> {
        let dispatch = &self.sending.dispatch;
        let claims: Vec<Claim> = wanted.iter().map(|(claim, _)| *claim).collect();
        let mut keys = Vec::new();
        let mut epochs = Epochs::new();
        for claim in &claims {
            epochs.insert(claim.subscription, dispatch.epoch(claim.subscription));
            let most = KEYS_AT_ONCE.min(claim.room as usize);
            let taken = dispatch.take_wanted_keys(claim.subscription, most);
            keys.extend(taken.into_iter().map(|key| (claim.subscription, key)));
        }
        let names: Vec<(SubscriptionId, String)> =
            keys.iter().map(|(id, key)| (*id, key.as_ref().to_owned())).collect();
        let (token, began, started) = (Uuid::new_v4(), Instant::now(), self.base.clock.now());
        let order = self.waiting.order.tokens(epochs.keys().copied());
        let lease = self.base.settings.lease;
        let wanted_rows = claims.iter().map(|claim| claim.room as usize).sum::<usize>() + names.len();
        let run = (ROWS_IN_ALL.min(dispatch.free_ahead()) / wanted_rows.max(1)).clamp(1, LONGEST_RUN);
        let keyed = match self.base.store.claim_keyed(&claims, &names, run, (&order, token), lease).await {
            Ok(keyed) => keyed,
            Err(error) => {
                let subscriptions = claims.iter().map(|claim| claim.subscription).collect();
                self.doubt(&error, Doubt { token, subscriptions, order, began }).await;
                dispatch.want_keys(keys);
                claims.iter().for_each(|claim| self.waiting.schedule.fall_behind(claim.subscription));
                return Err(error);
            }
        };
        if !keyed.claimed.is_empty() {
            crash::point(crash::Point::Claimed);
        }
        let answered: HashSet<(SubscriptionId, &str)> = keyed
            .claimed
            .iter()
            .filter_map(|row| Some((row.subscription_id, row.key.as_deref()?)))
            .chain(keyed.without.iter().map(|(id, key, _)| (*id, key.as_str())))
            .collect();
        dispatch.want_keys(keys.iter().filter(|(id, key)| !answered.contains(&(*id, key.as_ref()))).cloned());
        for (id, key, has_rows) in &keyed.without {
            dispatch.found_none(*id, &Arc::from(key.as_str()), *has_rows, &epochs);
        }
        let subscriptions: HashMap<SubscriptionId, &Arc<Subscription>> =
            wanted.iter().map(|(claim, subscription)| (claim.subscription, subscription)).collect();
        let (mut jobs, mut expired) = (Vec::new(), 0);
        let mut some: HashSet<SubscriptionId> = HashSet::new();
        for row in &keyed.claimed {
            some.insert(row.subscription_id);
            expired += usize::from(row.unfinished > 0);
            // What is already in flight under an older lease of ours goes on under this one.
            if let Some(subscription) = subscriptions.get(&row.subscription_id)
                && let Some(held) = self.leases.row(row.id, Lease::new(token, began))
            {
                jobs.push(Job::of_row(row, (*subscription).clone(), held));
            }
        }
        for claim in &claims {
            let id = claim.subscription;
            let found = KeyedRows {
                due: keyed.looked_at.get(&id).copied(),
                claimed: some.contains(&id),
                wants_keys: dispatch.wants_keys(id),
            };
            self.waiting.schedule.keyed_rows_claimed(claim, found, started - LATE, Instant::now());
        }
        self.hold_in_order(jobs, expired, &epochs).await
    }

    async fn claim_ordered(&self, claims: &[BacklogClaim]) -> Result<usize, Error> {
        let dispatch = &self.sending.dispatch;
        let (token, began) = (Uuid::new_v4(), Instant::now());
        let mut epochs = Epochs::new();
        let mut ready = Vec::with_capacity(claims.len());
        for claim in claims {
            // While something goes back, what lies behind it must stay.
            if let Some(epoch) = dispatch.epoch_of_backlog(claim.subscription) {
                epochs.insert(claim.subscription, epoch);
                ready.push(*claim);
            }
        }
        if ready.is_empty() {
            return Ok(0);
        }
        let order = self.waiting.order.tokens(epochs.keys().copied());
        let lease = self.base.settings.lease;
        let claimed = match self.base.store.claim_ordered(&ready, &order, token, lease).await {
            Ok(claimed) => claimed,
            Err(error) => {
                let subscriptions = ready.iter().map(|claim| claim.subscription).collect();
                self.doubt(&error, Doubt { token, subscriptions, order, began }).await;
                ready.iter().for_each(|claim| self.waiting.schedule.hold_back(claim.subscription, false));
                return Err(error);
            }
        };
        let FromBacklog { pages, stays } = claimed;
        if !pages.is_empty() {
            crash::point(crash::Point::Claimed);
        }
        // Whether they have suspects, by subscription.
        let mut got: HashMap<SubscriptionId, bool> = HashMap::new();
        for page in &pages {
            for entry in &page.entries {
                *got.entry(entry.subscription).or_default() |= page.deaths > 0;
            }
        }
        let mut cancelled = PageBatch { tokens: vec![token], ..PageBatch::default() };
        let suspects = pages.iter().filter(|page| page.deaths > 0).count();
        let mut jobs = self.jobs_of(pages, (token, began), &mut cancelled);
        self.cancel(&cancelled).await;
        for claim in &ready {
            let id = claim.subscription;
            let (had_suspects, stays) = (got.get(&id).copied(), stays.contains(&id));
            if self.waiting.schedule.ordered_backlog_claimed(id, had_suspects, stays, Instant::now()) {
                // The routing step beside this claim may have found no room because of it.
                dispatch.room.notify_one();
            }
        }
        let mut back = if suspects > 0 { self.keep_one_suspect(&mut jobs) } else { Vec::new() };
        let held = self.hold_in_order(jobs, suspects, &epochs).await;
        dispatch.return_unread(&mut back);
        self.deliver.give_back(back, Reason::LeaseLost).await;
        held
    }

    /// A claim has failed with this error. If it may have taken place nevertheless, later events must not
    /// pass what it may have leased: this relay gives the subscriptions up, and leases them anew when nothing
    /// of them is in anybody's hands.
    async fn doubt(&self, error: &Error, doubt: Doubt) {
        let subscriptions = doubt.subscriptions.clone();
        if !self.waiting.doubts.note(error, || doubt) {
            return;
        }
        self.waiting.order.give_up(subscriptions.iter().copied(), Instant::now());
        for id in subscriptions {
            let back = self.sending.dispatch.close_gate(id);
            self.deliver.give_back(back.0, Reason::LeaseLost).await;
        }
    }

    /// Reads the events of what was claimed, and holds it. If they cannot be read, all of it is given back.
    async fn hold_in_order(
        &self,
        mut jobs: Vec<Job>,
        expired: usize,
        epochs: &Epochs,
    ) -> Result<usize, Error> {
        if jobs.is_empty() {
            return Ok(0);
        }
        let count = jobs.len();
        self.base.telemetry.claimed(count, expired);
        if let Err(error) = read_events(&self.base.store, &mut jobs, SMALL).await {
            self.sending.dispatch.return_unread(&mut jobs);
            self.deliver.give_back(jobs, Reason::LeaseLost).await;
            return Err(error);
        }
        self.deliver.take_in_order(jobs, epochs).await;
        Ok(count)
    }
}
