//! Subscriptions as a relay uses them, and the index of all of them, which a reload replaces as a whole.

mod conditions;
mod index;
mod selections;

use std::sync::{Arc, OnceLock};

use crate::{
    delivery::{RetryPolicy, rate::Rate},
    event::{
        Event, JsonText, Position,
        filter::{Containment, Facts, Filter, FilterResult, Transform},
        topic::{Pattern, RESERVED, Trie},
    },
    sink::{Outgoing, Outlet, Registry, Sink as _},
    sinks::live::Live,
    store::{SubscriptionRow, SubscriptionState},
};

pub use self::{
    conditions::{Condition, Wanted},
    index::{Index, Matches},
};

/// A subscription with its parsed fields and its outlet.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The row it was made from.
    pub row: SubscriptionRow,
    /// Name, the same as in `row`.
    pub name: Arc<str>,
    /// Policy for failed attempts.
    pub retry: RetryPolicy,
    /// Most deliveries in a time, by all relays together.
    pub rate: Option<Rate>,
    /// Sink and target of its deliveries.
    pub outlet: Outlet,
    /// Expression that makes the payload to be sent.
    pub transform: Option<Arc<Transform>>,
    patterns: Arc<[Pattern]>,
    /// The same patterns, to look up a topic. Made when it is first used: most never are, because a relay
    /// looks up topics in the trie of all subscriptions.
    trie: OnceLock<Arc<Trie<()>>>,
    containment: Option<Arc<Containment>>,
    filter: Option<Arc<Filter>>,
    /// Why its conditions cannot be used. Every event then fails: sending what they might exclude would be
    /// worse.
    unusable_condition: Option<String>,
    usable: bool,
}

impl Subscription {
    /// Parses a row and binds its sink. With a mistake in the row, which the second value reports and names
    /// the field of, events are still matched; their deliveries wait until the row is fixed or a relay that
    /// can use it takes them.
    #[must_use]
    pub fn bind(row: SubscriptionRow, sinks: &Registry) -> (Self, Option<String>) {
        let mut problem = None;
        let mut patterns = Vec::with_capacity(row.topics.len());
        for text in &row.topics {
            match Pattern::parse(text) {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => problem = Some(format!("topics: {error}")),
            }
        }
        let retry = row.retry.value().map_err(|error| format!("retry: {error}"));
        let retry = retry.and_then(|retry| RetryPolicy::parse(&retry)).unwrap_or_else(|error| {
            problem = Some(error);
            RetryPolicy::default()
        });
        let rate = row.rate.as_deref().and_then(|text| match Rate::parse(text) {
            Ok(rate) => Some(rate),
            Err(error) => {
                problem = Some(format!("rate: {error}"));
                None
            }
        });
        let config = row.config.value().map_err(|error| format!("config: {error}"));
        let outlet = config.and_then(|config| Ok(sinks.bind(&row.sink, &config)?)).unwrap_or_else(|error| {
            problem = Some(error);
            Outlet::none()
        });
        let transform =
            read("transform", row.transform.as_deref(), Transform::compile).unwrap_or_else(|error| {
                problem = Some(error);
                None
            });
        let mut unusable_condition = None;
        let filter = read("filter", row.filter.as_deref(), Filter::compile).unwrap_or_else(|error| {
            unusable_condition = Some(error);
            None
        });
        let containment = read("match", row.matching.as_ref().map(JsonText::as_str), Containment::parse)
            .unwrap_or_else(|error| {
                unusable_condition = Some(error);
                None
            });
        let problem = unusable_condition.clone().or(problem);
        let usable = problem.is_none();
        let name = Arc::from(row.name.as_str());
        (
            Self {
                row,
                name,
                retry,
                rate,
                outlet,
                transform: transform.map(Arc::new),
                patterns: patterns.into(),
                trie: OnceLock::new(),
                containment: containment.map(Arc::new),
                filter: filter.map(Arc::new),
                unusable_condition,
                usable,
            },
            problem,
        )
    }

