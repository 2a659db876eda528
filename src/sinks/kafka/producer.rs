//! The producer of librdkafka, and what its codes mean.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::ToBytes,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer},
};
use tokio::sync::oneshot;

use crate::{
    delivery::{Outcome, Reason},
    sink::Report,
};

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// All replicas in sync have it.
    Stored,
    /// It failed for this reason.
    Failed(Code),
    /// The producer was given up with the record in its queue.
    GivenUp,
    /// Nothing was told in time.
    Nothing,
}

impl Confirmation {
    pub(super) fn misses_its_topic(self) -> bool {
        matches!(self, Self::Failed(Code::UnknownTopic | Code::UnknownTopicOrPartition))
    }

    /// Whether a broker refused a whole set of records where one of them may be to blame.
    pub(super) fn blames_a_set(self) -> bool {
        matches!(
            self,
            Self::Failed(
                Code::MessageSizeTooLarge
                    | Code::MessageBatchTooLarge
                    | Code::InvalidRecord
                    | Code::InvalidDifferentRecord
            )
        )
    }
}

/// Where a record's confirmation goes.
pub(super) type Tell = Box<oneshot::Sender<Confirmation>>;

/// Hears what librdkafka says.
#[derive(Debug, Default)]
struct Ear {
    /// The last trouble with a broker since a record was stored, or what it was that led to it: why others are late.
    trouble: Mutex<Option<(Code, String)>>,
    /// A broker has stored a record before.
    reached: AtomicBool,
}

impl Ear {
    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<(Code, String)>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Ear {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, words: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut trouble = self.trouble();
        // That there is no connection says less than why one ended: it did not answer, or did not let us in.
        let weight = |code: Code| match code {
            Code::AllBrokersDown => 0,
            Code::BrokerTransportFailure => 1,
            _ => 2,
        };
        if trouble.as_ref().is_none_or(|(before, _)| weight(code) >= weight(*before)) {
            *trouble = Some((code, words.to_owned()));
        }
    }
}

impl ProducerContext for Ear {
    type DeliveryOpaque = Tell;

    fn delivery(&self, result: &DeliveryResult<'_>, tell: Tell) {
        let confirmation = match result {
            Ok(_) => {
                self.reached.store(true, Ordering::Relaxed);
                self.trouble().take();
                Confirmation::Stored
            }
            Err((error, _)) => Confirmation::Failed(error.rdkafka_error_code().unwrap_or(Code::Unknown)),
        };
        // Nobody listens any more when the attempt was cut off.
        let _ = tell.send(confirmation);
    }
}

/// A producer with the thread that hears its reports.
pub(super) struct Producer(ThreadedProducer<Ear>);

impl Producer {
    pub(super) fn new(config: &ClientConfig) -> Result<Self, String> {
        config.create_with_context(Ear::default()).map(Self).map_err(|error| error.to_string())
    }

    fn ear(&self) -> &Ear {
        self.0.client().context()
    }

    /// Whether it will never send again: an idempotent producer stops where it could no longer keep its word.
    pub(super) fn is_broken(&self) -> bool {
        self.0.client().fatal_error().is_some()
    }

