//! The AMQP sink (RabbitMQ, AMQP 0-9-1): a persistent message for each event, delivered at least once: it counts when the server
//! has confirmed it, and only if somebody was there to get it.
//!
//! One connection serves all subscriptions. Whoever publishes has a channel alone, for the server closes a channel over one bad
//! message and forgets which of the others it had. The library gives a connection a thread and two tasks; they end when the
//! connection is closed, which dropping it does, or, where the server is silent, when its heartbeat is missed. A handshake that
//! a server never answers keeps its thread until that server's socket ends; the breaker keeps those few.

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
};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

pub use self::config::Config;
pub use self::message::Target;
use self::{answer::Answer, message::Message};
use crate::{
    delivery::{Outcome, Reason},
    sink::{
        Batch, Configured, Outgoing, Problem, Report, Settings, Sink,
        broker::{Numbered, SharedConnection},
        only,
        template::Template,
        tls,
    },
};

/// How long a connection and its handshakes may take.
const CONNECT: Duration = Duration::from_secs(5);
/// The attempt's deadline lies so far beyond what it waits for itself.
const SLACK: Duration = Duration::from_secs(2);
/// Channels kept for the next who publish.
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

/// A connection, and the channels nobody uses at the moment.
struct Link {
    connection: Connection,
    idle: Mutex<Vec<Channel>>,
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

    /// Not the server as a whole: rights are given by exchange, and one that is refused must not hold up the others.
    fn destination(&self, target: &Target) -> Option<String> {
        Some(format!("amqp:{}/{}", self.connection, target.place))
    }

    fn deadline(&self, _: &Target) -> Duration {
        // A connection that turns out to be closed is made anew once.
        CONNECT * 2 + self.config.timeout + SLACK
    }

    fn batch(&self, _: &Target) -> Option<Batch> {
        // The server closes the channel over one bad message.
        Some(Batch { shares_fate: true, ..Batch::BROKER })
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Outgoing]) -> Vec<Report> {
        let mut reports: Vec<Option<Report>> = vec![None; deliveries.len()];
        // What goes to one exchange goes together: a missing one fails nobody else.
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
                        // The server ends the connection over a frame that is too large, for all who publish.
                        for too_large in messages.extract_if(.., |message| message.beside > frame) {
                            if let Some(place) = reports.get_mut(too_large.at) {
                                let said = format!(
                                    "its headers have {} bytes; a frame of the server has {frame}",
                                    too_large.beside
                                );
                                *place = Some(
                                    Report::from(Outcome::Rejected { reason: Reason::BodyTooLarge })
                                        .saying(said),
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
        let said = |report: Report| report.answer.unwrap_or_default();
        let link = self.link().await.map_err(said)?.connection;
        let Some(exchange) = target.exchange.as_ref().and_then(Template::fixed) else { return Ok(()) };
        let looking = async {
            let channel = link.connection.create_channel().await?;
            let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            channel
                .exchange_declare(exchange.into(), ExchangeKind::Direct, options, FieldTable::default())
                .await
        };
        Ok(looking.await.map_err(|error| answer::text(&error))?)
    }
}

impl Amqp {
    /// The connection, made anew where it was closed meanwhile.
    async fn link(&self) -> Result<Numbered<Arc<Link>>, Report> {
        let link = self.shared.get(CONNECT, || self.connect()).await?;
        if link.connection.connection.status().connected() {
            return Ok(link);
        }
        self.shared.give_up(link.number);
        self.shared.get(CONNECT, || self.connect()).await
    }

    async fn connect(&self) -> Result<Arc<Link>, Report> {
        let refused = |problem: String| answer::retry(Reason::ConnectFailed).saying(problem);
        let (uri, tls) = (self.config.uri().map_err(refused)?, self.config.tls().map_err(refused)?);
        let runtime = default_runtime().map_err(|error| refused(error.to_string()))?;
        let properties = ConnectionProperties::default().with_connection_name("pgoutbox".into());
        let connecting = Connection::connector(
            uri,
            runtime,
            async move |uri, runtime| {
                let dialling = uri.connect_with_config_async(tls.as_ref(), &runtime);
                let dialled = tokio::time::timeout(CONNECT, dialling)
                    .await
                    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
                dialled.map_err(lapin::Error::from)
            },
            properties,
        );
        let connection = connecting.await.map_err(|error| answer::unconnected(&error))?;
        Ok(Arc::new(Link { connection, idle: Mutex::default() }))
    }

    /// Publishes to one exchange on a channel of its own, all before the first is waited for.
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
        let channel = match timeout_at(until, link.connection.channel()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => {
                self.shared.give_up(link.number);
                return vec![answer::unconnected(&error); messages.len()];
            }
            Err(_) => {
                self.shared.give_up(link.number);
                return vec![
                    answer::retry(Reason::Timeout).saying("no channel was opened in time");
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
        // The first look at each puts it into the queue of the channel: all, in their order.
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
                    // The library hangs a returned message on whichever confirmation comes next: its id says whose it is.
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
        let closed = answers.iter().find_map(answer::Answer::reason_of_the_server).cloned();
        let alone = messages.len() == 1;
        let messages = messages.iter().zip(answers);
        messages
            .map(|(message, one)| match returned.get(&message.id) {
                Some(words) => answer::retry(Reason::Unroutable)
                    .saying(format!("{words}: no queue gets {:?}", message.routing_key.as_str())),
                // Not all has been heard, so it may be one of those that came back.
                None if !complete && !returned.is_empty() && matches!(one, Answer::Acknowledged) => {
                    answer::retry(Reason::BrokenAnswer)
                        .saying("others were returned, and not all was confirmed")
                        .ambiguous()
                }
                None => one.report(closed.as_ref(), alone, message.payload.len(), status.blocked()),
            })
            .collect()
    }
}

impl Link {
    /// One that nobody else uses, with confirmations.
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
