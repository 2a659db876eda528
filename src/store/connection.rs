//! Connections with the relay's settings. When one of them fails, all are replaced.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use sqlx::{Connection as _, PgConnection, Postgres, Transaction, pool::PoolConnection};

use super::{
    error::{Error, Kind},
    events::Unreadable,
    identity::{Guard, Promotion, Trip},
    pool::{Pool, with_settings},
};
use crate::sink::{
    servers::Servers,
    session,
    sqlstate::{Class, class_of},
};

/// Longest time for a statement or a transaction of the relay, network included.
const STATEMENT_LIMIT: Duration = Duration::from_secs(12);
/// Least connections besides the reserved ones: [`Store::patient`] may hold one for long.
pub(super) const LEAST: u32 = 2;
/// Longest time to make a connection or to wait for one of the pool.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Settings of every connection of a relay, in addition to those of all sessions. The statistics of queue
/// tables are often wrong: the `enable_*` switches leave the planner only plans that stay good nevertheless.
/// They raise the estimated costs, which would start JIT compilation, so JIT is off.
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "10s"),
    ("lock_timeout", "2s"),
    ("idle_in_transaction_session_timeout", "15s"),
    ("tcp_keepalives_idle", "15"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "20s"),
    ("client_connection_check_interval", "5s"),
    ("TimeZone", "UTC"),
    ("search_path", "pg_catalog,outbox,pg_temp"),
    ("jit", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
];

/// Settings of every connection of a relay, with which tests get the same plans as a relay.
pub fn settings() -> impl Iterator<Item = (&'static str, &'static str)> {
    session::SETTINGS.iter().chain(SETTINGS).copied()
}

/// How a relay connects to its database.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// Servers, database, login and TLS.
    pub servers: Servers,
    /// Name of the relay, shown in `pg_stat_activity`.
    pub relay: String,
    /// Environment of the relay. It must be that of the outbox.
    pub environment: String,
    /// Number of connections in addition to the reserved ones.
    pub pool_size: u32,
    /// Most connections for SQL functions of subscriptions.
    pub function_pool_size: u32,
    /// Whether a transaction pooler is between: statements are then not prepared, and each transaction sets
    /// the settings.
    pub pooler: bool,
    /// Whether the login may be a superuser.
    pub allow_superuser: bool,
}

/// The relay's access to its database.
#[derive(Debug)]
pub struct Store {
    pub(super) settings: ConnectionSettings,
    /// Those of the settings, with the settings of every connection.
    servers: Servers,
    pool: ArcSwap<Pool>,
    /// How many times the pool was replaced.
    replaced: AtomicU64,
    /// How many reserved connections were opened.
    opened: AtomicU64,
    /// The connections of [`Reserved`], each made when it is first used.
    reserved: [tokio::sync::Mutex<Option<ReservedConnection>>; Reserved::COUNT],
    /// Events that could not be read. To fail at one again may take seconds each time.
    pub(super) unreadable: Unreadable,
    /// Whether the outbox belongs to this database.
    pub(super) guard: Arc<Guard>,
}

/// A connection that one stage of the relay keeps. Giving it back to the pool would cost a round trip, and
/// settling and renewing must never wait until other stages give one back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reserved {
    /// For routing, to read the cursor and events.
    ReadEvents,
    /// For routing, to move the cursor; a page of events can be read at the same time.
    AdvanceCursor,
    /// For claims and for what is looked up before them.
    Claim,
    /// For one of the settlers.
    Settle(Settler),
    /// For the renewal of leases.
    Renew,
}

/// One of the two tasks of a relay that write verdicts, each on a connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settler {
    /// The first; what claims and takeovers write goes over its connection too.
    First,
    /// The second; it writes verdicts only.
    Second,
}

impl Settler {
    /// Both tasks, in their order.
    pub const ALL: [Self; 2] = [Self::First, Self::Second];
}

impl Reserved {
    /// Number of reserved connections.
    pub(super) const COUNT: usize = 6;

    const fn index(self) -> usize {
        match self {
            Self::ReadEvents => 0,
            Self::AdvanceCursor => 1,
            Self::Claim => 2,
            Self::Settle(Settler::First) => 3,
            Self::Settle(Settler::Second) => 4,
            Self::Renew => 5,
        }
    }
}

/// An open reserved connection.
#[derive(Debug)]
pub(super) struct ReservedConnection {
    connection: PoolConnection<Postgres>,
    /// The value of `Store::replaced` when it was made.
    made: u64,
    /// Its number, which no other has.
    number: Pin,
}

/// An open reserved connection. What runs on it runs on a server that has not crashed since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pin(u64);

