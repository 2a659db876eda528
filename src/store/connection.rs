//! Connections with the relay's settings, replaced as a whole when one of them cannot be trusted.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, Row as _, Transaction,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::error::{Error, Kind};

/// No statement of the relay may take longer, network included.
const STATEMENT_LIMIT: Duration = Duration::from_secs(12);
/// A connection must be made within this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What every connection of a relay sets. The `enable_*` switches leave the planner only the plans that stay good when the
/// statistics of these queue tables lie; JIT would fire on the costs they inflate.
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
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("jit", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
];

/// What every connection of a relay sets, for whoever wants to see what a relay sees: tests, and people with a slow plan.
#[must_use]
pub fn settings() -> &'static [(&'static str, &'static str)] {
    SETTINGS
}

/// How a relay connects.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// Where to.
    pub options: PgConnectOptions,
    /// The relay's name, shown in `pg_stat_activity`.
    pub relay: String,
    /// Connections beside those that routing, settling and renewing keep.
    pub pool_size: u32,
    /// Through a transaction pooler: no prepared statements, settings per transaction.
    pub pooler: bool,
    /// Accept a superuser.
    pub allow_superuser: bool,
}

/// The relay's database.
#[derive(Debug)]
pub struct Store {
    settings: ConnectionSettings,
    pool: ArcSwap<PgPool>,
    /// Counts how often the pool was replaced.
    replaced: AtomicU64,
    kept: [tokio::sync::Mutex<Option<Kept>>; KEPT as usize],
}

/// Which connection a statement uses. The busy stages keep theirs: giving one back to the pool costs a round trip, and
/// settling and renewing must never stand in line behind the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Routing: what moves the cursor.
    Work = 0,
    Settle = 1,
    Renew = 2,
    /// Routing: what reads events.
    Read = 3,
    Claim = 4,
    /// The second of two that settle.
    SettleToo = 5,
    /// Everything else: from the pool and back.
    Rest = 6,
}

/// How many connections of the pool the lanes keep.
const KEPT: u32 = 6;

/// A connection that a slot keeps.
#[derive(Debug)]
pub(super) struct Kept {
    connection: PoolConnection<Postgres>,
    /// `Store::replaced` when it was made.
    made: u64,
}

/// One connection for one or a few statements; in pooler mode a transaction that carries the settings.
pub(super) enum Session<'a> {
    Kept(tokio::sync::MutexGuard<'a, Option<Kept>>),
    Pooled(PoolConnection<Postgres>),
    Transaction(Transaction<'static, Postgres>),
}

impl Session<'_> {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        match self {
            Self::Kept(kept) => {
                &mut kept.as_mut().expect("a session fills its slot before it uses it").connection
            }
            Self::Pooled(connection) => connection,
            Self::Transaction(transaction) => transaction,
        }
    }

    pub(super) async fn finish(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Kept(_) | Self::Pooled(_) => Ok(()),
            Self::Transaction(transaction) => transaction.commit().await,
        }
    }
}

impl Store {
    /// Connects and checks the database.
    ///
    /// # Errors
    /// When it cannot be reached, is not migrated, is read-only, or the login is a superuser and that was not allowed.
    pub async fn connect(settings: ConnectionSettings) -> Result<Self, Error> {
        let store = Self {
            pool: ArcSwap::from_pointee(pool(&settings)),
            replaced: AtomicU64::new(0),
            kept: Default::default(),
            settings,
        };
        // Without the pool around it an error says what is wrong and not that waiting was in vain.
        store
            .limited("connecting to the database", async {
                PgConnection::connect_with(&store.options()).await?.close().await
            })
            .await?;
        store.inspect().await?;
        Ok(store)
    }

    /// Options for a connection of the listener's own.
    #[must_use]
    pub fn listener_options(&self, options: &PgConnectOptions) -> PgConnectOptions {
        with_settings(options.clone(), &format!("{}/listener", self.settings.relay), false)
    }

    fn options(&self) -> PgConnectOptions {
        with_settings(self.settings.options.clone(), &self.settings.relay, self.settings.pooler)
    }