    /// The same subscription in another state: what was parsed and bound is shared. None when something else
    /// has changed too, or when it could not be used, which may be otherwise now.
    #[must_use]
    pub fn in_state_of(&self, row: &SubscriptionRow) -> Option<Self> {
        let (state, state_reason) = (row.state, row.state_reason.clone());
        let same = SubscriptionRow { state, state_reason, ..self.row.clone() };
        (self.usable && same == *row).then(|| Self { row: same, ..self.clone() })
    }

    /// Evaluates `match` and the filter, for an event whose topic, organization and key match.
    #[must_use]
    pub fn evaluate(&self, facts: &Facts<'_>) -> Wanted {
        if let Some(why) = &self.unusable_condition {
            return Wanted::Failed(why.clone());
        }
        match self.containment.as_ref().map(|containment| containment.holds(facts)) {
            None | Some(Ok(true)) => {}
            Some(Ok(false)) => return Wanted::No(Condition::Match),
            Some(Err(why)) => return Wanted::Failed(format!("match: {why}")),
        }
        let Some(filter) = &self.filter else { return Wanted::Yes };
        match filter.evaluate(facts) {
            FilterResult::Match => Wanted::Yes,
            FilterResult::NoMatch { part } => Wanted::No(Condition::Filter(filter.part(part).to_owned())),
            FilterResult::Failed { part, why } => {
                Wanted::Failed(format!("filter: {}: {why}", filter.part(part)))
            }
        }
    }

    /// Applies the transform.
    ///
    /// # Errors
    /// Why the transform failed. The message repeats nothing of the event.
    pub fn shape(&self, outgoing: Outgoing) -> Result<Outgoing, String> {
        let Some(transform) = &self.transform else { return Ok(outgoing) };
        let changes = transform
            .apply(&Facts::new(&outgoing.event))
            .map_err(|why| format!("transform: {why}; in: {}", transform.text()))?;
        let mut event = Event::clone(&outgoing.event);
        event.payload = changes.payload.unwrap_or(event.payload);
        event.headers = changes.headers.unwrap_or(event.headers);
        event.key = changes.key.unwrap_or(event.key);
        Ok(Outgoing { event: Arc::new(event), fields: changes.sink.map(Arc::new), ..outgoing })
    }

    /// Evaluates all conditions for an event.
    #[must_use]
    pub fn explain(&self, event: &Event) -> Wanted {
        match self.plain_refusal(event) {
            Some(condition) => Wanted::No(condition),
            None => self.evaluate(&Facts::new(event)),
        }
    }

    /// Whether topic, organization and key of an event match.
    #[must_use]
    pub fn wants_plainly(&self, event: &Event) -> bool {
        self.plain_refusal(event).is_none()
    }

    fn plain_refusal(&self, event: &Event) -> Option<Condition> {
        if self.row.organization.is_some() && self.row.organization != event.organization {
            Some(Condition::Organization)
        } else if !self.wants_topic(&event.topic) {
            Some(Condition::Topics)
        } else if !self.wants_key(event.key.as_deref()) {
            Some(Condition::Keys)
        } else if self.is_subject_of(event) {
            Some(Condition::Itself)
        } else {
            None
        }
    }

    /// Whether its conditions can be evaluated: topics, `match` and filter are valid, and it is not gone.
    #[must_use]
    pub fn can_evaluate(&self) -> bool {
        self.unusable_condition.is_none()
            && self.patterns.len() == self.row.topics.len()
            && self.row.state != SubscriptionState::Gone
    }

    /// A field of the payload, the scalar that it must have, and whether the conditions fail without that
    /// field.
    fn lookup(&self) -> Option<(String, String, bool)> {
        if self.unusable_condition.is_some() {
            return None;
        }
        let by_match = self
            .containment
            .as_ref()
            .and_then(|containment| containment.lookup())
            .map(|(field, value)| (field, value, false));
        // If `match` does not hold, the filter is not evaluated.
        let by_filter =
            || self.filter.as_ref().filter(|_| self.containment.is_none()).and_then(|filter| filter.lookup());
        by_match.or_else(|| by_filter().map(|(field, value)| (field, value, true)))
    }

    /// Whether it has `match` or a filter.
    #[must_use]
    pub fn is_choosy(&self) -> bool {
        self.containment.is_some() || self.filter.is_some() || self.unusable_condition.is_some()
    }

