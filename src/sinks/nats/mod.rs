//! The nats sink: messages to streams of JetStream, delivered at least once, and once within a stream's
//! duplicate window. A batch is published in order on one connection that all subscriptions share. A delivery
//! succeeds when its stream has acknowledged it.
//!
//! The client library runs two tasks for a connection. They end with the last handle, or when the connection
//! is lost: the library may then try each server once more and send what it still holds. So messages that
//! were passed to it and not acknowledged are reported as ambiguous, and a lost connection is dropped at
//! once.

mod answer;
mod config;
mod message;

use std::{fmt, sync::Arc, time::Duration};

use async_nats::{Client, Event as ClientEvent, connection::State};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use self::{answer::retry, message::Message};
use crate::{
    delivery::Reason,
    sink::{
        Batch, Configured, Outgoing, Problem, Report, Settings, Sink,
        broker::{Numbered, SharedConnection},
        only, tls,
    },
};

pub use self::{config::Config, message::Target};

/// Timeout of connecting: name, TCP, TLS, credentials and a first answer, for all servers together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Timeout of the list of streams in a check. A user that may publish may not be allowed to read it.
const LIST_DEADLINE: Duration = Duration::from_secs(2);
/// Time that the deadline of an attempt adds to its own timeouts.
const GRACE: Duration = Duration::from_secs(1);
/// Capacity of the channel for errors of the server.
const ERRORS: usize = 256;

/// Publishes to subjects.
pub struct Nats {
    config: Config,
    connection: String,
    shared: SharedConnection<Link>,
}

/// A connection with its errors.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) client: Client,
    /// Errors of the server that answer no message, such as a missing permission to publish.
    errors: broadcast::Sender<Arc<str>>,
    /// Cancelled when the connection is lost.
    pub(crate) lost: CancellationToken,
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats")
            .field("connection", &self.connection)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Configured for Nats {
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

impl Sink for Nats {
    const KIND: &'static str = "nats";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        Ok(Target::parse(config)?)
    }

    /// One breaker for each stream or subject: one that is full or not permitted must not stop the
    /// others.
    fn destination(&self, target: &Target) -> Option<String> {
        Some(format!("nats:{}/{}", self.connection, target.place))
    }

    fn deadline(&self, _: &Target) -> Duration {
        CONNECT_DEADLINE + self.config.timeout + GRACE
    }

    fn batch(&self, _: &Target) -> Option<Batch> {
        Some(Batch::BROKER)
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Outgoing]) -> Vec<Report> {
        let Numbered { connection: link, number } = match self.link().await {
            Ok(link) => link,
            Err(report) => return vec![report; deliveries.len()],
        };
        let messages: Vec<_> = deliveries.iter().map(|delivery| target.message(delivery)).collect();
        let reports = messages.iter().map(|message| message.as_ref().err().cloned()).collect();
        let mut attempt = Attempt { messages, reports, passed: 0, has_foreign: false };
        let inbox = link.client.new_inbox();
        let ended = tokio::select! {
            ended = tokio::time::timeout(self.config.timeout, attempt.make(&link, &inbox)) => ended,
            () = link.lost.cancelled() => Ok(Err(connection_lost())),
        };
        let rest = match ended {
            Ok(Ok(())) => retry(Reason::SinkBroken),
            Ok(Err(report)) => report,
            Err(_) if attempt.has_foreign => retry(Reason::BrokenAnswer)
                .with_answer("a subscriber answered, who is not a stream, and no stream did"),
            Err(_) => retry(Reason::Timeout).with_answer(format!(
                "not acknowledged within {}",
                crate::delivery::duration::format(self.config.timeout)
            )),
        };
        if attempt.reports.iter().any(Option::is_none) {
            self.shared.give_up(number);
        }
        let passed = attempt.passed;
        let unanswered = |number: usize| Report { ambiguous: number < passed, ..rest.clone() };
        attempt
            .reports
            .into_iter()
            .enumerate()
            .map(|(number, report)| report.unwrap_or_else(|| unanswered(number)))
            .collect()
    }

    async fn check(&self, target: &Target) -> Result<(), Problem> {
        let link = self.link().await.map_err(|report| report.answer.unwrap_or_default())?.connection;
        let Some(subject) = target.fixed_subject() else { return Ok(()) };
        let question = serde_json::json!({ "subject": subject }).to_string();
        let asked = link.client.request("$JS.API.STREAM.NAMES", question.into());
        match tokio::time::timeout(LIST_DEADLINE, asked).await {
            Ok(Ok(answer)) => {
                let stream = answer::check_streams(&answer.payload, subject, target.stream())?;
                let asked = link.client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into());
                match tokio::time::timeout(LIST_DEADLINE, asked).await {
                    Ok(Ok(described)) => Ok(answer::check_acknowledges(&described.payload, &stream)?),
                    Ok(Err(_)) | Err(_) => Ok(()),
                }
            }
            Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                Err("the server has no JetStream for this account".to_owned().into())
            }
            // The user may not read the list, which says nothing about publishing.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

