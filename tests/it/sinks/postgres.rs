//! The postgres sink with another database, over TCP with its own login.

use std::time::{Duration, Instant};

use pgoutbox::{
    delivery::{Outcome, Reason},
    sink::Registry,
    sinks::postgres::INBOX,
};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

use crate::{
    sink_contract::Destination,
    support::{
        Database, RelayBox, clients,
        deliveries::{deliveries, registry},
        relay::settings,
        server::eventually,
    },
};

/// A receiving database.
pub(crate) struct Inbox {
    database: Database,
}

impl Inbox {
    fn url(&self) -> String {
        self.database.url()
    }

    async fn ids(&self) -> Vec<String> {
        self.received().await.into_iter().map(|(id, _)| id).collect()
    }
}

impl Destination for Inbox {
    const KIND: &'static str = "postgres";
    /// jsonb normalizes payloads.
    const BYTE_FOR_BYTE: bool = false;

    async fn start() -> Self {
        let database = Database::empty().await;
        // Twice, because it can be repeated.
        database.pool.execute(INBOX).await.unwrap();
        database.pool.execute(INBOX).await.unwrap();
        Self { database }
    }

    fn section(&self) -> String {
        format!("[sinks.postgres]\nurl = {:?}", self.url())
    }

    fn nowhere() -> Option<Registry> {
        Some(registry("[sinks.postgres]\nurl = 'postgres://u:secret-of-the-connection@127.0.0.1:9/nothing'"))
    }

    fn config(&self) -> Value {
        json!({})
    }

    async fn received(&self) -> Vec<(String, String)> {
        // Remove spaces, as in the payloads of the contract.
        sqlx::query_as(
            "select id::text, replace(replace(payload::text, ': ', \
             ':'), ', ', ',') from outbox.inbox order by position",
        )
        .fetch_all(&self.database.pool)
        .await
        .unwrap()
    }

    async fn markers(&self) -> Vec<Option<String>> {
        sqlx::query_scalar("select headers ->> 'pgoutbox-replay' from outbox.inbox order by position")
            .fetch_all(&self.database.pool)
            .await
            .unwrap()
    }

    fn refused() -> Vec<(Value, &'static str)> {
        vec![
            (json!({"table": "a.b", "function": "a.b"}), "either table or function"),
            (json!({"table": "shop.inbox; drop table x"}), "config.table"),
            (json!({"function": "on_order"}), "config.function"),
            (json!({"batch": 0}), "config.batch"),
            (json!({"timeout": "2m"}), "config.timeout"),
            (json!({"connection": "billing"}), "config.connection"),
        ]
    }
}

#[tokio::test]
async fn a_repeated_event_is_stored_once() {
    let inbox = Inbox::start().await;
    let deliveries = deliveries(&inbox.registry(), "postgres", json!({}), 20);
    let outlet = &deliveries.outlet;
    outlet.send(&deliveries[..15]).await;
    outlet.send(&deliveries[5..]).await;
    assert_eq!(inbox.ids().await.len(), 20);
}

#[tokio::test]
async fn psycopg_reads_the_inbox_and_an_accepted_event_is_new_only_once() {
    let inbox = Inbox::start().await;
    let deliveries = deliveries(&inbox.registry(), "postgres", json!({}), 3);
    deliveries.outlet.send(&deliveries).await;
    let printed =
        clients::python("inbox_reads.py", &[("DATABASE_URL", inbox.database.plain_url().as_str())]).await;
    let read: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected: Vec<Value> = deliveries
        .iter()
        .map(|one| {
            let payload: Value = serde_json::from_str(&one.event.payload).unwrap();
            json!({"id": one.event.id, "topic": one.event.topic, "payload": payload, "new": [true, false]})
        })
        .collect();
    assert_eq!(read, expected);
}

#[tokio::test]
async fn a_function_runs_once_for_each_event_and_one_that_raises_is_rolled_back_alone() {
    let inbox = Inbox::start().await;
    let pool = &inbox.database.pool;
    pool.execute(
        "create schema shop; create table shop.seen (n integer);
         create function shop.on_order(event jsonb) returns void language plpgsql as $$
         begin
             insert into shop.seen values ((event -> 'payload' ->> 'n')::integer);
             if (event -> 'payload' ->> 'n')::integer = 3 then raise exception 'no threes'; end if;
         end $$",
    )
    .await
    .unwrap();
    let deliveries = deliveries(&inbox.registry(), "postgres", json!({"function": "shop.on_order"}), 10);
    let outlet = &deliveries.outlet;
    for _ in 0..2 {
        let reports = outlet.send(&deliveries).await;
        let failed: Vec<_> =
            reports.iter().enumerate().filter(|(_, report)| report.outcome != Outcome::Delivered).collect();
        assert_eq!(failed.len(), 1, "{reports:#?}");
        assert_eq!((failed[0].0, failed[0].1.answer.as_deref()), (3, Some("P0001: no threes")));
    }
    let seen: Vec<i32> =
        sqlx::query_scalar("select n from shop.seen order by n").fetch_all(pool).await.unwrap();
    assert_eq!(seen, [0, 1, 2, 4, 5, 6, 7, 8, 9]);
}

