//! Sizes of events: refused at the insert, measured as what they are, and bounded in memory.

use std::{fs, time::Duration};

use sqlx::PgPool;

use crate::support::{Books, ChildRelay, Database, Server};

/// Why an insert from another table is refused.
async fn refusal(pool: &PgPool, columns: &str, values: &str) -> String {
    let insert = format!("insert into outbox.events (topic, {columns}) select 'a.b', {values} from stored");
    sqlx::query(sqlx::AssertSqlSafe(insert)).execute(pool).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_subscription_of_200_megabytes_is_refused_by_its_field() {
    let database = Database::new().await;
    for (field, column, value) in [
        ("config", "config", "jsonb_build_object('url', 'https://a.example', 'x', repeat('a', 200000000))"),
        ("retry", "retry", "jsonb_build_object(repeat('a', 1000000), 1)"),
        ("match", "match", "jsonb_build_object('x', repeat('a', 1000000))"),
        ("topics", "topics", "array_fill('a.b'::text, array[100000])"),
        ("keys", "keys", "array_fill('a'::text, array[1000000])"),
    ] {
        let columns =
            if column == "topics" { "name, sink".to_owned() } else { "name, sink, topics".to_owned() };
        let values = if column == "topics" { "'large', 'webhook'" } else { "'large', 'webhook', '{**}'" };
        let insert =
            format!("insert into outbox.subscriptions ({columns}, {column}) select {values}, {value}");
        let refused = sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&database.pool).await.unwrap_err();
        let message = refused.into_database_error().unwrap().message().to_owned();
        assert_eq!(message, format!("{field}: is too large"));
    }
    // What another table has stored is compressed.
    let stored = "jsonb_build_object('url', 'https://a.example', 'x', repeat('a', 600000)) as config";
    database.execute(format!("create table stored as select {stored}")).await;
    let copy = "insert into outbox.subscriptions (name, sink, topics, config) \
                select 'large', 'webhook', '{**}', config from stored";
    let refused = sqlx::query(copy).execute(&database.pool).await.unwrap_err().to_string();
    assert!(refused.contains("config: is too large"), "{refused}");
    database.drop().await;
}

/// What another table has stored is compressed: 600 KB of one letter take 7 KB.
#[tokio::test]
async fn what_is_stored_compressed_is_measured_as_what_it_is() {
    let database = Database::new().await;
    database
        .execute(
            "create table stored (payload jsonb, headers jsonb, text text); \
             insert into stored values (jsonb_build_object('x', repeat('a', 600000)), \
                                        jsonb_build_object('x', repeat('a', 900000)), repeat('a', 1000000))",
        )
        .await;
    assert!(database.count("select pg_column_size(payload)::bigint from stored").await < 8192, "compressed");
    for (columns, values, problem) in [
        ("payload", "payload", "payload: has 600009 bytes as text"),
        ("payload, headers", "'1', headers", "headers: {\"x\""),
        ("payload, key", "'1', text", "key: has 1000000 characters"),
        ("payload, organization", "'1', text", "organization: has 1000000 characters"),
        ("payload, source", "'1', text", "source: has 1000000 characters"),
        ("payload, user_id", "'1', text", "user_id: has 1000000 characters"),
    ] {
        let why = refusal(&database.pool, columns, values).await;
        assert!(why.contains(problem), "{columns}: {why}");
    }
    assert_eq!(database.count("select count(*) from outbox.events").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn a_setting_of_a_session_that_is_too_long_refuses_what_it_captures() {
    let database = Database::new().await;
    database.execute("create table orders (id int primary key); select outbox.capture('orders')").await;
    let mut session = database.connection().await;
    let set = "select set_config('outbox.source', repeat('a', 1000000), false)";
    sqlx::query(set).execute(&mut session).await.unwrap();
    let refused = sqlx::query("insert into orders values (1)").execute(&mut session).await.unwrap_err();
    assert!(refused.to_string().contains("source: has 1000000 characters"), "{refused}");
    database.drop().await;
}

#[tokio::test]
async fn a_few_bytes_that_are_long_as_text_are_refused_and_captured_without_failing_the_write() {
    let database = Database::new().await;
    let insert = "insert into outbox.events (topic, payload) values ('a.b', '[1e131071, 1e131071]'::jsonb)";
    let refused = sqlx::query(insert).execute(&database.pool).await.unwrap_err().to_string();
    assert!(refused.contains("payload: has"), "{refused}");
    database
        .execute(
            "create table sums (id int primary key, one numeric, two numeric, three numeric); \
             select outbox.capture('sums'); insert into sums values (1, 1e131071, 1e131071, 1e131071)",
        )
        .await;
    let captured = "select max(octet_length(payload::text))::bigint from outbox.events";
    assert!((1..=262_144).contains(&database.count(captured).await), "a payload that fits");
    database.drop().await;
}

/// P-7. What is leased ahead is bounded in bytes, what is in flight by its number.
#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_attempts_with_the_largest_events_take_bounded_memory() {
    const EVENTS: usize = 400;
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::from_millis(150)).await;
    server.subscribe(&database, "slow", &["**"]).await;
    // What cannot be compressed, 250 KB each.
    database
        .execute(format!(
            "insert into outbox.events (topic, payload)
             select 'a.b', to_jsonb((select string_agg(md5(n::text || part::text), '') from generate_series(1, 7800) as part))
               from generate_series(1, {EVENTS}) as n"
        ))
        .await;
    let relay = ChildRelay::start(&database, "relay", &[("PGOUTBOX__RELAY__PERMITS", "64")]).await;
    server.wait_knocked(EVENTS as u64).await;
    let status = fs::read_to_string(format!("/proc/{}/status", relay.id())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    let mebibytes: usize = most.trim_end_matches(" kB").parse::<usize>().unwrap() / 1_024;
    eprintln!("the relay took {mebibytes} MiB at most");
    assert!(mebibytes < 192, "{mebibytes} MiB for events of {} MiB", EVENTS / 4);
    drop(relay);
    database.drop().await;
}
