//! The private PostgreSQL, and a new database for each measurement: a copy of a migrated one, so that every
//! arm starts from the same state. Durable: `fsync` is on, and other relevant settings have their defaults.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use sqlx::{
    AssertSqlSafe, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{Sizes, within};
use crate::{
    lab::private_postgres::{self, PrivatePostgres},
    sink::{egress::Egress, secret::Secrets},
    sinks::webhook::Webhook,
    store::schema,
};

/// Approximate length of a payload as JSON, in bytes.
pub(super) const PAYLOAD: usize = 250;
/// Padding in a payload, in bytes.
const PADDING: i32 = 225;
/// Topic of all events.
pub(super) const TOPIC: &str = "bench.orders.created";
/// Migrated database that is copied.
const TEMPLATE: &str = "bench_template";
/// Login of the relay, a member of `outbox_relay` only.
const LOGIN: &str = "bench_relay";
/// File name of the secret.
const SECRET: &str = "bench";
/// Events in one transaction of a backlog.
const FILL: u32 = 1_000;
/// Deadline of operations that should be fast.
pub(super) const SOON: Duration = Duration::from_secs(60);

/// The server for all measurements. Dropping it stops PostgreSQL and removes its directory.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) sizes: Sizes,
    server: PgPool,
    made: AtomicU32,
    postgres: PrivatePostgres,
}

/// A database.
#[derive(Debug)]
pub(super) struct Database {
    name: String,
    /// Options of the application's login, which owns everything.
    pub(super) options: PgConnectOptions,
    /// Options of the relay's login.
    pub(super) relay_options: PgConnectOptions,
    /// Connections of the application.
    pub(super) pool: PgPool,
}

impl Stage {
    pub(super) async fn start(sizes: Sizes) -> anyhow::Result<Self> {
        let options = private_postgres::Options { durable: true, ..private_postgres::Options::default() };
        let postgres = tokio::task::spawn_blocking(|| PrivatePostgres::start(options)).await??;
        postgres.create_database(TEMPLATE)?;
        within(SOON, "creating the schema outbox", schema::run(&postgres.url(TEMPLATE).parse()?)).await?;
        let server = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(SOON)
            .connect(&postgres.url("postgres"))
            .await?;
        execute(&server, format!("create role {LOGIN} login in role outbox_relay")).await?;
        let folder = postgres.directory().join("secrets");
        let secret = format!("whsec_{}", BASE64_STANDARD.encode(rand::random::<[u8; 32]>()));
        fs::create_dir(&folder)
            .and_then(|()| fs::write(folder.join(SECRET), secret))
            .context("writing the secret of webhooks")?;
        Ok(Self { sizes, server, made: AtomicU32::new(0), postgres })
    }

    /// Connections to the database `postgres`.
    pub(super) fn server(&self) -> &PgPool {
        &self.server
    }

    /// A new folder, removed with the server.
    pub(super) fn folder(&self) -> anyhow::Result<std::path::PathBuf> {
        let name = format!("folder-{}", self.made.fetch_add(1, Ordering::Relaxed));
        let folder = self.postgres.directory().join(name);
        fs::create_dir(&folder).context("making a folder")?;
        Ok(folder)
    }

    /// How many statements were sent to each of these databases while the log had them. Reads all of the log.
    pub(super) fn count_statements(&self, databases: &[&str]) -> Vec<usize> {
        self.postgres.count_statements(databases)
    }

    /// Process id of the server.
    pub(super) fn postmaster(&self) -> u32 {
        self.postgres.process().unwrap_or_default()
    }

    /// A new database with the schema outbox.
    pub(super) async fn database(&self) -> anyhow::Result<Database> {
        let name = format!("bench_{}", self.made.fetch_add(1, Ordering::Relaxed));
        execute(&self.server, format!("create database {name} template {TEMPLATE}")).await?;
        let options: PgConnectOptions = self.postgres.url(&name).parse()?;
        let pool =
            PgPoolOptions::new().max_connections(4).acquire_timeout(SOON).connect_lazy_with(options.clone());
        Ok(Database { relay_options: options.clone().username(LOGIN), name, options, pool })
    }

    /// Drops a database, so that the disk does not fill. The checkpoint of the drop keeps its writes out
    /// of the next measurement.
    pub(super) async fn discard(&self, database: Database) -> anyhow::Result<()> {
        database.pool.close().await;
        execute(&self.server, format!("drop database {} with (force)", database.name)).await
    }

    /// The webhook sink, with loopback and plain http allowed.
    pub(super) fn webhook(&self) -> anyhow::Result<Webhook> {
        let loopback = "127.0.0.0/8".parse().context("parsing a network")?;
        let egress = Egress { allow: vec![loopback], allow_http: true, ..Egress::default() };
        let folder = Some(self.postgres.directory().join("secrets"));
        Ok(Webhook::new(&egress, Secrets::new(folder))?)
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.server.close().await;
        tokio::task::spawn_blocking(move || drop(self.postgres)).await.context("stopping PostgreSQL")
    }
}

impl Database {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Subscribes to all topics, with the sink that does nothing.
    pub(super) async fn subscribe_noop(&self, name: &str) -> anyhow::Result<()> {
        execute(&self.pool, "select outbox.declare_sink('noop')".to_owned()).await?;
        self.subscribe(name, "noop", "{}".to_owned()).await
    }

