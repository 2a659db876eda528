//! Converts between JSON and CEL: the variables of an expression, and its value as JSON. Pure.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use cel::{
    common::{
        types::{
            CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString,
            CelTimestamp, CelUInt, Type,
        },
        value::{CowVal, StaticVal, Val},
    },
    context::VariableResolver,
};
use chrono::SecondsFormat;
use regex::Regex;

use super::json::{Decimal, Node, is_same_number};
use crate::event::Event;

/// Work limit of one evaluation, in units. A unit is an element visited, a part evaluated for an element, or
/// 64 bytes copied.
pub(super) const MOST_WORK: i64 = 1_000_000;

/// The variables of an expression.
pub(super) const VARIABLES: &[&str] = &[
    "topic",
    "key",
    "payload",
    "headers",
    "organization",
    "source",
    "user_id",
    "schema_version",
    "created_at",
    "id",
];

/// An event as expressions see it. Its payload is parsed at most once, when the first expression reads it.
pub struct Facts<'e> {
    pub(super) event: &'e Event,
    node: OnceLock<Result<Node<'e>, &'static str>>,
    payload: OnceLock<Option<Box<dyn Val + 'e>>>,
    headers: OnceLock<Option<Box<dyn Val + 'e>>>,
}

impl fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("event", &self.event.id).finish_non_exhaustive()
    }
}

impl<'e> Facts<'e> {
    /// The facts of an event; parses nothing yet.
    #[must_use]
    pub fn new(event: &'e Event) -> Self {
        Self { event, node: OnceLock::new(), payload: OnceLock::new(), headers: OnceLock::new() }
    }

    /// The value of a top-level field of the payload.
    pub(crate) fn field(&self, name: &str) -> Field {
        match self.payload().map(|payload| payload.get(name)) {
            Err(_) => Field::Unreadable,
            Ok(None) => Field::Missing,
            Ok(Some(value)) => value.as_scalar().map_or(Field::Compound, Field::Scalar),
        }
    }

    /// The payload, or why it cannot be read.
    pub(crate) fn payload(&self) -> Result<&Node<'e>, &'static str> {
        self.node.get_or_init(|| Node::parse(&self.event.payload)).as_ref().map_err(|why| *why)
    }
}

/// The value of a top-level field of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    /// The payload cannot be parsed.
    Unreadable,
    /// The payload has no such field or is not an object.
    Missing,
    /// A list or an object.
    Compound,
    /// A scalar as normalized text: equal scalars have equal texts.
    Scalar(String),
}

/// One evaluation: the event and the meter of its work.
pub(super) struct Evaluation<'f, 'e> {
    pub(super) facts: &'f Facts<'e>,
    pub(super) meter: Meter,
    unreadable: AtomicBool,
}

impl<'f, 'e> Evaluation<'f, 'e> {
    pub(super) fn new(facts: &'f Facts<'e>, patterns: &Arc<[Regex]>) -> Self {
        Self { facts, meter: Meter::new(patterns.clone()), unreadable: AtomicBool::new(false) }
    }

    /// Why the payload could not be parsed, if the expression read it.
    pub(super) fn unreadable(&self) -> Option<&'static str> {
        self.unreadable.load(Ordering::Relaxed).then(|| self.facts.payload().err()).flatten()
    }
}

impl VariableResolver for Evaluation<'_, '_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let facts = self.facts;
        let event = facts.event;
        let text = |text: &'b str| CowVal::owned(CelString::from(text));
        let optional =
            |value: &'b Option<String>| value.as_deref().map_or_else(|| CowVal::owned(CelNull), text);
        Some(match name {
            "payload" => {
                let made = facts.payload.get_or_init(|| facts.payload().ok().map(value_of)).as_deref();
                match made {
                    Some(value) => CowVal::Borrowed(value),
                    None => {
                        self.unreadable.store(true, Ordering::Relaxed);
                        return None;
                    }
                }
            }
            "topic" => text(&event.topic),
            "key" => optional(&event.key),
            "headers" => {
                let made = facts
                    .headers
                    .get_or_init(|| Node::parse(&event.headers).ok().map(|node| value_of(&node)));
                CowVal::Borrowed(made.as_deref()?)
            }
            "organization" => optional(&event.organization),
            "source" => optional(&event.source),
            "user_id" => optional(&event.user_id),
            "schema_version" => match event.schema_version {
                Some(version) => CowVal::owned(CelInt::from(i64::from(version))),
                None => CowVal::owned(CelNull),
            },
            "created_at" => CowVal::owned(CelTimestamp::from(event.created_at.fixed_offset())),
            "id" => CowVal::owned(CelString::from(event.id.to_string())),
            METER => CowVal::Borrowed(&self.meter),
            _ => return None,
        })
    }
}