#[tokio::test]
async fn nothing_of_a_session_reaches_the_next_and_what_a_function_raises_is_its_own() {
    let inbox = Inbox::start().await;
    let pool = &inbox.database.pool;
    pool.execute(
        "create schema shop; create table shop.seen (n integer);
         create function shop.spoils(event jsonb) returns void language plpgsql as $$
         begin
             create temporary table seen (n integer);
             perform set_config('search_path', 'pg_temp', false), pg_advisory_lock(4711);
             execute 'deallocate all';
         end $$;
         create function shop.careless(event jsonb) returns void language plpgsql as $$
         begin
             perform set_config('search_path', 'shop', true);
             insert into seen values (1);
         end $$;
         create function shop.gives_up(event jsonb) returns void language plpgsql as $$
         begin
             raise exception 'not today' using errcode = event -> 'payload' ->> 'code';
         end $$",
    )
    .await
    .unwrap();
    let registry = registry(&format!("[sinks.postgres]\nurl = {:?}\npool_size = 1", inbox.url()));
    let to = |name: &str, count| {
        deliveries(&registry, "postgres", json!({"function": format!("shop.{name}")}), count)
    };
    for _ in 0..2 {
        for name in ["spoils", "careless"] {
            let deliveries = to(name, 1);
            let reports = deliveries.outlet.send(&deliveries).await;
            assert_eq!(reports[0].outcome, Outcome::Delivered, "{name}: {reports:?}");
        }
    }
    let seen: i64 = sqlx::query_scalar("select count(*) from shop.seen").fetch_one(pool).await.unwrap();
    assert_eq!(seen, 2, "in the table of that name");
    // A query canceled, a connection lost and a server that shuts down, as the function has seen them.
    for code in ["57014", "08006", "57P01"] {
        let mut gives_up = to("gives_up", 1);
        std::sync::Arc::make_mut(&mut gives_up.outgoing[0].event).payload = json!({"code": code}).to_string();
        let reports = gives_up.outlet.send(&gives_up).await;
        assert_eq!(reports[0].outcome.reason(), Some(Reason::FunctionFailed), "{code}: {reports:?}");
        assert_eq!(reports[0].answer, Some(format!("{code}: not today")));
    }
}

#[tokio::test]
async fn missing_and_forbidden_objects_have_different_reasons() {
    let inbox = Inbox::start().await;
    inbox.database.pool.execute("drop table outbox.inbox").await.unwrap();
    let missing = deliveries(&inbox.registry(), "postgres", json!({}), 1);
    let report = &missing.outlet.send(&missing).await[0];
    assert_eq!(report.outcome, Outcome::Retry { reason: Reason::TargetMissing, after: None });
    let problem = missing.outlet.check().await.unwrap_err();
    assert!(problem.as_str().contains("pgoutbox inbox"), "{problem}");

    let inbox = Inbox::start().await;
    let role = format!("outsider_{}", uuid::Uuid::new_v4().simple());
    inbox.database.pool.execute(sqlx::AssertSqlSafe(format!("create role {role} login"))).await.unwrap();
    let mut url: url::Url = inbox.url().parse().unwrap();
    url.set_username(&role).unwrap();
    let refused = deliveries(
        &registry(&format!("[sinks.postgres]\nurl = {:?}", url.as_str())),
        "postgres",
        json!({}),
        1,
    );
    let report = &refused.outlet.send(&refused).await[0];
    assert_eq!(report.outcome, Outcome::Retry { reason: Reason::AccessDenied, after: None }, "{report:?}");
    assert!(refused.outlet.check().await.is_err());
    inbox.database.pool.execute(sqlx::AssertSqlSafe(format!("drop role {role}"))).await.unwrap();
}

