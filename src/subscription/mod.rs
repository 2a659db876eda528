//! Subscriptions as a relay uses them, and the index of all of them, which a reload replaces as a whole.

mod index;
mod selections;

use std::sync::Arc;

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

pub use self::index::{Index, Matches};
/// A subscription with its parsed fields and its outlet.
#[derive(Debug)]
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
    pub transform: Option<Transform>,
    patterns: Vec<Pattern>,
    /// The same patterns, to look up a topic.
    trie: Trie<()>,
    containment: Option<Containment>,
    filter: Option<Filter>,
    /// Why its conditions cannot be used. Every event then fails: sending what they might exclude would be
    /// worse.
    unusable_condition: Option<String>,
    usable: bool,
}

/// Whether a subscription wants an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All conditions hold.
    Yes,
    /// This condition does not hold.
    No(Condition),
    /// `match` or the filter could not be evaluated. The event is not sent and is counted. The message
    /// repeats nothing of the event.
    Failed(String),
}

/// A condition on events, in the order of evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `organization`
    Organization,
    /// `topics`
    Topics,
    /// `keys`
    Keys,
    /// The event says what happened to this very subscription.
    Itself,
    /// `match`
    Match,
    /// This part of `filter`, as text.
    Filter(String),
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
        let mut trie = Trie::default();
        for pattern in &patterns {
            trie.insert(pattern, ());
        }
        let name = Arc::from(row.name.as_str());
        (
            Self {
                row,
                name,
                retry,
                rate,
                outlet,
                transform,
                patterns,
                trie,
                containment,
                filter,
                unusable_condition,
                usable,
            },
            problem,
        )
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
        } else if self.trie.find(&event.topic).next().is_none() {
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
            .and_then(Containment::lookup)
            .map(|(field, value)| (field, value, false));
        // If `match` does not hold, the filter is not evaluated.
        let by_filter =
            || self.filter.as_ref().filter(|_| self.containment.is_none()).and_then(Filter::lookup);
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
        self.containment.is_some() || self.filter.as_ref().is_some_and(Filter::needs_payload)
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

    fn wants_key(&self, key: Option<&str>) -> bool {
        match &self.row.keys {
            None => true,
            Some(prefixes) => {
                key.is_some_and(|key| prefixes.iter().any(|prefix| key.starts_with(prefix.as_str())))
            }
        }
    }
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Organization => "organization",
            Self::Topics => "topics",
            Self::Keys => "keys",
            Self::Itself => "itself",
            Self::Match => "match",
            Self::Filter(_) => "filter",
        })
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