    /// Puts a record at the end of its queue.
    pub(super) fn queue<K: ToBytes + ?Sized, P: ToBytes + ?Sized>(
        &self,
        record: BaseRecord<'_, K, P, Tell>,
    ) -> Result<(), Code> {
        self.0.send(record).map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(Code::InvalidArgument))
    }

    /// What the relay is told about a record.
    pub(super) fn report(&self, confirmation: &Confirmation) -> Report {
        match confirmation {
            Confirmation::Stored => Outcome::Delivered.into(),
            Confirmation::Failed(Code::MessageTimedOut) => {
                // librdkafka tries again by itself until a record is overdue; why it had to is what its client hears.
                let (reason, words) = match &*self.ear().trouble() {
                    // A broker that let us connect, and then said nothing.
                    Some((code, words))
                        if words.contains("timed out") && !words.contains("state CONNECT") =>
                    {
                        (Reason::Timeout, format!("{}: {words}", text(*code)))
                    }
                    Some((code, words)) => (reason(*code), format!("{}: {words}", text(*code))),
                    None => (Reason::Timeout, text(Code::MessageTimedOut)),
                };
                let report = retry(reason).saying(words);
                if self.ear().reached.load(Ordering::Relaxed) { report.ambiguous() } else { report }
            }
            Confirmation::Failed(Code::Fatal | Code::PurgeQueue | Code::PurgeInflight) => {
                match self.0.client().fatal_error() {
                    Some((code, words)) => {
                        retry(reason(code)).saying(format!("{}: {words}", text(code))).ambiguous()
                    }
                    None => retry(Reason::BrokenAnswer).saying("the producer was closed").ambiguous(),
                }
            }
            Confirmation::Failed(code) => {
                let reason = reason(*code);
                let outcome = match code {
                    Code::MessageSizeTooLarge
                    | Code::MessageBatchTooLarge
                    | Code::InvalidMessageSize
                    | Code::InvalidRecord
                    | Code::InvalidTopic => Outcome::Rejected { reason },
                    _ => Outcome::Retry { reason, after: None },
                };
                let report = Report::from(outcome).saying(text(*code));
                if may_be_stored(*code) { report.ambiguous() } else { report }
            }
            Confirmation::GivenUp => {
                retry(Reason::BrokenAnswer).saying("the producer was closed").ambiguous()
            }
            Confirmation::Nothing => {
                retry(Reason::Timeout).saying("librdkafka did not report in time").ambiguous()
            }
        }
    }
}

fn retry(reason: Reason) -> Report {
    Outcome::Retry { reason, after: None }.into()
}

fn text(code: Code) -> String {
    code.to_string()
}

fn reason(code: Code) -> Reason {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            Reason::BodyTooLarge
        }
        Code::InvalidRecord => Reason::PayloadUnusable,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition | Code::InvalidTopic => {
            Reason::TargetMissing
        }
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => Reason::AccessDenied,
        Code::SSL => Reason::TlsFailed,
        Code::Resolve => Reason::DnsFailed,
        Code::BrokerTransportFailure | Code::AllBrokersDown | Code::NetworkException => Reason::ConnectFailed,
        Code::MessageTimedOut | Code::RequestTimedOut | Code::OperationTimedOut | Code::TimedOutQueue => {
            Reason::Timeout
        }
        Code::QueueFull | Code::KafkaStorageError | Code::LogDirNotFound => Reason::DestinationFull,
        Code::ThrottlingQuotaExceeded => Reason::RateLimited,
        _ => Reason::Refused,
    }
}

/// Whether a broker may have stored the record although it failed.
fn may_be_stored(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::NetworkException
            | Code::RequestTimedOut
            | Code::OperationTimedOut
            | Code::NotEnoughReplicasAfterAppend
            | Code::KafkaStorageError
    )
}

/// Asks a broker for its metadata, and for that of a topic. Blocks for `limit` at most.
pub(super) fn look(config: &ClientConfig, topic: Option<&str>, limit: Duration) -> Result<(), String> {
    let client: BaseProducer<Ear> =
        config.create_with_context(Ear::default()).map_err(|error| error.to_string())?;
    let metadata = client.client().fetch_metadata(topic, limit).map_err(|error| {
        // What its client heard meanwhile says why.
        client.poll(Duration::ZERO);
        let trouble = client.context().trouble().take();
        trouble.map_or_else(|| error.to_string(), |(code, words)| format!("{}: {words}", text(code)))
    })?;
    let Some(topic) = topic else { return Ok(()) };
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    match found.map(|found| found.error().map(Code::from)) {
        Some(None) => Ok(()),
        Some(Some(Code::UnknownTopicOrPartition)) | None => {
            Err(format!("there is no topic {topic:?} at the broker"))
        }
        Some(Some(code)) => Err(format!("the topic {topic:?}: {}", text(code))),
    }
}
