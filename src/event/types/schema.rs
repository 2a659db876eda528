//! Compiles JSON Schemas without loading anything external, and lists the paths that do not fit, without
//! values. Pure.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jsonschema::{PatternOptions, ValidationError, Validator, error::ValidationErrorKind};
use serde_json::Value;

/// Largest schema, in bytes. `outbox.event_types` has the same limit.
pub const LARGEST: usize = 64 * 1024;
/// Paths listed in an error.
const NAMED: usize = 5;
/// Longest path in an error, in characters. The names in it may come from the payload.
const LONGEST_PLACE: usize = 100;
/// Stack for compiling, in bytes. Compiling is recursive and follows chains of references.
const STACK: usize = 64 * 1024 * 1024;
/// Stack that one part of a schema may take for each level of a payload, in bytes, in a debug build.
const STACK_FOR_ONE: usize = 4 * 1024;
/// Size of a compiled regular expression, in bytes.
const LARGEST_REGEX: usize = 256 * 1024;
/// Regular expressions in one schema.
const MOST_PATTERNS: usize = 100;
/// Stack that the caller's thread is known to have, in bytes.
const SMALL_STACK: usize = 512 * 1024;
/// Largest stack for one check, in bytes.
const LARGEST_STACK: usize = 1024 * 1024 * 1024;

/// A compiled JSON Schema.
#[derive(Debug)]
pub struct Schema {
    /// None if every payload fits.
    validator: Option<Validator>,
    /// Parts of the schema that may be active at once for each level of a payload.
    parts: usize,
}

/// Why a payload does not fit a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The paths that do not fit.
    Mismatch(String),
    /// The payload cannot be parsed: nested too deeply, or a number beyond a double.
    Unreadable(String),
}

impl Schema {
    /// Compiles a schema. A large one takes tens of milliseconds.
    ///
    /// # Errors
    /// What is wrong with it and where.
    pub fn compile(text: &str) -> Result<Self, String> {
        if text.len() > LARGEST {
            return Err(format!("it has {} bytes; at most {LARGEST}", text.len()));
        }
        let schema = read(text)?;
        let patterns = patterns(&schema);
        if patterns > MOST_PATTERNS {
            return Err(format!("it has {patterns} regular expressions; at most {MOST_PATTERNS}"));
        }
        let parts = if refers(&schema) { count(&schema) } else { 0 };
        if schema == Value::Bool(true) || schema.as_object().is_some_and(serde_json::Map::is_empty) {
            return Ok(Self { validator: None, parts });
        }
        let build = || {
            jsonschema::options()
                .offline()
                // This engine is linear in the text for every pattern.
                .with_pattern_options(
                    PatternOptions::regex().size_limit(LARGEST_REGEX).dfa_size_limit(LARGEST_REGEX),
                )
                .build(&schema)
                .map(|validator| Self { validator: Some(validator), parts })
                .map_err(|error| refusal(&error))
        };
        on_a_stack_of(STACK, build).unwrap_or_else(|| Err("it makes the validator panic".to_owned()))
    }

    /// Whether every payload fits, so that none is parsed.
    #[must_use]
    pub fn takes_anything(&self) -> bool {
        self.validator.is_none()
    }

    /// Checks a payload.
    ///
    /// # Errors
    /// Paths and keywords that do not fit; never values of the payload.
    pub fn check(&self, payload: &Payload<'_>) -> Result<(), Unfit> {
        let Some(validator) = &self.validator else { return Ok(()) };
        let value = payload.value().as_ref().map_err(|why| Unfit::Unreadable(why.clone()))?;
        let look = || {
            if validator.is_valid(value) {
                Ok(())
            } else {
                Err(Unfit::Mismatch(places(validator.iter_errors(value))))
            }
        };
        let levels = if self.parts == 0 { 0 } else { payload.depth() + 1 };
        let stack = self.parts.saturating_mul(levels).saturating_mul(STACK_FOR_ONE);
        let looked = if stack <= SMALL_STACK {
            // A panic would be a bug of the crate; it must fail this event only.
            catch_unwind(AssertUnwindSafe(look)).ok()
        } else {
            on_a_stack_of(stack.clamp(STACK, LARGEST_STACK), look)
        };
        looked.unwrap_or_else(|| Err(Unfit::Unreadable("the validator panicked or had no thread".to_owned())))
    }
}

