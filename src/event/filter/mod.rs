//! CEL filters and transforms, and `match`: the only mention of the CEL crate. Pure.
//!
//! An expression is compiled once, when its subscription is loaded. What it may do is bounded (see
//! `compile`), and a payload is read at most once for each event, only when an expression asks for it (see
//! [`Facts`]): all others pass as they are.

mod clauses;
mod compile;
mod json;
mod meter;
mod names;
mod value;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use cel::{
    Context, ExecutionError, IdedExpr, Value,
    common::{
        ast::operators,
        types::{CelBool, CelMap, CelMapKey, CelNull, CelString},
        value::{CowVal, Val},
    },
};
use regex::Regex;

pub use self::value::Facts;
pub(crate) use self::value::Field;
use self::{
    clauses::conjunction,
    compile::{Compiled, Use},
    json::Node,
    meter::ENV,
    names::FIELDS,
    value::{Evaluation, write},
};

/// The longest expression, in bytes; `outbox.subscribe` has the same limit.
pub const LONGEST: usize = 8 * 1024;
/// The longest key, in characters: that of the log.
const LONGEST_KEY: usize = 512;
/// What a transform makes may have so many bytes.
const LARGEST_RESULT: usize = 1024 * 1024;
/// The largest headers, in bytes: those of the log.
const LARGEST_HEADERS: usize = 16 * 1024;

/// Why an expression cannot be used, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {why}")]
pub struct Invalid {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// A sentence without a full stop.
    pub why: String,
}

impl Invalid {
    fn at_start(why: impl Into<String>) -> Self {
        Self { line: 1, column: 1, why: why.into() }
    }
}

/// What a filter says of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterResult {
    /// Wanted.
    Match,
    /// Not wanted, because of this part of the conjunction (from 0).
    NoMatch {
        /// Which one.
        part: usize,
    },
    /// It could not be evaluated, which is no match.
    Failed {
        /// The part of the conjunction that could not.
        part: usize,
        /// Why: names and types, nothing of the event.
        why: String,
    },
}

/// A condition on events.
#[derive(Debug)]
pub struct Filter {
    text: String,
    compiled: Compiled,
    labels: Vec<String>,
}

impl Filter {
    /// Reads one.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn compile(text: &str) -> Result<Self, Invalid> {
        let compiled = compile::compile(text, Use::Filter)?;
        let labels = conjunction(text);
        // Where the eye and the parser disagree, the whole filter is named.
        let labels = if labels.len() == compiled.parts.len() {
            labels
        } else {
            vec![text.trim().to_owned(); compiled.parts.len()]
        };
        Ok(Self { text: text.to_owned(), compiled, labels })
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A part of its conjunction, as it was written.
    #[must_use]
    pub fn part(&self, part: usize) -> &str {
        self.labels.get(part).map_or("", String::as_str)
    }

    /// Whether it looks at the payload.
    #[must_use]
    pub fn needs_payload(&self) -> bool {
        self.compiled.needs_payload
    }

    /// A field of the payload and a scalar that it must have for the filter to hold, as [`Facts::field`]
    /// writes it. With another one there it is no match, and when it is not there the filter fails, unless
    /// another part says no.
    pub(crate) fn lookup(&self) -> Option<(String, String)> {
        self.compiled.parts.iter().find_map(compile::equality)
    }

    /// Evaluates it. As in CEL, a part that is false outweighs one that cannot be evaluated.
    #[must_use]
    pub fn evaluate(&self, facts: &Facts<'_>) -> FilterResult {
        let mut failed = None;
        for (part, expression) in self.compiled.parts.iter().enumerate() {
            let answer = run(&self.text, expression, &self.compiled.patterns, facts, |value| {
                match value.downcast_ref::<CelBool>() {
                    Some(answer) => Ok(*answer.inner()),
                    None => Err(format!("its value is of type {}, not bool", value.get_type().name())),
                }
            });
            match answer {
                Ok(true) => {}
                Ok(false) => return FilterResult::NoMatch { part },
                Err(why) => failed = failed.or(Some((part, why))),
            }
        }
        failed.map_or(FilterResult::Match, |(part, why)| FilterResult::Failed { part, why })
    }
}

/// What a transform makes of an event; none: as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// JSON.
    pub payload: Option<String>,
    /// A JSON object of strings.
    pub headers: Option<String>,
    /// Its inside is none for an event that shall have no key.
    pub key: Option<Option<String>>,
    /// For the sink.
    pub sink: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Makes another payload of an event's, and more with `event({…})`.
