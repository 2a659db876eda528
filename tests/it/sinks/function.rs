//! The function sink. It is not in the contract suite: a delivery without its row is rolled back.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use pgoutbox::relay::{Settings, telemetry::Signal};
use serde_json::{Value, json};
use sqlx::Executor as _;

use crate::support::{Database, Recorder, RelayBox, relay::settings};

/// Functions that record their arguments, and may fail, hang or end their connection.
const SHOP: &str = "
    create schema shop;
    grant usage on schema shop to outbox_relay;
    create table shop.effects (id uuid, n integer, note text);
    grant select, insert on shop.effects to outbox_relay;
    create sequence shop.calls;
    grant usage on sequence shop.calls to outbox_relay;

    create function shop.on_order(event jsonb) returns void language sql as $$
        insert into shop.effects values ((event ->> 'id')::uuid, (event -> 'payload')::integer, event ->> 'topic') $$;

    create function shop.by_name(topic text, payload jsonb, created_at timestamptz, again boolean default true) returns integer
    language sql as $$ insert into shop.effects values (null, payload::integer, topic || ' ' || (created_at <= now())) returning 1 $$;

    create function shop.dislikes_sevens(event jsonb) returns void language plpgsql as $$
    begin
        perform shop.on_order(event);
        if (event -> 'payload')::integer % 10 = 7 then raise exception using errcode = 'P0007', message = 'a seven'; end if;
    end $$;

    create function shop.sleeps(event jsonb) returns void language plpgsql as $$
    begin
        perform shop.on_order(event), pg_sleep((event -> 'payload')::integer);
    end $$;

    -- Every third call ends its own connection after its effect: half at once, half in a deferred trigger at the commit.
    create function shop.dies(event jsonb) returns void language plpgsql as $$
    declare
        call bigint := nextval('shop.calls');
    begin
        insert into shop.effects values ((event ->> 'id')::uuid, (event -> 'payload')::integer, case when call % 6 = 3 then 'dies at commit' end);
        if call % 6 = 0 then perform pg_terminate_backend(pg_backend_pid()); end if;
    end $$;
    create function shop.die() returns trigger language plpgsql as $$
    begin
        perform pg_terminate_backend(pg_backend_pid());
        return null;
    end $$;
    create constraint trigger dies_at_commit after insert on shop.effects deferrable initially deferred
        for each row when (new.note = 'dies at commit') execute function shop.die();
";

pub(super) async fn shop() -> Database {
    let database = Database::new().await;
    database.pool.execute(SHOP).await.unwrap();
    database
}

pub(super) async fn subscribe(
    database: &Database,
    name: &str,
    config: Value,
    retry: Value,
) -> Result<(), String> {
    sqlx::query("select outbox.subscribe($1, array[$1 || '.**'], 'function', $2, retry => $3)")
        .bind(name)
        .bind(config)
        .bind(retry)
        .execute(&database.pool)
        .await
        .map(|_| ())
        .map_err(|error| error.to_string())
}

pub(super) async fn publish(database: &Database, topic: &str, from: i32, to: i32) {
    sqlx::query("select outbox.publish($1, to_jsonb(n)) from generate_series($2, $3) as n")
        .bind(topic)
        .bind(from)
        .bind(to)
        .execute(&database.pool)
        .await
        .unwrap();
}

pub(super) async fn start(database: &Database, settings: Settings) -> RelayBox {
    RelayBox::start_with(database, |builder| builder.settings(settings).sink(Recorder::new())).await
}

/// Waits until there are this many effects and no delivery is pending.
async fn wait_for_effects(database: &Database, wanted: i64) {
    let until = Instant::now() + Duration::from_secs(90);
    loop {
        let owed: i64 =
            sqlx::query_scalar("select count(*) from outbox.owed").fetch_one(&database.pool).await.unwrap();
        let (count, _) = effects(database).await;
        if owed == 0 && count >= wanted {
            return;
        }
        assert!(Instant::now() < until, "{owed} deliveries are pending, there are {count} effects");
        crate::support::pause(Duration::from_millis(20)).await;
    }
}

