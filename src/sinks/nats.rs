//! The nats sink: messages into streams of JetStream, delivered at least once and, within a stream's window for duplicates, once.
//! A batch is published in order on one connection that all subscriptions share; a delivery counts when its stream has
//! acknowledged it.
//!
//! The client library runs two tasks for a connection. They end with the last handle to it, or when the connection is lost:
//! it may then try each server once more, and what it still holds would be sent if that works. So whatever was handed to it
//! and not acknowledged is reported as ambiguous, and a lost connection is given up at once.

mod answer;
mod message;

use std::{fmt, fs, path::PathBuf, sync::Arc, time::Duration};

use async_nats::{Client, ConnectOptions, Event as ClientEvent, ServerAddr, connection::State};
use futures_util::StreamExt;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use self::{answer::retry, message::Message};
use super::{
    Batch, Configured, Report, Sink, only,
    shared::{Numbered, Shared},
};
use crate::{config::Settings, delivery::Delivery, verdict::Reason};

pub use self::message::Target;

/// Name, TCP, TLS, credentials and a first answer together, of all servers.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long publishing a batch and its acknowledgements may take, where the operator does not say.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a check waits for the list of streams; whoever may publish may not be allowed to ask for it.
const LIST_DEADLINE: Duration = Duration::from_secs(2);
/// What the relay's deadline leaves for the rest.
const GRACE: Duration = Duration::from_secs(1);
/// Silence after which the client asks whether the server is there; it gives up after three such.
const PING: Duration = Duration::from_secs(5);
/// Errors of the server that a batch may lag behind.
const ERRORS: usize = 256;

/// Publishes to subjects.
pub struct Nats {
    config: Config,
    connection: String,
    shared: Shared<Link>,
}

/// `[sinks.nats]`
#[derive(Debug, Clone)]
pub struct Config {
    servers: Vec<ServerAddr>,
    user: Option<String>,
    password: Option<SecretString>,
    token: Option<SecretString>,
    creds_file: Option<PathBuf>,
    nkey: Option<SecretString>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    inbox_prefix: Option<String>,
    timeout: Duration,
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
        f.debug_struct("Nats").field("connection", &self.connection).field("config", &self.config).finish_non_exhaustive()
    }
}

impl Configured for Nats {
    type Config = Config;

    fn read(settings: &mut Settings<'_>) -> Option<Config> {
        let servers = settings.list("servers");
        let servers = settings.require("servers", servers);
        let user = settings.text("user");
        let password = settings.secret("password");
        let token = settings.secret("token");
        let creds_file = settings.path("creds_file");
        let nkey = settings.secret("nkey");
        let ca_file = settings.path("ca_file");
        let cert_file = settings.path("cert_file");
        let key_file = settings.path("key_file");
        let inbox_prefix = settings.text("inbox_prefix");
        let timeout = settings.duration("timeout", Duration::from_millis(100)..=Duration::from_secs(30)).unwrap_or(TIMEOUT);
        let servers: Option<Vec<_>> = servers?.iter().map(|server| address(server)).collect();
        let Some(servers) = servers.filter(|servers| !servers.is_empty()) else {
            settings.refuse("servers", "must be addresses such as nats://HOST:PORT or tls://HOST:PORT, without user and password");
            return None;
        };
        if user.is_some() != password.is_some() {
            settings.refuse(if user.is_some() { "user" } else { "password" }, "needs the other one of user and password");
        }
        if cert_file.is_some() != key_file.is_some() {
            settings.refuse(if cert_file.is_some() { "cert_file" } else { "key_file" }, "needs the other one of cert_file and key_file");
        }
        if let Some(prefix) = &inbox_prefix
            && !message::is_subject(prefix)
        {
            settings.refuse("inbox_prefix", "must be a subject, such as _INBOX_PGOUTBOX");
        }
        Some(Config { servers, user, password, token, creds_file, nkey, ca_file, cert_file, key_file, inbox_prefix, timeout })
    }

