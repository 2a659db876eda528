//! Tables with all kinds of keys, partitions, renamed and dropped columns, restored dumps; and tables that
//! are refused.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Event, ORDERS, Shop, event};
use crate::support::{Database, database::server};

/// Topics without their prefix, and keys.
pub(super) fn short(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|(topic, key, _)| {
            format!("{} {}", topic.rsplit('.').next().unwrap(), key.as_deref().unwrap_or("-"))
        })
        .collect()
}

#[tokio::test]
async fn a_row_whose_primary_key_changes_is_deleted_and_created() {
    let mut shop = Shop::new(ORDERS).await;
    shop.write("insert into orders values (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)").await;
    assert_eq!(
        shop.write("update orders set id = 9 where id = 1").await,
        [
            event("public.orders.delete", "1", json!({"row": {"id": 1, "status": "a", "total": 1}})),
            event("public.orders.create", "9", json!({"row": {"id": 9, "status": "a", "total": 1}})),
        ]
    );
    // Many rows at once, also with only updates captured. A key that another row takes over counts as
    // updated.
    shop.owner(
        "select outbox.capture('orders', operations => '{update}'); \
         alter table orders drop constraint orders_pkey, add primary key (id) deferrable",
    )
    .await;
    let moved =
        shop.write("begin; set constraints all deferred; update orders set id = id + 1; commit").await;
    assert_eq!(short(&moved), ["delete 2", "update 3", "create 4", "delete 9", "create 10"]);
    assert_eq!(
        moved[1].2,
        json!({
            "row": {"id": 3, "status": "b", "total": 2},
            "changed": ["status", "total"], "previous": {"status": "c", "total": 3},
        })
    );
    shop.end().await;
}

#[tokio::test]
async fn a_composite_key_is_its_parts_in_the_order_of_the_primary_key() {
    let mut shop = Shop::new(
        "create table lines (line int, \"order\" text, n int, note text, primary key (\"order\", line)); select outbox.capture('lines')",
    )
    .await;
    assert_eq!(
        short(
            &shop
                .write("insert into lines values (1, 'a/b', 5, ''), (2, 'a%', 5, ''), (3, 'ü ', 5, '')")
                .await
        ),
        ["create a%2Fb/1", "create a%25/2", "create ü /3"]
    );
    assert_eq!(
        short(&shop.write("update lines set n = n + line where line < 3").await),
        ["update a%2Fb/1", "update a%25/2"]
    );
    assert_eq!(
        short(&shop.write("update lines set line = 7, n = 1 where line = 3").await),
        ["delete ü /3", "create ü /7"]
    );
    // A key that is too long ends in its SHA-256, so keys stay different.
    let long =
        shop.write("insert into lines select n, repeat('x', 600), 0, '' from generate_series(1, 2) n").await;
    let keys: Vec<&str> = long.iter().map(|(_, key, _)| key.as_deref().unwrap()).collect();
    assert!(
        keys[0] != keys[1] && keys.iter().all(|key| key.len() == 512 && key.as_bytes()[447] == b'~'),
        "{keys:?}"
    );
    assert_eq!(short(&shop.write("update lines set n = 1 where n = 0").await).len(), 2);
    shop.end().await;
}

#[tokio::test]
async fn a_table_without_a_primary_key_is_captured_without_keys() {
    let mut shop = Shop::new("create table log (word text, n int); select outbox.capture('log')").await;
    assert_eq!(
        short(&shop.write("insert into log values ('a', 1), ('a', 1), (null, null)").await),
        ["create -", "create -", "create -"]
    );
    assert_eq!(shop.write("update log set n = n").await, []);
    let expected = json!({"row": {"word": "a", "n": 2}, "changed": ["n"], "previous": {"n": 1}});
    assert_eq!(
        shop.write("update log set n = n + 1").await,
        [event("public.log.update", None, expected.clone()), event("public.log.update", None, expected)]
    );
    assert_eq!(short(&shop.write("delete from log").await), ["delete -", "delete -", "delete -"]);
    shop.owner("select outbox.capture('log', key => 'word')").await;
    assert_eq!(
        short(&shop.write("insert into log values ('a', 1); update log set word = 'b'").await),
        ["create a", "update b"]
    );
    shop.end().await;
}

