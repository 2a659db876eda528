//! The postgres sink: inserts events into a table of another database, or calls a function there. Each event
//! has its effect exactly once, by the unique key `(source, id)`. `pgoutbox inbox` prints the tables
//! and functions it needs there.

use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgPool, Row as _,
    postgres::PgPoolOptions,
};

use crate::{
    delivery::{Outcome, Reason, duration},
    sink::{
        Batch, Configured, Outgoing, Problem, Report, Settings, Sink, address, body, only, parse_config,
        session, shortage,
        sqlstate::{Class, class, class_of},
        template::Template,
    },
};

/// SQL that prepares a receiving database.
pub const INBOX: &str = include_str!("inbox.sql");

/// Timeout of getting a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long the attempt may then ask why it got none. With it an attempt ends before the relay's deadline.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// Time that the relay's deadline adds to `timeout`, so that the server reports the timeout itself.
const GRACE: Duration = Duration::from_secs(7);
/// Longest `timeout`.
const LONGEST: Duration = Duration::from_secs(50);
/// Default of `pool_size`. A subscription uses one connection at a time, so a few with locked tables do not
/// stop the others.
const POOL_SIZE: u32 = 16;
/// Default table.
const TABLE: &str = "outbox.inbox";

/// Writes to another database.
#[derive(Debug)]
pub struct Postgres {
    pool: PgPool,
    connection: String,
}

/// Connection to another database: `[sinks.postgres]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address, `postgres://USER@HOST:PORT/DATABASE`.
    pub url: SecretString,
    /// Most connections.
    pub pool_size: u32,
}

impl Config {
    /// The defaults with this address.
    #[must_use]
    pub fn new(url: SecretString) -> Self {
        Self { url, pool_size: POOL_SIZE }
    }
}

/// A subscription's config.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Table for events: that of `pgoutbox inbox`, or one with the same columns.
    table: Option<String>,
    /// Function there with one jsonb parameter, instead of a table.
    function: Option<String>,
    /// Name of the origin; unique together with the event's id.
    #[serde(default = "source")]
    source: Template,
    /// Timeout of a batch.
    #[serde(default = "timeout", deserialize_with = "duration::deserialize")]
    timeout: Duration,
    /// Most events in one transaction.
    #[serde(default = "most")]
    batch: u16,
    #[serde(skip)]
    insert: String,
}

impl Target {
    /// The table or function.
    fn place(&self) -> &str {
        self.function.as_deref().or(self.table.as_deref()).unwrap_or(TABLE)
    }
}

fn source() -> Template {
    Template::parse("{source:pgoutbox}").expect("this is a template")
}

fn timeout() -> Duration {
    Duration::from_secs(15)
}

fn most() -> u16 {
    200
}

impl Configured for Postgres {
    type Config = Config;

    fn read(settings: &mut Settings<'_>) -> Option<Config> {
        let url = settings.secret("url");
        let pool_size = settings.number("pool_size", 1..=100).unwrap_or(POOL_SIZE);
        let url = settings.require("url", url)?;
        if let Err(problem) = address::parse(url.expose_secret()) {
            settings.refuse("url", problem);
        }
        Some(Config { url, pool_size })
    }

    fn open(config: Config, connection: &str) -> Result<Self, Problem> {
        let options = address::parse(config.url.expose_secret())?;
        let options = options
            .disable_statement_logging()
            .application_name(concat!("pgoutbox/", env!("CARGO_PKG_VERSION")));
        let pool = PgPoolOptions::new()
            .after_connect(|connection, _| Box::pin(session::adjust(connection)))
            // Nothing that a function or trigger leaves in its session may reach the next.
            .after_release(|connection, _| {
                Box::pin(async move {
                    connection.execute(session::RESET).await?;
                    session::adjust(connection).await.map(|()| true)
                })
            })
            .max_connections(config.pool_size)
            .acquire_timeout(CONNECT_LIMIT)
            .idle_timeout(Duration::from_secs(300))
            .connect_lazy_with(options);
        Ok(Self { pool, connection: connection.to_owned() })
    }
}

