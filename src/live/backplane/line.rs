//! The connection to NATS: the stream, and the questions of gateways to the feeder. It is opened anew after
//! each failure.

use std::{fmt, sync::Arc, time::Duration};

use async_nats::{
    Subscriber,
    jetstream::{
        self,
        consumer::{
            DeliverPolicy,
            push::{Ordered, OrderedConfig},
        },
        message::PublishMessage,
        stream::{self, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, Stream},
    },
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Nats, written::Message};
use crate::sinks::nats::Link;

/// Deadline of each question to a server, and to the feeder.
const ANSWER: Duration = Duration::from_secs(5);
/// What the headers of a message and its reply subject need, in bytes.
const HEADERS: usize = 1_024;

/// An open connection.
pub(super) struct Line {
    link: Link,
    settings: Arc<Nats>,
    jetstream: jetstream::Context,
    stream: Stream,
    /// Which stream it is: one that is made again has another number.
    pub(super) made: i128,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What is in the stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// The feeder's answer: all that was committed before the question is in the stream up to this message.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Which stream.
    pub(super) made: i128,
    /// Number of the message.
    pub(super) sequence: u64,
}

impl Line {
    /// Connects. Makes the stream if it is missing.
    pub(super) async fn open(settings: &Arc<Nats>) -> Result<Self, String> {
        let (link, jetstream) = connect(settings).await?;
        let wanted = stream::Config {
            name: settings.stream.clone(),
            subjects: vec![settings.subject.clone()],
            max_age: settings.max_age,
            max_bytes: i64::try_from(settings.max_bytes).unwrap_or(i64::MAX),
            num_replicas: settings.replicas,
            description: Some("What live clients of pgoutbox follow".to_owned()),
            ..stream::Config::default()
        };
        let stream = in_time("the stream", jetstream.get_or_create_stream(wanted)).await?;
        fits(&stream.cached_info().config, settings)?;
        let made = stream.cached_info().created.unix_timestamp_nanos();
        Ok(Self { link, settings: settings.clone(), jetstream, stream, made })
    }

    /// Connects, and looks at the stream if it is there.
    pub(super) async fn check(settings: &Nats) -> Result<(), String> {
        let (_link, jetstream) = connect(settings).await?;
        match tokio::time::timeout(ANSWER, jetstream.get_stream(&settings.stream)).await {
            Ok(Ok(stream)) => fits(&stream.cached_info().config, settings),
            Ok(Err(error)) if is_missing(&error) => Ok(()),
            Ok(Err(error)) => Err(format!("the stream {}: {error}", settings.stream)),
            Err(_) => Err(format!("JetStream does not answer within {} s", ANSWER.as_secs())),
        }
    }

    /// Waits until the connection is lost.
    pub(super) async fn lost(&self) -> String {
        self.link.lost.cancelled().await;
        "the connection to NATS was lost".to_owned()
    }

    /// What is in the stream now.
    pub(super) async fn extent(&self) -> Result<Extent, String> {
        let info = in_time("the stream's state", self.stream.get_info()).await?;
        if info.created.unix_timestamp_nanos() != self.made {
            return Err("the stream was deleted and made again".to_owned());
        }
        let state = info.state;
        Ok(Extent {
            first: state.first_sequence,
            last: state.last_sequence,
            messages: state.messages,
            bytes: state.bytes,
        })
    }

