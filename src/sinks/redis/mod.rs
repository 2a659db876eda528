//! The redis sink: entries of Redis Streams, delivered at least once. A batch is one pipeline of XADD on one
//! connection that all subscriptions share, so it arrives in order; each entry has its own answer.
//!
//! The client library runs one task for a connection, which ends with the last handle. It neither repeats
//! commands nor reconnects. Without an answer the entries may have been added: such attempts are ambiguous.

mod answer;
mod config;

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, Value as Answer, aio::MultiplexedConnection,
};
use serde::Deserialize;
use serde_json::Value;

pub use self::config::Config;
use crate::{
    delivery::Outcome,
    sink::{
        Batch, Configured, Outgoing, Problem, Report, Settings, Sink,
        body::{self, Body},
        broker::{Numbered, SharedConnection},
        headers_about, only, parse_config,
        template::Template,
        tls,
    },
};

/// Timeout of connecting: name, TCP, TLS, credentials and a first answer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Idle time after which a connection is checked before use: the server may have been restarted.
const QUIET: Duration = Duration::from_secs(1);
/// Timeout of this check.
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// Time that the deadline of an attempt adds to its own timeouts.
const GRACE: Duration = Duration::from_secs(1);
/// Id that XADD always refuses, after checking permissions and memory. No stream is created.
const REFUSED_ID: &str = "0-0";

/// Adds entries to streams.
pub struct Redis {
    client: Client,
    connection: String,
    timeout: Duration,
    shared: SharedConnection<Link>,
}

/// A subscription's config.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Key of the stream.
    stream: Template,
    /// Approximate number of entries the stream keeps.
    maxlen: Option<u64>,
    /// Form of the field `payload`.
    #[serde(default = "raw")]
    body: Body,
    /// The stream as written in the config; names the breaker.
    #[serde(skip)]
    place: String,
}

fn raw() -> Body {
    Body::Raw
}

/// A connection and the time of its last answer.
#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
    began: Instant,
    /// Time of the last answer, in milliseconds since `began`.
    answered: Arc<AtomicU64>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("connection", &self.connection)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Configured for Redis {
    type Config = Config;

    fn read(settings: &mut Settings<'_>) -> Option<Config> {
        Config::read(settings)
    }

    fn open(config: Config, connection: &str) -> Result<Self, Problem> {
        tls::use_ring();
        Ok(Self {
            client: config.client()?,
            connection: connection.to_owned(),
            timeout: config.timeout,
            shared: SharedConnection::default(),
        })
    }
}

impl Sink for Redis {
    const KIND: &'static str = "redis";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        let mut target: Target = parse_config(config)?;
        if target.maxlen == Some(0) {
            return Err("config.maxlen: must be at least 1; leave it out to keep everything"
                .to_owned()
                .into());
        }
        if target.body == Body::CloudEventsBinary {
            return Err(
                "config.body: must be raw, standard or cloudevents; there is no binary mode for Redis"
                    .to_owned()
                    .into(),
            );
        }
        target.place = config["stream"].as_str().unwrap_or_default().to_owned();
        Ok(target)
    }

    /// One breaker for each stream: a missing permission for one must not stop the others.
    fn destination(&self, target: &Target) -> Option<String> {
        Some(format!("redis:{}/{}", self.connection, target.place))
    }

    fn deadline(&self, _: &Target) -> Duration {
        CONNECT_DEADLINE + PING_DEADLINE + self.timeout + GRACE
    }

    fn batch(&self, _: &Target) -> Option<Batch> {
        Some(Batch::BROKER)
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Outgoing]) -> Vec<Report> {
        let mut pipeline = Pipeline::with_capacity(deliveries.len());
        let mut reports: Vec<Option<Report>> = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            reports.push(
                match target.stream.render_field("stream", delivery, |value| Cow::Borrowed(value)) {
                    Ok(stream) => {
                        pipeline.add_command(entry(&stream, target, delivery));
                        None
                    }
                    Err(report) => Some(report),
                },
            );
        }
        let mut answers = if pipeline.is_empty() { Vec::new() } else { self.ask(pipeline).await }.into_iter();
        let missing = || {
            Report::from(Outcome::Retry { reason: crate::delivery::Reason::BrokenAnswer, after: None })
                .ambiguous()
        };
        reports.into_iter().map(|report| report.or_else(|| answers.next()).unwrap_or_else(missing)).collect()
    }

    async fn check(&self, target: &Target) -> Result<(), Problem> {
        let answer = |report: Report| report.answer.unwrap_or_default();
        let Numbered { mut connection, number } =
            self.link().await.map_err(answer)?.map(|link| link.connection);
        // A stream that depends on the event cannot be checked.
        let Some(stream) = target.stream.fixed() else { return Ok(()) };
        let add: Result<Answer, RedisError> = redis::cmd("XADD")
            .arg(stream)
            .arg(REFUSED_ID)
            .arg("check")
            .arg("")
            .query_async(&mut connection)
            .await;
        match add {
            Err(error)
                if error.code() == Some("ERR") && error.to_string().contains("must be greater than 0-0") => {}
            Err(error) => {
                if answer::ends_the_connection(&error) {
                    self.shared.give_up(number);
                }
                return Err(format!("stream {stream}: {}", answer::text(&error)).into());
            }
            Ok(_) => return Err(format!("stream {stream}: the server does not behave like Redis").into()),
        }
        match redis::cmd("TYPE").arg(stream).query_async::<String>(&mut connection).await.as_deref() {
            Ok("stream" | "none") | Err(_) => Ok(()),
            Ok(other) => Err(format!("stream {stream}: the key holds a {other}").into()),
        }
    }
}

