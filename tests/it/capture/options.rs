//! Options of a capture, and what happens when it is called again.

use serde_json::{Value, json};

use super::{ORDERS, Shop, event};

#[tokio::test]
async fn the_same_capture_twice_changes_nothing_and_another_one_replaces_it() {
    let mut shop = Shop::new("create table orders (id int primary key, status text, total numeric)").await;
    let triggers =
        "select string_agg(oid::text || pg_get_triggerdef(oid), e'\\n' order by oid) from pg_trigger";
    let triggers = async |shop: &Shop| -> Option<String> {
        sqlx::query_scalar(triggers).fetch_one(&shop.database.pool).await.unwrap()
    };
    let locks = "select count(*) from pg_locks \
                 where relation = 'orders'::regclass and mode not in ('AccessShareLock', 'RowExclusiveLock')";
    for call in [
        "select outbox.capture('public.orders')",
        "select outbox.capture('orders', operations => '{delete,insert}', exclude => '{total,status}', diff => false)",
        "select outbox.capture('orders', 'shop.sales', columns => '{id,status}', condition => 'new.total > 0', operations => '{insert,update}', key => 'status')",
        "select outbox.capture('orders', key => 'status, id')",
    ] {
        let before = triggers(&shop).await;
        shop.owner(call).await;
        let first = triggers(&shop).await;
        assert_ne!(first, before, "{call}");
        let mut second = shop.database.pool.begin().await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(call)).execute(&mut *second).await.unwrap();
        let locked: i64 = sqlx::query_scalar(locks).fetch_one(&mut *second).await.unwrap();
        assert_eq!(locked, 0, "the same call again should lock nothing: {call}");
        second.commit().await.unwrap();
        assert_eq!(triggers(&shop).await, first, "{call}");
    }
    assert_eq!(shop.database.count("select count(*) from outbox.captures").await, 1);
    assert_eq!(shop.database.count("select outbox.release('orders')::int::bigint").await, 1);
    assert_eq!(shop.database.count("select outbox.release('orders')::int::bigint").await, 0);
    assert_eq!(triggers(&shop).await.unwrap_or_default().matches("outbox_capture").count(), 0);
    assert_eq!(shop.write("insert into orders values (1, 'new', 1)").await, []);
    shop.end().await;
}

#[tokio::test]
async fn captures_shows_how_each_table_is_captured() {
    let mut shop = Shop::new(ORDERS).await;
    let whole = json!({
        "table": "public.orders", "topic": "public.orders", "operations": ["insert", "update", "delete"],
        "columns": null, "exclude": null, "condition": null, "key": ["id"], "diff": true, "problem": null,
    });
    assert_eq!(shop.captured("public.orders").await, whole);
    shop.owner(
        "select outbox.capture('orders', 'shop.sales', '{update}', \
         columns => '{total,id}', condition => 'new.total > 0', key => 'status,id', diff => false)",
    )
    .await;
    let narrow = json!({
        "table": "public.orders", "topic": "shop.sales", "operations": ["update"],
        "columns": ["id", "total"], "exclude": null, "condition": "new.total > 0",
        "key": ["status", "id"], "diff": false, "problem": null,
    });
    assert_eq!(shop.captured("public.orders").await, narrow);
    shop.end().await;
}

