//! A subscription's config, and the message that an event becomes: exchange, routing key, properties, body. Pure.

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
        parse_config,
        template::Template,
    },
};

/// The protocol's limit of names, in bytes.
const LONGEST_NAME: usize = 255;
/// How headers begin that a publisher may not set: ours,
const OURS: &[&str] = &["pgoutbox-", "cloudEvents_", "content-type"];
/// and those by which the server sends copies elsewhere, or closes the channel.
const OBEYED: &[&str] = &["CC", "BCC"];
/// What the frame of properties has beside headers, in bytes: itself, and what is bounded by the protocol.
const AROUND_HEADERS: usize = 1_024;
/// The protocol's word for messages that outlive the server.
const PERSISTENT: u8 = 2;

/// A subscription's config.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The exchange; without it the default one, which knows every queue by its name.
    pub(super) exchange: Option<Template>,
    #[serde(default = "topic")]
    routing_key: Template,
    /// Whether an event that no queue gets is a failure.
    #[serde(default = "yes")]
    pub(super) mandatory: bool,
    #[serde(default = "raw")]
    body: Body,
    /// The exchange as it is written.
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
    /// Its place in the batch.
    pub(super) at: usize,
    pub(super) id: String,
    pub(super) routing_key: ShortString,
    pub(super) payload: Vec<u8>,
    pub(super) properties: BasicProperties,
    /// Bytes of its properties, at most.
    pub(super) beside: usize,
}

impl Target {
    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        let mut target: Self = parse_config(config)?;
        for (field, template) in
            [("exchange", target.exchange.as_ref()), ("routing_key", Some(&target.routing_key))]
        {
            if template.and_then(Template::fixed).is_some_and(|name| name.len() > LONGEST_NAME) {
                return Err(format!("config.{field}: it must have at most {LONGEST_NAME} bytes"));
            }
        }
        target.place = config["exchange"].as_str().unwrap_or_default().to_owned();
        Ok(target)
    }

    /// A message and its exchange.
    pub(super) fn message(&self, delivery: &Outgoing, at: usize) -> Result<(String, Message), Report> {
        let name = |field: &str, template: &Template| {
            let name = template.render_field(field, delivery, |value| Cow::Borrowed(value))?;
            if name.len() > LONGEST_NAME {
                let said = format!("a name has at most {LONGEST_NAME} bytes");
                return Err(Report::from(Outcome::Rejected { reason: Reason::TemplateFailed }).saying(said));
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
            let said = format!("the name of a header has at most {LONGEST_NAME} bytes");
            return Err(Report::from(Outcome::Rejected { reason: Reason::PayloadUnusable }).saying(said));
        }
        let message = Message {
            at,
            id: event.id.to_string(),
            routing_key: name("routing_key", &self.routing_key)?.into(),
            payload: self.body.of(event),
            // A length stands before each name, and a type and a length before each value.
            beside: AROUND_HEADERS
                + headers.iter().map(|(name, value)| name.len() + value.len() + 6).sum::<usize>(),
            properties: properties(self.body, delivery, headers),
        };
        Ok((exchange, message))
    }
}

fn headers(form: Body, delivery: &Outgoing) -> Vec<(String, String)> {
    let event = &delivery.event;
    let (prefix, attributes) = match form {
        // As the binding for AMQP 1.0 names them; there is none for 0-9-1.
        Body::CloudEventsBinary => ("cloudEvents_", body::cloudevents_attributes(event)),
        Body::Standard | Body::Raw | Body::CloudEvents => ("pgoutbox-", body::attributes(event)),
    };
    let ours = attributes.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value));
    let theirs = body::headers_beside(event, OURS).into_iter();
    let theirs = theirs.map(|(name, value)| {
        if OBEYED.contains(&name.as_str()) { (format!("header-{name}"), value) } else { (name, value) }
    });
    ours.chain(theirs).collect()
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
