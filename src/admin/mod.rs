//! What an operator asks the database: status, subscriptions, dead letters, publishing. A method per file in `sql/`.
//! Never prints, and never decides what to do with an answer.

mod apply;
mod check;
mod dead_letters;
mod event_types;
mod trial;

use std::{future::Future, io, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{
    ConnectOptions, Connection, FromRow, PgConnection,
    postgres::{PgConnectOptions, PgDatabaseError},
};
use uuid::Uuid;

pub use self::{
    apply::{
        ApplyError, Change, ChangeKind, SpecError, SubscriptionSpec, check_specs, compare,
        subscribe_statement,
    },
    check::{Finding, check_subscriptions},
    dead_letters::{DeadLetter, DeadLetterCount, DeadLetterFilter},
    trial::{Trial, try_subscription},
};
use crate::{
    event::{Draft, Event},
    sink::sqlstate::{self, Class},
    store::SubscriptionRow,
};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one question may take; PostgreSQL itself gives up five seconds earlier.
const ANSWER: Duration = Duration::from_secs(35);

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke.
    #[error("{doing}: the database cannot be reached")]
    Unreachable {
        /// What was being done.
        doing: &'static str,
        /// What the driver says.
        source: sqlx::Error,
    },
    /// There is no schema `outbox`, or an older one.
    #[error("outbox is not migrated: run `pgoutbox migrate`")]
    NotMigrated,
    /// PostgreSQL refused the input: a malformed topic, an unknown subscription, a missing privilege.
    #[error("{message}{}", hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Refused {
        /// Its sentence; it names the field.
        message: String,
        /// What to write instead, where it knows.
        hint: Option<String>,
    },
    /// Anything else.
    #[error("{doing}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What the driver says.
        source: sqlx::Error,
    },
}

/// One connection of an operator.
#[derive(Debug)]
pub struct Operator {
    connection: PgConnection,
}

/// How a subscription stands. Counters are those of running relays since they started.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Kind of sink.
    pub sink: String,
    /// Null: every organization.
    pub organization: Option<String>,
    /// False: paused by an operator.
    pub active: bool,
    /// `ok`, `invalid`, `gone` or `disabled`.
    pub state: String,
    /// Why, when it is not `ok`.
    pub state_reason: Option<String>,
    /// The destination asked for a pause until then.
    pub paused_until: Option<DateTime<Utc>>,
    /// Deliveries it is owed.
    pub backlog: i64,
    /// Of these, leased now.
    pub in_flight: i64,
    /// Of these, waiting after a failed attempt.
    pub retrying: i64,
    /// Age of the oldest event it is owed.
    pub oldest_age_seconds: Option<f64>,
    /// Given up, not yet redriven or discarded.
    pub dead_letters: i64,
    /// Attempts that succeeded.
    pub delivered: Option<i64>,
    /// Attempts that did not.
    pub failed: Option<i64>,
    /// `delivered` of both, 0 to 1.
    pub success_rate: Option<f64>,
    /// `closed`, `half_open` or `open`.
    pub breaker: String,
    /// Events it was not sent because its match or filter could not be evaluated.
    pub filter_errors: Option<i64>,
    /// Why the last of them could not.
    pub last_filter_error: Option<String>,
}

/// A relay that reported within the last minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct RunningRelay {
    /// Its name.
    pub name: String,
    /// Of its binary.
    pub version: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When it last reported.
    pub seen_at: DateTime<Utc>,
    /// Deliveries it may have in flight.
    pub permits: i32,
    /// Deliveries it has in flight.
    pub in_flight: i32,
}

impl Operator {
    /// Connects, within 5 s. Through a `pooler` no settings can be sent along, so PostgreSQL's own limits hold.
    ///
    /// # Errors
    /// [`Error::Unreachable`], also when the login is refused.
    pub async fn connect(options: &PgConnectOptions, pooler: bool) -> Result<Self, Error> {
        let options =
            options.clone().application_name(concat!("pgoutbox/", env!("CARGO_PKG_VERSION"), "/cli"));
        let options = if pooler {
            options.statement_cache_capacity(0)
        } else {
            options.options([
                ("statement_timeout", "30s"),
                ("lock_timeout", "5s"),
                ("idle_in_transaction_session_timeout", "15s"),
            ])
        };
        let doing = "connecting to the database";
        match tokio::time::timeout(CONNECT, options.connect()).await {
            Ok(Ok(connection)) => Ok(Self { connection }),
            Ok(Err(source)) => Err(Error::Unreachable { doing, source }),
            Err(_) => Err(Error::Unreachable { doing, source: late(CONNECT) }),
        }
    }