/// A cascade updates the same row once for each foreign key, within one statement.
#[tokio::test]
async fn a_row_that_changes_twice_in_one_statement_makes_events_in_order() {
    let mut shop = Shop::new(
        "create table people (id int primary key);
         create table letters (id int primary key, sender int references people on delete set null, reader int references people on delete set null);
         select outbox.capture('letters');
         insert into people values (1), (2); insert into letters values (1, 1, 1), (2, 1, 2)",
    )
    .await;
    shop.events().await;
    let events = shop.write("delete from people where id = 1").await;
    let of_one: Vec<&Value> = events
        .iter()
        .filter(|(_, key, _)| key.as_deref() == Some("1"))
        .map(|(_, _, payload)| payload)
        .collect();
    assert_eq!((events.len(), of_one.len()), (3, 2), "{events:?}");
    assert_eq!(of_one.last().unwrap()["row"], json!({"id": 1, "sender": null, "reader": null}));
    let mut changed: Vec<String> = of_one.iter().map(|payload| payload["changed"].to_string()).collect();
    changed.sort();
    assert_eq!(changed, ["[\"reader\"]", "[\"sender\"]"]);
    shop.end().await;
}

#[tokio::test]
async fn renamed_new_and_dropped_tables_and_columns_fail_no_write_and_hidden_columns_stay_hidden() {
    let mut shop = Shop::new(
        "create table users (id int primary key, name text, password text, junk int, twice int generated always as (id * 2) stored);
         select outbox.capture('users', exclude => '{password,junk}', key => 'name')",
    )
    .await;
    let row = |events: &[Event]| events[0].2["row"].clone();
    assert_eq!(
        shop.write("insert into users (id, name, password) values (1, 'Ada', 'p')").await,
        [event("public.users.create", "Ada", json!({"row": {"id": 1, "name": "Ada", "twice": 2}}))]
    );
    // In a session whose plans were made before.
    shop.owner(
        "alter table users rename to people; alter table people rename password to secret; alter table people rename name to called",
    )
    .await;
    let renamed = shop
        .write(
            "insert into people (id, called, secret) values (2, 'Bob', 'p'); update people set secret = 'q'",
        )
        .await;
    assert_eq!(
        renamed,
        [event("public.users.create", "Bob", json!({"row": {"id": 2, "called": "Bob", "twice": 4}}))]
    );
    assert_eq!(shop.captured("public.people").await["exclude"], json!(["junk", "secret"]));
    // A new column with the name of a hidden one stays hidden; another one is shown.
    shop.owner(
        "alter table people drop column twice, drop column junk, \
         add column password text default 'new', add column city text default 'Rome'",
    )
    .await;
    assert_eq!(
        row(&shop.write("update people set called = 'Eve' where id = 1").await),
        json!({"id": 1, "called": "Eve", "city": "Rome"})
    );
    // Without the column of the key, events have no key. Without the primary key, rows are paired in
    // order.
    shop.owner("alter table people drop column called").await;
    assert_eq!(short(&shop.write("update people set city = 'Oslo'").await), ["update -", "update -"]);
    assert_eq!(
        shop.captured("public.people").await["problem"],
        "a column of the key was dropped: events have no key"
    );
    shop.owner("alter table people drop column id").await;
    let orphans = shop
        .write(
            "insert into people (city) values ('Bern'); \
             update people set city = city || '!' where city <> 'x'; delete from people",
        )
        .await;
    assert_eq!(
        short(&orphans),
        ["create -", "update -", "update -", "update -", "delete -", "delete -", "delete -"]
    );
    assert!(
        orphans[1..4].iter().all(|(_, _, p)| p["row"]["city"].as_str()
            == Some(&format!("{}!", p["previous"]["city"].as_str().unwrap()))),
        "{orphans:?}"
    );
    shop.owner("select outbox.capture('people')").await;
    assert_eq!(shop.captured("public.people").await["problem"], json!(null));
    assert_eq!(short(&shop.write("insert into people (city) values ('Bern')").await), ["create -"]);
    shop.owner("drop table people").await;
    assert_eq!(shop.database.count("select count(*) from outbox.captures").await, 0);
    shop.end().await;
}

#[tokio::test]
async fn only_chosen_columns_are_shown_also_when_one_is_dropped_or_another_takes_its_name() {
    let mut shop = Shop::new(
        "create table users (id int primary key, a text, b text); \
         select outbox.capture('users', columns => '{id,a}')",
    )
    .await;
    shop.owner("alter table users rename a to c; alter table users rename b to a").await;
    assert_eq!(
        shop.write("insert into users values (1, 'shown', 'hidden')").await[0].2,
        json!({"row": {"id": 1, "c": "shown"}})
    );
    shop.owner("alter table users drop column c").await;
    assert_eq!(shop.write("insert into users values (2, 'hidden')").await[0].2, json!({"row": {"id": 2}}));
    assert_eq!(shop.captured("public.users").await["problem"], "a column of columns was dropped");
    shop.end().await;
}