/// Variable that holds the meter. Users cannot write it: `@` is not valid in CEL names.
pub(super) const METER: &str = "@meter";

/// Counts down work. It also carries the compiled regular expressions of the expression.
pub(super) struct Meter {
    left: AtomicI64,
    pub(super) patterns: Arc<[Regex]>,
}

static METER_TYPE: Type = Type::new_unspecified_type("@meter");
static NUMBER_TYPE: Type = Type::new_unspecified_type("number");

impl Meter {
    fn new(patterns: Arc<[Regex]>) -> Self {
        Self { left: AtomicI64::new(MOST_WORK), patterns }
    }

    /// Takes this many units; false if fewer were left.
    pub(super) fn take(&self, units: i64) -> bool {
        let units = units.clamp(0, 2 * MOST_WORK);
        self.left.fetch_sub(units, Ordering::Relaxed) >= units
    }

    pub(super) fn is_spent(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

impl Val for Meter {
    fn get_type(&self) -> &Type {
        &METER_TYPE
    }

    fn cel_type() -> &'static Type {
        &METER_TYPE
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(Self { left: AtomicI64::new(0), patterns: self.patterns.clone() })
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Meter {}

/// A number that `int`, `uint` and `double` cannot hold exactly. It can be copied and compared for equality.
#[derive(Debug, Clone)]
struct Number(Arc<str>);

impl Val for Number {
    fn get_type(&self) -> &Type {
        &NUMBER_TYPE
    }

    fn cel_type() -> &'static Type {
        &NUMBER_TYPE
    }

    fn equals(&self, other: &dyn Val) -> bool {
        other.downcast_ref::<Self>().is_some_and(|other| is_same_number(&self.0, &other.0))
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Number {}

fn value_of<'e>(node: &Node<'e>) -> Box<dyn Val + 'e> {
    match node {
        Node::Null => Box::new(CelNull),
        Node::Bool(value) => Box::new(CelBool::from(*value)),
        Node::Number(text) => number(text),
        Node::Text(text) => Box::new(CelString::from(text.clone())),
        Node::List(items) => Box::new(CelList::from(items.iter().map(value_of).collect::<Vec<_>>())),
        Node::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| (CelMapKey::String(CelString::from(name.clone())), value_of(value)));
            Box::new(CelMap::from(fields.collect::<HashMap<_, _>>()))
        }
    }
}

fn number<'e>(text: &str) -> Box<dyn Val + 'e> {
    if let Ok(int) = text.parse::<i64>() {
        return Box::new(CelInt::from(int));
    }
    if let Ok(uint) = text.parse::<u64>() {
        return Box::new(CelUInt::from(uint));
    }
    let decimal = Decimal::of(text);
    match text.parse::<f64>() {
        // From 2^53 on a double may be another integer than its shortest form, which is how it is written.
        Ok(double) if whole(double).is_some() => match decimal.as_integer() {
            Some(integer) if integer != text => number(&integer),
            _ => Box::new(Number(text.into())),
        },
        // Only numbers that a double holds exactly: comparing a rounded number could give a wrong answer. The
        // shortest form of the double must be the number as it is written.
        Ok(double) if double.is_finite() && Decimal::of(&json_of(&double)) == decimal => {
            Box::new(CelDouble::from(double))
        }
        _ => Box::new(Number(text.into())),
    }
}

/// A double of 2^53 and more as the integer that it is, if it is in the range of one. An integer that is
/// compared with a double is rounded to one, which changes nothing below: so these two are compared exactly.
/// 2^64, to which the largest integers are rounded, is a number that only itself equals.
pub(super) fn whole<'e>(double: f64) -> Option<Box<dyn Val + 'e>> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if double == LIMIT * 2.0 {
        Some(Box::new(Number("18446744073709551616".into())))
    } else if double.abs() < EXACT || !(-LIMIT..LIMIT * 2.0).contains(&double) {
        None
    } else if double < LIMIT {
        Some(Box::new(CelInt::from(double as i64)))
    } else {
        Some(Box::new(CelUInt::from(double as u64)))
    }
}

