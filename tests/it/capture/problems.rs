//! Tables that change after they were captured: what is followed, and what is said instead.

use std::time::Duration;

use serde_json::json;

use super::{Shop, shapes::short};
use crate::support::ChildRelay;

#[tokio::test]
async fn a_number_of_another_scale_is_the_same_key() {
    let mut shop = Shop::new(
        "create table prices (price numeric primary key, note text); select outbox.capture('prices');
         create table parts (shop text, number numeric, note text, primary key (shop, number));
         select outbox.capture('parts');
         create table hosts (name text primary key, note text); select outbox.capture('hosts')",
    )
    .await;
    let made = shop
        .write(
            "insert into prices values (1.0, 'a'), (10, 'b'), (0.50, 'c'); \
             insert into parts values ('x', 2.50, 'a'); insert into hosts values ('1.50', 'text')",
        )
        .await;
    assert_eq!(
        short(&made),
        ["create 1", "create 10", "create 0.5", "create x/2.5", "create 1.50"],
        "text stays as it is"
    );
    // One row and many, with one column of the key and with two.
    let moved = shop
        .write(
            "update prices set price = 1.00, note = 'd' where price = 1; \
             update prices set price = price::numeric(9, 3), note = 'e'; \
             update parts set number = 2.5000, note = 'b'",
        )
        .await;
    assert_eq!(short(&moved), ["update 1", "update 10", "update 0.5", "update 1", "update x/2.5"]);
    assert_eq!(moved[1].2["row"]["note"], "e");
    shop.end().await;
}

