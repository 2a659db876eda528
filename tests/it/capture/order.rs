//! The events of a row stand in the log in the order of its changes, also when triggers of the application
//! change captured rows while a statement is under way.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Event, Shop, shapes::short};
use crate::support::database::major_version;

/// Follows the events as a consumer would: each must fit what the ones before it have left of its row.
fn follow(rows: &mut BTreeMap<String, Value>, events: &[Event]) {
    for (topic, key, payload) in events {
        let key = key.as_ref().expect("a key");
        let held = rows.get(key).cloned();
        let said = format!("{topic} {key} {payload} after {held:?} of {:#?}", short(events));
        match topic.rsplit('.').next().unwrap() {
            "create" => assert!(held.is_none(), "{said}"),
            "delete" => assert_eq!(held.as_ref(), Some(&payload["row"]), "{said}"),
            _ => {
                let mut before = payload["row"].as_object().unwrap().clone();
                before.extend(payload["previous"].as_object().unwrap().clone());
                assert_eq!(held, Some(Value::Object(before)), "{said}");
            }
        }
        if topic.ends_with(".delete") {
            rows.remove(key);
        } else {
            rows.insert(key.clone(), payload["row"].clone());
        }
    }
}

/// Writes with each of these statements and follows the events. At the end the followed rows are those of the
/// table. Returns how many events there were.
async fn follows(setup: &str, writes: &[&str]) -> usize {
    let mut shop = Shop::new(setup).await;
    let (mut rows, mut count) = (BTreeMap::new(), 0);
    for write in writes {
        let events = shop.write(write).await;
        follow(&mut rows, &events);
        count += events.len();
    }
    let table: Value = sqlx::query_scalar("select coalesce(jsonb_object_agg(t.id, t), '{}') from t")
        .fetch_one(&shop.database.pool)
        .await
        .unwrap();
    assert_eq!(serde_json::to_value(rows).unwrap(), table);
    shop.end().await;
    count
}

const TABLE: &str = "create table t (id int primary key, n int, note text);";

/// A trigger for each row of `t` that runs these statements.
fn trigger(when: &str, body: &str) -> String {
    format!(
        "create function react() returns trigger language plpgsql as $$ begin {body} return null; end $$;
         create trigger react {when} on t for each row execute function react();"
    )
}

#[tokio::test]
async fn rows_that_triggers_change_again_are_followed_in_order() {
    let body = "if new.n < 3 then update t set n = n + 1 where id = new.id; end if;
                if new.n = 7 then update t set note = concat(note, 'x'), n = 8 where n <> 8; end if;
                if new.n = 9 then delete from t where id = new.id; end if;";
    let react = trigger("after insert or update", body);
    // PostgreSQL 14 has no merge.
    let merge = match major_version().await {
        14 => "insert into t values (1, 7, 'm'), (9, 7, 'm') on conflict (id) do update set n = excluded.n",
        _ => {
            "merge into t using (values (1, 7), (9, 7)) as s (id, n) on s.id = t.id
                  when matched then update set n = s.n when not matched then insert values (s.id, s.n, 'm')"
        }
    };
    let writes = [
        "insert into t values (1, 0, 'a'), (2, 1, 'b'), (3, 4, 'c')",
        "update t set n = 7",
        "insert into t values (2, 9, 'd'), (4, 2, 'e') on conflict (id) do update set n = excluded.n",
        "begin; insert into t values (5, 0, 'f'); update t set n = 2 where id = 5; update t set n = 5; commit",
        merge,
    ];
    let plain = format!("{TABLE} {react} select outbox.capture('t')");
    assert_eq!(follows(&plain, &writes).await, 35);
    // Types of one's own take another way to the log, and so do hidden columns.
    let hidden = format!("{TABLE} {react} alter table t add secret text;");
    let hidden = format!("{hidden} alter table t drop secret; select outbox.capture('t', key => 'id')");
    assert_eq!(follows(&hidden, &writes).await, 35);
    let parted = "create table t (id int primary key, n int, note text) partition by range (id);
                  create table low partition of t for values from (0) to (3);
                  create table high partition of t for values from (3) to (100);";
    let parted = format!("{parted} {react} select outbox.capture('t')");
    assert_eq!(follows(&parted, &writes).await, 35);
}

#[tokio::test]
async fn rows_that_triggers_delete_and_make_again_are_followed_in_order() {
    let body = "begin update t set n = 50; raise exception 'undone'; exception when others then null; end;
                if old.n < 3 then insert into t values (old.id, old.n + 1, 'again'); end if;
                delete from t where n = 3;";
    let setup = format!("{TABLE} {} select outbox.capture('t')", trigger("after delete", body));
    let writes = ["insert into t values (1, 0, 'a'), (2, 1, 'b'), (3, 2, 'c'), (4, 5, 'd')", "delete from t"];
    assert_eq!(follows(&setup, &writes).await, 12);
}

#[tokio::test]
async fn changes_through_functions_other_tables_and_partitions_are_followed_in_order() {
    let setup = "create table t (id int primary key, n int, note text) partition by range (id);
         create table low partition of t for values from (0) to (100);
         create table log (id int);
         create function add(wanted int) returns void language plpgsql as $$ begin
             execute 'update low set n = n + 1 where id = $1' using wanted; end $$;
         create function log() returns trigger language plpgsql as $$ begin
             insert into log values (new.id); return null; end $$;
         create function pass() returns trigger language plpgsql as $$ begin
             if (select n < 4 from t where id = new.id) then perform add(new.id); end if; return null; end $$;
         create trigger log after insert or update on t for each row execute function log();
         create trigger pass after insert on log for each row execute function pass();
         select outbox.capture('t'), outbox.capture('log', topic => 'log')";
    let mut shop = Shop::new(setup).await;
    let mut rows = BTreeMap::new();
    for write in ["insert into t values (1, 0), (2, 3)", "update low set n = 1", "update t set n = 2"] {
        let events = shop.write(write).await;
        let of_t: Vec<Event> =
            events.into_iter().filter(|(topic, ..)| topic.starts_with("public.t.")).collect();
        assert!(of_t.len() > 5, "{:?}", short(&of_t));
        follow(&mut rows, &of_t);
    }
    shop.end().await;
}

#[tokio::test]
async fn a_row_that_a_trigger_replaces_before_its_insert_is_deleted_first() {
    let body = "delete from t where id = new.id; return new;";
    let setup = format!("{TABLE} {} select outbox.capture('t')", trigger("before insert", body));
    let writes =
        ["insert into t values (1, 0, 'a'), (2, 1, 'b')", "insert into t values (2, 1, 'b'), (3, 1, 'c')"];
    assert_eq!(follows(&setup, &writes).await, 5);
}

#[tokio::test]
async fn cascades_that_change_rows_of_their_own_table_are_followed_in_order() {
    let setup =
        "create table t (id int primary key, n int references t (id) on update cascade on delete cascade);
                 select outbox.capture('t')";
    let writes = [
        "insert into t values (1, null), (2, 1), (3, 2), (4, 4)",
        "update t set id = id + 10",
        "begin; delete from t where id = 11; insert into t values (1, null); update t set n = 1; commit",
    ];
    assert_eq!(follows(setup, &writes).await, 4 + 8 + 3 + 1 + 2);
}