#[derive(Debug)]
pub struct Transform {
    text: String,
    compiled: Compiled,
}

impl Transform {
    /// Reads one.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn compile(text: &str) -> Result<Self, Invalid> {
        Ok(Self { text: text.to_owned(), compiled: compile::compile(text, Use::Transform)? })
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is `event({…})`, which changes more than the payload.
    #[must_use]
    pub fn gives_fields(&self) -> bool {
        self.compiled.gives_fields
    }

    /// Evaluates it.
    ///
    /// # Errors
    /// What could not be done and where in the value: names and types, nothing of the event.
    pub fn apply(&self, facts: &Facts<'_>) -> Result<Changes, String> {
        let [expression] = self.compiled.parts.as_slice() else { return Err("it is empty".to_owned()) };
        run(&self.text, expression, &self.compiled.patterns, facts, |value| {
            if self.compiled.gives_fields {
                changes(value, &self.text)
            } else {
                Ok(Changes { payload: Some(json("its value", value)?), ..Changes::default() })
            }
        })
    }
}

/// A condition by containment: `payload @> match` in SQL.
#[derive(Debug)]
pub struct Containment {
    wanted: Node<'static>,
}

impl Containment {
    /// Reads the JSON that shall be contained.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        Node::parse(text).map(|node| Self { wanted: node.into_owned() }).map_err(ToOwned::to_owned)
    }

    /// A field that the payload must have and the scalar in it, as [`Facts::field`] writes it, for it to
    /// hold.
    pub(crate) fn lookup(&self) -> Option<(String, String)> {
        let Node::Object(fields) = &self.wanted else { return None };
        // Of equal names the last one counts.
        fields
            .iter()
            .find_map(|(name, _)| Some((name.clone().into_owned(), self.wanted.get(name)?.as_scalar()?)))
    }

    /// Whether the payload contains it.
    ///
    /// # Errors
    /// Why the payload cannot be read.
    pub fn holds(&self, facts: &Facts<'_>) -> Result<bool, String> {
        facts
            .payload()
            .map(|payload| payload.contains(&self.wanted))
            .map_err(|why| format!("the payload cannot be read: {why}"))
    }
}

/// Evaluates an expression and makes something of its value before that goes.
fn run<T>(
    text: &str,
    expression: &IdedExpr,
    patterns: &Arc<[Regex]>,
    facts: &Facts<'_>,
    make: impl FnOnce(&dyn Val) -> Result<T, String>,
) -> Result<T, String> {
    // A panic would be a bug of the crate, and must cost this subscription only.
    catch_unwind(AssertUnwindSafe(|| {
        let evaluation = Evaluation::new(facts, patterns);
        let made = {
            let mut context = Context::with_env(ENV.clone());
            context.set_variable_resolver(&evaluation);
            let value: Result<CowVal<'_, '_>, _> = Value::resolve_val(expression, &context);
            value.map_err(|error| explain(&error, text)).and_then(|value| make(value.as_ref()))
        };
        // `||` may have swallowed these.
        if evaluation.meter.is_spent() {
            return Err("it exceeds the work limit of one evaluation".to_owned());
        }
        made.map_err(|why| {
            evaluation.unreadable().map_or(why, |reason| format!("the payload cannot be read: {reason}"))
        })
    }))
    .unwrap_or_else(|_| Err("it makes the evaluation panic".to_owned()))
}

fn json(name: &str, value: &dyn Val) -> Result<String, String> {
    let mut out = String::new();
    write(value, &mut out).map_err(|unfit| unfit.of(name))?;
    if out.len() > LARGEST_RESULT {
        Err(format!("{name} has {} bytes; at most {LARGEST_RESULT}", out.len()))
    } else {
        Ok(out)
    }
}

/// The fields of `event({…})`.
fn changes(value: &dyn Val, expression: &str) -> Result<Changes, String> {
    let Some(fields) = value.downcast_ref::<CelMap>() else {
        return Err(format!("event() takes a map, not {}", value.get_type().name()));
    };
    let mut changes = Changes::default();
    for (name, value) in fields.inner() {
        let CelMapKey::String(name) = name else {
            return Err("event() has a field whose name is not a string".to_owned());
        };
        match name.inner() {
            "payload" => changes.payload = Some(json("payload", value.as_ref())?),
            "headers" => changes.headers = Some(headers(value.as_ref(), expression)?),
            "key" => changes.key = Some(key(value.as_ref())?),
            "sink" => {
                let text = json("sink", value.as_ref())?;
                let fields = serde_json::from_str(&text)
                    .map_err(|_| "sink must be a map whose numbers a double holds".to_owned())?;
                changes.sink = Some(fields);
            }
            // Its name may come from the payload.
            _ => return Err(format!("event() has a field that is none of {}", FIELDS.join(", "))),
        }
    }
    Ok(changes)
}

