//! What operators ask of the database: status, subscriptions, dead letters, publishing. One method for each
//! file in `sql/admin`. Never prints.

mod adopt;
mod apply;
mod attempts;
mod audit;
mod bulk;
mod check;
mod dead_letters;
mod deliveries;
mod error;
mod event_types;
mod events;
mod limits;
mod listen;
mod replays;
mod schema;
mod statement;
mod subscriptions;
mod trace;
mod trial;
mod wait;

use std::{future::Future, io, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection, FromRow, PgConnection};
use uuid::Uuid;

use self::statement::{rows, statement, value};
pub use self::{
    adopt::Adopted,
    apply::{
        ApplyError, Change, ChangeKind, SpecError, SubscriptionSpec, check_specs, compare,
        subscribe_statement,
    },
    attempts::{AttemptFilter, AttemptPlace, LoggedAttempt},
    audit::AuditEntry,
    bulk::{BulkCount, BulkVerb, Unclear, unclear_choice},
    check::{Elsewhere, Finding, Findings, check_subscriptions},
    dead_letters::{DeadLetter, DeadLetterCount, DeadLetterFilter, DeadLetterGroup, WholeDeadLetter},
    deliveries::{DeliveryCount, DeliveryFilter, DeliveryPlace, PlacedDelivery, WaitingDelivery},
    error::{Error, Why, is_denied, is_unreachable},
    event_types::ShownEventType,
    events::{EventFilter, LOOKED_AT, LoggedEvent, WholeEvent},
    limits::OrganizationLimit,
    listen::DEAF,
    replays::{Replay, ReplayCount, ReplayOrder},
    subscriptions::{Changed, Created, ShownSubscription},
    trace::{Trace, TraceDetail, TraceGroup, TraceStatus, TracedEvent, TracedSubscription},
    trial::{Trial, try_subscription},
    wait::{EventStatus, Said, SaidState, Waited, wait},
};
use crate::{
    event::{Draft, Event},
    sink::{plain::plain, servers::Servers, session},
    store::{LogStatus, SubscriptionRow},
};

const PUBLISHING: &str = "publishing an event";
const READING_STATUS: &str = "reading the status of subscriptions";
const READING_LOG: &str = "reading the log";
const READING_IDENTITY: &str = "reading which database this is";
const LISTING_RELAYS: &str = "listing relays";

/// Timeout of connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// Timeout of one statement, five seconds after PostgreSQL's own.
const ANSWER: Duration = Duration::from_secs(35);

/// Settings of an operator's connection, in addition to those of all sessions. Compiling what is read once
/// takes longer than reading it, so JIT is off.
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "30s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "15s"),
    ("jit", "off"),
];

/// Settings of the API's connection beside those: it has a time for each request, and few connections.
const SETTINGS_OF_API: &[(&str, &str)] = &[("statement_timeout", "8s"), ("lock_timeout", "3s")];

/// The program that an operator uses. Its name is in `application_name`, which `outbox.audit` records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The command line.
    CommandLine,
    /// The API of a relay.
    Api,
}

/// An operator's connection to the database.
#[derive(Debug)]
pub struct Operator {
    connection: PgConnection,
    /// Who asks the program, for `outbox.audit`.
    actor: Option<String>,
}

/// A published event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct Published {
    /// Id of the event.
    pub event_id: Uuid,
}

/// Status of a subscription. `delivered` and `failed` cover the running relays since their start.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct Status {
    /// Name of the subscription.
    pub name: String,
    /// Kind of sink.
    pub sink: String,
    /// Tenant whose events it receives; none for every organization.
    pub organization: Option<String>,
    /// False while an operator has paused it.
    pub active: bool,
    /// State: `pending`, `ok`, `invalid`, `gone` or `disabled`.
    pub state: String,
    /// Why the state is not `ok`.
    pub state_reason: Option<String>,
    /// End of a pause that the destination asked for.
    pub paused_until: Option<DateTime<Utc>>,
    /// Pending deliveries.
    pub backlog: i64,
    /// Pending deliveries that are leased now.
    pub in_flight: i64,
    /// Pending deliveries that wait after a failed attempt.
    pub retrying: i64,
    /// For how many seconds the oldest of them has been owed. What is not due for the first time has no age.
    pub oldest_age_seconds: Option<f64>,
    /// Dead letters that are neither redriven nor discarded.
    pub dead_letters: i64,
    /// Attempts that succeeded, as the relays reported; none if none has.
    pub delivered: Option<i64>,
    /// Attempts that failed, as the relays reported; none if none has.
    pub failed: Option<i64>,
    /// Of the deliveries that succeeded or were given up in the last 15 minutes, and of those that wait for a
    /// retry: the share whose last attempt succeeded, 0 to 1; none if there are none.
    pub success_rate: Option<f64>,
    /// State of the breaker: `closed`, `half_open` or `open`.
    pub breaker: String,
    /// Events not sent because `match` or the filter could not be evaluated.
    pub filter_errors: Option<i64>,
    /// Message of the last of these errors.
    pub last_filter_error: Option<String>,
}

