//! Functions of the application, called in the transaction that settles their deliveries. They get connections of their own: a
//! function that hangs must not hold up routing, and the plans that suit the relay's tables do not suit the application's.

use std::time::Duration;

use sqlx::{
    ConnectOptions as _, Executor as _, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

/// A connection must be made, or come free, within this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Undoes what may be left in a session. Prepared statements stay: they are ours.
const AFRESH: &str = "reset role; reset all; close all; unlisten *; select pg_advisory_unlock_all()";
/// Beyond its own limit for statements the server gets so long to say that it was reached.
const GRACE: Duration = Duration::from_secs(1);

/// Calls functions.
#[derive(Debug)]
pub struct Functions {
    pool: PgPool,
    pooler: bool,
}

/// What became of one call.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Called {
    /// Row of `outbox.deliveries`.
    pub delivery_id: i64,
    /// The SQLSTATE it raised; none when it worked and its delivery is settled.
    pub code: Option<String>,
    /// What it said.
    pub message: Option<String>,
}

/// Why a batch of calls came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The database refused it: nothing was done.
    #[error(transparent)]
    Undone(sqlx::Error),
    /// It is not known whether the commit arrived.
    #[error(transparent)]
    Unknown(sqlx::Error),
    /// No answer in time: it is not known whether anything was done.
    #[error("no answer within {0} s")]
    Silent(u64),
}

impl CallError {
    /// The SQLSTATE, where the server gave one.
    pub(super) fn code(&self) -> Option<String> {
        match self {
            Self::Undone(error) | Self::Unknown(error) => {
                Some(error.as_database_error()?.code()?.into_owned())
            }
            Self::Silent(_) => None,
        }
    }

    /// What the server or the driver said.
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
    /// Connects at the first call. `relay`: its name in `pg_stat_activity`; `pooler`: through a transaction pooler;
    /// `connections`: their number at most.
    #[must_use]
    pub fn new(options: PgConnectOptions, relay: &str, pooler: bool, connections: u32) -> Self {
        let name = format!("pgoutbox/{}/{relay}/functions", env!("CARGO_PKG_VERSION"));
        let options = options.disable_statement_logging().application_name(&name);
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(CONNECT_LIMIT)
            .idle_timeout(Duration::from_secs(60))
            // What a function set for its session does not meet the next one.
            .after_release(|connection, _| {
                Box::pin(async move { connection.execute(AFRESH).await.map(|_| true) })
            })
            .connect_lazy_with(options);
        Self { pool, pooler }
    }

    /// Calls a function for each event and deletes the deliveries of those that worked, in one synchronous commit.
    ///
    /// # Errors
    /// Nothing was done, or it is not known whether everything was.
    pub async fn call(
        &self,
        function: &str,
        limit: Duration,
        deliveries: &[i64],
        tokens: &[Uuid],
        events: &[String],
    ) -> Result<Vec<Called>, CallError> {
        let calling = async {
            let mut transaction = self.pool.begin().await.map_err(CallError::Undone)?;
            sqlx::query(sql!("function_sink/limit_function"))
                .bind(format!("{}ms", limit.as_millis().max(1)))
                .persistent(!self.pooler)
                .execute(&mut *transaction)
                .await
                .map_err(CallError::Undone)?;
            let called = sqlx::query_as(sql!("function_sink/call_function"))
                .bind(function)
                .bind(deliveries)
                .bind(tokens)
                .bind(events)
                .persistent(!self.pooler)
                .fetch_all(&mut *transaction)
                .await
                .map_err(CallError::Undone)?;
            match transaction.commit().await {
                Ok(()) => Ok(called),
                // A deferred constraint of the application's says no at the commit.
                Err(error @ sqlx::Error::Database(_)) => Err(CallError::Undone(error)),
                Err(error) => Err(CallError::Unknown(error)),
            }
        };
        match tokio::time::timeout(limit + CONNECT_LIMIT + GRACE, calling).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Silent(limit.as_secs())),
        }
    }

    /// Asks whether a function is there and may be called by this login.
    ///
    /// # Errors
    /// What the database says about it.
    pub async fn inspect(&self, function: &str) -> Result<bool, CallError> {
        let asking = sqlx::query_scalar(sql!("function_sink/inspect_function"))
            .bind(function)
            .persistent(!self.pooler)
            .fetch_one(&self.pool);
        match tokio::time::timeout(CONNECT_LIMIT, asking).await {
            Ok(result) => result.map_err(CallError::Undone),
            Err(_) => Err(CallError::Silent(CONNECT_LIMIT.as_secs())),
        }
    }
}
