//! What each supported version of PostgreSQL must do. `make check` runs this with the version at hand, and
//! then with the oldest and the newest; `make test-postgres` runs all tests with a version.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use pgoutbox::delivery::{Outcome, Reason};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::support::{Database, Recorder, RelayBox, database::major_version, plans, recorder::Seen};

/// Functions that a server does not know are found here; those of pl/pgsql only when they run.
#[tokio::test]
async fn every_statement_is_known_to_the_server() {
    let database = Database::new().await;
    let mut connection = database.connection().await;
    for statement in plans::statements() {
        let prepare = format!("prepare one as {}\n; deallocate one", statement.text);
        let prepared = connection.execute(sqlx::raw_sql(AssertSqlSafe(prepare))).await;
        assert!(prepared.is_ok(), "{}/{}: {prepared:?}", statement.folder, statement.name);
    }
    database.drop().await;
}

#[tokio::test]
async fn ids_are_made_by_the_server_where_it_makes_such_ids_and_are_ordered_everywhere() {
    let database = Database::new().await;
    let is_the_servers: bool =
        sqlx::query_scalar("select pg_get_functiondef('outbox.new_id'::regproc) ~ 'uuidv7'")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    assert_eq!(is_the_servers, major_version().await >= 18);
    let mut connection = database.connection().await;
    let mut last = String::new();
    for _ in 0..20 {
        // A millisecond apart: ours are ordered by milliseconds.
        let new = "select outbox.publish('shop.sold', '1')::text from pg_sleep(0.002)";
        let id: String = sqlx::query_scalar(new).fetch_one(&mut connection).await.unwrap();
        assert_eq!(&id[14..15], "7", "{id} is of version 7");
        assert!(id > last, "{id} comes after {last}");
        last = id;
    }
    database.drop().await;
}

#[tokio::test]
async fn the_events_of_a_key_arrive_in_order_although_some_are_retried() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('shop', array['shop.**'], 'recorder', ordering => 'key', \
             retry => '{\"initial\": \"20ms\", \"multiplier\": 1, \"max_attempts\": 5}')",
        )
        .await;
    let fails = |seen: &Seen| seen.attempt == 1 && seen.position % 7 == 0;
    let recorder = Recorder::answering(move |seen| match fails(seen) {
        true => Outcome::Retry { reason: Reason::ServerError, after: None },
        false => Outcome::Delivered,
    });
    // One before the relay runs and one while it does.
    let publish = "select count(outbox.publish('shop.sold', to_jsonb(n % 5), key => (n % 5)::text)) \
                     from generate_series(1, 100) as n";
    database.execute(publish).await;
    let relay = RelayBox::start(&database, &recorder).await;
    database.execute(publish).await;
    let seen = recorder.wait_until(|seen| seen.iter().filter(|one| !fails(one)).count() == 200).await;
    let mut of_key: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for one in seen.iter().filter(|one| !fails(one)) {
        of_key.entry(&one.payload).or_default().push(one.position);
    }
    assert_eq!(of_key.len(), 5);
    for (key, positions) in of_key {
        assert!(positions.is_sorted(), "{key}: {positions:?}");
    }
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test]
async fn what_is_given_up_is_redriven_and_what_a_relay_leaves_another_delivers() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['shop.**'], 'recorder')").await;
    let rejects = Arc::new(AtomicBool::new(true));
    let answer = rejects.clone();
    let recorder = Recorder::answering(move |_| match answer.load(Ordering::Acquire) {
        true => Outcome::Rejected { reason: Reason::ClientError },
        false => Outcome::Delivered,
    });
    let first = RelayBox::start(&database, &recorder).await;
    database.execute("select outbox.publish('shop.sold', to_jsonb(n)) from generate_series(1, 5) as n").await;
    database.eventually("select count(*) = 5 from outbox.dead_letters").await;
    rejects.store(false, Ordering::Release);
    database.execute("select outbox.redrive('shop')").await;
    database.eventually("select not exists (select from outbox.dead_letters)").await;
    recorder.wait_for(10).await;
    let closed = recorder.gate.clone().write_owned().await;
    database
        .execute("select outbox.publish('shop.left', to_jsonb(n)) from generate_series(1, 50) as n")
        .await;
    recorder.wait_for(11).await;
    first.abort().await;
    drop(closed);
    for leased in ["pages", "deliveries"] {
        database.execute(format!("update outbox.{leased} set due_at = now() where due_at > now()")).await;
    }
    let second = RelayBox::start(&database, &recorder).await;
    let left = |seen: &[Seen]| {
        let left = seen.iter().skip(10).map(|one| one.position);
        left.collect::<std::collections::BTreeSet<_>>().len()
    };
    recorder.wait_until(|seen| left(seen) == 50).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(second.stop().await.complete);
    database.drop().await;
}

