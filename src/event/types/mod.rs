//! Event types: the schema of a topic's payloads in each version, and the upcast to the next version. A
//! payload is parsed only when a schema or an upcast reads it.

mod schema;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

pub use self::schema::{LARGEST, Payload, Schema, Unfit};
use crate::event::{
    Event,
    filter::{Facts, Transform},
    topic::{Pattern, Trie},
};

/// A row of `outbox.event_types`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Row {
    /// Id of the event type.
    pub id: i64,
    /// Topic pattern of the events.
    pub topic: String,
    /// Schema version, from 1. An event without one has version 1.
    pub version: i32,
    /// JSON Schema, as text.
    pub schema: String,
    /// What happens to a payload that does not fit: `reject` or `warn`.
    pub mode: String,
    /// Free text for people.
    pub description: Option<String>,
    /// CEL expression that makes the payload of the next version, if there is one.
    pub upcast: Option<String>,
    /// Why a relay cannot use the row.
    pub state_reason: Option<String>,
}

/// A compiled event type. Parts that cannot be compiled are kept as errors.
#[derive(Debug)]
pub struct EventType {
    /// The row it was compiled from.
    pub row: Row,
    pattern: Option<Pattern>,
    schema: Result<Schema, String>,
    upcast: Option<Result<Transform, String>>,
}

/// Why an event type stops a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The payload does not fit the schema, whose mode is `reject`.
    SchemaMismatch,
    /// The payload cannot be upcast to the version that the subscription asks for.
    UpcastFailed,
}

impl RefusalKind {
    /// Stable snake_case code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::SchemaMismatch => "schema_mismatch",
            Self::UpcastFailed => "upcast_failed",
        }
    }
}

/// Why an event cannot be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    /// Type, version and paths; never values of the payload.
    pub why: String,
}

/// A problem that does not stop the delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Id of the event type.
    pub id: i64,
    /// Used as a metric label.
    pub cause: Cause,
    /// Type, version and paths; never values of the payload.
    pub why: String,
}

/// Cause of a warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The payload does not fit the schema.
    Mismatch,
    /// The payload cannot be parsed.
    Unreadable,
    /// The schema cannot be used.
    InvalidType,
}

impl Cause {
    /// Stable snake_case code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Mismatch => "mismatch",
            Self::Unreadable => "unreadable",
            Self::InvalidType => "invalid_type",
        }
    }
}

impl EventType {
    /// Compiles a row. Parts that cannot be used are reported by [`EventType::problem`] and reject no event.
    /// Slow, as [`Schema::compile`] is.
    #[must_use]
    pub fn read(row: Row) -> Self {
        Self {
            pattern: Pattern::parse(&row.topic).ok(),
            schema: Schema::compile(&row.schema),
            upcast: row.upcast.as_deref().map(upcast),
            row,
        }
    }

    /// Why it cannot be used: a message that names the field.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if self.pattern.is_none() {
            return Some("topic: not a topic pattern".to_owned());
        }
        let schema = self.schema.as_ref().err().map(|why| format!("schema: {why}"));
        schema.or_else(|| self.upcast.as_ref()?.as_ref().err().map(|why| format!("upcast: {why}")))
    }

    /// Whether its topic pattern matches.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        self.pattern.as_ref().is_some_and(|pattern| pattern.matches(topic))
    }

    fn name(&self) -> String {
        format!("event type {} version {}", self.row.topic, self.row.version)
    }

    fn check(&self, payload: &Payload<'_>, made: &str) -> Option<(Cause, String)> {
        match &self.schema {
            Err(why) => {
                Some((Cause::InvalidType, format!("{}: its schema cannot be used: {why}", self.name())))
            }
            Ok(schema) => match schema.check(payload) {
                Ok(()) => None,
                Err(Unfit::Mismatch(places)) => {
                    Some((Cause::Mismatch, format!("{}{made}: {places}", self.name())))
                }
                Err(Unfit::Unreadable(why)) => Some((
                    Cause::Unreadable,
                    format!("{}{made}: the payload cannot be checked: {why}", self.name()),
                )),
            },
        }
    }
}

fn upcast(text: &str) -> Result<Transform, String> {
    let transform = Transform::compile(text).map_err(|error| error.to_string())?;
    if transform.gives_fields() {
        return Err(
            "event({…}) can only be used in transforms; the value of an upcast is the payload".to_owned()
        );
    }
    Ok(transform)
}

/// Schema version of an event; 1 if it has none.
#[must_use]
pub fn version(event: &Event) -> i32 {
    event.schema_version.unwrap_or(1)
}

/// All event types, indexed by topic.
#[derive(Debug, Default)]
pub struct Types {
    all: BTreeMap<i64, Arc<EventType>>,
    by_topic: Trie<i64>,
}

