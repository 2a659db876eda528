//! Subscriptions, and the index of all of them that a reload swaps whole.

mod index;

use std::sync::Arc;

use crate::{
    delivery::RetryPolicy,
    event::{
        Event,
        filter::{Containment, Facts, Filter, FilterResult, Transform},
        topic::Pattern,
    },
    sink::{Outgoing, Outlet, Registry},
    store::{SubscriptionRow, SubscriptionState},
};

pub use self::index::{Index, Matches};
/// A subscription that this relay can serve.
#[derive(Debug)]
pub struct Subscription {
    /// The row it was made of.
    pub row: SubscriptionRow,
    /// Its name.
    pub name: Arc<str>,
    /// When failed attempts are repeated.
    pub retry: RetryPolicy,
    /// Where its deliveries go.
    pub outlet: Outlet,
    /// What makes another payload of an event's.
    pub transform: Option<Transform>,
    patterns: Vec<Pattern>,
    containment: Option<Containment>,
    filter: Option<Filter>,
    /// Why its conditions cannot be used: then it wants nothing, rather than what they might keep from it.
    unusable_condition: Option<String>,
    usable: bool,
}

/// Whether a subscription wants an event, and what decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All conditions hold.
    Yes,
    /// This one does not.
    No(Condition),
    /// `match` or the filter could not be evaluated, which is a no that is counted. The sentence repeats nothing of the event.
    Failed(String),
}

/// What an event must satisfy, in the order in which it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `organization`
    Organization,
    /// `topics`
    Topics,
    /// `keys`
    Keys,
    /// `match`
    Match,
    /// `filter`: this part of it, as it was written.
    Filter(String),
}

impl Subscription {
    /// Makes a row usable, as far as this relay can: with what is wrong it is still matched, and what it is owed waits until
    /// the row is mended or another relay can serve it. The answer's second half is a sentence that names the field.
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
        let retry = RetryPolicy::parse(&row.retry).unwrap_or_else(|error| {
            problem = Some(error);
            RetryPolicy::default()
        });
        let outlet = sinks.bind(&row.sink, &row.config).unwrap_or_else(|error| {
            problem = Some(error.into());
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
        let containment =
            read("match", row.matching.as_deref(), Containment::parse).unwrap_or_else(|error| {
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
                outlet,
                transform,
                patterns,
                containment,
                filter,
                unusable_condition,
                usable,
            },
            problem,
        )
    }

    /// Whether it wants an event whose topic, organization and key it wants.
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

    /// An event as this subscription is sent it: what its transform makes of it.
    ///
    /// # Errors
    /// Why the transform makes nothing of it. The sentence repeats nothing of the event.
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

    /// Whether it wants an event, all conditions looked at.
    #[must_use]
    pub fn explain(&self, event: &Event) -> Wanted {
        match self.plain_refusal(event) {
            Some(condition) => Wanted::No(condition),
            None => self.evaluate(&Facts::new(event)),
        }
    }

    /// Whether it wants an event by topic, organization and key.
    #[must_use]
    pub fn wants_plainly(&self, event: &Event) -> bool {
        self.plain_refusal(event).is_none()
    }

    fn plain_refusal(&self, event: &Event) -> Option<Condition> {
        if self.row.organization.is_some() && self.row.organization != event.organization {
            Some(Condition::Organization)
        } else if !self.patterns.iter().any(|pattern| pattern.matches(&event.topic)) {
            Some(Condition::Topics)
        } else if !self.wants_key(event.key.as_deref()) {
            Some(Condition::Keys)
        } else {
            None
        }
    }

    /// Whether it can be said what it wants: its topics, `match` and filter can be used, and it is not gone.
    #[must_use]
    pub fn can_evaluate(&self) -> bool {
        self.unusable_condition.is_none() && self.patterns.len() == self.row.topics.len() && self.is_owed()
    }

    /// A field of the payload and the scalar it must have to be wanted, and whether its conditions fail without that field.
    fn lookup(&self) -> Option<(String, String, bool)> {
        if self.unusable_condition.is_some() {
            return None;
        }
        let by_match = self
            .containment
            .as_ref()
            .and_then(Containment::lookup)
            .map(|(field, value)| (field, value, false));
        // A match that says no comes first, and then the filter is not asked.
        let by_filter =
            || self.filter.as_ref().filter(|_| self.containment.is_none()).and_then(Filter::lookup);
        by_match.or_else(|| by_filter().map(|(field, value)| (field, value, true)))
    }

    /// Whether it has conditions beyond topics, organization and keys.
    #[must_use]
    pub fn is_choosy(&self) -> bool {
        self.containment.is_some() || self.filter.is_some() || self.unusable_condition.is_some()
    }

    /// Whether its conditions look at the payload.
    #[must_use]
    pub fn needs_payload(&self) -> bool {
        self.containment.is_some() || self.filter.as_ref().is_some_and(Filter::needs_payload)
    }

    /// Whether this relay may send to it: the row can be used, and neither an operator nor the destination forbids it, a pause
    /// that the destination asked for aside. `invalid` is another relay's word, and does not bind this one.
    #[must_use]
    pub fn may_send(&self) -> bool {
        self.usable
            && self.row.active
            && matches!(self.row.state, SubscriptionState::Ok | SubscriptionState::Invalid)
    }

    /// Whether new events are owed to it: also while it is paused, disabled or cannot be used, but not when it is gone.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.row.state != SubscriptionState::Gone
    }

    /// Its own limit of deliveries in flight, where it sets one, or where its sink takes several at once: a batch under way and
    /// one that gathers meanwhile.
    #[must_use]
    pub fn own_limit(&self) -> Option<u32> {
        let batches = || self.outlet.batch().map(|batch| batch.max.saturating_mul(batch.in_flight + 1));
        self.row
            .max_in_flight
            .and_then(|limit| u32::try_from(limit).ok())
            .or_else(|| batches().map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)))
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
            Self::Match => "match",
            Self::Filter(_) => "filter",
        })
    }
}

/// An optional field of the row; a mistake in it is evaluated with its name.
fn read<T, E: std::fmt::Display>(
    name: &str,
    text: Option<&str>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, String> {
    text.map(parse).transpose().map_err(|error| format!("{name}: {error}"))
}
