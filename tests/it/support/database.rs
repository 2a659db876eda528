//! One private PostgreSQL for the whole test run, with a new migrated database for each test.

use std::{
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use pgoutbox::lab::private_postgres::{Options, PrivatePostgres};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, postgres::PgConnectOptions,
};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// Login of relays, a member of `outbox_relay` only.
pub(crate) const RELAY_LOGIN: &str = "relay_login";
/// Migrated database that is copied.
const TEMPLATE: &str = "it_template";

static SERVER: OnceLock<PrivatePostgres> = OnceLock::new();
static TEMPLATE_MADE: OnceCell<()> = OnceCell::const_new();

/// The server of this test run. It ends with the process.
pub(crate) fn server() -> &'static PrivatePostgres {
    SERVER.get_or_init(|| {
        let server = PrivatePostgres::start(Options { durable: false, ..Options::default() }).unwrap();
        // Set by make test-postgres, which puts the programs of that version first into PATH.
        if let Some(version) = std::env::var_os("PGOUTBOX_TEST_POSTGRES") {
            let version = version.to_str().unwrap();
            assert!(
                server.programs().ends_with(format!("target/postgres/{version}/bin")),
                "run `make postgres VERSION={version}` first; found {}",
                server.programs().display()
            );
        }
        server
    })
}

/// Major version of the server of this test run.
pub(crate) async fn major_version() -> i32 {
    let mut connection = root().connect().await.unwrap();
    let version = "select current_setting('server_version_num')::integer / 10000";
    sqlx::query_scalar(version).fetch_one(&mut connection).await.unwrap()
}

/// The version of that server and its day, such as `15.18, 30 November 2026`.
pub(crate) async fn version_and_day() -> String {
    let mut connection = root().connect().await.unwrap();
    let both = "select split_part(current_setting('server_version'), ' ', 1) || \
                to_char(now() at time zone 'UTC', ', FMDD FMMonth YYYY')";
    sqlx::query_scalar(both).fetch_one(&mut connection).await.unwrap()
}

/// A database of one test, dropped at the end.
#[derive(Debug)]
pub(crate) struct Database {
    name: String,
    /// Connections of the superuser, for applications and migrations.
    pub(crate) options: PgConnectOptions,
    /// Options of a relay's login.
    pub(crate) relay_options: PgConnectOptions,
    /// Options of the superuser.
    pub(crate) pool: PgPool,
}

impl Database {
    /// A database with the schema outbox.
    pub(crate) async fn new() -> Self {
        TEMPLATE_MADE.get_or_init(make_template).await;
        Self::create(&format!("template {TEMPLATE}")).await
    }

    /// An empty database.
    pub(crate) async fn empty() -> Self {
        Self::create("").await
    }

    /// An empty database on a server that has the login of relays.
    pub(crate) async fn empty_beside_roles() -> Self {
        TEMPLATE_MADE.get_or_init(make_template).await;
        Self::create("").await
    }

    /// A database with the schema outbox in another encoding.
    pub(crate) async fn encoded(encoding: &str) -> Self {
        TEMPLATE_MADE.get_or_init(make_template).await; // makes the login of relays
        let how = format!("encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0");
        let database = Self::create(&how).await;
        migrate(&database.options).await;
        database
    }

    /// A database with the schema outbox on another server.
    pub(crate) async fn new_on(server: &PrivatePostgres) -> Self {
        server.create_database("shop").unwrap();
        let options: PgConnectOptions = server.url("shop").parse().unwrap();
        migrate(&options).await;
        let mut connection = options.connect().await.unwrap();
        connection
            .execute(AssertSqlSafe(format!("create role {RELAY_LOGIN} login in role outbox_relay")))
            .await
            .unwrap();
        connection.close().await.unwrap();
        let pool = PgPool::connect_lazy_with(options.clone());
        Self { name: "shop".to_owned(), relay_options: options.clone().username(RELAY_LOGIN), options, pool }
    }

    /// The database `shop` of another server, as it is.
    pub(crate) fn existing_on(server: &PrivatePostgres) -> Self {
        let options: PgConnectOptions = server.url("shop").parse().unwrap();
        let pool = PgPool::connect_lazy_with(options.clone());
        Self { name: "shop".to_owned(), relay_options: options.clone().username(RELAY_LOGIN), options, pool }
    }

    /// The empty database `shop` on another server, with the roles of an outbox.
    pub(crate) async fn beside_roles(server: &PrivatePostgres) -> Self {
        let database = Self::existing_on(server);
        for role in ["outbox_publisher", "outbox_relay", "outbox_admin", "outbox_monitor"] {
            database.execute(format!("create role {role}")).await;
        }
        database.execute(format!("create role {RELAY_LOGIN} login in role outbox_relay")).await;
        database
    }

    /// A copy of this database, file by file.
    pub(crate) async fn copied(&self) -> Self {
        let mut server = root().connect().await.unwrap();
        let others = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
        sqlx::query(others).bind(&self.name).execute(&mut server).await.unwrap();
        Self::create(&format!("template {}", self.name)).await
    }