    fn open(config: Config, connection: &str) -> Result<Self, String> {
        // The library takes the process's provider. Another one may be installed already, by the program we are embedded in.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let files = [("ca_file", &config.ca_file), ("cert_file", &config.cert_file), ("key_file", &config.key_file)];
        for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
            fs::metadata(path).map_err(|error| format!("{key} {}: {error}", path.display()))?;
        }
        if let Some(path) = &config.creds_file {
            let text = fs::read_to_string(path).map_err(|error| format!("creds_file {}: {error}", path.display()))?;
            ConnectOptions::with_credentials(&text).map_err(|_| format!("creds_file {}: it holds no credentials", path.display()))?;
        }
        Ok(Self { config, connection: connection.to_owned(), shared: Shared::default() })
    }
}

fn address(server: &str) -> Option<ServerAddr> {
    let address: ServerAddr = server.parse().ok()?;
    let plain = matches!(address.scheme(), "nats" | "tls") && address.username().is_none() && address.password().is_none();
    plain.then_some(address)
}

impl Sink for Nats {
    const KIND: &'static str = "nats";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, String> {
        Target::parse(config)
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

    async fn send(&self, target: &Target, delivery: &Delivery) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Delivery]) -> Vec<Report> {
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
            Err(_) => retry(Reason::Timeout).saying(format!("not acknowledged within {}", crate::duration::format(self.config.timeout))),
        };
        if attempt.reports.iter().any(Option::is_none) {
            self.shared.give_up(number);
        }
        let handed = attempt.handed;
        let unanswered = |number: usize| Report { ambiguous: number < handed, ..rest.clone() };
        attempt.reports.into_iter().enumerate().map(|(number, report)| report.unwrap_or_else(|| unanswered(number))).collect()
    }

    async fn check(&self, target: &Target) -> Result<(), String> {
        let link = self.link().await.map_err(|report| report.answer.unwrap_or_default())?.connection;
        let Some(subject) = target.fixed_subject() else { return Ok(()) };
        let question = serde_json::json!({ "subject": subject }).to_string();
        let asked = link.client.request("$JS.API.STREAM.NAMES", question.into());
        match tokio::time::timeout(LIST_DEADLINE, asked).await {
            Ok(Ok(answer)) => answer::is_taken(&answer.payload, subject, target.stream()),
            Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                Err("the server has no JetStream for us".to_owned())
            }
            // Not allowed to ask, which says nothing about publishing.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

impl Nats {
    async fn link(&self) -> Result<Numbered<Link>, Report> {
        let there = self.shared.get(CONNECT_DEADLINE, || self.connect()).await?;
        if there.connection.client.connection_state() == State::Connected && !there.connection.lost.is_cancelled() {
            return Ok(there);
        }
        self.shared.give_up(there.number);
        self.shared.get(CONNECT_DEADLINE, || self.connect()).await
    }

    async fn connect(&self) -> Result<Link, Report> {
        let config = &self.config;
        let (errors, lost) = (broadcast::Sender::new(ERRORS), CancellationToken::new());
        let (tell, end) = (errors.clone(), lost.clone());
        let servers = config.servers.len();
        let each = CONNECT_DEADLINE / u32::try_from(servers).unwrap_or(u32::MAX);
        let mut options = ConnectOptions::new()
            .name("pgoutbox")
            .connection_timeout(each.max(Duration::from_secs(1)))
            .max_reconnects(servers)
            .ping_interval(PING)
            .require_tls(config.ca_file.is_some() || config.cert_file.is_some())
            .event_callback(move |event| {
                match event {
                    ClientEvent::Disconnected | ClientEvent::Closed => end.cancel(),
                    ClientEvent::ServerError(error) => drop(tell.send(error.to_string().into())),
                    _ => {}
                }
                std::future::ready(())
            });
        if let (Some(user), Some(password)) = (&config.user, &config.password) {
            options = options.user_and_password(user.clone(), password.expose_secret().to_owned());
        }
        if let Some(token) = &config.token {
            options = options.token(token.expose_secret().to_owned());
        }
        if let Some(seed) = &config.nkey {
            options = options.nkey(seed.expose_secret().to_owned());
        }
        if let Some(path) = &config.creds_file {
            // Read anew each time: it may have been replaced.
            options = options.credentials_file(path).await.map_err(|_| {
                retry(Reason::AccessDenied).saying(format!("creds_file {}: it cannot be read or holds no credentials", path.display()))
            })?;
        }
        if let Some(path) = &config.ca_file {
            options = options.add_root_certificates(path.clone());
        }
        if let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if let Some(prefix) = &config.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        let client = options.connect(config.servers.as_slice()).await.map_err(|error| answer::unconnected(&error))?;
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