    /// Asks the database whether it can be worked with, and returns how far its clock is ahead of ours, in seconds.
    ///
    /// # Errors
    /// Says what is wrong with it and what to do.
    pub async fn inspect(&self) -> Result<f64, Error> {
        const DOING: &str = "checking the database";
        let row = self
            .limited(DOING, async {
                let mut session = self.session(Slot::Rest).await?;
                let row = sqlx::query(sql!("relay/inspect_connection"))
                    .persistent(!self.settings.pooler)
                    .fetch_one(session.connection())
                    .await?;
                session.finish().await?;
                Ok(row)
            })
            .await?;
        let read = |error| Error::database(DOING, error);
        if !row.try_get::<bool, _>("migrated").map_err(read)? {
            return Err(Error::unsuitable(
                DOING,
                "schema outbox is missing or incomplete; run `pgoutbox migrate`",
            ));
        }
        if row.try_get::<Option<bool>, _>("permitted").map_err(read)? == Some(false) {
            return Err(Error::unsuitable(
                DOING,
                "the login may not route and deliver; make it a member of outbox_relay: `grant outbox_relay to …`",
            ));
        }
        if row.try_get::<bool, _>("in_recovery").map_err(read)?
            || row.try_get::<bool, _>("read_only").map_err(read)?
        {
            return Err(Error::unsuitable(
                DOING,
                "the server is read-only (a standby?); point database.url at the primary",
            ));
        }
        if row.try_get::<i32, _>("server_version").map_err(read)? < 140_000 {
            return Err(Error::unsuitable(DOING, "PostgreSQL 14 or newer is needed"));
        }
        if row.try_get::<bool, _>("superuser").map_err(read)? && !self.settings.allow_superuser {
            return Err(Error::unsuitable(
                DOING,
                "the login is a superuser; use a login that is a member of outbox_relay (`grant outbox_relay to …`), or set database.allow_superuser = true",
            ));
        }
        let ours = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        Ok(row.try_get::<f64, _>("clock").map_err(read)? - ours)
    }

    /// Takes a connection with the relay's settings in force.
    pub(super) async fn session(&self, slot: Slot) -> Result<Session<'_>, sqlx::Error> {
        if self.settings.pooler {
            return Ok(Session::Transaction(self.begin_pooled().await?));
        }
        let Some(slot) = self.kept.get(slot as usize) else {
            return Ok(Session::Pooled(self.pool.load_full().acquire().await?));
        };
        let mut kept = slot.lock().await;
        let made = self.replaced.load(Ordering::Acquire);
        if kept.as_ref().is_none_or(|kept| kept.made != made) {
            *kept = None;
            *kept = Some(Kept { connection: self.pool.load_full().acquire().await?, made });
        }
        Ok(Session::Kept(kept))
    }

    async fn begin_pooled(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let mut transaction = self.pool.load_full().begin().await?;
        let (names, values): (Vec<_>, Vec<_>) =
            SETTINGS.iter().filter(|(name, _)| !name.starts_with("default_")).copied().unzip();
        sqlx::query("select set_config(name, value, true) from unnest($1::text[], $2::text[]) as setting (name, value)")
            .bind(names)
            .bind(values)
            .persistent(false)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// Runs one exchange with the database under the relay's own limit. After an error that makes connections suspect, all
    /// of them are replaced: an idle one may hang in a network that is gone, or lead to a server that is now a standby.
    pub(super) async fn limited<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Error> {
        let result = match tokio::time::timeout(STATEMENT_LIMIT, work).await {
            Ok(result) => result.map_err(|error| Error::database(doing, error)),
            Err(_) => Err(Error::deadline(doing, STATEMENT_LIMIT.as_secs())),
        };
        if result.as_ref().is_err_and(|error| error.kind() == Kind::Connection) {
            self.replace_pool();
        }
        result
    }

    fn replace_pool(&self) {
        // The old pool closes when its last connection comes back; kept let go of theirs at their next statement.
        drop(self.pool.swap(Arc::new(pool(&self.settings))));
        self.replaced.fetch_add(1, Ordering::Release);
    }

    /// Gives back every connection.
    pub async fn close(&self) {
        for slot in &self.kept {
            slot.lock().await.take();
        }
        self.pool.load_full().close().await;
    }

    /// The relay's name.
    pub(super) fn relay(&self) -> &str {
        &self.settings.relay
    }

    pub(super) fn is_persistent(&self) -> bool {
        !self.settings.pooler
    }
}

fn pool(settings: &ConnectionSettings) -> PgPool {
    PgPoolOptions::new()
        .max_connections(settings.pool_size + KEPT)
        .acquire_timeout(CONNECT_LIMIT)
        .idle_timeout(Duration::from_secs(600))
        .max_lifetime(Duration::from_secs(3_600))
        // One more round trip for each statement would double the cost of the small ones; a dead connection is noticed
        // by the statement itself and replaced with all the others.
        .test_before_acquire(false)
        .connect_lazy_with(with_settings(settings.options.clone(), &settings.relay, settings.pooler))
}

fn with_settings(options: PgConnectOptions, relay: &str, pooler: bool) -> PgConnectOptions {
    // The stages say what they did; a line for each statement would be a line for each query of an idle poll.
    let options = options
        .disable_statement_logging()
        .application_name(&format!("pgoutbox/{}/{relay}", env!("CARGO_PKG_VERSION")));
    // A transaction pooler may refuse start-up options; there they are set in each transaction.
    if pooler { options } else { options.options(SETTINGS.iter().copied()) }
}