impl Sink for Postgres {
    const KIND: &'static str = "postgres";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        let mut target: Target = parse_config(config)?;
        if target.table.is_some() && target.function.is_some() {
            return Err("config: set either table or function, not both".to_owned().into());
        }
        for (field, name) in [("table", &target.table), ("function", &target.function)] {
            if name.as_deref().is_some_and(|name| !is_plain_name(name)) {
                return Err(format!("config.{field}: write schema.name, in letters, digits and _").into());
            }
        }
        if target.timeout.is_zero() || target.timeout > LONGEST {
            return Err(
                format!("config.timeout: must be above 0 and at most {}", duration::format(LONGEST)).into()
            );
        }
        let most = if target.function.is_some() { 64 } else { 1_000 };
        if target.function.is_some() && config.get("batch").is_none() {
            target.batch = 50;
        }
        if !(1..=most).contains(&target.batch) {
            return Err(format!("config.batch: must be a whole number from 1 to {most}").into());
        }
        let insert = include_str!("insert.sql");
        target.insert = match &target.table {
            Some(table) => insert.replace(TABLE, table),
            None => insert.to_owned(),
        };
        Ok(target)
    }

    /// One breaker for each table or function: a missing privilege for one must not stop the others.
    fn destination(&self, target: &Target) -> Option<String> {
        Some(format!("postgres:{}/{}", self.connection, target.place()))
    }

    fn deadline(&self, target: &Target) -> Duration {
        target.timeout + GRACE
    }

    fn batch(&self, target: &Target) -> Option<Batch> {
        Some(Batch { max: target.batch.into(), shares_fate: true, ..Batch::BROKER })
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Outgoing]) -> Vec<Report> {
        let sources: Result<Vec<String>, Report> = deliveries
            .iter()
            .map(|delivery| target.source.render_field("source", delivery, |value| value.into()))
            .collect();
        let sources = match sources {
            Ok(sources) => sources,
            // All are retried alone; then only the delivery with the mistake fails.
            Err(report) if deliveries.len() == 1 => return vec![report],
            Err(report) => {
                return vec![
                    Report {
                        outcome: Outcome::Retry { reason: Reason::TemplateFailed, after: None },
                        ..report
                    };
                    deliveries.len()
                ];
            }
        };
        let events: Vec<String> = deliveries.iter().map(|delivery| body::whole(&delivery.marked())).collect();
        let begun = Instant::now();
        match tokio::time::timeout(
            target.timeout + CONNECT_LIMIT + ASK_LIMIT,
            self.write(target, &sources, &events),
        )
        .await
        {
            Ok(Ok(reports)) => reports,
            Ok(Err(Failure { error, at_commit })) => {
                // A function may raise the same error, and people may cancel it.
                let is_canceled = class_of(&error) == Some(Class::Canceled);
                let report = if is_canceled && begun.elapsed() < target.timeout {
                    Report::from(Outcome::Retry { reason: Reason::FunctionFailed, after: None })
                        .with_answer(message(&error))
                } else {
                    report(&error)
                };
                let unknown = at_commit && !matches!(error, sqlx::Error::Database(_));
                vec![Report { ambiguous: unknown, ..report }; deliveries.len()]
            }
            Err(_) => {
                let report = Report::from(Outcome::Retry { reason: Reason::Timeout, after: None });
                vec![report.with_answer("the database did not answer in time").ambiguous(); deliveries.len()]
            }
        }
    }

    async fn check(&self, target: &Target) -> Result<(), Problem> {
        // Connect directly: the pool would report only its own timeout.
        let options = self.pool.connect_options();
        let inspecting = async {
            let mut connection = session::connect(&options, false).await?;
            let table =
                if target.function.is_none() { Some(target.table.as_deref().unwrap_or(TABLE)) } else { None };
            let row = sqlx::query(include_str!("inspect.sql"))
                .bind(table)
                .bind(target.function.as_deref())
                .persistent(false)
                .fetch_one(&mut connection)
                .await?;
            let _ = connection.close().await;
            row.try_get::<Option<bool>, _>("usable")
        };
        let name = target.place();
        match tokio::time::timeout(CONNECT_LIMIT, inspecting).await {
            Ok(Ok(Some(true))) => Ok(()),
            Ok(Ok(Some(false))) => Err(format!("the login may not use {name}").into()),
            Ok(Ok(None)) => {
                Err(format!("{name} does not exist; run the SQL that `pgoutbox inbox` prints").into())
            }
            Ok(Err(error)) => Err(message(&error).into()),
            Err(_) => Err("no answer within 5s".to_owned().into()),
        }
    }
}

struct Failure {
    error: sqlx::Error,
    at_commit: bool,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self { error, at_commit: false }
    }
}

