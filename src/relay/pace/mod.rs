//! How fast limited subscriptions are sent to. A rate is a row of slots in `outbox.paces`: from the time of a
//! slot on, one delivery may begin. This relay reserves slots for up to a second ahead, many in one
//! statement, and what waits for a slot waits here. Slots that are not used in time are lost, so a rate holds
//! whatever relays come and go.

mod bucket;
mod keep;

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use self::bucket::Bucket;
pub(super) use self::keep::keep;
use crate::{
    delivery::{SubscriptionId, rate::Rate},
    store::{Paced, SlotsReserved, SlotsWanted},
    subscription::Index,
};

/// The rates of all limited subscriptions.
#[derive(Debug, Default)]
pub(super) struct Paces {
    state: Mutex<State>,
    /// Number of limited subscriptions: usually zero, which needs no lock.
    limited: AtomicUsize,
    /// Notified when a subscription begins to wait for slots.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    buckets: HashMap<Paced, Bucket>,
    /// The rates of each limited subscription.
    of: HashMap<SubscriptionId, Vec<Paced>>,
    /// Other relays that work.
    others: u32,
}

impl Paces {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn none_is_limited(&self) -> bool {
        self.limited.load(Ordering::Acquire) == 0
    }

    /// Follows a change of subscriptions and of the limits of organizations.
    pub(super) fn follow(&self, index: &Index, limits: &HashMap<String, Rate>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut rates: HashMap<Paced, Rate> = HashMap::new();
        state.of.clear();
        for subscription in index.iter() {
            let id = subscription.row.id;
            let own = subscription.rate.map(|rate| (Paced::Subscription(id), rate));
            let shared = subscription
                .row
                .organization
                .as_ref()
                .and_then(|name| limits.get(name).map(|rate| (Paced::Organization(name.clone()), *rate)));
            for (paced, rate) in own.into_iter().chain(shared) {
                state.of.entry(id).or_default().push(paced.clone());
                rates.insert(paced, rate);
            }
        }
        state.buckets.retain(|paced, bucket| rates.get(paced) == Some(&bucket.rate()));
        for (paced, rate) in rates {
            state.buckets.entry(paced).or_insert_with(|| Bucket::new(rate));
        }
        self.limited.store(state.of.len(), Ordering::Release);
    }

    /// Sets how many other relays work.
    pub(super) fn share_with(&self, others: u32) {
        self.state().others = others;
    }

    /// Whether a subscription, or its organization, has a rate.
    pub(super) fn limits(&self, id: SubscriptionId) -> bool {
        !self.none_is_limited() && self.state().of.contains_key(&id)
    }

    /// How many deliveries of a subscription may begin now, of so many that wait. If it is 0, the
    /// subscription is woken when there are slots.
    pub(super) fn ready(&self, id: SubscriptionId, waiting: u32, now: Instant) -> u32 {
        if self.none_is_limited() {
            return u32::MAX;
        }
        let mut guard = self.state();
        let State { buckets, of, .. } = &mut *guard;
        let mut least = u32::MAX;
        for paced in of.get(&id).into_iter().flatten() {
            let Some(bucket) = buckets.get_mut(paced) else { continue };
            let ready = bucket.ready(now);
            if ready == 0 {
                bucket.await_slots(id, waiting.max(1));
                self.changed.notify_one();
            }
            least = least.min(ready);
        }
        least
    }

    /// So many deliveries of a subscription begin.
    pub(super) fn spend(&self, id: SubscriptionId, count: u32) {
        if self.none_is_limited() {
            return;
        }
        let mut guard = self.state();
        let State { buckets, of, .. } = &mut *guard;
        for paced in of.get(&id).into_iter().flatten() {
            if let Some(bucket) = buckets.get_mut(paced) {
                bucket.spend(id, count);
            }
        }
    }

    /// How many deliveries may be leased ahead for a subscription: what this relay may send in a second.
    pub(super) fn ahead(&self, id: SubscriptionId, now: Instant) -> usize {
        if self.none_is_limited() {
            return usize::MAX;
        }
        let guard = self.state();
        let State { buckets, of, others } = &*guard;
        let rates = of.get(&id).into_iter().flatten().filter_map(|paced| buckets.get(paced));
        rates.map(|bucket| bucket.ahead(id, *others, now)).min().unwrap_or(usize::MAX)
    }

    /// Until when nothing is leased for a subscription, because no slot is free until a moment later.
    pub(super) fn until(&self, id: SubscriptionId, now: Instant) -> Option<Instant> {
        if self.none_is_limited() {
            return None;
        }
        let guard = self.state();
        let State { buckets, of, .. } = &*guard;
        let rates = of.get(&id).into_iter().flatten().filter_map(|paced| buckets.get(paced));
        rates.filter_map(|bucket| bucket.closed_until(now)).max()
    }

    /// When there is something to do without news.
    fn next(&self) -> Option<Instant> {
        self.state().buckets.values().filter_map(Bucket::next).min()
    }

    /// The subscriptions for which there are slots now.
    fn woken(&self, now: Instant) -> Vec<SubscriptionId> {
        self.state().buckets.values_mut().flat_map(|bucket| bucket.wake(now)).collect()
    }

    /// The slots to reserve now. Each is asked for until it is answered.
    fn to_ask(&self, now: Instant) -> Vec<SlotsWanted> {
        let mut guard = self.state();
        let State { buckets, others, .. } = &mut *guard;
        let ask = |(paced, bucket): (&Paced, &mut Bucket)| {
            let slots = bucket.ask(*others, now)?;
            Some(SlotsWanted { of: paced.clone(), spacing: bucket.rate().spacing, slots })
        };
        buckets.iter_mut().filter_map(ask).collect()
    }

    /// What was reserved; none: the statement failed.
    fn answered(
        &self,
        wanted: &[SlotsWanted],
        answers: Option<&[SlotsReserved]>,
        asked: Instant,
        now: Instant,
    ) {
        let mut state = self.state();
        for (at, one) in wanted.iter().enumerate() {
            let answer = answers.and_then(|answers| answers.get(at)).copied().unwrap_or_default();
            if let Some(bucket) = state.buckets.get_mut(&one.of)
                // Its rate may have changed meanwhile: what was reserved is lost then.
                && bucket.rate().spacing.to_bits() == one.spacing.to_bits()
            {
                bucket.answer(&answer, asked, now);
            }
        }
    }
}

#[cfg(test)]
mod tests;
