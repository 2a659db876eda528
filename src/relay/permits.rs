//! Room for deliveries in flight. A permit is given back only after the verdict has been committed, so the permits bound what
//! a killed relay can cause: copies, and memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// All permits of a relay.
#[derive(Debug)]
pub(crate) struct Permits {
    total: u32,
    per_subscription: u32,
    taken: Mutex<Taken>,
    /// Rings when a permit comes back.
    pub(crate) freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    by_subscription: HashMap<i64, u32>,
    /// Among how many subscriptions the permits are shared.
    sharers: u32,
}

/// The right to have one delivery in flight. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Arc<Permits>,
    subscription: i64,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPermit {
    /// All are taken.
    AllTaken,
    /// Those this subscription may have are taken.
    NoneForThis,
}

impl Permits {
    pub(crate) fn new(total: u32, per_subscription: u32) -> Arc<Self> {
        Arc::new(Self {
            total,
            per_subscription: per_subscription.min(total),
            taken: Mutex::default(),
            freed: Notify::new(),
        })
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many subscriptions may be sent to: decides what a fair share is.
    pub(crate) fn share_among(&self, subscriptions: usize) {
        self.taken().sharers = u32::try_from(subscriptions).unwrap_or(u32::MAX);
    }

    pub(crate) fn free(&self) -> u32 {
        self.total - self.taken().all
    }

    /// How many more deliveries a subscription may have in flight. Beyond its fair share it must leave a quarter of all
    /// permits to the others, so that a few hanging destinations cannot take everything.
    pub(crate) fn room(&self, subscription: i64, own_limit: Option<u32>) -> u32 {
        self.taken().room(self.total, self.limit(own_limit), subscription)
    }

    fn limit(&self, own_limit: Option<u32>) -> u32 {
        own_limit.unwrap_or(self.per_subscription).min(self.total)
    }

    /// Takes one permit.
    ///
    /// # Errors
    /// Says whether all permits are taken, or those this subscription may have.
    pub(crate) fn take_one(
        self: &Arc<Self>,
        subscription: i64,
        own_limit: Option<u32>,
    ) -> Result<Permit, NoPermit> {
        let mut taken = self.taken();
        if taken.all >= self.total {
            return Err(NoPermit::AllTaken);
        }
        if taken.room(self.total, self.limit(own_limit), subscription) == 0 {
            return Err(NoPermit::NoneForThis);
        }
        taken.all += 1;
        *taken.by_subscription.entry(subscription).or_default() += 1;
        Ok(Permit { permits: self.clone(), subscription })
    }

    /// Takes up to `wanted` permits.
    pub(crate) fn take(
        self: &Arc<Self>,
        subscription: i64,
        own_limit: Option<u32>,
        wanted: u32,
    ) -> Vec<Permit> {
        let mut taken = self.taken();
        let granted = wanted.min(taken.room(self.total, self.limit(own_limit), subscription));
        if granted > 0 {
            taken.all += granted;
            *taken.by_subscription.entry(subscription).or_default() += granted;
        }
        (0..granted).map(|_| Permit { permits: self.clone(), subscription }).collect()
    }
}

impl Taken {
    fn room(&self, total: u32, limit: u32, subscription: i64) -> u32 {
        let mine = self.by_subscription.get(&subscription).copied().unwrap_or(0);
        let free = total - self.all;
        let sharers = self.sharers.max(1);
        let fair = (total / sharers).max(1);
        let reserve = if sharers > 1 { total / 4 } else { 0 };
        let allowed = free.min(fair.saturating_sub(mine).max(free.saturating_sub(reserve)));
        limit.saturating_sub(mine).min(allowed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.permits.taken();
        taken.all -= 1;
        if let Some(mine) = taken.by_subscription.get_mut(&self.subscription) {
            *mine -= 1;
            if *mine == 0 {
                taken.by_subscription.remove(&self.subscription);
            }
        }
        drop(taken);
        self.permits.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_permits_than_there_are() {
        let permits = Permits::new(4, 3);
        permits.share_among(1);
        let first = permits.take(1, None, 10);
        assert_eq!(first.len(), 3);
        let second = permits.take(2, None, 10);
        assert_eq!(second.len(), 1);
        assert_eq!(permits.free(), 0);
        drop(first);
        assert_eq!(permits.free(), 3);
    }

    #[test]
    fn hanging_subscriptions_leave_a_quarter_to_the_others() {
        let permits = Permits::new(256, 64);
        permits.share_among(50);
        let mut held: Vec<_> = (0..10).map(|subscription| permits.take(subscription, None, 64)).collect();
        assert!(
            permits.free() >= 256 / 4 - 10 * 5,
            "each beyond its share left the reserve alone: {}",
            permits.free()
        );
        let late = permits.take(99, None, 64);
        assert!(!late.is_empty(), "one that has nothing in flight still gets its share");
        held.clear();
    }

    #[test]
    fn a_subscription_may_set_its_own_limit() {
        let permits = Permits::new(256, 64);
        permits.share_among(1);
        assert_eq!(permits.room(1, Some(200)), 200);
        assert_eq!(permits.room(1, Some(1)), 1);
    }
}
