//! Builds bodies and attributes of an event for a destination. The payload is copied, never parsed. Pure.

use std::fmt::Write as _;

use chrono::SecondsFormat;
use serde::Deserialize;

use crate::event::Event;

/// `source` of a CloudEvent whose event has none: the specification requires one.
pub const UNKNOWN_SOURCE: &str = "/pgoutbox";

/// The form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Body {
    /// `{"type", "timestamp", "data"}`, as in Standard Webhooks.
    Standard,
    /// The payload alone.
    Raw,
    /// A CloudEvent in structured mode: one JSON object.
    #[serde(rename = "cloudevents")]
    CloudEvents,
    /// A CloudEvent in binary mode: the payload is the body, attributes are headers.
    #[serde(rename = "cloudevents-binary")]
    CloudEventsBinary,
}

impl Body {
    /// All forms, as they are written in a config.
    pub const NAMES: &'static [&'static str] = &["standard", "cloudevents", "cloudevents-binary", "raw"];

    /// The body of an event.
    #[must_use]
    pub fn of(self, event: &Event) -> Vec<u8> {
        let mut body = String::with_capacity(event.payload.len() + event.topic.len() + 320);
        match self {
            Self::Raw | Self::CloudEventsBinary => body.push_str(&event.payload),
            Self::Standard => {
                body.push_str("{\"type\":");
                push_json(&mut body, &event.topic);
                let _ = write!(body, ",\"timestamp\":\"{}\",\"data\":{}}}", timestamp(event), event.payload);
            }
            Self::CloudEvents => {
                body.push('{');
                for (name, value) in cloudevents_attributes(event) {
                    let _ = write!(body, "\"{name}\":");
                    push_json(&mut body, &value);
                    body.push(',');
                }
                let _ = write!(body, "\"datacontenttype\":\"application/json\",\"data\":{}}}", event.payload);
            }
        }
        body.into_bytes()
    }

    /// Media type of the body.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::CloudEvents => "application/cloudevents+json; charset=utf-8",
            Self::Standard | Self::Raw | Self::CloudEventsBinary => "application/json",
        }
    }
}

/// The whole event as one JSON object, for files and inboxes.
#[must_use]
pub fn whole(event: &Event) -> String {
    let mut body = String::with_capacity(event.payload.len() + event.topic.len() + event.headers.len() + 240);
    let _ = write!(body, "{{\"id\":\"{}\",\"topic\":", event.id);
    push_json(&mut body, &event.topic);
    for (name, value) in [
        ("key", &event.key),
        ("organization", &event.organization),
        ("source", &event.source),
        ("user_id", &event.user_id),
    ] {
        let _ = write!(body, ",\"{name}\":");
        match value {
            Some(value) => push_json(&mut body, value),
            None => body.push_str("null"),
        }
    }
    match event.schema_version {
        Some(version) => drop(write!(body, ",\"schema_version\":{version}")),
        None => body.push_str(",\"schema_version\":null"),
    }
    let _ = write!(
        body,
        ",\"created_at\":\"{}\",\"position\":{},\"headers\":{},\"payload\":{}}}",
        timestamp(event),
        event.position,
        event.headers,
        event.payload
    );
    body
}

/// The attributes of the event as a CloudEvent, without `datacontenttype`. `partitionkey`, `organization`,
/// `userid`, `schemaversion`, `traceparent` and `tracestate` are extensions.
#[must_use]
pub fn cloudevents_attributes(event: &Event) -> Vec<(&'static str, String)> {
    let mut attributes = vec![
        ("specversion", "1.0".to_owned()),
        ("id", event.id.to_string()),
        (
            "source",
            event
                .source
                .as_deref()
                .filter(|source| !source.is_empty())
                .map_or_else(|| UNKNOWN_SOURCE.to_owned(), uri_reference),
        ),
        ("type", event.topic.clone()),
        ("time", timestamp(event)),
    ];
    let optional = [
        ("partitionkey", event.key.clone()),
        ("organization", event.organization.clone()),
        ("userid", event.user_id.clone()),
        ("schemaversion", event.schema_version.map(|version| version.to_string())),
    ];
    attributes.extend(
        optional
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?))),
    );
    for (name, value) in headers(event) {
        match name.as_str() {
            "traceparent" => attributes.push(("traceparent", value)),
            "tracestate" => attributes.push(("tracestate", value)),
            _ => {}
        }
    }
    attributes
}