#[tokio::test]
async fn the_events_of_a_partitioned_table_carry_its_topic_whichever_partition_was_written() {
    let mut shop = Shop::new(
        "create table sales (region text, id int, n int, primary key (region, id)) partition by list (region);
         create table sales_eu partition of sales for values in ('eu');
         create table sales_us (n int, junk int, id int not null, region text not null); alter table sales_us drop column junk;
         alter table sales attach partition sales_us for values in ('us');
         create table sales_rest partition of sales default partition by range (id);
         create table sales_rest_1 partition of sales_rest for values from (0) to (100);
         select outbox.capture('sales')",
    )
    .await;
    let written = shop.write("insert into sales values ('eu', 1, 1), ('us', 1, 1), ('xx', 1, 1)").await;
    assert_eq!(short(&written), ["create eu/1", "create us/1", "create xx/1"]);
    assert!(written.iter().all(|(topic, _, _)| topic == "public.sales.create"));
    let direct = shop
        .write(
            "insert into sales_us (region, id, n) values ('us', 2, 2); \
             update sales_rest set n = 7; delete from sales_rest_1; \
                 update sales_us set n = n + 1 where id = 2",
        )
        .await;
    assert_eq!(short(&direct), ["create us/2", "update xx/1", "delete xx/1", "update us/2"]);
    assert_eq!(
        direct[3],
        event(
            "public.sales.update",
            "us/2",
            json!({"row": {"region": "us", "id": 2, "n": 3}, "changed": ["n"], "previous": {"n": 2}})
        )
    );
    assert_eq!(
        short(&shop.write("update sales set n = 9 where id = 1").await),
        ["update eu/1", "update us/1"]
    );
    assert_eq!(
        short(&shop.write("update sales set region = 'us', id = 7 where region = 'eu'").await),
        ["delete eu/1", "create us/7"],
        "moved to another partition"
    );

    // Attached later: captured through the parent at once, directly after the table is captured again.
    shop.owner("create table sales_jp partition of sales for values in ('jp')").await;
    assert_eq!(
        shop.captured("public.sales").await["problem"],
        "a partition was added later: statements on it directly are not captured"
    );
    assert_eq!(
        short(
            &shop
                .write("insert into sales values ('jp', 1, 1); insert into sales_jp values ('jp', 2, 1)")
                .await
        ),
        ["create jp/1"]
    );
    shop.owner("select outbox.capture('sales')").await;
    assert_eq!(shop.captured("public.sales").await["problem"], json!(null));
    assert_eq!(short(&shop.write("insert into sales_jp values ('jp', 3, 1)").await), ["create jp/3"]);

    // Detached: not captured until it is attached again.
    shop.owner("alter table sales detach partition sales_us").await;
    assert_eq!(
        shop.write(
            "insert into sales_us (region, id, n) values ('us', 8, 2); delete from sales_us where id = 8"
        )
        .await,
        []
    );
    shop.owner("alter table sales attach partition sales_us for values in ('us')").await;
    assert_eq!(short(&shop.write("delete from sales_us where id = 2").await), ["delete us/2"]);
    shop.owner("select outbox.release('sales')").await;
    assert_eq!(
        shop.database.count("select count(*) from pg_trigger where tgname like 'outbox_capture%'").await,
        0
    );
    shop.end().await;
}

#[tokio::test]
async fn a_partitioned_table_with_a_condition_or_without_a_key_is_captured_row_by_row() {
    let mut shop = Shop::new(
        "create table sales (region text, id int, n int) partition by list (region);
         create table sales_eu partition of sales for values in ('eu'); create table sales_us partition of sales for values in ('us');
         select outbox.capture('sales')",
    )
    .await;
    assert_eq!(
        short(
            &shop
                .write("insert into sales values ('eu', 1, 1); insert into sales_us values ('us', 1, 1)")
                .await
        ),
        ["create -", "create -"]
    );
    shop.owner("create table sales_jp partition of sales for values in ('jp')").await;
    assert_eq!(
        short(
            &shop
                .write(
                    "insert into sales_jp values ('jp', 1, 1); update sales set n = 2 where region <> 'us'"
                )
                .await
        ),
        ["create -", "update -", "update -"]
    );
    assert_eq!(
        short(&shop.write("update sales set region = 'us' where region = 'eu'").await),
        ["delete -", "create -"]
    );
    shop.owner("alter table sales detach partition sales_jp").await;
    assert_eq!(shop.write("delete from sales_jp").await, []);
    shop.owner("select outbox.capture('sales', operations => '{insert}', condition => 'new.n > 10')").await;
    assert_eq!(
        short(
            &shop
                .write(
                    "insert into sales values ('eu', 1, 1), ('us', 1, 11); \
                     insert into sales_us values ('us', 1, 12)"
                )
                .await
        ),
        ["create -", "create -"]
    );
    shop.end().await;
}