/// A relay that reported within the last minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct RunningRelay {
    /// Name of the relay.
    pub name: String,
    /// Version of its binary.
    pub version: String,
    /// Time of its start.
    pub started_at: DateTime<Utc>,
    /// Time of its last report.
    pub seen_at: DateTime<Utc>,
    /// Most deliveries it may have in flight.
    pub permits: i32,
    /// Deliveries that it has leased and not begun. A kill delays them.
    pub leased_ahead: i32,
    /// Deliveries in flight.
    pub in_flight: i32,
    /// Deliveries that were answered and are not recorded. A kill repeats these and those in flight.
    pub unsettled: i32,
    /// Since when it fails again and again to route or to settle; none while it works.
    pub no_progress_since: Option<DateTime<Utc>>,
    /// The error that it meets.
    pub no_progress_why: Option<String>,
}

/// A process with live clients that reported within the last minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct RunningGateway {
    /// Name of the gateway; that of the relay that it runs beside.
    pub gateway: String,
    /// Version of its binary.
    pub version: String,
    /// Time of its start.
    pub started_at: DateTime<Utc>,
    /// Time of its last report.
    pub seen_at: DateTime<Utc>,
    /// Connections of clients.
    pub connections: i32,
}

impl Operator {
    /// Connects the command line within 5 s, to the right one of several servers. A `pooler` accepts no
    /// settings at connect, so the server's own timeouts apply.
    ///
    /// # Errors
    /// [`Error::Unreachable`], also when the login is refused.
    pub async fn connect(servers: impl Into<Servers>, pooler: bool) -> Result<Self, Error> {
        Self::connect_as(Program::CommandLine, servers, pooler).await
    }

    /// Connects a program, as [`Operator::connect`] does. A statement of the API ends soon after the API has
    /// dropped the connection, where there is no pooler and the server's system can tell.
    ///
    /// # Errors
    /// [`Error::Unreachable`], also when the login is refused.
    pub async fn connect_as(
        program: Program,
        servers: impl Into<Servers>,
        pooler: bool,
    ) -> Result<Self, Error> {
        let (name, more) = match program {
            Program::CommandLine => (concat!("pgoutbox/", env!("CARGO_PKG_VERSION"), "/cli"), &[][..]),
            Program::Api => (concat!("pgoutbox/", env!("CARGO_PKG_VERSION"), "/api"), SETTINGS_OF_API),
        };
        let servers = servers.into().map(|options| {
            let options = options.application_name(name);
            if pooler {
                return options.statement_cache_capacity(0);
            }
            options.options(session::SETTINGS.iter().chain(SETTINGS).chain(more).copied())
        });
        let doing = "connecting to the database";
        match tokio::time::timeout(CONNECT, servers.connect(pooler)).await {
            Ok(Ok(connection)) => {
                let mut operator = Self { connection, actor: None };
                if program == Program::Api && !pooler {
                    // Where it cannot be set, a statement ends at its timeout.
                    let _ = operator.end_with_client().await;
                }
                Ok(operator)
            }
            Ok(Err(source)) => Err(Error::Unreachable { doing, source: plain(source) }),
            Err(_) => Err(Error::Unreachable { doing, source: late(CONNECT) }),
        }
    }

    async fn end_with_client(&mut self) -> Result<(), Error> {
        let query = statement(sql!("admin/end_with_client")).execute(&mut self.connection);
        ask("setting up the session", query).await.map(drop)
    }

    /// Who asks the program from now on; `outbox.audit` records it with what is changed in a transaction of
    /// [`Operator::begin`].
    pub fn act_for(&mut self, actor: Option<String>) {
        self.actor = actor;
    }