/// Fields of an event besides its payload, for the headers of a broker's message: `id`, `topic`, `created-at`
/// and, if set, `key`, `organization`, `source`, `user-id`, `schema-version`.
#[must_use]
pub fn attributes(event: &Event) -> Vec<(&'static str, String)> {
    let mut attributes =
        vec![("id", event.id.to_string()), ("topic", event.topic.clone()), ("created-at", timestamp(event))];
    let optional = [
        ("key", event.key.clone()),
        ("organization", event.organization.clone()),
        ("source", event.source.clone()),
        ("user-id", event.user_id.clone()),
        ("schema-version", event.schema_version.map(|version| version.to_string())),
    ];
    attributes.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    attributes
}

/// Headers that the publisher set.
#[must_use]
pub fn headers(event: &Event) -> Vec<(String, String)> {
    if event.headers.len() <= 2 {
        return Vec::new(); // fast path for `{}`
    }
    let headers: std::collections::BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&event.headers).unwrap_or_default();
    headers.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect()
}

/// Headers that the publisher set, beside our own: one whose name begins with one of `ours`, in any case, is
/// renamed to `header-…`.
#[must_use]
pub fn headers_beside(event: &Event, ours: &[&str]) -> Vec<(String, String)> {
    let is_ours = |name: &str| {
        let begins = |prefix: &&str| {
            name.get(..prefix.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(prefix))
        };
        ours.iter().any(begins)
    };
    let renamed = |(name, value): (String, String)| {
        if is_ours(&name) { (format!("header-{name}"), value) } else { (name, value) }
    };
    headers(event).into_iter().map(renamed).collect()
}

/// Time of the insert with microseconds: `2026-01-31T12:00:00.000000Z`.
#[must_use]
pub fn timestamp(event: &Event) -> String {
    event.created_at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn push_json(body: &mut String, text: &str) {
    body.push_str(&serde_json::Value::from(text).to_string());
}

/// Escapes a source, which may be any text, to a valid URI reference.
fn uri_reference(source: &str) -> String {
    let mut uri = String::with_capacity(source.len());
    for byte in source.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
        if plain {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            topic: "shop.\"orders\".create".to_owned(),
            key: Some("o-1".to_owned()),
            payload: "{\"n\": 1e400}".to_owned(),
            headers: "{\"traceparent\": \"00-a\", \"x\": \"y\"}".to_owned(),
            source: Some("my shop".to_owned()),
            schema_version: Some(2),
            ..Event::sample(7)
        }
    }

    #[test]
    fn the_payload_passes_byte_for_byte_in_every_form() {
        for form in [Body::Standard, Body::Raw, Body::CloudEvents, Body::CloudEventsBinary] {
            let body = String::from_utf8(form.of(&event())).unwrap();
            assert!(body.contains("{\"n\": 1e400}"), "{form:?}: {body}");
        }
        assert!(whole(&event()).contains("\"payload\":{\"n\": 1e400}"));
    }

    #[test]
    fn a_header_of_the_publisher_is_never_taken_for_one_of_ours() {
        let headers = r#"{"PGOutbox-Id": "1", "pgoutbox": "2", "ce_id": "3", "Content-Type": "4", "é": "5"}"#;
        let event = Event { headers: headers.to_owned(), ..event() };
        let names: Vec<_> = headers_beside(&event, &["pgoutbox-", "ce_", "content-type"])
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["header-Content-Type", "header-PGOutbox-Id", "header-ce_id", "pgoutbox", "é"]);
    }

    #[test]
    fn a_structured_cloud_event_has_its_required_attributes() {
        let body = String::from_utf8(Body::CloudEvents.of(&event())).unwrap();
        assert_eq!(
            body,
            "{\"specversion\":\"1.0\",\"id\":\"00000000-0000-0000-0000-000000000000\",\
             \"source\":\"my%20shop\",\"type\":\"shop.\\\"orders\\\".create\",\
             \"time\":\"1970-01-01T00:00:00.000000Z\",\
             \"partitionkey\":\"o-1\",\"schemaversion\":\"2\",\"traceparent\":\"00-a\",\
             \"datacontenttype\":\"application/json\",\"data\":{\"n\": 1e400}}"
        );
    }
}
