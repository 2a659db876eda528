//! What functions of an application leave in their sessions, and what they raise about them.

use serde_json::json;

use super::function::{publish, shop, start, subscribe};
use crate::support::relay::settings;

#[tokio::test(flavor = "multi_thread")]
async fn session_state_of_a_function_does_not_affect_the_next_one() {
    let database = shop().await;
    database
        .execute(
            "create function shop.leaves(event jsonb) returns void language plpgsql as $$
             begin
                 perform set_config('shop.tenant', 'acme', false), pg_advisory_lock(4711);
                 perform shop.on_order(event);
             end $$;
             create function shop.looks(event jsonb) returns void language plpgsql as $$
             begin
                 if current_setting('shop.tenant', true) <> '' then raise exception 'it is %', current_setting('shop.tenant'); end if;
                 perform shop.on_order(event);
             end $$;
             create function shop.becomes(event jsonb) returns void language plpgsql as $$
             begin
                 if (event -> 'payload')::integer = 9 then set local role outbox_relay; end if;
                 insert into shop.effects values ((event ->> 'id')::uuid, (event -> 'payload')::integer, '');
             end $$;",
        )
        .await;
    let never = json!({"schedule": ["1h"]});
    for name in ["leaves", "looks", "becomes"] {
        subscribe(&database, name, json!({"function": format!("shop.{name}")}), never.clone()).await.unwrap();
    }
    let relay = start(&database, settings("relay")).await;
    publish(&database, "leaves.a", 1, 1).await;
    database.eventually("select count(*) = 1 from shop.effects").await;
    database
        .eventually("select count(*) = 0 from pg_locks where locktype = 'advisory' and objid = 4711")
        .await;
    publish(&database, "looks.a", 2, 2).await;
    // Only the call that left another role is rolled back.
    publish(&database, "becomes.a", 8, 10).await;
    database.eventually("select count(*) = 4 and count(*) filter (where n = 9) = 0 from shop.effects").await;
    database
        .eventually(
            "select count(*) = 1 from outbox.attempts where reason = 'access_denied' and answer like '%left the role as outbox_relay%'",
        )
        .await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_functions_session_reaches_anothers() {
    let database = shop().await;
    database
        .execute(
            "create sequence shop.numbers;
             grant usage on sequence shop.numbers to outbox_relay;
             create function shop.spoils(event jsonb) returns void language plpgsql as $$
             begin
                 perform shop.on_order(event);
                 create temporary table effects (id uuid, n integer, note text);
                 create function pg_temp.mine() returns integer language sql as 'select 1';
                 execute 'prepare mine as select 1';
                 execute 'listen something';
                 perform set_config('search_path', 'pg_temp, shop', false),
                         nextval('shop.numbers'), pg_advisory_lock(4711), setseed(0.5);
             end $$;
             create function shop.deallocates(event jsonb) returns void language plpgsql as $$
             begin
                 perform shop.on_order(event);
                 execute 'deallocate all';
             end $$;
             create function shop.careless(event jsonb) returns void language plpgsql as $$
             declare was text;
             begin
                 was := set_config('search_path', 'shop', true);
                 insert into effects values ((event ->> 'id')::uuid, (event -> 'payload')::integer, 'careless');
                 if exists (select from pg_prepared_statements where name = 'mine') then
                     raise exception 'a statement is left';
                 end if;
                 if exists (select from pg_listening_channels()) then raise exception 'it listens'; end if;
                 if exists (select from pg_proc where proname = 'mine') then raise exception 'a function is left'; end if;
                 begin
                     perform currval('shop.numbers');
                     raise exception 'a sequence has a value' using errcode = 'XY000';
                 exception when object_not_in_prerequisite_state then null;
                 end;
             end $$;",
        )
        .await;
    let never = json!({"schedule": ["1h"]});
    for name in ["spoils", "deallocates", "careless"] {
        let config = json!({"function": format!("shop.{name}")});
        subscribe(&database, name, config, never.clone()).await.unwrap();
    }
    let relay = start(&database, settings("relay")).await;
    // One connection serves all of them, one after the other.
    for n in 0..9 {
        let topic = ["spoils.a", "careless.a", "deallocates.a"][usize::try_from(n % 3).unwrap()];
        publish(&database, topic, n, n).await;
        database
            .eventually(&format!(
                "select (select count(*) from shop.effects) + (select count(*) from outbox.attempts) = {}",
                n + 1
            ))
            .await;
        database
            .eventually("select count(*) = 0 from pg_locks where locktype = 'advisory' and objid = 4711")
            .await;
    }
    let failed: Vec<String> =
        sqlx::query_scalar("select answer from outbox.attempts").fetch_all(&database.pool).await.unwrap();
    assert_eq!(failed, <[String; 0]>::default());
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_was_canceled_or_says_so_did_not_time_out() {
    let database = shop().await;
    database
        .execute(
            "create function shop.gives_up(event jsonb) returns void language plpgsql as $$
             begin
                 if event -> 'payload' = '1' then raise exception 'not today' using errcode = '57014'; end if;
                 perform pg_sleep(30);
             end $$",
        )
        .await;
    let config = json!({"function": "shop.gives_up", "timeout": "50s", "batch": 1});
    subscribe(&database, "gives_up", config, json!({"schedule": ["1h"]})).await.unwrap();
    let relay = start(&database, settings("relay")).await;
    publish(&database, "gives_up.a", 1, 1).await;
    database
        .eventually(
            "select count(*) = 1 from outbox.attempts \
             where reason = 'function_failed' and answer = '57014: not today'",
        )
        .await;
    publish(&database, "gives_up.a", 2, 2).await;
    database
        .eventually(
            "select count(*) > 0 from (select pg_cancel_backend(pid) from pg_stat_activity \
             where datname = current_database() and wait_event = 'PgSleep') as canceled",
        )
        .await;
    database.eventually("select count(*) = 2 from outbox.attempts where reason = 'function_failed'").await;
    relay.stop().await;
    database.drop().await;
}