/// A payload that is parsed once, when the first schema checks it.
#[derive(Debug)]
pub struct Payload<'t> {
    text: &'t str,
    value: std::cell::OnceCell<Result<Value, String>>,
}

impl<'t> Payload<'t> {
    /// A payload that is not parsed yet.
    #[must_use]
    pub fn new(text: &'t str) -> Self {
        Self { text, value: std::cell::OnceCell::new() }
    }

    fn value(&self) -> &Result<Value, String> {
        self.value.get_or_init(|| read(self.text))
    }

    fn depth(&self) -> usize {
        fn depth(value: &Value) -> usize {
            match value {
                Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
                Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
                _ => 0,
            }
        }
        self.value().as_ref().map_or(0, depth)
    }
}

/// Parses JSON. The parser's own messages may repeat a value, so they are replaced.
fn read(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| {
        let why = error.to_string();
        if why.starts_with("number out of range") {
            "it has a number beyond 1.8e308".to_owned()
        } else if why.starts_with("recursion limit exceeded") {
            "it is nested more than 127 levels deep".to_owned()
        } else {
            format!("it is not JSON (line {}, column {})", error.line(), error.column())
        }
    })
}

/// Runs `work` on a new thread with this stack; none if it panicked or could not be started.
fn on_a_stack_of<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(bytes).spawn_scoped(scope, work).ok()?.join().ok()
    })
}

/// Whether the schema has references. Without them a check goes no deeper than the schema's text.
fn refers(schema: &Value) -> bool {
    match schema {
        Value::Array(items) => items.iter().any(refers),
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| name.ends_with("Ref") || name == "$ref" || refers(value))
        }
        _ => false,
    }
}

