//! The nats sink: messages into streams of JetStream, delivered at least once and, within a stream's window for duplicates, once.
//! A batch is published in order on one connection that all subscriptions share; a delivery counts when its stream has
//! acknowledged it.
//!
//! The client library runs two tasks for a connection. They end with the last handle to it, or when the connection is lost:
//! it may then try each server once more, and what it still holds would be sent if that works. So whatever was handed to it
//! and not acknowledged is reported as ambiguous, and a lost connection is given up at once.

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

/// Name, TCP, TLS, credentials and a first answer together, of all servers.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a check waits for the list of streams; whoever may publish may not be allowed to ask for it.
const LIST_DEADLINE: Duration = Duration::from_secs(2);
/// What the relay's deadline leaves for the rest.
const GRACE: Duration = Duration::from_secs(1);
/// Errors of the server that a batch may lag behind.
const ERRORS: usize = 256;

/// Publishes to subjects.
pub struct Nats {
    config: Config,
    connection: String,
    shared: SharedConnection<Link>,
}

/// A connection.
#[derive(Clone)]
struct Link {
    client: Client,
    /// What the server says that is no answer to anything: that we may not publish somewhere.
    errors: broadcast::Sender<Arc<str>>,
    /// Cancelled when the connection is lost.
    lost: CancellationToken,
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

    /// Not the server as a whole: streams fill up and rights are given one by one, and one that fails must not hold up the others.
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
        let mut attempt = Attempt { messages, reports, handed: 0 };
        let inbox = link.client.new_inbox();
        let ended = tokio::select! {
            ended = tokio::time::timeout(self.config.timeout, attempt.make(&link, &inbox)) => ended,
            () = link.lost.cancelled() => Ok(Err(retry(Reason::BrokenAnswer).saying("the connection was lost"))),
        };
        let rest = match ended {
            Ok(Ok(())) => retry(Reason::SinkBroken),
            Ok(Err(report)) => report,
            Err(_) => retry(Reason::Timeout).saying(format!(
                "not acknowledged within {}",
                crate::delivery::duration::format(self.config.timeout)
            )),
        };
        if attempt.reports.iter().any(Option::is_none) {
            self.shared.give_up(number);
        }
        let handed = attempt.handed;
        let unanswered = |number: usize| Report { ambiguous: number < handed, ..rest.clone() };
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
            Ok(Ok(answer)) => Ok(answer::is_taken(&answer.payload, subject, target.stream())?),
            Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                Err("the server has no JetStream for us".to_owned().into())
            }
            // Not allowed to ask, which says nothing about publishing.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

impl Nats {
    async fn link(&self) -> Result<Numbered<Link>, Report> {
        let there = self.shared.get(CONNECT_DEADLINE, || self.connect()).await?;
        if there.connection.client.connection_state() == State::Connected
            && !there.connection.lost.is_cancelled()
        {
            return Ok(there);
        }
        self.shared.give_up(there.number);
        self.shared.get(CONNECT_DEADLINE, || self.connect()).await
    }

    async fn connect(&self) -> Result<Link, Report> {
        let (errors, lost) = (broadcast::Sender::new(ERRORS), CancellationToken::new());
        let (tell, end) = (errors.clone(), lost.clone());
        let options =
            self.config.options().await.map_err(|problem| retry(Reason::AccessDenied).saying(problem))?;
        let options = options.event_callback(move |event| {
            match event {
                ClientEvent::Disconnected | ClientEvent::Closed => end.cancel(),
                ClientEvent::ServerError(error) => drop(tell.send(error.to_string().into())),
                _ => {}
            }
            std::future::ready(())
        });
        let client =
            options.connect(self.config.addresses()).await.map_err(|error| answer::unconnected(&error))?;
        Ok(Link { client, errors, lost })
    }
}

/// A batch under way.
struct Attempt {
    messages: Vec<Result<Message, Report>>,
    /// What became of each, where that is known.
    reports: Vec<Option<Report>>,
    /// So many were handed to the client: they may be stored, or still be sent.
    handed: usize,
}

impl Attempt {
    /// Publishes all, then waits for the answers.
    ///
    /// # Errors
    /// What became of those that have no report.
    async fn make(&mut self, link: &Link, inbox: &str) -> Result<(), Report> {
        let lost = || retry(Reason::BrokenAnswer).saying("the connection was lost");
        let mut errors = link.errors.subscribe();
        let mut answers = link.client.subscribe(format!("{inbox}.*")).await.map_err(|_| lost())?;
        for (number, (message, report)) in self.messages.iter().zip(&mut self.reports).enumerate() {
            self.handed = number;
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
        self.handed = self.messages.len();
        while self.reports.iter().any(Option::is_none) {
            tokio::select! {
                answer = answers.next() => {
                    let answer = answer.ok_or_else(lost)?;
                    let number = answer.subject.rsplit('.').next().and_then(|number| number.parse::<usize>().ok());
                    if let Some((number, Ok(message))) = number.and_then(|number| Some((number, self.messages.get(number)?))) {
                        self.reports[number] = Some(answer::report(&answer, &message.subject));
                    }
                }
                Ok(error) = errors.recv() => self.hear(&error, inbox)?,
            }
        }
        Ok(())
    }

    /// What the server says without being asked: it names the subject.
    fn hear(&mut self, error: &str, inbox: &str) -> Result<(), Report> {
        if !error.to_ascii_lowercase().contains("permissions violation") {
            return Ok(());
        }
        let denied = retry(Reason::AccessDenied).saying(error);
        if error.contains(inbox) {
            return Err(denied); // They may be stored, but nobody can tell us.
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
