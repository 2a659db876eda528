//! The connections of a relay to one server: a pool, with the relay's settings. Of several servers the right
//! one is found before the first connection; a pool that led to a wrong one is of no more use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, PgPool, Postgres, Transaction,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::OnceCell;

use super::{
    connection::{CONNECT_LIMIT, ConnectionSettings, LEAST, Reserved, settings},
    identity::{Found, Guard},
};
use crate::sink::{
    servers::Servers,
    session,
    sqlstate::{Class, class_of},
};

/// Longest wait for a connection to a server that was just found among several. Another may be right by then.
const FOUND_LIMIT: Duration = Duration::from_secs(2);

/// Connections to one server.
#[derive(Debug)]
pub(super) struct Pool {
    connections: PgPool,
    servers: Servers,
    pooler: bool,
    /// Whether the right one of several servers was found.
    found: OnceCell<()>,
    /// Whether a connection led to a standby.
    is_standby: Arc<AtomicBool>,
}

impl Pool {
    /// Connects when it is first used. `servers` have the relay's settings.
    pub(super) fn new(settings: &ConnectionSettings, servers: &Servers, guard: &Arc<Guard>) -> Self {
        let is_standby = Arc::new(AtomicBool::new(false));
        let reserved = u32::try_from(Reserved::COUNT).unwrap_or(u32::MAX);
        let connections = PgPoolOptions::new()
            .after_connect({
                let (relay, pooler) = (settings.relay.clone(), settings.pooler);
                let (guard, is_standby) = (guard.clone(), is_standby.clone());
                move |connection, _| {
                    let (relay, guard, is_standby) = (relay.clone(), guard.clone(), is_standby.clone());
                    Box::pin(async move {
                        // Behind a pooler a connection says nothing of the server: there it is looked at
                        // regularly.
                        if pooler {
                            return Ok(());
                        }
                        session::adjust(connection).await?;
                        let seen = guard.seen_so_far();
                        match Found::read(connection, &relay).await {
                            // It may lack what the primary has, which says nothing of the outbox.
                            Ok(found) if found.is_standby() => is_standby.store(true, Ordering::Release),
                            Ok(found) => drop(guard.judge(&found, &seen)),
                            Err(sqlx::Error::RowNotFound) => guard.lacks_rows(),
                            // Whatever the login lacks, the inspection says it.
                            Err(error) if class_of(&error) == Some(Class::NoRights) => {}
                            Err(error) => return Err(error),
                        }
                        Ok(())
                    })
                }
            })
            .max_connections(settings.pool_size.max(LEAST).saturating_add(reserved))
            .acquire_timeout(if servers.are_several() { FOUND_LIMIT } else { CONNECT_LIMIT })
            .idle_timeout(Duration::from_secs(600))
            .max_lifetime(Duration::from_secs(3_600))
            // A test would cost a round trip for each statement. A statement fails on a dead connection, and
            // then all connections are replaced.
            .test_before_acquire(false)
            .connect_lazy_with(servers.last().clone());
        let (servers, pooler) = (servers.clone(), settings.pooler);
        Self { connections, servers, pooler, found: OnceCell::new(), is_standby }
    }

    /// Takes a connection.
    ///
    /// # Errors
    /// Also when no server is right, or the connection leads to a standby.
    pub(super) async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        self.find().await?;
        let connection = self.connections.acquire().await?;
        if self.is_standby.load(Ordering::Acquire) {
            return Err(is_standby());
        }
        Ok(connection)
    }

    /// Begins a transaction that may write.
    ///
    /// # Errors
    /// As [`Pool::acquire`].
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.find().await?;
        // A standby refuses the words "read write" as a feature that it does not support.
        self.connections.begin_with(session::BEGIN).await.map_err(|error| match class_of(&error) {
            Some(Class::Refused) => is_standby(),
            _ => error,
        })
    }

    async fn find(&self) -> Result<(), sqlx::Error> {
        if self.servers.are_several() {
            let finding = async {
                self.connections.set_connect_options(self.servers.find(self.pooler).await?);
                Ok::<_, sqlx::Error>(())
            };
            self.found.get_or_try_init(|| finding).await?;
        }
        Ok(())
    }

    /// Closes every connection, once they are given back.
    pub(super) async fn close(&self) {
        self.connections.close().await;
    }
}

fn is_standby() -> sqlx::Error {
    sqlx::Error::Configuration("the server is a standby".into())
}

/// The options with the settings of a relay.
pub(super) fn with_settings(options: PgConnectOptions, relay: &str, pooler: bool) -> PgConnectOptions {
    // The stages log what they did; a line for each statement would also be one for each poll of an idle
    // relay.
    let options = options
        .disable_statement_logging()
        .application_name(&format!("pgoutbox/{}/{relay}", env!("CARGO_PKG_VERSION")));
    // A transaction pooler may refuse start-up options; with it each transaction sets them.
    if pooler { options } else { options.options(settings()) }
}