    /// The connection itself, for `migrate::pending`.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// How each subscription stands, those in trouble first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn subscription_status(&mut self) -> Result<Vec<Status>, Error> {
        ask(
            "reading how subscriptions stand",
            sqlx::query_as(sql!("admin/subscription_status")).fetch_all(&mut self.connection),
        )
        .await
    }

    /// The relays that reported within the last minute, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_relays(&mut self) -> Result<Vec<RunningRelay>, Error> {
        ask("listing relays", sqlx::query_as(sql!("admin/list_relays")).fetch_all(&mut self.connection)).await
    }

    /// Every subscription as it was written, by name; or the one that has this name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_subscriptions(&mut self, name: Option<&str>) -> Result<Vec<SubscriptionRow>, Error> {
        ask(
            "listing subscriptions",
            sqlx::query_as(sql!("admin/list_subscriptions")).bind(name).fetch_all(&mut self.connection),
        )
        .await
    }

    /// The newest events of the log, the newest first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn recent_events(&mut self, count: i64) -> Result<Vec<Event>, Error> {
        ask(
            "reading the newest events",
            sqlx::query_as(sql!("admin/recent_events")).bind(count).fetch_all(&mut self.connection),
        )
        .await
    }

    /// Stops sending to a subscription. Returns whether this changed anything.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription.
    pub async fn pause_subscription(&mut self, name: &str) -> Result<bool, Error> {
        ask(
            "pausing a subscription",
            sqlx::query_scalar(sql!("admin/pause_subscription")).bind(name).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Sends again after a pause, 410 or disabling. Returns whether this changed anything.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription.
    pub async fn resume_subscription(&mut self, name: &str) -> Result<bool, Error> {
        ask(
            "resuming a subscription",
            sqlx::query_scalar(sql!("admin/resume_subscription")).bind(name).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Creates or changes a subscription. `fields`: an object named as the parameters of `outbox.subscribe`.
    ///
    /// # Errors
    /// What PostgreSQL refuses, naming the field, and those of the database.
    pub async fn subscribe(&mut self, fields: &serde_json::Value) -> Result<i64, Error> {
        ask(
            "subscribing",
            sqlx::query_scalar(sql!("admin/subscribe")).bind(fields).fetch_one(&mut self.connection),
        )
        .await
    }

    /// What follows happens together, or not at all.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn begin(&mut self) -> Result<(), Error> {
        ask("beginning a transaction", sqlx::query("begin").execute(&mut self.connection)).await.map(drop)
    }

    /// Ends what [`Operator::begin`] began. Not kept: all of it is undone.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn end(&mut self, keep: bool) -> Result<(), Error> {
        ask(
            "ending a transaction",
            sqlx::query(if keep { "commit" } else { "rollback" }).execute(&mut self.connection),
        )
        .await
        .map(drop)
    }

    /// Deletes a subscription and what it is owed; its dead letters stay. Returns whether it was there.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn remove_subscription(&mut self, name: &str) -> Result<bool, Error> {
        ask(
            "removing a subscription",
            sqlx::query_scalar(sql!("admin/remove_subscription")).bind(name).fetch_one(&mut self.connection),
        )
        .await
    }

    /// The database's clock, so many seconds ago; negative for an instant to come.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_clock(&mut self, seconds_ago: f64) -> Result<DateTime<Utc>, Error> {
        ask(
            "reading the clock",
            sqlx::query_scalar(sql!("admin/read_clock")).bind(seconds_ago).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Publishes one event and commits it. Returns its id.
    ///
    /// # Errors
    /// [`Error::Refused`] when a topic, header or payload is not what the log takes.
    pub async fn publish(&mut self, draft: &Draft) -> Result<Uuid, Error> {
        ask("publishing an event", async {
            let mut transaction = self.connection.begin().await?;
            let id = draft.publish(&mut transaction).await?;
            transaction.commit().await?;
            Ok(id)
        })
        .await
    }
}

impl Error {
    /// What an error of the driver means to an operator.
    #[must_use]
    pub fn of(doing: &'static str, source: sqlx::Error) -> Self {
        if is_unreachable(&source) {
            return Self::Unreachable { doing, source };
        }
        let Some(answer) =
            source.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        else {
            return Self::Failed { doing, source };
        };
        match sqlstate::class(answer.code()) {
            // Only names of ours are asked for.
            Class::Missing => Self::NotMigrated,
            Class::Refused | Class::NoRights => {
                Self::Refused { message: refusal(answer), hint: answer.hint().map(ToOwned::to_owned) }
            }
            _ => Self::Failed { doing, source },
        }
    }
}

/// Whether the database did not answer at all, or is starting up or going down.
#[must_use]
pub fn is_unreachable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(_) => {
            let unreachable = [Class::Unavailable, Class::LoginRefused, Class::NoDatabase, Class::Busy];
            sqlstate::class_of(error).is_some_and(|class| unreachable.contains(&class))
        }
        _ => false,
    }
}

async fn ask<T>(
    doing: &'static str,
    question: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER, question).await {
        Ok(answer) => answer.map_err(|source| Error::of(doing, source)),
        Err(_) => Err(Error::Unreachable { doing, source: late(ANSWER) }),
    }
}

fn late(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer within {}", crate::delivery::duration::format(limit)),
    ))
}

/// Our constraints are named for what they demand; PostgreSQL's sentence about them would print the whole row.
fn refusal(answer: &PgDatabaseError) -> String {
    match answer.constraint() {
        Some(constraint) if answer.code() == "23514" => constraint.replace('_', " "),
        _ => answer.message().to_owned(),
    }
}
