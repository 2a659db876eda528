//! Transforms: evaluates them and checks that their values can be an event's payload, headers and key. Pure.

use cel::common::{
    types::{CelMap, CelMapKey, CelNull, CelString},
    value::Val,
};

use super::{
    Facts, Invalid,
    compile::{self, Compiled, Use},
    evaluate::run,
    names::FIELDS,
    short,
    value::write,
};

/// Longest key, in characters; the event log has the same limit.
const LONGEST_KEY: usize = 512;
/// Largest value of a transform, in bytes.
const LARGEST_RESULT: usize = 1024 * 1024;
/// Largest headers, in bytes; the event log has the same limit.
const LARGEST_HEADERS: usize = 16 * 1024;

/// Result of a transform. A field that is none leaves the event unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Payload as JSON.
    pub payload: Option<String>,
    /// Headers as a JSON object of strings.
    pub headers: Option<String>,
    /// Key. The inner option is none to remove the key.
    pub key: Option<Option<String>>,
    /// Fields for templates of the sink.
    pub sink: Option<serde_json::Map<String, serde_json::Value>>,
}

/// An expression whose value replaces the payload of an event, and other fields with `event({…})`.
#[derive(Debug)]
pub struct Transform {
    text: String,
    compiled: Compiled,
}

impl Transform {
    /// Parses and checks a transform.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn compile(text: &str) -> Result<Self, Invalid> {
        Ok(Self { text: text.to_owned(), compiled: compile::compile(text, Use::Transform)? })
    }

    /// Source text of the expression.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is `event({…})`, which can change more than the payload.
    #[must_use]
    pub fn gives_fields(&self) -> bool {
        self.compiled.gives_fields
    }

    /// Evaluates the transform for an event.
    ///
    /// # Errors
    /// The failure and its path in the value. The message has names and types, but no data of the event.
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
                    .map_err(|_| "sink must be a map whose numbers fit into a double".to_owned())?;
                changes.sink = Some(fields);
            }
            // The name may come from the payload, so it is not shown.
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

/// Checks headers as `outbox_internal.headers_are_valid` does, because sinks send them as headers.
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
            // The name may come from the payload, so it is shown only if it is in the expression.
            let name = if expression.contains(name) {
                format!("the invalid name {:?}", short(name))
            } else {
                "an invalid name".to_owned()
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
