//! Whose turn it is: deficit round robin over organizations, and within each over its subscriptions. Pure.
//!
//! Subscriptions for which something waits take turns. One that cannot begin is set aside until something
//! changes. A turn is worth a few deliveries; after a larger batch a subscription misses as many turns.

use crate::delivery::SubscriptionId;
use std::collections::{HashMap, VecDeque};

/// Number of deliveries in a turn.
const TURN: i64 = 8;

/// The subscriptions that take turns.
#[derive(Debug, Default)]
pub(crate) struct Fair {
    organizations: Ring<u32>,
    subscriptions: HashMap<u32, Ring<SubscriptionId>>,
}

/// Keys in the order of their turns, each with the deliveries left in its turn.
#[derive(Debug)]
struct Ring<K> {
    order: VecDeque<(K, i64)>,
}

impl<K> Default for Ring<K> {
    fn default() -> Self {
        Self { order: VecDeque::new() }
    }
}

impl<K: Copy> Ring<K> {
    fn add(&mut self, key: K) {
        self.order.push_back((key, TURN));
    }

    /// The key whose turn it is. One that has used up its turn goes to the end with a new one.
    fn current(&mut self) -> Option<K> {
        loop {
            let (key, left) = *self.order.front()?;
            if left > 0 {
                return Some(key);
            }
            self.order.pop_front();
            self.order.push_back((key, left + TURN));
        }
    }

    fn spend(&mut self, cost: i64) {
        if let Some((_, left)) = self.order.front_mut() {
            *left -= cost;
        }
    }

    fn remove_current(&mut self) {
        self.order.pop_front();
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

impl Fair {
    /// Adds a subscription, which must not be there already.
    pub(crate) fn add(&mut self, organization: u32, subscription: SubscriptionId) {
        let ring = self.subscriptions.entry(organization).or_default();
        if ring.is_empty() {
            self.organizations.add(organization);
        }
        ring.add(subscription);
    }

    /// The subscription whose turn it is.
    pub(crate) fn current(&mut self) -> Option<SubscriptionId> {
        let organization = self.organizations.current()?;
        self.subscriptions.get_mut(&organization)?.current()
    }

    /// The subscription whose turn it is begins this many deliveries.
    pub(crate) fn spend(&mut self, count: usize) {
        let cost = i64::try_from(count).unwrap_or(i64::MAX / 2);
        let Some(organization) = self.organizations.current() else { return };
        if let Some(ring) = self.subscriptions.get_mut(&organization) {
            ring.spend(cost);
        }
        self.organizations.spend(cost);
    }

    /// Takes out the subscription whose turn it is.
    pub(crate) fn set_aside(&mut self) {
        let Some(organization) = self.organizations.current() else { return };
        if let Some(ring) = self.subscriptions.get_mut(&organization) {
            ring.remove_current();
            if ring.is_empty() {
                self.subscriptions.remove(&organization);
                self.organizations.remove_current();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deliveries of each subscription after so many turns, if each begins so many at once.
    fn turns(
        fair: &mut Fair,
        rounds: usize,
        at_once: impl Fn(SubscriptionId) -> usize,
    ) -> HashMap<SubscriptionId, usize> {
        let mut taken: HashMap<SubscriptionId, usize> = HashMap::new();
        for _ in 0..rounds {
            let id = fair.current().unwrap();
            *taken.entry(id).or_default() += at_once(id);
            fair.spend(at_once(id));
        }
        taken
    }

    #[test]
    fn an_organization_with_a_hundred_subscriptions_gets_no_more_than_one_with_one() {
        let mut fair = Fair::default();
        (0..100).for_each(|id| fair.add(1, SubscriptionId(id)));
        fair.add(2, SubscriptionId(1_000));
        let taken = turns(&mut fair, 8_000, |_| 1);
        assert_eq!(taken[&SubscriptionId(1_000)], 4_000);
        assert!((0..100).all(|id| (32..=48).contains(&taken[&SubscriptionId(id)])), "{taken:?}");
    }

    #[test]
    fn a_subscription_that_begins_a_batch_waits_for_as_many_turns() {
        let mut fair = Fair::default();
        fair.add(1, SubscriptionId(1));
        fair.add(2, SubscriptionId(2));
        let taken = turns(&mut fair, 10_000, |id| if id == SubscriptionId(1) { 500 } else { 1 });
        let (one, other) = (taken[&SubscriptionId(1)], taken[&SubscriptionId(2)]);
        assert!(one <= other + 1_000 && other <= one + 1_000, "{one} and {other}");
    }

    #[test]
    fn a_subscription_that_is_set_aside_stops_no_other_and_comes_back() {
        let mut fair = Fair::default();
        fair.add(1, SubscriptionId(1));
        fair.add(1, SubscriptionId(2));
        fair.add(2, SubscriptionId(3));
        while fair.current() != Some(SubscriptionId(2)) {
            fair.spend(1);
        }
        fair.set_aside();
        let taken = turns(&mut fair, 100, |_| 1);
        assert_eq!((taken.get(&SubscriptionId(2)), taken.len()), (None, 2));
        fair.add(1, SubscriptionId(2));
        assert_eq!(turns(&mut fair, 100, |_| 1).len(), 3);
        (0..3).for_each(|_| fair.set_aside());
        assert_eq!(fair.current(), None);
    }
}