impl Postgres {
    /// Why no connection came free in time. The pool tries again by itself while a server refuses, and does
    /// not say why.
    async fn why_none_is_free(&self) -> sqlx::Error {
        let options = self.pool.connect_options();
        let asking = async { session::connect(&options, false).await?.close().await };
        match tokio::time::timeout(ASK_LIMIT, asking).await {
            Ok(Ok(())) => sqlx::Error::PoolTimedOut,
            Ok(Err(error)) => error,
            Err(_) => std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
        }
    }

    async fn write(
        &self,
        target: &Target,
        sources: &[String],
        events: &[String],
    ) -> Result<Vec<Report>, Failure> {
        let mut transaction = match self.pool.begin_with(session::BEGIN).await {
            Err(sqlx::Error::PoolTimedOut) => return Err(self.why_none_is_free().await.into()),
            begun => begun?,
        };
        let limit = format!("{}ms", target.timeout.as_millis().max(1));
        sqlx::query(include_str!("limit.sql"))
            .bind(limit)
            .persistent(false)
            .execute(&mut *transaction)
            .await?;
        let reports = match &target.function {
            None => {
                sqlx::query(AssertSqlSafe(target.insert.clone()))
                    .bind(sources)
                    .bind(events)
                    .persistent(false)
                    .execute(&mut *transaction)
                    .await?;
                vec![Report::from(Outcome::Delivered); events.len()]
            }
            Some(function) => {
                let rows = sqlx::query(include_str!("deliver.sql"))
                    .bind(function)
                    .bind(sources)
                    .bind(events)
                    .persistent(false)
                    .fetch_all(&mut *transaction)
                    .await?;
                rows.iter()
                    .map(|row| match row.try_get::<Option<String>, _>("code")? {
                        None => Ok(Outcome::Delivered.into()),
                        Some(code) => {
                            let message: String =
                                row.try_get::<Option<String>, _>("message")?.unwrap_or_default();
                            Ok(Report::from(Outcome::Retry { reason: raised(&code), after: None })
                                .with_answer(format!("{code}: {message}")))
                        }
                    })
                    .collect::<Result<_, sqlx::Error>>()?
            }
        };
        transaction.commit().await.map_err(|error| Failure { error, at_commit: true })?;
        Ok(reports)
    }
}

fn report(error: &sqlx::Error) -> Report {
    if let Some(lack) = shortage::of(error) {
        return shortage::report(lack);
    }
    let reason = match error {
        sqlx::Error::PoolTimedOut => Reason::NoResources,
        sqlx::Error::Database(_) if class_of(error) == Some(Class::Busy) => Reason::NoResources,
        sqlx::Error::Database(database) => reason(&database.code().unwrap_or_default(), Reason::Refused),
        sqlx::Error::Tls(_) => Reason::TlsFailed,
        _ => Reason::ConnectFailed,
    };
    Report::from(Outcome::Retry { reason, after: None }).with_answer(message(error))
}

/// The reason for a SQLSTATE.
fn reason(code: &str, default: Reason) -> Reason {
    match class(code) {
        Class::Canceled => Reason::Timeout,
        Class::NoRights | Class::LoginRefused => Reason::AccessDenied,
        Class::Missing | Class::NoDatabase => Reason::TargetMissing,
        Class::Full => Reason::DestinationFull,
        Class::Unavailable | Class::ReadOnly | Class::Busy => Reason::ConnectFailed,
        Class::Refused | Class::Locked | Class::Unreadable | Class::Other => default,
    }
}

/// The reason for a SQLSTATE that a function raised: of the connection it says nothing.
fn raised(code: &str) -> Reason {
    match reason(code, Reason::FunctionFailed) {
        Reason::ConnectFailed | Reason::Timeout => Reason::FunctionFailed,
        reason => reason,
    }
}

fn message(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => {
            format!("{}: {}", database.code().unwrap_or_default(), database.message())
        }
        sqlx::Error::PoolTimedOut => "all connections to the database are in use".to_owned(),
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            "no connection to the database within 5s".to_owned()
        }
        other => other.to_string(),
    }
}

/// Whether a name needs no quotes: it becomes part of a statement.
fn is_plain_name(name: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
            && word.len() <= 63
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    name.split_once('.').is_some_and(|(schema, name)| is_word(schema) && is_word(name))
}
