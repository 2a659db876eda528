//! Functions of the application, called in the transaction that settles their deliveries. They get connections of their own: a
//! function that hangs must not hold up routing, and the plans that suit the relay's tables do not suit the application's.

use std::time::Duration;

use sqlx::{ConnectOptions as _, Executor as _, PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use super::{connection::ConnectionSettings, error::Error};

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
    /// The database said no: nothing was done.
    #[error(transparent)]
    Undone(Error),
    /// It is not known whether the commit arrived.
    #[error(transparent)]
    Unknown(Error),
}

impl Functions {
    /// Connects at the first call, with at most so many connections.
    #[must_use]
    pub fn new(settings: &ConnectionSettings, connections: u32) -> Self {
        let name = format!("pgoutbox/{}/{}/functions", env!("CARGO_PKG_VERSION"), settings.relay);
        let options = settings.options.clone().disable_statement_logging().application_name(&name);
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(CONNECT_LIMIT)
            .idle_timeout(Duration::from_secs(60))
            // What a function set for its session does not meet the next one.
            .after_release(|connection, _| Box::pin(async move { connection.execute(AFRESH).await.map(|_| true) }))
            .connect_lazy_with(options);
        Self { pool, pooler: settings.pooler }
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
        const DOING: &str = "calling the function";
        let undone = |error| CallError::Undone(Error::database(DOING, error));
        let calling = async {
            let mut transaction = self.pool.begin().await.map_err(undone)?;
            sqlx::query(include_str!("../../sql/limit_function.sql"))
                .bind(format!("{}ms", limit.as_millis().max(1)))
                .persistent(!self.pooler)
                .execute(&mut *transaction)
                .await
                .map_err(undone)?;
            let called = sqlx::query_as(include_str!("../../sql/call_function.sql"))
                .bind(function)
                .bind(deliveries)
                .bind(tokens)
                .bind(events)
                .persistent(!self.pooler)
                .fetch_all(&mut *transaction)
                .await
                .map_err(undone)?;
            match transaction.commit().await {
                Ok(()) => Ok(called),
                // A deferred constraint of the application's says no at the commit.
                Err(error @ sqlx::Error::Database(_)) => Err(undone(error)),
                Err(error) => Err(CallError::Unknown(Error::database(DOING, error))),
            }
        };
        match tokio::time::timeout(limit + CONNECT_LIMIT + GRACE, calling).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Unknown(Error::deadline(DOING, limit.as_secs()))),
        }
    }

    /// Asks whether a function is there and may be called by this login.
    ///
    /// # Errors
    /// What the database says about it.
    pub async fn inspect(&self, function: &str) -> Result<bool, Error> {
        const DOING: &str = "looking at the function";
        let asking = sqlx::query_scalar(include_str!("../../sql/inspect_function.sql"))
            .bind(function)
            .persistent(!self.pooler)
            .fetch_one(&self.pool);
        match tokio::time::timeout(CONNECT_LIMIT, asking).await {
            Ok(result) => result.map_err(|error| Error::database(DOING, error)),
            Err(_) => Err(Error::deadline(DOING, CONNECT_LIMIT.as_secs())),
        }
    }
}