    async fn create(how: &str) -> Self {
        let name = format!("it_{}", Uuid::new_v4().simple());
        let mut server = root().connect().await.unwrap();
        server.execute(AssertSqlSafe(format!("create database {name} {how}"))).await.unwrap();
        server.close().await.unwrap();
        let options = root().database(&name);
        let pool = PgPool::connect_lazy_with(options.clone());
        Self { name, relay_options: options.clone().username(RELAY_LOGIN), options, pool }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn connection(&self) -> PgConnection {
        self.options.connect().await.unwrap()
    }

    /// Address for the superuser.
    pub(crate) fn url(&self) -> String {
        self.options.to_url_lossy().to_string()
    }

    /// Address for programs of PostgreSQL, which know fewer parameters.
    pub(crate) fn plain_url(&self) -> String {
        server().url(&self.name)
    }

    /// Address for a relay.
    pub(crate) fn relay_url(&self) -> String {
        self.relay_options.to_url_lossy().to_string()
    }

    /// Runs one statement as the superuser.
    pub(crate) async fn execute(&self, sql: impl Into<String>) {
        self.pool.execute(AssertSqlSafe(sql.into())).await.unwrap();
    }

    /// The number that a query returns.
    pub(crate) async fn count(&self, sql: impl Into<String>) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.into())).fetch_one(&self.pool).await.unwrap()
    }

    /// Waits until a query returns true, at most 30 s. For states that are visible only in the database.
    pub(crate) async fn eventually(&self, question: &str) {
        self.eventually_within(std::time::Duration::from_secs(30), question).await;
    }

    /// Waits until a query returns true, with another limit.
    pub(crate) async fn eventually_within(&self, limit: std::time::Duration, question: &str) {
        let mut again = tokio::time::interval(std::time::Duration::from_millis(20));
        let asking = async {
            while !sqlx::query_scalar::<_, Option<bool>>(AssertSqlSafe(question))
                .fetch_optional(&self.pool)
                .await
                .unwrap()
                .flatten()
                .unwrap_or(false)
            {
                again.tick().await;
            }
        };
        let answered = tokio::time::timeout(limit, asking).await;
        assert!(answered.is_ok(), "not within {limit:?}: {question}");
    }

    /// Does `work` while every statement that begins with one of these texts is cancelled, as by its time
    /// limit. Returns also how many were.
    pub(crate) async fn stopping<T>(&self, texts: &[&str], work: impl Future<Output = T>) -> (T, usize) {
        let stopped = std::cell::Cell::new(0);
        let stopping = async {
            let mut again = tokio::time::interval(std::time::Duration::from_millis(1));
            let mut canceller = self.connection().await;
            loop {
                again.tick().await;
                let cancelled = sqlx::query(
                    "select pg_cancel_backend(pid) from pg_stat_activity
                      where datname = current_database() and state = 'active' and pid <> pg_backend_pid()
                        and exists (select from unnest($1::text[]) as text where starts_with(query, text))",
                );
                let cancelled = cancelled.bind(texts).fetch_all(&mut canceller).await.unwrap();
                stopped.set(stopped.get() + cancelled.len());
            }
        };
        tokio::select! {
            () = stopping => unreachable!("it goes on until the work is done"),
            done = work => (done, stopped.get()),
        }
    }

    /// Runs the binary against this database with an otherwise empty environment.
    pub(crate) fn pgoutbox(&self, arguments: &[&str]) -> Output {
        self.pgoutbox_with(&[], arguments)
    }

    /// Runs the binary against this database with these variables in an otherwise empty environment.
    pub(crate) fn pgoutbox_with(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
        self.command(arguments).envs(environment.iter().copied()).output().unwrap()
    }

    /// Such a command, which is not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgoutbox"));
        command
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", self.url())
            .env("PGOUTBOX__DATABASE__ALLOW_SUPERUSER", "true")
            .stdin(Stdio::null());
        command
    }

    /// The rows that explain a failed test.
    pub(crate) async fn rows_at_hand(&self) -> String {
        let rows: Vec<String> = sqlx::query_scalar(
            "(select 'cursor ' || to_jsonb(cursor)::text from outbox.cursor)
             union all (select 'delivery ' || to_jsonb(delivery)::text from outbox.deliveries as delivery order by id limit 5)
             union all (select 'page ' || (to_jsonb(page) || jsonb_build_object('due_in', page.due_at - now()))::text
                          from outbox.pages as page order by id limit 5)
             union all (select 'backlog ' || to_jsonb(waiting)::text from outbox.backlog as waiting order by id limit 5)
             union all (select 'relay ' || to_jsonb(relay)::text from outbox.relays as relay limit 5)
             union all (select 'backend ' || application_name || ' ' || state || ' ' || coalesce(wait_event, '') || ' ' || left(query, 60)
                          from pg_stat_activity where datname = current_database() limit 20)",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap_or_default();
        rows.join("\n")
    }

    pub(crate) async fn drop(self) {
        self.pool.close().await;
        let mut server = root().connect().await.unwrap();
        server.execute(AssertSqlSafe(format!("drop database {} with (force)", self.name))).await.unwrap();
        server.close().await.unwrap();
    }
}

fn root() -> PgConnectOptions {
    server().url("postgres").parse().unwrap()
}

/// Makes the schema outbox, in which subscriptions may name the sinks of the tests.
async fn migrate(options: &PgConnectOptions) {
    pgoutbox::store::schema::run(options).await.unwrap();
    let mut migrated = options.connect().await.unwrap();
    for sink in ["recorder", "ledger", "keeper", "panicking", "in_turn", "by_key"] {
        sqlx::query("select outbox.declare_sink($1)").bind(sink).execute(&mut migrated).await.unwrap();
    }
    migrated.close().await.unwrap();
}

async fn make_template() {
    let mut connection = root().connect().await.unwrap();
    connection.execute(AssertSqlSafe(format!("create database {TEMPLATE}"))).await.unwrap();
    let template = root().database(TEMPLATE);
    migrate(&template).await;
    connection
        .execute(AssertSqlSafe(format!("create role {RELAY_LOGIN} login in role outbox_relay")))
        .await
        .unwrap();
    connection.close().await.unwrap();
}