/// A connection for one or a few statements; with a pooler it is a transaction that has set the settings.
pub(super) enum Session<'a> {
    Reserved(tokio::sync::MutexGuard<'a, Option<ReservedConnection>>),
    Pooled(PoolConnection<Postgres>),
    Transaction(Transaction<'static, Postgres>),
}

impl Session<'_> {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        match self {
            Self::Reserved(open) => {
                &mut open.as_mut().expect("a session opens its connection before it uses it").connection
            }
            Self::Pooled(connection) => connection,
            Self::Transaction(transaction) => transaction,
        }
    }

    /// Its reserved connection, if it runs on one.
    pub(super) fn pin(&self) -> Option<Pin> {
        let Self::Reserved(open) = self else { return None };
        open.as_ref().map(|open| open.number)
    }

    /// Commits with a pooler, and gives the connection back.
    pub(super) async fn finish(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Reserved(_) | Self::Pooled(_) => Ok(()),
            Self::Transaction(transaction) => transaction.commit().await,
        }
    }
}

impl Store {
    /// Connects and checks the database.
    ///
    /// # Errors
    /// When it cannot be reached, is not migrated, is read-only, or the login is a superuser and that was not
    /// allowed. Not when the outbox belongs to another database: see [`Store::inspect`].
    pub async fn connect(settings: ConnectionSettings) -> Result<Self, Error> {
        let store = Self::lazy(settings);
        // Without a pool: its error would only say that the wait for a connection timed out.
        store
            .limited("connecting to the database", async { store.connect_alone().await?.close().await })
            .await?;
        match store.inspect().await {
            Err(error) if !error.is_fenced() => Err(error),
            _ => Ok(store),
        }
    }

    /// Connects when it is first used, and checks nothing before.
    #[must_use]
    pub fn lazy(settings: ConnectionSettings) -> Self {
        let guard = Arc::new(Guard::new(settings.environment.clone()));
        let servers = settings.servers.for_writing();
        let servers = servers.map(|options| with_settings(options, &settings.relay, settings.pooler));
        Self {
            pool: ArcSwap::from_pointee(Pool::new(&settings, &servers, &guard)),
            servers,
            guard,
            replaced: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            reserved: Default::default(),
            unreadable: Unreadable::default(),
            settings,
        }
    }

    /// Servers for the connection of the listener, which is not one of the pool.
    #[must_use]
    pub fn listener_servers(&self, servers: &Servers) -> Servers {
        let name = format!("{}/listener", self.settings.relay);
        servers.for_writing().map(|options| with_settings(options, &name, false))
    }

    /// Connects to the right server, beside the pool.
    pub(super) async fn connect_alone(&self) -> Result<PgConnection, sqlx::Error> {
        self.servers.connect(self.settings.pooler).await
    }

