//! Subscriptions by what an event carries: its key, organization and topic. An event looks up its own values,
//! so subscriptions with others cost it nothing.

use std::collections::{BTreeSet, HashMap};

use super::Subscription;
use crate::{
    delivery::SubscriptionId,
    event::{Event, topic::Trie},
};

/// Subscriptions that require a scalar in one field.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub(super) wanting: HashMap<String, Selections>,
    /// Subscriptions whose filter fails when the field is missing, which must be counted.
    pub(super) failing: Selections,
}

/// Subscriptions by key prefix, organization and topic. An event looks up the prefixes of its own key, so
/// thousands of subscriptions with other prefixes cost it nothing.
#[derive(Debug, Default)]
pub(super) struct Selections {
    any_key: ByTopic,
    by_prefix: HashMap<String, ByTopic>,
    /// Lengths of the prefixes (bytes).
    lengths: BTreeSet<usize>,
}

impl Selections {
    pub(super) fn insert(&mut self, subscription: &Subscription) {
        let Some(prefixes) = &subscription.row.keys else {
            self.any_key.insert(subscription);
            return;
        };
        for prefix in prefixes {
            self.lengths.insert(prefix.len());
            self.by_prefix.entry(prefix.clone()).or_default().insert(subscription);
        }
    }

    /// Ids of the subscriptions for the event's key, organization and topic. An id may come more than once.
    pub(super) fn find(&self, event: &Event) -> impl Iterator<Item = SubscriptionId> {
        let key = event.key.as_deref();
        let prefixes = self.lengths.iter().filter_map(move |length| self.by_prefix.get(key?.get(..*length)?));
        self.any_key.find(event).chain(prefixes.flat_map(|by_topic| by_topic.find(event)))
    }
}

/// Subscriptions by organization and topic.
#[derive(Debug, Default)]
struct ByTopic {
    everyone: Trie<SubscriptionId>,
    by_organization: HashMap<String, Trie<SubscriptionId>>,
}

impl ByTopic {
    fn insert(&mut self, subscription: &Subscription) {
        let trie = match &subscription.row.organization {
            None => &mut self.everyone,
            Some(organization) => self.by_organization.entry(organization.clone()).or_default(),
        };
        for pattern in subscription.patterns.iter() {
            trie.insert(pattern, subscription.row.id);
        }
    }

    /// Ids of the subscriptions for the event's organization and topic. An id may come more than once.
    fn find(&self, event: &Event) -> impl Iterator<Item = SubscriptionId> {
        let own = event.organization.as_ref().and_then(|organization| self.by_organization.get(organization));
        self.everyone
            .find(&event.topic)
            .chain(own.into_iter().flat_map(|trie| trie.find(&event.topic)))
            .copied()
    }
}