impl Redis {
    /// Runs a pipeline. Returns a report for each command.
    async fn ask(&self, mut pipeline: Pipeline) -> Vec<Report> {
        let Numbered { connection: mut link, number } = match self.link().await {
            Ok(link) => link,
            Err(report) => return vec![report; pipeline.len()],
        };
        let answers: Result<Vec<Result<Answer, RedisError>>, _> =
            pipeline.ignore_errors().query_async(&mut link.connection).await;
        match answers {
            Ok(answers) => {
                link.mark_answered();
                let ends = answers
                    .iter()
                    .filter_map(|answer| answer.as_ref().err())
                    .any(answer::ends_the_connection);
                if ends {
                    self.shared.give_up(number);
                }
                answers
                    .into_iter()
                    .map(|answer| {
                        answer.map_or_else(|error| answer::refused(&error), |_| Outcome::Delivered.into())
                    })
                    .collect()
            }
            Err(error) => {
                self.shared.give_up(number);
                vec![answer::lost(&error, self.timeout); pipeline.len()]
            }
        }
    }

    /// The connection, after a check if it was idle.
    async fn link(&self) -> Result<Numbered<Link>, Report> {
        let mut link = self.shared.get(CONNECT_DEADLINE, || self.connect()).await?;
        if link.connection.is_quiet() {
            let asked = tokio::time::timeout(PING_DEADLINE, ping(&mut link.connection.connection)).await;
            if !matches!(asked, Ok(Ok(()))) {
                self.shared.give_up(link.number);
                return self.shared.get(CONNECT_DEADLINE, || self.connect()).await;
            }
            link.connection.mark_answered();
        }
        Ok(link)
    }

    async fn connect(&self) -> Result<Link, Report> {
        // The caller limits connecting as a whole.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(self.timeout));
        let connecting = async {
            let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            ping(&mut connection).await?;
            Ok(connection)
        };
        match connecting.await {
            Ok(connection) => Ok(Link { connection, began: Instant::now(), answered: Arc::default() }),
            Err(error) => Err(answer::unconnected(&error)),
        }
    }
}

impl Link {
    fn mark_answered(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.answered.store(now, Ordering::Relaxed);
    }

    fn is_quiet(&self) -> bool {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.answered.load(Ordering::Relaxed)))
            > QUIET
    }
}

/// Waits for an answer of the server. A user need not have the right to ask: that it is refused is an answer
/// too.
async fn ping(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    match redis::cmd("PING").query_async::<()>(connection).await {
        Err(error) if error.code() == Some("NOPERM") => Ok(()),
        answered => answered,
    }
}

/// The command that adds an entry: flat fields, the payload last.
fn entry(stream: &str, target: &Target, delivery: &Outgoing) -> Cmd {
    let event = &*delivery.event;
    let mut command = redis::cmd("XADD");
    command.arg(stream);
    if let Some(maxlen) = target.maxlen {
        command.arg("MAXLEN").arg("~").arg(maxlen);
    }
    command.arg("*");
    for (name, value) in body::attributes(event) {
        command.arg(name).arg(value);
    }
    for (name, value) in headers_about(std::slice::from_ref(delivery)) {
        command.arg(name).arg(value);
    }
    for (name, value) in body::headers_beside(event, &["pgoutbox-"]) {
        // A header must not replace one of our fields.
        match name.as_str() {
            "id" | "topic" | "created-at" | "key" | "organization" | "source" | "user-id"
            | "schema-version" | "content-type" | "payload" | "pgoutbox-replay" => {
                command.arg(format!("header-{name}"))
            }
            _ => command.arg(name),
        };
        command.arg(value);
    }
    command.arg("content-type").arg(target.body.content_type()).arg("payload").arg(target.body.of(event));
    command
}