    /// Whether it is a channel, which live clients join by name: it is never owed anything and never sent to.
    #[must_use]
    pub fn is_channel(&self) -> bool {
        self.row.sink == Live::KIND
    }

    /// Whether this process can send to it: the row is valid, and its sink is here.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Whether its conditions read the payload.
    #[must_use]
    pub fn needs_payload(&self) -> bool {
        self.containment.is_some() || self.filter.as_ref().is_some_and(|filter| filter.needs_payload())
    }

    /// Whether this relay may send to it: the row is usable and no channel, it is not paused by an operator,
    /// gone or disabled. Pauses that the destination asked for are checked elsewhere. `invalid` was set by
    /// another relay and does not bind this one.
    #[must_use]
    pub fn may_send(&self) -> bool {
        self.usable
            && !self.is_channel()
            && self.row.active
            && (self.row.state.has_no_problem() || self.row.state == SubscriptionState::Invalid)
    }

    /// Whether it is owed the event at this position: also while paused, disabled or invalid. Once gone it is
    /// owed only what was committed before.
    #[must_use]
    pub fn is_owed(&self, position: Position) -> bool {
        self.row.state != SubscriptionState::Gone
            || self.row.owed_until.is_some_and(|until| position <= until)
    }

    /// Its own limit of deliveries in flight: the one it sets, or, if its sink takes batches, room for the
    /// batches in flight and one that is being collected.
    #[must_use]
    pub fn own_limit(&self) -> Option<u32> {
        let batches = || self.outlet.batch().map(|batch| batch.max.saturating_mul(batch.in_flight + 1));
        self.row
            .max_in_flight
            .and_then(|limit| u32::try_from(limit).ok())
            .or_else(|| batches().map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)))
    }

    /// Whether an event says what happened to this subscription. It never gets those: what happens to it then
    /// would cause the next one.
    fn is_subject_of(&self, event: &Event) -> bool {
        event.topic.starts_with(RESERVED) && event.key.as_deref() == Some(&*self.name)
    }

    fn wants_topic(&self, topic: &str) -> bool {
        let trie = self.trie.get_or_init(|| {
            let mut trie = Trie::default();
            self.patterns.iter().for_each(|pattern| trie.insert(pattern, ()));
            Arc::new(trie)
        });
        trie.find(topic).next().is_some()
    }

    fn wants_key(&self, key: Option<&str>) -> bool {
        match &self.row.keys {
            None => true,
            Some(prefixes) => {
                key.is_some_and(|key| prefixes.iter().any(|prefix| key.starts_with(prefix.as_str())))
            }
        }
    }
}

/// Parses an optional field of the row; an error is prefixed with the field's name.
fn read<T, E: std::fmt::Display>(
    name: &str,
    text: Option<&str>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, String> {
    text.map(parse).transpose().map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(state: SubscriptionState, topic: &str) -> SubscriptionRow {
        let row = SubscriptionRow::new("one", &[topic], "live", serde_json::json!({}));
        SubscriptionRow { state, filter: Some("payload.total > 1".into()), ..row }
    }

    fn bound(row: SubscriptionRow) -> Subscription {
        let mut sinks = Registry::default();
        sinks.add(Live);
        Subscription::bind(row, &sinks).0
    }

    #[test]
    fn a_change_of_its_state_alone_parses_and_binds_nothing_again() {
        let before = bound(row(SubscriptionState::Pending, "a"));
        let after = before.in_state_of(&row(SubscriptionState::Ok, "a")).unwrap();
        assert_eq!(after.row.state, SubscriptionState::Ok);
        assert!(Arc::ptr_eq(before.filter.as_ref().unwrap(), after.filter.as_ref().unwrap()));
        assert!(before.in_state_of(&row(SubscriptionState::Pending, "b")).is_none(), "its topics changed");
    }

    #[test]
    fn what_could_not_be_used_is_bound_again_with_its_state() {
        let unusable =
            SubscriptionRow { filter: Some("no filter (".into()), ..row(SubscriptionState::Pending, "a") };
        let before = bound(unusable.clone());
        assert!(!before.is_usable());
        assert!(before.in_state_of(&unusable).is_none());
    }
}