async fn effects(database: &Database) -> (i64, i64) {
    sqlx::query_as("select count(*), count(distinct n) from shop.effects")
        .fetch_one(&database.pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_happens_exactly_once_although_a_thousand_calls_die_before_their_commit() {
    let database = shop().await;
    subscribe(
        &database,
        "dies",
        json!({"function": "shop.dies", "batch": 1, "concurrency": 4}),
        json!({"max_attempts": 100, "initial": "5ms", "multiplier": 1}),
    )
    .await
    .unwrap();
    let first = start(&database, settings("first")).await;
    let second = start(&database, settings("second")).await;
    publish(&database, "dies.now", 1, 2_010).await;
    wait_for_effects(&database, 2_010).await;
    let calls: i64 =
        sqlx::query_scalar("select last_value from shop.calls").fetch_one(&database.pool).await.unwrap();
    assert!(calls / 3 >= 1_000, "{calls} calls, of which every third died");
    assert_eq!(effects(&database).await, (2_010, 2_010));
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_ends_in_the_middle_repeats_no_effect() {
    let database = shop().await;
    subscribe(&database, "gone", json!({"function": "shop.on_order", "batch": 5}), json!({})).await.unwrap();
    for round in 0..5 {
        let relay = start(
            &database,
            Settings { lease: Duration::from_secs(3), ..settings(&format!("relay-{round}")) },
        )
        .await;
        publish(&database, "gone.soon", round * 400 + 1, round * 400 + 400).await;
        let until = Instant::now() + Duration::from_secs(30);
        while effects(&database).await.0 < i64::from(round) * 300 + 50 {
            assert!(Instant::now() < until, "effects should go on");
            crate::support::pause(Duration::from_millis(1)).await;
        }
        relay.abort().await;
    }
    let relay = start(&database, settings("last")).await;
    wait_for_effects(&database, 2_000).await;
    assert_eq!(effects(&database).await, (2_000, 2_000));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_raises_is_rolled_back_alone_and_its_code_and_message_are_kept() {
    let database = shop().await;
    subscribe(
        &database,
        "sevens",
        json!({"function": "shop.dislikes_sevens"}),
        json!({"max_attempts": 2, "initial": "10ms"}),
    )
    .await
    .unwrap();
    publish(&database, "sevens.all", 1, 100).await;
    let mut relay = start(&database, settings("relay")).await;
    for _ in 0..10 {
        relay.wait(|signal| matches!(signal, Signal::Settled { verdict: "dead_letter", .. })).await;
    }
    wait_for_effects(&database, 90).await;
    assert_eq!(effects(&database).await, (90, 90));
    let letters: Vec<(String, String)> =
        sqlx::query_as("select distinct reason, answer from outbox.dead_letters")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(letters, [("function_failed".to_owned(), "P0007: a seven".to_owned())]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_takes_the_fields_it_names() {
    let database = shop().await;
    subscribe(&database, "named", json!({"function": "shop.by_name"}), json!({})).await.unwrap();
    publish(&database, "named.one", 5, 5).await;
    let relay = start(&database, settings("relay")).await;
    wait_for_effects(&database, 1).await;
    let (n, note): (i32, String) =
        sqlx::query_as("select n, note from shop.effects").fetch_one(&database.pool).await.unwrap();
    assert_eq!((n, note.as_str()), (5, "named.one true"));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_may_outlast_its_lease_and_one_beyond_its_limit_is_a_timeout_that_delays_no_other() {
    let database = shop().await;
    subscribe(
        &database,
        "sleeps",
        json!({"function": "shop.sleeps", "timeout": "6s"}),
        json!({"max_attempts": 1}),
    )
    .await
    .unwrap();
    subscribe(&database, "quick", json!({"function": "shop.on_order"}), json!({})).await.unwrap();
    let mut relay = start(&database, Settings { lease: Duration::from_secs(3), ..settings("relay") }).await;
    publish(&database, "sleeps.long", 5, 5).await;
    publish(&database, "quick.ones", 100, 299).await;
    let count = "select count(*) from shop.effects where n >= 100";
    let until = Instant::now() + Duration::from_secs(4);
    while sqlx::query_scalar::<_, i64>(count).fetch_one(&database.pool).await.unwrap() < 200 {
        assert!(Instant::now() < until, "the others should not wait for one that sleeps");
        crate::support::pause(Duration::from_millis(20)).await;
    }
    wait_for_effects(&database, 201).await;
    assert_eq!(effects(&database).await, (201, 201));
    publish(&database, "sleeps.too.long", 60, 60).await;
    relay.wait(|signal| matches!(signal, Signal::Settled { verdict: "dead_letter", .. })).await;
    let reason: String =
        sqlx::query_scalar("select reason from outbox.dead_letters").fetch_one(&database.pool).await.unwrap();
    assert_eq!(reason, "timeout");
    relay.stop().await;
}

#[tokio::test]
async fn a_function_that_cannot_take_events_is_refused_when_the_subscription_is_written() {
    let database = shop().await;
    database
        .pool
        .execute(
            "create function shop.odd(event jsonb, colour text) returns void language sql as '';
             create function shop.many(event jsonb) returns setof int language sql as 'select 1';
             create procedure shop.proc(event jsonb) language sql as '';",
        )
        .await
        .unwrap();
    for (config, expected) in [
        (json!({}), "config.function: subscription 'refused' (function) needs a \"function\""),
        (
            json!({"function": "on_order"}),
            "config.function: 'on_order' is not the name of a function with its schema",
        ),
        (json!({"function": "shop.nothing"}), "config.function: there is no function shop.nothing"),
        (
            json!({"function": "pg_catalog.jsonb_typeof"}),
            "config.function: pg_catalog.jsonb_typeof belongs to the system",
        ),
        (json!({"function": "outbox.publish"}), "config.function: outbox.publish belongs to the system"),
        (
            json!({"function": "shop.odd"}),
            "config.function: shop.odd has a parameter 'colour' that is no field of an event",
        ),
        (json!({"function": "shop.many"}), "config.function: shop.many is not a plain function"),
        (json!({"function": "shop.proc"}), "config.function: shop.proc is not a plain function"),
    ] {
        let refusal =
            subscribe(&database, "refused", config.clone(), json!({})).await.expect_err(&config.to_string());
        assert!(refusal.contains(expected), "{config}: {refusal}");
    }
    subscribe(&database, "refused", json!({"function": "shop.on_order(jsonb)", "batch": 100}), json!({}))
        .await
        .unwrap();
    let mut relay = start(&database, settings("relay")).await;
    relay.wait_asleep().await;
    let reason: String = sqlx::query_scalar("select state_reason from outbox.subscriptions")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(reason, "config.batch: must be a whole number from 1 to 64");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_must_be_quoted_are_called_and_check_reports_a_missing_right() {
    let database = shop().await;
    database
        .execute(
            r#"create schema "My Shop"; grant usage on schema "My Shop" to outbox_relay;
               create function "My Shop"."On Order"(event jsonb) returns void language sql as 'select shop.on_order(event)';
               create function "My Shop".locked(event jsonb) returns void language sql as '';
               revoke execute on function "My Shop".locked from public;"#,
        )
        .await;
    subscribe(&database, "quoted", json!({"function": "\"My Shop\".\"On Order\""}), json!({})).await.unwrap();
    publish(&database, "quoted.a", 1, 3).await;
    let relay = start(&database, settings("relay")).await;
    wait_for_effects(&database, 3).await;
    relay.stop().await;

    subscribe(&database, "locked", json!({"function": "\"My Shop\".locked"}), json!({})).await.unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_pgoutbox"));
    let checked = check
        .arg("check")
        .env_clear()
        .env("DATABASE_URL", database.relay_url())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&checked.stdout);
    assert!(
        printed.contains("may not call \"My Shop\".locked"),
        "{printed}{}",
        String::from_utf8_lossy(&checked.stderr)
    );
    assert!(!printed.contains("may not call \"My Shop\".\"On Order\""), "{printed}");
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deferred_work_of_a_function_has_its_limit_and_locks_no_delivery() {
    let database = shop().await;
    database
        .execute(
            "create function shop.nap() returns trigger language plpgsql as 'begin perform pg_sleep(30); return null; end';
             create constraint trigger naps_at_commit after insert on shop.effects deferrable initially deferred
                 for each row when (new.note = 'late.a') execute function shop.nap();",
        )
        .await;
    subscribe(
        &database,
        "late",
        json!({"function": "shop.on_order", "timeout": "500ms"}),
        json!({"schedule": ["1h"]}),
    )
    .await
    .unwrap();
    subscribe(&database, "quick", json!({"function": "shop.on_order"}), json!({})).await.unwrap();
    let relay = start(&database, settings("relay")).await;
    publish(&database, "late.a", 1, 1).await;
    database
        .eventually_within(
            Duration::from_secs(10),
            "select count(*) = 1 from outbox.attempts where reason = 'timeout'",
        )
        .await;
    publish(&database, "quick.a", 2, 4).await;
    database.eventually("select count(*) = 3 from shop.effects").await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_does_not_wait_for_the_call_of_another_with_concurrency() {
    let database = shop().await;
    subscribe(
        &database,
        "sleeps",
        json!({"function": "shop.sleeps", "batch": 1, "concurrency": 2}),
        json!({}),
    )
    .await
    .unwrap();
    let relay = start(&database, settings("relay")).await;
    publish(&database, "sleeps.long", 12, 12).await;
    database
        .eventually(
            "select exists (select from pg_stat_activity \
             where datname = current_database() and wait_event = 'PgSleep')",
        )
        .await;
    publish(&database, "sleeps.not", 0, 0).await;
    wait_for_n(&database, 0).await;
    assert_eq!(effects(&database).await, (1, 1), "the first call is still under way");
    relay.abort().await;
}

async fn wait_for_n(database: &Database, n: i32) {
    database.eventually(&format!("select exists (select from shop.effects where n = {n})")).await;
}
