//! All subscriptions at once, arranged so that an event finds those that want it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{Subscription, Wanted};
use crate::event::{
    Event,
    filter::{Facts, Field},
    topic::Trie,
    types::Types,
};

/// What became of an event's way through the index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matches {
    /// The ids of the subscriptions that want it, in their order.
    pub wanted_by: Vec<i64>,
    /// Those whose conditions could not be evaluated, and why: they do not get it.
    pub failed: Vec<(i64, String)>,
}

/// All subscriptions at one generation.
#[derive(Debug, Default)]
pub struct Index {
    /// The value of `outbox.generation` it was read at.
    pub generation: i64,
    subscriptions: BTreeMap<i64, Arc<Subscription>>,
    sendable: usize,
    starting: Vec<i64>,
    choosy: bool,
    needs_payload: bool,
    /// All but those in `by_value`.
    plain: ByTopic,
    /// Those that want a certain scalar in a certain field of the payload, by that field. An event looks up its own values, so
    /// thousands that want others cost it nothing.
    by_value: BTreeMap<String, Values>,
    /// All of them once more.
    in_by_value: ByTopic,
    /// Some have the same filter: it is then evaluated once for all.
    shares_filters: bool,
    types: Arc<Types>,
}

/// Subscriptions that want a certain scalar in one field.
#[derive(Debug, Default)]
struct Values {
    wanting: HashMap<String, ByTopic>,
    /// Of these, those whose filter fails when the field is not there: that must be counted.
    failing: ByTopic,
}

/// Subscriptions by organization and topic.
#[derive(Debug, Default)]
struct ByTopic {
    everyone: Trie<i64>,
    by_organization: HashMap<String, Trie<i64>>,
}

impl ByTopic {
    fn insert(&mut self, subscription: &Subscription) {
        let trie = match &subscription.row.organization {
            None => &mut self.everyone,
            Some(organization) => self.by_organization.entry(organization.clone()).or_default(),
        };
        for pattern in &subscription.patterns {
            trie.insert(pattern, subscription.row.id);
        }
    }

    /// Tenants are evaluated apart before patterns are looked at. An id may come more than once.
    fn find(&self, event: &Event) -> impl Iterator<Item = i64> {
        let own = event.organization.as_ref().and_then(|organization| self.by_organization.get(organization));
        self.everyone
            .find(&event.topic)
            .chain(own.into_iter().flat_map(|trie| trie.find(&event.topic)))
            .copied()
    }
}

impl Index {
    /// Builds the index.
    #[must_use]
    pub fn new(generation: i64, subscriptions: impl IntoIterator<Item = Arc<Subscription>>) -> Self {
        let mut index = Self { generation, ..Self::default() };
        for subscription in subscriptions {
            if subscription.is_owed() {
                index.choosy |= subscription.is_choosy();
                index.needs_payload |= subscription.needs_payload();
                match subscription.lookup() {
                    Some((field, value, fails_without)) => {
                        let values = index.by_value.entry(field).or_default();
                        values.wanting.entry(value).or_default().insert(&subscription);
                        if fails_without {
                            values.failing.insert(&subscription);
                        }
                        index.in_by_value.insert(&subscription);
                    }
                    None => index.plain.insert(&subscription),
                }
            }
            index.sendable += usize::from(subscription.may_send());
            index.starting.extend(subscription.row.starting.then_some(subscription.row.id));
            index.subscriptions.insert(subscription.row.id, subscription);
        }
        let mut filters = HashSet::new();
        index.shares_filters = index
            .subscriptions
            .values()
            .filter_map(|one| one.row.filter.as_ref())
            .any(|filter| !filters.insert(filter));
        index
    }

    /// The subscriptions that want an event as far as its topic, organization and key say, each once, in the order of their
    /// ids; [`Subscription::evaluate`] decides. An event with an organization reaches
    /// that organization's subscriptions and those for all.
    #[must_use]
    pub fn matching(&self, event: &Event) -> Vec<&Arc<Subscription>> {
        self.these(self.plain.find(event).chain(self.in_by_value.find(event)).collect(), event)
    }

    fn these(&self, mut ids: Vec<i64>, event: &Event) -> Vec<&Arc<Subscription>> {
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter()
            .filter_map(|id| self.subscriptions.get(&id))
            .filter(|subscription| subscription.wants_key(event.key.as_deref()))
            .collect()
    }

    /// Which subscriptions want an event, all conditions looked at, and which could not say.
    #[must_use]
    pub fn find_matches(&self, event: &Event) -> Matches {
        let facts = Facts::new(event);
        let mut matches = Matches::default();
        let mut evaluated: HashMap<&str, Wanted> = HashMap::new();
        for subscription in self.candidates(event, &facts) {
            let wanted = match subscription
                .row
                .filter
                .as_deref()
                .filter(|_| self.shares_filters && subscription.row.matching.is_none())
            {
                Some(filter) => {
                    evaluated.entry(filter).or_insert_with(|| subscription.evaluate(&facts)).clone()
                }
                None => subscription.evaluate(&facts),
            };
            match wanted {
                Wanted::Yes => matches.wanted_by.push(subscription.row.id),
                Wanted::No(_) => {}
                Wanted::Failed(why) => matches.failed.push((subscription.row.id, why)),
            }
        }
        matches
    }

