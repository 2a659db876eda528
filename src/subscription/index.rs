//! An index of all subscriptions that finds those an event matches.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{
    Subscription, Wanted,
    selections::{Selections, Values},
};
use crate::{
    delivery::SubscriptionId,
    event::{
        Event, Position,
        filter::{Facts, Field},
        types::Types,
    },
};

/// Result of matching one event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matches {
    /// Ids of the subscriptions that want the event, ascending.
    pub wanted_by: Vec<SubscriptionId>,
    /// Ids of the subscriptions whose conditions could not be evaluated, with the reason. They do not get the
    /// event.
    pub failed: Vec<(SubscriptionId, String)>,
    /// Ids of the subscriptions whose conditions need the payload, which was not read. Ascending.
    pub undecided: Vec<SubscriptionId>,
}

/// All subscriptions at one generation, without channels: routing has nothing to do with those.
#[derive(Debug, Default)]
pub struct Index {
    /// Value of `outbox.generation` at which the subscriptions were read.
    pub generation: i64,
    subscriptions: BTreeMap<SubscriptionId, Arc<Subscription>>,
    sendable: usize,
    starting: Vec<SubscriptionId>,
    choosy: bool,
    needs_payload: bool,
    /// Subscriptions that are not in `by_value`.
    plain: Selections,
    /// Subscriptions that require one scalar in one field of the payload, by field. An event looks up its own
    /// values, so thousands of subscriptions with other values cost it nothing.
    by_value: BTreeMap<String, Values>,
    /// The subscriptions of `by_value`, by what they select.
    in_by_value: Selections,
    /// Whether several subscriptions have the same filter, which is then evaluated once.
    shares_filters: bool,
    types: Arc<Types>,
}