    /// Takes a connection that has the relay's settings: a reserved one, or any of the pool.
    ///
    /// # Errors
    /// Also when it leads to a database that the outbox does not belong to.
    pub(super) async fn session(&self, reserved: Option<Reserved>) -> Result<Session<'_>, sqlx::Error> {
        let session = self.open(reserved).await?;
        if self.guard.is_tripped() {
            return Err(sqlx::Error::Configuration("the outbox does not belong to this database".into()));
        }
        Ok(session)
    }

    async fn open(&self, reserved: Option<Reserved>) -> Result<Session<'_>, sqlx::Error> {
        if self.settings.pooler {
            return Ok(Session::Transaction(Box::pin(self.begin_pooled()).await?));
        }
        let Some(reserved) = reserved else {
            return Ok(Session::Pooled(self.acquire().await?));
        };
        let mut open = self.reserved[reserved.index()].lock().await;
        let made = self.replaced.load(Ordering::Acquire);
        if open.as_ref().is_none_or(|open| open.made != made) {
            *open = None;
            let connection = self.acquire().await?;
            let number = Pin(self.opened.fetch_add(1, Ordering::Relaxed));
            *open = Some(ReservedConnection { connection, made, number });
        }
        Ok(Session::Reserved(open))
    }

    async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        // Apart: it would be a part of every statement, and of the stack of who runs it.
        Box::pin(self.pool.load_full().acquire()).await
    }

    async fn begin_pooled(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let mut transaction = self.pool.load_full().begin().await?;
        let (names, values): (Vec<_>, Vec<_>) =
            settings().filter(|(name, _)| !name.starts_with("default_")).unzip();
        let set = "select set_config(name, value, true) \
                     from unnest($1::text[], $2::text[]) as setting (name, value)";
        sqlx::query(set).bind(names).bind(values).persistent(false).execute(&mut *transaction).await?;
        Ok(transaction)
    }

    /// Runs one exchange with the database within the relay's own time limit. After an error of kind
    /// [`Kind::Connection`] all connections are replaced: an idle one may hang in a broken network, or lead
    /// to a server that is now a standby.
    pub(super) async fn limited<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Error> {
        if self.guard.is_tripped() {
            return Err(self.tripped_while(doing));
        }
        let result = self.limited_in_time(doing, work).await;
        if result.is_err() && self.guard.is_tripped() {
            return Err(self.tripped_while(doing));
        }
        result
    }

    pub(super) fn tripped_while(&self, doing: &'static str) -> Error {
        match self.guard.trip() {
            Some(Trip::Fenced(why)) => Error::fenced(doing, why),
            _ => Error::fenced(doing, "the database was set back, and this relay begins anew"),
        }
    }

    /// Waits until this database may no longer be used: the outbox belongs to another one, or it was set
    /// back.
    pub(crate) async fn tripped(&self) {
        self.guard.tripped().await;
    }

    /// Waits until the database has another timeline than before: a standby was promoted. One caller is told
    /// of each.
    pub(crate) async fn promoted(&self) -> Promotion {
        self.guard.promoted().await
    }

    /// Whether this database may not be used: the outbox belongs to another one, or it was set back.
    pub(crate) fn is_tripped(&self) -> bool {
        self.guard.is_tripped()
    }

    /// Whether the outbox belongs to another database.
    pub(crate) fn is_fenced(&self) -> bool {
        matches!(self.guard.trip(), Some(Trip::Fenced(_)))
    }

    /// Like [`Store::limited`], whether or not the outbox belongs to this database.
    pub(super) async fn limited_in_time<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Error> {
        let result = match tokio::time::timeout(STATEMENT_LIMIT, work).await {
            Ok(Err(error)) => Err(self.explained(doing, error).await),
            Ok(result) => result.map_err(|error| Error::database(doing, error)),
            Err(_) => Err(Error::deadline(doing, STATEMENT_LIMIT.as_secs())),
        };
        if result.as_ref().is_err_and(|error| error.kind() == Kind::Connection) {
            self.replace_pool();
        }
        result
    }

    /// The error with the server's words, if it has no connection left: a pool only says that it waited.
    pub(super) async fn explained(&self, doing: &'static str, error: sqlx::Error) -> Error {
        let error = match error {
            sqlx::Error::PoolTimedOut => {
                match tokio::time::timeout(CONNECT_LIMIT, Box::pin(self.connect_alone())).await {
                    Ok(Err(words @ sqlx::Error::Database(_))) => words,
                    _ => sqlx::Error::PoolTimedOut,
                }
            }
            other => other,
        };
        if class_of(&error) == Some(Class::Busy) {
            let ConnectionSettings { pool_size, function_pool_size, .. } = self.settings;
            return crowded(doing, error, pool_size, function_pool_size);
        }
        Error::database(doing, error)
    }

    pub(super) fn replace_pool(&self) {
        // The old pool closes when its last connection comes back; a reserved one comes back when it is used
        // next.
        drop(self.pool.swap(Arc::new(Pool::new(&self.settings, &self.servers, &self.guard))));
        self.replaced.fetch_add(1, Ordering::Release);
    }

    /// Closes every connection.
    pub async fn close(&self) {
        for reserved in &self.reserved {
            reserved.lock().await.take();
        }
        self.pool.load_full().close().await;
    }

    /// Name of the relay.
    pub(super) fn relay(&self) -> &str {
        &self.settings.relay
    }

    /// Whether statements stay prepared on their connection.
    pub(super) fn is_persistent(&self) -> bool {
        !self.settings.pooler
    }
}

/// How many connections a relay opens at most, by part, in words.
pub fn connections_wanted(pool_size: u32, function_pool_size: u32) -> String {
    let (stages, pool_size) = (u32::try_from(Reserved::COUNT).unwrap_or(u32::MAX), pool_size.max(LEAST));
    format!(
        "up to {}: {pool_size} for reports and reloads (database.pool_size), {stages} to route, claim, settle \
         and renew, 1 to listen, {function_pool_size} for SQL functions (database.function_pool_size)",
        pool_size.saturating_add(stages).saturating_add(1).saturating_add(function_pool_size),
    )
}

/// What a server says that has no connection left, with how many a relay wants.
pub fn crowded(doing: &'static str, error: sqlx::Error, pool_size: u32, function_pool_size: u32) -> Error {
    let wanted = connections_wanted(pool_size, function_pool_size);
    let remedy = "raise max_connections or the limit of the login or database, or end others";
    Error::crowded(doing, error, format!("{wanted}; {remedy}"))
}