#[tokio::test]
async fn a_capture_that_fits_its_table_no_longer_says_so_everywhere() {
    let mut shop = Shop::new(
        "create table moved (id int primary key, code int not null unique); select outbox.capture('moved');
         create table late (id int, note text); select outbox.capture('late');
         create table part (id int primary key); select outbox.capture('part');
         create table base (id int primary key); select outbox.capture('base');
         create table renamed (id int primary key); select outbox.capture('renamed');
         create table well (id int primary key); select outbox.capture('well', topic => 'shop.wells')",
    )
    .await;
    assert_eq!(
        shop.database.count("select count(*) from outbox.captures where problem is not null").await,
        0
    );
    shop.owner(
        "alter table moved drop constraint moved_pkey, add primary key (code);
         alter table late add primary key (id);
         create table whole (id int primary key) partition by range (id);
         alter table whole attach partition part for values from (0) to (100);
         create table child () inherits (base);
         alter table renamed rename to former; create table renamed (id int primary key)",
    )
    .await;
    let expected = [
        ("public.base", "it inherits or is inherited from: changes through the parent"),
        ("public.former", "its topic public.renamed is the name of another table"),
        ("public.late", "the primary key has changed since"),
        ("public.moved", "the primary key has changed since"),
        ("public.part", "it is a partition now: statements on whole are not captured"),
    ];
    for (table, problem) in expected {
        let found = shop.captured(table).await["problem"].clone();
        assert!(found.as_str().is_some_and(|found| found.contains(problem)), "{table}: {found}");
    }
    assert_eq!(shop.captured("public.well").await["problem"], json!(null));

    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let check = shop.database.pgoutbox(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    let status = shop.database.pgoutbox(&["status"]);
    for (table, problem) in expected {
        let line = format!("capture of {table}: ");
        for shown in [text(&check.stdout), text(&status.stderr)] {
            assert!(shown.contains(&line) && shown.contains(problem), "{table}: {shown}");
        }
    }

    // To capture it again is the way for what can still be captured.
    shop.owner(
        "select outbox.capture('moved'), outbox.capture('late'), outbox.release('part'), \
                outbox.release('base'), outbox.release('former'), outbox.capture('former')",
    )
    .await;
    assert_eq!(
        shop.database.count("select count(*) from outbox.captures where problem is not null").await,
        0
    );
    assert_eq!(short(&shop.write("insert into moved values (1, 7)").await), ["create 7"]);
    assert_eq!(shop.database.pgoutbox(&["check"]).status.code(), Some(0));
    shop.end().await;
}

#[tokio::test]
async fn the_type_of_a_column_in_a_condition_changes_in_one_transaction_without_losing_an_event() {
    let mut shop = Shop::new(
        "create table orders (id int primary key, total int);
         select outbox.capture('orders', condition => 'new.total > 10', operations => '{insert,update}')",
    )
    .await;
    let refused = shop.refusal("alter table orders alter total type numeric").await;
    assert!(refused.contains("used in a trigger definition"), "{refused}");
    shop.owner(
        "begin;
         select outbox.release('orders');
         alter table orders alter total type numeric;
         select outbox.capture('orders', condition => 'new.total > 10', operations => '{insert,update}');
         commit",
    )
    .await;
    assert_eq!(short(&shop.write("insert into orders values (1, 10.5), (2, 9)").await), ["create 1"]);
    shop.end().await;
}

#[tokio::test]
async fn a_relay_says_at_its_start_what_is_wrong_with_a_capture() {
    let mut shop = Shop::new("create table t (id int primary key); select outbox.capture('t')").await;
    shop.owner("alter table t disable trigger outbox_capture_insert").await;
    let mut relay = ChildRelay::start(&shop.database, "says", &[]).await;
    relay.wait_for_log("a captured table has a problem").await;
    relay.wait_for_log("a trigger is disabled").await;
    relay.signal("TERM");
    assert_eq!(relay.ended(Duration::from_secs(20)).await, Some(0));
    shop.end().await;
}

#[tokio::test]
async fn a_trigger_whose_changes_may_come_before_those_of_its_statement_is_named() {
    let mut shop = Shop::new(
        "create table \"odd.Name (1)\" (id int primary key, status text);
         select outbox.capture('\"odd.Name (1)\"', topic => 'odd');
         create function settle() returns trigger language plpgsql as $$ begin
             update only public.\"odd.Name (1)\"
                set status = 'done' where id = new.id; return null; end $$;
         create function other() returns trigger language plpgsql as $$ begin
             -- update \"odd.Name (1)\" later
             insert into \"odd.Name (1)_old\" values (1); update other.\"odd.Name (1)\" set id = 1;
             return new; end $$",
    )
    .await;
    let table = "\"odd.Name (1)\"";
    let by_row = "operations => '{insert,update}', condition => 'new.id > 0'";
    let deferred = "constraint trigger a after insert on {} deferrable initially deferred";
    let after = Some(
        "trigger a changes rows of this table, which is captured row by row, and the events of these changes \
         may come before those of the statement that runs it: make it a constraint trigger that is initially \
         deferred",
    );
    let before = Some(
        "trigger a changes other rows of this table before each row of a statement, and the events of these \
         changes may come before those of the statement: make it an AFTER trigger",
    );
    for (options, trigger, function, problem) in [
        ("diff => true", "trigger a after insert on {}", "settle", None),
        (by_row, "trigger a after insert on {}", "settle", after),
        (by_row, deferred, "settle", None),
        (by_row, "trigger a after insert on {}", "other", None),
        ("diff => true", "trigger a before insert on {}", "settle", before),
        ("diff => true", "trigger a before insert on {}", "other", None),
        ("operations => '{insert}'", "trigger a before insert on {}", "settle", None),
    ] {
        shop.owner(&format!(
            "select outbox.capture('{table}', topic => 'odd', {options});
             create {} for each row execute function {function}()",
            trigger.replace("{}", table)
        ))
        .await;
        let found = shop.captured(&format!("public.{table}")).await["problem"].clone();
        assert_eq!(found, json!(problem), "{options}, {trigger}, {function}");
        if problem.is_none() && function == "settle" && options != "operations => '{insert}'" {
            let made = shop.write(&format!("insert into {table} values (1, 'new')")).await;
            assert_eq!(short(&made), ["create 1", "update 1"], "{options}, {trigger}");
        }
        shop.owner(&format!("drop trigger a on {table}; truncate {table}")).await;
    }
    shop.end().await;
}

#[tokio::test]
async fn a_trigger_that_is_disabled_on_one_partition_is_a_problem_of_the_capture() {
    let mut shop = Shop::new(
        "create table parts (id int primary key) partition by range (id);
         create table low partition of parts for values from (0) to (100);
         select outbox.capture('parts')",
    )
    .await;
    assert_eq!(shop.captured("public.parts").await["problem"], json!(null));
    shop.owner("alter table low disable trigger outbox_capture_partition_insert").await;
    assert_eq!(shop.captured("public.parts").await["problem"], json!("a trigger of a partition is disabled"));
    assert_eq!(shop.write("insert into low values (1)").await, [], "as it says");
    shop.end().await;
}

#[tokio::test]
async fn a_trigger_that_was_dropped_is_a_problem_until_the_table_is_captured_again() {
    let mut shop = Shop::new(
        "create table t (id int primary key, n int); select outbox.capture('t');
         create table few (id int primary key); select outbox.capture('few', operations => '{delete,insert}')",
    )
    .await;
    shop.owner("drop trigger outbox_capture_update on t").await;
    assert_eq!(shop.captured("public.t").await["problem"], json!("a trigger is missing"));
    assert_eq!(shop.captured("public.few").await["problem"], json!(null), "it never captured updates");
    shop.owner("select outbox.capture('t')").await;
    assert_eq!(shop.captured("public.t").await["problem"], json!(null));
    assert_eq!(
        short(&shop.write("insert into t values (1, 1); update t set n = 2").await),
        ["create 1", "update 1"]
    );
    shop.end().await;
}

#[tokio::test]
async fn a_column_that_gets_another_type_is_followed() {
    let mut shop = Shop::new(
        "create table t (id int primary key, total int, note text);
         select outbox.capture('t');
         create type mood as enum ('fine')",
    )
    .await;
    assert_eq!(short(&shop.write("insert into t values (1, 5, 'fine')").await), ["create 1"]);
    for (column, kind, set, row) in [
        ("total", "numeric(9, 2)", "total = 6", json!({"id": 1, "total": 6.00, "note": "fine"})),
        ("note", "mood using note::mood", "total = 7", json!({"id": 1, "total": 7.00, "note": "fine"})),
        ("note", "json using to_json(note)", "total = 8", json!({"id": 1, "total": 8.00, "note": "fine"})),
        ("id", "numeric(9, 3)", "total = 9", json!({"id": 1.000, "total": 9.00, "note": "fine"})),
        ("id", "text", "total = 10", json!({"id": "1.000", "total": 10.00, "note": "fine"})),
    ] {
        shop.owner(&format!("alter table t alter {column} type {kind}")).await;
        // By a session that has written to the table before.
        let made = shop.write(&format!("update t set {set}")).await;
        let key = if kind == "text" { "update 1.000" } else { "update 1" };
        assert_eq!(short(&made), [key], "{column} {kind}");
        assert_eq!(made[0].2["row"], row, "{column} {kind}");
        assert_eq!(shop.captured("public.t").await["problem"], json!(null), "{column} {kind}");
    }
    shop.end().await;
}