impl Nats {
    async fn link(&self) -> Result<Numbered<Link>, Report> {
        let link = self.shared.get(CONNECT_DEADLINE, || self.config.connect()).await?;
        if link.connection.client.connection_state() == State::Connected
            && !link.connection.lost.is_cancelled()
        {
            return Ok(link);
        }
        self.shared.give_up(link.number);
        self.shared.get(CONNECT_DEADLINE, || self.config.connect()).await
    }
}

impl Config {
    /// Makes a connection. It is not made again when it is lost.
    pub(crate) async fn connect(&self) -> Result<Link, Report> {
        let (errors, lost) = (broadcast::Sender::new(ERRORS), CancellationToken::new());
        let (sender, end) = (errors.clone(), lost.clone());
        let options =
            self.options().await.map_err(|problem| retry(Reason::AccessDenied).with_answer(problem))?;
        let options = options.event_callback(move |event| {
            match event {
                ClientEvent::Disconnected | ClientEvent::Closed => end.cancel(),
                ClientEvent::ServerError(error) => drop(sender.send(error.to_string().into())),
                _ => {}
            }
            std::future::ready(())
        });
        let client = options.connect(self.addresses()).await.map_err(|error| answer::unconnected(&error))?;
        Ok(Link { client, errors, lost })
    }
}

fn connection_lost() -> Report {
    retry(Reason::BrokenAnswer).with_answer("the connection was lost")
}

/// One attempt for a batch.
struct Attempt {
    messages: Vec<Result<Message, Report>>,
    /// Report of each message, as far as known.
    reports: Vec<Option<Report>>,
    /// Number of messages passed to the client: they may be stored, or still be sent.
    passed: usize,
    /// Whether somebody else than a stream has answered.
    has_foreign: bool,
}

impl Attempt {
    /// Publishes all messages, then waits for the answers.
    ///
    /// # Errors
    /// The report for the messages that have none.
    async fn make(&mut self, link: &Link, inbox: &str) -> Result<(), Report> {
        let mut errors = link.errors.subscribe();
        let mut answers = link.client.subscribe(format!("{inbox}.*")).await.map_err(|_| connection_lost())?;
        for (number, (message, report)) in self.messages.iter().zip(&mut self.reports).enumerate() {
            self.passed = number;
            let Ok(message) = message else { continue };
            let publishing = link.client.publish_with_reply_and_headers(
                message.subject.clone(),
                format!("{inbox}.{number}"),
                message.headers.clone(),
                message.body.clone(),
            );
            if let Err(error) = publishing.await {
                *report = Some(answer::unpublished(&error));
            }
        }
        self.passed = self.messages.len();
        while self.reports.iter().any(Option::is_none) {
            tokio::select! {
                answer = answers.next() => {
                    let answer = answer.ok_or_else(connection_lost)?;
                    let number = answer.subject.rsplit('.').next();
                    let number = number.and_then(|number| number.parse::<usize>().ok());
                    if let Some(number) = number
                        && let Some(Ok(message)) = self.messages.get(number)
                    {
                        match answer::report(&answer, &message.subject) {
                            Some(report) if self.reports[number].is_none() => {
                                self.reports[number] = Some(report);
                            }
                            Some(_) => {}
                            None => self.has_foreign = true,
                        }
                    }
                }
                Ok(error) = errors.recv() => self.handle_error(&error, inbox)?,
            }
        }
        Ok(())
    }

    /// Handles an error of the server that answers no message; a permission error names the subject.
    fn handle_error(&mut self, error: &str, inbox: &str) -> Result<(), Report> {
        if !error.to_ascii_lowercase().contains("permissions violation") {
            return Ok(());
        }
        let denied = retry(Reason::AccessDenied).with_answer(error);
        if error.contains(inbox) {
            return Err(denied); // Messages may be stored, but no acknowledgement can arrive.
        }
        for (message, report) in self.messages.iter().zip(&mut self.reports) {
            if let Ok(message) = message
                && report.is_none()
                && error.contains(&format!("{:?}", message.subject))
            {
                *report = Some(denied.clone());
            }
        }
        Ok(())
    }
}
