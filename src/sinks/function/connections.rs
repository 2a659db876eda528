//! Calls functions of the application in the transaction that settles their deliveries. Uses separate
//! connections: a function that hangs must not stop routing, and the planner settings for the relay's tables
//! do not suit the application.

use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sqlx::{
    ConnectOptions as _, Executor as _, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{
    delivery::PageId,
    sink::{
        Lease, Place,
        servers::Servers,
        session, shortage,
        sqlstate::{Class, class_of},
    },
};

/// Timeout of getting a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Time after the statement timeout for the server to report it.
const GRACE: Duration = Duration::from_secs(1);

/// Calls functions.
#[derive(Debug)]
pub struct Functions {
    servers: Servers,
    pool: ArcSwap<Pool>,
    /// Whether sessions are shared with others.
    pooler: bool,
    /// Most connections.
    connections: u32,
}

/// Connections to one of the servers.
#[derive(Debug)]
struct Pool {
    pool: PgPool,
    /// Place of the server among them.
    server: usize,
}

/// Result of one call.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Called {
    /// Number of the delivery in the batch, from 1.
    pub number: i32,
    /// SQLSTATE of the error that it raised; none if it succeeded and the delivery is settled.
    pub code: Option<String>,
    /// Message of the error.
    pub message: Option<String>,
}

/// Why a batch of calls failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The transaction was rolled back.
    #[error(transparent)]
    Undone(sqlx::Error),
    /// The transaction was rolled back, because its calls took longer than this.
    #[error("the function took longer than config.timeout, {0:?}")]
    TooLong(Duration),
    /// It is unknown whether the commit succeeded.
    #[error(transparent)]
    Unknown(sqlx::Error),
    /// No answer in time: it is unknown whether the transaction was committed.
    #[error("no answer within {0} s")]
    Silent(u64),
}

impl CallError {
    /// SQLSTATE, if the server gave one.
    pub(super) fn code(&self) -> Option<String> {
        match self {
            Self::Undone(error) | Self::Unknown(error) => {
                Some(error.as_database_error()?.code()?.into_owned())
            }
            Self::TooLong(_) | Self::Silent(_) => None,
        }
    }

    /// What this machine or the server has no more of, so that nothing was called.
    pub(super) fn lack(&self) -> Option<String> {
        let Self::Undone(error) = self else { return None };
        let is_busy = class_of(error) == Some(Class::Busy);
        if is_busy { Some(self.message()) } else { shortage::of(error).map(str::to_owned) }
    }

    /// Message of the server or the driver.
    pub(super) fn message(&self) -> String {
        match self {
            Self::Undone(sqlx::Error::Database(error)) | Self::Unknown(sqlx::Error::Database(error)) => {
                error.message().to_owned()
            }
            other => other.to_string(),
        }
    }
}

impl Functions {
    /// Connects at the first call, to the server that the relay found last. `relay` is the name shown in
    /// `pg_stat_activity`, `pooler` whether a transaction pooler is in between, `connections` the most
    /// connections.
    #[must_use]
    pub fn new(servers: impl Into<Servers>, relay: &str, pooler: bool, connections: u32) -> Self {
        let name = format!("pgoutbox/{}/{relay}/functions", env!("CARGO_PKG_VERSION"));
        let servers =
            servers.into().map(|options| options.disable_statement_logging().application_name(&name));
        let (server, options) = (servers.index(), servers.last().clone());
        let pool = ArcSwap::from_pointee(Pool { pool: pool(options, pooler, connections), server });
        Self { servers, pool, pooler, connections }
    }

    /// Connections to the server that was found last.
    fn pool(&self) -> PgPool {
        let server = self.servers.index();
        if self.pool.load().server != server {
            // The old one closes when its last connection comes back.
            let pool = pool(self.servers.last().clone(), self.pooler, self.connections);
            self.pool.store(Pool { pool, server }.into());
        }
        self.pool.load().pool.clone()
    }

    /// Calls a function for each event and settles the deliveries of successful calls, in one synchronous
    /// commit.
    ///
    /// # Errors
    /// [`CallError`] says whether the transaction was rolled back or its result is unknown.
    pub(super) async fn call(
        &self,
        function: &str,
        limit: Duration,
        leases: &[Lease],
        events: &[String],
    ) -> Result<Vec<Called>, CallError> {
        let places: Vec<(Option<PageId>, i64)> = leases
            .iter()
            .map(|lease| match lease.place {
                Place::Pair(page, number) => (Some(page), number.into()),
                Place::Row(row) => (None, row.0),
            })
            .collect();
        let calling = async {
            let mut transaction = self.pool().begin_with(session::BEGIN).await.map_err(CallError::Undone)?;
            sqlx::query(sql!("function_sink/limit_function"))
                .bind(format!("{}ms", limit.as_millis().max(1)))
                .persistent(false)
                .execute(&mut *transaction)
                .await
                .map_err(CallError::Undone)?;
            let begun = Instant::now();
            let called = sqlx::query_as(sql!("function_sink/call_function"))
                .bind(function)
                .bind(places.iter().map(|(page, _)| *page).collect::<Vec<_>>())
                .bind(places.iter().map(|(_, number)| *number).collect::<Vec<_>>())
                .bind(leases.iter().map(|lease| lease.token).collect::<Vec<_>>())
                .bind(events)
                .persistent(false)
                .fetch_all(&mut *transaction)
                .await
                .map_err(|error| match class_of(&error) {
                    // Functions may raise the same error, and people may cancel them.
                    Some(Class::Canceled) if begun.elapsed() >= limit => CallError::TooLong(limit),
                    _ => CallError::Undone(error),
                })?;
            if self.pooler {
                transaction.execute(session::RESET_SHARED).await.map_err(CallError::Undone)?;
            }
            match transaction.commit().await {
                Ok(()) => Ok(called),
                // A deferred constraint of the application failed at the commit.
                Err(error @ sqlx::Error::Database(_)) => Err(CallError::Undone(error)),
                Err(error) => Err(CallError::Unknown(error)),
            }
        };
        match tokio::time::timeout(limit + CONNECT_LIMIT + GRACE, calling).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Silent(limit.as_secs())),
        }
    }

    /// Checks that a function exists; returns whether this login may call it.
    ///
    /// # Errors
    /// The error of the database, for example that the function does not exist.
    pub async fn inspect(&self, function: &str) -> Result<bool, CallError> {
        let asking = async {
            // No relay has found it, where there is none.
            self.servers.find(self.pooler).await?;
            let asking = sqlx::query_scalar(sql!("function_sink/inspect_function"));
            asking.bind(function).persistent(false).fetch_one(&self.pool()).await
        };
        match tokio::time::timeout(CONNECT_LIMIT, asking).await {
            Ok(result) => result.map_err(CallError::Undone),
            Err(_) => Err(CallError::Silent(CONNECT_LIMIT.as_secs())),
        }
    }
}

fn pool(options: PgConnectOptions, pooler: bool, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(CONNECT_LIMIT)
        .idle_timeout(Duration::from_secs(60))
        // Nothing that one function leaves in its session may reach the next.
        .after_release(move |connection, _| {
            let reset = if pooler { session::RESET_SHARED } else { session::RESET };
            Box::pin(async move { connection.execute(reset).await.map(|_| true) })
        })
        .connect_lazy_with(options)
}
