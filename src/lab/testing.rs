//! For tests of an application: a private PostgreSQL with the schema outbox, what a transaction has published, and a sink that
//! records what a relay sends. Needs a PostgreSQL server on the machine (its programs, not a running one), and no other state.

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

/// Why there is no database for tests.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestError {
    /// No server could be started.
    #[error("starting a private PostgreSQL")]
    Server(#[from] ServerError),
    /// The schema could not be made.
    #[error("creating the schema outbox")]
    Schema(#[from] schema::Error),
    /// It cannot be connected to.
    #[error("connecting to the private PostgreSQL")]
    Connect(#[from] sqlx::Error),
    /// The thread that starts it panicked.
    #[error("starting a private PostgreSQL panicked")]
    Panicked,
}

/// A PostgreSQL of its own with one migrated database. It is stopped and deleted when this is dropped.
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
    /// When there is no PostgreSQL on this machine, or it does not start.
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
        Ok(Self { pool: PgPool::connect_with(options).await?, url, _server: server })
    }

    /// Connections as a superuser.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Its address, for `DATABASE_URL`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// What the current transaction has published so far, in the order in which it was published.
///
/// # Errors
/// Those of the database; the login must be allowed to read `outbox.events`.
pub async fn published(transaction: &mut PgConnection) -> Result<Vec<Event>, sqlx::Error> {
    sqlx::query_as(sql!("testing/published")).fetch_all(transaction).await
}

/// A sink that records. Subscribe with sink `recording`; it takes any config.
#[derive(Debug, Clone, Default)]
pub struct RecordingSink {
    received: Arc<Mutex<Vec<Outgoing>>>,
    arrived: Arc<Notify>,
}

impl RecordingSink {
    /// Everything received so far, in the order of arrival.
    #[must_use]
    pub fn received(&self) -> Vec<Outgoing> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until at least this many were received. `None`: it took longer than `limit`.
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