#[tokio::test]
async fn a_server_that_takes_no_more_connections_is_waited_for() {
    let inbox = Inbox::start().await;
    let (name, role) = (inbox.database.name(), format!("narrow_{}", uuid::Uuid::new_v4().simple()));
    let grants = format!(
        "create role {role} login connection limit 1;
         grant usage on schema outbox to {role}; grant select, insert on outbox.inbox to {role}"
    );
    inbox.database.execute(grants).await;
    let mut url: url::Url = inbox.url().parse().unwrap();
    url.set_username(&role).unwrap();
    let deliveries = deliveries(
        &registry(&format!("[sinks.postgres]\nurl = {:?}", url.as_str())),
        "postgres",
        json!({}),
        1,
    );
    let outlet = &deliveries.outlet;
    let other = inbox.database.options.clone().username(&role).connect().await.unwrap();
    let report = &outlet.send(&deliveries).await[0];
    assert_eq!(report.outcome.reason(), Some(Reason::NoResources), "{report:?}");
    assert!(!report.ambiguous);
    other.close().await.unwrap();
    // As the server has it for all: the same code, 53300.
    inbox.database.execute(format!("alter role {role} connection limit -1")).await;
    inbox.database.execute(format!("alter database {name} connection limit 0")).await;
    let report = &outlet.send(&deliveries).await[0];
    assert_eq!(report.outcome.reason(), Some(Reason::NoResources), "{report:?}");
    inbox.database.execute(format!("alter database {name} connection limit -1")).await;
    eventually("there is room again", async || {
        outlet.send(&deliveries).await[0].outcome == Outcome::Delivered
    })
    .await;
    drop(deliveries);
    inbox.database.execute(format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_from_database_to_database_once_although_connections_are_cut() {
    let inbox = Inbox::start().await;
    let database = Database::new().await;
    sqlx::query(
        "select outbox.subscribe('copy', array['**'], 'postgres', '{\"batch\": 20}', \
         retry => '{\"initial\": \"20ms\", \"max_attempts\": 50, \"multiplier\": 1}')",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let connections = inbox_connections(&inbox);
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).connections(&connections).unwrap()
    })
    .await;
    sqlx::query("select outbox.publish('a.b', to_jsonb(n)) from generate_series(1, 2000) as n")
        .execute(&database.pool)
        .await
        .unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let count = inbox.ids().await.len();
        if count == 2_000 {
            break;
        }
        assert!(Instant::now() < until, "{count} of 2000 have come");
        // Terminate the relay's connections while they work.
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and application_name like 'pgoutbox/%'",
        )
        .execute(&inbox.database.pool)
        .await
        .unwrap();
        crate::support::pause(Duration::from_millis(100)).await;
    }
    relay.stop().await;
    let (count, distinct): (i64, i64) =
        sqlx::query_as("select count(*), count(distinct payload) from outbox.inbox")
            .fetch_one(&inbox.database.pool)
            .await
            .unwrap();
    assert_eq!((count, distinct), (2_000, 2_000));
}

fn inbox_connections(inbox: &Inbox) -> Vec<pgoutbox::sink::Connection> {
    crate::support::deliveries::connections(&format!("[sinks.postgres]\nurl = {:?}", inbox.url()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_or_function_that_fails_stops_no_other() {
    let inbox = Inbox::start().await;
    let bind = |config: Value| {
        inbox.registry().bind("postgres", &config).unwrap().destination().unwrap().to_string()
    };
    let (none, table, function) =
        (bind(json!({})), bind(json!({"table": "shop.inbox"})), bind(json!({"function": "shop.take"})));
    assert!(none != table && none != function && table != function, "{none} {table} {function}");
    assert_eq!(
        none,
        bind(json!({"table": "outbox.inbox", "batch": 5})),
        "the same table has the same breaker"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_function_of_the_inbox_returns_the_number_of_each_event() {
    let inbox = Inbox::start().await;
    let asked = "select n, code from outbox.inbox_deliver('pg_catalog.jsonb_typeof', '{s,s,s}', \
                 array[jsonb_build_object('id', gen_random_uuid())::text, \
                     '{\"id\": 1}', jsonb_build_object('id', gen_random_uuid())::text])";
    let rows: Vec<(Option<i32>, Option<String>)> =
        sqlx::query_as(asked).fetch_all(&inbox.database.pool).await.unwrap();
    assert_eq!(rows, [(Some(1), None), (Some(2), Some("22P02".to_owned())), (Some(3), None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_locked_take_no_connection_from_the_others() {
    let inbox = Inbox::start().await;
    let pool = &inbox.database.pool;
    let tables: Vec<String> = (0..6).map(|n| format!("shop.inbox_{n}")).collect();
    pool.execute("create schema shop").await.unwrap();
    for table in &tables {
        inbox.database.execute(format!("create table {table} (like outbox.inbox including all)")).await;
    }
    let mut locking = pool.begin().await.unwrap();
    for table in &tables {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("lock table {table}")))
            .execute(&mut *locking)
            .await
            .unwrap();
    }
    let registry = inbox.registry();
    let hung: Vec<_> = tables
        .iter()
        .map(|table| deliveries(&registry, "postgres", json!({ "table": table, "timeout": "20s" }), 1))
        .collect();
    let waiting = futures_util::future::join_all(hung.iter().map(|one| one.outlet.send(one)));
    let others = async {
        let wait = "select count(*) = 6 from pg_stat_activity \
                    where datname = current_database() and wait_event_type = 'Lock'";
        inbox.database.eventually(wait).await;
        let free = deliveries(&registry, "postgres", json!({}), 3);
        assert!(free.outlet.send(&free).await.iter().all(|report| report.outcome == Outcome::Delivered));
        locking.rollback().await.unwrap();
    };
    let (reports, ()) = tokio::join!(waiting, others);
    assert!(reports.iter().flatten().all(|report| report.outcome == Outcome::Delivered), "{reports:?}");
}