#[tokio::test]
async fn only_ordinary_tables_can_be_captured_and_a_refusal_has_a_reason() {
    let mut shop = Shop::new(
        "create table plain (id int primary key);
         create view seen as select * from plain; create materialized view kept as select * from plain; create sequence counted;
         create table parent (id int); create table child () inherits (parent);
         create table parts (id int) partition by list (id); create table part_1 partition of parts for values in (1);
         create foreign data wrapper none; create server nowhere foreign data wrapper none; create foreign table far (id int) server nowhere",
    )
    .await;
    for (table, expected) in [
        ("seen", "table: public.seen is a view, and only tables can be captured"),
        ("kept", "table: public.kept is a materialized view, and only tables can be captured"),
        ("far", "table: public.far is a foreign table, and only tables can be captured"),
        ("counted", "table: public.counted is a sequence, and only tables can be captured"),
        (
            "plain_pkey",
            "table: public.plain_pkey is a relation without rows, and only tables can be captured",
        ),
        ("parent", "table: public.parent inherits or is inherited from"),
        ("child", "table: public.child inherits or is inherited from"),
        ("part_1", "table: public.part_1 is a partition"),
        ("pg_class", "table: pg_class is a system table"),
        ("information_schema.sql_features", "table: information_schema.sql_features is a system table"),
        ("outbox.events", "table: outbox.events belongs to the outbox; each event would create another"),
        (
            "outbox.subscriptions",
            "table: outbox.subscriptions belongs to the outbox; each event would create another",
        ),
    ] {
        assert_eq!(shop.refusal(&format!("select outbox.capture('{table}')")).await, expected);
    }
    assert_eq!(
        shop.refusal("create temp table mine (id int); select outbox.capture('mine')").await,
        "table: mine is temporary"
    );
    assert_eq!(shop.refusal("select outbox.capture(null)").await, "table: is null");
    assert_eq!(shop.database.count("select count(*) from outbox.captures").await, 0);
    shop.end().await;
}

/// Object ids and column numbers differ in a restored database.
#[tokio::test]
async fn a_restored_dump_captures_as_before_and_never_shows_hidden_columns() {
    let mut shop = Shop::new(
        "create table users (gone int, id int primary key, name text, password text); alter table users drop column gone;
         create table people (id int primary key, name text, password text);
         create table parts (id int primary key, n int) partition by list (id); create table part_1 partition of parts for values in (1);
         select outbox.capture('users', exclude => '{password}'), outbox.capture('people', exclude => '{password}'), outbox.capture('parts');
         alter table people rename password to secret",
    )
    .await;
    let restored = Database::empty().await;
    let mut dump = Command::new(server().programs().join("pg_dump"))
        .arg(shop.database.plain_url())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let psql = Command::new(server().programs().join("psql"))
        .args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-d", &restored.plain_url()])
        .stdin(dump.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(psql.status.success() && dump.wait().unwrap().success(), "{psql:?}");
    std::mem::replace(&mut shop.database, restored).drop().await;

    shop.owner(
        "insert into users values (1, 'Ada', 'p'); \
         insert into people values (1, 'Ada', 'p'); \
         insert into part_1 values (1, 1); insert into parts values (1, 1) on conflict do nothing",
    )
    .await;
    assert_eq!(
        shop.events().await,
        [
            event("public.users.create", "1", json!({"row": {"id": 1, "name": "Ada"}})),
            event("public.people.create", "1", json!({"row": {}})),
            event("public.parts.create", "1", json!({"row": {"id": 1, "n": 1}})),
        ]
    );
    let problem = shop.captured("public.people").await["problem"].clone();
    assert_eq!(
        problem,
        "restored from a dump: renamed columns are not followed; a column of exclude was renamed before the dump: no column is shown"
    );
    shop.owner("select outbox.capture('users', exclude => '{password}')").await;
    assert_eq!(shop.captured("public.users").await["problem"], json!(null));
    shop.end().await;
}