impl Types {
    /// Indexes these event types.
    #[must_use]
    pub fn new(types: impl IntoIterator<Item = Arc<EventType>>) -> Self {
        let mut made = Self::default();
        for one in types {
            if let Some(pattern) = &one.pattern {
                made.by_topic.insert(pattern, one.row.id);
            }
            made.all.insert(one.row.id, one);
        }
        made
    }

    /// All event types, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<EventType>> {
        self.all.values()
    }

    /// The event types of a topic and version, in the order of their ids.
    fn of(&self, topic: &str, version: i32) -> Vec<&Arc<EventType>> {
        if self.all.is_empty() {
            return Vec::new();
        }
        let mut seen = HashSet::new();
        let mut found: Vec<_> = self
            .by_topic
            .find(topic)
            .filter(|id| seen.insert(**id))
            .filter_map(|id| self.all.get(id))
            .filter(|one| one.row.version == version)
            .collect();
        found.sort_unstable_by_key(|one| one.row.id);
        found
    }

    /// Checks an event and upcasts it to the version a subscription asks for. Without a version the same
    /// event is returned. After upcasting the types of the new version check it too; those in between do not.
    ///
    /// # Errors
    /// Why the event cannot be delivered.
    pub fn prepare(
        &self,
        event: &Arc<Event>,
        wanted: Option<i32>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Arc<Event>, Refusal> {
        self.check(event, "", warnings)?;
        let Some(wanted) = wanted else { return Ok(event.clone()) };
        let version = version(event);
        let upcast = self.upcast(event, wanted)?;
        if version != wanted {
            self.check(&upcast, &format!(", after upcasting from version {version}"), warnings)?;
        }
        Ok(Arc::new(upcast))
    }

    /// Checks an event against the types of its topic and version. Types in mode `warn` only add warnings.
    fn check(&self, event: &Event, made: &str, warnings: &mut Vec<Warning>) -> Result<(), Refusal> {
        let payload = Payload::new(&event.payload);
        for one in self.of(&event.topic, version(event)) {
            let Some((cause, why)) = one.check(&payload, made) else { continue };
            // An invalid schema stops no event: it is an operator's mistake.
            if one.row.mode == "reject" && cause != Cause::InvalidType {
                return Err(Refusal { kind: RefusalKind::SchemaMismatch, why });
            }
            warnings.push(Warning { id: one.row.id, cause, why });
        }
        Ok(())
    }

    /// Upcasts an event step by step to a later version.
    fn upcast(&self, event: &Event, wanted: i32) -> Result<Event, Refusal> {
        let refusal = |why: String| Refusal { kind: RefusalKind::UpcastFailed, why };
        let mut event = event.clone();
        let first = version(&event);
        if first > wanted {
            return Err(refusal(format!(
                "the event has version {first}; the subscription asks for version {wanted}, \
                 and there are no downcasts"
            )));
        }
        // Find all steps first, so that a chain with a gap runs nothing.
        let steps = (first..wanted)
            .map(|version| self.step(&event.topic, version))
            .collect::<Result<Vec<_>, _>>()
            .map_err(refusal)?;
        for (one, transform) in steps {
            let changes = transform
                .apply(&Facts::new(&event))
                .map_err(|why| refusal(format!("{}: upcast: {why}; in: {}", one.name(), transform.text())))?;
            event.payload = changes.payload.unwrap_or(event.payload);
            event.schema_version = Some(one.row.version + 1);
        }
        event.schema_version = Some(wanted);
        Ok(event)
    }

    /// The only upcast from a version to the next.
    fn step(&self, topic: &str, version: i32) -> Result<(&Arc<EventType>, &Transform), String> {
        let mut found =
            self.of(topic, version).into_iter().filter_map(|one| Some((one, one.upcast.as_ref()?)));
        match (found.next(), found.next()) {
            (None, _) => Err(format!(
                "no event type of this topic has an upcast from version {version} to {}",
                version + 1
            )),
            (Some((one, upcast)), None) => match upcast {
                Ok(transform) => Ok((one, transform)),
                Err(why) => Err(format!("{}: its upcast cannot be used: {why}", one.name())),
            },
            (Some((one, _)), Some((other, _))) => Err(format!(
                "two upcasts from version {version}: those of the event types {} and {}",
                one.row.topic, other.row.topic
            )),
        }
    }

    /// The highest version that an event can be upcast to.
    #[must_use]
    pub fn newest(&self, event: &Event) -> i32 {
        let mut version = version(event);
        while version < i32::MAX && self.of(&event.topic, version).iter().any(|one| one.upcast.is_some()) {
            version += 1;
        }
        version
    }
}

#[cfg(test)]
mod tests;