fn count(schema: &Value) -> usize {
    match schema {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// Number of regular expressions in a schema.
fn patterns(schema: &Value) -> usize {
    match schema {
        Value::Array(items) => items.iter().map(patterns).sum(),
        Value::Object(fields) => {
            let here = |name: &str, value: &Value| match (name, value) {
                ("pattern", Value::String(_)) => 1,
                ("patternProperties", Value::Object(fields)) => fields.len(),
                _ => 0,
            };
            fields.iter().map(|(name, value)| here(name, value) + patterns(value)).sum()
        }
        _ => 0,
    }
}

/// The first paths that do not fit, as JSON pointers, each with its keyword.
fn places<'e>(errors: impl Iterator<Item = ValidationError<'e>>) -> String {
    let mut errors = errors.map(|error| {
        let place: String = error.instance_path().as_str().chars().take(LONGEST_PLACE).collect();
        let place = if place.is_empty() { "/".to_owned() } else { place };
        match error.kind() {
            // The name comes from the schema, not from the payload.
            ValidationErrorKind::Required { property } => format!("{place}: required {property}"),
            kind => format!("{place}: {}", kind.keyword()),
        }
    });
    let named: Vec<String> = errors.by_ref().take(NAMED).collect();
    // Counting the rest could take long.
    format!("{}{}", named.join(", "), if errors.next().is_some() { ", and more" } else { "" })
}

/// The message for an invalid schema. It may repeat the schema: the reader wrote it.
fn refusal(error: &ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::Referencing(referencing) => {
            format!(
                "$ref: {referencing}; a schema may only refer to itself; put the definitions under \"$defs\""
            )
        }
        kind => {
            let place = error.instance_path().as_str();
            let error: String = error.to_string().chars().take(300).collect();
            format!("{}: {error} ({})", if place.is_empty() { "/" } else { place }, kind.keyword())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_expressions_have_a_limit_each_and_together() {
        let refusal = |schema: String| Schema::compile(&schema).unwrap_err();
        assert!(refusal(r#"{"pattern": "^\\p{L}{900}$"}"#.to_owned()).contains("pattern"));
        let many: Vec<String> = (0..=MOST_PATTERNS).map(|n| format!("\"^a{n}\": {{}}")).collect();
        assert_eq!(
            refusal(format!("{{\"patternProperties\": {{{}}}}}", many.join(","))),
            "it has 101 regular expressions; at most 100"
        );
    }

    fn unfit(schema: &str, payload: &str) -> String {
        match Schema::compile(schema).unwrap().check(&Payload::new(payload)) {
            Ok(()) => String::new(),
            Err(Unfit::Mismatch(places)) => places,
            Err(Unfit::Unreadable(why)) => format!("unreadable: {why}"),
        }
    }

    #[test]
    fn places_and_keywords_are_named_and_no_value_is_repeated() {
        let schema = r#"{"required": ["id"], "properties": {"id": true, "total": {"minimum": 0},
            "lines": {"items": {"type": "string", "pattern": "^a"}},
            "kind": {"enum": ["a"]}, "mail": {"const": 1}}, "additionalProperties": false}"#;
        let found = unfit(
            schema,
            r#"{"total": -77, "lines": ["a", 88, "canary"], "kind": "canary", "mail": "canary"}"#,
        );
        for place in ["/kind: enum", "/total: minimum", "/lines/1: type", "/lines/2: pattern", "/mail: const"]
        {
            assert!(found.contains(place), "{found}");
        }
        assert!(found.ends_with(", and more"), "{found}");
        for value in ["canary", "77", "88"] {
            assert!(!found.contains(value), "{found}");
        }
        assert_eq!(unfit(schema, "{}"), "/: required \"id\"");
        assert_eq!(unfit(schema, r#"{"id": 1, "canary": 1}"#), "/: additionalProperties");
        assert_eq!(unfit(schema, r#"{"id": 1, "total": 2, "lines": ["abc"]}"#), "");
        let named_by_a_pattern = r#"{"required": ["id"], "properties": {"a": true},
            "patternProperties": {"^i": true}, "additionalProperties": false}"#;
        assert_eq!(unfit(named_by_a_pattern, r#"{"id": 1}"#), "");
        assert_eq!(unfit("false", "1"), "/: falseSchema");
    }

    #[test]
    fn a_payload_that_cannot_be_parsed_is_reported_only_where_a_schema_reads_it() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        assert_eq!(
            unfit("{\"type\": \"object\"}", "{\"n\": 1e400}"),
            "unreadable: it has a number beyond 1.8e308"
        );
        assert_eq!(
            unfit("{\"type\": \"array\"}", &deep),
            "unreadable: it is nested more than 127 levels deep"
        );
        for anything in ["true", "{}"] {
            assert!(Schema::compile(anything).unwrap().takes_anything());
            assert_eq!(unfit(anything, &deep), "");
        }
    }

    #[test]
    fn a_schema_that_cannot_be_used_says_why() {
        for (schema, why) in [
            (r#"{"$ref": "https://example.com/order.json"}"#, "may only refer to itself"),
            (r#"{"$ref": "file:///etc/passwd"}"#, "may only refer to itself"),
            (r#"{"$ref": "other.json"}"#, "may only refer to itself"),
            (r##"{"$ref": "#/$defs/missing"}"##, "may only refer to itself"),
            (r#"{"$schema": "https://example.com/mine"}"#, "may only refer to itself"),
            (r#"{"properties": {"total": {"type": "nmuber"}}}"#, "/properties/total/type: "),
            (r#"{"pattern": "(?=a)"}"#, "/pattern: "),
            ("{", "not JSON (line 1, column 1)"),
        ] {
            let refusal = Schema::compile(schema).unwrap_err();
            assert!(refusal.contains(why), "{schema}: {refusal}");
        }
    }

    /// Runs on a thread with the stack size of a worker.
    #[test]
    fn chains_and_circles_of_references_do_not_exhaust_the_stack() {
        let mut chain: Vec<String> = (0..1_500)
            .map(|n| format!("\"{n}\":{{\"allOf\":[{{\"$ref\":\"#/$defs/{}\"}}]}}", n + 1))
            .collect();
        chain.push("\"1500\":{\"properties\":{\"a\":{\"$ref\":\"#/$defs/0\"}}}".to_owned());
        let chain = format!("{{\"$ref\":\"#/$defs/0\",\"$defs\":{{{}}}}}", chain.join(","));
        let payload = format!("{}1{}", "{\"a\":".repeat(100), "}".repeat(100));
        let small = std::thread::Builder::new().stack_size(2 * 1024 * 1024);
        let checked = small.spawn(move || {
            assert_eq!(unfit(&chain, &payload), "");
            for circle in [
                r##"{"$ref": "#"}"##,
                r##"{"allOf": [{"$ref": "#"}]}"##,
                r##"{"$dynamicAnchor": "n", "not": {"$dynamicRef": "#n"}}"##,
            ] {
                let _ = unfit(circle, &payload);
            }
        });
        checked.unwrap().join().unwrap();
    }
}
