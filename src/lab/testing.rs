//! Helpers for tests of an application: a private PostgreSQL with the schema outbox, the events of a
//! transaction, and a sink that records what a relay sends. Needs the programs of a PostgreSQL server on the
//! machine, but no running server.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::{PgConnection, PgPool, postgres::PgConnectOptions};
use tokio::sync::Notify;

use super::private_postgres::{Error as ServerError, Options, PrivatePostgres};
use crate::{
    delivery::Outcome,
    event::Event,
    sink::{Outgoing, Problem, Report, Sink},
    store::schema,
};

const DATABASE: &str = "test";

/// Why a test database cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestError {
    /// The server cannot be started.
    #[error("starting a private PostgreSQL")]
    Server(#[from] ServerError),
    /// The schema cannot be created.
    #[error("creating the schema outbox")]
    Schema(#[from] schema::Error),
    /// The server cannot be connected to.
    #[error("connecting to the private PostgreSQL")]
    Connect(#[from] sqlx::Error),
    /// The thread that starts the server panicked.
    #[error("starting a private PostgreSQL panicked")]
    Panicked,
}

/// A private PostgreSQL with one migrated database. Dropping it stops the server and removes its data.
#[derive(Debug)]
pub struct TestDatabase {
    pool: PgPool,
    url: String,
    _server: PrivatePostgres,
}

impl TestDatabase {
    /// Starts the server, which takes about a second.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start.
    pub async fn start() -> Result<Self, TestError> {
        let starting = tokio::task::spawn_blocking(|| {
            let server = PrivatePostgres::start(Options { durable: false, ..Options::default() })?;
            server.create_database(DATABASE)?;
            Ok::<_, ServerError>(server)
        });
        let server = starting.await.map_err(|_| TestError::Panicked)??;
        let url = server.url(DATABASE);
        let options: PgConnectOptions = url.parse()?;
        schema::run(&options).await?;
        let pool = PgPool::connect_with(options).await?;
        sqlx::query("select outbox.declare_sink($1)").bind(RecordingSink::KIND).execute(&pool).await?;
        Ok(Self { pool, url, _server: server })
    }

    /// Connections as a superuser.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Address of the database, for `DATABASE_URL`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// The events that the current transaction has published, in the order of publishing.
///
/// # Errors
/// Those of the database; the login must be allowed to publish.
pub async fn published(transaction: &mut PgConnection) -> Result<Vec<Event>, sqlx::Error> {
    sqlx::query_as(sql!("testing/published")).fetch_all(transaction).await
}

/// A sink that records events. Subscribe with the sink `recording`; any config is valid.
#[derive(Debug, Clone, Default)]
pub struct RecordingSink {
    received: Arc<Mutex<Vec<Outgoing>>>,
    arrived: Arc<Notify>,
}

impl RecordingSink {
    /// Events received so far, in the order of arrival.
    #[must_use]
    pub fn received(&self) -> Vec<Outgoing> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until at least this many events were received; none after `limit`.
    pub async fn wait_for(&self, count: usize, limit: Duration) -> Option<Vec<Outgoing>> {
        let enough = async {
            loop {
                let arrived = self.arrived.notified();
                tokio::pin!(arrived);
                arrived.as_mut().enable();
                let received = self.received();
                if received.len() >= count {
                    return received;
                }
                arrived.await;
            }
        };
        tokio::time::timeout(limit, enough).await.ok()
    }
}

impl Sink for RecordingSink {
    const KIND: &'static str = "recording";
    type Target = ();

    fn target(&self, _: &serde_json::Value) -> Result<(), Problem> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        None
    }

    fn deadline(&self, (): &()) -> Duration {
        Duration::from_secs(1)
    }

    async fn send(&self, (): &(), delivery: &Outgoing) -> Report {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).push(delivery.clone());
        self.arrived.notify_waiters();
        Outcome::Delivered.into()
    }
}
