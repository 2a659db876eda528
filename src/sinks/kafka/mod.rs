//! The Kafka sink: a record for each event, delivered at least once by an idempotent producer that waits for
//! all in-sync replicas. Records of one key go to one partition, in the order of the log.
//!
//! One producer serves all subscriptions of a connection. librdkafka runs its own threads, and one thread
//! polls its delivery reports. All end when the sink is dropped, which takes at most half a second and
//! discards queued records. An attempt that is stopped earlier (lost lease, shutdown) cannot withdraw its
//! records: they may still be sent within `timeout`.

mod config;
mod missing;
mod producer;

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashSet},
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
        headers_about, only, parse_config, shortage,
        template::Template,
    },
};

/// Time that librdkafka may take to report a timed-out record; it checks once a second.
const REPORT_DELAY: Duration = Duration::from_secs(3);
/// Time that the deadline of an attempt adds to `timeout`.
const SLACK: Duration = Duration::from_secs(5);
const _: () = assert!(REPORT_DELAY.as_secs() < SLACK.as_secs(), "a report comes before the deadline");
/// Topics of one batch that a broker is asked for before their events become dead letters.
const MOST_ASKED: usize = 8;
/// Time in which a cluster answers a new client, if nothing is wrong with it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Timeout of `check`, and of asking a broker for a topic.
const CHECK: Duration = Duration::from_secs(5);

/// Writes records to the topics of one cluster.
pub struct Kafka {
    config: Config,
    connection: String,
    producer: Mutex<Option<Arc<Producer>>>,
    missing: Mutex<Missing>,
    /// Held while a new client asks whether the cluster answers.
    asking: tokio::sync::Mutex<()>,
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
    /// Topic of the record.
    topic: Template,
    /// Key of the record; none means the event's key.
    key: Option<Template>,
    #[serde(default = "raw")]
    body: Body,
    /// The topic as written in the config; names the breaker.
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
            asking: tokio::sync::Mutex::default(),
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
                "config.topic: {topic:?} is not a topic name; use 1 to 249 letters, digits and . _ -"
            )
            .into()),
            _ => Ok(target),
        }
    }

    /// One breaker for each topic: a missing permission for one must not stop the others.
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
                let report = match shortage::of_text(&problem) {
                    Some(lack) => shortage::report(lack),
                    None => Report::from(Outcome::Retry { reason: Reason::Refused, after: None })
                        .with_answer(problem),
                };
                return vec![report; deliveries.len()];
            }
        };
        let until = Instant::now() + self.config.timeout + REPORT_DELAY;
        let stored = producer.stored();
        // Queue all records, then wait for the confirmations.
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
        // A broker refuses a whole set of records if one is too large, or has no key in a compacted
        // topic. Retry each alone.
        if deliveries.len() > 1 {
            for (delivery, one) in deliveries.iter().zip(&mut confirmations) {
                if matches!(one, Ok((_, confirmation)) if confirmation.refuses_whole_set()) {
                    *one = match self.queue(&producer, target, delivery) {
                        Ok((topic, waiting)) => Ok((topic, confirmed(waiting, until).await)),
                        Err(report) => Err(report),
                    };
                }
            }
        }
        let is_late = confirmations.iter().flatten().any(|(_, confirmation)| confirmation.is_late());
        let unknown =
            confirmations.iter().flatten().filter(|(_, confirmation)| confirmation.is_unknown_topic());
        let gone = self.gone(&producer, unknown.map(|(topic, _)| topic.clone()).collect(), until).await;
        let lack = producer.lack();
        if is_late && producer.stored() == stored {
            self.renew(&producer, until + Duration::from_secs(1)).await;
        }
        let reports = confirmations.into_iter().map(|one| match one {
            Ok((topic, confirmation)) => self.report(&producer, &topic, &confirmation, &gone, lack),
            Err(report) => report,
        });
        let reports = reports.collect();
        self.replace(&producer);
        reports
    }

    async fn check(&self, target: &Target) -> Result<(), Problem> {
        let config = self.config.for_metadata();
        let topic = target.topic.fixed().map(str::to_owned);
        let limit = CHECK.min(self.config.timeout);
        // The blocking task ends at its own limit, even if this future is dropped.
        let checked =
            tokio::task::spawn_blocking(move || producer::check(&config, topic.as_deref(), limit)).await;
        Ok(checked.unwrap_or_else(|_| Err("librdkafka panicked".to_owned()))?)
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

    /// Drops a producer with a fatal error; the next attempt makes another.
    fn replace(&self, producer: &Arc<Producer>) {
        if producer.is_broken() {
            let mut kept = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
            kept.take_if(|kept| Arc::ptr_eq(kept, producer));
        }
    }

    /// Drops a producer that makes no progress although the cluster answers a new client: it may have been
    /// rebuilt behind its address, and the producer still knows the brokers of before.
    async fn renew(&self, producer: &Arc<Producer>, until: Instant) {
        // Of several batches that are late together, one asks.
        let Ok(_asking) = self.asking.try_lock() else { return };
        let is_kept = |kept: &mut Arc<Producer>| Arc::ptr_eq(kept, producer);
        let limit = ANSWERS_WITHIN.min(until.saturating_duration_since(Instant::now()));
        let kept = || self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if limit.is_zero() || !kept().as_mut().is_some_and(is_kept) {
            return;
        }
        let config = self.config.for_metadata();
        // The blocking task ends at its own limit, even if this future is dropped.
        let asked = tokio::task::spawn_blocking(move || producer::check(&config, None, limit)).await;
        if matches!(asked, Ok(Ok(()))) {
            // What it says of brokers that it knew before explains nothing now.
            producer.forget_errors();
            kept().take_if(is_kept);
        }
    }

    /// Queues a record for a delivery. Returns its topic, and the receiver of its confirmation.
    fn queue(
        &self,
        producer: &Producer,
        target: &Target,
        delivery: &Outgoing,
    ) -> Result<(String, oneshot::Receiver<Confirmation>), Report> {
        let topic = target.topic.render_field("topic", delivery, fitting)?;
        if !is_topic(&topic) {
            return Err(Report::from(Outcome::Rejected { reason: Reason::TemplateFailed })
                .with_answer(format!("{topic:?} is not a topic name")));
        }
        let key = match &target.key {
            Some(template) => {
                Some(Cow::Owned(template.render_field("key", delivery, |value| Cow::Borrowed(value))?))
            }
            None => delivery.event.key.as_deref().map(Cow::Borrowed),
        };
        let payload = target.body.of(&delivery.event);
        let (sender, waiting) = oneshot::channel();
        let mut record = BaseRecord::with_opaque_to(&topic, Box::new(sender))
            .payload(&payload)
            .headers(headers(target.body, delivery));
        if let Some(key) = &key {
            record = record.key(key.as_ref());
        }
        match producer.queue(record) {
            Ok(()) => Ok((topic, waiting)),
            Err(code) => {
                let (sender, failed) = oneshot::channel();
                let _ = sender.send(Confirmation::Failed(code));
                Ok((topic, failed))
            }
        }
    }

    /// Those of these topics that are missing for long enough, and that a broker says now to be missing: the
    /// client may only remember what a broker said before.
    async fn gone(
        &self,
        producer: &Arc<Producer>,
        unknown: BTreeSet<String>,
        until: Instant,
    ) -> HashSet<String> {
        let mut gone = HashSet::new();
        let missing = || self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let candidates: Vec<String> =
            unknown.into_iter().filter(|topic| missing().is_gone(topic, Instant::now())).collect();
        for topic in candidates.into_iter().take(MOST_ASKED) {
            let limit = CHECK.min(until.saturating_duration_since(Instant::now()));
            if limit.is_zero() {
                break;
            }
            let (producer, name) = (Arc::clone(producer), topic.clone());
            let asked = tokio::task::spawn_blocking(move || producer.has_topic(&name, limit)).await;
            match asked.ok().flatten() {
                Some(true) => missing().found(&topic),
                Some(false) => drop(gone.insert(topic)),
                None => {}
            }
        }
        gone
    }

    fn report(
        &self,
        producer: &Producer,
        topic: &str,
        confirmation: &Confirmation,
        gone: &HashSet<String>,
        lack: Option<&'static str>,
    ) -> Report {
        let report = producer.report(confirmation, lack);
        if report.outcome == Outcome::Delivered {
            self.missing.lock().unwrap_or_else(PoisonError::into_inner).found(topic);
        }
        if !confirmation.is_unknown_topic() {
            return report;
        }
        let report = report.with_answer(format!("the broker does not know the topic {topic:?}"));
        if gone.contains(topic) {
            return Report { outcome: Outcome::Rejected { reason: Reason::TargetMissing }, ..report };
        }
        report
    }
}

