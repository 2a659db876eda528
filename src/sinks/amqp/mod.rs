//! The AMQP sink (RabbitMQ, AMQP 0-9-1): a persistent message for each event, delivered at least once. A
//! delivery succeeds when the server has confirmed the message and routed it to a queue.
//!
//! One connection serves all subscriptions. Each batch has its own channel: the server closes a channel
//! because of one bad message, and does not say which others it has stored. The library runs a thread and two
//! tasks for a connection. They end when the connection is closed or dropped, or when a silent server misses
//! its heartbeat. A handshake that a server never answers keeps its thread until the socket ends; the breaker
//! bounds their number.

mod answer;
mod config;
mod message;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use lapin::{
    Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind, PublisherConfirm,
    options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions},
    runtime::default_runtime,
    tcp::AMQPUriTcpExt as _,
    types::FieldTable,
    uri::{AMQPScheme, AMQPUri},
};
use serde_json::Value;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

pub use self::config::Config;
pub use self::message::Target;
use self::{answer::Answer, message::Message};
use crate::{
    delivery::{Outcome, Reason},
    sink::{
        Batch, Configured, Outgoing, Problem, Report, Settings, Sink,
        broker::{Numbered, SharedConnection},
        only, shortage,
        template::Template,
        tls,
    },
};

/// Timeout of connecting with all handshakes.
const CONNECT: Duration = Duration::from_secs(5);
/// Time that the deadline of an attempt adds to its own timeouts.
const SLACK: Duration = Duration::from_secs(2);
/// Most idle channels that are kept.
const IDLE: usize = 16;
/// Publishes to the exchanges of one virtual host.
pub struct Amqp {
    config: Config,
    connection: String,
    shared: SharedConnection<Arc<Link>>,
}

impl fmt::Debug for Amqp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Amqp")
            .field("config", &self.config)
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

/// A connection and its idle channels.
struct Link {
    connection: Connection,
    idle: Mutex<Vec<Channel>>,
    /// As many as the server has agreed to: who needs one more waits.
    channels: Semaphore,
}

impl Configured for Amqp {
    type Config = Config;

    fn read(settings: &mut Settings<'_>) -> Option<Config> {
        Config::read(settings)
    }

    fn open(config: Config, connection: &str) -> Result<Self, Problem> {
        tls::use_ring();
        config.usable()?;
        Ok(Self { config, connection: connection.to_owned(), shared: SharedConnection::default() })
    }
}

