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
mod publish;
mod replays;
mod schema;
mod statement;
mod status;
mod subscriptions;
mod trace;
mod trial;
mod wait;

use std::{future::Future, io, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use self::statement::{statement, value};
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
    publish::Published,
    replays::{Replay, ReplayCount, ReplayOrder},
    status::{RunningGateway, RunningRelay, Status},
    subscriptions::{Changed, Created, ShownSubscription},
    trace::{Trace, TraceDetail, TraceGroup, TraceStatus, TracedEvent, TracedSubscription},
    trial::{Trial, try_subscription},
    wait::{EventStatus, Said, SaidState, Waited, wait},
};
use crate::sink::{plain::plain, servers::Servers, session};

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