impl Index {
    /// Builds the index. Channels are left out.
    #[must_use]
    pub fn new(generation: i64, subscriptions: impl IntoIterator<Item = Arc<Subscription>>) -> Self {
        let mut index = Self { generation, ..Self::default() };
        for subscription in subscriptions.into_iter().filter(|one| !one.is_channel()) {
            if subscription.is_owed(Position::default()) {
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

    /// Subscriptions that want an event by topic, organization and key, each once, in the order of their ids;
    /// [`Subscription::evaluate`] checks the other conditions. An event of an organization reaches the
    /// subscriptions of that organization and those for all.
    #[must_use]
    pub fn matching(&self, event: &Event) -> Vec<&Arc<Subscription>> {
        self.with_ids(self.plain.find(event).chain(self.in_by_value.find(event)).collect(), event)
    }

    fn with_ids(&self, mut ids: Vec<SubscriptionId>, event: &Event) -> Vec<&Arc<Subscription>> {
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter()
            .filter_map(|id| self.subscriptions.get(&id))
            .filter(|subscription| subscription.is_owed(event.position))
            .filter(|subscription| subscription.wants_key(event.key.as_deref()))
            .filter(|subscription| !subscription.is_subject_of(event))
            .collect()
    }

    /// Evaluates all conditions of all subscriptions for an event.
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

    /// Evaluates the conditions that need no payload.
    #[must_use]
    pub fn find_matches_without_payload(&self, event: &Event) -> Matches {
        let facts = Facts::new(event);
        let mut matches = Matches::default();
        for subscription in self.matching(event) {
            if subscription.needs_payload() {
                matches.undecided.push(subscription.row.id);
                continue;
            }
            match subscription.evaluate(&facts) {
                Wanted::Yes => matches.wanted_by.push(subscription.row.id),
                Wanted::No(_) => {}
                Wanted::Failed(why) => matches.failed.push((subscription.row.id, why)),
            }
        }
        matches
    }

    /// The subscriptions of [`Index::matching`] without those that require another value than the event has.
    fn candidates(&self, event: &Event, facts: &Facts<'_>) -> Vec<&Arc<Subscription>> {
        let mut ids: Vec<SubscriptionId> = self.plain.find(event).collect();
        if self.in_by_value.find(event).next().is_some() {
            for (field, values) in &self.by_value {
                match facts.field(field) {
                    Field::Scalar(value) => ids.extend(
                        values.wanting.get(&value).into_iter().flat_map(|selections| selections.find(event)),
                    ),
                    Field::Compound => {}
                    Field::Missing => ids.extend(values.failing.find(event)),
                    // Each of them fails, and must be counted.
                    Field::Unreadable => {
                        ids.extend(values.wanting.values().flat_map(|selections| selections.find(event)))
                    }
                }
            }
        }
        self.with_ids(ids, event)
    }

    /// Whether a subscription may need the event's payload to evaluate its conditions.
    #[must_use]
    pub fn asks_for_payload(&self, event: &Event) -> bool {
        self.in_by_value.find(event).next().is_some()
            || self.plain.find(event).any(|id| {
                self.subscriptions.get(&id).is_some_and(|subscription| subscription.needs_payload())
            })
    }

    /// Whether a subscription has `match` or a filter.
    #[must_use]
    pub fn is_choosy(&self) -> bool {
        self.choosy
    }

    /// Whether a subscription needs payloads to evaluate its conditions.
    #[must_use]
    pub fn needs_payload(&self) -> bool {
        self.needs_payload
    }

    /// Adds event types.
    #[must_use]
    pub fn with_types(mut self, types: Arc<Types>) -> Self {
        self.types = types;
        self
    }

    /// The event types.
    #[must_use]
    pub fn types(&self) -> &Types {
        &self.types
    }

    /// Ids of the subscriptions whose backfill was not complete when they were loaded.
    pub fn starting(&self) -> impl Iterator<Item = SubscriptionId> + '_ {
        self.starting.iter().copied()
    }

    /// Number of subscriptions that may be sent to.
    #[must_use]
    pub fn sendable(&self) -> usize {
        self.sendable
    }

    /// The subscription with this id.
    #[must_use]
    pub fn get(&self, id: SubscriptionId) -> Option<&Arc<Subscription>> {
        self.subscriptions.get(&id)
    }

    /// All subscriptions, in the order of their ids.
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
        id: SubscriptionId,
        matching: Option<String>,
        filter: Option<String>,
        organization: Option<String>,
        keys: Option<Vec<String>>,
    ) -> Arc<Subscription> {
        let topic = if id.0 % 3 == 0 { "b.*" } else { "a.**" };
        let row = SubscriptionRow {
            id,
            matching: matching.map(|text| serde_json::from_str(&text).unwrap()),
            filter,
            organization,
            keys,
            ..SubscriptionRow::new(&format!("s{id}"), &[topic], "none", json!({}))
        };
        Arc::new(Subscription::bind(row, &Registry::default()).0)
    }

    fn event(topic: &str, payload: String, organization: Option<String>, key: Option<String>) -> Event {
        Event { topic: topic.to_owned(), key, payload, organization, ..Event::sample(1) }
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

    fn keys() -> impl Strategy<Value = Option<Vec<String>>> {
        let prefix =
            prop_oneof![Just(""), Just("a"), Just("ab"), Just("ä"), Just("b/")].prop_map(str::to_owned);
        proptest::option::of(proptest::collection::vec(prefix, 0..3))
    }

    fn key() -> impl Strategy<Value = Option<String>> {
        let key = prop_oneof![Just(""), Just("a"), Just("abc"), Just("ä1"), Just("b/2"), Just("b")];
        proptest::option::of(key.prop_map(str::to_owned))
    }

    proptest! {
        /// Looking up by value, key and topic gives the same result as evaluating each subscription.
        #[test]
        fn the_index_finds_the_same_matches_as_evaluating_each_subscription(
            conditions in proptest::collection::vec(
                (proptest::option::of(scalar()), proptest::option::of(condition()), any::<bool>(), keys()),
                1..12,
            ),
            payload in payload(),
            topic in prop_oneof![Just("a.x"), Just("b.x"), Just("c.x")],
            has_organization: bool,
            key in key(),
        ) {
            let acme = || "acme".to_owned();
            let numbered = conditions.into_iter().zip((1..).map(SubscriptionId));
            let subscriptions: Vec<_> = numbered.map(|((matching, filter, for_one, keys), id)| {
                let matching = matching.map(|value| format!("{{\"a\": {value}}}"));
                subscription(id, matching, filter, for_one.then(acme), keys)
            }).collect();
            let index = Index::new(1, subscriptions.iter().cloned());
            let event = event(topic, payload, has_organization.then(|| "acme".to_owned()), key);
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