impl Sink for Amqp {
    const KIND: &'static str = "amqp";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        Ok(Target::parse(config)?)
    }

    /// One breaker for each exchange: a missing permission for one must not stop the others.
    fn destination(&self, target: &Target) -> Option<String> {
        Some(format!("amqp:{}/{}", self.connection, target.place))
    }

    fn deadline(&self, _: &Target) -> Duration {
        // A connection that was closed meanwhile is replaced once.
        CONNECT * 2 + self.config.timeout + SLACK
    }

    fn batch(&self, _: &Target) -> Option<Batch> {
        // The server closes the channel because of one bad message.
        Some(Batch { shares_fate: true, ..Batch::BROKER })
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Outgoing]) -> Vec<Report> {
        let mut reports: Vec<Option<Report>> = vec![None; deliveries.len()];
        // Messages are grouped by exchange, so that a missing one fails only its own messages.
        let mut exchanges: Vec<(String, Vec<Message>)> = Vec::new();
        for (at, (delivery, report)) in deliveries.iter().zip(&mut reports).enumerate() {
            match target.message(delivery, at) {
                Ok((exchange, message)) => match exchanges.iter_mut().find(|(name, _)| *name == exchange) {
                    Some((_, messages)) => messages.push(message),
                    None => exchanges.push((exchange, vec![message])),
                },
                Err(problem) => *report = Some(problem),
            }
        }
        if !exchanges.is_empty() {
            match self.link().await {
                Ok(link) => {
                    let until = Instant::now() + self.config.timeout;
                    let frame = link.connection.connection.configuration().frame_max() as usize;
                    for (exchange, messages) in &mut exchanges {
                        // The server closes the whole connection because of a frame
                        // that is too large.
                        for too_large in messages.extract_if(.., |message| message.properties_bytes > frame) {
                            if let Some(place) = reports.get_mut(too_large.at) {
                                let problem = format!(
                                    "the headers have {} bytes; a frame of the server holds {frame}",
                                    too_large.properties_bytes
                                );
                                *place = Some(
                                    Report::from(Outcome::Rejected { reason: Reason::BodyTooLarge })
                                        .with_answer(problem),
                                );
                            }
                        }
                        if messages.is_empty() {
                            continue;
                        }
                        for (message, report) in messages
                            .iter()
                            .zip(self.publish(&link, exchange, messages, target.mandatory, until).await)
                        {
                            if let Some(place) = reports.get_mut(message.at) {
                                *place = Some(report);
                            }
                        }
                    }
                }
                Err(problem) => reports.iter_mut().for_each(|report| {
                    report.get_or_insert_with(|| problem.clone());
                }),
            }
        }
        let missing = || answer::retry(Reason::SinkBroken).ambiguous();
        reports.into_iter().map(|report| report.unwrap_or_else(missing)).collect()
    }

    async fn check(&self, target: &Target) -> Result<(), Problem> {
        let answer = |report: Report| report.answer.unwrap_or_default();
        let link = self.link().await.map_err(answer)?.connection;
        let Some(exchange) = target.exchange.as_ref().and_then(Template::fixed) else { return Ok(()) };
        let declaring = async {
            let channel = link.connection.create_channel().await?;
            let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            channel
                .exchange_declare(exchange.into(), ExchangeKind::Direct, options, FieldTable::default())
                .await
        };
        Ok(declaring.await.map_err(|error| answer::text(&error))?)
    }
}

impl Amqp {
    /// The connection; a new one if it was closed meanwhile.
    async fn link(&self) -> Result<Numbered<Arc<Link>>, Report> {
        let link = self.shared.get(CONNECT, || self.connect()).await?;
        if link.connection.connection.status().connected() {
            return Ok(link);
        }
        self.shared.give_up(link.number);
        self.shared.get(CONNECT, || self.connect()).await
    }