/// Waits for the confirmation of a queued record. librdkafka's own timeout ends before `until`.
async fn confirmed(waiting: oneshot::Receiver<Confirmation>, until: Instant) -> Confirmation {
    match tokio::time::timeout_at(until, waiting).await {
        Ok(Ok(confirmation)) => confirmation,
        Ok(Err(_)) => Confirmation::GivenUp,
        Err(_) => Confirmation::Nothing,
    }
}

/// Replaces characters that a topic name cannot have.
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

/// Headers of the record; in binary mode as the Kafka protocol binding of CloudEvents defines.
fn headers(form: Body, delivery: &Outgoing) -> OwnedHeaders {
    let event = &delivery.event;
    let (prefix, attributes) = match form {
        Body::CloudEventsBinary => ("ce_", body::cloudevents_attributes(event)),
        Body::Standard | Body::Raw | Body::CloudEvents => ("pgoutbox-", body::attributes(event)),
    };
    let published = body::headers_beside(event, &["pgoutbox-", "ce_", "content-type"]);
    let mut headers = OwnedHeaders::new_with_capacity(attributes.len() + published.len() + 4);
    headers = headers.insert(Header { key: "content-type", value: Some(form.content_type()) });
    for (name, value) in &attributes {
        headers = headers.insert(Header { key: &format!("{prefix}{name}"), value: Some(value) });
    }
    for (name, value) in &published {
        headers = headers.insert(Header { key: name, value: Some(value) });
    }
    for (name, value) in headers_about(std::slice::from_ref(delivery)) {
        headers = headers.insert(Header { key: name, value: Some(&value) });
    }
    headers
}