fn key(value: &dyn Val) -> Result<Option<String>, String> {
    if value.downcast_ref::<CelNull>().is_some() {
        return Ok(None);
    }
    match value.downcast_ref::<CelString>() {
        Some(key) if key.inner().chars().count() > LONGEST_KEY => {
            Err(format!("key is longer than {LONGEST_KEY} characters"))
        }
        Some(key) => Ok(Some(key.inner().to_owned())),
        None => Err(format!("key must be a string or null, not {}", value.get_type().name())),
    }
}

/// The same rule as `outbox.headers_are_valid`: they travel as headers of a request.
fn headers(value: &dyn Val, expression: &str) -> Result<String, String> {
    let Some(map) = value.downcast_ref::<CelMap>() else {
        return Err(format!("headers must be a map of strings, not {}", value.get_type().name()));
    };
    for (name, value) in map.inner() {
        let CelMapKey::String(name) = name else {
            return Err("headers has a name that is not a string".to_owned());
        };
        let name = name.inner();
        let letters =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
        if !(1..=64).contains(&name.len()) || !name.bytes().all(letters) || name.starts_with(['_', '-']) {
            // It may come from the payload.
            let name = if expression.contains(name) {
                format!("the name {:?}", short(name))
            } else {
                "a name of another kind".to_owned()
            };
            return Err(format!(
                "headers has {name}; names are 1 to 64 of a-z, 0-9, _ and -, beginning with a letter or digit"
            ));
        }
        match value.downcast_ref::<CelString>() {
            Some(text) if text.inner().chars().any(char::is_control) => {
                return Err(format!("headers.{name} has a control character"));
            }
            Some(_) => {}
            None => return Err(format!("headers.{name} must be a string, not {}", value.get_type().name())),
        }
    }
    let text = json("headers", value)?;
    if text.len() > LARGEST_HEADERS {
        Err(format!("headers has {} bytes; at most {LARGEST_HEADERS}", text.len()))
    } else {
        Ok(text)
    }
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

/// An error without the values in it, but for what stands in the expression: payloads stay out of logs and
/// tables of operators.
fn explain(error: &ExecutionError, text: &str) -> String {
    let function = |name: &str| name.trim_start_matches('@').trim_matches('_').to_owned();
    match error {
        ExecutionError::NoSuchKey(key) if text.contains(key.as_str()) => {
            format!("there is no key {:?} (has(…) asks first)", short(key))
        }
        // The payload chose it.
        ExecutionError::NoSuchKey(_) => "there is no such key (`in` asks first)".to_owned(),
        ExecutionError::UndeclaredReference(name) => format!("there is no {:?} here", short(name)),
        ExecutionError::NoSuchOverload(overload) if overload.function() == operators::INDEX => {
            format!(
                "{} cannot be looked into with {}",
                overload.argument_types().first().map_or("it", String::as_str),
                overload.argument_types().get(1).map_or("it", String::as_str)
            )
        }
        ExecutionError::NoSuchOverload(overload) => {
            format!(
                "{} does not take {}",
                function(overload.function()),
                overload.argument_types().join(" and ")
            )
        }
        ExecutionError::UnexpectedType { want, .. } => format!("a value is not of type {}", short(want)),
        ExecutionError::UnsupportedBinaryOperator(name, left, right) => {
            format!("{name} does not take {} and {}", left.type_of(), right.type_of())
        }
        ExecutionError::ValuesNotComparable(left, right) => {
            format!("{} and {} cannot be compared", left.type_of(), right.type_of())
        }
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            "division by zero".to_owned()
        }
        ExecutionError::Overflow(..) => "a number is out of range".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "a list is shorter than the index asks".to_owned(),
        ExecutionError::DuplicateKey(_) => "a map has a key twice".to_owned(),
        ExecutionError::UnsupportedKeyType(value) => format!("{} cannot be a key", value.type_of()),
        ExecutionError::FunctionError { function: name, .. } => {
            format!("{}() cannot take that value", function(name))
        }
        _ => "it cannot be evaluated".to_owned(),
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests;