    /// The connection, for migrations.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Status of each subscription, those with problems first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn subscription_status(&mut self) -> Result<Vec<Status>, Error> {
        ask(READING_STATUS, rows(sql!("admin/subscription_status")).fetch_all(&mut self.connection)).await
    }

    /// How much of the log is not routed yet.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn log_status(&mut self) -> Result<LogStatus, Error> {
        ask(READING_LOG, rows(sql!("admin/log_status")).fetch_one(&mut self.connection)).await
    }

    /// How much a relay could do now: events that are not routed, and deliveries that are due or in flight.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn count_due(&mut self) -> Result<i64, Error> {
        ask(READING_LOG, value(sql!("admin/count_due")).fetch_one(&mut self.connection)).await
    }

    /// Relays that reported within the last minute, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_relays(&mut self) -> Result<Vec<RunningRelay>, Error> {
        ask(LISTING_RELAYS, rows(sql!("admin/list_relays")).fetch_all(&mut self.connection)).await
    }

    /// Processes with live clients that reported within the last minute.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_gateways(&mut self) -> Result<Vec<RunningGateway>, Error> {
        ask("listing gateways", rows(sql!("admin/list_gateways")).fetch_all(&mut self.connection)).await
    }

    /// All subscriptions, or the one with this name, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_subscriptions(&mut self, name: Option<&str>) -> Result<Vec<SubscriptionRow>, Error> {
        ask(
            "listing subscriptions",
            rows(sql!("admin/list_subscriptions")).bind(name).fetch_all(&mut self.connection),
        )
        .await
    }

    /// Recent events, newest first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn recent_events(&mut self, count: i64) -> Result<Vec<Event>, Error> {
        ask(
            "reading the newest events",
            rows(sql!("admin/recent_events")).bind(count).fetch_all(&mut self.connection),
        )
        .await
    }

    /// Pauses a subscription. Returns whether this changed anything.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription.
    pub async fn pause_subscription(&mut self, name: &str) -> Result<bool, Error> {
        ask(
            "pausing a subscription",
            value(sql!("admin/pause_subscription")).bind(name).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Resumes a subscription that is paused, gone or disabled. Returns whether this changed anything.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription.
    pub async fn resume_subscription(&mut self, name: &str) -> Result<bool, Error> {
        ask(
            "resuming a subscription",
            value(sql!("admin/resume_subscription")).bind(name).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Creates or changes a subscription. `fields` is an object with the parameters of `outbox.subscribe`.
    ///
    /// # Errors
    /// [`Error::Refused`] names the field; and those of the database.
    pub async fn subscribe(&mut self, fields: &impl serde::Serialize) -> Result<i64, Error> {
        ask(
            "subscribing",
            value(sql!("admin/subscribe")).bind(sqlx::types::Json(fields)).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn begin(&mut self) -> Result<(), Error> {
        ask("beginning a transaction", statement("begin").execute(&mut self.connection)).await?;
        self.name_actor().await
    }

    /// Names who asks for the transaction, not for the session, which a pooler may share.
    async fn name_actor(&mut self) -> Result<(), Error> {
        let Some(actor) = &self.actor else { return Ok(()) };
        let query = statement(sql!("admin/name_actor")).bind(actor).execute(&mut self.connection);
        ask("naming who asks", query).await.map(drop)
    }

    /// Ends the transaction of [`Operator::begin`]: commits if `keep` is set, otherwise rolls back.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn end(&mut self, keep: bool) -> Result<(), Error> {
        ask(
            "ending a transaction",
            statement(if keep { "commit" } else { "rollback" }).execute(&mut self.connection),
        )
        .await
        .map(drop)
    }

    /// Deletes a subscription and its pending deliveries; dead letters stay. Returns whether it existed.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn remove_subscription(&mut self, name: &str) -> Result<bool, Error> {
        ask(
            "removing a subscription",
            value(sql!("admin/remove_subscription")).bind(name).fetch_one(&mut self.connection),
        )
        .await
    }

    /// The time by the database's clock, minus this many seconds. Negative values are in the future.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_clock(&mut self, seconds_ago: f64) -> Result<DateTime<Utc>, Error> {
        ask(
            "reading the clock",
            value(sql!("admin/read_clock")).bind(seconds_ago).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Publishes one event and commits it. Returns its id.
    ///
    /// # Errors
    /// [`Error::Refused`] when the topic, a header or the payload is refused.
    pub async fn publish(&mut self, draft: &Draft) -> Result<Uuid, Error> {
        ask(PUBLISHING, async {
            let mut transaction = self.connection.begin().await?;
            let id = draft.statement().persistent(false).fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(id)
        })
        .await
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
