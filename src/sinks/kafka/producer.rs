//! The producer of librdkafka, and the reports for its error codes.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
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
    sink::{Report, shortage},
};

/// How long an error of a broker explains why records are late. librdkafka repeats one that lasts every 30 s.
const RECENT: Duration = Duration::from_secs(60);

/// What to look at when no record was ever stored and no error says why.
const SILENT: &str =
    "no broker says why; one that asks for TLS or a password closes connections that come without";

/// Result of sending a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// All in-sync replicas have it.
    Stored,
    /// It failed with this code.
    Failed(Code),
    /// The producer was dropped with the record in its queue.
    GivenUp,
    /// No report came in time.
    Nothing,
}

impl Confirmation {
    pub(super) fn is_unknown_topic(self) -> bool {
        matches!(self, Self::Failed(Code::UnknownTopic | Code::UnknownTopicOrPartition))
    }

    /// Whether no broker has said anything of it in time.
    pub(super) fn is_late(self) -> bool {
        matches!(self, Self::Nothing | Self::Failed(Code::MessageTimedOut))
    }

    /// Whether a broker refused a whole set of records, possibly because of one of them.
    pub(super) fn refuses_whole_set(self) -> bool {
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

/// Sender of a record's confirmation.
pub(super) type Confirm = Box<oneshot::Sender<Confirmation>>;

/// Receives errors and delivery reports of librdkafka.
#[derive(Debug, Default)]
struct Callbacks {
    /// The most telling error of a broker since the last stored record, and when it came: why other records
    /// are late.
    last_error: Mutex<Option<(Code, String, Instant)>>,
    /// Number of records that brokers have stored.
    stored: AtomicU64,
}

impl Callbacks {
    fn last_error(&self) -> std::sync::MutexGuard<'_, Option<(Code, String, Instant)>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Callbacks {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, message: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // That no broker is connected says nothing of the cause, which came before.
        if code == Code::AllBrokersDown {
            return;
        }
        let mut last_error = self.last_error();
        // A lost connection says less than its cause, such as a timeout or refused credentials.
        let weight = |code: Code| u8::from(code != Code::BrokerTransportFailure);
        let is_less = |(before, _, at): &(Code, String, Instant)| {
            weight(code) < weight(*before) && at.elapsed() < RECENT
        };
        if !last_error.as_ref().is_some_and(is_less) {
            *last_error = Some((code, message.to_owned(), Instant::now()));
        }
    }
}

impl ProducerContext for Callbacks {
    type DeliveryOpaque = Confirm;

    fn delivery(&self, result: &DeliveryResult<'_>, confirm: Confirm) {
        let confirmation = match result {
            Ok(_) => {
                self.stored.fetch_add(1, Ordering::Relaxed);
                self.last_error().take();
                Confirmation::Stored
            }
            Err((error, _)) => Confirmation::Failed(error.rdkafka_error_code().unwrap_or(Code::Unknown)),
        };
        // The receiver is gone if the attempt was dropped.
        let _ = confirm.send(confirmation);
    }
}

/// A producer with the thread that polls its delivery reports.
pub(super) struct Producer(ThreadedProducer<Callbacks>);

impl Producer {
    pub(super) fn new(config: &ClientConfig) -> Result<Self, String> {
        config.create_with_context(Callbacks::default()).map(Self).map_err(|error| error.to_string())
    }

    fn callbacks(&self) -> &Callbacks {
        self.0.client().context()
    }

    /// Number of records that brokers have stored.
    pub(super) fn stored(&self) -> u64 {
        self.callbacks().stored.load(Ordering::Relaxed)
    }

    /// What this machine lacks, if that is why records are late.
    pub(super) fn lack(&self) -> Option<&'static str> {
        let last_error = self.callbacks().last_error();
        let recent = last_error.as_ref().filter(|(.., at)| at.elapsed() < RECENT);
        recent.and_then(|(_, message, _)| shortage::of_text(message))
    }

    /// Forgets why records were late.
    pub(super) fn forget_errors(&self) {
        self.callbacks().last_error().take();
    }

    /// Whether it has a fatal error: an idempotent producer then never sends again.
    pub(super) fn is_broken(&self) -> bool {
        self.0.client().fatal_error().is_some()
    }

    /// Asks a broker whether it has a topic; none if there is no answer. Blocks for at most `limit`. What the
    /// client has in memory may be old, and is renewed by this.
    pub(super) fn has_topic(&self, topic: &str, limit: Duration) -> Option<bool> {
        let metadata = self.0.client().fetch_metadata(Some(topic), limit).ok()?;
        match metadata.topics().iter().find(|found| found.name() == topic)?.error().map(Code::from) {
            None => Some(true),
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Some(false),
            Some(_) => None,
        }
    }