    /// Those of [`Index::matching`] that do not ask for another value than the event has.
    fn candidates(&self, event: &Event, facts: &Facts<'_>) -> Vec<&Arc<Subscription>> {
        let mut ids: Vec<i64> = self.plain.find(event).collect();
        if self.in_by_value.find(event).next().is_some() {
            for (field, values) in &self.by_value {
                match facts.field(field) {
                    Field::Scalar(value) => ids.extend(
                        values.wanting.get(&value).into_iter().flat_map(|by_topic| by_topic.find(event)),
                    ),
                    Field::Compound => {}
                    Field::Missing => ids.extend(values.failing.find(event)),
                    // Each of them says that it cannot be read.
                    Field::Unreadable => {
                        ids.extend(values.wanting.values().flat_map(|by_topic| by_topic.find(event)))
                    }
                }
            }
        }
        self.these(ids, event)
    }

    /// Whether somebody may have to look at an event's payload to know whether he wants it.
    #[must_use]
    pub fn asks_for_payload(&self, event: &Event) -> bool {
        self.in_by_value.find(event).next().is_some()
            || self.plain.find(event).any(|id| {
                self.subscriptions.get(&id).is_some_and(|subscription| subscription.needs_payload())
            })
    }

    /// Whether one of them has conditions beyond topics, organization and keys.
    #[must_use]
    pub fn is_choosy(&self) -> bool {
        self.choosy
    }

    /// Whether one of them looks at payloads to know what it wants.
    #[must_use]
    pub fn needs_payload(&self) -> bool {
        self.needs_payload
    }

    /// With these event types.
    #[must_use]
    pub fn with_types(mut self, types: Arc<Types>) -> Self {
        self.types = types;
        self
    }

    /// What payloads look like.
    #[must_use]
    pub fn types(&self) -> &Types {
        &self.types
    }

    /// Those that want events from before they were made, and had not all of them when they were loaded.
    pub fn starting(&self) -> impl Iterator<Item = i64> + '_ {
        self.starting.iter().copied()
    }

    /// How many may be sent to.
    #[must_use]
    pub fn sendable(&self) -> usize {
        self.sendable
    }

    /// One subscription.
    #[must_use]
    pub fn get(&self, id: i64) -> Option<&Arc<Subscription>> {
        self.subscriptions.get(&id)
    }

    /// All of them, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Subscription>> {
        self.subscriptions.values()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{sink::Registry, store::SubscriptionRow};

    fn subscription(
        id: i64,
        matching: Option<String>,
        filter: Option<String>,
        organization: Option<String>,
    ) -> Arc<Subscription> {
        let topic = if id % 3 == 0 { "b.*" } else { "a.**" };
        let row = SubscriptionRow {
            id,
            matching,
            filter,
            organization,
            ..SubscriptionRow::new(&format!("s{id}"), &[topic], "none", json!({}))
        };
        Arc::new(Subscription::bind(row, &Registry::default()).0)
    }

    fn event(topic: &str, payload: String, organization: Option<String>) -> Event {
        Event {
            id: uuid::Uuid::nil(),
            position: 1,
            created_at: chrono::DateTime::UNIX_EPOCH,
            topic: topic.to_owned(),
            key: None,
            payload,
            headers: "{}".to_owned(),
            organization,
            source: None,
            user_id: None,
            schema_version: None,
        }
    }

    fn scalar() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("1"),
            Just("1.0"),
            Just("2"),
            Just("\"1\""),
            Just("\"x\""),
            Just("true"),
            Just("null"),
            Just("9007199254740993"),
            Just("9007199254740992.0")
        ]
        .prop_map(str::to_owned)
    }

    fn condition() -> impl Strategy<Value = String> {
        (
            prop_oneof![
                Just("payload.a"),
                Just("payload.b"),
                Just("payload['a']"),
                Just("payload.a.c"),
                Just("topic")
            ],
            scalar(),
            0..5,
        )
            .prop_map(|(field, value, shape)| match shape {
                0 => format!("{field} == {value}"),
                1 => format!("{value} == {field}"),
                2 => format!("topic == 'a.x' && {field} == {value}"),
                3 => format!("payload.b == 2 && {field} == {value}"),
                _ => format!("{field} != {value} || false"),
            })
    }

    fn payload() -> impl Strategy<Value = String> {
        let value =
            prop_oneof![4 => scalar(), 1 => Just("[1]".to_owned()), 1 => Just("{\"c\": 1}".to_owned())];
        prop_oneof![
            8 => (value.clone(), value).prop_map(|(a, b)| format!("{{\"a\": {a}, \"b\": {b}}}")),
            1 => scalar().prop_map(|a| format!("{{\"a\": {a}}}")),
            1 => Just("[1]".to_owned()),
            1 => Just("[".repeat(200)),
        ]
    }

    proptest! {
        /// Looking up by value is only a shorter way.
        #[test]
        fn an_event_finds_those_that_want_it_and_those_that_fail_as_if_each_were_asked(
            wishes in proptest::collection::vec((proptest::option::of(scalar()), proptest::option::of(condition()), any::<bool>()), 1..12),
            payload in payload(),
            topic in prop_oneof![Just("a.x"), Just("b.x"), Just("c.x")],
            has_organization: bool,
        ) {
            let subscriptions: Vec<_> = wishes.into_iter().zip(1..).map(|((matching, filter, for_one), id)| {
                subscription(id, matching.map(|value| format!("{{\"a\": {value}}}")), filter, for_one.then(|| "acme".to_owned()))
            }).collect();
            let index = Index::new(1, subscriptions.iter().cloned());
            let event = event(topic, payload, has_organization.then(|| "acme".to_owned()));
            let mut expected = Matches::default();
            for one in &subscriptions {
                match one.explain(&event) {
                    Wanted::Yes => expected.wanted_by.push(one.row.id),
                    Wanted::No(_) => {}
                    Wanted::Failed(why) => expected.failed.push((one.row.id, why)),
                }
            }
            prop_assert_eq!(index.find_matches(&event), expected);
        }
    }
}
