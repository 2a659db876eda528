//! The Kafka sink: a record for each event, delivered at least once by an idempotent producer that waits for all replicas in
//! sync. Records of one key go to one partition, in the order of the log.
//!
//! One producer serves all subscriptions of a connection. It belongs to librdkafka, which has threads of its own, and to a
//! thread that hears its reports: both end when the sink is dropped, which takes half a second at most and gives up what is
//! still queued. An attempt that is cut off earlier (a lost lease, a stop) cannot take its records back: they may still be sent
//! for as long as `timeout`.

mod config;
mod missing;
mod producer;

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::BaseRecord,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::oneshot, time::Instant};

pub use self::config::Config;
use self::{
    missing::Missing,
    producer::{Confirmation, Producer},
};
use crate::{
    delivery::{Outcome, Reason},
    sink::{
        Batch, Configured, Outgoing, Problem, Report, Settings, Sink,
        body::{self, Body},
        only, parse_config,
        template::Template,
    },
};

/// librdkafka looks for messages that are overdue once a second.
const UNTIL_REPORTED: Duration = Duration::from_secs(3);
/// The attempt's deadline lies so far beyond `timeout`.
const SLACK: Duration = Duration::from_secs(5);
/// How long `check` waits for a broker.
const CHECK: Duration = Duration::from_secs(5);

/// Writes records to the topics of one cluster.
pub struct Kafka {
    config: Config,
    connection: String,
    producer: Mutex<Option<Arc<Producer>>>,
    missing: Mutex<Missing>,
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kafka")
            .field("config", &self.config)
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

/// A subscription's config.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The topic.
    topic: Template,
    /// The record's key, in place of the event's.
    key: Option<Template>,
    #[serde(default = "raw")]
    body: Body,
    /// The topic as it is written.
    #[serde(skip)]
    place: String,
}

fn raw() -> Body {
    Body::Raw
}

impl Configured for Kafka {
    type Config = Config;

    fn read(settings: &mut Settings<'_>) -> Option<Config> {
        Config::read(settings)
    }

    fn open(config: Config, connection: &str) -> Result<Self, Problem> {
        config.usable()?;
        Ok(Self {
            config,
            connection: connection.to_owned(),
            producer: Mutex::default(),
            missing: Mutex::default(),
        })
    }
}

impl Sink for Kafka {
    const KIND: &'static str = "kafka";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        let mut target: Target = parse_config(config)?;
        target.place = config["topic"].as_str().unwrap_or_default().to_owned();
        match target.topic.fixed() {
            Some(topic) if !is_topic(topic) => Err(format!(
                "config.topic: {topic:?} is no name of a topic; it has 1 to 249 letters, digits and . _ -"
            )
            .into()),
            _ => Ok(target),
        }
    }

    /// Not the cluster as a whole: rights are given by topic, and one that is refused must not hold up the others.
    fn destination(&self, target: &Target) -> Option<String> {
        Some(format!("kafka:{}/{}", self.connection, target.place))
    }

    fn deadline(&self, _: &Target) -> Duration {
        self.config.timeout + SLACK
    }

    fn batch(&self, _: &Target) -> Option<Batch> {
        Some(Batch::BROKER)
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Outgoing]) -> Vec<Report> {
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(problem) => {
                let report =
                    Report::from(Outcome::Retry { reason: Reason::Refused, after: None }).saying(problem);
                return vec![report; deliveries.len()];
            }
        };
        let until = Instant::now() + self.config.timeout + UNTIL_REPORTED;
        // All are queued before the first is waited for.
        let mut queued = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            queued.push(self.queue(&producer, target, delivery));
        }
        let mut confirmations = Vec::with_capacity(deliveries.len());
        for one in queued {
            confirmations.push(match one {
                Ok((topic, waiting)) => Ok((topic, confirmed(waiting, until).await)),
                Err(report) => Err(report),
            });
        }
        // A broker refuses a whole set of records where one is too large, or has no key in a topic that is compacted.
        if deliveries.len() > 1 {
            for (delivery, one) in deliveries.iter().zip(&mut confirmations) {
                if matches!(one, Ok((_, confirmation)) if confirmation.blames_a_set()) {
                    *one = match self.queue(&producer, target, delivery) {
                        Ok((topic, waiting)) => Ok((topic, confirmed(waiting, until).await)),
                        Err(report) => Err(report),
                    };
                }
            }
        }
        let reports = confirmations.into_iter().map(|one| match one {
            Ok((topic, confirmation)) => self.report(&producer, &topic, &confirmation),
            Err(report) => report,
        });
        let reports = reports.collect();
        self.replace(&producer);
        reports
    }

    async fn check(&self, target: &Target) -> Result<(), Problem> {
        let config = self.config.for_looking();
        let topic = target.topic.fixed().map(str::to_owned);
        let limit = CHECK.min(self.config.timeout);
        // Ends by itself at its limit, also when nobody waits any more.
        let looked =
            tokio::task::spawn_blocking(move || producer::look(&config, topic.as_deref(), limit)).await;
        Ok(looked.unwrap_or_else(|_| Err("librdkafka panicked".to_owned()))?)
    }
}

