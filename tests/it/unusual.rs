//! Databases whose settings are all unusual: for every login, and some for the relay's alone.

use std::time::Duration;

use pgoutbox::{
    delivery::Outcome,
    relay::{Settings, telemetry::Signal},
    sinks::postgres::INBOX,
};
use serde_json::json;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection};

use crate::support::{
    Database, Recorder, RelayBox,
    database::RELAY_LOGIN,
    deliveries::{deliveries, registry},
    relay::settings,
};

/// What a database may say about sessions. Timeouts are shorter than what takes longest here.
const UNUSUAL: &[(&str, &str)] = &[
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "off"),
    ("idle_session_timeout", "700ms"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("statement_timeout", "5s"),
    ("lock_timeout", "1s"),
    ("search_path", ""),
    ("DateStyle", "SQL, DMY"),
    ("IntervalStyle", "sql_standard"),
    ("TimeZone", "Asia/Kathmandu"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("client_encoding", "LATIN1"),
    ("client_min_messages", "debug1"),
    ("array_nulls", "off"),
    ("transform_null_equals", "on"),
    ("quote_all_identifiers", "on"),
    ("row_security", "off"),
    ("xmloption", "document"),
    ("synchronous_commit", "off"),
    ("plpgsql.extra_errors", "all"),
    ("parallel_setup_cost", "0"),
    ("enable_indexscan", "off"),
    ("enable_nestloop", "off"),
    ("force_parallel_mode", "on"),
    ("from_collapse_limit", "1"),
    ("constraint_exclusion", "on"),
    ("plan_cache_mode", "force_custom_plan"),
    ("work_mem", "64kB"),
];

/// An empty database with these settings.
async fn unusual() -> Database {
    let database = Database::empty_beside_roles().await;
    let mut plain = database.connection().await;
    for (name, value) in UNUSUAL {
        let statement = format!("alter database {} set {name} = '{value}'", database.name());
        plain.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    database
}

/// A session of an application: as the database says, but that it writes, and stays however long it is idle.
async fn application(database: &Database) -> PgConnection {
    let own = [("default_transaction_read_only", "off"), ("idle_session_timeout", "0")];
    database.options.clone().options(own).connect().await.unwrap()
}

fn run(database: &Database, arguments: &[&str]) -> String {
    let output = database.pgoutbox(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn everything_works_where_all_settings_are_unusual() {
    let database = unusual().await;
    run(&database, &["migrate"]);
    for setting in ["default_transaction_isolation = 'repeatable read'", "idle_session_timeout = '300ms'"] {
        let of_the_relay = format!("alter role {RELAY_LOGIN} in database {} set {setting}", database.name());
        application(&database).await.execute(AssertSqlSafe(of_the_relay)).await.unwrap();
    }
    // An application captures, subscribes and publishes.
    let mut app = application(&database).await;
    app.execute(
        "create schema shop;
         grant usage on schema shop to outbox_relay;
         create table shop.orders (id bigint primary key, at timestamptz, took interval, raw bytea);
         create table shop.effects (topic text);
         grant insert on shop.effects to outbox_relay;
         create function shop.slowly(event jsonb) returns void language plpgsql as $$
         begin
             insert into shop.effects values (event ->> 'topic');
             perform pg_sleep(1.5);
         end $$;
         select outbox.capture('shop.orders');
         select outbox.define_event_type('a.*', schema => '{\"type\": \"object\"}');
         select outbox.declare_sink('recorder');
         select outbox.subscribe('all', '{**}', 'recorder');
         select outbox.subscribe('slow', '{slow.*}', 'function', '{\"function\": \"shop.slowly\"}');
         select outbox.subscribe('bad', '{a.*,axb}', 'recorder', match => '{\"bad\": true}',
                                 retry => '{\"max_attempts\": 1, \"jitter\": 0.5}', start => '2026-01-31 12:00+00')",
    )
    .await
    .unwrap();
    let recorder = Recorder::answering(|seen| {
        if seen.subscription == "bad" {
            return Outcome::Rejected { reason: pgoutbox::delivery::Reason::Refused };
        }
        Outcome::Delivered
    });
    let patient = Settings { lease: Duration::from_secs(3), ..settings("relay") };
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder.settings(patient).sink(recorder.clone()).allow_superuser(true)
    })
    .await;
    app.execute(
        "insert into shop.orders values (1, '2026-01-31 12:00+00', '1 day 02:03:04', '\\\\x00ff');
         select outbox.publish('slow.one', '1'), outbox.publish('a.b', '{\"bad\": true}'),
                outbox.publish('axb', '{\"bad\": true}', id => gen_random_uuid())",
    )
    .await
    .unwrap();
    app.close().await.unwrap();
    run(&database, &["publish", "cli.one", "{\"at\": 1}"]);
    recorder.wait_until(|seen| seen.len() == 7).await;
    let captured = recorder.seen().into_iter().find(|seen| seen.topic == "shop.orders.create").unwrap();
    let payload: serde_json::Value = serde_json::from_str(&captured.payload).unwrap();
    let row = json!({"id": 1, "at": "2026-01-31T12:00:00+00:00", "took": "P1DT2H3M4S", "raw": "\\x00ff"});
    assert_eq!(payload["row"], row, "{payload}");
    database.eventually("select count(*) = 1 from shop.effects").await;
    database.eventually("select count(*) = 2 from outbox.dead_letters").await;

    // Operators look and act, from psql and from the command line.
    let status = run(&database, &["status"]);
    assert!(status.contains("slow"), "{status}");
    let mut operator = application(&database).await;
    let discarded: i64 =
        sqlx::query_scalar("select outbox.discard(topic => 'a.*')").fetch_one(&mut operator).await.unwrap();
    assert_eq!(discarded, 1);
    operator.execute("select * from outbox.captures, outbox.owed").await.unwrap();
    operator.close().await.unwrap();
    run(&database, &["subscriptions", "pause", "all"]);
    run(&database, &["subscriptions", "export"]);
    run(&database, &["types", "check"]);
    assert_eq!(run(&database, &["dead-letters", "redrive", "--topic", "a*.**"]).trim(), "1");
    recorder.wait_until(|seen| seen.len() == 8).await;
    let lost: Vec<_> = relay
        .signals()
        .into_iter()
        .filter(|signal| matches!(signal, Signal::ListenerLost | Signal::DatabaseFailed))
        .collect();
    assert_eq!(lost, []);
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[test]
fn no_text_in_sql_changes_its_meaning_with_standard_conforming_strings() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let of_folder = |folder: &str| {
        let mut folders = vec![root.join(folder)];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "sql") {
                    files.push(path);
                }
            }
        }
        files
    };
    let mut lines = 0;
    for file in ["migrations", "sql", "src"].into_iter().flat_map(of_folder) {
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            let statement = line.split("--").next().unwrap();
            let with_mark = statement.split_once("E'").map_or("", |(before, _)| before);
            let plain = if statement.contains("E'") { with_mark } else { statement };
            assert!(!plain.contains('\\'), "{}: write [.] or E'…': {line}", file.display());
            lines += 1;
        }
    }
    assert!(lines > 3_000, "{lines} lines");
}