    /// Queues a record.
    pub(super) fn queue<K: ToBytes + ?Sized, P: ToBytes + ?Sized>(
        &self,
        record: BaseRecord<'_, K, P, Confirm>,
    ) -> Result<(), Code> {
        self.0.send(record).map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(Code::InvalidArgument))
    }

    /// The report for a record. `lack`: what this machine lacked when the record was late.
    pub(super) fn report(&self, confirmation: &Confirmation, lack: Option<&'static str>) -> Report {
        // Without a report in time the record is still queued, and may be sent when there is room again.
        let timed_out = |report: Report| if self.stored() > 0 { report.ambiguous() } else { report };
        match (confirmation, lack) {
            (Confirmation::Failed(Code::MessageTimedOut), Some(lack)) => {
                return timed_out(shortage::report(lack));
            }
            (Confirmation::Nothing, Some(lack)) => return shortage::report(lack).ambiguous(),
            _ => {}
        }
        match confirmation {
            Confirmation::Stored => Outcome::Delivered.into(),
            Confirmation::Failed(Code::MessageTimedOut) => {
                // librdkafka retries by itself until the record times out; the last error of
                // the client says why.
                let last_error = self.callbacks().last_error();
                let recent = last_error.as_ref().filter(|(.., at)| at.elapsed() < RECENT);
                let (reason, message) = match recent {
                    // The broker accepted the connection and then did not answer.
                    Some((code, message, _))
                        if message.contains("timed out") && !message.contains("state CONNECT") =>
                    {
                        (Reason::Timeout, format!("{}: {message}", text(*code)))
                    }
                    // With TLS 1.3 a broker refuses the client's certificate after the handshake.
                    Some((_, message, _)) if message.contains("alert certificate required") => {
                        (Reason::TlsFailed, format!("the broker asks for a client certificate: {message}"))
                    }
                    Some((_, message, _)) if message.contains("SSL routines") => {
                        (Reason::TlsFailed, message.clone())
                    }
                    Some((code, message, _)) => (reason(*code), format!("{}: {message}", text(*code))),
                    None if self.stored() == 0 => {
                        (Reason::Timeout, format!("{}: {SILENT}", text(Code::MessageTimedOut)))
                    }
                    None => (Reason::Timeout, text(Code::MessageTimedOut)),
                };
                timed_out(retry(reason).with_answer(message))
            }
            Confirmation::Failed(Code::Fatal | Code::PurgeQueue | Code::PurgeInflight) => {
                match self.0.client().fatal_error() {
                    Some((code, message)) => {
                        retry(reason(code)).with_answer(format!("{}: {message}", text(code))).ambiguous()
                    }
                    None => retry(Reason::BrokenAnswer).with_answer("the producer was closed").ambiguous(),
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
                let report = Report::from(outcome).with_answer(text(*code));
                if may_be_stored(*code) { report.ambiguous() } else { report }
            }
            Confirmation::GivenUp => {
                retry(Reason::BrokenAnswer).with_answer("the producer was closed").ambiguous()
            }
            Confirmation::Nothing => {
                retry(Reason::Timeout).with_answer("librdkafka did not report in time").ambiguous()
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

/// Reads the metadata of the cluster and of a topic. Blocks for at most `limit`.
pub(super) fn check(config: &ClientConfig, topic: Option<&str>, limit: Duration) -> Result<(), String> {
    let client: BaseProducer<Callbacks> =
        config.create_with_context(Callbacks::default()).map_err(|error| error.to_string())?;
    let metadata = client.client().fetch_metadata(topic, limit).map_err(|error| {
        // The last error of the client says why.
        client.poll(Duration::ZERO);
        let last_error = client.context().last_error().take();
        last_error.map_or_else(
            || format!("{error}: {SILENT}"),
            |(code, message, _)| format!("{}: {message}", text(code)),
        )
    })?;
    let Some(topic) = topic else { return Ok(()) };
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    match found.map(|found| found.error().map(Code::from)) {
        Some(None) => Ok(()),
        Some(Some(Code::UnknownTopicOrPartition)) | None => {
            Err(format!("the broker does not know the topic {topic:?}"))
        }
        Some(Some(code)) => Err(format!("the topic {topic:?}: {}", text(code))),
    }
}