impl Kafka {
    /// The producer, made at the first send.
    fn producer(&self) -> Result<Arc<Producer>, String> {
        let mut kept = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(producer) = &*kept {
            return Ok(producer.clone());
        }
        let made = Arc::new(Producer::new(&self.config.for_sending())?);
        *kept = Some(made.clone());
        Ok(made)
    }

    /// Gives up a producer that will never send again; the next attempt makes another.
    fn replace(&self, producer: &Arc<Producer>) {
        if producer.is_broken() {
            let mut kept = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
            kept.take_if(|kept| Arc::ptr_eq(kept, producer));
        }
    }

    /// Puts a delivery into the producer's queue. Returns its topic, and what will be told about it.
    fn queue(
        &self,
        producer: &Producer,
        target: &Target,
        delivery: &Outgoing,
    ) -> Result<(String, oneshot::Receiver<Confirmation>), Report> {
        let topic = target.topic.render_field("topic", delivery, fitting)?;
        if !is_topic(&topic) {
            return Err(Report::from(Outcome::Rejected { reason: Reason::TemplateFailed })
                .saying(format!("{topic:?} is no name of a topic")));
        }
        let key = match &target.key {
            Some(template) => {
                Some(Cow::Owned(template.render_field("key", delivery, |value| Cow::Borrowed(value))?))
            }
            None => delivery.event.key.as_deref().map(Cow::Borrowed),
        };
        let payload = target.body.of(&delivery.event);
        let (tell, waiting) = oneshot::channel();
        let mut record = BaseRecord::with_opaque_to(&topic, Box::new(tell))
            .payload(&payload)
            .headers(headers(target.body, delivery));
        if let Some(key) = &key {
            record = record.key(key.as_ref());
        }
        match producer.queue(record) {
            Ok(()) => Ok((topic, waiting)),
            Err(code) => Err(self.report(producer, &topic, &Confirmation::Failed(code))),
        }
    }

    fn report(&self, producer: &Producer, topic: &str, confirmation: &Confirmation) -> Report {
        let report = producer.report(confirmation);
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if report.outcome == Outcome::Delivered {
            missing.found(topic);
        }
        if !confirmation.misses_its_topic() {
            return report;
        }
        let report = report.saying(format!("there is no topic {topic:?} at the broker"));
        if missing.is_gone(topic, Instant::now()) {
            return Report { outcome: Outcome::Rejected { reason: Reason::TargetMissing }, ..report };
        }
        report
    }
}

/// What became of a queued record. librdkafka tells before `until`, as its own limit is shorter.
async fn confirmed(waiting: oneshot::Receiver<Confirmation>, until: Instant) -> Confirmation {
    match tokio::time::timeout_at(until, waiting).await {
        Ok(Ok(confirmation)) => confirmation,
        Ok(Err(_)) => Confirmation::GivenUp,
        Err(_) => Confirmation::Nothing,
    }
}

/// A value of the event inside the name of a topic.
fn fitting(value: &str) -> Cow<'_, str> {
    if value.bytes().all(is_topic_byte) {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(
            value.chars().map(|c| if u8::try_from(c).is_ok_and(is_topic_byte) { c } else { '_' }).collect(),
        )
    }
}

fn is_topic_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

fn is_topic(name: &str) -> bool {
    (1..=249).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(is_topic_byte)
}

/// What goes beside the payload; for CloudEvents in binary mode as its Kafka protocol binding says.
fn headers(form: Body, delivery: &Outgoing) -> OwnedHeaders {
    let event = &delivery.event;
    let (prefix, attributes) = match form {
        Body::CloudEventsBinary => ("ce_", body::cloudevents_attributes(event)),
        Body::Standard | Body::Raw | Body::CloudEvents => ("pgoutbox-", body::attributes(event)),
    };
    let published = body::headers_beside(event, &["pgoutbox-", "ce_", "content-type"]);
    let mut headers = OwnedHeaders::new_with_capacity(attributes.len() + published.len() + 1);
    headers = headers.insert(Header { key: "content-type", value: Some(form.content_type()) });
    for (name, value) in &attributes {
        headers = headers.insert(Header { key: &format!("{prefix}{name}"), value: Some(value) });
    }
    for (name, value) in &published {
        headers = headers.insert(Header { key: name, value: Some(value) });
    }
    headers
}
