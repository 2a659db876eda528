//! A subscription's config, and the message for an event: exchange, routing key, properties, body. Pure.

use std::borrow::Cow;

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    delivery::{Outcome, Reason},
    sink::{
        Outgoing, Report,
        body::{self, Body},
        headers_about, parse_config,
        template::Template,
    },
};

/// Longest name in the protocol, in bytes.
const LONGEST_NAME: usize = 255;
/// Prefixes of our own headers; a publisher's header with one of them is renamed.
const OURS: &[&str] = &["pgoutbox-", "cloudEvents_", "content-type"];
/// Headers that the server acts on: it sends copies elsewhere, or closes the channel. They are renamed too.
const SENDER_SELECTED: &[&str] = &["CC", "BCC"];
/// Upper bound of the properties frame without headers, in bytes.
const AROUND_HEADERS: usize = 1_024;
/// Delivery mode of messages that survive a restart of the server.
const PERSISTENT: u8 = 2;

/// A subscription's config.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Exchange; none means the default one, which routes to the queue named by the routing key.
    pub(super) exchange: Option<Template>,
    #[serde(default = "topic")]
    routing_key: Template,
    /// Whether a message that is routed to no queue is a failure.
    #[serde(default = "yes")]
    pub(super) mandatory: bool,
    #[serde(default = "raw")]
    body: Body,
    /// The exchange as written in the config; names the breaker.
    #[serde(skip)]
    pub(super) place: String,
}

fn topic() -> Template {
    Template::parse("{topic}").expect("it is a template")
}

fn yes() -> bool {
    true
}

fn raw() -> Body {
    Body::Raw
}

/// A message that can be published.
pub(super) struct Message {
    /// Index in the batch.
    pub(super) at: usize,
    pub(super) id: String,
    pub(super) routing_key: ShortString,
    pub(super) payload: Vec<u8>,
    pub(super) properties: BasicProperties,
    /// Upper bound of its properties, in bytes.
    pub(super) properties_bytes: usize,
}

impl Target {
    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        let mut target: Self = parse_config(config)?;
        for (field, template) in
            [("exchange", target.exchange.as_ref()), ("routing_key", Some(&target.routing_key))]
        {
            if template.and_then(Template::fixed).is_some_and(|name| name.len() > LONGEST_NAME) {
                return Err(format!("config.{field}: must have at most {LONGEST_NAME} bytes"));
            }
        }
        target.place = config["exchange"].as_str().unwrap_or_default().to_owned();
        Ok(target)
    }

    /// The message for a delivery, and its exchange.
    pub(super) fn message(&self, delivery: &Outgoing, at: usize) -> Result<(String, Message), Report> {
        let name = |field: &str, template: &Template| {
            let name = template.render_field(field, delivery, |value| Cow::Borrowed(value))?;
            if name.len() > LONGEST_NAME {
                let problem = format!("the name of the {field} is longer than {LONGEST_NAME} bytes");
                return Err(
                    Report::from(Outcome::Rejected { reason: Reason::TemplateFailed }).with_answer(problem)
                );
            }
            Ok(name)
        };
        let exchange = self
            .exchange
            .as_ref()
            .map(|exchange| name("exchange", exchange))
            .transpose()?
            .unwrap_or_default();
        let event = &delivery.event;
        let headers = headers(self.body, delivery);
        if headers.iter().any(|(name, _)| name.len() > LONGEST_NAME) {
            let problem = format!("the name of a header is longer than {LONGEST_NAME} bytes");
            return Err(
                Report::from(Outcome::Rejected { reason: Reason::PayloadUnusable }).with_answer(problem)
            );
        }
        let message = Message {
            at,
            id: event.id.to_string(),
            routing_key: name("routing_key", &self.routing_key)?.into(),
            payload: self.body.of(event),
            // Each name has a length before it, each value a type and a length.
            properties_bytes: AROUND_HEADERS
                + headers.iter().map(|(name, value)| name.len() + value.len() + 6).sum::<usize>(),
            properties: properties(self.body, delivery, headers),
        };
        Ok((exchange, message))
    }
}

fn headers(form: Body, delivery: &Outgoing) -> Vec<(String, String)> {
    let event = &delivery.event;
    let (prefix, attributes) = match form {
        // Names of the binding for AMQP 1.0: there is none for 0-9-1.
        Body::CloudEventsBinary => ("cloudEvents_", body::cloudevents_attributes(event)),
        Body::Standard | Body::Raw | Body::CloudEvents => ("pgoutbox-", body::attributes(event)),
    };
    let ours = attributes.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value));
    let theirs = body::headers_beside(event, OURS).into_iter();
    let theirs = theirs.map(|(name, value)| {
        if SENDER_SELECTED.contains(&name.as_str()) {
            (format!("header-{name}"), value)
        } else {
            (name, value)
        }
    });
    let about = headers_about(std::slice::from_ref(delivery)).into_iter();
    let about = about.map(|(name, value)| (name.to_owned(), value));
    ours.chain(about).chain(theirs).collect()
}

fn properties(form: Body, delivery: &Outgoing, headers: Vec<(String, String)>) -> BasicProperties {
    let event = &delivery.event;
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(event.id.to_string().into())
        .with_timestamp(u64::try_from(event.created_at.timestamp()).unwrap_or_default())
        .with_content_type(form.content_type().into())
        .with_headers(table);
    if event.topic.len() <= LONGEST_NAME {
        properties.with_type(event.topic.as_str().into())
    } else {
        properties
    }
}