    async fn connect(&self) -> Result<Arc<Link>, Report> {
        let refused = |problem: String| answer::retry(Reason::ConnectFailed).with_answer(problem);
        let uri = self.config.uri().map_err(refused)?;
        let secure = uri.scheme == AMQPScheme::AMQPS;
        let tls = secure.then(|| self.config.tls()).transpose().map_err(refused)?;
        let runtime = default_runtime().map_err(|error| refused(error.to_string()))?;
        let properties = ConnectionProperties::default().with_connection_name("pgoutbox".into());
        let connecting = Connection::connector(
            uri,
            runtime,
            async move |uri, runtime| {
                let dialling = async {
                    // The library would trust the system's authorities besides those of `ca_file`.
                    let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri.clone() };
                    let stream = plain.connect_async(&runtime).await?;
                    match &tls {
                        Some(tls) => stream.into_rustls(tls, &uri.authority.host).await,
                        None => Ok(stream),
                    }
                };
                let dialled = tokio::time::timeout(CONNECT, dialling)
                    .await
                    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
                dialled.map_err(lapin::Error::from)
            },
            properties,
        );
        let connection = connecting.await.map_err(|error| answer::unconnected(&error, secure))?;
        let most = usize::from(connection.configuration().channel_max());
        // 0 means no limit but that of the protocol.
        let channels = Semaphore::new(if most == 0 { usize::from(u16::MAX) } else { most });
        Ok(Arc::new(Link { connection, idle: Mutex::default(), channels }))
    }

    /// Publishes to one exchange on one channel: first all messages, then waits for the confirmations.
    async fn publish(
        &self,
        link: &Numbered<Arc<Link>>,
        exchange: &str,
        messages: &[Message],
        mandatory: bool,
        until: Instant,
    ) -> Vec<Report> {
        let status = link.connection.connection.status();
        if status.blocked() {
            return vec![answer::blocked(); messages.len()];
        }
        let Ok(Ok(_turn)) = timeout_at(until, link.connection.channels.acquire()).await else {
            let report = shortage::report("all channels that the server grants are in use");
            return vec![report; messages.len()];
        };
        let channel = match timeout_at(until, link.connection.channel()).await {
            Ok(Ok(channel)) => channel,
            // The connection works: others go on using it.
            Ok(Err(error)) if answer::lack(&error).is_some() && status.connected() => {
                return vec![answer::unconnected(&error, false); messages.len()];
            }
            Ok(Err(error)) => {
                self.shared.give_up(link.number);
                return vec![answer::unconnected(&error, false); messages.len()];
            }
            Err(_) => {
                self.shared.give_up(link.number);
                return vec![
                    answer::retry(Reason::Timeout).with_answer("no channel was opened in time");
                    messages.len()
                ];
            }
        };
        let options = BasicPublishOptions { mandatory, immediate: false };
        let mut sending: Vec<_> = messages
            .iter()
            .map(|message| {
                let (exchange, key) = (exchange.into(), message.routing_key.clone());
                Box::pin(channel.basic_publish(
                    exchange,
                    key,
                    options,
                    &message.payload,
                    message.properties.clone(),
                ))
            })
            .collect();
        // The first poll of each future queues its message on the channel, so all are queued in
        // order.
        let mut started: Vec<Option<lapin::Result<PublisherConfirm>>> =
            sending.iter_mut().map(|one| one.as_mut().now_or_never()).collect();
        let mut returned = HashMap::new();
        let mut answers = Vec::with_capacity(messages.len());
        for (started, sending) in started.iter_mut().zip(sending) {
            let confirmed = async {
                match started.take() {
                    Some(sent) => sent?.await,
                    None => sending.await?.await,
                }
            };
            answers.push(match timeout_at(until, confirmed).await {
                Ok(Ok(confirmation)) => {
                    let acknowledged = !confirmation.is_nack();
                    // The library attaches a returned message to the next confirmation of
                    // any message; the id tells which.
                    if let Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message)) = confirmation
                    {
                        let id = message
                            .properties
                            .message_id()
                            .as_ref()
                            .map(ToString::to_string)
                            .unwrap_or_default();
                        returned.insert(id, format!("{} {}", message.reply_code, message.reply_text));
                    }
                    if acknowledged { Answer::Acknowledged } else { Answer::Refused }
                }
                Ok(Err(error)) => Answer::Failed(error),
                Err(_) => Answer::None,
            });
        }
        let complete = answers.iter().all(|answer| matches!(answer, Answer::Acknowledged | Answer::Refused));
        if complete {
            link.connection.keep(channel);
        } else if !status.connected()
            || (!status.blocked() && answers.iter().any(|answer| matches!(answer, Answer::None)))
        {
            self.shared.give_up(link.number);
        }
        let closed = answers.iter().find_map(answer::Answer::server_error).cloned();
        let alone = messages.len() == 1;
        let messages = messages.iter().zip(answers);
        messages
            .map(|(message, one)| match returned.get(&message.id) {
                Some(text) => answer::retry(Reason::Unroutable)
                    .with_answer(format!("{text}: no queue is bound for {:?}", message.routing_key.as_str())),
                // Some confirmations are missing, so this message may be one of those that
                // were returned.
                None if !complete && !returned.is_empty() && matches!(one, Answer::Acknowledged) => {
                    answer::retry(Reason::BrokenAnswer)
                        .with_answer("other messages were returned, and some confirmations are missing")
                        .ambiguous()
                }
                None => one.report(closed.as_ref(), alone, message.payload.len(), status.blocked()),
            })
            .collect()
    }
}

impl Link {
    /// An idle or new channel with confirmations.
    async fn channel(&self) -> lapin::Result<Channel> {
        while let Some(channel) = self.idle().pop() {
            if channel.status().connected() {
                return Ok(channel);
            }
        }
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    fn keep(&self, channel: Channel) {
        let mut idle = self.idle();
        if idle.len() < IDLE {
            idle.push(channel);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
