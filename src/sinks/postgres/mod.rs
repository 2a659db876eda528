//! The postgres sink: events into a table of another database, or through a function there, each exactly once by what makes
//! it unique, `(source, id)`. The tables and functions it needs there are printed by `pgoutbox inbox --sql`.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool, Row as _,
    postgres::PgPoolOptions,
};

use crate::{
    delivery::{Outcome, Reason, duration},
    sink::{
        Batch, Configured, Outgoing, Problem, Report, Settings, Sink, address, body, only, parse_config,
        sqlstate::{Class, class},
        template::Template,
    },
};

/// What a receiving database needs, as SQL.
pub const INBOX: &str = include_str!("inbox.sql");

/// A connection must be made, or come free, within this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The relay's own deadline comes so much after a batch's: the server says itself that its limit was reached.
const GRACE: Duration = Duration::from_secs(7);
const LONGEST: Duration = Duration::from_secs(50);
/// A subscription uses one at a time, so a few whose tables are locked leave the others theirs.
const POOL_SIZE: u32 = 16;
/// The table events go to when the subscription names none.
const TABLE: &str = "outbox.inbox";

/// Writes into another database.
#[derive(Debug)]
pub struct Postgres {
    pool: PgPool,
    connection: String,
}

/// How to reach another database: `[sinks.postgres]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// `postgres://USER@HOST:PORT/DATABASE`.
    pub url: SecretString,
    /// Connections at most.
    pub pool_size: u32,
}

impl Config {
    /// The defaults for a database at this address.
    #[must_use]
    pub fn new(url: SecretString) -> Self {
        Self { url, pool_size: POOL_SIZE }
    }
}

/// A subscription's config.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Where events are inserted: the table of `pgoutbox inbox --sql`, or one with the same columns.
    table: Option<String>,
    /// A function there that takes one jsonb, instead of a table.
    function: Option<String>,
    /// Whose events these are: together with its id what makes an event unique there.
    #[serde(default = "source")]
    source: Template,
    /// How long a batch may take.
    #[serde(default = "timeout", deserialize_with = "duration::deserialize")]
    timeout: Duration,
    /// Events in one transaction at most.
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
            return Err("config: give a table or a function, not both".to_owned().into());
        }
        for (field, name) in [("table", &target.table), ("function", &target.function)] {
            if name.as_deref().is_some_and(|name| !is_plain_name(name)) {
                return Err(format!("config.{field}: write schema.name, in letters, digits and _").into());
            }
        }
        if target.timeout.is_zero() || target.timeout > LONGEST {
            return Err(format!(
                "config.timeout: it must be above 0 and at most {}",
                duration::format(LONGEST)
            )
            .into());
        }
        let most = if target.function.is_some() { 64 } else { 1_000 };
        if target.function.is_some() && config.get("batch").is_none() {
            target.batch = 50;
        }
        if !(1..=most).contains(&target.batch) {
            return Err(format!("config.batch: it must be a whole number from 1 to {most}").into());
        }
        let insert = include_str!("insert.sql");
        target.insert = match &target.table {
            Some(table) => insert.replace(TABLE, table),
            None => insert.to_owned(),
        };
        Ok(target)
    }

    /// Not the database as a whole: rights are given by table, and one that is refused must not hold up the others.
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
            // Those that can be written go without it, each alone, at their next attempt.
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
        let events: Vec<String> = deliveries.iter().map(|delivery| body::whole(&delivery.event)).collect();
        match tokio::time::timeout(
            target.timeout + CONNECT_LIMIT + Duration::from_secs(1),
            self.write(target, &sources, &events),
        )
        .await
        {
            Ok(Ok(reports)) => reports,
            Ok(Err(Failure { error, at_commit })) => {
                let report = report(&error);
                let unknown = at_commit && !matches!(error, sqlx::Error::Database(_));
                vec![Report { ambiguous: unknown, ..report }; deliveries.len()]
            }
            Err(_) => {
                let report = Report::from(Outcome::Retry { reason: Reason::Timeout, after: None });
                vec![report.saying("the database did not answer in time").ambiguous(); deliveries.len()]
            }
        }
    }

    async fn check(&self, target: &Target) -> Result<(), Problem> {
        // Not from the pool: its own error says what is wrong, the pool's that waiting was in vain.
        let options = self.pool.connect_options();
        let asking = async {
            let mut connection = PgConnection::connect_with(&options).await?;
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
        match tokio::time::timeout(CONNECT_LIMIT, asking).await {
            Ok(Ok(Some(true))) => Ok(()),
            Ok(Ok(Some(false))) => Err(format!("the login may not use {name} there").into()),
            Ok(Ok(None)) => {
                Err(format!("there is no {name} there; run what `pgoutbox inbox --sql` prints").into())
            }
            Ok(Err(error)) => Err(words(&error).into()),
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
    async fn write(
        &self,
        target: &Target,
        sources: &[String],
        events: &[String],
    ) -> Result<Vec<Report>, Failure> {
        let mut transaction = self.pool.begin().await?;
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
                            Ok(Report::from(Outcome::Retry {
                                reason: reason(&code, Reason::FunctionFailed),
                                after: None,
                            })
                            .saying(format!("{code}: {message}")))
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
    let reason = match error {
        sqlx::Error::Database(database) => reason(&database.code().unwrap_or_default(), Reason::Refused),
        sqlx::Error::Tls(_) => Reason::TlsFailed,
        _ => Reason::ConnectFailed,
    };
    Report::from(Outcome::Retry { reason, after: None }).saying(words(error))
}

/// What a SQLSTATE means for the attempt.
fn reason(code: &str, otherwise: Reason) -> Reason {
    match class(code) {
        Class::Canceled => Reason::Timeout,
        Class::NoRights | Class::LoginRefused => Reason::AccessDenied,
        Class::Missing | Class::NoDatabase => Reason::TargetMissing,
        Class::Full => Reason::DestinationFull,
        Class::Unavailable | Class::ReadOnly | Class::Busy => Reason::ConnectFailed,
        Class::Refused | Class::Other => otherwise,
    }
}

fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => {
            format!("{}: {}", database.code().unwrap_or_default(), database.message())
        }
        sqlx::Error::PoolTimedOut => "no connection to the database within 5s".to_owned(),
        other => other.to_string(),
    }
}

/// It becomes part of a statement, so it must not need quotes.
fn is_plain_name(name: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
            && word.len() <= 63
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    name.split_once('.').is_some_and(|(schema, name)| is_word(schema) && is_word(name))
}