    /// The number that the next message must follow, and the last message; none: it is not there any more.
    pub(super) async fn last(&self) -> Result<(u64, Option<Bytes>), String> {
        let extent = self.extent().await?;
        let last = self.stream.get_last_raw_message_by_subject(&self.settings.subject);
        match tokio::time::timeout(ANSWER, last).await {
            Ok(Ok(message)) if message.sequence >= extent.last => {
                Ok((message.sequence, Some(message.payload)))
            }
            // What was last was removed: nobody knows what it said.
            Ok(Ok(_)) => Ok((extent.last, None)),
            Ok(Err(error)) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                Ok((extent.last, None))
            }
            Ok(Err(error)) => Err(format!("reading the last message of the stream: {error}")),
            Err(_) => Err(no_answer("reading the last message of the stream")),
        }
    }

    /// Most bytes of a message.
    pub(super) fn most(&self) -> usize {
        let of_stream = usize::try_from(self.stream.cached_info().config.max_message_size);
        let most = of_stream.ok().filter(|most| *most > 0).unwrap_or(usize::MAX);
        self.link.client.max_payload().min(most).saturating_sub(HEADERS)
    }

    /// Writes a message behind that one, and returns its number once the stream keeps it.
    ///
    /// # Errors
    /// Also when another feeder has written meanwhile.
    pub(super) async fn publish(&self, message: Message, behind: u64) -> Result<u64, String> {
        let publish = PublishMessage::build()
            .payload(message.bytes.into())
            .expected_stream(&self.settings.stream)
            .expected_last_sequence(behind);
        let sent = self.jetstream.send_publish(self.settings.subject.clone(), publish);
        let acknowledged = async { sent.await?.await };
        Ok(in_time("a message for the stream", acknowledged).await?.sequence)
    }

    /// The messages from this number on.
    pub(super) async fn messages(&self, from: u64) -> Result<Ordered, String> {
        let config = OrderedConfig {
            deliver_subject: self.link.client.new_inbox(),
            description: Some("a gateway of pgoutbox".to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
            ..OrderedConfig::default()
        };
        let consumer = in_time("a consumer of the stream", self.stream.create_consumer(config)).await?;
        in_time("a consumer of the stream", consumer.messages()).await
    }

    /// Asks the feeder to read what was committed before.
    pub(super) fn ask(&self) -> impl Future<Output = Result<Answer, String>> + Send + use<> {
        let (client, questions) = (self.link.client.clone(), self.questions());
        async move {
            let answer = in_time("the feeder", client.request(questions, Bytes::new())).await?;
            postcard::from_bytes(&answer.payload).map_err(|_| "the feeder's answer cannot be read".to_owned())
        }
    }

    /// The questions of gateways.
    pub(super) async fn listen(&self) -> Result<Subscriber, String> {
        in_time("questions of gateways", self.link.client.subscribe(self.questions())).await
    }

    /// Answers a question: the stream has everything up to this message.
    pub(super) async fn answer(&self, question: async_nats::Message, sequence: u64) -> Result<(), String> {
        let Some(to) = question.reply else { return Ok(()) };
        let answer = postcard::to_allocvec(&Answer { made: self.made, sequence }).unwrap_or_default();
        in_time("an answer to a gateway", self.link.client.publish(to, answer.into())).await
    }

    fn questions(&self) -> String {
        format!("{}.ask", self.settings.subject)
    }
}

async fn connect(settings: &Nats) -> Result<(Link, jetstream::Context), String> {
    let connected = settings.connection.connect().await;
    let link = connected.map_err(|report| report.answer.unwrap_or_default())?;
    let mut jetstream = jetstream::new(link.client.clone());
    jetstream.set_timeout(ANSWER);
    Ok((link, jetstream))
}

/// Whether a stream that is there can be used.
fn fits(config: &stream::Config, settings: &Nats) -> Result<(), String> {
    let name = &settings.stream;
    if config.subjects != [settings.subject.clone()] {
        return Err(format!(
            "the stream {name} has the subjects {:?}; it must have {:?} alone (realtime.nats.subject)",
            config.subjects, settings.subject
        ));
    }
    if config.retention != RetentionPolicy::Limits || config.discard != DiscardPolicy::Old {
        return Err(format!("the stream {name} must have the retention \"limits\" and discard \"old\""));
    }
    if config.no_ack || config.sealed {
        return Err(format!("the stream {name} acknowledges nothing or is sealed; make it with neither"));
    }
    Ok(())
}

fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    use jetstream::context::GetStreamErrorKind;
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.code() == 404)
}

async fn in_time<T, E: fmt::Display>(
    what: &str,
    query: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, query).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("{what}: {error}")),
        Err(_) => Err(no_answer(what)),
    }
}

fn no_answer(what: &str) -> String {
    format!("{what}: no answer within {} s", ANSWER.as_secs())
}
