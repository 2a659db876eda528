//! CEL filters and transforms, and `match`. Only this module uses the CEL crate. Pure.
//!
//! An expression is compiled once, when its subscription is loaded. Its work is limited (see `compile`). A
//! payload is parsed at most once for each event, and only if an expression uses it (see [`Facts`]).

mod clauses;
mod compile;
mod evaluate;
pub(super) mod json;
mod meter;
mod names;
mod transform;
mod tree;
mod value;

use std::fmt;

use cel::common::types::CelBool;

use self::{
    clauses::conjunction,
    compile::{Compiled, Use},
    evaluate::run,
    json::Node,
};
pub(crate) use self::{json::is_same_number, value::Field};
pub use self::{
    transform::{Changes, Transform},
    value::Facts,
};

/// Longest expression, in bytes; `outbox.subscribe` has the same limit.
pub const LONGEST: usize = 8 * 1024;

/// A mistake in an expression, and its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {why}")]
pub struct Invalid {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Description: a sentence without a full stop.
    pub why: String,
}

impl Invalid {
    fn at_start(why: impl Into<String>) -> Self {
        Self { line: 1, column: 1, why: why.into() }
    }
}

/// Result of a filter for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterResult {
    /// The filter is true.
    Match,
    /// The filter is false.
    NoMatch {
        /// Number of the false part of the conjunction, from 0.
        part: usize,
    },
    /// The filter cannot be evaluated, which counts as no match.
    Failed {
        /// Number of the failed part of the conjunction, from 0.
        part: usize,
        /// Error message with names and types, but no data of the event.
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
    /// Parses and checks a filter.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn compile(text: &str) -> Result<Self, Invalid> {
        let compiled = compile::compile(text, Use::Filter)?;
        let labels = conjunction(text);
        // If the text and the parser give different parts, messages show the whole filter.
        let labels = if labels.len() == compiled.parts.len() {
            labels
        } else {
            vec![text.trim().to_owned(); compiled.parts.len()]
        };
        Ok(Self { text: text.to_owned(), compiled, labels })
    }

    /// Source text of the filter.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Source text of a part of the conjunction.
    #[must_use]
    pub fn part(&self, part: usize) -> &str {
        self.labels.get(part).map_or("", String::as_str)
    }

    /// Whether the filter uses the payload.
    #[must_use]
    pub fn needs_payload(&self) -> bool {
        self.compiled.needs_payload
    }

    /// A field of the payload and the scalar it must have for a match, in the form of [`Facts::field`].
    /// Another value means no match. If the field is missing, the filter fails, unless another part is false.
    pub(crate) fn lookup(&self) -> Option<(String, String)> {
        self.compiled.parts.iter().find_map(tree::equality)
    }

    /// Evaluates the filter. As in CEL, a false part has priority over a part that cannot be evaluated.
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

/// A condition by containment: `payload @> match` in SQL.
#[derive(Debug)]
pub struct Containment {
    wanted: Node<'static>,
}

impl Containment {
    /// Parses the JSON that payloads must contain.
    ///
    /// # Errors
    /// Invalid JSON.
    pub fn parse(text: &str) -> Result<Self, String> {
        Node::parse(text).map(|node| Self { wanted: node.into_owned() }).map_err(ToOwned::to_owned)
    }

    /// A field of the payload and the scalar it must have for a match, in the form of [`Facts::field`].
    pub(crate) fn lookup(&self) -> Option<(String, String)> {
        let Node::Object(fields) = &self.wanted else { return None };
        // If a name occurs twice, the last one counts.
        fields
            .iter()
            .find_map(|(name, _)| Some((name.clone().into_owned(), self.wanted.get(name)?.as_scalar()?)))
    }

    /// Whether the payload contains the JSON.
    ///
    /// # Errors
    /// The payload cannot be parsed.
    pub fn holds(&self, facts: &Facts<'_>) -> Result<bool, String> {
        facts
            .payload()
            .map(|payload| payload.contains(&self.wanted))
            .map_err(|why| format!("the payload cannot be read: {why}"))
    }
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests;