#[tokio::test]
async fn changes_of_a_captured_table_are_events() {
    let database = Database::new().await;
    database
        .execute(
            "create table orders (id integer primary key, total numeric); \
             create table parts (id integer primary key, n integer) partition by range (id); \
             create table parts_1 partition of parts for values from (0) to (10); \
             select outbox.capture('orders'), outbox.capture('parts'); \
             select outbox.subscribe('shop', array['public.**'], 'recorder')",
        )
        .await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    for write in [
        "insert into orders values (1, 2.50), (2, 3)",
        "update orders set total = 4 where id = 1",
        "delete from orders where id = 2",
        "insert into parts values (1, 1) on conflict (id) do update set n = 2",
    ] {
        database.execute(write).await;
    }
    let mut seen = recorder.wait_for(5).await;
    seen.sort_by_key(|one| one.position);
    let topics: Vec<&str> = seen.iter().map(|one| one.topic.as_str()).collect();
    let orders = ["create", "create", "update", "delete"].map(|what| format!("public.orders.{what}"));
    assert_eq!(topics[..4], orders);
    assert_eq!(topics[4], "public.parts.create");
    let update: Value = serde_json::from_str(&seen[2].payload).unwrap();
    assert_eq!(update["row"]["total"].to_string(), "4", "{update}");
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test]
async fn a_function_is_called_once_for_each_event() {
    let database = Database::new().await;
    database
        .execute(
            "create table effects (n integer); grant insert on effects to outbox_relay; \
             create function on_order(event jsonb) returns void language sql as \
             $$ insert into public.effects values ((event -> 'payload')::integer) $$; \
             select outbox.subscribe('shop', array['shop.**'], 'function', '{\"function\": \"public.on_order\"}')",
        )
        .await;
    let relay = RelayBox::start(&database, &Recorder::new()).await;
    database
        .execute("select outbox.publish('shop.sold', to_jsonb(n)) from generate_series(1, 50) as n")
        .await;
    database.eventually("select count(*) = 50 and count(distinct n) = 50 from effects").await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test]
async fn operators_see_change_and_wait() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['shop.**'], 'recorder')").await;
    let recorder = Recorder::answering(|seen| match seen.payload.as_str() {
        "13" => Outcome::Rejected { reason: Reason::ClientError },
        _ => Outcome::Delivered,
    });
    let relay = RelayBox::start(&database, &recorder).await;
    database
        .execute("select outbox.publish('shop.sold', to_jsonb(n)) from generate_series(11, 20) as n")
        .await;
    database.eventually("select count(*) = 1 from outbox.dead_letters").await;
    let event = "select event_id::text from outbox.dead_letters";
    let event: String = sqlx::query_scalar(event).fetch_one(&database.pool).await.unwrap();
    let commands: [&[&str]; 12] = [
        &["status"],
        &["subs", "list"],
        &["subs", "export"],
        &["dlq", "list"],
        &["deliveries", "list"],
        &["events", "list"],
        &["events", "show", &event],
        &["attempts"],
        &["audit"],
        &["trace", &event],
        &["replays", "list"],
        &["dlq", "discard", "--all", "--yes"],
    ];
    for arguments in commands {
        let output = database.pgoutbox(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    for view in
        ["subscription_status", "event_status", "log_status", "captures", "owed", "here", "replay_status"]
    {
        database.execute(format!("select * from outbox.{view}")).await;
    }
    let waited = "select outbox.wait(id) from outbox.events where payload = '11'";
    assert!(database.pool.execute(waited).await.is_ok());
    database.execute("select outbox.replay('shop', now() - interval '1 hour')").await;
    database.eventually("select count(*) = 1 from outbox.replays where state <> 'running'").await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// From one default partition to partitions that are made, kept while something is owed, and dropped.
#[tokio::test]
async fn old_events_leave_with_their_partition_unless_something_is_owed_of_them() {
    let database = Database::new().await;
    let days = |days: i32| format!("(timestamptz '2026-03-02 00:00:00+00' + {days} * interval '1 day')");
    let event =
        format!("insert into outbox.events (topic, payload, created_at) values ('a.b', '1', {})", days(0));
    let owed = "select outbox.subscribe('shop', array['x.y'], 'recorder');
         update outbox.cursor set step = step + 1, settled = pg_current_snapshot();
         insert into outbox.deliveries (subscription_id, due_at, position, created_at, owed_since)
         select 1, now() + interval '1 day', position, created_at, created_at from outbox.events";
    database.execute(event).await;
    let step = async |call: String| {
        let sql = format!("select coalesce(done, '') from outbox_internal.{call}");
        sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).fetch_one(&database.pool).await.unwrap()
    };
    for log in ["events", "attempts"] {
        assert_eq!(step(format!("make_partition_at('{log}', '10 days', {})", days(0))).await, "converted");
        assert_eq!(step(format!("make_partition_at('{log}', '10 days', {})", days(2))).await, "made");
    }
    database.execute(owed).await;
    let drop_with =
        |laggard: &str| format!("drop_partition_at('events', '10 days', '{laggard}', {})", days(14));
    assert_eq!(step(drop_with("keep")).await, "");
    assert_eq!(step(drop_with("dead-letter")).await, "copied");
    assert_eq!(step(drop_with("dead-letter")).await, "dropped");
    assert_eq!(database.count("select outbox.redrive('shop')").await, 1);
    assert_eq!(database.count("select count(*) from outbox.events_default").await, 1);
    database.drop().await;
}