#[tokio::test]
async fn hidden_columns_are_nowhere_and_an_update_of_nothing_else_is_no_event() {
    let mut shop =
        Shop::new("create table users (id int primary key, name text, password text, seen_at timestamptz)")
            .await;
    for (options, shown) in [
        ("exclude => '{password,seen_at}'", json!({"id": 1, "name": "Ada"})),
        ("columns => '{id,name}'", json!({"id": 1, "name": "Ada"})),
        ("exclude => '{seen_at,password,id}'", json!({"name": "Ada"})), // the key may be hidden
    ] {
        shop.owner(&format!("select outbox.capture('users', {options})")).await;
        let rename = |name: &str| format!("update users set name = '{name}', password = 'other'");
        assert_eq!(
            shop.write("insert into users values (1, 'Ada', 'secret', now())").await,
            [event("public.users.create", "1", json!({"row": shown}))]
        );
        assert_eq!(
            shop.write("update users set seen_at = now() + interval '1 day', password = 'secret 2'").await,
            []
        );
        let written = shop.write(&rename("Eve")).await;
        assert_eq!(written.len(), 1);
        assert_eq!(
            (&written[0].2["changed"], &written[0].2["previous"]),
            (&json!(["name"]), &json!({"name": "Ada"}))
        );
        assert!(!format!("{written:?}").contains("other"), "{written:?}");
        assert_eq!(shop.write("delete from users").await.len(), 1);
    }
    // A column of fixed width takes another code path.
    shop.owner("select outbox.capture('users', exclude => '{seen_at}')").await;
    shop.write("insert into users values (1, 'Ada', 'a', now()), (2, 'Bob', 'b', now())").await;
    assert_eq!(shop.write("update users set seen_at = null").await, []);
    let changed: Vec<Value> = shop
        .write("update users set seen_at = now(), password = 'c'")
        .await
        .into_iter()
        .map(|(_, _, p)| p["changed"].clone())
        .collect();
    assert_eq!(changed, [json!(["password"]), json!(["password"])]);
    shop.end().await;
}

#[tokio::test]
async fn operations_topic_diff_and_key_are_used_as_given() {
    let mut shop = Shop::new("create table orders (id int primary key, customer text, region text)").await;
    shop.owner(
        "select outbox.capture('orders', 'shop.sales', '{update,delete}', diff => false, key => 'customer')",
    )
    .await;
    assert_eq!(shop.write("insert into orders values (1, 'a/b', 'eu'), (2, null, 'eu')").await, []);
    assert_eq!(
        shop.write("update orders set region = 'us' where id = 1; delete from orders where id = 2").await,
        [
            event("shop.sales.update", "a/b", json!({"row": {"id": 1, "customer": "a/b", "region": "us"}})),
            event("shop.sales.delete", None, json!({"row": {"id": 2, "customer": null, "region": "eu"}})),
        ]
    );
    assert_eq!(shop.write("update orders set region = 'us'").await, []);
    shop.owner("select outbox.capture('orders', key => 'customer, region')").await;
    let keys = shop
        .write("insert into orders values (3, 'a/b', '%'), (4, 'a', 'b/%'), (5, null, 'x'), (6, '', '')")
        .await;
    let keys: Vec<_> = keys.into_iter().map(|(_, key, _)| key).collect();
    assert_eq!(
        keys,
        [Some("a%2Fb/%25".to_owned()), Some("a/b%2F%25".to_owned()), None, Some("/".to_owned())]
    );
    shop.end().await;
}

#[tokio::test]
async fn a_condition_decides_row_by_row_with_new_and_old() {
    let mut shop = Shop::new(
        "create table orders (id int primary key, status text, total numeric);
         create type paid as enum ('x'); create function is_large(numeric) returns boolean language sql as 'select $1 > 100';
         select outbox.capture('orders', operations => '{insert}', condition => 'is_large(new.total) -- by the caller''s search path')",
    )
    .await;
    let written = shop
        .write(
            "insert into orders values (1, 'new', 100), (2, 'new', 101), (3, 'new', null), (4, 'new', 500)",
        )
        .await;
    assert_eq!(written.iter().map(|(_, key, _)| key.as_deref().unwrap()).collect::<Vec<_>>(), ["2", "4"]);
    shop.owner(
        "select outbox.capture('orders', operations => '{update}', \
         condition => 'old.status is distinct from new.status')",
    )
    .await;
    assert_eq!(shop.write("update orders set total = 1").await, []);
    assert_eq!(
        shop.write("update orders set status = 'paid', total = 2 where id = 1").await,
        [event(
            "public.orders.update",
            "1",
            json!({
                "row": {"id": 1, "status": "paid", "total": 2},
                "changed": ["status", "total"], "previous": {"status": "new", "total": 1},
            })
        )]
    );
    // A row whose key changes counts as deleted and created, as without a condition.
    let moved = shop.write("update orders set id = 10, status = 'moved' where id = 1").await;
    assert_eq!(
        moved.iter().map(|(topic, key, _)| (topic.as_str(), key.as_deref().unwrap())).collect::<Vec<_>>(),
        [("public.orders.delete", "1"), ("public.orders.create", "10")]
    );
    shop.owner("select outbox.capture('orders', operations => '{delete}', condition => 'old.total > 100')")
        .await;
    shop.write("update orders set total = 500 where id = 4").await;
    assert_eq!(shop.write("delete from orders").await.len(), 1);
    shop.end().await;
}