    /// Subscribes to all topics, with a signed webhook and the default body.
    pub(super) async fn subscribe_webhook(&self, url: &str) -> anyhow::Result<()> {
        let config = serde_json::json!({ "url": url, "secret": format!("file:{SECRET}"), "timeout": "15s" });
        self.subscribe("webhook", "webhook", config.to_string()).await
    }

    /// Subscribes to all topics of an organization, with a signed webhook and the default body.
    pub(super) async fn subscribe_webhook_of(
        &self,
        name: &str,
        url: &str,
        organization: &str,
    ) -> anyhow::Result<()> {
        let config = serde_json::json!({ "url": url, "secret": format!("file:{SECRET}"), "timeout": "15s" });
        let subscribing = sqlx::query(
            "select outbox.subscribe($1, array['**'], 'webhook', config => $2::text::jsonb, \
             organization => $3)",
        )
        .bind(name)
        .bind(config.to_string())
        .bind(organization)
        .execute(&self.pool);
        within(SOON, "subscribing", subscribing).await.map(drop)
    }

    /// Subscribes to all topics.
    pub(super) async fn subscribe(&self, name: &str, sink: &str, config: String) -> anyhow::Result<()> {
        let subscribing =
            sqlx::query("select outbox.subscribe($1, array['**'], $2, config => $3::text::jsonb)")
                .bind(name)
                .bind(sink)
                .bind(config)
                .execute(&self.pool);
        within(SOON, "subscribing", subscribing).await.map(drop)
    }

    /// Commits a backlog, a thousand events in each transaction, and runs a checkpoint.
    pub(super) async fn fill(&self, events: u32) -> anyhow::Result<()> {
        let mut left = events;
        while left > 0 {
            let some = left.min(FILL);
            self.insert(some).await?;
            left -= some;
        }
        execute(&self.pool, "checkpoint".to_owned()).await
    }

    /// Commits events in one transaction.
    pub(super) async fn insert(&self, events: u32) -> anyhow::Result<()> {
        within(SOON, "writing a backlog", insert(events).execute(&self.pool)).await.map(drop)
    }

    /// Like [`Self::fill`], with keys in random order: half of the events for 100 keys, half for 100,000.
    pub(super) async fn fill_with_keys(&self, events: u32) -> anyhow::Result<()> {
        let mut left = events;
        while left > 0 {
            let some = left.min(FILL);
            let inserting = sqlx::query(
                "insert into outbox.events (topic, payload, key) \
                 select $1, jsonb_build_object('n', n, 'padding', repeat('x', $2)), \
                        case when random() < 0.5 then 'hot-' || floor(random() * 100)::integer \
                             else 'cold-' || floor(random() * 100000)::integer end \
                   from generate_series(1::bigint, $3) as n",
            )
            .bind(TOPIC)
            .bind(PADDING)
            .bind(i64::from(some))
            .execute(&self.pool);
            within(SOON, "writing a backlog", inserting).await?;
            left -= some;
        }
        execute(&self.pool, "checkpoint".to_owned()).await
    }

    /// Sets the order of all subscriptions.
    pub(super) async fn order(&self, ordering: &str) -> anyhow::Result<()> {
        let setting = sqlx::query("update outbox.subscriptions set ordering = $1").bind(ordering);
        within(SOON, "setting the order", setting.execute(&self.pool)).await.map(drop)
    }

    /// Commits a backlog in one transaction. Returns the time before the commit.
    pub(super) async fn fill_at_once(&self, events: u32) -> anyhow::Result<Instant> {
        within(SOON, "writing a backlog", async {
            let mut transaction = self.pool.begin().await?;
            insert(events).execute(&mut *transaction).await?;
            let committing = Instant::now();
            transaction.commit().await?;
            Ok::<_, sqlx::Error>(committing)
        })
        .await
    }

    /// Waits until there are no deliveries left.
    pub(super) async fn settled(&self) -> anyhow::Result<()> {
        within(SOON, "waiting until everything is settled", async {
            let mut polls = tokio::time::interval(Duration::from_millis(2));
            polls.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                polls.tick().await;
                let pending: bool = sqlx::query_scalar("select exists (select from outbox.owed)")
                    .fetch_one(&self.pool)
                    .await?;
                if !pending {
                    return anyhow::Ok(());
                }
            }
        })
        .await
    }

    /// Runs statements.
    pub(super) async fn execute(&self, statements: &'static str) -> anyhow::Result<()> {
        execute(&self.pool, statements.to_owned()).await
    }
}

/// A statement that inserts this many events.
fn insert(events: u32) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
    sqlx::query(
        "insert into outbox.events (topic, payload) \
                  select $1, jsonb_build_object('n', n, 'padding', repeat('x', $2)) \
                    from generate_series(1::bigint, $3) as n",
    )
    .bind(TOPIC)
    .bind(PADDING)
    .bind(i64::from(events))
}

/// A payload like those of [`Database::fill`].
pub(super) fn payload(number: u32) -> String {
    format!(
        "{{\"n\": {number}, \"padding\": \"{}\"}}",
        "x".repeat(usize::try_from(PADDING).unwrap_or_default())
    )
}

pub(super) async fn execute(pool: &PgPool, statements: String) -> anyhow::Result<()> {
    within(SOON, "preparing the database", sqlx::raw_sql(AssertSqlSafe(statements)).execute(pool))
        .await
        .map(drop)
}