/// Work to walk or copy a value, in units.
pub(super) fn weight(value: &dyn Val) -> i64 {
    let of_bytes = |length: usize| i64::try_from(length / 64).unwrap_or(MOST_WORK);
    if let Some(text) = value.downcast_ref::<CelString>() {
        1 + of_bytes(text.inner().len())
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        1 + list.inner().iter().map(|item| weight(item.as_ref())).sum::<i64>()
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        let name = |key: &CelMapKey| {
            if let CelMapKey::String(text) = key { of_bytes(text.inner().len()) } else { 0 }
        };
        1 + map.inner().iter().map(|(key, value)| 1 + name(key) + weight(value.as_ref())).sum::<i64>()
    } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        1 + of_bytes(bytes.inner().len())
    } else if let Some(number) = value.downcast_ref::<Number>() {
        1 + of_bytes(number.0.len())
    } else {
        1
    }
}

/// A value that JSON cannot hold, and its path.
pub(super) struct Unfit {
    path: String,
    why: String,
}

impl Unfit {
    fn new(why: impl Into<String>) -> Self {
        Self { path: String::new(), why: why.into() }
    }

    fn within(self, step: &str) -> Self {
        Self { path: format!("{step}{}", self.path), why: self.why }
    }

    /// The message, with `name` before the path.
    pub(super) fn of(self, name: &str) -> String {
        format!("{name}{} {}", self.path, self.why)
    }
}

/// Writes a value as JSON: fields sorted by name, doubles in their shortest form, copied numbers as they were
/// written, timestamps in RFC 3339.
///
/// # Errors
/// When JSON cannot hold a part of the value.
pub(super) fn write(value: &dyn Val, out: &mut String) -> Result<(), Unfit> {
    if value.downcast_ref::<CelNull>().is_some() {
        out.push_str("null");
    } else if let Some(value) = value.downcast_ref::<CelBool>() {
        out.push_str(if *value.inner() { "true" } else { "false" });
    } else if let Some(value) = value.downcast_ref::<CelInt>() {
        out.push_str(&value.inner().to_string());
    } else if let Some(value) = value.downcast_ref::<CelUInt>() {
        out.push_str(&value.inner().to_string());
    } else if let Some(value) = value.downcast_ref::<CelDouble>() {
        if !value.inner().is_finite() {
            return Err(Unfit::new("is infinite or not a number, which JSON cannot hold"));
        }
        out.push_str(&json_of(value.inner()));
    } else if let Some(value) = value.downcast_ref::<CelString>() {
        out.push_str(&json_of(value.inner()));
    } else if let Some(value) = value.downcast_ref::<Number>() {
        out.push_str(&value.0);
    } else if let Some(value) = value.downcast_ref::<CelTimestamp>() {
        out.push_str(&json_of(&value.inner().to_utc().to_rfc3339_opts(SecondsFormat::AutoSi, true)));
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        out.push('[');
        for (index, item) in list.inner().iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            write(item.as_ref(), out).map_err(|unfit| unfit.within(&format!("[{index}]")))?;
        }
        out.push(']');
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        write_map(map, out)?;
    } else {
        let kind = value.get_type().name();
        return Err(Unfit::new(format!(
            "is of type {kind}, which JSON cannot hold; string(…) converts most types"
        )));
    }
    Ok(())
}

fn write_map(map: &CelMap<'_>, out: &mut String) -> Result<(), Unfit> {
    let mut fields = Vec::with_capacity(map.inner().len());
    for (key, value) in map.inner() {
        let CelMapKey::String(name) = key else {
            return Err(Unfit::new("has a key that is not a string"));
        };
        fields.push((name.inner(), value));
    }
    fields.sort_unstable_by_key(|(name, _)| *name);
    out.push('{');
    for (index, (name, value)) in fields.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&json_of(name));
        out.push(':');
        write(value.as_ref(), out).map_err(|unfit| unfit.within(&format!(".{name}")))?;
    }
    out.push('}');
    Ok(())
}

fn json_of<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("a string or a finite number is JSON")
}