#[tokio::test]
async fn invalid_options_are_refused_and_the_message_names_the_field() {
    let mut shop = Shop::new(ORDERS).await;
    let before = shop.captured("public.orders").await;
    for (options, expected) in [
        ("topic => ''", "topic: '' is not a valid"),
        ("topic => 'a..b'", "topic: 'a..b' is not a valid"),
        ("topic => 'a.*'", "topic: 'a.*' is not a valid"),
        ("topic => repeat('a', 249)", "topic: "),
        ("operations => '{}'", "operations: is empty"),
        ("operations => '{create}'", "operations: 'create' is not an operation"),
        ("operations => array[null]", "operations: NULL is not an operation"),
        ("columns => '{}'", "columns: leaves no column"),
        ("columns => '{id,nam}'", "columns: table public.orders has no column 'nam'"),
        ("columns => '{ctid}'", "columns: table public.orders has no column 'ctid'"),
        ("exclude => '{nam}'", "exclude: table public.orders has no column 'nam'"),
        ("exclude => '{id,status,total}'", "exclude: leaves no column"),
        ("columns => '{id}', exclude => '{total}'", "exclude: cannot be combined with columns"),
        ("key => 'id,nam'", "key: table public.orders has no column 'nam'"),
        ("key => ''", "key: table public.orders has no column ''"),
        ("condition => 'new.status = 1', operations => '{insert}'", "condition: operator does not exist"),
        ("condition => 'new.nam = 1', operations => '{insert}'", "condition: column new.nam does not exist"),
        (
            "condition => 'new.total', operations => '{insert}'",
            "condition: argument of WHEN must be type boolean",
        ),
        (
            "condition => 'new.total > 0'",
            "condition: DELETE trigger's WHEN condition cannot reference NEW values",
        ),
        (
            "condition => 'old.total > 0'",
            "condition: INSERT trigger's WHEN condition cannot reference OLD values",
        ),
        (
            "condition => 'exists (select from orders)', operations => '{insert}'",
            "condition: cannot use subquery in trigger WHEN condition",
        ),
        ("condition => '', operations => '{insert}'", "condition: syntax error"),
        (
            "condition => 'true); drop table orders; select (true', operations => '{insert}'",
            "condition: cannot open multi-query plan as cursor",
        ),
        (
            "condition => 'true)) execute function pg_notify(''a'', ''b'') --', operations => '{insert}'",
            "condition: syntax error",
        ),
    ] {
        let refusal = shop.refusal(&format!("select outbox.capture('orders', {options})")).await;
        assert!(refusal.starts_with(expected), "{options}: {refusal:?} should begin with {expected:?}");
    }
    assert_eq!(shop.captured("public.orders").await, before, "a refused call changes nothing");
    assert_eq!(shop.write("insert into orders values (1, 'new', 1)").await.len(), 1);
    shop.end().await;
}

#[tokio::test]
async fn a_trigger_made_by_hand_hides_no_capture() {
    let mut shop = Shop::new(
        "create schema shop; create table shop.orders (id bigint primary key); \
         create table shop.other (id bigint primary key)",
    )
    .await;
    shop.owner("select outbox.capture('shop.orders')").await;
    for arguments in ["", "'x'", "'{\"table\": \"y\"}'"] {
        shop.owner(&format!(
            "drop trigger if exists outbox_capture_insert on shop.other;
             create trigger outbox_capture_insert after insert on shop.other for each row execute function outbox_internal.capture_changes({arguments})"
        ))
        .await;
        assert_eq!(shop.captured("shop.orders").await["topic"], "shop.orders", "{arguments}");
    }
    shop.end().await;
}
