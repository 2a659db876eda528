//! A subscription's config, and the message for an event: subject, headers, body. Pure.

use std::{borrow::Cow, fmt::Write as _, str::FromStr};

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    delivery::{Outcome, Reason},
    event::Event,
    sink::{
        Outgoing, Report,
        body::{self, Body},
        headers_about, parse_config,
        template::Template,
    },
};

/// Header with the id by which a stream detects duplicates.
const ID: &str = "Nats-Msg-Id";
/// Header with the stream that must own the subject; otherwise the server refuses the message.
const EXPECTED_STREAM: &str = "Nats-Expected-Stream";

/// A subscription's config.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Subject of the message.
    subject: Template,
    /// Stream that must own the subject.
    stream: Option<String>,
    /// Id of the message. Without it, an id of the event and of the occasion: a stream knows the repeats of
    /// an attempt by it, and stores what somebody wants again.
    message_id: Option<Template>,
    /// Form of the body.
    #[serde(default = "raw")]
    body: Body,
    /// Name of the breaker: the stream, or else the subject as written in the config.
    #[serde(skip)]
    pub(super) place: String,
}

fn id() -> Template {
    Template::parse("{id}").expect("it is a template")
}

fn raw() -> Body {
    Body::Raw
}

/// A message to be published.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Target {
    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        let mut target: Self = parse_config(config)?;
        let written = config["subject"].as_str().unwrap_or_default();
        if written.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>'))
            || written.starts_with('.')
            || written.ends_with('.')
            || written.contains("..")
        {
            return Err(
                "config.subject: must be segments separated by dots, without spaces, \"*\" and \">\""
                    .to_owned(),
            );
        }
        if written.starts_with('$') {
            return Err("config.subject: subjects that begin with \"$\" are reserved".to_owned());
        }
        if target.stream.as_ref().is_some_and(|stream| {
            stream.is_empty() || stream.contains(|c: char| c.is_whitespace() || ".*>".contains(c))
        }) {
            return Err("config.stream: must be the name of a stream".to_owned());
        }
        target.place = target.stream.clone().unwrap_or_else(|| written.to_owned());
        Ok(target)
    }

    /// The subject, if it does not depend on the event.
    pub(super) fn fixed_subject(&self) -> Option<&str> {
        self.subject.fixed()
    }

    /// The stream that must own the subject.
    pub(super) fn stream(&self) -> Option<&str> {
        self.stream.as_deref()
    }

    pub(super) fn message(&self, delivery: &Outgoing) -> Result<Message, Report> {
        let subject = self.subject.render_field("subject", delivery, clean)?;
        if !is_subject(&subject) || subject.starts_with('$') {
            return Err(Report::from(Outcome::Rejected { reason: Reason::TemplateFailed })
                .with_answer("the subject has an empty segment or begins with \"$\""));
        }
        let id = self.id(delivery)?;
        let mut headers = self.headers(&delivery.event);
        for (name, value) in headers_about(std::slice::from_ref(delivery)) {
            insert(&mut headers, name, &value);
        }
        insert(&mut headers, ID, &encoded(&id, false));
        if let Some(stream) = &self.stream {
            insert(&mut headers, EXPECTED_STREAM, stream);
        }
        Ok(Message { subject, headers, body: self.body.of(&delivery.event).into() })
    }

    fn id(&self, delivery: &Outgoing) -> Result<String, Report> {
        let is_chosen = delivery.fields.as_ref().is_some_and(|fields| fields.contains_key("message_id"));
        match (&self.message_id, delivery.occasion) {
            (None, Some(occasion)) if !is_chosen => Ok(format!("{}/{occasion}", delivery.event.id)),
            (template, _) => {
                let template = template.clone().unwrap_or_else(id);
                template.render_field("message_id", delivery, |value| Cow::Borrowed(value))
            }
        }
    }

    fn headers(&self, event: &Event) -> HeaderMap {
        let mut headers = HeaderMap::new();
        // The server acts on its own headers: one of them could delete messages of a stream.
        for (name, value) in body::headers_beside(event, &["nats-", "pgoutbox-", "ce-", "content-type"]) {
            insert(&mut headers, &name, &encoded(&value, false));
        }
        match self.body {
            Body::CloudEventsBinary => {
                for (name, value) in body::cloudevents_attributes(event) {
                    insert(&mut headers, &format!("ce-{name}"), &encoded(&value, true));
                }
                // In this binding a `content-type` would mark the event as structured.
                insert(&mut headers, "ce-datacontenttype", self.body.content_type());
            }
            Body::Raw | Body::Standard | Body::CloudEvents => {
                for (name, value) in body::attributes(event) {
                    insert(&mut headers, &format!("pgoutbox-{name}"), &encoded(&value, false));
                }
                insert(&mut headers, "content-type", self.body.content_type());
            }
        }
        headers
    }
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_str(name), HeaderValue::from_str(value)) {
        headers.insert(name, value);
    }
}

/// Whether a text is a subject that can be published to: non-empty segments separated by dots.
pub(super) fn is_subject(text: &str) -> bool {
    !text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>'))
        && text.split('.').all(|segment| !segment.is_empty())
}

/// Escapes a value of the event for a subject. Dots stay, so a topic keeps its segments. Wildcards, spaces,
/// empty segments and `$` are replaced.
fn clean(value: &str) -> Cow<'_, str> {
    if is_subject(value) && !value.contains('$') {
        return Cow::Borrowed(value);
    }
    let segments = value.split('.').map(|segment| match segment {
        "" => "_".to_owned(),
        some => {
            some.replace(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>' | '$'), "_")
        }
    });
    Cow::Owned(segments.collect::<Vec<_>>().join("."))
}

/// Percent-encodes everything but printable ASCII, and `%`. With `all` also spaces and quotes, as CloudEvents
/// requires.
fn encoded(value: &str, all: bool) -> Cow<'_, str> {
    let plain = |byte: u8| {
        matches!(byte, 0x21..=0x7e) && byte != b'%' && !(all && byte == b'"') || (byte == b' ' && !all)
    };
    if value.bytes().all(plain) {
        return Cow::Borrowed(value);
    }
    let mut text = String::with_capacity(value.len() + 16);
    for byte in value.bytes() {
        if plain(byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_becomes_only_segments_of_a_subject() {
        for (value, expected) in [
            ("public.orders.create", "public.orders.create"),
            ("a b", "a_b"),
            ("*.>", "_._"),
            ("", "_"),
            ("..", "_._._"),
            ("a..b", "a._.b"),
            ("$JS.API.STREAM.DELETE.X", "_JS.API.STREAM.DELETE.X"),
            ("line\r\nPUB x 0", "line__PUB_x_0"),
        ] {
            assert_eq!(clean(value), expected, "{value:?}");
            assert!(is_subject(&clean(value)));
        }
    }

    #[test]
    fn a_header_holds_one_line_of_ascii() {
        assert_eq!(encoded("order 1 \"x\"", false), "order 1 \"x\"");
        assert_eq!(encoded("order 1 \"x\"", true), "order%201%20%22x%22");
        assert_eq!(encoded("zoë\r\nNats-Rollup: all 100%", false), "zo%C3%AB%0D%0ANats-Rollup: all 100%25");
    }
}