#[tokio::test]
async fn an_inbox_works_where_all_settings_are_unusual() {
    let database = unusual().await;
    let mut owner = application(&database).await;
    owner.execute(INBOX).await.unwrap();
    owner
        .execute(
            "create schema shop;
             create table shop.seen (n integer);
             create function shop.see(event jsonb) returns void language sql as $$
                 insert into shop.seen values ((event -> 'payload' ->> 'n')::integer) $$",
        )
        .await
        .unwrap();
    owner.close().await.unwrap();
    let registry = registry(&format!("[sinks.postgres]\nurl = {:?}", database.url()));
    for config in [json!({}), json!({"function": "shop.see"})] {
        let deliveries = deliveries(&registry, "postgres", config, 3);
        deliveries.outlet.check().await.unwrap();
        for report in deliveries.outlet.send(&deliveries).await {
            assert_eq!(report.outcome, Outcome::Delivered, "{report:?}");
        }
    }
    assert_eq!(database.count("select count(*) from outbox.inbox").await, 3);
    assert_eq!(database.count("select count(*) from shop.seen").await, 3);
    database.drop().await;
}

#[tokio::test]
async fn the_printed_migrations_run_where_all_settings_are_unusual() {
    let database = unusual().await;
    let script = run(&database, &["migrate", "--sql"]);
    application(&database).await.execute(AssertSqlSafe(script)).await.unwrap();
    assert_eq!(run(&database, &["migrate", "--dry-run"]), "");
    database.drop().await;
}
