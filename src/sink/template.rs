//! Templates for names at a destination that depend on the event, such as `orders.{organization}`. Pure.

use std::{borrow::Cow, fmt::Write as _};

use serde::{Deserialize, Deserializer, de::Error as _};

use super::Report;
use crate::{
    delivery::{Outcome, Reason},
    event::Event,
    sink::Outgoing,
};

/// Longest template, in bytes.
const LONGEST: usize = 1024;

/// A text with fields of the event in braces: `{topic}`, `{key}`, `{organization}`, `{source}`, `{user_id}`,
/// `{id}`, `{schema_version}`. `{organization:public}` is `public` if the event has no organization. `{{` and
/// `}}` are braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { field: Field, default: Option<String> },
}

/// A field of the event that a template may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Topic,
    Key,
    Organization,
    Source,
    UserId,
    Id,
    SchemaVersion,
}

const FIELDS: &[(&str, Field)] = &[
    ("topic", Field::Topic),
    ("key", Field::Key),
    ("organization", Field::Organization),
    ("source", Field::Source),
    ("user_id", Field::UserId),
    ("id", Field::Id),
    ("schema_version", Field::SchemaVersion),
];

impl Field {
    fn of(self, event: &Event) -> Option<Cow<'_, str>> {
        match self {
            Self::Topic => Some(Cow::Borrowed(&event.topic)),
            Self::Key => event.key.as_deref().map(Cow::Borrowed),
            Self::Organization => event.organization.as_deref().map(Cow::Borrowed),
            Self::Source => event.source.as_deref().map(Cow::Borrowed),
            Self::UserId => event.user_id.as_deref().map(Cow::Borrowed),
            Self::Id => Some(Cow::Owned(event.id.to_string())),
            Self::SchemaVersion => event.schema_version.map(|version| Cow::Owned(version.to_string())),
        }
    }

    fn name(self) -> &'static str {
        FIELDS.iter().find(|(_, field)| *field == self).map_or("", |(name, _)| name)
    }
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// A message that quotes the mistake.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > LONGEST {
            return Err(format!("a template must have 1 to {LONGEST} bytes"));
        }
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            plain.push_str(before);
            if brace.starts_with("{{") || brace.starts_with("}}") {
                plain.push_str(&brace[..1]);
                rest = &brace[2..];
                continue;
            }
            let inside = brace
                .strip_prefix('{')
                .ok_or_else(|| format!("{text:?} has a lone \"}}\"; write \"}}}}\" for the character"))?;
            let (name, after) =
                inside.split_once('}').ok_or_else(|| format!("{text:?} has a \"{{\" that is not closed"))?;
            let (name, default) =
                name.split_once(':').map_or((name, None), |(name, default)| (name, Some(default.to_owned())));
            let field = FIELDS.iter().find(|(known, _)| *known == name).map(|(_, field)| *field).ok_or_else(
                || {
                    let known: Vec<_> = FIELDS.iter().map(|(known, _)| *known).collect();
                    format!("{{{name}}} is not a field of an event; there are {}", known.join(", "))
                },
            )?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Field { field, default });
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { parts })
    }

    /// The text, if it does not depend on the event.
    #[must_use]
    pub fn fixed(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The text for one field of the sink: the value that the subscription's transform sets, or else the
    /// rendered template.
    ///
    /// # Errors
    /// A report that rejects the delivery: the transform set a value that is not a text, or as
    /// [`Template::render`].
    pub fn render_field(
        &self,
        field: &str,
        delivery: &Outgoing,
        clean: impl Fn(&str) -> Cow<'_, str>,
    ) -> Result<String, Report> {
        match delivery.fields.as_ref().and_then(|fields| fields.get(field)) {
            None => self.render(delivery, clean),
            Some(serde_json::Value::String(text)) if !text.is_empty() => Ok(text.clone()),
            Some(_) => {
                let problem = format!("the transform's sink.{field} must be a text that is not empty");
                Err(Report::from(Outcome::Rejected { reason: Reason::TransformFailed }).with_answer(problem))
            }
        }
    }

    /// The text for one delivery. `clean` escapes each value of the event, for example dots in a segment of a
    /// subject.
    ///
    /// # Errors
    /// A report that rejects the delivery: the event lacks a field for which the template has no default.
    pub fn render(
        &self,
        delivery: &Outgoing,
        clean: impl Fn(&str) -> Cow<'_, str>,
    ) -> Result<String, Report> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Field { field, default } => match (field.of(&delivery.event), default) {
                    (Some(value), _) => text.push_str(&clean(&value)),
                    (None, Some(default)) => text.push_str(default),
                    (None, None) => {
                        let mut problem = String::new();
                        // Writing to a String cannot fail.
                        let _ = write!(
                            problem,
                            "the event has no {0}; write {{{0}:…}} to set a default",
                            field.name()
                        );
                        return Err(Report::from(Outcome::Rejected { reason: Reason::TemplateFailed })
                            .with_answer(problem));
                    }
                },
            }
        }
        Ok(text)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_template_is_refused_and_the_fields_are_listed() {
        assert_eq!(Template::parse("orders").unwrap().fixed(), Some("orders"));
        assert_eq!(Template::parse("a{{b}}").unwrap().fixed(), Some("a{b}"));
        assert_eq!(Template::parse("{topic}.{key:none}").unwrap().parts.len(), 3);
        for (text, expected) in [
            ("", "1 to 1024 bytes"),
            ("a}b", "lone"),
            ("{topic", "not closed"),
            ("{tenant}", "there are topic, key, organization, source, user_id, id, schema_version"),
        ] {
            let problem = Template::parse(text).unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }
}
